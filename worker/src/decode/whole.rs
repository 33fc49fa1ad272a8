//! Whole numbers, exactly as the records have them. The JSON decoder cuts off what is behind the
//! point, so that it is given text in place of integers, and the text is read here.

use std::sync::Arc;

use datafusion::arrow::{
    array::{
        Array, ArrayRef, ArrowPrimitiveType, AsArray, ListArray, PrimitiveBuilder, RecordBatch,
        StructArray,
    },
    datatypes::{DataType, Field, Fields, Int8Type, Int16Type, Int32Type, Int64Type, Schema},
};

/// The schema with text in place of integers.
pub fn as_text(schema: &Schema) -> Schema {
    Schema::new(schema.fields().iter().map(text_field).collect::<Fields>())
}

fn text_field(field: &Arc<Field>) -> Arc<Field> {
    let data_type = match field.data_type() {
        DataType::Int8 | DataType::Int16 | DataType::Int32 | DataType::Int64 => DataType::Utf8View,
        DataType::Struct(fields) => DataType::Struct(fields.iter().map(text_field).collect()),
        DataType::List(element) => DataType::List(text_field(element)),
        other => other.clone(),
    };
    Arc::new(field.as_ref().clone().with_data_type(data_type))
}

/// The columns of a schema, read from those of [`as_text`].
pub fn read(schema: &Schema, decoded: &RecordBatch) -> Result<Vec<ArrayRef>, String> {
    let fields = schema.fields().iter().zip(decoded.columns());
    fields
        .map(|(field, column)| read_field(field, column))
        .collect()
}

fn read_field(field: &Field, column: &ArrayRef) -> Result<ArrayRef, String> {
    read_as(field.data_type(), column)
        .map_err(|reason| format!("whilst decoding field '{}': {reason}", field.name()))
}

fn read_as(data_type: &DataType, column: &ArrayRef) -> Result<ArrayRef, String> {
    let nulls = column.nulls().cloned();
    match data_type {
        DataType::Int8 => integers::<Int8Type>(column),
        DataType::Int16 => integers::<Int16Type>(column),
        DataType::Int32 => integers::<Int32Type>(column),
        DataType::Int64 => integers::<Int64Type>(column),
        DataType::Struct(fields) => {
            let children = fields.iter().zip(column.as_struct().columns());
            let children = children.map(|(field, column)| read_field(field, column));
            let children = children.collect::<Result<_, _>>()?;
            let length = column.len();
            let read = StructArray::try_new_with_length(fields.clone(), children, nulls, length);
            Ok(Arc::new(read.map_err(|error| error.to_string())?))
        }
        DataType::List(element) => {
            let list = column.as_list::<i32>();
            let values = read_as(element.data_type(), list.values())?;
            let read = ListArray::try_new(element.clone(), list.offsets().clone(), values, nulls);
            Ok(Arc::new(read.map_err(|error| error.to_string())?))
        }
        _ => Ok(column.clone()),
    }
}

fn integers<P>(column: &ArrayRef) -> Result<ArrayRef, String>
where
    P: ArrowPrimitiveType<Native: TryFrom<i64>>,
{
    let texts = column.as_string_view();
    let mut numbers = PrimitiveBuilder::<P>::with_capacity(texts.len());
    for text in texts {
        let number = match text {
            None => None,
            Some(text) => {
                let number = whole(text).and_then(|number| P::Native::try_from(number).ok());
                let reason = || format!("failed to parse {text} as {}", P::DATA_TYPE);
                Some(number.ok_or_else(reason)?)
            }
        };
        numbers.append_option(number);
    }
    Ok(Arc::new(numbers.finish()))
}

/// A whole number; `7.0` and `1e3` are some. Taken by its digits: a DOUBLE would round them.
fn whole(text: &str) -> Option<i64> {
    text.parse().ok().or_else(|| shifted(text))
}

