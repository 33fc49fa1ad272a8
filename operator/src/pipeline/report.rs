//! What a pipeline's status says.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::{Resource, ResourceExt, runtime::events::EventType};
use millstream_api::{
    DataPipeline, DataPipelineStatus,
    condition::{self, reason},
    pipeline::{SinkStatus, SourceStatus},
    schedule::{RunOutcome, RunSinkStatus, RunStatus},
    source::OnGap,
    worker::{CommitMetadata, SERVE_PART},
};

use super::{
    children::{Stage, process_selector},
    gap,
    observe::{Observed, ObservedStage},
    runs::{self, Seen},
    serve,
};
use crate::{
    conditions::{self, ERROR, Holds, Verdict, clip},
    context::Context,
    controller::namespace,
    error::Error,
    metrics::SinkLabels,
};

const AT_ZERO: &str = "scaled to zero: records wait in the topic";

/// Numbers are written at most this often.
const PACE: Duration = Duration::from_secs(5);

/// Writes the status, if it changed.
pub async fn report(
    pipeline: &DataPipeline,
    context: &Context,
    outcome: &Result<(), Error>,
    observed: &Observed,
) -> Result<(), Error> {
    let before = pipeline.status.clone().unwrap_or_default();
    let status = status(pipeline, &before, outcome, observed);
    let (space, name) = (namespace(pipeline), pipeline.name_any());
    let sinks: Vec<_> = status.sinks.iter().map(|sink| &*sink.name).collect();
    context.metrics.keep(&space, &name, &sinks);
    context
        .metrics
        .conditions(&space, &name, &status.conditions);
    for sink in &status.sinks {
        let labels = SinkLabels {
            namespace: space.clone(),
            pipeline: name.clone(),
            sink: sink.name.clone(),
        };
        context.metrics.sink(&labels, sink.lag, sink.rows);
    }
    if pipeline.status.as_ref() == Some(&status) {
        return Ok(());
    }
    let uid = pipeline.uid().unwrap_or_default();
    let only_numbers = before.conditions == status.conditions
        && before.observed_generation == status.observed_generation
        && before.schedule == status.schedule;
    let since = context.memory.since_written(&uid);
    if only_numbers && since.is_some_and(|since| since < PACE) {
        return Ok(());
    }
    context
        .patch_status::<DataPipeline>(pipeline.meta(), &status)
        .await?;
    context.memory.numbers_written(&uid);
    context
        .event_of_transition(pipeline, &before.conditions, &status.conditions)
        .await;
    if let Some((type_, reason, note)) = run_that_ended(&before, &status) {
        let run = status.last_run.as_ref();
        let job = run.map(|run| runs::reference(pipeline, &run.name));
        context
            .event_about(pipeline, job, type_, reason, note)
            .await;
    }
    Ok(())
}

/// What is to be told of the last run, if it has just come to its end.
fn run_that_ended(
    before: &DataPipelineStatus,
    now: &DataPipelineStatus,
) -> Option<(EventType, &'static str, String)> {
    let run = now.last_run.as_ref()?;
    let known = before
        .last_run
        .as_ref()
        .filter(|known| known.name == run.name);
    if known.is_some_and(|known| known.outcome == run.outcome) {
        return None;
    }
    let note = of_run(run);
    match run.outcome {
        RunOutcome::Succeeded => Some((EventType::Normal, "RunSucceeded", note)),
        RunOutcome::Failed => Some((EventType::Warning, "RunFailed", note)),
        RunOutcome::Running | RunOutcome::Storing => None,
    }
}

/// A run in one sentence.
fn of_run(run: &RunStatus) -> String {
    let name = &run.name;
    let records = run.records.unwrap_or_default();
    match run.outcome {
        RunOutcome::Running => format!("run {name} reads the source"),
        RunOutcome::Storing => format!("run {name} is over; the sinks store what it has read"),
        RunOutcome::Succeeded => {
            let ingest = match run.dead_lettered.unwrap_or_default() {
                0 => String::new(),
                dead => format!("; ingest: {dead} dead letters"),
            };
            let warning = run.warning.as_ref();
            let warning = warning.map(|warning| format!("; ingest: {warning}"));
            let warning = warning.unwrap_or_default();
            let sinks = of_sinks(&run.sinks);
            format!("run {name}: {records} records, all stored{ingest}{warning}{sinks}")
        }
        RunOutcome::Failed => format!(
            "run {name} has failed after {records} records: see the log of its last pod (kubectl logs job/{name})"
        ),
    }
}

