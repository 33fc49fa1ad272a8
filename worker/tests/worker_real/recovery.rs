//! What a process stage recovers from by itself: partitions that went while it stood still, and a
//! batch that can't be processed, or takes long.

use std::time::{Duration, Instant};

use rdkafka::{
    Offset,
    consumer::{BaseConsumer, Consumer},
};
use serde_json::json;

use crate::support::{Environment, Pipeline, Settings, StoppedService};

const TIMEOUT: Duration = Duration::from_secs(10);
const PATIENCE: Duration = Duration::from_secs(60);
/// More than a worker reads without handing it on: its three batches in flight, and one that waits.
const RECORDS: i64 = 20_000;

const NUMBERS: Settings = Settings {
    schema: "id BIGINT",
    sql: "SELECT id FROM records",
    columns: &[("id", "bigint")],
    key: "/id",
    partitions: 4,
    base: 1_700_000_000_000_000,
};

async fn produce(pipeline: &Pipeline, ids: std::ops::Range<i64>) {
    let records = ids.map(|id| (id.to_string(), json!({"id": id}).to_string().into_bytes()));
    pipeline.produce_all(&records.collect::<Vec<_>>()).await;
}

/// Another member of the sink's group, which has two of the four partitions and commits nothing.
fn join(pipeline: &Pipeline) -> BaseConsumer {
    let mut config = pipeline.client();
    config
        .set("group.id", pipeline.reference().sink_group("rows"))
        .set("partition.assignment.strategy", "cooperative-sticky")
        .set("enable.auto.commit", "false");
    let member: BaseConsumer = config.create().unwrap();
    member.subscribe(&[&pipeline.name]).unwrap();
    let deadline = Instant::now() + PATIENCE;
    while member.assignment().unwrap().count() < 2 {
        assert!(Instant::now() < deadline, "it gets no partitions");
        let _ = member.poll(Duration::from_millis(100));
    }
    member
}

