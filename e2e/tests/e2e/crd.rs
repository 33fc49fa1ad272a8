//! What a person sees of the kinds with `kubectl` alone.

use millstream_api::{DataPipeline, Topic, condition};
use millstream_e2e::{PATIENCE, await_condition, await_reason, with_temp_namespace};
use serde_json::json;

use crate::orders::{self, ORDERS};

#[test]
fn immutable_fields_are_refused_by_kubectl_apply_itself() {
    with_temp_namespace("crd", async |namespace| {
        let mut pipeline = orders::pipeline_with(namespace, json!({"paused": true}));
        pipeline["spec"]["topic"]["replicationFactor"] = json!(1);
        namespace.apply(&pipeline.to_string()).await?;
        let topic = json!({
            "apiVersion": "millstream.dev/v1alpha1", "kind": "Topic", "metadata": {"name": "fixed"},
            "spec": {"topicName": namespace.unique("fixed"), "replicationFactor": 1},
        });
        namespace.apply(&topic.to_string()).await?;
        let keyspace = json!({
            "apiVersion": "millstream.dev/v1alpha1", "kind": "Keyspace", "metadata": {"name": "fixed"},
            "spec": {"keyspaceName": namespace.unique("fixed")},
        });
        namespace.apply(&keyspace.to_string()).await?;
        // What isn't in Kafka yet can be changed.
        await_condition::<Topic>(&namespace.api(), "fixed", condition::READY, PATIENCE).await?;
        let pipelines = namespace.api::<DataPipeline>();
        let paused = condition::reason::PAUSED;
        await_reason(&pipelines, ORDERS, condition::READY, paused, PATIENCE).await?;
        for (manifest, pointer, value, message) in [
            (
                &pipeline,
                "/spec/topic/name",
                json!("other"),
                "topic.name is immutable",
            ),
            (
                &pipeline,
                "/spec/topic/partitions",
                json!(5),
                "topic.partitions is immutable",
            ),
            (
                &pipeline,
                "/spec/topic/replicationFactor",
                json!(2),
                "topic.replicationFactor is immutable",
            ),
            (
                &topic,
                "/spec/topicName",
                json!("other"),
                "topicName is immutable",
            ),
            (
                &topic,
                "/spec/replicationFactor",
                json!(2),
                "replicationFactor is immutable",
            ),
            (
                &keyspace,
                "/spec/keyspaceName",
                json!("other"),
                "keyspaceName is immutable",
            ),
        ] {
            let mut changed = manifest.clone();
            *changed.pointer_mut(pointer).expect("the field is there") = value;
            let refusal = namespace.refused(&changed.to_string()).await?;
            assert!(refusal.contains(message), "{pointer}: {refusal}");
        }
        Ok(())
    });
}

#[test]
fn what_makes_no_sense_is_refused_by_kubectl_apply_itself() {
    with_temp_namespace("crd", async |namespace| {
        let http = json!({"url": "ftp://example.com"});
        let two_roots = json!({"name": "x", "replication": {"class": "SimpleStrategy", "datacenters": {"dc1": 1}}});
        for (spec, message) in [
            (
                json!({"source": {}}),
                "exactly one of http, file, database, topic and generator must be set",
            ),
            (json!({"source": {"http": http}}), "spec.source.http.url"),
            (json!({"replicas": -1}), "spec.replicas"),
            (json!({"sinks": []}), "spec.sinks"),
            (
                json!({"source": {"http": {"url": "http://x", "timeout": "soon"}}}),
                "spec.source.http.timeout",
            ),
            (
                json!({"source": {"http": {"url": "http://x", "pagination": {}}}}),
                "exactly one of limitOffset, pageNumber and cursor must be set",
            ),
            (
                json!({"source": {"http": {"url": "http://x", "pagination": {"cursor": {"next": "/next", "linkHeader": true}}}}}),
                "exactly one of next and linkHeader must be set",
            ),
            (
                json!({"source": {"http": {"url": "http://x", "auth": {"apiKey": {"secret": {"name": "x", "key": "x"}}}}}}),
                "exactly one of header and query must be set",
            ),
        ] {
            let refusal = namespace
                .refused(&orders::pipeline_with(namespace, spec).to_string())
                .await?;
            assert!(refusal.contains(message), "{message}: {refusal}");
        }
        let keyspace = json!({
            "apiVersion": "millstream.dev/v1alpha1", "kind": "Keyspace", "metadata": {"name": "mixed"},
            "spec": {"replication": two_roots["replication"]},
        });
        let refusal = namespace.refused(&keyspace.to_string()).await?;
        assert!(
            refusal.contains("SimpleStrategy takes replicationFactor"),
            "{refusal}"
        );
        let mut long = orders::pipeline(namespace);
        long["metadata"]["name"] = "x".repeat(51).into();
        let refusal = namespace.refused(&long.to_string()).await?;
        assert!(refusal.contains("50 characters at most"), "{refusal}");
        Ok(())
    });
}

#[test]
fn kubectl_get_shows_what_matters() {
    with_temp_namespace("crd", async |namespace| {
        namespace
            .apply(&orders::pipeline(namespace).to_string())
            .await?;
        namespace.ready(ORDERS).await?;
        // Its source has nothing to give.
        let pipelines = namespace.api::<DataPipeline>();
        await_condition(&pipelines, ORDERS, condition::SUCCEEDED, PATIENCE).await?;
        let shown = namespace.kubectl(&["get", "dp"]).await?.ok()?;
        let mut lines = shown
            .lines()
            .map(|line| line.split_whitespace().collect::<Vec<_>>());
        let header = lines.next().unwrap_or_default();
        assert_eq!(
            header,
            ["NAME", "READY", "REASON", "REPLICAS", "LAG", "ROWS", "AGE"]
        );
        let row = lines.next().unwrap_or_default();
        assert_eq!(
            row[..6],
            [ORDERS, "True", "Succeeded", "1", "0", "0"],
            "{shown}"
        );

        for (name, header) in [
            ("mtopic", "PARTITIONS"),
            ("ks", "TABLES"),
            ("datapipelines", "LAG"),
        ] {
            let shown = namespace.kubectl(&["get", name]).await?.ok()?;
            assert!(
                shown.contains(header) && shown.contains("True"),
                "{name}: {shown}"
            );
        }
        let category = namespace
            .kubectl(&["get", "millstream", "-o", "name"])
            .await?
            .ok()?;
        for resource in [
            "datapipeline.millstream.dev/orders",
            "topic.millstream.dev/",
            "keyspace.millstream.dev/",
        ] {
            assert!(
                category.contains(resource),
                "{resource} isn't in {category}"
            );
        }
        let all = namespace
            .kubectl(&["get", "all", "-o", "name"])
            .await?
            .ok()?;
        assert!(!all.contains("millstream.dev"), "never in `all`: {all}");
        Ok(())
    });
}
