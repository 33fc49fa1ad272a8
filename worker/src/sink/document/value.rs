//! Arrow values as BSON has them.

use datafusion::arrow::datatypes::DataType;
use millstream_api::cql::CqlType;
use mongodb::bson::{Binary, Bson, DateTime, spec::BinarySubtype};
use uuid::Uuid;

use crate::{sink::column::Column, time::time_of_day};

const MILLIS_OF_DAY: i64 = 86_400_000;

/// The type of a result column, as far as BSON needs it.
#[derive(Clone, Copy)]
pub struct Kind {
    /// Integers of up to 32 bits are of their own type in BSON.
    narrow: bool,
    /// A text that is a UUID.
    uuid: bool,
}

impl Kind {
    /// That of a column, and of the elements of a list.
    pub fn new(data_type: &DataType, cql: &CqlType) -> Self {
        match (data_type, cql) {
            (_, CqlType::Frozen(cql)) => Kind::new(data_type, cql),
            (DataType::List(element), CqlType::List(cql)) => Kind::new(element.data_type(), cql),
            (DataType::List(element), _) => Kind::new(element.data_type(), cql),
            _ => Kind {
                narrow: matches!(
                    data_type,
                    DataType::Int8 | DataType::Int16 | DataType::Int32
                ),
                uuid: *cql == CqlType::Uuid,
            },
        }
    }
}

/// A row's value; the error says why it has no place in a document.
pub fn value(column: &Column, row: usize, kind: Kind) -> Result<Bson, String> {
    if column.is_null(row) {
        return Ok(Bson::Null);
    }
    Ok(match column {
        Column::Boolean(array) => array.value(row).into(),
        Column::Integer(array) => integer(array.value(row), kind),
        Column::Float32(array) => f64::from(array.value(row)).into(),
        Column::Float64(array) => array.value(row).into(),
        Column::Decimal(array, _) => {
            let text = array.value_as_string(row);
            let decimal = text.parse().map_err(|_| {
                format!("{text} has more than the 34 digits that BSON's decimals have")
            })?;
            Bson::Decimal128(decimal)
        }
        Column::Text(array) if kind.uuid => uuid(array.value(row))?,
        Column::Text(array) => array.value(row).into(),
        Column::Binary(array) => Bson::Binary(Binary {
            subtype: BinarySubtype::Generic,
            bytes: array.value(row).to_vec(),
        }),
        Column::Date(array) => {
            let millis = i64::from(array.value(row)) * MILLIS_OF_DAY;
            DateTime::from_millis(millis).into()
        }
        // BSON has no time of day: it is text, such as `13:05:00.250`.
        Column::Time(array) => {
            let nanos = array.value(row);
            let time =
                time_of_day(nanos).ok_or_else(|| format!("{nanos} ns is no time of a day"))?;
            time.to_string().into()
        }
        Column::Timestamp(array) => {
            DateTime::from_millis(array.value(row).div_euclid(1_000)).into()
        }
        Column::List(array, inner) => {
            let offsets = array.value_offsets();
            let elements = offsets[row] as usize..offsets[row + 1] as usize;
            let elements = elements.map(|element| value(inner, element, kind));
            Bson::Array(elements.collect::<Result<_, _>>()?)
        }
        Column::Null => Bson::Null,
    })
}

fn integer(value: i64, kind: Kind) -> Bson {
    match i32::try_from(value) {
        Ok(value) if kind.narrow => Bson::Int32(value),
        _ => Bson::Int64(value),
    }
}

fn uuid(text: &str) -> Result<Bson, String> {
    let uuid = Uuid::try_parse(text).map_err(|_| format!("`{text:.60}` isn't a UUID"))?;
    Ok(Bson::Binary(Binary {
        subtype: BinarySubtype::Uuid,
        bytes: uuid.as_bytes().to_vec(),
    }))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use datafusion::arrow::{
        array::{
            Array, ArrayRef, BinaryArray, BooleanArray, Date32Array, Decimal128Array, Float32Array,
            Int16Array, Int64Array, ListArray, StringArray, Time64NanosecondArray,
            TimestampMicrosecondArray, types::Int32Type,
        },
        buffer::OffsetBuffer,
        datatypes::Field,
    };
    use mongodb::bson::bson;

    use super::*;

    fn of(array: impl Array + 'static, cql: &str) -> Result<Bson, String> {
        let kind = Kind::new(array.data_type(), &cql.parse().unwrap());
        let column = Column::new(&(Arc::new(array) as ArrayRef)).unwrap();
        value(&column, 0, kind)
    }

    #[test]
    fn values_are_of_their_type() {
        let text = "9a723211-0e87-41f1-b1e4-ed1a15226b80";
        let uuid = mongodb::bson::Uuid::parse_str(text).unwrap();
        let list = ListArray::from_iter_primitive::<Int32Type, _, _>([Some([Some(7), None])]);
        let uuids = ListArray::new(
            Arc::new(Field::new_list_field(DataType::Utf8, true)),
            OffsetBuffer::from_lengths([1]),
            Arc::new(StringArray::from(vec![text])),
            None,
        );
        let decimal = Decimal128Array::from(vec![-1_050]).with_precision_and_scale(10, 2);
        for (found, expected) in [
            (of(BooleanArray::from(vec![true]), "boolean"), bson!(true)),
            (of(Int16Array::from(vec![-2]), "smallint"), bson!(-2_i32)),
            (of(Int64Array::from(vec![-2]), "bigint"), bson!(-2_i64)),
            (of(Float32Array::from(vec![1.5]), "float"), bson!(1.5)),
            (of(StringArray::from(vec!["Zoë"]), "text"), bson!("Zoë")),
            (of(StringArray::from(vec![text]), "text"), bson!(text)),
            (of(StringArray::from(vec![text]), "uuid"), bson!(uuid)),
            (
                of(StringArray::from(vec![None::<&str>]), "uuid"),
                Bson::Null,
            ),
            (
                of(Date32Array::from(vec![-1]), "date"),
                DateTime::from_millis(-MILLIS_OF_DAY).into(),
            ),
            (
                of(TimestampMicrosecondArray::from(vec![-1]), "timestamp"),
                DateTime::from_millis(-1).into(),
            ),
            (
                of(Time64NanosecondArray::from(vec![3_600_250_000_000]), "time"),
                bson!("01:00:00.250"),
            ),
            (
                of(decimal.unwrap(), "decimal"),
                Bson::Decimal128("-10.50".parse().unwrap()),
            ),
            (of(list, "frozen<list<int>>"), bson!([7_i32, null])),
            (of(uuids, "frozen<list<uuid>>"), bson!([uuid])),
            (
                of(BinaryArray::from(vec![b"\0a".as_slice()]), "blob"),
                Bson::Binary(Binary {
                    subtype: BinarySubtype::Generic,
                    bytes: vec![0, b'a'],
                }),
            ),
        ] {
            assert_eq!(found.unwrap(), expected);
        }
    }

    #[test]
    fn what_has_no_place_is_named() {
        let error = of(StringArray::from(vec!["nobody"]), "uuid").unwrap_err();
        assert_eq!(error, "`nobody` isn't a UUID");
        let long = Decimal128Array::from(vec![i128::MAX]).with_precision_and_scale(38, 0);
        let error = of(long.unwrap(), "decimal").unwrap_err();
        assert!(error.contains("34 digits"), "{error}");
    }
}
