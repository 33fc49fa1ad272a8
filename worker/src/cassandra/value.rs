//! Values of Cassandra in the types of Arrow, and as JSON shows them.

use std::sync::Arc;

use chrono::{DateTime, NaiveDate, SecondsFormat, TimeDelta};
use datafusion::arrow::{
    array::{ArrayRef, RecordBatch, RecordBatchOptions},
    datatypes::{DataType, SchemaRef},
    error::ArrowError,
};
use millstream_api::cql::CqlType;
use scylla::{
    cluster::metadata::{ColumnType, NativeType},
    value::{CqlValue, Row},
};
use serde_json::{Value, json};

use crate::time::time_of_day;

/// The type of a result's column; what has no name here is shown as text.
pub fn cql_type(column_type: &ColumnType) -> CqlType {
    let ColumnType::Native(native) = column_type else {
        return match column_type {
            ColumnType::Collection { .. } | ColumnType::Vector { .. } => {
                CqlType::List(Box::new(CqlType::Text))
            }
            _ => CqlType::Tuple(vec![CqlType::Text]),
        };
    };
    match native {
        NativeType::Ascii => CqlType::Ascii,
        NativeType::Boolean => CqlType::Boolean,
        NativeType::Blob => CqlType::Blob,
        NativeType::Counter | NativeType::BigInt => CqlType::BigInt,
        NativeType::Date => CqlType::Date,
        NativeType::Decimal => CqlType::Decimal,
        NativeType::Double => CqlType::Double,
        NativeType::Duration => CqlType::Duration,
        NativeType::Float => CqlType::Float,
        NativeType::Int => CqlType::Int,
        NativeType::Timestamp => CqlType::Timestamp,
        NativeType::Inet => CqlType::Inet,
        NativeType::SmallInt => CqlType::SmallInt,
        NativeType::TinyInt => CqlType::TinyInt,
        NativeType::Time => CqlType::Time,
        NativeType::Timeuuid => CqlType::TimeUuid,
        NativeType::Uuid => CqlType::Uuid,
        NativeType::Varint => CqlType::VarInt,
        _ => CqlType::Text,
    }
}

/// A value in JSON: times as RFC 3339 in UTC, blobs as `0x…`, numbers that JSON can't hold exactly
/// as text.
pub fn json_of(value: Option<CqlValue>) -> Value {
    let Some(value) = value else {
        return Value::Null;
    };
    let all = |values: Vec<CqlValue>| {
        values
            .into_iter()
            .map(|value| json_of(Some(value)))
            .collect()
    };
    match value {
        CqlValue::Ascii(text) | CqlValue::Text(text) => Value::String(text),
        CqlValue::Boolean(truth) => Value::Bool(truth),
        CqlValue::Blob(bytes) => Value::String(hex(&bytes)),
        CqlValue::Counter(count) => json!(count.0),
        CqlValue::Double(number) => json!(number),
        CqlValue::Float(number) => short(number),
        CqlValue::Int(number) => json!(number),
        CqlValue::BigInt(number) => json!(number),
        CqlValue::SmallInt(number) => json!(number),
        CqlValue::TinyInt(number) => json!(number),
        CqlValue::Timestamp(time) => match DateTime::from_timestamp_millis(time.0) {
            Some(time) => Value::String(time.to_rfc3339_opts(SecondsFormat::Millis, true)),
            None => json!(time.0),
        },
        CqlValue::Date(date) => match days(date.0) {
            Some(date) => Value::String(date.to_string()),
            None => Value::Null,
        },
        CqlValue::Time(time) => match time_of_day(time.0) {
            Some(time) => Value::String(time.to_string()),
            None => Value::Null,
        },
        CqlValue::Inet(address) => Value::String(address.to_string()),
        CqlValue::Uuid(uuid) => Value::String(uuid.to_string()),
        CqlValue::Timeuuid(uuid) => Value::String(uuid.to_string()),
        CqlValue::Decimal(decimal) => {
            let (digits, scale) = decimal.as_signed_be_bytes_slice_and_exponent();
            Value::String(decimal_text(digits, scale))
        }
        CqlValue::Varint(number) => {
            Value::String(decimal_text(number.as_signed_bytes_be_slice(), 0))
        }
        CqlValue::Duration(span) => Value::String(format!(
            "P{}M{}DT{}S",
            span.months,
            span.days,
            span.nanoseconds as f64 / 1e9
        )),
        CqlValue::List(values) | CqlValue::Set(values) | CqlValue::Vector(values) => all(values),
        CqlValue::Map(entries) => {
            let member = |(key, value)| (text_of(json_of(Some(key))), json_of(Some(value)));
            Value::Object(entries.into_iter().map(member).collect())
        }
        CqlValue::Tuple(values) => values.into_iter().map(json_of).collect(),
        CqlValue::UserDefinedType { fields, .. } => {
            let members = fields
                .into_iter()
                .map(|(name, value)| (name, json_of(value)));
            Value::Object(members.collect())
        }
        CqlValue::Empty => Value::Null,
        other => Value::String(other.to_string()),
    }
}

/// A value as text: what it is in a table, without the quotes of JSON.
pub fn text_of(value: Value) -> String {
    match value {
        Value::String(text) => text,
        other => other.to_string(),
    }
}

/// Bytes as `0x…`.
pub fn hex(bytes: &[u8]) -> String {
    let digits = bytes.iter().map(|byte| format!("{byte:02x}"));
    format!("0x{}", digits.collect::<String>())
}

