//! `cargo xtask bench`: the worker's figures next to those of hand-written programs, of Spark and of
//! Flink, and the REST service's.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::environment;
use crate::install::root;
use crate::peers::PEERS;
use crate::progress::Progress;
use crate::{debian, process, provider};

const BUILD: Duration = Duration::from_secs(3600);

/// How much to measure.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  cargo xtask bench                                 all of it: 300,000 records, two rounds
  cargo xtask bench --no-peers                      without Spark and Flink
  cargo xtask bench --only counts --groups 1000000 --records 3000000
  cargo xtask bench --records 1000000 --rounds 5    figures that hold better
  cargo xtask bench --only requests                 look-ups through the REST service, 500 a second")]
pub struct Options {
    /// Only these, separated by commas; everything, one after the other, where absent.
    #[arg(long, value_delimiter = ',')]
    only: Vec<Benchmark>,
    /// Records of each job.
    #[arg(long, default_value_t = 300_000)]
    records: u64,
    /// Venues that are counted.
    #[arg(long, default_value_t = 2_000)]
    groups: u64,
    /// How often each engine runs, in turns.
    #[arg(long, default_value_t = 2)]
    rounds: u32,
    /// Without Spark and Flink: their jars (320 MB) aren't fetched.
    #[arg(long)]
    no_peers: bool,
}

/// What can be measured.
#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Benchmark {
    /// Users from a topic become rows of a table; with Spark and Flink.
    Projection,
    /// RSVPs of a topic are counted by venue; with Spark and Flink.
    Counts,
    /// Pages of an HTTP API go into a topic.
    Ingest,
    /// The projection's decoding and SQL, without Kafka and Cassandra.
    Decode,
    /// Look-ups by key through the REST service.
    Requests,
}

impl Benchmark {
    const JOBS: [(Self, &str); 4] = [
        (Self::Projection, "projection"),
        (Self::Counts, "counts"),
        (Self::Ingest, "ingest"),
        (Self::Decode, "decode"),
    ];

    fn has_peers(self) -> bool {
        matches!(self, Self::Projection | Self::Counts)
    }
}

/// Brings the servers up, builds what is measured, and measures it.
///
/// # Errors
/// When a result is wrong, or something can't be built or started; the rest is measured all the same.
pub fn bench(options: &Options) -> Result<()> {
    let progress = Progress::new();
    debian::ensure(debian::BUILD, "build librdkafka", &progress)?;
    provider::up(None)?;
    let step = progress.step("building the worker and the benchmark");
    let mut build = process::cargo();
    // Of the whole workspace, as everything else builds it: a selection of packages would have
    // other features of common dependencies, and compile the large ones once more.
    build.args(["build", "--locked", "--workspace"]);
    for binary in [
        "millstream-worker",
        "millstream-apis",
        "ceiling",
        "bench",
        "requests",
    ] {
        build.args(["--bin", binary]);
    }
    process::logged(
        &mut build,
        &root().join("target/bench/build.log"),
        &step,
        BUILD,
    )?;
    step.done("done");
    let mut failed = Vec::new();
    jobs(options, &progress, &mut failed);
    if options.wants(Benchmark::Requests)
        && let Err(error) = measure("requests", &[])
    {
        failed.push(format!("{error:#}"));
    }
    match failed.is_empty() {
        true => Ok(()),
        false => bail!("{}", failed.join("; ")),
    }
}

/// Measures the jobs that are asked for; what went wrong is added to `failed`.
fn jobs(options: &Options, progress: &Progress, failed: &mut Vec<String>) {
    let jobs = Benchmark::JOBS.iter();
    let jobs: Vec<_> = jobs.filter(|(job, _)| options.wants(*job)).collect();
    if jobs.is_empty() {
        return;
    }
    let mut arguments: Vec<_> = jobs.iter().map(|(_, name)| (*name).to_owned()).collect();
    for (name, number) in [
        ("records", options.records),
        ("groups", options.groups),
        ("rounds", options.rounds.into()),
    ] {
        arguments.push(format!("--{name}={number}"));
    }
    if !options.no_peers && jobs.iter().any(|(job, _)| job.has_peers()) {
        for peer in &PEERS {
            match peer.class_path(progress) {
                Ok(path) => arguments.push(format!("--{}={path}", peer.name())),
                Err(error) => {
                    let why = format!("{} can't be measured: {error:#}", peer.name());
                    progress.say(&why);
                    failed.push(why);
                }
            }
        }
    }
    if let Err(error) = measure("bench", &arguments) {
        failed.push(format!("{error:#}"));
    }
}

impl Options {
    fn wants(&self, benchmark: Benchmark) -> bool {
        self.only.is_empty() || self.only.contains(&benchmark)
    }
}

fn measure(name: &str, arguments: &[String]) -> Result<()> {
    // Cargo puts them where it has put this program.
    let program = std::env::current_exe()?.with_file_name(name);
    let status = Command::new(&program)
        .current_dir(root())
        .env(
            "MILLSTREAM_ENVIRONMENT",
            environment::file(&environment::run_folder()?),
        )
        .args(arguments)
        .status()
        .with_context(|| format!("starting {}", program.display()))?;
    if !status.success() {
        bail!("{} failed ({status})", program.display());
    }
    Ok(())
}
