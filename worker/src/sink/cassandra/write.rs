//! Bound rows to Cassandra: in unlogged batches by replica set, for as long as it takes.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures::{StreamExt, stream::FuturesUnordered};
use scylla::{
    client::session::Session,
    errors::{DbError, ExecutionError, RequestAttemptError},
    statement::{
        batch::{Batch, BatchType},
        prepared::PreparedStatement,
    },
};
use tokio::sync::Semaphore;
use uuid::Uuid;

use crate::{
    batch::Rejected,
    metrics::StageMetrics,
    retry::Delays,
    sink::cassandra::{
        CASSANDRA,
        bind::{BoundRows, Values},
    },
    status::StatusPart,
};

/// As much as Cassandra takes without a warning: 10 partitions, 5 KiB.
const BATCH_ROWS: usize = 10;
const BATCH_BYTES: usize = 5 * 1024;
/// What Cassandra counts for a cell beside its value; measured.
const CELL_BYTES: usize = 20;
/// Requests of a sink that are in flight at once.
const IN_FLIGHT: usize = 64;
/// Between attempts; short, for a whole table waits.
const LONGEST_DELAY: Duration = Duration::from_secs(5);

pub struct Writer {
    session: Arc<Session>,
    insert: String,
    prepared: PreparedStatement,
    /// Batches of 2 rows and more, by their number.
    batches: Vec<Batch>,
    in_flight: Semaphore,
    /// Writes that are being repeated.
    failing: AtomicUsize,
    status: StatusPart,
    metrics: StageMetrics,
}

impl Writer {
    pub fn new(
        session: Arc<Session>,
        insert: String,
        prepared: PreparedStatement,
        status: StatusPart,
        metrics: StageMetrics,
    ) -> Self {
        let batches = (0..=BATCH_ROWS).map(|rows| batch_of(&prepared, rows));
        Writer {
            batches: batches.collect(),
            session,
            insert,
            prepared,
            in_flight: Semaphore::new(IN_FLIGHT),
            failing: AtomicUsize::new(0),
            status,
            metrics,
        }
    }

    /// Writes rows; returns when each is acknowledged or can never be written.
    pub async fn write(&self, rows: &BoundRows) -> Vec<Rejected> {
        let cells = self.prepared.get_variable_col_specs().len();
        let batches = split(self.by_replicas(rows), cells * CELL_BYTES);
        let writes = batches.into_iter().map(|rows| self.write_batch(rows));
        writes.collect::<FuturesUnordered<_>>().concat().await
    }

    /// Rows that the same nodes hold travel together.
    fn by_replicas<'a>(&self, rows: &'a BoundRows) -> Vec<Vec<Values<'a>>> {
        let cluster = self.session.get_cluster_state();
        if cluster.get_nodes_info().len() <= 1 {
            return vec![rows.values().collect()];
        }
        let keyspace = self.prepared.get_keyspace_name().unwrap_or_default();
        let table = self.prepared.get_table_name().unwrap_or_default();
        let mut groups: HashMap<Vec<Uuid>, Vec<Values<'a>>> = HashMap::new();
        for row in rows.values() {
            let token = self.prepared.calculate_token(&row).ok().flatten();
            let mut replicas: Vec<_> = token
                .map(|token| cluster.get_token_endpoints(keyspace, table, token))
                .unwrap_or_default()
                .iter()
                .map(|(node, _)| node.host_id)
                .collect();
            replicas.sort_unstable();
            groups.entry(replicas).or_default().push(row);
        }
        groups.into_values().collect()
    }

    /// Writes the rows of one batch. One that Cassandra calls invalid is halved until the row that
    /// it means stands alone.
    async fn write_batch(&self, rows: Vec<Values<'_>>) -> Vec<Rejected> {
        // The semaphore is never closed; without a permit the write would only be less bounded.
        let _permit = self.in_flight.acquire().await.ok();
        let mut rejected = Vec::new();
        let mut parts = vec![rows.as_slice()];
        while let Some(part) = parts.pop() {
            let Err(reason) = self.write_part(part).await else {
                continue;
            };
            match part {
                [row] => rejected.push(Rejected {
                    record: row.record,
                    reason: format!("Cassandra refuses the row: {reason}"),
                }),
                _ => {
                    let (left, right) = part.split_at(part.len() / 2);
                    parts.extend([right, left]);
                }
            }
        }
        rejected
    }

    /// Writes rows, for as long as it takes; the error is why they can never be written.
    async fn write_part(&self, rows: &[Values<'_>]) -> Result<(), String> {
        let mut delays = Delays::up_to(LONGEST_DELAY);
        let mut failing = None;
        loop {
            let error = match self.send(rows).await {
                Ok(()) => return Ok(()),
                Err(error) => error,
            };
            if let Some(reason) = invalid(&error) {
                // A table that is gone makes every row invalid, but is no reason to give them up.
                if rows.len() > 1 || self.session.prepare(self.insert.as_str()).await.is_ok() {
                    return Err(reason);
                }
            }
            failing.get_or_insert_with(|| Failing::new(self));
            self.metrics.write_retries.inc();
            self.status
                .fail(CASSANDRA, format!("can't write to Cassandra: {error}"));
            delays.wait().await;
        }
    }

    async fn send(&self, rows: &[Values<'_>]) -> Result<(), ExecutionError> {
        match rows {
            [] => {}
            [row] => {
                self.session.execute_unpaged(&self.prepared, row).await?;
            }
            rows => {
                self.session.batch(&self.batches[rows.len()], rows).await?;
            }
        }
        Ok(())
    }
}

/// A write that is being repeated: the error is shown until none is left.
struct Failing<'a>(&'a Writer);

impl<'a> Failing<'a> {
    fn new(writer: &'a Writer) -> Self {
        writer.failing.fetch_add(1, Ordering::Relaxed);
        Failing(writer)
    }
}

impl Drop for Failing<'_> {
    fn drop(&mut self) {
        if self.0.failing.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.0.status.clear(CASSANDRA);
        }
    }
}

fn batch_of(prepared: &PreparedStatement, rows: usize) -> Batch {
    let statements = vec![prepared.clone().into(); rows];
    let mut batch = Batch::new_with_statements(BatchType::Unlogged, statements);
    if let Some(consistency) = prepared.get_consistency() {
        batch.set_consistency(consistency);
    }
    batch.set_is_idempotent(true);
    batch
}

/// Cuts groups of rows into batches; every row counts so many bytes beside its values.
fn split(groups: Vec<Vec<Values<'_>>>, overhead: usize) -> Vec<Vec<Values<'_>>> {
    let mut batches = Vec::new();
    for group in groups {
        let mut batch = Vec::with_capacity(BATCH_ROWS.min(group.len()));
        let mut bytes = 0;
        for row in group {
            let size = row.len() + overhead;
            let full = batch.len() == BATCH_ROWS || bytes + size > BATCH_BYTES;
            if full && !batch.is_empty() {
                batches.push(std::mem::take(&mut batch));
                bytes = 0;
            }
            bytes += size;
            batch.push(row);
        }
        if !batch.is_empty() {
            batches.push(batch);
        }
    }
    batches
}

/// Why Cassandra will never take a request, if it says so.
fn invalid(error: &ExecutionError) -> Option<String> {
    match error {
        ExecutionError::LastAttemptError(RequestAttemptError::DbError(
            DbError::Invalid,
            message,
        )) => Some(message.clone()),
        ExecutionError::BadQuery(error) => Some(error.to_string()),
        _ => None,
    }
}