/// Records of the member's partitions that aren't committed.
fn uncommitted(member: &BaseConsumer) -> i64 {
    let committed = member.committed(TIMEOUT).unwrap();
    let records = committed.elements().into_iter().map(|element| {
        let marks = member.fetch_watermarks(element.topic(), element.partition(), TIMEOUT);
        let (low, high) = marks.unwrap();
        match element.offset() {
            Offset::Offset(offset) => high - offset,
            _ => high - low,
        }
    });
    records.sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn partitions_that_went_while_reading_was_stopped_are_read_when_they_come_back() {
    let Some(environment) = Environment::find_alone().await else {
        return;
    };
    let pipeline = Pipeline::create(environment, NUMBERS).await;
    let process = pipeline.process();
    produce(&pipeline, 0..100).await;
    pipeline.await_commits().await;

    let Some(cassandra) = StoppedService::pause("cassandra").await else {
        return;
    };
    produce(&pipeline, 100..RECORDS).await;
    // A batch that waits is full; after five seconds of that the worker stops reading.
    process
        .await_metric("millstream_worker_records_total", 2_100)
        .await;
    tokio::time::sleep(Duration::from_secs(8)).await;
    let member = tokio::task::block_in_place(|| join(&pipeline));
    cassandra.start().await;
    // The worker stores what is in the partitions that it has kept: it reads again.
    let left = tokio::task::block_in_place(|| uncommitted(&member));
    assert!(left > 0);
    let deadline = Instant::now() + PATIENCE;
    while pipeline.progress().await.1 > left {
        assert!(Instant::now() < deadline, "it doesn't read again");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    tokio::task::block_in_place(|| drop(member));

    pipeline.await_commits().await;
    let mut ids: Vec<(i64,)> = pipeline.select("id").await;
    ids.sort_unstable();
    assert!(ids.into_iter().map(|(id,)| id).eq(0..RECORDS));
    process
        .await_status(|status| status.errors.is_empty())
        .await;
}

const LONG: Settings = Settings {
    schema: "id BIGINT, text TEXT",
    sql: "SELECT id FROM records WHERE levenshtein(repeat(text, 2000), repeat(text, 1999)) > 0",
    ..NUMBERS
};
/// A member of a consumer group that isn't heard of for so long is taken for dead.
const SESSION_TIMEOUT: Duration = Duration::from_secs(6);
/// To find out what one takes.
const SOME: i64 = 10;

async fn produce_long(pipeline: &Pipeline, ids: std::ops::Range<i64>) {
    let records = ids.map(|id| {
        let record = json!({"id": id, "text": "abcdefghij"});
        (id.to_string(), record.to_string().into_bytes())
    });
    pipeline.produce_all(&records.collect::<Vec<_>>()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_computes_for_long_keeps_its_partitions() {
    let Some(environment) = Environment::find_alone().await else {
        return;
    };
    let pipeline = Pipeline::create(environment, LONG).await;
    let process = pipeline.process();
    produce_long(&pipeline, 0..1).await;
    pipeline.await_commits().await;
    let started = Instant::now();
    produce_long(&pipeline, 1..SOME).await;
    pipeline.await_commits().await;
    let each = started.elapsed().as_secs_f64() / SOME as f64;

    let member = tokio::task::block_in_place(|| join(&pipeline));
    let group = pipeline.reference().sink_group("rows");
    let groups = tokio::task::block_in_place(|| member.fetch_group_list(Some(&group), TIMEOUT));
    // Whoever stays keeps what it has, where others come and go.
    assert_eq!(groups.unwrap().groups()[0].protocol(), "cooperative-sticky");

    // Half of them are the worker's, which takes twice as long for them as another may be silent.
    let records = (4.0 * SESSION_TIMEOUT.as_secs_f64() / each).ceil() as i64;
    produce_long(&pipeline, SOME..SOME + records).await;
    let started = Instant::now();
    loop {
        let (kept, left) = tokio::task::block_in_place(|| {
            let _ = member.poll(Duration::from_millis(100));
            (member.assignment().unwrap().count(), uncommitted(&member))
        });
        assert_eq!(kept, 2, "the worker is taken for dead");
        let (code, _) = process.get("/healthz").await.expect("an answer");
        assert_eq!(code, 200);
        if pipeline.progress().await.1 == left {
            break;
        }
        assert!(started.elapsed() < 2 * PATIENCE, "{records} records");
    }
    assert!(started.elapsed() > SESSION_TIMEOUT, "{each} s each");
    tokio::task::block_in_place(|| drop(member));
    pipeline.await_commits().await;
    let (counts, _) = pipeline.progress().await;
    assert_eq!(counts.rows, SOME + records);
}

const POINTS: Settings = Settings {
    schema: "player TEXT, points BIGINT",
    sql: "SELECT player, sum(points) AS points FROM records GROUP BY player",
    columns: &[("player", "text"), ("points", "bigint")],
    key: "/player",
    partitions: 1,
    base: 1_700_000_000_000_000,
};

/// Bytes of a state in front of the engine's.
const HEADER_BYTES: usize = 29;

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_that_fails_is_tried_again_and_the_other_sinks_go_on() {
    let Some(environment) = Environment::find().await else {
        return;
    };
    let pipeline = Pipeline::create(environment, POINTS).await;
    pipeline.create_state_table().await;
    let keyspace = &pipeline.keyspace;
    let latest = format!("CREATE TABLE {keyspace}.latest (player text PRIMARY KEY, points bigint)");
    pipeline.session.query_unpaged(latest, ()).await.unwrap();
    let start = || {
        let sql = "SELECT player, points FROM records";
        pipeline.process_into(json!([
            pipeline.sink("rows", POINTS.sql, POINTS.columns),
            pipeline.sink("latest", sql, POINTS.columns),
        ]))
    };
    let ada = |points: i64| {
        let record = json!({"player": "ada", "points": points});
        [("ada".to_owned(), record.to_string().into_bytes())]
    };
    let process = start();
    pipeline.produce_all(&ada(1)).await;
    pipeline.await_commits().await;
    process.kill();

    let select = format!("SELECT state__ FROM {keyspace}.rows__state WHERE player = 'ada'");
    let state = pipeline.session.query_unpaged(select, ()).await.unwrap();
    let state = state.into_rows_result().unwrap();
    let (state,) = state.single_row::<(Vec<u8>,)>().unwrap();
    let keep = async |state: &[u8]| {
        let insert =
            format!("INSERT INTO {keyspace}.rows__state (player, state__) VALUES ('ada', ?)");
        let kept = pipeline.session.query_unpaged(insert, (state,)).await;
        kept.unwrap();
    };
    keep(&state[..HEADER_BYTES]).await;
    let process = start();
    pipeline.produce_all(&ada(2)).await;
    let says = "the state of a group was spoilt";
    let status = process.await_status(|status| {
        let error = status.errors.get("rows");
        error.is_some_and(|error| error.contains(says))
    });
    assert!(!status.await.errors.contains_key("latest"));
    let deadline = Instant::now() + PATIENCE;
    while pipeline.progress_of("latest").await.1 > 0 {
        assert!(Instant::now() < deadline, "the other sink stands still");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(pipeline.progress().await.1, 1);

    keep(state.as_slice()).await;
    pipeline.await_commits().await;
    let rows: Vec<(String, i64)> = pipeline.select("player, points").await;
    assert_eq!(rows, [("ada".to_owned(), 3)]);
    process
        .await_status(|status| status.errors.is_empty())
        .await;
    let (code, _) = process.terminate().await;
    assert_eq!(code, Some(0));
}
