//! The SQL query of an endpoint: planned over its Delta Lake tables, bound and run for each request.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use datafusion::{arrow::datatypes::SchemaRef, catalog::TableProvider};
use millstream_api::serve::Endpoint;
use millstream_plan::serve::{SqlQuery, Value, check_plot, numbers};

use super::{
    engine::{self, Engine, Turn},
    lake::{self, Lake, Unreadable},
    problem::Problem,
    value::Table,
};

/// What it is called in answers.
const QUERY: &str = "the query";

/// An endpoint's query.
pub struct LakeQuery {
    endpoint: Endpoint,
    sql: String,
    /// The sinks whose tables it reads.
    tables: Vec<String>,
    planned: Mutex<Option<Arc<Planned>>>,
}

/// The query over tables with these columns.
struct Planned {
    tables: Vec<SchemaRef>,
    query: SqlQuery,
}

impl LakeQuery {
    pub fn new(endpoint: &Endpoint, tables: Vec<String>) -> Self {
        LakeQuery {
            endpoint: endpoint.clone(),
            sql: endpoint.sql.clone().unwrap_or_default(),
            tables,
            planned: Mutex::new(None),
        }
    }

    /// The columns of its answers, once its tables were seen.
    pub fn columns(&self) -> Option<SchemaRef> {
        let planned = self.planned()?;
        Some(planned.query.columns().clone())
    }

    /// Whether its tables were as it needs them when they were looked at last.
    pub fn is_ready(&self, lake: &Lake) -> bool {
        self.planned().is_some() && self.tables.iter().all(|name| lake.is_readable(name))
    }

    fn planned(&self) -> Option<Arc<Planned>> {
        let planned = self.planned.lock().unwrap_or_else(PoisonError::into_inner);
        planned.clone()
    }

    /// Looks at the tables, and plans the query where they have other columns than before.
    pub async fn prepare(&self, lake: &Lake) -> Result<(), Unreadable> {
        self.look(lake).await.map(drop)
    }

    async fn look(
        &self,
        lake: &Lake,
    ) -> Result<(Arc<Planned>, Vec<Arc<dyn TableProvider>>), Unreadable> {
        let mut tables = Vec::with_capacity(self.tables.len());
        for name in &self.tables {
            tables.push(lake.look(name).await?);
        }
        let columns: Vec<_> = tables
            .iter()
            .map(|table| lake::columns(table.as_ref()))
            .collect();
        if let Some(planned) = self.planned().filter(|planned| planned.tables == columns) {
            return Ok((planned, tables));
        }
        let planned = self.plan(columns).map(Arc::new);
        // The plan before doesn't fit, either: without one, health and status tell of it.
        *self.planned.lock().unwrap_or_else(PoisonError::into_inner) =
            planned.as_ref().ok().cloned();
        Ok((planned.map_err(Unreadable::Unfit)?, tables))
    }

    fn plan(&self, tables: Vec<SchemaRef>) -> Result<Planned, String> {
        let names = self.tables.iter().map(String::as_str);
        let named: Vec<_> = names.zip(tables.iter().cloned()).collect();
        let query = SqlQuery::plan(&self.sql, &named, &self.endpoint.parameters)?;
        check_plot(&self.endpoint, &numbers(query.columns()))
            .map_err(|problem| problem.to_string())?;
        Ok(Planned { tables, query })
    }

    /// The rows of a request: so many at most, or all of them.
    pub async fn rows(
        self: &Arc<Self>,
        lake: &Arc<Lake>,
        engine: &Engine,
        values: Vec<(String, Value)>,
        limit: Option<usize>,
        patience: Duration,
    ) -> Result<Table, Problem> {
        let (planned, tables) = self.look(lake).await?;
        let (query, lake) = (self.clone(), lake.clone());
        let run = move |turn: Turn| async move {
            let names = query.tables.iter().map(String::as_str);
            let tables: Vec<_> = names.zip(tables).collect();
            let given = engine::is_given(&values);
            let plan = planned.query.bind(&tables, values);
            let plan = plan.map_err(|error| Problem::internal("the query failed", error))?;
            let (columns, max_rows) = (planned.query.columns(), query.endpoint.max_rows as usize);
            let rows = engine::rows(turn, QUERY, plan, columns, limit, max_rows, given).await;
            if rows.as_ref().is_err_and(|failure| failure.is_unread) {
                lake.forget(&query.tables).await;
            }
            Ok(rows?)
        };
        engine.run(QUERY, patience, run).await
    }
}
