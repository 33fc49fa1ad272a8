//! A pipeline goes, and what it made goes with it: pods first, then the tables that it declared, its
//! schema and its consumer groups. Its Topics delete themselves.

use k8s_openapi::api::{apps::v1::Deployment, core::v1::Pod};
use kube::{
    Resource, ResourceExt,
    api::{DeleteParams, ListParams, Patch, PatchParams},
    runtime::{controller::Action, events::EventType},
};
use millstream_api::{
    DataPipeline, DeletionPolicy, Keyspace, Topic, keyspace::TableSpec, pipeline::Encoding,
};
use millstream_plan::{accept, declared_by, find_keyspace, keyspace_manager};
use serde_json::json;

use super::{
    children::{self, PIPELINE, Stage, part_annotation},
    ensure::check_owner,
    provision::{
        cassandra_access, check_unknown_keyspaces, kafka_access, keyspaces, pipeline_ref,
        registry_access, watched, watched_guarded,
    },
    runs::Runs,
};
use crate::{
    context::Context,
    controller::{Reconcile, namespace},
    deadline::let_go,
    error::Error,
    keyspace::{ddl, plan::refusals},
    metrics::System,
    registry::subject,
};

pub async fn reconcile(pipeline: &DataPipeline, context: &Context) -> Result<Action, Error> {
    context
        .metrics
        .forget(&namespace(pipeline), &pipeline.name_any());
    let event = ("LeftBehind", "some of what the pipeline made is left");
    let remove = remove(pipeline, context);
    let_go(pipeline, context, DataPipeline::FINALIZER, event, remove).await
}

/// Sees to it that the pipeline's Topics have its deletion policy, also where its spec isn't accepted
/// and so isn't applied to them. Comes before the finalizer: they may go right after the pipeline.
pub async fn hand_down_policy(pipeline: &DataPipeline, context: &Context) -> Result<(), Error> {
    let policy = pipeline.spec.deletion_policy;
    for name in [pipeline.name_any(), pipeline.dead_letter_name()] {
        let topic: Option<Topic> = watched_guarded(&context.stores.topics, pipeline, &name);
        let differs = topic.filter(|topic| topic.spec.deletion_policy != policy);
        let Some(topic) = differs.filter(|topic| check_owner(pipeline, topic).is_ok()) else {
            continue;
        };
        // With the UID: one that was made anew isn't meant.
        let patch = json!({"metadata": {"uid": topic.uid()}, "spec": {"deletionPolicy": policy}});
        context.metrics.wrote(System::Kubernetes);
        context
            .api::<Topic>(&namespace(pipeline))
            .patch(&name, &PatchParams::default(), &Patch::Merge(&patch))
            .await?;
    }
    Ok(())
}

/// Removes what the pipeline made. Tables that others use are left, with Events of their own.
async fn remove(pipeline: &DataPipeline, context: &Context) -> Result<Option<String>, Error> {
    if pipeline.spec.deletion_policy == DeletionPolicy::Retain {
        return Ok(None);
    }
    stop(pipeline, context).await?;
    let keyspaces = keyspaces(pipeline, context);
    for keyspace in &keyspaces {
        let name = keyspace.keyspace_name();
        let tables = declared(pipeline, keyspace);
        if !tables.is_empty() {
            drop_tables(pipeline, context, Some(keyspace), &name, &tables).await?;
        }
    }
    // A Keyspace that is gone with the namespace tells nothing: the spec does, where it is accepted.
    // Progress was seen only if everything had been there.
    let status = pipeline.status.as_ref();
    if status.is_some_and(|status| status.records.is_some())
        && let Ok(accepted) = accept(pipeline, &keyspaces)
    {
        for (name, tables) in &accepted.declared {
            if find_keyspace(&keyspaces, name).is_none() {
                check_unknown_keyspaces(pipeline, context, &keyspaces, name).await?;
                drop_tables(pipeline, context, None, name, tables).await?;
            }
        }
    }
    delete_schema(pipeline, context).await?;
    delete_groups(pipeline, context).await?;
    Ok(None)
}

