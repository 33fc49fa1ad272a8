//! Rows to Cassandra, in unlogged batches.

use std::{fs, path::Path};

use anyhow::{Context, Result};
use millstream_api::worker::{ProcessConfig, credentials};
use scylla::{
    client::{
        execution_profile::ExecutionProfile, session::Session, session_builder::SessionBuilder,
    },
    serialize::row::SerializeRow,
    statement::{
        Consistency,
        batch::{Batch, BatchType},
        prepared::PreparedStatement,
    },
};

/// Rows of a batch; 200 of them are too large for Cassandra's default limits.
pub const BATCH: usize = 32;
/// Batches that wait for Cassandra's answer; more gain nothing.
pub const IN_FLIGHT: usize = 32;

pub struct Writer {
    session: Session,
    insert: PreparedStatement,
    full_batch: Batch,
}

impl Writer {
    /// A writer of rows with these columns, each with a timestamp `written`.
    pub async fn connect(
        config: &ProcessConfig,
        credentials: &Path,
        columns: &[&str],
    ) -> Result<Self> {
        let secret = |name: &str| fs::read_to_string(credentials.join(name));
        let profile = ExecutionProfile::builder().consistency(Consistency::LocalQuorum);
        let cassandra = config.cassandra.as_ref().context("no Cassandra")?;
        let session = SessionBuilder::new()
            .known_nodes(&cassandra.contact_points)
            .user(
                secret(credentials::CASSANDRA_USERNAME)?,
                secret(credentials::CASSANDRA_PASSWORD)?,
            )
            .default_execution_profile_handle(profile.build().into_handle())
            .build()
            .await?;
        let to = config.sinks[0].cassandra().context("no table")?;
        let insert = session
            .prepare(format!(
                "INSERT INTO {}.{} ({}) VALUES (:{}) USING TIMESTAMP :written",
                to.keyspace,
                to.table.name,
                columns.join(", "),
                columns.join(", :"),
            ))
            .await?;
        Ok(Self {
            full_batch: batch(&insert, BATCH),
            session,
            insert,
        })
    }

    /// Writes at most [`BATCH`] rows, and returns once Cassandra has acknowledged them.
    pub async fn write<Row: SerializeRow>(&self, rows: Vec<Row>) -> Result<()> {
        if rows.len() == BATCH {
            self.session.batch(&self.full_batch, rows).await?;
        } else {
            let batch = batch(&self.insert, rows.len());
            self.session.batch(&batch, rows).await?;
        }
        Ok(())
    }
}

fn batch(insert: &PreparedStatement, rows: usize) -> Batch {
    Batch::new_with_statements(BatchType::Unlogged, vec![insert.clone().into(); rows])
}
