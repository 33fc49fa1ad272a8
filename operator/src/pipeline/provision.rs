//! Topic, keyspaces, consumer groups and pods: each step begins when the one before it is done, and
//! none of them takes down what runs.

use std::{collections::BTreeMap, sync::Arc, time::Instant};

use k8s_openapi::{
    api::{
        apps::v1::Deployment,
        core::v1::{ConfigMap, Secret},
    },
    apimachinery::pkg::apis::meta::v1::Condition,
    jiff::Timestamp,
};
use kube::{
    Resource, ResourceExt,
    api::{DynamicObject, ListParams},
    core::DeserializeGuard,
    runtime::{
        events::EventType,
        reflector::{ObjectRef, Store},
    },
};
use millstream_api::{
    CassandraConnection, DataPipeline, KafkaConnection, Keyspace, SchemaRegistryConnection, Topic,
    condition::{self, reason},
    keyspace::TableSpec,
    pipeline::Encoding,
    source::TopicEncoding,
    worker::{IngestConfig, PipelineRef, ProcessConfig, SinkConfig, TopicRef, WorkerConfig},
};
use millstream_plan::{
    Accepted, PlanError, RecordSchema,
    claim::{accept_made, made_name},
    find_keyspace, keyspace_manager,
};

use super::{
    after,
    children::{self, Pods, Stage},
    ensure::{check_owner, ensure, ensure_part},
    key,
    offsets::Offsets,
    runs::Runs,
    scaling::{self, Bounds, Load},
    start::start,
};
use crate::{
    conditions,
    context::{Context, Kind, MANAGER},
    controller::namespace,
    credentials::Access,
    error::Error,
    metrics::System,
    registry::subject,
};

/// Makes everything that an accepted pipeline needs, in order.
pub async fn provision(
    pipeline: &DataPipeline,
    context: &Context,
    accepted: &Accepted,
    offsets: &Result<Option<Offsets>, Error>,
    runs: &mut Runs,
) -> Result<(), Error> {
    // 1. What Kafka and Cassandra must have, as resources of their own.
    let mut applied = apply_topics(pipeline, context, accepted).await?;
    for (name, tables) in &accepted.declared {
        applied |= apply_keyspace(pipeline, context, name, tables).await?;
    }
    if applied {
        return Err(Error::Waiting(
            "its Topics and Keyspaces are being provisioned".into(),
        ));
    }
    // 2. They are there.
    let topic = await_topics(pipeline, context, accepted)?;
    for name in accepted.declared.keys() {
        await_keyspace(pipeline, context, accepted, name)?;
    }
    // 3. Every sink has a place to start from.
    let kafka = kafka_access(pipeline, context).await?;
    let mut lookups = accepted.lookups.iter();
    let in_cassandra = lookups.any(|lookup| lookup.cassandra.is_some());
    let cassandra = match accepted.declared.is_empty() && !in_cassandra {
        true => None,
        false => Some(cassandra_access(pipeline, context).await?),
    };
    let admin = context.kafka(&kafka).await?;
    let offsets = known(offsets, &topic)?;
    let stopped = start(pipeline, context, &admin, &topic, offsets).await?;
    // 4. The schema, where the records are Avro.
    let registry = registry_access(pipeline, context).await?;
    let avro = register_schema(pipeline, context, registry.as_ref(), &topic).await?;
    // 5. The pods.
    runs.note(offsets);
    let access = Accesses {
        kafka,
        cassandra,
        registry,
    };
    let credentials = apply_credentials(pipeline, context, &access).await?;
    let configs = configs(pipeline, accepted, &access, &topic, avro);
    for (stage, config) in configs {
        let replicas = match stage {
            // With another topic the source would be read anew: a person decides about that.
            Stage::Ingest if matches!(stopped, Some(Error::DataGap { .. })) => continue,
            Stage::Ingest => {
                let credentials = credentials.as_deref();
                ingest(pipeline, context, accepted, &config, credentials, runs).await?;
                continue;
            }
            _ if pipeline.spec.paused => 0,
            Stage::Process if stopped.is_some() => 0,
            Stage::Process => process_replicas(pipeline, context, &topic, offsets).await?,
            Stage::Serve => 0,
        };
        apply_stage(
            pipeline,
            context,
            stage,
            &config,
            replicas,
            credentials.as_deref(),
        )
        .await?;
    }
    stopped.map_or(Ok(()), Err)
}