/// What the sinks have made of it, behind something else.
fn of_sinks(sinks: &[RunSinkStatus]) -> String {
    let sinks = sinks.iter().map(|sink| {
        let failed = sink.expectations.iter().filter(|of| of.failed > 0);
        let failed = failed.map(|of| format!(", {} failed `{}`", of.failed, of.name));
        format!(
            "; sink `{}`: {} rows, {} dead letters{}",
            sink.name,
            sink.rows,
            sink.dead_lettered,
            failed.collect::<String>()
        )
    });
    sinks.collect()
}

fn status(
    pipeline: &DataPipeline,
    before: &DataPipelineStatus,
    outcome: &Result<(), Error>,
    observed: &Observed,
) -> DataPipelineStatus {
    let generation = pipeline.meta().generation;
    let provisioned = match outcome {
        Ok(()) | Err(Error::DataGap { .. }) => Ok("topic and tables are there"),
        Err(error) => Err(error),
    };
    let mut verdicts = conditions::accepted_and_provisioned(provisioned);
    verdicts.push(data_gap(pipeline, before, outcome, observed));
    let running = match outcome {
        Err(Error::DataGap { reason, .. }) => Verdict::new(
            condition::RUNNING,
            Holds::False,
            reason,
            "the process pods are stopped: the condition DataGap tells why",
        ),
        _ => running(pipeline, observed),
    };
    let ready_message = running.message.clone();
    verdicts.push(running);
    let sinks = sinks(pipeline, before, observed);
    let source = source(pipeline, before, observed);
    let seen = Seen {
        before,
        stored: stored(pipeline, observed),
        sinks: &sinks,
    };
    let runs = observed.runs.statuses(&seen);
    let last_run = runs::last(&runs, &seen).filter(|_| pipeline.spec.schedule.is_some());
    verdicts.extend(match &pipeline.spec.schedule {
        Some(_) => Some(last_run_succeeded(last_run.as_ref())),
        None => succeeded(pipeline, before, source.as_ref(), observed, &sinks),
    });
    let process = observed.stages.get(&Stage::Process);
    DataPipelineStatus {
        observed_generation: generation,
        conditions: conditions::merge(&before.conditions, &verdicts, &ready_message, generation),
        replicas: Some(process.map_or(0, |stage| stage.pods)),
        desired_replicas: process.map(|stage| stage.wanted),
        selector: Some(process_selector(pipeline)),
        topic_id: observed.started.clone().or(before.topic_id.clone()),
        records: match &observed.progress {
            Some(progress) => Some(progress.records),
            None => before.records,
        },
        lag: sinks.iter().filter_map(|sink| sink.lag).max(),
        rows: sinks
            .iter()
            .filter_map(|sink| sink.rows)
            .reduce(|a, b| a + b),
        source,
        last_run,
        next_run: observed.runs.next.map(Time),
        runs,
        schedule: observed.runs.schedule.clone(),
        serve: serve::status(pipeline, observed),
        sinks,
    }
}

