use datafusion::arrow::datatypes::Fields;
use millstream_plan::{
    RecordSchema,
    avro::{check_readable, narrow, uuids_as_text},
};
use serde_json::Value;

use crate::{assert_told, plan};

fn avro(schema: &str) -> Value {
    let schema = RecordSchema::parse(schema).unwrap();
    schema.avro("users-created.v2").unwrap()
}

fn outcome(schema: &str) -> String {
    let schema = RecordSchema::parse(schema).unwrap();
    match schema.avro("2024-users") {
        Ok(avro) => avro.to_string(),
        Err(problem) => problem.to_string(),
    }
}

#[test]
fn every_type_has_one_in_avro() {
    assert_told!(
        [
            "a BOOLEAN, b TINYINT, c SMALLINT, d INT, e BIGINT, f FLOAT, g DOUBLE, h DECIMAL(10, 2)",
            "a TEXT, b UUID, c DATE, d TIMESTAMP, e ARRAY<TEXT>",
            "name STRUCT<first TEXT>, a STRUCT<name STRUCT<first TEXT>>, items ARRAY<STRUCT<n INT>>",
            r#"a STRUCT<"@id" TEXT>"#,
            r#""1a" TEXT"#,
            "ünïcode TEXT",
        ],
        outcome
    );
}

#[test]
fn only_what_a_query_reads_is_read() {
    let plan = plan("SELECT name.first AS f, items[1].sku AS sku, visits FROM records");
    let columns: Fields = plan.record_schema().fields().clone();
    let mut whole = avro(
        "gender TEXT, name STRUCT<title TEXT, first TEXT, last TEXT>, \
         items ARRAY<STRUCT<sku TEXT, amount INT>>, visits BIGINT, id UUID",
    );
    let narrowed = narrow(&whole, &columns);
    assert_eq!(
        narrowed,
        avro("name STRUCT<first TEXT>, items ARRAY<STRUCT<sku TEXT, amount INT>>, visits BIGINT")
    );
    check_readable(&whole, &narrowed).unwrap();
    assert!(whole.to_string().contains("uuid"));
    uuids_as_text(&mut whole);
    assert!(!whole.to_string().contains("uuid"));
}

fn change(change: &str) -> String {
    let (from, to) = change.split_once(" -> ").unwrap();
    match check_readable(&avro(from), &avro(to)) {
        Ok(()) => "readable".to_owned(),
        Err(problem) => problem.to_string(),
    }
}

#[test]
fn a_change_is_readable_or_not() {
    assert_told!(
        [
            "a INT -> a INT, b TEXT",
            "a INT, b TEXT -> b TEXT",
            "a INT -> a BIGINT",
            "a SMALLINT -> a DOUBLE",
            "a TEXT -> a UUID",
            "s STRUCT<a INT> -> s STRUCT<b TEXT, a BIGINT>",
            "a BIGINT -> a INT",
            "a TEXT -> a INT",
            "a DECIMAL(10, 2) -> a DECIMAL(12, 2)",
            "a DECIMAL(10, 2) -> a DECIMAL(10, 4)",
            "a TIMESTAMP -> a BIGINT",
            "a DATE -> a TIMESTAMP",
            "s STRUCT<a INT> -> s ARRAY<INT>",
            "s ARRAY<STRUCT<t STRUCT<a INT>>> -> s ARRAY<STRUCT<t STRUCT<a TEXT>>>",
        ],
        change
    );
}

#[test]
fn what_others_wrote_is_read_if_it_means_the_same() {
    let reader = avro("a TIMESTAMP, b TEXT");
    let mut writer = reader.clone();
    writer["fields"][1]["type"] = "string".into();
    check_readable(&writer, &reader).unwrap();
    writer["fields"][0]["type"][1]["logicalType"] = "timestamp-millis".into();
    let problem = check_readable(&writer, &reader).unwrap_err();
    insta::assert_snapshot!(problem, @"field `a` was written as `timestamp-millis` and can't be read as `timestamp-micros`");
    let mut writer = reader.clone();
    writer["fields"][1]["type"] = serde_json::json!(["null", "string", "int"]);
    let problem = check_readable(&writer, &reader).unwrap_err();
    insta::assert_snapshot!(problem, @r#"field `b` was written as ["null","string","int"] and can't be read as `string`"#);
    let mut writer = reader.clone();
    writer["namespace"] = "other".into();
    let problem = check_readable(&writer, &reader).unwrap_err();
    insta::assert_snapshot!(problem, @"the record was written by the name of other.users_created_v2, not millstream.users_created_v2");
}
