//! Records that are gone before they were read stop a pipeline, until a person says go on.

use std::time::Duration;

use anyhow::{Result, ensure};
use millstream_api::{
    DataPipeline,
    condition::{self, reason},
    worker::PipelineRef,
};
use millstream_e2e::{
    Namespace, PATIENCE, await_reason, condition, eventually, with_temp_namespace,
};
use serde_json::{Value, json};

use crate::orders::{self, ORDERS};

/// A pipeline whose topic has one partition.
fn pipeline(namespace: &Namespace, spec: Value) -> Value {
    let mut pipeline = orders::pipeline_with(namespace, spec);
    pipeline["spec"]["topic"]["partitions"] = 1.into();
    pipeline
}

/// Waits for the gap: the pipeline isn't ready for that reason.
async fn gap(namespace: &Namespace, reason: &str) -> Result<String> {
    eventually(PATIENCE + Duration::from_secs(30), async || {
        let pipeline = namespace.api::<DataPipeline>().get(ORDERS).await?;
        let gap = condition(&pipeline, condition::DATA_GAP)?;
        ensure!(
            gap.status == "True" && gap.reason == reason,
            "DataGap is {} with reason {}",
            gap.status,
            gap.reason
        );
        let ready = condition(&pipeline, condition::READY)?;
        ensure!(ready.status == "False" && ready.reason == reason);
        Ok(gap.message)
    })
    .await
}

/// Waits for the gap, and until no process pod is left.
async fn stops(namespace: &Namespace, reason: &str) -> Result<String> {
    let message = gap(namespace, reason).await?;
    namespace.ready_pods(ORDERS, "process", 0).await?;
    Ok(message)
}

async fn goes_on(namespace: &Namespace, rows: i64) -> Result<()> {
    let pipeline = pipeline(namespace, json!({"onDataGap": "Continue"}));
    namespace.apply(&pipeline.to_string()).await?;
    let pipeline = namespace.ready(ORDERS).await?;
    assert_eq!(condition(&pipeline, condition::DATA_GAP)?.status, "False");
    let topic = orders::topic(namespace);
    namespace.drained(ORDERS, ORDERS, &topic, PATIENCE).await?;
    let there = namespace.cassandra.count(orders::table(namespace)).await?;
    assert_eq!(there, rows);
    Ok(())
}

#[test]
fn retention_that_overtakes_a_sink_at_zero_is_seen() {
    with_temp_namespace("gap", async |namespace| {
        let topic = orders::topic(namespace);
        let at_zero = pipeline(namespace, json!({"replicas": 0}));
        namespace.apply(&at_zero.to_string()).await?;
        namespace.ready(ORDERS).await?;
        namespace
            .kafka
            .produce(&topic, orders::plain(0..100))
            .await?;
        namespace.kafka.delete_records(&topic, 30).await?;
        let message = stops(namespace, reason::RETENTION_PASSED).await?;
        assert!(
            message.contains("records 0 to 29 of partition 0"),
            "{message}"
        );
        goes_on(namespace, 70).await
    });
}

#[test]
fn retention_that_overtakes_a_sink_that_stands_still_is_seen() {
    with_temp_namespace("gap", async |namespace| {
        let topic = orders::topic(namespace);
        let mut running = pipeline(namespace, json!({}));
        running["spec"]["sinks"][0]["expectations"] =
            json!([{"name": "first", "check": "version = 1", "onFailure": "Fail"}]);
        namespace.apply(&running.to_string()).await?;
        namespace.ready(ORDERS).await?;
        orders::store(namespace, 0..100).await?;
        let second = json!({"id": orders::id(100), "version": 2, "name": "Jürgen"});
        let records = std::iter::once(orders::record(&second)).chain(orders::plain(101..200));
        namespace.kafka.produce(&topic, records).await?;
        await_reason(
            &namespace.api::<DataPipeline>(),
            ORDERS,
            condition::RUNNING,
            reason::WORKER_ERROR,
            PATIENCE,
        )
        .await?;
        namespace.ready_pods(ORDERS, "process", 1).await?;
        namespace.kafka.delete_records(&topic, 150).await?;
        let message = stops(namespace, reason::RETENTION_PASSED).await?;
        assert!(
            message.contains("records 100 to 149 of partition 0"),
            "{message}"
        );
        goes_on(namespace, 150).await
    });
}

/// As after the loss of a leader that wasn't in sync: more was read than there is.
async fn put_sink_at(namespace: &Namespace, offset: i64) -> Result<()> {
    let group = PipelineRef {
        namespace: namespace.name.clone(),
        name: ORDERS.into(),
    };
    let group = group.sink_group(ORDERS);
    let topic = orders::topic(namespace);
    eventually(PATIENCE, async || {
        namespace.kafka.commit(&group, &topic, offset)
    })
    .await
}

