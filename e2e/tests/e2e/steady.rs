//! An operator left alone writes nothing.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Result, ensure};
use kube::api::ListParams;
use kube::{Api, ResourceExt};
use millstream_api::{DataPipeline, Keyspace, Topic};
use millstream_e2e::{
    AuditLog, Namespace, OPERATOR_NAMESPACE, PATIENCE, alone_in_temp_namespace, eventually,
    external_writes,
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

/// What the operator writes from a moment on, as the audit log and its own metrics have it.
struct Watch {
    audit: Option<AuditLog>,
    /// Only where no other resources keep the operator busy.
    counts: Option<BTreeMap<String, f64>>,
}

impl Watch {
    async fn start(namespace: &Namespace) -> Result<Self> {
        let audit = AuditLog::from_now(&namespace.environment)?;
        let others = others(namespace).await?;
        let counts = match others.is_empty() {
            true => Some(external_writes(namespace).await?),
            false => None,
        };
        ensure!(
            audit.is_some() || counts.is_some(),
            "there is no audit log, and its own counts say nothing while there are {others:?}"
        );
        Ok(Watch { audit, counts })
    }

    /// One line a write, or a system that was written to.
    async fn writes(&self, namespace: &Namespace) -> Result<Vec<String>> {
        let mut writes = Vec::new();
        if let Some(audit) = &self.audit {
            writes = audit.writes_by_the_operator()?;
            writes.retain(|write| {
                let concerns = |name: &str| write.contains(&format!("/namespaces/{name}"));
                concerns(&namespace.name) || concerns(OPERATOR_NAMESPACE)
            });
        }
        if let Some(before) = &self.counts {
            for (system, after) in external_writes(namespace).await? {
                let before = before.get(&system).copied().unwrap_or_default();
                if after != before {
                    writes.push(format!("{} writes to {system}", after - before));
                }
            }
        }
        Ok(writes)
    }
}

/// Resources outside this namespace, which somebody else works with.
async fn others(namespace: &Namespace) -> Result<Vec<String>> {
    let pipelines = Api::<DataPipeline>::all(namespace.client.clone());
    let topics = Api::<Topic>::all(namespace.client.clone());
    let keyspaces = Api::<Keyspace>::all(namespace.client.clone());
    let all = ListParams::default();
    let mut found: Vec<_> = pipelines
        .list(&all)
        .await?
        .items
        .iter()
        .map(place)
        .collect();
    found.extend(topics.list(&all).await?.items.iter().map(place));
    found.extend(keyspaces.list(&all).await?.items.iter().map(place));
    found.retain(|(place, _)| *place != namespace.name);
    Ok(found
        .into_iter()
        .map(|(place, name)| format!("{place}/{name}"))
        .collect())
}

fn place<K: ResourceExt>(object: &K) -> (String, String) {
    (object.namespace().unwrap_or_default(), object.name_any())
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
        namespace.ready(ready).await?;
    }
    eventually(PATIENCE, async || {
        for number in [5, 6] {
            let table = format!("{}.table_{number}", orders::keyspace(namespace));
            let rows = namespace.cassandra.count(table).await?;
            ensure!(rows == 500, "pipeline-{number} has {rows} rows");
        }
        let watch = Watch::start(namespace).await?;
        tokio::time::sleep(QUIET).await;
        let writes = watch.writes(namespace).await?;
        ensure!(writes.is_empty(), "the operator still writes: {writes:#?}");
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
    alone_in_temp_namespace("steady", async |namespace| {
        let manifests = topics(namespace)
            .chain(keyspaces(namespace))
            .chain(pipelines(namespace));
        let items: Vec<_> = manifests.collect();
        assert_eq!(items.len(), 20);
        let list = json!({"apiVersion": "v1", "kind": "List", "items": items});
        let watch = Watch::start(namespace).await?;
        namespace.apply(&list.to_string()).await?;
        settled(namespace).await?;
        assert!(
            !watch.writes(namespace).await?.is_empty(),
            "what it wrote until now is seen"
        );

        let watch = Watch::start(namespace).await?;
        // The promise is about time that passes.
        tokio::time::sleep(Duration::from_secs(seconds)).await;
        assert_eq!(watch.writes(namespace).await?, [""; 0]);
        let held = [
            ("the audit log", watch.audit.is_some()),
            ("its own counts", watch.counts.is_some()),
        ];
        println!("{seconds} s without a write, by {held:?}");
        Ok(())
    });
}
