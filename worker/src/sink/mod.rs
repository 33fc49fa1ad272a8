//! Where rows go.
//!
//! A new sink is a folder here, an implementation of [`Sink`], a variant of
//! `millstream_api::worker::Destination`, and a line in [`open`].

pub mod cassandra;
mod column;
pub mod delta;
pub mod document;

use std::time::Duration;

use anyhow::Context;
use futures::future::BoxFuture;
use millstream_api::worker::{Destination, SinkConfig};
use millstream_plan::SinkPlan;

use self::{cassandra::CassandraSink, delta::DeltaSink, document::DocumentSink};
use crate::{
    batch::{Batch, Rejected},
    cassandra::Connecting,
    config::Credentials,
    metrics::StageMetrics,
    status::StatusPart,
    transform::Rows,
};

/// Why a sink isn't opened that has rows or states in Cassandra.
pub const NO_CASSANDRA: &str = "the sink needs Cassandra, and the configuration has none";

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

/// What a sink is opened with.
pub struct Opening<'a> {
    pub config: &'a SinkConfig,
    pub plan: &'a SinkPlan,
    /// Where the configuration has Cassandra.
    pub session: Option<Connecting>,
    /// The topic's: a row's write timestamp is this plus its record's offset.
    pub timestamp_base: i64,
    /// Who reads the topic, and which topic it is: offsets are known by it.
    pub reader: String,
    pub credentials: &'a Credentials,
    pub status: &'a StatusPart,
    pub metrics: &'a StageMetrics,
}

/// Opens a sink; tries until what it writes to is there, or leaves that to the first write.
pub async fn open(opening: Opening<'_>) -> anyhow::Result<Box<dyn Sink>> {
    let Opening { config, plan, .. } = opening;
    let sink: Box<dyn Sink> = match &config.destination {
        Destination::Cassandra(table) => {
            let sink = CassandraSink::open(
                opening.session.context(NO_CASSANDRA)?.await,
                table,
                config.ttl_seconds(),
                plan,
                opening.timestamp_base,
                opening.status.clone(),
                opening.metrics.clone(),
            );
            Box::new(sink.await?)
        }
        Destination::Delta(table) => {
            let sink = DeltaSink::open(
                &config.name,
                table,
                plan,
                opening.timestamp_base,
                opening.reader,
                opening.credentials,
                opening.status.clone(),
            );
            Box::new(sink.await?)
        }
        Destination::Document(collection) => {
            let sink = DocumentSink::open(
                &config.name,
                collection,
                plan,
                opening.timestamp_base,
                opening.credentials,
                opening.status.clone(),
                opening.metrics.clone(),
            );
            Box::new(sink.await?)
        }
    };
    Ok(sink)
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
