//! Where the rows of a pipeline go.

pub mod delta;
pub mod document;

use std::collections::BTreeMap;

use kube::{KubeSchema, core::Duration};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use self::{delta::DeltaSink, document::DocumentSink};
use crate::{
    connection::SecretValue, keyspace::PrimaryKey, pipeline::Expectation, source::DURATION,
};

/// A sink: a query over the topic's records, and the table that takes its rows.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("[has(self.cassandra), has(self.delta), has(self.document)].filter(x, x).size() == 1").message("exactly one of cassandra, delta and document must be set"))]
#[x_kube(validation = Rule::new("!has(self.state) || !has(self.cassandra)").message("state is for rows that go elsewhere: beside a Cassandra table it is kept in a table named after it"))]
pub struct Sink {
    /// Name of the sink, unique in the pipeline.
    #[schemars(
        length(min = 1, max = 63),
        regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")
    )]
    pub name: String,
    /// A `SELECT` over `records`. Besides the schema's columns there are `_key`, `_partition`,
    /// `_offset` and `_timestamp`. With a `GROUP BY` the row of each group is kept up to date for
    /// ever; its keys are the table's primary key, one of them a field of the record as it is, or
    /// computed of fields (unless the topic has one partition). The state is kept in a Cassandra table
    /// named after the sink's with `__state` behind it, or where `state` says. GROUP BY, aggregates and
    /// WHERE of such a sink can't be changed. Without a `GROUP BY` there may be `[INNER] JOIN` and
    /// `LEFT JOIN` of `lookups`, each `ON` the equality of a key that is unique in the lookup. Column
    /// names in upper case stand in double quotes; Cassandra takes none.
    #[schemars(length(min = 1, max = 65536))]
    pub sql: String,
    /// What has to hold for every row of the SQL's result, and what becomes of rows for which it
    /// doesn't. A row is held to all of them; each counts its own failures. Of several that fail,
    /// `Fail` comes before `DeadLetter`, and `DeadLetter` before `Drop`. Not for SQL with a GROUP BY.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub expectations: Vec<Expectation>,
    /// How long a group without records is kept, where the SQL has a `GROUP BY`: after that its row
    /// and its state expire, by Cassandra's clock, and the next record begins it anew. From `1s` to
    /// `175200h` (20 years); for ever where absent. What is written already keeps its own time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("pattern" = DURATION))]
    pub state_ttl: Option<Duration>,
    /// Where the state of a `GROUP BY` is kept in Cassandra, if the rows go elsewhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<SinkState>,
    /// The Cassandra table that takes the rows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cassandra: Option<CassandraSink>,
    /// The Delta Lake table that takes the rows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delta: Option<DeltaSink>,
    /// The collection that takes the rows as documents.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub document: Option<DocumentSink>,
}

/// Where the rows of a sink go.
#[derive(Clone, Copy, Debug)]
pub enum Target<'a> {
    /// Into a Cassandra table.
    Cassandra(&'a CassandraSink),
    /// Into a Delta Lake table.
    Delta(&'a DeltaSink),
    /// Into a collection of documents.
    Document(&'a DocumentSink),
}

impl Sink {
    /// Where the rows go; none unless exactly one place is given.
    pub fn target(&self) -> Option<Target<'_>> {
        let cassandra = self.cassandra.as_ref().map(Target::Cassandra);
        let delta = self.delta.as_ref().map(Target::Delta);
        let document = self.document.as_ref().map(Target::Document);
        let mut given = [cassandra, delta, document].into_iter().flatten();
        given.next().filter(|_| given.next().is_none())
    }

    /// Where the rows go, for people.
    pub fn place(&self) -> String {
        match self.target() {
            Some(Target::Cassandra(to)) => format!("{}.{}", to.keyspace, to.table),
            Some(Target::Delta(to)) => to.place(),
            Some(Target::Document(to)) => to.place(),
            None => String::new(),
        }
    }

    /// The keyspace in Cassandra that has the rows or the state, where one has.
    pub fn keyspace(&self) -> Option<&str> {
        let rows = self.cassandra.as_ref().map(|table| &table.keyspace);
        let state = self.state.as_ref().map(|state| &state.keyspace);
        rows.or(state).map(String::as_str)
    }

    /// The Secrets that the sink needs, by the name of the file in which the worker finds the value.
    pub fn secrets(&self) -> BTreeMap<String, &SecretValue> {
        let delta = self.delta.as_ref().and_then(|delta| delta.s3.as_ref());
        let keys = delta.map(|s3| {
            let [id, secret] = s3_files(&self.name);
            [
                (id, s3.bucket.access_key_id_secret.as_ref()),
                (secret, s3.bucket.secret_access_key_secret.as_ref()),
            ]
        });
        let keys = keys.into_iter().flatten();
        let keys = keys.filter_map(|(file, secret)| Some((file, secret?)));
        let document = self.document.iter();
        let document = document.flat_map(|document| document.secrets(&self.name));
        keys.chain(document).collect()
    }
}

/// The files with a sink's access key for S3, and with its secret access key.
pub fn s3_files(sink: &str) -> [String; 2] {
    [
        format!("sink-{sink}-s3-access-key-id"),
        format!("sink-{sink}-s3-secret-access-key"),
    ]
}

/// A place for the states of groups in Cassandra.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct SinkState {
    /// Name of the keyspace. It is made where neither a Keyspace resource nor Cassandra has it.
    #[schemars(length(min = 1, max = 48), regex(pattern = r"^[a-z][a-z0-9_]*$"))]
    pub keyspace: String,
    /// Name that the table has before its `__state`.
    #[schemars(length(min = 1, max = 41), regex(pattern = r"^[a-z][a-z0-9_]*$"))]
    pub table: String,
    /// Consistency level of the writes; reads match it.
    #[serde(default)]
    pub consistency: ConsistencyLevel,
}

/// A Cassandra table that takes rows.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct CassandraSink {
    /// Name of the keyspace in Cassandra. It is made where neither a Keyspace resource nor
    /// Cassandra has it.
    #[schemars(length(min = 1, max = 48), regex(pattern = r"^[a-z][a-z0-9_]*$"))]
    pub keyspace: String,
    /// Name of the table.
    #[schemars(length(min = 1, max = 48), regex(pattern = r"^[a-z][a-z0-9_]*$"))]
    pub table: String,
    /// The primary key, where the pipeline declares the table (from the SQL's result); absent where
    /// a Keyspace resource declares it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub primary_key: Option<PrimaryKey>,
    /// Consistency level of the writes.
    #[serde(default)]
    pub consistency: ConsistencyLevel,
}

/// How many replicas must have a row before it counts as written.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ConsistencyLevel {
    /// One replica.
    #[serde(rename = "ONE")]
    One,
    /// One replica in the local datacenter.
    #[serde(rename = "LOCAL_ONE")]
    LocalOne,
    /// Most replicas of the local datacenter.
    #[default]
    #[serde(rename = "LOCAL_QUORUM")]
    LocalQuorum,
    /// Most replicas of all datacenters.
    #[serde(rename = "QUORUM")]
    Quorum,
    /// Most replicas of each datacenter.
    #[serde(rename = "EACH_QUORUM")]
    EachQuorum,
    /// All replicas.
    #[serde(rename = "ALL")]
    All,
}
