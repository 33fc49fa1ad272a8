use std::{fs::File, io::Read, path::Path};

use flate2::read::MultiGzDecoder;

use super::*;

fn of(records: &[&str]) -> Inferred {
    let records = records
        .iter()
        .map(|record| Bytes::from((*record).to_owned()));
    infer(&records.collect::<Vec<_>>(), false).unwrap()
}

/// Every one of these is in the text, however it is laid out.
fn assert_has(text: &str, parts: &[&str]) {
    let words: Vec<_> = text.split_whitespace().collect();
    let text = words.join(" ");
    for part in parts {
        assert!(text.contains(part), "{part:?} isn't in {text}");
    }
}

#[test]
fn types_are_widened_until_they_take_every_record() {
    let inferred = of(&[
        r#"{"n": 1, "big": 9223372036854775808, "x": 1, "code": 7, "flag": true, "either": true}"#,
        r#"{"n": -5, "big": 1, "x": 1.5, "code": "07", "flag": null, "either": 0}"#,
        r#"{"id": "0B3328F9-8126-4b73-b190-0e8da2fe9a23", "day": "2026-11-21", "at": "2026-11-21"}"#,
        r#"{"id": "1b3328f9-8126-4b73-b190-0e8da2fe9a23", "day": "2026-11-22", "at": "2026-11-21T15:00:00.5+02:00"}"#,
        r#"{"text": "2026-11-21T15:00:00Z", "never": null, "list": [], "name": {"first": "Zoë"}}"#,
        r#"{"text": "soon", "list": [{"a": [1, 2.5]}, {"b": "x"}], "name": {"last": "Nichols", "first": 5}}"#,
        r#"{"@id": 1, "a b": 1, "order": 1, "_offset": 1, "": 1, "userName": "x", "username": "y"}"#,
        r#"{"object": {}, "mixed": {}, "both": [1]}"#,
        r#"{"mixed": 1, "both": {"x": 1}}"#,
    ]);
    assert_has(
        &inferred.schema,
        &[
            " n BIGINT, big DECIMAL(38, 0), x DOUBLE, code TEXT, flag BOOLEAN, either TEXT, id UUID,",
            " day DATE, at TIMESTAMP, text TEXT, never TEXT, list ARRAY<STRUCT<a ARRAY<DOUBLE>, b TEXT>>,",
            " name STRUCT<first TEXT, last TEXT>, \"@id\" BIGINT, \"a b\" BIGINT, order BIGINT,",
            " userName TEXT, username TEXT",
            "-- /never was null in all records: TEXT is a guess",
            "-- /_offset is left out: the name can't be declared",
            "-- / is left out: the name can't be declared",
            "-- /object is left out: an object without fields",
            "-- /mixed is left out: an object or a single value",
            "-- /both is left out: an object or an array",
        ],
    );
    let sql = inferred.selection.sql(&[]);
    let columns = [
        "name.first AS name_first",
        "\"a b\" AS a_b",
        "AS id_2",
        "userName AS user_name",
    ];
    assert_has(&sql, &columns);
    assert!(
        !sql.contains("list"),
        "an array of objects has no place in a table: {sql}"
    );
}

#[test]
fn numbers_of_a_csv_are_read_from_its_text() {
    let records = [
        r#"{"n": "1", "x": "1", "zip": "11417", "price": "1e3", "none": null, "big": "12345678901234567890", "long": "1234567890123456789012345678901234567890"}"#,
        r#"{"n": "-7", "x": "2.5", "zip": "07030", "price": "-0.5", "none": null, "big": "7", "long": "7"}"#,
    ];
    let records = records.map(|record| Bytes::from(record.to_owned()));
    let schema = infer(&records, true).unwrap().schema;
    assert_has(
        &schema,
        &["n BIGINT, x DOUBLE, zip TEXT, price DOUBLE, none TEXT, big DECIMAL(38, 0), long TEXT"],
    );
    let schema = infer(&records, false).unwrap().schema;
    assert_has(
        &schema,
        &["n TEXT, x TEXT, zip TEXT, price TEXT, none TEXT, big TEXT, long TEXT"],
    );
}

#[test]
fn a_map_and_a_deep_record_are_left_out_and_said_so() {
    let map: Vec<_> = (0..400).map(|n| format!("\"k{n}\": {n}")).collect();
    let deep = "{\"a\":".repeat(40) + "1" + &"}".repeat(40);
    let record = format!(
        r#"{{"id": 1, "map": {{{}}}, "deep": {deep}}}"#,
        map.join(", ")
    );
    let inferred = of(&[&record]);
    assert_has(
        &inferred.schema,
        &[
            "-- /map is left out: its names are data",
            "it is nested too deep",
            "-- /deep is left out: an object without fields",
            " id BIGINT",
        ],
    );
}

