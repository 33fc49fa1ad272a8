//! The database source in worker processes, against the real Kafka and a PostgreSQL that is started here.
//! Skipped where `MILLSTREAM_ENVIRONMENT` names no Kafka, or no PostgreSQL is installed.

use std::time::Duration;

use serde_json::{Value, json};

use crate::{
    postgres_server::{PASSWORD, Server},
    support::{Environment, Pipeline, Settings},
};

const FIRST: i64 = 40_000;
const KILLS: i64 = 6;
/// Rows that are new after each kill.
const NEW: i64 = 1_000;

const ITEMS: Settings = Settings {
    schema: "id BIGINT, at TIMESTAMP",
    sql: "SELECT id, at FROM records",
    columns: &[("id", "bigint"), ("at", "timestamp")],
    key: "/id",
    partitions: 4,
    base: 1_700_000_000_000_000,
};

/// Rows with the next numbers, ten of each second: pages end within them.
async fn insert(server: &Server, from: i64, count: i64) {
    let to = from + count - 1;
    let insert = format!(
        "INSERT INTO items SELECT i, '2024-01-01T00:00:00Z'::timestamptz + i / 10 * interval '1s' \
         FROM generate_series({from}, {to}) AS i"
    );
    server.execute(&insert).await;
}

/// Records that are committed, by what the ingest stage keeps.
async fn committed(pipeline: &Pipeline) -> i64 {
    pipeline.kept().await["records"].as_i64().unwrap_or(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_is_copied_once_by_workers_that_are_killed() {
    let Some(environment) = Environment::find().await else {
        return;
    };
    let Some(mut server) = Server::start().await else {
        return;
    };
    server
        .execute(
            "CREATE TABLE items (id bigint PRIMARY KEY, at timestamptz NOT NULL); \
             CREATE INDEX ON items (at, id)",
        )
        .await;
    insert(&server, 0, FIRST).await;
    let pipeline = Pipeline::create(environment, ITEMS).await;
    pipeline.give("database-password", PASSWORD);
    let source = json!({"database": {
        "postgres": server.connection(), "table": "items", "fetchSize": 200,
        "incremental": {"column": "at", "settle": "10ms"}, "poll": {"interval": "20ms"},
    }});

    let end = pipeline.end();
    let mut rows = FIRST;
    for kill in 0..KILLS {
        let (before, there) = (committed(&pipeline).await, end.offset());
        let worker = pipeline.ingest(source.clone());
        // It dies in a transaction: in its first one, or after a commit.
        end.await_offset(there + NEW / 2);
        while kill % 2 == 1 && committed(&pipeline).await == before {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        worker.kill();
        if kill == KILLS / 2 {
            server.down();
            server.up().await;
        }
        insert(&server, rows, NEW).await;
        rows += NEW;
    }
    let worker = pipeline.ingest(source.clone());
    pipeline.await_kept(|kept| kept["records"] == rows).await;
    let status = worker.await_status(|_| true).await;
    assert!(status.errors.is_empty(), "{status:?}");

    let records = pipeline.records().await;
    let ids = records.iter().map(|record| {
        let record: Value = serde_json::from_slice(record).unwrap();
        record["id"].as_i64().unwrap()
    });
    let mut ids: Vec<_> = ids.collect();
    ids.sort_unstable();
    assert!(
        ids.into_iter().eq(0..rows),
        "{} records of {rows}",
        records.len()
    );

    // Another worker has nothing to do, until there are more.
    let (code, took) = worker.terminate().await;
    assert_eq!((code, took < Duration::from_secs(5)), (Some(0), true));
    let worker = pipeline.ingest(source);
    insert(&server, rows, 1).await;
    pipeline
        .await_kept(|kept| kept["records"] == rows + 1)
        .await;
    assert_eq!(pipeline.records().await.len() as i64, rows + 1);
    drop(worker);
}
