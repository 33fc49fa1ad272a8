use k8s_openapi::{
    apimachinery::pkg::apis::meta::v1::{Condition, Time},
    jiff::Timestamp,
};
use millstream_api::{
    KeyspaceSpec, KeyspaceStatus,
    keyspace::ColumnSpec,
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
fn having_needs_a_table_of_its_own() {
    let having = sink(&format!("{COUNTS} HAVING count(*) > 1"), BY_ID);
    let names = sink("SELECT id, name FROM records", BY_ID).replace("name: s,", "name: other,");
    let refused = |pipeline: &DataPipeline, keyspaces: &[Keyspace], said: &[&str]| {
        let error = accept(pipeline, keyspaces).unwrap_err().to_string();
        for words in said.iter().chain(&["ks.t,", "a table of its own"]) {
            assert!(error.contains(words), "{words} isn't in: {error}");
        }
    };
    for sinks in [
        having.clone() + &names,
        names.clone() + &having,
        having.replace("name: s,", "name: another,") + &names,
    ] {
        refused(&pipeline(&sinks), &[], &["HAVING", "sink `other`"]);
    }
    accept(
        &pipeline(&(having.clone() + &names.replace("table: t,", "table: u,"))),
        &[],
    )
    .unwrap();
    accept(&pipeline(&(sink(COUNTS, BY_ID) + &names)), &[]).unwrap();

    // The other is of another pipeline, which was there first.
    let theirs = keyspace("millstream-pipeline-others", "bigint");
    let said = ["sink `s`", "pipeline `others`"];
    refused(&pipeline(&having), &[theirs], &said);
    // Whoever declares a table doesn't write into it by that.
    let ages = having.replace("AS n", "AS age").replace(BY_ID, "");
    accept(&pipeline(&ages), &[keyspace("kubectl", "bigint")]).unwrap();

    // Or which comes last.
    let alone = accept(&pipeline(&having), &[]).unwrap();
    let mut there = declared(&alone);
    claim_table(&mut there, "t__state", "millstream-pipeline-users");
    accept(&pipeline(&having), std::slice::from_ref(&there)).unwrap();
    let mut others = pipeline(&names);
    others.metadata.name = Some("others".into());
    let said = ["sink `other`", "pipeline `users`"];
    refused(&others, std::slice::from_ref(&there), &said);
    // Without HAVING again.
    let counts = accept(&pipeline(&sink(COUNTS, BY_ID)), &[there]).unwrap();
    let mut there = declared(&counts);
    claim_table(&mut there, "t__state", "millstream-pipeline-users");
    accept(&others, &[there]).unwrap();
}

#[test]
fn a_sink_cannot_have_the_name_of_the_source() {
    let named = |name: &str| {
        let sink = sink("SELECT id, name FROM records", BY_ID);
        accept(
            &pipeline(&sink.replace("name: s,", &format!("name: {name},"))),
            &[],
        )
    };
    let error = named("ingest").unwrap_err();
    assert_eq!(error.reason(), "InvalidSpec");
    assert!(error.to_string().contains("another one"), "{error}");
    named("ingested").unwrap();
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

/// A pipeline with other fields.
fn pipeline_with(fields: &serde_json::Value) -> DataPipeline {
    let mut json =
        serde_json::to_value(pipeline(&sink("SELECT id, name FROM records", BY_ID))).unwrap();
    for (field, value) in fields.as_object().unwrap() {
        json["spec"][field] = value.clone();
    }
    serde_json::from_value(json).unwrap()
}

#[test]
fn what_cannot_run_by_schedule_is_refused() {
    use serde_json::json;
    let generator = |generator| json!({"generator": generator});
    let http = json!({"http": {"url": "http://x", "poll": {"interval": "1s"}}});
    let daily = || json!({"cron": "@daily"});
    let minute = || json!({"cron": "@daily", "runFor": "1m"});
    for (source, schedule, after, said) in [
        (
            http.clone(),
            daily(),
            json!([]),
            "schedule.runFor: the source has no end",
        ),
        (
            generator(json!({})),
            daily(),
            json!([]),
            "schedule.runFor: the source has no end",
        ),
        (
            generator(json!({"count": 1})),
            minute(),
            json!([]),
            "take runFor out",
        ),
        (
            http.clone(),
            json!({"cron": "x", "runFor": "1m"}),
            json!([]),
            "schedule.cron: `x`",
        ),
        (
            http.clone(),
            minute(),
            json!(["users"]),
            "after: the pipeline would wait for itself",
        ),
    ] {
        let fields = json!({"source": source, "schedule": schedule, "after": after});
        let refused = accept(&pipeline_with(&fields), &[]).unwrap_err();
        assert!(refused.to_string().contains(said), "{fields}: {refused}");
    }
    for (source, schedule) in [(http, minute()), (generator(json!({"count": 1})), daily())] {
        let fields = json!({"source": source, "schedule": schedule, "after": ["orders"]});
        let accepted = accept(&pipeline_with(&fields), &[]).unwrap();
        assert!(accepted.calendar.is_some());
    }
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
fn records_are_keyed_alike_where_rows_replace_one_another() {
    let number = "SELECT _partition AS p, _offset AS o, name FROM records";
    for (sinks, keyed) in [
        (sink("SELECT id, name FROM records", BY_ID), &["s"][..]),
        (sink(COUNTS, BY_ID), &["s"]),
        (
            lake(
                "SELECT id FROM records",
                "delta: {mode: merge, mergeKeys: [id]",
            ),
            &["s"],
        ),
        (
            documents("d", "SELECT id FROM records", "collection: c, id: id"),
            &["d"],
        ),
        // Each record is a row of its own, wherever it comes from.
        (
            lake("SELECT id FROM records", "delta: {partitionBy: []"),
            &[],
        ),
        (sink(number, "primaryKey: {partitionKey: [p, o]}"), &[]),
    ] {
        let accepted = accept(&pipeline(&sinks), &[]).unwrap();
        assert_eq!(accepted.keyed, keyed, "{sinks}");
    }
}

#[test]
fn groups_in_a_delta_lake_table_have_their_states_where_it_is_said() {
    let state = "state: {keyspace: ks, table: t}, delta: {mode: merge, mergeKeys: [id]";
    let accepted = accept(&pipeline(&lake(COUNTS, state)), &[]).unwrap();
    assert_eq!(accepted.key, ["/id"]);
    let tables = &accepted.declared["ks"];
    let names: Vec<_> = tables.iter().map(|table| table.name.as_str()).collect();
    assert_eq!(names, ["t__state"]);
    // As finely as the table tells its rows apart.
    let column = |column: &ColumnSpec| format!("{} {}", column.name, column.cql_type);
    let columns: Vec<_> = tables[0].columns.iter().map(column).collect();
    assert_eq!(columns, ["id text", "state__ blob"]);
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
            "SELECT CAST(age AS DECIMAL(20, 0)) AS id, name FROM records",
            merge,
        ),
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
        "a DECIMAL of more than 15 digits",
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

#[test]
fn only_cassandra_takes_no_names_in_upper_case() {
    use serde_json::json;
    let rows = r#"SELECT id AS "ID", age AS "Age" FROM records"#;
    let keys = "delta: {mode: merge, mergeKeys: [ID], partitionBy: [ID]";
    let mut merged = pipeline(&lake(rows, keys));
    merged.spec.sinks[0].expectations = vec![Expectation {
        name: "adult".into(),
        check: r#""Age" >= 18"#.into(),
        on_failure: OnFailure::Drop,
    }];
    let mut serving = |sql: &str| {
        let serve = json!({"endpoints": [{"name": "e", "path": "/e", "sql": sql}]});
        merged.spec.serve = Some(serde_json::from_value(serve).unwrap());
        accept(&merged, &[]).map_err(|error| error.to_string())
    };
    let accepted = serving(r#"SELECT "Age" FROM s WHERE "ID" = 'x'"#).unwrap();
    assert_eq!(accepted.key, ["/id"]);
    // A name that isn't in quotes is one in lower case.
    let error = serving("SELECT Age FROM s").unwrap_err();
    assert!(error.contains("No field named age"), "{error}");

    let groups = r#"SELECT id, count(*) AS "N" FROM records GROUP BY id"#;
    let state = "state: {keyspace: ks, table: t}, delta: {mode: merge, mergeKeys: [id]";
    accept(&pipeline(&lake(groups, state)), &[]).unwrap();
    let document = documents("d", rows, "collection: c, id: ID");
    accept(&pipeline(&document), &[]).unwrap();

    let upper = groups.replace("id,", "id AS \"ID\",");
    for (sinks, says) in [
        (
            lake(rows, &keys.replace("ID", "id")),
            "no column `id` in the result of the SQL; did you mean `ID`?",
        ),
        (
            lake(&upper, &state.replace("[id]", "[ID]")),
            "`ID` can't be the name of a group's key",
        ),
        (
            sink(rows, "primaryKey: {partitionKey: [ID]}"),
            "line 1, column 14: `ID` can't be the name of a column in Cassandra",
        ),
    ] {
        let error = accept(&pipeline(&sinks), &[]).unwrap_err();
        assert!(error.to_string().contains(says), "{error}");
    }
}

fn documents(name: &str, sql: &str, more: &str) -> String {
    format!(
        "    - {{name: {name}, sql: '{sql}', document: {{connectionSecret: {{name: mongo, key: uri}}, database: shop, {more}}}}}\n"
    )
}

#[test]
fn documents_are_keyed_by_their_id_and_declare_no_table() {
    let sink = documents("d", "SELECT id, name FROM records", "collection: c, id: id");
    let accepted = accept(&pipeline(&sink), &[]).unwrap();
    assert_eq!(accepted.key, ["/id"]);
    assert!(accepted.declared.is_empty());
    assert!(matches!(
        accepted.sinks[0].destination,
        Destination::Document(_)
    ));
}

#[test]
fn documents_that_make_no_sense_are_refused_with_the_way_out() {
    let plain = "SELECT id, name FROM records";
    let by_id = "collection: c, id: id";
    let groups = "SELECT id, count(*) AS n FROM records GROUP BY id";
    let having = format!("{groups} HAVING count(*) > 1");
    let twice = documents("a", plain, by_id) + &documents("b", plain, by_id);
    for (sinks, says) in [
        (
            documents("d", plain, "collection: c, id: nam"),
            "document.id: no column `nam` in the result of the SQL; did you mean `name`?",
        ),
        (
            documents("d", "SELECT 1.5 AS id FROM records", by_id),
            "choose another column",
        ),
        (documents("d", groups, by_id), "state.keyspace"),
        (
            documents("d", &having, by_id),
            "documents are never deleted",
        ),
        (twice, "sink `a` writes into shop.c too"),
    ] {
        let refusal = accept(&pipeline(&sinks), &[]).unwrap_err().to_string();
        assert!(refusal.contains(says), "{refusal}");
    }
}

/// A pipeline with a lookup and a sink that joins it.
fn joining(lookup: &str, sql: &str) -> DataPipeline {
    let mut pipeline = pipeline(&sink(sql, BY_ID));
    let lookup = serde_saphyr::from_str(&format!("{{name: l, {lookup}}}")).unwrap();
    pipeline.spec.lookups = vec![lookup];
    pipeline.spec.sinks[0].cassandra.as_mut().unwrap().table = "joined".into();
    pipeline
}

const JOINED: &str = "SELECT r.id, l.age FROM records r LEFT JOIN l ON r.id = l.id";

#[test]
fn the_columns_of_a_lookup_are_those_of_its_table_or_as_they_are_given() {
    let table = "cassandra: {keyspace: ks, table: t}";
    let pipeline = joining(table, JOINED);
    let accepted = accept(&pipeline, &[keyspace("kubectl", "bigint")]).unwrap();
    assert_eq!(
        accepted.lookups[0].schema.as_deref(),
        Some("\"id\" UUID, \"age\" BIGINT")
    );
    let columns = &accepted.declared["ks"][0].columns;
    assert_eq!(columns[1].cql_type.to_string(), "bigint");
    let given = joining(&format!("{table}, schema: 'id TEXT, age INT'"), JOINED);
    let accepted = accept(&given, &[]).unwrap();
    let columns = &accepted.declared["ks"][0].columns;
    assert_eq!(columns[1].cql_type.to_string(), "int");
}

#[test]
fn a_lookup_that_makes_no_sense_is_refused() {
    let table = "cassandra: {keyspace: ks, table: t}";
    for (lookup, sql, says) in [
        (
            table.to_owned(),
            JOINED,
            "lookup `l`: no Keyspace of this namespace declares table ks.t",
        ),
        (
            format!("{table}, refresh: 10ms, schema: 'id TEXT, age INT'"),
            JOINED,
            "lookup `l`: refresh: 1s is the shortest",
        ),
        (
            format!("{table}, schema: 'id TEXT, age ARRAY<INT>'"),
            JOINED,
            "`age` is ARRAY<INT>; a collection",
        ),
        (
            "file: {path: /x}, schema: 'id TXT'".into(),
            JOINED,
            "lookup `l`: schema, line 1, column 4: `TXT` is not a type",
        ),
        (
            "file: {path: /x}, schema: 'id TEXT'".into(),
            JOINED,
            "no column `age` in the lookup `l`",
        ),
        (
            "file: {path: /x}, schema: 'id TEXT'".into(),
            "SELECT l.id FROM records r JOIN l ON r.name = l.id",
            "no column of the primary key (id) is a field of the record",
        ),
    ] {
        let error = accept(&joining(&lookup, sql), &[]).unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
    }
}
