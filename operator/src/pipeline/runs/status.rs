//! What the status says of runs.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::batch::v1::{Job, JobCondition},
    apimachinery::pkg::apis::meta::v1::Time,
    jiff::Timestamp,
};
use kube::ResourceExt;
use millstream_api::{
    DataPipelineStatus,
    pipeline::{ExpectationStatus, SinkStatus},
    schedule::{RunOutcome, RunSinkStatus, RunStatus},
    worker::CommitMetadata,
};

use super::{Runs, now};
use crate::{
    conditions::{ERROR, clip},
    pipeline::children::{AT, COUNTS},
};

/// What is seen beside the Jobs.
pub struct Seen<'a> {
    /// The status that was written last.
    pub before: &'a DataPipelineStatus,
    /// Whether every sink had stored all that was in the topic after the Jobs were looked at.
    pub stored: bool,
    /// What was seen of the sinks.
    pub sinks: &'a [SinkStatus],
}

impl Runs {
    /// The runs whose Jobs are there, the last one at the end.
    pub fn statuses(&self, seen: &Seen) -> Vec<RunStatus> {
        let jobs = self.jobs.iter();
        jobs.map(|job| self.status(job, seen)).collect()
    }

    fn status(&self, job: &Job, seen: &Seen) -> RunStatus {
        let name = job.name_any();
        let before = &seen.before;
        let mut known = before.runs.iter().chain(&before.last_run);
        let known = known.find(|run| run.name == name);
        let progress = self.progress.as_ref().filter(|run| run.name == name);
        let outcome = match known {
            _ if has(job, "Failed") => RunOutcome::Failed,
            _ if !has(job, "Complete") => RunOutcome::Running,
            Some(run) if run.outcome == RunOutcome::Succeeded => RunOutcome::Succeeded,
            // Otherwise its count may be an old one.
            _ if seen.stored && self.progress.is_some() => RunOutcome::Succeeded,
            _ => RunOutcome::Storing,
        };
        RunStatus {
            start_time: job.creation_timestamp(),
            completion_time: known
                .and_then(|run| run.completion_time.clone())
                .or_else(|| is_over(outcome).then(|| Time(now()))),
            records: match progress {
                Some(progress) => Some(progress.records),
                None => known.and_then(|run| run.records),
            },
            dead_lettered: match progress {
                Some(progress) => Some(progress.dead_lettered),
                None => known.and_then(|run| run.dead_lettered),
            },
            warning: match progress {
                Some(progress) => progress.warning.as_ref().map(|text| clip(text, ERROR)),
                None => known.and_then(|run| run.warning.clone()),
            },
            // What the sinks count later belongs to other runs.
            sinks: match known.filter(|run| is_over(run.outcome)) {
                Some(run) => run.sinks.clone(),
                None => report(job, seen.sinks),
            },
            outcome,
            name,
        }
    }
}

/// The run that began last. Its Job may be gone: the history has no room for it, or somebody has
/// deleted it.
pub fn last(there: &[RunStatus], seen: &Seen) -> Option<RunStatus> {
    let gone = match (there.last(), &seen.before.last_run) {
        (Some(there), Some(known)) if known.start_time > there.start_time => known,
        (None, Some(known)) => known,
        (there, _) => return there.cloned(),
    };
    let outcome = match gone.outcome {
        // No pod goes on with it.
        RunOutcome::Running => RunOutcome::Failed,
        RunOutcome::Storing if seen.stored => RunOutcome::Succeeded,
        outcome => outcome,
    };
    let known = gone.completion_time.clone();
    Some(RunStatus {
        completion_time: known.or_else(|| is_over(outcome).then(|| Time(now()))),
        outcome,
        ..gone.clone()
    })
}

fn is_over(outcome: RunOutcome) -> bool {
    matches!(outcome, RunOutcome::Succeeded | RunOutcome::Failed)
}

/// What the sinks have counted since a run began; nothing where the Job doesn't tell what was before.
fn report(job: &Job, sinks: &[SinkStatus]) -> Vec<RunSinkStatus> {
    let noted = job.annotations().get(COUNTS);
    let before: Option<BTreeMap<String, CommitMetadata>> =
        noted.and_then(|noted| serde_json::from_str(noted).ok());
    let Some(before) = before else {
        return Vec::new();
    };
    // A sink that wasn't there has counted nothing before.
    let nothing = CommitMetadata::default();
    let counts = |sink: &SinkStatus| since(sink, before.get(&sink.name).unwrap_or(&nothing));
    sinks.iter().filter_map(counts).collect()
}

/// What a sink has counted since it had counted that. Nothing where it isn't known, or where Kafka
/// has forgotten the sink's counts meanwhile.
pub fn since(sink: &SinkStatus, before: &CommitMetadata) -> Option<RunSinkStatus> {
    let more = |now: i64, before: i64| Some(now - before).filter(|more| *more >= 0);
    let expectations = sink.expectations.iter().map(|expectation| {
        let before = before.failed.get(&expectation.name).copied();
        Some(ExpectationStatus {
            name: expectation.name.clone(),
            failed: more(expectation.failed, before.unwrap_or(0))?,
        })
    });
    Some(RunSinkStatus {
        name: sink.name.clone(),
        rows: more(sink.rows?, before.rows)?,
        dead_lettered: more(sink.dead_lettered?, before.dead_lettered)?,
        expectations: expectations.collect::<Option<_>>()?,
    })
}

/// The time for which a Job was made.
pub fn time_of(job: &Job) -> Option<Timestamp> {
    job.annotations().get(AT)?.parse().ok()
}

/// Whether none of a Job's pods runs any more, and none will.
pub fn is_finished(job: &Job) -> bool {
    has(job, "Failed") || has(job, "Complete")
}

/// When that was known of a Job.
pub fn finished_at(job: &Job) -> Option<Timestamp> {
    let finished = find(job, "Failed").or_else(|| find(job, "Complete"));
    Some(finished?.last_transition_time.as_ref()?.0)
}

fn has(job: &Job, condition: &str) -> bool {
    find(job, condition).is_some()
}

/// A Job's condition, if it holds.
fn find<'a>(job: &'a Job, condition: &str) -> Option<&'a JobCondition> {
    let status = job.status.as_ref();
    let conditions = status.and_then(|status| status.conditions.as_ref());
    let mut conditions = conditions.into_iter().flatten();
    conditions.find(|there| there.type_ == condition && there.status == "True")
}
