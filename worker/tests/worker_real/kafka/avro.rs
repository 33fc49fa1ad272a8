use std::{collections::BTreeMap, io::Read, time::Duration};

use base64::{Engine, prelude::BASE64_STANDARD};
use flate2::read::GzDecoder;
use millstream_api::worker::CommitMetadata;
use serde_json::json;
use sha2::{Digest, Sha256};

use super::{
    registry::{self, Gate},
    upstream::{Upstream, plain},
};
use crate::support::{Environment, Pipeline, Settings};

// `dob.date` isn't a time in all that was recorded: without personal data two are cut off.
const USERS: Settings = Settings {
    schema: "gender TEXT, name STRUCT<first TEXT, last TEXT>, email TEXT, \
        login STRUCT<uuid UUID, username TEXT>, location STRUCT<postcode TEXT>, \
        id STRUCT<value TEXT>, dob STRUCT<date TEXT, age INT>",
    sql: "SELECT login.uuid AS id, name.first AS first_name, email, gender, \
        location.postcode AS post_code, id.value AS id_value, dob.date AS born, \
        dob.age AS age FROM records",
    columns: &[
        ("id", "uuid"),
        ("first_name", "text"),
        ("email", "text"),
        ("gender", "text"),
        ("post_code", "text"),
        ("id_value", "text"),
        ("born", "text"),
        ("age", "int"),
    ],
    key: "/login/uuid",
    partitions: 4,
    base: 1_700_000_000_000_000,
};

const NUMBERS: Settings = Settings {
    schema: "id BIGINT, name TEXT",
    sql: "SELECT id, name FROM records",
    columns: &[("id", "bigint"), ("name", "text"), ("city", "text")],
    key: "/id",
    partitions: 1,
    base: 1_700_000_000_000_000,
};

type User = (
    uuid::Uuid,
    (String, String, String, Option<String>, Option<String>),
    (String, i32),
);

fn counts(rows: i64, dead_lettered: i64) -> CommitMetadata {
    CommitMetadata {
        rows,
        dead_lettered,
        ..CommitMetadata::default()
    }
}

/// Real users, one JSON object a line; none where they aren't at hand.
fn recorded_users() -> Option<Vec<Vec<u8>>> {
    let path = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../shared/data/randomuser_v1_3_plus.jsonl.gz"
    );
    let Ok(file) = std::fs::File::open(path) else {
        eprintln!("skipped: no recorded data");
        return None;
    };
    let mut text = String::new();
    GzDecoder::new(file).read_to_string(&mut text).unwrap();
    Some(text.lines().map(|line| line.as_bytes().to_vec()).collect())
}

