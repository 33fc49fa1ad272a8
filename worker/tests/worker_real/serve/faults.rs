//! Without Cassandra, with queries that it refuses or that take too long, and at its own end.

use serde_json::{Value, json};

use super::{sessions, sessions_in};
use crate::{
    serving::Gate,
    support::{Environment, StoppedService},
};

#[tokio::test]
async fn without_cassandra_it_says_so_and_comes_back() {
    let Some(mut serving) = sessions().await else {
        return;
    };
    // The driver takes nodes for what they say of themselves, with the gate's port.
    if !serving.cassandra.starts_with("127.") {
        eprintln!("skipped: Cassandra isn't on the loopback address, no gate can stand before it");
        return;
    }
    let gate = Gate::open(&serving.cassandra).await;
    serving.cassandra = gate.address.clone();
    gate.shut();
    // It starts without Cassandra, too.
    let server = serving.start_unready().await;
    let response = server.get("/api/data").await;
    assert_eq!(response.status(), 503);
    assert!(response.headers().contains_key("retry-after"));
    assert_eq!(server.get("/docs").await.status(), 200);
    assert_eq!(
        server.json("/health").await,
        (
            503,
            json!({"status": "unhealthy", "cassandra": "unreachable"})
        )
    );
    gate.unshut();
    server.await_status("/api/data", 200).await;
    server.await_status("/health", 200).await;

    gate.shut();
    server.await_status("/api/data", 503).await;
    server.await_status("/health", 503).await;
    assert_eq!(server.json("/api/top_venues?format=json").await.0, 503);
    assert_eq!(
        server.json("/api/data?limit=0").await.0,
        400,
        "what is wrong is wrong all the same"
    );
    let status = server.admin("/status").await;
    assert!(status.contains("Cassandra can't be reached"), "{status}");
    gate.unshut();
    server.await_status("/api/data", 200).await;
    server.await_status("/health", 200).await;
    assert!(!server.admin("/status").await.contains("Cassandra"));
}

#[tokio::test]
async fn cassandra_may_be_stopped_and_started() {
    let Some(environment) = Environment::find_alone().await else {
        return;
    };
    let mut serving = sessions_in(environment).await;
    let server = serving.start().await;
    let paths = [
        "/models/completed-sessions/p1",
        "/api/top_venues?format=json",
    ];
    let mut before = Vec::new();
    for path in paths {
        let (status, body) = server.json(path).await;
        assert_eq!(status, 200, "{path}: {body}");
        before.push(body);
    }
    let Some(cassandra) = StoppedService::stop("cassandra").await else {
        return;
    };
    server.await_status("/health", 503).await;
    for path in paths {
        let response = server.get(path).await;
        assert_eq!(response.status(), 503, "{path}");
        assert!(response.headers().contains_key("retry-after"));
        let body: Value = response.json().await.unwrap();
        let detail = body["detail"].as_str().unwrap();
        assert!(
            detail.contains("Cassandra can't be reached") || detail.contains("took longer"),
            "{path}: {detail}"
        );
    }
    let status = server.admin("/status").await;
    assert!(status.contains("Cassandra can't be reached"), "{status}");
    cassandra.start().await;
    server.await_status("/health", 200).await;
    for (path, before) in paths.into_iter().zip(before) {
        server.await_status(path, 200).await;
        assert_eq!(server.json(path).await.1, before, "{path}");
    }
}

/// An endpoint that takes its time: so many hashes.
fn slow(hashes: u32) -> Value {
    json!({
        "name": "slow", "path": "/slow", "cql": "SELECT n FROM venues",
        "transform": format!(
            "SELECT count(sha256(CAST(value AS TEXT))) AS n FROM generate_series(1, {hashes})"
        ),
    })
}

#[tokio::test]
async fn what_has_begun_is_answered_before_it_ends() {
    let Some(mut serving) = sessions().await else {
        return;
    };
    serving.serve["timeout"] = json!("1m");
    let endpoints = serving.serve["endpoints"].as_array_mut().unwrap();
    endpoints.push(slow(1_000_000));
    let server = serving.start().await;
    let begun = tokio::spawn(server.client.get(server.url("/slow")).send());
    // It has come: the transform runs.
    while !server
        .admin("/metrics")
        .await
        .contains("requests_in_flight 1")
    {
        assert!(!begun.is_finished(), "it is answered before it was seen");
    }
    let ended = server.terminate();
    let answer = begun.await.unwrap().unwrap();
    assert_eq!(answer.status(), 200);
    assert_eq!(
        answer.json::<Value>().await.unwrap(),
        json!([{"n": 1_000_000}])
    );
    assert_eq!(ended.await, Some(0));
}

#[tokio::test]
async fn what_takes_too_long_is_given_up() {
    let Some(mut serving) = sessions().await else {
        return;
    };
    serving.serve["timeout"] = json!("500ms");
    let endpoints = serving.serve["endpoints"].as_array_mut().unwrap();
    endpoints.push(slow(200_000_000));
    let server = serving.start().await;
    for _ in 0..3 {
        let (status, body) = server.json("/slow").await;
        assert_eq!(status, 503, "{body}");
    }
    // What was given up doesn't run on: others get their turn.
    server.await_status("/api/top_venues", 200).await;
}

#[tokio::test]
async fn a_query_that_cassandra_refuses_is_in_the_status() {
    let Some(mut serving) = sessions().await else {
        return;
    };
    serving.serve["endpoints"]
        .as_array_mut()
        .unwrap()
        .push(json!({
            "name": "wrong", "path": "/wrong", "cql": "SELECT nothing FROM venues",
        }));
    let server = serving.start_unready().await;
    server.await_status("/api/data", 200).await;
    assert_eq!(server.get("/wrong").await.status(), 503);
    let status = server.admin("/status").await;
    assert!(
        status.contains("endpoint `wrong`") && status.contains("nothing"),
        "{status}"
    );
    assert!(
        server.admin("/readyz").await.contains("_serve"),
        "old pods aren't replaced by it"
    );
}
