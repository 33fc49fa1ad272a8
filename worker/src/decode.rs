//! JSON records to Arrow columns: only those that the query reads.

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
use millstream_plan::{RecordSchema, SinkPlan, VirtualColumn};

use crate::batch::{Batch, Record};

/// Decodes records into the columns that a sink's query reads.
pub struct Decode {
    record_schema: SchemaRef,
    input_schema: SchemaRef,
    virtual_columns: Vec<VirtualColumn>,
    decoder: Decoder,
}

/// Rows of a decoder; batches are never larger.
const CAPACITY: usize = 16 * 1024;

impl Decode {
    /// A decoder for a sink's query.
    pub fn new(plan: &SinkPlan) -> Result<Self, ArrowError> {
        let record_schema = plan.record_schema();
        Ok(Decode {
            decoder: decoder(&record_schema)?,
            input_schema: plan.input_schema(),
            virtual_columns: plan.virtual_columns().to_vec(),
            record_schema,
        })
    }

    /// Decodes records of a batch. Where one of them can't be decoded, all fail.
    pub fn decode(&mut self, batch: &Batch, records: &[Record]) -> Result<RecordBatch, String> {
        let decoded = self.decode_json(batch, records);
        if decoded.is_err() {
            // After an error the decoder holds half a record.
            self.decoder = decoder(&self.record_schema).map_err(|error| message(&error))?;
        }
        let columns = decoded?;
        let virtual_columns = self
            .virtual_columns
            .iter()
            .map(|column| virtual_column(*column, batch, records));
        let columns = columns.into_iter().chain(virtual_columns).collect();
        let options = RecordBatchOptions::new().with_row_count(Some(records.len()));
        RecordBatch::try_new_with_options(self.input_schema.clone(), columns, &options)
            .map_err(|error| message(&error))
    }

    fn decode_json(&mut self, batch: &Batch, records: &[Record]) -> Result<Vec<ArrayRef>, String> {
        for (index, record) in records.iter().enumerate() {
            let value = batch.value(record).unwrap_or_default();
            let read = self
                .decoder
                .decode(value)
                .map_err(|error| format!("the record isn't JSON: {}", message(&error)))?;
            // Two halves must never count as one record.
            let whole = read == value.len()
                && self.decoder.len() == index + 1
                && !self.decoder.has_partial_record();
            if !whole {
                return Err("the record isn't one JSON object".to_owned());
            }
        }
        let decoded = self
            .decoder
            .flush()
            .map_err(|error| format!("the record doesn't fit the schema: {}", message(&error)))?;
        Ok(decoded.map_or_else(Vec::new, |batch| batch.columns().to_vec()))
    }
}

/// The records that don't fit a schema, as a whole and not just as far as a query reads them; each
/// by its index, with the reason.
pub fn misfits(schema: &RecordSchema, records: &[Bytes]) -> Vec<(usize, String)> {
    let schema = schema.arrow();
    let misfit = |record: &Bytes| -> Result<(), ArrowError> {
        let mut decoder = decoder(&schema)?;
        decoder.decode(record)?;
        decoder.flush().map(drop)
    };
    let misfits = records.iter().enumerate().filter_map(|(index, record)| {
        let error = misfit(record).err()?;
        Some((index, message(&error)))
    });
    misfits.collect()
}

fn decoder(schema: &SchemaRef) -> Result<Decoder, ArrowError> {
    ReaderBuilder::new(schema.clone())
        .with_coerce_primitive(true)
        .with_batch_size(CAPACITY)
        .build_decoder()
}

/// The error without its prefix: people aren't told which part of the engine it comes from.
fn message(error: &ArrowError) -> String {
    match error {
        ArrowError::JsonError(message)
        | ArrowError::ParseError(message)
        | ArrowError::CastError(message)
        | ArrowError::InvalidArgumentError(message) => message.clone(),
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
