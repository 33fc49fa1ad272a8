use std::time::Duration;

use millstream_api::{condition::reason, worker::CommitMetadata};
use serde_json::{Value, json};

use super::{
    registry,
    upstream::{Upstream, plain},
};
use crate::support::{Environment, Pipeline, Settings, Worker};

pub const NUMBERS: Settings = Settings {
    schema: "id BIGINT, name TEXT",
    sql: "SELECT id, name FROM records",
    columns: &[("id", "bigint"), ("name", "text")],
    key: "/id",
    partitions: 2,
    base: 1_700_000_000_000_000,
};

pub fn rows(rows: i64) -> CommitMetadata {
    CommitMetadata {
        rows,
        ..CommitMetadata::default()
    }
}

pub async fn ids(pipeline: &Pipeline) -> Vec<i64> {
    let mut ids: Vec<(i64,)> = pipeline.select("id").await;
    ids.sort_unstable();
    ids.into_iter().map(|(id,)| id).collect()
}

/// Waits until the table has these ids, and no others.
async fn await_ids(pipeline: &Pipeline, expected: impl IntoIterator<Item = i64>) {
    let expected: Vec<_> = expected.into_iter().collect();
    let deadline = std::time::Instant::now() + Duration::from_secs(60);
    loop {
        let there = ids(pipeline).await;
        if there == expected {
            return;
        }
        assert!(
            std::time::Instant::now() < deadline,
            "{} rows of {}: {there:?}",
            there.len(),
            expected.len()
        );
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

async fn start(partitions: i32) -> Option<(Upstream, Pipeline)> {
    let environment = Environment::find().await?;
    let upstream = Upstream::create(plain(&environment), partitions).await;
    Some((upstream, Pipeline::create(environment, NUMBERS).await))
}

fn source(upstream: &Upstream, more: Value) -> Value {
    let mut topic = more;
    topic["name"] = json!(upstream.name);
    json!({"topic": topic})
}

/// Waits until this is where the source's topic is read on.
async fn await_offsets(pipeline: &Pipeline, offsets: Value) {
    let there = |kept: &Value| kept["position"]["offsets"] == offsets;
    pipeline.await_kept(there).await;
}

/// Waits until the worker tells of a gap, and gives the reason.
async fn gap(ingest: &Worker) -> String {
    let status = ingest.await_status(|status| status.gap.is_some()).await;
    let gap = status.gap.unwrap_or_default();
    let error = &status.errors["ingest"];
    assert!(error.contains(&gap.lost), "{}: {error}", gap.lost);
    gap.reason
}

async fn ingest_error(ingest: &Worker, says: &str) {
    let says = says.to_owned();
    ingest
        .await_status(|status| {
            let errors = status.errors.get("ingest");
            errors.is_some_and(|error| error.contains(&says))
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ingest_that_is_killed_loses_nothing() {
    let Some((upstream, pipeline)) = start(3).await else {
        return;
    };
    let source = source(&upstream, json!({}));
    let process = pipeline.process();
    let mut ingest = pipeline.ingest(source.clone());
    for round in 0..6i64 {
        for partition in 0..3 {
            let first = (round * 3 + i64::from(partition)) * 500;
            upstream.write_ids(partition, first..first + 500).await;
        }
        // In the midst of it: some are copied, some aren't.
        while ids(&pipeline).await.len() < usize::try_from(round * 1_500 + 1).unwrap() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        ingest.kill();
        ingest = pipeline.ingest(source.clone());
    }
    await_ids(&pipeline, 0..9_000).await;
    // One that starts again goes on where it was: once that is kept, nothing is copied again.
    await_offsets(&pipeline, json!([3_000, 3_000, 3_000])).await;
    ingest.terminate().await;
    pipeline.await_commits().await;
    let before = pipeline.progress().await.0.rows;
    ingest = pipeline.ingest(source);
    upstream.write_ids(1, 9_000..9_001).await;
    await_ids(&pipeline, 0..9_001).await;
    pipeline.await_commits().await;
    assert_eq!(pipeline.progress().await.0.rows, before + 1);
    drop((ingest, process));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_another_pipeline_replays_there_is_not_copied_again() {
    let Some((upstream, pipeline)) = start(1).await else {
        return;
    };
    upstream.write_ids(0, 0..10).await;
    upstream.write_replayed(3, 3).await;
    upstream.write_ids(0, 10..20).await;
    let ingest = pipeline.ingest(source(&upstream, json!({})));
    await_offsets(&pipeline, json!([21])).await;
    assert_eq!(pipeline.records().await.len(), 20);
    drop(ingest);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_may_be_begun_at_its_end_and_grow() {
    let Some((upstream, pipeline)) = start(1).await else {
        return;
    };
    upstream.write_ids(0, 0..100).await;
    let source = source(&upstream, json!({"start": "latest"}));
    let process = pipeline.process();
    let ingest = pipeline.ingest(source.clone());
    // Where it begins is kept before anything is read.
    await_offsets(&pipeline, json!([100])).await;
    ingest.kill();
    upstream.write_ids(0, 100..200).await;
    let ingest = pipeline.ingest(source);
    await_ids(&pipeline, 100..200).await;
    // What is in a new partition before it is found counts too.
    upstream.grow(2).await;
    upstream.write_ids(1, 200..300).await;
    await_ids(&pipeline, 100..300).await;
    drop((ingest, process));
}

#[tokio::test(flavor = "multi_thread")]
async fn records_that_are_gone_stop_their_partition_until_told_otherwise() {
    let Some((upstream, pipeline)) = start(2).await else {
        return;
    };
    upstream.write_ids(0, 0..10).await;
    let stop = source(&upstream, json!({}));
    let process = pipeline.process();
    let ingest = pipeline.ingest(stop.clone());
    await_ids(&pipeline, 0..10).await;
    await_offsets(&pipeline, json!([10, 0])).await;
    ingest.terminate().await;
    upstream.write_ids(0, 10..30).await;
    upstream.delete_before(20).await;

    let ingest = pipeline.ingest(stop);
    let says = format!(
        "DataGap: topic {}, partition 0 is to be read from offset 10 on, but holds 20 to 30; set source.topic.onGap to Continue",
        upstream.name
    );
    ingest_error(&ingest, &says).await;
    assert_eq!(gap(&ingest).await, reason::RETENTION_PASSED);
    // The other partition goes on.
    upstream.write_ids(1, 100..110).await;
    await_ids(&pipeline, (0..10).chain(100..110)).await;
    ingest.terminate().await;

    let ingest = pipeline.ingest(source(&upstream, json!({"onGap": "Continue"})));
    await_ids(&pipeline, (0..10).chain(20..30).chain(100..110)).await;
    let status = ingest.await_status(|status| status.errors.is_empty()).await;
    assert_eq!(status.gap, None);
    drop(process);
}

#[tokio::test(flavor = "multi_thread")]
async fn markers_behind_the_last_record_are_no_gap() {
    let Some((upstream, pipeline)) = start(1).await else {
        return;
    };
    let source = source(&upstream, json!({}));
    let process = pipeline.process();
    let ingest = pipeline.ingest(source.clone());
    upstream.write_in_transaction(0..10, true).await;
    await_ids(&pipeline, 0..10).await;
    await_offsets(&pipeline, json!([11])).await;
    // Five records that were given up, and the marker that says so.
    upstream.write_in_transaction(10..15, false).await;
    await_offsets(&pipeline, json!([17])).await;
    ingest.terminate().await;
    upstream.delete_before(17).await;

    let ingest = pipeline.ingest(source);
    upstream.write_in_transaction(20..30, true).await;
    await_ids(&pipeline, (0..10).chain(20..30)).await;
    let status = ingest.await_status(|_| true).await;
    assert!(status.errors.is_empty(), "{status:?}");
    drop(process);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_that_was_made_anew_is_a_gap() {
    let Some((upstream, pipeline)) = start(1).await else {
        return;
    };
    upstream.write_ids(0, 0..50).await;
    let process = pipeline.process();
    let ingest = pipeline.ingest(source(&upstream, json!({})));
    await_ids(&pipeline, 0..50).await;
    await_offsets(&pipeline, json!([50])).await;
    ingest.terminate().await;
    upstream.recreate(1).await;
    upstream.write_ids_later(100..105).await;
    let ingest = pipeline.ingest(source(&upstream, json!({})));
    ingest_error(&ingest, "is to be read from offset 50 on, but holds 0 to 5").await;
    assert_eq!(gap(&ingest).await, reason::TOPIC_RECREATED);
    ingest.terminate().await;
    let ingest = pipeline.ingest(source(&upstream, json!({"onGap": "Continue"})));
    await_ids(&pipeline, (0..50).chain(100..105)).await;
    drop((ingest, process));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_that_was_made_anew_and_has_grown_since_is_a_gap() {
    let Some((upstream, pipeline)) = start(1).await else {
        return;
    };
    upstream.write_ids(0, 0..50).await;
    let process = pipeline.process();
    let stop = source(&upstream, json!({}));
    let ingest = pipeline.ingest(stop.clone());
    await_ids(&pipeline, 0..50).await;
    await_offsets(&pipeline, json!([50])).await;
    ingest.terminate().await;
    upstream.recreate(1).await;
    upstream.write_ids_later(100..300).await;

    let says =
        "is to be read from offset 50 on, but the records before that aren't those that were";
    for _ in 0..2 {
        // Also by a worker that comes after the one that has seen it.
        let ingest = pipeline.ingest(stop.clone());
        ingest_error(&ingest, says).await;
        assert_eq!(gap(&ingest).await, reason::TOPIC_RECREATED);
        ingest.terminate().await;
    }
    await_ids(&pipeline, 0..50).await;

    let ingest = pipeline.ingest(source(&upstream, json!({"onGap": "Continue"})));
    await_ids(&pipeline, (0..50).chain(100..300)).await;
    await_offsets(&pipeline, json!([200])).await;
    // From there on the new topic is the one that is known.
    ingest.terminate().await;
    let ingest = pipeline.ingest(stop);
    upstream.write_ids_later(300..310).await;
    await_ids(&pipeline, (0..50).chain(100..310)).await;
    let status = ingest.await_status(|_| true).await;
    assert!(status.errors.is_empty(), "{status:?}");
    drop((ingest, process));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_that_is_not_there_is_waited_for() {
    let Some((_, pipeline)) = start(1).await else {
        return;
    };
    let ingest = pipeline.ingest(json!({"topic": {"name": "nobody-makes-this"}}));
    ingest_error(&ingest, "can't read the topic nobody-makes-this").await;
    let (code, _) = ingest.terminate().await;
    assert_eq!(code, Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn raw_records_keep_everything_and_tombstones_are_no_json() {
    let Some((upstream, mut pipeline)) = start(1).await else {
        return;
    };
    upstream
        .write([
            (0, Some(br#"{"id": 1, "name": "one"}"#.to_vec())),
            (0, None),
            (0, Some(vec![0xfe, 0xff])),
        ])
        .await;
    let process = pipeline.process();
    let ingest = pipeline.ingest(source(&upstream, json!({})));
    let letters = pipeline.dead_letters(2).await;
    let letters: Vec<_> = letters
        .iter()
        .map(|(why, bytes)| (why.as_str(), *bytes))
        .collect();
    assert_eq!(
        letters,
        [
            ("the record isn't a JSON object", 2),
            ("the record is a tombstone: it has no value", 0),
        ]
    );
    await_ids(&pipeline, [1]).await;
    drop((ingest, process));

    pipeline = Pipeline::create(pipeline.environment.clone(), NUMBERS).await;
    pipeline.settings.schema = "offset BIGINT, value TEXT, valueBase64 TEXT, key TEXT, \
        keyBase64 TEXT, timestamp TIMESTAMP, headers ARRAY<STRUCT<key TEXT, value TEXT>>";
    pipeline.settings.sql = "SELECT offset AS id, concat_ws('|', value, valueBase64, key, keyBase64, \
        CAST(timestamp AS TEXT), headers[1].key, headers[1].value) AS name FROM records";
    pipeline.settings.key = "/offset";
    let process = pipeline.process();
    let ingest = pipeline.ingest(source(&upstream, json!({"encoding": "raw"})));
    await_ids(&pipeline, 0..3).await;
    let mut there: Vec<(i64, String)> = pipeline.select("id, name").await;
    there.sort();
    let rest = "a/8=|2023-11-14T22:13:20.123Z|trace|t-1";
    let expected = [
        (0, format!(r#"{{"id": 1, "name": "one"}}|{rest}"#)),
        (1, rest.to_owned()),
        (2, format!("/v8=|{rest}")),
    ];
    assert_eq!(there, expected);
    drop((ingest, process));
}

#[tokio::test(flavor = "multi_thread")]
async fn avro_of_any_schema_is_read() {
    let Some((upstream, mut pipeline)) = start(1).await else {
        return;
    };
    let Some(url) = registry::url(&pipeline.environment) else {
        return;
    };
    let schema = json!({"type": "record", "name": "Thing", "fields": [
        {"name": "id", "type": "int"},
        {"name": "name", "type": [{"type": "enum", "name": "Kind", "symbols": ["A", "B"]}, "string"]},
    ]});
    let id = registry::register(&url, &format!("{}-value", upstream.name), &schema).await;
    let framed = |value: &[u8]| Some([&[0], &id.to_be_bytes()[..], value].concat());
    upstream
        .write([
            (0, framed(&[2, 0, 2])),
            (0, framed(&[4, 2, 4, b'x', b'y'])),
            (0, framed(&[6, 9])),
            (0, None),
        ])
        .await;
    pipeline.more = json!({"schemaRegistry": {"url": url}});
    let process = pipeline.process();
    let ingest = pipeline.ingest(source(&upstream, json!({"encoding": "avro"})));
    await_ids(&pipeline, 1..3).await;
    let mut there: Vec<(i64, String)> = pipeline.select("id, name").await;
    there.sort();
    assert_eq!(there, [(1, "B".to_owned()), (2, "xy".to_owned())]);
    let letters = pipeline.dead_letters(2).await;
    let letters: Vec<_> = letters
        .iter()
        .map(|(why, bytes)| (why.as_str(), *bytes))
        .collect();
    let bad =
        format!("the record doesn't fit its schema {id}: field `name`: branch -5 isn't there");
    assert_eq!(
        letters,
        [
            (bad.as_str(), 7),
            ("the record is a tombstone: it has no value", 0),
        ]
    );
    drop((ingest, process));
}

#[tokio::test(flavor = "multi_thread")]
async fn dead_letters_of_another_pipeline_are_read_as_they_are_and_mended() {
    let Some(environment) = Environment::find().await else {
        return;
    };
    let settings = Settings {
        partitions: 1,
        ..NUMBERS
    };
    let other = Pipeline::create(environment.clone(), settings).await;
    let unfit = r#"{"id": "two", "name": "b"}"#;
    let records = [r#"{"id": 1, "name": "a"}"#, unfit, "no JSON"];
    let records = records.map(|record| (Some("k"), Some(record.as_bytes().to_vec())));
    other.produce(&records).await;
    let process = other.process();
    other.dead_letters(2).await;
    let letters = other.dead_letter_topic();

    // What there is to know of each.
    let mut pipeline = Pipeline::create(environment.clone(), settings).await;
    pipeline.settings.schema =
        "offset BIGINT, key TEXT, value TEXT, headers ARRAY<STRUCT<key TEXT, value TEXT>>";
    pipeline.settings.sql = "SELECT CAST(headers[6].value AS BIGINT) AS id, \
        concat_ws('|', headers[3].value, headers[1].value, key, value) AS name FROM records";
    pipeline.settings.key = "/offset";
    let workers = [
        pipeline.ingest(json!({"topic": {"name": letters, "encoding": "raw"}})),
        pipeline.process(),
    ];
    await_ids(&pipeline, 1..3).await;
    let mut there: Vec<(i64, String)> = pipeline.select("id, name").await;
    there.sort();
    for ((_, text), (reason, record)) in there.iter().zip([
        ("rows|the record doesn't fit the schema", unfit),
        ("rows|the record isn't JSON", "no JSON"),
    ]) {
        assert!(text.starts_with(reason), "{text}");
        assert!(text.ends_with(&format!("|k|{record}")), "{text}");
    }
    drop(workers);

    // As the records that they were, by other SQL.
    let mut pipeline = Pipeline::create(environment, settings).await;
    pipeline.settings.schema = "id TEXT, name TEXT";
    pipeline.settings.sql =
        "SELECT CAST(CASE id WHEN 'two' THEN '2' ELSE id END AS BIGINT) AS id, name FROM records";
    let workers = [
        pipeline.ingest(json!({"topic": {"name": letters}})),
        pipeline.process(),
    ];
    pipeline.await_progress(rows(1)).await;
    let there: Vec<(i64, String)> = pipeline.select("id, name").await;
    assert_eq!(there, [(2, "b".to_owned())]);
    let (reason, _) = pipeline.dead_letters(1).await.remove(0);
    assert_eq!(reason, "the record isn't a JSON object");
    drop((workers, process));
}
