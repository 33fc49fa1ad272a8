//! Groups in worker processes against the real Kafka and Cassandra. Skipped where
//! `MILLSTREAM_ENVIRONMENT` doesn't name them.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::Read,
    path::Path,
    time::Duration,
};

use crate::support::{Environment, Pipeline, Settings, kill_oldest};
use flate2::read::GzDecoder;
use millstream_api::worker::CommitMetadata;
use serde_json::{Value, json};

const VENUES: Settings = Settings {
    schema: "venue STRUCT<venue_id BIGINT, venue_name TEXT, lat DOUBLE, lon DOUBLE>, \
        \"group\" STRUCT<group_city TEXT>, rsvp_id BIGINT, response TEXT, guests INT, mtime BIGINT",
    sql: "SELECT venue.venue_id AS venue_id, last_value(venue.venue_name) AS name, \
        last_value(\"group\".group_city ORDER BY mtime) AS city, last_value(venue.lat) AS lat, \
        last_value(venue.lon) AS lon, count(*) AS rsvps, \
        count(*) FILTER (WHERE response = 'yes') AS yes, sum(guests) AS guests, \
        count(DISTINCT rsvp_id) AS ids, avg(mtime) AS mean \
        FROM records WHERE venue.venue_id IS NOT NULL GROUP BY venue.venue_id",
    columns: &[
        ("venue_id", "bigint"),
        ("name", "text"),
        ("city", "text"),
        ("lat", "double"),
        ("lon", "double"),
        ("rsvps", "bigint"),
        ("yes", "bigint"),
        ("guests", "bigint"),
        ("ids", "bigint"),
        ("mean", "double"),
    ],
    key: "/venue/venue_id",
    partitions: 4,
    base: 1_700_000_000_000_000,
};

type Venue = (
    i64,
    Option<String>,
    Option<String>,
    f64,
    f64,
    i64,
    i64,
    i64,
    i64,
    f64,
);

/// The recorded RSVPs, if they are there.
fn recorded() -> Option<Vec<Value>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent()?;
    let path = root.join("../shared/data/meetup_rsvps.deid.jsonl.gz");
    let Ok(file) = std::fs::File::open(path) else {
        eprintln!("no recorded data: the records are made up");
        return None;
    };
    let mut text = String::new();
    GzDecoder::new(file).read_to_string(&mut text).unwrap();
    Some(
        text.lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect(),
    )
}

/// Made up, in the same shape.
fn made_up() -> Vec<Value> {
    let record = |index: u64| {
        // Spreads well enough.
        let any = index.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20;
        let mut record = json!({
            "group": {"group_city": format!("city {}", any % 50)},
            "rsvp_id": any % 1_200, "response": if any.is_multiple_of(3) { "no" } else { "yes" },
            "guests": any % 4, "mtime": 1_489_925_470_960_u64 + any % 5_000,
        });
        if !any.is_multiple_of(5) {
            let id = any % 881;
            record["venue"] = json!({
                "venue_id": id, "venue_name": format!("venue {id}"), "lat": id as f64 / 8.0, "lon": 0,
            });
        }
        record
    };
    (0..1_500).map(record).collect()
}

/// So many records, of which each time round is another.
fn rsvps(rounds: i64) -> Vec<Value> {
    let once = recorded().unwrap_or_else(made_up);
    let mut all = Vec::new();
    for round in 0..rounds {
        for record in &once {
            let mut record = record.clone();
            let id = record["rsvp_id"].as_i64().unwrap();
            record["rsvp_id"] = json!(id + round % 3);
            record["mtime"] = json!(record["mtime"].as_i64().unwrap() + round % 7);
            all.push(record);
        }
    }
    all
}

fn keyed(records: &[Value]) -> Vec<(String, Vec<u8>)> {
    let keyed = records.iter().map(|record| {
        let key = record["venue"]["venue_id"].to_string();
        (key, serde_json::to_vec(record).unwrap())
    });
    keyed.collect()
}

