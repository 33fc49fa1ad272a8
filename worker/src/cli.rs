//! The command line of `millstream-worker`. It is in the library, so that the compiler makes the machine
//! code of the stages once, and not for the binary again.

use std::{io::IsTerminal, process::ExitCode, time::Duration};

use anyhow::Context;
use clap::{Parser, Subcommand, ValueEnum};
use tracing_subscriber::EnvFilter;

use crate::{
    budget,
    check::{self, Check},
    config::Mounted,
    infer::{self, Infer},
    measure::{self, Measure},
    preview::{self, Preview},
    replay::{self, Replay},
    stage::ingest::Run as ScheduledRun,
};

const EXAMPLES: &str = "\
Examples:
  Run as the operator does:
    millstream-worker run --config /etc/millstream/worker.yaml --credentials-dir /etc/millstream-credentials

  Run by hand, and see what it does:
    RUST_LOG=millstream_worker=debug millstream-worker run --config worker.yaml --http-port 0 --log-format human";

/// Runs one stage of a DataPipeline: source to topic, or topic through SQL to tables.
#[derive(Parser)]
#[command(version, after_help = EXAMPLES)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the stage that the configuration names, until SIGTERM or SIGINT.
    #[command(after_help = EXAMPLES)]
    Run(Run),
    /// Tell what the API server and the operator would refuse, without either.
    #[command(after_help = check::EXAMPLES)]
    Check(Check),
    /// Read the source's first records, run the SQL and show the rows; writes nothing anywhere.
    #[command(after_help = preview::EXAMPLES)]
    Preview(Preview),
    /// Print the schema of what a source gives, or a whole pipeline to start from.
    #[command(after_help = infer::EXAMPLES)]
    Infer(Infer),
    /// Send dead letters to the topic again, each for the sink that rejected it.
    #[command(after_help = replay::EXAMPLES)]
    Replay(Replay),
    /// Decode records of a file and run the SQL over them, alone: for `cargo xtask bench`.
    #[command(hide = true)]
    Decode(Measure),
}

#[derive(clap::Args)]
struct Run {
    #[command(flatten)]
    mounted: Mounted,
    /// Port of /healthz, /readyz, /metrics and /status; 0 for any that is free.
    #[arg(long, env = "MILLSTREAM_HTTP_PORT", default_value_t = millstream_api::worker::HTTP_PORT)]
    http_port: u16,
    /// Name of a run, for the ingest stage: the worker ends when the source does, or when the run is
    /// out of time. One that is started again with the same name goes on.
    #[arg(long)]
    run: Option<String>,
    /// Seconds that a run has, from its first start on; up to the end of the source where absent.
    #[arg(long, requires = "run")]
    run_for: Option<f64>,
    /// How log lines are written.
    #[arg(long, env = "MILLSTREAM_LOG_FORMAT", default_value = "json")]
    log_format: LogFormat,
}

#[derive(Clone, Copy, ValueEnum)]
enum LogFormat {
    /// For people.
    Human,
    /// One JSON object a line.
    Json,
}

/// Does what the arguments say.
pub fn main() -> ExitCode {
    // Two providers are linked in (ring and aws-lc), so rustls can't choose by itself.
    if rustls::crypto::ring::default_provider()
        .install_default()
        .is_err()
    {
        eprintln!("the TLS provider was installed twice");
        return ExitCode::FAILURE;
    }
    match Arguments::parse().command {
        Command::Run(run) => {
            start_logging(run.log_format, "info,scylla=error,librdkafka=error");
            match run_stage(run) {
                Ok(()) => ExitCode::SUCCESS,
                Err(error) => {
                    tracing::error!("{error:#}");
                    ExitCode::FAILURE
                }
            }
        }
        Command::Check(check) => answer("error", || check::run(&check)),
        Command::Preview(preview) => answer("error", || block_on(preview::run(&preview))),
        Command::Infer(infer) => answer("error", || block_on(infer::run(&infer))),
        // It waits for Kafka, and says so.
        Command::Replay(replay) => answer("error,millstream_worker::status=warn", || {
            block_on(replay::run(&replay))
        }),
        Command::Decode(measure) => answer("error", || measure::run(&measure)),
    }
}

/// Runs a command that a person waits for.
fn answer(logged: &str, command: impl FnOnce() -> anyhow::Result<ExitCode>) -> ExitCode {
    start_logging(LogFormat::Human, logged);
    command().unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}

fn block_on<T>(command: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    let result = runtime.block_on(command);
    // What still waits for a server is of no interest any more.
    runtime.shutdown_background();
    result
}

fn run_stage(run: Run) -> anyhow::Result<()> {
    let (config, credentials) = run.mounted.load()?;
    let config = config.limited(budget::limit_of_container());
    let limit = run.run_for.map(Duration::try_from_secs_f64).transpose();
    let limit = limit.context("--run-for isn't a number of seconds")?;
    let scheduled = run.run.map(|name| ScheduledRun { name, limit });
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        // The rebalance callback of a consumer may block one of them.
        .worker_threads(
            std::thread::available_parallelism()
                .map_or(2, |n| n.get())
                .max(2),
        )
        .build()?;
    let result = runtime.block_on(crate::run(config, scheduled, credentials, run.http_port));
    // What still blocks on a server that doesn't answer must not hold up the end.
    runtime.shutdown_timeout(Duration::from_secs(2));
    result
}

fn start_logging(format: LogFormat, default: &str) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(default));
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    match format {
        // Colours are for those who watch; a file or another program reads plain text.
        LogFormat::Human => builder.with_ansi(std::io::stderr().is_terminal()).init(),
        LogFormat::Json => builder.json().flatten_event(true).init(),
    }
}