/// The number with a point or an exponent, if there is nothing behind its point then.
fn shifted(text: &str) -> Option<i64> {
    let (number, exponent) = text.split_once(['e', 'E']).unwrap_or((text, "0"));
    let (before, behind) = number.split_once('.').unwrap_or((number, ""));
    let behind = behind.trim_end_matches('0');
    let digits: i64 = format!("{before}{behind}").parse().ok()?;
    let places = i32::try_from(behind.len()).ok()?;
    let shift = exponent.parse::<i32>().ok()?.checked_sub(places)?;
    if digits == 0 {
        return Some(0);
    }
    let power = 10_i64.checked_pow(shift.unsigned_abs())?;
    match shift < 0 {
        true => (digits % power == 0).then_some(digits / power),
        false => digits.checked_mul(power),
    }
}

#[cfg(test)]
mod tests {
    use millstream_plan::RecordSchema;

    use crate::decode::JsonColumns;

    fn decoded(schema: &str, record: &str) -> Result<String, String> {
        let schema = RecordSchema::parse(schema).unwrap().arrow();
        let mut columns = JsonColumns::new(schema).unwrap();
        let decoded = columns.decode([record.as_bytes()].into_iter())?;
        let mut writer = arrow_json::LineDelimitedWriter::new(Vec::new());
        writer.write(&decoded).unwrap();
        writer.finish().unwrap();
        Ok(String::from_utf8(writer.into_inner())
            .unwrap()
            .trim()
            .to_owned())
    }

    #[test]
    fn whole_numbers_stay_exact() {
        for (number, read) in [
            ("9007199254740993", "9007199254740993"),
            ("-9223372036854775808", "-9223372036854775808"),
            ("7.0", "7"),
            ("9007199254740993.0", "9007199254740993"),
            ("-9223372036854775808.000", "-9223372036854775808"),
            ("-0.0", "0"),
            ("0E-20", "0"),
            ("-1e3", "-1000"),
            ("1.50E+1", "15"),
            ("1200e-2", "12"),
            ("9.007199254740993e15", "9007199254740993"),
            (r#""12""#, "12"),
        ] {
            let decoded = decoded("a BIGINT", &format!(r#"{{"a": {number}}}"#));
            assert_eq!(decoded, Ok(format!(r#"{{"a":{read}}}"#)));
        }
        let schema = "s STRUCT<a INT, b STRUCT<c SMALLINT>>, l ARRAY<STRUCT<t TINYINT>>, n INT";
        let record = r#"{"s":{"a":-1,"b":{"c":2}},"l":[{"t":3},{"t":-4}]}"#;
        assert_eq!(decoded(schema, record).as_deref(), Ok(record));
        let nothing = r#"{"s": {"b": null}, "l": [null], "n": null}"#;
        assert_eq!(
            decoded(schema, nothing).as_deref(),
            Ok(r#"{"s":{},"l":[null]}"#)
        );
    }

    #[test]
    fn other_numbers_are_refused() {
        for (schema, record) in [
            ("a BIGINT", r#"{"a": 19.99}"#),
            ("a BIGINT", r#"{"a": 4503599627370497.25}"#),
            ("a BIGINT", r#"{"a": 7.0000000000000000000001}"#),
            ("a BIGINT", r#"{"a": 15e-1}"#),
            ("a BIGINT", r#"{"a": 9223372036854775808}"#),
            ("a BIGINT", r#"{"a": 9223372036854775808.0}"#),
            ("a BIGINT", r#"{"a": 1e-300}"#),
            ("a BIGINT", r#"{"a": 1e300}"#),
            ("a BIGINT", r#"{"a": "NaN"}"#),
            ("a INT", r#"{"a": true}"#),
            ("a INT", r#"{"a": 3000000000}"#),
            ("a INT", r#"{"a": [1]}"#),
            ("s STRUCT<a INT>", r#"{"s": {"a": 0.5}}"#),
            ("l ARRAY<TINYINT>", r#"{"l": [1, 128]}"#),
        ] {
            let decoded = decoded(schema, record);
            assert!(decoded.is_err(), "{record}: {decoded:?}");
        }
        let reason = decoded("s STRUCT<a INT>", r#"{"s": {"a": 0.5}}"#).unwrap_err();
        assert_eq!(
            reason,
            "the record doesn't fit the schema: whilst decoding field 's': whilst decoding field 'a': failed to parse 0.5 as Int32"
        );
    }
}
