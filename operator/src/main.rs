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

const EXAMPLES: &str = r"Examples:
As the chart does:
  millstream-operator run --config /etc/millstream/operator.yaml --credentials-dir /etc/millstream-credentials \
    --log-format json
From this machine, with the chart's configuration (scale its Deployment to 0 first, or this one waits for the Lease):
  kubectl -n millstream-system get configmap millstream-operator -o jsonpath='{.data.operator\.yaml}' > operator.yaml
  KUBECONFIG=~/.kube/config millstream-operator run --config operator.yaml --credentials-dir ./credentials \
    --http-port 8090";

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