/// What the table should hold, counted by hand.
fn expected(records: &[Value]) -> BTreeMap<i64, Venue> {
    let mut venues: BTreeMap<i64, (Venue, BTreeSet<i64>, i64, i128)> = BTreeMap::new();
    for record in records {
        let venue = &record["venue"];
        let Some(id) = venue["venue_id"].as_i64() else {
            continue;
        };
        let (row, ids, latest, sum) = venues.entry(id).or_default();
        row.0 = id;
        let mtime = record["mtime"].as_i64().unwrap();
        row.1 = venue["venue_name"].as_str().map(str::to_owned);
        if row.5 == 0 || mtime >= *latest {
            row.2 = record["group"]["group_city"].as_str().map(str::to_owned);
            *latest = mtime;
        }
        row.3 = venue["lat"].as_f64().unwrap();
        row.4 = venue["lon"].as_f64().unwrap();
        row.5 += 1;
        row.6 += i64::from(record["response"] == "yes");
        row.7 += record["guests"].as_i64().unwrap();
        ids.insert(record["rsvp_id"].as_i64().unwrap());
        row.8 = ids.len() as i64;
        *sum += i128::from(mtime);
        row.9 = *sum as f64 / row.5 as f64;
    }
    venues
        .into_iter()
        .map(|(id, (row, ..))| (id, row))
        .collect()
}

async fn assert_venues(pipeline: &Pipeline, records: &[Value]) {
    let rows: Vec<Venue> = pipeline
        .select("venue_id, name, city, lat, lon, rsvps, yes, guests, ids, mean")
        .await;
    let rows: BTreeMap<i64, Venue> = rows.into_iter().map(|row| (row.0, row)).collect();
    let expected = expected(records);
    for (id, row) in &expected {
        assert_eq!(rows.get(id), Some(row));
    }
    assert_eq!(rows.len(), expected.len());
}

async fn create(settings: Settings) -> Option<Pipeline> {
    let pipeline = Pipeline::create(Environment::find().await?, settings).await;
    pipeline.create_state_table().await;
    Some(pipeline)
}