/// Sees to the pods that read the source: those of runs, or of a Deployment.
async fn ingest(
    pipeline: &DataPipeline,
    context: &Context,
    accepted: &Accepted,
    config: &WorkerConfig,
    credentials: Option<&str>,
    runs: &mut Runs,
) -> Result<(), Error> {
    let stage = Stage::Ingest;
    if let Some((schedule, calendar)) = pipeline
        .spec
        .schedule
        .as_ref()
        .zip(accepted.calendar.as_ref())
    {
        let yaml = apply_config(pipeline, context, stage, config).await?;
        let pods = Pods {
            stage,
            replicas: 1,
            worker: &context.config.worker,
            yaml: &yaml,
            credentials,
        };
        return runs
            .drive(pipeline, context, schedule, calendar, &pods)
            .await;
    }
    let waits = after::waits_for(pipeline, context, Timestamp::now()).is_some();
    if waits || !runs.clear(pipeline, context).await? {
        return Ok(());
    }
    let rests = pipeline.spec.paused || has_given_all(pipeline, config)?;
    let replicas = i32::from(!rests);
    apply_stage(pipeline, context, stage, config, replicas, credentials).await
}

/// Whether the source has given all that it has with this configuration. Then nobody reads it again,
/// whatever its sinks still lack: after a week Kafka has forgotten that it was read.
fn has_given_all(pipeline: &DataPipeline, config: &WorkerConfig) -> Result<bool, Error> {
    let status = pipeline.status.as_ref();
    let source = status.and_then(|status| status.source.as_ref());
    let complete = source.filter(|source| source.complete);
    let configuration = complete.and_then(|source| source.configuration.as_ref());
    Ok(configuration == Some(&children::hash(&children::worker_yaml(config)?)))
}

/// The offsets, if they are those of the topic that the resources tell of.
fn known<'a>(
    offsets: &'a Result<Option<Offsets>, Error>,
    topic: &TopicRef,
) -> Result<&'a Offsets, Error> {
    let offsets = offsets.as_ref().map_err(Error::clone)?.as_ref();
    offsets
        .filter(|offsets| {
            offsets.topic_id.as_ref() == Some(&topic.id)
                && offsets.ends.len() == topic.partitions as usize
        })
        .ok_or_else(|| {
            Error::Waiting(format!(
                "topic `{}` has just changed in Kafka, and its Topic doesn't tell yet how",
                topic.name
            ))
        })
}

/// The number of process pods: fixed, or by the load.
async fn process_replicas(
    pipeline: &DataPipeline,
    context: &Context,
    topic: &TopicRef,
    offsets: &Offsets,
) -> Result<i32, Error> {
    let Some(scaling) = &pipeline.spec.scaling else {
        return Ok(pipeline.spec.replicas);
    };
    // Asked for, as what is watched may be older than the last step.
    let name = Stage::Process.object_name(pipeline);
    let api = context.api::<Deployment>(&namespace(pipeline));
    let pods = pods(api.get_opt(&name).await?);
    let failing = failing(pipeline);
    let load = Load::of(offsets, &failing);
    let bounds = Bounds::new(scaling, &pipeline.spec.sinks, topic.partitions);
    let uid = pipeline.uid().unwrap_or_default();
    let replicas = context.memory.of_pipeline(&uid, |memory| {
        memory.scaler.decide(Instant::now(), load, pods, &bounds)
    });
    if replicas != pods.wanted {
        let sink = offsets.slowest(&failing).map_or("", |sink| &*sink.name);
        let note = format!(
            "process pods: {} → {replicas}; lag: {} (sink `{sink}`)",
            pods.wanted, load.lag
        );
        context
            .event(pipeline, EventType::Normal, "Scaled", note)
            .await;
    }
    Ok(replicas)
}

