//! Cassandra as the benchmark needs it: a table of its own for each run, looked at while it fills
//! and compared with the data when it is full.

use std::{sync::Arc, time::Duration};

use anyhow::{Context, Result};
use futures::{StreamExt, TryStreamExt, stream};
use millstream_e2e::Environment;
use scylla::{
    client::{
        execution_profile::ExecutionProfile, session::Session, session_builder::SessionBuilder,
    },
    statement::prepared::PreparedStatement,
};
use uuid::Uuid;

use crate::records::{TEXT_COLUMNS, Users};

/// Parts of the token ring that are read one by one, a few at the same time.
const RANGES: i128 = 64;

/// A row: its id, and its cells in the order of [`TEXT_COLUMNS`].
type Row = (
    Uuid,
    Cell,
    Cell,
    Cell,
    Cell,
    Cell,
    Cell,
    Cell,
    Cell,
    Cell,
    Cell,
);
type Cell = Option<String>;

pub struct Cassandra {
    session: Arc<Session>,
    /// Of this run alone.
    pub keyspace: String,
}

impl Cassandra {
    /// Connects, and makes the keyspace.
    pub async fn connect(environment: &Environment) -> Result<Self> {
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
            keyspace: format!("millstream_bench_{}", std::process::id()),
        };
        this.ddl(&format!(
            "CREATE KEYSPACE {} WITH replication = \
             {{'class': 'SimpleStrategy', 'replication_factor': 1}}",
            this.keyspace
        ))
        .await?;
        Ok(this)
    }

    /// Makes a table for users.
    pub async fn create_table(&self, name: &str) -> Result<Table> {
        let table = format!("{}.{name}", self.keyspace);
        let columns = TEXT_COLUMNS.join(" text, ");
        self.ddl(&format!(
            "CREATE TABLE {table} (id uuid PRIMARY KEY, {columns} text)"
        ))
        .await?;
        let prepare = async |what: String| self.session.prepare(format!("SELECT {what}")).await;
        let from = format!("FROM {table}");
        Ok(Table {
            any: prepare(format!("id {from} LIMIT 1")).await?,
            one: prepare(format!("id {from} WHERE id = ?")).await?,
            range: prepare(format!(
                "id, {} {from} WHERE token(id) >= ? AND token(id) <= ?",
                TEXT_COLUMNS.join(", ")
            ))
            .await?,
            session: Arc::clone(&self.session),
            name: name.into(),
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

/// A table of users.
pub struct Table {
    session: Arc<Session>,
    pub name: String,
    any: PreparedStatement,
    one: PreparedStatement,
    range: PreparedStatement,
}

impl Table {
    pub async fn has_rows(&self) -> Result<bool> {
        let answer = self.session.execute_unpaged(&self.any, ()).await?;
        Ok(answer.into_rows_result()?.rows_num() > 0)
    }

    pub async fn has(&self, id: Uuid) -> Result<bool> {
        let answer = self.session.execute_unpaged(&self.one, (id,)).await?;
        Ok(answer.into_rows_result()?.rows_num() > 0)
    }

    /// What is wrong with the table when it should hold the first `records` users and nothing
    /// else, cell for cell; nothing where it is exact.
    pub async fn differs(&self, users: Users, records: u64) -> Result<Option<String>> {
        let mut seen = vec![false; usize::try_from(records)?];
        let mut wrong = 0u64;
        let mut example = None;
        let mut ranges = stream::iter(0..RANGES)
            .map(|range| self.rows(range))
            .buffer_unordered(2);
        while let Some(rows) = ranges.try_next().await? {
            for row in rows {
                let slot = users
                    .index_of(row.0)
                    .and_then(|index| seen.get_mut(usize::try_from(index).ok()?));
                match slot {
                    Some(slot) if !*slot && agrees(&row, users) => *slot = true,
                    _ => {
                        wrong += 1;
                        example.get_or_insert(row);
                    }
                }
            }
        }
        let missing = seen.iter().filter(|seen| !**seen).count();
        let example = example.map_or(String::new(), |row| format!(", such as {row:?}"));
        Ok((wrong > 0 || missing > 0)
            .then(|| format!("{missing} rows missing, {wrong} rows wrong{example}")))
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
        Ok(rows.rows_stream::<Row>()?.try_collect().await?)
    }
}

fn agrees(row: &Row, users: Users) -> bool {
    let (id, c0, c1, c2, c3, c4, c5, c6, c7, c8, c9) = row;
    let cells = [c0, c1, c2, c3, c4, c5, c6, c7, c8, c9];
    users.index_of(*id).is_some_and(|index| {
        let expected = users.user(index).row();
        cells
            .iter()
            .zip(&expected)
            .all(|(cell, expected)| cell.as_ref() == Some(expected))
    })
}
