//! `Topic`: a Kafka topic as a resource.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema, ResourceExt};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{DeletionPolicy, connection::KafkaConnection};

/// A Kafka topic: created, or adopted where it exists already, grown and configured; never shrunk.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[kube(
    group = "millstream.dev",
    version = "v1alpha1",
    kind = "Topic",
    namespaced,
    status = "TopicStatus",
    derive = "PartialEq",
    shortname = "mtopic",
    category = "millstream",
    doc = "A Kafka topic: created, or adopted where it exists already, grown and configured; never shrunk.",
    printcolumn(name = "Topic", type_ = "string", json_path = ".status.topicName"),
    printcolumn(
        name = "Partitions",
        type_ = "integer",
        json_path = ".status.partitions"
    ),
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = ".status.conditions[?(@.type=='Ready')].status"
    ),
    printcolumn(
        name = "Reason",
        type_ = "string",
        json_path = ".status.conditions[?(@.type=='Ready')].reason"
    ),
    printcolumn(
        name = "Age",
        type_ = "date",
        json_path = ".metadata.creationTimestamp"
    ),
    printcolumn(
        name = "Message",
        type_ = "string",
        json_path = ".status.conditions[?(@.type=='Ready')].message",
        priority = 1
    ),
    validation = Rule::new("!has(oldSelf.status) || !has(oldSelf.status.partitions) || self.spec.partitions >= oldSelf.spec.partitions || self.spec.partitions >= oldSelf.status.partitions").message("partitions may grow, never shrink"),
    validation = Rule::new("!has(oldSelf.status) || !has(oldSelf.status.topicId) || !has(self.spec.replicationFactor) || (has(oldSelf.spec.replicationFactor) && self.spec.replicationFactor == oldSelf.spec.replicationFactor) || (has(oldSelf.status.replicationFactor) && self.spec.replicationFactor == oldSelf.status.replicationFactor)").message("replicationFactor is immutable: reassign the replicas with Kafka's own tools")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(self.topicName) == has(oldSelf.topicName) && (!has(self.topicName) || self.topicName == oldSelf.topicName)").message("topicName is immutable: make a new Topic instead"))]
pub struct TopicSpec {
    /// Name of the topic in Kafka; `metadata.name` where absent. Immutable.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 249), regex(pattern = r"^[a-zA-Z0-9._-]+$"))]
    pub topic_name: Option<String>,
    /// Number of partitions. May grow, and once the topic is provisioned never shrinks.
    #[serde(default = "one")]
    #[schemars(range(min = 1, max = 10000))]
    pub partitions: i32,
    /// Replicas of each partition; the brokers' default where absent. Once the topic is provisioned,
    /// it can only be taken out, or set to what Kafka has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 32767))]
    pub replication_factor: Option<i32>,
    /// Topic configuration, as Kafka names it. Keys that aren't listed aren't managed.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub config: BTreeMap<String, String>,
    /// Whether the topic is deleted in Kafka with this resource.
    #[serde(default)]
    pub deletion_policy: DeletionPolicy,
    /// The Kafka cluster; the operator's default where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kafka: Option<KafkaConnection>,
}

fn one() -> i32 {
    1
}

impl Topic {
    /// The name of the topic in Kafka.
    pub fn topic_name(&self) -> String {
        self.spec
            .topic_name
            .clone()
            .unwrap_or_else(|| self.name_any())
    }
}

/// What was last seen of the topic.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct TopicStatus {
    /// The generation of the spec that this status is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// `Ready`, `Accepted`, `Provisioned`.
    #[serde(default)]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
    /// Name of the topic in Kafka.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub topic_name: Option<String>,
    /// Identity of the topic in Kafka: another id means that the topic was deleted and made anew.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub topic_id: Option<String>,
    /// Wall clock when this topic id was first seen, in microseconds since 1970. A row's write
    /// timestamp in Cassandra is this plus the record's offset.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timestamp_base: Option<i64>,
    /// What the records are keyed by, as their pipeline says; the one before too, where that was
    /// changed. An empty text: records without a key.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub keys: Vec<String>,
    /// Number of partitions in Kafka.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub partitions: Option<i32>,
    /// Replicas of each partition in Kafka.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replication_factor: Option<i32>,
    /// What was last put right in Kafka because it had been changed there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_drift: Option<String>,
}
