//! How far a pipeline is: pods, lag, rows, errors. Reads only.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::{StreamExt, stream};
use k8s_openapi::{
    api::{apps::v1::Deployment, core::v1::Pod},
    jiff::Timestamp,
};
use kube::ResourceExt;
use millstream_api::{
    DataPipeline,
    pipeline::SinkStatus,
    worker::{HTTP_PORT, WorkerStatus},
};

use super::{
    after,
    children::{CONFIG_HASH, PIPELINE, STAGE, Stage},
    offsets::Offsets,
    runs::Runs,
};
use crate::{context::Context, controller::namespace, error::Error};

/// What was seen of a pipeline.
#[derive(Clone, Debug, Default)]
pub struct Observed {
    pub stages: BTreeMap<Stage, ObservedStage>,
    /// What the workers answer, by stage.
    pub workers: Vec<(Stage, WorkerStatus)>,
    /// Nothing where Kafka couldn't be asked.
    pub progress: Option<Progress>,
    /// Identity of the topic in which every sink was found to have a place, in this visit.
    pub started: Option<String>,
    /// Hash of the configuration with which the source is read, where a Deployment reads it.
    pub configuration: Option<String>,
    /// What is seen of runs, and was done.
    pub runs: Runs,
    /// What must come before the source is read.
    pub waits_for: Option<String>,
}

/// What was seen of a stage's Deployment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ObservedStage {
    pub wanted: i32,
    pub pods: i32,
    pub ready: i32,
    /// Whether all pods are made from the current template.
    pub rolled_out: bool,
    /// Why a pod can't start, as Kubernetes says it.
    pub trouble: Option<String>,
}

/// How far the sinks are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    pub records: i64,
    pub sinks: Vec<SinkStatus>,
}

impl Progress {
    fn of(pipeline: &DataPipeline, offsets: &Offsets) -> Self {
        Progress {
            records: offsets.records(),
            sinks: offsets.statuses(&pipeline.spec.sinks),
        }
    }
}

/// Looks at everything that a pipeline consists of.
pub async fn observe(
    pipeline: &DataPipeline,
    context: &Context,
    offsets: &Result<Option<Offsets>, Error>,
    runs: Runs,
) -> Observed {
    let pods = pods(pipeline, context);
    let deployments = context.api::<Deployment>(&namespace(pipeline));
    let mut stages = BTreeMap::new();
    let mut configuration = None;
    for stage in Stage::ALL {
        let name = stage.object_name(pipeline);
        // Asked for, as what is watched may be older than what was just applied.
        let deployment = match deployments.get_opt(&name).await {
            Ok(deployment) => deployment,
            Err(error) => {
                tracing::debug!(name, %error, "a Deployment can't be read");
                None
            }
        };
        let mut of_stage = pods.iter().filter(|(of, _)| *of == stage);
        if let Some(deployment) = deployment {
            if stage == Stage::Ingest {
                configuration = configuration_of(&deployment);
            }
            let trouble = of_stage.find_map(|(_, pod)| trouble(pod));
            stages.insert(stage, observed_stage(&deployment, trouble));
        } else if stage == Stage::Ingest && pipeline.spec.schedule.is_some() {
            let of_stage = of_stage.map(|(_, pod)| pod.as_ref());
            stages.insert(stage, observed_runs(of_stage));
        }
    }
    if let Err(error) = offsets {
        tracing::debug!(pipeline = pipeline.name_any(), "lag isn't known: {error}");
    }
    Observed {
        stages,
        workers: ask_workers(context, &pods, configuration.as_deref()).await,
        progress: offsets
            .as_ref()
            .ok()
            .and_then(Option::as_ref)
            .map(|offsets| Progress::of(pipeline, offsets)),
        started: context
            .memory
            .of_pipeline(&pipeline.uid().unwrap_or_default(), |memory| {
                memory.started.take()
            }),
        configuration,
        runs,
        waits_for: after::waits_for(pipeline, context, Timestamp::now()),
    }
}

fn configuration_of(deployment: &Deployment) -> Option<String> {
    let template = &deployment.spec.as_ref()?.template;
    let annotations = template.metadata.as_ref()?.annotations.as_ref()?;
    annotations.get(CONFIG_HASH).cloned()
}