async fn users(pipeline: &Pipeline) -> BTreeMap<uuid::Uuid, User> {
    let columns = "id, first_name, email, gender, post_code, id_value, born, age";
    let rows = pipeline.select(columns).await;
    rows.into_iter()
        .map(|(id, a, b, c, d, e, f, g): (_, _, _, _, _, _, _, _)| {
            (id, (id, (a, b, c, d, e), (f, g)))
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn users_by_avro_are_the_same_rows_as_by_json() {
    let (Some(environment), Some(records)) = (Environment::find().await, recorded_users()) else {
        return;
    };
    let Some(url) = registry::url(&environment) else {
        return;
    };
    let upstream = Upstream::create(plain(&environment), 3).await;
    let spread = (0..)
        .map(|number| number % 3)
        .zip(records.iter().cloned().map(Some));
    upstream.write(spread).await;
    let source = json!({"topic": {"name": upstream.name}});

    let by_json = Pipeline::create(environment.clone(), USERS).await;
    let mut by_avro = Pipeline::create(environment, USERS).await;
    let id = registry::register_records(&url, &by_avro.name, USERS.schema).await;
    by_avro.more = json!({
        "avroSchemaId": id, "avro": {"url": url}, "schemaRegistry": {"url": url},
    });
    let workers =
        [&by_json, &by_avro].map(|pipeline| (pipeline.ingest(source.clone()), pipeline.process()));
    for pipeline in [&by_json, &by_avro] {
        pipeline.await_progress(counts(469, 0)).await;
    }
    let (json, avro) = (users(&by_json).await, users(&by_avro).await);
    // Counted by somebody else.
    assert_eq!(json.len(), 469);
    let ages: i32 = json.values().map(|(_, _, (_, age))| age).sum();
    assert_eq!(ages, 22_785);
    assert_eq!(json, avro);
    drop(workers);
}

#[tokio::test(flavor = "multi_thread")]
async fn records_wait_for_a_registry_that_is_down() {
    let Some(environment) = Environment::find().await else {
        return;
    };
    let Some(url) = registry::url(&environment) else {
        return;
    };
    let mut pipeline = Pipeline::create(environment, NUMBERS).await;
    let id = registry::register_records(&url, &pipeline.name, NUMBERS.schema).await;
    let gate = Gate::before(&url).await;
    pipeline.more = json!({"avroSchemaId": id, "avro": {"url": gate.url}});
    let process = pipeline.process();
    let ingest = pipeline.ingest(json!({"generator": {"count": 500}}));
    // Whoever writes knows its schema.
    ingest.await_status(|status| status.complete).await;
    let waiting = process
        .await_status(|status| status.errors.contains_key("rows"))
        .await;
    let error = &waiting.errors["rows"];
    assert!(
        error.contains(&format!("can't read schema {id}")),
        "{error}"
    );
    assert_eq!(pipeline.progress().await.0, counts(0, 0));
    assert_eq!(process.get("/healthz").await.unwrap().0, 200);

    gate.open();
    pipeline.await_progress(counts(500, 0)).await;
    process
        .await_status(|status| status.errors.is_empty())
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_field_that_is_added_is_null_in_older_records() {
    let Some(environment) = Environment::find().await else {
        return;
    };
    let Some(url) = registry::url(&environment) else {
        return;
    };
    let upstream = Upstream::create(plain(&environment), 1).await;
    upstream.write_ids(0, 0..10).await;
    let source = json!({"topic": {"name": upstream.name}});
    let mut pipeline = Pipeline::create(environment, NUMBERS).await;
    let first = registry::register_records(&url, &pipeline.name, NUMBERS.schema).await;
    pipeline.more = json!({"avroSchemaId": first, "avro": {"url": url}});
    let ingest = pipeline.ingest(source.clone());
    let process = pipeline.process();
    pipeline.await_progress(counts(10, 0)).await;
    // Ten more that the process stage sees only with the new schema.
    process.terminate().await;
    upstream.write_ids(0, 10..20).await;
    while pipeline.progress().await.1 < 10 {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    ingest.terminate().await;

    pipeline.settings.schema = "city TEXT, name TEXT, id BIGINT";
    pipeline.settings.sql = "SELECT id, name, city FROM records";
    let second = registry::register_records(&url, &pipeline.name, pipeline.settings.schema).await;
    assert_ne!(first, second);
    pipeline.more = json!({"avroSchemaId": second, "avro": {"url": url}});
    let record = br#"{"id": 20, "name": "n20", "city": "Wuppenau"}"#;
    upstream.write([(0, Some(record.to_vec()))]).await;
    let workers = (pipeline.ingest(source), pipeline.process());
    pipeline.await_progress(counts(21, 0)).await;
    let mut rows: Vec<(i64, String, Option<String>)> = pipeline.select("id, name, city").await;
    rows.sort();
    let cities: Vec<_> = rows
        .iter()
        .filter_map(|(id, _, city)| Some((*id, city.as_deref()?)))
        .collect();
    assert_eq!(rows.len(), 21);
    assert_eq!(cities, [(20, "Wuppenau")]);
    drop(workers);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_avro_goes_to_the_dead_letter_as_it_is() {
    let Some(environment) = Environment::find().await else {
        return;
    };
    let Some(url) = registry::url(&environment) else {
        return;
    };
    let mut pipeline = Pipeline::create(environment, NUMBERS).await;
    pipeline.more = json!({"avro": {"url": url}});
    let unknown = [&[0, 0x7f, 0xff, 0xff, 0xff], &b"\x02\x02"[..]].concat();
    pipeline
        .produce(&[
            (None, Some(br#"{"id": 1}"#.to_vec())),
            (None, Some(unknown)),
            (None, Some(vec![0, 0])),
            (None, None),
        ])
        .await;
    let process = pipeline.process();
    let letters = pipeline.dead_letters(4).await;
    let letters: Vec<_> = letters
        .iter()
        .map(|(why, bytes)| (why.as_str(), *bytes))
        .collect();
    assert_eq!(
        letters,
        [
            (
                "the record isn't Avro in the wire format of schema registries",
                9
            ),
            ("the schema registry has no schema 2147483647", 7),
            ("the record is too short for the id of its schema", 2),
            ("the record has no value", 0),
        ]
    );
    pipeline.await_progress(counts(0, 4)).await;
    drop(process);
}

#[tokio::test(flavor = "multi_thread")]
async fn letters_of_the_ingest_stage_come_into_the_topic_as_avro() {
    let Some(environment) = Environment::find().await else {
        return;
    };
    let Some(url) = registry::url(&environment) else {
        return;
    };
    let upstream = Upstream::create(plain(&environment), 1).await;
    upstream.write_ids(0, 0..4).await;
    let unfit = br#"{"id": "seven", "name": "n7"}"#;
    upstream.write([(0, Some(unfit.to_vec()))]).await;
    let source = json!({"topic": {"name": upstream.name}});
    let mut pipeline = Pipeline::create(environment, NUMBERS).await;
    let id = registry::register_records(&url, &pipeline.name, NUMBERS.schema).await;
    pipeline.more = json!({"avroSchemaId": id, "avro": {"url": url}});

    // A key that no record has, and then a record that the topic doesn't take as it is.
    pipeline.settings.key = "/number";
    let wrong = pipeline.ingest(source.clone());
    for (reason, _) in pipeline.dead_letters(5).await {
        assert!(
            reason.contains("`/number` is not in the record"),
            "{reason}"
        );
    }
    wrong.terminate().await;
    pipeline.settings.key = NUMBERS.key;
    pipeline.limit_topic("100000").await;
    let ingest = pipeline.ingest(source);
    let noise: Vec<u8> = (0..6_000_u32)
        .flat_map(|number| Sha256::digest(number.to_le_bytes()))
        .collect();
    let noise = BASE64_STANDARD.encode(noise);
    let large = json!({"id": 4, "name": noise}).to_string();
    upstream.write([(0, Some(large.into_bytes()))]).await;
    let (reason, _) = pipeline.dead_letters(6).await.pop().unwrap();
    assert!(reason.starts_with("Kafka refuses the record"), "{reason}");

    pipeline.limit_topic("10485760").await;
    let told = pipeline.replay("ingest", &[]);
    assert!(told.contains("of ingest: the record doesn't fit"), "{told}");
    assert!(told.ends_with("ingest          5        1\n"), "{told}");
    let told = pipeline.replay("ingest", &[]);
    assert!(told.ends_with("ingest          0        0\n"), "{told}");
    let process = pipeline.process();
    pipeline.await_progress(counts(5, 0)).await;
    let mut rows: Vec<(i64, String)> = pipeline.select("id, name").await;
    rows.sort();
    let names = (0..4).map(|id| (id, format!("n{id}")));
    let expected: Vec<_> = names.chain([(4, noise)]).collect();
    assert_eq!(rows, expected);
    drop((process, ingest));
}
