//! What every reconcile shares: clients, watched objects, and the ways to write.

use std::{
    collections::HashMap,
    fmt::Debug,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use k8s_openapi::{
    NamespaceResourceScope,
    api::{
        apps::v1::Deployment,
        core::v1::{ConfigMap, ObjectReference, Pod},
    },
    apimachinery::pkg::apis::meta::v1::{Condition, ObjectMeta},
};
use kube::{
    Api, Client, Resource, ResourceExt,
    api::{ApiResource, DynamicObject, Patch, PatchParams},
    core::DeserializeGuard,
    runtime::{
        events::{Event, EventType, Recorder, Reporter},
        reflector::Store,
    },
};
use millstream_api::{
    CassandraConnection, DataPipeline, KafkaConnection, Keyspace, SchemaRegistryConnection, Topic,
    condition::{self, reason},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};

use crate::{
    cassandra::{Cassandra, CassandraError},
    conditions,
    config::Config,
    connections::Connections,
    credentials::{Access, Credentials},
    error::Error,
    kafka::{Kafka, KafkaError},
    metrics::{Metrics, System},
    pipeline::{
        amiss::Amiss,
        offsets::{Offsets, Tails},
        scaling::Scaler,
    },
    registry::{Registry, RegistryError},
};

/// Field manager of everything but status.
pub const MANAGER: &str = "millstream-operator";
/// Field manager of status.
const STATUS_MANAGER: &str = "millstream-status";

/// More objects than this are not remembered.
const MEMORY: usize = 10_000;

/// Nor more Events.
const NOTES: usize = 1_000;

/// A namespaced resource with a type of its own.
pub trait Kind:
    Resource<DynamicType = (), Scope = NamespaceResourceScope>
    + Clone
    + Debug
    + Serialize
    + DeserializeOwned
    + Send
    + Sync
    + 'static
{
}

impl<K> Kind for K where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
        + Clone
        + Debug
        + Serialize
        + DeserializeOwned
        + Send
        + Sync
        + 'static
{
}

/// What every reconcile shares.
pub struct Context {
    pub client: Client,
    pub config: Arc<Config>,
    pub credentials: Credentials,
    pub resync: Duration,
    pub stores: Stores,
    pub metrics: Arc<Metrics>,
    /// By whose name Events are told.
    pub reporter: Reporter,
    /// For the workers' `/status`.
    pub http: reqwest::Client,
    pub kafkas: Connections<Kafka, KafkaError>,
    pub cassandras: Connections<Cassandra, CassandraError>,
    pub registries: Connections<Registry, RegistryError>,
    pub memory: Memory,
}

/// Watched objects.
pub struct Stores {
    pub topics: Store<DeserializeGuard<Topic>>,
    pub keyspaces: Store<DeserializeGuard<Keyspace>>,
    pub pipelines: Store<DeserializeGuard<DataPipeline>>,
    pub deployments: Store<Deployment>,
    pub config_maps: Store<ConfigMap>,
    pub pods: Store<Pod>,
}

impl Stores {
    /// The well-formed Topics of all namespaces.
    pub fn topics(&self) -> Vec<Topic> {
        well_formed(&self.topics)
    }

    /// The well-formed Keyspaces of all namespaces.
    pub fn keyspaces(&self) -> Vec<Keyspace> {
        well_formed(&self.keyspaces)
    }

    /// The well-formed DataPipelines of all namespaces.
    pub fn pipelines(&self) -> Vec<DataPipeline> {
        well_formed(&self.pipelines)
    }
}

fn well_formed<K: Kind>(store: &Store<DeserializeGuard<K>>) -> Vec<K> {
    let state = store.state();
    state
        .iter()
        .filter_map(|guard| guard.0.as_ref().ok().cloned())
        .collect()
}

/// What is remembered from one reconcile to the next; losing it loses nothing but a little time,
/// so it is emptied where it would grow without bound.
#[derive(Default)]
pub struct Memory {
    failures: Mutex<HashMap<String, u32>>,
    written: Mutex<HashMap<String, Instant>>,
    pipelines: Mutex<HashMap<String, PipelineMemory>>,
    recorders: Mutex<HashMap<String, Recorder>>,
}

/// What is remembered of a pipeline.
#[derive(Default)]
pub struct PipelineMemory {
    pub tails: Tails,
    pub scaler: Scaler,
    pub amiss: Amiss,
    /// Identity of the topic in which every sink was found to have a place, in this visit.
    pub started: Option<String>,
}

impl PipelineMemory {
    /// Takes note of a look at Kafka. What fails then keeps the pods as they are, whatever the step;
    /// the autoscaler must know that there was a time of which nothing is known.
    pub fn looked(&mut self, offsets: &Result<Option<Offsets>, Error>) {
        if !matches!(offsets, Ok(Some(_))) {
            self.scaler.blind();
        }
    }
}

impl Memory {
    /// Counts a failure; the number of those in a row.
    pub fn failed(&self, key: &str) -> u32 {
        let mut failures = lock(&self.failures);
        if failures.len() > MEMORY {
            failures.clear();
        }
        let count = failures.entry(key.into()).or_default();
        *count += 1;
        *count
    }

    /// Forgets an object's failures.
    pub fn succeeded(&self, key: &str) {
        lock(&self.failures).remove(key);
    }

    /// Uses what is remembered of a pipeline; nothing where it is new.
    pub fn of_pipeline<T>(&self, uid: &str, use_: impl FnOnce(&mut PipelineMemory) -> T) -> T {
        let mut pipelines = lock(&self.pipelines);
        if pipelines.len() > MEMORY {
            pipelines.clear();
        }
        use_(pipelines.entry(uid.into()).or_default())
    }

    /// What publishes Events with this note. A recorder takes Events of one reason for the same,
    /// and keeps the note of the first for minutes: so each note has one of its own.
    fn recorder(&self, note: &str, new: impl FnOnce() -> Recorder) -> Recorder {
        let mut recorders = lock(&self.recorders);
        if recorders.len() > NOTES {
            recorders.clear();
        }
        recorders.entry(note.into()).or_insert_with(new).clone()
    }

    /// Time since an object's numbers were last written.
    pub fn since_written(&self, uid: &str) -> Option<Duration> {
        lock(&self.written).get(uid).map(Instant::elapsed)
    }

    /// An object's numbers have been written.
    pub fn numbers_written(&self, uid: &str) {
        let mut written = lock(&self.written);
        if written.len() > MEMORY {
            written.clear();
        }
        written.insert(uid.into(), Instant::now());
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Context {
    /// The open connection to a Kafka cluster.
    pub async fn kafka(&self, access: &Access<KafkaConnection>) -> Result<Arc<Kafka>, Error> {
        let connect = async { Kafka::new(access) };
        Ok(self.kafkas.get(access.fingerprint(), connect).await?)
    }

    /// The open connection to a Cassandra cluster.
    pub async fn cassandra(
        &self,
        access: &Access<CassandraConnection>,
    ) -> Result<Arc<Cassandra>, Error> {
        let connect = Cassandra::connect(access);
        Ok(self.cassandras.get(access.fingerprint(), connect).await?)
    }

    /// The client of a schema registry.
    pub async fn registry(
        &self,
        access: &Access<SchemaRegistryConnection>,
    ) -> Result<Arc<Registry>, Error> {
        let connect = async { Registry::new(access) };
        Ok(self.registries.get(access.fingerprint(), connect).await?)
    }

    /// The API of a kind in a namespace.
    pub fn api<K: Kind>(&self, namespace: &str) -> Api<K> {
        Api::namespaced(self.client.clone(), namespace)
    }

    /// Likewise, for objects that may be malformed.
    pub fn untyped<K: Kind>(&self, namespace: &str) -> Api<DynamicObject> {
        let resource = ApiResource::erase::<K>(&());
        Api::namespaced_with(self.client.clone(), namespace, &resource)
    }

    /// Applies an object, server side.
    pub async fn apply<K: Kind>(
        &self,
        namespace: &str,
        manager: &str,
        object: &Value,
    ) -> Result<K, Error> {
        let name = object["metadata"]["name"].as_str().unwrap_or_default();
        tracing::debug!(kind = %K::kind(&()), namespace, name, manager, "applying");
        self.metrics.wrote(System::Kubernetes);
        let applied = self
            .api::<K>(namespace)
            .patch(
                name,
                &PatchParams::apply(manager).force(),
                &Patch::Apply(object),
            )
            .await?;
        Ok(applied)
    }

    /// Writes an object's status. Names the UID, so that an object that was made anew meanwhile
    /// under the same name isn't given the status of its predecessor.
    pub async fn patch_status<K: Kind>(
        &self,
        meta: &ObjectMeta,
        status: &impl Serialize,
    ) -> Result<(), Error> {
        let resource = ApiResource::erase::<K>(&());
        let name = meta.name.as_deref().unwrap_or_default();
        let body = json!({
            "apiVersion": resource.api_version,
            "kind": resource.kind,
            "metadata": {"name": name, "uid": meta.uid},
            "status": status,
        });
        let namespace = meta.namespace.as_deref().unwrap_or_default();
        self.metrics.wrote(System::Kubernetes);
        self.untyped::<K>(namespace)
            .patch_status(
                name,
                &PatchParams::apply(STATUS_MANAGER).force(),
                &Patch::Apply(body),
            )
            .await?;
        Ok(())
    }

    /// Sees to it that an object has a finalizer, or hasn't.
    pub async fn hold<K: Kind>(
        &self,
        object: &K,
        finalizer: &str,
        wanted: bool,
    ) -> Result<(), Error> {
        if object.finalizers().iter().any(|held| held == finalizer) == wanted {
            return Ok(());
        }
        let others = object.finalizers().iter().filter(|held| *held != finalizer);
        let mut finalizers: Vec<_> = others.cloned().collect();
        if wanted {
            finalizers.push(finalizer.into());
        }
        // With the resource version: somebody else's finalizer must not get lost.
        let patch = json!({"metadata": {
            "finalizers": finalizers,
            "resourceVersion": object.resource_version(),
        }});
        let namespace = object.namespace().unwrap_or_default();
        self.metrics.wrote(System::Kubernetes);
        let api = self.api::<K>(&namespace);
        let patched = api
            .patch(
                &object.name_any(),
                &PatchParams::default(),
                &Patch::Merge(&patch),
            )
            .await;
        match patched {
            Ok(_) => Ok(()),
            // Gone already: nothing holds it.
            Err(kube::Error::Api(status)) if status.code == 404 && !wanted => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Tells people of something once.
    pub async fn event<K: Kind>(&self, object: &K, type_: EventType, reason: &str, note: String) {
        self.event_about(object, None, type_, reason, note).await;
    }

    /// Likewise, of something that another object has to do with: the Event's `related`.
    pub async fn event_about<K: Kind>(
        &self,
        object: &K,
        other: Option<ObjectReference>,
        type_: EventType,
        reason: &str,
        note: String,
    ) {
        let new = || Recorder::new(self.client.clone(), self.reporter.clone());
        let note = conditions::clip(&note, conditions::MESSAGE);
        let recorder = self.memory.recorder(&note, new);
        let event = Event {
            type_,
            reason: reason.into(),
            note: Some(note),
            action: "Reconcile".into(),
            secondary: other,
        };
        self.metrics.wrote(System::Kubernetes);
        if let Err(error) = recorder.publish(&event, &object.object_ref(&())).await {
            tracing::warn!(%error, "an event could not be published");
        }
    }

    /// Tells people when `Ready` has another status or reason than before.
    pub async fn event_of_transition<K: Kind>(
        &self,
        object: &K,
        before: &[Condition],
        after: &[Condition],
    ) {
        let ready = |conditions| conditions::find(conditions, condition::READY);
        let Some(now) = ready(after) else { return };
        let same = ready(before)
            .is_some_and(|then| (&then.status, &then.reason) == (&now.status, &now.reason));
        let passing = [reason::WAITING, reason::PROGRESSING];
        if same || passing.contains(&now.reason.as_str()) {
            return;
        }
        let type_ = match now.status.as_str() {
            "True" => EventType::Normal,
            _ if now.reason == reason::PAUSED => EventType::Normal,
            _ => EventType::Warning,
        };
        self.event(object, type_, &now.reason, now.message.clone())
            .await;
    }
}
