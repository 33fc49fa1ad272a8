use millstream_api::{
    pipeline::ExpectationStatus,
    worker::{TopicGap, TopicRef, WorkerStatus},
};
use millstream_plan::Refusal;

use super::*;
use crate::pipeline::{observe::Progress, offsets::Offsets};

fn pipeline() -> DataPipeline {
    serde_saphyr::from_str(
        "
apiVersion: millstream.dev/v1alpha1
kind: DataPipeline
metadata: {name: users, namespace: shop, uid: 1-2-3, generation: 3}
spec:
  replicas: 2
  source: {generator: {}}
  schema: id UUID
  sinks:
    - {name: a, sql: SELECT id FROM records, cassandra: {keyspace: k, table: a}}
    - {name: b, sql: SELECT id FROM records, cassandra: {keyspace: k, table: b}}
",
    )
    .unwrap()
}

fn stage(wanted: i32, ready: i32) -> ObservedStage {
    ObservedStage {
        wanted,
        pods: wanted,
        ready,
        rolled_out: true,
        outdated: false,
        trouble: None,
    }
}

fn sink(name: &str, lag: i64, rows: i64) -> SinkStatus {
    SinkStatus {
        name: name.into(),
        lag: Some(lag),
        rows: Some(rows),
        dead_lettered: Some(0),
        expectations: Vec::new(),
        last_error: None,
        warning: None,
    }
}

fn healthy() -> Observed {
    Observed {
        stages: BTreeMap::from([(Stage::Ingest, stage(1, 1)), (Stage::Process, stage(2, 2))]),
        workers: Vec::new(),
        progress: Some(Progress {
            records: 10,
            sinks: vec![sink("a", 1, 9), sink("b", 4, 6)],
        }),
        started: Some("one".into()),
        ..Observed::default()
    }
}

fn with_error(place: &str) -> Observed {
    let errors = BTreeMap::from([(place.to_string(), "table k.a is gone".to_string())]);
    let status = WorkerStatus {
        errors,
        ..WorkerStatus::default()
    };
    Observed {
        workers: vec![(Stage::Process, status)],
        ..healthy()
    }
}

/// The conditions as lines of text.
fn conditions_of(
    pipeline: &DataPipeline,
    outcome: Result<(), Error>,
    observed: &Observed,
) -> String {
    let status = status(pipeline, &DataPipelineStatus::default(), &outcome, observed);
    let lines = status.conditions.iter().map(|condition| {
        format!(
            "{}={} {}: {}",
            condition.type_, condition.status, condition.reason, condition.message
        )
    });
    lines.collect::<Vec<_>>().join("\n")
}

#[test]
fn conditions_say_where_a_pipeline_stands() {
    let pipeline = pipeline();
    let mut paused = pipeline.clone();
    paused.spec.paused = true;
    let mut unready = healthy();
    let process = unready.stages.get_mut(&Stage::Process).unwrap();
    process.ready = 1;
    process.trouble = Some("pod users-process-x: ErrImagePull no such image".into());
    let mut rolling = healthy();
    rolling.stages.get_mut(&Stage::Ingest).unwrap().rolled_out = false;
    let not_started = Observed {
        started: None,
        ..healthy()
    };
    let silent = Observed {
        amiss: Some("no answer from the process pods".into()),
        ..healthy()
    };
    let mut at_zero = healthy();
    at_zero.stages.insert(Stage::Process, stage(0, 0));
    let mut scaled = pipeline.clone();
    scaled.spec.scaling = serde_saphyr::from_str("{}").ok();
    let mut stepping = healthy();
    let process = stepping.stages.get_mut(&Stage::Process).unwrap();
    (process.ready, process.rolled_out) = (1, false);
    let mut replacing = stepping.clone();
    let process = replacing.stages.get_mut(&Stage::Process).unwrap();
    process.outdated = true;
    let gap = || Error::DataGap {
        reason: reason::RETENTION_PASSED,
        message: "sink `a`: retention has removed records".into(),
    };
    let child = Error::Child {
        reason: "CassandraUnreachable".into(),
        message: "Keyspace `k`: Cassandra at c:9042 can't be reached: refused".into(),
    };
    let invalid = Error::from(Refusal::InvalidSql(
        "sink `a`, line 1, column 8: no column `idd`".into(),
    ));
    let cases = [
        ("healthy", conditions_of(&pipeline, Ok(()), &healthy())),
        (
            "first visit",
            conditions_of(&pipeline, Ok(()), &Observed::default()),
        ),
        (
            "invalid, while an older version runs",
            conditions_of(&pipeline, Err(invalid), &not_started),
        ),
        (
            "a child fails",
            conditions_of(&pipeline, Err(child), &not_started),
        ),
        ("not ready", conditions_of(&pipeline, Ok(()), &unready)),
        ("rolling", conditions_of(&pipeline, Ok(()), &rolling)),
        (
            "worker error",
            conditions_of(&pipeline, Ok(()), &with_error("a")),
        ),
        (
            "source error",
            conditions_of(&pipeline, Ok(()), &with_error("ingest")),
        ),
        ("no answer", conditions_of(&pipeline, Ok(()), &silent)),
        ("paused", conditions_of(&paused, Ok(()), &healthy())),
        ("scaled to zero", conditions_of(&pipeline, Ok(()), &at_zero)),
        (
            "a step of the autoscaler",
            conditions_of(&scaled, Ok(()), &stepping),
        ),
        (
            "a rollout beside the autoscaler",
            conditions_of(&scaled, Ok(()), &replacing),
        ),
        (
            "data gap",
            conditions_of(&pipeline, Err(gap()), &not_started),
        ),
    ];
    let text: Vec<_> = cases
        .iter()
        .map(|(name, conditions)| format!("# {name}\n{conditions}"))
        .collect();
    insta::assert_snapshot!(text.join("\n\n"));
}

