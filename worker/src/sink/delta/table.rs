//! A table as it was last seen, and commits to it.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use anyhow::Context;
use datafusion::{
    arrow::record_batch::RecordBatch, common::Column, logical_expr::Expr, prelude::SessionContext,
};
use deltalake::{
    DeltaTable, DeltaTableError, TableProperty,
    delta_datafusion::create_session,
    kernel::{
        Action, StructField, StructType, Transaction, Version,
        engine::arrow_conversion::TryIntoKernel,
        transaction::{CommitProperties, TransactionError},
    },
    logstore::get_actions,
    operations::write::SchemaMode,
    protocol::SaveMode,
};
use millstream_api::sink::{DeltaSink, delta::DeltaMode};
use millstream_plan::has_rounded_statistics;

use super::{
    compact::Compactor,
    place::Place,
    rows::{Shape, TableRows, VERSION},
};

/// How long a table that is merged into keeps the files that were replaced, where this sink made it:
/// each commit replaces some.
const KEEP_REPLACED: &str = "interval 1 days";
/// A table that wasn't looked at for so long is read anew: one by one the commits of others since then
/// would take longer.
const STALE: Duration = Duration::from_secs(60);

/// Why rows aren't committed.
pub enum Failure {
    /// Another commit came first; what it did is to be looked at.
    Conflict(String),
    /// Something is wrong.
    Error(anyhow::Error),
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        match error.downcast::<DeltaTableError>() {
            Ok(error) => error.into(),
            Err(error) => Failure::Error(error),
        }
    }
}

impl From<DeltaTableError> for Failure {
    fn from(error: DeltaTableError) -> Self {
        use TransactionError as Transaction;
        match error {
            DeltaTableError::VersionAlreadyExists(_)
            | DeltaTableError::Transaction {
                source: Transaction::CommitConflict(_) | Transaction::MaxCommitAttempts(_),
            } => Failure::Conflict(error.to_string()),
            other => Failure::Error(other.into()),
        }
    }
}

/// A table, and what is known of it.
pub struct Table {
    place: Place,
    sink: DeltaSink,
    shape: Shape,
    fields: Vec<StructField>,
    reader: String,
    compactor: Compactor,
    /// None after anything went wrong: then the table is read anew.
    seen: Option<Seen>,
}

/// A table at one of its versions. A commit is made from there: where another one has come since, of
/// the same topic partition, it fails.
struct Seen {
    table: DeltaTable,
    /// The last offsets that the table has, of the topic partitions that were asked for.
    applied: HashMap<i32, i64>,
    since: Instant,
}

impl Table {
    pub fn new(
        place: Place,
        sink: DeltaSink,
        shape: Shape,
        reader: String,
    ) -> anyhow::Result<Self> {
        let schema: StructType = shape.schema().as_ref().try_into_kernel()?;
        let fields = schema.fields().cloned().collect();
        let compactor = Compactor::new(&sink.compaction);
        Ok(Table {
            place,
            sink,
            shape,
            fields,
            reader,
            compactor,
            seen: None,
        })
    }

    /// Commits the rows that the table doesn't have. The answer is what isn't as it should be though
    /// they are there.
    pub async fn apply(&mut self, rows: &TableRows) -> Result<Option<String>, Failure> {
        let mut seen = match self.seen.take() {
            Some(seen) if seen.since.elapsed() < STALE => seen,
            _ => self.look().await?,
        };
        let ends = rows.ends();
        for &partition in ends.keys() {
            if !seen.applied.contains_key(&partition) {
                let app = self.app(partition);
                let state = seen.table.snapshot()?;
                let log = seen.table.log_store();
                let applied = state.transaction_version(log.as_ref(), app).await?;
                seen.applied.insert(partition, applied.unwrap_or(-1));
            }
        }
        let mut warning = None;
        let left = rows.after(&seen.applied).map_err(anyhow::Error::from)?;
        if left.num_rows() > 0 {
            let is_new = |(partition, end): &(&i32, &i64)| seen.applied.get(partition) < Some(end);
            let transactions = ends.iter().filter(is_new);
            let transactions = transactions
                .map(|(&partition, &end)| Transaction::new(self.app(partition), end))
                .collect();
            let before = seen.table.version();
            let commit = CommitProperties::default().with_application_transactions(transactions);
            seen.table = match self.sink.mode {
                DeltaMode::Append => append(seen.table, left, commit).await?,
                DeltaMode::Merge => self.merge(seen.table, left, commit).await?,
            };
            for (partition, end) in ends {
                // What comes again may end before what the table has.
                let applied = seen.applied.entry(partition).or_insert(end);
                *applied = end.max(*applied);
            }
            warning = self.compactor.run(&mut seen.table, before).await;
            self.catch_up(&mut seen, before).await?;
            seen.since = Instant::now();
        }
        self.seen = Some(seen);
        Ok(warning)
    }

    /// Takes over what others have applied since a version: the next commit is checked against what
    /// comes after the version that the table is seen at now, not against what was passed on the way.
    async fn catch_up(&self, seen: &mut Seen, before: Option<Version>) -> Result<(), Failure> {
        let (Some(before), Some(now)) = (before, seen.table.version()) else {
            return Ok(());
        };
        if now == before + 1 {
            return Ok(());
        }
        let log = seen.table.log_store();
        for version in before + 1..=now {
            let commit = log.read_commit_entry(version).await?;
            let commit = commit.with_context(|| format!("version {version} isn't in the log"))?;
            for action in get_actions(version, &commit)? {
                let Action::Txn(transaction) = action else {
                    continue;
                };
                if let Some(partition) = self.partition(&transaction.app_id) {
                    seen.applied.insert(partition, transaction.version);
                }
            }
        }
        Ok(())
    }

