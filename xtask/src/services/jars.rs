//! The servers' jars, fetched by Maven from a committed pom, kept under the pom's hash.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::cache;
use crate::process;
use crate::progress::Progress;

/// A pom that pins what one server needs.
pub(super) struct Jars {
    pub(super) name: &'static str,
    pub(super) pom: &'static str,
    /// The goal of Maven's dependency plugin that puts it into a folder.
    pub(super) goal: &'static str,
}

impl Jars {
    /// The folder with the jars; Maven fills it the first time.
    pub(super) fn fetch(&self, progress: &Progress) -> Result<PathBuf> {
        let key = cache::key(&[self.pom, self.goal]);
        cache::entry("jars", &format!("{}-{key}", self.name), |folder| {
            let step = progress.step(format!("fetching {} with Maven", self.name));
            let pom = Path::new(env!("CARGO_MANIFEST_DIR"))
                .join("services")
                .join(self.name)
                .join("pom.xml");
            let mut maven = Command::new("mvn");
            maven
                .args(["--batch-mode", "--strict-checksums", "--file"])
                .arg(pom)
                .arg(format!("org.apache.maven.plugins:maven-dependency-plugin:3.8.1:{}", self.goal))
                .arg(format!("-DoutputDirectory={}", folder.display()))
                .arg("-DincludeScope=runtime");
            let log = cache::root()?.join(format!("maven-{}.log", self.name));
            process::logged(&mut maven, &log, &step, Duration::from_secs(900))
                .with_context(|| format!("fetching {}", self.name))?;
            step.done("done");
            Ok(())
        })
    }
}
