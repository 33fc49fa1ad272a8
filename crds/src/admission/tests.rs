use serde_json::json;

use super::*;
use crate::custom_resource_definitions;

/// A pipeline in which nothing is wrong, with a change.
fn pipeline(pointer: &str, value: Value) -> Value {
    let mut pipeline = json!({
        "apiVersion": "millstream.dev/v1alpha1",
        "kind": "DataPipeline",
        "metadata": {"name": "orders", "labels": {"team": "shop"}},
        "spec": {
            "source": {"http": {"url": "http://x", "query": {"q": "1"}}},
            "schema": "id UUID",
            "resources": {"limits": {"cpu": 1, "memory": "1Gi"}},
            "sinks": [{
                "name": "a",
                "sql": "SELECT id FROM records",
                "cassandra": {"keyspace": "k", "table": "t"},
            }],
        },
    });
    let (parent, name) = pointer.rsplit_once('/').unwrap_or_default();
    match pipeline.pointer_mut(parent) {
        Some(Value::Array(items)) => items.push(value),
        Some(Value::Object(fields)) if !name.is_empty() => {
            fields.insert(name.into(), value);
        }
        _ => {}
    }
    pipeline
}

fn said(resource: &Value) -> Vec<String> {
    let definitions = custom_resource_definitions();
    let definition = definitions
        .iter()
        .find(|definition| definition.spec.names.kind == resource["kind"])
        .unwrap();
    admit(definition, resource)
        .iter()
        .map(Violation::to_string)
        .collect()
}

#[test]
fn lets_in_what_is_right() {
    for (pointer, value) in [
        ("", json!(null)),
        ("/spec/topic", json!(null)),
        (
            "/spec/topic",
            json!({"partitions": 4.0, "config": {"retention.ms": "1"}}),
        ),
        ("/spec/kafka", json!(null)),
        ("/status", json!({"lag": 3})),
    ] {
        assert_eq!(said(&pipeline(pointer, value)), [""; 0], "{pointer}");
    }
}

#[test]
fn says_which_field_is_wrong_and_why() {
    let sink = json!({"name": "a", "sql": "", "cassandra": {"keyspace": "K", "table": "t", "consistency": "TWO"}});
    for (pointer, value, says) in [
        ("/sorce", json!({}), "sorce: unknown field; there are"),
        (
            "/apiVersion",
            json!("millstream.dev/v1"),
            "apiVersion: there is no `millstream.dev/v1`",
        ),
        (
            "/metadata/name",
            json!("Orders"),
            "metadata.name: `Orders` can't be a name",
        ),
        (
            "/metadata/name",
            json!("x".repeat(51)),
            "50 characters at most",
        ),
        (
            "/spec/paused",
            json!("yes"),
            "spec.paused: must be a boolean, and is a string",
        ),
        (
            "/spec/replicas",
            json!(-1),
            "spec.replicas: must be at least 0, and is -1",
        ),
        (
            "/spec/replicas",
            json!(1.5),
            "spec.replicas: must be an integer, and is a number",
        ),
        (
            "/spec/schema",
            json!(null),
            "spec.schema: must be a string, and is null",
        ),
        (
            "/spec/sinks",
            json!([]),
            "spec.sinks: must have at least 1 items, and has 0",
        ),
        (
            "/spec/sinks/-",
            sink.clone(),
            "spec.sinks[1]: a is there twice",
        ),
        (
            "/spec/sinks/-",
            sink.clone(),
            "spec.sinks[1].sql: must have at least 1 characters",
        ),
        (
            "/spec/sinks/-",
            sink.clone(),
            "spec.sinks[1].cassandra.keyspace: `K` must match",
        ),
        ("/spec/sinks/-", sink, "consistency: must be one of ONE, "),
        ("/spec/source", json!({}), "spec.source: exactly one of"),
        (
            "/spec/serve",
            json!({"endpoints": [{"name": "e", "path": "/e"}]}),
            "spec.serve.endpoints[0]: exactly one of cql and sql must be set",
        ),
        (
            "/spec/serve",
            json!({"endpoints": [{"name": "e", "path": "/e", "sql": "s", "transform": "t"}]}),
            "spec.serve.endpoints[0]: transform goes with cql",
        ),
        (
            "/spec/source/http/url",
            json!("ftp://example.com"),
            "spec.source.http.url: `ftp://example.com` must match",
        ),
        (
            "/spec/source/http/timeout",
            json!("soon"),
            "spec.source.http.timeout: `soon` must match",
        ),
        (
            "/spec/source/http/query",
            json!({"limit": 5}),
            "spec.source.http.query.limit: must be a string, and is an integer",
        ),
        (
            "/spec/source/generator",
            json!({}),
            "spec.source: exactly one of",
        ),
        (
            "/spec/source/http/tls",
            json!({"caSecret": {"name": "shop", "key": "ca.crt"}}),
            "spec.source.http: tls goes with a url that begins with https://",
        ),
        (
            "/spec/source",
            json!({"file": {"path": "/a", "tls": {"caSecret": {"name": "shop", "key": "ca.crt"}}}}),
            "spec.source.file: tls goes with a url that begins with https://",
        ),
        (
            "/spec/resources/limits/cpu",
            json!(true),
            "spec.resources.limits.cpu: must be an integer or a string",
        ),
    ] {
        let said = said(&pipeline(pointer, value));
        assert!(
            said.iter().any(|said| said.contains(says)),
            "{pointer}: {said:?}"
        );
    }
}

#[test]
fn rules_of_keyspaces_hold_too() {
    let keyspace = json!({
        "apiVersion": "millstream.dev/v1alpha1", "kind": "Keyspace", "metadata": {"name": "mixed"},
        "spec": {"replication": {"class": "SimpleStrategy", "datacenters": {"dc1": 1}}},
    });
    assert_eq!(
        said(&keyspace),
        [
            "spec.replication: SimpleStrategy takes replicationFactor, NetworkTopologyStrategy takes datacenters"
        ]
    );
}
