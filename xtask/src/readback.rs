//! `cargo xtask readback`: Delta Lake tables as other engines read them.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, bail};

use crate::install::root;
use crate::progress::Progress;
use crate::python::Packages;
use crate::services::{jars::Jars, java};
use crate::{debian, process};

const DELTALAKE: Packages = Packages {
    name: "deltalake",
    requirements: include_str!("../readback/delta.txt"),
    why: "read Delta Lake tables with delta-rs from Python",
};

const PYSPARK: Packages = Packages {
    name: "pyspark",
    requirements: include_str!("../readback/spark.txt"),
    why: "read Delta Lake tables with PySpark",
};

const JARS: Jars = Jars {
    name: "delta",
    pom: include_str!("../readback/pom.xml"),
    goal: "copy-dependencies",
};

const READ: Duration = Duration::from_secs(600);

/// Which tables.
#[derive(clap::Args)]
pub struct Options {
    /// Folders of tables, as they are on this machine.
    #[arg(required = true, value_name = "FOLDER")]
    tables: Vec<PathBuf>,
}

/// What reads a table, from Python.
struct Engine {
    name: &'static str,
    packages: PathBuf,
    jars: Option<PathBuf>,
}

/// Reads tables with delta-rs and with Spark, from Python, and holds their rows against each other.
///
/// # Errors
/// When the engines can't be fetched, can't read a table, or differ in its rows.
pub fn readback(options: &Options) -> Result<()> {
    let progress = Progress::new();
    let engines = [deltalake(&progress)?, pyspark(&progress)?];
    let mut differ = Vec::new();
    for table in &options.tables {
        if !is_same(table, &engines, &progress)? {
            differ.push(table.display().to_string());
        }
    }
    if !differ.is_empty() {
        bail!("the engines differ in the rows of {}", differ.join(", "));
    }
    Ok(())
}

/// The folder with Python's `deltalake`; pip fills it the first time.
///
/// # Errors
/// When pip fails.
pub fn packages(progress: &Progress) -> Result<PathBuf> {
    DELTALAKE.fetch(progress)
}

fn deltalake(progress: &Progress) -> Result<Engine> {
    Ok(Engine {
        name: DELTALAKE.name,
        packages: packages(progress)?,
        jars: None,
    })
}

fn pyspark(progress: &Progress) -> Result<Engine> {
    debian::ensure_program("java", "openjdk-17-jre-headless", "run Spark", progress)?;
    debian::ensure_program(
        "mvn",
        "maven",
        "fetch Spark's jars for Delta Lake",
        progress,
    )?;
    java::find()?;
    Ok(Engine {
        name: PYSPARK.name,
        packages: PYSPARK.fetch(progress)?,
        jars: Some(JARS.fetch(progress)?),
    })
}

fn is_same(table: &Path, [one, other]: &[Engine; 2], progress: &Progress) -> Result<bool> {
    let step = progress.step(format!("reading {}", table.display()));
    let (first, second) = (one.rows(table)?, other.rows(table)?);
    let (one, other) = (one.name, other.name);
    match difference(&first, &second) {
        None => {
            let rows = first.lines().count();
            step.done(format!("{rows} rows, the same by {one} and {other}"));
            Ok(true)
        }
        Some([left, right]) => {
            step.done(format!("they differ\n  {one}: {left}\n  {other}: {right}"));
            Ok(false)
        }
    }
}

/// The first line in which two texts differ, of each.
fn difference<'a>(one: &'a str, other: &'a str) -> Option<[&'a str; 2]> {
    const NONE: &str = "no more rows";
    let (mut one, mut other) = (one.lines(), other.lines());
    loop {
        match (one.next(), other.next()) {
            (None, None) => return None,
            (left, right) if left == right => {}
            (left, right) => return Some([left.unwrap_or(NONE), right.unwrap_or(NONE)]),
        }
    }
}

impl Engine {
    /// A JSON object a line, sorted.
    fn rows(&self, table: &Path) -> Result<String> {
        let mut read = Command::new("python3");
        read.arg(root().join("xtask/readback/rows.py"))
            .arg(self.name)
            .arg(table)
            .args(&self.jars)
            .env("PYTHONPATH", &self.packages)
            // Spark looks up the machine's name otherwise.
            .env("SPARK_LOCAL_IP", "127.0.0.1");
        process::output(&mut read, READ)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_row_that_differs_is_shown() {
        assert_eq!(difference("a\nb\n", "a\nb\n"), None);
        assert_eq!(difference("a\nb\nc\n", "a\nc\n"), Some(["b", "c"]));
        assert_eq!(difference("a\n", ""), Some(["a", "no more rows"]));
    }
}
