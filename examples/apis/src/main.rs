//! The server's command line.

use std::io::IsTerminal;
use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Parser;
use millstream_apis::{Apis, Options, dataset::Dataset, router};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

const EXAMPLES: &str = "\
Examples:
  millstream-apis --listen 127.0.0.1:8090
      curl 'http://127.0.0.1:8090/api/?results=2&seed=abc'      users, as randomuser.me gives them
      curl 'http://127.0.0.1:8090/resource/w7w3-xahh.json?$limit=2&$order=license_nbr'
      curl -g 'http://127.0.0.1:8090/resource/w7w3-xahh.json?$select=count(*)'
      curl -H 'X-Api-Key: T' 'http://127.0.0.1:8090/pages/numbered?page=2&per_page=10'
      curl -i 'http://127.0.0.1:8090/pages/linked?per_page=10'  with a Link header; also /pages/cursor
      curl -O http://127.0.0.1:8090/files/sessions.zip          also meetup_rsvps; .ndjson, .ndjson.gz
      curl 'http://127.0.0.1:8090/sent?ids=false'               what was served so far

  millstream-apis --data recorded.jsonl.gz
      serves the recorded records in place of generated ones, in their order

  Faults, one request or many (kinds: 500, 429, slow, cut, malformed):
      curl 'http://127.0.0.1:8090/api/?fault=429'
      curl -X POST http://127.0.0.1:8090/faults --json '{\"kind\": \"500\", \"next\": 3}'
      curl -X POST http://127.0.0.1:8090/faults --json '{\"kind\": \"cut\", \"rate\": 0.2}'
      curl -X DELETE http://127.0.0.1:8090/faults";

/// Behaves as the public APIs of the examples do: Randomuser and Socrata.
///
/// The same seed gives the same records in the same order.
#[derive(Parser)]
#[command(name = "millstream-apis", version, after_help = EXAMPLES)]
struct Arguments {
    /// Address to listen on.
    #[arg(long, env = "MILLSTREAM_APIS_LISTEN", default_value = "0.0.0.0:8080")]
    listen: SocketAddr,
    /// Seed of everything that is generated.
    #[arg(long, env = "MILLSTREAM_APIS_SEED", default_value = "millstream")]
    seed: String,
    /// Rows of the generated Socrata dataset.
    #[arg(long, env = "MILLSTREAM_APIS_RECORDS", default_value_t = 10_000)]
    records: u64,
    /// Serve these records: JSON lines, a JSON array or a Randomuser answer; `.gz` too.
    #[arg(long, env = "MILLSTREAM_APIS_DATA", value_name = "FILE")]
    data: Option<PathBuf>,
    /// Serve this folder's NAME.ndjson or NAME.ndjson.gz at /files/NAME.ndjson, .ndjson.gz and .zip.
    #[arg(long, env = "MILLSTREAM_APIS_FILES", value_name = "FOLDER")]
    files: Option<PathBuf>,
    /// What requests to /pages/ have to know, as bearer token, X-Api-Key or api_key.
    #[arg(long, env = "MILLSTREAM_APIS_TOKEN")]
    token: Option<String>,
    /// Requests to /pages/ that are answered in a second; others get 429.
    #[arg(long, env = "MILLSTREAM_APIS_RATE")]
    rate: Option<u32>,
}

#[tokio::main]
async fn main() -> Result<()> {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stdout().is_terminal())
        .init();
    let arguments = Arguments::parse();
    let recorded = arguments.data.as_deref().map(Dataset::load).transpose()?;
    let apis = Apis::new(Options {
        seed: arguments.seed,
        records: arguments.records,
        recorded,
        files: arguments.files,
        token: arguments.token,
        rate: arguments.rate,
    });
    let listener = TcpListener::bind(arguments.listen)
        .await
        .with_context(|| format!("listening on {}", arguments.listen))?;
    tracing::info!(address = %listener.local_addr()?, "serving");
    axum::serve(listener, router(apis))
        .with_graceful_shutdown(asked_to_stop())
        .await?;
    Ok(())
}

/// Returns at SIGTERM or Ctrl-C.
async fn asked_to_stop() {
    let mut terminate = match signal(SignalKind::terminate()) {
        Ok(terminate) => terminate,
        Err(error) => {
            tracing::warn!(%error, "SIGTERM ends the server at once");
            return std::future::pending().await;
        }
    };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = tokio::signal::ctrl_c() => {}
    }
}
