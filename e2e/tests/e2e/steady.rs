//! An operator left alone writes nothing.

use std::time::Duration;

use anyhow::{Result, ensure};
use millstream_api::condition;
use millstream_e2e::{
    AuditLog, Namespace, PATIENCE, await_condition, eventually, external_writes,
    with_temp_namespace,
};
use serde_json::{Value, json};

use crate::orders;

/// Without a write for this long, everything has settled.
const QUIET: Duration = Duration::from_secs(10);

fn topics(namespace: &Namespace) -> impl Iterator<Item = Value> {
    (0..8).map(|number| {
        json!({
            "apiVersion": "millstream.dev/v1alpha1", "kind": "Topic",
            "metadata": {"name": format!("topic-{number}")},
            "spec": {
                "topicName": namespace.unique(&format!("steady-{number}")),
                "partitions": number % 3 + 1,
                "config": {"retention.ms": "3600000"},
                "deletionPolicy": if number % 2 == 0 { "Delete" } else { "Retain" },
            },
        })
    })
}

fn keyspaces(namespace: &Namespace) -> impl Iterator<Item = Value> {
    (0..5).map(|number| {
        json!({
            "apiVersion": "millstream.dev/v1alpha1", "kind": "Keyspace",
            "metadata": {"name": format!("keyspace-{number}")},
            "spec": {"keyspaceName": namespace.unique(&format!("steady_{number}")), "tables": [{
                "name": "things",
                "columns": [
                    {"name": "id", "type": "varchar"}, {"name": "at", "type": "timestamp"},
                    {"name": "tags", "type": "frozen<list<int>>"},
                ],
                "primaryKey": {"partitionKey": ["id"], "clusteringKey": [{"name": "at", "order": "DESC"}]},
                "options": {"gcGraceSeconds": 3600, "comment": "it's steady"},
            }]},
        })
    })
}

/// Paused, scaled to zero, waiting for records, and with a source that has come to its end.
fn pipelines(namespace: &Namespace) -> impl Iterator<Item = Value> {
    let specs = [
        json!({"paused": true}),
        json!({"paused": true, "deletionPolicy": "Delete"}),
        json!({"replicas": 0}),
        json!({"replicas": 0, "deletionPolicy": "Delete"}),
        json!({}),
        json!({"source": {"generator": {"count": 500}}}),
        json!({"source": {"generator": {"count": 500}}, "replicas": 2}),
    ];
    specs.into_iter().enumerate().map(|(number, spec)| {
        let mut pipeline = orders::pipeline_with(namespace, spec);
        pipeline["metadata"]["name"] = format!("pipeline-{number}").into();
        pipeline["spec"]["topic"]["name"] = namespace.unique(&format!("pipeline-{number}")).into();
        pipeline["spec"]["sinks"][0]["cassandra"]["table"] = format!("table_{number}").into();
        pipeline
    })
}

async fn settled(namespace: &Namespace) -> Result<()> {
    let arguments = [
        "wait",
        "--for=condition=Provisioned",
        "datapipelines,topics.millstream.dev,keyspaces",
        "--all",
        "--timeout=180s",
    ];
    namespace.kubectl(&arguments).await?.ok()?;
    for ready in ["pipeline-4", "pipeline-5", "pipeline-6"] {
        await_condition(
            &namespace.api::<millstream_api::DataPipeline>(),
            ready,
            condition::READY,
            PATIENCE,
        )
        .await?;
    }
    eventually(PATIENCE, async || {
        for number in [5, 6] {
            let rows = namespace
                .cassandra
                .count(format!("{}.table_{number}", orders::keyspace(namespace)));
            let rows = rows.await?;
            ensure!(rows == 500, "pipeline-{number} has {rows} rows");
        }
        let before = external_writes(namespace).await?;
        tokio::time::sleep(QUIET).await;
        let after = external_writes(namespace).await?;
        ensure!(
            before == after,
            "the operator still writes: {before:?}, then {after:?}"
        );
        Ok(())
    })
    .await
}

#[test]
fn an_operator_left_alone_writes_nothing() {
    let seconds = std::env::var("MILLSTREAM_STEADY_SECONDS").map_or(60, |number| {
        number
            .parse()
            .expect("MILLSTREAM_STEADY_SECONDS is a number")
    });
    with_temp_namespace("steady", async |namespace| {
        let manifests = topics(namespace)
            .chain(keyspaces(namespace))
            .chain(pipelines(namespace));
        let items: Vec<_> = manifests.collect();
        assert_eq!(items.len(), 20);
        let list = json!({"apiVersion": "v1", "kind": "List", "items": items});
        let audit = AuditLog::from_now(&namespace.environment)?;
        namespace.apply(&list.to_string()).await?;
        settled(namespace).await?;
        if let Some(audit) = &audit {
            assert!(
                audit.writes_by_the_operator()?.len() > 20,
                "the audit log shows its writes"
            );
        }

        let before = external_writes(namespace).await?;
        assert!(
            ["kafka", "cassandra", "kubernetes"]
                .iter()
                .all(|system| before[*system] > 0.0)
        );
        let audit = AuditLog::from_now(&namespace.environment)?;
        // The promise is about time that passes.
        tokio::time::sleep(Duration::from_secs(seconds)).await;
        assert_eq!(
            external_writes(namespace).await?,
            before,
            "its own count of writes"
        );
        match audit {
            Some(audit) => assert_eq!(audit.writes_by_the_operator()?, [""; 0]),
            None => {
                println!("this provider keeps no audit log: only the operator's own count was held")
            }
        }
        println!("{seconds} s without a write");
        Ok(())
    });
}
