//! `DataPipeline`: source → topic → SQL → tables, as one resource.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::core::v1::ResourceRequirements,
    apimachinery::pkg::apis::meta::v1::{Condition, Time},
};
use kube::{CustomResource, KubeSchema, ResourceExt};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    DeletionPolicy,
    connection::{CassandraConnection, KafkaConnection, SchemaRegistryConnection},
    lookup::Lookup,
    scaling::Scaling,
    schedule::{RunStatus, Schedule, ScheduleStatus},
    serve::{Serve, ServeStatus},
    sink::Sink,
    source::Source,
};

/// A pipeline: records come from a source, go through a Kafka topic and SQL, and become rows.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[kube(
    group = "millstream.dev",
    version = "v1alpha1",
    kind = "DataPipeline",
    namespaced,
    status = "DataPipelineStatus",
    derive = "PartialEq",
    shortname = "dp",
    category = "millstream",
    doc = "A pipeline: records come from a source, go through a Kafka topic and SQL, and become rows.",
    scale(spec_replicas_path = ".spec.replicas", status_replicas_path = ".status.replicas", label_selector_path = ".status.selector"),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type=='Ready')].status"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.conditions[?(@.type=='Ready')].reason"),
    printcolumn(name = "Replicas", type_ = "integer", json_path = ".status.replicas"),
    printcolumn(name = "Lag", type_ = "integer", json_path = ".status.lag"),
    printcolumn(name = "Rows", type_ = "integer", json_path = ".status.rows"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(name = "Message", type_ = "string", json_path = ".status.conditions[?(@.type=='Ready')].message", priority = 1),
    validation = Rule::new("self.metadata.name.size() <= 50").message("metadata.name may have 50 characters at most: the names of the pods are made from it"),
    validation = Rule::new("!has(self.spec.scaling) || !has(oldSelf.spec.scaling) || self.spec.replicas == oldSelf.spec.replicas").message("spec.scaling decides the number of pods: take it out before spec.replicas is set, by hand, kubectl scale or another autoscaler"),
    validation = Rule::new("!has(oldSelf.status) || !has(oldSelf.status.topicId) || self.spec.topic.partitions == oldSelf.spec.topic.partitions").message("topic.partitions is immutable: more partitions would move keys between them and break the order of updates"),
    validation = Rule::new("!has(oldSelf.status) || !has(oldSelf.status.topicId) || (has(self.spec.topic.replicationFactor) == has(oldSelf.spec.topic.replicationFactor) && (!has(self.spec.topic.replicationFactor) || self.spec.topic.replicationFactor == oldSelf.spec.topic.replicationFactor))").message("topic.replicationFactor is immutable: reassign the replicas with Kafka's own tools"),
    validation = Rule::new("!has(self.spec.serve) || self.metadata.name.matches('^[a-z][-a-z0-9]*$')").message("with serve, metadata.name begins with a letter and has no dots: a Service is named after it")
)]
#[serde(rename_all = "camelCase")]
pub struct DataPipelineSpec {
    /// Stop the workers, after they have finished what they hold; nothing else changes.
    #[serde(default)]
    pub paused: bool,
    /// Number of process pods. Also set by `kubectl scale` and autoscalers. Not used while `scaling`
    /// is set, and not to be changed then.
    #[serde(default = "one")]
    #[schemars(range(min = 0, max = 1000))]
    pub replicas: i32,
    /// Let the number of process pods follow the lag; fixed where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scaling: Option<Scaling>,
    /// Read the source at certain times, in runs that end; always where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schedule: Option<Schedule>,
    /// Pipelines of the namespace that must have succeeded before this one reads its source: its
    /// first record, or with `schedule` each of its runs, waits for them. One with a schedule has
    /// succeeded when its last run has, and no other is due. Not looked at by a run that is asked for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), inner(length(min = 1, max = 50)), extend("x-kubernetes-list-type" = "set"))]
    pub after: Vec<String>,
    /// Where the records come from.
    pub source: Source,
    /// The shape of a record, as SQL column definitions; nested with `STRUCT<>` and `ARRAY<>`.
    #[schemars(length(min = 1, max = 65536))]
    pub schema: String,
    /// The Kafka topic between the source and the sinks.
    #[serde(default)]
    pub topic: PipelineTopic,
    /// Small tables that the sinks' SQL may join with the records.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub lookups: Vec<Lookup>,
    /// Where the rows go. Each sink has a consumer group of its own: one that stands still does not
    /// stop the others.
    #[schemars(length(min = 1, max = 32), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub sinks: Vec<Sink>,
    /// A REST service over the tables.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serve: Option<Serve>,
    /// Whether the topic, and the tables that this pipeline declared, are removed with it.
    #[serde(default)]
    pub deletion_policy: DeletionPolicy,
    /// What happens when records are gone from the pipeline's topic that a sink hasn't read: condition
    /// `DataGap`. For those of a source's topic see `source.topic.onGap`.
    #[serde(default)]
    pub on_data_gap: OnDataGap,
    /// Resources of each worker container, in place of all of the operator's default: say requests and
    /// limits. A process pod divides its memory limit among its sinks; the status warns where that is
    /// too small.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<ResourceRequirements>,
    /// The Kafka cluster; the operator's default where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kafka: Option<KafkaConnection>,
    /// The Cassandra cluster; the operator's default where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cassandra: Option<CassandraConnection>,
    /// The schema registry, where records are Avro; the operator's default where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schema_registry: Option<SchemaRegistryConnection>,
}

