//! The real `kubectl`: what it says is part of what a user sees.

use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tokio::io::AsyncWriteExt;
use tokio::process::Command;
use tokio::time::timeout;

use crate::Environment;

const TIMEOUT: Duration = Duration::from_secs(300);

/// How a command ended and what it said.
#[derive(Debug)]
pub struct Outcome {
    pub success: bool,
    pub stdout: String,
    pub stderr: String,
}

impl Outcome {
    /// What it printed.
    ///
    /// # Errors
    /// Where it failed: what it complained about.
    pub fn ok(self) -> Result<String> {
        if !self.success {
            bail!("kubectl: {}{}", self.stdout, self.stderr);
        }
        Ok(self.stdout)
    }
}

impl Environment {
    /// Runs `kubectl` with these arguments and this input.
    ///
    /// # Errors
    /// When it can't be started or doesn't end within five minutes. That it fails is an outcome.
    pub async fn kubectl(&self, arguments: &[&str], input: &str) -> Result<Outcome> {
        let mut child = Command::new(&self.kubectl)
            .args(arguments)
            .env("KUBECONFIG", &self.kubeconfig)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("starting {}", self.kubectl.display()))?;
        let mut stdin = child.stdin.take().context("kubectl's input")?;
        // One that doesn't read its input closes it.
        let _ = stdin.write_all(input.as_bytes()).await;
        drop(stdin);
        // Not by `--request-timeout`, which turns up as a query parameter of proxied requests.
        let output = timeout(TIMEOUT, child.wait_with_output()).await;
        let output = output.with_context(|| format!("kubectl {arguments:?} takes too long"))??;
        Ok(Outcome {
            success: output.status.success(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }
}
