//! How far a pipeline is: pods, lag, rows, errors. Reads only.

use std::{collections::BTreeMap, sync::Arc, time::Instant};

use futures::{StreamExt, stream};
use k8s_openapi::{
    api::{
        apps::v1::Deployment,
        core::v1::{ContainerStatus, Pod},
    },
    jiff::Timestamp,
};
use kube::ResourceExt;
use millstream_api::{
    DataPipeline, condition,
    pipeline::SinkStatus,
    worker::{HTTP_PORT, WorkerStatus},
};

use super::{
    after,
    children::{CONFIG_HASH, CREDENTIALS_VERSION, PIPELINE, STAGE, Stage},
    offsets::Offsets,
    runs::Runs,
};
use crate::{conditions, context::Context, controller::namespace, error::Error};

/// So many workers are asked at the same time: one that doesn't answer holds up the others.
const ASKED: usize = 32;

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
    /// What has been amiss for long: pods that don't answer, a run without a pod.
    pub amiss: Option<String>,
}

/// What was seen of a stage's Deployment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ObservedStage {
    pub wanted: i32,
    pub pods: i32,
    pub ready: i32,
    /// Whether all pods are made from the current template.
    pub rolled_out: bool,
    /// Whether a pod at work is made from another template.
    pub outdated: bool,
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
        let of_stage = pods.iter().filter(|(of, _)| *of == stage);
        let at_work: Vec<_> = of_stage
            .map(|(_, pod)| &**pod)
            .filter(|pod| is_at_work(pod))
            .collect();
        if let Some(deployment) = deployment {
            if stage == Stage::Ingest {
                configuration = annotation_of(&deployment, CONFIG_HASH).cloned();
            }
            stages.insert(stage, observed_stage(&deployment, &at_work));
        } else if stage == Stage::Ingest && pipeline.spec.schedule.is_some() {
            stages.insert(stage, observed_runs(&at_work));
        }
    }
    if let Err(error) = offsets {
        tracing::debug!(pipeline = pipeline.name_any(), "lag isn't known: {error}");
    }
    let asked = ask_workers(context, &pods, configuration.as_deref()).await;
    let mut amiss: Vec<_> = silent(&asked).into_iter().map(no_answer).collect();
    amiss.extend(runs.without_pod());
    let told = pipeline.status.as_ref().map(|status| &status.conditions);
    let told = told.and_then(|told| conditions::find(told, condition::RUNNING));
    let told = told.map_or("", |told| told.message.as_str());
    let uid = pipeline.uid().unwrap_or_default();
    let (started, amiss) = context.memory.of_pipeline(&uid, |memory| {
        let amiss = memory.amiss.lasting(Instant::now(), amiss, told);
        (memory.started.take(), amiss)
    });
    Observed {
        stages,
        workers: answers(asked),
        progress: offsets
            .as_ref()
            .ok()
            .and_then(Option::as_ref)
            .map(|offsets| Progress::of(pipeline, offsets)),
        started,
        amiss,
        configuration,
        runs,
        waits_for: after::waits_for(pipeline, context, Timestamp::now()),
    }
}

/// An annotation that a Deployment gives its pods.
fn annotation_of<'a>(deployment: &'a Deployment, name: &str) -> Option<&'a String> {
    let template = &deployment.spec.as_ref()?.template;
    let annotations = template.metadata.as_ref()?.annotations.as_ref()?;
    annotations.get(name)
}

/// Whether a pod hasn't come to its end.
fn is_at_work(pod: &Pod) -> bool {
    let phase = pod
        .status
        .as_ref()
        .and_then(|status| status.phase.as_deref());
    !matches!(phase, Some("Succeeded" | "Failed"))
}

/// The pods of runs: there may be none, and that is all right.
fn observed_runs(at_work: &[&Pod]) -> ObservedStage {
    ObservedStage {
        pods: at_work.len() as i32,
        rolled_out: true,
        trouble: at_work.iter().find_map(|pod| trouble(pod)),
        ..ObservedStage::default()
    }
}

fn observed_stage(deployment: &Deployment, at_work: &[&Pod]) -> ObservedStage {
    let wanted = deployment.spec.as_ref().and_then(|spec| spec.replicas);
    let wanted = wanted.unwrap_or(1);
    let status = deployment.status.clone().unwrap_or_default();
    let seen = status.observed_generation == deployment.metadata.generation;
    let pods = status.replicas.unwrap_or(0);
    let updated = status.updated_replicas.unwrap_or(0);
    // Why there is no pod at all: a quota, Pod Security, an admission webhook.
    let mut conditions = status.conditions.iter().flatten();
    let unmade = conditions.find(|of| of.type_ == "ReplicaFailure" && of.status == "True");
    let unmade = unmade.and_then(|of| of.message.clone());
    let trouble = at_work.iter().find_map(|pod| trouble(pod));
    ObservedStage {
        wanted,
        pods,
        ready: status.ready_replicas.unwrap_or(0),
        rolled_out: seen && updated == wanted && pods == wanted,
        // The pods tell also where Kubernetes hasn't seen the template yet.
        outdated: seen && updated < pods || at_work.iter().any(|pod| is_outdated(pod, deployment)),
        trouble: trouble.or(unmade),
    }
}

