//! The objects that a pipeline is made of. Pure: built from what is accepted and provisioned.

mod volumes;

use std::collections::BTreeMap;

use k8s_openapi::{ByteString, api::core::v1::ResourceRequirements};
use kube::{Resource, ResourceExt};
use millstream_api::{
    DataPipeline, GROUP, Keyspace,
    keyspace::TableSpec,
    schedule::Schedule,
    worker::{HTTP_PORT, MAX_DEAD_LETTER_BYTES, SERVE_PORT, WorkerConfig},
};
use millstream_plan::{Refusal, claim::made_name};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::ensure::bytes;
use crate::{
    config,
    topic::{GROUPED, KEY},
};

/// Label of everything that the operator makes, with [`OPERATOR`].
pub const MANAGED_BY: &str = "app.kubernetes.io/managed-by";
/// Value of [`MANAGED_BY`].
pub const OPERATOR: &str = "millstream";
/// Label with the name of the pipeline.
pub const PIPELINE: &str = "millstream.dev/pipeline";
/// Label with the stage.
pub const STAGE: &str = "app.kubernetes.io/component";
/// Annotation of the pods with the hash of their configuration.
pub const CONFIG_HASH: &str = "millstream.dev/config-hash";
/// Annotation of the pods with the version of their credentials.
pub const CREDENTIALS_VERSION: &str = "millstream.dev/credentials-version";
/// Annotation of a Job with the time of its run.
pub const AT: &str = "millstream.dev/scheduled-at";
/// Annotation of a Job with the value by which its run was asked for.
pub const RUN: &str = "millstream.dev/run-now";
/// Annotation of a Job with what the sinks had counted before its run.
pub const COUNTS: &str = "millstream.dev/counts-before";
/// Label of Keyspaces that no person made.
pub const CREATED_BY: &str = "millstream.dev/created-by";

/// Room beside the value of a dead letter: key, headers, framing.
const DEAD_LETTER_OVERHEAD: usize = 64 * 1024;

/// One of the Deployments.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// Source → topic.
    Ingest,
    /// Topic → SQL → sinks.
    Process,
    /// Tables → HTTP.
    Serve,
}

impl Stage {
    /// All.
    pub const ALL: [Stage; 3] = [Stage::Ingest, Stage::Process, Stage::Serve];

    /// The stage's name, as in labels and names.
    pub fn name(self) -> &'static str {
        match self {
            Stage::Ingest => "ingest",
            Stage::Process => "process",
            Stage::Serve => "serve",
        }
    }

    /// Name of the Deployment and the ConfigMap.
    pub fn object_name(self, pipeline: &DataPipeline) -> String {
        format!("{}-{}", pipeline.name_any(), self.name())
    }
}

/// Name of the Secret with the workers' credentials; the REST service has one of its own, so that
/// its pods have no more than they need, and a new API key replaces no others.
pub fn credentials_name(pipeline: &DataPipeline, stage: Stage) -> String {
    match stage {
        Stage::Serve => format!("{}-credentials", stage.object_name(pipeline)),
        _ => format!("{}-credentials", pipeline.name_any()),
    }
}

/// Annotation on a Keyspace with what was last applied of the pipeline's part.
pub fn part_annotation(pipeline: &DataPipeline) -> String {
    format!("applied.millstream.dev/{}", pipeline.name_any())
}

/// The topic between the stages; with groups its key can't change.
pub fn topic(pipeline: &DataPipeline, key: &str, grouped: bool) -> Value {
    let topic = &pipeline.spec.topic;
    let mut object = child(pipeline, "Topic", &pipeline.name_any(), None);
    object["metadata"]["annotations"] = json!({KEY: key});
    if grouped {
        object["metadata"]["annotations"][GROUPED] = json!("true");
    }
    object["spec"] = plain(json!({
        "topicName": pipeline.topic_name(),
        "partitions": topic.partitions,
        "replicationFactor": topic.replication_factor,
        "config": topic.config,
        "deletionPolicy": pipeline.spec.deletion_policy,
        "kafka": pipeline.spec.kafka,
    }));
    object
}

