//! The query of an endpoint: prepared once, bound and run for each request.

use std::{sync::Arc, time::Duration};

use anyhow::{Context, bail};
use axum::http::StatusCode;
use datafusion::{
    arrow::datatypes::{DataType, SchemaRef},
    execution::{
        disk_manager::{DiskManagerBuilder, DiskManagerMode},
        memory_pool::GreedyMemoryPool,
        runtime_env::RuntimeEnvBuilder,
    },
    prelude::{SessionConfig, SessionContext},
};
use futures::StreamExt;
use millstream_api::serve::Endpoint;
use millstream_plan::serve::{
    EndpointPlan, NOW, Transform, Value, check_plot, fits_marker, misfit, rows_schema,
};
use scylla::{
    client::session::Session,
    errors::{DbError, ExecutionError, RequestAttemptError},
    response::PagingState,
    statement::{Consistency, prepared::PreparedStatement},
    value::{CqlValue, Row},
};
use tokio::{runtime::Handle, sync::Semaphore, time::timeout};

use super::{
    parameter::to_cql,
    problem::Problem,
    value::{self, Table},
};

/// Rows that Cassandra is asked for at once.
const FETCH: usize = 1_000;
/// Bytes of rows that one request may take.
const MAX_BYTES: usize = 32 * 1024 * 1024;
/// Bytes that all transforms together may take beside their rows.
const MAX_TRANSFORM_BYTES: usize = 128 * 1024 * 1024;
/// Transforms that run at the same time: they take the processor for themselves.
const TRANSFORMS: usize = 2;

/// An endpoint's query, known to Cassandra.
pub struct Query {
    prepared: PreparedStatement,
    rows: SchemaRef,
    transform: Option<Transform>,
}

impl Query {
    /// Prepares the query and holds the endpoint against what Cassandra says of it.
    pub async fn prepare(
        session: &Session,
        endpoint: &Endpoint,
        plan: &EndpointPlan,
        patience: Duration,
    ) -> anyhow::Result<Self> {
        let mut prepared = session.prepare(plan.statement.as_str()).await?;
        prepared.set_consistency(Consistency::LocalQuorum);
        prepared.set_is_idempotent(true);
        prepared.set_request_timeout(Some(patience));
        for marker in prepared.get_variable_col_specs().iter() {
            let mut declared = endpoint.parameters.iter();
            let parameter = declared.find(|parameter| parameter.name == marker.name());
            let expected = value::cql_type(marker.typ());
            if (parameter.is_none() && marker.name() != NOW) || !fits_marker(parameter, &expected) {
                bail!("{}", misfit(marker.name(), parameter, &expected));
            }
        }
        let columns = prepared.get_current_result_set_col_specs();
        let columns: Vec<_> = columns
            .get()
            .iter()
            .map(|column| (column.name().to_owned(), value::cql_type(column.typ())))
            .collect();
        let rows = rows_schema(&columns);
        let transform = endpoint.transform.as_deref();
        let transform = transform
            .map(|sql| Transform::plan(sql, &rows, &endpoint.parameters))
            .transpose()
            .map_err(|problem| anyhow::anyhow!("transform: {problem}"))?;
        let query = Query {
            prepared,
            rows,
            transform,
        };
        let result = query.columns().fields().iter();
        let result: Vec<_> = result
            .map(|field| (field.name().clone(), field.data_type().is_numeric()))
            .collect();
        check_plot(endpoint, &result)?;
        Ok(query)
    }

    /// The columns of its answers.
    pub fn columns(&self) -> &SchemaRef {
        self.transform
            .as_ref()
            .map_or(&self.rows, Transform::columns)
    }

    /// The values as the prepared statement takes them.
    fn bind(&self, values: &[(String, Value)]) -> Result<Vec<Option<CqlValue>>, Problem> {
        let markers = self.prepared.get_variable_col_specs();
        let bound = markers.iter().map(|marker| {
            let found = values.iter().find(|(name, _)| name == marker.name());
            let (name, value) =
                found.ok_or_else(|| Problem::parameter(marker.name(), "has no value"))?;
            let cql = to_cql(value, marker.typ());
            cql.map(Some)
                .map_err(|says| Problem::parameter(name, &says))
        });
        bound.collect()
    }

    /// Rows from a place on, so many at most, and the place where there are more.
    async fn fetch(
        &self,
        session: &Session,
        values: &[Option<CqlValue>],
        mut from: PagingState,
        limit: usize,
    ) -> Result<Fetched, Problem> {
        let mut columns = Vec::new();
        let mut rows = Vec::new();
        let mut bytes = 0;
        while rows.len() < limit {
            let mut prepared = self.prepared.clone();
            prepared.set_page_size((limit - rows.len()).min(FETCH) as i32);
            let page = session.execute_single_page(&prepared, values, from).await;
            let (result, next) = page.map_err(problem)?;
            let unreadable = |error: &dyn std::error::Error| {
                Problem::internal("Cassandra's answer can't be read", error)
            };
            let result = result
                .into_rows_result()
                .map_err(|error| unreadable(&error))?;
            bytes += result.rows_bytes_size();
            if bytes > MAX_BYTES {
                return Err(too_large());
            }
            // Not those of the preparation: what `*` is changes with the table.
            let names = result.column_specs().iter();
            columns = names.map(|column| column.name().to_owned()).collect();
            for row in result.rows::<Row>().map_err(|error| unreadable(&error))? {
                rows.push(row.map_err(|error| unreadable(&error))?);
            }
            match next.into_paging_control_flow() {
                std::ops::ControlFlow::Continue(next) => from = next,
                std::ops::ControlFlow::Break(()) => {
                    let next = None;
                    return Ok(Fetched {
                        columns,
                        rows,
                        next,
                    });
                }
            }
        }
        let next = Some(from);
        Ok(Fetched {
            columns,
            rows,
            next,
        })
    }

