//! Records to rows: decode, then the sink's query. Records that fail are told apart from the rest.

use std::ops::Range;

use anyhow::Context;
use datafusion::arrow::{
    array::{AsArray, RecordBatch},
    datatypes::UInt32Type,
};
use millstream_api::worker::MAX_RECORD_BYTES;
use millstream_plan::{ExecError, Expectations, ROW_COLUMN, SinkExecutor, SinkPlan};

use crate::{
    avro::is_avro,
    batch::{Batch, Record, Rejected},
    decode::{DECODED, Decode},
    expectations::{self, Failed, Stop},
    lookup::Joined,
    pointer,
};

/// Decoder and query of a sink.
pub struct Transform {
    decode: Decode,
    executor: SinkExecutor,
    joined: Joined,
    expectations: Expectations,
}

/// What became of a batch.
#[derive(Default)]
pub struct Transformed {
    /// Rows for the sink, in the order of their records.
    pub rows: Vec<Rows>,
    /// Records that can't become rows.
    pub rejected: Vec<Rejected>,
    /// Rows that failed an expectation, whatever became of them.
    pub failed: Vec<Failed>,
    /// Where the sink has to stop: nothing of that record, or of one after it, is here.
    pub stop: Option<Stop>,
}

/// Rows, and the records that they come from.
pub struct Rows {
    /// The result columns in their order.
    pub columns: RecordBatch,
    /// For every row, the index of its record in the batch.
    pub records: Vec<usize>,
}

impl Transform {
    /// Plans the query of a sink.
    pub fn new(plan: &SinkPlan) -> anyhow::Result<Self> {
        Ok(Transform::with(plan, Decode::new(plan)?))
    }

    /// Plans the query of a sink, over records that are decoded like this.
    pub fn with(plan: &SinkPlan, decode: Decode) -> Self {
        Transform {
            decode,
            executor: plan.executor(),
            joined: Joined::default(),
            expectations: Expectations::default(),
        }
    }

    /// Holds the rows to expectations.
    pub fn expecting(self, expectations: Expectations) -> Self {
        Transform {
            expectations,
            ..self
        }
    }

    /// Joins these lookups, which are there. All records of a batch meet the same rows.
    pub fn joining(self, joined: Joined) -> Self {
        Transform { joined, ..self }
    }

    /// Transforms a batch. CPU-bound: about a microsecond for a small record. Fails where it isn't
    /// the records' fault.
    pub fn run(&mut self, batch: &Batch) -> anyhow::Result<Transformed> {
        if !self.joined.is_empty() {
            self.executor.set_lookups(self.joined.now());
        }
        let mut transformed = Transformed::default();
        let mut start = 0;
        for (index, record) in batch.records().iter().enumerate() {
            if let Some(reason) = refusal(batch.value(record)) {
                self.run_range(batch, start..index, &mut transformed)?;
                transformed.rejected.push(Rejected::new(index, reason));
                start = index + 1;
            }
        }
        self.run_range(batch, start..batch.len(), &mut transformed)?;
        expectations::hold(&self.expectations, batch, &mut transformed)?;
        Ok(transformed)
    }

    /// Transforms the records of a range; on an error halves it until the bad records stand alone.
    fn run_range(
        &mut self,
        batch: &Batch,
        range: Range<usize>,
        transformed: &mut Transformed,
    ) -> anyhow::Result<()> {
        let starts = range.clone().step_by(DECODED);
        let mut ranges: Vec<_> = starts
            .map(|start| start..range.end.min(start + DECODED))
            .rev()
            .collect();
        while let Some(range) = ranges.pop() {
            if range.is_empty() {
                continue;
            }
            match self.attempt(batch, &batch.records()[range.clone()]) {
                Ok((columns, rows)) => transformed.rows.push(Rows {
                    columns,
                    records: rows.into_iter().map(|row| range.start + row).collect(),
                }),
                Err(Failure::Engine(error)) => return Err(error),
                Err(Failure::Records(reason)) if range.len() == 1 => {
                    transformed
                        .rejected
                        .push(Rejected::new(range.start, reason));
                }
                Err(Failure::Records(_)) => {
                    let middle = range.start + range.len() / 2;
                    // The first half is on top: rows come out in the order of the records.
                    ranges.push(middle..range.end);
                    ranges.push(range.start..middle);
                }
            }
        }
        Ok(())
    }

    fn attempt(
        &mut self,
        batch: &Batch,
        records: &[Record],
    ) -> Result<(RecordBatch, Vec<usize>), Failure> {
        let input = self
            .decode
            .decode(batch, records)
            .map_err(Failure::Records)?;
        let result = self.executor.execute(&input).map_err(|error| match error {
            ExecError::Input(_) => Failure::Engine(error.into()),
            _ => Failure::Records(error.to_string()),
        })?;
        split_rows(result).map_err(Failure::Engine)
    }
}

/// Why records didn't become rows.
enum Failure {
    /// One of them is bad, or more.
    Records(String),
    /// The query can't be run over any record.
    Engine(anyhow::Error),
}

/// Takes the column with the indexes of the input rows off a result.
fn split_rows(mut result: RecordBatch) -> anyhow::Result<(RecordBatch, Vec<usize>)> {
    let index = result.schema().index_of(ROW_COLUMN)?;
    let rows = result.remove_column(index);
    let rows = rows
        .as_primitive_opt::<UInt32Type>()
        .with_context(|| format!("the query's column {ROW_COLUMN} is not an index"))?;
    let rows = rows.values().iter().map(|row| *row as usize).collect();
    Ok((result, rows))
}

