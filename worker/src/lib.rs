//! The worker: one loop (read → transform → write → acknowledge → commit); the stage is
//! configuration.
//!
//! - [`stage::ingest`]: records of a [`source`] become records of the topic.
//! - [`stage::process`]: records of the topic go through SQL ([`transform`]), maybe joined with a
//!   [`lookup`], into a [`sink`].
//! - [`serve`]: rows of the tables answer HTTP requests.
//!
//! A worker may die at any instant: records and the source's position after them are committed
//! together; an offset is committed only after everything before it has been acknowledged, and writing
//! a row again changes nothing.

pub mod avro;
pub mod batch;
pub mod budget;
mod cassandra;
pub mod check;
pub mod cli;
pub mod config;
pub mod dead_letter;
pub mod decode;
pub mod expectations;
#[cfg(test)]
mod fuzz;
pub mod infer;
pub mod kafka;
pub mod lookup;
pub mod manifest;
pub mod measure;
pub mod metrics;
pub mod pointer;
pub mod position;
pub mod preview;
pub mod registry;
pub mod replay;
pub mod retry;
pub mod sample;
pub mod serve;
pub mod server;
pub mod sink;
pub mod source;
pub mod stage;
pub mod state;
pub mod status;
mod time;
pub mod tls;
pub mod transaction;
mod transform;

use std::{
    net::{Ipv4Addr, Ipv6Addr},
    sync::Arc,
    time::Duration,
};

use anyhow::Context;
use millstream_api::worker::WorkerConfig;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::{config::Credentials, metrics::Metrics, stage::ingest::Run, status::Status};

/// A drain that takes longer is given up; what isn't committed is done again by the next worker.
const DRAIN: Duration = Duration::from_secs(15);

/// Runs the stage until SIGTERM or SIGINT, then drains it; or a run of a pipeline with a schedule,
/// until it is over. Fails only on what a restart or a new configuration has to mend.
pub async fn run(
    config: WorkerConfig,
    run: Option<Run>,
    credentials: Credentials,
    http_port: u16,
) -> anyhow::Result<()> {
    let status = Arc::new(Status::default());
    let metrics = Arc::new(Metrics::default());
    let shutdown = CancellationToken::new();
    let listener = listen_on(http_port).await?;
    tracing::info!(address = %listener.local_addr()?, "listening");
    let server = tokio::spawn(server::serve(listener, status.clone(), metrics.clone()));
    tokio::spawn(cancel_on_signal(shutdown.clone()));

    let is_run = run.is_some();
    let stage = async {
        match config {
            WorkerConfig::Ingest(config) => {
                let shutdown = shutdown.clone();
                stage::ingest::run(config, run, &credentials, status, metrics, shutdown).await
            }
            WorkerConfig::Process(config) => {
                stage::process::run(config, &credentials, status, metrics, shutdown.clone()).await
            }
            WorkerConfig::Serve(config) => {
                serve::run(config, &credentials, status, metrics, shutdown.clone()).await
            }
        }
    };
    let given_up = async {
        shutdown.cancelled().await;
        tokio::time::sleep(DRAIN).await;
    };
    let result = tokio::select! {
        result = stage => result,
        () = given_up => {
            tracing::warn!("the drain took longer than {DRAIN:?}; what isn't committed will be done again");
            match is_run {
                true => Err(anyhow::anyhow!("the run is interrupted")),
                false => Ok(()),
            }
        }
    };
    server.abort();
    result
}

/// Listens on all addresses: on Linux those of IPv4 are among those of IPv6. Where there is no IPv6, on
/// those of IPv4.
async fn listen_on(port: u16) -> anyhow::Result<TcpListener> {
    let listener = match TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).await {
        Ok(listener) => Ok(listener),
        Err(_) => TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).await,
    };
    listener.with_context(|| format!("can't listen on port {port}"))
}

async fn cancel_on_signal(shutdown: CancellationToken) {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut terminate), Ok(mut interrupt)) = (
        signal(SignalKind::terminate()),
        signal(SignalKind::interrupt()),
    ) else {
        tracing::error!("signals can't be received; the worker will not drain");
        return;
    };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tracing::info!("draining");
    shutdown.cancel();
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpStream;

    use super::*;

    #[tokio::test]
    async fn is_reached_by_either_protocol() {
        let listener = listen_on(0).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        TcpStream::connect((Ipv4Addr::LOCALHOST, port))
            .await
            .unwrap();
        if TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).await.is_ok() {
            TcpStream::connect((Ipv6Addr::LOCALHOST, port))
                .await
                .unwrap();
        }
        listen_on(port).await.unwrap_err();
    }
}