#[test]
fn a_truncated_log_that_is_accepted_beforehand_is_read_again() {
    with_temp_namespace("gap", async |namespace| {
        let topic = orders::topic(namespace);
        let accepting = |replicas: i32| {
            let spec = json!({"replicas": replicas, "onDataGap": "Continue"});
            pipeline(namespace, spec).to_string()
        };
        namespace.apply(&accepting(1)).await?;
        namespace.ready(ORDERS).await?;
        orders::store(namespace, 0..100).await?;
        namespace.apply(&accepting(0)).await?;
        namespace.ready_pods(ORDERS, "process", 0).await?;
        put_sink_at(namespace, 150).await?;
        eventually(PATIENCE, async || {
            let pipeline = namespace.api::<DataPipeline>().get(ORDERS).await?;
            let lag = pipeline.status.unwrap_or_default().lag;
            ensure!(lag == Some(100), "the status shows a lag of {lag:?}");
            Ok(())
        })
        .await?;
        namespace
            .kafka
            .produce(&topic, orders::plain(100..200))
            .await?;
        goes_on(namespace, 200).await
    });
}

#[test]
fn a_log_that_was_truncated_stops_the_pipeline() {
    with_temp_namespace("gap", async |namespace| {
        let topic = orders::topic(namespace);
        let running = pipeline(namespace, json!({}));
        namespace.apply(&running.to_string()).await?;
        namespace.ready(ORDERS).await?;
        orders::store(namespace, 0..100).await?;
        let at_zero = pipeline(namespace, json!({"replicas": 0}));
        namespace.apply(&at_zero.to_string()).await?;
        namespace.ready_pods(ORDERS, "process", 0).await?;
        put_sink_at(namespace, 150).await?;
        let message = stops(namespace, reason::LOG_TRUNCATED).await?;
        assert!(
            message.contains("ends at offset 100, and was read up to 150"),
            "{message}"
        );
        // Pods that are asked for don't come, also when the log has grown past that offset.
        namespace
            .kafka
            .produce(&topic, orders::plain(100..200))
            .await?;
        namespace.apply(&running.to_string()).await?;
        eventually(PATIENCE, async || {
            let pipeline = namespace.api::<DataPipeline>().get(ORDERS).await?;
            let records = pipeline.status.unwrap_or_default().records;
            ensure!(records == Some(200), "the status shows {records:?} records");
            Ok(())
        })
        .await?;
        // How long it was when that was seen again depends on the moment.
        let message = stops(namespace, reason::LOG_TRUNCATED).await?;
        assert!(message.contains("was read up to 150"), "{message}");
        goes_on(namespace, 200).await
    });
}

#[test]
fn records_that_the_topic_of_a_source_has_lost_stop_the_source() {
    with_temp_namespace("gap", async |namespace| {
        let upstream = namespace.unique("upstream");
        let kafka = &namespace.kafka;
        kafka.create_topic(&upstream, 1, &[]).await?;
        kafka.produce(&upstream, orders::plain(0..50)).await?;
        let source = |on_gap: &str| json!({"topic": {"name": upstream, "onGap": on_gap}});
        let apply = async |spec| {
            let pipeline = pipeline(namespace, spec);
            namespace.apply(&pipeline.to_string()).await
        };
        let stored = async |rows: i64| {
            eventually(PATIENCE, async || {
                let there = namespace.cassandra.count(orders::table(namespace)).await?;
                ensure!(there == rows, "{there} rows, not {rows}");
                Ok(())
            })
            .await
        };
        apply(json!({"source": source("Stop")})).await?;
        namespace.ready(ORDERS).await?;
        stored(50).await?;
        apply(json!({"source": source("Stop"), "paused": true})).await?;
        namespace.ready_pods(ORDERS, "ingest", 0).await?;
        kafka.produce(&upstream, orders::plain(50..100)).await?;
        kafka.delete_records(&upstream, 80).await?;

        apply(json!({"source": source("Stop"), "paused": false})).await?;
        let message = gap(namespace, reason::RETENTION_PASSED).await?;
        for words in [
            upstream.as_str(),
            "offset 50",
            "spec.source.topic.onGap: Continue",
        ] {
            assert!(message.contains(words), "{words}: {message}");
        }
        // What was read before isn't affected.
        namespace.ready_pods(ORDERS, "process", 1).await?;

        apply(json!({"source": source("Continue"), "paused": false})).await?;
        let pipeline = namespace.ready(ORDERS).await?;
        assert_eq!(condition(&pipeline, condition::DATA_GAP)?.status, "False");
        stored(70).await
    });
}

#[test]
fn a_topic_that_was_made_anew_stops_the_pipeline() {
    with_temp_namespace("gap", async |namespace| {
        let topic = orders::topic(namespace);
        let running = pipeline(namespace, json!({}));
        namespace.apply(&running.to_string()).await?;
        namespace.ready(ORDERS).await?;
        orders::store(namespace, 0..100).await?;
        namespace.kafka.delete_topic(&topic).await?;
        stops(namespace, reason::TOPIC_RECREATED).await?;
        // The same orders, and some more: rows of the new topic win over those of the old one.
        namespace
            .kafka
            .produce(&topic, orders::plain(50..150))
            .await?;
        goes_on(namespace, 150).await
    });
}
