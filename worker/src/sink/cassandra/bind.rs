//! Result rows to the cells of the INSERT statement.

use std::{collections::HashSet, ops::Range};

use millstream_api::{cql::CqlType, keyspace::TableSpec};
use millstream_plan::SinkPlan;
use scylla::serialize::{
    SerializationError,
    row::{RowSerializationContext, SerializeRow},
    writers::RowWriter,
};

use crate::{
    batch::{Batch, Record, Rejected, Versions},
    pointer::{Fields, Presence},
    sink::{cassandra::encode::cell, column::Column},
    transform::Rows,
};

/// What a cell has in place of its length.
const NULL: i32 = -1;
const UNSET: i32 = -2;
/// Cassandra's limit for each part of a primary key.
const MAX_KEY_BYTES: usize = 65_535;

/// Binds the result of a sink's query to its table.
pub struct Binder {
    /// The columns of the primary key come first: a row's key is the beginning of its cells.
    targets: Vec<Target>,
    key_columns: usize,
    /// How many of them are the partition key.
    partition_columns: usize,
    timestamps: Versions,
}

struct Target {
    /// Index in the result.
    index: usize,
    name: String,
    cql: CqlType,
    /// Where the column is nothing but a field of the record: what it says where it is null.
    path: Option<Vec<String>>,
}

/// Rows with their values encoded, in one buffer.
#[derive(Default)]
pub struct BoundRows {
    bytes: Vec<u8>,
    rows: Vec<BoundRow>,
}

struct BoundRow {
    cells: Range<usize>,
    key_end: usize,
    /// Whether every cell is set.
    whole: bool,
    /// Added as the last cell; none where it is among the cells.
    timestamp: Option<i64>,
    record: usize,
}

/// The values of a row: cells with their lengths, and the write timestamp.
#[derive(Clone, Copy)]
pub struct Values<'a> {
    cells: &'a [u8],
    timestamp: Option<i64>,
    /// Index of the record in its batch.
    pub record: usize,
}

impl Binder {
    /// A binder of the query's result to the table.
    pub fn new(plan: &SinkPlan, table: &TableSpec, timestamp_base: i64) -> anyhow::Result<Self> {
        let keys: Vec<&str> = table.primary_key.columns().collect();
        let rank = |name: &str| keys.iter().position(|key| *key == name);
        let mut targets = Vec::new();
        for (index, result) in plan.columns.iter().enumerate() {
            let column = table
                .columns
                .iter()
                .find(|column| column.name == result.name);
            let column = column.ok_or_else(|| {
                anyhow::anyhow!("table {} has no column `{}`", table.name, result.name)
            })?;
            targets.push(Target {
                index,
                name: result.name.clone(),
                cql: column.cql_type.clone(),
                path: result.path.clone(),
            });
        }
        targets.sort_by_key(|target| rank(&target.name).unwrap_or(usize::MAX));
        Ok(Binder {
            targets,
            key_columns: keys.len(),
            partition_columns: table.primary_key.partition_key.len(),
            timestamps: Versions::new(plan, timestamp_base),
        })
    }

    /// The columns in the order of their cells.
    pub fn columns(&self) -> impl Iterator<Item = &str> {
        self.targets.iter().map(|target| target.name.as_str())
    }

    /// Binds rows. Of the rows of one primary key only those are kept that a later one doesn't
    /// replace as a whole.
    pub fn bind(&self, batch: &Batch, rows: &[Rows]) -> (BoundRows, Vec<Rejected>) {
        let mut bound = BoundRows::with_capacity(batch.len(), batch.bytes());
        let mut rejected = Vec::new();
        for rows in rows {
            let columns = self
                .targets
                .iter()
                .map(|target| Column::new(rows.columns.column(target.index)))
                .collect::<Result<Vec<_>, _>>();
            for (row, &record) in rows.records.iter().enumerate() {
                let start = bound.bytes.len();
                let result = match &columns {
                    Ok(columns) => self.bind_row(batch, columns, row, record, &mut bound),
                    Err(reason) => Err(reason.clone()),
                };
                if let Err(reason) = result {
                    bound.bytes.truncate(start);
                    rejected.push(Rejected::new(record, reason));
                }
            }
        }
        if batch.records().iter().any(Record::is_replayed) {
            // It comes late, and is replaced by what comes before it.
            bound.rows.sort_by_key(|row| row.timestamp);
        }
        bound.drop_replaced();
        (bound, rejected)
    }

