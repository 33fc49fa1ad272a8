//! Prometheus metrics of the operator.

use std::{
    collections::BTreeSet,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::Registry,
};

/// All metrics; cheap to share.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    reconciles: Family<Reconciles, Counter>,
    seconds: Family<KindLabel, Histogram, fn() -> Histogram>,
    writes: Family<Writes, Counter>,
    lag: Family<SinkLabels, Gauge>,
    rows: Family<SinkLabels, Gauge>,
    conditions: Family<ConditionLabels, Gauge>,
    /// Whose lag and rows are told.
    sinks: Mutex<BTreeSet<SinkLabels>>,
    /// The conditions that are told.
    told: Mutex<BTreeSet<ConditionLabels>>,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Reconciles {
    kind: String,
    result: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct KindLabel {
    kind: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Writes {
    system: &'static str,
}

/// A pipeline's sink.
#[derive(Clone, Debug, Hash, PartialEq, Eq, PartialOrd, Ord, EncodeLabelSet)]
pub struct SinkLabels {
    pub namespace: String,
    pub pipeline: String,
    pub sink: String,
}

/// A condition of a pipeline as it is now.
#[derive(Clone, Debug, Hash, PartialEq, Eq, PartialOrd, Ord, EncodeLabelSet)]
struct ConditionLabels {
    namespace: String,
    pipeline: String,
    r#type: String,
    status: String,
    reason: String,
}

/// What the operator writes to.
#[derive(Clone, Copy, Debug)]
pub enum System {
    Kafka,
    Cassandra,
    Kubernetes,
    Registry,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("millstream");
        let seconds: Family<_, _, fn() -> Histogram> =
            Family::new_with_constructor(|| Histogram::new(exponential_buckets(0.001, 4.0, 8)));
        let metrics = Metrics {
            reconciles: Family::default(),
            seconds,
            writes: Family::default(),
            lag: Family::default(),
            rows: Family::default(),
            conditions: Family::default(),
            sinks: Mutex::default(),
            told: Mutex::default(),
            registry: Registry::default(),
        };
        registry.register(
            "reconciles",
            "Reconciles by kind and result",
            metrics.reconciles.clone(),
        );
        registry.register(
            "reconcile_seconds",
            "Seconds that a reconcile took",
            metrics.seconds.clone(),
        );
        registry.register(
            "external_writes",
            "Writes to Kafka, Cassandra, schema registries and the Kubernetes API; flat while nothing changes",
            metrics.writes.clone(),
        );
        registry.register(
            "pipeline_lag",
            "Records that a sink has not committed yet",
            metrics.lag.clone(),
        );
        registry.register(
            "pipeline_rows",
            "Rows that a sink has written",
            metrics.rows.clone(),
        );
        registry.register(
            "pipeline_condition",
            "The conditions of a pipeline as they are now; always 1",
            metrics.conditions.clone(),
        );
        for system in [
            System::Kafka,
            System::Cassandra,
            System::Kubernetes,
            System::Registry,
        ] {
            // Present from the start, so that a query for them finds a zero.
            let _ = metrics.writes.get_or_create(&Writes::of(system));
        }
        Metrics {
            registry,
            ..metrics
        }
    }
}

impl Writes {
    fn of(system: System) -> Self {
        Writes {
            system: match system {
                System::Kafka => "kafka",
                System::Cassandra => "cassandra",
                System::Kubernetes => "kubernetes",
                System::Registry => "registry",
            },
        }
    }
}

impl Metrics {
    /// Counts a write to another system.
    pub fn wrote(&self, system: System) {
        self.writes.get_or_create(&Writes::of(system)).inc();
    }

    /// Counts a reconcile.
    pub fn reconciled(&self, kind: &str, result: &'static str, took: Duration) {
        let kind = kind.to_string();
        self.seconds
            .get_or_create(&KindLabel { kind: kind.clone() })
            .observe(took.as_secs_f64());
        self.reconciles
            .get_or_create(&Reconciles { kind, result })
            .inc();
    }

    /// Says how far a sink is.
    pub fn sink(&self, labels: &SinkLabels, lag: Option<i64>, rows: Option<i64>) {
        let mut sinks = self.sinks.lock().unwrap_or_else(PoisonError::into_inner);
        sinks.insert(labels.clone());
        if let Some(lag) = lag {
            self.lag.get_or_create(labels).set(lag);
        }
        if let Some(rows) = rows {
            self.rows.get_or_create(labels).set(rows);
        }
    }

    /// Tells a pipeline's conditions in place of those before.
    pub fn conditions(&self, namespace: &str, pipeline: &str, conditions: &[Condition]) {
        let labels = conditions.iter().map(|condition| ConditionLabels {
            namespace: namespace.to_owned(),
            pipeline: pipeline.to_owned(),
            r#type: condition.type_.clone(),
            status: condition.status.clone(),
            reason: condition.reason.clone(),
        });
        let labels: BTreeSet<_> = labels.collect();
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let gone = told.extract_if(.., |known| {
            known.namespace == namespace && known.pipeline == pipeline && !labels.contains(known)
        });
        for labels in gone {
            self.conditions.remove(&labels);
        }
        for labels in labels {
            self.conditions.get_or_create(&labels).set(1);
            told.insert(labels);
        }
    }

    /// Forgets a pipeline that is gone.
    pub fn forget(&self, namespace: &str, pipeline: &str) {
        self.keep(namespace, pipeline, &[]);
        self.conditions(namespace, pipeline, &[]);
    }

    /// Forgets the sinks of a pipeline but these.
    pub fn keep(&self, namespace: &str, pipeline: &str, names: &[&str]) {
        let mut sinks = self.sinks.lock().unwrap_or_else(PoisonError::into_inner);
        let gone = sinks.extract_if(.., |sink| {
            sink.namespace == namespace
                && sink.pipeline == pipeline
                && !names.contains(&sink.sink.as_str())
        });
        for labels in gone {
            self.lag.remove(&labels);
            self.rows.remove(&labels);
        }
    }

    /// All metrics in OpenMetrics text.
    pub fn encode(&self) -> String {
        let mut text = String::new();
        // Writing into a String doesn't fail.
        let _ = prometheus_client::encoding::text::encode(&mut text, &self.registry);
        text
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::{apimachinery::pkg::apis::meta::v1::Time, jiff::Timestamp};

    use super::*;

    #[test]
    fn a_sink_that_is_gone_is_told_of_no_more() {
        let metrics = Metrics::default();
        for (pipeline, sink) in [("users", "a"), ("users", "b"), ("orders", "b")] {
            let labels = SinkLabels {
                namespace: "shop".into(),
                pipeline: pipeline.into(),
                sink: sink.into(),
            };
            metrics.sink(&labels, Some(7), Some(9));
        }
        let told = |metric: &str| {
            let text = metrics.encode();
            let lines = text.lines().map(str::to_string);
            let mut lines: Vec<_> = lines.filter(|line| line.starts_with(metric)).collect();
            lines.sort();
            lines
        };
        metrics.keep("shop", "users", &["a"]);
        for (metric, value) in [("pipeline_lag", 7), ("pipeline_rows", 9)] {
            let of = |pipeline: &str, sink: &str| {
                format!(
                    "millstream_{metric}{{namespace=\"shop\",pipeline=\"{pipeline}\",sink=\"{sink}\"}} {value}"
                )
            };
            let metric = format!("millstream_{metric}{{");
            assert_eq!(told(&metric), [of("orders", "b"), of("users", "a")]);
        }
        metrics.forget("shop", "users");
        assert_eq!(told("millstream_pipeline_lag{").len(), 1);
    }

    #[test]
    fn a_condition_is_told_as_it_is_now() {
        let metrics = Metrics::default();
        let condition = |status: &str, reason: &str| Condition {
            last_transition_time: Time(Timestamp::UNIX_EPOCH),
            message: "which may be long".into(),
            observed_generation: None,
            reason: reason.into(),
            status: status.into(),
            type_: "Ready".into(),
        };
        let told = |pipeline: &str| {
            let text = metrics.encode();
            let lines = text.lines().filter(|line| line.contains(pipeline));
            lines.map(str::to_string).collect::<Vec<_>>()
        };
        metrics.conditions("shop", "orders", &[condition("True", "Ready")]);
        metrics.conditions("shop", "users", &[condition("True", "Ready")]);
        metrics.conditions("shop", "users", &[condition("False", "WorkerError")]);
        let expected = "millstream_pipeline_condition{namespace=\"shop\",pipeline=\"users\",type=\"Ready\",status=\"False\",reason=\"WorkerError\"} 1";
        assert_eq!(told("users"), [expected]);
        metrics.forget("shop", "users");
        assert_eq!((told("users").len(), told("orders").len()), (0, 1));
    }
}
