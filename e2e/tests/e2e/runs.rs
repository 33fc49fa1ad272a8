//! What becomes of runs: what they report, who waits for whom, what fails, and what the clock begins.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::{batch::v1::Job, core::v1::Pod};
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use kube::api::{DeleteParams, ListParams};
use millstream_api::condition::{SUCCEEDED, reason};
use millstream_api::pipeline::ExpectationStatus;
use millstream_api::schedule::{RUN_NOW, RunOutcome, RunSinkStatus, RunStatus};
use millstream_api::{DataPipeline, DataPipelineStatus};
use millstream_e2e::{
    Namespace, PATIENCE, alone_in_temp_namespace, await_condition, await_reason, eventually,
    is_ready, with_temp_namespace,
};
use rdkafka::Message;
use rdkafka::message::OwnedMessage;
use serde_json::{Value, json};

use crate::operators;
use crate::orders::{self, ORDERS};
use crate::schedule::{
    SELDOM, back_in_time, completed, ended, half_an_hour_ago, jobs, run_now, scheduled, status,
    status_of,
};

/// Another pipeline.
const SECOND: &str = "second";
const MINUTE: i64 = 60;

/// The pipeline under the name [`SECOND`], with topic and table of its own.
fn second(namespace: &Namespace, schedule: Value, generator: Value) -> Value {
    let mut second = scheduled(namespace, schedule, generator);
    second["metadata"]["name"] = SECOND.into();
    second["spec"]["topic"]["name"] = namespace.unique(SECOND).into();
    second["spec"]["sinks"][0]["cassandra"]["table"] = SECOND.into();
    second
}

/// The Jobs of one pipeline.
async fn jobs_of(namespace: &Namespace, pipeline: &str) -> Result<Vec<Job>> {
    let mut jobs = jobs(namespace).await?;
    jobs.retain(|job| {
        let of = job.labels().get("millstream.dev/pipeline");
        of.is_some_and(|of| of == pipeline)
    });
    Ok(jobs)
}

/// Changes fields of a pipeline's schedule.
async fn patch_schedule(namespace: &Namespace, pipeline: &str, fields: Value) -> Result<()> {
    let patch = json!({"spec": {"schedule": fields}}).to_string();
    let arguments = [
        "patch",
        "datapipeline",
        pipeline,
        "--type=merge",
        "-p",
        &patch,
    ];
    namespace.kubectl(&arguments).await?.ok()?;
    Ok(())
}

/// What Events with this reason say of a pipeline.
async fn told(namespace: &Namespace, pipeline: &str, reason: &str) -> Result<String> {
    let of = format!("--field-selector=reason={reason},involvedObject.name={pipeline}");
    let get = ["get", "events", &of, "-o", "jsonpath={.items[*].message}"];
    namespace.kubectl(&get).await?.ok()
}

/// What is to be reported of records, of which threes are dropped and fives are dead letters.
fn report_of(records: &[OwnedMessage]) -> Result<RunSinkStatus> {
    let mut report = RunSinkStatus {
        name: ORDERS.into(),
        ..RunSinkStatus::default()
    };
    let (mut threes, mut fives) = (0, 0);
    for record in records {
        let record: Value = serde_json::from_slice(record.payload().context("a value")?)?;
        let version = record["version"].as_i64().context("a version")?;
        let (three, five) = (version % 3 == 0, version % 5 == 0);
        threes += i64::from(three);
        fives += i64::from(five);
        report.dead_lettered += i64::from(five);
        report.rows += i64::from(!three && !five);
    }
    report.expectations = [("threes", threes), ("fives", fives)]
        .map(|(name, failed)| ExpectationStatus {
            name: name.into(),
            failed,
        })
        .into();
    Ok(report)
}

