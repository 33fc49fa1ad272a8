//! Records that are gone before they were read stop a pipeline, until a person says go on.

use std::time::Duration;

use anyhow::{Result, ensure};
use millstream_api::{
    DataPipeline,
    condition::{self, reason},
};
use millstream_e2e::{Namespace, PATIENCE, condition, eventually, with_temp_namespace};
use serde_json::{Value, json};

use crate::orders::{self, ORDERS};

/// A pipeline whose topic has one partition.
fn pipeline(namespace: &Namespace, spec: Value) -> Value {
    let mut pipeline = orders::pipeline_with(namespace, spec);
    pipeline["spec"]["topic"]["partitions"] = 1.into();
    pipeline
}

/// Waits for the gap: the pipeline isn't ready for that reason, and no process pod is left.
async fn stops(namespace: &Namespace, reason: &str) -> Result<String> {
    let message = eventually(PATIENCE + Duration::from_secs(30), async || {
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
    .await?;
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
