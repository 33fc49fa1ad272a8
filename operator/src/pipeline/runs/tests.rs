use millstream_api::{
    DataPipelineStatus,
    pipeline::{ExpectationStatus, SinkStatus},
};
use serde_json::{Value, json};

use super::*;

fn pipeline(more: &Value) -> DataPipeline {
    let mut pipeline = json!({
        "apiVersion": "millstream.dev/v1alpha1",
        "kind": "DataPipeline",
        "metadata": {"name": "users", "namespace": "shop"},
        "spec": {
            "schedule": {"cron": "*/10 * * * *"},
            "source": {"generator": {"count": 3}}, "schema": "id UUID", "sinks": [],
        },
    });
    for (pointer, value) in more.as_object().into_iter().flatten() {
        let (parent, name) = pointer.rsplit_once('/').unwrap();
        pipeline.pointer_mut(parent).unwrap()[name] = value.clone();
    }
    serde_json::from_value(pipeline).unwrap()
}

fn job(name: &str, annotations: &Value, condition: &str) -> Job {
    let conditions = match condition {
        "" => json!([]),
        condition => json!([{"type": condition, "status": "True"}]),
    };
    serde_json::from_value(json!({
        "apiVersion": "batch/v1", "kind": "Job",
        "metadata": {
            "name": name, "annotations": annotations,
            "creationTimestamp": "2026-11-21T10:00:01Z",
        },
        "status": {"conditions": conditions},
    }))
    .unwrap()
}

fn at(time: &str) -> Timestamp {
    format!("2026-11-21T{time}Z").parse().unwrap()
}

fn standing_of(more: &Value, jobs: &[Job]) -> ScheduleStatus {
    let pipeline = pipeline(more);
    let schedule = pipeline.spec.schedule.clone().unwrap();
    standing(&pipeline, &schedule, jobs, at("10:33:00"))
}

fn status(plan: &str) -> Value {
    json!({"schedule": {"plan": plan, "decided": "2026-11-21T10:20:00Z", "runNow": "a"}})
}

#[test]
fn another_plan_begins_now_and_the_same_one_where_it_was() {
    let same = standing_of(&json!({"/status": status("*/10 * * * * UTC")}), &[]);
    assert_eq!(same.decided.0, at("10:20:00"));
    for changed in [
        json!({"/status": status("0 * * * * UTC")}),
        json!({"/status": status("suspended")}),
        json!({}),
    ] {
        let standing = standing_of(&changed, &[]);
        assert_eq!(standing.decided.0, at("10:33:00"), "{changed}");
    }
    let suspended = json!({
        "/status": status("*/10 * * * * UTC"), "/spec/schedule/suspend": true,
    });
    assert_eq!(standing_of(&suspended, &[]).plan, "suspended");
}

#[test]
fn a_run_that_was_begun_isnt_begun_again_though_the_status_doesnt_tell() {
    let before = json!({
        "/status": status("*/10 * * * * UTC"),
        "/metadata/annotations": {RUN_NOW: "b"},
    });
    let jobs = [
        job("users-1", &json!({AT: "2026-11-21T10:30:00Z"}), ""),
        job("users-now-1", &json!({RUN: "b"}), ""),
    ];
    let standing = standing_of(&before, &jobs);
    assert_eq!(standing.decided.0, at("10:30:00"));
    assert_eq!(standing.run_now.as_deref(), Some("b"));
    let lost = standing_of(&before, &jobs[..1]);
    assert_eq!(
        lost.run_now.as_deref(),
        Some("a"),
        "it is still to be begun"
    );
}

#[test]
fn a_run_under_way_has_a_pod_that_works() {
    let with = |name: &str, condition: &str, pointer: &str, value: &Value| {
        let mut job = serde_json::to_value(job(name, &json!({}), condition)).unwrap();
        let (parent, member) = pointer.rsplit_once('/').unwrap();
        job["spec"] = json!({"template": {}});
        job.pointer_mut(parent).unwrap()[member] = value.clone();
        serde_json::from_value::<Job>(job).unwrap()
    };
    let runs = Runs {
        jobs: vec![
            with("over", "Complete", "/status/ready", &json!(0)),
            with("held", "", "/spec/suspend", &json!(true)),
            with(
                "goes",
                "",
                "/metadata/deletionTimestamp",
                &json!("2026-11-21T10:00:02Z"),
            ),
            with("works", "", "/status/ready", &json!(1)),
            with("stuck", "", "/status/failed", &json!(3)),
        ],
        ..Runs::default()
    };
    let told: Vec<_> = runs.without_pod().collect();
    let stuck = "run stuck has no working pod: see `kubectl describe job/stuck`";
    assert_eq!(told, [stuck]);
}

