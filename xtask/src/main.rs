//! Builds, brings up, demonstrates and tests Millstream: `cargo xtask --help`.

mod bench;
mod cache;
mod certificates;
mod codegen;
mod debian;
mod demo;
mod dist;
mod environment;
mod go;
mod install;
mod oci;
mod peers;
mod process;
mod progress;
mod provider;
mod python;
mod readback;
mod services;
mod template;
mod test;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};
use provider::{Action, ProviderName};
use services::Service;

#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", version, about)]
#[command(after_help = "Examples:
  cargo xtask demo                                  from nothing to rows, in one command
  cargo xtask up                                    only Kubernetes and the servers
  export KUBECONFIG=$(cargo xtask kubeconfig)       then kubectl speaks to that Kubernetes
  cargo xtask service restart kafka
  cargo xtask readback FOLDER                       a Delta Lake table, as other engines read it
  cargo xtask down                                  stops everything, and removes its data")]
struct Xtask {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Brings up Kubernetes, Kafka, Cassandra, Redis, a schema registry and a document server on this machine.
    Up {
        /// Where Kubernetes runs; kind where a Docker engine answers and `kind`, `kubectl` and `helm` are
        /// there, else a node of our own.
        #[arg(long)]
        provider: Option<ProviderName>,
    },
    /// Fetches and builds what `up` starts, and starts nothing: the first time it takes minutes.
    Fetch {
        /// What `up` is to run with; chosen as there where absent.
        #[arg(long)]
        provider: Option<ProviderName>,
    },
    /// Stops everything that `up` started and removes its data.
    Down {
        /// What `up` has run with; the one that is up where absent.
        #[arg(long)]
        provider: Option<ProviderName>,
    },
    /// Shows what runs, and where.
    Status {
        /// Prints the addresses, credentials and paths as JSON; fails when nothing is up.
        #[arg(long)]
        json: bool,
    },
    /// Starts, stops, restarts, pauses or resumes one of the data services; its data stays.
    Service { action: Action, service: Service },
    /// Gives container images, as OCI archives, to the cluster.
    Load {
        #[arg(required = true, value_name = "IMAGE.TAR")]
        images: Vec<PathBuf>,
    },
    /// Prints the path of the kubeconfig: `export KUBECONFIG=$(cargo xtask kubeconfig)`.
    Kubeconfig,
    /// Writes the files that are generated from the kinds.
    Codegen(codegen::Options),
    /// Builds the container images.
    Dist(dist::Options),
    /// Brings everything up, runs one of the examples and shows its result.
    Demo(demo::Options),
    /// Runs everything that must hold, from formatting to the real cluster.
    Test(test::Options),
    /// Reads Delta Lake tables with delta-rs and Spark, from Python: do they have the same rows? Fetches 400 MB.
    Readback(readback::Options),
    /// Measures the worker next to hand-written programs, Spark and Flink, and its REST service.
    Bench(bench::Options),
}

fn main() -> ExitCode {
    match run(Xtask::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // The causes alone: a backtrace tells a person nothing about a failed server.
            let causes: Vec<_> = error.chain().map(ToString::to_string).collect();
            eprintln!("error: {}", causes.join("\n  because: "));
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<()> {
    match command {
        Command::Up { provider } => provider::up(provider).map(drop),
        Command::Fetch { provider } => provider::fetch(provider),
        Command::Down { provider } => provider::down(provider),
        Command::Status { json } => provider::status(json),
        Command::Service { action, service } => provider::service(action, service),
        Command::Load { images } => provider::load(&images),
        Command::Kubeconfig => provider::kubeconfig(),
        Command::Codegen(options) => codegen::codegen(&options),
        Command::Dist(options) => dist::dist(&options),
        Command::Demo(options) => demo::demo(&options),
        Command::Test(options) => test::test(&options),
        Command::Readback(options) => readback::readback(&options),
        Command::Bench(options) => bench::bench(&options),
    }
}
