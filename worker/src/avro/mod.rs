//! Avro in Confluent's wire format: a zero byte, the id of the writer's schema, the value.
//!
//! - [`encode`]: JSON records to Avro, under the schema that the operator registered.
//! - [`decode`]: Avro to the columns that a query reads, each record by its writer's schema.
//! - [`json`]: Avro of any [`schema`] to JSON, for topics that others write.

pub mod decode;
pub mod encode;
pub mod json;
pub mod schema;

#[cfg(test)]
mod tests;

/// The first byte of every record; no JSON begins with it.
const MAGIC: u8 = 0;

/// The id of the writer's schema, and the value.
pub fn split(record: &[u8]) -> Result<(u32, &[u8]), String> {
    match record.split_first() {
        Some((&MAGIC, rest)) => match rest.split_first_chunk::<4>() {
            Some((id, value)) => Ok((u32::from_be_bytes(*id), value)),
            None => Err("the record is too short for the id of its schema".to_owned()),
        },
        _ => Err("the record isn't Avro in the wire format of schema registries".to_owned()),
    }
}

/// Whether a record is in this format.
pub fn is_avro(record: &[u8]) -> bool {
    record.first() == Some(&MAGIC)
}
