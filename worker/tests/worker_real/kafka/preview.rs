//! `preview` of a pipeline whose source is a topic.

use std::{
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use rdkafka::{
    ClientConfig, Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer},
};
use serde_json::{Value, json};

use super::{
    registry,
    upstream::{Upstream, plain},
};
use crate::support::Environment;

/// What `preview` says.
pub struct Previewed {
    /// What it prints; null where it fails.
    pub json: Value,
    /// Notes and errors.
    pub told: String,
    pub took: Duration,
}

impl Previewed {
    /// The ids of the rows, in their order by number.
    pub fn ids(&self) -> Vec<i64> {
        let rows = self.json["sinks"][0]["rows"].as_array();
        let rows = rows.unwrap_or_else(|| panic!("{}", self.told));
        let mut ids: Vec<_> = rows.iter().map(|row| row["id"].as_i64().unwrap()).collect();
        ids.sort_unstable();
        ids
    }
}

/// Previews a pipeline of numbered records, with this in its spec. The credentials are in the folder.
pub fn preview(folder: &Path, spec: Value, arguments: &[&str]) -> Previewed {
    let mut pipeline = json!({
        "apiVersion": "millstream.dev/v1alpha1",
        "kind": "DataPipeline",
        "metadata": {"name": "numbers"},
        "spec": {
            "schema": "id BIGINT, name TEXT",
            "sinks": [{
                "name": "numbers", "sql": "SELECT id, name FROM records",
                "cassandra": {"keyspace": "k", "table": "t", "primaryKey": {"partitionKey": ["id"]}},
            }],
        },
    });
    for (name, value) in spec.as_object().unwrap() {
        pipeline["spec"][name] = value.clone();
    }
    let file = folder.join("pipeline.yaml");
    std::fs::write(&file, pipeline.to_string()).unwrap();
    let started = Instant::now();
    let output = Command::new(env!("CARGO_BIN_EXE_millstream-worker"))
        .arg("preview")
        .arg("-f")
        .arg(file)
        .arg("--credentials-dir")
        .arg(folder)
        .args(["-o", "json"])
        .args(arguments)
        .output()
        .unwrap();
    Previewed {
        json: serde_json::from_slice(&output.stdout).unwrap_or_default(),
        told: String::from_utf8(output.stderr).unwrap(),
        took: started.elapsed(),
    }
}

fn spec(environment: &Environment, topic: Value) -> Value {
    let servers = environment.json["kafka"].as_str().unwrap();
    json!({"kafka": {"bootstrapServers": servers}, "source": {"topic": topic}})
}

