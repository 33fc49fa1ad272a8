use std::sync::Arc;

use bytes::Bytes;
use datafusion::arrow::array::{Array, AsArray};
use millstream_plan::{RecordSchema, SinkPlan};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::{
    decode::{AvroColumns, AvroTopic},
    encode::Encode,
    json::to_json,
    schema::Schema,
};
use crate::{
    batch::Batch,
    config::Credentials,
    decode::{DECODED, Decode, JsonColumns},
    fuzz::json,
    pointer::{Fields, Presence},
    registry::Registry,
    source::generator::Generator,
    transform::{Transform, Transformed},
};

const TOPIC: &str = "users-created";
const EVERYTHING: &str = "flag BOOLEAN, tiny TINYINT, small SMALLINT, i INT, big BIGINT, \
    f FLOAT, d DOUBLE, money DECIMAL(12, 3), note TEXT, login STRUCT<uuid UUID, username TEXT>, \
    born DATE, seen TIMESTAMP, tags ARRAY<TEXT>, \
    items ARRAY<STRUCT<sku TEXT, amount SMALLINT, at TIMESTAMP, prices ARRAY<DECIMAL(5, 2)>>>, \
    place STRUCT<city TEXT, point STRUCT<lat DOUBLE, lon DOUBLE>>";

fn schema(text: &str) -> RecordSchema {
    RecordSchema::parse(text).unwrap()
}

fn registry() -> Registry {
    let connection = serde_json::from_value(json!({"url": "http://127.0.0.1:1"})).unwrap();
    // Whoever comes second finds the provider installed.
    let _ = rustls::crypto::ring::default_provider().install_default();
    Registry::new(&connection, &Credentials::new("/nowhere".into())).unwrap()
}

/// The topic of a pipeline with this schema; its registry has these writers' schemas, from 1 on.
fn topic(reader: &str, writers: &[Value]) -> AvroTopic {
    let registry = registry();
    for (id, writer) in (1..).zip(writers) {
        registry.remember(id, Some(writer.clone()));
    }
    AvroTopic {
        schema: Arc::new(schema(reader).avro(TOPIC).unwrap()),
        registry: Arc::new(registry),
    }
}

fn avro_of(text: &str) -> Value {
    schema(text).avro(TOPIC).unwrap()
}

fn encode(text: &str, id: u32, records: &[&str]) -> Vec<Result<Bytes, String>> {
    let records: Vec<_> = records
        .iter()
        .map(|record| Bytes::copy_from_slice(record.as_bytes()))
        .collect();
    let mut encode = Encode::new(&schema(text), TOPIC, id).unwrap();
    encode.encode(&records)
}

fn batch<'a>(records: impl IntoIterator<Item = &'a Bytes>) -> Batch {
    let mut batch = Batch::default();
    for (offset, record) in (0..).zip(records) {
        batch.push_record(0, offset, None, None, Some(record));
    }
    batch
}

fn transform(reader: &str, sql: &str, writers: &[Value]) -> Transform {
    let plan = SinkPlan::new(&schema(reader), "s", sql).unwrap();
    Transform::with(&plan, Decode::avro(&plan, topic(reader, writers)))
}

fn texts(transformed: &Transformed) -> Vec<Option<String>> {
    let columns = transformed.rows.iter().map(|rows| rows.columns.column(0));
    columns
        .flat_map(|column| {
            let texts = column.as_string::<i32>();
            (0..texts.len()).map(|row| texts.is_valid(row).then(|| texts.value(row).to_owned()))
        })
        .collect()
}

fn reasons(transformed: &Transformed) -> Vec<String> {
    let rejected = transformed.rejected.iter();
    rejected
        .map(|rejected| format!("{}: {}", rejected.record, rejected.reason))
        .collect()
}