#[test]
fn each_run_reports_what_the_sinks_made_of_it() {
    with_temp_namespace("report", async |namespace| {
        let generator = json!({"count": 300, "seed": 11});
        let mut manifest = scheduled(namespace, json!({"cron": SELDOM}), generator);
        manifest["spec"]["sinks"][0]["expectations"] = json!([
            {"name": "threes", "check": "version % 3 <> 0", "onFailure": "Drop"},
            {"name": "fives", "check": "version % 5 <> 0"},
        ]);
        namespace.apply(&manifest.to_string()).await?;
        namespace.ready(ORDERS).await?;
        run_now(namespace, "1").await?;
        let first = ended(namespace, 1, RunOutcome::Succeeded).await?;
        let expected = report_of(&namespace.kafka.consume(&orders::topic(namespace))?)?;
        let counts = expected.expectations.iter().map(|of| of.failed);
        assert!(counts.chain([expected.rows]).all(|count| count > 0));
        assert_eq!((first.records, first.dead_lettered), (Some(300), Some(0)));
        assert_eq!(first.sinks, std::slice::from_ref(&expected));

        // The same records again: the same report, beside totals that go on.
        run_now(namespace, "2").await?;
        let second = ended(namespace, 2, RunOutcome::Succeeded).await?;
        assert_eq!(second.sinks, first.sinks);
        let status = status(namespace).await?;
        assert_eq!(status.runs[0], first, "what is over doesn't change");
        let sink = &status.sinks[0];
        assert_eq!(sink.rows, Some(2 * expected.rows));
        assert_eq!(sink.dead_lettered, Some(2 * expected.dead_lettered));
        let twice = expected.expectations.iter().map(|of| 2 * of.failed);
        assert!(twice.eq(sink.expectations.iter().map(|of| of.failed)));

        let short = format!(
            "300 records, all stored; sink `{ORDERS}`: {} rows, {} dead letters, {} failed `threes`, {} failed `fives`",
            expected.rows,
            expected.dead_lettered,
            expected.expectations[0].failed,
            expected.expectations[1].failed
        );
        let pipelines = namespace.api::<DataPipeline>();
        let done = await_condition(&pipelines, ORDERS, SUCCEEDED, PATIENCE).await?;
        let message = millstream_e2e::condition(&done, SUCCEEDED)?.message;
        assert_eq!(message, format!("run {}: {short}", second.name));
        eventually(PATIENCE, async || {
            let events = told(namespace, ORDERS, "RunSucceeded").await?;
            for run in [&first, &second] {
                let note = format!("run {}: {short}", run.name);
                ensure!(events.contains(&note), "`{note}` isn't in {events}");
            }
            Ok(())
        })
        .await
    });
}

/// The Job of the run that was asked for with this value.
async fn asked(namespace: &Namespace, value: &str) -> Result<Job> {
    eventually(PATIENCE, async || {
        let jobs = jobs(namespace).await?;
        let asked = |job: &Job| job.annotations().get(RUN_NOW).is_some_and(|of| of == value);
        jobs.into_iter().find(asked).context("no such run")
    })
    .await
}

#[test]
fn by_replace_the_run_under_way_gives_its_place_to_the_next() {
    with_temp_namespace("replace", async |namespace| {
        let schedule = json!({"cron": SELDOM, "concurrencyPolicy": "Replace"});
        let generator = json!({"count": 3000, "seed": 7, "rate": 200});
        let manifest = scheduled(namespace, schedule, generator);
        namespace.apply(&manifest.to_string()).await?;
        namespace.ready(ORDERS).await?;
        let topic = orders::topic(namespace);
        run_now(namespace, "1").await?;
        let first = asked(namespace, "1").await?;
        namespace.filled(&topic, 200).await?;
        run_now(namespace, "2").await?;
        // It has ended before the other one begins, pods and all.
        let second = eventually(PATIENCE, async || {
            let jobs = jobs(namespace).await?;
            let at_work = jobs.iter().filter(|job| completed(job).is_none()).count();
            assert!(at_work <= 1, "{at_work} runs at work");
            ensure!(
                jobs.iter().all(|job| job.uid() != first.uid()),
                "the first run is still there"
            );
            jobs.into_iter().next().context("no run yet")
        })
        .await?;
        let before = namespace.kafka.records(&topic)?;
        ensure!(before < 3000, "the first run had come to its end");

        let run = ended(namespace, 1, RunOutcome::Succeeded).await?;
        assert_eq!(run.name, second.name_any());
        assert_eq!(run.records, Some(3000), "all of it, from its beginning");
        // Of the first one there is what it had committed.
        let all = namespace.kafka.records(&topic)?;
        assert!((3200..6000).contains(&all), "{all} records");
        let table = orders::table(namespace);
        assert_eq!(namespace.cassandra.count(table).await?, 3000);
        Ok(())
    });
}