fn one() -> i32 {
    1
}

impl DataPipeline {
    /// The name of the pipeline's topic in Kafka.
    pub fn topic_name(&self) -> String {
        self.spec
            .topic
            .name
            .clone()
            .unwrap_or_else(|| self.name_any())
    }

    /// The name of the topic that takes the records which can't be processed.
    pub fn dead_letter_topic_name(&self) -> String {
        format!("{}.dead-letter", self.topic_name())
    }

    /// The name of the Topic for it, in Kubernetes.
    pub fn dead_letter_name(&self) -> String {
        format!("{}-dead-letter", self.name_any())
    }
}

/// The topic of a pipeline.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(self.name) == has(oldSelf.name) && (!has(self.name) || self.name == oldSelf.name)").message("topic.name is immutable: make a new pipeline instead"))]
#[x_kube(validation = Rule::new("self.encoding == oldSelf.encoding").message("topic.encoding is immutable, as the topic's records are encoded by it: make a new pipeline instead"))]
pub struct PipelineTopic {
    /// Name in Kafka; the pipeline's name where absent. Immutable.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 237), regex(pattern = r"^[a-zA-Z0-9._-]+$"))]
    pub name: Option<String>,
    /// Number of partitions, and so of process pods that can work side by side. Immutable once topic
    /// and tables are there (`status.topicId`).
    #[serde(default = "four")]
    #[schemars(range(min = 1, max = 1000))]
    pub partitions: i32,
    /// Replicas of each partition, of the dead-letter topic too; the brokers' default where absent.
    /// Immutable once topic and tables are there (`status.topicId`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 32767))]
    pub replication_factor: Option<i32>,
    /// Topic configuration, as Kafka names it. Keys that aren't listed aren't managed.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub config: BTreeMap<String, String>,
    /// JSON Pointers to the fields whose values are the record's key; where absent, the fields
    /// behind the sinks' primary keys, or what is computed for these. Records of one key stay in order.
    /// Another key than that of the records before is refused where rows replace one another (all but appends).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub key: Vec<String>,
    /// How the records are encoded. Immutable.
    #[serde(default)]
    pub encoding: Encoding,
}

/// How the records of a pipeline's topic are encoded.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum Encoding {
    /// JSON, byte for byte as the source gave it.
    #[default]
    Json,
    /// Avro in Confluent's wire format, under a schema that is made from `schema` and registered in
    /// the schema registry as `<topic>-value`. A change of `schema` is registered as a new version;
    /// one that the registry or the records in the topic don't allow is refused with the reason
    /// `IncompatibleSchema`. Fields that aren't in `schema` aren't kept, and Avro can't tell a field
    /// that is absent from one that is null: it is null, and the sinks delete the column's value.
    Avro,
}

fn four() -> i32 {
    4
}

