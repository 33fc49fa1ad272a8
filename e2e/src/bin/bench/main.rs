//! From a Kafka topic to Cassandra rows: the worker next to a hand-written consumer, in turns, on
//! the same servers with the same records. Every table is compared with the data, cell for cell.

mod cassandra;
mod drain;
mod engine;
mod kafka;
mod latency;
mod records;
mod report;

use std::{path::PathBuf, time::Duration};

use anyhow::{Context, Result, bail};
use clap::Parser;

use cassandra::Cassandra;
use engine::Kind;
use kafka::Kafka;
use millstream_e2e::Environment;
use records::Users;
use report::{Figures, Report};

#[derive(Parser)]
#[command(about = "Measures the worker next to a hand-written consumer")]
struct Arguments {
    /// Records in the topic.
    #[arg(long, default_value_t = 300_000)]
    records: u64,
    /// How often each engine runs, in turns.
    #[arg(long, default_value_t = 2)]
    rounds: u32,
    /// Records per second while latency is measured.
    #[arg(long, default_value_t = 2000, value_parser = clap::value_parser!(u64).range(100..))]
    rate: u64,
    /// For how long latency is measured; 0 leaves it out.
    #[arg(long, default_value_t = 20)]
    latency_seconds: u64,
    /// The same seed makes the same records.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Where the figures go, as JSON.
    #[arg(long, default_value = "target/bench/results.json")]
    output: PathBuf,
}

/// What every measurement needs.
pub struct Bench {
    environment: Environment,
    kafka: Kafka,
    cassandra: Cassandra,
    users: Users,
    records: u64,
    rate: u64,
    latency_seconds: u64,
}

#[tokio::main]
async fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let environment = Environment::load()?.context(
        "MILLSTREAM_ENVIRONMENT doesn't say where the servers are: run `cargo xtask bench`",
    )?;
    let bench = Bench {
        kafka: Kafka::new(&environment.addresses.kafka)?,
        cassandra: Cassandra::connect(&environment).await?,
        environment,
        users: Users::new(arguments.seed),
        records: arguments.records,
        rate: arguments.rate,
        latency_seconds: arguments.latency_seconds,
    };
    let report = bench.run(arguments.rounds).await;
    let cleaned_up = bench.cassandra.clean_up().await;
    // What went wrong first is what matters.
    let report = report?;
    cleaned_up?;
    println!("{}", report.table());
    if let Some(ratios) = report.ratios() {
        println!("{ratios}");
    }
    report.write(&arguments.output)?;
    println!("medians: {}", arguments.output.display());
    if report.summary().iter().any(|figures| !figures.exact) {
        bail!("a result was wrong: see above");
    }
    Ok(())
}

impl Bench {
    async fn run(&self, rounds: u32) -> Result<Report> {
        // Topics and groups of a run that was interrupted must not be met again.
        let name = format!("bench_{}", std::process::id());
        self.fill(&name).await?;
        println!("warming up the servers");
        self.drain(Kind::Ceiling, &name, &format!("{name}_warm_up"))
            .await?;
        let mut report = Report::default();
        for round in 1..=rounds {
            for kind in [Kind::Ceiling, Kind::Millstream] {
                let run = format!("{name}_{kind}_{round}");
                report.add(self.measure(kind, &name, &run).await?);
            }
        }
        self.kafka.delete_topic(&name).await?;
        Ok(report)
    }

    /// Makes the topic with all the records.
    async fn fill(&self, topic: &str) -> Result<()> {
        self.kafka.create_topic(topic).await?;
        let records = self.kafka.producer(topic, Duration::from_millis(5))?;
        let mut bytes = 0;
        for index in 0..self.records {
            let user = self.users.user(index);
            bytes += user.json().len() as u64;
            records.send(&user)?;
        }
        records.flush()?;
        if self.kafka.records(topic)? != i64::try_from(self.records)? {
            bail!("Kafka has not got every record");
        }
        let (count, mean) = (self.records, bytes / self.records.max(1));
        println!("{count} records of {mean} bytes in {topic}");
        Ok(())
    }

    /// One turn of an engine.
    async fn measure(&self, kind: Kind, topic: &str, run: &str) -> Result<Figures> {
        let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
        let load = load.split(' ').next().unwrap_or_default();
        println!("{run} (load of the machine before: {load})");
        let drained = self.drain(kind, topic, run).await?;
        let latency = match self.latency_seconds {
            0 => None,
            _ => Some(
                self.latency(kind, &format!("{run}_l"), &format!("{run}_l"))
                    .await?,
            ),
        };
        let late = latency.as_ref();
        let wrong = [
            drained.wrong.as_ref(),
            late.and_then(|late| late.wrong.as_ref()),
        ];
        let exact = wrong.iter().all(Option::is_none);
        for difference in wrong.into_iter().flatten() {
            println!("{run} is WRONG: {difference}");
        }
        let figure = |value: f64| exact.then_some(value);
        Ok(Figures {
            job: "projection",
            engine: kind,
            records: self.records,
            records_per_s: figure(drained.records_per_s),
            client_cpu_s_per_million: figure(drained.client_cpu_s_per_million),
            peak_rss_mb: figure(drained.peak_rss_mb),
            first_row_s: figure(drained.first_row_s),
            p50_ms: late.and_then(|late| figure(late.p50_ms)),
            p99_ms: late.and_then(|late| figure(late.p99_ms)),
            exact,
        })
    }
}
