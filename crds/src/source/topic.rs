//! Records of a Kafka topic.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::connection::{KafkaConnection, SchemaRegistryConnection};

/// Records of a Kafka topic. They are copied into the pipeline's own topic, under the pipeline's key;
/// the offsets up to which they are copied are kept in the pipeline's Kafka, not in that of the topic.
/// The topic may grow partitions meanwhile; it may have 250 at most.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct TopicSource {
    /// Name of the topic.
    #[schemars(length(min = 1, max = 249), regex(pattern = r"^[a-zA-Z0-9._-]+$"))]
    pub name: String,
    /// The Kafka cluster of the topic; the pipeline's own where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kafka: Option<KafkaConnection>,
    /// How the topic's records are encoded.
    #[serde(default)]
    pub encoding: TopicEncoding,
    /// Where to start in a topic that was not read before; partitions that are added later are always
    /// read from their beginning.
    #[serde(default)]
    pub start: Start,
    /// What to do where the records that come next are gone (condition `DataGap`): retention was faster,
    /// or the topic was truncated or made anew.
    #[serde(default)]
    pub on_gap: OnGap,
    /// The schema registry of the topic's records; the pipeline's own where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schema_registry: Option<SchemaRegistryConnection>,
}

/// How the records of a source's topic are encoded.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum TopicEncoding {
    /// JSON objects. Anything else, and records without a value (tombstones), go to the dead letter.
    #[default]
    Json,
    /// Avro in Confluent's wire format; every schema of the registry can be read. A union is the
    /// value that it holds; `bytes` and `fixed` are base64, dates and timestamps ISO 8601, decimals
    /// numbers. Tombstones go to the dead letter.
    Avro,
    /// Any bytes. A record becomes `key`, `value` (text; null where there is none), `partition`,
    /// `offset`, `timestamp` (ISO 8601) and `headers`, an array of `key` and `value`. Bytes that
    /// aren't UTF-8 are null there and base64 in `keyBase64` and `valueBase64`.
    Raw,
}

/// Where to start in a topic that was not read before.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum Start {
    /// With the oldest record that is still there.
    #[default]
    Earliest,
    /// With what comes after the pipeline's first start.
    Latest,
}

/// What to do where records are gone before they were copied.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnGap {
    /// Show `DataGap` and stop in the topic partition, until this is set to `Continue`.
    #[default]
    Stop,
    /// Go on with the oldest record that is still there, and log the gap.
    Continue,
}
