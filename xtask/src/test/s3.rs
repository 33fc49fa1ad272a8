//! An object store for the tests of S3: moto's, for as long as they run.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tempfile::NamedTempFile;

use crate::install::root;
use crate::process;
use crate::progress::Progress;
use crate::python::Packages;

const PACKAGES: Packages = Packages {
    name: "moto",
    requirements: include_str!("../../s3/requirements.txt"),
    why: "run an object store for the tests of S3",
};

const START: Duration = Duration::from_secs(60);

/// It ends when this is dropped, and also when this program is killed.
pub struct Store {
    /// Takes any keys.
    pub url: String,
    process: Child,
}

impl Store {
    /// # Errors
    /// When it can't be fetched, or doesn't start.
    pub fn start(progress: &Progress) -> Result<Self> {
        let packages = PACKAGES.fetch(progress)?;
        let log = NamedTempFile::new()?;
        let output = process::append(log.path())?;
        let process = Command::new("python3")
            .arg(root().join("xtask/s3/server.py"))
            .env("PYTHONPATH", packages)
            // It reads this until this program ends.
            .stdin(Stdio::piped())
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()
            .context("starting moto")?;
        let url = String::new();
        let mut store = Store { url, process };
        store.url = store
            .serves(log.path())
            .context("moto's S3 doesn't start")?;
        Ok(store)
    }

    /// Its URL, once it has said it.
    fn serves(&mut self, log: &Path) -> Result<String> {
        process::wait_until("it says where it serves", START, || {
            if let Some(status) = self.process.try_wait()? {
                bail!("it ended ({status}): {}", process::quoted(log, 0));
            }
            let said = std::fs::read_to_string(log)?;
            let url = said.lines().find(|line| line.starts_with("http://"));
            Ok(url.map(str::to_owned))
        })
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        // Should it have ended by itself, that is what is wanted.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
