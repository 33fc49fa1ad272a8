//! The log that a compaction commits to.
//!
//! A compaction says that the rows of some files are in other files now. That is true for as long as
//! the table has those files: once somebody has taken one away, its rows have changed (a merge) or
//! are elsewhere already (another compaction), and would come back or be there twice. delta-rs 1.1
//! lets it pass all the same, where what took the file away changed no data either.
//!
//! Here a compaction is committed only if nothing but files was added since the version that it was
//! made from. That is sure and not only likely: a version is written once, by a put that fails where
//! it is there; so whoever writes version n has read all that is before it.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use deltalake::{
    DeltaResult, ObjectStore,
    kernel::{Action, Version, transaction::TransactionError},
    logstore::{CommitOrBytes, LogStore, LogStoreConfig, LogStoreRef, get_actions},
};
use futures::{FutureExt, future::BoxFuture};
use uuid::Uuid;

/// A compaction that is older isn't committed. Whoever cleans up a folder takes new files that no
/// commit names for leftovers after days: by then a process that stood still must not name them.
const LIFETIME: Duration = Duration::from_secs(600);

pub struct Guarded {
    log: LogStoreRef,
    /// The version up to which it is known that the files are there.
    known: AtomicU64,
    /// By the wall clock, which goes on when the machine sleeps.
    began: SystemTime,
}

impl Guarded {
    /// The log of a table that is seen at a version.
    pub fn new(log: LogStoreRef, version: Version) -> Self {
        Guarded {
            log,
            known: AtomicU64::new(version),
            began: SystemTime::now(),
        }
    }

    #[cfg(test)]
    pub fn begun(mut self, began: SystemTime) -> Self {
        self.began = began;
        self
    }

    /// The version that was committed last, or that the table was seen at.
    pub fn version(&self) -> Version {
        self.known.load(Ordering::Relaxed)
    }

    async fn commit(
        &self,
        version: Version,
        commit: CommitOrBytes,
        operation: Uuid,
    ) -> Result<(), TransactionError> {
        for other in self.version() + 1..version {
            if !self.only_adds(other).await {
                return Err(TransactionError::MaxCommitAttempts(1));
            }
        }
        if !self.began.elapsed().is_ok_and(|age| age < LIFETIME) {
            return Err(TransactionError::MaxCommitAttempts(1));
        }
        self.log
            .write_commit_entry(version, commit, operation)
            .await?;
        // What comes after it in the same compaction is of other files than it took away.
        self.known.store(version, Ordering::Relaxed);
        Ok(())
    }

    /// Whether a commit leaves all there is as it is; not, where that can't be told.
    async fn only_adds(&self, version: Version) -> bool {
        let Ok(Some(commit)) = self.log.read_commit_entry(version).await else {
            return false;
        };
        let adds = |action: &Action| {
            matches!(
                action,
                Action::Add(_) | Action::Txn(_) | Action::CommitInfo(_)
            )
        };
        get_actions(version, &commit).is_ok_and(|actions| actions.iter().all(adds))
    }
}

impl LogStore for Guarded {
    fn name(&self) -> String {
        self.log.name()
    }

    fn read_commit_entry<'a, 'b>(
        &'a self,
        version: Version,
    ) -> BoxFuture<'b, DeltaResult<Option<Bytes>>>
    where
        'a: 'b,
        Self: 'b,
    {
        self.log.read_commit_entry(version)
    }

    fn write_commit_entry<'a, 'b>(
        &'a self,
        version: Version,
        commit: CommitOrBytes,
        operation: Uuid,
    ) -> BoxFuture<'b, Result<(), TransactionError>>
    where
        'a: 'b,
        Self: 'b,
    {
        self.commit(version, commit, operation).boxed()
    }

    fn abort_commit_entry<'a, 'b>(
        &'a self,
        version: Version,
        commit: CommitOrBytes,
        operation: Uuid,
    ) -> BoxFuture<'b, Result<(), TransactionError>>
    where
        'a: 'b,
        Self: 'b,
    {
        self.log.abort_commit_entry(version, commit, operation)
    }

    fn get_latest_version<'a, 'b>(&'a self, start: Version) -> BoxFuture<'b, DeltaResult<Version>>
    where
        'a: 'b,
        Self: 'b,
    {
        self.log.get_latest_version(start)
    }

    fn object_store(&self, operation: Option<Uuid>) -> Arc<dyn ObjectStore> {
        self.log.object_store(operation)
    }

    fn root_object_store(&self, operation: Option<Uuid>) -> Arc<dyn ObjectStore> {
        self.log.root_object_store(operation)
    }

    fn config(&self) -> &LogStoreConfig {
        self.log.config()
    }
}
