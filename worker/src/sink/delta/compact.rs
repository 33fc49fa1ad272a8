//! Small files become large ones, and files that were replaced long ago are removed.

use std::{num::NonZeroU64, sync::Arc, time::Duration};

use deltalake::DeltaTable;
use millstream_api::sink::delta::Compaction;
use tokio::time::Instant;

use super::{
    exclusive::Exclusive,
    table::{Failure, session},
};

/// Commits from one compaction to the next.
const COMMITS: u64 = 32;
/// Between two looks for files that nobody needs, which list the whole folder.
const VACUUM_INTERVAL: Duration = Duration::from_secs(3600);

pub struct Compactor {
    target_file_size: Option<NonZeroU64>,
    vacuumed: Option<Instant>,
    /// Whether somebody else's commit came in between the last time.
    again: bool,
}

impl Compactor {
    pub fn new(compaction: &Compaction) -> Self {
        let size = NonZeroU64::new(compaction.target_file_size);
        Compactor {
            target_file_size: size.filter(|_| compaction.enabled),
            vacuumed: None,
            again: false,
        }
    }

    /// Whether the last commit calls for it: of several workers it is whose commit has the number.
    pub fn is_due(&self, before: Option<u64>, now: Option<u64>) -> bool {
        let passed = |version: Option<u64>| version.unwrap_or(0) / COMMITS;
        self.target_file_size.is_some() && (self.again || passed(before) < passed(now))
    }

    /// Compacts a table. A failure costs nothing but room; it is told where it isn't that somebody
    /// else was first.
    pub async fn run(&mut self, table: &DeltaTable) -> Option<String> {
        let done = self.compact(table).await;
        self.again = matches!(done, Err(Failure::Conflict(_)));
        match done {
            Err(Failure::Error(error)) => Some(format!(
                "the small files of the Delta Lake table can't be put together: {error:#}"
            )),
            _ => None,
        }
    }

    pub(super) async fn compact(&mut self, table: &DeltaTable) -> Result<(), Failure> {
        let (Some(size), Some(version)) = (self.target_file_size, table.version()) else {
            return Ok(());
        };
        let log = Exclusive::new(table.log_store(), version + 1);
        let mut exclusive = DeltaTable::new(Arc::new(log));
        exclusive.load_version(version).await?;
        exclusive
            .optimize()
            .with_target_size(size)
            .with_max_concurrent_tasks(1)
            .with_session_state(Arc::new(session().state()))
            .await?;
        let ago = self.vacuumed.map(|vacuumed| vacuumed.elapsed());
        if ago.is_none_or(|ago| ago > VACUUM_INTERVAL) {
            let mut latest = table.clone();
            latest.update_state().await?;
            latest.vacuum().await?;
            self.vacuumed = Some(Instant::now());
        }
        Ok(())
    }
}
