//! JSON records to Avro.

use arrow_avro::{
    schema::{FingerprintStrategy, SCHEMA_METADATA_KEY},
    writer::{Encoder, WriterBuilder, format::AvroSoeFormat},
};
use bytes::Bytes;
use datafusion::arrow::{array::RecordBatch, datatypes::Schema};
use millstream_plan::{RecordSchema, avro::uuids_as_text};

use crate::decode::JsonColumns;

/// Records that are encoded at once.
const CHUNK: usize = 1_000;

/// Encodes records in the shape of a schema.
pub struct Encode {
    columns: JsonColumns,
    encoder: Encoder,
}

impl Encode {
    /// An encoder for the records of a topic, whose schema is registered under this id.
    pub fn new(schema: &RecordSchema, topic: &str, id: u32) -> anyhow::Result<Self> {
        let mut avro = schema.avro(topic)?;
        uuids_as_text(&mut avro);
        let arrow = schema.arrow();
        let metadata = [(SCHEMA_METADATA_KEY.to_owned(), avro.to_string())];
        let described = Schema::new_with_metadata(arrow.fields().clone(), metadata.into());
        let encoder = WriterBuilder::new(described)
            .with_fingerprint_strategy(FingerprintStrategy::Id(id))
            .build_encoder::<AvroSoeFormat>()?;
        Ok(Encode {
            columns: JsonColumns::new(arrow)?,
            encoder,
        })
    }

    /// Every record in Avro, or why it can't be. CPU-bound: a few microseconds for a small record.
    pub fn encode(&mut self, records: &[Bytes]) -> Vec<Result<Bytes, String>> {
        let mut encoded = Vec::with_capacity(records.len());
        let mut ranges: Vec<&[Bytes]> = records.chunks(CHUNK).rev().collect();
        while let Some(records) = ranges.pop() {
            match self.attempt(records) {
                Ok(rows) => encoded.extend(rows.into_iter().map(Ok)),
                Err(reason) if records.len() == 1 => encoded.push(Err(reason)),
                Err(_) => {
                    // Halved until the bad records stand alone; the first half is on top.
                    let (first, second) = records.split_at(records.len() / 2);
                    ranges.extend([second, first]);
                }
            }
        }
        encoded
    }

    fn attempt(&mut self, records: &[Bytes]) -> Result<Vec<Bytes>, String> {
        let batch = self.columns.decode(records.iter().map(Bytes::as_ref))?;
        let encoded = self.encode_batch(&batch);
        let rows = self.encoder.flush();
        encoded?;
        Ok(rows.iter().collect())
    }

    fn encode_batch(&mut self, batch: &RecordBatch) -> Result<(), String> {
        let encoded = self.encoder.encode(batch);
        encoded.map_err(|error| format!("the record can't be written as Avro: {error}"))
    }
}