#[test]
fn a_run_has_succeeded_when_all_of_it_is_stored() {
    let mut runs = Runs {
        jobs: vec![
            job("one", &json!({}), "Failed"),
            job("two", &json!({}), "Complete"),
            job("three", &json!({}), ""),
        ],
        progress: Some(RunProgress {
            name: "two".into(),
            records: 7,
            ..RunProgress::default()
        }),
        ..Runs::default()
    };
    let outcomes = |runs: &Runs, before: &DataPipelineStatus, stored| {
        let sinks = &[];
        let statuses = runs.statuses(&Seen {
            before,
            stored,
            sinks,
        });
        let outcomes = statuses.iter().map(|run| (run.outcome, run.records));
        (outcomes.collect::<Vec<_>>(), statuses)
    };
    use RunOutcome::{Failed, Running, Storing, Succeeded};
    let (seen, _) = outcomes(&runs, &DataPipelineStatus::default(), false);
    assert_eq!(seen, [(Failed, None), (Storing, Some(7)), (Running, None)]);
    let (seen, statuses) = outcomes(&runs, &DataPipelineStatus::default(), true);
    assert_eq!(
        seen,
        [(Failed, None), (Succeeded, Some(7)), (Running, None)]
    );
    // It stays so, with its count, when others are under way.
    let before = DataPipelineStatus {
        runs: statuses.clone(),
        ..DataPipelineStatus::default()
    };
    runs.progress = None;
    let (_, later) = outcomes(&runs, &before, false);
    assert_eq!(later, statuses);
}

#[test]
fn the_last_run_stays_the_last_one_where_its_job_is_gone() {
    use RunOutcome::{Failed, Running, Storing, Succeeded};
    let run = |name: &str, start: &str, outcome: RunOutcome| RunStatus {
        name: name.into(),
        start_time: Some(Time(at(start))),
        completion_time: None,
        records: None,
        dead_lettered: None,
        warning: None,
        sinks: Vec::new(),
        outcome,
    };
    let older = [run("older", "10:00:00", Succeeded)];
    for (known, stored, expected) in [
        (Succeeded, false, Succeeded),
        (Failed, true, Failed),
        (Running, true, Failed),
        (Storing, false, Storing),
        (Storing, true, Succeeded),
    ] {
        let before = DataPipelineStatus {
            last_run: Some(run("one", "10:10:00", known)),
            ..DataPipelineStatus::default()
        };
        let seen = Seen {
            before: &before,
            stored,
            sinks: &[],
        };
        for there in [&older[..], &[]] {
            let gone = last(there, &seen).unwrap();
            assert_eq!((gone.name.as_str(), gone.outcome), ("one", expected));
            assert_eq!(gone.completion_time.is_some(), expected != Storing);
        }
        // What is there is gone by: the same run, and one that began later.
        for (name, start) in [("one", "10:10:00"), ("two", "10:20:00")] {
            let there = [run(name, start, Running)];
            assert_eq!(last(&there, &seen), Some(there[0].clone()));
        }
    }
}

/// What a sink has counted, from the beginning on.
fn counted(name: &str, rows: i64, dead: i64, failed: i64) -> SinkStatus {
    SinkStatus {
        name: name.into(),
        rows: Some(rows),
        dead_lettered: Some(dead),
        expectations: vec![ExpectationStatus {
            name: "adult".into(),
            failed,
        }],
        ..SinkStatus::default()
    }
}

