//! Small files become large ones, and files that were replaced long ago are removed.

use std::{num::NonZeroU64, sync::Arc, time::Duration};

use deltalake::{DeltaTable, DeltaTableError};
use millstream_api::sink::delta::Compaction;
use tokio::time::Instant;

use super::table::{Failure, session};

/// Commits from one compaction to the next.
const COMMITS: u64 = 32;
/// Between two looks for files that nobody needs, which list the whole folder.
const VACUUM_INTERVAL: Duration = Duration::from_secs(3600);

pub struct Compactor {
    target_file_size: Option<NonZeroU64>,
    vacuumed: Option<Instant>,
}

impl Compactor {
    pub fn new(compaction: &Compaction) -> Self {
        let size = NonZeroU64::new(compaction.target_file_size);
        Compactor {
            target_file_size: size.filter(|_| compaction.enabled),
            vacuumed: None,
        }
    }

    /// Compacts where the last commit calls for it: of several workers it is whose commit has the
    /// number. A failure costs nothing but room.
    pub async fn run(
        &mut self,
        table: DeltaTable,
        before: Option<u64>,
    ) -> (DeltaTable, Option<String>) {
        let Some(size) = self
            .target_file_size
            .filter(|_| is_due(before, table.version()))
        else {
            return (table, None);
        };
        match self.compact(table.clone(), size).await {
            Ok(table) => (table, None),
            Err(error) => {
                let warning = match Failure::from(error) {
                    // Another one changed the same files.
                    Failure::Conflict(_) => None,
                    Failure::Error(error) => Some(format!(
                        "the small files of the Delta Lake table can't be put together: {error:#}"
                    )),
                };
                (table, warning)
            }
        }
    }

    async fn compact(
        &mut self,
        table: DeltaTable,
        size: NonZeroU64,
    ) -> Result<DeltaTable, DeltaTableError> {
        let (mut table, _) = table
            .optimize()
            .with_target_size(size)
            .with_max_concurrent_tasks(1)
            .with_session_state(Arc::new(session().state()))
            .await?;
        let ago = self.vacuumed.map(|vacuumed| vacuumed.elapsed());
        if ago.is_none_or(|ago| ago > VACUUM_INTERVAL) {
            (table, _) = table.vacuum().await?;
            self.vacuumed = Some(Instant::now());
        }
        Ok(table)
    }
}

fn is_due(before: Option<u64>, now: Option<u64>) -> bool {
    let passed = |version: Option<u64>| version.unwrap_or(0) / COMMITS;
    passed(before) < passed(now)
}
