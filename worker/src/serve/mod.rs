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
mod room;
mod service;
mod sql;
mod value;

use std::{sync::Arc, time::Duration};

use axum::Router;
use millstream_api::{
    CassandraConnection,
    worker::{SERVE_PART, ServeConfig},
};
use scylla::client::session::Session;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tower_http::compression::{CompressionLayer, predicate::SizeAbove};

use self::service::Service;
use crate::{
    cassandra,
    config::{ConfigError, Credentials},
    listen_on,
    metrics::Metrics,
    status::{Status, StatusPart},
};

/// Smaller answers aren't worth compressing: they fit into a packet.
const COMPRESS_ABOVE: u64 = 1_024;

/// For so long `sql` waits for Cassandra, so that a new pod answers all that the old one did.
const AWAY: Duration = Duration::from_secs(10);

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
    let listener = listen_on(config.port).await?;
    tracing::info!(address = %listener.local_addr()?, "serving");
    let router = Router::new()
        .fallback(service::handle)
        .with_state(service.clone())
        .layer(CompressionLayer::new().compress_when(SizeAbove::new(COMPRESS_ABOVE)));
    let cassandra = async {
        if let Some(connection) = &config.cassandra {
            let endpoints = &config.serve.endpoints;
            let has_sql = endpoints.iter().any(|endpoint| endpoint.sql.is_some());
            let session = connect(connection, credentials, &part, has_sql).await?;
            let open = async {
                service.open(&session).await;
                part.ready();
            };
            tokio::join!(open, service.watch(&session));
        }
        anyhow::Ok(())
    };
    let lake = async {
        service.open_lake().await;
        if config.cassandra.is_none() {
            part.ready();
        }
        service.watch_lake().await;
        anyhow::Ok(())
    };
    let open = async { tokio::try_join!(cassandra, lake).map(drop) };
    tokio::select! {
        // Ends only where the credentials can't be read.
        opened = open => opened,
        () = listen::serve(listener, router, shutdown) => Ok(()),
    }
}

/// Connects to Cassandra. A service that has `sql`, too, is ready without it when it doesn't come.
async fn connect(
    connection: &CassandraConnection,
    credentials: &Credentials,
    part: &StatusPart,
    has_sql: bool,
) -> Result<Arc<Session>, ConfigError> {
    let connecting = cassandra::connect(connection, credentials, vec![part.clone()])?;
    if has_sql {
        if let Ok(session) = timeout(AWAY, connecting.clone()).await {
            return Ok(session);
        }
        part.ready();
    }
    Ok(connecting.await)
}
