//! `kubectl port-forward`, by which people reach a Service from their machine.

use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};
use tokio::time::timeout;

use crate::Namespace;

const TIMEOUT: Duration = Duration::from_secs(20);

/// A Service on a port of this machine, until this is dropped, or the pod behind it is gone.
pub struct Forward {
    address: String,
    _kubectl: Child,
    /// It tells of each connection, and ends where nobody listens.
    _told: Lines<BufReader<ChildStdout>>,
}

impl Namespace {
    /// Forwards a free port to the port of a Service.
    ///
    /// # Errors
    /// When `kubectl` doesn't: there is no such Service, or no pod behind it.
    pub async fn forward(&self, service: &str, port: u16) -> Result<Forward> {
        let (service, port) = (format!("service/{service}"), format!(":{port}"));
        let mut kubectl = Command::new(&self.environment.kubectl)
            .args(["--namespace", &self.name, "port-forward"])
            .args(["--address", "127.0.0.1", &service, &port])
            .env("KUBECONFIG", &self.environment.kubeconfig)
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .context("starting kubectl port-forward")?;
        let told = kubectl.stdout.take().context("kubectl's output")?;
        let mut told = BufReader::new(told).lines();
        // `Forwarding from 127.0.0.1:40123 -> 8080`
        let line = timeout(TIMEOUT, told.next_line())
            .await
            .with_context(|| format!("{service} isn't forwarded in time"))??;
        let line = line.with_context(|| format!("{service} isn't forwarded"))?;
        let address = line
            .strip_prefix("Forwarding from ")
            .and_then(|rest| rest.split(' ').next())
            .with_context(|| format!("kubectl says: {line}"))?;
        Ok(Forward {
            address: address.to_owned(),
            _kubectl: kubectl,
            _told: told,
        })
    }
}

impl Forward {
    /// The URL of a path, as this machine reaches it.
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }
}