#[test]
fn a_pipeline_to_start_from_is_accepted_as_it_is() {
    let inferred = of(&[
        r#"{"email": "a@b", "login": {"uuid": "0b3328f9-8126-4b73-b190-0e8da2fe9a23"}, "user_id": 1}"#,
        r#"{"email": "c@d", "login": {"uuid": "1b3328f9-8126-4b73-b190-0e8da2fe9a23"}, "user_id": 2}"#,
    ]);
    let source = json!({"http": {"url": "http://x/?a=b#c", "records": "/results"}});
    let pipeline = inferred.pipeline("new-users", &source);
    for line in [
        "  name: new-users",
        "      url: \"http://x/?a=b#c\"",
        "      records: \"/results\"",
        "        keyspace: new_users",
        "        # login_uuid was there and different in all 2 records",
        "        primaryKey: {partitionKey: [login_uuid]}",
    ] {
        let is_there = pipeline.lines().any(|there| there == line);
        assert!(is_there, "{line}\n{pipeline}");
    }
    accepted(&pipeline);
    let without_key = of(&[r#"{"a": 1.5}"#, r#"{"b": 2}"#]);
    let pipeline = without_key.pipeline("plain", &source);
    assert!(pipeline.contains("primaryKey: {partitionKey: [partition, record]}"));
    accepted(&pipeline);
}

#[test]
fn names_and_urls_are_held_to_what_is_taken() {
    for name in [
        "My Things",
        "9-lives",
        "a.b",
        "-a",
        "a-",
        "",
        &"a".repeat(49),
    ] {
        assert!(pipeline_name(name).is_err(), "{name:?}");
    }
    let longest = "a".repeat(48);
    assert_eq!(pipeline_name(&longest).as_ref(), Ok(&longest));
    accepted(&of(&[r#"{"a": 1}"#]).pipeline(&longest, &json!({"http": {"url": "http://x"}})));
    assert!(!is_http("example.org/api") && !is_http("ftp://example.org"));
}

fn accepted(pipeline: &str) {
    let findings = crate::check::check(crate::manifest::parse(pipeline).unwrap());
    assert!(findings[0].verdict.is_ok(), "{findings:?}\n{pipeline}");
}

/// The records of a recorded file, if there are recorded files.
fn recorded(name: &str) -> Option<Vec<Bytes>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../shared/data")
        .join(name);
    let Ok(mut file) = File::open(&path) else {
        eprintln!("skipped: no recorded data");
        return None;
    };
    let mut text = String::new();
    if name.ends_with(".gz") {
        MultiGzDecoder::new(file).read_to_string(&mut text).unwrap();
        return Some(
            text.lines()
                .map(|line| Bytes::from(line.to_owned()))
                .collect(),
        );
    }
    file.read_to_string(&mut text).unwrap();
    let answer: Value = serde_json::from_str(&text).unwrap();
    let results = answer["results"].as_array().unwrap();
    Some(
        results
            .iter()
            .map(|record| Bytes::from(record.to_string()))
            .collect(),
    )
}

#[test]
fn what_was_recorded_fits_the_schema_that_was_inferred_from_it() {
    for (name, key) in [
        ("meetup_rsvps.deid.jsonl.gz", "rsvp_id"),
        ("randomuser_v1_3_plus.jsonl.gz", "login_uuid"),
        ("randomuser_api_response_200.json", "login_uuid"),
        ("randomuser_api_response_111.json", "login_uuid"),
        ("nyc_dca_businesses.soda.deid.jsonl.gz", "license_nbr"),
        ("session_start_end.jsonl.gz", "session_id"),
    ] {
        let Some(records) = recorded(name) else {
            return;
        };
        let inferred = infer(&records, false).unwrap();
        let schema = RecordSchema::parse(&inferred.schema).unwrap();
        assert_eq!(misfits(&schema, &records), [], "{name}");
        assert_eq!(inferred.key.as_ref().unwrap().column, key, "{name}");
        accepted(&inferred.pipeline("recorded", &json!({"http": {"url": "http://x"}})));
        // A column that only some records have is there all the same.
        let columns: Vec<_> = schema
            .fields()
            .iter()
            .map(|field| field.name.as_str())
            .collect();
        for record in &records {
            let record: Value = serde_json::from_slice(record).unwrap();
            for field in record.as_object().unwrap().keys() {
                assert!(columns.contains(&field.as_str()), "{name}: {field}");
            }
        }
    }
}
