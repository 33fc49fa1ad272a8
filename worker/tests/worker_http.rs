//! The HTTP source against a server that fails in every way it can.

#![allow(clippy::unwrap_used)]

use std::{
    collections::HashMap,
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::{Query, State},
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::get,
};
use futures::{StreamExt, stream};
use millstream_api::source::HttpSource;
use millstream_worker::{
    config::Credentials,
    metrics::Metrics,
    source::{Opening, Records, SourceBatch, http},
    status::{Status, StatusPart},
};
use serde_json::{Value, json};

type Parameters = HashMap<String, String>;
type Answer = dyn Fn(usize, &Parameters) -> Response + Send + Sync;

/// A server that answers request number `n` with `answer(n, parameters)`.
struct Api {
    url: String,
    requests: Arc<AtomicUsize>,
}

impl Api {
    async fn start(
        answer: impl Fn(usize, &Parameters) -> Response + Send + Sync + 'static,
    ) -> Self {
        type Shared = (Arc<AtomicUsize>, Arc<Answer>);
        async fn serve(
            State((requests, answer)): State<Shared>,
            Query(parameters): Query<Parameters>,
        ) -> Response {
            answer(requests.fetch_add(1, Ordering::SeqCst), &parameters)
        }
        let requests = Arc::new(AtomicUsize::new(0));
        let shared: Shared = (requests.clone(), Arc::new(answer));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/api", listener.local_addr().unwrap());
        let router = Router::new().route("/api", get(serve)).with_state(shared);
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Api { url, requests }
    }

    fn source(&self, settings: Value) -> HttpSource {
        let mut spec = json!({"url": self.url, "timeout": "2s"});
        for (name, value) in settings.as_object().unwrap() {
            spec[name] = value.clone();
        }
        serde_json::from_value(spec).unwrap()
    }

    fn requests(&self) -> usize {
        self.requests.load(Ordering::SeqCst)
    }
}

fn status() -> (Arc<Status>, StatusPart) {
    let status = Arc::new(Status::default());
    let part = status.part("ingest");
    (status, part)
}

