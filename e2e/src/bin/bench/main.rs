//! The worker next to a hand-written program, to Spark and to Flink, in turns, on the same servers
//! with the same records. Every result is compared with the data.

mod drain;
mod engine;
mod job;
mod kafka;
mod latency;
mod report;
mod table;
mod target;
mod verify;

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::Parser;
use millstream_e2e::Environment;

use engine::Kind;
use job::{JobName, TableJob, counts::Counts, projection::Projection};
use kafka::Kafka;
use report::{Figures, Measured, Report};
use table::Cassandra;

/// Venues for which it is said what is aimed at.
const GROUPS: u64 = 2000;

#[derive(Parser)]
#[command(about = "Measures the worker next to a hand-written program, to Spark and to Flink")]
struct Arguments {
    /// What is measured, one after the other.
    #[arg(required = true)]
    jobs: Vec<JobName>,
    /// Records of each job.
    #[arg(long, default_value_t = 300_000, value_parser = clap::value_parser!(u64).range(1..))]
    records: u64,
    /// Venues that are counted.
    #[arg(long, default_value_t = GROUPS, value_parser = clap::value_parser!(u64).range(1..))]
    groups: u64,
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
    /// Class path of the jobs for Spark; without it, Spark isn't measured.
    #[arg(long)]
    spark: Option<String>,
    /// Class path of the jobs for Flink; without it, Flink isn't measured.
    #[arg(long)]
    flink: Option<String>,
    /// Where the figures go, as JSON.
    #[arg(long, default_value = "target/bench/results.json")]
    output: PathBuf,
}

/// What every measurement needs.
pub struct Bench {
    environment: Environment,
    kafka: Kafka,
    cassandra: Cassandra,
    /// Begins the names of all that is made: what an interrupted run has left isn't met again.
    name: String,
    records: u64,
    rate: u64,
    latency_seconds: u64,
    rounds: u32,
    spark: Option<String>,
    flink: Option<String>,
}

#[tokio::main]
async fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let environment = Environment::load()?.context(
        "MILLSTREAM_ENVIRONMENT doesn't say where the servers are: run `cargo xtask bench`",
    )?;
    let name = format!("bench_{}", std::process::id());
    let bench = Bench {
        kafka: Kafka::new(&environment.addresses.kafka)?,
        cassandra: Cassandra::connect(&environment, name.clone()).await?,
        environment,
        name,
        records: arguments.records,
        rate: arguments.rate,
        latency_seconds: arguments.latency_seconds,
        rounds: arguments.rounds,
        spark: arguments.spark,
        flink: arguments.flink,
    };
    let projection = Projection::new(arguments.seed);
    let counts = Counts::new(arguments.seed, arguments.groups);
    let (jobs, mut report) = (arguments.jobs, Report::default());
    let measured = async {
        for job in jobs {
            match job {
                JobName::Projection => bench.table(&projection, &mut report).await?,
                JobName::Counts => bench.table(&counts, &mut report).await?,
                JobName::Ingest => bench.ingest(&mut report).await?,
                JobName::Decode => bench.decode(&projection, &mut report).await?,
            }
        }
        anyhow::Ok(())
    };
    let measured = measured.await;
    let cleaned_up = bench.cassandra.clean_up().await;
    println!("{}", report.table());
    for ratio in report.ratios() {
        println!("{ratio}");
    }
    let mut figures = report.summary();
    figures.retain(|run| run.job != JobName::Counts || arguments.groups == GROUPS);
    for verdict in target::verdicts(&figures) {
        println!("aimed at: {verdict}");
    }
    report.write(&arguments.output)?;
    println!("medians: {}", arguments.output.display());
    // What went wrong first is what matters.
    measured?;
    cleaned_up?;
    match report.complaints() {
        complaints if complaints.is_empty() => Ok(()),
        complaints => bail!("{}; see above", complaints.join(", ")),
    }
}

impl Bench {
    /// A job from a topic to a table, with all engines.
    async fn table(&self, job: &dyn TableJob, report: &mut Report) -> Result<()> {
        let filled = self.fill(job).await?;
        println!("warming up the servers");
        let warm_up = format!("{}_{}_warm_up", self.name, job.name());
        self.drain(Kind::Ceiling, job, &filled, &warm_up).await?;
        let mut engines = vec![Kind::Ceiling, Kind::Millstream];
        engines.extend(self.spark.as_ref().map(|_| Kind::Spark));
        engines.extend(self.flink.as_ref().map(|_| Kind::Flink));
        self.turns(job.name(), &engines, report, async |kind, run: &str| {
            let measured = self.drain(kind, job, &filled, run).await?;
            if self.latency_seconds == 0 {
                return Ok(measured);
            }
            let latency = self.latency(kind, job, &format!("{run}_l")).await?;
            Ok(measured.with(latency))
        })
        .await;
        self.kafka.delete_topic(&filled.topic).await
    }

    /// Runs the engines in turns. One that fails says why and isn't run again; the others go on.
    async fn turns(
        &self,
        job: JobName,
        engines: &[Kind],
        report: &mut Report,
        once: impl AsyncFn(Kind, &str) -> Result<Measured>,
    ) {
        for round in 1..=self.rounds {
            for kind in engines.iter().copied() {
                if report.has_failed(job, kind) {
                    continue;
                }
                let run = format!("{}_{job}_{kind}_{round}", self.name);
                let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
                let load = load.split(' ').next().unwrap_or_default();
                println!("{run} (load of the machine before: {load})");
                match once(kind, &run).await {
                    Ok(measured) => {
                        for difference in &measured.wrong {
                            println!("{run} is WRONG: {difference}");
                        }
                        report.add(Figures::new(job, kind, self.records, &measured));
                    }
                    Err(error) => {
                        println!("{run} FAILED: {error:#}");
                        report.fail(job, kind);
                    }
                }
            }
        }
    }
}
