//! Credentials get to the server that they are for, and nowhere else; nobody is asked too often.

use std::{
    path::Path,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use axum::{
    http::StatusCode,
    response::{IntoResponse, Redirect},
};
use futures::StreamExt;
use millstream_apis::{Apis, Options, router};
use millstream_worker::metrics::Metrics;
use serde_json::{Value, json};

use super::{Api, ids, open, records, serve, source, status, texts, try_open};

const SECRET: &str = "s3cr&t";

/// A folder with credentials, as the operator mounts them.
fn credentials() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (file, value) in [
        ("http-token", SECRET),
        ("http-username", "me"),
        ("http-password", SECRET),
        ("http-api-key", SECRET),
    ] {
        std::fs::write(folder.path().join(file), format!("{value}\n")).unwrap();
    }
    folder
}

fn secret() -> Value {
    json!({"name": "api", "key": "secret"})
}

/// Every way to say who asks, and what the server sees of it.
fn ways() -> [(Value, &'static str); 4] {
    [
        (
            json!({"bearer": {"tokenSecret": secret()}}),
            "Bearer s3cr&t",
        ),
        (
            json!({"basic": {"usernameSecret": secret(), "passwordSecret": secret()}}),
            "Basic bWU6czNjciZ0",
        ),
        (
            json!({"apiKey": {"header": "X-Api-Key", "secret": secret()}}),
            SECRET,
        ),
        (
            json!({"apiKey": {"query": "key", "secret": secret()}}),
            SECRET,
        ),
    ]
}

/// A server that keeps what its requests carried, and answers them with this.
async fn witness(
    answer: impl Fn() -> axum::response::Response + Send + Sync + 'static,
) -> (Api, Arc<Mutex<Vec<String>>>) {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let recorder = seen.clone();
    let api = Api::start(move |_, asked| {
        let header = |name: &str| Some(asked.headers.get(name)?.to_str().unwrap());
        let carried = [
            header("authorization"),
            header("x-api-key"),
            asked.parameter("key"),
            header("x-own"),
        ];
        let carried: Vec<_> = carried.into_iter().flatten().collect();
        recorder.lock().unwrap().push(carried.join(" "));
        answer()
    })
    .await;
    (api, seen)
}

#[tokio::test]
async fn credentials_go_to_their_own_server_alone() {
    for (auth, carried) in ways() {
        let (other, seen_by_other) = witness(|| r#"{"items": [2]}"#.into_response()).await;
        let elsewhere = other.url.clone();
        let answer = move || {
            let links = json!({"items": [1], "next": elsewhere});
            links.to_string().into_response()
        };
        let (home, seen_at_home) = witness(answer).await;
        // The server repeats the query.
        let elsewhere = match auth.pointer("/apiKey/query") {
            Some(_) => format!("{}?key=s3cr%26t", other.url),
            None => other.url.clone(),
        };
        let redirect = move || Redirect::temporary(&elsewhere).into_response();
        let (moved, seen_before_moving) = witness(redirect).await;

        let folder = credentials();
        for (api, expected) in [(&home, ["1", "2"].as_slice()), (&moved, &["2"])] {
            let settings = json!({
                "records": "/items", "auth": auth, "headers": {"X-Own": "own"},
                "pagination": {"cursor": {"next": "/next"}},
            });
            let (_, part) = status();
            let spec = api.source(settings);
            let source = try_open(spec, None, folder.path(), &part, &Metrics::default()).unwrap();
            let batches: Vec<_> = source.collect().await;
            assert_eq!(texts(&batches), expected);
        }
        let carried = format!("{carried} own");
        for seen in [seen_at_home, seen_before_moving] {
            assert_eq!(seen.lock().unwrap().as_slice(), [carried.as_str()]);
        }
        assert_eq!(*seen_by_other.lock().unwrap(), ["", ""]);
    }
}

#[tokio::test]
async fn a_secret_is_neither_in_errors_nor_in_the_position() {
    let api = Api::start(|request, asked| match request {
        0 => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
        // The server repeats the key in the next page's URL.
        1 => json!({"items": [1], "next": format!("?page=2&key={SECRET}&size=1")})
            .to_string()
            .into_response(),
        2 => (StatusCode::NOT_FOUND, [("retry-after", "0")]).into_response(),
        _ => {
            assert_eq!(asked.parameter("key"), Some(SECRET));
            assert_eq!(asked.parameter("size"), Some("1"));
            r#"{"items": [2]}"#.into_response()
        }
    })
    .await;
    let (auth, _) = ways()[3].clone();
    let settings = json!({
        "records": "/items", "auth": auth, "pagination": {"cursor": {"next": "/next"}},
    });
    let (status, part) = status();
    let folder = credentials();
    let spec = api.source(settings);
    let mut source = try_open(spec, None, folder.path(), &part, &Metrics::default()).unwrap();
    let mut said = Vec::new();
    let mut positions = Vec::new();
    loop {
        let next = tokio::time::timeout(Duration::from_millis(20), source.next()).await;
        said.extend(status.report().errors.into_values());
        match next {
            Ok(Some(batch)) => positions.push(batch.position.to_string()),
            Ok(None) => break,
            Err(_) => {}
        }
    }
    assert!(
        said.iter()
            .any(|error| error.contains("/api: the server answers 500"))
    );
    for text in said.iter().chain(&positions) {
        assert!(!text.contains("s3cr"), "{text}");
    }
    assert!(positions[0].contains("page=2"), "{positions:?}");
}

#[tokio::test]
async fn a_missing_secret_is_named() {
    let (_, part) = status();
    for (auth, _) in ways() {
        let spec = source("http://127.0.0.1:9/", json!({"auth": auth}));
        let opened = try_open(
            spec,
            None,
            Path::new("/nowhere"),
            &part,
            &Metrics::default(),
        );
        let error = opened.err().unwrap().to_string();
        assert!(error.contains("there is no file /nowhere/http-"), "{error}");
    }
}

#[tokio::test]
async fn a_rate_limit_is_kept() {
    let api = Api::start(|_, asked| {
        let page = asked.number("page") - 1;
        Value::from(records(page..7.min(page + 1)))
            .to_string()
            .into_response()
    })
    .await;
    let settings = json!({
        "rateLimit": {"requests": 10, "burst": 3},
        "pagination": {"pageNumber": {}},
    });
    let (_, part) = status();
    let started = Instant::now();
    let batches: Vec<_> = open(api.source(settings), None, part).collect().await;
    assert_eq!(texts(&batches), ids(0..7));
    // Eight requests: three at once, the others 100 ms apart.
    let took = started.elapsed();
    assert!(took > Duration::from_millis(450), "{took:?}");
    assert_eq!(api.requests(), 8);
}

#[tokio::test]
async fn a_server_that_wants_to_be_left_alone_is_by_those_that_wait_for_their_turn_too() {
    const WAIT: Duration = Duration::from_secs(3);
    let refused_at = Arc::new(Mutex::new(None));
    let at = refused_at.clone();
    let api = Api::start(move |request, asked| {
        let mut refused_at = at.lock().unwrap();
        match request {
            // The number of records, and the first page.
            0 => json!({"count": 4}).to_string().into_response(),
            1 => {
                *refused_at = Some(Instant::now());
                (StatusCode::TOO_MANY_REQUESTS, [("retry-after", "3")]).into_response()
            }
            _ => {
                let quiet = refused_at.unwrap().elapsed();
                assert!(quiet >= WAIT, "asked after {quiet:?}");
                let offset = asked.number("offset");
                Value::from(records(offset..offset + 1))
                    .to_string()
                    .into_response()
            }
        }
    })
    .await;
    let count = json!({"query": {"count": "1"}, "pointer": "/count"});
    let settings = json!({
        "rateLimit": {"requests": 4}, "concurrency": 4,
        "pagination": {"limitOffset": {"pageSize": 1, "count": count}},
    });
    let (_, part) = status();
    let batches: Vec<_> = open(api.source(settings), None, part).collect().await;
    assert_eq!(texts(&batches), ids(0..4));
    assert_eq!(
        api.requests(),
        1 + 1 + 4,
        "each was answered the first time"
    );
}

/// Every kind of page of a server that knows its clients and can't take much.
#[tokio::test]
async fn a_storm_of_429_costs_time_and_no_records() {
    for (path, pointer, paging) in [
        (
            "numbered",
            "/items",
            json!({"pageNumber": {"sizeParameter": "per_page", "pageSize": 20, "totalPages": "/total_pages"}}),
        ),
        (
            "cursor",
            "/data",
            json!({"cursor": {"next": "/paging/next", "parameter": "after"}}),
        ),
        ("linked", "", json!({"cursor": {"linkHeader": true}})),
    ] {
        let apis = Apis::new(Options {
            records: 200,
            token: Some("T".into()),
            rate: Some(4),
            ..Options::default()
        });
        let url = format!("{}/pages/{path}", serve(router(apis)).await);
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("http-api-key"), "T").unwrap();
        let settings = json!({
            "records": pointer, "pagination": paging, "concurrency": 8, "query": {"per_page": "20"},
            "auth": {"apiKey": {"query": "api_key", "secret": secret()}},
        });
        let (status, part) = status();
        let spec = source(&url, settings);
        let opened = try_open(spec, None, folder.path(), &part, &Metrics::default()).unwrap();
        let batches: Vec<_> = opened.collect().await;
        let numbers: Vec<_> = texts(&batches)
            .iter()
            .map(|text| serde_json::from_str::<Value>(text).unwrap()["license_nbr"].clone())
            .collect();
        let expected: Vec<_> = (0..200)
            .map(|n| json!(format!("{}-DCA", 1_000_000 + n)))
            .collect();
        assert_eq!(numbers, expected, "{path}");
        assert!(status.report().errors.is_empty());
    }
}