    fn bind_row(
        &self,
        batch: &Batch,
        columns: &[Column],
        row: usize,
        record: usize,
        bound: &mut BoundRows,
    ) -> Result<(), String> {
        let source = &batch.records()[record];
        let fields = Fields::of(batch.value(source).unwrap_or_default());
        let start = bound.bytes.len();
        let mut key_end = start;
        let mut key = KeySize::new(self.partition_columns);
        let mut whole = true;
        for (position, (target, column)) in self.targets.iter().zip(columns).enumerate() {
            let in_key = position < self.key_columns;
            if column.is_null(row) {
                if in_key {
                    return Err(null_key(&target.name));
                }
                let marker = null_or_unset(target, &fields)?;
                whole &= marker == NULL;
                bound.bytes.extend(marker.to_be_bytes());
                continue;
            }
            let before = bound.bytes.len();
            cell(&mut bound.bytes, |bytes| {
                column.encode(row, &target.cql, bytes)
            })
            .map_err(|reason| format!("column `{}`: {reason}", target.name))?;
            if in_key {
                key_end = bound.bytes.len();
                key.add(&target.name, key_end - before - 4)?;
            }
        }
        bound.rows.push(BoundRow {
            cells: start..bound.bytes.len(),
            key_end,
            whole,
            timestamp: Some(self.timestamps.of(source)),
            record,
        });
        Ok(())
    }
}

/// Holds a primary key to what Cassandra takes, column by column: so many bytes of all columns of the
/// partition key, and of all clustering columns.
pub struct KeySize {
    partition_columns: usize,
    columns: usize,
    bytes: usize,
}

impl KeySize {
    /// What Cassandra writes beside each column of a partition key that has several.
    const BESIDE: usize = 3;

    pub fn new(partition_columns: usize) -> Self {
        KeySize {
            partition_columns,
            columns: 0,
            bytes: 0,
        }
    }

    /// Adds the next column of so many bytes.
    pub fn add(&mut self, name: &str, length: usize) -> Result<(), String> {
        if self.columns == self.partition_columns {
            self.bytes = 0;
        }
        self.columns += 1;
        if self.partition_columns == 1 && self.columns == 1 && length == 0 {
            return Err(format!("the partition key column `{name}` is empty"));
        }
        let composite = self.partition_columns > 1 && self.columns <= self.partition_columns;
        self.bytes += length + if composite { Self::BESIDE } else { 0 };
        let bytes = self.bytes;
        match bytes > MAX_KEY_BYTES {
            true if length == bytes => Err(format!(
                "the primary key column `{name}` has {bytes} bytes, Cassandra takes {MAX_KEY_BYTES} at most"
            )),
            true => Err(format!(
                "the primary key has {bytes} bytes up to its column `{name}`, Cassandra takes {MAX_KEY_BYTES} of a partition key, and of the clustering columns, at most"
            )),
            false => Ok(()),
        }
    }
}

/// Why a row without a part of its primary key can't be written.
pub fn null_key(name: &str) -> String {
    format!("the primary key column `{name}` is null")
}

/// What a null is written as: a field that isn't in the record leaves the cell alone.
fn null_or_unset(target: &Target, fields: &Fields<'_>) -> Result<i32, String> {
    Ok(match &target.path {
        Some(path) if fields.presence(path)? == Presence::Absent => UNSET,
        _ => NULL,
    })
}

impl BoundRows {
    fn with_capacity(rows: usize, bytes: usize) -> Self {
        BoundRows {
            bytes: Vec::with_capacity(bytes),
            rows: Vec::with_capacity(rows),
        }
    }

    /// Adds a row whose cells are encoded already, each with its length in front. Without a
    /// timestamp it is among the cells.
    pub fn push(&mut self, cells: &[&[u8]], timestamp: Option<i64>, record: usize) {
        let start = self.bytes.len();
        for cell in cells {
            self.bytes.extend_from_slice(cell);
        }
        self.rows.push(BoundRow {
            cells: start..self.bytes.len(),
            key_end: start,
            whole: true,
            timestamp,
            record,
        });
    }

