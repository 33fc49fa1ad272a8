//! What a worker holds while nothing can be written, and of more groups than there is room for.

use std::{
    io::Write,
    time::{Duration, Instant},
};

use futures::TryStreamExt;
use serde_json::json;

use crate::support::{Environment, Pipeline, Settings, StoppedService};

/// Of the worker's container. Without a share for each, three sinks would take more.
const LIMIT: u64 = 192 * 1024 * 1024;
const RECORDS: i64 = 100;
const SINKS: [&str; 3] = ["rows", "second", "third"];

const SETTINGS: Settings = Settings {
    schema: "id BIGINT, size BIGINT, body TEXT",
    sql: "SELECT id, size, body FROM records",
    columns: &[("id", "bigint"), ("size", "bigint"), ("body", "text")],
    key: "/id",
    partitions: 4,
    base: 1_700_000_000_000_000,
};

/// Bytes of the text in a record: as large as a record may be, and smaller ones between.
fn size(id: i64) -> i64 {
    match id % 5 {
        4 => 50_000,
        _ => 1_040_000,
    }
}

async fn produce(pipeline: &Pipeline, ids: std::ops::Range<i64>) {
    let records = ids.map(|id| {
        let body = "x".repeat(size(id) as usize);
        let record = json!({"id": id, "size": size(id), "body": body});
        (None, Some(record.to_string().into_bytes()))
    });
    pipeline.produce(&records.collect::<Vec<_>>()).await;
}