fn pods(deployment: Option<Deployment>) -> scaling::Pods {
    let Some(deployment) = deployment else {
        return scaling::Pods::default();
    };
    let status = deployment.status.unwrap_or_default();
    let wanted = deployment.spec.and_then(|spec| spec.replicas);
    scaling::Pods {
        wanted: wanted.unwrap_or(1),
        there: status.replicas.unwrap_or(0),
        ready: status.ready_replicas.unwrap_or(0),
    }
}

/// The sinks that had an error when it was looked last.
fn failing(pipeline: &DataPipeline) -> Vec<&str> {
    let sinks = pipeline.status.iter().flat_map(|status| &status.sinks);
    let failing = sinks.filter(|sink| sink.last_error.is_some());
    failing.map(|sink| sink.name.as_str()).collect()
}

/// Who the pipeline is to its workers.
pub fn pipeline_ref(pipeline: &DataPipeline) -> PipelineRef {
    PipelineRef {
        namespace: namespace(pipeline),
        name: pipeline.name_any(),
    }
}

/// The pipeline's Kafka.
pub async fn kafka_access(
    pipeline: &DataPipeline,
    context: &Context,
) -> Result<Access<KafkaConnection>, Error> {
    let own = pipeline.spec.kafka.as_ref();
    context.credentials.kafka(&namespace(pipeline), own).await
}

/// The pipeline's Cassandra.
pub async fn cassandra_access(
    pipeline: &DataPipeline,
    context: &Context,
) -> Result<Access<CassandraConnection>, Error> {
    let own = pipeline.spec.cassandra.as_ref();
    context
        .credentials
        .cassandra(&namespace(pipeline), own)
        .await
}

/// The pipeline's schema registry, where it needs one.
pub async fn registry_access(
    pipeline: &DataPipeline,
    context: &Context,
) -> Result<Option<Access<SchemaRegistryConnection>>, Error> {
    let source = pipeline.spec.source.topic.as_ref();
    let of_source = source.is_some_and(|source| {
        source.encoding == TopicEncoding::Avro && source.schema_registry.is_none()
    });
    if pipeline.spec.topic.encoding != Encoding::Avro && !of_source {
        return Ok(None);
    }
    let own = pipeline.spec.schema_registry.as_ref();
    let namespace = namespace(pipeline);
    let access = context.credentials.registry(&namespace, own).await?;
    Ok(Some(access))
}

/// A watched object by name.
pub fn watched<K: Kind>(store: &Store<K>, pipeline: &DataPipeline, name: &str) -> Option<Arc<K>> {
    store.get(&ObjectRef::new(name).within(&namespace(pipeline)))
}

/// A watched object by name, if it is well-formed.
pub fn watched_guarded<K: Kind>(
    store: &Store<DeserializeGuard<K>>,
    pipeline: &DataPipeline,
    name: &str,
) -> Option<K> {
    let reference = ObjectRef::new(name).within(&namespace(pipeline));
    let guard = store.get(&reference)?;
    guard.0.as_ref().ok().cloned()
}

async fn apply_topics(
    pipeline: &DataPipeline,
    context: &Context,
    accepted: &Accepted,
) -> Result<bool, Error> {
    let topics = [
        children::topic(
            pipeline,
            &key::text(&accepted.key),
            !accepted.keyed.is_empty(),
        ),
        children::dead_letter_topic(pipeline),
    ];
    let mut applied = false;
    for desired in topics {
        let name = desired["metadata"]["name"].as_str().unwrap_or_default();
        let live: Option<Topic> = watched_guarded(&context.stores.topics, pipeline, name);
        applied |= ensure(pipeline, context, live.as_ref(), desired).await?;
    }
    Ok(applied)
}

/// The Keyspaces of the pipeline's namespace.
pub fn keyspaces(pipeline: &DataPipeline, context: &Context) -> Vec<Keyspace> {
    let namespace = pipeline.namespace();
    let mut keyspaces = context.stores.keyspaces();
    keyspaces.retain(|keyspace| keyspace.namespace() == namespace);
    keyspaces
}