/// Why a record isn't even looked at.
fn refusal(value: Option<&[u8]>) -> Option<String> {
    let Some(value) = value else {
        return Some("the record has no value".to_owned());
    };
    if value.len() > MAX_RECORD_BYTES {
        return Some(too_large(value.len()));
    }
    (!is_avro(value) && pointer::is_too_deep(value)).then(pointer::too_deep)
}

/// The reason for which a record of so many bytes is refused.
pub fn too_large(bytes: usize) -> String {
    format!(
        "the record has {} bytes, the limit is {}",
        grouped(bytes),
        grouped(MAX_RECORD_BYTES)
    )
}

fn grouped(number: usize) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use datafusion::arrow::util::pretty::pretty_format_batches;
    use millstream_plan::RecordSchema;

    use super::*;

    fn transform(sql: &str) -> Transform {
        let schema = "id BIGINT, name STRUCT<first TEXT, last TEXT>, postcode TEXT, at TIMESTAMP";
        let schema = RecordSchema::parse(schema).unwrap();
        Transform::new(&SinkPlan::new(&schema, "users", sql).unwrap()).unwrap()
    }

    fn batch(records: &[&str]) -> Batch {
        let mut batch = Batch::default();
        for (offset, record) in (100..).zip(records) {
            batch.push_record(2, offset, Some(5), Some(b"k"), Some(record.as_bytes()));
        }
        batch
    }

    fn rows(transformed: &Transformed) -> String {
        let batches: Vec<_> = transformed
            .rows
            .iter()
            .map(|rows| rows.columns.clone())
            .collect();
        pretty_format_batches(&batches).unwrap().to_string()
    }

    #[test]
    fn records_become_rows() {
        let sql = "SELECT id, name.first AS first, postcode, _partition AS p, _offset AS o, \
            _key AS k FROM records WHERE id <> 3";
        let records = batch(&[
            r#"{"id": 1, "name": {"first": "Zo\u00eb", "x": [1, {}]}, "postcode": 2722}"#,
            r#"{"id": 3}"#,
            r#" {"id": "2", "name": null, "postcode": "AB 1"} "#,
        ]);
        let transformed = transform(sql).run(&records).unwrap();
        assert_eq!(transformed.rejected, []);
        assert_eq!(transformed.rows[0].records, [0, 2]);
        insta::assert_snapshot!(rows(&transformed), @r"
        +----+-------+----------+---+-----+---+
        | id | first | postcode | p | o   | k |
        +----+-------+----------+---+-----+---+
        | 1  | Zoë   | 2722     | 2 | 100 | k |
        | 2  |       | AB 1     | 2 | 102 | k |
        +----+-------+----------+---+-----+---+
        ");
    }

    #[test]
    fn bad_records_are_told_from_the_rest() {
        let large = format!(
            r#"{{"id": 1, "postcode": "{}"}}"#,
            "x".repeat(MAX_RECORD_BYTES)
        );
        let mut records = batch(&[
            r#"{"id": 1, "postcode": "7"}"#,
            r#"{"id": 2"#,
            r#", "postcode": "8"}"#,
            r#"{"id": "two"}"#,
            r#"{"id": 4, "postcode": "x"}"#,
            "[1]",
            "null",
            "",
            r#"{"id": 8}{"id": 9}"#,
            r#"{"id": 5, "postcode": "9"}"#,
            &large,
            "{\"id\": 6, \"name\": 1}",
        ]);
        records.push_record(2, 200, None, None, None);
        records.push_record(2, 201, None, None, Some(b"{\"postcode\": \"\xff\"}"));
        records.push_record(
            2,
            202,
            None,
            None,
            Some(b"{\"id\": 7, \"postcode\": \"10\"}"),
        );
        let mut transform =
            transform("SELECT id, CAST(postcode AS INT) AS code, name.first AS f FROM records");
        let transformed = transform.run(&records).unwrap();
        let good: Vec<_> = transformed
            .rows
            .iter()
            .flat_map(|rows| rows.records.clone())
            .collect();
        assert_eq!(good, [0, 9, 14]);
        let mut rejected = transformed.rejected;
        rejected.sort_by_key(|rejected| rejected.record);
        let reasons: Vec<_> = rejected
            .iter()
            .map(|rejected| format!("{}: {}", rejected.record, rejected.reason))
            .collect();
        insta::assert_snapshot!(reasons.join("\n"), @r#"
        1: the record isn't one JSON object
        2: the record isn't JSON: Encountered unexpected ',' whilst parsing value
        3: the record doesn't fit the schema: whilst decoding field 'id': failed to parse two as Int64
        4: column `code`: Cannot cast string 'x' to value of Int32 type
        5: the record doesn't fit the schema: expected { got [1]
        6: the record doesn't fit the schema: expected { got null
        7: the record isn't one JSON object
        8: the record isn't one JSON object
        10: the record has 1,048,601 bytes, the limit is 1,048,576
        11: the record doesn't fit the schema: whilst decoding field 'name': expected { got 1
        12: the record has no value
        13: the record doesn't fit the schema: Encountered non-UTF-8 data
        "#);
        // The decoder is whole again.
        let again = transform
            .run(&batch(&[r#"{"id": 1, "postcode": "7"}"#]))
            .unwrap();
        assert_eq!(again.rows[0].records, [0]);
    }

    #[test]
    fn a_query_may_read_nothing_of_the_record() {
        let records = batch(&["{}", "{\"id\": 1}", "{"]);
        let transformed = transform("SELECT _offset AS o FROM records")
            .run(&records)
            .unwrap();
        assert_eq!(
            transformed
                .rows
                .iter()
                .map(|rows| rows.records.len())
                .sum::<usize>(),
            2
        );
        assert_eq!(transformed.rejected.len(), 1);
    }
}
