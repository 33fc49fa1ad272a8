use bytes::Bytes;
use millstream_plan::{RecordSchema, SinkPlan};

use super::*;
use crate::{lookup::Joined, preview::rows::Topic, stage::key::Keys};

/// What a sink makes of these records; its table takes uuids for `id`.
fn previewed(sql: &str, records: &[&str]) -> Previewed {
    let schema = RecordSchema::parse("id TEXT, name TEXT, tags ARRAY<TEXT>, at TIMESTAMP").unwrap();
    let sink = serde_json::from_value(json!({
        "name": "users", "sql": sql, "cassandra": {"keyspace": "ks", "table": "t"},
    }));
    let plan = SinkPlan::new(&schema, "users", sql).unwrap();
    let key = serde_json::from_value(json!({"partitionKey": ["id"]})).unwrap();
    let mut table = plan.declare_table("t", &key).unwrap();
    table.columns[0].cql_type = "uuid".parse().unwrap();
    let records: Vec<_> = records
        .iter()
        .map(|record| Bytes::from((*record).to_owned()))
        .collect();
    let keys = Keys::new(&["/id".to_owned()], "id TEXT").unwrap();
    let (topic, refused) = Topic::of(&records, &keys);
    let rows = topic
        .through(&sink.unwrap(), &plan, Joined::default(), Some(&table))
        .unwrap();
    Previewed {
        records,
        refused,
        sinks: vec![rows],
    }
}

const RECORDS: [&str; 5] = [
    r#"{"id": "11111111-2222-3333-4444-555555555555", "name": "Zoë", "tags": ["a", "b"], "at": "2026-11-21T15:00:00Z"}"#,
    r#"{"name": "nobody"}"#,
    r#"{"id": "7", "name": "not a uuid"}"#,
    r#"{"id": "21111111-2222-3333-4444-555555555555", "name": "a long name, much longer than there is room for in a narrow terminal"}"#,
    r#"{"id": "8", "at": "noon"}"#,
];

#[test]
fn rows_and_what_was_rejected() {
    let previewed = previewed("SELECT id, name, tags, at FROM records", &RECORDS);
    let text = table(&previewed, Some(80));
    for part in [
        "1 of 5 records would not get into the topic:",
        "  record 1: the key field `/id` is not in the record",
        "sink `users` → ks.t (2 rows of 4 records, 2 rejected)",
        "Zoë",
        "  record 2: column `id`",
        "  record 4: the record doesn't fit the schema",
    ] {
        assert!(text.contains(part), "{part}\n{text}");
    }
    assert!(
        !text.contains("narrow terminal"),
        "a row has one line\n{text}"
    );
    for row in text.lines().filter(|line| line.starts_with('│')) {
        assert!(row.chars().count() <= 80, "{row}");
    }

    let json = json(&previewed).unwrap();
    assert_eq!(json["records"], 5);
    let sink = &json["sinks"][0];
    assert_eq!(sink["rows"].as_array().map(Vec::len), Some(2));
    assert_eq!(sink["rows"][0]["name"], "Zoë");
    assert_eq!(sink["rows"][0]["tags"], json!(["a", "b"]));
    assert_eq!(sink["rows"][1]["at"], Value::Null);
    assert_eq!(sink["rejected"][0]["record"], RECORDS[2]);
    assert_eq!(json["refused"][0]["record"], RECORDS[1]);
}

#[test]
fn many_columns_stand_one_below_the_other() {
    let previewed = previewed("SELECT id, name, tags, at FROM records", &RECORDS);
    let text = table(&previewed, Some(40));
    let shortened = "name │ a long name, much longer than th…";
    for line in ["name │ Zoë", "tags │ [a, b]", shortened] {
        let is_there = text.lines().any(|there| there == line);
        assert!(is_there, "{line}\n{text}");
    }
}

#[test]
fn no_rows_are_no_table() {
    let previewed = previewed("SELECT id FROM records WHERE name = 'x'", &RECORDS[..1]);
    assert_eq!(
        table(&previewed, None),
        "sink `users` → ks.t (0 rows of 1 records, 0 rejected)\n"
    );
    assert_eq!(json(&previewed).unwrap()["sinks"][0]["rows"], json!([]));
}