/// Asks for a run and lets it fail: its worker is stopped and ends with an error, and Kubernetes
/// doesn't try again. Without that it would take more than ten minutes, as it waits twice as long each
/// time.
async fn fails(namespace: &Namespace, value: &str) -> Result<RunStatus> {
    run_now(namespace, value).await?;
    let name = asked(namespace, value).await?.name_any();
    let once = r#"{"spec": {"backoffLimit": 0}}"#;
    let patch = ["patch", "job", &name, "--type=merge", "-p", once];
    namespace.kubectl(&patch).await?.ok()?;
    let pods = namespace.api::<Pod>();
    let labels = ListParams::default().labels(&format!("batch.kubernetes.io/job-name={name}"));
    let pod = eventually(PATIENCE, async || {
        let pods = pods.list(&labels).await?.items;
        let reads = pods.into_iter().find(is_ready);
        reads.context("no worker reads the source yet")
    })
    .await?;
    pods.delete(&pod.name_any(), &DeleteParams::default())
        .await?;
    // Of those that failed one is kept.
    let run = eventually(PATIENCE, async || {
        let run = ended(namespace, 1, RunOutcome::Failed).await?;
        ensure!(run.name == name, "{run:?}");
        Ok(run)
    })
    .await?;
    let jobs = jobs(namespace).await?;
    let names: Vec<_> = jobs.iter().map(ResourceExt::name_any).collect();
    assert_eq!(names, std::slice::from_ref(&name));
    let pipelines = namespace.api::<DataPipeline>();
    let why = await_reason(&pipelines, ORDERS, SUCCEEDED, reason::FAILED, PATIENCE).await?;
    assert!(why.contains(&format!("kubectl logs job/{name}")), "{why}");
    eventually(PATIENCE, async || {
        let events = told(namespace, ORDERS, "RunFailed").await?;
        ensure!(events.contains(&name), "{events}");
        Ok(run.clone())
    })
    .await
}

#[test]
fn a_run_whose_workers_end_with_errors_has_failed_and_the_next_one_begins_anew() {
    with_temp_namespace("failed", async |namespace| {
        let schedule = json!({"cron": SELDOM, "failedRunsHistoryLimit": 1});
        let generator = json!({"count": 2000, "seed": 8, "rate": 100});
        let manifest = scheduled(namespace, schedule, generator);
        namespace.apply(&manifest.to_string()).await?;
        namespace.ready(ORDERS).await?;
        for value in ["1", "2"] {
            let run = fails(namespace, value).await?;
            assert!(run.completion_time.is_some(), "{run:?}");
            assert!(run.records < Some(2000), "{run:?}");
        }
        run_now(namespace, "3").await?;
        let run = ended(namespace, 2, RunOutcome::Succeeded).await?;
        assert_eq!(run.records, Some(2000));
        let pipelines = namespace.api::<DataPipeline>();
        await_condition(&pipelines, ORDERS, SUCCEEDED, PATIENCE).await?;
        let table = orders::table(namespace);
        assert_eq!(namespace.cassandra.count(table).await?, 2000);
        Ok(())
    });
}

/// Waits until the next run is so many seconds away, at the most; or until there is none.
async fn next_within(namespace: &Namespace, seconds: Option<i64>) -> Result<()> {
    eventually(PATIENCE, async || {
        let next = status(namespace).await?.next_run;
        let away = next.map(|next| next.0.as_second() - Timestamp::now().as_second());
        let is_so = match (away, seconds) {
            (Some(away), Some(seconds)) => away <= seconds,
            (away, seconds) => away == seconds,
        };
        ensure!(is_so, "the next run is {away:?} seconds away");
        Ok(())
    })
    .await
}

