//! Rows into a Delta Lake table.
//!
//! Each commit carries, as `txn` actions, the last offset of every topic partition that it has rows
//! of. What the table has is never written again, whoever reads it again; and of two writers of one
//! partition only one can commit.

mod compact;
mod guard;
pub(crate) mod place;
mod replaced;
mod rows;
mod table;

use std::{sync::Arc, time::Duration};

use anyhow::Context;
use futures::{FutureExt, future::BoxFuture};
use millstream_api::{sink::DeltaSink as Spec, worker::DeltaTable as Config};
use millstream_plan::SinkPlan;
use tokio::{
    runtime::{Builder, Runtime},
    sync::Mutex,
    task::JoinSet,
};

use self::{
    place::Place,
    rows::{Shape, TableRows},
    table::{Failure, Table},
};
use crate::{
    batch::{Batch, Rejected},
    budget::DELTA_BATCH,
    config::Credentials,
    retry::Delays,
    sink::{Pace, Sink},
    status::StatusPart,
    transform::Rows,
};

/// The concern under which errors of the table are shown.
const DELTA: &str = "delta";
/// The concern of the files that are put together, and of those that are removed.
const FILES: &str = "delta files";
/// A commit that takes longer is given up and tried again.
const COMMIT_TIMEOUT: Duration = Duration::from_secs(600);

/// A table that takes rows.
pub struct DeltaSink {
    shape: Shape,
    table: Arc<Mutex<Table>>,
    pace: Pace,
    threads: Threads,
    status: StatusPart,
}

impl DeltaSink {
    /// Looks at the table, or makes it; tries until that can be done. `reader` is who reads the topic:
    /// its offsets are known by it.
    pub async fn open(
        sink: &str,
        config: &Config,
        plan: &SinkPlan,
        timestamp_base: i64,
        reader: String,
        credentials: &Credentials,
        status: StatusPart,
    ) -> anyhow::Result<Self> {
        let shape = Shape::new(plan, &config.sink, timestamp_base)?;
        let place = Place::new(sink, config, credentials)?;
        let pace = Pace {
            records: config.sink.commit_rows as usize,
            bytes: DELTA_BATCH,
            linger: config.sink.commit_interval.into(),
            // A commit follows from the one before it.
            in_flight: 1,
        };
        let table = Table::new(place, config.sink.clone(), shape.clone(), reader)?;
        let none = TableRows::none(&shape);
        let sink = DeltaSink {
            shape,
            table: Arc::new(Mutex::new(table)),
            pace,
            threads: Threads::new()?,
            status,
        };
        sink.commit(none).await;
        Ok(sink)
    }

    /// Commits rows, for as long as it takes.
    async fn commit(&self, rows: TableRows) {
        let rows = Arc::new(rows);
        let mut delays = Delays::default();
        loop {
            let (table, rows) = (self.table.clone(), rows.clone());
            let attempt = async move {
                let mut table = table.lock().await;
                tokio::time::timeout(COMMIT_TIMEOUT, table.apply(&rows)).await
            };
            let problem = match self.threads.run(attempt).await {
                Ok(Ok(Ok(warning))) => {
                    self.status.clear(DELTA);
                    match warning {
                        Some(warning) => self.status.warn(FILES, warning),
                        None => self.status.clear(FILES),
                    }
                    return;
                }
                // Somebody else was first: what they wrote is looked at, at once.
                Ok(Ok(Err(Failure::Conflict(reason)))) => {
                    tracing::debug!(%reason, "Delta Lake commit");
                    tokio::time::sleep(delays.next_delay() / 4).await;
                    continue;
                }
                Ok(Ok(Err(Failure::Error(error)))) => format!("{error:#}"),
                Ok(Err(_)) => format!("a commit took more than {COMMIT_TIMEOUT:?}"),
                Err(error) => format!("{error:#}"),
            };
            self.status.fail(
                DELTA,
                format!("can't write the Delta Lake table: {problem}"),
            );
            delays.wait().await;
        }
    }
}

impl Sink for DeltaSink {
    fn write<'a>(&'a self, batch: &'a Batch, rows: &'a [Rows]) -> BoxFuture<'a, Vec<Rejected>> {
        async move {
            let (rows, rejected) = tokio::task::block_in_place(|| self.shape.rows(batch, rows));
            if !rows.is_empty() {
                self.commit(rows).await;
            }
            rejected
        }
        .boxed()
    }

    fn pace(&self, _: Pace) -> Pace {
        self.pace
    }

    /// A commit says how far the table is: rows of older records that came later would be dropped.
    fn takes_parts(&self) -> bool {
        false
    }
}

/// The records whose rows a table can't take: a null in its keys.
pub fn refused(
    plan: &SinkPlan,
    to: &Spec,
    batch: &Batch,
    rows: &[Rows],
) -> anyhow::Result<Vec<Rejected>> {
    let (_, rejected) = Shape::new(plan, to, 0)?.rows(batch, rows);
    Ok(rejected)
}

/// Threads for the table's work: it is long, and the worker's own have records to read and probes to
/// answer.
struct Threads(Option<Runtime>);

impl Threads {
    fn new() -> anyhow::Result<Self> {
        let runtime = Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("delta")
            .enable_all()
            .build()
            .context("can't start threads for Delta Lake")?;
        Ok(Threads(Some(runtime)))
    }

    /// Runs a task there; it ends with whoever waits for it.
    async fn run<T: Send + 'static>(
        &self,
        task: impl Future<Output = T> + Send + 'static,
    ) -> anyhow::Result<T> {
        let runtime = self.0.as_ref().context("the threads have ended")?;
        let mut tasks = JoinSet::new();
        tasks.spawn_on(task, runtime.handle());
        let result = tasks.join_next().await.context("there is no task")?;
        result.context("the task failed")
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            // It can't be waited for where tasks run.
            runtime.shutdown_background();
        }
    }
}

#[cfg(test)]
mod tests;
