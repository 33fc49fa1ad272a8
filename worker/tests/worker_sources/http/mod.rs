//! The HTTP source against servers that behave as they should, and that don't.

mod auth;
mod cache;
mod faults;
mod incremental;
mod paging;

use std::{
    collections::HashMap,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use axum::{
    Router,
    extract::{Query, State},
    http::{HeaderMap, StatusCode},
    response::{IntoResponse, Response},
    routing::get,
};
use futures::StreamExt;
use millstream_api::source::HttpSource;
use millstream_worker::{
    budget::ANSWERS,
    config::Credentials,
    metrics::Metrics,
    source::{Opening, Records, SourceBatch, http},
    status::{Status, StatusPart},
};
use serde_json::{Value, json};

/// A request, as far as tests look at it.
struct Asked {
    parameters: HashMap<String, String>,
    headers: HeaderMap,
}

impl Asked {
    fn parameter(&self, name: &str) -> Option<&str> {
        self.parameters.get(name).map(String::as_str)
    }

    /// A parameter that has to be there.
    fn number(&self, name: &str) -> usize {
        self.parameters[name].parse().unwrap()
    }
}

type Answer = dyn Fn(usize, &Asked) -> Response + Send + Sync;

/// A server that answers request number `n` with `answer(n, request)`.
struct Api {
    url: String,
    requests: Arc<AtomicUsize>,
}

impl Api {
    async fn start(answer: impl Fn(usize, &Asked) -> Response + Send + Sync + 'static) -> Self {
        type Shared = (Arc<AtomicUsize>, Arc<Answer>);
        async fn answer_it(
            State((requests, answer)): State<Shared>,
            Query(parameters): Query<HashMap<String, String>>,
            headers: HeaderMap,
        ) -> Response {
            let asked = Asked {
                parameters,
                headers,
            };
            answer(requests.fetch_add(1, Ordering::SeqCst), &asked)
        }
        let requests = Arc::new(AtomicUsize::new(0));
        let shared: Shared = (requests.clone(), Arc::new(answer));
        let router = Router::new()
            .route("/api", get(answer_it))
            .with_state(shared);
        let url = format!("{}/api", serve(router).await);
        Api { url, requests }
    }

    fn source(&self, settings: Value) -> HttpSource {
        source(&self.url, settings)
    }

    fn requests(&self) -> usize {
        self.requests.load(Ordering::SeqCst)
    }
}

/// Serves the routes; the URL in front of them.
async fn serve(router: Router) -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    url
}

/// A refusal that may be repeated soon.
fn refused(status: u16) -> Response {
    let status = StatusCode::from_u16(status).unwrap();
    (status, [("retry-after", "0")]).into_response()
}

fn source(url: &str, settings: Value) -> HttpSource {
    let mut spec = json!({"url": url, "timeout": "2s"});
    for (name, value) in settings.as_object().unwrap() {
        spec[name] = value.clone();
    }
    serde_json::from_value(spec).unwrap()
}

fn status() -> (Arc<Status>, StatusPart) {
    let status = Arc::new(Status::default());
    let part = status.part("ingest");
    (status, part)
}

/// Opens a source that needs no Secrets.
fn open(spec: HttpSource, position: Option<&Value>, status: StatusPart) -> Records {
    let metrics = Metrics::default();
    try_open(spec, position, Path::new(""), &status, &metrics).unwrap()
}

fn try_open(
    spec: HttpSource,
    position: Option<&Value>,
    credentials: &Path,
    status: &StatusPart,
    metrics: &Metrics,
) -> anyhow::Result<Records> {
    let opening = Opening {
        schema: "",
        credentials: &Credentials::new(credentials.to_owned()),
        position,
        status,
        metrics: &metrics.stage("ingest"),
        connections: None,
        answers: ANSWERS,
    };
    http::open(spec, &opening)
}

async fn all(spec: HttpSource, position: Option<&Value>) -> Vec<SourceBatch> {
    let (_, part) = status();
    open(spec, position, part).collect().await
}

fn texts(batches: &[SourceBatch]) -> Vec<String> {
    let records = batches.iter().flat_map(|batch| &batch.records);
    records
        .map(|record| String::from_utf8(record.to_vec()).unwrap())
        .collect()
}

/// `{"id": n}` for each of these.
fn records(ids: std::ops::Range<usize>) -> Vec<Value> {
    ids.map(|id| json!({"id": id})).collect()
}

/// The texts of [`records`].
fn ids(ids: std::ops::Range<usize>) -> Vec<String> {
    ids.map(|id| format!(r#"{{"id":{id}}}"#)).collect()
}