/// A Keyspace that this version can't read, or that isn't watched yet, is none of those that are known:
/// whoever would make one, or drop what none declares, has to wait.
pub async fn check_unknown_keyspaces(
    pipeline: &DataPipeline,
    context: &Context,
    known: &[Keyspace],
    name: &str,
) -> Result<(), Error> {
    let api = context.untyped::<Keyspace>(&namespace(pipeline));
    let there = api.list(&ListParams::default()).await?;
    let unknown = there.iter().find(|keyspace| {
        let is_known = known.iter().any(|known| known.uid() == keyspace.uid());
        !is_known && is_in_the_way(keyspace, name)
    });
    let Some(unknown) = unknown.map(ResourceExt::name_any) else {
        return Ok(());
    };
    let (plural, group) = (Keyspace::plural(&()), Keyspace::group(&()));
    Err(Error::Waiting(format!(
        "Keyspace `{unknown}` is there, and can't be read (yet): see `kubectl describe {plural}.{group} {unknown}`"
    )))
}

/// Whether a Keyspace, which may be malformed, is that of a keyspace, or has the name that one made for
/// it would have.
fn is_in_the_way(keyspace: &DynamicObject, name: &str) -> bool {
    let resource = keyspace.name_any();
    let is_of_it = match keyspace.data["spec"]["keyspaceName"].as_str() {
        Some(declared) => declared == name,
        None => resource.replace(['-', '.'], "_") == name,
    };
    is_of_it || resource == made_name(name)
}

async fn apply_keyspace(
    pipeline: &DataPipeline,
    context: &Context,
    name: &str,
    tables: &[TableSpec],
) -> Result<bool, Error> {
    let keyspaces = keyspaces(pipeline, context);
    let existing = find_keyspace(&keyspaces, name);
    if tables.is_empty() {
        // All tables are declared by somebody else.
        return Ok(false);
    }
    if existing.is_none() {
        accept_made(name, &keyspaces)?;
        check_unknown_keyspaces(pipeline, context, &keyspaces, name).await?;
    }
    let desired = children::keyspace(pipeline, name, existing, tables);
    let manager = keyspace_manager(&pipeline.name_any());
    let annotation = children::part_annotation(pipeline);
    ensure_part(pipeline, context, existing, desired, &manager, &annotation).await
}

fn await_topics(
    pipeline: &DataPipeline,
    context: &Context,
    accepted: &Accepted,
) -> Result<TopicRef, Error> {
    let store = &context.stores.topics;
    for name in [pipeline.dead_letter_name(), pipeline.name_any()] {
        let topic: Option<Topic> = watched_guarded(store, pipeline, &name);
        await_ready(topic.as_ref(), "Topic", &name, |topic| {
            topic.status.as_ref().map(|status| &status.conditions[..])
        })?;
    }
    let topic: Option<Topic> = watched_guarded(store, pipeline, &pipeline.name_any());
    if pipeline.spec.topic.partitions > 1 {
        let status = topic.as_ref().and_then(|topic| topic.status.as_ref());
        let known = status.map_or(&[][..], |status| &status.keys);
        key::check(known, accepted)?;
    }
    let topic = topic
        .and_then(|topic| {
            let name = topic.topic_name();
            let status = topic.status?;
            Some(TopicRef {
                name,
                id: status.topic_id?,
                timestamp_base: status.timestamp_base?,
                partitions: status.partitions?,
            })
        })
        .ok_or_else(|| Error::Waiting("the topic's identity isn't known yet".into()))?;
    key::check_partitions(pipeline.spec.topic.partitions, accepted, &topic)?;
    Ok(topic)
}