/// Deletes the Deployments and the runs, and waits until their pods are gone.
async fn stop(pipeline: &DataPipeline, context: &Context) -> Result<(), Error> {
    let api = context.api::<Deployment>(&namespace(pipeline));
    for stage in Stage::ALL {
        let name = stage.object_name(pipeline);
        let there = watched(&context.stores.deployments, pipeline, &name)
            .filter(|live| live.metadata.deletion_timestamp.is_none());
        if there.is_none_or(|live| check_owner(pipeline, &*live).is_err()) {
            continue;
        }
        context.metrics.wrote(System::Kubernetes);
        match api.delete(&name, &DeleteParams::background()).await {
            Ok(_) => {}
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            Err(error) => return Err(error.into()),
        }
    }
    Runs::look(pipeline, context)
        .await?
        .clear(pipeline, context)
        .await?;
    // Asked for, as what is watched may be older than the deletion.
    let selector = ListParams::default().labels(&format!("{PIPELINE}={}", pipeline.name_any()));
    let pods = context.api::<Pod>(&namespace(pipeline));
    if pods.list(&selector).await?.items.is_empty() {
        return Ok(());
    }
    Err(Error::Waiting("the pods finish what they hold".into()))
}

/// Takes the pipeline's tables off the Keyspace, and then drops them: in the other order the
/// Keyspace would make them anew.
async fn drop_tables(
    pipeline: &DataPipeline,
    context: &Context,
    keyspace: Option<&Keyspace>,
    name: &str,
    tables: &[TableSpec],
) -> Result<(), Error> {
    let access = cassandra_access(pipeline, context).await?;
    let cassandra = context.cassandra(&access).await?;
    let Some(observed) = cassandra.describe(name).await? else {
        return Ok(());
    };
    let refused = refusals(name, tables, &observed);
    let left = match keyspace {
        Some(keyspace) => {
            let mark = json!(tables).to_string();
            release(pipeline, context, keyspace, &mark)
                .await?
                .spec
                .tables
        }
        None => Vec::new(),
    };
    for table in tables {
        let wanted_by_others = left.iter().any(|there| there.name == table.name)
            || used_by_others(pipeline, context, name, &table.name);
        // One with another key or other types was never this pipeline's.
        if wanted_by_others || refused.contains_key(&table.name) {
            let note = format!(
                "table {name}.{} is left in Cassandra: it isn't this pipeline's alone",
                table.name
            );
            context
                .event(pipeline, EventType::Normal, "LeftInCassandra", note)
                .await;
            continue;
        }
        context.metrics.wrote(System::Cassandra);
        cassandra.alter(&ddl::drop_table(name, &table.name)).await?;
    }
    if let Some(keyspace) = keyspace {
        release(pipeline, context, keyspace, "").await?;
    }
    Ok(())
}

/// The tables that the pipeline declares in a Keyspace, whatever its spec says since; or those that
/// were taken off it to be dropped.
fn declared(pipeline: &DataPipeline, keyspace: &Keyspace) -> Vec<TableSpec> {
    let part = keyspace.annotations().get(&part_annotation(pipeline));
    let released = part.and_then(|part| serde_json::from_str(part).ok());
    released.unwrap_or_else(|| declared_by(keyspace, &keyspace_manager(&pipeline.name_any())))
}

/// Applies the pipeline's part of the Keyspace without tables: those that nobody else declares are
/// gone from it. The mark tells a later visit which tables are still to be dropped.
async fn release(
    pipeline: &DataPipeline,
    context: &Context,
    keyspace: &Keyspace,
    mark: &str,
) -> Result<Keyspace, Error> {
    let mut part = children::keyspace(pipeline, &keyspace.keyspace_name(), Some(keyspace), &[]);
    // Another Keyspace of the same name isn't meant.
    part["metadata"]["uid"] = json!(keyspace.uid());
    part["metadata"]["annotations"] = json!({part_annotation(pipeline): mark});
    let manager = keyspace_manager(&pipeline.name_any());
    context.apply(&namespace(pipeline), &manager, &part).await
}

