//! The CQL query of an endpoint: prepared once, bound and run for each request.

use std::{sync::Arc, time::Duration};

use anyhow::bail;
use axum::http::StatusCode;
use datafusion::{
    arrow::datatypes::{DataType, SchemaRef},
    catalog::{MemTable, TableProvider},
};
use millstream_api::serve::Endpoint;
use millstream_plan::serve::{
    NOW, ROWS, SqlQuery, Value, check_plot, fits_marker, misfit, numbers, rows_schema,
};
use scylla::{
    client::session::Session,
    cluster::metadata::ColumnType,
    errors::{DbError, ExecutionError, RequestAttemptError},
    response::PagingState,
    statement::{Consistency, prepared::PreparedStatement},
    value::{CqlValue, Row},
};

use super::{
    engine::{self, Engine, MAX_BYTES, Turn, too_large, too_many},
    parameter::to_cql,
    problem::Problem,
    room::Share,
    value::Table,
};
use crate::cassandra::value;

/// Rows that Cassandra is asked for at once.
const FETCH: usize = 1_000;
/// What a transform is called in answers.
const TRANSFORM: &str = "the transform";

/// An endpoint's query, known to Cassandra.
pub struct Query {
    prepared: PreparedStatement,
    rows: SchemaRef,
    transform: Option<SqlQuery>,
}

impl Query {
    /// Prepares the query and holds the endpoint against what Cassandra says of it.
    pub async fn prepare(
        session: &Session,
        endpoint: &Endpoint,
        statement: &str,
        patience: Duration,
    ) -> anyhow::Result<Self> {
        let mut prepared = session.prepare(statement).await?;
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
            .map(|sql| SqlQuery::plan(sql, &[(ROWS, rows.clone())], &endpoint.parameters))
            .transpose()
            .map_err(|problem| anyhow::anyhow!("transform: {problem}"))?;
        let query = Query {
            prepared,
            rows,
            transform,
        };
        check_plot(endpoint, &numbers(query.columns()))?;
        Ok(query)
    }

    /// The columns of its answers.
    pub fn columns(&self) -> &SchemaRef {
        self.transform
            .as_ref()
            .map_or(&self.rows, SqlQuery::columns)
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
        mut share: Share,
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
            let size = result.rows_bytes_size();
            bytes += size;
            if bytes > MAX_BYTES {
                return Err(too_large());
            }
            // Not those of the preparation: what `*` is changes with the table.
            let specs = result.column_specs();
            let is_nested = |of: &ColumnType| !matches!(of, ColumnType::Native(_));
            let nested = specs.iter().any(|column| is_nested(column.typ()));
            share.take(result.rows_num() * specs.len(), size, nested)?;
            let names = specs.iter();
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
                        share,
                    });
                }
            }
        }
        let next = Some(from);
        Ok(Fetched {
            columns,
            rows,
            next,
            share,
        })
    }

    /// One page of rows.
    pub async fn page(
        &self,
        session: &Session,
        share: Share,
        values: &[(String, Value)],
        from: PagingState,
        limit: usize,
    ) -> Result<(Table, Option<PagingState>), Problem> {
        let bound = self.bind(values)?;
        let fetched = self.fetch(session, share, &bound, from, limit).await?;
        let table = Table::of_rows(fetched.columns, fetched.rows, fetched.share);
        Ok((table, fetched.next))
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
        let fetched = self.fetch(session, engine.share(), &bound, from, max_rows + 1);
        let fetched = fetched.await?;
        if fetched.rows.len() > max_rows {
            return Err(too_many("the query gives", max_rows));
        }
        let query = self.clone();
        let run =
            move |turn: Turn| async move { query.transform(turn, fetched, values, max_rows).await };
        engine.run(TRANSFORM, patience, run).await
    }

    async fn transform(
        &self,
        turn: Turn,
        fetched: Fetched,
        values: Vec<(String, Value)>,
        max_rows: usize,
    ) -> Result<Table, Problem> {
        let failed =
            |error: &dyn std::fmt::Display| Problem::internal("the transform failed", error);
        let transform = self.transform.as_ref();
        let transform = transform.ok_or_else(|| failed(&"there is none"))?;
        let rows = value::batch(&self.rows, &fetched.columns, fetched.rows)
            .map_err(|error| failed(&error))?;
        // In columns they take little.
        drop(fetched.share);
        let rows = MemTable::try_new(rows.schema(), vec![vec![rows]]);
        let rows: Arc<dyn TableProvider> = Arc::new(rows.map_err(|error| failed(&error))?);
        let given = engine::is_given(&values);
        let plan = transform
            .bind(&[(ROWS, rows)], values)
            .map_err(|error| failed(&error))?;
        let columns = transform.columns();
        let rows = engine::rows(turn, TRANSFORM, plan, columns, None, max_rows, given);
        Ok(rows.await?)
    }
}

/// Rows, and the place where there are more.
struct Fetched {
    columns: Vec<String>,
    rows: Vec<Row>,
    next: Option<PagingState>,
    /// What the rows take.
    share: Share,
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
