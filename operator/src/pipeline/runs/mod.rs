//! Runs of a pipeline with a schedule. Each is a Job, and the Jobs are what is gone by: what the
//! status says of them can be older than they are.

pub mod due;
mod status;

use std::collections::BTreeMap;

use k8s_openapi::{
    api::{apps::v1::Deployment, batch::v1::Job, core::v1::ObjectReference},
    apimachinery::pkg::apis::meta::v1::Time,
    jiff::{SignedDuration, Timestamp},
};
use kube::{
    Resource, ResourceExt,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams},
    runtime::events::EventType,
};
use millstream_api::{
    DataPipeline,
    schedule::{RUN_NOW, RunOutcome, RunStatus, Schedule, ScheduleStatus},
    worker::{CommitMetadata, RunProgress},
};
use millstream_plan::Calendar;
use serde_json::{Value, json};

pub use self::status::{Seen, last, since};
use self::{
    due::{Decision, Standing, due},
    status::{finished_at, is_finished, time_of},
};
use super::{
    after,
    children::{self, AT, COUNTS, PIPELINE, Pods, RUN, Stage},
    ensure::{check_owner, delete},
    offsets::Offsets,
    provision::{kafka_access, pipeline_ref},
};
use crate::{
    context::{Context, MANAGER},
    controller::namespace,
    error::Error,
    metrics::System,
};

/// So long a run waits until the sinks have stored what the one before has brought: what they count
/// is one run's alone then. Not longer, as a sink that stands still would stop all runs.
const STORING: SignedDuration = SignedDuration::from_secs(30);
/// Runs that are remembered where no sink stores what they bring.
const MAX_STORING: i32 = 10;

/// The runs of a pipeline, in one visit.
#[derive(Clone, Debug, Default)]
pub struct Runs {
    /// The oldest first.
    jobs: Vec<Job>,
    /// How far the run is that wrote to Kafka last.
    progress: Option<RunProgress>,
    /// What the sinks had counted before anything begins in this visit.
    counts: BTreeMap<String, CommitMetadata>,
    /// Whether they had stored all that was in the topic after the Jobs were looked at.
    stored: bool,
    /// How far the schedule is.
    pub schedule: Option<ScheduleStatus>,
    /// When the next run is to begin.
    pub next: Option<Timestamp>,
}

impl Runs {
    /// Looks at the runs, before it is looked at what the sinks have stored: of a run that is seen
    /// to be over, all records are in the topic then.
    pub async fn look(pipeline: &DataPipeline, context: &Context) -> Result<Self, Error> {
        let before = pipeline.status.as_ref();
        let before = before.and_then(|status| status.schedule.as_ref());
        if pipeline.spec.schedule.is_none() && before.is_none() {
            return Ok(Runs::default());
        }
        // Asked for, as what is watched may be older than what was just begun.
        let mine = ListParams::default().labels(&format!("{PIPELINE}={}", pipeline.name_any()));
        let api = context.api::<Job>(&namespace(pipeline));
        let mut jobs = api.list(&mine).await?.items;
        jobs.retain(|job| check_owner(pipeline, job).is_ok());
        jobs.sort_by_key(|job| (job.creation_timestamp().map(|time| time.0), job.name_any()));
        let progress = match jobs.is_empty() {
            true => None,
            false => progress(pipeline, context).await,
        };
        let schedule = pipeline.spec.schedule.as_ref();
        let calendar = schedule.and_then(|schedule| Calendar::new(schedule).ok());
        let now = now();
        Ok(Runs {
            schedule: match schedule {
                Some(schedule) => Some(standing(pipeline, schedule, &jobs, now)),
                None => before.cloned().filter(|_| !jobs.is_empty()),
            },
            next: calendar
                .filter(|_| !is_suspended(pipeline))
                .and_then(|calendar| calendar.next(now)),
            jobs,
            progress,
            ..Runs::default()
        })
    }

    /// Takes note of how far the sinks are, before anything begins.
    pub fn note(&mut self, offsets: &Offsets) {
        self.counts = offsets.counts();
        self.stored = offsets.sinks.iter().all(|sink| sink.lag == 0);
    }

