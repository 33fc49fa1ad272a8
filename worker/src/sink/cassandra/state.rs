//! The table beside a sink's table, with the states of its groups.

use std::sync::Arc;

use anyhow::Context;
use datafusion::arrow::array::RecordBatch;
use millstream_api::{
    cql::{CqlType, quoted},
    keyspace::TableSpec,
    sink::ConsistencyLevel,
    worker::CassandraTable,
};
use millstream_plan::{STATE_COLUMN, SinkPlan};
use scylla::{client::session::Session, statement::prepared::PreparedStatement};

use crate::{
    cassandra::CASSANDRA,
    metrics::StageMetrics,
    retry::Delays,
    sink::{
        cassandra::{
            bind::{BoundRows, Cells, KeySize, null_key},
            encode::cell,
            insert_statement, meaning, prepare,
            write::Writer,
        },
        column::Column,
    },
    state::State,
    status::StatusPart,
};

/// Makes the bytes by which a group is known: the cells of its row's primary key. So what is one
/// row is one group.
pub struct GroupKeys {
    columns: Vec<KeyColumn>,
    /// How many of them are the partition key.
    partition_columns: usize,
}

struct KeyColumn {
    name: String,
    cql: CqlType,
    /// Index among the group's keys.
    key: usize,
}

impl GroupKeys {
    /// For the groups of a plan and their table.
    pub fn new(plan: &SinkPlan, table: &TableSpec) -> anyhow::Result<Self> {
        let columns = table.primary_key.columns().map(|name| {
            let column = table.columns.iter().find(|column| column.name == name);
            let column = column.with_context(|| format!("no column `{name}`"))?;
            let key = plan.group_key(name);
            Ok(KeyColumn {
                name: name.to_owned(),
                cql: column.cql_type.clone(),
                key: key.with_context(|| format!("`{name}` is no key of the groups"))?,
            })
        });
        Ok(GroupKeys {
            columns: columns.collect::<anyhow::Result<_>>()?,
            partition_columns: table.primary_key.partition_key.len(),
        })
    }

    /// The cells of every row's key; the error is why a row has no key.
    pub fn encode(&self, rows: &RecordBatch) -> Vec<Result<Vec<u8>, String>> {
        if rows.num_rows() == 0 {
            return Vec::new();
        }
        let columns = self.columns.iter();
        let columns = columns.map(|column| Column::new(rows.column(column.key)));
        let columns = match columns.collect::<Result<Vec<_>, _>>() {
            Ok(columns) => columns,
            Err(reason) => return vec![Err(reason); rows.num_rows()],
        };
        let rows = 0..rows.num_rows();
        rows.map(|row| self.encode_row(&columns, row)).collect()
    }

    fn encode_row(&self, values: &[Column], row: usize) -> Result<Vec<u8>, String> {
        let mut bytes = Vec::with_capacity(24 * self.columns.len());
        let mut key = KeySize::new(self.partition_columns);
        for (column, value) in self.columns.iter().zip(values) {
            if value.is_null(row) {
                return Err(null_key(&column.name));
            }
            let before = bytes.len();
            cell(&mut bytes, |bytes| value.encode(row, &column.cql, bytes))
                .map_err(|reason| format!("column `{}`: {reason}", column.name))?;
            key.add(&column.name, bytes.len() - before - 4)?;
        }
        Ok(bytes)
    }
}

/// The states of a sink's groups, and the rows of groups that have none any more.
pub struct StateTable {
    session: Arc<Session>,
    select: PreparedStatement,
    states: Writer,
    /// Deletes rows of the sink's table, where groups may have none.
    rows: Option<Writer>,
    fingerprint: u64,
    table: String,
    status: StatusPart,
    metrics: StageMetrics,
}