fn open(spec: HttpSource, position: Option<&Value>, status: StatusPart) -> Records {
    let opening = Opening {
        schema: "",
        credentials: &Credentials::new(PathBuf::new()),
        position,
        status: &status,
        metrics: &Metrics::default().stage("ingest"),
    };
    http::open(spec, &opening).unwrap()
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

/// Records `offset..offset + limit` of so many.
fn page(total: usize, parameters: &Parameters) -> Response {
    let number = |name: &str| parameters[name].parse::<usize>().unwrap();
    let (offset, limit) = (number("$offset"), number("$limit"));
    let records: Vec<_> = (offset..total.min(offset + limit))
        .map(|id| json!({"id": id}))
        .collect();
    Value::from(records).to_string().into_response()
}

fn pagination(count: bool, max_records: Option<u64>) -> Value {
    let mut pagination = json!({
        "limitParameter": "$limit", "offsetParameter": "$offset", "pageSize": 10,
    });
    if count {
        pagination["count"] = json!({"query": {"$select": "count(*)"}, "pointer": "/0/count"});
    }
    if let Some(max_records) = max_records {
        pagination["maxRecords"] = max_records.into();
    }
    json!({"pagination": {"limitOffset": pagination}, "concurrency": 3})
}

#[tokio::test]
async fn one_answer_is_one_batch_with_its_bytes() {
    let body =
        r#"{"results": [{"name": "Zoë", "postcode": 07}, {"n": 1.50}]}"#.replace("07", "7.0");
    let api = Api::start(move |_, _| body.clone().into_response()).await;
    let batches = all(api.source(json!({"records": "/results"})), None).await;
    assert_eq!(
        texts(&batches),
        [r#"{"name": "Zoë", "postcode": 7.0}"#, r#"{"n": 1.50}"#]
    );
}

#[tokio::test]
async fn counted_pages_come_in_order_and_resume() {
    let api = Api::start(|request, parameters| {
        if parameters.contains_key("$select") {
            return r#"[{"count": "35"}]"#.into_response();
        }
        // Later pages answer sooner: the order must not depend on it.
        std::thread::sleep(Duration::from_millis(20 / (request as u64 + 1)));
        page(35, parameters)
    })
    .await;
    let batches = all(api.source(pagination(true, None)), None).await;
    let expected: Vec<_> = (0..35).map(|id| format!(r#"{{"id":{id}}}"#)).collect();
    assert_eq!(texts(&batches), expected);
    assert_eq!(api.requests(), 5);

    let rest = all(
        api.source(pagination(true, None)),
        Some(&batches[1].position),
    )
    .await;
    assert_eq!(texts(&rest), expected[20..]);
}

#[tokio::test]
async fn uncounted_pages_end_with_a_short_one_or_at_the_limit() {
    for (total, max_records, requests, records) in [
        (25, None, 3, 25),
        (20, None, 3, 20),
        (100, Some(25), 3, 25),
        (100, Some(20), 2, 20),
    ] {
        let api = Api::start(move |_, parameters| page(total, parameters)).await;
        let batches = all(api.source(pagination(false, max_records)), None).await;
        assert_eq!(texts(&batches).len(), records, "{total} {max_records:?}");
        assert_eq!(api.requests(), requests, "{total} {max_records:?}");
    }
}

/// Each fault in turn, then an answer: what the status says meanwhile.
async fn outlive(faults: Vec<fn() -> Response>) -> Vec<String> {
    let (status, part) = status();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let recorder = (status.clone(), seen.clone());
    let api = Api::start(move |request, _| {
        let shown = recorder.0.report().errors.into_values();
        recorder.1.lock().unwrap().extend(shown);
        match faults.get(request) {
            Some(fault) => fault(),
            None => r#"{"results": [{"a": 1}]}"#.into_response(),
        }
    })
    .await;
    let source = open(api.source(json!({"records": "/results"})), None, part);
    let batches: Vec<_> = source.collect().await;
    assert_eq!(texts(&batches), [r#"{"a": 1}"#]);
    assert!(status.report().errors.is_empty(), "{:?}", status.report());
    let seen = seen.lock().unwrap();
    seen.clone()
}

fn assert_says(seen: &[String], says: &[&str]) {
    assert_eq!(seen.len(), says.len(), "{seen:?}");
    for (error, says) in seen.iter().zip(says) {
        assert!(error.contains(says), "{error}");
    }
}

#[tokio::test]
async fn a_server_that_fails_is_outlived() {
    let started = Instant::now();
    let seen = outlive(vec![
        || (StatusCode::TOO_MANY_REQUESTS, [("retry-after", "2")]).into_response(),
        || StatusCode::INTERNAL_SERVER_ERROR.into_response(),
        cut_off,
    ])
    .await;
    assert!(started.elapsed() >= Duration::from_secs(2));
    assert_says(
        &seen,
        &[
            "the server answers 429",
            "the server answers 500",
            "cut off",
        ],
    );
}

#[tokio::test]
async fn an_answer_that_makes_no_sense_is_outlived() {
    let seen = outlive(vec![|| r#"{"results": [{"a": 1}"#.into_response(), || {
        r#"{"error": "busy"}"#.into_response()
    }])
    .await;
    let fields = "`/results` is not in the answer, which has the fields error";
    assert_says(&seen, &["isn't JSON", fields]);
}

/// A body that ends before the length that its header promises.
fn cut_off() -> Response {
    let begin = stream::iter([Ok(Bytes::from_static(b"{\"results\": ["))]);
    let cut = stream::once(async {
        // The beginning has to be on its way first.
        tokio::time::sleep(Duration::from_millis(100)).await;
        Err(std::io::Error::other("cut"))
    });
    Body::from_stream(begin.chain(cut)).into_response()
}

#[tokio::test]
async fn a_refusal_is_shown_and_not_hammered() {
    let (status, part) = status();
    let api = Api::start(|_, _| StatusCode::NOT_FOUND.into_response()).await;
    let mut source = open(api.source(json!({})), None, part);
    let waited = tokio::time::timeout(Duration::from_secs(3), source.next()).await;
    assert!(waited.is_err());
    assert_eq!(api.requests(), 1);
    let error = &status.report().errors["ingest"];
    assert!(error.contains("404"), "{error}");
}

#[tokio::test]
async fn polls_again_and_again() {
    let api =
        Api::start(|request, _| json!([{"request": request}]).to_string().into_response()).await;
    let (_, part) = status();
    let source = open(
        api.source(json!({"poll": {"interval": "100ms"}})),
        None,
        part,
    );
    let started = Instant::now();
    let batches: Vec<_> = source.take(4).collect().await;
    assert_eq!(texts(&batches)[3], r#"{"request":3}"#);
    assert!(started.elapsed() >= Duration::from_millis(300));
}
