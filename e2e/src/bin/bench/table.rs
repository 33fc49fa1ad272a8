//! Cassandra as the benchmark needs it: a table of its own for each run, looked at while it fills
//! and compared with the data when it is full.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use futures::{StreamExt, TryStreamExt, stream};
use millstream_e2e::Environment;
use scylla::{
    client::{
        execution_profile::ExecutionProfile, session::Session, session_builder::SessionBuilder,
    },
    statement::prepared::PreparedStatement,
    value::CqlValue,
};

use crate::{
    job::{Mark, TableJob},
    verify::{Check, Expected, Row},
};

/// Parts of the token ring that are read one by one, a few at the same time.
const RANGES: i128 = 64;
/// What was in flight with the last records has this long to arrive.
const STRAGGLERS: Duration = Duration::from_secs(15);

pub struct Cassandra {
    session: Arc<Session>,
    /// Of this run alone.
    pub keyspace: String,
}

impl Cassandra {
    /// Connects, and makes the keyspace.
    pub async fn connect(environment: &Environment, keyspace: String) -> Result<Self> {
        let address = &environment.addresses.cassandra;
        let profile = ExecutionProfile::builder().request_timeout(Some(Duration::from_secs(60)));
        let session = SessionBuilder::new()
            .known_node(address)
            .user(&environment.cassandra_user, &environment.cassandra_password)
            .default_execution_profile_handle(profile.build().into_handle())
            .build()
            .await
            .with_context(|| format!("connecting to Cassandra at {address}"))?;
        let this = Self {
            session: Arc::new(session),
            keyspace,
        };
        this.ddl(&format!(
            "CREATE KEYSPACE {} WITH replication = \
             {{'class': 'SimpleStrategy', 'replication_factor': 1}}",
            this.keyspace
        ))
        .await?;
        Ok(this)
    }

    /// Makes a table for the rows of a job, as the operator would.
    pub async fn create_table(&self, job: &dyn TableJob, name: &str) -> Result<Table> {
        let table = format!("{}.{name}", self.keyspace);
        let columns = job.columns();
        let (key, key_type) = &columns[0];
        let typed: Vec<_> = columns
            .iter()
            .map(|(name, cql_type)| format!("{name} {cql_type}"))
            .collect();
        let typed = typed.join(", ");
        self.ddl(&format!(
            "CREATE TABLE {table} ({typed}, PRIMARY KEY ({key}))"
        ))
        .await?;
        if job.has_groups() {
            self.ddl(&format!(
                "CREATE TABLE {table}__state ({key} {key_type} PRIMARY KEY, state__ blob)"
            ))
            .await?;
        }
        let names: Vec<_> = columns.iter().map(|(name, _)| *name).collect();
        let prepare = async |what: String| self.session.prepare(format!("SELECT {what}")).await;
        Ok(Table {
            any: prepare(format!("{key} FROM {table} LIMIT 1")).await?,
            one: prepare(format!("{key}, {} FROM {table} WHERE {key} = ?", names[1])).await?,
            range: prepare(format!(
                "{} FROM {table} WHERE token({key}) >= ? AND token({key}) <= ?",
                names.join(", ")
            ))
            .await?,
            session: Arc::clone(&self.session),
        })
    }

    /// Removes the keyspace.
    pub async fn clean_up(&self) -> Result<()> {
        self.ddl(&format!("DROP KEYSPACE {}", self.keyspace)).await
    }

    async fn ddl(&self, statement: &str) -> Result<()> {
        self.session
            .query_unpaged(statement, ())
            .await
            .with_context(|| statement.to_owned())?;
        self.session.await_schema_agreement().await?;
        Ok(())
    }
}

/// A table of a job's rows.
pub struct Table {
    session: Arc<Session>,
    any: PreparedStatement,
    one: PreparedStatement,
    range: PreparedStatement,
}

impl Table {
    pub async fn has_rows(&self) -> Result<bool> {
        let answer = self.session.execute_unpaged(&self.any, ()).await?;
        Ok(answer.into_rows_result()?.rows_num() > 0)
    }

    /// Whether a record has arrived.
    pub async fn shows(&self, mark: &Mark) -> Result<bool> {
        let answer = self
            .session
            .execute_unpaged(&self.one, (&mark.key,))
            .await?;
        let rows = answer.into_rows_result()?;
        let Some((_, second)) = rows.maybe_first_row::<(CqlValue, Option<CqlValue>)>()? else {
            return Ok(false);
        };
        Ok(mark.at_least.is_none_or(|wanted| {
            second
                .and_then(|cell| cell.as_bigint())
                .is_some_and(|cell| cell >= wanted)
        }))
    }

    /// What is wrong with the table, cell for cell, when nothing is on its way any more; nothing
    /// where it is exact.
    pub async fn differs(&self, expected: &dyn Expected) -> Result<Option<String>> {
        let started = Instant::now();
        loop {
            let verdict = self.compare(expected).await?;
            if verdict.is_none() || started.elapsed() > STRAGGLERS {
                return Ok(verdict);
            }
        }
    }

    async fn compare(&self, expected: &dyn Expected) -> Result<Option<String>> {
        let mut check = Check::new(expected);
        let mut ranges = stream::iter(0..RANGES)
            .map(|range| self.rows(range))
            .buffer_unordered(2);
        while let Some(rows) = ranges.try_next().await? {
            for row in rows {
                check.see(row);
            }
        }
        Ok(check.verdict())
    }

    async fn rows(&self, range: i128) -> Result<Vec<Row>> {
        let bound = |range| (i128::from(i64::MIN) + (range << 64) / RANGES) as i64;
        let last = match range + 1 {
            RANGES => i64::MAX,
            next => bound(next) - 1,
        };
        let rows = self
            .session
            .execute_iter(self.range.clone(), (bound(range), last))
            .await?;
        let rows = rows.rows_stream::<scylla::value::Row>()?;
        Ok(rows
            .map_ok(|row| row.columns.into_iter().map(text).collect::<Row>())
            .try_collect()
            .await?)
    }
}

fn text(cell: Option<CqlValue>) -> String {
    match cell {
        None => "NULL".into(),
        Some(CqlValue::Text(text)) => text,
        Some(CqlValue::Uuid(id)) => id.to_string(),
        Some(CqlValue::BigInt(number)) => number.to_string(),
        Some(other) => format!("{other:?}"),
    }
}
