//! The shape of JSON values, widened value by value until it takes all of them.

use chrono::Utc;
use datafusion::arrow::{
    compute::kernels::cast_utils::{Parser, string_to_datetime},
    datatypes::Date32Type,
};
use serde_json::{Map, Value};
use uuid::Uuid;

/// An object with more names than this is a map: its names are data.
const MAX_FIELDS: usize = 300;
/// Of a DECIMAL.
const MAX_DIGITS: usize = 38;

/// What values have been seen.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Shape {
    /// Nothing but null.
    #[default]
    Unknown,
    Boolean,
    Integer,
    /// Beyond 64 bits.
    Large,
    Double,
    Text(Reading),
    Struct(Vec<Field>),
    Array(Box<Shape>),
    /// What no type takes: why.
    Unfit(&'static str),
}

/// A field of an object.
#[derive(Clone, Debug, PartialEq)]
pub struct Field {
    pub name: String,
    pub shape: Shape,
}

/// What all the texts can be read as.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reading {
    pub uuid: bool,
    pub date: bool,
    /// A date counts too.
    pub timestamp: bool,
    pub integer: bool,
    /// A whole number of up to 38 digits; an integer counts too.
    pub large: bool,
    /// Those count too. No longer one: as DOUBLE it would be another one.
    pub number: bool,
}

impl Shape {
    /// The shape that takes this value too.
    pub fn widen(&mut self, value: &Value) {
        let before = std::mem::take(self);
        *self = match (before, value) {
            (Shape::Struct(fields), Value::Object(object)) => widen_struct(fields, object),
            (Shape::Array(mut element), Value::Array(items)) => {
                items.iter().for_each(|item| element.widen(item));
                Shape::Array(element)
            }
            (before, Value::Null) => before,
            (Shape::Unknown, value) => Shape::of(value),
            (before, value) => merge_scalars(before, Shape::of(value)),
        };
    }

    fn of(value: &Value) -> Shape {
        match value {
            Value::Null => Shape::Unknown,
            Value::Bool(_) => Shape::Boolean,
            Value::Number(number) if number.is_i64() => Shape::Integer,
            Value::Number(number) if number.is_u64() => Shape::Large,
            Value::Number(_) => Shape::Double,
            Value::String(text) => Shape::Text(Reading::of(text)),
            Value::Object(object) => widen_struct(Vec::new(), object),
            Value::Array(items) => {
                let mut element = Shape::Unknown;
                items.iter().for_each(|item| element.widen(item));
                Shape::Array(Box::new(element))
            }
        }
    }

    /// Numbers that are written as text are numbers: for CSV, where everything is text.
    pub fn read_numbers(&mut self) {
        match self {
            Shape::Text(Reading { integer: true, .. }) => *self = Shape::Integer,
            Shape::Text(Reading { large: true, .. }) => *self = Shape::Large,
            Shape::Text(Reading { number: true, .. }) => *self = Shape::Double,
            Shape::Struct(fields) => fields
                .iter_mut()
                .for_each(|field| field.shape.read_numbers()),
            _ => {}
        }
    }

    /// The name of the type in a schema; none for what has parts or can't be declared.
    pub fn scalar_type(&self) -> Option<&'static str> {
        Some(match self {
            Shape::Unknown => "TEXT",
            Shape::Boolean => "BOOLEAN",
            Shape::Integer => "BIGINT",
            Shape::Large => "DECIMAL(38, 0)",
            Shape::Double => "DOUBLE",
            Shape::Text(Reading { uuid: true, .. }) => "UUID",
            Shape::Text(Reading { date: true, .. }) => "DATE",
            Shape::Text(Reading {
                timestamp: true, ..
            }) => "TIMESTAMP",
            Shape::Text(_) => "TEXT",
            Shape::Struct(_) | Shape::Array(_) | Shape::Unfit(_) => return None,
        })
    }
}

fn widen_struct(mut fields: Vec<Field>, object: &Map<String, Value>) -> Shape {
    for (name, value) in object {
        match fields.iter_mut().find(|field| field.name == *name) {
            Some(field) => field.shape.widen(value),
            None => fields.push(Field {
                name: name.clone(),
                shape: Shape::of(value),
            }),
        }
    }
    match fields.len() > MAX_FIELDS {
        true => Shape::Unfit("its names are data, as in a map"),
        false => Shape::Struct(fields),
    }
}

/// Of two shapes that aren't both objects or both arrays.
fn merge_scalars(a: Shape, b: Shape) -> Shape {
    use Shape::{Array, Boolean, Double, Integer, Large, Struct, Text, Unfit};
    match (a, b) {
        (Unfit(why), _) => Unfit(why),
        (Boolean, Boolean) => Boolean,
        (Integer, Integer) => Integer,
        (Integer | Large, Integer | Large) => Large,
        (Integer | Large | Double, Integer | Large | Double) => Double,
        (Text(a), Text(b)) => Text(a.and(b)),
        (Struct(_), Array(_)) | (Array(_), Struct(_)) => Unfit("an object or an array"),
        (Struct(_), _) | (_, Struct(_)) => Unfit("an object or a single value"),
        (Array(_), _) | (_, Array(_)) => Unfit("an array or a single value"),
        // The decoder takes numbers and booleans as text.
        _ => Text(Reading::default()),
    }
}

impl Reading {
    fn of(text: &str) -> Self {
        // As the decoder reads them.
        let date = text.len() == 10 && Date32Type::parse(text).is_some();
        let digits = text.strip_prefix('-').unwrap_or(text);
        let is_whole = digits.bytes().all(|byte| byte.is_ascii_digit());
        let is_long = is_whole && digits.len() > MAX_DIGITS;
        let is_timestamp = || text.len() >= 19 && string_to_datetime(&Utc, text).is_ok();
        Reading {
            uuid: text.len() == 36 && Uuid::try_parse(text).is_ok(),
            date,
            timestamp: date || is_timestamp(),
            integer: is_plain_number(text) && text.parse::<i64>().is_ok(),
            large: is_plain_number(text) && is_whole && !is_long,
            number: is_plain_number(text)
                && !is_long
                && text.parse::<f64>().is_ok_and(f64::is_finite),
        }
    }

    fn and(self, other: Self) -> Self {
        Reading {
            uuid: self.uuid && other.uuid,
            date: self.date && other.date,
            timestamp: self.timestamp && other.timestamp,
            integer: self.integer && other.integer,
            large: self.large && other.large,
            number: self.number && other.number,
        }
    }
}

/// As JSON has them: what begins with a zero or a plus, such as a postcode, is a text.
fn is_plain_number(text: &str) -> bool {
    let digits = text.strip_prefix('-').unwrap_or(text);
    let mut start = digits.bytes();
    match (start.next(), start.next()) {
        (Some(b'0'), next) => next.is_none_or(|next| next == b'.'),
        (Some(first), _) => first.is_ascii_digit(),
        (None, _) => false,
    }
}
