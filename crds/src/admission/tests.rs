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
            "/spec/after",
            json!(["b", "a", "b"]),
            "spec.after[2]: b is there twice",
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

/// What the rules say of a change.
fn said_of_change(from: &Value, to: &Value) -> Vec<String> {
    let definitions = custom_resource_definitions();
    let mut definitions = definitions.iter();
    let definition = definitions.find(|definition| definition.spec.names.kind == to["kind"]);
    let schema = schema_of(definition.unwrap(), to, &mut Vec::new()).unwrap();
    let schema = serde_json::to_value(schema).unwrap();
    let (from, to) = (without_nulls(from.clone()), without_nulls(to.clone()));
    let errors = Validator::new().validate(&schema, &to, Some(&from)).err();
    let errors = errors.into_iter().flatten();
    errors.map(|error| error.message).collect()
}

#[test]
fn a_topic_is_held_to_what_is_in_kafka() {
    let refused = json!({"topicName": "t", "conditions": []});
    let there = json!({"topicId": "1", "partitions": 4, "replicationFactor": 1});
    let (partitions, replicas) = ("partitions may grow", "replicationFactor is immutable");
    for (field, from, to, status, says) in [
        ("partitions", json!(4), json!(2), &json!(null), None),
        ("partitions", json!(4), json!(2), &refused, None),
        ("partitions", json!(8), json!(4), &there, None),
        ("partitions", json!(8), json!(3), &there, Some(partitions)),
        ("partitions", json!(4), json!(3), &there, Some(partitions)),
        ("partitions", json!(2), json!(1), &there, Some(partitions)),
        ("partitions", json!(4), json!(5), &there, None),
        ("replicationFactor", json!(3), json!(1), &json!(null), None),
        ("replicationFactor", json!(3), json!(1), &refused, None),
        ("replicationFactor", json!(3), json!(null), &refused, None),
        ("replicationFactor", json!(3), json!(1), &there, None),
        ("replicationFactor", json!(3), json!(null), &there, None),
        ("replicationFactor", json!(3), json!(3), &there, None),
        (
            "replicationFactor",
            json!(1),
            json!(3),
            &there,
            Some(replicas),
        ),
        (
            "replicationFactor",
            json!(null),
            json!(2),
            &there,
            Some(replicas),
        ),
    ] {
        let topic = |value: &Value| {
            json!({
                "apiVersion": "millstream.dev/v1alpha1", "kind": "Topic", "metadata": {"name": "t"},
                "spec": {field: value}, "status": status,
            })
        };
        let changed = said_of_change(&topic(&from), &topic(&to));
        let matches = match says {
            Some(says) => changed.len() == 1 && changed[0].contains(says),
            None => changed.is_empty(),
        };
        assert!(matches, "{field} {from} → {to}, {status}: {changed:?}");
        assert_eq!(said(&topic(&to)), [""; 0], "a new one");
    }
}

#[test]
fn the_topic_of_a_pipeline_is_settled_once_sinks_have_a_place_in_it() {
    let pipeline = |topic: &Value, status: &Value| {
        let mut pipeline = pipeline("/spec/topic", topic.clone());
        pipeline["status"] = status.clone();
        pipeline
    };
    let before = json!({"partitions": 4, "replicationFactor": 3});
    for (after, says) in [
        (
            json!({"partitions": 2, "replicationFactor": 3}),
            "topic.partitions is immutable",
        ),
        (
            json!({"partitions": 4, "replicationFactor": 1}),
            "topic.replicationFactor is immutable",
        ),
        (
            json!({"partitions": 4}),
            "topic.replicationFactor is immutable",
        ),
        (json!(null), "topic.replicationFactor is immutable"),
    ] {
        for status in [json!(null), json!({"conditions": []})] {
            let said = said_of_change(&pipeline(&before, &status), &pipeline(&after, &status));
            assert_eq!(said, [""; 0], "{after}");
        }
        let status = json!({"topicId": "1"});
        let said = said_of_change(&pipeline(&before, &status), &pipeline(&after, &status));
        assert!(
            said.len() == 1 && said[0].contains(says),
            "{after}: {said:?}"
        );
        let said = said_of_change(&pipeline(&after, &status), &pipeline(&after, &status));
        assert_eq!(said, [""; 0], "{after}");
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
