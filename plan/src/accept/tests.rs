use k8s_openapi::{
    apimachinery::pkg::apis::meta::v1::{Condition, Time},
    jiff::Timestamp,
};
use millstream_api::{
    KeyspaceSpec, KeyspaceStatus,
    pipeline::{Expectation, OnFailure},
};

use super::*;

fn pipeline(sinks: &str) -> DataPipeline {
    let head = "
apiVersion: millstream.dev/v1alpha1
kind: DataPipeline
metadata: {name: users, namespace: shop}
spec:
  source: {generator: {}}
  schema: id UUID, name TEXT, age BIGINT
  sinks:
";
    serde_saphyr::from_str(&format!("{head}{sinks}")).unwrap()
}

/// A Keyspace `ks` with a table `t`, declared by a field manager.
fn keyspace(manager: &str, age: &str) -> Keyspace {
    let spec: KeyspaceSpec = serde_saphyr::from_str(&format!(
        "{{tables: [{{name: t, columns: [{{name: id, type: uuid}}, {{name: age, type: {age}}}], primaryKey: {{partitionKey: [id]}}}}]}}"
    ))
    .unwrap();
    let mut keyspace = Keyspace::new("ks", spec);
    claim_table(&mut keyspace, "t", manager);
    keyspace
}

fn sink(sql: &str, primary_key: &str) -> String {
    format!(
        "    - {{name: s, sql: '{sql}', cassandra: {{keyspace: ks, table: t, {primary_key}}}}}\n"
    )
}

const BY_ID: &str = "primaryKey: {partitionKey: [id]}";

#[test]
fn declares_a_table_that_nobody_else_declares() {
    let pipeline = pipeline(&sink("SELECT id, name FROM records", BY_ID));
    for keyspaces in [vec![], vec![keyspace("millstream-pipeline-users", "int")]] {
        let accepted = accept(&pipeline, &keyspaces).unwrap();
        assert_eq!(accepted.key, ["/id"]);
        let columns = &accepted.declared["ks"][0].columns;
        let columns: Vec<_> = columns
            .iter()
            .map(|column| format!("{} {}", column.name, column.cql_type))
            .collect();
        assert_eq!(columns, ["id uuid", "name text"]);
    }
}

#[test]
fn a_table_that_a_person_declares_is_checked_and_left_to_them() {
    let pipeline = pipeline(&sink("SELECT id, age FROM records", ""));
    let accepted = accept(&pipeline, &[keyspace("kubectl", "bigint")]).unwrap();
    assert!(accepted.declared["ks"].is_empty());
    let table = &accepted.sinks[0].cassandra().unwrap().table;
    assert_eq!(table.columns.len(), 2);
}

#[test]
fn what_cassandra_cannot_change_is_refused_before_the_keyspace_is_asked() {
    let pipeline = pipeline(&sink("SELECT id, age FROM records", BY_ID));
    let mut mine = keyspace("millstream-pipeline-users", "int");
    // As long as the Keyspace isn't Ready the table may be what has to be mended.
    accept(&pipeline, std::slice::from_ref(&mine)).unwrap();
    mine.status = Some(KeyspaceStatus {
        conditions: vec![Condition {
            type_: READY.into(),
            status: "True".into(),
            reason: READY.into(),
            message: "there".into(),
            observed_generation: None,
            last_transition_time: Time(Timestamp::UNIX_EPOCH),
        }],
        ..KeyspaceStatus::default()
    });
    let error = accept(&pipeline, &[mine]).unwrap_err();
    assert_eq!(error.reason(), "Incompatible");
    assert!(
        error
            .to_string()
            .contains("column `age` of table ks.t is `int`"),
        "{error}"
    );
}

#[test]
fn pipelines_share_a_table_column_by_column() {
    let pipeline = pipeline(&sink("SELECT id, name FROM records", BY_ID));
    let theirs = keyspace("millstream-pipeline-others", "bigint");
    let accepted = accept(&pipeline, &[theirs]).unwrap();
    assert_eq!(accepted.declared["ks"][0].columns.len(), 2);
}

const COUNTS: &str = "SELECT id, count(*) AS n FROM records GROUP BY id";