/// Whether records are gone. Where it wasn't looked, what was known last holds on.
fn data_gap(
    pipeline: &DataPipeline,
    before: &DataPipelineStatus,
    outcome: &Result<(), Error>,
    observed: &Observed,
) -> Verdict {
    let say = |holds, reason: &str, message: &str| {
        Verdict::new(condition::DATA_GAP, holds, reason, message)
    };
    if let Err(Error::DataGap { reason, message }) = outcome {
        // What retention has taken is there to be seen later, too; a truncation that only the pods
        // know of isn't, for they are stopped now.
        let truncation = truncation(observed)
            .filter(|_| ![reason::TOPIC_RECREATED, reason::LOG_TRUNCATED].contains(reason));
        return match truncation {
            Some((reason, message)) => say(Holds::True, &reason, &message),
            None => say(Holds::True, reason, message),
        };
    }
    let last = conditions::find(&before.conditions, condition::DATA_GAP);
    let of_sinks = last.filter(|last| last.status == "True" && !gap::is_of_source(last));
    // The condition may be all that tells of it: what the source has lost must not take its place.
    if let (Some(last), None) = (of_sinks, &observed.started) {
        return say(Holds::True, &last.reason, &last.message);
    }
    let gap = truncation(observed).or_else(|| source_gap(pipeline, before, observed));
    if let Some((reason, message)) = gap {
        return say(Holds::True, &reason, &message);
    }
    if observed.started.is_some() {
        return say(Holds::False, reason::COMPLETE, "no record is missing");
    }
    match last {
        Some(last) if last.status == "True" => say(Holds::True, &last.reason, &last.message),
        Some(last) if last.status == "False" => say(Holds::False, &last.reason, &last.message),
        _ => say(
            Holds::Unknown,
            reason::WAITING,
            "looked for when topic and tables are there",
        ),
    }
}

/// The reason and the message where a process pod has seen that the topic was truncated: by the next
/// look at the offsets it may have grown past them again.
fn truncation(observed: &Observed) -> Option<(String, String)> {
    let workers = observed.workers.iter();
    let mut process = workers.filter(|(stage, _)| *stage == Stage::Process);
    let gap = process.find_map(|(_, status)| status.gap.as_ref())?;
    Some((gap.reason.clone(), gap::message(&gap.lost)))
}

/// The reason and the message where the source's own topic has lost records, and reading stops at
/// that.
fn source_gap(
    pipeline: &DataPipeline,
    before: &DataPipelineStatus,
    observed: &Observed,
) -> Option<(String, String)> {
    let topic = pipeline.spec.source.topic.as_ref()?;
    if topic.on_gap == OnGap::Continue {
        return None;
    }
    let workers = observed.workers.iter();
    let ingest = workers.filter(|(stage, _)| *stage == Stage::Ingest);
    let mut ingest = ingest.map(|(_, status)| status);
    if let Some(gap) = ingest.clone().find_map(|status| status.gap.as_ref()) {
        return Some((gap.reason.clone(), gap::message_of_source(gap)));
    }
    // One that has just begun, or can't reach it, doesn't know.
    if ingest.any(|status| status.looked) {
        return None;
    }
    let last = conditions::find(&before.conditions, condition::DATA_GAP);
    let last = last.filter(|last| gap::is_of_source(last))?;
    Some((last.reason.clone(), last.message.clone()))
}

/// Errors of the workers by sink, or `ingest`.
pub fn errors(observed: &Observed) -> BTreeMap<&str, &str> {
    let all = observed
        .workers
        .iter()
        .flat_map(|(_, status)| &status.errors);
    let mut errors = BTreeMap::new();
    for (place, error) in all {
        errors.entry(place.as_str()).or_insert(error.as_str());
    }
    errors
}

fn sinks(
    pipeline: &DataPipeline,
    before: &DataPipelineStatus,
    observed: &Observed,
) -> Vec<SinkStatus> {
    let errors = errors(observed);
    let seen = observed.progress.iter().flat_map(|seen| &seen.sinks);
    // What was seen last, while Kafka can't be asked or knows nothing.
    let known: Vec<_> = seen.chain(&before.sinks).collect();
    let sinks = pipeline.spec.sinks.iter().map(|sink| {
        let known = known.iter().find(|known| known.name == sink.name);
        let known = known.map(|known| (*known).clone());
        SinkStatus {
            name: sink.name.clone(),
            last_error: errors
                .get(sink.name.as_str())
                .map(|error| clip(error, ERROR)),
            warning: warning(observed, &sink.name),
            ..known.unwrap_or_default()
        }
    });
    sinks.collect()
}

/// A sink's warning: of several workers' always the same, whoever answers first.
fn warning(observed: &Observed, sink: &str) -> Option<String> {
    let workers = observed.workers.iter();
    let process = workers.filter(|(stage, _)| *stage == Stage::Process);
    let warnings = process.filter_map(|(_, status)| status.warnings.get(sink));
    warnings.min().map(|warning| clip(warning, ERROR))
}

