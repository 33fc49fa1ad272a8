//! Rows as answers show them: from Cassandra, and from a transform.

use std::sync::Arc;

use chrono::{DateTime, SecondsFormat};
use datafusion::arrow::{
    array::{Array, ArrayRef, AsArray, RecordBatch, types::*},
    compute::cast,
    datatypes::{DataType, SchemaRef, TimeUnit},
    error::ArrowError,
    util::display::{ArrayFormatter, FormatOptions},
};
use scylla::value::Row;
use serde::{Serialize, Serializer};
use serde_json::{Value, json};

use super::room::Share;
use crate::cassandra::value::{hex, json_of, short};

/// The rows of an answer.
#[derive(Debug)]
pub struct Table {
    pub columns: Vec<String>,
    pub rows: Vec<Vec<Value>>,
    /// What the rows take.
    _share: Share,
}

impl Table {
    /// The rows of a query.
    pub fn of_rows(columns: Vec<String>, rows: Vec<Row>, share: Share) -> Self {
        let cells = |row: Row| row.columns.into_iter().map(json_of).collect();
        Table {
            columns,
            rows: rows.into_iter().map(cells).collect(),
            _share: share,
        }
    }

    /// The rows of a transform.
    pub fn of_batches(
        schema: &SchemaRef,
        batches: &[RecordBatch],
        share: Share,
    ) -> Result<Self, ArrowError> {
        let columns = schema
            .fields()
            .iter()
            .map(|field| field.name().clone())
            .collect();
        let mut rows = Vec::new();
        for batch in batches {
            let cells = batch.columns().iter().map(json_of_array);
            let mut cells = cells.map(|cells| cells.map(Vec::into_iter));
            let mut cells: Vec<_> = cells.by_ref().collect::<Result<_, _>>()?;
            for _ in 0..batch.num_rows() {
                rows.push(cells.iter_mut().filter_map(Iterator::next).collect());
            }
        }
        Ok(Table {
            columns,
            rows,
            _share: share,
        })
    }
}

/// The rows as JSON objects.
impl Serialize for Table {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let rows = self.rows.iter();
        serializer.collect_seq(rows.map(|row| Object(&self.columns, row)))
    }
}

struct Object<'a>(&'a [String], &'a [Value]);

impl Serialize for Object<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().zip(self.1))
    }
}

/// The values of an array in JSON.
fn json_of_array(array: &ArrayRef) -> Result<Vec<Value>, ArrowError> {
    let null_or = |index: usize, value: Value| {
        if array.is_null(index) {
            Value::Null
        } else {
            value
        }
    };
    let indexes = 0..array.len();
    Ok(match array.data_type() {
        DataType::Boolean => {
            let values = array.as_boolean();
            indexes
                .map(|index| null_or(index, json!(values.value(index))))
                .collect()
        }
        data_type if data_type.is_unsigned_integer() => {
            let values = cast(array, &DataType::UInt64)?;
            let values = values.as_primitive::<UInt64Type>();
            indexes
                .map(|index| null_or(index, json!(values.value(index))))
                .collect()
        }
        data_type if data_type.is_signed_integer() => {
            let values = cast(array, &DataType::Int64)?;
            let values = values.as_primitive::<Int64Type>();
            indexes
                .map(|index| null_or(index, json!(values.value(index))))
                .collect()
        }
        DataType::Float32 => {
            let values = array.as_primitive::<Float32Type>();
            indexes
                .map(|index| null_or(index, short(values.value(index))))
                .collect()
        }
        DataType::Float16 | DataType::Float64 => {
            let values = cast(array, &DataType::Float64)?;
            let values = values.as_primitive::<Float64Type>();
            indexes
                .map(|index| null_or(index, json!(values.value(index))))
                .collect()
        }
        DataType::Timestamp(..) => {
            let values = cast(array, &DataType::Timestamp(TimeUnit::Microsecond, None))?;
            let values = values.as_primitive::<TimestampMicrosecondType>();
            let time = |index| {
                let time = DateTime::from_timestamp_micros(values.value(index));
                time.map(|time| Value::String(time.to_rfc3339_opts(SecondsFormat::Millis, true)))
            };
            indexes
                .map(|index| null_or(index, time(index).unwrap_or(Value::Null)))
                .collect()
        }
        DataType::List(_) | DataType::LargeList(_) => {
            let lists = cast(array, &DataType::List(element(array.data_type())))?;
            let lists = lists.as_list::<i32>();
            let list = |index| json_of_array(&lists.value(index)).map(Value::Array);
            indexes
                .map(|index| {
                    if array.is_null(index) {
                        Ok(Value::Null)
                    } else {
                        list(index)
                    }
                })
                .collect::<Result<_, _>>()?
        }
        DataType::Binary | DataType::LargeBinary | DataType::BinaryView => {
            let values = cast(array, &DataType::Binary)?;
            let values = values.as_binary::<i32>();
            indexes
                .map(|index| null_or(index, json!(hex(values.value(index)))))
                .collect()
        }
        _ => {
            let options = FormatOptions::default();
            let formatter = ArrayFormatter::try_new(array, &options)?;
            let text = |index| formatter.value(index).try_to_string().map(Value::String);
            indexes
                .map(|index| {
                    if array.is_null(index) {
                        Ok(Value::Null)
                    } else {
                        text(index)
                    }
                })
                .collect::<Result<_, _>>()?
        }
    })
}

fn element(data_type: &DataType) -> Arc<datafusion::arrow::datatypes::Field> {
    match data_type {
        DataType::List(element) | DataType::LargeList(element) => element.clone(),
        other => Arc::new(datafusion::arrow::datatypes::Field::new_list_field(
            other.clone(),
            true,
        )),
    }
}
