use millstream_api::worker::WorkerStatus;
use millstream_plan::Refusal;

use super::*;
use crate::pipeline::observe::Progress;

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
    let mut at_zero = healthy();
    at_zero.stages.insert(Stage::Process, stage(0, 0));
    let mut scaled = pipeline.clone();
    scaled.spec.scaling = serde_saphyr::from_str("{}").ok();
    let mut stepping = healthy();
    let process = stepping.stages.get_mut(&Stage::Process).unwrap();
    (process.ready, process.rolled_out) = (1, false);
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
        ("paused", conditions_of(&paused, Ok(()), &healthy())),
        ("scaled to zero", conditions_of(&pipeline, Ok(()), &at_zero)),
        (
            "a step of the autoscaler",
            conditions_of(&scaled, Ok(()), &stepping),
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
