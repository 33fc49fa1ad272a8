//! A Topic resource is what is in Kafka: created, adopted, grown, configured; never shrunk.

use std::time::Duration;

use anyhow::{Result, ensure};
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use millstream_api::{Topic, condition};
use millstream_e2e::{
    Namespace, PATIENCE, await_condition, await_reason, eventually, with_temp_namespace,
};
use serde_json::{Value, json};

use crate::orders;

fn topic(name: &str, spec: Value) -> String {
    let (api, metadata) = ("millstream.dev/v1alpha1", json!({"name": name}));
    json!({"apiVersion": api, "kind": "Topic", "metadata": metadata, "spec": spec}).to_string()
}

async fn ready(namespace: &Namespace, name: &str) -> Result<Topic> {
    await_condition(&namespace.api(), name, condition::READY, PATIENCE).await
}

async fn config_becomes(namespace: &Namespace, topic: &str, key: &str, value: &str) -> Result<()> {
    eventually(PATIENCE, async || {
        let found = namespace.kafka.config(topic, key).await?;
        ensure!(found == value, "{key} is {found}");
        Ok(())
    })
    .await
}

#[test]
fn a_topic_is_created_grown_configured_and_never_shrunk() {
    with_temp_namespace("topic", async |namespace| {
        let name = namespace.unique("created");
        let spec = |partitions: u32, retention: &str| {
            json!({
                "topicName": name, "partitions": partitions, "replicationFactor": 1,
                "config": {"retention.ms": retention},
            })
        };
        namespace
            .apply(&topic("created", spec(3, "3600000")))
            .await?;
        let status = ready(namespace, "created")
            .await?
            .status
            .unwrap_or_default();
        assert_eq!(namespace.kafka.partitions(&name)?, Some(3));
        assert_eq!(
            namespace.kafka.config(&name, "retention.ms").await?,
            "3600000"
        );
        assert_eq!(
            (status.partitions, status.replication_factor),
            (Some(3), Some(1))
        );
        assert_eq!(status.topic_name.as_deref(), Some(name.as_str()));
        assert!(status.topic_id.is_some_and(|id| !id.is_empty()));
        // A write timestamp from which no later one can be overtaken: now, in microseconds.
        let age = Timestamp::now().as_microsecond() - status.timestamp_base.unwrap_or_default();
        assert!(
            (0..600_000_000).contains(&age),
            "the timestamp base is {age} µs old"
        );

        namespace
            .apply(&topic("created", spec(5, "7200000")))
            .await?;
        let status = ready(namespace, "created")
            .await?
            .status
            .unwrap_or_default();
        assert_eq!(namespace.kafka.partitions(&name)?, Some(5));
        assert_eq!(status.partitions, Some(5));
        assert_eq!(
            namespace.kafka.config(&name, "retention.ms").await?,
            "7200000"
        );

        let refusal = namespace
            .refused(&topic("created", spec(4, "7200000")))
            .await?;
        assert!(
            refusal.contains("partitions may grow, never shrink"),
            "{refusal}"
        );
        assert_eq!(namespace.kafka.partitions(&name)?, Some(5));
        Ok(())
    });
}

#[test]
fn an_existing_topic_is_adopted_and_what_is_not_listed_is_left_alone() {
    with_temp_namespace("topic", async |namespace| {
        let name = namespace.unique("adopted");
        let config = [("retention.ms", "1000000"), ("segment.bytes", "1048576")];
        namespace.kafka.create_topic(&name, 6, &config).await?;
        namespace.kafka.produce(&name, orders::plain(0..10)).await?;
        let spec =
            json!({"topicName": name, "partitions": 2, "config": {"retention.ms": "2000000"}});
        namespace.apply(&topic("adopted", spec)).await?;
        let status = ready(namespace, "adopted")
            .await?
            .status
            .unwrap_or_default();
        assert_eq!(status.partitions, Some(6), "the status shows what is there");
        assert_eq!(
            namespace.kafka.partitions(&name)?,
            Some(6),
            "it isn't shrunk"
        );
        assert_eq!(
            namespace.kafka.config(&name, "retention.ms").await?,
            "2000000"
        );
        assert_eq!(
            namespace.kafka.config(&name, "segment.bytes").await?,
            "1048576"
        );

        // Somebody changes both: the listed one is put right, the other is theirs.
        let drift = [("retention.ms", "5000000"), ("segment.bytes", "2097152")];
        namespace.kafka.set_config(&name, &drift).await?;
        config_becomes(namespace, &name, "retention.ms", "2000000").await?;
        assert_eq!(
            namespace.kafka.config(&name, "segment.bytes").await?,
            "2097152"
        );
        eventually(PATIENCE, async || {
            let status = namespace
                .api::<Topic>()
                .get("adopted")
                .await?
                .status
                .unwrap_or_default();
            let drift = status.last_drift.unwrap_or_default();
            ensure!(
                drift.contains("retention.ms"),
                "the last drift is `{drift}`"
            );
            Ok(())
        })
        .await?;
        assert_eq!(
            namespace.kafka.records(&name)?,
            10,
            "the records are untouched"
        );
        Ok(())
    });
}