/// The topic for records that can't be processed.
pub fn dead_letter_topic(pipeline: &DataPipeline) -> Value {
    let mut object = child(pipeline, "Topic", &pipeline.dead_letter_name(), None);
    object["spec"] = plain(json!({
        "topicName": pipeline.dead_letter_topic_name(),
        "partitions": 1,
        "replicationFactor": pipeline.spec.topic.replication_factor,
        "config": {"max.message.bytes": (MAX_DEAD_LETTER_BYTES + DEAD_LETTER_OVERHEAD).to_string()},
        "deletionPolicy": pipeline.spec.deletion_policy,
        "kafka": pipeline.spec.kafka,
    }));
    object
}

/// The pipeline's part of a Keyspace: of one that a person made just the tables; of one that
/// pipelines made all, owned by all of them.
pub fn keyspace(
    pipeline: &DataPipeline,
    name: &str,
    existing: Option<&Keyspace>,
    tables: &[TableSpec],
) -> Value {
    let made_by_pipelines =
        existing.is_none_or(|keyspace| keyspace.labels().contains_key(CREATED_BY));
    let resource_name = existing.map_or_else(|| made_name(name), ResourceExt::name_any);
    let mut metadata = json!({"name": resource_name, "namespace": pipeline.namespace()});
    let mut spec = json!({"tables": tables});
    if made_by_pipelines {
        // Of one that others have a part in it stays: with two credentials they would undo each other's.
        let shared = existing.filter(|keyspace| !is_alone(pipeline, keyspace));
        let cassandra = match shared {
            Some(keyspace) => &keyspace.spec.cassandra,
            None => &pipeline.spec.cassandra,
        };
        // Not a controller reference: of those an object can have just one.
        metadata["ownerReferences"] = json!([pipeline.owner_ref(&())]);
        metadata["labels"] = json!({MANAGED_BY: OPERATOR, CREATED_BY: "pipeline"});
        spec["keyspaceName"] = json!(name);
        spec["cassandra"] = json!(cassandra);
    }
    json!({
        "apiVersion": Keyspace::api_version(&()),
        "kind": Keyspace::kind(&()),
        "metadata": metadata,
        "spec": plain(spec),
    })
}

/// Whether a Keyspace is this pipeline's alone: no person made it, and no other pipeline owns it too.
pub fn is_alone(pipeline: &DataPipeline, keyspace: &Keyspace) -> bool {
    let owners = keyspace.owner_references();
    let mut uids = owners.iter().map(|owner| &owner.uid);
    keyspace.labels().contains_key(CREATED_BY)
        && !owners.is_empty()
        && uids.all(|uid| Some(uid) == pipeline.meta().uid.as_ref())
}

/// The workers' credentials.
pub fn credentials(
    pipeline: &DataPipeline,
    stage: Stage,
    files: &BTreeMap<String, String>,
) -> Value {
    let name = credentials_name(pipeline, stage);
    let mut object = child(pipeline, "Secret", &name, None);
    object["apiVersion"] = json!("v1");
    let data: BTreeMap<_, _> = files
        .iter()
        .map(|(file, value)| (file, ByteString(value.clone().into_bytes())))
        .collect();
    object["data"] = json!(data);
    object
}

/// The configuration of a stage.
pub fn config_map(pipeline: &DataPipeline, stage: Stage, yaml: &str) -> Value {
    let name = stage.object_name(pipeline);
    let mut object = child(pipeline, "ConfigMap", &name, Some(stage));
    object["apiVersion"] = json!("v1");
    object["data"] = json!({"worker.yaml": yaml});
    object
}

/// A worker's configuration as the file that it reads.
pub fn worker_yaml(config: &WorkerConfig) -> Result<String, crate::error::Error> {
    serde_saphyr::to_string(config).map_err(|error| {
        let message = format!("the worker's configuration can't be written: {error}");
        Refusal::InvalidSpec(message).into()
    })
}

/// The memory that a worker's container may take, in bytes; none where it has no limit.
pub fn memory_limit(pipeline: &DataPipeline, worker: &config::Worker) -> Option<u64> {
    let limits = resources(pipeline, worker)?.limits.as_ref()?;
    bytes(&limits.get("memory")?.0)
}

fn resources<'a>(
    pipeline: &'a DataPipeline,
    worker: &'a config::Worker,
) -> Option<&'a ResourceRequirements> {
    let own = pipeline.spec.resources.as_ref();
    own.or(worker.resources.as_ref())
}

/// What the pods of a stage are made from.
pub struct Pods<'a> {
    pub stage: Stage,
    pub replicas: i32,
    pub worker: &'a config::Worker,
    /// The configuration: pods are replaced when it changes.
    pub yaml: &'a str,
    /// Resource version of the Secret, where there is one: pods are replaced when it changes.
    pub credentials: Option<&'a str>,
}

