//! `Keyspace`: a Cassandra keyspace and its tables as a resource.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema, ResourceExt};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{DeletionPolicy, connection::CassandraConnection, cql::CqlType};

/// A Cassandra keyspace and its tables: created, or adopted where they exist already; columns are
/// added online; what would lose data is refused.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[kube(
    group = "millstream.dev",
    version = "v1alpha1",
    kind = "Keyspace",
    namespaced,
    status = "KeyspaceStatus",
    derive = "PartialEq",
    shortname = "ks",
    category = "millstream",
    doc = "A Cassandra keyspace and its tables: created, or adopted where they exist already; columns are added online; what would lose data is refused.",
    printcolumn(
        name = "Keyspace",
        type_ = "string",
        json_path = ".status.keyspaceName"
    ),
    printcolumn(name = "Tables", type_ = "integer", json_path = ".status.tables"),
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
    )
)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(self.keyspaceName) == has(oldSelf.keyspaceName) && (!has(self.keyspaceName) || self.keyspaceName == oldSelf.keyspaceName)").message("keyspaceName is immutable: make a new Keyspace instead"))]
pub struct KeyspaceSpec {
    /// Name of the keyspace in Cassandra; `metadata.name` with `-` as `_` where absent. Immutable.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 48), regex(pattern = r"^[a-z][a-z0-9_]*$"))]
    pub keyspace_name: Option<String>,
    /// How many replicas are kept, and where; the operator's default where absent, or what Cassandra has.
    /// More are set at once; fewer, or another class, are refused. New replicas have no rows at first: pause
    /// the pipelines with a GROUP BY before, and repair the keyspace, or else they may find no state and
    /// count anew.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replication: Option<Replication>,
    /// Whether writes go through the commit log; what Cassandra has (at first: true) where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub durable_writes: Option<bool>,
    /// The tables. One that is taken off the list stays in Cassandra: nothing is dropped.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 200), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub tables: Vec<TableSpec>,
    /// Whether the tables, and the keyspace where nothing else is in it, are dropped in Cassandra
    /// with this resource.
    #[serde(default)]
    pub deletion_policy: DeletionPolicy,
    /// The Cassandra cluster; the operator's default where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cassandra: Option<CassandraConnection>,
}

impl Keyspace {
    /// The name of the keyspace in Cassandra.
    pub fn keyspace_name(&self) -> String {
        let from_metadata = || self.name_any().replace(['-', '.'], "_");
        self.spec
            .keyspace_name
            .clone()
            .unwrap_or_else(from_metadata)
    }
}

/// The replication of a keyspace.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("self.class == 'SimpleStrategy' ? has(self.replicationFactor) && !has(self.datacenters) : has(self.datacenters) && !has(self.replicationFactor)").message("SimpleStrategy takes replicationFactor, NetworkTopologyStrategy takes datacenters"))]
pub struct Replication {
    /// The replication strategy.
    pub class: ReplicationClass,
    /// Replicas of each row (`SimpleStrategy`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1000))]
    pub replication_factor: Option<u32>,
    /// Replicas of each row by datacenter (`NetworkTopologyStrategy`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub datacenters: Option<BTreeMap<String, u32>>,
}

impl Replication {
    /// `SimpleStrategy` with so many replicas.
    pub fn simple(replication_factor: u32) -> Self {
        Replication {
            class: ReplicationClass::SimpleStrategy,
            replication_factor: Some(replication_factor),
            datacenters: None,
        }
    }
}

/// The replication strategies that are supported.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplicationClass {
    /// The same number of replicas wherever the nodes are: for one datacenter, and for trying out.
    SimpleStrategy,
    /// A number of replicas for each datacenter.
    NetworkTopologyStrategy,
}

/// A table of a keyspace.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct TableSpec {
    /// Name of the table.
    #[schemars(length(min = 1, max = 48), regex(pattern = r"^[a-z][a-z0-9_]*$"))]
    pub name: String,
    /// The columns. New ones are added online; one that is taken off the list stays in Cassandra.
    #[schemars(length(min = 1, max = 500), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub columns: Vec<ColumnSpec>,
    /// The primary key. Can't be changed once the table exists.
    pub primary_key: PrimaryKey,
    /// Table options. One that is absent isn't managed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub options: Option<TableOptions>,
}

/// A column of a table.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct ColumnSpec {
    /// Name of the column.
    #[schemars(length(min = 1, max = 48), regex(pattern = r"^[a-z][a-z0-9_]*$"))]
    pub name: String,
    /// CQL type, such as `text`, `uuid`, `timestamp` or `list<int>`.
    #[serde(rename = "type")]
    pub cql_type: CqlType,
}

/// The primary key of a table.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct PrimaryKey {
    /// The columns that choose the node.
    #[schemars(length(min = 1, max = 16))]
    pub partition_key: Vec<String>,
    /// The columns that order the rows of a partition.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub clustering_key: Vec<ClusteringColumn>,
}

impl PrimaryKey {
    /// The names of all its columns, partition key first.
    pub fn columns(&self) -> impl Iterator<Item = &str> {
        let clustering = self
            .clustering_key
            .iter()
            .map(|column| column.name.as_str());
        self.partition_key
            .iter()
            .map(String::as_str)
            .chain(clustering)
    }
}

/// A clustering column.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct ClusteringColumn {
    /// Name of the column.
    pub name: String,
    /// Order of the rows within a partition.
    #[serde(default)]
    pub order: Order,
}

/// Order of the rows within a partition.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Order {
    /// Ascending.
    #[default]
    #[serde(rename = "ASC")]
    Ascending,
    /// Descending.
    #[serde(rename = "DESC")]
    Descending,
}

/// Options of a table; the names are Cassandra's.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct TableOptions {
    /// Seconds after which a written cell expires; 0 is never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 630720000))]
    pub default_time_to_live: Option<i32>,
    /// Seconds for which tombstones are kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub gc_grace_seconds: Option<i32>,
    /// A comment for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub comment: Option<String>,
}

/// What was last seen of the keyspace.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct KeyspaceStatus {
    /// The generation of the spec that this status is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// `Ready`, `Accepted`, `Provisioned`.
    #[serde(default)]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
    /// Name of the keyspace in Cassandra.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keyspace_name: Option<String>,
    /// Number of declared tables that are as declared.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tables: Option<i32>,
    /// Declared tables that exist otherwise, and can't be altered to fit: nothing is done to them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub refused_tables: Vec<RefusedTable>,
    /// What was last put right in Cassandra because it had been changed there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_drift: Option<String>,
}

/// A declared table that exists otherwise.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct RefusedTable {
    /// Name of the table.
    pub name: String,
    /// What can't be altered, and the way out.
    pub message: String,
}
