//! Delta Lake tables by worker processes, from the real Kafka, states in the real Cassandra. Skipped
//! where `MILLSTREAM_ENVIRONMENT` doesn't name them.

use std::{
    collections::BTreeMap,
    path::Path,
    time::{Duration, Instant},
};

use crate::{
    readback::assert_read_back,
    support::{Environment, Pipeline, Relay, Settings, Worker, await_owners},
};
use datafusion::{arrow::array::AsArray, arrow::datatypes::Int64Type, prelude::SessionContext};
use deltalake::DeltaTableBuilder;
use millstream_api::worker::CommitMetadata;
use serde_json::{Value, json};
use url::Url;

const SETTINGS: Settings = Settings {
    schema: "id BIGINT, value BIGINT",
    sql: "SELECT id, value FROM records",
    columns: &[("id", "bigint"), ("value", "bigint")],
    key: "/id",
    partitions: 4,
    base: 1_700_000_000_000_000,
};

/// The sink, in place of the one into Cassandra. It compacts after every commit that leaves two files.
pub fn lake(folder: &Path, more: Value) -> Value {
    let mut delta = json!({
        "path": folder.join("table"),
        "volume": {"persistentVolumeClaim": {"claimName": "lake"}, "path": "table"},
        "commitInterval": "200ms",
        "compaction": {"minFiles": 2},
    });
    for (name, value) in more.as_object().unwrap() {
        delta[name] = value.clone();
    }
    json!({"delta": delta})
}

/// Starts a worker whose sink is a Delta Lake table.
pub fn start(pipeline: &Pipeline, sink: &Value) -> Worker {
    let mut sink = sink.clone();
    sink["cassandra"] = Value::Null;
    pipeline.process_with(sink)
}

/// Rows of two numbers.
async fn rows(folder: &Path, sql: &str) -> Vec<(i64, i64)> {
    let url = Url::from_directory_path(folder.join("table")).unwrap();
    let mut table = DeltaTableBuilder::from_url(url).unwrap().build().unwrap();
    table.load().await.unwrap();
    let session = SessionContext::new();
    let provider = table.table_provider().await.unwrap();
    session.register_table("t", provider).unwrap();
    let batches = session.sql(sql).await.unwrap().collect().await.unwrap();
    let mut rows = Vec::new();
    for batch in batches {
        let column = |index: usize| batch.column(index).as_primitive::<Int64Type>().clone();
        let (first, second) = (column(0), column(1));
        rows.extend((0..batch.num_rows()).map(|row| (first.value(row), second.value(row))));
    }
    rows
}

/// Whether the table was compacted.
fn is_compacted(sink: &Value) -> bool {
    let table = Path::new(sink["delta"]["path"].as_str().unwrap());
    let mut log = std::fs::read_dir(table.join("_delta_log")).unwrap();
    let is_compaction = |path: &Path| {
        let is_commit = path.extension().is_some_and(|end| end == "json");
        is_commit
            && std::fs::read_to_string(path)
                .unwrap()
                .contains("\"OPTIMIZE\"")
    };
    log.any(|entry| is_compaction(&entry.unwrap().path()))
}

fn keyed(records: impl Iterator<Item = (i64, i64)>) -> Vec<(String, Vec<u8>)> {
    records
        .map(|(id, value)| {
            let record = json!({"id": id, "value": value}).to_string();
            (id.to_string(), record.into_bytes())
        })
        .collect()
}

