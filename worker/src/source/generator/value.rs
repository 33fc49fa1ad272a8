//! A value for every type of the schema.

use std::io::Write;

use chrono::{DateTime, SecondsFormat};
use millstream_plan::{SchemaField, SchemaType};
use rand::RngExt;

use crate::source::generator::text::Text;

/// One optional field in so many is null.
const NULLS: u32 = 20;
const DAY: i64 = 24 * 60 * 60;
/// 2010-01-01 and 2026-01-01, in seconds.
const TIMES: std::ops::Range<i64> = 1_262_304_000..1_767_225_600;

/// The fields of an object, prepared to be written.
pub struct Object {
    fields: Vec<Field>,
}

struct Field {
    /// `"name":`
    label: Vec<u8>,
    maker: Maker,
    nullable: bool,
}

enum Maker {
    Boolean,
    Integer(i64, i64),
    Float(f64, f64),
    Decimal { digits: u32, scale: u8 },
    Text(Text),
    Uuid,
    Date,
    Timestamp,
    Object(Object),
    Array(Box<Maker>),
}

impl Object {
    /// An object with these fields.
    pub fn new(fields: &[SchemaField]) -> Self {
        Object::at_depth(fields, 0)
    }

    fn at_depth(fields: &[SchemaField], depth: usize) -> Self {
        let fields = fields.iter().map(|field| {
            let label = serde_json::Value::from(field.name.as_str());
            Field {
                label: format!("{label}:").into_bytes(),
                maker: Maker::new(&field.name, &field.data_type, depth),
                nullable: depth > 0 && is_optional(&field.name),
            }
        });
        Object {
            fields: fields.collect(),
        }
    }

    /// Appends the object's JSON.
    pub fn write(&self, json: &mut Vec<u8>, random: &mut impl RngExt) {
        json.push(b'{');
        for (index, field) in self.fields.iter().enumerate() {
            if index > 0 {
                json.push(b',');
            }
            json.extend_from_slice(&field.label);
            if field.nullable && random.random_range(0..NULLS) == 0 {
                json.extend_from_slice(b"null");
            } else {
                field.maker.write(json, random);
            }
        }
        json.push(b'}');
    }
}

/// Names and ids are what a record is found by: they are always there.
fn is_optional(name: &str) -> bool {
    ![
        "id", "uuid", "name", "first", "last", "key", "email", "number",
    ]
    .iter()
    .any(|always| name.to_ascii_lowercase().contains(always))
}

impl Maker {
    fn new(name: &str, data_type: &SchemaType, depth: usize) -> Self {
        match data_type {
            SchemaType::Boolean => Maker::Boolean,
            SchemaType::TinyInt => Maker::Integer(0, 128),
            SchemaType::SmallInt => Maker::Integer(0, 32_768),
            SchemaType::Int => integer(name),
            SchemaType::BigInt => match name.to_ascii_lowercase() {
                name if is_time(&name) => Maker::Integer(TIMES.start * 1_000, TIMES.end * 1_000),
                _ => Maker::Integer(0, 1_000_000_000_000),
            },
            SchemaType::Float | SchemaType::Double => float(name),
            SchemaType::Decimal { precision, scale } => Maker::Decimal {
                digits: u32::from(*precision).min(18),
                scale: u8::try_from(*scale).unwrap_or_default(),
            },
            SchemaType::Text => Maker::Text(Text::for_field(name)),
            SchemaType::Uuid => Maker::Uuid,
            SchemaType::Date => Maker::Date,
            SchemaType::Timestamp => Maker::Timestamp,
            SchemaType::Struct(fields) => Maker::Object(Object::at_depth(fields, depth + 1)),
            SchemaType::Array(inner) => Maker::Array(Box::new(Maker::new(name, inner, depth + 1))),
        }
    }

    fn write(&self, json: &mut Vec<u8>, random: &mut impl RngExt) {
        match self {
            Maker::Boolean => put(json, random.random_bool(0.5)),
            Maker::Integer(from, to) => put(json, random.random_range(*from..*to)),
            Maker::Float(from, to) => {
                put(json, format_args!("{:.4}", random.random_range(*from..*to)));
            }
            Maker::Decimal { digits, scale } => put_decimal(json, random, *digits, *scale),
            Maker::Text(text) => {
                // A String is always JSON.
                let _ = serde_json::to_writer(json, &text.make(random));
            }
            Maker::Uuid => put_quoted(json, uuid(random)),
            Maker::Date => {
                let date = time(random).date_naive();
                put_quoted(json, date);
            }
            Maker::Timestamp => {
                let text = time(random).to_rfc3339_opts(SecondsFormat::Millis, true);
                put_quoted(json, text);
            }
            Maker::Object(object) => object.write(json, random),
            Maker::Array(maker) => {
                json.push(b'[');
                for index in 0..random.random_range(0..4) {
                    if index > 0 {
                        json.push(b',');
                    }
                    maker.write(json, random);
                }
                json.push(b']');
            }
        }
    }
}

fn integer(name: &str) -> Maker {
    match name.to_ascii_lowercase().as_str() {
        "age" => Maker::Integer(18, 95),
        "year" => Maker::Integer(1950, 2027),
        "guests" | "quantity" | "count" => Maker::Integer(0, 10),
        "postcode" | "zip" | "post_code" => Maker::Integer(10_000, 100_000),
        _ => Maker::Integer(0, 10_000),
    }
}

fn float(name: &str) -> Maker {
    let name = name.to_ascii_lowercase();
    if name.contains("lat") {
        Maker::Float(-90.0, 90.0)
    } else if name.contains("lon") || name == "lng" {
        Maker::Float(-180.0, 180.0)
    } else {
        Maker::Float(0.0, 1_000.0)
    }
}

fn is_time(name: &str) -> bool {
    ["time", "_at", "date", "ts"]
        .iter()
        .any(|part| name.ends_with(part))
}

/// A random UUID, made from the record's own randomness.
pub fn uuid(random: &mut impl RngExt) -> uuid::Uuid {
    uuid::Builder::from_random_bytes(random.random()).into_uuid()
}

/// A moment in the last years, with milliseconds.
pub fn time(random: &mut impl RngExt) -> DateTime<chrono::Utc> {
    let seconds = random.random_range(TIMES);
    DateTime::from_timestamp_millis(seconds * 1_000 + seconds % 1_000).unwrap_or_default()
}

/// A moment at which somebody alive was born.
pub fn birth(random: &mut impl RngExt) -> DateTime<chrono::Utc> {
    let days = random.random_range(-7_300..13_000);
    DateTime::from_timestamp(days * DAY, 0).unwrap_or_default()
}

fn put(json: &mut Vec<u8>, value: impl std::fmt::Display) {
    // Writing to a Vec can't fail.
    let _ = write!(json, "{value}");
}

fn put_quoted(json: &mut Vec<u8>, value: impl std::fmt::Display) {
    let _ = write!(json, "\"{value}\"");
}

fn put_decimal(json: &mut Vec<u8>, random: &mut impl RngExt, digits: u32, scale: u8) {
    let number = random.random_range(0..10_u64.pow(digits.min(9)));
    let scale = u32::from(scale).min(18);
    let unit = 10_u64.pow(scale);
    let (whole, fraction) = (number / unit, number % unit);
    match scale {
        0 => put(json, whole),
        _ => put(
            json,
            format_args!("{whole}.{fraction:0width$}", width = scale as usize),
        ),
    }
}
