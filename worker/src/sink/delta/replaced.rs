//! Files that were replaced long ago are removed.
//!
//! The log names a replaced file until the table's retention is over. The next checkpoint leaves it
//! out then, and checkpoints come more often than it is looked for such files: so those whose time
//! comes soon are noted at each look, and known at the next one. delta-rs' own vacuum sees only what
//! is named still, and needs two commits, for which others are too fast now and then.

use std::{collections::HashMap, time::Duration};

use deltalake::{DeltaTable, DeltaTableError, Path, table::config::TablePropertiesExt};
use futures::{StreamExt, TryStreamExt, future::ready, stream};
use object_store::Error;
use tokio::time::Instant;

/// Between two looks, which read what the log has of such files.
const INTERVAL: Duration = Duration::from_secs(3600);
/// What is to go in so many milliseconds is noted: until the look after the next one.
const SOON: i64 = 2 * 3600 * 1000;

#[derive(Default)]
pub struct Replaced {
    looked: Option<Instant>,
    /// When they were replaced, in milliseconds since 1970.
    files: HashMap<Path, i64>,
}

impl Replaced {
    /// Whether it is time for a look, which the caller takes.
    pub fn is_due(&mut self) -> bool {
        let ago = self.looked.map(|looked| looked.elapsed());
        let is_due = ago.is_none_or(|ago| ago > INTERVAL);
        if is_due {
            self.looked = Some(Instant::now());
        }
        is_due
    }

    /// Removes what the log said was replaced, and as long ago as the table says. `now` is in
    /// milliseconds since 1970.
    pub async fn remove(&mut self, table: &DeltaTable, now: i64) -> Result<(), DeltaTableError> {
        let mut latest = table.clone();
        latest.update_state().await?;
        let kept = latest.snapshot()?.table_config();
        let kept = kept.deleted_file_retention_duration().as_millis();
        let before = now.saturating_sub(i64::try_from(kept).unwrap_or(i64::MAX));
        self.note(&latest, before.saturating_add(SOON)).await?;
        let old = self.files.iter().filter(|(_, at)| **at < before);
        let old: Vec<_> = old.map(|(path, _)| Ok(path.clone())).collect();
        let store = latest.log_store().object_store(None);
        let gone = store.delete_stream(stream::iter(old).boxed());
        // Another pod may have been first.
        let counts = |result: &Result<_, Error>| !matches!(result, Err(Error::NotFound { .. }));
        gone.filter(|result| ready(counts(result)))
            .try_for_each(|_| ready(Ok(())))
            .await?;
        self.files.retain(|_, at| *at >= before);
        Ok(())
    }

    /// Notes the files that were replaced before a time, and aren't the table's again.
    async fn note(&mut self, latest: &DeltaTable, before: i64) -> Result<(), DeltaTableError> {
        let (log, state) = (latest.log_store(), latest.snapshot()?);
        let mut replaced = state.all_tombstones(log.as_ref());
        while let Some(file) = replaced.try_next().await? {
            let at = file.deletion_timestamp().unwrap_or(0);
            if at < before {
                let path = file.path();
                // As the log has it: what looks like an escape is part of the name.
                let path = Path::parse(&path).unwrap_or_else(|_| Path::from(path.as_ref()));
                self.files.insert(path, at);
            }
        }
        for file in state.log_data().iter() {
            self.files.remove(&file.object_store_path());
        }
        Ok(())
    }
}
