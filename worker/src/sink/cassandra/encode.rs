//! Arrow values in the bytes of the CQL protocol.

use std::net::IpAddr;

use datafusion::arrow::array::ListArray;
use millstream_api::cql::CqlType;
use uuid::Uuid;

use crate::sink::column::Column;

impl Column {
    /// Appends the bytes of a row's value, which isn't null, as a CQL type has them. The error says
    /// why the value has no place in the type.
    pub fn encode(&self, row: usize, cql: &CqlType, bytes: &mut Vec<u8>) -> Result<(), String> {
        let cql = unfrozen(cql);
        match (self, cql) {
            (Column::Boolean(array), CqlType::Boolean) => bytes.push(u8::from(array.value(row))),
            (Column::Integer(array), _) => return integer(array.value(row), cql, bytes),
            (Column::Float32(array), CqlType::Float) => {
                bytes.extend(array.value(row).to_be_bytes());
            }
            (Column::Float32(array), CqlType::Double) => {
                bytes.extend(f64::from(array.value(row)).to_be_bytes());
            }
            (Column::Float64(array), CqlType::Double) => {
                bytes.extend(array.value(row).to_be_bytes());
            }
            (Column::Decimal(array, scale), CqlType::Decimal) => {
                bytes.extend(scale.to_be_bytes());
                varint(array.value(row), bytes);
            }
            (Column::Decimal(array, 0), CqlType::VarInt) => varint(array.value(row), bytes),
            (Column::Text(array), _) => return text(array.value(row), cql, bytes),
            (Column::Binary(array), CqlType::Blob) => bytes.extend_from_slice(array.value(row)),
            (Column::Date(array), CqlType::Date) => {
                // Days count from the middle of the unsigned range.
                let days = (array.value(row) as u32).wrapping_add(1 << 31);
                bytes.extend(days.to_be_bytes());
            }
            (Column::Time(array), CqlType::Time) => bytes.extend(array.value(row).to_be_bytes()),
            (Column::Timestamp(array), CqlType::Timestamp) => {
                bytes.extend(array.value(row).div_euclid(1_000).to_be_bytes());
            }
            // The key of a group whose rows are kept elsewhere, as finely.
            (Column::Timestamp(array), CqlType::BigInt) => {
                bytes.extend(array.value(row).to_be_bytes());
            }
            (Column::List(array, inner), CqlType::List(cql) | CqlType::Set(cql)) => {
                return elements(array, inner, row, cql, bytes);
            }
            _ => return Err(format!("the value has no place in a `{cql}`")),
        }
        Ok(())
    }
}

fn unfrozen(cql: &CqlType) -> &CqlType {
    match cql {
        CqlType::Frozen(inner) => unfrozen(inner),
        other => other,
    }
}

fn integer(value: i64, cql: &CqlType, bytes: &mut Vec<u8>) -> Result<(), String> {
    let beyond = |_| format!("{value} is beyond the range of `{cql}`");
    match cql {
        CqlType::TinyInt => bytes.extend(i8::try_from(value).map_err(beyond)?.to_be_bytes()),
        CqlType::SmallInt => bytes.extend(i16::try_from(value).map_err(beyond)?.to_be_bytes()),
        CqlType::Int => bytes.extend(i32::try_from(value).map_err(beyond)?.to_be_bytes()),
        CqlType::BigInt => bytes.extend(value.to_be_bytes()),
        CqlType::VarInt => varint(value.into(), bytes),
        CqlType::Decimal => {
            bytes.extend(0_i32.to_be_bytes());
            varint(value.into(), bytes);
        }
        CqlType::Float => bytes.extend((value as f32).to_be_bytes()),
        CqlType::Double => bytes.extend((value as f64).to_be_bytes()),
        _ => return Err(format!("an integer has no place in a `{cql}`")),
    }
    Ok(())
}

fn text(value: &str, cql: &CqlType, bytes: &mut Vec<u8>) -> Result<(), String> {
    match cql {
        CqlType::Text => bytes.extend_from_slice(value.as_bytes()),
        CqlType::Ascii if value.is_ascii() => bytes.extend_from_slice(value.as_bytes()),
        CqlType::Ascii => return Err(format!("`{value:.60}` isn't ASCII")),
        CqlType::Uuid => bytes.extend_from_slice(uuid(value)?.as_bytes()),
        CqlType::TimeUuid => {
            let uuid = uuid(value)?;
            if uuid.get_version_num() != 1 {
                return Err(format!(
                    "`{uuid}` is a UUID, but not one with a time (version 1)"
                ));
            }
            bytes.extend_from_slice(uuid.as_bytes());
        }
        CqlType::Inet => match value.parse() {
            Ok(IpAddr::V4(address)) => bytes.extend(address.octets()),
            Ok(IpAddr::V6(address)) => bytes.extend(address.octets()),
            Err(_) => return Err(format!("`{value:.60}` isn't an IP address")),
        },
        _ => return Err(format!("a text has no place in a `{cql}`")),
    }
    Ok(())
}

fn uuid(value: &str) -> Result<Uuid, String> {
    Uuid::try_parse(value).map_err(|_| format!("`{value:.60}` isn't a UUID"))
}

/// The shortest two's complement.
pub fn varint(value: i128, bytes: &mut Vec<u8>) {
    let whole = value.to_be_bytes();
    let sign = if value < 0 { 0xff } else { 0x00 };
    let mut start = 0;
    while start < whole.len() - 1
        && whole[start] == sign
        && (whole[start + 1] & 0x80) == (sign & 0x80)
    {
        start += 1;
    }
    bytes.extend_from_slice(&whole[start..]);
}