#[test]
fn numbers_are_of_the_sink_that_lags_most_and_of_all_sinks() {
    let status = status(
        &pipeline(),
        &DataPipelineStatus::default(),
        &Ok(()),
        &healthy(),
    );
    assert_eq!(
        (status.records, status.lag, status.rows, status.replicas),
        (Some(10), Some(4), Some(15), Some(2))
    );
    assert_eq!(status.desired_replicas, Some(2));
    assert_eq!(
        status.selector.as_deref(),
        Some("app.kubernetes.io/component=process,millstream.dev/pipeline=users")
    );
}

#[test]
fn what_was_seen_last_stays_while_kafka_cannot_be_asked() {
    let pipeline = pipeline();
    let seen = status(
        &pipeline,
        &DataPipelineStatus::default(),
        &Ok(()),
        &healthy(),
    );
    let blind = Observed {
        progress: None,
        ..with_error("b")
    };
    let status = status(&pipeline, &seen, &Ok(()), &blind);
    assert_eq!(
        (status.lag, status.rows, status.records),
        (seen.lag, seen.rows, seen.records)
    );
    let errors: Vec<_> = status
        .sinks
        .iter()
        .map(|sink| sink.last_error.as_deref())
        .collect();
    assert_eq!(errors, [None, Some("table k.a is gone")]);
}

#[test]
fn a_gap_is_remembered_until_it_is_passed_over() {
    let pipeline = pipeline();
    let first = status(
        &pipeline,
        &DataPipelineStatus::default(),
        &Ok(()),
        &healthy(),
    );
    assert_eq!(first.topic_id.as_deref(), Some("one"));
    let mut made_anew = Observed {
        progress: Some(Progress::default()),
        started: None,
        ..healthy()
    };
    let gap = || Error::DataGap {
        reason: reason::TOPIC_RECREATED,
        message: "it was made anew".into(),
    };
    let gone = status(&pipeline, &first, &Err(gap()), &made_anew);
    let waiting = Err(Error::Waiting("pods stop".into()));
    let passing = status(&pipeline, &gone, &waiting, &made_anew);
    for status in [&gone, &passing] {
        let condition = conditions::find(&status.conditions, condition::DATA_GAP).unwrap();
        assert_eq!(condition.status, "True");
        assert_eq!(condition.reason, reason::TOPIC_RECREATED);
        assert_eq!(status.topic_id, first.topic_id);
        assert_eq!(status.sinks, first.sinks, "no offset says nothing");
    }
    // Whatever fails after the sinks have their places: they have them.
    made_anew.started = Some("two".into());
    let later = Err(Error::Waiting("a Service".into()));
    let passed = status(&pipeline, &passing, &later, &made_anew);
    assert_eq!(passed.topic_id.as_deref(), Some("two"));
    let condition = conditions::find(&passed.conditions, condition::DATA_GAP).unwrap();
    assert_eq!(condition.status, "False");
}

/// The condition `DataGap` in short.
fn gap_of(status: &DataPipelineStatus) -> (&str, &str, &str) {
    let gap = conditions::find(&status.conditions, condition::DATA_GAP).unwrap();
    (&gap.status, &gap.reason, &gap.message)
}

