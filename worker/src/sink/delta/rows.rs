//! Rows as a table has them.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use anyhow::Context;
use datafusion::arrow::{
    array::{Array, ArrayRef, AsArray, Int64Array, RecordBatch, UInt64Array},
    compute::{CastOptions, cast_with_options, concat_batches, nullif, take_record_batch},
    datatypes::{
        DataType, Date32Type, Field, Schema, SchemaRef, TimeUnit, TimestampMicrosecondType,
    },
    error::ArrowError,
    row::{RowConverter, SortField},
    temporal_conversions::{date32_to_datetime, timestamp_us_to_datetime},
};
use millstream_api::sink::DeltaSink;
use millstream_plan::{SinkPlan, delta_type};

use crate::{
    batch::{Batch, Rejected, Versions},
    transform::Rows,
};

/// The column by which an older row never replaces a newer one: microseconds, as the write
/// timestamp of a row in Cassandra. No column of a result begins with `_`.
pub const VERSION: &str = "_version";

/// Bytes that file systems have for the name of a folder.
const MAX_FOLDER: usize = 255;

/// The columns that rows fill.
#[derive(Clone)]
pub struct Shape {
    schema: SchemaRef,
    /// The columns by which a row replaces another; none where rows are only added.
    keys: Vec<usize>,
    /// The columns of text that have a folder for each value.
    folders: Vec<usize>,
    versions: Versions,
}

impl Shape {
    pub fn new(plan: &SinkPlan, sink: &DeltaSink, timestamp_base: i64) -> anyhow::Result<Self> {
        let columns = plan.columns.iter();
        let mut fields: Vec<_> = columns
            .map(|column| Field::new(&column.name, delta_type(&column.data_type), true))
            .collect();
        let keys = sink.merge_keys.iter().map(|key| {
            let index = plan.columns.iter().position(|column| column.name == *key);
            index.with_context(|| format!("the result has no column `{key}`"))
        });
        let keys = keys.collect::<anyhow::Result<Vec<_>>>()?;
        let of_text = |(index, field): (usize, &Field)| {
            let is_text = *field.data_type() == DataType::Utf8;
            (is_text && sink.partition_by.contains(field.name())).then_some(index)
        };
        let folders = fields.iter().enumerate().filter_map(of_text).collect();
        if !keys.is_empty() {
            fields.push(Field::new(VERSION, DataType::Int64, true));
        }
        Ok(Shape {
            schema: Arc::new(Schema::new(fields)),
            keys,
            folders,
            versions: Versions::new(plan, timestamp_base),
        })
    }

    /// The columns.
    pub fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    /// Names of the keys, and of the other columns.
    pub fn split(&self) -> (Vec<&str>, Vec<&str>) {
        let (mut keys, mut others) = (Vec::new(), Vec::new());
        for (index, field) in self.schema.fields().iter().enumerate() {
            match self.keys.contains(&index) {
                true => keys.push(field.name().as_str()),
                false => others.push(field.name().as_str()),
            }
        }
        (keys, others)
    }

    /// Takes rows; gives the records whose rows the table can't take.
    pub fn rows(&self, batch: &Batch, rows: &[Rows]) -> (TableRows, Vec<Rejected>) {
        let mut taken = TableRows::none(self);
        let mut rejected = Vec::new();
        for rows in rows {
            match self.part(batch, rows, &mut rejected) {
                Ok(part) => taken.parts.push(part),
                Err(error) => {
                    let records = rows.records.iter();
                    let refused = records.map(|&record| Rejected::new(record, error.to_string()));
                    rejected.extend(refused);
                }
            }
        }
        (taken, rejected)
    }

    /// Why the table can't take a row.
    fn problem(&self, rows: &RecordBatch, row: usize) -> Option<String> {
        let name = |column: usize| self.schema.field(column).name();
        if let Some(&key) = self.keys.iter().find(|&&key| rows.column(key).is_null(row)) {
            return Some(format!(
                "column `{}` is null, and it is in mergeKeys",
                name(key)
            ));
        }
        if let Some(problem) = self.no_folder(rows, row) {
            return Some(problem);
        }
        let mut columns = rows.columns().iter();
        let column = columns.position(|column| is_out_of_range(column, row))?;
        Some(format!(
            "column `{}` is beyond the years -262143 to 262142",
            name(column)
        ))
    }

    /// Why there can't be a folder for a row.
    fn no_folder(&self, rows: &RecordBatch, row: usize) -> Option<String> {
        self.folders.iter().find_map(|&folder| {
            let name = self.schema.field(folder).name();
            let column = rows.column(folder).as_string::<i32>();
            let value = column.is_valid(row).then(|| column.value(row))?;
            if value.is_empty() && self.keys.contains(&folder) {
                return Some(format!(
                    "column `{name}` is empty, and it is in mergeKeys and partitionBy: Delta Lake takes it for null"
                ));
            }
            let length = name.len() + 1 + encoded_length(value);
            (length > MAX_FOLDER).then(|| {
                format!("column `{name}` is too long for the name of a folder (partitionBy): {length} bytes of {MAX_FOLDER}, where a letter that isn't ASCII takes 6 or more")
            })
        })
    }

