//! Small files become large ones, and files that were replaced long ago are removed.
//!
//! It is done between two commits of the sink, so the time and the memory that it takes are bounded:
//! small files become middling ones first, and those become large ones when there are enough of them.
//! So a row is written again a few times, not with every compaction.

use std::{collections::HashMap, num::NonZeroU64, sync::Arc, time::Duration};

use deltalake::{DeltaTable, DeltaTableError, kernel::Version};
use millstream_api::sink::delta::Compaction;
use parquet::{
    basic::{Compression, ZstdLevel},
    file::properties::WriterProperties,
};
use tokio::{task::JoinHandle, time::timeout};

use super::{
    guard::Guarded,
    replaced::Replaced,
    table::{Failure, session},
};

/// How many middling files a large one has.
const STEP: u64 = 16;
/// How long the rows that come meanwhile wait for a compaction, and for a removal. A compaction goes
/// on beside them then; what a removal hasn't done is for the next time.
const LONGEST: Duration = Duration::from_secs(60);
/// A compaction of many files is committed in parts.
const COMMIT_INTERVAL: Duration = Duration::from_secs(5);
/// Of a file that is written: so much is in memory.
const ROW_GROUP_BYTES: usize = 32 * 1024 * 1024;

pub struct Compactor {
    config: Compaction,
    replaced: Replaced,
    /// The compaction that was begun last. It can't be ended from outside: delta-rs writes in tasks of
    /// its own, which go on when nobody waits for them.
    running: Option<JoinHandle<Result<DeltaTable, Failure>>>,
    /// How often in a row nothing came of it.
    failures: u32,
    /// The version before which no compaction is tried again.
    rest: Version,
    /// Why the small files weren't put together when that was tried last.
    uncompacted: Option<String>,
    /// Why the replaced files weren't removed when that was tried last.
    unremoved: Option<String>,
}

impl Compactor {
    pub fn new(config: &Compaction) -> Self {
        Compactor {
            config: config.clone(),
            replaced: Replaced::default(),
            running: None,
            failures: 0,
            rest: 0,
            uncompacted: None,
            unremoved: None,
        }
    }

    /// Compacts a table after a commit, where it is time to. A failure costs nothing but room; it is
    /// told, until it is done, where it isn't that somebody else was first.
    pub async fn run(&mut self, table: &mut DeltaTable, before: Option<Version>) -> Option<String> {
        if let Some(version) = self.turn(before, table.version()) {
            let compacted = self.compact(table, version).await;
            self.note(compacted);
            // Also where compaction gives way: others replace files all the more.
            self.remove_replaced(table).await;
        }
        let problems = [&self.uncompacted, &self.unremoved].into_iter().flatten();
        problems
            .cloned()
            .reduce(|one, other| format!("{one}; {other}"))
    }

    /// Takes note of what came of a compaction; false where nothing came of it yet.
    fn note(&mut self, compacted: Result<bool, Failure>) {
        match compacted {
            Ok(true) => self.uncompacted = None,
            Ok(false) | Err(Failure::Conflict(_)) => {}
            Err(Failure::Error(error)) => {
                self.uncompacted = Some(format!(
                    "the small files of the Delta Lake table can't be put together: {error:#}"
                ));
            }
        }
    }

    /// The version at which to look, if it is this commit's turn. Of several workers it is only one's:
    /// the one whose commit has the number.
    fn turn(&self, before: Option<Version>, now: Option<Version>) -> Option<Version> {
        let (before, now) = (before?, now?);
        let is_turn = before / self.every() < now / self.every();
        (self.config.enabled && is_turn).then_some(now)
    }

    /// Commits from one turn to the next.
    fn every(&self) -> Version {
        Version::from((self.config.min_files / 4).max(1))
    }

