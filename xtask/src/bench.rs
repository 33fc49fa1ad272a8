//! `cargo xtask bench`: the worker's figures next to a hand-written consumer's, and the REST service's.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::environment;
use crate::install::root;
use crate::progress::Progress;
use crate::{debian, process, provider};

const BUILD: Duration = Duration::from_secs(3600);

/// How much to measure.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  cargo xtask bench                                 300,000 records, two rounds
  cargo xtask bench --records 1000000 --rounds 5    figures that hold better
  cargo xtask bench --only requests                 look-ups through the REST service, 500 a second")]
pub struct Options {
    /// Only this; everything, one after the other, where absent.
    #[arg(long)]
    only: Option<Benchmark>,
    /// Records that go from the topic to the table.
    #[arg(long, default_value_t = 300_000)]
    records: u64,
    /// How often each engine runs, in turns.
    #[arg(long, default_value_t = 2)]
    rounds: u32,
}

/// What can be measured.
#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Benchmark {
    /// Records from the topic to the table.
    Rows,
    /// Look-ups by key through the REST service.
    Requests,
}

/// Brings the servers up, builds what is measured, and measures it.
///
/// # Errors
/// When a result is wrong, or something can't be built or started.
pub fn bench(options: &Options) -> Result<()> {
    let progress = Progress::new();
    debian::ensure(debian::BUILD, "build librdkafka", &progress)?;
    provider::up(None)?;
    let step = progress.step("building the worker and the benchmark");
    let mut build = process::cargo();
    // Of the whole workspace, as everything else builds it: a selection of packages would have
    // other features of common dependencies, and compile the large ones once more.
    build.args(["build", "--locked", "--workspace"]);
    for binary in ["millstream-worker", "ceiling", "bench", "requests"] {
        build.args(["--bin", binary]);
    }
    process::logged(
        &mut build,
        &root().join("target/bench/build.log"),
        &step,
        BUILD,
    )?;
    step.done("done");
    if options.only != Some(Benchmark::Requests) {
        let (records, rounds) = (options.records.to_string(), options.rounds.to_string());
        measure("bench", &["--records", &records, "--rounds", &rounds])?;
    }
    if options.only != Some(Benchmark::Rows) {
        measure("requests", &[])?;
    }
    Ok(())
}

fn measure(name: &str, arguments: &[&str]) -> Result<()> {
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
