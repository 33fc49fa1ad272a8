//! Lookups: from files, and in worker processes.

use std::{
    fs,
    time::{Duration, Instant},
};

use millstream_api::worker::CommitMetadata;
use millstream_plan::{RecordSchema, SinkPlan, plan_lookups};
use millstream_worker::{config::Credentials, lookup};
use serde_json::{Value, json};

use crate::{
    files,
    support::{Environment, Pipeline, Settings, Worker},
};

const PATIENCE: Duration = Duration::from_secs(60);

const ORDERS: Settings = Settings {
    schema: "id BIGINT, country TEXT",
    sql: "SELECT id, country, c.name, c.area FROM records r LEFT JOIN countries c ON r.country = c.code",
    columns: &[
        ("id", "bigint"),
        ("country", "text"),
        ("name", "text"),
        ("area", "int"),
    ],
    key: "/id",
    partitions: 1,
    base: 1_700_000_000_000_000,
};

const SCHEMA: &str = "code TEXT, name TEXT, area INT";

type Row = (i64, Option<String>, Option<i32>);

/// A pipeline of orders, joined with this lookup; none where there are no servers.
async fn orders(sql: &'static str, lookup: impl Fn(&Pipeline) -> Value) -> Option<Pipeline> {
    let environment = Environment::find().await?;
    let settings = Settings { sql, ..ORDERS };
    let mut pipeline = Pipeline::create(environment, settings).await;
    let mut lookup = lookup(&pipeline);
    lookup["name"] = json!("countries");
    pipeline.more = json!({"lookups": [lookup]});
    Some(pipeline)
}

/// The table `countries` beside that of the rows.
fn table(pipeline: &Pipeline) -> Value {
    json!({
        "cassandra": {"keyspace": pipeline.name, "table": "countries"},
        "schema": SCHEMA, "refresh": "1s",
    })
}

async fn cql(pipeline: &Pipeline, statement: &str) {
    let statement = statement.replace("countries", &format!("{}.countries", pipeline.name));
    pipeline.session.query_unpaged(statement, ()).await.unwrap();
}

async fn create(pipeline: &Pipeline) {
    let table = "CREATE TABLE countries (code text PRIMARY KEY, name text, area int, flag blob)";
    cql(pipeline, table).await;
}

async fn country(pipeline: &Pipeline, code: &str, name: &str, area: i32) {
    let insert = "INSERT INTO countries (code, name, area) VALUES";
    cql(pipeline, &format!("{insert} ('{code}', '{name}', {area})")).await;
}

/// Sends an order of each of these countries.
async fn order(pipeline: &Pipeline, from: i64, countries: &[&str]) {
    let orders = (from..).zip(countries).map(|(id, country)| {
        let json = json!({"id": id, "country": country});
        (None, Some(json.to_string().into_bytes()))
    });
    pipeline.produce(&orders.collect::<Vec<_>>()).await;
}

async fn rows(pipeline: &Pipeline) -> Vec<Row> {
    let mut rows: Vec<Row> = pipeline.select("id, name, area").await;
    rows.sort();
    rows
}

fn row(id: i64, name: Option<&str>, area: Option<i32>) -> Row {
    (id, name.map(str::to_owned), area)
}

fn written(rows: i64) -> CommitMetadata {
    CommitMetadata {
        rows,
        ..CommitMetadata::default()
    }
}