/// Whether a Keyspace has the pipeline's tables.
pub fn await_keyspace(
    pipeline: &DataPipeline,
    context: &Context,
    accepted: &Accepted,
    name: &str,
) -> Result<(), Error> {
    let keyspaces = keyspaces(pipeline, context);
    let keyspace = find_keyspace(&keyspaces, name);
    let resource = keyspace.map_or_else(|| name.to_string(), ResourceExt::name_any);
    let ready = await_ready(keyspace, "Keyspace", &resource, |keyspace| {
        keyspace
            .status
            .as_ref()
            .map(|status| &status.conditions[..])
    });
    match ready {
        // Tables of others in the Keyspace don't stop this pipeline: those that aren't refused are
        // there.
        Err(Error::Child { reason, .. }) if reason == reason::INCOMPATIBLE => {
            let status = keyspace.and_then(|keyspace| keyspace.status.as_ref());
            let mut refused = status.into_iter().flat_map(|status| &status.refused_tables);
            match refused.find(|table| needs(accepted, name, &table.name)) {
                Some(table) => Err(Error::Child {
                    reason,
                    message: format!("Keyspace `{resource}`: {}", table.message),
                }),
                None => Ok(()),
            }
        }
        other => other,
    }
}

/// Whether the pipeline needs a table: one of its sinks writes to it, or it declares it, such as one for
/// the states of groups.
fn needs(accepted: &Accepted, keyspace: &str, table: &str) -> bool {
    let mut written = accepted.sinks.iter().filter_map(SinkConfig::cassandra);
    let mut declared = accepted.declared.get(keyspace).into_iter().flatten();
    written.any(|there| there.keyspace == keyspace && there.table.name == table)
        || declared.any(|there| there.name == table)
}

/// Whether a resource is Ready as it now is; otherwise what it says itself.
fn await_ready<K: Kind>(
    object: Option<&K>,
    kind: &str,
    name: &str,
    conditions: impl Fn(&K) -> Option<&[Condition]>,
) -> Result<(), Error> {
    let waiting = || {
        let (plural, group) = (K::plural(&()), K::group(&()));
        Error::Waiting(format!(
            "{kind} `{name}` isn't ready yet: see `kubectl describe {plural}.{group} {name}`"
        ))
    };
    let object = object.ok_or_else(waiting)?;
    let conditions = conditions(object).ok_or_else(waiting)?;
    let generation = object.meta().generation;
    if conditions::holds(conditions, condition::READY, generation) {
        return Ok(());
    }
    match conditions::find(conditions, condition::READY) {
        Some(ready) if ready.observed_generation == generation => Err(Error::Child {
            reason: ready.reason.clone(),
            message: format!("{kind} `{name}`: {}", ready.message),
        }),
        _ => Err(waiting()),
    }
}

/// Sees to it that the records' schema is registered; its id, where the records are Avro.
async fn register_schema(
    pipeline: &DataPipeline,
    context: &Context,
    registry: Option<&Access<SchemaRegistryConnection>>,
    topic: &TopicRef,
) -> Result<Option<u32>, Error> {
    let Some(access) = registry.filter(|_| pipeline.spec.topic.encoding == Encoding::Avro) else {
        return Ok(None);
    };
    let schema = RecordSchema::parse(&pipeline.spec.schema)?;
    let schema = schema.avro(&topic.name).map_err(PlanError::from)?;
    let registry = context.registry(access).await?;
    let registering = || context.metrics.wrote(System::Registry);
    let subject = subject(&topic.name);
    let id = registry.id(&subject, &schema, registering).await?;
    Ok(Some(id))
}

/// The connections that workers get.
struct Accesses {
    kafka: Access<KafkaConnection>,
    /// Where a sink needs it.
    cassandra: Option<Access<CassandraConnection>>,
    registry: Option<Access<SchemaRegistryConnection>>,
}

/// Sees to the workers' Secret; its resource version, where there is one.
async fn apply_credentials(
    pipeline: &DataPipeline,
    context: &Context,
    access: &Accesses,
) -> Result<Option<String>, Error> {
    let namespace = namespace(pipeline);
    let source = &pipeline.spec.source;
    let mut files: BTreeMap<_, _> = access.kafka.files();
    files.extend(access.cassandra.iter().flat_map(Access::files));
    files.extend(access.registry.iter().flat_map(|registry| registry.files()));
    files.extend(context.credentials.source_files(&namespace, source).await?);
    let sinks = &pipeline.spec.sinks;
    files.extend(context.credentials.sink_files(&namespace, sinks).await?);
    let lookups = &pipeline.spec.lookups;
    files.extend(
        context
            .credentials
            .lookup_files(&namespace, lookups)
            .await?,
    );
    apply_secret(pipeline, context, Stage::Process, &files).await
}