fn source(
    pipeline: &DataPipeline,
    before: &DataPipelineStatus,
    observed: &Observed,
) -> Option<SourceStatus> {
    let configuration = observed.configuration.as_ref();
    let mut ingest = observed
        .workers
        .iter()
        .filter(|(stage, _)| *stage == Stage::Ingest)
        .peekable();
    if ingest.peek().is_none() {
        // Nobody to ask: what was complete stays complete, with the same configuration.
        return before.source.as_ref().map(|source| {
            let known = source.configuration.as_ref();
            let same = configuration.is_none() || known == configuration;
            let complete = source.complete && same && pipeline.spec.schedule.is_none();
            SourceStatus {
                complete,
                configuration: known.filter(|_| complete).cloned(),
                last_error: None,
                // What was amiss with what it gave stays so.
                warning: source.warning.clone().filter(|_| complete),
            }
        });
    }
    let complete = ingest.clone().all(|(_, status)| status.complete);
    Some(SourceStatus {
        complete,
        configuration: configuration.filter(|_| complete).cloned(),
        last_error: errors(observed)
            .get("ingest")
            .map(|error| clip(error, ERROR)),
        warning: ingest
            .find_map(|(_, status)| status.warnings.get("ingest").map(|text| clip(text, ERROR))),
    })
}

/// Whether every sink has stored all that is in the topic.
fn stored(pipeline: &DataPipeline, observed: &Observed) -> bool {
    let progress = observed.progress.as_ref();
    progress.is_some_and(|progress| {
        progress.sinks.len() == pipeline.spec.sinks.len()
            && progress.sinks.iter().all(|sink| sink.lag == Some(0))
    })
}

fn last_run_succeeded(last: Option<&RunStatus>) -> Verdict {
    let say = |holds, reason: &str, message: String| {
        Verdict::new(condition::SUCCEEDED, holds, reason, message)
    };
    let Some(run) = last else {
        return say(Holds::False, reason::WAITING, "no run has begun yet".into());
    };
    let (holds, reason) = match run.outcome {
        RunOutcome::Running | RunOutcome::Storing => (Holds::False, reason::RUNNING),
        RunOutcome::Succeeded => (Holds::True, reason::SUCCEEDED),
        RunOutcome::Failed => (Holds::False, reason::FAILED),
    };
    say(holds, reason, of_run(run))
}

/// Whether the source has come to its end, and every sink has stored all of it. Not said where it
/// has none.
fn succeeded(
    pipeline: &DataPipeline,
    before: &DataPipelineStatus,
    source: Option<&SourceStatus>,
    observed: &Observed,
    sinks: &[SinkStatus],
) -> Option<Verdict> {
    if !pipeline.spec.source.ends() {
        return None;
    }
    let say = |holds, reason: &str, message: &str| {
        Some(Verdict::new(condition::SUCCEEDED, holds, reason, message))
    };
    let of_now = |source: &&SourceStatus| source.complete && source.configuration.is_some();
    let Some(now) = source.filter(of_now) else {
        let message = "the source hasn't come to its end";
        return say(Holds::False, reason::RUNNING, message);
    };
    // It was complete before it was looked at the sinks: all of it was in the topic then.
    let known = before.source.as_ref();
    let complete = known.is_some_and(|known| known.configuration == now.configuration);
    match conditions::find(&before.conditions, condition::SUCCEEDED) {
        // Once its sinks have, they have: other records may come into the topic later.
        Some(last) if last.status == "True" && complete && knows_all(before, pipeline) => {
            say(Holds::True, &last.reason, &last.message)
        }
        _ if complete && stored(pipeline, observed) => {
            let message = counts(observed, sinks);
            say(Holds::True, reason::SUCCEEDED, &message)
        }
        _ => {
            let message = "the source has come to its end; the sinks store what it gave";
            say(Holds::False, reason::RUNNING, message)
        }
    }
}

/// Whether no sink is new.
fn knows_all(before: &DataPipelineStatus, pipeline: &DataPipeline) -> bool {
    let known: Vec<_> = before.sinks.iter().map(|sink| &sink.name).collect();
    let mut sinks = pipeline.spec.sinks.iter();
    sinks.all(|sink| known.contains(&&sink.name))
}