    fn part(
        &self,
        batch: &Batch,
        rows: &Rows,
        rejected: &mut Vec<Rejected>,
    ) -> Result<Part, ArrowError> {
        let options = CastOptions {
            safe: false,
            ..CastOptions::default()
        };
        let fields = self.schema.fields().iter();
        let mut columns = rows
            .columns
            .columns()
            .iter()
            .zip(fields)
            .map(|(column, field)| cast_with_options(column, field.data_type(), &options))
            .collect::<Result<Vec<ArrayRef>, _>>()?;
        for &folder in self
            .folders
            .iter()
            .filter(|folder| !self.keys.contains(folder))
        {
            // As Spark writes them, and as Delta Lake reads them when files are put together.
            let column = columns[folder].as_string::<i32>();
            let is_empty = column.iter().map(|value| value.map(str::is_empty));
            columns[folder] = nullif(&columns[folder], &is_empty.collect())?;
        }
        let records = batch.records();
        if !self.keys.is_empty() {
            let versions = rows.records.iter();
            let versions = versions.map(|&record| self.versions.of(&records[record]));
            columns.push(Arc::new(Int64Array::from_iter_values(versions)));
        }
        let all = RecordBatch::try_new(self.schema.clone(), columns)?;
        let mut kept = Vec::with_capacity(all.num_rows());
        for (row, &record) in rows.records.iter().enumerate() {
            match self.problem(&all, row) {
                None => kept.push(row),
                Some(problem) => rejected.push(Rejected::new(record, problem)),
            }
        }
        let places = kept.iter().map(|&row| {
            let record = &records[rows.records[row]];
            (record.partition, record.offset)
        });
        Ok(Part {
            places: places.collect(),
            rows: match kept.len() == all.num_rows() {
                true => all,
                false => take_record_batch(&all, &indices(&kept))?,
            },
        })
    }
}

/// Bytes of a text in the name of a folder, at most: what isn't a letter or digit of ASCII is escaped.
fn encoded_length(text: &str) -> usize {
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_.".contains(byte);
    let length = |byte: u8| if plain(&byte) { 1 } else { 3 };
    text.bytes().map(length).sum()
}

/// Whether a column has a time that delta-rs, which panics over it, can't write.
fn is_out_of_range(column: &ArrayRef, row: usize) -> bool {
    let value = match column.data_type() {
        _ if column.is_null(row) => return false,
        DataType::Date32 => date32_to_datetime(column.as_primitive::<Date32Type>().value(row)),
        DataType::Timestamp(TimeUnit::Microsecond, _) => {
            let times = column.as_primitive::<TimestampMicrosecondType>();
            timestamp_us_to_datetime(times.value(row))
        }
        _ => return false,
    };
    value.is_none()
}

/// Rows of a batch.
pub struct TableRows {
    shape: Shape,
    parts: Vec<Part>,
}

struct Part {
    rows: RecordBatch,
    /// Of every row: topic partition and offset of its record.
    places: Vec<(i32, i64)>,
}

impl TableRows {
    pub fn none(shape: &Shape) -> Self {
        TableRows {
            shape: shape.clone(),
            parts: Vec::new(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.parts.iter().all(|part| part.places.is_empty())
    }

    /// The last offset of each topic partition.
    pub fn ends(&self) -> BTreeMap<i32, i64> {
        let mut ends = BTreeMap::new();
        for (partition, offset) in self.parts.iter().flat_map(|part| &part.places) {
            let end = ends.entry(*partition).or_insert(*offset);
            *end = (*end).max(*offset);
        }
        ends
    }

    /// The rows that a table doesn't have which has all up to these offsets. Where rows replace
    /// others: the newest of each key.
    pub fn after(&self, applied: &HashMap<i32, i64>) -> Result<RecordBatch, ArrowError> {
        let mut batches = Vec::with_capacity(self.parts.len());
        for part in &self.parts {
            let places = part.places.iter().enumerate();
            let new = places.filter(|(_, (partition, offset))| {
                applied
                    .get(partition)
                    .is_none_or(|applied| offset > applied)
            });
            let new: Vec<_> = new.map(|(row, _)| row).collect();
            batches.push(match new.len() == part.places.len() {
                true => part.rows.clone(),
                false => take_record_batch(&part.rows, &indices(&new))?,
            });
        }
        let rows = concat_batches(&self.shape.schema, &batches)?;
        match self.shape.keys.is_empty() {
            true => Ok(rows),
            false => self.newest(rows),
        }
    }

    fn newest(&self, rows: RecordBatch) -> Result<RecordBatch, ArrowError> {
        let keys = &self.shape.keys;
        let fields = keys.iter().map(|&key| {
            let data_type = self.shape.schema.field(key).data_type();
            SortField::new(data_type.clone())
        });
        let converter = RowConverter::new(fields.collect())?;
        let columns: Vec<_> = keys.iter().map(|&key| rows.column(key).clone()).collect();
        let keys = converter.convert_columns(&columns)?;
        let versions = rows.column(self.shape.schema.index_of(VERSION)?);
        let versions = versions
            .as_any()
            .downcast_ref::<Int64Array>()
            .ok_or_else(|| ArrowError::CastError(format!("{VERSION} isn't BIGINT")))?;
        let mut newest: HashMap<_, usize> = HashMap::with_capacity(rows.num_rows());
        for row in 0..rows.num_rows() {
            let known = newest.entry(keys.row(row)).or_insert(row);
            if versions.value(row) >= versions.value(*known) {
                *known = row;
            }
        }
        let mut newest: Vec<_> = newest.into_values().collect();
        newest.sort_unstable();
        take_record_batch(&rows, &indices(&newest))
    }
}

fn indices(rows: &[usize]) -> UInt64Array {
    UInt64Array::from_iter_values(rows.iter().map(|&row| row as u64))
}
