//! Whatever is written in a DataPipeline, the operator lives on.

use millstream_plan::{RecordSchema, SinkPlan};
use proptest::{prelude::*, sample::select};

use crate::{join::lookups, users};

/// Pieces of SQL in any order: more of it gets past the tokenizer than of random characters.
fn pieces() -> impl Strategy<Value = String> {
    let words = vec![
        "SELECT",
        "FROM",
        "WHERE",
        "records",
        "gender",
        "login",
        ".",
        "uuid",
        ",",
        "(",
        ")",
        "<",
        ">",
        "[",
        "]",
        "{",
        "}",
        "'x'",
        "\"",
        "1",
        "1.5",
        "*",
        "+",
        "-",
        "||",
        "=",
        "AND",
        "OR",
        "NOT",
        "IS",
        "NULL",
        "AS",
        "a",
        "CAST",
        "upper",
        "TEXT",
        "STRUCT",
        "ARRAY",
        "DECIMAL",
        "TIMESTAMP",
        "INTERVAL",
        "CASE",
        "WHEN",
        "THEN",
        "END",
        "IN",
        "BETWEEN",
        "LIKE",
        "::",
        ":",
        ";",
        "UUID",
        "--",
        "/*",
        "$1",
        "?",
        "@",
        "é",
        "\u{0}",
        "name['first']",
        "tags[1]",
        "EXTRACT",
        "_offset",
        "GROUP BY",
        "JOIN",
        "LEFT JOIN countries c ON",
        "c.code",
        "ON",
        "USING",
        "DATE",
        "TRIM",
        "SUBSTRING",
        "POSITION",
        "EXISTS",
        "ANY",
        "WITH",
        "UNION",
        "x ->",
        "=>",
        "e'\\",
        "N'",
        "0x1",
        "9999999999999999999999",
    ];
    proptest::collection::vec(select(words), 0..40).prop_map(|words| words.join(" "))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn schema_never_panics(text in prop_oneof![pieces(), any::<String>()]) {
        let _ = RecordSchema::parse(&text);
    }

    #[test]
    fn query_never_panics(text in prop_oneof![
        any::<String>(),
        pieces(),
        pieces().prop_map(|pieces| format!("SELECT {pieces} FROM records")),
        pieces().prop_map(|pieces| format!("SELECT gender FROM records WHERE {pieces}")),
        pieces().prop_map(|pieces| format!("SELECT gender FROM records JOIN countries c ON {pieces}")),
    ]) {
        let _ = SinkPlan::joining(&users(), &lookups(), "s", &text);
    }
}
