//! A record of the source's topic to a JSON record.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::Context;
use base64::{Engine, prelude::BASE64_STANDARD};
use bytes::Bytes;
use chrono::{DateTime, SecondsFormat};
use millstream_api::{
    SchemaRegistryConnection,
    source::{TopicEncoding, TopicSource},
};
use rdkafka::{Message, message::OwnedMessage};
use serde_json::{Map, Value, json};

use crate::{
    avro::{self, json::to_json, schema::Schema},
    config::Credentials,
    dead_letter::headers_of,
    registry::Registry,
    status::StatusPart,
};

/// Converts records of an encoding.
pub enum Convert {
    Json,
    Avro(Avro),
    Raw,
}

/// Avro, and the schemas that were parsed.
pub struct Avro {
    registry: Registry,
    schemas: Mutex<HashMap<u32, Arc<Parsed>>>,
}

/// A schema, or why it can't be used.
type Parsed = Result<Schema, String>;

impl Convert {
    /// A converter of the source's encoding.
    pub fn new(
        spec: &TopicSource,
        credentials: &Credentials,
        of_pipeline: Option<&SchemaRegistryConnection>,
    ) -> anyhow::Result<Self> {
        Ok(match spec.encoding {
            TopicEncoding::Json => Convert::Json,
            TopicEncoding::Raw => Convert::Raw,
            TopicEncoding::Avro => {
                let registry = match &spec.schema_registry {
                    Some(own) => Registry::new(own, &credentials.of_source())?,
                    None => {
                        let registry = of_pipeline.context(
                            "the source's records are Avro, and there is no schemaRegistry: set it in source.topic or in the pipeline",
                        )?;
                        Registry::new(registry, credentials)?
                    }
                };
                Convert::Avro(Avro {
                    registry,
                    schemas: Mutex::default(),
                })
            }
        })
    }

    /// A JSON record; or why there is none.
    pub async fn convert(
        &self,
        message: &OwnedMessage,
        status: &StatusPart,
    ) -> Result<Bytes, String> {
        let value = message
            .payload()
            .ok_or("the record is a tombstone: it has no value");
        match self {
            Convert::Raw => Ok(raw(message).to_string().into()),
            Convert::Json => Ok(Bytes::copy_from_slice(value?)),
            Convert::Avro(avro) => avro.convert(value?, status).await,
        }
    }
}

impl Avro {
    async fn convert(&self, record: &[u8], status: &StatusPart) -> Result<Bytes, String> {
        let (id, value) = avro::split(record)?;
        let schema = self.schema(id, status).await?;
        let schema = schema.as_ref().as_ref();
        let schema = schema.map_err(|error| format!("schema {id} can't be read: {error}"))?;
        let json = to_json(schema, value);
        json.map(Bytes::from)
            .map_err(|error| format!("the record doesn't fit its schema {id}: {error}"))
    }

    async fn schema(&self, id: u32, status: &StatusPart) -> Result<Arc<Parsed>, String> {
        let parsed = {
            let schemas = self.schemas.lock().unwrap_or_else(PoisonError::into_inner);
            schemas.get(&id).cloned()
        };
        if let Some(parsed) = parsed {
            return Ok(parsed);
        }
        let fetched = self.registry.fetch(id, status).await?;
        let parsed = Arc::new(Schema::parse(&fetched));
        let mut schemas = self.schemas.lock().unwrap_or_else(PoisonError::into_inner);
        schemas.insert(id, parsed.clone());
        Ok(parsed)
    }
}

/// Everything that there is in a record.
fn raw(message: &OwnedMessage) -> Value {
    let mut record = Map::new();
    put(&mut record, "key", message.key());
    put(&mut record, "value", message.payload());
    record.insert("partition".into(), json!(message.partition()));
    record.insert("offset".into(), json!(message.offset()));
    let timestamp = message.timestamp().to_millis();
    let timestamp = timestamp.and_then(DateTime::from_timestamp_millis);
    let timestamp = timestamp.map(|at| at.to_rfc3339_opts(SecondsFormat::Millis, true));
    record.insert("timestamp".into(), json!(timestamp));
    let headers = message.headers().into_iter().flat_map(headers_of);
    let headers = headers.map(|header| {
        let mut entry = Map::new();
        entry.insert("key".into(), json!(header.key));
        put(&mut entry, "value", header.value);
        Value::Object(entry)
    });
    record.insert("headers".into(), headers.collect());
    Value::Object(record)
}

/// Bytes as text; as base64 beside it where they aren't text.
fn put(record: &mut Map<String, Value>, name: &str, bytes: Option<&[u8]>) {
    let text = bytes.map(std::str::from_utf8);
    if let (Some(Err(_)), Some(bytes)) = (text, bytes) {
        record.insert(
            format!("{name}Base64"),
            json!(BASE64_STANDARD.encode(bytes)),
        );
    }
    record.insert(name.into(), json!(text.and_then(Result::ok)));
}

#[cfg(test)]
mod tests {
    use rdkafka::Timestamp;

    use super::*;
    use crate::{registry::tests::Server, status::Status};

    #[tokio::test]
    async fn a_schema_that_cannot_be_read_is_its_records_fault() {
        let server = Server::start().await;
        server.give(
            1,
            json!({"schema": "message A {}", "schemaType": "PROTOBUF"}),
        );
        server.give(2, json!({"schema": "\"int\""}));
        let spec = json!({"name": "t", "encoding": "avro"});
        let spec = serde_json::from_value(spec).unwrap();
        let credentials = Credentials::new("/nowhere".into());
        let connection = server.connection();
        let convert = Convert::new(&spec, &credentials, Some(&connection)).unwrap();
        let status = Arc::new(Status::default());
        let ingest = status.part("ingest");
        let reason = "schema 1 can't be read: it is of type PROTOBUF, not AVRO";
        for (id, converted) in [
            (1, Err(reason.to_owned())),
            (2, Ok(Bytes::from_static(b"7"))),
            (1, Err(reason.to_owned())),
        ] {
            let value = Some(vec![0, 0, 0, 0, id, 14]);
            let at = Timestamp::NotAvailable;
            let message = OwnedMessage::new(value, None, "t".into(), at, 0, 0, None);
            assert_eq!(convert.convert(&message, &ingest).await, converted);
        }
        assert_eq!([server.asked(1), server.asked(2)], [1, 1]);
        assert!(status.report().errors.is_empty());
    }
}
