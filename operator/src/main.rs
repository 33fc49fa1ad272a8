//! `millstream-operator`: reconciles DataPipelines, Topics and Keyspaces.

use std::io::IsTerminal;

use clap::{Parser, Subcommand};
use millstream_operator::config::{LogFormat, Options};
use tracing_subscriber::EnvFilter;

/// Reconciles DataPipelines, Topics and Keyspaces.
#[derive(Parser)]
#[command(name = "millstream-operator", version, about, after_help = EXAMPLES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Reconcile until SIGTERM or Ctrl-C.
    #[command(after_help = EXAMPLES)]
    Run(Options),
}

const EXAMPLES: &str = "Examples:
  millstream-operator run --config /etc/millstream/operator.yaml --log-format json
  KUBECONFIG=~/.kube/config millstream-operator run --config operator.yaml --http-port 8090 --log-filter debug";

fn main() -> anyhow::Result<()> {
    // First of all: two providers are linked in, and rustls chooses neither by itself.
    rustls::crypto::ring::default_provider()
        .install_default()
        .map_err(|_| anyhow::anyhow!("a TLS provider is installed already"))?;
    let Cli {
        command: Command::Run(options),
    } = Cli::parse();
    let filter = EnvFilter::try_new(&options.log_filter)?;
    let log = tracing_subscriber::fmt().with_env_filter(filter);
    match options.log_format {
        LogFormat::Human => {
            let ansi = std::io::stderr().is_terminal();
            log.with_writer(std::io::stderr).with_ansi(ansi).init();
        }
        LogFormat::Json => log.json().flatten_event(true).init(),
    }
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?
        .block_on(millstream_operator::run(options))
}
