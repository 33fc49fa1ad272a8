//! Avro records to Arrow columns: each record is read by its writer's schema.

use std::{collections::HashMap, sync::Arc};

use arrow_avro::{
    reader::{Decoder, ReaderBuilder},
    schema::{AvroSchema, Fingerprint, FingerprintAlgorithm, SchemaStore},
};
use datafusion::arrow::{
    array::{ArrayRef, RecordBatch},
    compute::{CastOptions, cast_with_options, concat_batches},
    datatypes::SchemaRef,
};
use millstream_plan::{
    avro::{check_readable, narrow, uuids_as_text},
    caught,
};
use serde_json::Value;

use crate::{
    avro,
    batch::Batch,
    decode::{DECODED, undecodable},
    registry::Registry,
    status::StatusPart,
};

/// A value that doesn't fit is the record's fault, and not null.
const CAST: CastOptions<'static> = CastOptions {
    safe: false,
    format_options: datafusion::arrow::util::display::FormatOptions::new(),
};

/// The Avro records of a topic: the pipeline's schema for them, and where those of their writers
/// are.
#[derive(Clone)]
pub struct AvroTopic {
    /// The schema of the pipeline.
    pub schema: Arc<Value>,
    /// Where the schemas of the writers are.
    pub registry: Arc<Registry>,
}

impl AvroTopic {
    /// Fetches the schemas of a batch's records that aren't known yet; waits for the registry.
    pub async fn fetch_schemas(&self, batch: &Batch, status: &StatusPart) {
        let mut last = None;
        for record in batch.records() {
            let value = batch.value(record).unwrap_or_default();
            let Ok((id, _)) = avro::split(value) else {
                continue;
            };
            if last.replace(id) != Some(id) {
                // Where there is none, its records are rejected when they are decoded.
                let _ = self.registry.fetch(id, status).await;
            }
        }
    }
}

/// Decodes records into columns.
pub struct AvroColumns {
    topic: AvroTopic,
    /// The part of the pipeline's schema that is read.
    reader: Value,
    columns: SchemaRef,
    decoders: HashMap<u32, Decoder>,
}

/// Decoders that are kept: a topic has few schemas.
const MAX_DECODERS: usize = 64;

impl AvroColumns {
    /// A decoder into these columns of the pipeline's schema.
    pub fn new(topic: AvroTopic, columns: SchemaRef) -> Self {
        // A record without fields isn't one that Avro can decode.
        let mut reader = match columns.fields().is_empty() {
            true => (*topic.schema).clone(),
            false => narrow(&topic.schema, columns.fields()),
        };
        uuids_as_text(&mut reader);
        AvroColumns {
            topic,
            reader,
            columns,
            decoders: HashMap::new(),
        }
    }

    /// Decodes records, [`DECODED`] at most. Where one of them can't be decoded, all fail.
    pub fn decode<'a>(
        &mut self,
        records: impl Iterator<Item = &'a [u8]>,
    ) -> Result<Vec<ArrayRef>, String> {
        let decoded =
            caught(|| self.attempt(records)).unwrap_or_else(|panic| Err(undecodable(&panic)));
        if decoded.is_err() {
            // They hold what was read before the error.
            self.decoders.clear();
        }
        decoded
    }

    fn attempt<'a>(
        &mut self,
        records: impl Iterator<Item = &'a [u8]>,
    ) -> Result<Vec<ArrayRef>, String> {
        let records = records.map(|record| avro::split(record).map(|(id, _)| (id, record)));
        let records = records.collect::<Result<Vec<_>, _>>()?;
        let runs = records.chunk_by(|one, next| one.0 == next.0);
        let runs = runs.map(|run| self.decode_run(run[0].0, run));
        let runs = runs.collect::<Result<Vec<_>, _>>()?;
        let batch = concat_batches(&self.columns, &runs).map_err(|error| error.to_string())?;
        Ok(batch.columns().to_vec())
    }

    /// The columns of records that follow each other and are of one schema.
    fn decode_run(&mut self, id: u32, run: &[(u32, &[u8])]) -> Result<RecordBatch, String> {
        let failed = |error: String| format!("the record doesn't fit its schema {id}: {error}");
        let decoder = self.decoder(id)?;
        for (_, record) in run {
            let before = decoder.capacity();
            let read = decoder.decode(record);
            let read = read.map_err(|error| failed(error.to_string()))?;
            if read != record.len() || decoder.capacity() + 1 != before {
                return Err(format!("the record isn't one value of its schema {id}"));
            }
        }
        let batch = decoder.flush();
        let batch = batch
            .map_err(|error| failed(error.to_string()))?
            .filter(|batch| batch.num_rows() == run.len())
            .ok_or_else(|| failed("it isn't whole".to_owned()))?;
        let columns = self.columns.fields().iter().map(|field| {
            let column = batch.column_by_name(field.name());
            let column = column.ok_or_else(|| failed(format!("no field `{}`", field.name())))?;
            cast_with_options(column, field.data_type(), &CAST)
                .map_err(|error| format!("field `{}`: {error}", field.name()))
        });
        let columns = columns.collect::<Result<Vec<_>, _>>()?;
        let options =
            datafusion::arrow::array::RecordBatchOptions::new().with_row_count(Some(run.len()));
        RecordBatch::try_new_with_options(self.columns.clone(), columns, &options)
            .map_err(|error| failed(error.to_string()))
    }

    fn decoder(&mut self, id: u32) -> Result<&mut Decoder, String> {
        if !self.decoders.contains_key(&id) {
            let decoder = self.build(id)?;
            if self.decoders.len() >= MAX_DECODERS {
                self.decoders.clear();
            }
            self.decoders.insert(id, decoder);
        }
        self.decoders
            .get_mut(&id)
            .ok_or_else(|| format!("schema {id} isn't there"))
    }

    fn build(&self, id: u32) -> Result<Decoder, String> {
        let known = self.topic.registry.known(id)?;
        let unreadable = |error: &dyn std::fmt::Display| {
            format!("schema {id} can't be read as the pipeline's: {error}")
        };
        check_readable(&known, &self.reader).map_err(|error| unreadable(&error))?;
        let mut writer = (*known).clone();
        uuids_as_text(&mut writer);
        let mut store = SchemaStore::new_with_type(FingerprintAlgorithm::Id);
        store
            .set(Fingerprint::Id(id), AvroSchema::new(writer.to_string()))
            .map_err(|error| unreadable(&error))?;
        ReaderBuilder::new()
            .with_writer_schema_store(store)
            .with_active_fingerprint(Fingerprint::Id(id))
            .with_reader_schema(AvroSchema::new(self.reader.to_string()))
            .with_batch_size(DECODED)
            .build_decoder()
            .map_err(|error| unreadable(&error))
    }
}