    /// Removes the files that were replaced long ago, where it is time to.
    async fn remove_replaced(&mut self, table: &DeltaTable) {
        if !self.replaced.is_due() {
            return;
        }
        let now = chrono::Utc::now().timestamp_millis();
        let removal = self.replaced.remove(table, now);
        let removed = timeout(LONGEST, removal).await.unwrap_or(Ok(()));
        self.unremoved = removed.err().map(|error| {
            format!("replaced files of the Delta Lake table can't be removed: {error}")
        });
    }

    /// The sizes that files could get: some folder has enough files that are less than half of it.
    fn worthwhile(&self, table: &DeltaTable) -> Result<Vec<NonZeroU64>, DeltaTableError> {
        let sizes = [
            self.config.target_file_size / STEP,
            self.config.target_file_size,
        ];
        let mut folders = HashMap::<String, [u32; 2]>::new();
        for file in table.snapshot()?.log_data().iter() {
            // Rows are deleted in it by a list beside it: left to whoever writes such.
            if file.deletion_vector_descriptor().is_some() {
                return Ok(Vec::new());
            }
            let small = |size: &u64| file.size().unsigned_abs() < size / 2;
            if let Some(size) = sizes.iter().position(small) {
                let path = file.path();
                let folder = path.rsplit_once('/').map_or("", |(folder, _)| folder);
                folders.entry(folder.to_owned()).or_default()[size] += 1;
            }
        }
        let enough = |size: &usize| {
            let mut counts = folders.values().map(|counts| counts[*size]);
            counts.any(|count| count >= self.config.min_files)
        };
        let sizes = (0..sizes.len()).filter(enough).map(|size| sizes[size]);
        Ok(sizes.filter_map(NonZeroU64::new).collect())
    }

    /// Puts small files together where there are enough, and where it isn't being done still; whether that
    /// was done, or needn't be.
    async fn compact(&mut self, table: &mut DeltaTable, version: Version) -> Result<bool, Failure> {
        if let Some(run) = self.running.take_if(|run| run.is_finished()) {
            let done = run.await.map_err(anyhow::Error::from);
            self.note(done.map_err(Failure::from).flatten().map(|_| true));
        }
        if self.running.is_some() || version < self.rest {
            return Ok(false);
        }
        for size in self.worthwhile(table)? {
            let log = Arc::new(Guarded::new(table.log_store(), version));
            let run = tokio::spawn(optimize(table.clone(), log.clone(), size));
            let done = timeout(LONGEST, self.running.insert(run)).await;
            if done.is_ok() {
                self.running = None;
            }
            let is_made = log.version() > version;
            if !is_made && matches!(done, Ok(Ok(Ok(_)))) {
                // There are small files, but none beside another: the other size may take them.
                continue;
            }
            self.pause(version, is_made);
            if let Ok(done) = done {
                table.state = done.map_err(anyhow::Error::from)??.state;
            }
            break;
        }
        Ok(self.running.is_none())
    }

    /// Others may be too fast for it, or the store too slow: less and less is spent on trying.
    fn pause(&mut self, version: Version, is_made: bool) {
        if is_made {
            (self.failures, self.rest) = (0, 0);
        } else {
            self.failures = (self.failures + 1).min(8);
            self.rest = version + (self.every() << self.failures);
        }
    }
}

/// Puts small files together, from the version that a table is seen at; commits to this log.
pub async fn optimize(
    table: DeltaTable,
    log: Arc<Guarded>,
    size: NonZeroU64,
) -> Result<DeltaTable, Failure> {
    let mut guarded = DeltaTable::new(log);
    guarded.state = table.state;
    let written = WriterProperties::builder()
        .set_compression(Compression::ZSTD(ZstdLevel::default()))
        .set_max_row_group_bytes(Some(ROW_GROUP_BYTES))
        .build();
    let (after, _) = guarded
        .optimize()
        .with_target_size(size)
        .with_max_concurrent_tasks(1)
        .with_min_commit_interval(COMMIT_INTERVAL)
        .with_writer_properties(written)
        .with_session_state(Arc::new(session().state()))
        .await?;
    Ok(after)
}
