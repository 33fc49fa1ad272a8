//! Pipelines that run at certain times, that come to an end, and that begin after others.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::{apps::v1::Deployment, batch::v1::Job, core::v1::Pod};
use k8s_openapi::jiff::{Span, Timestamp};
use kube::ResourceExt;
use kube::api::{ListParams, Patch, PatchParams};
use millstream_api::condition::{READY, SUCCEEDED, reason};
use millstream_api::schedule::{RunOutcome, RunStatus};
use millstream_api::{DataPipeline, DataPipelineStatus};
use millstream_e2e::{
    Namespace, PATIENCE, await_condition, await_reason, eventually, with_temp_namespace,
};
use serde_json::{Value, json};

use crate::orders::{self, ORDERS};

/// Once a year: the tests ask for their runs.
pub const SELDOM: &str = "0 0 1 1 *";

pub fn scheduled(namespace: &Namespace, schedule: Value, generator: Value) -> Value {
    let spec = json!({"schedule": schedule, "source": {"generator": generator}});
    orders::pipeline_with(namespace, spec)
}

pub async fn status(namespace: &Namespace) -> Result<DataPipelineStatus> {
    status_of(namespace, ORDERS).await
}

pub async fn status_of(namespace: &Namespace, pipeline: &str) -> Result<DataPipelineStatus> {
    let pipelines = namespace.api::<DataPipeline>();
    Ok(pipelines.get(pipeline).await?.status.unwrap_or_default())
}

pub async fn run_now(namespace: &Namespace, value: &str) -> Result<()> {
    run_now_of(namespace, ORDERS, value).await
}

pub async fn run_now_of(namespace: &Namespace, pipeline: &str, value: &str) -> Result<()> {
    let annotation = format!("millstream.dev/run-now={value}");
    let annotate = [
        "annotate",
        "datapipeline",
        pipeline,
        "--overwrite",
        &annotation,
    ];
    namespace.kubectl(&annotate).await?.ok()?;
    Ok(())
}

pub async fn jobs(namespace: &Namespace) -> Result<Vec<Job>> {
    let all = ListParams::default();
    Ok(namespace.api::<Job>().list(&all).await?.items)
}

/// Waits until so many runs are known, and the last one has come to this end.
pub async fn ended(namespace: &Namespace, runs: usize, outcome: RunOutcome) -> Result<RunStatus> {
    eventually(PATIENCE, async || {
        let status = status(namespace).await?;
        let last = status.last_run.context("no run has begun")?;
        ensure!(
            status.runs.len() == runs && last.outcome == outcome,
            "{:?}",
            status.runs
        );
        Ok(last)
    })
    .await
}

#[test]
fn a_run_that_is_asked_for_is_a_job_and_succeeds_with_its_count() {
    with_temp_namespace("run-now", async |namespace| {
        let schedule =
            json!({"cron": SELDOM, "timeZone": "Europe/Paris", "successfulRunsHistoryLimit": 1});
        let manifest = scheduled(namespace, schedule, json!({"count": 300, "seed": 5}));
        namespace.apply(&manifest.to_string()).await?;
        namespace.ready(ORDERS).await?;
        let next = status(namespace).await?.next_run.context("a next run")?;
        // Midnight in Paris.
        assert!(next.0.to_string().ends_with("-12-31T23:00:00Z"), "{next:?}");
        assert!(jobs(namespace).await?.is_empty(), "nothing runs by itself");

        run_now(namespace, "1").await?;
        let first = ended(namespace, 1, RunOutcome::Succeeded).await?;
        assert_eq!(first.records, Some(300));
        assert!(first.completion_time >= first.start_time, "{first:?}");
        let pipelines = namespace.api::<DataPipeline>();
        await_condition(&pipelines, ORDERS, SUCCEEDED, PATIENCE).await?;
        let complete = [
            "wait",
            "--for=condition=Complete",
            "--timeout=60s",
            "job",
            &first.name,
        ];
        namespace.kubectl(&complete).await?.ok()?;
        assert_eq!(
            namespace.cassandra.count(orders::table(namespace)).await?,
            300
        );

        // The next one reads all of it again; of those that succeeded one is kept.
        run_now(namespace, "2").await?;
        eventually(PATIENCE, async || {
            let last = status(namespace).await?.last_run.context("a run")?;
            ensure!(
                last.name != first.name && last.outcome == RunOutcome::Succeeded,
                "{last:?}"
            );
            let names: Vec<_> = jobs(namespace).await?.iter().map(Job::name_any).collect();
            ensure!(names == [last.name.clone()], "{names:?}");
            Ok(())
        })
        .await?;
        assert_eq!(namespace.kafka.records(&orders::topic(namespace))?, 600);
        assert_eq!(
            namespace.cassandra.count(orders::table(namespace)).await?,
            300
        );
        Ok(())
    });
}

