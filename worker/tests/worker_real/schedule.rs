//! Runs of a pipeline with a schedule, as worker processes against the real Kafka and Cassandra.

use crate::support::{Environment, Pipeline, Settings};
use millstream_api::worker::{CommitMetadata, RunProgress};
use serde_json::{Value, json};

const IDS: Settings = Settings {
    schema: "id UUID, name TEXT",
    sql: "SELECT id, name FROM records",
    columns: &[("id", "uuid"), ("name", "text")],
    key: "/id",
    partitions: 2,
    base: 1_700_000_000_000_000,
};

async fn pipeline() -> Option<Pipeline> {
    Some(Pipeline::create(Environment::find().await?, IDS).await)
}

fn run_of(kept: &Value) -> RunProgress {
    serde_json::from_value(kept["run"].clone()).unwrap_or_default()
}

async fn in_topic(pipeline: &Pipeline) -> i64 {
    let records = pipeline.records().await.len() as i64;
    assert_eq!(pipeline.kept().await["records"], records);
    records
}

fn rows(rows: i64) -> CommitMetadata {
    CommitMetadata {
        rows,
        ..CommitMetadata::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_ends_with_its_source_and_the_next_one_begins_anew() {
    let Some(pipeline) = pipeline().await else {
        return;
    };
    let source = || json!({"generator": {"count": 500, "seed": 7}});
    // Started again when it is over, it has nothing to do.
    for _ in 0..2 {
        let worker = pipeline.ingest_with(source(), &["--run", "one"]);
        assert_eq!(worker.ended().await, Some(0));
        let run = run_of(&pipeline.kept().await);
        assert_eq!(
            (run.name.as_str(), run.records, run.done),
            ("one", 500, true)
        );
        assert_eq!(in_topic(&pipeline).await, 500);
    }
    let worker = pipeline.ingest_with(source(), &["--run", "two"]);
    assert_eq!(worker.ended().await, Some(0));
    let run = run_of(&pipeline.kept().await);
    assert_eq!(
        (run.name.as_str(), run.records, run.done),
        ("two", 500, true)
    );
    assert_eq!(in_topic(&pipeline).await, 1_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_killed_in_a_run_leaves_its_count_exact() {
    let Some(pipeline) = pipeline().await else {
        return;
    };
    let source = || json!({"generator": {"count": 6_000, "seed": 8, "rate": 2_000}});
    let mut since = None;
    for killed_at in [500, 2_000] {
        let worker = pipeline.ingest_with(source(), &["--run", "one"]);
        let kept = pipeline
            .await_kept(|kept| run_of(kept).records >= killed_at)
            .await;
        worker.kill();
        let run = run_of(&kept);
        assert!(!run.done, "{run:?}");
        assert_eq!(*since.get_or_insert(run.since), run.since, "it is one run");
    }
    // Stopped with a drain it isn't over either.
    let worker = pipeline.ingest_with(source(), &["--run", "one"]);
    worker.await_status(|_| true).await;
    let (code, _) = worker.terminate().await;
    assert_ne!(
        code,
        Some(0),
        "whoever started it must not take it for done"
    );
    let worker = pipeline.ingest_with(source(), &["--run", "one"]);
    assert_eq!(worker.ended().await, Some(0));
    let run = run_of(&pipeline.kept().await);
    assert_eq!((run.records, run.done), (6_000, true));
    assert_eq!(in_topic(&pipeline).await, 6_000);
    let process = pipeline.process();
    pipeline.await_progress(rows(6_000)).await;
    let ids: Vec<(uuid::Uuid,)> = pipeline.select("id").await;
    assert_eq!(ids.len(), 6_000);
    process.kill();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_without_an_end_is_read_for_a_time_and_goes_on_in_the_next_run() {
    let Some(pipeline) = pipeline().await else {
        return;
    };
    let source = || json!({"generator": {"seed": 9, "rate": 500}});
    let mut all = 0;
    for name in ["one", "two"] {
        let worker = pipeline.ingest_with(source(), &["--run", name, "--run-for", "2"]);
        assert_eq!(worker.ended().await, Some(0));
        let kept = pipeline.kept().await;
        let run = run_of(&kept);
        assert!(run.done && run.records > 0, "{kept}");
        assert_eq!(kept["complete"], false, "the source goes on");
        all += run.records;
        assert_eq!(in_topic(&pipeline).await, all);
    }
    // Out of time: another worker of the run has nothing left to do.
    let worker = pipeline.ingest_with(source(), &["--run", "two", "--run-for", "2"]);
    assert_eq!(worker.ended().await, Some(0));
    assert_eq!(in_topic(&pipeline).await, all);
    let process = pipeline.process();
    pipeline.await_progress(rows(all)).await;
    let ids: Vec<(uuid::Uuid,)> = pipeline.select("id").await;
    assert_eq!(
        ids.len() as i64,
        all,
        "none is read twice, and none left out"
    );
    process.kill();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cant_be_a_record_of_the_topic_is_counted_for_each_run() {
    let Some(pipeline) = pipeline().await else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("users.ndjson");
    let good = (0..3).map(|n| json!({"id": uuid::Uuid::from_u128(n), "name": "x"}).to_string());
    let mut lines: Vec<_> = good.collect();
    lines.insert(1, "no record".into());
    lines.push(json!({"name": "without the key"}).to_string());
    std::fs::write(&path, lines.join("\n")).unwrap();
    for (name, in_all) in [("one", 3), ("two", 6)] {
        let source = json!({"file": {"path": path}});
        let worker = pipeline.ingest_with(source, &["--run", name]);
        assert_eq!(worker.ended().await, Some(0));
        let run = run_of(&pipeline.kept().await);
        assert_eq!((run.name.as_str(), run.done), (name, true));
        assert_eq!((run.records, run.dead_lettered), (5, 2));
        assert_eq!(in_topic(&pipeline).await, in_all);
    }
    assert_eq!(pipeline.dead_letters(4).await.len(), 4);
}