    /// The rows' values.
    pub fn values(&self) -> impl ExactSizeIterator<Item = Values<'_>> {
        self.rows.iter().map(|row| Values {
            cells: &self.bytes[row.cells.clone()],
            timestamp: row.timestamp,
            record: row.record,
        })
    }

    /// Drops rows that a later row of the same primary key replaces; one that leaves cells alone
    /// doesn't.
    fn drop_replaced(&mut self) {
        let mut replaced = HashSet::with_capacity(self.rows.len());
        let bytes = &self.bytes;
        let mut kept = Vec::with_capacity(self.rows.len());
        while let Some(row) = self.rows.pop() {
            let key = &bytes[row.cells.start..row.key_end];
            let known = match row.whole {
                true => !replaced.insert(key),
                false => replaced.contains(key),
            };
            if !known {
                kept.push(row);
            }
        }
        kept.reverse();
        self.rows = kept;
    }
}

impl Values<'_> {
    /// Bytes of all values.
    pub fn len(&self) -> usize {
        self.cells.len()
    }

    /// The value of a cell, if it has one.
    pub fn cell(&self, index: usize) -> Option<&[u8]> {
        let mut cells = self.cells;
        for _ in 0..index {
            (_, cells) = split_cell(cells)?;
        }
        split_cell(cells)?.0.ok()
    }
}

/// A cell's value, or the negative length that it has in place of one.
type Cell<'a> = Result<&'a [u8], i32>;

/// The first cell, and those after it.
fn split_cell(cells: &[u8]) -> Option<(Cell<'_>, &[u8])> {
    let (length, rest) = cells.split_first_chunk()?;
    let length = i32::from_be_bytes(*length);
    Some(match usize::try_from(length) {
        Ok(length) => {
            let (value, rest) = rest.split_at(length);
            (Ok(value), rest)
        }
        Err(_) => (Err(length), rest),
    })
}

/// Cells with their lengths, as they are.
pub struct Cells<'a>(pub &'a [u8]);

impl Cells<'_> {
    fn write(&self, writer: &mut RowWriter) -> Result<(), SerializationError> {
        let mut cells = self.0;
        while let Some((cell, rest)) = split_cell(cells) {
            cells = rest;
            let to = writer.make_cell_writer();
            match cell {
                Ok(value) => to.set_value(value).map_err(SerializationError::new)?,
                Err(UNSET) => to.set_unset(),
                Err(_) => to.set_null(),
            };
        }
        Ok(())
    }
}

