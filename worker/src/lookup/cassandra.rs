//! A lookup that is a Cassandra table.

use std::ops::ControlFlow;

use anyhow::Context;
use millstream_api::{cql::quoted, lookup::LookupTable};
use millstream_plan::serve::rows_schema;
use scylla::{client::session::Session, response::PagingState, statement::Consistency, value::Row};

use super::rows::Rows;
use crate::cassandra::value;

/// Rows that Cassandra is asked for at once.
const FETCH: i32 = 1_000;

/// Reads the columns of the rows, of all rows of the table.
pub async fn read(session: &Session, table: &LookupTable, mut rows: Rows) -> anyhow::Result<Rows> {
    let fields = rows.schema().fields().iter();
    let names: Vec<String> = fields.map(|field| field.name().clone()).collect();
    let columns: Vec<_> = names.iter().map(|name| quoted(name)).collect();
    let statement = format!(
        "SELECT {} FROM {}.{} LIMIT {}",
        columns.join(", "),
        quoted(&table.keyspace),
        quoted(&table.table),
        rows.max_rows() + 1
    );
    let mut prepared = session
        .prepare(statement.as_str())
        .await
        .with_context(|| format!("can't prepare `{statement}`"))?;
    prepared.set_consistency(Consistency::LocalQuorum);
    prepared.set_is_idempotent(true);
    prepared.set_page_size(FETCH);
    let mut from = PagingState::start();
    loop {
        let page = session.execute_single_page(&prepared, (), from).await;
        let (result, next) =
            page.with_context(|| format!("can't read {}.{}", table.keyspace, table.table))?;
        let result = result.into_rows_result()?;
        let specs = result.column_specs();
        let columns: Vec<_> = specs
            .iter()
            .map(|column| (column.name().to_owned(), value::cql_type(column.typ())))
            .collect();
        let page = result.rows::<Row>()?.collect::<Result<Vec<_>, _>>()?;
        rows.add_cast(&value::batch(&rows_schema(&columns), &names, page)?)?;
        match next.into_paging_control_flow() {
            ControlFlow::Continue(next) => from = next,
            ControlFlow::Break(()) => return Ok(rows),
        }
    }
}