/// The Keyspace as the pipeline's own declaration leaves it.
fn declared(accepted: &Accepted) -> Keyspace {
    let spec = KeyspaceSpec {
        tables: accepted.declared["ks"].clone(),
        ..keyspace("", "int").spec
    };
    Keyspace {
        spec,
        ..keyspace("millstream-pipeline-users", "int")
    }
}

#[test]
fn groups_have_a_table_for_their_states() {
    let accepted = accept(&pipeline(&sink(COUNTS, BY_ID)), &[]).unwrap();
    assert_eq!(accepted.key, ["/id"]);
    let tables = &accepted.declared["ks"];
    let names: Vec<_> = tables.iter().map(|table| table.name.as_str()).collect();
    assert_eq!(names, ["t", "t__state"]);
    assert_eq!(tables[1].primary_key, tables[0].primary_key);
    // A table that a person declares has its states beside it all the same.
    let theirs = pipeline(&sink(
        "SELECT id, count(*) AS age FROM records GROUP BY id",
        "",
    ));
    let accepted = accept(&theirs, &[keyspace("kubectl", "bigint")]).unwrap();
    let tables = &accepted.declared["ks"];
    let names: Vec<_> = tables.iter().map(|table| table.name.as_str()).collect();
    assert_eq!(names, ["t__state"]);
}

#[test]
fn groups_cannot_be_changed_in_place() {
    let counts = pipeline(&sink(COUNTS, BY_ID));
    let there = declared(&accept(&counts, &[]).unwrap());
    accept(&counts, std::slice::from_ref(&there)).unwrap();
    // What is made of the same states may change.
    let rows = "SELECT id, count(*) + 1 AS n, count(*) AS m FROM records GROUP BY id HAVING n > 2";
    accept(&pipeline(&sink(rows, BY_ID)), std::slice::from_ref(&there)).unwrap();
    let other = "SELECT id, count(name) AS n FROM records GROUP BY id";
    let error = accept(&pipeline(&sink(other, BY_ID)), &[there]).unwrap_err();
    assert_eq!(error.reason(), "Incompatible");
    assert!(error.to_string().contains("ks.t__state"), "{error}");
}

#[test]
fn two_sinks_cannot_keep_groups_in_one_table() {
    let one = sink(COUNTS, BY_ID);
    let other = one
        .replace("name: s,", "name: other,")
        .replace("AS n", "AS m");
    let error = accept(&pipeline(&(one + &other)), &[]).unwrap_err();
    assert!(error.to_string().contains("a table of its own"), "{error}");
}

#[test]
fn says_what_is_wrong_and_where() {
    let by_age = "primaryKey: {partitionKey: [age]}";
    let cases = [
        (sink("SELECT id, age FROM records", ""), vec![]),
        (sink("SELECT idd FROM records", BY_ID), vec![]),
        (
            sink("SELECT id, age FROM records", ""),
            vec![keyspace("kubectl", "int")],
        ),
        (
            sink("SELECT id, age FROM records", by_age),
            vec![keyspace("kubectl", "bigint")],
        ),
        (
            sink("SELECT id, age FROM records", BY_ID),
            vec![keyspace("millstream-pipeline-others", "int")],
        ),
    ];
    let said: Vec<_> = cases
        .iter()
        .map(|(sinks, keyspaces)| {
            let error = accept(&pipeline(sinks), keyspaces).unwrap_err();
            format!("{}: {error}", error.reason())
        })
        .collect();
    insta::assert_snapshot!(said.join("\n"));
}

#[test]
fn expectations_are_checked_against_the_result() {
    let expecting = |check: &str| {
        let sinks = sink("SELECT id, age FROM records", BY_ID);
        let mut pipeline = pipeline(&sinks);
        pipeline.spec.sinks[0].expectations = vec![Expectation {
            name: "adult".into(),
            check: check.into(),
            on_failure: OnFailure::Drop,
        }];
        pipeline
    };
    let accepted = accept(&expecting("age >= 18"), &[]).unwrap();
    assert_eq!(accepted.sinks[0].expectations[0].check, "age >= 18");
    let error = accept(&expecting("age >=\n agee"), &[]).unwrap_err();
    assert_eq!(error.reason(), "InvalidSQL");
    assert_eq!(
        error.to_string(),
        "sink `s`: expectation `adult`, line 2, column 2: no column `agee` in the result of the sink's SQL, which is what a check sees; did you mean `age`?"
    );
}