#[test]
fn another_schedule_takes_effect_at_once_and_a_suspended_one_begins_nothing() {
    with_temp_namespace("changed", async |namespace| {
        let schedule = json!({"cron": SELDOM, "successfulRunsHistoryLimit": 10});
        let manifest = scheduled(namespace, schedule, json!({"count": 40}));
        namespace.apply(&manifest.to_string()).await?;
        namespace.ready(ORDERS).await?;
        // In January, and there may be no other day between.
        next_within(namespace, Some(366 * 24 * 60 * MINUTE)).await?;

        // One whose last time is half an hour ago, and whose next one comes in half an hour.
        back_in_time(namespace, ORDERS).await?;
        patch_schedule(namespace, ORDERS, json!({"cron": half_an_hour_ago()})).await?;
        next_within(namespace, Some(60 * MINUTE)).await?;
        assert!(jobs(namespace).await?.is_empty(), "nothing is made up for");

        patch_schedule(namespace, ORDERS, json!({"suspend": true})).await?;
        next_within(namespace, None).await?;
        run_now(namespace, "1").await?;
        ended(namespace, 1, RunOutcome::Succeeded).await?;

        // What would have run meanwhile isn't made up for.
        back_in_time(namespace, ORDERS).await?;
        patch_schedule(namespace, ORDERS, json!({"suspend": false})).await?;
        next_within(namespace, Some(60 * MINUTE)).await?;
        run_now(namespace, "2").await?;
        ended(namespace, 2, RunOutcome::Succeeded).await?;
        for job in jobs(namespace).await? {
            let asked = job.annotations().contains_key(RUN_NOW);
            assert!(asked, "{} has begun by itself", job.name_any());
        }
        Ok(())
    });
}

#[test]
fn a_run_that_is_due_waits_until_the_run_of_another_pipeline_has_succeeded() {
    with_temp_namespace("after-runs", async |namespace| {
        let first = scheduled(namespace, json!({"cron": SELDOM}), json!({"count": 400}));
        let hourly = json!({"cron": half_an_hour_ago()});
        let mut second = second(namespace, hourly, json!({"count": 60}));
        second["spec"]["after"] = json!([ORDERS]);
        for manifest in [&first, &second] {
            namespace.apply(&manifest.to_string()).await?;
        }
        namespace.ready(ORDERS).await?;
        namespace.ready(SECOND).await?;
        // It is due, the operator has looked at it since, and has begun nothing.
        let mut kept = 1;
        eventually(PATIENCE, async || {
            let then = back_in_time(namespace, SECOND).await?;
            kept += 1;
            let kept = json!({"failedRunsHistoryLimit": kept});
            patch_schedule(namespace, SECOND, kept).await?;
            namespace.ready(SECOND).await?;
            let schedule = status_of(namespace, SECOND).await?.schedule;
            let decided = schedule.context("a schedule")?.decided.0;
            ensure!(decided == then, "it was decided until {decided}");
            Ok(())
        })
        .await?;
        assert!(jobs(namespace).await?.is_empty());

        run_now(namespace, "1").await?;
        let first = ended(namespace, 1, RunOutcome::Succeeded).await?;
        let run = eventually(PATIENCE, async || {
            let run = status_of(namespace, SECOND).await?.last_run;
            let run = run.context("no run has begun")?;
            ensure!(run.outcome == RunOutcome::Succeeded, "{run:?}");
            Ok(run)
        })
        .await?;
        assert_eq!(run.records, Some(60));
        assert!(
            run.start_time >= first.completion_time,
            "{run:?} before {first:?}"
        );
        assert_eq!(jobs_of(namespace, SECOND).await?.len(), 1);
        Ok(())
    });
}

/// The time for which a Job was made.
fn time_of(job: &Job) -> Result<Timestamp> {
    let at = job.annotations().get("millstream.dev/scheduled-at");
    Ok(at.context("a time")?.parse()?)
}

/// Seconds from the time for which a Job was made until it was.
fn late(job: &Job) -> Result<i64> {
    let made = job.creation_timestamp().context("a time")?.0;
    Ok(made.as_second() - time_of(job)?.as_second())
}

fn has_succeeded(status: &DataPipelineStatus, run: &str) -> bool {
    let mut runs = status.runs.iter();
    runs.any(|of| of.name == run && of.outcome == RunOutcome::Succeeded && of.records == Some(50))
}

