//! When a pipeline runs, where it doesn't run always; and what became of its runs.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::{KubeSchema, core::Duration};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{pipeline::ExpectationStatus, source::DURATION};

/// Annotation of a DataPipeline with a schedule: a value that it hasn't had before starts a run at
/// once, also while the schedule is suspended.
pub const RUN_NOW: &str = "millstream.dev/run-now";

/// Runs at certain times. Each is a Job, named after the pipeline and the time, which reads the
/// source to its end or for `runFor`, and ends; the process pods go on working off what it brought.
///
/// A run reads a source that has an end from its beginning, or, of a database with `incremental`,
/// what is new; other sources go on where the last run stopped. A pod that dies in a run is
/// replaced, and the run goes on where it was.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("!has(self.runFor) || duration(self.runFor) > duration('0s')").message("schedule.runFor must be more than 0s"))]
pub struct Schedule {
    /// When runs begin: minute, hour, day of the month, month, day of the week, as cron has them; or
    /// `@hourly`, `@daily`, `@weekly`, `@monthly`, `@yearly`.
    #[schemars(length(min = 1, max = 200))]
    pub cron: String,
    /// Time zone of `cron`, by its name in the IANA database, such as `Europe/Paris`. A time of day
    /// that daylight saving skips runs when the clock has jumped, one that comes twice runs once, where
    /// `cron` has a single minute and hour; of several those run that the clock shows.
    #[serde(default = "utc")]
    #[schemars(length(min = 1, max = 64))]
    pub time_zone: String,
    /// How long a run reads a source that has no end, such as one that polls; not for others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("pattern" = DURATION))]
    pub run_for: Option<Duration>,
    /// What happens when the time of a run comes while another one is under way. Two never overlap:
    /// they share a topic and a position.
    #[serde(default)]
    pub concurrency_policy: ConcurrencyPolicy,
    /// How late a run may begin, where the operator was away or another run took longer. Of the
    /// times that were missed the latest is made up for, if it isn't longer ago than this; however
    /// long ago it is, where absent. With `Replace` a minute is added, for the run before to stop.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("pattern" = DURATION))]
    pub starting_deadline: Option<Duration>,
    /// How many runs that succeeded are kept, as Jobs and in the status.
    #[serde(default = "three")]
    #[schemars(range(min = 0, max = 100))]
    pub successful_runs_history_limit: i32,
    /// How many runs that failed are kept, as Jobs and in the status.
    #[serde(default = "one")]
    #[schemars(range(min = 0, max = 100))]
    pub failed_runs_history_limit: i32,
    /// Begin no runs. One that is under way goes on; times that pass meanwhile aren't made up for.
    #[serde(default)]
    pub suspend: bool,
}

/// What happens when the time of a run comes while another one is under way.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ConcurrencyPolicy {
    /// The new one waits until the other has ended, and for up to half a minute more until the sinks
    /// have stored its records, as far as `startingDeadline` lets it.
    #[default]
    Forbid,
    /// The one under way is stopped, and the new one takes its place.
    Replace,
}

/// How far the schedule is.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct ScheduleStatus {
    /// Cron and time zone that are gone by; `suspended` while there are none.
    pub plan: String,
    /// What was due until then has been begun, or passed over.
    pub decided: Time,
    /// The last value of the annotation `millstream.dev/run-now` that was acted on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run_now: Option<String>,
}

/// What was last seen of a run.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct RunStatus {
    /// Name of the run and of its Job.
    pub name: String,
    /// When it began.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_time: Option<Time>,
    /// When it had ended, and every sink had stored all of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub completion_time: Option<Time>,
    /// Records that the source gave; those that are read again after a crash count once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub records: Option<i64>,
    /// Those of the source's records that can't be records of the topic, and went to the dead-letter topic
    /// instead. `records` counts them too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dead_lettered: Option<i64>,
    /// What was amiss with what the source gave, though the run came to its end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warning: Option<String>,
    /// What the sinks have made of it: what they counted from its beginning until all was stored, or
    /// until it had failed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "atomic"))]
    pub sinks: Vec<RunSinkStatus>,
    /// What became of it.
    pub outcome: RunOutcome,
}

/// What a sink has made of a run.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct RunSinkStatus {
    /// Name of the sink.
    pub name: String,
    /// Rows written.
    #[serde(default)]
    pub rows: i64,
    /// Records that went to the dead-letter topic.
    #[serde(default)]
    pub dead_lettered: i64,
    /// Rows that failed, by expectation.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "atomic"))]
    pub expectations: Vec<ExpectationStatus>,
}

/// What became of a run.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq)]
pub enum RunOutcome {
    /// It reads the source.
    Running,
    /// All it read is in the topic; the sinks haven't stored it all yet.
    Storing,
    /// Every sink has stored all of it, or has put it into the dead letters.
    Succeeded,
    /// Its Job has given up, or was deleted before it had read all.
    Failed,
}

fn utc() -> String {
    "UTC".into()
}

fn one() -> i32 {
    1
}

fn three() -> i32 {
    3
}
