//! A server that fails in every way it can.

use std::{
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use axum::{
    body::{Body, Bytes},
    http::StatusCode,
    response::{IntoResponse, Response},
};
use futures::{StreamExt, stream};
use serde_json::{Value, json};

use super::{ANSWERS, Api, Credentials, Metrics, Opening, http, open, status, texts};

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
async fn an_answer_that_never_ends_is_given_up() {
    let (_, part) = status();
    let api = Api::start(|request, _| match request {
        0 => Body::from_stream(stream::pending::<std::io::Result<Bytes>>()).into_response(),
        _ => r#"{"results": [{"a": 1}]}"#.into_response(),
    })
    .await;
    let spec = json!({"records": "/results", "timeout": "500ms"});
    let batches = open(api.source(spec), None, part).collect::<Vec<_>>();
    let batches = tokio::time::timeout(Duration::from_secs(60), batches).await;
    assert_eq!(texts(&batches.unwrap()), [r#"{"a": 1}"#]);
    assert_eq!(api.requests(), 2);
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

#[tokio::test]
async fn an_empty_answer_that_should_have_content_is_outlived() {
    let empty: fn() -> Response = || StatusCode::OK.into_response();
    let seen = outlive(vec![empty, || StatusCode::ACCEPTED.into_response()]).await;
    assert_says(&seen, &["the answer is empty"; 2]);
    // One that is nothing else is taken at its word.
    let (status, part) = status();
    let api = Api::start(move |_, _| empty()).await;
    let batches: Vec<_> = open(api.source(json!({})), None, part).collect().await;
    assert!(texts(&batches).is_empty());
    assert_eq!(api.requests(), 3);
    let warning = &status.report().warnings["ingest"];
    assert!(warning.contains("nothing at all"), "{warning}");
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
async fn a_server_that_wants_to_be_asked_at_once_is_not_hammered() {
    for status in [StatusCode::TOO_MANY_REQUESTS, StatusCode::NOT_FOUND] {
        let (_, part) = super::status();
        let api = Api::start(move |request, _| {
            let at_once = ["0", "Sat, 21 Nov 2020 15:00:42 GMT"][request % 2];
            (status, [("retry-after", at_once)]).into_response()
        })
        .await;
        let mut source = open(api.source(json!({})), None, part);
        let waited = tokio::time::timeout(Duration::from_secs(2), source.next()).await;
        assert!(waited.is_err());
        // At least half a second lies between two of them.
        let requests = api.requests();
        assert!(requests <= 4, "{status}: {requests} requests");
    }
}

#[tokio::test]
async fn an_answer_that_memory_has_no_room_for_is_refused() {
    let of = |mebibytes: usize| format!(r#"[{{"a": "{}"}}]"#, "x".repeat(mebibytes << 20));
    let (large, small) = (of(3), of(1));
    let api = Api::start(move |_, _| large.clone().into_response()).await;
    is_refused_for_its_size(&api, json!({})).await;
    // A page of which the server gives one record at a time.
    let api = Api::start(move |_, asked| match asked.parameter("select") {
        Some(_) => r#"{"count": 3}"#.into_response(),
        None => small
            .replacen('x', &asked.parameters["offset"], 1)
            .into_response(),
    })
    .await;
    let count = json!({"query": {"select": "count"}, "pointer": "/count"});
    let paging = json!({"limitOffset": {"pageSize": 3, "count": count}});
    is_refused_for_its_size(&api, json!({"pagination": paging, "concurrency": 1})).await;
}

/// Where there is room for 2 MiB, and not where there is as much as usual.
async fn is_refused_for_its_size(api: &Api, settings: Value) {
    let (status, part) = status();
    let mut opening = Opening {
        schema: "",
        credentials: &Credentials::new("".into()),
        position: None,
        status: &part,
        metrics: &Metrics::default().stage("ingest"),
        connections: None,
        answers: 2 << 20,
    };
    let mut source = http::open(api.source(settings.clone()), &opening).unwrap();
    let refused = async {
        while status.report().errors.is_empty() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::select! {
        _ = source.next() => panic!("it is taken"),
        () = refused => {}
    }
    assert_says(
        &status.report().errors.into_values().collect::<Vec<_>>(),
        &["a page has more than 2.0 MiB"],
    );
    opening.answers = ANSWERS;
    let mut source = http::open(api.source(settings), &opening).unwrap();
    assert!(!source.next().await.unwrap().records.is_empty());
}