    /// Begins what is due, and sees to what is there.
    pub async fn drive(
        &mut self,
        pipeline: &DataPipeline,
        context: &Context,
        schedule: &Schedule,
        calendar: &Calendar,
        pods: &Pods<'_>,
    ) -> Result<(), Error> {
        self.forget_the_oldest(pipeline, context, schedule).await?;
        if pipeline.spec.paused || !reads_by_runs_alone(pipeline, context).await? {
            return Ok(());
        }
        let asked = self.asked(pipeline);
        let Some(state) = &self.schedule else {
            return Ok(());
        };
        let now = now();
        let standing = Standing {
            decided: state.decided.0,
            asked: asked.is_some(),
            under_way: self.is_under_way(schedule, calendar, now),
            blocked: after::waits_for(pipeline, context, now).is_some(),
            suspended: is_suspended(pipeline),
        };
        match due(schedule, calendar, &standing, now) {
            Decision::Wait => Ok(()),
            Decision::Miss(time) => {
                self.decide(time);
                let note = format!("the run of {time} is missed: startingDeadline has passed");
                let job = reference(pipeline, &name_at(pipeline, time));
                context
                    .event_about(pipeline, Some(job), EventType::Warning, "RunMissed", note)
                    .await;
                Ok(())
            }
            Decision::Stop => self.stop(pipeline, context).await,
            Decision::Begin(time) => {
                let name = name_at(pipeline, time);
                let notes = self.notes(AT, &time.to_string());
                let job = children::job(pipeline, pods, &name, &notes, schedule);
                self.begin(pipeline, context, job).await?;
                self.decide(time);
                Ok(())
            }
            Decision::BeginAsked => {
                let value = asked.unwrap_or_default();
                let hash = &children::hash(&value)[..8];
                let name = format!("{}-now-{hash}", pipeline.name_any());
                let notes = self.notes(RUN, &value);
                let job = children::job(pipeline, pods, &name, &notes, schedule);
                self.begin(pipeline, context, job).await?;
                if let Some(state) = &mut self.schedule {
                    state.run_now = Some(value);
                }
                Ok(())
            }
        }
    }

    /// Whether a run reads the source, or has just ended and isn't stored yet, where there is time to
    /// wait for that.
    fn is_under_way(&self, schedule: &Schedule, calendar: &Calendar, now: Timestamp) -> bool {
        let in_a_hurry = calendar.latest(now).is_some_and(|time| {
            let deadline = schedule.starting_deadline.map(Into::into);
            deadline.is_some_and(|deadline| due::is_over(time, deadline, now + STORING))
        });
        let mut ends = self.jobs.iter().filter_map(finished_at);
        let has_just_ended = ends.any(|end| now.duration_since(end) < STORING);
        self.jobs.iter().any(|job| !is_finished(job))
            || (has_just_ended && !self.stored && !in_a_hurry)
    }

    /// What is amiss with the runs under way at which no pod works. It may be that one just starts, or
    /// has just ended.
    pub fn without_pod(&self) -> impl Iterator<Item = String> {
        let idle = self.jobs.iter().filter(|job| {
            let held = job.spec.as_ref().and_then(|spec| spec.suspend);
            let ready = job.status.as_ref().and_then(|status| status.ready);
            let goes = job.meta().deletion_timestamp.is_some();
            !is_finished(job) && !goes && held != Some(true) && ready.unwrap_or(0) == 0
        });
        idle.map(|job| {
            let name = job.name_any();
            format!("run {name} has no working pod: see `kubectl describe job/{name}`")
        })
    }

    /// What a Job tells of its run. The counts are there from the moment on that it is there: what
    /// the sinks make of the run is known from them, whatever becomes of the operator.
    fn notes(&self, why: &str, what: &str) -> Value {
        // Plain data: it serializes.
        let counts = serde_json::to_string(&self.counts).unwrap_or_default();
        json!({why: what, COUNTS: counts})
    }

    fn decide(&mut self, time: Timestamp) {
        if let Some(state) = &mut self.schedule {
            state.decided = Time(time);
        }
    }

