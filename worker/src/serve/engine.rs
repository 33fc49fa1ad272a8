//! Where SQL runs: a few queries at a time, in bounded memory.

use std::{io, sync::Arc, time::Duration};

use anyhow::Context;
use axum::http::StatusCode;
use datafusion::{
    arrow::{
        array::{Array, RecordBatch},
        datatypes::SchemaRef,
        error::ArrowError,
    },
    common::DataFusionError,
    execution::{
        disk_manager::{DiskManagerBuilder, DiskManagerMode},
        memory_pool::GreedyMemoryPool,
        runtime_env::RuntimeEnvBuilder,
    },
    logical_expr::{LogicalPlan, LogicalPlanBuilder},
    prelude::{SessionConfig, SessionContext},
};
use futures::StreamExt;
use millstream_plan::serve::{NOW, Value};
use tokio::{runtime::Handle, sync::Semaphore, time::timeout};

use super::{
    problem::Problem,
    room::{Room, Share},
    value::Table,
};
use crate::budget;

/// Bytes of rows that one request may take.
pub const MAX_BYTES: usize = 32 * 1024 * 1024;
/// Bytes that all queries together may take beside the rows that they are given.
const MAX_QUERY_BYTES: usize = 128 * 1024 * 1024;
/// Queries that run at the same time: they take the processor for themselves.
const QUERIES: usize = 2;

/// Where SQL runs.
pub struct Engine {
    context: SessionContext,
    permits: Arc<Semaphore>,
    room: Room,
}

/// A query's turn: what it runs in, and what its rows take of the memory for them.
pub struct Turn {
    context: SessionContext,
    share: Share,
}

impl Engine {
    pub fn new() -> anyhow::Result<Self> {
        let rows = budget::of_rows(budget::limit_of_container(), MAX_QUERY_BYTES);
        Self::within(MAX_QUERY_BYTES, rows)
    }

    /// With so many bytes for queries, and for the rows of all requests.
    fn within(bytes: usize, rows: usize) -> anyhow::Result<Self> {
        let disk = DiskManagerBuilder::default().with_mode(DiskManagerMode::Disabled);
        let runtime = RuntimeEnvBuilder::new()
            .with_memory_pool(Arc::new(GreedyMemoryPool::new(bytes)))
            .with_disk_manager_builder(disk)
            .build_arc()
            .context("the SQL engine")?;
        let config = SessionConfig::new().with_target_partitions(1);
        Ok(Engine {
            context: SessionContext::new_with_config_rt(config, runtime),
            permits: Arc::new(Semaphore::new(QUERIES)),
            room: Room::new(rows),
        })
    }

    /// What queries run in.
    pub fn context(&self) -> &SessionContext {
        &self.context
    }

    /// What a request's rows take of the memory for them: nothing yet.
    pub fn share(&self) -> Share {
        self.room.share()
    }

    fn turn(&self) -> Turn {
        Turn {
            context: self.context.clone(),
            share: self.share(),
        }
    }

    /// Runs a query when it is its turn; what it is called stands in the answer where it fails.
    pub async fn run<F>(
        &self,
        what: &'static str,
        patience: Duration,
        query: impl FnOnce(Turn) -> F + Send + 'static,
    ) -> Result<Table, Problem>
    where
        F: Future<Output = Result<Table, Problem>>,
    {
        let permit = self.permits.clone().acquire_owned().await;
        let turn = self.turn();
        // On a thread of its own: the requests beside it must not wait for the processor.
        let run = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            let run = query(turn);
            Handle::current().block_on(async { timeout(patience, run).await })
        });
        match run.await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(Problem::unavailable(format!("{what} took too long"))),
            Err(error) => Err(Problem::internal(&format!("{what} failed"), error)),
        }
    }
}

/// Why a plan gave no rows.
pub struct Failure {
    pub problem: Problem,
    /// Whether what it reads is away.
    pub is_unread: bool,
}

impl From<Problem> for Failure {
    fn from(problem: Problem) -> Self {
        Failure {
            problem,
            is_unread: false,
        }
    }
}

impl From<Failure> for Problem {
    fn from(failure: Failure) -> Self {
        failure.problem
    }
}

/// Whether there are values of parameters, beside the present.
pub fn is_given(values: &[(String, Value)]) -> bool {
    values.iter().any(|(name, _)| name != NOW)
}

/// The rows of a plan: so many at most, or all of them, which may be `max_rows`. Whether parameters
/// are `given` says whose an error with values is.
pub async fn rows(
    turn: Turn,
    what: &str,
    plan: LogicalPlan,
    columns: &SchemaRef,
    limit: Option<usize>,
    max_rows: usize,
    given: bool,
) -> Result<Table, Failure> {
    let Turn { context, mut share } = turn;
    let failed = |error: DataFusionError| failure(what, given, error);
    let most = limit.unwrap_or(max_rows + 1);
    let plan = LogicalPlanBuilder::from(plan).limit(0, Some(most));
    let plan = plan.and_then(LogicalPlanBuilder::build).map_err(failed)?;
    let frame = context.execute_logical_plan(plan).await.map_err(failed)?;
    let mut stream = frame.execute_stream().await.map_err(failed)?;
    let mut fields = columns.fields().iter();
    let nested = fields.any(|field| field.data_type().is_nested());
    let (mut batches, mut count, mut bytes) = (Vec::new(), 0, 0);
    while let Some(batch) = stream.next().await {
        let batch = batch.map_err(failed)?;
        let (rows, size) = (batch.num_rows(), size(&batch));
        count += rows;
        bytes += size;
        if count > max_rows {
            return Err(too_many(&format!("{what} gives"), max_rows).into());
        }
        if bytes > MAX_BYTES {
            return Err(too_large().into());
        }
        share.take(rows * batch.num_columns(), size, nested)?;
        batches.push(batch);
    }
    Table::of_batches(columns, &batches, share)
        .map_err(|error| Problem::internal(&format!("{what} failed"), error).into())
}