/// Waits until the run of the first time from then on has succeeded.
async fn succeeds_from(namespace: &Namespace, time: Timestamp) -> Result<Job> {
    let job = eventually(PATIENCE, async || {
        let mut due = Vec::new();
        for job in jobs_of(namespace, ORDERS).await? {
            due.push((time_of(&job)?, job));
        }
        due.retain(|(of, _)| *of >= time);
        let first = due.into_iter().min_by_key(|(of, _)| *of);
        Ok(first.context("no run has begun")?.1)
    })
    .await?;
    let name = job.name_any();
    eventually(PATIENCE, async || {
        let status = status(namespace).await?;
        ensure!(has_succeeded(&status, &name), "{:?}", status.runs);
        Ok(())
    })
    .await?;
    Ok(job)
}

/// Scales the operator to nothing until two times of runs have passed. Tells which.
async fn away_for_two_times(namespace: &Namespace) -> Result<[Timestamp; 2]> {
    operators::scale(namespace, 0).await?;
    let gone = Timestamp::now().as_second();
    let first = (gone / MINUTE + 1) * MINUTE;
    let times = [
        Timestamp::from_second(first)?,
        Timestamp::from_second(first + MINUTE)?,
    ];
    eventually(Duration::from_secs(180), async || {
        let left = times[1].as_second() + 2 - Timestamp::now().as_second();
        ensure!(left <= 0, "{left} seconds are left");
        Ok(())
    })
    .await?;
    operators::scale(namespace, 1).await?;
    Ok(times)
}

async fn misses_runs(namespace: &Namespace) -> Result<()> {
    let every_minute = |more: Value| {
        let mut schedule = json!({"cron": "* * * * *", "successfulRunsHistoryLimit": 20});
        for (field, value) in more.as_object().into_iter().flatten() {
            schedule[field] = value.clone();
        }
        schedule
    };
    let fifty = || json!({"count": 50});
    let lenient = scheduled(namespace, every_minute(json!({})), fifty());
    let strict = every_minute(json!({"startingDeadline": "1s"}));
    let strict = second(namespace, strict, fifty());
    for manifest in [lenient, strict] {
        namespace.apply(&manifest.to_string()).await?;
    }
    namespace.ready(ORDERS).await?;
    namespace.ready(SECOND).await?;
    // By the clock.
    let job = succeeds_from(namespace, Timestamp::now()).await?;
    let seconds = late(&job)?;
    assert!((0..30).contains(&seconds), "begun {seconds} s late");

    let [passed, latest] = away_for_two_times(namespace).await?;
    let made_up = succeeds_from(namespace, passed).await?;
    let time = time_of(&made_up)?;
    assert!(time >= latest, "{time} isn't the latest that was missed");
    let seconds = late(&made_up)?;
    assert!(
        (0..=MINUTE + 1).contains(&seconds),
        "begun {seconds} s after {time}: it isn't the latest that was missed"
    );

    // For the other one that was too late.
    let missed = eventually(PATIENCE, async || {
        let events = told(namespace, SECOND, "RunMissed").await?;
        let times = (0..3).map(|minutes| latest.as_second() + minutes * MINUTE);
        let mut times = times.filter_map(|time| Timestamp::from_second(time).ok());
        let told = |time: &Timestamp| events.contains(&format!("the run of {time} is missed"));
        times.find(told).with_context(|| format!("told: {events}"))
    })
    .await?;
    for job in jobs_of(namespace, SECOND).await? {
        let time = time_of(&job)?;
        assert!(time < passed || time > missed, "{time} was missed");
    }
    Ok(())
}

/// Takes four minutes, alone: two times of the clock must pass without an operator.
#[test]
fn runs_begin_by_the_clock_and_the_latest_that_the_operator_has_missed_is_made_up_for() {
    if std::env::var_os("MILLSTREAM_E2E_CLOCK").is_none() {
        println!("skipped: set MILLSTREAM_E2E_CLOCK=1");
        return;
    }
    alone_in_temp_namespace("clock", async |namespace| {
        let result = misses_runs(namespace).await;
        operators::scale(namespace, 1).await?;
        result
    });
}
