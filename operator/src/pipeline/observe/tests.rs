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
    let of = |status, pods: &[&Pod]| observed_stage(&failure(status), pods).trouble;
    let unscheduled = json!({
        "metadata": {"name": "p"},
        "status": {"conditions": [{"type": "PodScheduled", "status": "False", "message": "no room"}]},
    });
    let unscheduled: Pod = serde_json::from_value(unscheduled).unwrap();
    assert_eq!(of("True", &[]).as_deref(), Some("exceeded quota"));
    let said = of("True", &[&unscheduled]);
    assert_eq!(said.as_deref(), Some("pod p can't be scheduled: no room"));
    assert_eq!(of("False", &[]), None);
}

#[test]
fn a_step_of_the_autoscaler_is_no_rollout() {
    let outdated = |replicas: i32, updated: i32, generation_seen: i64, pods: &[Value]| {
        let deployment = json!({
            "metadata": {"generation": 2},
            "spec": {
                "replicas": 3,
                "selector": {},
                "template": {"metadata": {"annotations": {CONFIG_HASH: "new", "other": "a"}}},
            },
            "status": {
                "observedGeneration": generation_seen,
                "replicas": replicas,
                "updatedReplicas": updated,
            },
        });
        let deployment = serde_json::from_value(deployment).unwrap();
        let pods = pods
            .iter()
            .map(|metadata| serde_json::from_value::<Pod>(json!({"metadata": metadata})).unwrap());
        let pods: Vec<_> = pods.collect();
        observed_stage(&deployment, &pods.iter().collect::<Vec<_>>()).outdated
    };
    let new = json!({"annotations": {CONFIG_HASH: "new"}});
    let old = json!({"annotations": {CONFIG_HASH: "old"}});
    let going = json!({
        "annotations": {CONFIG_HASH: "old"}, "deletionTimestamp": "2026-01-02T03:04:05Z",
    });
    let changed = json!({"annotations": {CONFIG_HASH: "new", CREDENTIALS_VERSION: "1"}});
    for (name, is_outdated, found) in [
        (
            "no step",
            false,
            outdated(3, 3, 2, std::slice::from_ref(&new)),
        ),
        (
            "a step",
            false,
            outdated(2, 2, 1, std::slice::from_ref(&new)),
        ),
        (
            "a step that was seen",
            false,
            outdated(2, 2, 2, std::slice::from_ref(&new)),
        ),
        ("not seen yet", true, outdated(3, 3, 1, &[new.clone(), old])),
        ("other credentials", true, outdated(3, 3, 1, &[changed])),
        ("another image", true, outdated(3, 2, 2, &[new])),
        ("the last one goes", false, outdated(3, 3, 2, &[going])),
    ] {
        assert_eq!(found, is_outdated, "{name}");
    }
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
