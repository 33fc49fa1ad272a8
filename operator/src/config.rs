//! What the operator is told at its start: flags, and the file that `--config` names.

use std::{path::PathBuf, time::Duration};

use anyhow::Context as _;
use clap::{Args, ValueEnum};
use k8s_openapi::api::core::v1::{LocalObjectReference, ResourceRequirements, Toleration};
use millstream_api::{
    CassandraConnection, KafkaConnection, SchemaRegistryConnection, keyspace::Replication,
};
use serde::Deserialize;

/// Flags of `millstream-operator run`.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// The operator's configuration (YAML).
    #[arg(
        long,
        env = "MILLSTREAM_CONFIG",
        value_name = "FILE",
        default_value = "/etc/millstream/operator.yaml"
    )]
    pub config: PathBuf,
    /// Folder with the credentials of the default connections, one file each: `kafka-username`,
    /// `kafka-password`, `kafka-ca.crt`, and the same with `cassandra-` and `registry-`.
    #[arg(
        long,
        env = "MILLSTREAM_CREDENTIALS_DIR",
        value_name = "DIR",
        default_value = "/etc/millstream-credentials"
    )]
    pub credentials_dir: PathBuf,
    /// Port of /healthz, /readyz and /metrics.
    #[arg(
        long,
        env = "MILLSTREAM_HTTP_PORT",
        value_name = "PORT",
        default_value_t = 8080
    )]
    pub http_port: u16,
    /// How log lines are written.
    #[arg(
        long,
        env = "MILLSTREAM_LOG_FORMAT",
        value_enum,
        default_value = "human"
    )]
    pub log_format: LogFormat,
    /// Which log lines are written, such as `info` or `millstream_operator=debug,info`.
    #[arg(
        long,
        env = "MILLSTREAM_LOG",
        value_name = "FILTER",
        default_value = "info,scylla=error"
    )]
    pub log_filter: String,
    /// How often healthy Topics and Keyspaces are compared with Kafka and Cassandra.
    #[arg(long, env = "MILLSTREAM_RESYNC", value_name = "DURATION", default_value = "30s", value_parser = duration)]
    pub resync: Duration,
    /// Namespace of the Lease `millstream-operator`: of all operators that share one, one works.
    #[arg(
        long,
        env = "MILLSTREAM_LEASE_NAMESPACE",
        value_name = "NAMESPACE",
        default_value = "millstream-system"
    )]
    pub lease_namespace: String,
}

/// How log lines are written.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people, on standard error.
    Human,
    /// One JSON object a line, on standard output.
    Json,
}

fn duration(text: &str) -> Result<Duration, String> {
    let parsed: jiff::SignedDuration = text
        .parse()
        .map_err(|error| format!("{error}; write for example 30s or 1m"))?;
    let duration = Duration::try_from(parsed).map_err(|error| error.to_string())?;
    if duration < Duration::from_secs(1) {
        return Err("must be 1s at least".into());
    }
    Ok(duration)
}

/// The file that `--config` names.
#[derive(Deserialize, Clone, Debug)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Config {
    /// Kafka for resources without `spec.kafka`.
    pub kafka: Option<KafkaConnection>,
    /// Cassandra for resources without `spec.cassandra`.
    pub cassandra: Option<CassandraConnection>,
    /// Schema registry for pipelines without `spec.schemaRegistry`.
    pub schema_registry: Option<SchemaRegistryConnection>,
    /// Replication of keyspaces that don't say it themselves.
    #[serde(default = "one_replica")]
    pub keyspace_replication: Replication,
    /// The worker pods.
    pub worker: Worker,
}

fn one_replica() -> Replication {
    Replication::simple(1)
}

/// What the worker pods are made of.
#[derive(Deserialize, Clone, Debug)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Worker {
    /// The image.
    pub image: String,
    /// When the image is pulled; Kubernetes' default where absent.
    pub image_pull_policy: Option<String>,
    /// Secrets for pulling the image.
    #[serde(default)]
    pub image_pull_secrets: Vec<LocalObjectReference>,
    /// Resources of each worker container, where the pipeline doesn't say it itself.
    pub resources: Option<ResourceRequirements>,
    /// Labels of the nodes that may run workers.
    #[serde(default)]
    pub node_selector: std::collections::BTreeMap<String, String>,
    /// Taints that workers tolerate.
    #[serde(default)]
    pub tolerations: Vec<Toleration>,
}

impl Config {
    /// Reads the file.
    pub fn load(path: &std::path::Path) -> anyhow::Result<Config> {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("can't read the configuration {}", path.display()))?;
        serde_saphyr::from_str(&text)
            .with_context(|| format!("the configuration {} is wrong", path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_the_chart_writes_and_refuses_what_it_does_not_know() {
        let config: Config = serde_saphyr::from_str(
            "kafka: {bootstrapServers: 'a:9092', sasl: {credentialsSecret: {name: s}}, tls: {}}\n\
             cassandra: {contactPoints: [c]}\n\
             schemaRegistry: {url: 'http://r:8081', credentialsSecret: {name: r}}\n\
             worker: {image: w, resources: {limits: {memory: 512Mi}}, tolerations: [{operator: Exists}]}\n",
        )
        .unwrap();
        assert_eq!(config.keyspace_replication, Replication::simple(1));
        assert_eq!(config.worker.image, "w");
        let error = serde_saphyr::from_str::<Config>("worker: {image: w, imagee: x}").unwrap_err();
        assert!(error.to_string().contains("imagee"), "{error}");
    }

    #[test]
    fn a_duration_says_what_it_wants() {
        assert_eq!(duration("1m 30s"), Ok(Duration::from_secs(90)));
        assert!(duration("abc").unwrap_err().contains("30s"));
        assert!(duration("0s").is_err());
    }
}
