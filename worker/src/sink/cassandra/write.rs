//! Bound rows to Cassandra: in unlogged batches by partition and replica set, as many at once as
//! it takes, for as long as it takes.

use std::{
    sync::{Arc, OnceLock},
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

use crate::{
    batch::Rejected,
    cassandra::CASSANDRA,
    metrics::{StageMetrics, WriteMetrics},
    retry::Delays,
    sink::cassandra::{
        bind::{BoundRows, Values},
        group::{BATCH_ROWS, Place, group},
        limit::Outcome,
        meaning,
        route::{PartitionKey, ReplicaSets},
        throttle::{Slot, Throttle},
    },
    status::{Failing, StatusPart},
};

/// What Cassandra counts for a cell beside its value; measured.
const CELL_BYTES: usize = 20;
/// Between attempts; short, for a whole table waits.
const LONGEST_DELAY: Duration = Duration::from_secs(5);

pub struct Writer {
    session: Arc<Session>,
    insert: String,
    prepared: PreparedStatement,
    key: PartitionKey,
    /// Batches of 2 rows and more, by their number.
    batches: Vec<OnceLock<Batch>>,
    throttle: Throttle,
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
        writes: WriteMetrics,
    ) -> Self {
        let table = prepared.get_table_name().unwrap_or_default();
        Writer {
            throttle: Throttle::new(table, writes),
            key: PartitionKey::new(&prepared),
            batches: (0..=BATCH_ROWS).map(|_| OnceLock::new()).collect(),
            session,
            insert,
            prepared,
            status,
            metrics,
        }
    }

    /// Writes rows; returns when each is acknowledged or can never be written.
    pub async fn write(&self, rows: &BoundRows) -> Vec<Rejected> {
        let batches = self.batches(rows).into_iter();
        let writes = batches.map(|rows| self.write_batch(rows));
        writes.collect::<FuturesUnordered<_>>().concat().await
    }

    fn batches<'a>(&self, rows: &'a BoundRows) -> Vec<Vec<Values<'a>>> {
        let rows: Vec<_> = rows.values().collect();
        let mut sets = ReplicaSets::new(&self.session, &self.prepared);
        let places = rows.iter().enumerate().map(|(row, values)| {
            let token = self.key.token(values);
            Place {
                replicas: sets.of(token),
                token: token.value(),
                row,
                bytes: self.size(values),
            }
        });
        let mut places: Vec<_> = places.collect();
        let batches = group(&mut places, self.throttle.batch_bytes()).into_iter();
        batches
            .map(|batch| places[batch].iter().map(|place| rows[place.row]).collect())
            .collect()
    }

    /// What Cassandra counts for a row.
    fn size(&self, row: &Values<'_>) -> usize {
        row.len() + self.prepared.get_variable_col_specs().len() * CELL_BYTES
    }

    fn size_of(&self, rows: &[Values<'_>]) -> usize {
        rows.iter().map(|row| self.size(row)).sum()
    }

    /// Writes the rows of one batch. One that can't be written as a whole is halved, until a row
    /// that Cassandra calls invalid stands alone.
    async fn write_batch(&self, rows: Vec<Values<'_>>) -> Vec<Rejected> {
        let mut rejected = Vec::new();
        let mut parts = vec![rows.as_slice()];
        let mut failing = None;
        while let Some(part) = parts.pop() {
            let Err(reason) = self.write_part(part, &mut failing).await else {
                failing = None;
                continue;
            };
            match part {
                [row] => rejected.push(Rejected::new(
                    row.record,
                    format!("Cassandra refuses the row: {reason}"),
                )),
                _ => {
                    let (left, right) = part.split_at(part.len() / 2);
                    parts.extend([right, left]);
                }
            }
        }
        rejected
    }

    /// Writes rows, for as long as it takes; the error is why they can't be written together, or
    /// why a single one can never be written.
    async fn write_part(
        &self,
        rows: &[Values<'_>],
        failing: &mut Option<Failing>,
    ) -> Result<(), String> {
        let several = rows.len() > 1;
        let mut delays = Delays::up_to(LONGEST_DELAY);
        let mut refused = false;
        loop {
            // None is kept between attempts, so that they too are as many at once as the limit says.
            let slot = self.throttle.slot().await;
            if several && self.size_of(rows) > self.throttle.batch_bytes() {
                return Err("it was cut when Cassandra took larger ones".into());
            }
            let error = match self.attempt(slot, rows).await {
                Ok(()) => return Ok(()),
                Err(error) => error,
            };
            if several && too_large(&error) {
                return Err(error.to_string());
            }
            if let Some(reason) = invalid(&error) {
                if several || refused {
                    return Err(reason);
                }
                // A table that is gone makes every row invalid, but is no reason to give them up. It may be
                // there again since the attempt.
                refused = self.has_table().await;
                if refused {
                    continue;
                }
            }
            let failing = failing.get_or_insert_with(|| self.status.failing(CASSANDRA));
            failing.say(format!("can't write to Cassandra: {}", meaning(&error)));
            self.metrics.write_retries.inc();
            delays.wait().await;
        }
    }

    /// Whether all nodes have the table.
    async fn has_table(&self) -> bool {
        self.session.prepare(self.insert.as_str()).await.is_ok()
            && self.session.await_schema_agreement().await.is_ok()
    }

    async fn attempt(&self, slot: Slot<'_>, rows: &[Values<'_>]) -> Result<(), ExecutionError> {
        let result = self.send(rows).await;
        match &result {
            Ok(()) => slot.settle(Outcome::Taken),
            Err(error) if overloaded(error) => slot.settle(Outcome::Overloaded),
            Err(error) if rows.len() > 1 && too_large(error) => {
                slot.settle(Outcome::TooLarge(self.size_of(rows)));
            }
            Err(_) => {}
        }
        result
    }

    async fn send(&self, rows: &[Values<'_>]) -> Result<(), ExecutionError> {
        match rows {
            [] => {}
            [row] => {
                self.session.execute_unpaged(&self.prepared, row).await?;
            }
            rows => {
                let batch =
                    self.batches[rows.len()].get_or_init(|| batch_of(&self.prepared, rows.len()));
                self.session.batch(batch, rows).await?;
            }
        }
        Ok(())
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

/// Why Cassandra will never take a request, if it says so.
fn invalid(error: &ExecutionError) -> Option<String> {
    match error {
        ExecutionError::LastAttemptError(RequestAttemptError::DbError(
            DbError::Invalid,
            message,
        )) if !for_now(message) => Some(message.clone()),
        ExecutionError::BadQuery(error) => Some(error.to_string()),
        _ => None,
    }
}

/// Whether a guardrail refuses a request for what the cluster is, as with a full disk, and not for what
/// the row has; by the names in Cassandra's `Guardrails.java`.
fn for_now(message: &str) -> bool {
    let guardrail = message.strip_prefix("Guardrail ");
    guardrail.is_some_and(|name| {
        let of_rows = ["column_", "collection_", "items_per_", "sai_"];
        !of_rows.iter().any(|begin| name.starts_with(begin))
    })
}

/// Whether Cassandra had more to do than it could.
fn overloaded(error: &ExecutionError) -> bool {
    use RequestAttemptError::{DbError as Answer, UnableToAllocStreamId};
    match error {
        ExecutionError::RequestTimeout(_) => true,
        ExecutionError::LastAttemptError(error) => matches!(
            error,
            UnableToAllocStreamId
                | Answer(
                    DbError::Overloaded
                        | DbError::WriteTimeout { .. }
                        | DbError::RateLimitReached { .. },
                    _
                )
        ),
        _ => false,
    }
}

/// Whether Cassandra takes only a smaller batch; there is no code for it.
fn too_large(error: &ExecutionError) -> bool {
    match error {
        ExecutionError::LastAttemptError(RequestAttemptError::DbError(
            DbError::Invalid | DbError::ServerError | DbError::ProtocolError,
            message,
        )) => ["too large", "too big", "oversized"]
            .iter()
            .any(|words| message.contains(words)),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use scylla::{errors::WriteType, statement::Consistency};

    use super::*;

    fn answer(error: DbError, message: &str) -> ExecutionError {
        RequestAttemptError::DbError(error, message.to_owned()).into()
    }

    #[test]
    fn only_what_comes_of_the_load_lowers_it() {
        let timeout = DbError::WriteTimeout {
            consistency: Consistency::LocalQuorum,
            received: 1,
            required: 2,
            write_type: WriteType::UnloggedBatch,
        };
        assert!(overloaded(&answer(timeout, "Operation timed out")));
        assert!(overloaded(&answer(DbError::Overloaded, "")));
        assert!(overloaded(&ExecutionError::RequestTimeout(Duration::ZERO)));
        let unavailable = DbError::Unavailable {
            consistency: Consistency::LocalQuorum,
            required: 2,
            alive: 1,
        };
        for other in [unavailable, DbError::Invalid, DbError::IsBootstrapping] {
            assert!(!overloaded(&answer(other, "")));
        }
        assert!(!overloaded(&ExecutionError::EmptyPlan));
    }

    #[test]
    fn a_full_disk_is_no_fault_of_the_row() {
        let invalid = |message| invalid(&answer(DbError::Invalid, message)).is_some();
        assert!(!invalid(
            "Guardrail replica_disk_usage violated: Write request failed because disk usage exceeds failure threshold"
        ));
        assert!(invalid(
            "Guardrail column_value_size violated: Value of column 'a' has size 2MiB"
        ));
        assert!(invalid(
            "Guardrail collection_size violated: Detected collection a"
        ));
        assert!(invalid("Expected 4 or 0 byte int (8)"));
    }

    #[test]
    fn a_batch_that_is_too_large_is_told_from_one_that_is_invalid() {
        let invalid = |message| too_large(&answer(DbError::Invalid, message));
        assert!(invalid("Batch too large"));
        assert!(invalid("Rejected an oversized mutation (60000/49152)"));
        assert!(!invalid("Expected 4 or 0 byte int (8)"));
        assert!(!too_large(&answer(DbError::Overloaded, "Batch too large")));
    }
}