fn elements(
    array: &ListArray,
    inner: &Column,
    row: usize,
    cql: &CqlType,
    bytes: &mut Vec<u8>,
) -> Result<(), String> {
    let offsets = array.value_offsets();
    let (start, end) = (offsets[row], offsets[row + 1]);
    bytes.extend((end - start).to_be_bytes());
    for element in start as usize..end as usize {
        if inner.is_null(element) {
            return Err("a list holds null, which Cassandra's lists can't; \
                keep it out of an array_agg(...) by FILTER (WHERE ... IS NOT NULL)"
                .to_owned());
        }
        cell(bytes, |bytes| inner.encode(element, cql, bytes))?;
    }
    Ok(())
}

/// Appends a value with its length in front, as cells and elements have it.
pub fn cell(
    bytes: &mut Vec<u8>,
    encode: impl FnOnce(&mut Vec<u8>) -> Result<(), String>,
) -> Result<(), String> {
    let start = bytes.len();
    bytes.extend([0; 4]);
    encode(bytes)?;
    let length = i32::try_from(bytes.len() - start - 4).map_err(|error| error.to_string())?;
    bytes[start..start + 4].copy_from_slice(&length.to_be_bytes());
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use datafusion::arrow::array::{
        Array, ArrayRef, BooleanArray, Date32Array, Decimal128Array, Float64Array, Int16Array,
        Int64Array, StringArray, StringViewArray, TimestampMicrosecondArray, types::Int32Type,
    };

    use super::*;

    fn encoded(array: impl Array + 'static, cql: &str) -> Result<Vec<u8>, String> {
        let column = Column::new(&(Arc::new(array) as ArrayRef)).unwrap();
        let mut bytes = Vec::new();
        column.encode(0, &cql.parse().unwrap(), &mut bytes)?;
        Ok(bytes)
    }

    #[test]
    fn values_have_the_bytes_of_the_protocol() {
        let text = || StringArray::from(vec!["Zoë"]);
        assert_eq!(encoded(text(), "text").unwrap(), "Zoë".as_bytes());
        assert_eq!(
            encoded(StringViewArray::from(vec!["a"]), "frozen<text>").unwrap(),
            b"a"
        );
        assert_eq!(
            encoded(BooleanArray::from(vec![true]), "boolean").unwrap(),
            [1]
        );
        assert_eq!(
            encoded(Int16Array::from(vec![-2]), "int").unwrap(),
            (-2_i32).to_be_bytes()
        );
        assert_eq!(
            encoded(Float64Array::from(vec![1.5]), "double").unwrap(),
            1.5_f64.to_be_bytes()
        );
        assert_eq!(
            encoded(Date32Array::from(vec![-1]), "date").unwrap(),
            [0x7f, 0xff, 0xff, 0xff]
        );
        assert_eq!(
            encoded(TimestampMicrosecondArray::from(vec![-1]), "timestamp").unwrap(),
            (-1_i64).to_be_bytes()
        );
        let list = ListArray::from_iter_primitive::<Int32Type, _, _>([Some([Some(7)])]);
        assert_eq!(
            encoded(list, "frozen<list<smallint>>").unwrap(),
            [0, 0, 0, 1, 0, 0, 0, 2, 0, 7]
        );
        let uuid = StringArray::from(vec!["9A723211-0e87-41f1-b1e4-ed1a15226b80"]);
        assert_eq!(encoded(uuid, "uuid").unwrap()[..3], [0x9a, 0x72, 0x32]);
        let inet = StringArray::from(vec!["10.0.0.1"]);
        assert_eq!(encoded(inet, "inet").unwrap(), [10, 0, 0, 1]);
    }

    #[test]
    fn varints_are_as_short_as_can_be() {
        for (value, bytes) in [
            (0, vec![0]),
            (127, vec![0x7f]),
            (128, vec![0, 0x80]),
            (-1, vec![0xff]),
            (-128, vec![0x80]),
            (-129, vec![0xff, 0x7f]),
            (65_536, vec![1, 0, 0]),
        ] {
            assert_eq!(
                encoded(Int64Array::from(vec![value]), "varint").unwrap(),
                bytes
            );
        }
        let decimal = Decimal128Array::from(vec![-1_050]).with_precision_and_scale(10, 2);
        assert_eq!(
            encoded(decimal.unwrap(), "decimal").unwrap(),
            [0, 0, 0, 2, 0xfb, 0xe6]
        );
    }

    #[test]
    fn what_has_no_place_is_named() {
        let text = |value: &str| StringArray::from(vec![value]);
        let big = || Int64Array::from(vec![300]);
        for (result, says) in [
            (encoded(text("x"), "uuid"), "`x` isn't a UUID"),
            (encoded(text(&"ä".repeat(200)), "ascii"), "isn't ASCII"),
            (
                encoded(text("9a723211-0e87-41f1-b1e4-ed1a15226b80"), "timeuuid"),
                "version 1",
            ),
            (encoded(text("host"), "inet"), "isn't an IP address"),
            (
                encoded(big(), "tinyint"),
                "300 is beyond the range of `tinyint`",
            ),
            (encoded(big(), "text"), "no place in a `text`"),
            (
                encoded(
                    ListArray::from_iter_primitive::<Int32Type, _, _>([Some([None])]),
                    "frozen<list<int>>",
                ),
                "holds null",
            ),
        ] {
            let error = result.unwrap_err();
            assert!(error.contains(says), "{error}");
        }
    }
}