fn counts(observed: &Observed, sinks: &[SinkStatus]) -> String {
    let records = observed.progress.as_ref().map_or(0, |seen| seen.records);
    let nothing = CommitMetadata::default();
    let sinks = sinks.iter().filter_map(|sink| runs::since(sink, &nothing));
    let sinks = of_sinks(&sinks.collect::<Vec<_>>());
    format!("the source has come to its end: {records} records in the topic, all stored{sinks}")
}

/// Whether the pods run and make progress.
fn running(pipeline: &DataPipeline, observed: &Observed) -> Verdict {
    let say = |holds, reason: &str, message: String| {
        Verdict::new(condition::RUNNING, holds, reason, message)
    };
    let ingest = observed.stages.get(&Stage::Ingest);
    let unmade = ingest.is_none() && observed.waits_for.is_none();
    let process = observed.stages.get(&Stage::Process);
    let Some(process) = process.filter(|_| !unmade) else {
        let message = "the pods are made when topic and tables are there";
        return say(Holds::Unknown, reason::WAITING, message.into());
    };
    if pipeline.spec.paused {
        let pods = ingest.map_or(0, |ingest| ingest.pods) + process.pods;
        let message = match pods {
            0 => "paused: no pods run".to_string(),
            _ => "pausing: the pods finish what they hold".to_string(),
        };
        return say(Holds::False, reason::PAUSED, message);
    }
    if let Some((place, error)) = errors(observed).into_iter().next() {
        let place = match place {
            "ingest" => "the source".to_string(),
            SERVE_PART => "the REST service".to_string(),
            sink => format!("sink `{sink}`"),
        };
        return say(
            Holds::False,
            reason::WORKER_ERROR,
            format!("{place}: {error}"),
        );
    }
    let scheduled = pipeline.spec.schedule.is_some();
    if let Some(what) = observed.waits_for.as_ref().filter(|_| !scheduled) {
        return say(Holds::False, reason::WAITING, what.clone());
    }
    let trouble = ingest.and_then(|ingest| ingest.trouble.as_ref());
    if let Some(trouble) = trouble.filter(|_| scheduled) {
        let message = format!("the run can't begin: {trouble}");
        return say(Holds::False, reason::PROGRESSING, message);
    }
    if let Some(amiss) = &observed.amiss {
        return say(Holds::False, reason::WORKER_UNREACHABLE, amiss.clone());
    }
    let rests = ingest.is_some_and(|ingest| ingest.wanted == 0);
    let serve = observed.stages.get(&Stage::Serve);
    let stages = [
        ("ingest", ingest.filter(|_| !rests)),
        ("process", Some(process)),
        ("serve", serve),
    ];
    for (name, stage) in stages {
        let Some(stage) = stage else { continue };
        if let Some(missing) = missing(name, stage) {
            // The autoscaler's steps don't disturb those that run. A rollout has to come to its end:
            // until then some of them run what was declared before.
            let runs = stage.ready > 0 && stage.trouble.is_none() && !stage.outdated;
            if runs && name == "process" && pipeline.spec.scaling.is_some() {
                return say(Holds::True, reason::RUNNING, missing);
            }
            return say(Holds::False, reason::PROGRESSING, missing);
        }
    }
    let pods = match process.wanted {
        0 => return say(Holds::True, reason::RUNNING, AT_ZERO.to_string()),
        1 => "1 process pod".to_string(),
        pods => format!("{pods} process pods"),
    };
    let message = match (scheduled, rests) {
        (true, _) => format!("the source is read by schedule; {pods} run"),
        (false, true) => format!("the source has come to its end; {pods} run"),
        (false, false) => format!("the ingest pod and {pods} run"),
    };
    say(Holds::True, reason::RUNNING, message)
}

/// What a stage still lacks.
fn missing(name: &str, stage: &ObservedStage) -> Option<String> {
    if stage.rolled_out && stage.ready >= stage.wanted {
        return None;
    }
    let progress = if stage.ready < stage.wanted {
        format!("{} of {} {name} pods are ready", stage.ready, stage.wanted)
    } else {
        format!("{name} pods are being replaced")
    };
    Some(match &stage.trouble {
        Some(trouble) => format!("{progress}: {trouble}"),
        None => progress,
    })
}

#[cfg(test)]
mod tests;