/// Whether a group of the worker has committed anything.
async fn is_read_by_a_group(config: ClientConfig, topic: &str) -> bool {
    let topic = topic.to_owned();
    let looked = tokio::task::spawn_blocking(move || {
        let mut config = config;
        config.set("group.id", "millstream-source");
        let consumer: BaseConsumer = config.create().unwrap();
        let mut list = TopicPartitionList::new();
        list.add_partition_range(&topic, 0, 1);
        let committed = consumer.committed_offsets(list, Duration::from_secs(10));
        let committed = committed.unwrap();
        let offsets = committed.elements().into_iter().map(|known| known.offset());
        offsets.into_iter().any(|offset| offset != Offset::Invalid)
    });
    looked.await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_is_read_up_to_its_end_and_no_trace_is_left() {
    let Some(environment) = Environment::find().await else {
        return;
    };
    let upstream = Upstream::create(plain(&environment), 2).await;
    upstream.write_ids(0, 0..5).await;
    upstream.write([(0, None), (0, Some(b"7".to_vec()))]).await;
    upstream.write_ids(1, 5..10).await;
    let folder = tempfile::tempdir().unwrap();
    let mut spec = spec(&environment, json!({"name": upstream.name}));
    // Nothing that a run waits for is waited for.
    spec["schedule"] = json!({"cron": "0 4 1 1 *"});
    spec["after"] = json!(["others"]);
    let seen = preview(folder.path(), spec.clone(), &["--limit", "1000"]);
    assert_eq!(seen.ids(), (0..10).collect::<Vec<_>>());
    let reason = "partition 0, offset 5: the record is a tombstone: it has no value";
    assert_eq!(
        seen.json["unreadable"],
        json!([{"record": "", "reason": reason}])
    );
    let refused = json!([{"record": "7", "reason": "the record isn't a JSON object"}]);
    assert_eq!(seen.json["refused"], refused);
    // It doesn't wait for what isn't there.
    assert!(seen.took < Duration::from_secs(60), "{:?}", seen.took);

    let few = preview(folder.path(), spec, &["--limit", "3"]);
    assert_eq!(few.ids().len(), 3);
    assert!(!is_read_by_a_group(plain(&environment), &upstream.name).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_records_of_a_topic_can_be_looked_at() {
    let Some(environment) = Environment::find().await else {
        return;
    };
    let upstream = Upstream::create(plain(&environment), 1).await;
    upstream.write_ids(0, 0..50).await;
    let folder = tempfile::tempdir().unwrap();
    let earliest = spec(&environment, json!({"name": upstream.name}));
    let latest = spec(
        &environment,
        json!({"name": upstream.name, "start": "latest"}),
    );
    let seen = preview(folder.path(), earliest.clone(), &["--limit", "4"]);
    assert_eq!(seen.ids(), [0, 1, 2, 3]);
    let seen = preview(folder.path(), earliest, &["--limit", "4", "--latest"]);
    assert_eq!(seen.ids(), [46, 47, 48, 49]);
    let seen = preview(folder.path(), latest, &["--limit", "4"]);
    assert_eq!(seen.ids(), [46, 47, 48, 49]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_without_records_and_one_that_is_not_there_are_told() {
    let Some(environment) = Environment::find().await else {
        return;
    };
    let upstream = Upstream::create(plain(&environment), 2).await;
    let folder = tempfile::tempdir().unwrap();
    let empty = preview(
        folder.path(),
        spec(&environment, json!({"name": upstream.name})),
        &[],
    );
    assert_eq!(empty.told, "error: the source ended without a record\n");
    let unknown = spec(&environment, json!({"name": "nobody-makes-this"}));
    let unknown = preview(folder.path(), unknown, &["--timeout", "3s"]);
    for says in [
        "note: can't read the topic nobody-makes-this at ",
        "error: no record within 3s: can't read the topic nobody-makes-this at ",
    ] {
        assert!(unknown.told.contains(says), "{}", unknown.told);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn raw_and_avro_records_can_be_looked_at() {
    let Some(environment) = Environment::find().await else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let upstream = Upstream::create(plain(&environment), 1).await;
    upstream
        .write([(0, Some(vec![0xfe, 0xff])), (0, None)])
        .await;
    let raw = json!({"name": upstream.name, "encoding": "raw"});
    let mut spec_of_raw = spec(&environment, raw);
    spec_of_raw["schema"] = json!("offset BIGINT, valueBase64 TEXT");
    spec_of_raw["sinks"] = json!([{
        "name": "raw", "sql": "SELECT offset AS id, valueBase64 AS value FROM records",
        "cassandra": {"keyspace": "k", "table": "t", "primaryKey": {"partitionKey": ["id"]}},
    }]);
    let seen = preview(folder.path(), spec_of_raw, &[]);
    let rows = json!([{"id": 0, "value": "/v8="}, {"id": 1, "value": null}]);
    assert_eq!(seen.json["sinks"][0]["rows"], rows, "{}", seen.told);

    let Some(url) = registry::url(&environment) else {
        return;
    };
    let upstream = Upstream::create(plain(&environment), 1).await;
    let schema = json!({"type": "record", "name": "Thing", "fields": [
        {"name": "id", "type": "int"}, {"name": "name", "type": "string"},
    ]});
    let id = registry::register(&url, &format!("{}-value", upstream.name), &schema).await;
    let framed = |value: &[u8]| Some([&[0], &id.to_be_bytes()[..], value].concat());
    let records = [
        (0, framed(&[2, 2, b'x'])),
        (0, framed(&[6, 9])),
        (0, framed(&[4, 2, b'y'])),
    ];
    upstream.write(records).await;
    let mut spec = spec(
        &environment,
        json!({"name": upstream.name, "encoding": "avro"}),
    );
    spec["schemaRegistry"] = json!({"url": url});
    let seen = preview(folder.path(), spec, &[]);
    assert_eq!(seen.ids(), [1, 2]);
    let reason = seen.json["unreadable"][0]["reason"].as_str().unwrap();
    let says = format!("partition 0, offset 1: the record doesn't fit its schema {id}");
    assert!(reason.starts_with(&says), "{reason}");
}
