use std::{num::NonZeroU64, time::SystemTime};

use datafusion::arrow::util::pretty::pretty_format_batches;
use deltalake::DeltaTable;
use millstream_plan::RecordSchema;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::{
    compact::{Compactor, optimize},
    guard::Guarded,
    replaced::Replaced,
    table::session,
    *,
};
use crate::{status::Status, transform::Transform};

#[path = "../../../tests/worker_real/readback.rs"]
mod readback;

const SCHEMA: &str = "id BIGINT, name TEXT, at TIMESTAMP, tags ARRAY<TEXT>, price DECIMAL(10, 2)";

/// A sink into a folder, and what it reads.
struct Lake {
    folder: TempDir,
    sql: String,
    sink: Value,
    base: i64,
    reader: String,
}

impl Lake {
    fn new(sql: &str, sink: Value) -> Self {
        Lake {
            folder: tempfile::tempdir().unwrap(),
            sql: sql.into(),
            sink,
            base: 1_000_000,
            reader: "group/topic".into(),
        }
    }

    fn plan(&self) -> SinkPlan {
        SinkPlan::new(&RecordSchema::parse(SCHEMA).unwrap(), "lake", &self.sql).unwrap()
    }

    fn config(&self) -> Config {
        let mut config = self.sink.clone();
        config["path"] = json!(self.folder.path().join("a/table"));
        config["volume"] = json!({"persistentVolumeClaim": {"claimName": "c"}, "path": "t"});
        serde_json::from_value(config).unwrap()
    }

    async fn open(&self) -> DeltaSink {
        let status = Arc::new(Status::default()).part("lake");
        DeltaSink::open(
            "lake",
            &self.config(),
            &self.plan(),
            self.base,
            self.reader.clone(),
            &Credentials::new("/nowhere".into()),
            status,
        )
        .await
        .unwrap()
    }

    /// Writes records, given as partition, offset and JSON; gives the reasons of those refused.
    async fn write(&self, sink: &DeltaSink, records: &[(i32, i64, Value)]) -> Vec<String> {
        let mut batch = Batch::default();
        for (partition, offset, record) in records {
            let record = record.to_string();
            batch.push_record(*partition, *offset, None, None, Some(record.as_bytes()));
        }
        let transformed = Transform::new(&self.plan()).unwrap().run(&batch).unwrap();
        assert_eq!(transformed.rejected, []);
        let rejected = sink.write(&batch, &transformed.rows).await;
        rejected.into_iter().map(|r| r.reason).collect()
    }

    /// Why the table doesn't take a row.
    async fn refusal(&self) -> String {
        let shape = Shape::new(&self.plan(), &self.config().sink, 0).unwrap();
        let place = Place::new("lake", &self.config(), &Credentials::new("/nowhere".into()));
        let sink = self.config().sink;
        let table = Table::new(place.unwrap(), sink, shape.clone(), "r".into());
        let mut batch = Batch::default();
        let row = record(1, "x").to_string();
        batch.push_record(0, 9, None, None, Some(row.as_bytes()));
        let mut transform = Transform::new(&self.plan()).unwrap();
        let rows = transform.run(&batch).unwrap().rows;
        match table.unwrap().apply(&shape.rows(&batch, &rows).0).await {
            Err(Failure::Error(error)) => error.to_string(),
            _ => panic!("it is taken"),
        }
    }

    async fn table(&self) -> DeltaTable {
        let place = Place::new("lake", &self.config(), &Credentials::new("/nowhere".into()));
        let mut table = place.unwrap().table().unwrap();
        table.load().await.unwrap();
        table
    }

    async fn select(&self, sql: &str) -> String {
        let session = session();
        let table = self.table().await;
        let provider = table.table_provider().await.unwrap();
        session.register_table("t", provider).unwrap();
        let rows = session.sql(sql).await.unwrap().collect().await.unwrap();
        pretty_format_batches(&rows).unwrap().to_string()
    }

