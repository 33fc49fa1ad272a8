//! Jars, fetched by Maven from a committed pom with their checksums, kept under the pom's hash.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::cache;
use crate::process;
use crate::progress::Progress;

/// Pinned to 2.8: later ones insist on the parent pom of the registry, which isn't published.
const PLUGIN: &str = "org.apache.maven.plugins:maven-dependency-plugin:2.8";

/// A pom that pins what one program needs.
pub struct Jars {
    pub name: &'static str,
    pub pom: &'static str,
    /// The goal of Maven's dependency plugin that puts it into a folder.
    pub goal: &'static str,
}

impl Jars {
    /// The folder with the jars; Maven fills it the first time.
    ///
    /// # Errors
    /// When Maven fails, or there is none.
    pub fn fetch(&self, progress: &Progress) -> Result<PathBuf> {
        let key = cache::key(&[self.pom, PLUGIN, self.goal]);
        cache::entry("jars", &format!("{}-{key}", self.name), |folder| {
            let step = progress.step(format!("fetching {} with Maven", self.name));
            let project = tempfile::tempdir()?;
            let pom = project.path().join("pom.xml");
            std::fs::write(&pom, self.pom)?;
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
