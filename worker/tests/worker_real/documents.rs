//! Documents by worker processes, on the real Kafka and document server. Skipped where
//! `MILLSTREAM_ENVIRONMENT` doesn't name them.

use std::collections::BTreeMap;

use futures::TryStreamExt;
use millstream_api::worker::CommitMetadata;
use millstream_plan::RecordSchema;
use millstream_worker::source::generator::Generator;
use mongodb::{
    Client, Collection, IndexModel,
    bson::{Bson, DateTime, Document, doc},
    options::IndexOptions,
};
use serde_json::{Value, json};

use crate::{
    ports::free_port,
    support::{Environment, Pipeline, Relay, Settings, Worker, kill_oldest},
};

const BASE: i64 = 1_700_000_000_000_000;

const USERS: Settings = Settings {
    schema: "login STRUCT<uuid UUID, username TEXT>, name STRUCT<first TEXT, last TEXT>, \
        age INT, seen TIMESTAMP, tags ARRAY<TEXT>",
    sql: "SELECT login.uuid AS id, name.first AS first_name, login.username AS username, age, \
        seen, tags FROM records",
    // For the table that isn't written here.
    columns: &[("id", "uuid")],
    key: "/login/uuid",
    partitions: 2,
    base: BASE,
};

/// A pipeline into documents, and the collection that has them.
struct Users {
    pipeline: Pipeline,
    server: String,
    documents: Collection<Document>,
}

impl Users {
    /// None where there are no servers.
    async fn create(partitions: i32) -> Option<Self> {
        let environment = Environment::find().await?;
        let Some(server) = environment.json["documents"].as_str() else {
            eprintln!("skipped: the environment has no document server");
            return None;
        };
        let server = server.to_owned();
        let client = Client::with_uri_str(format!("mongodb://{server}/")).await;
        let settings = Settings {
            partitions,
            ..USERS
        };
        let pipeline = Pipeline::create(environment, settings).await;
        let documents = client
            .unwrap()
            .database("worker")
            .collection(&pipeline.name);
        let users = Users {
            pipeline,
            documents,
            server: server.clone(),
        };
        users.connect(&server);
        Some(users)
    }

    /// Tells the workers that are started from now on where the server is.
    fn connect(&self, server: &str) {
        let uri = format!("mongodb://{server}/");
        self.pipeline.give("sink-rows-document-connection", &uri);
    }

    fn process(&self) -> Worker {
        self.process_with(USERS.sql)
    }

    fn process_with(&self, sql: &str) -> Worker {
        let mut beside = self.pipeline.sink("rows", sql, USERS.columns);
        self.pipeline.process_with(json!({
            "sql": sql,
            "cassandra": null,
            "state": beside["cassandra"].take(),
            "document": {
                "connectionSecret": {"name": "documents", "key": "uri"},
                "database": "worker",
                "collection": self.documents.name(),
                "id": "id",
            },
        }))
    }

    async fn stored(&self) -> BTreeMap<String, Document> {
        let found = self.documents.find(doc! {}).await.unwrap();
        let found: Vec<Document> = found.try_collect().await.unwrap();
        let by_id = found.into_iter().map(|document| {
            let id = document.get("_id").map(Bson::to_string);
            (id.unwrap_or_default(), document)
        });
        by_id.collect()
    }

    async fn drop(self) {
        self.documents.drop().await.unwrap();
    }
}

fn id(number: usize) -> String {
    format!("{number:08}-0e87-41f1-b1e4-ed1a15226b80")
}

