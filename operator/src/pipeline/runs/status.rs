//! What the status says of runs.

use k8s_openapi::{api::batch::v1::Job, apimachinery::pkg::apis::meta::v1::Time, jiff::Timestamp};
use kube::ResourceExt;
use millstream_api::{
    DataPipelineStatus,
    schedule::{RunOutcome, RunStatus},
};

use super::{Runs, now};
use crate::pipeline::children::AT;

/// What is seen beside the Jobs.
pub struct Seen<'a> {
    /// The status that was written last.
    pub before: &'a DataPipelineStatus,
    /// Whether every sink had stored all that was in the topic after the Jobs were looked at.
    pub stored: bool,
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
            _ if seen.stored => RunOutcome::Succeeded,
            _ => RunOutcome::Storing,
        };
        let over = matches!(outcome, RunOutcome::Succeeded | RunOutcome::Failed);
        RunStatus {
            start_time: job.creation_timestamp(),
            completion_time: known
                .and_then(|run| run.completion_time.clone())
                .or_else(|| over.then(|| Time(now()))),
            records: match progress {
                Some(progress) => Some(progress.records),
                None => known.and_then(|run| run.records),
            },
            outcome,
            name,
        }
    }
}

/// The time for which a Job was made.
pub fn time_of(job: &Job) -> Option<Timestamp> {
    job.annotations().get(AT)?.parse().ok()
}

/// Whether none of a Job's pods runs any more, and none will.
pub fn is_finished(job: &Job) -> bool {
    has(job, "Failed") || has(job, "Complete")
}

fn has(job: &Job, condition: &str) -> bool {
    let status = job.status.as_ref();
    let conditions = status.and_then(|status| status.conditions.as_ref());
    let mut conditions = conditions.into_iter().flatten();
    conditions.any(|there| there.type_ == condition && there.status == "True")
}
