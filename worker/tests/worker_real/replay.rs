//! Replays of dead letters that are killed or frozen, or into groups that have them, against the real
//! Kafka and Cassandra. Skipped where `MILLSTREAM_ENVIRONMENT` doesn't name them.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use crate::support::{Environment, Pipeline, Settings, signal};
use millstream_api::worker::CommitMetadata;
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

#[tokio::test(flavor = "multi_thread")]
async fn letters_of_a_topic_that_was_made_anew_are_passed_over() {
    let Some(environment) = Environment::find().await else {
        return;
    };
    let mut pipeline = Pipeline::create(environment, KINDS).await;
    let broken = (0..3).map(|kind| (kind.to_string(), b"{".to_vec()));
    pipeline.produce_all(&broken.collect::<Vec<_>>()).await;
    pipeline.create_state_table().await;
    let process = pipeline.process();
    pipeline.await_commits().await;
    process.kill();

    let end = pipeline.end();
    let before = end.offset();
    pipeline.more = json!({"topic": {
        "name": pipeline.name, "id": "another", "timestampBase": KINDS.base + 1, "partitions": 1,
    }});
    pipeline.process().kill();
    let told = pipeline.replay("process", &[]);
    assert!(told.contains("its topic was made anew since"), "{told}");
    assert!(told.ends_with("rows           0        3\n"), "{told}");
    assert_eq!(end.offset(), before);
}

const SHARES: Settings = Settings {
    schema: "kind TEXT, a INT, b INT, owner TEXT",
    sql: "SELECT kind, count(*) AS records, sum(a) / sum(b) AS share, last_value(owner) AS owner \
        FROM records GROUP BY kind",
    columns: &[
        ("kind", "text"),
        ("records", "bigint"),
        ("share", "bigint"),
        ("owner", "uuid"),
    ],
    key: "/kind",
    partitions: 2,
    base: 1_700_000_000_000_000,
};

/// Waits until so many records were processed, replayed ones too; what is counted then. A replay that has
/// ended can be read a little later.
async fn await_processed(pipeline: &Pipeline, records: i64) -> CommitMetadata {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let (counts, lag) = pipeline.progress().await;
        if lag == 0 && counts.rows + counts.dead_lettered == records {
            return counts;
        }
        assert!(
            Instant::now() < deadline,
            "of {records} records {counts:?}, a lag of {lag}"
        );
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_that_lacks_only_its_row_does_not_count_a_replayed_record_again() {
    let Some(environment) = Environment::find().await else {
        return;
    };
    let pipeline = Pipeline::create(environment, SHARES).await;
    pipeline.create_state_table().await;
    let owner = uuid::Uuid::from_u128(7);
    let record = |kind: i64, b: i64, owner: &str| {
        let kind = format!("k{kind}");
        let record = json!({"kind": kind, "a": 6, "b": b, "owner": owner});
        (kind, record.to_string().into_bytes())
    };
    // In k1 and k3 the result can't be computed; in k2 and k3 the table can't take it.
    let records = (0..40).map(|n| match n % 4 {
        0 => record(0, 1, &owner.to_string()),
        1 => record(1, 0, &owner.to_string()),
        2 => record(2, 1, "nobody"),
        _ => record(3, 0, "nobody"),
    });
    pipeline.produce_all(&records.collect::<Vec<_>>()).await;
    let process = pipeline.process();
    let first = await_processed(&pipeline, 40).await.dead_lettered;
    assert!(first >= 3, "{first} dead letters");

    // Nothing is mended: they are dead letters again.
    pipeline.replay("process", &[]);
    let counts = await_processed(&pipeline, 40 + first).await;
    let second = counts.dead_lettered;
    assert!(second >= first + 3, "{second} dead letters after {first}");
    process.kill();

    // A later record mends each group, and the states are read again.
    let records: Vec<_> = (0..4)
        .map(|kind| record(kind, 1, &owner.to_string()))
        .collect();
    pipeline.produce_all(&records).await;
    pipeline.replay("process", &[]);
    let _process = pipeline.process();
    let counts = await_processed(&pipeline, 44 + second).await;
    assert_eq!((counts.rows, counts.dead_lettered), (44, second));
    let mut rows: Vec<(String, i64, i64, uuid::Uuid)> =
        pipeline.select("kind, records, share, owner").await;
    rows.sort();
    let expected = [("k0", 6), ("k1", 66), ("k2", 6), ("k3", 66)];
    let expected = expected.map(|(kind, share)| (kind.to_owned(), 11, share, owner));
    assert_eq!(rows, expected);
}