#[tokio::test(flavor = "multi_thread")]
async fn groups_are_counted() {
    let Some(pipeline) = create(VENUES).await else {
        return;
    };
    let records = rsvps(20);
    pipeline.produce_all(&keyed(&records)).await;
    let process = pipeline.process();
    pipeline.await_commits().await;
    assert_venues(&pipeline, &records).await;
    assert_eq!(pipeline.progress().await.0.dead_lettered, 0);
    // Whoever comes next goes on where this one was.
    assert_eq!(process.terminate().await.0, Some(0));
    let more = rsvps(21).split_off(records.len());
    pipeline.produce_all(&keyed(&more)).await;
    let again = pipeline.process();
    pipeline.await_commits().await;
    assert_venues(&pipeline, &rsvps(21)).await;
    assert!(again.await_status(|_| true).await.errors.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn counts_stay_exact_though_workers_are_killed() {
    let Some(pipeline) = create(VENUES).await else {
        return;
    };
    let records = rsvps(40);
    let keyed = keyed(&records);
    let mut workers = vec![pipeline.process(), pipeline.process()];
    for part in keyed.chunks(keyed.len().div_ceil(4)) {
        kill_oldest(&mut workers, pipeline.produce_all(part)).await;
        workers.push(pipeline.process());
    }
    pipeline.await_commits().await;
    assert_venues(&pipeline, &records).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_was_thought_dead_changes_nothing() {
    let Some(pipeline) = create(VENUES).await else {
        return;
    };
    let records = rsvps(45);
    let keyed = keyed(&records);
    let (first, rest) = keyed.split_at(keyed.len() / 3);
    let (second, third) = rest.split_at(rest.len() / 2);
    let zombie = pipeline.process();
    pipeline.produce_all(first).await;
    zombie.await_status(|status| status.errors.is_empty()).await;
    // While it has batches in flight, if it may be.
    while pipeline.progress().await.0.rows == 0 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    zombie.signal("STOP");
    let other = pipeline.process();
    pipeline.produce_all(second).await;
    pipeline.await_commits().await;
    zombie.signal("CONT");
    // It comes back, and both go on.
    pipeline.produce_all(third).await;
    pipeline.await_commits().await;
    zombie.await_status(|status| status.errors.is_empty()).await;
    assert_venues(&pipeline, &records).await;
    drop(other);
}

const PRESENT: Settings = Settings {
    schema: "player TEXT, status TEXT, points BIGINT",
    sql: "SELECT player, last_value(status) AS status, sum(points) AS points FROM records \
        GROUP BY player HAVING last_value(status) <> 'gone'",
    columns: &[("player", "text"), ("status", "text"), ("points", "bigint")],
    key: "/player",
    partitions: 1,
    base: 1_700_000_000_000_000,
};

fn player(name: &str, status: &str, points: i64) -> (String, Vec<u8>) {
    let record = json!({"player": name, "status": status, "points": points});
    (name.to_owned(), serde_json::to_vec(&record).unwrap())
}

async fn players(pipeline: &Pipeline) -> Vec<(String, String, i64)> {
    let mut rows: Vec<_> = pipeline.select("player, status, points").await;
    rows.sort();
    rows
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_that_having_excludes_has_no_row_and_keeps_its_state() {
    let Some(pipeline) = create(PRESENT).await else {
        return;
    };
    let process = pipeline.process();
    pipeline
        .produce_all(&[player("ada", "here", 1), player("bob", "here", 5)])
        .await;
    pipeline.await_commits().await;
    let row = |name: &str, points| (name.to_owned(), "here".to_owned(), points);
    assert_eq!(players(&pipeline).await, [row("ada", 1), row("bob", 5)]);
    pipeline.produce_all(&[player("ada", "gone", 2)]).await;
    pipeline.await_commits().await;
    assert_eq!(players(&pipeline).await, [row("bob", 5)]);
    process.kill();
    let again = pipeline.process();
    pipeline.produce_all(&[player("ada", "here", 4)]).await;
    pipeline.await_commits().await;
    assert_eq!(players(&pipeline).await, [row("ada", 7), row("bob", 5)]);
    drop(again);
}

#[tokio::test(flavor = "multi_thread")]
async fn states_of_other_sql_are_not_taken_up() {
    let Some(mut pipeline) = create(PRESENT).await else {
        return;
    };
    let process = pipeline.process();
    pipeline.produce_all(&[player("ada", "here", 1)]).await;
    pipeline.await_commits().await;
    process.kill();
    pipeline.settings.sql = "SELECT player, last_value(status) AS status, max(points) AS points \
        FROM records GROUP BY player";
    let other = pipeline.process();
    pipeline.produce_all(&[player("ada", "here", 3)]).await;
    let status = other.await_status(|status| !status.errors.is_empty()).await;
    assert!(
        status.errors["rows"].contains("another query"),
        "{status:?}"
    );
    assert_eq!(pipeline.progress().await.1, 1);
    other.kill();
    // With the former SQL it goes on as if nothing had been.
    pipeline.settings.sql = PRESENT.sql;
    let again = pipeline.process();
    pipeline.await_commits().await;
    assert_eq!(players(&pipeline).await, [("ada".into(), "here".into(), 4)]);
    drop(again);
}

/// The states grow without an end.
const STATUSES: Settings = Settings {
    sql: "SELECT player, array_agg(status) FILTER (WHERE status IS NOT NULL) AS statuses, \
        count(*) AS points FROM records GROUP BY player",
    columns: &[
        ("player", "text"),
        ("statuses", "frozen<list<text>>"),
        ("points", "bigint"),
    ],
    ..PRESENT
};

#[tokio::test(flavor = "multi_thread")]
async fn no_group_goes_on_before_what_it_refuses_is_kept() {
    let Some(pipeline) = create(STATUSES).await else {
        return;
    };
    let large = "x".repeat(700_000);
    let statuses = async || -> Vec<(i64,)> { pipeline.select("points").await };
    let process = pipeline.process();
    pipeline.produce_all(&[player("ada", &large, 1)]).await;
    pipeline.await_commits().await;
    pipeline.take_dead_letters(false).await;
    for (status, records) in [(large.as_str(), 2), ("gone", 3)] {
        pipeline.produce_all(&[player("ada", status, 1)]).await;
        process
            .await_metric("millstream_worker_records_total", records)
            .await;
    }
    // A worker that does it wrong writes the last of them within that time.
    for _ in 0..20 {
        assert_eq!(statuses().await, [(1,)], "the letter isn't in Kafka yet");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    process.kill();
    pipeline.take_dead_letters(true).await;
    let process = pipeline.process();
    pipeline.await_commits().await;
    let letters = pipeline.dead_letters(1).await;
    assert!(letters[0].0.contains("the limit is"), "{}", letters[0].0);
    assert_eq!(statuses().await, [(2,)]);
    let (counts, _) = pipeline.progress().await;
    assert_eq!((counts.rows, counts.dead_lettered), (2, 1));
    drop(process);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_taken_up_goes_to_the_dead_letters() {
    let Some(pipeline) = create(STATUSES).await else {
        return;
    };
    let large = "x".repeat(700_000);
    let nobody = (String::new(), br#"{"status": "here"}"#.to_vec());
    pipeline
        .produce_all(&[
            player("ada", "here", 1),
            player("ada", &large, 1),
            player("ada", &large, 1),
            nobody,
            player("ada", "gone", 1),
        ])
        .await;
    let process = pipeline.process();
    pipeline.await_commits().await;
    let letters = pipeline.dead_letters(2).await;
    assert!(
        letters[0].0.contains("the limit is 1048576"),
        "{}",
        letters[0].0
    );
    assert!(
        letters[1].0.contains("`player` is null"),
        "{}",
        letters[1].0
    );
    let rows: Vec<(i64, Vec<String>)> = pipeline.select("points, statuses").await;
    assert_eq!(rows, [(3, vec!["here".into(), large, "gone".into()])]);
    let (counts, _) = pipeline.progress().await;
    assert_eq!((counts.rows, counts.dead_lettered), (3, 2));
    drop(process);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_that_expired_begins_anew() {
    let Some(mut pipeline) = create(PRESENT).await else {
        return;
    };
    // Longer than the second record takes to its row on a loaded machine.
    pipeline.state_ttl = Some("15s");
    let process = pipeline.process();
    pipeline.produce_all(&[player("ada", "here", 1)]).await;
    pipeline.await_commits().await;
    // By its own clock the worker forgets the state that it has at hand: up to a second after Cassandra,
    // which counts whole ones.
    tokio::time::sleep(Duration::from_secs(15)).await;
    let kept = async |table: &str| {
        let query = format!("SELECT player FROM {}.{table}", pipeline.keyspace);
        let result = pipeline.session.query_unpaged(query, ()).await.unwrap();
        result.into_rows_result().unwrap().rows_num()
    };
    let deadline = std::time::Instant::now() + Duration::from_secs(60);
    while kept("rows").await + kept("rows__state").await > 0 {
        assert!(std::time::Instant::now() < deadline, "row or state is kept");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    pipeline.produce_all(&[player("ada", "here", 4)]).await;
    pipeline.await_commits().await;
    assert_eq!(players(&pipeline).await, [("ada".into(), "here".into(), 4)]);
    drop(process);
}

const NOTES: Settings = Settings {
    schema: "player TEXT, note TEXT, points BIGINT",
    sql: "SELECT player, last_value(note) AS note, count(*) AS n, sum(points) AS points, \
        count(DISTINCT points) AS different FROM records GROUP BY player",
    columns: &[
        ("player", "text"),
        ("note", "text"),
        ("n", "bigint"),
        ("points", "bigint"),
        ("different", "bigint"),
    ],
    key: "/player",
    partitions: 2,
    base: 1_700_000_000_000_000,
};

#[tokio::test(flavor = "multi_thread")]
async fn groups_that_memory_has_no_room_for_are_read_again_and_stay_exact() {
    const GROUPS: i64 = 300;
    let Some(mut pipeline) = create(NOTES).await else {
        return;
    };
    // Room for 1 MiB of states; there are 2.4 MB of them.
    pipeline.more = json!({"memoryLimit": 64 << 20});
    let mut expected = BTreeMap::<String, (String, i64, i64, BTreeSet<i64>)>::new();
    let mut process = pipeline.process();
    for round in 0..8 {
        let records = (0..GROUPS).map(|group| {
            let (name, points) = (format!("player {group}"), round * group % 7);
            let note = format!("{round} {}", "x".repeat(8_000));
            let row = expected.entry(name.clone()).or_default();
            row.0.clone_from(&note);
            row.1 += 1;
            row.2 += points;
            row.3.insert(points);
            let record = json!({"player": name, "note": note, "points": points});
            (name, record.to_string().into_bytes())
        });
        pipeline.produce_all(&records.collect::<Vec<_>>()).await;
        if round == 3 {
            process.kill();
            process = pipeline.process();
        }
    }
    pipeline.await_commits().await;
    let rows: Vec<(String, String, i64, i64, i64)> =
        pipeline.select("player, note, n, points, different").await;
    assert_eq!(rows.len(), expected.len());
    for (name, note, n, points, different) in rows {
        let row = &expected[&name];
        assert!(note == row.0, "{name} has another note");
        let different = (different, row.3.len() as i64);
        assert_eq!(
            (n, points, different.0),
            (row.1, row.2, different.1),
            "{name}"
        );
    }
    // Again and again, not only once for each.
    let reads = "millstream_worker_state_reads_total";
    process.await_metric(reads, 2 * GROUPS as u64).await;
    let status = process
        .await_status(|status| status.errors.is_empty())
        .await;
    let warning = &status.warnings["rows"];
    assert!(warning.contains("64 MiB is small for 1 sink"), "{warning}");
}

const BY_EMAIL: Settings = Settings {
    schema: "email TEXT, at TIMESTAMP",
    sql: "SELECT lower(email) AS email, count(*) AS n, count(DISTINCT _partition) AS partitions, \
        min(_partition) AS partition FROM records GROUP BY lower(email)",
    columns: &[
        ("email", "text"),
        ("n", "bigint"),
        ("partitions", "bigint"),
        ("partition", "int"),
    ],
    // As the plan derives it.
    key: r#"lower("email")"#,
    partitions: 4,
    base: 1_700_000_000_000_000,
};

#[tokio::test(flavor = "multi_thread")]
async fn the_records_of_a_group_that_is_computed_come_into_one_partition() {
    let Some(environment) = Environment::find().await else {
        return;
    };
    let pipeline = Pipeline::create(environment, BY_EMAIL).await;
    pipeline.create_state_table().await;
    let mut expected = BTreeMap::<String, i64>::new();
    let mut lines = String::new();
    for number in 0..2_000 {
        let email = format!("User{}@Example.org", number % 97);
        *expected.entry(email.to_lowercase()).or_default() += 1;
        let email = match number % 3 {
            0 => email,
            1 => email.to_uppercase(),
            _ => email.to_lowercase(),
        };
        lines += &format!("{}\n", json!({"email": email}));
    }
    // Neither has a key: the dead letter of the ingest stage takes them.
    lines += "{\"email\": null}\n{\"email\": {}}\n";
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("records.ndjson");
    std::fs::write(&path, lines).unwrap();

    let processes = [pipeline.process(), pipeline.process()];
    let ingest = pipeline.ingest(json!({"file": {"path": path}}));
    let rows = CommitMetadata {
        rows: 2_000,
        ..CommitMetadata::default()
    };
    pipeline.await_progress(rows).await;
    let letters = pipeline.dead_letters(2).await;
    let reasons: Vec<_> = letters.iter().map(|(reason, _)| reason.as_str()).collect();
    assert!(
        reasons.contains(&r#"the key `lower("email")` is null"#),
        "{reasons:?}"
    );
    assert!(
        reasons
            .iter()
            .any(|why| why.starts_with("the key can't be computed: ")),
        "{reasons:?}"
    );

    let groups: Vec<(String, i64, i64, i32)> =
        pipeline.select("email, n, partitions, partition").await;
    assert!(
        groups.iter().all(|(_, _, partitions, _)| *partitions == 1),
        "{groups:?}"
    );
    let used: BTreeSet<_> = groups.iter().map(|(.., partition)| *partition).collect();
    assert_eq!(used.len(), 4, "the groups are spread");
    let counts: BTreeMap<_, _> = groups
        .into_iter()
        .map(|(email, n, ..)| (email, n))
        .collect();
    assert_eq!(counts, expected);
    drop((processes, ingest));
}