fn lake(sql: &str, more: &str) -> String {
    let volume = "volume: {persistentVolumeClaim: {claimName: lake}, path: a/b}";
    format!("    - {{name: s, sql: '{sql}', {more}, {volume}}}}}\n")
}

#[test]
fn a_delta_lake_table_needs_no_keyspace_and_rows_without_a_key_no_topic_key() {
    let plain = pipeline(&lake(
        "SELECT name, age FROM records",
        "delta: {partitionBy: [name]",
    ));
    let accepted = accept(&plain, &[]).unwrap();
    assert_eq!(accepted.key, [""; 0]);
    assert!(accepted.declared.is_empty());
    let Destination::Delta(table) = &accepted.sinks[0].destination else {
        panic!("{accepted:?}");
    };
    assert_eq!(table.path.as_deref(), Some("/delta/s/a/b"));
    let merged = pipeline(&lake(
        "SELECT id, age FROM records",
        "delta: {mode: merge, mergeKeys: [id]",
    ));
    assert_eq!(accept(&merged, &[]).unwrap().key, ["/id"]);
}

#[test]
fn groups_in_a_delta_lake_table_have_their_states_where_it_is_said() {
    let state = "state: {keyspace: ks, table: t}, delta: {mode: merge, mergeKeys: [id]";
    let accepted = accept(&pipeline(&lake(COUNTS, state)), &[]).unwrap();
    assert_eq!(accepted.key, ["/id"]);
    let tables = &accepted.declared["ks"];
    let names: Vec<_> = tables.iter().map(|table| table.name.as_str()).collect();
    assert_eq!(names, ["t__state"]);
    let beside = accepted.sinks[0].cassandra().unwrap();
    assert_eq!((&*beside.keyspace, &*beside.table.name), ("ks", "t"));
    // A worker reads back what it is told.
    let told = serde_json::to_string(&accepted.sinks).unwrap();
    let read: Vec<SinkConfig> = serde_json::from_str(&told).unwrap();
    assert_eq!(read, accepted.sinks);
}

#[test]
fn says_what_is_wrong_with_a_delta_lake_table() {
    let having = "SELECT id, count(*) AS n FROM records GROUP BY id HAVING count(*) > 1";
    let merge = "delta: {mode: merge, mergeKeys: [id]";
    let state = "state: {keyspace: ks, table: t}, delta: {mode: merge, mergeKeys: [id]";
    let cases = [
        lake("SELECT id FROM records", "delta: {partitionBy: [idd]"),
        lake("SELECT id FROM records", "delta: {mode: merge"),
        lake("SELECT id, CAST(name AS TIME) AS t FROM records", merge),
        lake("SELECT id FROM records", "delta: {partitionBy: [id]"),
        lake(
            COUNTS,
            "state: {keyspace: ks, table: t}, delta: {mode: append",
        ),
        lake(COUNTS, merge),
        lake("SELECT id FROM records", state),
        lake(having, state),
        lake(
            "SELECT name FROM records",
            "delta: {mode: merge, mergeKeys: [name]",
        )
        .replace("sql:", "stateTtl: 1h, sql:"),
    ];
    let reasons = [
        "delta.partitionBy: no column `idd`",
        "delta.mergeKeys goes with mode merge",
        "column `t` is a TIME",
        "leave a column that isn't in it",
        "set mode: merge",
        "say where with state.keyspace",
        "the SQL has no GROUP BY, and so no state",
        "HAVING",
        "stateTtl",
    ];
    assert_eq!(cases.len(), reasons.len());
    for (sinks, reason) in cases.iter().zip(reasons) {
        let error = accept(&pipeline(sinks), &[]).unwrap_err();
        assert!(error.to_string().contains(reason), "{error}");
    }
}
