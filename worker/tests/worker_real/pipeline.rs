//! Worker processes against the real Kafka and Cassandra. Skipped where `MILLSTREAM_ENVIRONMENT`
//! doesn't name them.

use std::{collections::HashMap, time::Duration};

use crate::support::{Environment, Pipeline, Settings, kill_oldest};
use base64::{Engine, prelude::BASE64_STANDARD};
use millstream_api::worker::CommitMetadata;
use millstream_apis::{Apis, Options, dataset::Dataset, router};
use millstream_plan::RecordSchema;
use millstream_worker::source::generator::Generator;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

const BASE: i64 = 1_700_000_000_000_000;

const USERS: Settings = Settings {
    schema: "gender TEXT, name STRUCT<first TEXT, last TEXT>, \
        login STRUCT<uuid UUID, username TEXT>, location STRUCT<postcode TEXT>, \
        registered STRUCT<date TEXT, age INT>",
    sql: "SELECT login.uuid AS id, name.first AS first_name, name.last AS last_name, gender, \
        location.postcode AS post_code, login.username AS username, \
        registered.age AS age FROM records",
    columns: &[
        ("id", "uuid"),
        ("first_name", "text"),
        ("last_name", "text"),
        ("gender", "text"),
        ("post_code", "text"),
        ("username", "text"),
        ("age", "int"),
    ],
    key: "/login/uuid",
    partitions: 4,
    base: BASE,
};

fn rows(rows: i64) -> CommitMetadata {
    CommitMetadata {
        rows,
        ..CommitMetadata::default()
    }
}

type Row = (uuid::Uuid, String, Option<String>, Option<i32>);

/// The rows that generated records make.
fn expected(seed: u64, count: u64) -> HashMap<uuid::Uuid, Row> {
    let generator = Generator::new(&RecordSchema::parse(USERS.schema).unwrap(), seed);
    (0..count)
        .map(|index| {
            let json: Value = serde_json::from_slice(&generator.record(index)).unwrap();
            let id: uuid::Uuid = json["login"]["uuid"].as_str().unwrap().parse().unwrap();
            let first = json["name"]["first"].as_str().unwrap().to_owned();
            let post_code = json["location"]["postcode"].as_str().map(str::to_owned);
            let age = json["registered"]["age"].as_i64().map(|age| age as i32);
            (id, (id, first, post_code, age))
        })
        .collect()
}

async fn assert_rows(pipeline: &Pipeline, seed: u64, count: u64) {
    let expected = expected(seed, count);
    let rows: Vec<Row> = pipeline.select("id, first_name, post_code, age").await;
    assert_eq!(rows.len(), expected.len());
    for row in rows {
        assert_eq!(Some(&row), expected.get(&row.0));
    }
}

/// A pipeline of users; none where there are no servers.
async fn users(partitions: i32) -> Option<Pipeline> {
    let environment = Environment::find().await?;
    let settings = Settings {
        partitions,
        ..USERS
    };
    Some(Pipeline::create(environment, settings).await)
}

