//! The columns of a query's result, as sinks read them.

use datafusion::arrow::{
    array::{
        Array, ArrayRef, AsArray, BinaryArray, BooleanArray, Date32Array, Decimal128Array,
        Float32Array, Float64Array, Int64Array, ListArray, StringArray, Time64NanosecondArray,
        TimestampMicrosecondArray, types,
    },
    compute::cast,
    datatypes::{DataType, TimeUnit},
};

/// A column of results, with its type told once for all its rows.
pub enum Column {
    Boolean(BooleanArray),
    Integer(Int64Array),
    Float32(Float32Array),
    Float64(Float64Array),
    Decimal(Decimal128Array, i32),
    Text(StringArray),
    Binary(BinaryArray),
    /// Days since 1970.
    Date(Date32Array),
    /// Nanoseconds since midnight.
    Time(Time64NanosecondArray),
    /// Microseconds since 1970.
    Timestamp(TimestampMicrosecondArray),
    List(ListArray, Box<Column>),
    Null,
}

impl Column {
    /// A column of an Arrow array; the integers become one type, so do the texts.
    pub fn new(array: &ArrayRef) -> Result<Self, String> {
        use DataType::*;
        let to = |data_type: &DataType| cast(array, data_type).map_err(|error| error.to_string());
        Ok(match array.data_type() {
            Boolean => Column::Boolean(array.as_boolean().clone()),
            Int64 => Column::Integer(array.as_primitive().clone()),
            Int8 | Int16 | Int32 | UInt8 | UInt16 | UInt32 | UInt64 => {
                Column::Integer(to(&Int64)?.as_primitive().clone())
            }
            Float32 => Column::Float32(array.as_primitive().clone()),
            Float64 => Column::Float64(array.as_primitive().clone()),
            Decimal128(_, scale) => {
                Column::Decimal(array.as_primitive().clone(), i32::from(*scale))
            }
            Utf8 => Column::Text(array.as_string().clone()),
            LargeUtf8 | Utf8View => Column::Text(to(&Utf8)?.as_string().clone()),
            Binary => Column::Binary(array.as_binary().clone()),
            LargeBinary | BinaryView => Column::Binary(to(&Binary)?.as_binary().clone()),
            Date32 => Column::Date(array.as_primitive().clone()),
            Time64(TimeUnit::Nanosecond) => Column::Time(array.as_primitive().clone()),
            Timestamp(TimeUnit::Microsecond, _) => Column::Timestamp(
                array
                    .as_primitive::<types::TimestampMicrosecondType>()
                    .clone(),
            ),
            Timestamp(_, zone) => {
                let micros = Timestamp(TimeUnit::Microsecond, zone.clone());
                Column::Timestamp(to(&micros)?.as_primitive().clone())
            }
            List(_) => {
                let list = array.as_list::<i32>();
                let inner = Column::new(list.values())?;
                Column::List(list.clone(), Box::new(inner))
            }
            Null => Column::Null,
            other => {
                return Err(format!("results of type {other} can't be written"));
            }
        })
    }

    /// Whether the row's value is null.
    pub fn is_null(&self, row: usize) -> bool {
        match self {
            Column::Boolean(array) => array.is_null(row),
            Column::Integer(array) => array.is_null(row),
            Column::Float32(array) => array.is_null(row),
            Column::Float64(array) => array.is_null(row),
            Column::Decimal(array, _) => array.is_null(row),
            Column::Text(array) => array.is_null(row),
            Column::Binary(array) => array.is_null(row),
            Column::Date(array) => array.is_null(row),
            Column::Time(array) => array.is_null(row),
            Column::Timestamp(array) => array.is_null(row),
            Column::List(array, _) => array.is_null(row),
            Column::Null => true,
        }
    }
}