/// All columns of records, by way of Avro and straight from JSON, are the same.
fn assert_round_trip(text: &str, records: &[Bytes]) {
    let shape = schema(text);
    let straight = JsonColumns::new(shape.arrow())
        .unwrap()
        .decode(records.iter().map(Bytes::as_ref))
        .unwrap();
    let encoded: Vec<Bytes> = Encode::new(&shape, TOPIC, 1)
        .unwrap()
        .encode(records)
        .into_iter()
        .collect::<Result<_, _>>()
        .unwrap();
    let mut columns = AvroColumns::new(topic(text, &[avro_of(text)]), shape.arrow());
    let decoded = columns.decode(encoded.iter().map(Bytes::as_ref)).unwrap();
    assert_eq!(straight.columns(), decoded);
    // And once more, by the other way to read Avro.
    let parsed = Schema::parse(&avro_of(text)).unwrap();
    let json: Vec<Bytes> = encoded
        .iter()
        .map(|record| {
            to_json(&parsed, super::split(record).unwrap().1)
                .unwrap()
                .into()
        })
        .collect();
    let again = JsonColumns::new(shape.arrow())
        .unwrap()
        .decode(json.iter().map(Bytes::as_ref))
        .unwrap();
    assert_eq!(straight, again);
}

#[test]
fn every_type_comes_back_as_it_was() {
    let records = [
        json!({}),
        json!({
            "flag": true, "tiny": -128, "small": 32_767, "i": -2_147_483_648i64,
            "big": 9_223_372_036_854_775_807i64, "f": 1.5, "d": -2.25e-300,
            "money": "-123456789.125", "note": "Zoë\u{0}\n\"", "born": "1969-12-31",
            "login": {"uuid": "7A0EED16-9430-4d68-901f-c0d4c1c3bf00", "username": null},
            "seen": "2026-11-21T18:00:00.123456Z", "tags": ["a", null, ""],
            "items": [
                {"sku": "x", "amount": -1, "at": "1960-01-01T00:00:00Z", "prices": ["1.10", null]},
                null, {}
            ],
            "place": {"city": "x", "point": {"lat": 1.0}}, "unknown": [{"is": "dropped"}],
        }),
        json!({"place": null, "items": [], "money": 0, "seen": 1_700_000_000_000_000i64}),
    ];
    let records = records.map(|record| Bytes::from(record.to_string()));
    assert_round_trip(EVERYTHING, &records);
}