fn record(number: usize, rest: &str) -> (String, Vec<u8>) {
    let id = id(number);
    let json = format!(r#"{{"login": {{"uuid": "{id}"}}, {rest}}}"#);
    (id, json.into_bytes())
}

fn uuid(text: &str) -> mongodb::bson::Uuid {
    mongodb::bson::Uuid::parse_str(text).unwrap()
}

fn rows(rows: i64) -> CommitMetadata {
    CommitMetadata {
        rows,
        ..CommitMetadata::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_newest_record_wins_null_is_kept_and_absent_fields_are_left_alone() {
    let Some(users) = Users::create(1).await else {
        return;
    };
    let first = r#""name": {"first": "Zoë"}, "age": 7, "seen": "2026-01-02T03:04:05.678Z", "tags": ["a", null]"#;
    let records = [
        record(1, first),
        record(1, r#""name": {"first": "Ada"}, "age": null"#),
        record(2, r#""age": 1"#),
    ];
    let worker = users.process();
    users.pipeline.produce_all(&records[..1]).await;
    users.pipeline.await_progress(rows(1)).await;
    users.pipeline.produce_all(&records[1..]).await;
    users.pipeline.await_progress(rows(3)).await;
    let seen = DateTime::parse_rfc3339_str("2026-01-02T03:04:05.678Z").unwrap();
    let expected = doc! {
        "_id": uuid(&id(1)), "id": uuid(&id(1)), "first_name": "Ada", "age": null, "seen": seen,
        "tags": ["a", null], "_version": BASE + 1,
    };
    let one = doc! {"_id": uuid(&id(1))};
    let found = users.documents.find_one(one).await.unwrap();
    assert_eq!(found, Some(expected));
    let two = doc! {"_id": uuid(&id(2))};
    let found = users.documents.find_one(two).await.unwrap().unwrap();
    assert!(!found.contains_key("first_name"), "{found}");
    drop(worker);
    users.drop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn workers_that_are_killed_leave_every_document_as_new_as_can_be() {
    let Some(users) = Users::create(4).await else {
        return;
    };
    const RECORDS: u64 = 15_000;
    let mut workers = vec![users.process(), users.process()];
    // A worker's part of each third is more than a batch.
    for count in [RECORDS / 3, RECORDS / 3 * 2, RECORDS] {
        let source = json!({"generator": {"count": count, "seed": 8}});
        kill_oldest(&mut workers, users.pipeline.ingest_killed(source)).await;
        workers.push(users.process());
    }
    users.pipeline.await_commits().await;
    let generator = Generator::new(&RecordSchema::parse(USERS.schema).unwrap(), 8);
    let expected: BTreeMap<_, _> = (0..RECORDS)
        .map(|index| {
            let json: Value = serde_json::from_slice(&generator.record(index)).unwrap();
            let id = uuid(json["login"]["uuid"].as_str().unwrap());
            (Bson::from(id).to_string(), json)
        })
        .collect();
    let stored = users.stored().await;
    assert_eq!(stored.len(), expected.len());
    for (id, json) in expected {
        let found = &stored[&id];
        let text = |field: &str| found.get_str(field).ok();
        assert_eq!(text("first_name"), json["name"]["first"].as_str());
        assert_eq!(text("username"), json["login"]["username"].as_str());
        let age = found.get_i32("age").ok().map(i64::from);
        assert_eq!(age, json["age"].as_i64());
    }
    drop(workers);
    users.drop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn batches_of_groups_do_not_get_in_each_others_way() {
    let Some(users) = Users::create(1).await else {
        return;
    };
    users.pipeline.create_state_table().await;
    // Four batches at the least, each of which updates all documents.
    const RECORDS: i64 = 40_000;
    const GROUPS: i64 = 200;
    let records = (0..RECORDS).map(|number| record((number % GROUPS) as usize, r#""age": 1"#));
    users
        .pipeline
        .produce_all(&records.collect::<Vec<_>>())
        .await;
    let worker = users
        .process_with("SELECT login.uuid AS id, count(*) AS n FROM records GROUP BY login.uuid");
    users.pipeline.await_progress(rows(RECORDS)).await;
    let stored = users.stored().await;
    assert_eq!(stored.len(), GROUPS as usize);
    let each = Some(RECORDS / GROUPS);
    let is_whole = |found: &Document| found.get_i64("n").ok() == each;
    assert!(stored.values().all(is_whole), "{stored:?}");
    let (_, metrics) = worker.get("/metrics").await.unwrap();
    let mut retries = metrics.lines();
    let retries = retries.find(|line| line.starts_with("millstream_worker_write_retries_total"));
    assert!(retries.unwrap().ends_with(" 0"), "{retries:?}");
    drop(worker);
    users.drop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_comes_too_late_changes_nothing() {
    let Some(mut users) = Users::create(USERS.partitions).await else {
        return;
    };
    let records: Vec<_> = (0..600)
        .map(|number| record(number % 500, &format!(r#""age": {number}"#)))
        .collect();
    users.pipeline.produce_all(&records).await;
    let worker = users.process();
    users.pipeline.await_progress(rows(600)).await;
    drop(worker);
    let before = users.stored().await;
    assert_eq!(before.len(), 500);
    // The same records once more, first under the same versions, then under older ones.
    for (name, base) in [("again", BASE), ("zombie", BASE - 1_000)] {
        let name = format!("{}-{name}", users.pipeline.name);
        users.pipeline.more = json!({
            "pipeline": {"namespace": "test", "name": name},
            "topic": {
                "name": users.pipeline.name, "id": "unknown", "timestampBase": base,
                "partitions": USERS.partitions,
            },
        });
        let sql = "SELECT login.uuid AS id, 'late' AS first_name, -1 AS age FROM records";
        let late = users.process_with(sql);
        late.await_metric("millstream_worker_rows_total", 600).await;
        assert_eq!(users.stored().await, before, "{name}");
    }
    // Newer ones do.
    users.pipeline.more = json!({
        "pipeline": {"namespace": "test", "name": format!("{}-newer", users.pipeline.name)},
        "topic": {
            "name": users.pipeline.name, "id": "unknown", "timestampBase": BASE + 1_000,
            "partitions": USERS.partitions,
        },
    });
    let newer = users.process_with("SELECT login.uuid AS id, -1 AS age FROM records");
    newer
        .await_metric("millstream_worker_rows_total", 600)
        .await;
    let after = users.stored().await;
    assert_eq!(after.len(), 500);
    assert!(
        after
            .values()
            .all(|found| found.get_i64("age").ok() == Some(-1))
    );
    drop(newer);
    users.drop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn documents_that_the_server_refuses_go_to_the_dead_letters() {
    let Some(users) = Users::create(1).await else {
        return;
    };
    let unique = IndexOptions::builder().unique(true).build();
    let index = IndexModel::builder()
        .keys(doc! {"age": 1})
        .options(unique)
        .build();
    users.documents.create_index(index).await.unwrap();
    let mut records: Vec<_> = (0..300)
        .map(|number| record(number, &format!(r#""age": {number}"#)))
        .collect();
    records.push(record(300, r#""age": 7"#));
    records.push((String::new(), br#"{"age": 301}"#.to_vec()));
    records.push((
        String::new(),
        br#"{"login": {"uuid": "nobody"}, "age": 302}"#.to_vec(),
    ));
    records.push(record(303, r#""age": 303"#));
    users.pipeline.produce_all(&records).await;
    let worker = users.process();
    users
        .pipeline
        .await_progress(CommitMetadata {
            rows: 301,
            dead_lettered: 3,
            ..CommitMetadata::default()
        })
        .await;
    let letters = users.pipeline.dead_letters(3).await;
    let reasons: Vec<_> = letters.iter().map(|(reason, _)| reason.as_str()).collect();
    for (reason, says) in reasons.iter().zip([
        "another document has its value in a unique index",
        "the document's id `id` is null",
        "column `id`: `nobody` isn't a UUID",
    ]) {
        assert!(reason.contains(says), "{reason}");
    }
    assert_eq!(users.stored().await.len(), 301);
    let status = worker.await_status(|status| status.errors.is_empty()).await;
    assert!(status.errors.is_empty());
    drop(worker);
    users.drop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_away_is_waited_for() {
    let Some(users) = Users::create(1).await else {
        return;
    };
    let address = format!("127.0.0.1:{}", free_port());
    users.connect(&address);
    let records = |range: std::ops::Range<usize>| -> Vec<_> {
        range.map(|number| record(number, r#""age": 1"#)).collect()
    };
    users.pipeline.produce_all(&records(0..100)).await;
    let worker = users.process();
    let shown = |status: &millstream_api::worker::WorkerStatus| {
        let error = status.errors.get("rows");
        error.is_some_and(|error| error.contains("can't write to"))
    };
    worker.await_status(shown).await;
    assert_eq!(users.pipeline.progress().await.1, 100);
    let relay = Relay::start(&address, users.server.clone()).await;
    users.pipeline.await_progress(rows(100)).await;
    worker.await_status(|status| status.errors.is_empty()).await;
    // Gone in the middle.
    drop(relay);
    users.pipeline.produce_all(&records(100..200)).await;
    worker.await_status(shown).await;
    let _relay = Relay::start(&address, users.server.clone()).await;
    users.pipeline.await_progress(rows(200)).await;
    assert_eq!(users.stored().await.len(), 200);
    drop(worker);
    users.drop().await;
}