#[test]
fn runs_dont_overlap_and_one_whose_worker_is_killed_ends_with_its_exact_count() {
    with_temp_namespace("runs", async |namespace| {
        let generator = json!({"count": 2000, "seed": 6, "rate": 200});
        let manifest = scheduled(namespace, json!({"cron": SELDOM}), generator);
        namespace.apply(&manifest.to_string()).await?;
        namespace.ready(ORDERS).await?;
        let topic = orders::topic(namespace);
        run_now(namespace, "1").await?;
        namespace.filled(&topic, 200).await?;
        run_now(namespace, "2").await?;
        for pod in run_pods(namespace).await? {
            namespace.kill(&pod).await?;
        }
        ensure!(
            namespace.kafka.records(&topic)? < 2000,
            "killed after the end"
        );

        // Both have come to their end, and were never there side by side.
        eventually(PATIENCE * 2, async || {
            let jobs = jobs(namespace).await?;
            let at_work = jobs.iter().filter(|job| completed(job).is_none()).count();
            assert!(at_work <= 1, "{at_work} runs at work");
            let outcomes = status(namespace).await?.runs;
            let succeeded = outcomes
                .iter()
                .filter(|run| run.outcome == RunOutcome::Succeeded);
            ensure!(succeeded.count() == 2, "{outcomes:?}");
            Ok(())
        })
        .await?;
        let runs = status(namespace).await?.runs;
        let counts: Vec<_> = runs.iter().map(|run| run.records).collect();
        assert_eq!(counts, [Some(2000), Some(2000)]);
        assert_eq!(namespace.kafka.records(&topic)?, 4000);
        let mut jobs = jobs(namespace).await?;
        jobs.sort_by_key(|job| job.creation_timestamp().map(|time| time.0));
        let ended = completed(&jobs[0]).context("the first run has ended")?;
        let begun = jobs[1].creation_timestamp().context("a time")?.0;
        assert!(
            begun >= ended,
            "begun at {begun}, the other ended at {ended}"
        );
        let failed = jobs[0].status.as_ref().and_then(|status| status.failed);
        assert!(failed >= Some(1), "the pod that was killed is another one");
        assert_eq!(
            namespace.cassandra.count(orders::table(namespace)).await?,
            2000
        );
        Ok(())
    });
}

pub fn completed(job: &Job) -> Option<Timestamp> {
    let time = job.status.as_ref()?.completion_time.as_ref()?;
    Some(time.0)
}

/// The pods that read the source.
async fn run_pods(namespace: &Namespace) -> Result<Vec<Pod>> {
    let labels = ListParams::default().labels("app.kubernetes.io/component=ingest");
    Ok(namespace.api::<Pod>().list(&labels).await?.items)
}

/// As if the operator had been away for three hours; tells until when it was there.
pub async fn back_in_time(namespace: &Namespace, pipeline: &str) -> Result<Timestamp> {
    let then = Timestamp::now().checked_sub(Span::new().hours(3))?;
    let then = Timestamp::from_second(then.as_second())?;
    let patch = json!({"status": {"schedule": {"decided": then.to_string()}}});
    let pipelines = namespace.api::<DataPipeline>();
    pipelines
        .patch_status(pipeline, &PatchParams::default(), &Patch::Merge(patch))
        .await?;
    Ok(then)
}

/// Once an hour: half an hour from now, and so half an hour ago.
pub fn half_an_hour_ago() -> String {
    let minute = (Timestamp::now().as_second() / 60 + 30) % 60;
    format!("{minute} * * * *")
}

#[test]
fn of_the_runs_that_were_missed_the_latest_is_made_up_for_unless_it_is_too_late() {
    with_temp_namespace("missed", async |namespace| {
        let cron = half_an_hour_ago();
        let generator = json!({"count": 50});
        let late = json!({"cron": cron, "startingDeadline": "10m"});
        let mut manifest = scheduled(namespace, late, generator);
        namespace.apply(&manifest.to_string()).await?;
        namespace.ready(ORDERS).await?;
        let told = [
            "get",
            "events",
            "--field-selector=reason=RunMissed",
            "-o",
            "name",
        ];
        eventually(PATIENCE, async || {
            // Again, as the operator may just have written what it saw before.
            back_in_time(namespace, ORDERS).await?;
            let events = namespace.kubectl(&told).await?.ok()?;
            ensure!(!events.is_empty(), "no Event tells it");
            Ok(())
        })
        .await?;
        assert!(jobs(namespace).await?.is_empty(), "it was too late");

        // Without a deadline.
        manifest["spec"]["schedule"] = json!({"cron": cron});
        namespace.apply(&manifest.to_string()).await?;
        namespace.ready(ORDERS).await?;
        eventually(PATIENCE, async || {
            back_in_time(namespace, ORDERS).await?;
            ensure!(!jobs(namespace).await?.is_empty(), "no run has begun");
            Ok(())
        })
        .await?;
        let run = ended(namespace, 1, RunOutcome::Succeeded).await?;
        assert_eq!(run.records, Some(50));
        assert_eq!(
            jobs(namespace).await?.len(),
            1,
            "one for all that were missed"
        );
        Ok(())
    });
}