/// Whether a pod that stays has another configuration than its Deployment gives, or other credentials.
fn is_outdated(pod: &Pod, deployment: &Deployment) -> bool {
    let mut given = [CONFIG_HASH, CREDENTIALS_VERSION].into_iter();
    pod.metadata.deletion_timestamp.is_none()
        && given.any(|name| pod.annotations().get(name) != annotation_of(deployment, name))
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
    // An injected container stops a pod as well.
    let init = status.init_container_statuses.iter().flatten();
    let mut containers = init.chain(status.container_statuses.iter().flatten());
    let trouble = containers.find_map(trouble_of)?;
    Some(format!("pod {name}: {trouble}"))
}

/// Why a container doesn't start, and how it ended before.
fn trouble_of(container: &ContainerStatus) -> Option<String> {
    let waiting = container.state.as_ref()?.waiting.as_ref()?;
    let reason = waiting.reason.as_deref()?;
    if matches!(reason, "ContainerCreating" | "PodInitializing") {
        return None;
    }
    let message = waiting.message.as_deref().unwrap_or_default();
    // What comes later is about ports and addresses, and other ones each time.
    let message = &message[..message.floor_char_boundary(200)];
    let trouble = format!("{reason} {message}");
    let trouble = trouble.trim_end();
    let last = container.last_state.as_ref();
    Some(match last.and_then(|last| last.terminated.as_ref()) {
        Some(end) => {
            let how = end.reason.as_deref().unwrap_or("Error");
            let code = end.exit_code;
            format!("{trouble}; it ended with {how} (exit code {code})")
        }
        None => trouble.into(),
    })
}

/// A worker that was asked.
struct Asked {
    stage: Stage,
    ready: bool,
    answer: Option<WorkerStatus>,
}

/// Asks each running worker for its errors.
async fn ask_workers(
    context: &Context,
    pods: &[(Stage, Arc<Pod>)],
    configuration: Option<&str>,
) -> Vec<Asked> {
    let running = pods.iter().filter_map(|(stage, pod)| {
        let status = pod.status.as_ref()?;
        let running =
            status.phase.as_deref() == Some("Running") && pod.metadata.deletion_timestamp.is_none();
        let address = running.then(|| status.pod_ip.clone()).flatten()?;
        let hash = pod.annotations().get(CONFIG_HASH);
        let current = hash.map(String::as_str) == configuration;
        Some((*stage, is_ready(pod), address, current))
    });
    let running: Vec<_> = running.collect();
    let asked = stream::iter(running).map(|(stage, ready, address, current)| async move {
        let mut answer = ask(context, &address).await;
        if let Some(status) = &mut answer {
            // One with another configuration has read another source, maybe.
            status.complete &= current;
        }
        Asked {
            stage,
            ready,
            answer,
        }
    });
    asked.buffer_unordered(ASKED).collect().await
}

/// What a worker says; nothing where it can't be asked.
async fn ask(context: &Context, address: &str) -> Option<WorkerStatus> {
    let host = match address.contains(':') {
        true => format!("[{address}]"),
        false => address.to_string(),
    };
    let url = format!("http://{host}:{HTTP_PORT}/status");
    let answer = context.http.get(url).send().await.ok()?;
    answer.json().await.ok()
}

/// What the workers have answered, always in the same order.
fn answers(asked: Vec<Asked>) -> Vec<(Stage, WorkerStatus)> {
    let answers = asked.into_iter();
    let answers = answers.filter_map(|asked| Some((asked.stage, asked.answer?)));
    let mut answers: Vec<_> = answers.collect();
    answers.sort_by_key(|(stage, status)| (*stage, status.errors.clone()));
    answers
}

/// The stages that have pods that are ready, of which none has answered.
fn silent(asked: &[Asked]) -> Vec<Stage> {
    let is_silent = |&stage: &Stage| {
        let of_stage = || asked.iter().filter(move |asked| asked.stage == stage);
        of_stage().any(|asked| asked.ready) && of_stage().all(|asked| asked.answer.is_none())
    };
    Stage::ALL.into_iter().filter(is_silent).collect()
}

fn no_answer(stage: Stage) -> String {
    let stage = stage.name();
    format!(
        "no answer from the {stage} pods at port {HTTP_PORT}: does a NetworkPolicy keep the operator out?"
    )
}

fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|of| of.conditions.as_ref());
    let mut conditions = conditions.into_iter().flatten();
    conditions.any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

#[cfg(test)]
mod tests;
