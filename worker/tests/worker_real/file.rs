//! The file source in worker processes, against the real Kafka and Cassandra. Skipped where
//! `MILLSTREAM_ENVIRONMENT` doesn't name them.

use std::{fmt::Write, time::Duration};

use crate::{
    files,
    support::{Environment, Pipeline, Settings},
};
use futures::TryStreamExt;
use serde_json::json;

const RECORDS: i32 = 120_000;
const KILLS: i32 = 6;

const NUMBERS: Settings = Settings {
    schema: "id TEXT, n INT",
    sql: "SELECT id, n FROM records",
    columns: &[("id", "text"), ("n", "int")],
    key: "/id",
    partitions: 4,
    base: 1_700_000_000_000_000,
};

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_is_killed_goes_on_in_the_middle_of_a_member() {
    let Some(environment) = Environment::find().await else {
        return;
    };
    let pipeline = Pipeline::create(environment, NUMBERS).await;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("numbers.zip");
    let member = |from: i32, to: i32| {
        (from..to).fold(String::from("id,n\n"), |mut text, n| {
            writeln!(text, "r{n},{n}").unwrap();
            text
        })
    };
    let first = member(0, RECORDS / 3) + "bad\n";
    let second = member(RECORDS / 3, RECORDS);
    let members = [("a.csv", first.as_bytes()), ("b.csv", second.as_bytes())];
    std::fs::write(&path, files::zip(&members)).unwrap();

    let source = json!({"file": {"path": path}});
    let mut kills = 0;
    let mut worker = pipeline.ingest(source.clone());
    let mut wanted = i64::from(RECORDS / 8);
    loop {
        // The position is kept twice a second: kills are further apart.
        tokio::time::sleep(Duration::from_millis(50)).await;
        let status = worker.get("/status").await;
        if status.is_some_and(|(_, status)| status.contains("\"complete\":true")) {
            break;
        }
        let (_, there) = pipeline.progress().await;
        // A worker that is killed before it has kept a position begins again: not for ever.
        if there >= wanted && kills < KILLS {
            worker.kill();
            kills += 1;
            wanted = there + i64::from(RECORDS / 8);
            worker = pipeline.ingest(source.clone());
        }
    }
    assert!(kills > 0);
    assert!(
        worker
            .await_status(|status| status.complete)
            .await
            .errors
            .is_empty()
    );

    let process = pipeline.process();
    let deadline = std::time::Instant::now() + Duration::from_secs(240);
    while pipeline.progress().await.1 > 0 {
        assert!(std::time::Instant::now() < deadline);
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    // Page by page: Cassandra doesn't answer with so many at once.
    let query = format!("SELECT id, n FROM {}.rows", pipeline.name);
    let pages = pipeline.session.query_iter(query, ()).await.unwrap();
    let rows = pages.rows_stream::<(String, i32)>().unwrap();
    let mut rows: Vec<_> = rows.try_collect().await.unwrap();
    rows.sort_by_key(|(_, n)| *n);
    assert_eq!(rows.len(), RECORDS as usize, "after {kills} kills");
    for (n, (id, found)) in (0..).zip(rows) {
        assert_eq!((id, found), (format!("r{n}"), n));
    }
    let letters = pipeline.dead_letters(1).await;
    let reason = format!(
        "numbers.zip, member a.csv, line {}: it has 1 columns, not 2",
        RECORDS / 3 + 2
    );
    assert_eq!(letters[0].0, reason);
    drop(process);
}
