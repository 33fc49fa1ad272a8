//! What the operator tells a worker, and what a worker answers.
//!
//! The operator writes a [`WorkerConfig`] into a ConfigMap; the worker reads it once at its start.
//! Credentials are never in it: they are files of a mounted Secret, named in [`credentials`].

use std::collections::BTreeMap;

use kube::core::Duration;
use serde::{Deserialize, Serialize};

use crate::{
    connection::{CassandraConnection, KafkaConnection, SchemaRegistryConnection},
    keyspace::TableSpec,
    lookup::Lookup,
    pipeline::Expectation,
    serve::Serve,
    sink::{ConsistencyLevel, DeltaSink, DocumentSink},
    source::{Source, file::S3Folder},
};

/// Port of the worker's HTTP endpoints: `/healthz`, `/readyz`, `/metrics`, `/status`.
pub const HTTP_PORT: u16 = 8080;

/// Port of the REST service in a pod: not that of `/metrics` and `/status`, which are for the
/// cluster alone.
pub const SERVE_PORT: u16 = 8000;

/// The name in [`WorkerStatus`] for the REST service; no sink can have it.
pub const SERVE_PART: &str = "_serve";

/// Largest record that goes through a pipeline, in bytes; larger ones go to the dead letter.
/// Kafka's own default for `max.message.bytes`.
pub const MAX_RECORD_BYTES: usize = 1024 * 1024;

/// `max.message.bytes` of a dead-letter topic; of a record that is larger, the beginning is kept.
pub const MAX_DEAD_LETTER_BYTES: usize = 10 * 1024 * 1024;

/// File names in the folder of mounted credentials; a file that isn't needed isn't there.
pub mod credentials {
    /// SASL user name for Kafka.
    pub const KAFKA_USERNAME: &str = "kafka-username";
    /// SASL password for Kafka.
    pub const KAFKA_PASSWORD: &str = "kafka-password";
    /// Certificate authority of Kafka, PEM.
    pub const KAFKA_CA: &str = "kafka-ca.crt";
    /// User name for Cassandra.
    pub const CASSANDRA_USERNAME: &str = "cassandra-username";
    /// Password for Cassandra.
    pub const CASSANDRA_PASSWORD: &str = "cassandra-password";
    /// Certificate authority of Cassandra, PEM.
    pub const CASSANDRA_CA: &str = "cassandra-ca.crt";
    /// API keys of the REST service: a JSON object of client names and keys.
    pub const SERVE_API_KEYS: &str = "serve-api-keys.json";
    /// Passwords of the REST service: a JSON object of user names and passwords.
    pub const SERVE_PASSWORDS: &str = "serve-passwords.json";
    /// User name for the schema registry.
    pub const REGISTRY_USERNAME: &str = "registry-username";
    /// Password for the schema registry.
    pub const REGISTRY_PASSWORD: &str = "registry-password";
    /// Certificate authority of the schema registry, PEM.
    pub const REGISTRY_CA: &str = "registry-ca.crt";

    /// Comes before the names of the files for the connections that a source has of its own.
    pub const OF_SOURCE: &str = "source-";
    /// User name, password and certificate authority of a source's own Kafka.
    pub const OF_SOURCE_KAFKA: [&str; 3] = [
        "source-kafka-username",
        "source-kafka-password",
        "source-kafka-ca.crt",
    ];
    /// User name, password and certificate authority of a source's own schema registry.
    pub const OF_SOURCE_REGISTRY: [&str; 3] = [
        "source-registry-username",
        "source-registry-password",
        "source-registry-ca.crt",
    ];
}

/// Headers of a record in a dead-letter topic. Numbers are decimal text.
pub mod dead_letter {
    /// Why the record is here, in one sentence.
    pub const REASON: &str = "millstream-reason";
    /// `namespace/name` of the pipeline.
    pub const PIPELINE: &str = "millstream-pipeline";
    /// `ingest`, or the name of the sink that couldn't take the record.
    pub const STAGE: &str = "millstream-stage";
    /// The topic that the record was in, or was meant for.
    pub const TOPIC: &str = "millstream-topic";
    /// The id of the topic that the record was in: one that is made anew has another.
    pub const TOPIC_ID: &str = "millstream-topic-id";
    /// The partition that the record was in.
    pub const PARTITION: &str = "millstream-partition";
    /// The record's offset.
    pub const OFFSET: &str = "millstream-offset";
    /// The record's timestamp in Kafka: milliseconds since 1970.
    pub const TIMESTAMP: &str = "millstream-timestamp";
    /// Bytes of the whole record, where only its beginning is kept.
    pub const TRUNCATED_FROM: &str = "millstream-truncated-from";
    /// `true` where the state of the record's group has it already, and only a row couldn't be made.
    pub const FOLDED: &str = "millstream-folded";