    /// One page of rows.
    pub async fn page(
        &self,
        session: &Session,
        values: &[(String, Value)],
        from: PagingState,
        limit: usize,
    ) -> Result<(Table, Option<PagingState>), Problem> {
        let bound = self.bind(values)?;
        let fetched = self.fetch(session, &bound, from, limit).await?;
        Ok((Table::of_rows(fetched.columns, fetched.rows), fetched.next))
    }

    /// All rows, transformed.
    pub async fn transformed(
        self: &Arc<Self>,
        session: &Session,
        engine: &Engine,
        values: Vec<(String, Value)>,
        max_rows: usize,
        patience: Duration,
    ) -> Result<Table, Problem> {
        let bound = self.bind(&values)?;
        let from = PagingState::start();
        let fetched = self.fetch(session, &bound, from, max_rows + 1).await?;
        if fetched.rows.len() > max_rows {
            return Err(too_many("the query gives", max_rows));
        }
        let permit = engine.permits.clone().acquire_owned().await;
        let (query, context) = (self.clone(), engine.context.clone());
        // On a thread of its own: the requests beside it must not wait for the processor.
        let run = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            let run = query.run(&context, fetched, values, max_rows);
            Handle::current().block_on(async { timeout(patience, run).await })
        });
        match run.await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(Problem::unavailable("the transform took too long")),
            Err(error) => Err(Problem::internal("the transform failed", error)),
        }
    }

    async fn run(
        &self,
        context: &SessionContext,
        fetched: Fetched,
        values: Vec<(String, Value)>,
        max_rows: usize,
    ) -> Result<Table, Problem> {
        let transform = self.transform.as_ref();
        let transform = transform.ok_or_else(|| Problem::internal("there is no transform", ""))?;
        let failed =
            |error: &dyn std::fmt::Display| Problem::internal("the transform failed", error);
        let rows = value::batch(&self.rows, &fetched.columns, fetched.rows)
            .map_err(|error| failed(&error))?;
        let plan = transform
            .bind(rows, values)
            .map_err(|error| failed(&error))?;
        let frame = context
            .execute_logical_plan(plan)
            .await
            .map_err(|error| failed(&error))?;
        let mut stream = frame
            .execute_stream()
            .await
            .map_err(|error| failed(&error))?;
        let (mut batches, mut count) = (Vec::new(), 0);
        while let Some(batch) = stream.next().await {
            let batch = batch.map_err(|error| failed(&error))?;
            count += batch.num_rows();
            if count > max_rows {
                return Err(too_many("the transform gives", max_rows));
            }
            batches.push(batch);
        }
        Table::of_batches(transform.columns(), &batches).map_err(|error| failed(&error))
    }
}

/// Rows, and the place where there are more.
struct Fetched {
    columns: Vec<String>,
    rows: Vec<Row>,
    next: Option<PagingState>,
}

/// Where transforms run.
pub struct Engine {
    context: SessionContext,
    permits: Arc<Semaphore>,
}

impl Engine {
    pub fn new() -> anyhow::Result<Self> {
        let disk = DiskManagerBuilder::default().with_mode(DiskManagerMode::Disabled);
        let runtime = RuntimeEnvBuilder::new()
            .with_memory_pool(Arc::new(GreedyMemoryPool::new(MAX_TRANSFORM_BYTES)))
            .with_disk_manager_builder(disk)
            .build_arc()
            .context("the SQL engine")?;
        let config = SessionConfig::new().with_target_partitions(1);
        Ok(Engine {
            context: SessionContext::new_with_config_rt(config, runtime),
            permits: Arc::new(Semaphore::new(TRANSFORMS)),
        })
    }
}

fn too_many(what: &str, max_rows: usize) -> Problem {
    let detail = format!(
        "{what} more than {max_rows} rows; narrow the parameters, or let the service's owner raise maxRows"
    );
    Problem::new(StatusCode::INTERNAL_SERVER_ERROR, detail)
}

fn too_large() -> Problem {
    let detail = format!("the rows have more than {MAX_BYTES} bytes; ask for fewer with `limit`");
    Problem::new(StatusCode::INTERNAL_SERVER_ERROR, detail)
}

/// What an error of Cassandra's means for the one who asks.
fn problem(error: ExecutionError) -> Problem {
    match &error {
        // The statement was prepared, so it is a value that isn't right, such as an empty key.
        ExecutionError::LastAttemptError(RequestAttemptError::DbError(DbError::Invalid, says)) => {
            Problem::new(
                StatusCode::BAD_REQUEST,
                format!("Cassandra refuses a value: {says}"),
            )
        }
        ExecutionError::BadQuery(_)
        | ExecutionError::LastAttemptError(RequestAttemptError::DbError(
            DbError::SyntaxError
            | DbError::Unauthorized
            | DbError::ConfigError
            | DbError::FunctionFailure { .. },
            _,
        )) => Problem::internal("Cassandra refuses the query", error),
        _ => {
            tracing::debug!(%error, "Cassandra");
            Problem::unavailable(
                "Cassandra can't be reached; ask again after the time in Retry-After",
            )
        }
    }
}

/// The type in JSON Schema of a column's values.
pub fn json_type(data_type: &DataType) -> (&'static str, Option<&'static str>) {
    match data_type {
        DataType::Boolean => ("boolean", None),
        data_type if data_type.is_integer() => ("integer", None),
        DataType::Float16 | DataType::Float32 | DataType::Float64 => ("number", None),
        DataType::Timestamp(..) => ("string", Some("date-time")),
        DataType::Date32 => ("string", Some("date")),
        DataType::List(_) => ("array", None),
        _ => ("string", None),
    }
}
