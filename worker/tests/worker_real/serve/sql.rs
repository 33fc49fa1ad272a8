//! SQL over the Delta Lake tables of real sinks.

use serde_json::{Value, json};

use super::{INJECTIONS, encoded};
use crate::{
    delta,
    serving::Serving,
    support::{Environment, Pipeline, Settings},
};

const EVENTS: Settings = Settings {
    schema: "id BIGINT, country TEXT, ts TIMESTAMP, day DATE, kind TEXT, price DECIMAL(10, 2), \
        tags ARRAY<TEXT>",
    sql: "SELECT id, country, ts, day, kind, price, tags FROM records",
    columns: &[("id", "bigint"), ("country", "text")],
    key: "/id",
    partitions: 2,
    base: 1_700_000_000_000_000,
};

fn event(id: i64, country: &str) -> (String, Vec<u8>) {
    let record = json!({
        "id": id, "country": country, "ts": format!("2016-11-05T{:02}:00:00Z", id % 24),
        "day": "2016-11-05", "kind": if id % 2 == 0 { "even" } else { "odd" }, "price": "1.50",
        "tags": ["a", country],
    });
    (id.to_string(), record.to_string().into_bytes())
}

/// A pipeline whose sink merges into a Delta Lake table, which isn't there yet, and a service over it.
struct Lake {
    pipeline: Pipeline,
    sink: Value,
    serving: Serving,
    _folder: tempfile::TempDir,
}

