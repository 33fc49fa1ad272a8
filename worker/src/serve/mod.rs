//! The serve stage: tables → HTTP. It answers from the start; while Cassandra or a Delta Lake table is
//! away, with 503.

mod answer;
mod auth;
mod engine;
mod html;
mod lake;
mod listen;
mod openapi;
mod page;
mod parameter;
mod plot;
mod problem;
mod query;
mod service;
mod sql;
pub(crate) mod value;

use std::sync::Arc;

use anyhow::Context;
use axum::Router;
use millstream_api::worker::{SERVE_PART, ServeConfig};
use tokio_util::sync::CancellationToken;
use tower_http::compression::{CompressionLayer, predicate::SizeAbove};

use self::service::Service;
use crate::{config::Credentials, metrics::Metrics, sink::cassandra, status::Status};

/// Smaller answers aren't worth compressing: they fit into a packet.
const COMPRESS_ABOVE: u64 = 1_024;

/// Serves until shutdown, and then until what has begun is answered. Fails where a restart or
/// another configuration is needed.
pub async fn run(
    config: ServeConfig,
    credentials: &Credentials,
    status: Arc<Status>,
    metrics: Arc<Metrics>,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let part = status.part(SERVE_PART);
    let service = Arc::new(Service::new(&config, credentials, part.clone(), metrics)?);
    let listener = tokio::net::TcpListener::bind(("0.0.0.0", config.port))
        .await
        .with_context(|| format!("can't listen on port {}", config.port))?;
    tracing::info!(address = %listener.local_addr()?, "serving");
    let router = Router::new()
        .fallback(service::handle)
        .with_state(service.clone())
        .layer(CompressionLayer::new().compress_when(SizeAbove::new(COMPRESS_ABOVE)));
    let open = async {
        if let Some(cassandra) = &config.cassandra {
            let parts = std::slice::from_ref(&part);
            let session = cassandra::connect(cassandra, credentials, parts).await?;
            service.open(session).await;
        }
        service.open_lake().await;
        part.ready();
        tokio::join!(service.watch(), service.watch_lake());
        anyhow::Ok(())
    };
    tokio::select! {
        // Ends only where the credentials can't be read.
        opened = open => opened,
        () = listen::serve(listener, router, shutdown) => Ok(()),
    }
}
