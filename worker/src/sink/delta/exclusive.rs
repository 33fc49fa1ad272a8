//! A log that takes one commit, of one version.
//!
//! delta-rs lets a compaction commit after another one that removed the same files, because neither
//! changes data: then the rows are there twice. Here a compaction is committed next to the version
//! that it was made from, or not at all.

use std::sync::Arc;

use bytes::Bytes;
use deltalake::{
    DeltaResult, ObjectStore,
    kernel::{Version, transaction::TransactionError},
    logstore::{CommitOrBytes, LogStore, LogStoreConfig, LogStoreRef},
};
use futures::{FutureExt, future::BoxFuture};
use uuid::Uuid;

pub struct Exclusive {
    log: LogStoreRef,
    next: Version,
}

impl Exclusive {
    pub fn new(log: LogStoreRef, next: Version) -> Self {
        Exclusive { log, next }
    }
}

impl LogStore for Exclusive {
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
        match version == self.next {
            true => self.log.write_commit_entry(version, commit, operation),
            false => async { Err(TransactionError::MaxCommitAttempts(1)) }.boxed(),
        }
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
