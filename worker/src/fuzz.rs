//! Whatever comes from outside, the worker lives on: arbitrary input, and valid input with faults.

use bytes::Bytes;
use millstream_api::{cql::CqlType, worker::CommitMetadata};
use millstream_plan::{RecordSchema, SinkPlan};
use proptest::{collection::vec, prelude::*, sample::Index};
use serde_json::{Map, Value, json};

use crate::{
    batch::Batch,
    check::check,
    decode::misfits,
    manifest,
    pointer::{Fields, Pointer, scalar_text},
    stage::key::Keys,
    state::State,
    transform::Transform,
};

const SCHEMA: &str = "id UUID, name STRUCT<first TEXT, last TEXT>, tags ARRAY<TEXT>, \
    items ARRAY<STRUCT<sku TEXT, amount INT>>, price DECIMAL(10, 2), at TIMESTAMP, born DATE, \
    score DOUBLE, small TINYINT, active BOOLEAN";

const SQL: &str = "SELECT id, upper(name.first) || '!' AS first, tags[1] AS tag, items[1]['amount'] AS amount, \
    price * 2 AS price, date_trunc('day', at) AS day, CAST(score AS INT) AS score, small + 1 AS small, \
    _offset AS o FROM records WHERE active IS NOT FALSE";

const GROUPED: &str = "SELECT name.first AS first, date_bin(INTERVAL '1 hour', at) AS hour, count(*) AS n, \
    sum(small) FILTER (WHERE active) AS total, count(DISTINCT score) * 2 AS scores, \
    last_value(price ORDER BY at DESC) AS price, avg(items[1]['amount']) AS amount \
    FROM records WHERE active IS NOT FALSE GROUP BY 1, hour HAVING count(*) > 1 AND max(score) < 10";

const RECORD: &str = r#"{"id": "0b3328f9-8126-4b73-b190-0e8da2fe9a23", "name": {"first": "Zo\u00eb", "last": null},
    "tags": ["a", "é"], "items": [{"sku": "x", "amount": 2147483647}], "price": 12.50, "at": "2026-11-21T15:00:00Z",
    "born": "1970-01-01", "score": -1.5e3, "small": 126, "active": true, "more": [1, {"x": [[]]}]}"#;

const PIPELINE: &str = "
apiVersion: millstream.dev/v1alpha1
kind: DataPipeline
metadata: {name: users, namespace: shop}
spec:
  source: {http: {url: 'http://x', records: /results, poll: {interval: 1s}}}
  schema: id UUID, name STRUCT<first TEXT>
  topic: {name: t, partitions: 3, key: [/id]}
  sinks:
    - name: s
      sql: SELECT id, name.first AS first FROM records WHERE _offset > 3
      cassandra: {keyspace: ks, table: t, primaryKey: {partitionKey: [id], clusteringKey: [{name: first, order: DESC}]}}
";