    /// On a record that was replayed into its topic: the sink that takes it; others pass it over.
    pub const REPLAY_SINK: &str = "millstream-replay-sink";
    /// On a record that was replayed into its topic: the offset that it had at first.
    pub const REPLAY_OFFSET: &str = "millstream-replay-offset";
    /// On a record that was replayed into its topic: `true` where its dead letter was [`FOLDED`].
    pub const REPLAY_FOLDED: &str = "millstream-replay-folded";
}

/// A worker's configuration: the stage is configuration, the loop is one.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(tag = "stage", rename_all = "camelCase")]
#[allow(clippy::large_enum_variant, reason = "there is one, read at the start")]
pub enum WorkerConfig {
    /// Source → topic.
    Ingest(IngestConfig),
    /// Topic → SQL → sinks.
    Process(ProcessConfig),
    /// Tables → HTTP.
    Serve(ServeConfig),
}

impl WorkerConfig {
    /// With a limit of memory, in bytes, of two with the smaller; the REST service asks its container itself.
    pub fn limited(mut self, bytes: Option<u64>) -> Self {
        let smaller = |limit: Option<u64>| limit.into_iter().chain(bytes).min();
        match &mut self {
            WorkerConfig::Ingest(config) => config.memory_limit = smaller(config.memory_limit),
            WorkerConfig::Process(config) => config.memory_limit = smaller(config.memory_limit),
            WorkerConfig::Serve(_) => {}
        }
        self
    }
}

/// A resource's identity.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct PipelineRef {
    /// Namespace of the DataPipeline.
    pub namespace: String,
    /// Name of the DataPipeline.
    pub name: String,
}

impl std::fmt::Display for PipelineRef {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

impl PipelineRef {
    /// Consumer group of a sink.
    pub fn sink_group(&self, sink: &str) -> String {
        format!("millstream.{}.{}.{sink}", self.namespace, self.name)
    }

    /// Consumer group under which the ingest stage keeps its position: no consumer ever joins it,
    /// the position is the metadata of the offset that is committed for partition 0. Also the stage's
    /// transactional id: of the workers that have it, only the last can commit.
    pub fn ingest_group(&self) -> String {
        // `_` can't be in the name of a sink.
        self.sink_group("_ingest")
    }

    /// Consumer group under which the replay of dead letters keeps how far it is; also its transactional
    /// id: of the replays of a pipeline only the last can commit.
    pub fn replay_group(&self) -> String {
        self.sink_group("_replay")
    }
}

/// The topic between the stages.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct TopicRef {
    /// Name in Kafka.
    pub name: String,
    /// Identity in Kafka. A topic with another id is another topic.
    pub id: String,
    /// Microseconds since 1970; a row's write timestamp is this plus the record's offset.
    pub timestamp_base: i64,
    /// Number of partitions.
    pub partitions: i32,
}

/// Configuration of the ingest stage.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct IngestConfig {
    /// The pipeline.
    pub pipeline: PipelineRef,
    /// The Kafka cluster.
    pub kafka: KafkaConnection,
    /// Where the records go.
    pub topic: TopicRef,
    /// Where the records go that can't be processed.
    pub dead_letter_topic: String,
    /// JSON Pointers to the fields that make the record's key.
    pub key: Vec<String>,
    /// Where the records come from.
    pub source: Source,
    /// The shape of a record, as in the DataPipeline.
    pub schema: String,
    /// The schema registry, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schema_registry: Option<SchemaRegistryConnection>,
    /// The id under which the schema is registered, where the topic's records are Avro.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub avro_schema_id: Option<u32>,
    /// Bytes of memory that the container may take; absent where it has no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_limit: Option<u64>,
}

/// Configuration of the process stage.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct ProcessConfig {
    /// The pipeline.
    pub pipeline: PipelineRef,
    /// The Kafka cluster.
    pub kafka: KafkaConnection,
    /// The Cassandra cluster, where a sink has rows or states in it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cassandra: Option<CassandraConnection>,
    /// Where the records come from.
    pub topic: TopicRef,
    /// Where the records go that can't be processed.
    pub dead_letter_topic: String,
    /// The shape of a record, as in the DataPipeline.
    pub schema: String,
    /// The schema registry, where the topic's records are Avro.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub avro: Option<SchemaRegistryConnection>,
    /// What the sinks' SQL may join, each with its schema.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub lookups: Vec<Lookup>,
    /// The sinks.
    pub sinks: Vec<SinkConfig>,
    /// Bytes of memory that the container may take; absent where it has no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_limit: Option<u64>,
}

/// Configuration of a sink.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct SinkConfig {
    /// Name of the sink.
    pub name: String,
    /// The query, as in the DataPipeline.
    pub sql: String,
    /// What has to hold for every row of the result.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub expectations: Vec<Expectation>,
    /// Where the rows go.
    #[serde(flatten)]
    pub destination: Destination,
    /// The table beside which the states of groups are, if the rows go elsewhere: its name and its
    /// primary key count, there is no such table.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<CassandraTable>,
    /// How long a group without records is kept; for ever where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state_ttl: Option<Duration>,
}

