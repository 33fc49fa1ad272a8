//! Files in an object store that speaks S3. Skipped where `MILLSTREAM_S3` names none: its URL, with
//! any keys accepted.

use crate::files::{packed, records, schema, status, texts, written};
use futures::StreamExt;
use millstream_plan::{RecordSchema, SinkPlan, plan_lookups};
use millstream_worker::{
    budget::ANSWERS,
    config::Credentials,
    lookup,
    metrics::Metrics,
    source::{Opening, SourceBatch, file},
};
use object_store::{
    ObjectStoreExt,
    aws::{AmazonS3, AmazonS3Builder},
    path::Path as Key,
};
use serde_json::{Value, json};

/// A bucket of the test's own.
struct Bucket {
    endpoint: String,
    name: String,
    store: AmazonS3,
    secrets: tempfile::TempDir,
}

impl Bucket {
    async fn create() -> Option<Self> {
        let Ok(endpoint) = std::env::var("MILLSTREAM_S3") else {
            eprintln!("skipped: MILLSTREAM_S3 names no object store");
            return None;
        };
        let name = format!("millstream-{}", uuid::Uuid::new_v4().simple());
        let made = reqwest::Client::new()
            .put(format!("{endpoint}/{name}"))
            .send()
            .await
            .unwrap();
        assert!(made.status().is_success(), "{made:?}");
        let store = AmazonS3Builder::new()
            .with_endpoint(&endpoint)
            .with_allow_http(true)
            .with_bucket_name(&name)
            .with_region("us-east-1")
            .with_access_key_id("id")
            .with_secret_access_key("secret")
            .build()
            .unwrap();
        let secrets = tempfile::tempdir().unwrap();
        for place in ["file", "landing", "lookup-l-file"] {
            for key in ["access-key-id", "secret-access-key"] {
                std::fs::write(secrets.path().join(format!("{place}-s3-{key}")), "x").unwrap();
            }
        }
        Some(Bucket {
            endpoint,
            name,
            store,
            secrets,
        })
    }

    async fn put(&self, key: &str, bytes: Vec<u8>) {
        self.store.put(&Key::from(key), bytes.into()).await.unwrap();
    }

    fn spec(&self) -> Value {
        let secret = json!({"name": "s3", "key": "any"});
        json!({
            "bucket": self.name, "endpoint": self.endpoint, "allowHttp": true,
            "accessKeyIdSecret": secret, "secretAccessKeySecret": secret,
        })
    }

    async fn collect(&self, spec: &Value, position: Option<&Value>) -> Vec<SourceBatch> {
        let (status, part) = status();
        let opening = Opening {
            schema: schema(),
            credentials: &Credentials::new(self.secrets.path().to_owned()),
            position,
            status: &part,
            metrics: &Metrics::default().stage("ingest"),
            connections: None,
            answers: ANSWERS,
        };
        let source = file::open(serde_json::from_value(spec.clone()).unwrap(), &opening).unwrap();
        let limit = std::time::Duration::from_secs(60);
        match tokio::time::timeout(limit, source.collect()).await {
            Ok(batches) => batches,
            Err(_) => panic!("{:?}", status.report()),
        }
    }
}

fn values(batches: &[SourceBatch]) -> Vec<Value> {
    let texts = texts(batches);
    let values = texts.iter().map(|text| serde_json::from_str(text).unwrap());
    values.collect()
}

#[tokio::test]
async fn objects_below_a_prefix_come_in_order_and_resume() {
    let Some(bucket) = Bucket::create().await else {
        return;
    };
    let all = records(2_000);
    let part = |from: usize, to: usize| written("ndjson", &all[from..to]);
    bucket.put("in/2.ndjson", part(700, 1_500)).await;
    bucket
        .put("in/1.ndjson.gz", packed("gzip", "", &part(0, 700)))
        .await;
    bucket
        .put("in/3/x.zip", packed("zip", "x.ndjson", &part(1_500, 2_000)))
        .await;
    bucket.put("inner/9.ndjson", part(0, 1)).await;
    let mut spec = json!({"s3": bucket.spec()});
    spec["s3"]["prefix"] = "in".into();
    let batches = bucket.collect(&spec, None).await;
    assert_eq!(values(&batches), all);
    for (index, batch) in batches.iter().enumerate() {
        let rest = bucket.collect(&spec, Some(&batch.position)).await;
        assert_eq!(rest, batches[index + 1..]);
    }
}

#[tokio::test]
async fn an_object_is_landed_in_a_bucket_and_read_again() {
    let Some(bucket) = Bucket::create().await else {
        return;
    };
    // More than one part of an upload.
    let text = written("ndjson", &records(100_000));
    assert!(text.len() > 5 << 20);
    bucket.put("in/r.ndjson", text.clone()).await;
    let mut spec = json!({"s3": bucket.spec(), "landingZone": {"s3": bucket.spec()}});
    spec["s3"]["key"] = "in/r.ndjson".into();
    spec["landingZone"]["s3"]["prefix"] = "landing/".into();
    let batches = bucket.collect(&spec, None).await;
    assert_eq!(values(&batches), records(100_000));
    let landed = batches[0].position["landed"].as_str().unwrap();
    let key = Key::from(format!("landing/{landed}/r.ndjson"));
    let kept = bucket.store.get(&key).await.unwrap().bytes().await.unwrap();
    assert!(kept == text);

    bucket.put("in/r.ndjson", b"{}".to_vec()).await;
    let rest = bucket.collect(&spec, Some(&batches[3].position)).await;
    assert_eq!(rest, batches[4..]);
}

#[tokio::test]
async fn a_lookup_is_read_from_a_bucket() {
    let Some(bucket) = Bucket::create().await else {
        return;
    };
    let all = records(2_000);
    for (key, part) in [("in/1.ndjson", &all[..700]), ("in/2.ndjson", &all[700..])] {
        bucket.put(key, written("ndjson", part)).await;
    }
    let mut spec = json!({"name": "l", "schema": schema(), "file": {"s3": bucket.spec()}});
    spec["file"]["s3"]["prefix"] = "in/".into();
    let specs: Vec<millstream_api::Lookup> = vec![serde_json::from_value(spec).unwrap()];
    let schema = RecordSchema::parse("id TEXT").unwrap();
    let sql = "SELECT r.id, l.count FROM records r LEFT JOIN l ON r.id = l.id";
    let plan = SinkPlan::joining(&schema, &plan_lookups(&specs).unwrap(), "s", sql).unwrap();
    let plans = [plan];
    let credentials = Credentials::new(bucket.secrets.path().to_owned());
    let loaders = lookup::loaders(&specs, &plans, None, &credentials).unwrap();
    loaders[0].load_once().await.unwrap();
    assert_eq!(lookup::joined(&loaders, &plans[0]).now()["l"].rows(), 2_000);
}