#[test]
fn the_deletion_policy_decides_what_stays_in_kafka() {
    with_temp_namespace("topic", async |namespace| {
        let (kept, removed) = (namespace.unique("kept"), namespace.unique("removed"));
        namespace
            .apply(&topic("kept", json!({"topicName": kept})))
            .await?;
        let spec = json!({"topicName": removed, "deletionPolicy": "Delete"});
        namespace.apply(&topic("removed", spec)).await?;
        for name in ["kept", "removed"] {
            ready(namespace, name).await?;
        }
        let finalizers = namespace
            .api::<Topic>()
            .get("kept")
            .await?
            .finalizers()
            .to_vec();
        assert!(
            finalizers.is_empty(),
            "Retain needs no finalizer: {finalizers:?}"
        );
        namespace
            .kubectl(&["delete", "topics.millstream.dev", "kept", "removed"])
            .await?
            .ok()?;
        assert_eq!(
            namespace.kafka.partitions(&removed)?,
            None,
            "it goes before the resource goes"
        );
        assert_eq!(namespace.kafka.partitions(&kept)?, Some(1));
        Ok(())
    });
}

#[test]
fn of_two_claims_on_one_topic_the_older_wins() {
    with_temp_namespace("topic", async |namespace| {
        let name = namespace.unique("claimed");
        namespace
            .apply(&topic("older", json!({"topicName": name, "partitions": 2})))
            .await?;
        let older = ready(namespace, "older").await?;
        // Kubernetes counts age in seconds.
        let created = older
            .creation_timestamp()
            .map(|time| time.0)
            .unwrap_or_default();
        eventually(PATIENCE, async || {
            ensure!(
                Timestamp::now().duration_since(created).as_secs() > 1,
                "the same second"
            );
            Ok(())
        })
        .await?;
        namespace
            .apply(&topic("newer", json!({"topicName": name, "partitions": 9})))
            .await?;
        let topics = namespace.api::<Topic>();
        let conflict = condition::reason::RESOURCE_CONFLICT;
        let message = await_reason(&topics, "newer", condition::READY, conflict, PATIENCE).await?;
        assert!(
            message.contains("older"),
            "the message names the other claim: {message}"
        );
        assert_eq!(namespace.kafka.partitions(&name)?, Some(2));
        ready(namespace, "older").await?;

        namespace
            .kubectl(&["delete", "topics.millstream.dev", "older"])
            .await?
            .ok()?;
        ready(namespace, "newer").await?;
        assert_eq!(namespace.kafka.partitions(&name)?, Some(9));
        Ok(())
    });
}

#[test]
fn a_topic_that_was_made_anew_gets_a_new_identity() {
    with_temp_namespace("topic", async |namespace| {
        let name = namespace.unique("renewed");
        namespace
            .apply(&topic("renewed", json!({"topicName": name})))
            .await?;
        let first = ready(namespace, "renewed")
            .await?
            .status
            .unwrap_or_default();
        namespace.kafka.delete_topic(&name).await?;
        let second = eventually(PATIENCE + Duration::from_secs(30), async || {
            let status = namespace
                .api::<Topic>()
                .get("renewed")
                .await?
                .status
                .unwrap_or_default();
            ensure!(
                status.topic_id != first.topic_id,
                "the topic id is the same"
            );
            Ok(status)
        })
        .await?;
        assert!(second.topic_id.is_some());
        assert!(
            second.timestamp_base > first.timestamp_base,
            "its rows are newer than the old topic's"
        );
        ready(namespace, "renewed").await?;
        assert_eq!(namespace.kafka.partitions(&name)?, Some(1));
        Ok(())
    });
}