/// A stage's Deployment.
pub fn deployment(pipeline: &DataPipeline, pods: &Pods) -> Value {
    let stage = pods.stage;
    let name = stage.object_name(pipeline);
    let strategy = match stage {
        // Two at once would read the source twice.
        Stage::Ingest => json!({"type": "Recreate"}),
        // One after the other in place: more consumers than wanted would only mean more rebalances.
        Stage::Process => {
            json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 0, "maxUnavailable": 1}})
        }
        // Somebody answers at any time.
        Stage::Serve => {
            json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}})
        }
    };
    let mut object = child(pipeline, "Deployment", &name, Some(stage));
    object["apiVersion"] = json!("apps/v1");
    object["spec"] = json!({
        "replicas": pods.replicas,
        "revisionHistoryLimit": 2,
        "selector": {"matchLabels": selector(pipeline, stage)},
        "strategy": strategy,
        "template": template(pipeline, pods),
    });
    object
}

/// The Job of a run. Its notes are annotations: why it was begun, and what there was before.
pub fn job(
    pipeline: &DataPipeline,
    pods: &Pods,
    name: &str,
    notes: &Value,
    schedule: &Schedule,
) -> Value {
    let mut template = template(pipeline, pods);
    template["spec"]["restartPolicy"] = json!("Never");
    if let Some(arguments) = template["spec"]["containers"][0]["args"].as_array_mut() {
        arguments.extend([json!("--run"), json!(name)]);
        if let Some(limit) = schedule.run_for {
            let seconds = std::time::Duration::from(limit).as_secs_f64();
            arguments.extend([json!("--run-for"), json!(seconds.to_string())]);
        }
    }
    let mut object = child(pipeline, "Job", name, Some(pods.stage));
    object["apiVersion"] = json!("batch/v1");
    object["metadata"]["annotations"] = notes.clone();
    object["spec"] = json!({
        "backoffLimit": 6,
        // Two at once would read the source twice.
        "podReplacementPolicy": "Failed",
        // A pod that is evicted says nothing of the run.
        "podFailurePolicy": {
            "rules": [{"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}],
        },
        "template": template,
    });
    object
}

fn template(pipeline: &DataPipeline, pods: &Pods) -> Value {
    let mut annotations = json!({
        CONFIG_HASH: hash(pods.yaml),
        "prometheus.io/scrape": "true",
        "prometheus.io/port": HTTP_PORT.to_string(),
        "prometheus.io/path": "/metrics",
    });
    if let Some(version) = pods.credentials {
        annotations[CREDENTIALS_VERSION] = json!(version);
    }
    json!({
        "metadata": {"labels": labels(pipeline, Some(pods.stage)), "annotations": annotations},
        "spec": pod(pipeline, pods),
    })
}

fn pod(pipeline: &DataPipeline, pods: &Pods) -> Value {
    let worker = pods.worker;
    let config = pods.stage.object_name(pipeline);
    let mut volumes = vec![json!({"name": "config", "configMap": {"name": config}})];
    let mut mounts =
        vec![json!({"name": "config", "mountPath": "/etc/millstream", "readOnly": true})];
    if pods.credentials.is_some() {
        let secret = credentials_name(pipeline, pods.stage);
        volumes.push(json!({"name": "credentials", "secret": {"secretName": secret}}));
        let path = "/etc/millstream-credentials";
        mounts.push(json!({"name": "credentials", "mountPath": path, "readOnly": true}));
    }
    let more = match pods.stage {
        Stage::Ingest => pipeline.spec.source.files().map(volumes::of),
        Stage::Process => Some(volumes::of_process(&pipeline.spec)),
        Stage::Serve => Some(volumes::of_serve(&pipeline.spec)),
    };
    for (volume, mount) in more.into_iter().flatten() {
        volumes.push(volume);
        mounts.push(mount);
    }
    let mut ports = vec![json!({"name": "http", "containerPort": HTTP_PORT, "protocol": "TCP"})];
    let mut lifecycle = Value::Null;
    if pods.stage == Stage::Serve {
        ports.push(json!({"name": "serve", "containerPort": SERVE_PORT, "protocol": "TCP"}));
        // Until the nodes have heard that the pod goes, requests still come.
        lifecycle = json!({"preStop": {"sleep": {"seconds": 5}}});
    }
    let probe = |path: &str, period: i32| json!({"httpGet": {"path": path, "port": "http"}, "periodSeconds": period, "timeoutSeconds": 3});
    plain(json!({
        "automountServiceAccountToken": false,
        "enableServiceLinks": false,
        "terminationGracePeriodSeconds": 30,
        "securityContext": {
            "runAsNonRoot": true,
            "runAsUser": 65532,
            "runAsGroup": 65532,
            "fsGroup": 65532,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "imagePullSecrets": worker.image_pull_secrets,
        "nodeSelector": worker.node_selector,
        "tolerations": worker.tolerations,
        "containers": [{
            "name": "worker",
            "image": worker.image,
            "imagePullPolicy": worker.image_pull_policy,
            "args": [
                "run",
                "--config", "/etc/millstream/worker.yaml",
                "--credentials-dir", "/etc/millstream-credentials",
            ],
            "env": [{"name": "MILLSTREAM_LOG_FORMAT", "value": "json"}],
            "ports": ports,
            "lifecycle": lifecycle,
            "livenessProbe": probe("/healthz", 10),
            "readinessProbe": probe("/readyz", 2),
            "resources": resources(pipeline, worker),
            "securityContext": {
                "allowPrivilegeEscalation": false,
                "readOnlyRootFilesystem": true,
                "capabilities": {"drop": ["ALL"]},
            },
            "volumeMounts": mounts,
        }],
        "volumes": volumes,
    }))
}

/// The Service before the pods that answer requests.
pub fn service(pipeline: &DataPipeline, port: i32) -> Value {
    let stage = Stage::Serve;
    let name = stage.object_name(pipeline);
    let mut object = child(pipeline, "Service", &name, Some(stage));
    object["apiVersion"] = json!("v1");
    object["spec"] = json!({
        "selector": selector(pipeline, stage),
        "ports": [{"name": "http", "port": port, "targetPort": "serve", "protocol": "TCP"}],
    });
    object
}

/// What every child has in common.
fn child(pipeline: &DataPipeline, kind: &str, name: &str, stage: Option<Stage>) -> Value {
    json!({
        "apiVersion": format!("{GROUP}/v1alpha1"),
        "kind": kind,
        "metadata": {
            "name": name,
            "namespace": pipeline.namespace(),
            "labels": labels(pipeline, stage),
            "ownerReferences": [pipeline.controller_owner_ref(&())],
        },
    })
}

fn labels(pipeline: &DataPipeline, stage: Option<Stage>) -> BTreeMap<&'static str, String> {
    let mut labels = BTreeMap::from([
        ("app.kubernetes.io/name", "millstream-worker".to_string()),
        ("app.kubernetes.io/instance", pipeline.name_any()),
        (MANAGED_BY, OPERATOR.to_string()),
        (PIPELINE, pipeline.name_any()),
    ]);
    if let Some(stage) = stage {
        labels.insert(STAGE, stage.name().to_string());
    }
    labels
}

fn selector(pipeline: &DataPipeline, stage: Stage) -> BTreeMap<&'static str, String> {
    BTreeMap::from([
        (PIPELINE, pipeline.name_any()),
        (STAGE, stage.name().to_string()),
    ])
}

/// The label selector of the process pods, for autoscalers.
pub fn process_selector(pipeline: &DataPipeline) -> String {
    let parts = selector(pipeline, Stage::Process);
    let parts: Vec<_> = parts
        .iter()
        .map(|(key, value)| format!("{key}={value}"))
        .collect();
    parts.join(",")
}

/// Sixteen hexadecimal digits that change when the text does.
pub fn hash(text: &str) -> String {
    crate::hex(&Sha256::digest(text)[..8])
}

/// Without members that are null or empty: absent is what they mean.
fn plain(value: Value) -> Value {
    let Value::Object(members) = value else {
        return value;
    };
    let said = |value: &Value| match value {
        Value::Null => false,
        Value::Object(members) => !members.is_empty(),
        Value::Array(elements) => !elements.is_empty(),
        _ => true,
    };
    let members = members.into_iter().map(|(key, value)| match value {
        Value::Array(elements) => (key, Value::Array(elements.into_iter().map(plain).collect())),
        other => (key, other),
    });
    Value::Object(members.filter(|(_, value)| said(value)).collect())
}

#[cfg(test)]
mod tests;