#[test]
fn a_run_reports_what_the_sinks_have_counted_since_it_began() {
    let mut runs = Runs {
        counts: BTreeMap::from([
            (
                "a".into(),
                CommitMetadata {
                    rows: 10,
                    dead_lettered: 1,
                    failed: BTreeMap::from([("adult".into(), 3)]),
                },
            ),
            ("b".into(), CommitMetadata::default()),
        ]),
        progress: Some(RunProgress::default()),
        ..Runs::default()
    };
    let notes = runs.notes(RUN, "x");
    assert_eq!(notes[RUN], "x");
    runs.jobs = vec![
        job("from-before", &json!({}), "Complete"),
        job("one", &notes, "Complete"),
    ];
    // Of an operator that was started since.
    runs.counts = BTreeMap::new();
    let see = |before: &DataPipelineStatus, stored, sinks: &[SinkStatus]| {
        let seen = Seen {
            before,
            stored,
            sinks,
        };
        DataPipelineStatus {
            runs: runs.statuses(&seen),
            ..DataPipelineStatus::default()
        }
    };
    let reports = |status: &DataPipelineStatus| {
        let reports = status.runs.iter().map(|run| {
            let sinks = run.sinks.iter();
            let sinks = sinks.map(|s| (s.name.clone(), s.rows, s.dead_lettered));
            sinks.collect::<Vec<_>>()
        });
        reports.collect::<Vec<_>>()
    };
    let of = |name: &str, rows: i64, dead: i64| (name.to_string(), rows, dead);
    let sinks = [
        counted("a", 14, 3, 5),
        counted("b", 4, 2, 2),
        // Added since.
        counted("c", 6, 0, 0),
    ];
    let none = DataPipelineStatus::default();
    let storing = see(&none, false, &sinks[..1]);
    assert_eq!(reports(&storing), [vec![], vec![of("a", 4, 2)]]);
    let done = see(&storing, true, &sinks);
    let all = vec![of("a", 4, 2), of("b", 4, 2), of("c", 6, 0)];
    assert_eq!(reports(&done), [vec![], all]);
    let failed = |run: &RunStatus| run.sinks[0].expectations[0].failed;
    assert_eq!(failed(&done.runs[1]), 2);
    // What comes later belongs to other runs.
    let later = see(&done, true, &[counted("a", 100, 9, 9)]);
    assert_eq!(reports(&later), reports(&done));
    // Kafka has forgotten the counts, and they begin anew.
    let forgotten = see(&none, true, &[counted("a", 4, 2, 0)]);
    assert!(reports(&forgotten).iter().all(Vec::is_empty));
}

#[test]
fn the_oldest_runs_beyond_the_limits_go_by_what_became_of_them() {
    let runs = [
        ("f1", "Failed"),
        ("s1", "Complete"),
        ("f2", "Failed"),
        ("s2", "Complete"),
        ("s3", "Complete"),
        ("at-work", ""),
    ];
    let jobs = runs.map(|(name, condition)| job(name, &json!({}), condition));
    let runs = Runs {
        jobs: jobs.to_vec(),
        progress: Some(RunProgress::default()),
        ..Runs::default()
    };
    let before = &DataPipelineStatus::default();
    let known = |stored| {
        runs.statuses(&Seen {
            before,
            stored,
            sinks: &[],
        })
    };
    let beyond = |successful: i32, failed: i32, stored| {
        let schedule = serde_json::from_value(json!({
            "cron": "@daily", "successfulRunsHistoryLimit": successful, "failedRunsHistoryLimit": failed,
        }));
        beyond_limits(&jobs, &known(stored), &schedule.unwrap())
    };
    assert_eq!(beyond(3, 2, true), [""; 0]);
    assert_eq!(beyond(3, 1, true), ["f1"]);
    assert_eq!(beyond(1, 1, true), ["s1", "s2", "f1"]);
    assert_eq!(beyond(0, 0, true), ["s1", "s2", "s3", "f1", "f2"]);
    assert_eq!(beyond(0, 1, false), ["f1"], "others are being stored");
}

#[test]
fn a_run_waits_a_moment_until_the_one_before_is_stored() {
    let mut ended = job("one", &json!({}), "Complete");
    let status = ended.status.as_mut().unwrap();
    let conditions = status.conditions.as_mut().unwrap();
    conditions[0].last_transition_time = Some(Time(at("10:00:00")));
    let under_way = |job: &Job, stored, deadline: &str, now: &str| {
        let schedule = json!({"cron": "@daily", "startingDeadline": deadline});
        let schedule = serde_json::from_value(schedule).unwrap();
        let calendar = Calendar::new(&schedule).unwrap();
        let runs = Runs {
            jobs: vec![job.clone()],
            stored,
            ..Runs::default()
        };
        runs.is_under_way(&schedule, &calendar, at(now))
    };
    assert!(under_way(&ended, false, "11h", "10:00:29"));
    assert!(!under_way(&ended, true, "11h", "10:00:01"));
    assert!(!under_way(&ended, false, "11h", "10:00:30"), "long enough");
    // It was due ten hours ago.
    assert!(under_way(&ended, false, "36031s", "10:00:01"));
    assert!(!under_way(&ended, false, "36030s", "10:00:01"), "no time");
    let reads = job("two", &json!({}), "");
    assert!(under_way(&reads, true, "1s", "10:00:01"));
}
