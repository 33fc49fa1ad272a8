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

    /// How records are to be gathered: as is usual, where the sink has no needs of its own.
    fn pace(&self, usual: Pace) -> Pace {
        usual
    }

    /// Whether the rows of a batch of groups may come in several parts, the records of one before or
    /// after those of another.
    fn takes_parts(&self) -> bool {
        true
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

impl Pace {
    /// Whether one more batch may be on its way, beside so many of so many bytes. A batch is larger
    /// than it should be by a part of its last record: one that is larger than a batch counts for
    /// several.
    pub fn admits(&self, batches: usize, bytes: usize) -> bool {
        let all = self.in_flight * self.bytes;
        batches == 0 || batches < self.in_flight && bytes + self.bytes / 2 <= all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_records_make_fewer_batches_at_once() {
        let pace = |in_flight| Pace {
            records: 10,
            bytes: 1_000,
            linger: Duration::ZERO,
            in_flight,
        };
        // Whole batches, each with a bit of the next.
        assert!(pace(3).admits(2, 2 * 1_050));
        assert!(!pace(3).admits(3, 3));
        // Records of two and a half batches.
        assert!(pace(3).admits(1, 2_500));
        assert!(!pace(3).admits(1, 2_501));
        for in_flight in [1, 3] {
            assert!(pace(in_flight).admits(0, 0));
            assert!(!pace(in_flight).admits(1, 1_000_000));
        }
    }
}