/// Bytes of the rows alone: batches share what they were cut out of.
fn size(batch: &RecordBatch) -> usize {
    let columns = batch.columns().iter();
    columns
        .map(|column| column.to_data().get_slice_memory_size())
        .map(|bytes| bytes.unwrap_or_default())
        .sum()
}

/// What an error of the engine means for the one who asks.
fn failure(what: &str, given: bool, error: DataFusionError) -> Failure {
    let root = error.find_root();
    let is_too_much = matches!(root, DataFusionError::ResourcesExhausted(_));
    let is_of_values = given && is_of_values(root);
    let error = anyhow::Error::from(error);
    let is_away = |cause: &(dyn std::error::Error + 'static)| {
        cause.is::<object_store::Error>() || cause.is::<io::Error>()
    };
    if error.chain().any(is_away) {
        tracing::warn!("{what}: {error:#}");
        let says = "the table can't be read; ask again after the time in Retry-After";
        return Failure {
            problem: Problem::unavailable(says),
            is_unread: true,
        };
    }
    if is_too_much {
        tracing::warn!("{what}: {error:#}");
        let says = format!(
            "{what} needs more memory than is free; ask for less, or again after the time in Retry-After"
        );
        return Problem::unavailable(says).into();
    }
    if is_of_values {
        // The rows may be as wrong: the service's owner is told.
        tracing::warn!("{what}: {error:#}");
        let says = format!(
            "{what} can't reckon with these parameters: a value is converted to a type that it doesn't fit, or a number is divided by zero"
        );
        return Problem::new(StatusCode::BAD_REQUEST, says).into();
    }
    Problem::internal(&format!("{what} failed"), format!("{error:#}")).into()
}

/// Whether other values wouldn't have given the error.
fn is_of_values(error: &DataFusionError) -> bool {
    let DataFusionError::ArrowError(error, _) = error else {
        return false;
    };
    matches!(
        **error,
        ArrowError::CastError(_)
            | ArrowError::ParseError(_)
            | ArrowError::DivideByZero
            | ArrowError::ArithmeticOverflow(_)
            | ArrowError::InvalidArgumentError(_)
    )
}

/// More rows than there may be.
pub fn too_many(what: &str, max_rows: usize) -> Problem {
    let detail = format!(
        "{what} more than {max_rows} rows; narrow the parameters, or let the service's owner raise maxRows"
    );
    Problem::new(StatusCode::INTERNAL_SERVER_ERROR, detail)
}

/// Rows that take more memory than they may.
pub fn too_large() -> Problem {
    let detail = format!("the rows have more than {MAX_BYTES} bytes; ask for fewer with `limit`");
    Problem::new(StatusCode::INTERNAL_SERVER_ERROR, detail)
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn failure_of(engine: &Engine, sql: &str, given: bool) -> Failure {
        let context = engine.context();
        let plan = context.state().create_logical_plan(sql).await.unwrap();
        let columns = Arc::new(plan.schema().as_arrow().clone());
        let rows = rows(engine.turn(), "the query", plan, &columns, None, 10, given).await;
        let Err(failure) = rows else {
            panic!("{sql} gives rows");
        };
        assert!(!failure.is_unread, "{sql}");
        failure
    }

    #[tokio::test]
    async fn an_answer_is_as_large_as_its_rows_are() {
        let engine = Engine::within(MAX_QUERY_BYTES, 64 << 20).unwrap();
        let context = engine.context();
        // Four million bytes in 13 batches, all of them slices of one.
        let sql = "SELECT repeat('x', 32) || value AS t FROM generate_series(1, 100000) ORDER BY t LIMIT 100000";
        let plan = context.state().create_logical_plan(sql).await.unwrap();
        let columns = Arc::new(plan.schema().as_arrow().clone());
        let rows = rows(
            engine.turn(),
            "the query",
            plan,
            &columns,
            None,
            100_000,
            true,
        )
        .await;
        assert!(rows.is_ok_and(|table| table.rows.len() == 100_000));
    }

    #[tokio::test]
    async fn an_error_has_a_status_that_says_whose_it_is() {
        let engine = Engine::within(10_000, 1 << 20).unwrap();
        for sql in [
            "SELECT 1 / (value - 1) AS n FROM generate_series(1, 2)",
            "SELECT CAST(concat('x', value) AS INT) AS n FROM generate_series(1, 2)",
        ] {
            let failure = failure_of(&engine, sql, true).await;
            assert_eq!(failure.problem.status, StatusCode::BAD_REQUEST, "{sql}");
            let failure = failure_of(&engine, sql, false).await;
            let internal = StatusCode::INTERNAL_SERVER_ERROR;
            assert_eq!(failure.problem.status, internal, "{sql}");
        }
        let groups = "SELECT concat('x', value) AS k, count(*) AS n FROM generate_series(1, 50000) GROUP BY k";
        let failure = failure_of(&engine, groups, true).await;
        assert_eq!(failure.problem.status, StatusCode::SERVICE_UNAVAILABLE);
    }
}