impl SerializeRow for Cells<'_> {
    fn serialize(
        &self,
        _: &RowSerializationContext<'_>,
        writer: &mut RowWriter,
    ) -> Result<(), SerializationError> {
        self.write(writer)
    }

    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl SerializeRow for Values<'_> {
    fn serialize(
        &self,
        _: &RowSerializationContext<'_>,
        writer: &mut RowWriter,
    ) -> Result<(), SerializationError> {
        Cells(self.cells).write(writer)?;
        if let Some(timestamp) = self.timestamp {
            writer
                .make_cell_writer()
                .set_value(&timestamp.to_be_bytes())
                .map_err(SerializationError::new)?;
        }
        Ok(())
    }

    fn is_empty(&self) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use millstream_plan::RecordSchema;
    use serde_json::json;

    use super::*;
    use crate::transform::Transform;

    const BASE: i64 = 1_700_000_000_000_000;

    #[test]
    fn a_primary_key_is_as_long_as_cassandra_takes() {
        for (partition_columns, lengths, says) in [
            (1, [0, 1, 1], "column `0` is empty"),
            (2, [0, 1, 1], ""),
            (1, [65_535, 65_534, 1], ""),
            (1, [65_536, 0, 0], "column `0` has 65536 bytes"),
            (1, [1, 65_535, 1], "65536 bytes up to its column `2`"),
            (2, [32_764, 32_765, 65_535], ""),
            (2, [32_764, 32_766, 0], "65536 bytes up to its column `1`"),
        ] {
            let mut key = KeySize::new(partition_columns);
            let mut columns = lengths.into_iter().enumerate();
            let held = columns.try_for_each(|(name, length)| key.add(&name.to_string(), length));
            let error = held.err().unwrap_or_default();
            assert!(
                error.contains(says) && error.is_empty() == says.is_empty(),
                "{error}"
            );
        }
    }

    /// Binds records, given with their offsets, to `users (id uuid, name text, age int)`.
    fn bind(sql: &str, records: &[(i64, &str)]) -> (Vec<String>, Vec<Rejected>) {
        let schema = "id TEXT, name TEXT, age INT, venue STRUCT<city TEXT>";
        let schema = RecordSchema::parse(schema).unwrap();
        let plan = SinkPlan::new(&schema, "users", sql).unwrap();
        let table: TableSpec = serde_json::from_value(json!({
            "name": "users",
            "columns": [
                {"name": "name", "type": "text"}, {"name": "id", "type": "uuid"},
                {"name": "age", "type": "int"},
            ],
            "primaryKey": {"partitionKey": ["id"]},
        }))
        .unwrap();
        let mut batch = Batch::default();
        for (offset, record) in records {
            batch.push_record(0, *offset, None, None, Some(record.as_bytes()));
        }
        let transformed = Transform::new(&plan).unwrap().run(&batch).unwrap();
        let binder = Binder::new(&plan, &table, BASE).unwrap();
        assert_eq!(binder.columns().next(), Some("id"));
        let (bound, rejected) = binder.bind(&batch, &transformed.rows);
        (bound.values().map(|row| shown(&row)).collect(), rejected)
    }

    /// The cells after the id's, and the timestamp, as text.
    fn shown(row: &Values<'_>) -> String {
        let mut cells = &row.cells[20..];
        let mut shown = Vec::new();
        while let Some((length, rest)) = cells.split_first_chunk::<4>() {
            let length = i32::from_be_bytes(*length);
            let (value, rest) = rest.split_at(usize::try_from(length).unwrap_or(0));
            cells = rest;
            shown.push(match length {
                NULL => "null".to_owned(),
                UNSET => "unset".to_owned(),
                _ => String::from_utf8_lossy(value)
                    .trim_start_matches('\0')
                    .to_owned(),
            });
        }
        format!("{} @{}", shown.join(" "), row.timestamp.unwrap() - BASE)
    }

    const A: &str = "9a723211-0e87-41f1-b1e4-ed1a15226b80";
    const B: &str = "11111111-0e87-41f1-b1e4-ed1a15226b80";

    #[test]
    fn null_is_written_and_absent_is_left_alone() {
        let record = |rest: &str| format!(r#"{{"id": "{A}"{rest}}}"#);
        let names = |sql: &str, rest: &str| bind(sql, &[(7, &record(rest))]).0;
        let plain = "SELECT id, name FROM records";
        assert_eq!(names(plain, r#", "name": "Zoë""#), ["Zoë @7"]);
        assert_eq!(names(plain, r#", "name": null"#), ["null @7"]);
        assert_eq!(names(plain, ""), ["unset @7"]);
        let nested = "SELECT id, venue.city AS name FROM records";
        assert_eq!(names(nested, r#", "venue": null"#), ["null @7"]);
        assert_eq!(names(nested, r#", "venue": {}"#), ["unset @7"]);
        let computed = "SELECT id, upper(name) AS name FROM records";
        assert_eq!(names(computed, ""), ["null @7"]);
    }

    #[test]
    fn a_later_row_replaces_an_earlier_one_if_it_sets_every_cell() {
        let record = |id: &str, rest: &str| format!(r#"{{"id": "{id}", {rest}}}"#);
        let records = [
            record(A, r#""name": "a", "age": 1"#),
            record(B, r#""name": "b", "age": 2"#),
            record(&A.to_uppercase(), r#""name": "c", "age": null"#),
            record(B, r#""name": "d""#),
        ];
        let records: Vec<_> = (1..).zip(records.iter().map(String::as_str)).collect();
        let (rows, rejected) = bind("SELECT id, age, name FROM records", &records);
        assert_eq!(rejected, []);
        assert_eq!(rows, ["\u{2} b @2", "null c @3", "unset d @4"]);
    }

    #[test]
    fn rows_that_can_never_be_written_are_named() {
        let (rows, rejected) = bind(
            "SELECT id, name FROM records",
            &[(1, r#"{"id": "nobody"}"#), (2, r#"{"name": "x"}"#)],
        );
        assert!(rows.is_empty());
        let reasons: Vec<_> = rejected
            .into_iter()
            .map(|rejected| rejected.reason)
            .collect();
        assert_eq!(
            reasons,
            [
                "column `id`: `nobody` isn't a UUID",
                "the primary key column `id` is null"
            ]
        );
    }
}
