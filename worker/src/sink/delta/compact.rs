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
use tokio::time::{Instant, timeout};

use super::{
    guard::Guarded,
    table::{Failure, session},
};

/// How many middling files a large one has.
const STEP: u64 = 16;
/// Longest time for a compaction, and for a removal: the rows that come meanwhile wait. What is
/// committed by then stays, and the rest is for the next time.
const LONGEST: Duration = Duration::from_secs(60);
/// A compaction of many files is committed in parts.
const COMMIT_INTERVAL: Duration = Duration::from_secs(5);
/// Of a file that is written: so much is in memory.
const ROW_GROUP_BYTES: usize = 32 * 1024 * 1024;
/// Between two looks for files that nobody needs, which read what the log has of them.
const VACUUM_INTERVAL: Duration = Duration::from_secs(3600);

pub struct Compactor {
    config: Compaction,
    vacuumed: Option<Instant>,
    /// How often in a row nothing came of it.
    failures: u32,
    /// The version before which it isn't tried again.
    rest: Version,
}

impl Compactor {
    pub fn new(config: &Compaction) -> Self {
        Compactor {
            config: config.clone(),
            vacuumed: None,
            failures: 0,
            rest: 0,
        }
    }

    /// Compacts a table after a commit, where it is time to. A failure costs nothing but room; it is
    /// told where it isn't that somebody else was first.
    pub async fn run(&mut self, table: &mut DeltaTable, before: Option<Version>) -> Option<String> {
        let version = self.turn(before, table.version())?;
        match self.tidy(table, version).await {
            Err(Failure::Error(error)) => Some(format!(
                "the small files of the Delta Lake table can't be put together: {error:#}"
            )),
            _ => None,
        }
    }

    /// The version at which to look, if it is this commit's turn. Of several workers it is only one's:
    /// the one whose commit has the number.
    fn turn(&self, before: Option<Version>, now: Option<Version>) -> Option<Version> {
        let (before, now) = (before?, now?);
        let is_turn = before / self.every() < now / self.every();
        (self.config.enabled && is_turn && now >= self.rest).then_some(now)
    }

    /// Commits from one turn to the next.
    fn every(&self) -> Version {
        Version::from((self.config.min_files / 4).max(1))
    }

    async fn tidy(&mut self, table: &mut DeltaTable, version: Version) -> Result<(), Failure> {
        if let Some(size) = self.worthwhile(table)? {
            self.compact(table, version, size).await?;
        }
        let ago = self.vacuumed.map(|vacuumed| vacuumed.elapsed());
        if ago.is_none_or(|ago| ago > VACUUM_INTERVAL) {
            self.vacuumed = Some(Instant::now());
            // Only what the log says was removed, and as long ago as the table says.
            if let Ok(done) = timeout(LONGEST, table.clone().vacuum()).await {
                table.state = done?.0.state;
            }
        }
        Ok(())
    }

    /// The size that files should get, if some folder has enough files that are less than half of it.
    fn worthwhile(&self, table: &DeltaTable) -> Result<Option<NonZeroU64>, DeltaTableError> {
        let sizes = [
            self.config.target_file_size / STEP,
            self.config.target_file_size,
        ];
        let mut folders = HashMap::<String, [u32; 2]>::new();
        for file in table.snapshot()?.log_data().iter() {
            // Rows are deleted in it by a list beside it: left to whoever writes such.
            if file.deletion_vector_descriptor().is_some() {
                return Ok(None);
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
        let size = (0..sizes.len()).find(enough);
        Ok(size.and_then(|size| NonZeroU64::new(sizes[size])))
    }

    async fn compact(
        &mut self,
        table: &mut DeltaTable,
        version: Version,
        size: NonZeroU64,
    ) -> Result<(), Failure> {
        let log = Arc::new(Guarded::new(table.log_store(), version));
        let done = timeout(LONGEST, optimize(table, log.clone(), size)).await;
        if log.version() > version {
            (self.failures, self.rest) = (0, 0);
        } else {
            // Others may be too fast for it: less and less is spent on trying.
            self.failures = (self.failures + 1).min(8);
            self.rest = version + (self.every() << self.failures);
        }
        if let Ok(after) = done {
            table.state = after?.state;
        }
        Ok(())
    }
}

/// Puts small files together, from the version that a table is seen at; commits to this log.
pub async fn optimize(
    table: &DeltaTable,
    log: Arc<Guarded>,
    size: NonZeroU64,
) -> Result<DeltaTable, Failure> {
    let mut guarded = DeltaTable::new(log);
    guarded.state = table.state.clone();
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
