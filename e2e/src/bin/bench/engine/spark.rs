//! Spark Structured Streaming with the Cassandra connector, as one process: no cluster, no Python.

use std::{path::Path, process::Command};

use anyhow::Result;

use super::{Work, jvm};
use crate::Bench;

/// Those that Spark's own start scripts open.
const OPEN: [&str; 14] = [
    "java.io",
    "java.lang",
    "java.lang.invoke",
    "java.lang.reflect",
    "java.net",
    "java.nio",
    "java.util",
    "java.util.concurrent",
    "java.util.concurrent.atomic",
    "jdk.internal.ref",
    "sun.nio.ch",
    "sun.nio.cs",
    "sun.security.action",
    "sun.util.calendar",
];

pub fn command(bench: &Bench, work: &Work<'_>, folder: &Path) -> Result<Command> {
    let options = OPEN.map(jvm::open);
    let mut command = jvm::command(bench, work, folder, bench.spark.as_deref(), options)?;
    // It looks up its own host's name otherwise, which needn't have an address.
    command.env("SPARK_LOCAL_IP", "127.0.0.1");
    Ok(command)
}
