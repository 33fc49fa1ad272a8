use serde_json::{Value, json};

use super::*;

fn trouble_in(status: &Value) -> Option<String> {
    let pod = json!({"metadata": {"name": "p"}, "status": status});
    trouble(&serde_json::from_value(pod).unwrap())
}

#[test]
fn why_a_pod_does_not_start() {
    let waiting = |reason: &str, message: &str| json!({"state": {"waiting": {"reason": reason, "message": message}}});
    let killed = json!({
        "state": {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 5m0s"}},
        "lastState": {"terminated": {"reason": "OOMKilled", "exitCode": 137}},
    });
    let runs = json!({"state": {"running": {}}});
    let creating = json!({"state": {"waiting": {"reason": "ContainerCreating"}}});
    let initializing = waiting("PodInitializing", "");
    let crash = "pod p: CrashLoopBackOff back-off 5m0s; it ended with OOMKilled (exit code 137)";
    let cases = [
        (json!({"containerStatuses": [runs]}), None),
        (json!({"containerStatuses": [creating]}), None),
        (json!({"containerStatuses": [killed]}), Some(crash)),
        (json!({"containerStatuses": [runs, killed]}), Some(crash)),
        (
            json!({"initContainerStatuses": [killed], "containerStatuses": [initializing]}),
            Some(crash),
        ),
        (
            json!({"containerStatuses": [waiting("ErrImagePull", "no such image")]}),
            Some("pod p: ErrImagePull no such image"),
        ),
        (
            json!({"containerStatuses": [waiting("CreateContainerConfigError", "")]}),
            Some("pod p: CreateContainerConfigError"),
        ),
        (
            json!({"conditions": [{"type": "PodScheduled", "status": "False", "message": "no room"}]}),
            Some("pod p can't be scheduled: no room"),
        ),
    ];
    for (status, expected) in cases {
        assert_eq!(trouble_in(&status).as_deref(), expected, "{status}");
    }
}

#[test]
fn why_there_is_no_pod() {
    let failure = |status: &str| {
        serde_json::from_value::<Deployment>(json!({
            "spec": {"replicas": 2},
            "status": {"conditions": [
                {"type": "Progressing", "status": "True", "message": "it goes on"},
                {"type": "ReplicaFailure", "status": status, "message": "exceeded quota"},
            ]},
        }))
        .unwrap()
    };
    let of = |status, trouble: Option<&str>| {
        observed_stage(&failure(status), trouble.map(Into::into)).trouble
    };
    assert_eq!(of("True", None).as_deref(), Some("exceeded quota"));
    assert_eq!(of("True", Some("no room")).as_deref(), Some("no room"));
    assert_eq!(of("False", None), None);
}

#[test]
fn a_stage_is_silent_where_no_pod_of_it_answers_though_one_is_ready() {
    let asked = |stage, ready, answers: bool| Asked {
        stage,
        ready,
        answer: answers.then(WorkerStatus::default),
    };
    let all = [
        // Not yet connected, or not any more.
        asked(Stage::Ingest, false, false),
        asked(Stage::Process, true, false),
        asked(Stage::Process, true, false),
        asked(Stage::Serve, true, false),
        asked(Stage::Serve, true, true),
    ];
    assert_eq!(silent(&all), [Stage::Process]);
    assert_eq!(
        no_answer(Stage::Process),
        "no answer from the process pods at port 8080: does a NetworkPolicy keep the operator out?"
    );
}
