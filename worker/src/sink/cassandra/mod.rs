//! Rows into a Cassandra table.

mod bind;
mod encode;
mod group;
mod limit;
mod route;
mod state;
mod throttle;
mod write;

pub use bind::BoundRows;
pub use encode::{cell, varint};
pub use state::{GroupKeys, StateTable, is_of_one_datacenter};

use std::sync::Arc;

use futures::{FutureExt, future::BoxFuture};
use millstream_api::{
    cql::quoted, keyspace::TableSpec, sink::ConsistencyLevel, worker::CassandraTable,
};
use millstream_plan::SinkPlan;
use scylla::{
    client::session::Session,
    errors::ExecutionError,
    statement::{Consistency, prepared::PreparedStatement},
};

use crate::{
    batch::{Batch, Rejected},
    cassandra::CASSANDRA,
    metrics::StageMetrics,
    retry::Delays,
    sink::{
        Sink,
        cassandra::{bind::Binder, write::Writer},
    },
    status::StatusPart,
    transform::Rows,
};

/// A table that takes rows. A row's write timestamp is `base + offset`: writing it again changes
/// nothing, and an older record can't overwrite a newer one.
pub struct CassandraSink {
    binder: Binder,
    writer: Writer,
}

impl CassandraSink {
    /// Prepares the statement; tries until Cassandra has the table.
    pub async fn open(
        session: Arc<Session>,
        to: &CassandraTable,
        ttl_seconds: Option<u64>,
        plan: &SinkPlan,
        timestamp_base: i64,
        status: StatusPart,
        metrics: StageMetrics,
    ) -> anyhow::Result<Self> {
        plan.check_table(&to.keyspace, &to.table)?;
        let binder = Binder::new(plan, &to.table, timestamp_base)?;
        let insert = insert_statement(&to.keyspace, &to.table.name, binder.columns(), ttl_seconds);
        let prepared = prepare(&session, &insert, to.consistency, &status).await;
        let writes = metrics.writes("rows");
        let writer = Writer::new(session, insert, prepared, status, metrics, writes);
        Ok(CassandraSink { binder, writer })
    }
}

impl Sink for CassandraSink {
    fn write<'a>(&'a self, batch: &'a Batch, rows: &'a [Rows]) -> BoxFuture<'a, Vec<Rejected>> {
        async move {
            let (bound, mut rejected) = self.binder.bind(batch, rows);
            rejected.extend(self.writer.write(&bound).await);
            rejected
        }
        .boxed()
    }
}

/// The records whose rows a table can't take: a value that isn't of the column's type, a null in
/// the primary key.
pub fn refused(
    plan: &SinkPlan,
    table: &TableSpec,
    batch: &Batch,
    rows: &[Rows],
) -> anyhow::Result<Vec<Rejected>> {
    let (_, rejected) = Binder::new(plan, table, 0)?.bind(batch, rows);
    Ok(rejected)
}

/// Prepares a statement; tries until Cassandra has the table.
async fn prepare(
    session: &Session,
    statement: &str,
    consistency: ConsistencyLevel,
    status: &StatusPart,
) -> PreparedStatement {
    let mut delays = Delays::default();
    loop {
        match session.prepare(statement).await {
            Ok(mut prepared) => {
                status.clear(CASSANDRA);
                configure(&mut prepared, consistency);
                return prepared;
            }
            Err(error) => {
                status.fail(CASSANDRA, format!("can't prepare `{statement}`: {error}"));
                delays.wait().await;
            }
        }
    }
}

/// What an error means, for people.
fn meaning(error: &ExecutionError) -> String {
    match error {
        // A plan has nodes that are down too, and all nodes where no datacenter is preferred.
        ExecutionError::EmptyPlan => {
            "no node is in cassandra.datacenter: name one that `nodetool status` shows".to_owned()
        }
        other => other.to_string(),
    }
}

fn configure(prepared: &mut PreparedStatement, consistency: ConsistencyLevel) {
    prepared.set_consistency(match consistency {
        ConsistencyLevel::One => Consistency::One,
        ConsistencyLevel::LocalOne => Consistency::LocalOne,
        ConsistencyLevel::LocalQuorum => Consistency::LocalQuorum,
        ConsistencyLevel::Quorum => Consistency::Quorum,
        ConsistencyLevel::EachQuorum => Consistency::EachQuorum,
        ConsistencyLevel::All => Consistency::All,
    });
    prepared.set_is_idempotent(true);
}

fn insert_statement<'a>(
    keyspace: &str,
    table: &str,
    columns: impl Iterator<Item = &'a str>,
    ttl_seconds: Option<u64>,
) -> String {
    let columns: Vec<_> = columns.map(quoted).collect();
    let markers = vec!["?"; columns.len()].join(", ");
    let columns = columns.join(", ");
    let ttl = ttl_seconds.map_or_else(String::new, |seconds| format!(" AND TTL {seconds}"));
    let (keyspace, table) = (quoted(keyspace), quoted(table));
    format!("INSERT INTO {keyspace}.{table} ({columns}) VALUES ({markers}) USING TIMESTAMP ?{ttl}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_statement_carries_the_timestamp() {
        let columns = || ["id", "name"].into_iter();
        let statement = |ttl| insert_statement("shop", "users", columns(), ttl);
        let plain = r#"INSERT INTO "shop"."users" ("id", "name") VALUES (?, ?) USING TIMESTAMP ?"#;
        assert_eq!(statement(None), plain);
        assert_eq!(statement(Some(90)), format!("{plain} AND TTL 90"));
    }

    #[test]
    fn a_datacenter_without_nodes_is_named() {
        let meaning = meaning(&ExecutionError::EmptyPlan);
        assert!(meaning.contains("cassandra.datacenter"), "{meaning}");
    }
}