    async fn begin(
        &mut self,
        pipeline: &DataPipeline,
        context: &Context,
        job: Value,
    ) -> Result<(), Error> {
        let job: Job =
            serde_json::from_value(job).map_err(|error| Error::Internal(error.to_string()))?;
        let name = job.name_any();
        let api = context.api::<Job>(&namespace(pipeline));
        let parameters = PostParams {
            field_manager: Some(MANAGER.into()),
            ..PostParams::default()
        };
        context.metrics.wrote(System::Kubernetes);
        match api.create(&parameters, &job).await {
            Ok(job) => self.jobs.push(job),
            // Begun already: it has just been looked for, so it isn't under way.
            Err(kube::Error::Api(status)) if status.code == 409 => {
                if let Some(live) = api.get_opt(&name).await? {
                    check_owner(pipeline, &live)?;
                }
                return Ok(());
            }
            Err(error) => return Err(error.into()),
        }
        let note = format!("run {name} begins");
        let job = reference(pipeline, &name);
        context
            .event_about(pipeline, Some(job), EventType::Normal, "RunBegins", note)
            .await;
        Ok(())
    }

    /// A run that is asked for and wasn't begun yet.
    fn asked(&self, pipeline: &DataPipeline) -> Option<String> {
        let wanted = pipeline.annotations().get(RUN_NOW)?;
        let begun = self.schedule.as_ref().and_then(|of| of.run_now.as_ref());
        (!wanted.is_empty() && begun != Some(wanted)).then(|| wanted.clone())
    }

    /// Stops what is under way: the Job stays until its pods are gone.
    async fn stop(&self, pipeline: &DataPipeline, context: &Context) -> Result<(), Error> {
        for job in self.jobs.iter().filter(|job| !is_finished(job)) {
            let how = DeleteParams::foreground();
            delete::<Job>(pipeline, context, &job.name_any(), how).await?;
        }
        Ok(())
    }

    /// Holds what is under way while the pipeline is paused.
    pub async fn hold(&self, pipeline: &DataPipeline, context: &Context) -> Result<(), Error> {
        let paused = pipeline.spec.paused;
        let api = context.api::<Job>(&namespace(pipeline));
        for job in self.jobs.iter().filter(|job| !is_finished(job)) {
            let held = job.spec.as_ref().and_then(|spec| spec.suspend);
            if held.unwrap_or_default() != paused && job.meta().deletion_timestamp.is_none() {
                context.metrics.wrote(System::Kubernetes);
                let patch = Patch::Merge(json!({"spec": {"suspend": paused}}));
                api.patch(&job.name_any(), &PatchParams::default(), &patch)
                    .await?;
            }
        }
        Ok(())
    }

    /// Deletes the Jobs that are beyond the limits of the history.
    async fn forget_the_oldest(
        &mut self,
        pipeline: &DataPipeline,
        context: &Context,
        schedule: &Schedule,
    ) -> Result<(), Error> {
        let status = pipeline.status.as_ref();
        let known = status.map_or(&[][..], |status| &status.runs);
        for name in beyond_limits(&self.jobs, known, schedule) {
            delete::<Job>(pipeline, context, &name, DeleteParams::background()).await?;
            self.jobs.retain(|job| job.name_any() != name);
        }
        Ok(())
    }

    /// Takes away what runs there are, of a pipeline that has no schedule any more. True once there
    /// are none.
    pub async fn clear(&self, pipeline: &DataPipeline, context: &Context) -> Result<bool, Error> {
        for job in &self.jobs {
            let how = DeleteParams::foreground();
            delete::<Job>(pipeline, context, &job.name_any(), how).await?;
        }
        Ok(self.jobs.is_empty())
    }
}