/// Where the rows of a sink go.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub enum Destination {
    /// Into a Cassandra table.
    Cassandra(CassandraTable),
    /// Into a Delta Lake table.
    Delta(DeltaTable),
    /// Into a collection of documents.
    Document(DocumentSink),
}

/// A table in Cassandra.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct CassandraTable {
    /// Its keyspace.
    pub keyspace: String,
    /// The table as it is declared.
    pub table: TableSpec,
    /// Consistency level of the writes.
    pub consistency: ConsistencyLevel,
}

/// A Delta Lake table.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct DeltaTable {
    /// The table's folder in the pod; absent where the table is in a bucket.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// The sink, as in the DataPipeline.
    #[serde(flatten)]
    pub sink: DeltaSink,
}

impl SinkConfig {
    /// Whether the rows go into a Delta Lake table.
    pub fn is_delta(&self) -> bool {
        matches!(self.destination, Destination::Delta(_))
    }

    /// The table in Cassandra that has the rows, or beside which the states of their groups are.
    pub fn cassandra(&self) -> Option<&CassandraTable> {
        match &self.destination {
            Destination::Cassandra(table) => Some(table),
            Destination::Delta(_) | Destination::Document(_) => self.state.as_ref(),
        }
    }

    /// Seconds for which rows and states are kept.
    pub fn ttl_seconds(&self) -> Option<u64> {
        let ttl = std::time::Duration::from(self.state_ttl?);
        Some(ttl.as_secs())
    }
}

/// Configuration of the REST service.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct ServeConfig {
    /// The pipeline.
    pub pipeline: PipelineRef,
    /// The Cassandra cluster, where an endpoint reads it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cassandra: Option<CassandraConnection>,
    /// The keyspaces that may be read.
    pub keyspaces: Vec<String>,
    /// The Delta Lake tables that endpoints read.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tables: Vec<ServeTable>,
    /// Port to listen on; 0 for any that is free.
    pub port: u16,
    /// The service, as in the DataPipeline.
    pub serve: Serve,
}

/// A Delta Lake table that endpoints read.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct ServeTable {
    /// Name of the sink that writes it.
    pub name: String,
    /// The table's folder in the pod; absent where the table is in a bucket.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// The table's folder in a bucket.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub s3: Option<S3Folder>,
}

/// What the worker answers under `/status`.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct WorkerStatus {
    /// Whether a source with an end has given all its records, and Kafka has them.
    #[serde(default)]
    pub complete: bool,
    /// Errors that last: of the ingest stage under `ingest`, of the process stage under the sink's
    /// name, of the REST service under [`SERVE_PART`]. Never a secret.
    #[serde(default)]
    pub errors: BTreeMap<String, String>,
    /// What is not as it should be though the work goes on, under the same names.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub warnings: BTreeMap<String, String>,
    /// Records that a topic has lost before they were read, where reading stops at that: the source's
    /// own, or of the process stage the pipeline's, which was truncated. It is an error too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gap: Option<TopicGap>,
    /// Whether it has looked at what the source's topic holds.
    #[serde(default)]
    pub looked: bool,
}

/// Records of a topic that are gone.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct TopicGap {
    /// Why they are gone: a reason of the condition `DataGap`.
    pub reason: String,
    /// What is gone.
    pub lost: String,
}

/// How far a run is: kept with the source's position, so that it moves exactly when that does.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct RunProgress {
    /// Name of the run.
    pub name: String,
    /// Milliseconds since 1970 when its first worker began.
    pub since: i64,
    /// Records that the source gave in it.
    #[serde(default)]
    pub records: i64,
    /// Those of them that went to the dead letters and not to the topic.
    #[serde(default)]
    pub dead_lettered: i64,
    /// What was amiss with what the source gave, when it had come to its end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warning: Option<String>,
    /// Whether it has come to its end.
    #[serde(default)]
    pub done: bool,
}

/// Cumulative counts of a sink and a topic partition, kept as the metadata of the committed offset:
/// they move exactly when the offset moves.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct CommitMetadata {
    /// Rows written.
    #[serde(default)]
    pub rows: i64,
    /// Records sent to the dead-letter topic.
    #[serde(default)]
    pub dead_lettered: i64,
    /// Rows that failed an expectation, by its name. Kafka takes 4,096 bytes of metadata: with 16
    /// expectations at most, and their names bounded, these take less than 1,600.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub failed: BTreeMap<String, i64>,
}

impl CommitMetadata {
    /// Adds what was counted later, or elsewhere.
    pub fn add(&mut self, other: &CommitMetadata) {
        self.rows += other.rows;
        self.dead_lettered += other.dead_lettered;
        for (expectation, failed) in &other.failed {
            *self.failed.entry(expectation.clone()).or_default() += failed;
        }
    }

    /// Parses a committed offset's metadata; what isn't ours counts as nothing.
    pub fn parse(metadata: &str) -> Self {
        serde_json::from_str(metadata).unwrap_or_default()
    }
}
