//! Flink with a Kafka source and an asynchronous Cassandra sink, as one process: no cluster.

use std::{path::Path, process::Command};

use anyhow::Result;

use super::{Work, jvm};
use crate::Bench;

const LOG_WARNINGS: &str = "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn";

pub fn command(bench: &Bench, work: &Work<'_>, folder: &Path) -> Result<Command> {
    let open = ["java.lang", "java.time", "java.util"].map(jvm::open);
    let options = open.into_iter().chain([LOG_WARNINGS.to_owned()]);
    jvm::command(bench, work, folder, bench.flink.as_deref(), options)
}