impl Default for PipelineTopic {
    fn default() -> Self {
        PipelineTopic {
            name: None,
            partitions: four(),
            replication_factor: None,
            config: BTreeMap::new(),
            key: Vec::new(),
            encoding: Encoding::default(),
        }
    }
}

/// A condition that has to hold for every row of a sink.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Expectation {
    /// Name of the expectation, unique in the sink.
    #[schemars(
        length(min = 1, max = 63),
        regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")
    )]
    pub name: String,
    /// An SQL condition over the columns of the SQL's result, such as `email IS NOT NULL`. It fails
    /// where it is false, where it is null (write `age IS NULL OR age >= 0` to let nulls pass), and
    /// where it can't be computed.
    #[schemars(length(min = 1, max = 4096))]
    pub check: String,
    /// What becomes of a row for which the check fails.
    #[serde(default)]
    pub on_failure: OnFailure,
}

/// What becomes of a row that fails an expectation.
#[derive(
    Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord,
)]
pub enum OnFailure {
    /// The row isn't written. Only the count shows it.
    Drop,
    /// The row isn't written, and its record goes to the dead-letter topic.
    #[default]
    DeadLetter,
    /// The sink stops before the record, and goes on when the pipeline is changed: rows before it
    /// are written, nothing after it is committed.
    Fail,
}

/// What happens when records are gone that a sink hasn't read.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnDataGap {
    /// The process pods stop until a person has decided.
    #[default]
    Stop,
    /// An Event tells what is gone, and the sink goes on from the first record that is there.
    Continue,
}

/// What was last seen of the pipeline.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct DataPipelineStatus {
    /// The generation of the spec that this status is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// `Ready`, `Accepted`, `Provisioned`, `DataGap`, `Running`; and `Succeeded`, where the source has an
    /// end or a schedule.
    #[serde(default)]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
    /// Number of process pods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replicas: Option<i32>,
    /// Number of process pods that there should be: `spec.replicas`, or what `spec.scaling` decided.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub desired_replicas: Option<i32>,
    /// Label selector of the process pods, for autoscalers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<String>,
    /// Identity of the topic that the sinks read: another one is a `DataGap`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub topic_id: Option<String>,
    /// Records that the source has put into the topic since the topic was created. Where it has put
    /// none, the records that others put there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub records: Option<i64>,
    /// Lag of the sink that lags most, in records.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lag: Option<i64>,
    /// Rows written by all sinks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rows: Option<i64>,
    /// What was last seen of the source.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<SourceStatus>,
    /// The run that began last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_run: Option<RunStatus>,
    /// When the next run is to begin.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_run: Option<Time>,
    /// The runs whose Jobs are there, the last one at the end.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub runs: Vec<RunStatus>,
    /// How far the schedule is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schedule: Option<ScheduleStatus>,
    /// What was last seen of the REST service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serve: Option<ServeStatus>,
    /// What was last seen of each sink.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub sinks: Vec<SinkStatus>,
}

/// What was last seen of the source.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct SourceStatus {
    /// Whether a source with an end has given all its records.
    #[serde(default)]
    pub complete: bool,
    /// Hash of the configuration for which `complete` was seen: another one may have more to give.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub configuration: Option<String>,
    /// The last error, while it lasts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
    /// What is not as it should be though records come, such as a cache that is away, or a memory limit
    /// that is too small.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warning: Option<String>,
}

/// What was last seen of a sink.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct SinkStatus {
    /// Name of the sink.
    pub name: String,
    /// Records in the topic that it has not committed yet. Those that Kafka has removed don't count,
    /// nor do the offsets that transactions take behind the last record.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lag: Option<i64>,
    /// Rows written; a record that is written again after a crash counts once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rows: Option<i64>,
    /// Records that went to the dead-letter topic.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dead_lettered: Option<i64>,
    /// What was last seen of each expectation.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub expectations: Vec<ExpectationStatus>,
    /// The last error, while it lasts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
    /// What is not as it should be though rows are written, such as a lookup that can't be read again,
    /// or a memory limit that is too small.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warning: Option<String>,
}

/// What was last seen of an expectation.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct ExpectationStatus {
    /// Name of the expectation.
    pub name: String,
    /// Rows that failed it; a record that is processed again after a crash counts once.
    #[serde(default)]
    pub failed: i64,
}
