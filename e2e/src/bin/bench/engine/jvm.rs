//! What the jobs of Spark and Flink have in common: `xtask/peers`.

use std::{fmt::Write, fs, path::Path, process::Command};

use anyhow::{Context, Result, bail};

use super::Work;
use crate::Bench;

/// As much as both were measured with before; more changes nothing.
const HEAP: &str = "-Xmx1g";

/// The option that opens a package of Java itself to all.
pub fn open(package: &str) -> String {
    format!("--add-opens=java.base/{package}=ALL-UNNAMED")
}

/// Starts the class `Job` of a class path.
pub fn command(
    bench: &Bench,
    work: &Work<'_>,
    folder: &Path,
    class_path: Option<&str>,
    options: impl IntoIterator<Item = String>,
) -> Result<Command> {
    let Work::Table { job, topic, table } = work else {
        bail!("it has no such job");
    };
    let class_path = class_path.context("its jars aren't there")?;
    let properties = folder.join("job.properties");
    fs::write(&properties, told(bench, topic, table, folder)?)?;
    let mut command = Command::new("java");
    command
        .arg(HEAP)
        // Nothing of it is left under /tmp.
        .arg("-XX:-UsePerfData")
        .arg(format!("-Djava.io.tmpdir={}", folder.display()))
        .args(options)
        .args(["-cp", class_path, "Job", &job.name().to_string()])
        .arg(properties)
        .current_dir(folder);
    Ok(command)
}

/// What a job has to know, in Java's format of properties.
fn told(bench: &Bench, topic: &str, table: &str, folder: &Path) -> Result<String> {
    let environment = &bench.environment;
    let cassandra = environment.addresses.cassandra.rsplit_once(':');
    let (host, port) = cassandra.context("Cassandra's address has no port")?;
    let mut text = String::new();
    for (name, value) in [
        ("folder", folder.to_str().context("a path in UTF-8")?),
        ("kafka", &environment.addresses.kafka),
        ("topic", topic),
        ("group", table),
        ("cassandra.host", host),
        ("cassandra.port", port),
        ("cassandra.user", &environment.cassandra_user),
        ("cassandra.password", &environment.cassandra_password),
        ("cassandra.datacenter", "datacenter1"),
        ("keyspace", &bench.cassandra.keyspace),
        ("table", table),
    ] {
        writeln!(text, "{name}={value}")?;
    }
    Ok(text)
}