#[tokio::test(flavor = "multi_thread")]
async fn every_record_becomes_a_row_and_a_drain_is_quick() {
    let Some(pipeline) = users(USERS.partitions).await else {
        return;
    };
    let process = pipeline.process();
    let ingest = pipeline.ingest(json!({"generator": {"count": 20_000, "seed": 7}}));
    let status = ingest.await_status(|status| status.complete).await;
    assert!(status.errors.is_empty(), "{status:?}");
    pipeline.await_progress(rows(20_000)).await;
    assert_rows(&pipeline, 7, 20_000).await;

    let (code, metrics) = process.get("/metrics").await.unwrap();
    assert_eq!(code, 200);
    assert!(
        metrics.contains(r#"millstream_worker_rows_total{stage="rows"} 20000"#),
        "{metrics}"
    );
    // How many depends on what else the machine does.
    let limit = r#"millstream_worker_write_concurrency{stage="rows",kind="rows"} "#;
    assert!(metrics.contains(limit), "{metrics}");
    assert_eq!(process.get("/readyz").await.unwrap().0, 200);
    assert_eq!(process.get("/healthz").await.unwrap().0, 200);

    // A worker that starts again knows that the source is complete.
    let (code, took) = ingest.terminate().await;
    assert_eq!(
        (code, took < Duration::from_secs(5)),
        (Some(0), true),
        "{took:?}"
    );
    let again = pipeline.ingest(json!({"generator": {"count": 20_000, "seed": 7}}));
    again.await_status(|status| status.complete).await;
    let (code, took) = process.terminate().await;
    assert_eq!(
        (code, took < Duration::from_secs(5)),
        (Some(0), true),
        "{took:?}"
    );
    assert_eq!(pipeline.progress().await, (rows(20_000), 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_gets_another_end_goes_on_where_it_was() {
    let Some(pipeline) = users(USERS.partitions).await else {
        return;
    };
    let source = |count: u64| json!({"generator": {"count": count, "seed": 15}});
    for (count, in_all) in [(5, 5), (9, 9), (3, 9)] {
        let ingest = pipeline.ingest(source(count));
        ingest.await_status(|status| status.complete).await;
        assert_eq!(pipeline.kept().await["records"], in_all);
        ingest.kill();
    }
    let process = pipeline.process();
    pipeline.await_progress(rows(9)).await;
    assert_rows(&pipeline, 15, 9).await;
    // A run is a pass of its own.
    let run = pipeline.ingest_with(source(4), &["--run", "one"]);
    assert_eq!(run.ended().await, Some(0));
    assert_eq!(pipeline.kept().await["records"], 9 + 4);
    process.kill();
}

#[tokio::test(flavor = "multi_thread")]
async fn workers_that_are_killed_lose_and_double_nothing() {
    let Some(pipeline) = users(USERS.partitions).await else {
        return;
    };
    let mut workers = vec![pipeline.process(), pipeline.process()];
    for count in [10_000, 20_000, 30_000, 40_000] {
        let ingested = pipeline.ingest_killed(json!({"generator": {"count": count, "seed": 8}}));
        kill_oldest(&mut workers, ingested).await;
        workers.push(pipeline.process());
    }
    pipeline.await_progress(rows(40_000)).await;
    assert_rows(&pipeline, 8, 40_000).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_missing_where_retention_has_removed_what_was_read() {
    let Some(pipeline) = users(USERS.partitions).await else {
        return;
    };
    let mut sent = 0;
    for (seed, count) in [(11, 2_000), (12, 500), (13, 1)] {
        let process = pipeline.process();
        let ingest = pipeline.ingest(json!({"generator": {"count": count, "seed": seed}}));
        ingest.await_status(|status| status.complete).await;
        sent += count;
        assert_eq!(pipeline.kept().await["records"], sent);
        // Up to the end: behind the last record of a partition is the marker of its transaction.
        pipeline.await_progress(rows(sent)).await;
        assert_eq!(pipeline.records().await.len() as i64, count);
        process.kill();
        ingest.kill();
        pipeline.empty_topic().await;
    }
    let process = pipeline.process();
    let ingest = pipeline.ingest(json!({"generator": {"count": 300, "seed": 14}}));
    pipeline.await_progress(rows(sent + 300)).await;
    let status = process.await_status(|_| true).await;
    assert!(status.errors.is_empty(), "{status:?}");
    drop(ingest);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_topic_refuses_is_a_dead_letter_and_all_else_is_there_once() {
    let Some(pipeline) = users(1).await else {
        return;
    };
    pipeline.limit_topic("100000").await;
    let user = |number: u64, name: &str| {
        let id = uuid::Uuid::from_u128(number.into());
        let user = json!({"login": {"uuid": id}, "name": {"first": name}});
        format!("{user}\n")
    };
    // What can't be compressed below the limit, amid what is sent together with it.
    let noise = |seed: u64| {
        let generator = Generator::new(&RecordSchema::parse(USERS.schema).unwrap(), seed);
        let records = (0..6_000).map(|index| generator.record(index));
        let noise: Vec<u8> = records.flat_map(|record| Sha256::digest(&record)).collect();
        BASE64_STANDARD.encode(noise)
    };
    let records = (0..300).map(|number| match number {
        40 => user(number, &noise(1)),
        200 => user(number, &noise(2)),
        _ => user(number, "small"),
    });
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("users.ndjson");
    std::fs::write(&path, records.collect::<String>()).unwrap();
    let ingest = pipeline.ingest(json!({"file": {"path": path}}));
    ingest.await_status(|status| status.complete).await;
    let letters = pipeline.dead_letters(2).await;
    for (reason, bytes) in letters {
        assert!(reason.starts_with("Kafka refuses the record"), "{reason}");
        assert!(bytes > 100_000, "{bytes} bytes");
    }
    assert_eq!(pipeline.records().await.len(), 298);
    assert_eq!(pipeline.kept().await["records"], 298);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_newest_record_wins_and_absent_fields_are_left_alone() {
    let Some(pipeline) = users(1).await else {
        return;
    };
    let id = "9a723211-0e87-41f1-b1e4-ed1a15226b80";
    let record = |rest: &str| {
        let json = format!(r#"{{"login": {{"uuid": "{id}"}}, {rest}}}"#);
        (Some(id), Some(json.into_bytes()))
    };
    pipeline
        .produce(&[
            record(r#""gender": "f", "name": {"first": "Zoë"}, "location": {"postcode": 7}"#),
            record(r#""name": {"first": "Ada"}, "location": {"postcode": null}"#),
        ])
        .await;
    let process = pipeline.process();
    pipeline.await_progress(rows(2)).await;
    type Found = (String, Option<String>, Option<String>, i64, i64);
    let found: Vec<Found> = pipeline
        .select("first_name, gender, post_code, writetime(first_name), writetime(gender)")
        .await;
    assert_eq!(
        found,
        [("Ada".into(), Some("f".into()), None, BASE + 1, BASE)]
    );
    drop(process);
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_records_go_to_the_dead_letters_and_the_rest_goes_on() {
    let Some(pipeline) = users(1).await else {
        return;
    };
    let good = |id: u8| {
        let json = format!(r#"{{"login": {{"uuid": "{id:08}-0e87-41f1-b1e4-ed1a15226b80"}}}}"#);
        (None, Some(json.into_bytes()))
    };
    let large = format!(r#"{{"gender": "{}"}}"#, "x".repeat(5 * 1024 * 1024));
    let bytes = large.len();
    pipeline
        .produce(&[
            good(0),
            (Some("k"), Some(b"{\"login\": ".to_vec())),
            (None, Some(large.into_bytes())),
            (Some("gone"), None),
            (None, Some(br#"{"login": {"uuid": "nobody"}}"#.to_vec())),
            (None, Some(br#"{"name": {"first": "x"}}"#.to_vec())),
            (None, Some(br#"{"registered": {"age": "old"}}"#.to_vec())),
            good(1),
        ])
        .await;
    let process = pipeline.process();
    let expected = CommitMetadata {
        rows: 2,
        dead_lettered: 6,
        ..CommitMetadata::default()
    };
    pipeline.await_progress(expected).await;
    let letters = pipeline.dead_letters(6).await;
    for ((reason, _), says) in letters.iter().zip([
        "the record isn't",
        "the limit is 1,048,576",
        "the record has no value",
        "`nobody` isn't a UUID",
        "primary key column `id` is null",
        "the record doesn't fit the schema",
    ]) {
        assert!(reason.contains(says), "{reason}");
    }
    assert_eq!(letters[1].1, bytes);
    assert!(process.await_status(|_| true).await.errors.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_table_is_waited_for() {
    let Some(pipeline) = users(USERS.partitions).await else {
        return;
    };
    let drop_table = format!("DROP TABLE {}.rows", pipeline.name);
    pipeline
        .session
        .query_unpaged(drop_table, ())
        .await
        .unwrap();
    let process = pipeline.process();
    let status = process
        .await_status(|status| !status.errors.is_empty())
        .await;
    assert!(
        status.errors["rows"].contains("can't prepare"),
        "{status:?}"
    );
    assert_eq!(process.get("/readyz").await.unwrap().0, 503);
    let table = format!(
        "CREATE TABLE {}.rows (id uuid PRIMARY KEY, first_name text, last_name text, gender text, post_code text, username text, age int)",
        pipeline.name
    );
    pipeline.session.query_unpaged(table, ()).await.unwrap();
    let ingest = pipeline.ingest(json!({"generator": {"count": 100}}));
    ingest.await_status(|status| status.complete).await;
    pipeline.await_progress(rows(100)).await;
    process
        .await_status(|status| status.errors.is_empty())
        .await;
}

/// A record of the user with this number.
fn user(number: u64, gender: &str, age: i64) -> (Option<&'static str>, Option<Vec<u8>>) {
    let id = format!("{number:08}-0e87-41f1-b1e4-ed1a15226b80");
    let json = json!({"login": {"uuid": id}, "gender": gender, "registered": {"age": age}});
    (Some("k"), Some(json.to_string().into_bytes()))
}

fn numbers(rows: Vec<(uuid::Uuid,)>) -> Vec<u32> {
    let mut numbers: Vec<_> = rows
        .into_iter()
        .map(|(id,)| id.as_fields().0)
        .map(|hexadecimal| format!("{hexadecimal:x}").parse().unwrap())
        .collect();
    numbers.sort_unstable();
    numbers
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_are_held_to_expectations() {
    let Some(pipeline) = users(1).await else {
        return;
    };
    pipeline
        .produce(&[
            user(0, "f", 20),
            user(1, "?", 30),
            user(2, "m", 7),
            user(3, "?", 8),
            user(4, "f", 200),
            user(5, "m", 21),
            user(6, "m", 500),
            user(7, "f", 22),
            user(8, "?", 23),
        ])
        .await;
    let expectations = |age: &str| {
        json!({"expectations": [
            {"name": "known", "check": "gender IN ('f', 'm')", "onFailure": "DeadLetter"},
            {"name": "adult", "check": "age >= 18", "onFailure": "Drop"},
            {"name": "sane", "check": age, "onFailure": "Fail"},
        ]})
    };
    let counts = |rows, dead_lettered, failed: &[(&str, i64)]| CommitMetadata {
        rows,
        dead_lettered,
        failed: failed.iter().map(|(n, f)| ((*n).to_owned(), *f)).collect(),
    };

    // The sink stops before record 6, and everything before it is settled.
    let process = pipeline.process_with(expectations("age < 300"));
    let status = process
        .await_status(|status| !status.errors.is_empty())
        .await;
    let error = &status.errors["rows"];
    assert!(
        error.contains("partition 0, offset 6 fails the expectation `sane`: age < 300"),
        "{error}"
    );
    let before = counts(3, 2, &[("adult", 2), ("known", 2)]);
    assert_eq!(pipeline.progress().await, (before.clone(), 3));
    assert_eq!(numbers(pipeline.select("id").await), [0, 4, 5]);
    let (_, metrics) = process.get("/metrics").await.unwrap();
    assert!(
        metrics.contains(
            r#"millstream_worker_expectation_failures_total{stage="rows",expectation="known"} 2"#
        ),
        "{metrics}"
    );
    // It stands there for as long as nothing is changed, and a new pod stops at the same place.
    let (code, took) = process.terminate().await;
    assert_eq!(
        (code, took < Duration::from_secs(5)),
        (Some(0), true),
        "{took:?}"
    );
    let again = pipeline.process_with(expectations("age < 300"));
    again.await_status(|status| !status.errors.is_empty()).await;
    assert_eq!(pipeline.progress().await, (before, 3));
    drop(again);

    // Changed, the pipeline goes on.
    let process = pipeline.process_with(expectations("age < 1000"));
    pipeline
        .await_progress(counts(5, 3, &[("adult", 2), ("known", 3)]))
        .await;
    assert_eq!(numbers(pipeline.select("id").await), [0, 4, 5, 6, 7]);
    let letters = pipeline.dead_letters(3).await;
    let reasons: Vec<_> = letters.iter().map(|(reason, _)| reason.as_str()).collect();
    let reason = "expectation `known` failed: gender IN ('f', 'm'), with gender = ?";
    assert_eq!(reasons, [reason; 3]);
    assert!(process.await_status(|_| true).await.errors.is_empty());

    // What is counted of an expectation goes with it.
    drop(process);
    let _process = pipeline.process();
    pipeline.produce(&[user(9, "?", 1)]).await;
    pipeline.await_progress(counts(6, 3, &[])).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn dead_letters_are_replayed_to_where_they_were() {
    let Some(pipeline) = users(2).await else {
        return;
    };
    let named = |number: u64, name: &str, post_code: &str| {
        let id = format!("{number:08}-0e87-41f1-b1e4-ed1a15226b80");
        let json = json!({
            "login": {"uuid": id}, "name": {"first": name}, "gender": "f",
            "location": {"postcode": post_code}, "registered": {"age": 1},
        });
        (Some("k"), Some(json.to_string().into_bytes()))
    };
    let large = format!(r#"{{"gender": "{}"}}"#, "x".repeat(10_450_000));
    pipeline
        .produce(&[
            named(0, "good", "1"),
            named(1, "old", "AB 1"),
            named(2, "only", "AB 2"),
            named(1, "new", "2"),
            (Some("k"), Some(large.into_bytes())),
        ])
        .await;
    let counts = |rows, dead_lettered| CommitMetadata {
        rows,
        dead_lettered,
        ..CommitMetadata::default()
    };
    // A sink that takes everything, and one whose SQL has a mistake.
    let others = pipeline.process_with(json!({"name": "others"}));
    // It has read its configuration: the next one is written in its place.
    others.await_status(|_| true).await;
    let wrong = USERS.sql.replace(
        "location.postcode AS",
        "CAST(CAST(location.postcode AS INT) AS TEXT) AS",
    );
    let process = pipeline.process_with(json!({"sql": wrong}));
    pipeline.await_progress(counts(2, 3)).await;
    drop(process);

    let process = pipeline.process();
    let told = pipeline.replay("process", &["--dry-run"]);
    assert!(told.contains("column `post_code`: Cannot cast"), "{told}");
    assert_eq!(pipeline.progress().await, (counts(2, 3), 0));
    // The large one is rejected before the others, or in a batch of its own behind them.
    let first = pipeline.replay("process", &["--limit", "1"]);
    let second = pipeline.replay("process", &["--sink", "rows"]);
    let told = first + &second;
    assert_eq!(told.matches("\nrows           1 ").count(), 2, "{told}");
    let skipped = "skipped partition 0, offset ";
    assert_eq!(told.matches(skipped).count(), 1, "{told}");
    assert!(
        told.contains("only the beginning of its 10450014 bytes"),
        "{told}"
    );
    let told = pipeline.replay("process", &[]);
    assert!(told.ends_with("rows           0        0\n"), "{told}");
    pipeline.await_progress(counts(4, 3)).await;

    // Each cell has the timestamp of the record's first offset, and the newer record's stays.
    type Found = (uuid::Uuid, String, String, i64);
    let mut rows: Vec<Found> = pipeline
        .select("id, first_name, post_code, writetime(first_name)")
        .await;
    rows.sort();
    let rows: Vec<_> = rows
        .iter()
        .map(|(_, name, code, time)| (name.as_str(), code.as_str(), time - BASE))
        .collect();
    assert_eq!(
        rows,
        [("good", "1", 0), ("new", "2", 3), ("only", "AB 2", 2)]
    );

    // The other sink has passed them over.
    while pipeline.progress_of("others").await.1 > 0 {
        others.await_status(|status| status.errors.is_empty()).await;
    }
    drop(process);
    let (_, metrics) = others.get("/metrics").await.unwrap();
    assert!(
        metrics.contains(r#"millstream_worker_rows_total{stage="others"} 4"#),
        "{metrics}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_in_the_batch_of_a_newer_record_does_not_replace_it() {
    let Some(pipeline) = users(1).await else {
        return;
    };
    let wrong = USERS
        .sql
        .replace("registered.age AS", "CAST(100 / registered.age AS INT) AS");
    pipeline.produce(&[user(1, "f", 0)]).await;
    let process = pipeline.process_with(json!({"sql": wrong}));
    let dead = CommitMetadata {
        dead_lettered: 1,
        ..CommitMetadata::default()
    };
    pipeline.await_progress(dead).await;
    drop(process);

    // Both wait in the topic, so that one batch has them.
    pipeline.produce(&[user(1, "m", 1)]).await;
    pipeline.replay("process", &[]);
    let _process = pipeline.process();
    pipeline
        .await_progress(CommitMetadata {
            rows: 2,
            dead_lettered: 1,
            ..CommitMetadata::default()
        })
        .await;
    let rows: Vec<(String, i32, i64)> = pipeline.select("gender, age, writetime(age)").await;
    assert_eq!(rows, [("m".to_owned(), 1, BASE + 1)]);
}

/// Licences of New York, recorded where there are any.
async fn licences() -> (String, Vec<Value>) {
    let data = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/data");
    let recorded = Dataset::load(&data.join("nyc_dca_businesses.soda.deid.jsonl.gz")).ok();
    let router = router(Apis::new(Options {
        records: 15_000,
        recorded,
        ..Options::default()
    }));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    let all = reqwest::get(format!("{url}/resource/x.json?$limit=50000"))
        .await
        .unwrap();
    let all = all.text().await.unwrap();
    let client = reqwest::Client::new();
    client.delete(format!("{url}/sent")).send().await.unwrap();
    (url, serde_json::from_str(&all).unwrap())
}

/// Records that the server has given so far.
async fn sent(url: &str) -> usize {
    let sent = reqwest::get(format!("{url}/sent?ids=false")).await.unwrap();
    let sent: Value = serde_json::from_str(&sent.text().await.unwrap()).unwrap();
    sent["resource"]["records"].as_u64().unwrap() as usize
}

const LICENCES: Settings = Settings {
    schema: "license_nbr TEXT, industry TEXT, contact_phone TEXT",
    sql: "SELECT license_nbr, industry, contact_phone FROM records",
    columns: &[
        ("license_nbr", "text"),
        ("industry", "text"),
        ("contact_phone", "text"),
    ],
    key: "/license_nbr",
    partitions: 4,
    base: BASE,
};

type Licence = (String, Option<String>, Option<String>);

async fn assert_licences(pipeline: &Pipeline, licences: &[Value]) {
    let text = |licence: &Value, name: &str| licence[name].as_str().map(str::to_owned);
    let expected: HashMap<String, Licence> = licences
        .iter()
        .map(|licence| {
            let number = text(licence, "license_nbr").unwrap();
            let industry = text(licence, "industry");
            (
                number.clone(),
                (number, industry, text(licence, "contact_phone")),
            )
        })
        .collect();
    let deadline = std::time::Instant::now() + Duration::from_secs(120);
    while pipeline.progress().await.1 > 0 {
        assert!(std::time::Instant::now() < deadline, "the lag stays");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let rows: Vec<Licence> = pipeline
        .select("license_nbr, industry, contact_phone")
        .await;
    assert_eq!(rows.len(), expected.len());
    for row in rows {
        assert_eq!(Some(&row), expected.get(&row.0));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_api_is_read_on_from_where_a_killed_worker_was_and_then_from_the_cache() {
    let Some(environment) = Environment::find().await else {
        return;
    };
    let (url, licences) = licences().await;
    let prefix = format!("{}:", uuid::Uuid::new_v4());
    let source = |paced: bool| {
        let mut http = json!({
            "url": format!("{url}/resource/w7w3-xahh.json"),
            "pagination": {"limitOffset": {
                "limitParameter": "$limit", "offsetParameter": "$offset", "pageSize": 250,
                "count": {"query": {"$select": "count(*)"}, "pointer": "/0/count"},
            }},
            "cache": {"redis": {
                "address": environment.redis, "key": "licences", "keyPrefix": prefix,
                "recordKey": "/license_nbr", "ttl": "2m", "recordTtl": "2m",
            }},
        });
        if paced {
            http["rateLimit"] = json!({"requests": 20});
        }
        json!({"http": http})
    };
    let pipeline = Pipeline::create(environment.clone(), LICENCES).await;
    let process = pipeline.process();
    let ingest = pipeline.ingest(source(true));
    while sent(&url).await < licences.len() / 2 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    ingest.kill();
    let ingest = pipeline.ingest(source(true));
    let status = ingest.await_status(|status| status.complete).await;
    assert!(
        status.errors.is_empty() && status.warnings.is_empty(),
        "{status:?}"
    );
    assert_licences(&pipeline, &licences).await;
    let twice = sent(&url).await - licences.len();
    // What was fetched between two commits, and given up.
    assert!(twice < 20 * 250, "{twice} records were fetched twice");
    drop((ingest, process));

    // Only a whole pass is kept; the next one doesn't ask the server.
    for (hits, misses) in [(0, 1), (1, 0)] {
        let before = sent(&url).await;
        let pipeline = Pipeline::create(environment.clone(), LICENCES).await;
        let process = pipeline.process();
        let ingest = pipeline.ingest(source(false));
        ingest.await_status(|status| status.complete).await;
        let (_, metrics) = ingest.get("/metrics").await.unwrap();
        for (name, count) in [("hits", hits), ("misses", misses)] {
            let line = format!("millstream_worker_cache_{name}_total{{stage=\"ingest\"}} {count}");
            assert!(metrics.contains(&line), "{line} is not in\n{metrics}");
        }
        assert_licences(&pipeline, &licences).await;
        let fetched = if hits == 0 { licences.len() } else { 0 };
        assert_eq!(sent(&url).await - before, fetched);
        drop((ingest, process));
    }
}
