//! Replays of dead letters that are killed or frozen, against the real Kafka and Cassandra. Skipped where
//! `MILLSTREAM_ENVIRONMENT` doesn't name them.

use std::collections::BTreeMap;

use crate::support::{Environment, Pipeline, Settings, signal};
use serde_json::json;

const LETTERS: i64 = 20_000;

const KINDS: Settings = Settings {
    schema: "kind TEXT, n BIGINT",
    sql: "SELECT kind, count(*) AS records, sum(n) AS total FROM records GROUP BY kind",
    columns: &[("kind", "text"), ("records", "bigint"), ("total", "bigint")],
    key: "/kind",
    partitions: 1,
    base: 1_700_000_000_000_000,
};

/// A pipeline whose records are all dead letters; none where there are no servers.
async fn with_letters() -> Option<Pipeline> {
    let pipeline = Pipeline::create(Environment::find().await?, KINDS).await;
    let records = (0..LETTERS).map(|n| {
        let kind = format!("k{}", n % 7);
        let record = json!({"kind": kind, "n": n}).to_string();
        (kind, record.into_bytes())
    });
    pipeline.produce_all(&records.collect::<Vec<_>>()).await;
    let process = pipeline.process_with(json!({
        "sql": "SELECT kind, n AS records, n AS total FROM records",
        "expectations": [{"name": "never", "check": "records < 0", "onFailure": "DeadLetter"}],
    }));
    pipeline.await_commits().await;
    assert_eq!(pipeline.progress().await.0.dead_lettered, LETTERS);
    process.kill();
    Some(pipeline)
}

/// Each letter is in the topic once more, and the groups count it once.
async fn assert_replayed_once(pipeline: &Pipeline) {
    let mut records = pipeline.records().await;
    assert_eq!(records.len() as i64, 2 * LETTERS);
    records.dedup();
    assert_eq!(records.len() as i64, LETTERS);

    pipeline.create_state_table().await;
    let process = pipeline.process();
    pipeline.await_commits().await;
    let mut expected = BTreeMap::<String, (i64, i64)>::new();
    for n in 0..LETTERS {
        let (count, total) = expected.entry(format!("k{}", n % 7)).or_default();
        *count += 1;
        *total += n;
    }
    let rows: Vec<(String, i64, i64)> = pipeline.select("kind, records, total").await;
    let rows = rows
        .into_iter()
        .map(|(kind, count, total)| (kind, (count, total)));
    assert_eq!(rows.collect::<BTreeMap<_, _>>(), expected);
    drop(process);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_that_is_killed_again_and_again_sends_each_letter_once() {
    let Some(pipeline) = with_letters().await else {
        return;
    };
    let end = pipeline.end();
    // With nothing sent, in the middle of transactions, and after some.
    for further in [0, 1, 130, 499, 700, 1_300, 2_100, 37] {
        let before = end.offset();
        let mut replay = pipeline.start_replay("process", &[]);
        end.await_offset(before + further);
        let ended = replay.try_wait().unwrap();
        assert!(ended.is_none(), "it has ended before {further} offsets");
        replay.kill().unwrap();
        replay.wait().unwrap();
    }
    pipeline.replay("process", &[]);
    let told = pipeline.replay("process", &[]);
    assert!(told.ends_with("rows           0        0\n"), "{told}");
    assert_replayed_once(&pipeline).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_that_wakes_up_after_another_has_begun_sends_nothing() {
    let Some(pipeline) = with_letters().await else {
        return;
    };
    let end = pipeline.end();
    let before = end.offset();
    let frozen = pipeline.start_replay("process", &[]);
    end.await_offset(before + 1_234);
    signal(&frozen, "STOP");
    let other = pipeline.start_replay("process", &[]).wait_with_output();
    signal(&frozen, "CONT");
    let frozen = frozen.wait_with_output().unwrap();
    let other = other.unwrap();
    let error = String::from_utf8_lossy(&other.stderr);
    assert!(other.status.success(), "{error}");
    let error = String::from_utf8_lossy(&frozen.stderr);
    assert!(!frozen.status.success());
    assert!(
        error.contains("another replay of this pipeline has begun"),
        "{error}"
    );
    assert_replayed_once(&pipeline).await;
}