#[test]
fn one_that_has_come_to_its_end_rests_and_another_begins_after_it() {
    with_temp_namespace("after", async |namespace| {
        let pipelines = namespace.api::<DataPipeline>();
        let generator = json!({"source": {"generator": {"count": 400, "seed": 3}}});
        let first = orders::pipeline_with(namespace, generator);
        let mut second = first.clone();
        second["metadata"]["name"] = "second".into();
        second["spec"]["after"] = json!([ORDERS]);
        second["spec"]["topic"]["name"] = namespace.unique("second").into();
        second["spec"]["sinks"][0]["cassandra"]["table"] = "second".into();
        namespace.apply(&second.to_string()).await?;
        let why = await_reason(&pipelines, "second", READY, reason::WAITING, PATIENCE).await?;
        let why = match why.contains(ORDERS) {
            true => why,
            // Until topic and tables are there it waits for those.
            false => {
                eventually(PATIENCE, async || {
                    let why = await_reason(&pipelines, "second", READY, reason::WAITING, PATIENCE)
                        .await?;
                    ensure!(why.contains(ORDERS), "{why}");
                    Ok(why)
                })
                .await?
            }
        };
        assert!(why.contains("none of this name"), "{why}");

        namespace.apply(&first.to_string()).await?;
        let done = await_condition(&pipelines, ORDERS, SUCCEEDED, PATIENCE).await?;
        let message = millstream_e2e::condition(&done, SUCCEEDED)?.message;
        assert!(
            message.contains("400 records") && message.contains("400 rows"),
            "{message}"
        );
        assert_eq!(
            namespace.cassandra.count(orders::table(namespace)).await?,
            400
        );
        namespace.ready_pods(ORDERS, "ingest", 0).await?;
        let ready = millstream_e2e::condition(&namespace.ready(ORDERS).await?, READY)?;
        assert_eq!(ready.reason, reason::SUCCEEDED);

        await_condition(&pipelines, "second", SUCCEEDED, PATIENCE).await?;
        let table = format!("{}.second", orders::keyspace(namespace));
        assert_eq!(namespace.cassandra.count(table).await?, 400);

        // Another source begins anew.
        let mut changed = first;
        changed["spec"]["source"]["generator"]["seed"] = 4.into();
        namespace.apply(&changed.to_string()).await?;
        await_condition(&pipelines, ORDERS, SUCCEEDED, PATIENCE).await?;
        assert_eq!(namespace.kafka.records(&orders::topic(namespace))?, 800);

        // The same one with a larger count goes on.
        changed["spec"]["source"]["generator"]["count"] = 500.into();
        namespace.apply(&changed.to_string()).await?;
        await_condition(&pipelines, ORDERS, SUCCEEDED, PATIENCE).await?;
        assert_eq!(namespace.kafka.records(&orders::topic(namespace))?, 900);
        Ok(())
    });
}

#[test]
fn by_schedule_no_pod_reads_the_source_but_those_of_runs() {
    with_temp_namespace("to-runs", async |namespace| {
        let always = json!({"source": {"generator": {"rate": 50}}});
        let mut manifest = orders::pipeline_with(namespace, always);
        namespace.apply(&manifest.to_string()).await?;
        namespace.ready_pods(ORDERS, "ingest", 1).await?;

        manifest["spec"]["schedule"] = json!({"cron": SELDOM, "runFor": "2s"});
        namespace.apply(&manifest.to_string()).await?;
        eventually(PATIENCE, async || {
            let name = format!("{ORDERS}-ingest");
            let left = namespace.api::<Deployment>().get_opt(&name).await?;
            ensure!(left.is_none(), "the Deployment is still there");
            Ok(())
        })
        .await?;
        run_now(namespace, "1").await?;
        let run = ended(namespace, 1, RunOutcome::Succeeded).await?;
        assert!(run.records > Some(0), "{run:?}");
        // It went on where the Deployment's pod had stopped: each record is there once.
        let topic = orders::topic(namespace);
        let all = namespace.kafka.records(&topic)?;
        let ids = namespace.kafka.consume(&topic)?;
        let ids: BTreeSet<_> = ids.iter().filter_map(rdkafka::Message::key).collect();
        assert_eq!(i64::try_from(ids.len())?, all);

        // Without the schedule it is read always again, and the runs are gone.
        let removed = r#"[{"op": "remove", "path": "/spec/schedule"}]"#;
        let remove = [
            "patch",
            "datapipeline",
            ORDERS,
            "--type=json",
            "-p",
            removed,
        ];
        namespace.kubectl(&remove).await?.ok()?;
        namespace.ready_pods(ORDERS, "ingest", 1).await?;
        assert!(jobs(namespace).await?.is_empty());
        Ok(())
    });
}
