//! Where everything runs: the `environment.json` of `cargo xtask status --json`.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use serde_json::Value;

/// What is up, and where.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Environment {
    pub kubeconfig: PathBuf,
    pub kubectl: PathBuf,
    /// The services as this machine reaches them.
    #[serde(flatten)]
    pub addresses: Addresses,
    /// The services as pods reach them.
    pub in_cluster: Addresses,
    pub cassandra_user: String,
    pub cassandra_password: String,
    pub kafka_user: String,
    pub kafka_password: String,
    /// JSON lines, one for each write to the API server, where the provider keeps them.
    pub audit_log: Option<PathBuf>,
}

/// `host:port` of the services.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Addresses {
    pub kafka: String,
    /// The listener that wants SASL PLAIN or SCRAM-SHA-512.
    pub kafka_sasl: String,
    pub cassandra: String,
    /// URL of the schema registry's API, as Confluent defines it.
    pub registry: String,
    pub redis: String,
    /// A server that MongoDB's clients can speak to.
    pub documents: String,
}

impl Environment {
    /// The environment that `MILLSTREAM_ENVIRONMENT` names; `None` where it isn't set.
    ///
    /// # Errors
    /// When the file it names can't be read.
    pub fn load() -> Result<Option<Self>> {
        let Some(path) = std::env::var_os("MILLSTREAM_ENVIRONMENT") else {
            return Ok(None);
        };
        let path = PathBuf::from(path);
        let text = std::fs::read_to_string(&path)
            .with_context(|| format!("reading {}, of MILLSTREAM_ENVIRONMENT", path.display()))?;
        Ok(Some(serde_json::from_str(&text)?))
    }

    /// Reference of one of the images that `cargo xtask dist` wrote: `operator`, `worker`, `apis`.
    ///
    /// # Errors
    /// When `MILLSTREAM_IMAGES` doesn't name a list with that image.
    pub fn image(name: &str) -> Result<String> {
        let path = std::env::var("MILLSTREAM_IMAGES").context("MILLSTREAM_IMAGES isn't set")?;
        let images: Value = serde_json::from_str(&std::fs::read_to_string(&path)?)?;
        let reference = images[name]["reference"].as_str();
        let reference = reference.with_context(|| format!("{path} has no image `{name}`"))?;
        Ok(reference.to_owned())
    }
}

/// `start`, `stop` or `restart` one of the data services, and wait until it is done.
fn service(action: &str, service: &str) -> Result<()> {
    let xtask = std::env::var_os("MILLSTREAM_XTASK").context("MILLSTREAM_XTASK isn't set")?;
    let output = Command::new(xtask)
        .args(["service", action, service])
        .output()?;
    ensure!(
        output.status.success(),
        "service {action} {service}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

impl Environment {
    /// Restarts `kafka` or `cassandra`, its data kept.
    ///
    /// # Errors
    /// What `cargo xtask service` says.
    pub async fn restart(&self, name: &'static str) -> Result<()> {
        tokio::task::spawn_blocking(move || service("restart", name)).await?
    }
}

/// Services that are stopped until this is dropped, also by a test that fails.
pub struct StoppedServices(&'static [&'static str]);

impl StoppedServices {
    /// Stops them.
    ///
    /// # Errors
    /// What `cargo xtask service` says; those that were stopped before are started again.
    pub fn stop(names: &'static [&'static str]) -> Result<Self> {
        let stopped = StoppedServices(names);
        names.iter().try_for_each(|name| service("stop", name))?;
        Ok(stopped)
    }
}

impl Drop for StoppedServices {
    fn drop(&mut self) {
        for name in self.0 {
            if let Err(error) = service("start", name) {
                eprintln!("{error:?}");
            }
        }
    }
}
