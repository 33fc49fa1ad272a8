//! The kinds of Millstream (`DataPipeline`, `Topic`, `Keyspace`), and what the operator tells
//! the workers ([`worker`]).
//!
//! This crate holds data and pure functions over it: no client, no async runtime, no I/O.
//! The YAML of the kinds is generated from it by `cargo xtask codegen` and lies beside it.

pub mod admission;
pub mod condition;
pub mod connection;
pub mod cql;
pub mod keyspace;
pub mod lookup;
pub mod pipeline;
pub mod scaling;
pub mod schedule;
pub mod serve;
pub mod sink;
pub mod source;
pub mod topic;
pub mod worker;

pub use connection::{CassandraConnection, KafkaConnection, SchemaRegistryConnection};
pub use keyspace::{Keyspace, KeyspaceSpec, KeyspaceStatus};
pub use lookup::Lookup;
pub use pipeline::{DataPipeline, DataPipelineSpec, DataPipelineStatus};
pub use topic::{Topic, TopicSpec, TopicStatus};

use std::collections::BTreeMap;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinition, JSONSchemaProps, JSONSchemaPropsOrArray, JSONSchemaPropsOrBool,
};
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
    let definitions = [DataPipeline::crd(), Topic::crd(), Keyspace::crd()];
    definitions.into_iter().map(without_unsigned).collect()
}

/// Takes away the formats of unsigned numbers: OpenAPI has none, and the API server warns of them.
fn without_unsigned(mut definition: CustomResourceDefinition) -> CustomResourceDefinition {
    for version in &mut definition.spec.versions {
        let schema = version.schema.as_mut();
        if let Some(schema) = schema.and_then(|schema| schema.open_api_v3_schema.as_mut()) {
            strip(schema);
        }
    }
    definition
}

fn strip(schema: &mut JSONSchemaProps) {
    schema.format.take_if(|format| format.starts_with("uint"));
    for property in schema.properties.iter_mut().flat_map(BTreeMap::values_mut) {
        strip(property);
    }
    match &mut schema.items {
        Some(JSONSchemaPropsOrArray::Schema(items)) => strip(items),
        Some(JSONSchemaPropsOrArray::Schemas(items)) => items.iter_mut().for_each(strip),
        None => {}
    }
    if let Some(JSONSchemaPropsOrBool::Schema(values)) = &mut schema.additional_properties {
        strip(values);
    }
}
