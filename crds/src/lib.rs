//! The kinds of Millstream (`DataPipeline`, `Topic`, `Keyspace`), and what the operator tells
//! the workers ([`worker`]).
//!
//! This crate holds data and pure functions over it: no client, no async runtime, no I/O.
//! The YAML of the kinds is generated from it by `cargo xtask codegen` and lies beside it.

pub mod condition;
pub mod connection;
pub mod cql;
pub mod keyspace;
pub mod pipeline;
pub mod source;
pub mod topic;
pub mod worker;

pub use connection::{CassandraConnection, KafkaConnection};
pub use keyspace::{Keyspace, KeyspaceSpec, KeyspaceStatus};
pub use pipeline::{DataPipeline, DataPipelineSpec, DataPipelineStatus};
pub use topic::{Topic, TopicSpec, TopicStatus};

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The API group of all kinds.
pub const GROUP: &str = "millstream.dev";

/// What happens outside Kubernetes when a resource is deleted.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeletionPolicy {
    /// Kafka and Cassandra keep what they have.
    #[default]
    Retain,
    /// What the resource declares is removed from Kafka or Cassandra first.
    Delete,
}

/// The definitions of all kinds, in the order in which they are documented.
pub fn custom_resource_definitions() -> Vec<CustomResourceDefinition> {
    vec![DataPipeline::crd(), Topic::crd(), Keyspace::crd()]
}