/// The pods of runs: there may be none, and that is all right.
fn observed_runs<'a>(pods: impl Iterator<Item = &'a Pod>) -> ObservedStage {
    let at_work = pods.filter(|pod| {
        let phase = pod
            .status
            .as_ref()
            .and_then(|status| status.phase.as_deref());
        !matches!(phase, Some("Succeeded" | "Failed"))
    });
    let at_work: Vec<_> = at_work.collect();
    ObservedStage {
        pods: at_work.len() as i32,
        rolled_out: true,
        trouble: at_work.into_iter().find_map(trouble),
        ..ObservedStage::default()
    }
}

fn observed_stage(deployment: &Deployment, trouble: Option<String>) -> ObservedStage {
    let wanted = deployment.spec.as_ref().and_then(|spec| spec.replicas);
    let wanted = wanted.unwrap_or(1);
    let status = deployment.status.clone().unwrap_or_default();
    let seen = status.observed_generation == deployment.metadata.generation;
    ObservedStage {
        wanted,
        pods: status.replicas.unwrap_or(0),
        ready: status.ready_replicas.unwrap_or(0),
        rolled_out: seen
            && status.updated_replicas.unwrap_or(0) == wanted
            && status.replicas.unwrap_or(0) == wanted,
        trouble,
    }
}

/// The pipeline's pods.
fn pods(pipeline: &DataPipeline, context: &Context) -> Vec<(Stage, Arc<Pod>)> {
    let namespace = pipeline.namespace();
    let name = pipeline.name_any();
    let state = context.stores.pods.state();
    state
        .into_iter()
        .filter(|pod| pod.namespace() == namespace && pod.labels().get(PIPELINE) == Some(&name))
        .filter_map(|pod| {
            let label = pod.labels().get(STAGE)?;
            let stage = Stage::ALL.into_iter().find(|stage| stage.name() == label)?;
            Some((stage, pod))
        })
        .collect()
}

/// Why a pod can't start, if it can't.
fn trouble(pod: &Pod) -> Option<String> {
    let status = pod.status.as_ref()?;
    let name = pod.name_any();
    let unscheduled = status
        .conditions
        .iter()
        .flatten()
        .find(|condition| condition.type_ == "PodScheduled" && condition.status == "False");
    if let Some(message) = unscheduled.and_then(|condition| condition.message.as_ref()) {
        return Some(format!("pod {name} can't be scheduled: {message}"));
    }
    let container = status.container_statuses.iter().flatten().next()?;
    let waiting = container.state.as_ref()?.waiting.as_ref()?;
    let reason = waiting.reason.as_deref()?;
    if matches!(reason, "ContainerCreating" | "PodInitializing") {
        return None;
    }
    let message = waiting.message.as_deref().unwrap_or_default();
    // What comes later is about ports and addresses, and other ones each time.
    let message = &message[..message.floor_char_boundary(200)];
    Some(
        format!("pod {name}: {reason} {message}")
            .trim_end()
            .to_string(),
    )
}

/// Asks each running worker for its errors. One that doesn't answer has nothing to say.
async fn ask_workers(
    context: &Context,
    pods: &[(Stage, Arc<Pod>)],
    configuration: Option<&str>,
) -> Vec<(Stage, WorkerStatus)> {
    let running = pods.iter().filter_map(|(stage, pod)| {
        let status = pod.status.as_ref()?;
        let running =
            status.phase.as_deref() == Some("Running") && pod.metadata.deletion_timestamp.is_none();
        let address = running.then(|| status.pod_ip.clone()).flatten()?;
        let hash = pod.annotations().get(CONFIG_HASH);
        let current = hash.map(String::as_str) == configuration;
        Some((*stage, address, current))
    });
    let asked: Vec<_> = running.collect();
    let answers = stream::iter(asked).map(|(stage, address, current)| async move {
        let host = if address.contains(':') {
            format!("[{address}]")
        } else {
            address
        };
        let url = format!("http://{host}:{HTTP_PORT}/status");
        let answer = context.http.get(url).send().await.ok()?;
        let mut status = answer.json::<WorkerStatus>().await.ok()?;
        // One with another configuration has read another source, maybe.
        status.complete &= current;
        Some((stage, status))
    });
    let mut answers: Vec<_> = answers
        .buffer_unordered(8)
        .filter_map(async |answer| answer)
        .collect()
        .await;
    answers.sort_by_key(|(stage, status)| (*stage, status.errors.clone()));
    answers
}