async fn lake() -> Option<Lake> {
    let pipeline = Pipeline::create(Environment::find().await?, EVENTS).await;
    let mut serving = Serving::create(pipeline.environment.clone()).await;
    let folder = tempfile::tempdir().unwrap();
    let merge = json!({"mode": "merge", "mergeKeys": ["id"], "partitionBy": ["day", "kind"]});
    let sink = delta::lake(folder.path(), merge);
    serving.tables = json!([{"name": "event-log", "path": sink["delta"]["path"]}]);
    serving.serve = json!({
        "now": "2016-11-06T00:00:00Z",
        "endpoints": [
            {"name": "all", "path": "/all", "sql": "SELECT * FROM \"event-log\" ORDER BY id", "maxRows": 30},
            {
                "name": "found", "path": "/found/{country}", "shape": "object",
                "parameters": [{"name": "country", "type": "text"}],
                "sql": "SELECT id, country FROM \"event-log\" WHERE country = $country ORDER BY id",
            },
            {
                "name": "kinds", "path": "/kinds", "plot": {"label": "kind", "value": "n"},
                "sql": "SELECT kind, count(*) AS n FROM \"event-log\" GROUP BY kind ORDER BY kind",
            },
            {
                "name": "typed", "path": "/typed",
                "parameters": [
                    {"name": "id", "type": "bigint", "default": "1"},
                    {"name": "flag", "type": "boolean", "default": "true"},
                    {"name": "least", "type": "double", "default": "0.5"},
                    {"name": "since", "type": "timestamp", "default": "2016-11-05"},
                    {"name": "hours", "type": "int", "default": "24", "ago": "hours"},
                    {"name": "word", "type": "text", "default": "x"},
                    {"name": "key", "type": "uuid", "default": "9a723211-0e87-41f1-b1e4-ed1a15226b80"},
                ],
                "sql": "SELECT id, $word AS word, $key AS key FROM \"event-log\" \
                    WHERE id = $id AND $flag AND CAST(price AS DOUBLE) > $least \
                    AND ts >= $since AND ts >= $hours AND ts < $now",
            },
        ],
    });
    Some(Lake {
        pipeline,
        sink,
        serving,
        _folder: folder,
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn sql_reads_the_delta_lake_table_of_a_sink() {
    let Some(mut lake) = lake().await else {
        return;
    };
    // The table isn't there yet: the service is, and says so.
    let server = lake.serving.start().await;
    let response = server.get("/kinds").await;
    assert_eq!(response.status(), 503);
    assert!(response.headers().contains_key("retry-after"));
    let body: Value = response.json().await.unwrap();
    let detail = body["detail"].as_str().unwrap();
    let absent = "the table of sink `event-log` isn't there yet";
    assert!(detail.starts_with(absent), "{detail}");
    let away = json!({"status": "unhealthy", "tables": "unreadable"});
    assert_eq!(server.json("/health").await, (503, away));
    assert!(server.admin("/status").await.contains(absent));

    let _worker = delta::start(&lake.pipeline, &lake.sink);
    let records: Vec<_> = (1..=20).map(|id| event(id, "IT")).collect();
    lake.pipeline.produce_all(&records).await;
    lake.pipeline.await_commits().await;
    let kinds =
        |even: i64, odd: i64| json!([{"kind": "even", "n": even}, {"kind": "odd", "n": odd}]);
    assert_eq!(server.json("/kinds").await, (200, kinds(10, 10)));
    server.await_status("/health", 200).await;
    assert!(!server.admin("/status").await.contains("event-log"));
    let (_, body) = server.json("/all?limit=1").await;
    let first = json!({
        "id": 1, "country": "IT", "ts": "2016-11-05T01:00:00.000Z", "day": "2016-11-05",
        "kind": "odd", "price": "1.50", "tags": ["a", "IT"],
    });
    assert_eq!(body, json!([first]), "the columns of the result alone");

    // What is committed is there, as rows that are new and as rows that replace others.
    let response = server.get("/kinds").await;
    let tag = response.headers()["etag"].clone();
    let records: Vec<_> = (15..=30).map(|id| event(id, "FR")).collect();
    lake.pipeline.produce_all(&records).await;
    lake.pipeline.await_commits().await;
    assert_eq!(server.json("/kinds").await, (200, kinds(15, 15)));
    assert_ne!(server.get("/kinds").await.headers()["etag"], tag);
    let (_, body) = server.json("/found/FR").await;
    assert_eq!(body["count"], 16);
    let (_, body) = server.json("/found/IT").await;
    assert_eq!(body["count"], 14);
}

#[tokio::test(flavor = "multi_thread")]
async fn sql_waits_neither_for_cassandra_nor_for_other_tables() {
    let Some(environment) = Environment::find().await else {
        return;
    };
    let mut serving = Serving::create(environment).await;
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("_delta_log");
    std::fs::create_dir(&log).unwrap();
    std::fs::write(log.join("00000000000000000000.json"), "no JSON").unwrap();
    serving.tables = json!([{"name": "broken", "path": folder.path()}]);
    let broken = json!({"name": "broken", "path": "/broken", "sql": "SELECT * FROM broken"});
    let one = json!({"name": "one", "path": "/one", "sql": "SELECT 1 AS n"});
    serving.serve = json!({"endpoints": [broken, one]});
    let server = serving.start().await;
    assert_eq!(server.json("/one").await, (200, json!([{"n": 1}])));
    assert_eq!(server.get("/broken").await.status(), 503);
    let health = json!({"status": "unhealthy", "tables": "unreadable"});
    assert_eq!(server.json("/health").await, (503, health));
    let status = server.admin("/status").await;
    assert!(status.contains("sink `broken` can't be read"), "{status}");
    drop(server);

    // Nobody listens there.
    serving.cassandra = "127.0.0.1:1".into();
    let cql = json!({"name": "cql", "path": "/cql", "cql": "SELECT * FROM t"});
    serving.serve = json!({"endpoints": [cql, broken, one]});
    let server = serving.start().await;
    assert_eq!(server.json("/one").await, (200, json!([{"n": 1}])));
    assert_eq!(server.get("/cql").await.status(), 503);
    let health = json!({"status": "unhealthy", "cassandra": "unreachable", "tables": "unreadable"});
    assert_eq!(server.json("/health").await, (503, health));
}

#[tokio::test(flavor = "multi_thread")]
async fn sql_is_bounded_and_shown_like_everything_else() {
    let Some(mut lake) = lake().await else {
        return;
    };
    let _worker = delta::start(&lake.pipeline, &lake.sink);
    let records: Vec<_> = (1..=31).map(|id| event(id, "IT")).collect();
    lake.pipeline.produce_all(&records).await;
    lake.pipeline.await_commits().await;
    let server = lake.serving.start().await;
    for (path, status, says) in [
        ("/all", 500, "gives more than 30 rows"),
        ("/all?limit=31", 400, "parameter `limit` may be 1 to 30"),
        (
            "/all?page=x",
            400,
            "parameter `page` isn't for this endpoint",
        ),
        ("/typed?id=x", 400, "which is not an integer of 64 bits"),
        ("/typed?nothing=1", 400, "parameter `nothing` isn't known"),
        ("/all/1", 404, "there is nothing at this path"),
    ] {
        let (found, body) = server.json(path).await;
        let detail = body["detail"].as_str().unwrap_or_default();
        assert_eq!(found, status, "{path}: {detail}");
        assert!(detail.contains(says), "{path}: {detail}");
    }
    let (status, body) = server.json("/all?limit=30").await;
    assert_eq!((status, body.as_array().unwrap().len()), (200, 30));
    let (_, page) = server.text("/kinds?format=html").await;
    assert!(page.contains("<td class=\"number\">15</td>"), "{page}");
    let (_, plot) = server.text("/kinds?format=svg").await;
    assert!(plot.starts_with("<svg"), "{plot}");

    let (_, document) = server.json("/openapi.json").await;
    let get = &document["paths"]["/all"]["get"];
    let row = &get["responses"]["200"]["content"]["application/json"]["schema"]["items"];
    let ts = json!({"type": ["string", "null"], "format": "date-time"});
    assert_eq!(row["properties"]["ts"], ts);
    let names = get["parameters"].as_array().unwrap().iter();
    let names: Vec<_> = names.map(|parameter| &parameter["name"]).collect();
    assert_eq!(names, ["format", "limit"]);
    assert!(!document.to_string().contains("SELECT"));
}

#[tokio::test(flavor = "multi_thread")]
async fn injections_into_sql_are_nothing_but_data() {
    let Some(mut lake) = lake().await else {
        return;
    };
    let _worker = delta::start(&lake.pipeline, &lake.sink);
    let mut records = vec![event(1, "IT")];
    let injections = INJECTIONS.iter().zip(100..);
    records.extend(
        injections
            .clone()
            .map(|(injection, id)| event(id, injection)),
    );
    lake.pipeline.produce_all(&records).await;
    lake.pipeline.await_commits().await;
    let server = lake.serving.start().await;
    for (injection, id) in injections {
        let encoded = encoded(injection);
        // It finds the row of that very text and no other.
        let (status, body) = server.json(&format!("/found/{encoded}")).await;
        assert_eq!(status, 200, "{injection}: {body}");
        let items = json!([{"id": id, "country": injection}]);
        assert_eq!(body["items"], items, "{injection}");
        let (status, body) = server.json(&format!("/typed?word={encoded}")).await;
        assert_eq!(status, 200, "{injection}: {body}");
        assert_eq!(body[0]["word"], *injection);
        for name in [
            "id", "flag", "least", "since", "hours", "key", "limit", "page", "format",
        ] {
            let path = format!("/typed?{name}={encoded}");
            let (status, body) = server.json(&path).await;
            assert_eq!(status, 400, "{path}: {body}");
        }
    }
    let (_, body) = server.json("/all").await;
    assert_eq!(body.as_array().unwrap().len(), 1 + INJECTIONS.len());
}
