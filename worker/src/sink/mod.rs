//! Where rows go.
//!
//! A new sink is a folder here, an implementation of [`Sink`], and a line in `stage::consume`,
//! where sinks are opened.

pub mod cassandra;
pub mod delta;
pub mod document;

use std::time::Duration;

use futures::future::BoxFuture;

use crate::{
    batch::{Batch, Rejected},
    transform::Rows,
};

/// Takes the rows of batches. Writing a row again must change nothing, and an older record must
/// never replace a newer one, however late it is written.
pub trait Sink: Send + Sync {
    /// Writes rows, and returns when every one of them is acknowledged or rejected. A sink that
    /// is down is tried for ever; meanwhile its status says so.
    fn write<'a>(&'a self, batch: &'a Batch, rows: &'a [Rows]) -> BoxFuture<'a, Vec<Rejected>>;

    /// How records are to be gathered, where the sink has needs of its own.
    fn pace(&self) -> Option<Pace> {
        None
    }
}

/// How records are gathered into batches.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Records of a batch.
    pub records: usize,
    /// Bytes of a batch.
    pub bytes: usize,
    /// How long a batch waits for more records.
    pub linger: Duration,
    /// Batches that are being transformed or written at once.
    pub in_flight: usize,
}
