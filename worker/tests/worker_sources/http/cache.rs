//! The fetch cache in a Redis server of the test's own.

use std::{
    collections::BTreeSet,
    path::Path,
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use axum::response::{IntoResponse, Response};
use futures::StreamExt;
use millstream_api::source::HttpSource;
use millstream_apis::{Apis, Options, dataset::Dataset, router};
use millstream_worker::{metrics::Metrics, source::SourceBatch};
use redis::AsyncCommands;
use serde_json::{Value, json};

use super::{Api, ids, records, refused, serve, source, status, texts, try_open};
use crate::{certificates, ports::free_port};

/// A Redis server; it ends with the test.
struct Redis {
    process: Child,
    address: String,
    folder: tempfile::TempDir,
}

const PASSWORD: &str = "r3dis";

impl Redis {
    /// None, and a word why, where there is no Redis.
    async fn start() -> Option<Self> {
        Redis::start_at(format!("127.0.0.1:{}", free_port())).await
    }

    async fn start_at(address: String) -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("redis-password"), PASSWORD).unwrap();
        let port = address.rsplit_once(':').unwrap().1.to_owned();
        Redis::launch(address, folder, &["--port", &port]).await
    }

    async fn launch(address: String, folder: tempfile::TempDir, listen: &[&str]) -> Option<Self> {
        let process = Command::new("redis-server")
            .args([
                "--bind",
                "127.0.0.1",
                "--save",
                "",
                "--requirepass",
                PASSWORD,
            ])
            .args(listen)
            .current_dir(folder.path())
            .stdout(Stdio::null())
            .spawn();
        let Ok(process) = process else {
            eprintln!("skipped: no redis-server");
            return None;
        };
        let redis = Redis {
            process,
            address,
            folder,
        };
        for _ in 0..500 {
            if tokio::net::TcpStream::connect(&redis.address).await.is_ok() {
                return Some(redis);
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("Redis doesn't start");
    }

    async fn connect(&self) -> redis::aio::MultiplexedConnection {
        let url = format!("redis://:{PASSWORD}@{}", self.address);
        let client = redis::Client::open(url).unwrap();
        client.get_multiplexed_async_connection().await.unwrap()
    }

    fn settings(&self) -> Value {
        json!({
            "pagination": {"limitOffset": {"pageSize": 10, "count": {"query": {"count": "1"}, "pointer": "/count"}}},
            "cache": {"redis": {
                "address": self.address, "passwordSecret": {"name": "redis", "key": "password"},
                "key": "all", "keyPrefix": "t:", "recordKey": "/id",
            }},
        })
    }

    fn stop(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A server with so many records.
async fn numbers(total: usize) -> Api {
    Api::start(move |_, asked| {
        if asked.parameter("count").is_some() {
            return json!({"count": total}).to_string().into_response();
        }
        let offset = asked.number("offset");
        let end = total.min(offset + asked.number("limit"));
        Value::from(records(offset..end))
            .to_string()
            .into_response()
    })
    .await
}

/// Reads everything; the batches, hits and misses.
async fn read(
    spec: HttpSource,
    redis: &Path,
    position: Option<&Value>,
) -> (Vec<SourceBatch>, u64, u64) {
    let (_, part) = status();
    let metrics = Metrics::default();
    let source = try_open(spec, position, redis, &part, &metrics).unwrap();
    let batches = source.collect().await;
    let stage = metrics.stage("ingest");
    (batches, stage.cache_hits.get(), stage.cache_misses.get())
}

#[tokio::test]
async fn a_result_that_lacks_what_the_server_had_told_of_is_fetched_again() {
    let Some(redis) = Redis::start().await else {
        return;
    };
    let lacks: [fn() -> Response; 2] = [|| refused(404), || "[]".into_response()];
    for lacks in lacks {
        what_lacks_is_fetched_again(&redis, lacks).await;
    }
}

/// The second half of the pages is answered so, while it is away.
async fn what_lacks_is_fetched_again(redis: &Redis, lacks: fn() -> Response) {
    let away = Arc::new(AtomicBool::new(true));
    let refuses = away.clone();
    let api = Api::start(move |_, asked| {
        if asked.parameter("count").is_some() {
            return json!({"count": 35}).to_string().into_response();
        }
        let offset = asked.number("offset");
        match offset >= 20 && refuses.load(Ordering::Relaxed) {
            true => lacks(),
            false => Value::from(records(offset..35.min(offset + 10)))
                .to_string()
                .into_response(),
        }
    })
    .await;
    let spec = api.source(redis.settings());
    let (lacking, ..) = read(spec.clone(), redis.folder.path(), None).await;
    assert_eq!(texts(&lacking), ids(0..20));
    let keys: Vec<String> = redis.connect().await.keys("t:all*").await.unwrap();
    assert_eq!(keys, Vec::<String>::new(), "nothing of it is left");
    away.store(false, Ordering::Relaxed);
    let (whole, ..) = read(spec, redis.folder.path(), None).await;
    assert_eq!(texts(&whole), ids(0..35));
    let _: () = redis.connect().await.del("t:all").await.unwrap();
}

#[tokio::test]
async fn the_second_pass_comes_from_the_cache() {
    let Some(redis) = Redis::start().await else {
        return;
    };
    let api = numbers(35).await;
    let spec = api.source(redis.settings());
    let (first, hits, misses) = read(spec.clone(), redis.folder.path(), None).await;
    assert_eq!((texts(&first), hits, misses), (ids(0..35), 0, 1));
    assert_eq!(api.requests(), 5);

    let (second, hits, misses) = read(spec.clone(), redis.folder.path(), None).await;
    assert_eq!((&second, hits, misses), (&first, 1, 0));
    assert_eq!(api.requests(), 5);

    let mut connection = redis.connect().await;
    let record: String = connection.get("t:17").await.unwrap();
    assert_eq!(record, r#"{"id":17}"#);
    let ttl: i64 = connection.ttl("t:17").await.unwrap();
    assert_eq!(ttl, -1, "records stay");
    let ttl: i64 = connection.ttl("t:all").await.unwrap();
    assert!((3500..=3600).contains(&ttl), "{ttl}");
    let keys: Vec<String> = connection.keys("*").await.unwrap();
    assert_eq!(keys.len(), 36, "nothing else is left: {keys:?}");

    // A worker that dies goes on where it was, with the server's own pages.
    let (rest, hits, misses) = read(spec, redis.folder.path(), Some(&second[1].position)).await;
    assert_eq!((texts(&rest), hits, misses), (ids(20..35), 0, 0));
}

#[tokio::test]
async fn what_is_in_the_cache_and_no_good_is_fetched_again() {
    let Some(redis) = Redis::start().await else {
        return;
    };
    let api = numbers(12).await;
    let mut settings = redis.settings();
    settings["cache"]["redis"]["ttl"] = "2s".into();
    let spec = api.source(settings);
    let mut connection = redis.connect().await;
    let refetched = async || {
        let (batches, hits, misses) = read(spec.clone(), redis.folder.path(), None).await;
        assert_eq!((texts(&batches), hits, misses), (ids(0..12), 0, 1));
        let (_, hits, _) = read(spec.clone(), redis.folder.path(), None).await;
        assert_eq!(hits, 1, "it is in the cache now");
    };
    // An empty result, as other programs leave it, and as a list.
    let _: () = connection.set("t:all", "[]").await.unwrap();
    refetched().await;
    let _: () = connection.del("t:all").await.unwrap();
    let _: () = connection.rpush("t:all", "").await.unwrap();
    refetched().await;
    // One whose time is over.
    while connection.exists("t:all").await.unwrap() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    refetched().await;
}

#[tokio::test]
async fn another_question_has_another_answer() {
    let Some(redis) = Redis::start().await else {
        return;
    };
    let (one, two) = (numbers(12).await, numbers(15).await);
    let path = redis.folder.path();
    let (first, ..) = read(one.source(redis.settings()), path, None).await;
    let (second, hits, _) = read(two.source(redis.settings()), path, None).await;
    assert_eq!((texts(&first), texts(&second)), (ids(0..12), ids(0..15)));
    assert_eq!(hits, 0);
}

#[tokio::test]
async fn another_account_has_other_records() {
    let Some(redis) = Redis::start().await else {
        return;
    };
    let api = numbers(12).await;
    let mut settings = redis.settings();
    settings["auth"] = json!({"bearer": {"tokenSecret": {"name": "api", "key": "token"}}});
    let spec = api.source(settings);
    for (token, expected) in [("mine", 0), ("mine", 1), ("yours", 0), ("yours", 1)] {
        // The Secret has the same name in another namespace.
        std::fs::write(redis.folder.path().join("http-token"), token).unwrap();
        let (_, hits, _) = read(spec.clone(), redis.folder.path(), None).await;
        assert_eq!(hits, expected, "{token}");
    }
}

#[tokio::test]
async fn an_empty_result_is_not_kept() {
    let Some(redis) = Redis::start().await else {
        return;
    };
    let api = numbers(0).await;
    for _ in 0..2 {
        let (batches, hits, misses) =
            read(api.source(redis.settings()), redis.folder.path(), None).await;
        assert_eq!((texts(&batches).len(), hits, misses), (0, 0, 1));
    }
    let keys: Vec<String> = redis.connect().await.keys("*").await.unwrap();
    assert!(keys.is_empty(), "{keys:?}");
}

#[tokio::test]
async fn redis_may_go_away_at_any_time_and_come_back() {
    let Some(mut redis) = Redis::start().await else {
        return;
    };
    let api = numbers(35).await;
    let mut settings = redis.settings();
    settings["poll"] = json!({"interval": "10ms"});
    settings["concurrency"] = 1.into();
    let (status, part) = status();
    let metrics = Metrics::default();
    let folder = tempfile::tempdir().unwrap();
    std::fs::copy(
        redis.folder.path().join("redis-password"),
        folder.path().join("redis-password"),
    )
    .unwrap();
    let spec = api.source(settings);
    let mut source = try_open(spec, None, folder.path(), &part, &metrics).unwrap();
    let mut pages = async |count: usize| {
        let mut batches = Vec::new();
        for _ in 0..count {
            batches.push(source.next().await.unwrap());
        }
        texts(&batches)
    };
    let hits = || metrics.stage("ingest").cache_hits.get();

    // In the middle of filling it.
    assert_eq!(pages(2).await, ids(0..20));
    redis.stop();
    assert_eq!(pages(2).await, ids(20..35));
    let report = status.report();
    assert!(report.errors.is_empty(), "{report:?}");
    let warning = &report.warnings["ingest"];
    assert!(
        warning.contains("can't be used; the records are fetched without it"),
        "{warning}"
    );
    assert!(!warning.contains(PASSWORD));

    // A whole pass without it.
    assert_eq!(pages(4).await, ids(0..35));
    assert_eq!(hits(), 0);

    // It comes back: filled, then read.
    let mut redis = Redis::start_at(redis.address.clone()).await.unwrap();
    assert_eq!(pages(4).await, ids(0..35));
    assert!(status.report().warnings.is_empty());
    assert_eq!(pages(2).await, ids(0..20));
    assert_eq!(hits(), 1);

    // In the middle of reading it: the server has the rest.
    let before = api.requests();
    redis.stop();
    assert_eq!(pages(2).await, ids(20..35));
    // The number of records, and the first page, to know it again; then two pages.
    assert_eq!(api.requests(), before + 4);
}

#[tokio::test]
async fn a_redis_that_hangs_is_not_waited_for() {
    let Some(redis) = Redis::start().await else {
        return;
    };
    let process = redis.process.id().to_string();
    let stopped = Command::new("kill").args(["-STOP", &process]).status();
    assert!(stopped.unwrap().success());
    let api = numbers(12).await;
    let started = std::time::Instant::now();
    let (batches, _, misses) = read(api.source(redis.settings()), redis.folder.path(), None).await;
    assert_eq!((texts(&batches), misses), (ids(0..12), 1));
    assert!(
        started.elapsed() < Duration::from_secs(8),
        "{:?}",
        started.elapsed()
    );
}

#[tokio::test]
async fn a_result_that_is_replaced_while_it_is_read_is_not_mixed() {
    let Some(redis) = Redis::start().await else {
        return;
    };
    let api = numbers(35).await;
    let spec = api.source(redis.settings());
    read(spec.clone(), redis.folder.path(), None).await;
    let (_, part) = status();
    let metrics = Metrics::default();
    let mut source = try_open(spec.clone(), None, redis.folder.path(), &part, &metrics).unwrap();
    let first = source.next().await.unwrap();
    let _: () = redis.connect().await.del("t:all").await.unwrap();
    read(spec, redis.folder.path(), None).await;
    let before = api.requests();
    let mut batches = vec![first];
    batches.extend(source.collect::<Vec<_>>().await);
    assert_eq!(texts(&batches), ids(0..35));
    assert_eq!(api.requests(), before + 5, "the rest is the server's");
}

#[tokio::test]
async fn redis_is_reached_by_tls_and_only_where_its_certificate_is_known() {
    // Another test may have been first.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("redis-password"), PASSWORD).unwrap();
    if certificates::make(folder.path(), "redis").is_none() {
        return;
    }
    let port = free_port().to_string();
    let address = format!("127.0.0.1:{port}");
    let listen = [
        ["--port", "0"],
        ["--tls-port", &port],
        ["--tls-cert-file", "redis.crt"],
        ["--tls-key-file", "redis.key"],
        ["--tls-ca-cert-file", "redis-ca.crt"],
        ["--tls-auth-clients", "no"],
    ];
    let Some(redis) = Redis::launch(address, folder, &listen.concat()).await else {
        return;
    };
    let api = numbers(12).await;
    let mut settings = redis.settings();
    let ca = json!({"caSecret": {"name": "redis", "key": "ca.crt"}});
    for (tls, expected) in [(ca.clone(), [0, 1]), (ca, [1, 0]), (json!({}), [0, 1])] {
        settings["cache"]["redis"]["tls"] = tls;
        let spec = api.source(settings.clone());
        let (batches, hits, misses) = read(spec, redis.folder.path(), None).await;
        assert_eq!(texts(&batches), ids(0..12));
        assert_eq!([hits, misses], expected);
    }
}

/// The licences of New York, as recorded, by count and limit and offset through Redis.
#[tokio::test]
async fn recorded_licences_come_once_from_the_server_and_once_from_the_cache() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../shared/data/nyc_dca_businesses.soda.deid.jsonl.gz");
    if !file.exists() {
        eprintln!("skipped: no recorded data");
        return;
    }
    let Some(redis) = Redis::start().await else {
        return;
    };
    let recorded = Dataset::load(&file).unwrap();
    let expected: Vec<Value> = recorded.records().to_vec();
    let url = serve(router(Apis::new(Options {
        recorded: Some(recorded),
        ..Options::default()
    })))
    .await;
    let mut settings = redis.settings();
    settings["pagination"] = json!({"limitOffset": {
        "limitParameter": "$limit", "offsetParameter": "$offset", "pageSize": 1000,
        "count": {"query": {"$select": "count(*)"}, "pointer": "/0/count"},
    }});
    settings["cache"]["redis"]["recordKey"] = "/license_nbr".into();
    let spec = source(&format!("{url}/resource/w7w3-xahh.json"), settings);
    let faults = json!({"kind": "cut", "rate": 0.2}).to_string();
    let client = reqwest::Client::new();
    client
        .post(format!("{url}/faults"))
        .body(faults)
        .send()
        .await
        .unwrap();

    for (expected_hits, expected_misses) in [(0, 1), (1, 0)] {
        let (batches, hits, misses) = read(spec.clone(), redis.folder.path(), None).await;
        assert_eq!((hits, misses), (expected_hits, expected_misses));
        let given: Vec<Value> = texts(&batches)
            .iter()
            .map(|text| serde_json::from_str(text).unwrap())
            .collect();
        assert!(given == expected, "{} of {}", given.len(), expected.len());
    }
    let numbers: BTreeSet<_> = expected
        .iter()
        .map(|record| record["license_nbr"].as_str().unwrap())
        .collect();
    assert_eq!(numbers.len(), 14_772);
    let mut connection = redis.connect().await;
    let keys: usize = redis::cmd("DBSIZE")
        .query_async(&mut connection)
        .await
        .unwrap();
    assert_eq!(keys, 14_772 + 1);
    let last = expected.last().unwrap();
    let key = format!("t:{}", last["license_nbr"].as_str().unwrap());
    let record: String = connection.get(key).await.unwrap();
    assert_eq!(serde_json::from_str::<Value>(&record).unwrap(), *last);
}
