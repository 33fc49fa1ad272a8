//! Spark and Flink, which `bench` runs beside the worker: their jars from Maven, their jobs
//! (`xtask/peers`) compiled here.

use std::fs;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::progress::Progress;
use crate::services::{jars::Jars, java};
use crate::{cache, debian, process};

const COMPILE: Duration = Duration::from_secs(300);

/// An engine for the JVM.
pub struct Peer {
    jars: Jars,
    /// The source of its class `Job`.
    job: &'static str,
}

pub const PEERS: [Peer; 2] = [
    Peer {
        jars: Jars {
            name: "spark",
            pom: include_str!("../peers/spark/pom.xml"),
            goal: "copy-dependencies",
        },
        job: include_str!("../peers/spark/Job.java"),
    },
    Peer {
        jars: Jars {
            name: "flink",
            pom: include_str!("../peers/flink/pom.xml"),
            goal: "copy-dependencies",
        },
        job: include_str!("../peers/flink/Job.java"),
    },
];

impl Peer {
    pub fn name(&self) -> &'static str {
        self.jars.name
    }

    /// The class path of its job, which is fetched and compiled the first time.
    ///
    /// # Errors
    /// When Maven or the compiler fails, or isn't there.
    pub fn class_path(&self, progress: &Progress) -> Result<String> {
        debian::ensure_program("mvn", "maven", "fetch Spark and Flink", progress)?;
        let jdk = "openjdk-17-jdk-headless";
        debian::ensure_program(
            "javac",
            jdk,
            "compile the jobs of Spark and Flink",
            progress,
        )?;
        let jars = format!("{}/*", self.jars.fetch(progress)?.display());
        let key = cache::key(&[self.job, &jars, &java::find()?.version]);
        let classes = cache::entry("peers", &format!("{}-{key}", self.name()), |folder| {
            let source = folder.join("Job.java");
            fs::write(&source, self.job)?;
            let mut javac = Command::new("javac");
            javac.args(["-cp", &jars, "-d"]).arg(folder).arg(source);
            process::output(&mut javac, COMPILE).map(drop)
        });
        let classes = classes.with_context(|| format!("compiling the job of {}", self.name()))?;
        Ok(format!("{}:{jars}", classes.display()))
    }
}
