//! The conditions that every kind reports, and the reasons they give.
//!
//! `Ready` summarises; the others say where a resource stands. Each condition is written on the
//! first visit, with `observedGeneration`, so that `kubectl wait --for=condition=Ready` can
//! neither hang on an absent condition nor return a stale one.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;

/// Everything that the resource asks for is there.
pub const READY: &str = "Ready";
/// The spec is valid.
pub const ACCEPTED: &str = "Accepted";
/// What the spec declares exists in Kafka and Cassandra.
pub const PROVISIONED: &str = "Provisioned";
/// Records are gone that a sink hasn't read, or the source's own topic had before they were copied
/// (`DataPipeline` only). `False` is the good state.
pub const DATA_GAP: &str = "DataGap";
/// The worker pods run and make progress (`DataPipeline` only).
pub const RUNNING: &str = "Running";

/// The source has come to its end, or the last run has, and every sink has stored all of it
/// (`DataPipeline` with such a source, or with a schedule). `Ready` doesn't depend on it.
pub const SUCCEEDED: &str = "Succeeded";

/// The condition of a type, if it is there.
pub fn find<'a>(conditions: &'a [Condition], type_: &str) -> Option<&'a Condition> {
    conditions.iter().find(|condition| condition.type_ == type_)
}

/// Whether a condition is True and about this generation.
pub fn holds(conditions: &[Condition], type_: &str, generation: Option<i64>) -> bool {
    find(conditions, type_).is_some_and(|condition| {
        condition.status == "True" && condition.observed_generation == generation
    })
}

/// Reasons of conditions: one word each, stable, for people and for programs.
pub mod reason {
    /// All is as declared.
    pub const READY: &str = "Ready";
    /// The spec is valid.
    pub const VALID: &str = "Valid";
    /// The spec is wrong; the message names the field and the way out.
    pub const INVALID_SPEC: &str = "InvalidSpec";
    /// The SQL or the schema is wrong; the message names the sink, the line and the column.
    pub const INVALID_SQL: &str = "InvalidSQL";
    /// What exists has another type, primary key or partition count, and can't be altered to fit.
    pub const INCOMPATIBLE: &str = "Incompatible";
    /// The record's schema isn't compatible with that of the records in the topic.
    pub const INCOMPATIBLE_SCHEMA: &str = "IncompatibleSchema";
    /// The schema registry can't be reached.
    pub const REGISTRY_UNREACHABLE: &str = "RegistryUnreachable";
    /// The schema registry refuses the credentials or the schema.
    pub const REGISTRY_REFUSED: &str = "RegistryRefused";
    /// An older resource claims the same topic or keyspace.
    pub const RESOURCE_CONFLICT: &str = "ResourceConflict";
    /// A Secret that the spec names, or a key in it, isn't there.
    pub const SECRET_MISSING: &str = "SecretMissing";
    /// Kafka can't be reached.
    pub const KAFKA_UNREACHABLE: &str = "KafkaUnreachable";
    /// Kafka refuses the credentials or the operation.
    pub const KAFKA_REFUSED: &str = "KafkaRefused";
    /// Cassandra can't be reached.
    pub const CASSANDRA_UNREACHABLE: &str = "CassandraUnreachable";
    /// Cassandra refuses the credentials or the statement.
    pub const CASSANDRA_REFUSED: &str = "CassandraRefused";
    /// The Kubernetes API refuses what the operator asks for.
    pub const KUBERNETES_REFUSED: &str = "KubernetesRefused";
    /// A bug of the operator.
    pub const INTERNAL_ERROR: &str = "InternalError";
    /// A step before this one has failed or isn't done.
    pub const WAITING: &str = "Waiting";
    /// Pods are being started or replaced.
    pub const PROGRESSING: &str = "Progressing";
    /// All there was to do is done.
    pub const SUCCEEDED: &str = "Succeeded";
    /// The last run has failed.
    pub const FAILED: &str = "Failed";
    /// Pods run and make progress.
    pub const RUNNING: &str = "Running";
    /// `spec.paused` is set.
    pub const PAUSED: &str = "Paused";
    /// A worker reports an error and retries.
    pub const WORKER_ERROR: &str = "WorkerError";
    /// No worker answers the operator, or a run has no pod that works.
    pub const WORKER_UNREACHABLE: &str = "WorkerUnreachable";
    /// No record is missing.
    pub const COMPLETE: &str = "Complete";
    /// The topic's retention removed records before they were read.
    pub const RETENTION_PASSED: &str = "RetentionPassed";
    /// The topic was deleted and made anew.
    pub const TOPIC_RECREATED: &str = "TopicRecreated";
    /// The topic ends before the committed offset: records that were read are gone from it.
    pub const LOG_TRUNCATED: &str = "LogTruncated";
    /// Kafka has forgotten how far a sink was, and records were removed since.
    pub const OFFSETS_LOST: &str = "OffsetsLost";
}