#[test]
fn decoders_take_as_many_records_as_come_at_once() {
    const SHAPE: &str = "id INT";
    const JSON: &[u8] = b"{\"id\": 7}\n";
    let shape = schema(SHAPE).arrow();
    let mut columns = JsonColumns::new(shape.clone()).unwrap();
    let rows = columns.decode(std::iter::repeat_n(JSON, DECODED)).unwrap();
    assert_eq!(rows.num_rows(), DECODED);
    let avro = encode(SHAPE, 1, &[r#"{"id": 7}"#])[0].clone().unwrap();
    let mut columns = AvroColumns::new(topic(SHAPE, &[avro_of(SHAPE)]), shape);
    let rows = columns.decode(std::iter::repeat_n(&avro[..], DECODED));
    assert_eq!(rows.unwrap()[0].len(), DECODED);
}

/// Where each value of a schema is.
fn places(value: &Value, at: &str, found: &mut Vec<String>) {
    found.push(at.to_owned());
    match value {
        Value::Object(fields) => fields.iter().for_each(|(name, value)| {
            places(
                value,
                &format!("{at}/{}", name.replace('~', "~0").replace('/', "~1")),
                found,
            )
        }),
        Value::Array(items) => (0..)
            .zip(items)
            .for_each(|(index, value): (usize, _)| places(value, &format!("{at}/{index}"), found)),
        _ => {}
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn made_up_records_come_back_as_they_were(seed: u64, count in 1u64..50) {
        let generator = Generator::new(&schema(EVERYTHING), seed);
        let records: Vec<_> = (0..count).map(|index| generator.record(index)).collect();
        assert_round_trip(EVERYTHING, &records);
    }

    /// Whatever somebody has registered: a part of the schema is another value, or another part of it.
    #[test]
    fn a_writers_schema_is_refused_or_read(
        faults in prop::collection::vec((any::<prop::sample::Index>(), any::<prop::sample::Index>(), prop::option::of(json())), 1..4),
        seed: u64,
    ) {
        let record = Generator::new(&schema(EVERYTHING), seed).record(0);
        let record = encode(EVERYTHING, 1, &[std::str::from_utf8(&record).unwrap()]);
        let record = record[0].clone().unwrap();
        let mut writer = avro_of(EVERYTHING);
        for (at, from, value) in faults {
            let mut found = Vec::new();
            places(&writer, "", &mut found);
            let value = value.unwrap_or_else(|| writer.pointer(&found[from.index(found.len())]).unwrap().clone());
            *writer.pointer_mut(&found[at.index(found.len())]).unwrap() = value;
        }
        let sql = "SELECT note, money, items[1].at AS a, place.point.lat AS l FROM records";
        let mut transform = transform(EVERYTHING, sql, std::slice::from_ref(&writer));
        let transformed = transform.run(&batch([&record])).unwrap();
        let reasons = reasons(&transformed);
        // Which is what a panic becomes.
        prop_assert!(!reasons.iter().any(|reason| reason.contains("the decoder can't")), "{reasons:?}");
        if let Ok(parsed) = Schema::parse(&writer) {
            let _ = to_json(&parsed, super::split(&record).unwrap().1);
        }
    }

    #[test]
    fn no_bytes_make_a_decoder_panic(bytes: Vec<u8>, seed: u64, cut: prop::sample::Index, flip: u8) {
        let record = Generator::new(&schema(EVERYTHING), seed).record(0);
        let record = encode(EVERYTHING, 1, &[std::str::from_utf8(&record).unwrap()]);
        let whole = record[0].clone().unwrap();
        let mut spoiled = whole.to_vec();
        let at = cut.index(spoiled.len());
        spoiled[at] ^= flip;
        let short = Bytes::copy_from_slice(&whole[..at]);
        let framed: Bytes = [&[0, 0, 0, 0, 1], &bytes[..]].concat().into();
        let records = [bytes.into(), framed, whole, short, spoiled.into()];
        let sql = "SELECT note, money, items[1].at AS a, place.point.lat AS l FROM records";
        let transformed = transform(EVERYTHING, sql, &[avro_of(EVERYTHING)]).run(&batch(&records));
        let transformed = transformed.unwrap();
        let good: Vec<_> = transformed.rows.iter().flat_map(|rows| &rows.records).collect();
        prop_assert!(good.contains(&&2), "{:?}", reasons(&transformed));
        let parsed = Schema::parse(&avro_of(EVERYTHING)).unwrap();
        for record in &records {
            if let Ok((_, value)) = super::split(record) {
                let _ = to_json(&parsed, value);
            }
        }
    }
}

#[test]
fn records_are_read_by_the_schema_they_were_written_with() {
    const OLD: &str = "id INT, gone TEXT, name STRUCT<first TEXT>";
    const NEW: &str = "name STRUCT<last TEXT, first TEXT>, id BIGINT, city TEXT";
    let old = encode(
        OLD,
        1,
        &[r#"{"id": 1, "gone": "x", "name": {"first": "Zoë"}}"#],
    );
    let new = encode(
        NEW,
        2,
        &[r#"{"id": 2, "name": {"first": "Ann", "last": "B"}, "city": "Y"}"#],
    );
    let (old, new) = (old[0].clone().unwrap(), new[0].clone().unwrap());
    let records = [old.clone(), new.clone(), new, old.clone()];
    let sql =
        "SELECT concat_ws('/', CAST(id AS TEXT), name.first, name.last, city) AS t FROM records";
    let transformed = transform(NEW, sql, &[avro_of(OLD), avro_of(NEW)])
        .run(&batch(&records))
        .unwrap();
    let texts: Vec<_> = texts(&transformed).into_iter().flatten().collect();
    assert_eq!(texts, ["1/Zoë", "2/Ann/B/Y", "2/Ann/B/Y", "1/Zoë"]);
    assert!(transformed.rejected.is_empty());
    // Avro knows no absence.
    assert_eq!(
        Fields::of(&old).presence(&["city".to_owned()]),
        Ok(Presence::Null)
    );
}

#[test]
fn what_cannot_be_read_is_told_from_the_rest() {
    const SHAPE: &str = "id INT, price DECIMAL(10, 2)";
    let good = encode(SHAPE, 1, &[r#"{"id": 1, "price": 1.5}"#]);
    let good = good[0].clone().unwrap();
    let with_id = |id: u8| {
        let mut record = good.to_vec();
        record[4] = id;
        Bytes::from(record)
    };
    let longer: Bytes = [&good[..], &[0]].concat().into();
    let records = [
        good.clone(),
        Bytes::from_static(b"{\"id\": 1}"),
        with_id(2),
        with_id(9),
        longer,
        good.slice(..4),
        good.clone(),
    ];
    let writers = [avro_of(SHAPE), avro_of("id INT, price DECIMAL(10, 4)")];
    let mut transform = transform(
        SHAPE,
        "SELECT CAST(price AS TEXT) AS t FROM records",
        &writers,
    );
    let transformed = transform.run(&batch(&records)).unwrap();
    assert_eq!(
        texts(&transformed),
        [Some("1.50".to_owned()), Some("1.50".to_owned())]
    );
    insta::assert_snapshot!(reasons(&transformed).join("\n"), @r"
    1: the record isn't Avro in the wire format of schema registries
    2: schema 2 can't be read as the pipeline's: field `price` was written as `decimal(10, 4)` and can't be read as `decimal(10, 2)`
    3: the schema registry has no schema 9
    4: the record isn't one value of its schema 1
    5: the record is too short for the id of its schema
    ");
}

#[test]
fn what_does_not_fit_the_schema_is_not_encoded() {
    let records = [
        r#"{"id": 1}"#,
        r#"{"id": 2"#,
        r#", "x": 1}"#,
        r#"{"id": "x"}"#,
        r#"{"tiny": 200}"#,
        "[]",
        r#"{"id": 3}"#,
    ];
    let encoded = encode("id INT, tiny TINYINT", 70_000, &records);
    let shown: Vec<_> = encoded
        .iter()
        .map(|encoded| match encoded {
            Ok(bytes) => format!("{bytes:?}"),
            Err(reason) => reason.clone(),
        })
        .collect();
    insta::assert_snapshot!(shown.join("\n"), @r#"
    b"\0\0\x01\x11p\x02\x02\0"
    the record isn't one JSON object
    the record isn't JSON: Encountered unexpected ',' whilst parsing value
    the record doesn't fit the schema: whilst decoding field 'id': failed to parse x as Int32
    the record doesn't fit the schema: whilst decoding field 'tiny': failed to parse 200 as Int8
    the record doesn't fit the schema: expected { got []
    b"\0\0\x01\x11p\x02\x06\0"
    "#);
}

/// A zigzag number.
fn long(number: i64) -> Vec<u8> {
    let mut rest = ((number << 1) ^ (number >> 63)) as u64;
    let mut bytes = Vec::new();
    while rest >= 0x80 {
        bytes.push(rest as u8 | 0x80);
        rest >>= 7;
    }
    bytes.push(rest as u8);
    bytes
}

fn text(text: &str) -> Vec<u8> {
    [long(text.len() as i64), text.as_bytes().to_vec()].concat()
}

#[test]
fn any_schema_becomes_json() {
    let schema = json!({
        "type": "record", "name": "shop.Order", "fields": [
            {"name": "id", "type": {"type": "fixed", "name": "Id", "size": 16, "logicalType": "uuid"}},
            {"name": "state", "type": {"type": "enum", "name": "State", "symbols": ["NEW", "PAID"]}},
            {"name": "before", "type": "State"},
            {"name": "payment", "type": ["null", {"type": "record", "name": "Card", "fields": [{"name": "last4", "type": "string"}]}, "long"]},
            {"name": "or", "type": ["null", "shop.Card", "long"]},
            {"name": "next", "type": ["null", "Order"]},
            {"name": "labels", "type": {"type": "map", "values": "int"}},
            {"name": "raw", "type": "bytes"},
            {"name": "hash", "type": {"type": "fixed", "name": "Hash", "size": 2}},
            {"name": "total", "type": {"type": "bytes", "logicalType": "decimal", "precision": 9, "scale": 2}},
            {"name": "tax", "type": {"type": "fixed", "name": "Tax", "size": 3, "logicalType": "decimal", "precision": 5, "scale": 3}},
            {"name": "day", "type": {"type": "int", "logicalType": "date"}},
            {"name": "time", "type": {"type": "int", "logicalType": "time-millis"}},
            {"name": "at", "type": {"type": "long", "logicalType": "timestamp-millis"}},
            {"name": "local", "type": {"type": "long", "logicalType": "local-timestamp-micros"}},
            {"name": "odd", "type": {"type": "double", "logicalType": "unheard-of"}},
            {"name": "float", "type": "float"},
            {"name": "flag", "type": "boolean"},
        ],
    });
    let order = |next: Vec<u8>| {
        [
            (0..16).collect(),
            long(1),
            long(0),
            [long(1), text("4242")].concat(),
            [long(2), long(7)].concat(),
            next,
            // Two blocks, one with its size.
            [
                long(1),
                text("a\""),
                long(-5),
                long(-1),
                long(9),
                text("b"),
                long(6),
                long(0),
            ]
            .concat(),
            [long(2), vec![0xff, 0]].concat(),
            vec![1, 2],
            [long(2), vec![0xff, 0x85]].concat(),
            vec![0, 0, 5],
            long(-1),
            long(3_723_004),
            long(-1),
            long(1_700_000_000_000_001),
            2.5f64.to_le_bytes().to_vec(),
            f32::NEG_INFINITY.to_le_bytes().to_vec(),
            vec![1],
        ]
        .concat()
    };
    let inner = order(long(0));
    let value = order([long(1), inner].concat());
    let parsed = Schema::parse(&schema).unwrap();
    let json = to_json(&parsed, &value).unwrap();
    let mut json: Value = serde_json::from_slice(&json).unwrap();
    let next = json["next"].take();
    assert_eq!(next["next"], Value::Null);
    assert_eq!(next["total"], json["total"]);
    insta::assert_snapshot!(serde_json::to_string_pretty(&json).unwrap(), @r#"
    {
      "id": "00010203-0405-0607-0809-0a0b0c0d0e0f",
      "state": "PAID",
      "before": "NEW",
      "payment": {
        "last4": "4242"
      },
      "or": 7,
      "next": null,
      "labels": {
        "a\"": -5,
        "b": 6
      },
      "raw": "/wA=",
      "hash": "AQI=",
      "total": -1.23,
      "tax": 0.005,
      "day": "1969-12-31",
      "time": "01:02:03.004",
      "at": "1969-12-31T23:59:59.999Z",
      "local": "2023-11-14T22:13:20.000001",
      "odd": 2.5,
      "float": "-Infinity",
      "flag": true
    }
    "#);

    for (value, says) in [
        (&value[..value.len() - 1], "field `flag`: it ends too early"),
        (&[value.as_slice(), &[0]].concat(), "1 bytes follow"),
        (
            &[&value[..16], &long(5)].concat(),
            "field `state`: symbol 5 isn't there",
        ),
        (
            &[&value[..18], &long(9)].concat(),
            "field `payment`: branch 9",
        ),
        (&[0xff; 64], "a number is too long"),
    ] {
        let error = to_json(&parsed, value).unwrap_err();
        assert!(error.contains(says), "{error}");
    }
}

#[test]
fn a_schema_that_makes_no_sense_is_refused() {
    for (schema, says) in [
        (json!("Unknown"), "`Unknown` isn't defined"),
        (json!(5), "isn't a type"),
        (json!({"type": "record", "name": "a"}), "has no fields"),
        (json!({"type": "fixed", "name": "a"}), "no size"),
        (json!({"type": "array"}), "isn't a type"),
    ] {
        let error = Schema::parse(&schema).unwrap_err();
        assert!(error.contains(says), "{schema}: {error}");
    }
    let mut deep = json!("int");
    for _ in 0..100 {
        deep = json!({"type": "array", "items": deep});
    }
    assert!(Schema::parse(&deep).unwrap_err().contains("nested deeper"));
    // Zero bytes a piece, and a billion of them.
    let bomb = Schema::parse(&json!({"type": "array", "items": "null"})).unwrap();
    let error = to_json(&bomb, &[long(1_000_000_000), long(0)].concat()).unwrap_err();
    assert!(error.contains("longer than"), "{error}");
    let list =
        json!({"type": "record", "name": "L", "fields": [{"name": "n", "type": ["null", "L"]}]});
    let error = to_json(&Schema::parse(&list).unwrap(), &[2; 1_000]).unwrap_err();
    assert!(error.contains("nested deeper"), "{error}");
}