#[test]
fn records_that_the_topic_of_the_source_has_lost_are_a_gap() {
    let mut pipeline = pipeline();
    pipeline.spec.source = serde_saphyr::from_str("{topic: {name: t}}").unwrap();
    let seen = |workers: Vec<WorkerStatus>| Observed {
        workers: workers.into_iter().map(|w| (Stage::Ingest, w)).collect(),
        ..healthy()
    };
    let lost = "topic t, partition 0 is to be read from offset 5 on, but holds 0 to 3";
    let stopped = WorkerStatus {
        errors: BTreeMap::from([("ingest".into(), format!("DataGap: {lost}"))]),
        gap: Some(TopicGap {
            reason: reason::LOG_TRUNCATED.into(),
            lost: lost.into(),
        }),
        ..WorkerStatus::default()
    };
    let away = WorkerStatus {
        gap: None,
        ..stopped.clone()
    };
    let none = DataPipelineStatus::default();
    let gone = status(&pipeline, &none, &Ok(()), &seen(vec![stopped.clone()]));
    let says = format!(
        "the source: {lost}; nothing more is read there; with spec.source.topic.onGap: Continue the source goes on from the first record that is there"
    );
    assert_eq!(gap_of(&gone), ("True", "LogTruncated", says.as_str()));
    let ready = conditions::find(&gone.conditions, condition::READY).unwrap();
    assert_eq!(
        (ready.status.as_str(), ready.reason.as_str()),
        ("False", "LogTruncated")
    );
    // Nobody to ask, or one that can't know.
    for workers in [vec![], vec![away]] {
        let later = status(&pipeline, &gone, &Ok(()), &seen(workers));
        assert_eq!(gap_of(&later), gap_of(&gone));
    }
    // Of the sinks' own topic there is more to say.
    let of_sink = Err(Error::DataGap {
        reason: reason::TOPIC_RECREATED,
        message: "it was made anew".into(),
    });
    let both = status(&pipeline, &gone, &of_sink, &seen(vec![stopped.clone()]));
    assert_eq!(
        gap_of(&both),
        ("True", "TopicRecreated", "it was made anew")
    );

    let fine = status(
        &pipeline,
        &gone,
        &Ok(()),
        &seen(vec![WorkerStatus {
            looked: true,
            ..WorkerStatus::default()
        }]),
    );
    assert_eq!(gap_of(&fine).0, "False");
    pipeline.spec.source = serde_saphyr::from_str("{topic: {name: t, onGap: Continue}}").unwrap();
    let told = status(&pipeline, &gone, &Ok(()), &seen(vec![stopped]));
    assert_eq!(gap_of(&told).0, "False", "the pod is about to be replaced");
}

#[test]
fn a_truncated_log_that_only_a_worker_has_seen_is_remembered() {
    let seen = Observed {
        workers: vec![(
            Stage::Process,
            WorkerStatus {
                gap: Some(TopicGap {
                    reason: reason::LOG_TRUNCATED.into(),
                    lost: "sink `a`: a partition was truncated".into(),
                }),
                ..WorkerStatus::default()
            },
        )],
        ..healthy()
    };
    let none = DataPipelineStatus::default();
    let told = status(&pipeline(), &none, &Ok(()), &seen);
    let says = "sink `a`: a partition was truncated; the process pods are stopped; with spec.onDataGap: Continue the pipeline goes on from the first record that is there";
    assert_eq!(gap_of(&told), ("True", "LogTruncated", says));
    // What the offsets show of retention is there to be seen later, too.
    let removed = Error::DataGap {
        reason: reason::RETENTION_PASSED,
        message: "retention has removed records".into(),
    };
    let both = status(&pipeline(), &none, &Err(removed), &seen);
    assert_eq!(gap_of(&both), ("True", "LogTruncated", says));
    // The offsets show nothing of it.
    let topic = TopicRef {
        name: "t".into(),
        id: "one".into(),
        timestamp_base: 0,
        partitions: 1,
    };
    let found = gap::find(&told, &topic, &Offsets::default()).unwrap();
    assert_eq!(
        (found.reason, found.message().as_str()),
        ("LogTruncated", says)
    );
    // The pods are gone, and the sinks have their places.
    let passed = status(&pipeline(), &told, &Ok(()), &healthy());
    assert_eq!(gap_of(&passed).0, "False");
}

