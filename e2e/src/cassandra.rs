//! Cassandra as it is, seen with its own driver.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::time::Duration;

use anyhow::{Context, Result};
use futures::TryStreamExt;
use scylla::client::execution_profile::ExecutionProfile;
use scylla::client::session::Session;
use scylla::client::session_builder::SessionBuilder;
use scylla::deserialize::row::DeserializeRow;
use scylla::value::Row;

use crate::Environment;

const TIMEOUT: Duration = Duration::from_secs(30);

/// A session of the superuser.
pub struct Cassandra(Session);

impl Cassandra {
    pub(crate) async fn connect(environment: &Environment) -> Result<Self> {
        let profile = ExecutionProfile::builder()
            .request_timeout(Some(TIMEOUT))
            .build();
        let session = SessionBuilder::new()
            .known_node(&environment.addresses.cassandra)
            .user(&environment.cassandra_user, &environment.cassandra_password)
            .connection_timeout(TIMEOUT)
            .default_execution_profile_handle(profile.into_handle())
            .build()
            .await
            .context("connecting to Cassandra")?;
        Ok(Cassandra(session))
    }

    /// Executes a statement without a result.
    ///
    /// # Errors
    /// What Cassandra says.
    pub async fn execute(&self, cql: &str) -> Result<()> {
        self.0
            .query_unpaged(cql, ())
            .await
            .with_context(|| cql.to_owned())?;
        Ok(())
    }

    /// All rows of a query.
    ///
    /// # Errors
    /// What Cassandra says, or when a row isn't of that shape.
    pub async fn select<Row>(&self, cql: impl AsRef<str>) -> Result<Vec<Row>>
    where
        Row: for<'frame, 'metadata> DeserializeRow<'frame, 'metadata> + 'static,
    {
        let cql = cql.as_ref();
        let pages = self
            .0
            .query_iter(cql, ())
            .await
            .with_context(|| cql.to_owned())?;
        Ok(pages.rows_stream::<Row>()?.try_collect().await?)
    }

    /// The number of rows of a table, read page by page: Cassandra ends a `count(*)` of many rows
    /// with a timeout.
    ///
    /// # Errors
    /// When there is no such table.
    pub async fn count(&self, table: impl Display) -> Result<i64> {
        let cql = format!("SELECT * FROM {table}");
        let pages = self
            .0
            .query_iter(cql.as_str(), ())
            .await
            .with_context(|| cql.clone())?;
        let rows = pages.rows_stream::<Row>()?;
        rows.try_fold(0, async |count, _| Ok(count + 1))
            .await
            .context(cql)
    }

    /// The columns of a table with their types; empty where there is no such table.
    ///
    /// # Errors
    /// What Cassandra says.
    pub async fn columns(&self, keyspace: &str, table: &str) -> Result<BTreeMap<String, String>> {
        let rows = self.select(format!(
            "SELECT column_name, type FROM system_schema.columns \
             WHERE keyspace_name = '{keyspace}' AND table_name = '{table}'"
        ));
        Ok(rows.await?.into_iter().collect())
    }

    /// The names of the tables of a keyspace.
    ///
    /// # Errors
    /// What Cassandra says.
    pub async fn tables(&self, keyspace: &str) -> Result<Vec<String>> {
        let cql = format!(
            "SELECT table_name FROM system_schema.tables WHERE keyspace_name = '{keyspace}'"
        );
        let rows = self.select::<(String,)>(&cql).await?;
        Ok(rows.into_iter().map(|(name,)| name).collect())
    }

    /// The names of all keyspaces.
    ///
    /// # Errors
    /// What Cassandra says.
    pub async fn keyspaces(&self) -> Result<Vec<String>> {
        let rows = self
            .select::<(String,)>("SELECT keyspace_name FROM system_schema.keyspaces")
            .await?;
        Ok(rows.into_iter().map(|(name,)| name).collect())
    }

    pub(crate) async fn drop_keyspaces_of(&self, suffix: &str) -> Result<()> {
        for keyspace in self.keyspaces().await? {
            if keyspace.ends_with(suffix) {
                self.execute(&format!("DROP KEYSPACE {keyspace}")).await?;
            }
        }
        Ok(())
    }
}