    async fn files(&self) -> usize {
        self.table().await.get_file_uris().unwrap().count()
    }

    /// How many files are in the folder, with those that are no longer the table's.
    fn written(&self) -> usize {
        let folder = std::fs::read_dir(self.folder.path().join("a/table")).unwrap();
        let names = folder.map(|entry| entry.unwrap().file_name());
        names
            .filter(|name| name.to_string_lossy().ends_with(".parquet"))
            .count()
    }

    async fn count(&self) -> String {
        let all = self
            .select("SELECT count(*), count(DISTINCT id) FROM t")
            .await;
        let line = all.lines().nth(3).unwrap_or_default();
        line.replace([' ', '|'], ".")
            .split('.')
            .filter(|part| !part.is_empty())
            .collect::<Vec<_>>()
            .join(" of ")
    }
}

/// The rows of a printed table: what is in their cells, without nulls.
fn cells(table: &str) -> Vec<String> {
    let rows = table.lines().filter(|line| line.starts_with("| ")).skip(1);
    let cells = |row: &str| {
        let cells = row.split('|').map(str::trim);
        let cells: Vec<_> = cells.filter(|cell| !cell.is_empty()).collect();
        cells.join(" ")
    };
    rows.map(cells).collect()
}

fn record(id: i64, name: &str) -> Value {
    json!({"id": id, "name": name, "at": "2026-03-01T12:00:00Z", "tags": ["a", null], "price": "1.50"})
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_come_again_are_added_once() {
    let lake = Lake::new("SELECT * FROM records", json!({"partitionBy": ["name"]}));
    let sink = lake.open().await;
    let first = [(0, 1, record(1, "x")), (1, 1, record(2, "y"))];
    assert!(lake.write(&sink, &first).await.is_empty());
    lake.write(&sink, &first).await;
    drop(sink);
    // A worker that comes after knows nothing but the table.
    let sink = lake.open().await;
    let again = [
        (0, 1, record(1, "x")),
        (0, 2, record(3, "x")),
        (1, 0, record(4, "y")),
        (2, 0, record(5, "y")),
    ];
    lake.write(&sink, &again).await;
    let rows = lake.select("SELECT id, name FROM t ORDER BY id").await;
    assert_eq!(cells(&rows), ["1 x", "2 y", "3 x", "5 y"]);
    let row = lake
        .select("SELECT at, tags, price FROM t WHERE id = 1")
        .await;
    for value in ["2026-03-01T12:00:00", "[a", "1.50"] {
        assert!(row.contains(value), "{row}");
    }
    assert!(lake.folder.path().join("a/table/name=x").is_dir());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_beyond_the_calendar_is_refused_and_the_rest_stored() {
    let sql = "SELECT id, CAST(CAST(name AS INT) AS DATE) AS day FROM records";
    let lake = Lake::new(sql, json!({"partitionBy": ["day"]}));
    let sink = lake.open().await;
    let records = ["20000", "1700000000", "-1700000000", "20001"];
    let records = records.iter().zip(0..);
    let records: Vec<_> = records.map(|(day, n)| (0, n, record(n, day))).collect();
    let refused = lake.write(&sink, &records).await;
    let reason = "column `day` is beyond the years -262143 to 262142";
    assert_eq!(refused, [reason, reason]);
    let rows = lake.select("SELECT id, day FROM t ORDER BY id").await;
    assert_eq!(cells(&rows), ["0 2024-10-04", "3 2024-10-05"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_is_for_a_text_that_is_neither_empty_nor_too_long() {
    let sql = "SELECT id, name FROM records";
    let lake = Lake::new(sql, eager(json!({"partitionBy": ["name"]})));
    let sink = lake.open().await;
    for id in 0..6 {
        lake.write(&sink, &[(0, id, record(id, ""))]).await;
    }
    let long = [41, 42].map(|letters| record(6, &"ä".repeat(letters)));
    let long: Vec<_> = (6..)
        .zip(long)
        .map(|(at, record)| (0, at, record))
        .collect();
    let refused = lake.write(&sink, &long).await;
    assert!(refused[0].contains("257 bytes of 255"), "{refused:?}");
    let rows = lake
        .select("SELECT count(*) AS n, count(name) AS named FROM t")
        .await;
    assert_eq!(cells(&rows), ["7 1"]);

    let keys = json!({"mode": "merge", "mergeKeys": ["id", "name"], "partitionBy": ["name"]});
    let lake = Lake::new(sql, keys);
    let refused = lake
        .write(&lake.open().await, &[(0, 0, record(1, ""))])
        .await;
    assert!(
        refused[0].contains("is empty, and it is in mergeKeys"),
        "{refused:?}"
    );
}

/// delta-rs rounds the statistics of such decimals, and the engine passes files over by them.
#[tokio::test(flavor = "multi_thread")]
async fn a_decimal_of_many_digits_is_found_again() {
    let sql = "SELECT id, CAST(name AS DECIMAL(20, 0)) AS n FROM records";
    let lake = Lake::new(sql, json!({}));
    let sink = lake.open().await;
    let number = "1234567890123456789";
    lake.write(&sink, &[(0, 0, record(1, number))]).await;
    let sql = format!("SELECT id FROM t WHERE n = {number}");
    assert_eq!(cells(&lake.select(&sql).await), ["1"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_newest_row_of_a_key_stays() {
    let sql = "SELECT id, name FROM records";
    let mut lake = Lake::new(sql, json!({"mode": "merge", "mergeKeys": ["id"]}));
    let sink = lake.open().await;
    let records = [
        (0, 1, record(1, "old")),
        (0, 2, record(1, "new")),
        (0, 3, record(2, "other")),
        (0, 4, json!({"name": "nobody"})),
    ];
    let refused = lake.write(&sink, &records).await;
    assert_eq!(refused, ["column `id` is null, and it is in mergeKeys"]);
    lake.write(&sink, &[(0, 5, record(2, "changed"))]).await;
    // One of the topic that was before this one.
    (lake.base, lake.reader) = (900_000, "group/former".into());
    lake.write(
        &lake.open().await,
        &[(0, 70, record(1, "older")), (0, 71, record(3, "only"))],
    )
    .await;
    let rows = lake
        .select("SELECT id, name, _version FROM t ORDER BY id")
        .await;
    let expected = ["1 new 1000002", "2 changed 1000005", "3 only 900071"];
    assert_eq!(cells(&rows), expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn names_of_columns_keep_their_case() {
    let sql = r#"SELECT id AS "ID", name AS "Name", _offset AS "DL_OFFSET" FROM records"#;
    let folders = json!({"partitionBy": ["Name"]});
    let merged = json!({"mode": "merge", "mergeKeys": ["ID", "Name"], "partitionBy": ["Name"]});
    for (sink, expected) in [
        (folders, &["1 x 1", "1 x 2", "2 y 3", "1 x 0"][..]),
        (merged, &["1 x 2", "2 y 3"][..]),
    ] {
        let mut lake = Lake::new(sql, eager(sink));
        let sink = lake.open().await;
        lake.write(&sink, &[(0, 1, record(1, "x"))]).await;
        let newer = [(0, 2, record(1, "x")), (0, 3, record(2, "y"))];
        lake.write(&sink, &newer).await;
        // One of the topic that was before this one.
        (lake.base, lake.reader) = (900_000, "group/former".into());
        let former = lake.open().await;
        lake.write(&former, &[(0, 0, record(1, "x"))]).await;
        let rows = lake
            .select(r#"SELECT "ID", "Name", "DL_OFFSET" FROM t"#)
            .await;
        let (mut rows, mut expected) = (cells(&rows), expected.to_vec());
        rows.sort();
        expected.sort_unstable();
        assert_eq!(rows, expected);
        let folder = lake.folder.path().join("a/table/Name=x");
        assert!(folder.is_dir());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn columns_that_the_result_gains_are_added() {
    let mut lake = Lake::new("SELECT id FROM records", json!({}));
    lake.write(&lake.open().await, &[(0, 1, record(1, "x"))])
        .await;
    lake.sql = "SELECT name, id FROM records".into();
    lake.write(&lake.open().await, &[(0, 2, record(2, "y"))])
        .await;
    // One that it loses is null from then on.
    lake.sql = "SELECT id FROM records".into();
    lake.write(&lake.open().await, &[(0, 3, record(3, "z"))])
        .await;
    let rows = lake.select("SELECT id, name FROM t ORDER BY id").await;
    assert_eq!(cells(&rows), ["1", "2 y", "3"]);

    for (sql, says) in [
        ("SELECT name AS id FROM records", "CAST it"),
        (r#"SELECT id AS "ID" FROM records"#, r#"write AS "id""#),
    ] {
        lake.sql = sql.into();
        let refused = lake.refusal().await;
        assert!(refused.starts_with("column `"), "{refused}");
        assert!(refused.contains(says), "{refused}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_comes_again_beside_new_records_is_added_once() {
    let lake = Lake::new("SELECT id FROM records", json!({}));
    let first: Vec<_> = (1..4).map(|id| (0, id, record(id, "x"))).collect();
    lake.write(&lake.open().await, &first).await;
    let sink = lake.open().await;
    // The commit is for the second partition; of the first the table has more than this batch.
    let mixed = [first[0].clone(), (1, 1, record(4, "x"))];
    lake.write(&sink, &mixed).await;
    lake.write(&sink, &first[1..]).await;
    assert_eq!(lake.count().await, "4 of 4");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_others_committed_on_the_way_is_known() {
    let lake = Lake::new("SELECT id FROM records", json!({}));
    let (here, there) = (lake.open().await, lake.open().await);
    let both = [(0, 1, record(1, "x")), (1, 1, record(2, "x"))];
    lake.write(&here, &both).await;
    // Another worker has the second partition for a while.
    lake.write(&there, &[(1, 2, record(3, "x"))]).await;
    lake.write(&here, &[(0, 2, record(4, "x"))]).await;
    lake.write(&here, &[(1, 2, record(3, "x"))]).await;
    assert_eq!(lake.count().await, "4 of 4");
}

/// With a compaction after every commit that leaves two files.
fn eager(mut sink: Value) -> Value {
    sink["compaction"] = json!({"minFiles": 2});
    sink
}

fn merge() -> Value {
    json!({"mode": "merge", "mergeKeys": ["id"]})
}

#[tokio::test(flavor = "multi_thread")]
async fn another_engine_reads_the_rows_that_were_added() {
    let sql = "SELECT id, name, at, tags, price, id = 2 AS two, CAST(id AS DOUBLE) / 4 AS quarter, \
        CAST(at AS DATE) AS day FROM records";
    let lake = Lake::new(sql, eager(json!({"partitionBy": ["name"]})));
    let sink = lake.open().await;
    let name = |id: i64| if id < 4 { "x" } else { "ä, y/z" };
    let mut expected = Vec::new();
    for id in 1..6 {
        lake.write(&sink, &[(0, id, record(id, name(id)))]).await;
        expected.push(json!({
            "id": id, "name": name(id), "at": "2026-03-01T12:00:00.000000", "tags": ["a", null],
            "price": "1.50", "two": id == 2, "quarter": id as f64 / 4.0, "day": "2026-03-01",
        }));
    }
    lake.write(&sink, &[(0, 6, json!({"id": 6}))]).await;
    expected.push(json!({
        "id": 6, "name": null, "at": null, "tags": null,
        "price": null, "two": false, "quarter": 1.5, "day": null,
    }));
    readback::assert_read_back(&lake.folder.path().join("a/table"), expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn another_engine_reads_the_rows_that_were_merged() {
    let mut lake = Lake::new("SELECT id FROM records", eager(merge()));
    let one = |offset: i64| vec![(0, offset, record(offset % 7, &offset.to_string()))];
    for offset in 0..10 {
        lake.write(&lake.open().await, &one(offset)).await;
    }
    // The table gains a column; rows that don't change have none of it.
    lake.sql = "SELECT id, name FROM records".into();
    let sink = lake.open().await;
    for offset in 10..14 {
        lake.write(&sink, &one(offset)).await;
    }
    let checkpoint = lake.table().await;
    deltalake::checkpoints::create_checkpoint(&checkpoint, None)
        .await
        .unwrap();
    lake.write(&sink, &one(14)).await;
    let expected = (8..15).map(|offset: i64| {
        let name = (offset >= 10).then(|| offset.to_string());
        json!({"id": offset % 7, "name": name, "_version": lake.base + offset})
    });
    readback::assert_read_back(&lake.folder.path().join("a/table"), expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn writers_at_the_same_time_lose_nothing_and_double_nothing() {
    for sink in [json!({}), merge(), eager(json!({})), eager(merge())] {
        let lake = Lake::new("SELECT id, name FROM records", sink);
        // The second and the third have the same partition: one of them is a zombie.
        let writers = [0, 1, 1].map(|partition| {
            let lake = &lake;
            async move {
                let sink = lake.open().await;
                for offset in 0..6 {
                    let row = record(i64::from(partition) * 100 + offset, "x");
                    lake.write(&sink, &[(partition, offset, row)]).await;
                }
            }
        });
        futures::future::join_all(writers).await;
        assert_eq!(lake.count().await, "12 of 12");
    }
}

/// Compacts a table from the version at which it was seen.
async fn compact(seen: &DeltaTable, began: SystemTime) -> Result<DeltaTable, Failure> {
    let log = Guarded::new(seen.log_store(), seen.version().unwrap()).begun(began);
    let size = NonZeroU64::new(1024 * 1024).unwrap();
    optimize(seen.clone(), Arc::new(log), size).await
}

/// A table of three small files, and the sink that wrote them.
async fn three_files(mut sink: Value) -> (Lake, DeltaSink) {
    sink["compaction"] = json!({"enabled": false});
    let lake = Lake::new("SELECT id, name FROM records", sink);
    let sink = lake.open().await;
    for id in 0..3 {
        lake.write(&sink, &[(0, id, record(id, "old"))]).await;
    }
    assert_eq!(lake.files().await, 3);
    (lake, sink)
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_compactions_at_once_one_is_made() {
    for sink in [json!({}), merge()] {
        let (lake, _sink) = three_files(sink).await;
        let (one, other) = (lake.table().await, lake.table().await);
        assert!(compact(&one, SystemTime::now()).await.is_ok());
        let late = compact(&other, SystemTime::now()).await;
        assert!(matches!(late, Err(Failure::Conflict(_))));
        assert_eq!(lake.count().await, "3 of 3");
        assert_eq!(lake.files().await, 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_compaction_passes_rows_that_were_added() {
    let (lake, sink) = three_files(json!({})).await;
    let seen = lake.table().await;
    lake.write(&sink, &[(0, 3, record(3, "new"))]).await;
    assert!(compact(&seen, SystemTime::now()).await.is_ok());
    // And rows pass a compaction: this sink saw the table before it.
    lake.write(&sink, &[(0, 4, record(4, "new"))]).await;
    assert_eq!(lake.count().await, "5 of 5");
    assert_eq!(lake.files().await, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_compaction_gives_way_to_a_merge() {
    let (lake, sink) = three_files(merge()).await;
    let seen = lake.table().await;
    lake.write(&sink, &[(0, 3, record(1, "new"))]).await;
    let late = compact(&seen, SystemTime::now()).await;
    assert!(matches!(late, Err(Failure::Conflict(_))));
    let rows = lake.select("SELECT id, name FROM t ORDER BY id").await;
    assert_eq!(cells(&rows), ["0 old", "1 new", "2 old"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_merge_is_made_again_after_a_compaction() {
    let (lake, sink) = three_files(merge()).await;
    assert!(
        compact(&lake.table().await, SystemTime::now())
            .await
            .is_ok()
    );
    // This sink saw the table before it.
    lake.write(&sink, &[(0, 3, record(1, "new")), (0, 4, record(3, "new"))])
        .await;
    let rows = lake.select("SELECT id, name FROM t ORDER BY id").await;
    assert_eq!(cells(&rows), ["0 old", "1 new", "2 old", "3 new"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_compaction_that_stood_still_is_not_made() {
    let (lake, _sink) = three_files(json!({})).await;
    let hour_ago = SystemTime::now() - Duration::from_secs(3600);
    let late = compact(&lake.table().await, hour_ago).await;
    assert!(matches!(late, Err(Failure::Conflict(_))));
    assert_eq!(lake.files().await, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn small_files_are_put_together() {
    for (compaction, most) in [
        (json!({}), 20),
        (json!({"minFiles": 4}), 8),
        (json!({"enabled": false, "minFiles": 2}), 34),
    ] {
        let lake = Lake::new("SELECT id FROM records", json!({"compaction": compaction}));
        let sink = lake.open().await;
        for offset in 0..34 {
            lake.write(&sink, &[(0, offset, record(offset, "x"))]).await;
        }
        assert_eq!(lake.count().await, "34 of 34");
        let files = lake.files().await;
        assert!(files <= most && (most < 34 || files == 34), "{files} files");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn small_files_between_larger_ones_are_put_together_with_them() {
    // The larger ones are more than a sixteenth of the target, also packed.
    let large: String = (0..10_000)
        .map(|_| uuid::Uuid::new_v4().simple().to_string())
        .collect();
    let names = [large.as_str(), "small", large.as_str(), "small"];
    let sink = json!({"compaction": {"enabled": false}});
    let mut lake = Lake::new("SELECT id, name FROM records", sink);
    for (id, name) in (0..).zip(names) {
        if id == 3 {
            assert_eq!(lake.files().await, 3);
            lake.sink = json!({"compaction": {"minFiles": 2, "targetFileSize": 1024 * 1024}});
        }
        lake.write(&lake.open().await, &[(0, id, record(id, name))])
            .await;
    }
    assert_eq!(lake.count().await, "4 of 4");
    assert_eq!(lake.files().await, 1);
}

/// Has files that are replaced removed at once.
async fn keep_nothing(lake: &Lake) {
    let name = "delta.deletedFileRetentionDuration".to_owned();
    let at_once = [(name, "interval 0 seconds".to_owned())].into();
    let change = lake.table().await.set_tbl_properties();
    change.with_properties(at_once).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn replaced_files_go_also_where_compaction_gives_way() {
    let (lake, _) = three_files(merge()).await;
    keep_nothing(&lake).await;
    // One that knows of the change: the file of a merge that isn't made would stay.
    let sink = lake.open().await;
    lake.write(&sink, &[(0, 3, record(1, "new"))]).await;
    let mut seen = lake.table().await;
    let before = seen.version().map(|version| version - 1);
    // What is seen is an older version now: a compaction from there isn't made.
    lake.write(&sink, &[(0, 4, record(2, "new"))]).await;
    assert_eq!((lake.files().await, lake.written()), (3, 5));
    let config = serde_json::from_value(json!({"minFiles": 2})).unwrap();
    let mut compactor = Compactor::new(&config);
    assert_eq!(compactor.run(&mut seen, before).await, None);
    assert_eq!(lake.count().await, "3 of 3");
    // Beside the table's: the one that the compaction wrote.
    assert_eq!((lake.files().await, lake.written()), (3, 4));
}

#[tokio::test(flavor = "multi_thread")]
async fn replaced_files_that_a_checkpoint_forgets_go_after_the_retention() {
    const HOUR: i64 = 3600 * 1000;
    let (lake, sink) = three_files(merge()).await;
    lake.write(&sink, &[(0, 3, record(1, "new"))]).await;
    let now = chrono::Utc::now().timestamp_millis();
    let (mut early, mut late) = (Replaced::default(), Replaced::default());
    let table = lake.table().await;
    early.remove(&table, now + 23 * HOUR).await.unwrap();
    late.remove(&table, now + HOUR).await.unwrap();
    assert_eq!((lake.files().await, lake.written()), (3, 4));

    keep_nothing(&lake).await;
    let table = lake.table().await;
    let checkpoint = deltalake::checkpoints::create_checkpoint(&table, None);
    checkpoint.await.unwrap();
    let table = lake.table().await;
    // It looked before the file's time came soon, and now nothing names it.
    late.remove(&table, now + 25 * HOUR).await.unwrap();
    assert_eq!(lake.written(), 4);
    early.remove(&table, now + 25 * HOUR).await.unwrap();
    assert_eq!((lake.files().await, lake.written()), (3, 3));
    assert_eq!(lake.count().await, "3 of 3");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bucket_whose_server_overwrites_is_refused() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    // It takes any object, whatever the header says.
    let server = axum::Router::new().fallback(async || [("etag", "\"1\"")]);
    tokio::spawn(async { axum::serve(listener, server).await });
    let config: Config = serde_json::from_value(json!({"s3": {
        "bucket": "b", "prefix": "t", "endpoint": endpoint, "allowHttp": true,
    }}))
    .unwrap();
    let place = Place::new("lake", &config, &Credentials::new("/nowhere".into())).unwrap();
    let error = place.prepare().await.unwrap_err().to_string();
    assert!(error.contains("If-None-Match"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bucket_holds_a_table_that_several_write() {
    let Ok(endpoint) = std::env::var("MILLSTREAM_S3") else {
        eprintln!("skipped: MILLSTREAM_S3 names no object store");
        return;
    };
    let bucket = format!("millstream-{}", uuid::Uuid::new_v4().simple());
    let put = reqwest::Client::new().put(format!("{endpoint}/{bucket}"));
    assert!(put.send().await.unwrap().status().is_success());
    let keys = tempfile::tempdir().unwrap();
    for file in millstream_api::sink::s3_files("lake") {
        std::fs::write(keys.path().join(file), "any").unwrap();
    }
    let credentials = Credentials::new(keys.path().into());
    let secret = json!({"name": "s", "key": "k"});
    let config: Config = serde_json::from_value(json!({"s3": {
        "bucket": bucket, "prefix": "lake/t", "endpoint": endpoint, "allowHttp": true,
        "accessKeyIdSecret": secret, "secretAccessKeySecret": secret,
    }, "compaction": {"minFiles": 2}}))
    .unwrap();
    let lake = Lake::new("SELECT id, name FROM records", json!({}));
    let writers = [0, 1, 1].map(|partition| {
        let (lake, config, credentials) = (&lake, &config, &credentials);
        async move {
            let status = Arc::new(Status::default()).part("lake");
            let reader = lake.reader.clone();
            let plan = lake.plan();
            let sink = DeltaSink::open("lake", config, &plan, 0, reader, credentials, status);
            let sink = sink.await.unwrap();
            for offset in 0..4 {
                let row = record(i64::from(partition) * 100 + offset, "x");
                lake.write(&sink, &[(partition, offset, row)]).await;
            }
        }
    });
    futures::future::join_all(writers).await;
    // As the REST service reads it.
    let place = Place::new("lake", &config, &credentials).unwrap();
    let mut table = place.apart("lake").unwrap().table().unwrap();
    table.load().await.unwrap();
    let session = session();
    let provider = table.table_provider().await.unwrap();
    session.register_table("t", provider).unwrap();
    let rows = session.sql("SELECT id FROM t").await.unwrap();
    assert_eq!(rows.count().await.unwrap(), 8);
}