impl StateTable {
    /// Prepares the statements; tries until Cassandra has the table. `owner` is whose states they
    /// are.
    pub async fn open(
        session: Arc<Session>,
        beside: &CassandraTable,
        ttl_seconds: Option<u64>,
        plan: &SinkPlan,
        owner: &str,
        status: StatusPart,
        metrics: StageMetrics,
    ) -> anyhow::Result<Self> {
        let spec = plan
            .state_table(&beside.table, owner)
            .context("the query has no groups")?;
        let keys: Vec<&str> = spec.primary_key.columns().collect();
        let condition: Vec<_> = keys
            .iter()
            .map(|key| format!("{} = ?", quoted(key)))
            .collect();
        let condition = condition.join(" AND ");
        let keyspace = quoted(&beside.keyspace);
        let table = format!("{keyspace}.{}", quoted(&spec.name));
        let select = format!(
            "SELECT {} FROM {table} WHERE {condition}",
            quoted(STATE_COLUMN)
        );
        let columns = keys.iter().copied().chain([STATE_COLUMN]);
        let insert = insert_statement(&beside.keyspace, &spec.name, columns, ttl_seconds);
        let delete = format!(
            "DELETE FROM {keyspace}.{} USING TIMESTAMP ? WHERE {condition}",
            quoted(&beside.table.name)
        );
        let (write, read) = levels(beside.consistency);
        let writer = |statement, prepared, kind| {
            Writer::new(
                session.clone(),
                statement,
                prepared,
                status.clone(),
                metrics.clone(),
                metrics.writes(kind),
            )
        };
        let states = prepare(&session, &insert, write, &status).await;
        let rows = match plan.has_having() {
            true => {
                let prepared = prepare(&session, &delete, beside.consistency, &status).await;
                Some(writer(delete, prepared, "deletions"))
            }
            false => None,
        };
        Ok(StateTable {
            select: prepare(&session, &select, read, &status).await,
            states: writer(insert, states, "states"),
            rows,
            fingerprint: plan.state_fingerprint(owner).unwrap_or_default(),
            table,
            session,
            status,
            metrics,
        })
    }

    /// Reads the state of a group, for as long as it takes; none where there is none.
    pub async fn read(&self, key: &[u8]) -> Option<State> {
        self.metrics.state_reads.inc();
        let mut delays = Delays::default();
        let mut failing = None;
        loop {
            match self.try_read(key).await {
                Ok(state) => return state,
                Err(error) => {
                    let failing = failing.get_or_insert_with(|| self.status.failing(CASSANDRA));
                    let table = &self.table;
                    failing.say(format!("can't take up a state of {table}: {error:#}"));
                    delays.wait().await;
                }
            }
        }
    }

    async fn try_read(&self, key: &[u8]) -> anyhow::Result<Option<State>> {
        let result = self.session.execute_unpaged(&self.select, Cells(key)).await;
        let result = result.map_err(|error| anyhow::anyhow!(meaning(&error)))?;
        let row = result.into_rows_result()?;
        let Some((Some(bytes),)) = row.maybe_first_row::<(Option<&[u8]>,)>()? else {
            return Ok(None);
        };
        let state = State::decode(bytes, self.fingerprint);
        let state = state.map_err(|reason| {
            anyhow::anyhow!(
                "{reason}; go back to the former SQL, or let a sink of a new name write into a new table"
            )
        })?;
        Ok(Some(state))
    }

    /// Writes states; the rows' cells are the keys' and the state.
    pub async fn write(&self, states: &BoundRows) -> anyhow::Result<()> {
        match self.states.write(states).await.into_iter().next() {
            None => Ok(()),
            Some(rejected) => anyhow::bail!("{}: {}", self.table, rejected.reason),
        }
    }

    /// Deletes rows; their cells are the timestamp and the keys'.
    pub async fn delete(&self, rows: &BoundRows) -> anyhow::Result<()> {
        let Some(writer) = &self.rows else {
            return Ok(());
        };
        match writer.write(rows).await.into_iter().next() {
            None => Ok(()),
            Some(rejected) => anyhow::bail!("{}", rejected.reason),
        }
    }
}

/// Whether what is acknowledged is read in the same datacenter only.
pub fn is_of_one_datacenter(rows: ConsistencyLevel) -> bool {
    use ConsistencyLevel::LocalQuorum;
    matches!(levels(rows), (LocalQuorum, LocalQuorum))
}

/// Consistency levels of writes and reads of states: what was acknowledged is read.
fn levels(rows: ConsistencyLevel) -> (ConsistencyLevel, ConsistencyLevel) {
    use ConsistencyLevel::*;
    match rows {
        One | LocalOne | LocalQuorum => (LocalQuorum, LocalQuorum),
        Quorum => (Quorum, Quorum),
        EachQuorum => (EachQuorum, LocalQuorum),
        // One replica may have a state that wasn't acknowledged, and the next one not.
        All => (All, LocalQuorum),
    }
}
