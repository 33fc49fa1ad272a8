//! What Prometheus reads under `/metrics`.

use std::time::Duration;

use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{
        counter::Counter,
        family::{Family, MetricConstructor},
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::{Registry, Unit},
};

/// `ingest`, or the name of a sink.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Stage {
    /// The value.
    pub stage: String,
}

/// A sink and a topic partition.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct SinkPartition {
    /// Name of the sink.
    pub stage: String,
    /// The topic partition.
    pub partition: i32,
}

/// A sink and one of its expectations.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct SinkExpectation {
    stage: String,
    expectation: String,
}

/// What a sink writes to Cassandra: rows, states, deletions.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct SinkWrites {
    stage: String,
    kind: String,
}

/// A lookup.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct LookupLabel {
    lookup: String,
}

/// A request to the REST service.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Request {
    endpoint: String,
    status: u16,
}

/// An endpoint of the REST service.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct EndpointLabel {
    endpoint: String,
}

/// A request that isn't answered yet.
pub struct InFlight(Gauge);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.dec();
    }
}

#[derive(Clone)]
struct BatchSeconds;

impl MetricConstructor<Histogram> for BatchSeconds {
    fn new_metric(&self) -> Histogram {
        Histogram::new(exponential_buckets(0.001, 2.0, 16))
    }
}

/// All metrics of a worker.
pub struct Metrics {
    registry: Registry,
    records: Family<Stage, Counter>,
    rows: Family<Stage, Counter>,
    dead_letters: Family<Stage, Counter>,
    write_retries: Family<Stage, Counter>,
    cache_hits: Family<Stage, Counter>,
    cache_misses: Family<Stage, Counter>,
    state_reads: Family<Stage, Counter>,
    batch_seconds: Family<Stage, Histogram, BatchSeconds>,
    lag: Family<SinkPartition, Gauge>,
    failed: Family<SinkExpectation, Counter>,
    write_limits: WriteLimits,
    lookup_rows: Family<LookupLabel, Gauge>,
    lookup_read: Family<LookupLabel, Gauge>,
    requests: Family<Request, Counter>,
    requests_in_flight: Gauge,
    request_seconds: Family<EndpointLabel, Histogram, BatchSeconds>,
}

/// The metrics of `ingest` or of a sink.
#[derive(Clone)]
pub struct StageMetrics {
    /// Records that were read.
    pub records: Counter,
    /// Rows that were written.
    pub rows: Counter,
    /// Records that went to the dead-letter topic.
    pub dead_letters: Counter,
    /// Writes that had to be repeated.
    pub write_retries: Counter,
    /// Fetches of a source that were answered by its cache.
    pub cache_hits: Counter,
    /// Fetches of a source that its cache couldn't answer.
    pub cache_misses: Counter,
    /// States of groups that weren't at hand.
    pub state_reads: Counter,
    /// Seconds from the dispatch of a batch to its acknowledgement.
    pub batch_seconds: Histogram,
    stage: String,
    failed: Family<SinkExpectation, Counter>,
    write_limits: WriteLimits,
}

#[derive(Clone, Default)]
struct WriteLimits {
    concurrency: Family<SinkWrites, Gauge>,
    batch_bytes: Family<SinkWrites, Gauge>,
}

/// How much a sink sends to Cassandra at once.
pub struct WriteMetrics {
    concurrency: Gauge,
    batch_bytes: Gauge,
}

impl WriteMetrics {
    /// Sets how many requests may be in flight, and how large a batch may be.
    pub fn set(&self, concurrency: usize, batch_bytes: usize) {
        let value = |value| i64::try_from(value).unwrap_or(i64::MAX);
        self.concurrency.set(value(concurrency));
        self.batch_bytes.set(value(batch_bytes));
    }
}

impl StageMetrics {
    /// Rows that failed an expectation.
    pub fn failed(&self, expectation: &str) -> Counter {
        self.failed.get_or_create_owned(&SinkExpectation {
            stage: self.stage.clone(),
            expectation: expectation.to_owned(),
        })
    }