/// Whether another pipeline, of any namespace, writes to the table or looks something up in it.
fn used_by_others(pipeline: &DataPipeline, context: &Context, keyspace: &str, table: &str) -> bool {
    context
        .stores
        .pipelines()
        .iter()
        .filter(|other| other.uid() != pipeline.uid() && other.meta().deletion_timestamp.is_none())
        .any(|other| {
            let sinks = other.spec.sinks.iter();
            let written = sinks.filter_map(|sink| sink.cassandra.as_ref());
            let lookups = other.spec.lookups.iter();
            let read = lookups.filter_map(|lookup| lookup.cassandra.as_ref());
            let written = written.map(|sink| (&sink.keyspace, &sink.table));
            let read = read.map(|lookup| (&lookup.keyspace, &lookup.table));
            written
                .chain(read)
                .any(|used| used.0 == keyspace && used.1 == table)
        })
}

/// Takes the schema of the records' topic away, which is deleted too.
async fn delete_schema(pipeline: &DataPipeline, context: &Context) -> Result<(), Error> {
    let status = pipeline.status.as_ref();
    // Progress was seen only if the topic was this pipeline's.
    let was_registered = pipeline.spec.topic.encoding == Encoding::Avro
        && status.is_some_and(|status| status.records.is_some());
    if was_registered && let Some(access) = registry_access(pipeline, context).await? {
        context.metrics.wrote(System::Registry);
        let registry = context.registry(&access).await?;
        registry.delete(&subject(&pipeline.topic_name())).await?;
    }
    Ok(())
}

async fn delete_groups(pipeline: &DataPipeline, context: &Context) -> Result<(), Error> {
    let access = kafka_access(pipeline, context).await?;
    let kafka = context.kafka(&access).await?;
    let me = pipeline_ref(pipeline);
    let sinks = pipeline.spec.sinks.iter();
    let mut groups: Vec<_> = sinks.map(|sink| me.sink_group(&sink.name)).collect();
    groups.push(me.ingest_group());
    groups.push(me.replay_group());
    let groups: Vec<_> = groups.iter().map(String::as_str).collect();
    context.metrics.wrote(System::Kafka);
    kafka.delete_groups(&groups).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use millstream_plan::claim_table;

    use super::*;

    #[test]
    fn the_tables_of_a_pipeline_are_known_until_they_are_dropped() {
        // The SQL isn't accepted.
        let pipeline: DataPipeline = serde_saphyr::from_str(
            "
apiVersion: millstream.dev/v1alpha1
kind: DataPipeline
metadata: {name: orders, namespace: shop}
spec:
  source: {generator: {}}
  schema: id UUID
  sinks: [{name: s, sql: SELECT, cassandra: {keyspace: shop, table: another}}]
",
        )
        .unwrap();
        let table = |name: &str| {
            format!(
                "{{name: {name}, columns: [{{name: id, type: uuid}}], primaryKey: {{partitionKey: [id]}}}}"
            )
        };
        let tables = ["orders", "orders__state", "theirs"].map(table).join(", ");
        let spec = serde_saphyr::from_str(&format!("{{tables: [{tables}]}}")).unwrap();
        let mut keyspace = Keyspace::new("shop", spec);
        for mine in ["orders", "orders__state"] {
            claim_table(&mut keyspace, mine, &keyspace_manager("orders"));
        }
        claim_table(&mut keyspace, "theirs", &keyspace_manager("others"));
        let known = |keyspace: &Keyspace| {
            let tables = declared(&pipeline, keyspace).into_iter();
            tables.map(|table| table.name).collect::<Vec<_>>()
        };
        assert_eq!(known(&keyspace), ["orders", "orders__state"]);

        let part = part_annotation(&pipeline);
        let mark = |keyspace: &mut Keyspace, mark: String| {
            keyspace.annotations_mut().insert(part.clone(), mark);
        };
        mark(&mut keyspace, children::hash("what was applied"));
        assert_eq!(known(&keyspace), ["orders", "orders__state"]);

        let released = json!(declared(&pipeline, &keyspace)).to_string();
        keyspace.spec.tables.retain(|table| table.name == "theirs");
        mark(&mut keyspace, released);
        assert_eq!(known(&keyspace), ["orders", "orders__state"]);

        mark(&mut keyspace, String::new());
        assert_eq!(known(&keyspace), [""; 0]);
    }
}