/// Waits until the worker's metrics have a line.
async fn await_metric(worker: &Worker, line: &str) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let metrics = worker.get("/metrics").await;
        if metrics
            .as_ref()
            .is_some_and(|(_, text)| text.contains(line))
        {
            return;
        }
        assert!(Instant::now() < deadline, "{line} isn't in {metrics:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn await_loaded(worker: &Worker, rows: usize) {
    let line = format!("millstream_worker_lookup_rows{{lookup=\"countries\"}} {rows}");
    await_metric(worker, &line).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn records_are_joined_with_a_table_that_is_read_again() {
    let Some(pipeline) = orders(ORDERS.sql, table).await else {
        return;
    };
    create(&pipeline).await;
    country(&pipeline, "DE", "Germany", 357).await;
    country(&pipeline, "FR", "France", 543).await;
    order(&pipeline, 0, &["DE", "XX", "FR", "DE"]).await;
    let process = pipeline.process();
    pipeline.await_progress(written(4)).await;
    let first = [
        row(0, Some("Germany"), Some(357)),
        row(1, None, None),
        row(2, Some("France"), Some(543)),
        row(3, Some("Germany"), Some(357)),
    ];
    assert_eq!(rows(&pipeline).await, first);

    // Rows that are written stay: the record meets the lookup when it is processed.
    country(&pipeline, "DE", "Deutschland", 358).await;
    country(&pipeline, "XX", "Nowhere", 0).await;
    await_loaded(&process, 3).await;
    order(&pipeline, 4, &["XX", "DE"]).await;
    pipeline.await_progress(written(6)).await;
    let later = [
        row(4, Some("Nowhere"), Some(0)),
        row(5, Some("Deutschland"), Some(358)),
    ];
    assert_eq!(rows(&pipeline).await, [&first[..], &later].concat());

    // A table that is gone is a warning, and what was read of it stays in use.
    cql(&pipeline, "DROP TABLE countries").await;
    let status = process
        .await_status(|status| !status.warnings.is_empty())
        .await;
    let warning = &status.warnings["rows"];
    assert!(
        warning.contains("lookup `countries` can't be read again"),
        "{warning}"
    );
    assert!(status.errors.is_empty(), "{status:?}");
    order(&pipeline, 6, &["FR"]).await;
    pipeline.await_progress(written(7)).await;
    assert_eq!(rows(&pipeline).await[6], row(6, Some("France"), Some(543)));

    create(&pipeline).await;
    country(&pipeline, "FR", "la France", 544).await;
    process
        .await_status(|status| status.warnings.is_empty())
        .await;
    order(&pipeline, 7, &["FR"]).await;
    pipeline.await_progress(written(8)).await;
    let last = row(7, Some("la France"), Some(544));
    assert_eq!(rows(&pipeline).await[7], last);
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_processed_before_the_lookup_is_there() {
    let sql = "SELECT id, country, c.name, c.area FROM records r \
        JOIN countries c ON upper(r.country) = c.name";
    let Some(pipeline) = orders(sql, table).await else {
        return;
    };
    order(&pipeline, 0, &["germany", "france", "nowhere"]).await;
    let process = pipeline.process();
    let await_error = async |says: &str| {
        let status = process
            .await_status(|status| {
                let error = status.errors.get("rows");
                error.is_some_and(|error| error.contains(says))
            })
            .await;
        assert!(
            status.errors["rows"].contains("lookup `countries`"),
            "{status:?}"
        );
        assert_eq!(process.get("/readyz").await.unwrap().0, 503);
    };
    await_error("can't prepare").await;
    create(&pipeline).await;
    await_error("it has no rows").await;
    country(&pipeline, "DE", "GERMANY", 357).await;
    pipeline.await_progress(written(1)).await;
    assert_eq!(rows(&pipeline).await, [row(0, Some("GERMANY"), Some(357))]);
    process
        .await_status(|status| status.errors.is_empty())
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lookup_takes_no_more_than_it_may() {
    let bounded = |pipeline: &Pipeline| {
        let mut lookup = table(pipeline);
        lookup["maxRows"] = json!(2);
        lookup
    };
    let Some(pipeline) = orders(ORDERS.sql, bounded).await else {
        return;
    };
    create(&pipeline).await;
    for code in ["A", "B", "C"] {
        country(&pipeline, code, "x", 1).await;
    }
    let process = pipeline.process();
    let status = process
        .await_status(|status| !status.errors.is_empty())
        .await;
    let error = &status.errors["rows"];
    assert!(error.contains("more than 2 rows: raise maxRows"), "{error}");
    cql(&pipeline, "DELETE FROM countries WHERE code = 'C'").await;
    await_loaded(&process, 2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn records_are_joined_with_a_file_that_is_read_again() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("countries.csv");
    let file = |_: &Pipeline| json!({"file": {"path": path}, "schema": SCHEMA, "refresh": "1s"});
    let Some(pipeline) = orders(ORDERS.sql, file).await else {
        return;
    };
    order(&pipeline, 0, &["DE", "FR", "XX"]).await;
    let process = pipeline.process();
    let status = process
        .await_status(|status| !status.errors.is_empty())
        .await;
    assert!(
        status.errors["rows"].contains("countries.csv"),
        "{status:?}"
    );
    // As a ConfigMap's files are: replaced as a whole.
    let replace = |text: &str| {
        let new = folder.path().join("new");
        fs::write(&new, text).unwrap();
        fs::rename(new, &path).unwrap();
    };
    replace("code,name,area\nDE,Germany,357\nFR,France,\nDE,Germany again,\n");
    process
        .await_status(|status| {
            let error = status.errors.get("rows");
            error.is_some_and(|error| error.contains("`c.code` is `DE` in two rows"))
        })
        .await;
    assert_eq!(pipeline.progress().await, (written(0), 3));
    replace("code,name,area\nDE,Germany,357\nFR,France,\n");
    pipeline.await_progress(written(3)).await;
    let first = [
        row(0, Some("Germany"), Some(357)),
        row(1, Some("France"), None),
        row(2, None, None),
    ];
    assert_eq!(rows(&pipeline).await, first);

    replace("code,name,area\nDE,Germany,much\n");
    let status = process
        .await_status(|status| !status.warnings.is_empty())
        .await;
    assert!(status.warnings["rows"].contains("line 2"), "{status:?}");
    replace("code,name,area\nDE,Deutschland,358\nFR,France,543\nXX,Nowhere,0\n");
    await_loaded(&process, 3).await;
    order(&pipeline, 3, &["DE", "XX"]).await;
    pipeline.await_progress(written(5)).await;
    let later = [
        row(3, Some("Deutschland"), Some(358)),
        row(4, Some("Nowhere"), Some(0)),
    ];
    assert_eq!(rows(&pipeline).await[3..], later);
}

/// The loader of a lookup of [`files::records`], and a query that joins it.
fn loader(file: Value, more: Value) -> (lookup::Loader, SinkPlan) {
    let mut spec = json!({"name": "l", "schema": files::schema(), "file": file});
    for (name, value) in more.as_object().unwrap() {
        spec[name] = value.clone();
    }
    let specs: Vec<millstream_api::Lookup> = vec![serde_json::from_value(spec).unwrap()];
    let schema = RecordSchema::parse("id TEXT").unwrap();
    let sql = "SELECT r.id, l.count, l.name FROM records r LEFT JOIN l ON r.id = l.id";
    let plan = SinkPlan::joining(&schema, &plan_lookups(&specs).unwrap(), "s", sql).unwrap();
    let credentials = Credentials::new("/nowhere".into());
    let plans = [plan];
    let mut loaders = lookup::loaders(&specs, &plans, None, &credentials).unwrap();
    let [plan] = plans;
    (loaders.remove(0), plan)
}

#[tokio::test]
async fn files_of_every_form_are_read_and_never_in_part() {
    const COUNT: usize = 2_500;
    let records = files::records(COUNT);
    let csv = files::written("csv", &records);
    let zip = files::zip(&[("all.csv", &csv)]);
    for (name, bytes) in [
        ("all.ndjson", files::written("ndjson", &records)),
        ("all.json", files::written("jsonArray", &records)),
        ("all.csv", csv),
        ("all.parquet", files::written("parquet", &records)),
        ("all.zip", zip),
    ] {
        let server = files::Server::start(bytes).await;
        let (loader, plan) = loader(json!({"url": server.url(name)}), json!({}));
        let joined = lookup::joined(std::slice::from_ref(&loader), &plan);
        assert!(joined.now().is_empty());
        server.cut_next(100);
        let error = loader.load_once().await.unwrap_err();
        let error = format!("{error:#}");
        assert!(
            error.contains("lookup `l`: downloading") && error.contains("cut off"),
            "{error}"
        );
        assert!(joined.now().is_empty(), "{name}");
        loader.load_once().await.unwrap();
        joined.loaded().await;
        assert_eq!(joined.now()["l"].rows(), COUNT, "{name}");

        // What is damaged leaves what is there.
        server.replace(b"\xff\xfe{".to_vec());
        loader.load_once().await.unwrap_err();
        assert_eq!(joined.now()["l"].rows(), COUNT, "{name}");
    }
}

#[tokio::test]
async fn a_file_is_held_to_its_bounds() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("all.csv");
    let records = files::records(20_000);
    fs::write(&path, files::written("csv", &records)).unwrap();
    for (more, says) in [
        (json!({}), None),
        (json!({"maxRows": 19_999}), Some("more than 19999 rows")),
        (json!({"maxSize": "1Mi"}), Some("more than 1 MiB of memory")),
    ] {
        let (loader, _) = loader(json!({"path": path}), more);
        let loaded = loader.load_once().await;
        match (loaded, says) {
            (Ok(()), None) => {}
            (Err(error), Some(says)) => {
                let error = format!("{error:#}");
                assert!(error.contains(says), "{error}");
            }
            (loaded, _) => panic!("{loaded:?}"),
        }
    }
}