/// Sees to the Secret of a stage; its resource version, where one is needed. One that isn't needed any
/// more is emptied: the operator may delete none, it goes with the pipeline.
pub async fn apply_secret(
    pipeline: &DataPipeline,
    context: &Context,
    stage: Stage,
    files: &BTreeMap<String, String>,
) -> Result<Option<String>, Error> {
    let namespace = namespace(pipeline);
    let name = children::credentials_name(pipeline, stage);
    let live = context.api::<Secret>(&namespace).get_opt(&name).await?;
    if let Some(live) = &live
        && let Err(error) = check_owner(pipeline, live)
    {
        // Somebody else's is only in the way where one is needed.
        return match files.is_empty() {
            true => Ok(None),
            false => Err(error),
        };
    }
    let secret = if has_just(live.as_ref(), files) {
        live
    } else {
        let desired = children::credentials(pipeline, stage, files);
        Some(
            context
                .apply::<Secret>(&namespace, MANAGER, &desired)
                .await?,
        )
    };
    let needed = secret.filter(|_| !files.is_empty());
    Ok(needed.and_then(|secret| secret.resource_version()))
}

/// Whether a Secret has these files and no others; one that isn't there has none.
fn has_just(secret: Option<&Secret>, files: &BTreeMap<String, String>) -> bool {
    let there = secret.and_then(|secret| secret.data.as_ref());
    let there = there.into_iter().flatten();
    there
        .map(|(file, value)| (file.as_str(), value.0.as_slice()))
        .eq(files
            .iter()
            .map(|(file, value)| (file.as_str(), value.as_bytes())))
}

fn configs(
    pipeline: &DataPipeline,
    accepted: &Accepted,
    access: &Accesses,
    topic: &TopicRef,
    avro: Option<u32>,
) -> [(Stage, WorkerConfig); 2] {
    let registry = access
        .registry
        .as_ref()
        .map(|registry| registry.connection.clone());
    let ingest = IngestConfig {
        pipeline: pipeline_ref(pipeline),
        kafka: access.kafka.connection.clone(),
        topic: topic.clone(),
        dead_letter_topic: pipeline.dead_letter_topic_name(),
        key: accepted.key.clone(),
        source: pipeline.spec.source.clone(),
        schema: pipeline.spec.schema.clone(),
        schema_registry: registry.clone(),
        avro_schema_id: avro,
        memory_limit: None,
    };
    let cassandra = access.cassandra.as_ref();
    let process = ProcessConfig {
        pipeline: pipeline_ref(pipeline),
        kafka: access.kafka.connection.clone(),
        cassandra: cassandra.map(|access| access.connection.clone()),
        topic: topic.clone(),
        dead_letter_topic: pipeline.dead_letter_topic_name(),
        schema: pipeline.spec.schema.clone(),
        avro: registry.filter(|_| avro.is_some()),
        lookups: accepted.lookups.clone(),
        sinks: accepted.sinks.clone(),
        memory_limit: None,
    };
    [
        (Stage::Process, WorkerConfig::Process(process)),
        (Stage::Ingest, WorkerConfig::Ingest(ingest)),
    ]
}

/// Sees to a stage's configuration; its text, without the limit of memory. Pods that get another one
/// are replaced anyway, and a source that was read to its end isn't begun again for it.
async fn apply_config(
    pipeline: &DataPipeline,
    context: &Context,
    stage: Stage,
    config: &WorkerConfig,
) -> Result<String, Error> {
    let name = stage.object_name(pipeline);
    let yaml = children::worker_yaml(config)?;
    let live: Option<Arc<ConfigMap>> = watched(&context.stores.config_maps, pipeline, &name);
    let limit = children::memory_limit(pipeline, &context.config.worker);
    let limited = children::worker_yaml(&config.clone().limited(limit))?;
    let desired = children::config_map(pipeline, stage, &limited);
    ensure(pipeline, context, live.as_deref(), desired).await?;
    Ok(yaml)
}

