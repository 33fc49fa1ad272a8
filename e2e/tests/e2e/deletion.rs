//! Deleting: what stays, what goes, and that it always comes to an end.

use std::time::{Duration, Instant};

use anyhow::ensure;
use millstream_api::condition::{READY, reason};
use millstream_api::{DataPipeline, Topic};
use millstream_e2e::{
    PATIENCE, StoppedServices, alone_in_temp_namespace, await_reason, eventually,
    with_temp_namespace,
};
use serde_json::json;

use crate::orders::{self, ORDERS};

#[test]
fn retain_keeps_the_records_and_the_rows() {
    with_temp_namespace("retain", async |namespace| {
        let (topic, table) = (orders::topic(namespace), orders::table(namespace));
        let manifest = orders::pipeline(namespace).to_string();
        namespace.apply(&manifest).await?;
        namespace.ready(ORDERS).await?;
        orders::store(namespace, 0..100).await?;

        namespace
            .kubectl(&["delete", "datapipeline", ORDERS])
            .await?
            .ok()?;
        namespace.ready_pods(ORDERS, "process", 0).await?;
        assert_eq!(namespace.kafka.records(&topic)?, 100);
        assert_eq!(namespace.cassandra.count(&table).await?, 100);

        // Applied again, it goes on with what is there: the rows once, the new ones with them.
        namespace.apply(&manifest).await?;
        namespace.ready(ORDERS).await?;
        orders::store(namespace, 100..150).await?;
        assert_eq!(namespace.cassandra.count(&table).await?, 150);
        Ok(())
    });
}

#[test]
fn delete_removes_the_topics_and_the_table() {
    with_temp_namespace("delete", async |namespace| {
        let (topic, keyspace) = (orders::topic(namespace), orders::keyspace(namespace));
        let manifest =
            orders::pipeline_with(namespace, json!({"deletionPolicy": "Delete"})).to_string();
        namespace.apply(&manifest).await?;
        namespace.ready(ORDERS).await?;
        orders::store(namespace, 0..100).await?;
        let dead_letter = format!("{topic}.dead-letter");
        assert!(namespace.kafka.partitions(&dead_letter)?.is_some());

        namespace
            .kubectl(&["delete", "datapipeline", ORDERS, "--timeout=90s"])
            .await?
            .ok()?;
        assert_eq!(namespace.cassandra.tables(&keyspace).await?, [""; 0]);
        for topic in [&topic, &dead_letter] {
            eventually(PATIENCE, async || {
                ensure!(
                    namespace.kafka.partitions(topic)?.is_none(),
                    "{topic} is still there"
                );
                Ok(())
            })
            .await?;
        }

        // Made anew, it starts from nothing.
        namespace.apply(&manifest).await?;
        namespace.ready(ORDERS).await?;
        orders::store(namespace, 500..510).await?;
        assert_eq!(
            namespace.cassandra.count(&orders::table(namespace)).await?,
            10
        );
        Ok(())
    });
}

#[test]
fn the_policy_counts_also_with_sql_that_is_refused() {
    with_temp_namespace("refused", async |namespace| {
        let (topic, keyspace) = (orders::topic(namespace), orders::keyspace(namespace));
        let dead_letter = format!("{topic}.dead-letter");
        let topics = namespace.api::<Topic>();
        let pipelines = namespace.api::<DataPipeline>();
        let with =
            |policy: &str| orders::pipeline_with(namespace, json!({"deletionPolicy": policy}));
        for (before, after) in [("Delete", "Retain"), ("Retain", "Delete")] {
            namespace.apply(&with(before).to_string()).await?;
            namespace.ready(ORDERS).await?;
            let mut refused = with(after);
            refused["spec"]["sinks"][0]["sql"] = "SELECT id, nmae FROM records".into();
            namespace.apply(&refused.to_string()).await?;
            await_reason(&pipelines, ORDERS, READY, reason::INVALID_SQL, PATIENCE).await?;

            namespace
                .kubectl(&["delete", "datapipeline", ORDERS, "--timeout=90s"])
                .await?
                .ok()?;
            let stays = after == "Retain";
            let tables: &[&str] = if stays { &[ORDERS] } else { &[] };
            assert_eq!(namespace.cassandra.tables(&keyspace).await?, tables);
            let resources = [ORDERS.to_owned(), format!("{ORDERS}-dead-letter")];
            for (resource, topic) in resources.iter().zip([&topic, &dead_letter]) {
                eventually(PATIENCE, async || {
                    let there = topics.get_opt(resource).await?;
                    ensure!(there.is_none(), "Topic {resource} is still there");
                    Ok(())
                })
                .await?;
                let partitions = namespace.kafka.partitions(topic)?;
                assert_eq!(partitions.is_some(), stays, "{topic}: {before} → {after}");
            }
        }
        Ok(())
    });
}

#[test]
fn a_namespace_goes_in_bounded_time_with_kafka_and_cassandra_stopped() {
    alone_in_temp_namespace("bounded", async |namespace| {
        let pipeline = orders::pipeline_with(namespace, json!({"deletionPolicy": "Delete"}));
        let topic = json!({
            "apiVersion": "millstream.dev/v1alpha1", "kind": "Topic", "metadata": {"name": "alone"},
            "spec": {"topicName": namespace.unique("alone"), "deletionPolicy": "Delete"},
        });
        let keyspace = json!({
            "apiVersion": "millstream.dev/v1alpha1", "kind": "Keyspace", "metadata": {"name": "alone"},
            "spec": {"keyspaceName": namespace.unique("alone"), "deletionPolicy": "Delete"},
        });
        for manifest in [&pipeline, &topic, &keyspace] {
            namespace.apply(&manifest.to_string()).await?;
        }
        namespace.ready(ORDERS).await?;
        let arguments = [
            "wait",
            "--for=condition=Ready",
            "topics.millstream.dev,keyspaces",
            "--all",
            "--timeout=60s",
        ];
        namespace.kubectl(&arguments).await?.ok()?;

        let stopped = StoppedServices::stop(&["kafka", "cassandra"])?;
        let started = Instant::now();
        namespace.delete_namespace().await?;
        let took = started.elapsed();
        drop(stopped);
        println!("the namespace was gone after {took:?}");
        assert!(took <= Duration::from_secs(120));
        Ok(())
    });
}
