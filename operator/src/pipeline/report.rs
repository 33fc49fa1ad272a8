//! What a pipeline's status says.

use std::collections::BTreeMap;
use std::time::Duration;

use kube::{Resource, ResourceExt};
use millstream_api::{
    DataPipeline, DataPipelineStatus,
    condition::{self, reason},
    pipeline::{SinkStatus, SourceStatus},
    worker::SERVE_PART,
};

use super::{
    children::{Stage, process_selector},
    observe::{Observed, ObservedStage},
    serve,
};
use crate::{
    conditions::{self, Holds, Verdict},
    context::Context,
    controller::namespace,
    error::Error,
    metrics::SinkLabels,
};

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
    for sink in &status.sinks {
        let labels = SinkLabels {
            namespace: namespace(pipeline),
            pipeline: pipeline.name_any(),
            sink: sink.name.clone(),
        };
        context.metrics.sink(&labels, sink.lag, sink.rows);
    }
    if pipeline.status.as_ref() == Some(&status) {
        return Ok(());
    }
    let uid = pipeline.uid().unwrap_or_default();
    let only_numbers = before.conditions == status.conditions
        && before.observed_generation == status.observed_generation;
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
    Ok(())
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
    verdicts.push(data_gap(before, outcome, observed.started.is_some()));
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
        source: source(before, observed),
        serve: serve::status(pipeline, observed),
        sinks,
    }
}

/// Whether records are gone. Where it wasn't looked, what was known last holds on.
fn data_gap(before: &DataPipelineStatus, outcome: &Result<(), Error>, started: bool) -> Verdict {
    let say = |holds, reason: &str, message: &str| {
        Verdict::new(condition::DATA_GAP, holds, reason, message)
    };
    match outcome {
        _ if started => say(Holds::False, reason::COMPLETE, "no record is missing"),
        Err(Error::DataGap { reason, message }) => say(Holds::True, reason, message),
        _ => match conditions::find(&before.conditions, condition::DATA_GAP) {
            Some(last) if last.status == "True" => say(Holds::True, &last.reason, &last.message),
            Some(last) if last.status == "False" => say(Holds::False, &last.reason, &last.message),
            _ => say(
                Holds::Unknown,
                reason::WAITING,
                "looked for when topic and tables are there",
            ),
        },
    }
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
            last_error: errors.get(sink.name.as_str()).map(|error| clip(error)),
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
    warnings.min().map(|warning| clip(warning))
}

fn source(before: &DataPipelineStatus, observed: &Observed) -> Option<SourceStatus> {
    let mut ingest = observed
        .workers
        .iter()
        .filter(|(stage, _)| *stage == Stage::Ingest)
        .peekable();
    if ingest.peek().is_none() {
        // Nobody to ask: what was complete stays complete.
        return before.source.as_ref().map(|source| SourceStatus {
            complete: source.complete,
            ..SourceStatus::default()
        });
    }
    Some(SourceStatus {
        complete: ingest.clone().all(|(_, status)| status.complete),
        last_error: errors(observed).get("ingest").map(|error| clip(error)),
        warning: ingest
            .find_map(|(_, status)| status.warnings.get("ingest").map(|text| clip(text))),
    })
}

pub fn clip(error: &str) -> String {
    const LONGEST: usize = 500;
    match error.len() {
        0..=LONGEST => error.into(),
        _ => format!("{}…", &error[..error.floor_char_boundary(LONGEST)]),
    }
}

/// Whether the pods run and make progress.
fn running(pipeline: &DataPipeline, observed: &Observed) -> Verdict {
    let say = |holds, reason: &str, message: String| {
        Verdict::new(condition::RUNNING, holds, reason, message)
    };
    let Some((ingest, process)) = observed
        .stages
        .get(&Stage::Ingest)
        .zip(observed.stages.get(&Stage::Process))
    else {
        let message = "the pods are made when topic and tables are there";
        return say(Holds::Unknown, reason::WAITING, message.into());
    };
    if pipeline.spec.paused {
        let pods = ingest.pods + process.pods;
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
    let serve = observed.stages.get(&Stage::Serve);
    let stages = [
        ("ingest", Some(ingest)),
        ("process", Some(process)),
        ("serve", serve),
    ];
    for (name, stage) in stages {
        let Some(stage) = stage else { continue };
        if let Some(missing) = missing(name, stage) {
            // The autoscaler's steps don't disturb those that run.
            let runs = stage.ready > 0 && stage.trouble.is_none();
            if runs && name == "process" && pipeline.spec.scaling.is_some() {
                return say(Holds::True, reason::RUNNING, missing);
            }
            return say(Holds::False, reason::PROGRESSING, missing);
        }
    }
    let message = match process.wanted {
        0 => "scaled to zero: records wait in the topic".to_string(),
        1 => "the ingest pod and 1 process pod run".to_string(),
        pods => format!("the ingest pod and {pods} process pods run"),
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
