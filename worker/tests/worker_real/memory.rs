//! What a worker holds while nothing can be written.

use std::time::{Duration, Instant};

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