/// The runs that the history has no room for: the oldest of those that ended well, of those that
/// failed, and of those whose records no sink stores. The Jobs are in the order of their time.
fn beyond_limits(jobs: &[Job], known: &[RunStatus], schedule: &Schedule) -> Vec<String> {
    let limits = [
        (
            RunOutcome::Succeeded,
            schedule.successful_runs_history_limit,
        ),
        (RunOutcome::Failed, schedule.failed_runs_history_limit),
        (RunOutcome::Storing, MAX_STORING),
    ];
    let mut beyond = Vec::new();
    for (outcome, limit) in limits {
        let of_outcome = |name: &String| {
            let mut known = known.iter();
            known.any(|run| run.name == *name && run.outcome == outcome)
        };
        let names = jobs.iter().map(ResourceExt::name_any).filter(of_outcome);
        let mut names: Vec<_> = names.collect();
        let kept = usize::try_from(limit).unwrap_or_default();
        names.truncate(names.len().saturating_sub(kept));
        beyond.extend(names);
    }
    beyond
}

/// The name of the run of a time.
fn name_at(pipeline: &DataPipeline, time: Timestamp) -> String {
    format!("{}-{}", pipeline.name_any(), time.as_second() / 60)
}

/// A run's Job, as Events tell of it.
pub fn reference(pipeline: &DataPipeline, run: &str) -> ObjectReference {
    ObjectReference {
        api_version: Some("batch/v1".into()),
        kind: Some("Job".into()),
        namespace: pipeline.namespace(),
        name: Some(run.into()),
        ..ObjectReference::default()
    }
}

/// Whether no pod reads the source but those of runs: the Deployment from before the schedule is gone
/// with its pods.
async fn reads_by_runs_alone(pipeline: &DataPipeline, context: &Context) -> Result<bool, Error> {
    let name = Stage::Ingest.object_name(pipeline);
    let api = context.api::<Deployment>(&namespace(pipeline));
    if api.get_opt(&name).await?.is_none() {
        return Ok(true);
    }
    delete::<Deployment>(pipeline, context, &name, DeleteParams::foreground()).await?;
    Ok(false)
}

/// How far the run is that wrote to Kafka last; nothing where Kafka can't be asked.
async fn progress(pipeline: &DataPipeline, context: &Context) -> Option<RunProgress> {
    let found = async {
        let access = kafka_access(pipeline, context).await?;
        let kafka = context.kafka(&access).await?;
        let group = pipeline_ref(pipeline).ingest_group();
        let ingested = kafka.ingested(&group, &pipeline.topic_name()).await?;
        Ok::<_, Error>(ingested.and_then(|ingested| ingested.run))
    };
    let found = found.await;
    if let Err(error) = &found {
        tracing::debug!(
            pipeline = pipeline.name_any(),
            "the run's count isn't known: {error}"
        );
    }
    found.ok().flatten()
}

/// Whether its schedule begins nothing.
pub fn is_suspended(pipeline: &DataPipeline) -> bool {
    let schedule = pipeline.spec.schedule.as_ref();
    pipeline.spec.paused || schedule.is_some_and(|schedule| schedule.suspend)
}

/// How far the schedule is, by the status and by the Jobs: the operator may have been stopped
/// between the two. With another plan it begins now.
fn standing(
    pipeline: &DataPipeline,
    schedule: &Schedule,
    jobs: &[Job],
    now: Timestamp,
) -> ScheduleStatus {
    let plan = match is_suspended(pipeline) {
        true => "suspended".to_string(),
        false => format!("{} {}", schedule.cron, schedule.time_zone),
    };
    let before = pipeline.status.as_ref();
    let before = before.and_then(|status| status.schedule.as_ref());
    let decided = before.filter(|before| before.plan == plan);
    let decided = decided.map_or(now, |before| before.decided.0);
    let begun = jobs.iter().filter_map(time_of).max();
    let asked = pipeline.annotations().get(RUN_NOW);
    let has = |job: &Job| job.annotations().get(RUN) == asked;
    ScheduleStatus {
        plan,
        decided: Time(begun.map_or(decided, |begun| begun.max(decided))),
        run_now: match asked.filter(|_| jobs.iter().any(has)) {
            Some(asked) => Some(asked.clone()),
            None => before.and_then(|before| before.run_now.clone()),
        },
    }
}

/// Whole seconds: as Kubernetes writes them.
fn now() -> Timestamp {
    let now = Timestamp::now();
    Timestamp::from_second(now.as_second()).unwrap_or(now)
}

#[cfg(test)]
mod tests;
