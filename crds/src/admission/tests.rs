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
    let cases = [
        ("/sorce", json!({})),
        ("/apiVersion", json!("millstream.dev/v1")),
        ("/metadata/name", json!("Orders")),
        ("/metadata/name", json!("x".repeat(51))),
        ("/spec/paused", json!("yes")),
        ("/spec/replicas", json!(-1)),
        ("/spec/replicas", json!(1.5)),
        ("/spec/schema", json!(null)),
        ("/spec/sinks", json!([])),
        ("/spec/sinks/-", sink),
        ("/spec/source", json!({})),
        ("/spec/source/http/url", json!("ftp://example.com")),
        ("/spec/source/http/timeout", json!("soon")),
        ("/spec/source/http/query", json!({"limit": 5})),
        ("/spec/source/generator", json!({})),
        ("/spec/resources/limits/cpu", json!(true)),
    ];
    let told = cases.map(|(pointer, value)| {
        let said = said(&pipeline(pointer, value.clone())).join("\n    ");
        format!("{pointer} {value}\n    {said}")
    });
    insta::assert_snapshot!(told.join("\n"));
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
