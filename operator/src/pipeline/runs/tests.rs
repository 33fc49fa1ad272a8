use millstream_api::DataPipelineStatus;
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
        let statuses = runs.statuses(&Seen { before, stored });
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