    /// The limits of writes to Cassandra; the kind is what is written.
    pub fn writes(&self, kind: &str) -> WriteMetrics {
        let label = SinkWrites {
            stage: self.stage.clone(),
            kind: kind.to_owned(),
        };
        WriteMetrics {
            concurrency: self.write_limits.concurrency.get_or_create_owned(&label),
            batch_bytes: self.write_limits.batch_bytes.get_or_create_owned(&label),
        }
    }
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("millstream_worker");
        let records = Family::default();
        let rows = Family::default();
        let dead_letters = Family::default();
        let write_retries = Family::default();
        let cache_hits = Family::default();
        let cache_misses = Family::default();
        let state_reads = Family::default();
        let batch_seconds = Family::new_with_constructor(BatchSeconds);
        let lag = Family::default();
        let failed = Family::default();
        let write_limits = WriteLimits::default();
        let lookup_rows = Family::default();
        let lookup_read = Family::default();
        let requests = Family::default();
        let requests_in_flight = Gauge::default();
        let request_seconds = Family::new_with_constructor(BatchSeconds);
        registry.register("records", "Records that were read", records.clone());
        registry.register("rows", "Rows that were written", rows.clone());
        registry.register(
            "dead_letters",
            "Records that went to the dead-letter topic",
            dead_letters.clone(),
        );
        registry.register(
            "write_retries",
            "Writes that had to be repeated",
            write_retries.clone(),
        );
        registry.register(
            "cache_hits",
            "Fetches of a source that were answered by its cache",
            cache_hits.clone(),
        );
        registry.register(
            "cache_misses",
            "Fetches of a source that its cache couldn't answer",
            cache_misses.clone(),
        );
        registry.register(
            "state_reads",
            "States of groups that weren't at hand and had to be read",
            state_reads.clone(),
        );
        registry.register_with_unit(
            "batch",
            "From the dispatch of a batch to its acknowledgement",
            Unit::Seconds,
            batch_seconds.clone(),
        );
        registry.register(
            "lag",
            "Records in the topic partition that are not written yet",
            lag.clone(),
        );
        registry.register(
            "expectation_failures",
            "Rows that failed an expectation",
            failed.clone(),
        );
        registry.register(
            "write_concurrency",
            "Requests that may be in flight to Cassandra at once",
            write_limits.concurrency.clone(),
        );
        registry.register_with_unit(
            "write_batch",
            "What a batch to Cassandra may have",
            Unit::Bytes,
            write_limits.batch_bytes.clone(),
        );
        registry.register(
            "lookup_rows",
            "Rows of a lookup in memory",
            lookup_rows.clone(),
        );
        registry.register_with_unit(
            "lookup_read",
            "When a lookup was read last, since 1970",
            Unit::Seconds,
            lookup_read.clone(),
        );
        registry.register("requests", "Requests to the REST service", requests.clone());
        registry.register(
            "requests_in_flight",
            "Requests to the REST service that aren't answered yet",
            requests_in_flight.clone(),
        );
        registry.register_with_unit(
            "request",
            "From a request's head to its answer",
            Unit::Seconds,
            request_seconds.clone(),
        );
        Metrics {
            registry,
            records,
            rows,
            dead_letters,
            write_retries,
            cache_hits,
            cache_misses,
            state_reads,
            batch_seconds,
            lag,
            failed,
            write_limits,
            lookup_rows,
            lookup_read,
            requests,
            requests_in_flight,
            request_seconds,
        }
    }
}

impl Metrics {
    /// A request to the REST service has come; it is in flight until this is dropped.
    pub fn request_begins(&self) -> InFlight {
        self.requests_in_flight.inc();
        InFlight(self.requests_in_flight.clone())
    }

    /// Counts a request to the REST service.
    pub fn request(&self, endpoint: &str, status: u16, took: Duration) {
        let endpoint = endpoint.to_owned();
        let label = EndpointLabel {
            endpoint: endpoint.clone(),
        };
        self.request_seconds
            .get_or_create(&label)
            .observe(took.as_secs_f64());
        self.requests
            .get_or_create(&Request { endpoint, status })
            .inc();
    }

    /// The metrics of `ingest` or of a sink.
    pub fn stage(&self, name: &str) -> StageMetrics {
        let stage = Stage { stage: name.into() };
        StageMetrics {
            records: self.records.get_or_create_owned(&stage),
            rows: self.rows.get_or_create_owned(&stage),
            dead_letters: self.dead_letters.get_or_create_owned(&stage),
            write_retries: self.write_retries.get_or_create_owned(&stage),
            cache_hits: self.cache_hits.get_or_create_owned(&stage),
            cache_misses: self.cache_misses.get_or_create_owned(&stage),
            state_reads: self.state_reads.get_or_create_owned(&stage),
            batch_seconds: self.batch_seconds.get_or_create_owned(&stage),
            stage: stage.stage,
            failed: self.failed.clone(),
            write_limits: self.write_limits.clone(),
        }
    }

    /// A lookup was read, at this time in seconds since 1970.
    pub fn set_lookup(&self, name: &str, rows: usize, at: i64) {
        let lookup = name.to_owned();
        let label = LookupLabel { lookup };
        let rows = i64::try_from(rows).unwrap_or(i64::MAX);
        self.lookup_rows.get_or_create(&label).set(rows);
        self.lookup_read.get_or_create(&label).set(at);
    }

    /// Sets the lag of a sink in a topic partition.
    pub fn set_lag(&self, sink: &str, partition: i32, lag: i64) {
        let stage = sink.to_owned();
        self.lag
            .get_or_create(&SinkPartition { stage, partition })
            .set(lag);
    }

    /// The topic partition belongs to another worker now.
    pub fn forget_lag(&self, sink: &str, partition: i32) {
        let stage = sink.to_owned();
        self.lag.remove(&SinkPartition { stage, partition });
    }

    /// All metrics in the text format.
    pub fn text(&self) -> String {
        let mut text = String::new();
        // Writing to a String can't fail.
        let _ = encode(&mut text, &self.registry);
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_have_the_names_that_dashboards_use() {
        let metrics = Metrics::default();
        let users = metrics.stage("users");
        users.rows.inc_by(3);
        users.batch_seconds.observe(0.01);
        metrics.set_lag("users", 2, 7);
        let text = metrics.text();
        for line in [
            r#"millstream_worker_rows_total{stage="users"} 3"#,
            r#"millstream_worker_lag{stage="users",partition="2"} 7"#,
            r#"millstream_worker_batch_seconds_count{stage="users"} 1"#,
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
        metrics.forget_lag("users", 2);
        assert!(!metrics.text().contains(r#"partition="2""#));
    }
}