#[test]
fn a_warning_is_shown_and_changes_no_condition() {
    let warnings = BTreeMap::from([("ingest".to_string(), "Redis is away".to_string())]);
    let status = WorkerStatus {
        warnings,
        ..WorkerStatus::default()
    };
    let warned = Observed {
        workers: vec![(Stage::Ingest, status)],
        ..healthy()
    };
    assert_eq!(
        conditions_of(&pipeline(), Ok(()), &warned),
        conditions_of(&pipeline(), Ok(()), &healthy())
    );
    let before = DataPipelineStatus::default();
    let source = super::status(&pipeline(), &before, &Ok(()), &warned).source;
    assert_eq!(source.unwrap().warning.as_deref(), Some("Redis is away"));

    let of = |text: &str| WorkerStatus {
        warnings: BTreeMap::from([("a".to_string(), text.to_string())]),
        ..WorkerStatus::default()
    };
    let warned = Observed {
        workers: vec![
            (Stage::Process, of("since 2")),
            (Stage::Process, of("since 1")),
        ],
        ..healthy()
    };
    let sinks = super::status(&pipeline(), &before, &Ok(()), &warned).sinks;
    assert_eq!(sinks[0].warning.as_deref(), Some("since 1"));
    assert_eq!(sinks[1].warning, None);
}

/// A pipeline whose source ends, with what was seen of it while no record is left.
fn finite() -> (DataPipeline, Observed) {
    let mut pipeline = pipeline();
    pipeline.spec.source = serde_saphyr::from_str("{generator: {count: 10}}").unwrap();
    let complete = WorkerStatus {
        complete: true,
        ..WorkerStatus::default()
    };
    let observed = Observed {
        workers: vec![(Stage::Ingest, complete)],
        progress: Some(Progress {
            records: 10,
            sinks: vec![sink("a", 0, 9), sink("b", 0, 10)],
        }),
        configuration: Some("c1".into()),
        ..healthy()
    };
    (pipeline, observed)
}

fn succeeded_of(status: &DataPipelineStatus) -> (&str, &str) {
    let condition = conditions::find(&status.conditions, condition::SUCCEEDED).unwrap();
    (&condition.status, &condition.message)
}

#[test]
fn it_has_succeeded_when_the_source_was_complete_before_all_was_stored() {
    let (pipeline, observed) = finite();
    let lagging = Observed {
        progress: healthy().progress,
        ..observed.clone()
    };
    let none = DataPipelineStatus::default();
    // The sinks were looked at before it was known that no more comes.
    let first = status(&pipeline, &none, &Ok(()), &observed);
    assert_eq!(succeeded_of(&first).0, "False");
    let storing = status(&pipeline, &first, &Ok(()), &lagging);
    assert_eq!(succeeded_of(&storing).0, "False");
    let done = status(&pipeline, &storing, &Ok(()), &observed);
    assert_eq!(
        succeeded_of(&done),
        (
            "True",
            "the source has come to its end: 10 records in the topic, all stored; sink `a`: 9 rows, 0 dead letters; sink `b`: 10 rows, 0 dead letters"
        )
    );
    let ready = conditions::find(&done.conditions, condition::READY).unwrap();
    assert_eq!(
        (ready.status.as_str(), ready.reason.as_str()),
        ("True", "Succeeded")
    );

    // No pod is left to ask, and others put records into the topic: it stays so.
    let mut resting = Observed {
        workers: Vec::new(),
        ..lagging
    };
    resting.stages.insert(Stage::Ingest, stage(0, 0));
    let later = status(&pipeline, &done, &Ok(()), &resting);
    assert_eq!(
        later.conditions[..1]
            .iter()
            .map(|c| c.reason.as_str())
            .collect::<Vec<_>>(),
        ["Succeeded"]
    );
    assert_eq!(succeeded_of(&later), succeeded_of(&done));
    // A sink that is added has to store what is in the topic.
    let mut more = pipeline.clone();
    let mut added = more.spec.sinks[0].clone();
    added.name = "c".into();
    more.spec.sinks.push(added);
    let adding = status(&more, &later, &Ok(()), &resting);
    assert_eq!(succeeded_of(&adding).0, "False");
    // With another configuration it is to be seen.
    let changed = Observed {
        configuration: Some("c2".into()),
        ..resting
    };
    let changed = status(&pipeline, &later, &Ok(()), &changed);
    assert_eq!(succeeded_of(&changed).0, "False");
}

