//! Records to Arrow columns: only those that the query reads.

mod whole;

use std::sync::Arc;

use arrow_json::{ReaderBuilder, reader::Decoder};
use bytes::Bytes;
use datafusion::arrow::{
    array::{
        ArrayRef, Int32Array, Int64Array, RecordBatch, RecordBatchOptions, StringArray,
        TimestampMicrosecondArray,
    },
    datatypes::SchemaRef,
    error::ArrowError,
};
use millstream_plan::{RecordSchema, SinkPlan, VirtualColumn, caught};

use crate::{
    avro::decode::{AvroColumns, AvroTopic},
    batch::{Batch, Record},
};

/// Decodes records into the columns that a sink's query reads.
pub struct Decode {
    input_schema: SchemaRef,
    virtual_columns: Vec<VirtualColumn>,
    columns: Columns,
}

/// The decoder for the encoding of the topic's records.
enum Columns {
    Json(JsonColumns),
    Avro(AvroColumns),
}

/// Records that are decoded at once, and have room in a decoder: batches may be larger.
pub const DECODED: usize = 10_000;

impl Decode {
    /// A decoder of JSON for a sink's query.
    pub fn new(plan: &SinkPlan) -> Result<Self, ArrowError> {
        let columns = Columns::Json(JsonColumns::new(plan.record_schema())?);
        Ok(Decode::with(plan, columns))
    }

    /// A decoder of Avro for a sink's query.
    pub fn avro(plan: &SinkPlan, topic: AvroTopic) -> Self {
        let columns = AvroColumns::new(topic, plan.record_schema());
        Decode::with(plan, Columns::Avro(columns))
    }

    fn with(plan: &SinkPlan, columns: Columns) -> Self {
        Decode {
            input_schema: plan.input_schema(),
            virtual_columns: plan.virtual_columns().to_vec(),
            columns,
        }
    }

    /// Decodes records of a batch. Where one of them can't be decoded, all fail.
    pub fn decode(&mut self, batch: &Batch, records: &[Record]) -> Result<RecordBatch, String> {
        let values = records
            .iter()
            .map(|record| batch.value(record).unwrap_or_default());
        let columns = match &mut self.columns {
            Columns::Json(json) => json.decode(values)?.columns().to_vec(),
            Columns::Avro(avro) => avro.decode(values)?,
        };
        let virtual_columns = self
            .virtual_columns
            .iter()
            .map(|column| virtual_column(*column, batch, records));
        let columns = columns.into_iter().chain(virtual_columns).collect();
        let options = RecordBatchOptions::new().with_row_count(Some(records.len()));
        RecordBatch::try_new_with_options(self.input_schema.clone(), columns, &options)
            .map_err(|error| message(&error))
    }
}

/// Decodes JSON records into columns.
pub struct JsonColumns {
    schema: SchemaRef,
    decoder: Decoder,
}

impl JsonColumns {
    /// A decoder into these columns.
    pub fn new(schema: SchemaRef) -> Result<Self, ArrowError> {
        Ok(JsonColumns {
            decoder: decoder(&schema)?,
            schema,
        })
    }

    /// Decodes records, [`DECODED`] at most. Where one of them can't be decoded, all fail.
    pub fn decode<'a>(
        &mut self,
        records: impl Iterator<Item = &'a [u8]>,
    ) -> Result<RecordBatch, String> {
        let decoded =
            caught(|| self.attempt(records)).unwrap_or_else(|panic| Err(undecodable(&panic)));
        if decoded.is_err() {
            // After an error the decoder holds half a record.
            self.decoder = decoder(&self.schema).map_err(|error| message(&error))?;
        }
        decoded
    }

    fn attempt<'a>(
        &mut self,
        records: impl Iterator<Item = &'a [u8]>,
    ) -> Result<RecordBatch, String> {
        for (index, record) in records.enumerate() {
            let read = self
                .decoder
                .decode(record)
                .map_err(|error| format!("the record isn't JSON: {}", message(&error)))?;
            // Two halves must never count as one record.
            let whole = read == record.len()
                && self.decoder.len() == index + 1
                && !self.decoder.has_partial_record();
            if !whole {
                return Err("the record isn't one JSON object".to_owned());
            }
        }
        let misfit = |reason| format!("the record doesn't fit the schema: {reason}");
        flush(&mut self.decoder, &self.schema).map_err(misfit)
    }
}

/// The records that don't fit a schema, as a whole and not just as far as a query reads them; each
/// by its index, with the reason.
pub fn misfits(schema: &RecordSchema, records: &[Bytes]) -> Vec<(usize, String)> {
    let schema = schema.arrow();
    let misfit = |record: &Bytes| -> Result<(), String> {
        let mut decoder = decoder(&schema).map_err(|error| message(&error))?;
        decoder.decode(record).map_err(|error| message(&error))?;
        flush(&mut decoder, &schema).map(drop)
    };
    let misfits = records.iter().enumerate();
    let misfits = misfits.filter_map(|(index, record)| Some((index, misfit(record).err()?)));
    misfits.collect()
}

/// Why a record can't be decoded whose decoder has panicked.
pub fn undecodable(panic: &str) -> String {
    format!("the decoder can't read the record: {panic}")
}

/// What a [`decoder`] for a schema has decoded.
fn flush(decoder: &mut Decoder, schema: &SchemaRef) -> Result<RecordBatch, String> {
    let Some(decoded) = decoder.flush().map_err(|error| message(&error))? else {
        return Ok(RecordBatch::new_empty(schema.clone()));
    };
    let columns = whole::read(schema, &decoded)?;
    let options = RecordBatchOptions::new().with_row_count(Some(decoded.num_rows()));
    RecordBatch::try_new_with_options(schema.clone(), columns, &options)
        .map_err(|error| message(&error))
}

fn decoder(schema: &SchemaRef) -> Result<Decoder, ArrowError> {
    ReaderBuilder::new(Arc::new(whole::as_text(schema)))
        .with_coerce_primitive(true)
        .with_batch_size(DECODED)
        .build_decoder()
}

/// The error without its prefix: people aren't told which part of the engine it comes from.
fn message(error: &ArrowError) -> String {
    match error {
        ArrowError::JsonError(message)
        | ArrowError::ParseError(message)
        | ArrowError::CastError(message)
        | ArrowError::InvalidArgumentError(message) => {
            // Of integers too, which are read from text.
            message.replace("expected string got", "expected a single value, got")
        }
        other => other.to_string(),
    }
}

fn virtual_column(column: VirtualColumn, batch: &Batch, records: &[Record]) -> ArrayRef {
    match column {
        VirtualColumn::Key => Arc::new(StringArray::from_iter(
            records
                .iter()
                .map(|record| batch.key(record).map(String::from_utf8_lossy)),
        )),
        VirtualColumn::Partition => Arc::new(Int32Array::from_iter_values(
            records.iter().map(|record| record.partition),
        )),
        VirtualColumn::Offset => Arc::new(Int64Array::from_iter_values(
            records.iter().map(Record::first_offset),
        )),
        VirtualColumn::Timestamp => Arc::new(
            TimestampMicrosecondArray::from_iter(
                records
                    .iter()
                    .map(|record| record.timestamp.map(|millis| millis.saturating_mul(1_000))),
            )
            .with_timezone("+00:00"),
        ),
    }
}
