use millstream_api::{
    sink::ConsistencyLevel,
    worker::{CassandraTable, Destination, SinkConfig},
};
use millstream_plan::{RecordSchema, SinkPlan};

use super::*;
use crate::{lookup::Joined, preview::rows::Topic, stage::key::Keys};

/// What a sink makes of these records; its table takes uuids for `id`.
fn previewed(sql: &str, records: &[&str]) -> Previewed {
    expecting(sql, records, &json!([]))
}

fn expecting(sql: &str, records: &[&str], expectations: &Value) -> Previewed {
    let schema = RecordSchema::parse("id TEXT, name TEXT, tags ARRAY<TEXT>, at TIMESTAMP").unwrap();
    let sink = serde_json::from_value(json!({
        "name": "users", "sql": sql, "cassandra": {"keyspace": "ks", "table": "t"},
        "expectations": expectations,
    }));
    let plan = SinkPlan::new(&schema, "users", sql).unwrap();
    let key = serde_json::from_value(json!({"partitionKey": ["id"]})).unwrap();
    let mut table = plan.declare_table("t", &key).unwrap();
    table.columns[0].cql_type = "uuid".parse().unwrap();
    let records: Vec<_> = records
        .iter()
        .map(|record| Bytes::from((*record).to_owned()))
        .collect();
    let config = SinkConfig {
        name: "users".into(),
        sql: sql.into(),
        expectations: Vec::new(),
        destination: Destination::Cassandra(CassandraTable {
            keyspace: "ks".into(),
            table,
            consistency: ConsistencyLevel::default(),
        }),
        state: None,
        state_ttl: None,
    };
    let keys = Keys::new(&["/id".to_owned()], "id TEXT").unwrap();
    let (topic, refused) = Topic::of(&records, &keys, None);
    let rows = topic
        .through(&sink.unwrap(), &plan, Joined::default(), Some(&config))
        .unwrap();
    Previewed {
        records,
        unreadable: Vec::new(),
        refused,
        sinks: vec![rows],
    }
}

/// What programs get.
fn parsed(previewed: &Previewed) -> Value {
    serde_json::from_str(&json(previewed).unwrap()).unwrap()
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

    let json = parsed(&previewed);
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
fn what_the_source_cannot_read_is_shown_first() {
    let mut previewed = previewed("SELECT id FROM records", &RECORDS[..1]);
    let lines = (1..=12).map(|line| {
        let reason = format!("line {line}: a quote isn't closed");
        (Bytes::from(format!("\"Bob {line}")), reason)
    });
    previewed.unreadable = lines.collect();
    let text = table(&previewed, None);
    let begin = "12 records of the source can't be read, and would go to the dead letter:\n  \
        line 1: a quote isn't closed\n    \"Bob 1\n  line 2:";
    assert!(text.starts_with(begin), "{text}");
    assert!(
        text.contains("  and 2 more; -o json has them all\nsink `users`"),
        "{text}"
    );
    assert!(!text.contains("line 11"), "{text}");
    let unreadable = &parsed(&previewed)["unreadable"];
    assert_eq!(unreadable[11]["reason"], "line 12: a quote isn't closed");
    assert_eq!(unreadable[11]["record"], "\"Bob 12");
}

#[test]
fn rows_are_held_to_the_expectations() {
    let expectations = json!([
        {"name": "named", "check": "name IS NOT NULL"},
        {"name": "short", "check": "length(name) < 20", "onFailure": "Drop"},
    ]);
    let records = [
        RECORDS[0],
        RECORDS[3],
        r#"{"id": "31111111-2222-3333-4444-555555555555"}"#,
    ];
    let sql = "SELECT id, name FROM records";
    let text = table(&expecting(sql, &records, &expectations), None);
    for part in [
        "(1 row of 3 records, 1 rejected)",
        "  record 2: expectation `named` failed: name IS NOT NULL",
        "  1 row fails the expectation `named`",
        "  2 rows fail the expectation `short`",
    ] {
        assert!(text.contains(part), "{part}\n{text}");
    }
    let fail = json!([{"name": "named", "check": "name IS NOT NULL", "onFailure": "Fail"}]);
    let stopping = expecting(sql, &[records[0], records[2], records[1]], &fail);
    let text = table(&stopping, None);
    let stop =
        "  the sink stops: the record at partition 0, offset 1 fails the expectation `named`";
    assert!(text.contains("(1 row of 3 records, 0 rejected)"), "{text}");
    assert!(text.contains(stop), "{text}");
    assert!(parsed(&stopping)["sinks"][0]["stopped"].is_string());
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
        "sink `users` → ks.t (0 rows of 1 record, 0 rejected)\n"
    );
    assert_eq!(parsed(&previewed)["sinks"][0]["rows"], json!([]));
}

#[test]
fn decimals_keep_their_digits() {
    let record =
        r#"{"id": "11111111-2222-3333-4444-555555555555", "name": "12345678901234567890123"}"#;
    let sql = "SELECT id, CAST(name AS DECIMAL(38, 0)) AS big FROM records";
    let text = json(&previewed(sql, &[record])).unwrap();
    assert!(text.contains(r#""big":12345678901234567890123}"#), "{text}");
}