#[test]
fn a_source_without_an_end_never_succeeds() {
    let status = status(
        &pipeline(),
        &DataPipelineStatus::default(),
        &Ok(()),
        &healthy(),
    );
    assert!(conditions::find(&status.conditions, condition::SUCCEEDED).is_none());
}

#[test]
fn by_schedule_it_is_ready_without_a_pod_that_reads() {
    let mut pipeline = pipeline();
    pipeline.spec.schedule = serde_saphyr::from_str("{cron: '@daily', runFor: 1m}").unwrap();
    let mut observed = healthy();
    observed.stages.insert(Stage::Ingest, stage(0, 0));
    let status = status(
        &pipeline,
        &DataPipelineStatus::default(),
        &Ok(()),
        &observed,
    );
    let ready = conditions::find(&status.conditions, condition::READY).unwrap();
    assert_eq!(
        (ready.status.as_str(), ready.message.as_str()),
        ("True", "the source is read by schedule; 2 process pods run")
    );
    assert_eq!(succeeded_of(&status), ("False", "no run has begun yet"));
}

#[test]
fn what_comes_first_is_told() {
    let (pipeline, mut observed) = finite();
    observed.stages.remove(&Stage::Ingest);
    observed.workers.clear();
    observed.waits_for = Some("it begins when pipeline `first` has succeeded".into());
    let status = status(
        &pipeline,
        &DataPipelineStatus::default(),
        &Ok(()),
        &observed,
    );
    let ready = conditions::find(&status.conditions, condition::READY).unwrap();
    assert_eq!(
        (ready.status.as_str(), ready.reason.as_str()),
        ("False", "Waiting")
    );
}

#[test]
fn a_run_whose_job_is_deleted_while_it_reads_has_failed_and_that_is_told_once() {
    let mut pipeline = pipeline();
    pipeline.spec.schedule = serde_saphyr::from_str("{cron: '@daily', runFor: 1m}").unwrap();
    let run = RunStatus {
        name: "users-1".into(),
        start_time: None,
        completion_time: None,
        records: Some(20),
        dead_lettered: None,
        warning: None,
        sinks: Vec::new(),
        outcome: RunOutcome::Running,
    };
    let before = DataPipelineStatus {
        last_run: Some(run),
        ..DataPipelineStatus::default()
    };
    let gone = status(&pipeline, &before, &Ok(()), &healthy());
    let (holds, message) = succeeded_of(&gone);
    assert_eq!(holds, "False");
    assert!(message.contains("has failed after 20 records"), "{message}");
    let (_, reason, _) = run_that_ended(&before, &gone).unwrap();
    assert_eq!(reason, "RunFailed");
    let later = status(&pipeline, &gone, &Ok(()), &healthy());
    assert_eq!(later.last_run, gone.last_run);
    assert!(run_that_ended(&gone, &later).is_none());
}

#[test]
fn a_run_that_has_succeeded_tells_what_the_sinks_made_of_it() {
    let failed = |name: &str, failed| ExpectationStatus {
        name: name.into(),
        failed,
    };
    let sink = |name: &str, rows, dead_lettered, expectations| RunSinkStatus {
        name: name.into(),
        rows,
        dead_lettered,
        expectations,
    };
    let run = RunStatus {
        name: "users-1".into(),
        start_time: None,
        completion_time: None,
        records: Some(20),
        dead_lettered: Some(1),
        warning: Some("a page was empty".into()),
        sinks: vec![
            sink("a", 10, 7, vec![failed("has-email", 7), failed("adult", 2)]),
            sink("b", 19, 0, vec![failed("sane", 0)]),
        ],
        outcome: RunOutcome::Succeeded,
    };
    let text = "run users-1: 20 records, all stored; ingest: 1 dead letters; ingest: a page was empty; sink `a`: 10 rows, 7 dead letters, 7 failed `has-email`, 2 failed `adult`; sink `b`: 19 rows, 0 dead letters";
    assert_eq!(of_run(&run), text);
    assert_eq!(last_run_succeeded(Some(&run)).message, text);
    let now = |run: &RunStatus| DataPipelineStatus {
        last_run: Some(run.clone()),
        ..DataPipelineStatus::default()
    };
    let none = DataPipelineStatus::default();
    let (_, reason, note) = run_that_ended(&none, &now(&run)).unwrap();
    assert_eq!((reason, note.as_str()), ("RunSucceeded", text));
    assert!(run_that_ended(&now(&run), &now(&run)).is_none(), "once");
}