/// Sees to a stage's configuration and its pods.
pub async fn apply_stage(
    pipeline: &DataPipeline,
    context: &Context,
    stage: Stage,
    config: &WorkerConfig,
    replicas: i32,
    credentials: Option<&str>,
) -> Result<(), Error> {
    let yaml = apply_config(pipeline, context, stage, config).await?;
    let name = stage.object_name(pipeline);
    let pods = Pods {
        stage,
        replicas,
        worker: &context.config.worker,
        yaml: &yaml,
        credentials,
    };
    let live: Option<Arc<Deployment>> = watched(&context.stores.deployments, pipeline, &name);
    let desired = children::deployment(pipeline, &pods);
    ensure(pipeline, context, live.as_deref(), desired).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use k8s_openapi::ByteString;
    use millstream_plan::accept;
    use serde_json::json;

    use super::*;

    #[test]
    fn a_pipeline_needs_the_tables_of_its_rows_and_of_its_groups() {
        let pipeline: DataPipeline = serde_saphyr::from_str(
            "
apiVersion: millstream.dev/v1alpha1
kind: DataPipeline
metadata: {name: orders, namespace: shop}
spec:
  source: {generator: {}}
  schema: id UUID
  sinks:
    - name: s
      sql: SELECT id, count(*) AS n FROM records GROUP BY id
      cassandra: {keyspace: ks, table: t, primaryKey: {partitionKey: [id]}}
",
        )
        .unwrap();
        let accepted = accept(&pipeline, &[]).unwrap();
        for (keyspace, table, needed) in [
            ("ks", "t", true),
            ("ks", "t__state", true),
            ("ks", "theirs", false),
            ("others", "t", false),
        ] {
            let needs = needs(&accepted, keyspace, table);
            assert_eq!(needs, needed, "{keyspace}.{table}");
        }
    }

    #[test]
    fn a_keyspace_is_in_the_way_also_where_it_cannot_be_read() {
        let keyspace = |name: &str, spec| -> DynamicObject {
            let metadata = json!({"name": name, "namespace": "shop"});
            serde_json::from_value(json!({"metadata": metadata, "spec": spec})).unwrap()
        };
        for (name, spec, is_in_the_way_of) in [
            ("mine", json!({"keyspaceName": "my_shop", "newer": 1}), true),
            ("my-shop", json!({"tables": "newer"}), true),
            ("my.shop", json!({}), true),
            ("my-shop", json!({"keyspaceName": "theirs"}), true),
            ("my.shop", json!({"keyspaceName": "theirs"}), false),
            ("theirs", json!(null), false),
        ] {
            let keyspace = keyspace(name, spec);
            assert_eq!(
                is_in_the_way(&keyspace, "my_shop"),
                is_in_the_way_of,
                "{keyspace:?}"
            );
        }
    }

    #[test]
    fn a_secret_is_written_where_it_has_anything_else() {
        let files = |files: &[&str]| -> BTreeMap<String, String> {
            let files = files.iter().map(|file| ((*file).into(), "geheim".into()));
            files.collect()
        };
        let secret = |there: &[&str]| Secret {
            data: Some(
                files(there)
                    .into_iter()
                    .map(|(file, value)| (file, ByteString(value.into_bytes())))
                    .collect(),
            ),
            ..Secret::default()
        };
        for (live, wanted, written) in [
            (None, &[][..], false),
            (None, &["kafka-password"], true),
            (Some(Secret::default()), &[], false),
            (Some(secret(&[])), &[], false),
            (
                Some(secret(&["kafka-password"])),
                &["kafka-password"],
                false,
            ),
            (Some(secret(&["kafka-password", "ca"])), &["ca"], true),
            // What was taken out of the spec isn't left to be read.
            (Some(secret(&["kafka-password"])), &[], true),
        ] {
            let has = has_just(live.as_ref(), &files(wanted));
            assert_eq!(has, !written, "{live:?} {wanted:?}");
        }
    }
}
