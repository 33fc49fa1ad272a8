//! What runs and where: `cargo xtask status --json`, for the demo, the tests and people.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::cache;
use crate::provider::ProviderName;
use crate::services::Service;

/// `environment.json` in the run folder. Its keys are an interface: tests and people read it.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Environment {
    pub provider: ProviderName,
    pub kubeconfig: PathBuf,
    pub kubectl: PathBuf,
    pub helm: PathBuf,
    /// The services as this machine reaches them.
    #[serde(flatten)]
    pub addresses: Addresses,
    /// The services as pods reach them.
    pub in_cluster: Addresses,
    pub cassandra_user: String,
    pub cassandra_password: String,
    /// For the SASL listener, by PLAIN or SCRAM-SHA-512.
    pub kafka_user: String,
    pub kafka_password: String,
    /// Kafka's TLS listener; none where the provider has none.
    pub kafka_tls: Option<KafkaTls>,
    /// JSON lines, one for each write to the API server; none where the provider can't say.
    pub audit_log: Option<PathBuf>,
    /// The folder with a log for each part.
    pub logs: PathBuf,
    /// What `cargo xtask service` takes.
    pub services: Vec<Service>,
}

/// `host:port` of each service; the registry's is the base URL of its Confluent-compatible API.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Addresses {
    /// Bootstrap server, no encryption, no authentication.
    pub kafka: String,
    /// Bootstrap server, SASL_PLAINTEXT.
    pub kafka_sasl: String,
    pub cassandra: String,
    pub redis: String,
    pub registry: String,
    /// For MongoDB's clients, no authentication.
    pub documents: String,
}

/// A listener that wants SASL (PLAIN or SCRAM-SHA-512) over TLS, as this machine reaches it.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct KafkaTls {
    pub servers: String,
    pub user: String,
    pub password: String,
    /// A file with the authority of its certificate.
    pub ca: PathBuf,
    /// A file with an authority that isn't.
    pub other_ca: PathBuf,
}

/// Where everything that runs keeps its state; gone after `down`.
///
/// # Errors
/// As [`cache::root`].
pub fn run_folder() -> Result<PathBuf> {
    Ok(cache::root()?.join("run"))
}

impl Environment {
    /// The one that is written down, if any: whether it still runs is for the provider to say.
    ///
    /// # Errors
    /// When the file is there but can't be read.
    pub fn load() -> Result<Option<Self>> {
        let path = file(&run_folder()?);
        match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .map(Some)
                .with_context(|| format!("{} is damaged: run `cargo xtask down`", path.display())),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("reading {}", path.display())),
        }
    }

    /// Writes it down for the commands and tests that come after.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn save(&self) -> Result<()> {
        let run = run_folder()?;
        let mut file_at = tempfile::NamedTempFile::new_in(&run)?;
        serde_json::to_writer_pretty(&mut file_at, self)?;
        file_at
            .persist(file(&run))
            .context("writing environment.json")?;
        Ok(())
    }
}

pub fn file(run: &Path) -> PathBuf {
    run.join("environment.json")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_keys_that_tests_read_stay() {
        let addresses = |host: &str| Addresses {
            kafka: format!("{host}:9092"),
            kafka_sasl: format!("{host}:9094"),
            cassandra: format!("{host}:9042"),
            redis: format!("{host}:6379"),
            registry: format!("http://{host}:8081/apis/ccompat/v7"),
            documents: format!("{host}:27017"),
        };
        let environment = Environment {
            provider: ProviderName::Node,
            kubeconfig: "kubeconfig".into(),
            kubectl: "kubectl".into(),
            helm: "helm".into(),
            addresses: addresses("here"),
            in_cluster: addresses("there"),
            cassandra_user: "u".into(),
            cassandra_password: "p".into(),
            kafka_user: "u".into(),
            kafka_password: "p".into(),
            kafka_tls: Some(KafkaTls {
                servers: "here:9095".into(),
                user: "u".into(),
                password: "p".into(),
                ca: "ca.crt".into(),
                other_ca: "other-ca.crt".into(),
            }),
            audit_log: None,
            logs: "logs".into(),
            services: vec![Service::Kafka],
        };
        insta::assert_yaml_snapshot!(environment);
    }
}
