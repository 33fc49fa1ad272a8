//! The servers' jars, fetched by Maven from a committed pom, kept under the pom's hash.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::cache;
use crate::process;
use crate::progress::Progress;

/// Pinned to 2.8: later ones insist on the parent pom of the registry, which isn't published.
const PLUGIN: &str = "org.apache.maven.plugins:maven-dependency-plugin:2.8";

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
        let key = cache::key(&[self.pom, PLUGIN, self.goal]);
        cache::entry("jars", &format!("{}-{key}", self.name), |folder| {
            let step = progress.step(format!("fetching {} with Maven", self.name));
            let pom = Path::new(env!("CARGO_MANIFEST_DIR"))
                .join("services")
                .join(self.name)
                .join("pom.xml");
            let mut maven = Command::new("mvn");
            maven
                .args([
                    "--batch-mode",
                    "--strict-checksums",
                    "-Dstyle.color=never",
                    "--file",
                ])
                .arg(pom)
                .arg(format!("{PLUGIN}:{}", self.goal))
                .arg(format!("-DoutputDirectory={}", folder.display()))
                .arg("-DincludeScope=runtime");
            let log = cache::root()?.join(format!("maven-{}.log", self.name));
            process::logged(&mut maven, &log, &step, Duration::from_secs(900))
                .with_context(|| format!("fetching {}", self.name))?;
            ensure!(
                std::fs::read_dir(folder)?.next().is_some(),
                "Maven put nothing into the folder; its log is {}",
                log.display()
            );
            step.done("done");
            Ok(())
        })
    }
}