/// Waits until every sink has stored all that is in the topic.
async fn await_commits(pipeline: &Pipeline) {
    let deadline = Instant::now() + Duration::from_secs(180);
    for sink in SINKS {
        loop {
            let (counts, lag) = pipeline.progress_of(sink).await;
            if lag == 0 {
                break;
            }
            assert!(Instant::now() < deadline, "{sink}: {counts:?}, lag {lag}");
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_stays_bounded_while_cassandra_stands_still() {
    let Some(environment) = Environment::find_alone().await else {
        return;
    };
    let mut pipeline = Pipeline::create(environment, SETTINGS).await;
    pipeline.more = json!({"memoryLimit": LIMIT});
    for table in &SINKS[1..] {
        let keyspace = &pipeline.keyspace;
        let table = format!(
            "CREATE TABLE {keyspace}.{table} (id bigint PRIMARY KEY, size bigint, body text)"
        );
        pipeline.session.query_unpaged(table, ()).await.unwrap();
    }
    let sinks = SINKS.map(|sink| pipeline.sink(sink, SETTINGS.sql, SETTINGS.columns));
    let process = pipeline.process_into(json!(sinks));
    produce(&pipeline, 0..5).await;
    await_commits(&pipeline).await;

    let Some(cassandra) = StoppedService::pause("cassandra").await else {
        return;
    };
    produce(&pipeline, 5..RECORDS).await;
    // Until writes have timed out, were tried again, and timed out once more.
    process
        .await_metric("millstream_worker_write_retries_total", 8)
        .await;
    let held = process.most_memory();
    cassandra.start().await;
    await_commits(&pipeline).await;

    let all: i64 = (0..RECORDS).map(size).sum();
    let most = process.most_memory();
    eprintln!("{all} bytes of records: {held} bytes in memory, and {most} at the most");
    assert!(most < LIMIT, "{most} bytes in memory, the limit is {LIMIT}");
    for sink in SINKS {
        let query = format!("SELECT id, size FROM {}.{sink}", pipeline.keyspace);
        let rows = pipeline.session.query_unpaged(query, ()).await.unwrap();
        let rows = rows.into_rows_result().unwrap();
        let rows = rows.rows::<(i64, i64)>().unwrap().map(Result::unwrap);
        let mut rows: Vec<_> = rows.collect();
        rows.sort_unstable();
        let expected: Vec<_> = (0..RECORDS).map(|id| (id, size(id))).collect();
        assert_eq!(rows, expected, "{sink}");
    }
    let status = process
        .await_status(|status| status.errors.is_empty())
        .await;
    assert!(status.warnings.is_empty(), "{status:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_stays_bounded_while_kafka_takes_nothing() {
    const LIMIT: u64 = 128 * 1024 * 1024;
    let Some(environment) = Environment::find_alone().await else {
        return;
    };
    let mut pipeline = Pipeline::create(environment, SETTINGS).await;
    pipeline.more = json!({"memoryLimit": LIMIT});
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("large.ndjson");
    let mut file = std::fs::File::create(&path).unwrap();
    // Five times what there is room for.
    let records = i64::try_from(5 * LIMIT / 1_000_000).unwrap();
    for id in 0..records {
        let body = "x".repeat(size(id) as usize);
        writeln!(
            file,
            "{}",
            json!({"id": id, "size": size(id), "body": body})
        )
        .unwrap();
    }
    let ingest = pipeline.ingest(json!({"file": {"path": path}}));
    ingest
        .await_metric("millstream_worker_records_total", 1)
        .await;
    let Some(kafka) = StoppedService::pause("kafka").await else {
        return;
    };
    // Until it reads no more.
    let mut read = None;
    loop {
        tokio::time::sleep(Duration::from_secs(3)).await;
        let now = ingest.metric("millstream_worker_records_total").await;
        if read.replace(now) == Some(now) {
            break;
        }
    }
    assert!(read.flatten() < u64::try_from(records).ok(), "{read:?}");
    kafka.start().await;
    let kept = pipeline.await_kept(|kept| kept["complete"] == true).await;
    assert_eq!(kept["records"], records);
    assert_eq!(pipeline.records().await.len(), records as usize);
    let most = ingest.most_memory();
    eprintln!("{records} large records, {most} bytes in memory at the most");
    assert!(most < LIMIT, "{most} bytes in memory, the limit is {LIMIT}");
}

const LONGEST: Settings = Settings {
    schema: "id BIGINT, text TEXT",
    sql: "SELECT id, count(*) AS records, last_value(text) AS latest FROM records GROUP BY id",
    columns: &[("id", "bigint"), ("records", "bigint"), ("latest", "text")],
    ..SETTINGS
};

#[tokio::test(flavor = "multi_thread")]
async fn groups_that_there_is_no_room_for_are_read_again() {
    // Their texts alone are more than there is room for.
    const GROUPS: i64 = 12_000;
    const BYTES: usize = 8_000;
    const TIMES: i64 = 2;
    let Some(environment) = Environment::find_alone().await else {
        return;
    };
    let mut pipeline = Pipeline::create(environment, LONGEST).await;
    pipeline.create_state_table().await;
    pipeline.more = json!({"memoryLimit": LIMIT});
    let process = pipeline.process();
    for time in 0..TIMES {
        for first in (0..GROUPS).step_by(1_000) {
            let records = (first..first + 1_000).map(|id| {
                let text = format!("{time}{}", "x".repeat(BYTES));
                let record = json!({"id": id, "text": text});
                (id.to_string(), record.to_string().into_bytes())
            });
            pipeline.produce_all(&records.collect::<Vec<_>>()).await;
        }
    }
    let deadline = Instant::now() + Duration::from_secs(240);
    while pipeline.progress().await.1 > 0 {
        assert!(Instant::now() < deadline, "{:?}", pipeline.progress().await);
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let most = process.most_memory();
    eprintln!("{GROUPS} groups, {most} bytes in memory at the most");
    assert!(most < LIMIT, "{most} bytes in memory, the limit is {LIMIT}");
    let query = format!("SELECT id, records, latest FROM {}.rows", pipeline.keyspace);
    let rows = pipeline.session.query_iter(query, ()).await.unwrap();
    let mut rows = rows.rows_stream::<(i64, i64, String)>().unwrap();
    let mut found = 0;
    while let Some((id, records, latest)) = rows.try_next().await.unwrap() {
        assert_eq!((records, latest.starts_with('1')), (TIMES, true), "{id}");
        found += 1;
    }
    assert_eq!(found, GROUPS);
}