/// A text with a few faults: something cut out, doubled, put elsewhere or put in.
pub fn with_faults(text: &'static str) -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        "[-\\[\\]{}<>()\"'`,:;.0-9eE+*/~|&%$#@!?=\\\\ \n\t\u{0}é\u{1F600}]{1,3}",
        any::<String>(),
    ];
    let fault = (any::<Index>(), 0..30_usize, any::<Index>(), 0..4_u8, piece);
    vec(fault, 1..6).prop_map(move |faults| {
        let mut chars: Vec<char> = text.chars().collect();
        for (at, length, to, kind, piece) in faults {
            let start = at.index(chars.len() + 1);
            let end = (start + length).min(chars.len());
            let to = to.index(chars.len() + 1);
            let part: Vec<char> = match kind {
                0 => chars.drain(start..end).take(0).collect(),
                1 => chars[start..end].to_vec(),
                2 => chars.drain(start..end).collect(),
                _ => piece.chars().collect(),
            };
            let to = to.min(chars.len());
            chars.splice(to..to, part);
        }
        chars.into_iter().collect()
    })
}

pub fn bytes(text: &'static str) -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        4 => with_faults(text).prop_map(String::into_bytes),
        1 => vec(any::<u8>(), 0..200),
    ]
}

pub fn json() -> impl Strategy<Value = Value> {
    let scalar = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        (-1e12..1e12).prop_map(|number: f64| Value::from(number)),
        any::<String>().prop_map(Value::from),
        "[0-9]{4}-[01][0-9]-[0-3][0-9](T[0-2][0-9]:[0-5][0-9]:[0-5][0-9](\\.[0-9]{1,9})?(Z|[+-][01][0-9]:00)?)?"
            .prop_map(Value::from),
        Just(json!("0b3328f9-8126-4b73-b190-0e8da2fe9a23")),
    ];
    scalar.prop_recursive(4, 40, 6, |inner| {
        prop_oneof![
            vec(inner.clone(), 0..5).prop_map(Value::from),
            object(inner).prop_map(Value::from),
        ]
    })
}

fn object(value: impl Strategy<Value = Value>) -> impl Strategy<Value = Map<String, Value>> {
    let name = prop_oneof![4 => "[a-d]", 1 => "[~/ .\"A-Z]{0,3}", 1 => any::<String>()];
    vec((name, value), 0..6).prop_map(|fields| fields.into_iter().collect())
}

fn cql_type() -> impl Strategy<Value = CqlType> {
    let simple = proptest::sample::select(vec!["text", "int", "uuid", "blob", "decimal", "inet"]);
    let simple = simple.prop_map(|name| name.parse().unwrap());
    simple.prop_recursive(4, 20, 4, |inner| {
        let boxed = inner.clone().prop_map(Box::new);
        prop_oneof![
            boxed.clone().prop_map(CqlType::List),
            boxed.clone().prop_map(CqlType::Set),
            boxed.clone().prop_map(CqlType::Frozen),
            (boxed.clone(), boxed).prop_map(|(key, value)| CqlType::Map(key, value)),
            vec(inner, 1..4).prop_map(CqlType::Tuple),
        ]
    })
}

/// Columns of each type, and constants.
const ARGUMENTS: [&str; 15] = [
    "n",
    "d",
    "t",
    "at",
    "born",
    "l",
    "texts",
    "b",
    "money",
    "s",
    "INTERVAL '1 month'",
    "-1",
    "-9223372036854775808",
    "'%Q'",
    "'year'",
];

/// Calls of the engine's functions: few of them can be planned. Those aren't among them whose result is as
/// long as a number says.
fn call() -> impl Strategy<Value = String> {
    const LONG: [&str; 6] = ["repeat", "pad", "range", "series", "resize", "space"];
    let scalars = datafusion::functions::all_default_functions();
    let nested = datafusion::functions_nested::all_default_nested_functions();
    let names = scalars
        .iter()
        .chain(&nested)
        .map(|function| function.name().to_owned());
    let names: Vec<_> = names
        .filter(|name| !LONG.iter().any(|long| name.contains(long)))
        .collect();
    let arguments = vec(proptest::sample::select(&ARGUMENTS[..]), 0..4);
    let call = (proptest::sample::select(names), arguments);
    call.prop_map(|(name, arguments)| format!("{name}({})", arguments.join(", ")))
}

/// The least and the greatest of each type, nothing, and what isn't there.
const EXTREMES: [&str; 4] = [
    r#"{"n": -9223372036854775808, "d": 1e308, "t": "", "at": "9999-12-31T23:59:59Z", "born": "9999-12-31",
        "l": [], "texts": [null], "b": true, "money": 9999999999999999999999999999.9999999999, "s": {"a": 1}}"#,
    r#"{"n": 9223372036854775807, "d": -1e308, "t": "é[(%Q", "at": "0001-01-01T00:00:00Z", "born": "0001-01-01",
        "l": [9223372036854775807, -9223372036854775808, null], "texts": ["é", ""], "b": false,
        "money": -9999999999999999999999999999.9999999999, "s": null}"#,
    r#"{"n": 0, "d": 0, "t": "2026-13-45", "at": "1970-01-01T00:00:00Z", "born": "1970-01-01", "l": [0],
        "texts": ["1"], "b": null, "money": 0, "s": {"a": null}}"#,
    "{}",
];

#[test]
fn without_faults_a_query_with_groups_is_planned() {
    let schema = RecordSchema::parse(SCHEMA).unwrap();
    assert!(SinkPlan::new(&schema, "s", GROUPED).unwrap().is_grouped());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_schema_is_refused_or_read(text in with_faults(SCHEMA)) {
        let _ = RecordSchema::parse(&text);
    }

    #[test]
    fn a_query_is_refused_or_planned(text in prop_oneof![with_faults(SQL), with_faults(GROUPED)]) {
        let schema = RecordSchema::parse(SCHEMA).unwrap();
        let _ = SinkPlan::new(&schema, "s", &text);
    }

    /// What stands between bad records comes out whole, whatever they are.
    #[test]
    fn a_record_is_rejected_or_becomes_a_row(bad in vec(bytes(RECORD), 1..8)) {
        let schema = RecordSchema::parse(SCHEMA).unwrap();
        let mut transform = Transform::new(&SinkPlan::new(&schema, "s", SQL).unwrap()).unwrap();
        let mut batch = Batch::default();
        for (index, bad) in (0..).zip(&bad) {
            batch.push_record(0, 2 * index, None, None, Some(bad));
            batch.push_record(0, 2 * index + 1, None, None, Some(RECORD.as_bytes()));
        }
        let transformed = transform.run(&batch).unwrap();
        let rows = transformed.rows.iter().flat_map(|rows| &rows.records);
        let mut rows: Vec<usize> = rows.copied().collect();
        for rejected in &transformed.rejected {
            prop_assert_eq!(rejected.record % 2, 0, "{}", rejected.reason);
            prop_assert!(!rows.contains(&rejected.record));
        }
        prop_assert!(rows.is_sorted());
        rows.retain(|row| row % 2 == 1);
        prop_assert_eq!(rows, (0..bad.len()).map(|index| 2 * index + 1).collect::<Vec<_>>());
    }

    #[test]
    fn a_function_of_any_value_has_a_result_or_an_error(calls in vec(call(), 40)) {
        let schema = "n BIGINT, d DOUBLE, t TEXT, at TIMESTAMP, born DATE, l ARRAY<BIGINT>, texts ARRAY<TEXT>, \
            b BOOLEAN, money DECIMAL(38, 10), s STRUCT<a INT>";
        let schema = RecordSchema::parse(schema).unwrap();
        let mut batch = Batch::default();
        for (index, record) in (0..).zip(EXTREMES) {
            batch.push_record(0, index, None, None, Some(record.as_bytes()));
        }
        for call in calls {
            let sql = format!("SELECT n, {call} AS result FROM records");
            let Ok(plan) = SinkPlan::new(&schema, "s", &sql) else {
                continue;
            };
            let transformed = Transform::new(&plan).unwrap().run(&batch).unwrap();
            for rejected in transformed.rejected {
                // Which is what a panic becomes.
                prop_assert!(!rejected.reason.contains("can't compute it"), "{call}: {}", rejected.reason);
            }
        }
    }

    #[test]
    fn a_pointer_finds_what_is_there(value in object(json()), steps in vec(any::<Index>(), 0..5)) {
        let value = Value::from(value);
        let (mut pointer, mut found) = (String::new(), &value);
        for step in steps {
            let (token, child) = match found {
                Value::Object(fields) if !fields.is_empty() => {
                    let (name, child) = fields.iter().nth(step.index(fields.len())).unwrap();
                    (name.replace('~', "~0").replace('/', "~1"), child)
                }
                Value::Array(items) if !items.is_empty() => {
                    let index = step.index(items.len());
                    (index.to_string(), &items[index])
                }
                _ => break,
            };
            pointer = format!("{pointer}/{token}");
            found = child;
        }
        let text = value.to_string();
        let raw = Pointer::parse(&pointer).find(text.as_bytes());
        let parsed: Option<Value> = raw.and_then(|raw| serde_json::from_str(raw).ok());
        // Floats in their last digit are the parser's business: both go through it.
        let expected: Option<Value> = serde_json::from_str(&found.to_string()).ok();
        prop_assert_eq!(parsed, expected, "{} in {}", pointer, text);
    }

    #[test]
    fn a_pointer_into_anything_finds_something_or_nothing(
        json in bytes(RECORD),
        pointer in prop_oneof![any::<String>(), "(/[a-z~01/]{0,5}){0,4}"],
        path in vec("[a-z]{0,5}", 0..3),
    ) {
        let found = Pointer::parse(&pointer).find(&json);
        let _ = found.map(scalar_text);
        let _ = Fields::of(&json).presence(&path);
        let _ = Keys::Fields(vec![Pointer::parse(&pointer)]).admit(&json);
    }

    #[test]
    fn metadata_of_others_counts_as_nothing(text in any::<String>(), rows in any::<i64>(), dead_lettered in any::<i64>()) {
        let _ = CommitMetadata::parse(&text);
        let counts = json!({"rows": rows, "deadLettered": dead_lettered}).to_string();
        let counts = CommitMetadata::parse(&counts);
        prop_assert_eq!((counts.rows, counts.dead_lettered), (rows, dead_lettered));
        prop_assert_eq!(CommitMetadata::parse(&serde_json::to_string(&counts).unwrap()), counts);
    }

    #[test]
    fn a_state_is_refused_or_is_what_was_kept(bytes in vec(any::<u8>(), 0..60), at in any::<Index>(), fingerprint in any::<u64>()) {
        let _ = State::decode(&bytes, fingerprint);
        let state = State { base: 7, partition: 3, offset: 42, bytes: bytes.into() };
        let mut kept = Vec::new();
        state.encode(fingerprint, &mut kept);
        prop_assert_eq!(State::decode(&kept, fingerprint), Ok(state));
        // Of a part of it no more is read than what is there.
        let part = &kept[..at.index(kept.len())];
        if let Ok(state) = State::decode(part, fingerprint) {
            let mut again = Vec::new();
            state.encode(fingerprint, &mut again);
            prop_assert_eq!(again, part);
        }
    }

    #[test]
    fn a_cql_type_is_what_it_prints(cql_type in cql_type()) {
        prop_assert_eq!(cql_type.to_string().parse(), Ok(cql_type));
    }

    #[test]
    fn a_cql_type_is_refused_or_read(text in prop_oneof![any::<String>(), with_faults("map<text, frozen<list<tuple<int, uuid>>>>")]) {
        let _ = text.parse::<CqlType>();
    }

    #[test]
    fn a_file_is_refused_or_checked(text in with_faults(PIPELINE)) {
        if let Ok(resources) = manifest::parse(&text) {
            check(resources);
        }
    }

    /// Whatever the records are, the schema that is inferred takes all of them.
    #[test]
    fn an_inferred_schema_takes_its_records(objects in vec(object(json()), 1..6)) {
        let records: Vec<Bytes> = objects
            .into_iter()
            .map(|object| Bytes::from(Value::from(object).to_string()))
            .collect();
        if let Ok(inferred) = crate::infer::infer(&records, false) {
            let schema = RecordSchema::parse(&inferred.schema).unwrap();
            prop_assert_eq!(misfits(&schema, &records), vec![], "{}", inferred.schema);
        }
    }
}