    /// By what the offsets of a topic partition are known in the table.
    fn app(&self, partition: i32) -> String {
        format!("{}/{partition}", self.reader)
    }

    /// The topic partition that is known by this in the table, if it is of this reader.
    fn partition(&self, app: &str) -> Option<i32> {
        let partition = app.strip_prefix(&self.reader)?.strip_prefix('/')?;
        partition.parse().ok()
    }

    /// Reads the table; makes it where it isn't there, and adds columns that it doesn't have.
    async fn look(&self) -> Result<Seen, Failure> {
        self.place.prepare().await?;
        let mut table = self.place.table()?;
        if table.verify_deltatable_existence().await? {
            table.load().await?;
        } else {
            table = self.create(&table).await?;
        }
        let missing = self.missing(&table.snapshot()?.schema())?;
        if !missing.is_empty() {
            table = table.add_columns().with_fields(missing).await?;
        }
        Ok(Seen {
            table,
            applied: HashMap::new(),
            since: Instant::now(),
        })
    }

    /// The columns that a table doesn't have; refuses those that it has otherwise.
    fn missing(&self, table: &StructType) -> anyhow::Result<Vec<StructField>> {
        let mut missing = Vec::new();
        for field in &self.fields {
            let name = field.name();
            // Delta Lake keeps the case of names, and tells none apart by it.
            let mut there = table.fields();
            match there.find(|there| there.name().eq_ignore_ascii_case(name)) {
                None => missing.push(field.clone()),
                Some(there) if there.name() != name => anyhow::bail!(
                    "column `{name}` is `{0}` in the table: write AS \"{0}\", or use a new table",
                    there.name()
                ),
                Some(there) if there.data_type() == field.data_type() => {}
                Some(there) => anyhow::bail!(
                    "column `{name}` is {} in the table and {} in the SQL's result: CAST it, or use a new column or table",
                    there.data_type(),
                    field.data_type()
                ),
            }
        }
        Ok(missing)
    }

    async fn create(&self, table: &DeltaTable) -> Result<DeltaTable, DeltaTableError> {
        let mut create = table
            .create()
            .with_columns(self.fields.iter().cloned())
            .with_partition_columns(&self.sink.partition_by)
            // Whoever is second looks at what the first one has made, and doesn't make it again.
            .with_commit_properties(CommitProperties::default().with_max_retries(0));
        if self.sink.mode == DeltaMode::Merge {
            let kept = Some(KEEP_REPLACED);
            let property = TableProperty::DeletedFileRetentionDuration;
            create = create.with_configuration_property(property, kept);
        }
        if let Some(columns) = self.exact_statistics() {
            let property = TableProperty::DataSkippingStatsColumns;
            create = create.with_configuration_property(property, Some(columns));
        }
        create.await
    }

    /// The columns by whose statistics files may be passed over, where those of others are rounded.
    fn exact_statistics(&self) -> Option<String> {
        let fields = self.shape.schema().fields().iter();
        let (rounded, exact): (Vec<_>, Vec<_>) =
            fields.partition(|field| has_rounded_statistics(field.data_type()));
        let names: Vec<_> = exact.iter().map(|field| field.name().as_str()).collect();
        (!rounded.is_empty() && !names.is_empty()).then(|| names.join(","))
    }

    async fn merge(
        &self,
        table: DeltaTable,
        rows: RecordBatch,
        commit: CommitProperties,
    ) -> Result<DeltaTable, Failure> {
        let session = session();
        let rows = session.read_batch(rows).map_err(anyhow::Error::from)?;
        let (keys, others) = self.shape.split();
        let same = keys.iter().map(|key| target(key).eq(source(key)));
        let same = same.reduce(Expr::and).context("there are no mergeKeys")?;
        // A row of somebody else has no version.
        let older = target(VERSION)
            .is_null()
            .or(target(VERSION).lt(source(VERSION)));
        let (table, _) = table
            .merge(rows, same)
            .with_source_alias("source")
            .with_target_alias("target")
            .with_session_state(std::sync::Arc::new(session.state()))
            // It is committed next to the version that it was made from, or not at all: delta-rs isn't
            // sure to see that a compaction moved the same rows, and they would be there twice.
            .with_commit_properties(commit.with_max_retries(0))
            .when_matched_update(|update| {
                let update = update.predicate(older);
                others
                    .iter()
                    .fold(update, |update, name| update.update(*name, source(name)))
            })?
            .when_not_matched_insert(|insert| {
                let all = keys.iter().chain(&others);
                all.fold(insert, |insert, name| insert.set(*name, source(name)))
            })?
            .await?;
        Ok(table)
    }
}

async fn append(
    table: DeltaTable,
    rows: RecordBatch,
    commit: CommitProperties,
) -> Result<DeltaTable, DeltaTableError> {
    table
        .write([rows])
        .with_save_mode(SaveMode::Append)
        // Columns of the table that the rows don't have are null.
        .with_schema_mode(SchemaMode::Merge)
        .with_session_state(std::sync::Arc::new(session().state()))
        .with_commit_properties(commit)
        .await
}

/// What runs the table's plans: in one piece, so that a commit makes one file and no more memory is
/// taken than for that.
pub fn session() -> SessionContext {
    let mut state = create_session().state();
    state.config_mut().options_mut().execution.target_partitions = 1;
    SessionContext::new_with_state(state)
}

fn source(column: &str) -> Expr {
    column_of("source", column)
}

fn target(column: &str) -> Expr {
    column_of("target", column)
}

/// A column by its name as it is: a text would be read as SQL, in lower case.
fn column_of(table: &str, name: &str) -> Expr {
    Expr::Column(Column::new(Some(table), name))
}
