//! Whatever is written in a DataPipeline, the operator lives on.

use millstream_plan::{RecordSchema, SinkPlan};
use proptest::{collection::vec, prelude::*, sample::select};

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
        "HAVING",
        "count(*)",
        "count(DISTINCT",
        "sum(",
        "max(score)",
        "last_value(gender ORDER BY _offset)",
        "ORDER BY",
        "FILTER (WHERE active)",
        "date_bin(INTERVAL '1 hour', registered.date)",
        "OVER ()",
        "ROLLUP (",
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
    vec(select(words), 0..40).prop_map(|words| words.join(" "))
}

/// A query with groups, most of it in its place: much of this gets as far as the engine.
fn grouped() -> impl Strategy<Value = String> {
    let key = select(vec![
        "gender",
        "login.uuid",
        "upper(gender)",
        "date_bin(INTERVAL '1 hour', registered.date)",
        "a0",
        "1",
        "3",
        "'all'",
        "_partition",
        "tags[1]",
        "name",
        "NULL",
        "visits + 1",
        "count(*)",
        "now()",
    ]);
    let values = vec(
        prop_oneof![aggregate(), key.clone().prop_map(str::to_owned)],
        1..5,
    );
    let condition = proptest::option::of((aggregate(), select(vec!["> 1", "IS NULL", "", "= a0"])));
    (values, vec(key, 0..4), condition).prop_map(|(values, keys, condition)| {
        let values = (0..).zip(values);
        let values: Vec<_> = values
            .map(|(index, value)| format!("{value} AS a{index}"))
            .collect();
        let having = condition.map(|(one, than)| format!("HAVING {one} {than}"));
        let (values, keys) = (values.join(", "), keys.join(", "));
        format!(
            "SELECT {values} FROM records GROUP BY {keys} {}",
            having.unwrap_or_default()
        )
    })
}

fn aggregate() -> impl Strategy<Value = String> {
    let function = select(vec![
        "count",
        "sum",
        "avg",
        "min",
        "max",
        "first_value",
        "last_value",
        "array_agg",
        "string_agg",
        "approx_distinct",
        "approx_percentile_cont",
        "median",
        "bool_and",
        "bit_xor",
        "stddev",
        "nth_value",
        "grouping",
        "upper",
    ]);
    let arguments = select(vec![
        "*",
        "score",
        "visits",
        "active",
        "DISTINCT visits",
        "DISTINCT tags[1]",
        "ALL price",
        "gender ORDER BY registered.date DESC",
        "name.first, ','",
        "score, 0.5",
        "price * 2",
        "items[1]['amount']",
        "tags",
        "name",
        "max(visits)",
        "CASE WHEN active THEN visits END",
        "random()",
        "NULL",
        "",
    ]);
    let after = select(vec![
        "",
        "",
        "FILTER (WHERE active)",
        "FILTER (WHERE visits > 1 AND gender IS NULL)",
        "FILTER (WHERE count(*) > 1)",
        "IGNORE NULLS",
        "OVER ()",
        "WITHIN GROUP (ORDER BY score)",
        "* 2 + count(*)",
        "|| gender",
        "BETWEEN 1 AND sum(visits)",
    ]);
    (function, arguments, after)
        .prop_map(|(function, arguments, after)| format!("{function}({arguments}) {after}"))
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
        grouped(),
        (pieces(), pieces()).prop_map(|(value, key)| format!("SELECT gender, {value} FROM records GROUP BY {key}")),
        pieces().prop_map(|pieces| format!("SELECT gender, count(*) AS n FROM records GROUP BY gender HAVING {pieces}")),
        pieces().prop_map(|pieces| format!("SELECT gender FROM records JOIN countries c ON {pieces}")),
    ]) {
        let _ = SinkPlan::joining(&users(), &lookups(), "s", &text);
    }
}
