//! The ceiling of the benchmark: what a person would write by hand for each of its jobs.
//!
//! No engine, no retries, no dead letter, one thread: typed JSON, unlogged batches, offsets committed
//! behind the acknowledged writes. It reads the worker's own configuration, so that both do one job.

mod cassandra;
mod counts;
mod decode;
mod ingest;
mod projection;

use std::{fs, path::PathBuf};

use anyhow::{Context, Result, bail};
use clap::{Parser, Subcommand};
use millstream_api::worker::{ProcessConfig, WorkerConfig};
use rdkafka::{
    ClientConfig,
    consumer::{Consumer, StreamConsumer},
};

#[derive(Parser)]
#[command(about = "Minimal programs for `bench` to compare with")]
struct Arguments {
    #[command(subcommand)]
    job: Job,
    /// The configuration of a worker.
    #[arg(long, global = true, default_value = "worker.yaml")]
    config: PathBuf,
    /// The folder with the Cassandra user name and password.
    #[arg(long, global = true, default_value = ".")]
    credentials_dir: PathBuf,
}

#[derive(Subcommand)]
enum Job {
    /// Users of a topic become rows.
    Projection,
    /// RSVPs of a topic are counted by venue.
    Counts,
    /// Pages of an HTTP API go into a topic.
    Ingest,
    /// Users of a file become rows on standard output.
    Decode { records: PathBuf },
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let path = &arguments.config;
    let config = fs::read(path).with_context(|| format!("reading {}", path.display()))?;
    let config: WorkerConfig = serde_json::from_slice(&config)?;
    let credentials = &arguments.credentials_dir;
    match (arguments.job, config) {
        (Job::Projection, WorkerConfig::Process(config)) => {
            projection::run(&config, credentials).await
        }
        (Job::Counts, WorkerConfig::Process(config)) => counts::run(&config, credentials).await,
        (Job::Ingest, WorkerConfig::Ingest(config)) => ingest::run(&config).await,
        (Job::Decode { records }, _) => decode::run(&records),
        _ => bail!("{} is of another stage", path.display()),
    }
}

/// A consumer of the topic that commits what is stored.
fn consumer(config: &ProcessConfig) -> Result<StreamConsumer> {
    let consumer: StreamConsumer = ClientConfig::new()
        .set("bootstrap.servers", &config.kafka.bootstrap_servers)
        .set(
            "group.id",
            config.pipeline.sink_group(&config.sinks[0].name),
        )
        .set("auto.offset.reset", "earliest")
        .set("enable.auto.offset.store", "false")
        .set("auto.commit.interval.ms", "100")
        .set("queued.max.messages.kbytes", "32768")
        // A full queue is filled again at once, not after a second.
        .set("fetch.queue.backoff.ms", "10")
        .create()?;
    consumer.subscribe(&[&config.topic.name])?;
    Ok(consumer)
}