/// Produces, and kills workers all the while; two run at any time. In the end one is left, and has
/// compacted the table: by the last records, of keys that weren't there before.
async fn killed(pipeline: &Pipeline, sink: &Value, kills: u32, records: &[(String, Vec<u8>)]) {
    let (records, last) = records.split_at(records.len() - NEW as usize);
    let mut workers = vec![start(pipeline, sink), start(pipeline, sink)];
    let parts = records.chunks(records.len().div_ceil(kills as usize));
    for (kill, part) in parts.enumerate() {
        await_owners(&workers).await;
        pipeline.produce_all(part).await;
        // At another instant each time: while it reads, merges, commits.
        let pause = 100 + (kill as u64 * 397) % 900;
        tokio::time::sleep(Duration::from_millis(pause)).await;
        workers.remove(0).kill();
        workers.push(start(pipeline, sink));
    }
    pipeline.await_commits().await;
    // Nobody's merge comes between a compaction of the one that is left. Each is a file of its own.
    assert_eq!(workers.remove(0).terminate().await.0, Some(0));
    for record in last {
        pipeline.produce_all(std::slice::from_ref(record)).await;
        pipeline.await_commits().await;
    }
    let deadline = Instant::now() + Duration::from_secs(60);
    while !is_compacted(sink) {
        assert!(Instant::now() < deadline, "the table isn't compacted");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(workers.remove(0).terminate().await.0, Some(0));
}

/// Records at the end whose keys are new.
const NEW: i64 = 3;

/// Kills: four, or as many as `MILLSTREAM_KILLS` says.
fn kills() -> u32 {
    let kills = std::env::var("MILLSTREAM_KILLS").ok();
    kills.and_then(|kills| kills.parse().ok()).unwrap_or(4)
}

#[tokio::test(flavor = "multi_thread")]
async fn kills_neither_lose_nor_double_a_row() {
    let Some(environment) = Environment::find().await else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let pipeline = Pipeline::create(environment, SETTINGS).await;
    let sink = lake(folder.path(), json!({}));
    let records = keyed((0..20_000).map(|id| (id, id * 2)));
    killed(&pipeline, &sink, kills(), &records).await;
    let counted = rows(
        folder.path(),
        "SELECT count(*), count(DISTINCT id) FROM t WHERE value = id * 2",
    );
    assert_eq!(counted.await, [(20_000, 20_000)]);
    let (counts, _) = pipeline.progress().await;
    assert_eq!(counts.rows, 20_000);
    let expected = (0..20_000).map(|id| json!({"id": id, "value": id * 2}));
    assert_read_back(&folder.path().join("table"), expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn kills_during_merges_leave_the_newest_row_of_each_key() {
    let Some(environment) = Environment::find().await else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let pipeline = Pipeline::create(environment, SETTINGS).await;
    let merge = json!({"mode": "merge", "mergeKeys": ["id"]});
    let sink = lake(folder.path(), merge);
    // Other keys from time to time: a merge of new ones leaves the files that are there.
    let key = |n: i64| n / 4_000 * 1_000 + (n * 7) % 1_000;
    let new = (0..NEW).map(|n| (100_000 + n, n));
    let updates: Vec<_> = (0..20_000).map(|n| (key(n), n)).chain(new).collect();
    let expected: BTreeMap<_, _> = updates.iter().copied().collect();
    killed(&pipeline, &sink, kills(), &keyed(updates.into_iter())).await;
    let there = rows(folder.path(), "SELECT id, value FROM t ORDER BY id").await;
    assert_eq!(there, expected.clone().into_iter().collect::<Vec<_>>());
    let versions = rows(folder.path(), "SELECT id, _version FROM t").await;
    let versions: BTreeMap<_, _> = versions.into_iter().collect();
    let expected = expected
        .iter()
        .map(|(id, value)| json!({"id": id, "value": value, "_version": versions[id]}));
    assert_read_back(&folder.path().join("table"), expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn groups_are_merged_and_their_states_are_in_cassandra() {
    let Some(environment) = Environment::find().await else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let settings = Settings {
        sql: "SELECT id, count(*) AS value FROM records GROUP BY id",
        ..SETTINGS
    };
    let pipeline = Pipeline::create(environment, settings).await;
    pipeline.create_state_table().await;
    let merge = json!({"mode": "merge", "mergeKeys": ["id"]});
    let mut sink = lake(folder.path(), merge);
    sink["state"] = json!({
        "keyspace": pipeline.name,
        "table": {
            "name": "rows",
            "columns": [{"name": "id", "type": "bigint"}, {"name": "value", "type": "bigint"}],
            "primaryKey": {"partitionKey": ["id"]},
        },
        "consistency": "LOCAL_QUORUM",
    });
    let records = (0..10_000).map(|n| ((n * n) % 701, n));
    let records: Vec<_> = records.chain((0..NEW).map(|n| (1_000 + n, n))).collect();
    let mut expected = BTreeMap::<i64, i64>::new();
    for (id, _) in &records {
        *expected.entry(*id).or_default() += 1;
    }
    killed(&pipeline, &sink, kills(), &keyed(records.into_iter())).await;
    let there = rows(folder.path(), "SELECT id, value FROM t ORDER BY id").await;
    assert_eq!(there, expected.into_iter().collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_comes_with_so_many_rows_however_long_the_interval_is() {
    let Some(environment) = Environment::find().await else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let pipeline = Pipeline::create(environment, SETTINGS).await;
    let more = json!({"commitInterval": "1h", "commitRows": 100, "compaction": {"enabled": false}});
    let worker = start(&pipeline, &lake(folder.path(), more));
    let records = keyed((0..1_000).map(|id| (id, id * 2)));
    pipeline.produce_all(&records).await;
    let deadline = Instant::now() + Duration::from_secs(60);
    while pipeline.progress().await.0.rows < 900 {
        assert!(Instant::now() < deadline, "rows wait for the interval");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let log = std::fs::read_dir(folder.path().join("table/_delta_log")).unwrap();
    let commits = log.filter(|entry| {
        let path = entry.as_ref().unwrap().path();
        path.extension().is_some_and(|end| end == "json")
    });
    // The first makes the table.
    assert!(commits.count() > 9);
    assert_eq!(worker.terminate().await.0, Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cassandra_that_is_away_stops_no_other_sink() {
    let Some(environment) = Environment::find().await else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let server = environment.cassandra.clone();
    let mut pipeline = Pipeline::create(environment, SETTINGS).await;
    // The driver takes the port of the one that it asks for that of all nodes.
    let (_, port) = server.rsplit_once(':').unwrap();
    let address = format!("127.0.0.9:{port}");
    pipeline.environment.cassandra = address.clone();
    let mut lake = lake(folder.path(), json!({}));
    lake["name"] = json!("lake");
    lake["sql"] = json!(SETTINGS.sql);
    let table = pipeline.sink("rows", SETTINGS.sql, SETTINGS.columns);
    let worker = pipeline.process_into(json!([table, lake]));
    let records = keyed((0..100).map(|id| (id, id * 2)));
    pipeline.produce_all(&records).await;
    let deadline = Instant::now() + Duration::from_secs(60);
    while pipeline.progress_of("lake").await.0.rows < 100 {
        assert!(Instant::now() < deadline, "the other sink waits");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let shown = worker.await_status(|status| status.errors.contains_key("rows"));
    let errors = shown.await.errors;
    assert!(errors["rows"].contains("can't connect to Cassandra"));
    assert!(!errors.contains_key("lake"), "{errors:?}");
    let _relay = Relay::start(&address, server.clone()).await;
    let expected = CommitMetadata {
        rows: 100,
        ..CommitMetadata::default()
    };
    pipeline.await_progress(expected).await;
    worker.await_status(|status| status.errors.is_empty()).await;
    assert_eq!(pipeline.select::<(i64, i64)>("id, value").await.len(), 100);
}