/// In the digits of a number of 32 bits: 0.1, and not 0.10000000149011612.
pub fn short(number: f32) -> Value {
    json!(number.to_string().parse::<f64>().ok())
}

/// CQL counts days from 2^31 before 1970.
fn days(date: u32) -> Option<NaiveDate> {
    let since_1970 = i64::from(date) - (1 << 31);
    NaiveDate::default().checked_add_signed(TimeDelta::try_days(since_1970)?)
}

/// A number of any length: big-endian two's complement, divided by 10^scale.
fn decimal_text(bytes: &[u8], scale: i32) -> String {
    let negative = bytes.first().is_some_and(|first| first & 0x80 != 0);
    let mut magnitude = bytes.to_vec();
    if negative {
        let mut carry = true;
        for byte in magnitude.iter_mut().rev() {
            let (negated, overflow) = (!*byte).overflowing_add(u8::from(carry));
            (*byte, carry) = (negated, overflow);
        }
    }
    let mut digits = Vec::new();
    while magnitude.iter().any(|byte| *byte != 0) {
        let mut remainder = 0u32;
        for byte in &mut magnitude {
            let value = remainder * 256 + u32::from(*byte);
            (*byte, remainder) = ((value / 10) as u8, value % 10);
        }
        digits.push(char::from(b'0' + remainder as u8));
    }
    // Beyond this it isn't a number that anybody wants to read in digits.
    let places = usize::try_from(scale).ok().filter(|scale| *scale <= 1_000);
    while digits.len() <= places.unwrap_or(0) {
        digits.push('0');
    }
    if let Some(places) = places.filter(|places| *places > 0) {
        digits.insert(places, '.');
    }
    let sign = if negative { "-" } else { "" };
    let number: String = digits.iter().rev().collect();
    match places {
        Some(_) => format!("{sign}{number}"),
        None => format!("{sign}{number}E{}", -i64::from(scale)),
    }
}

/// The rows of a query as a batch with the columns of the schema; one that isn't there is null.
pub fn batch(
    schema: &SchemaRef,
    columns: &[String],
    mut rows: Vec<Row>,
) -> Result<RecordBatch, ArrowError> {
    let mut arrays = Vec::with_capacity(schema.fields().len());
    for field in schema.fields() {
        let place = columns.iter().position(|column| column == field.name());
        let cells = rows
            .iter_mut()
            .map(|row| row.columns.get_mut(place?)?.take());
        arrays.push(array(cells.collect(), field.data_type()));
    }
    let options = RecordBatchOptions::new().with_row_count(Some(rows.len()));
    RecordBatch::try_new_with_options(schema.clone(), arrays, &options)
}

/// Values of one column; one of another type than the column's is null.
fn array(values: Vec<Option<CqlValue>>, data_type: &DataType) -> ArrayRef {
    use datafusion::arrow::array::*;
    macro_rules! collect {
        ($array:ty, $($pattern:pat => $value:expr),+) => {
            Arc::new(values.into_iter().map(|value| match value {
                $(Some($pattern) => Some($value),)+
                _ => None,
            }).collect::<$array>())
        };
    }
    match data_type {
        DataType::Boolean => collect!(BooleanArray, CqlValue::Boolean(truth) => truth),
        DataType::Int8 => collect!(Int8Array, CqlValue::TinyInt(number) => number),
        DataType::Int16 => collect!(Int16Array, CqlValue::SmallInt(number) => number),
        DataType::Int32 => collect!(Int32Array, CqlValue::Int(number) => number),
        DataType::Int64 => {
            collect!(Int64Array, CqlValue::BigInt(number) => number, CqlValue::Counter(count) => count.0)
        }
        DataType::Float32 => collect!(Float32Array, CqlValue::Float(number) => number),
        DataType::Float64 => collect!(Float64Array, CqlValue::Double(number) => number),
        DataType::Date32 => collect!(
            Date32Array,
            CqlValue::Date(date) => (i64::from(date.0) - (1 << 31)) as i32
        ),
        DataType::Time64(_) => collect!(Time64NanosecondArray, CqlValue::Time(time) => time.0),
        DataType::Timestamp(_, zone) => {
            let micros = values.into_iter().map(|value| match value {
                Some(CqlValue::Timestamp(time)) => time.0.checked_mul(1_000),
                _ => None,
            });
            let array = micros.collect::<TimestampMicrosecondArray>();
            Arc::new(array.with_timezone_opt(zone.clone()))
        }
        DataType::Binary => {
            let bytes = values.into_iter().map(|value| match value {
                Some(CqlValue::Blob(bytes)) => Some(bytes),
                _ => None,
            });
            Arc::new(bytes.collect::<BinaryArray>())
        }
        _ => {
            let texts = values
                .into_iter()
                .map(|value| value.map(|value| text_of(json_of(Some(value)))));
            Arc::new(texts.collect::<StringArray>())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_any_length_are_text() {
        for (bytes, scale, text) in [
            (&[0x04, 0x1a][..], 2, "10.50"),
            (&[0xfb, 0xe6], 2, "-10.50"),
            (&[0x05], 3, "0.005"),
            (&[0x00], 0, "0"),
            (&[0x80], 0, "-128"),
            (&[0x01, 0, 0, 0, 0, 0, 0, 0, 0], 0, "18446744073709551616"),
            (&[0x07], -3, "7E3"),
        ] {
            assert_eq!(decimal_text(bytes, scale), text);
        }
    }
}
