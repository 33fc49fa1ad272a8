//! `/healthz`, `/readyz`, `/metrics` and `/status`.

use std::sync::Arc;

use axum::{
    Json, Router,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use millstream_api::worker::WorkerStatus;
use tokio::net::TcpListener;

use crate::{metrics::Metrics, status::Status};

type Shared = (Arc<Status>, Arc<Metrics>);

/// Serves until the task is aborted.
pub async fn serve(listener: TcpListener, status: Arc<Status>, metrics: Arc<Metrics>) {
    let router = Router::new()
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics_text))
        .route("/status", get(report))
        .with_state((status, metrics));
    if let Err(error) = axum::serve(listener, router).await {
        tracing::error!(%error, "the HTTP endpoints ended");
    }
}

async fn healthz(State((status, _)): State<Shared>) -> Response {
    answer("stuck", status.stuck())
}

async fn readyz(State((status, _)): State<Shared>) -> Response {
    answer("not connected yet", status.unready())
}

fn answer(what: &str, parts: Vec<String>) -> Response {
    if parts.is_empty() {
        return "ok\n".into_response();
    }
    let text = format!("{what}: {}\n", parts.join(", "));
    (StatusCode::SERVICE_UNAVAILABLE, text).into_response()
}

async fn metrics_text(State((_, metrics)): State<Shared>) -> Response {
    let content_type = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, content_type)], metrics.text()).into_response()
}

async fn report(State((status, _)): State<Shared>) -> Json<WorkerStatus> {
    Json(status.report())
}
