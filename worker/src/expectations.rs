//! Rows are held to the sink's expectations.

use std::collections::BTreeMap;

use datafusion::arrow::{array::BooleanArray, compute::filter_record_batch, error::ArrowError};
use millstream_api::pipeline::OnFailure;
use millstream_plan::Expectations;

use crate::{
    batch::{Batch, Rejected},
    transform::{Rows, Transformed},
};

/// A row that failed an expectation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failed {
    /// Index of its record in the batch.
    pub record: usize,
    /// Index of the expectation.
    pub rule: usize,
}

/// The record before which the sink stops.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stop {
    /// Index of the record in the batch.
    pub record: usize,
    /// Why, in one sentence and without values: it is shown in the status.
    pub reason: String,
}

/// Takes the rows that fail out of what was transformed, and says what becomes of their records.
pub fn hold(
    expectations: &Expectations,
    batch: &Batch,
    transformed: &mut Transformed,
) -> Result<(), ArrowError> {
    let mut reasons = BTreeMap::<usize, Vec<String>>::new();
    let mut stop: Option<Stop> = None;
    for rows in &mut transformed.rows {
        let mut held = vec![true; rows.records.len()];
        for (index, rule) in expectations.rules().iter().enumerate() {
            for failure in rule.failures(&rows.columns) {
                held[failure.row] = false;
                let record = rows.records[failure.row];
                transformed.failed.push(Failed {
                    record,
                    rule: index,
                });
                match rule.on_failure {
                    OnFailure::Drop => {}
                    OnFailure::DeadLetter => {
                        let reason = rule.reason(&rows.columns, &failure);
                        reasons.entry(record).or_default().push(reason);
                    }
                    OnFailure::Fail if stop.as_ref().is_none_or(|stop| record < stop.record) => {
                        let reason = fails(batch, record, &rule.name, &rule.check);
                        stop = Some(Stop { record, reason });
                    }
                    OnFailure::Fail => {}
                }
            }
        }
        if held.contains(&false) {
            rows.columns = filter_record_batch(&rows.columns, &BooleanArray::from(held.clone()))?;
            let mut held = held.into_iter();
            rows.records.retain(|_| held.next().unwrap_or(false));
        }
    }
    let dead = reasons
        .into_iter()
        .map(|(record, reasons)| Rejected::new(record, reasons.join("; ")));
    transformed.rejected.extend(dead);
    if let Some(stop) = stop {
        cut(transformed, stop);
    }
    Ok(())
}

fn fails(batch: &Batch, record: usize, name: &str, check: &str) -> String {
    let record = &batch.records()[record];
    format!(
        "the record at partition {}, offset {} fails the expectation `{name}`: {check}; the sink stands still before it until the pipeline is changed",
        record.partition, record.offset
    )
}

/// Leaves what comes before the record at which the sink stops.
fn cut(transformed: &mut Transformed, stop: Stop) {
    for Rows { columns, records } in &mut transformed.rows {
        // Rows are in the order of their records.
        let before = records.partition_point(|record| *record < stop.record);
        *columns = columns.slice(0, before);
        records.truncate(before);
    }
    transformed
        .rejected
        .retain(|rejected| rejected.record < stop.record);
    transformed
        .failed
        .retain(|failed| failed.record < stop.record);
    transformed.stop = Some(stop);
}

#[cfg(test)]
mod tests {
    use datafusion::arrow::{array::AsArray, datatypes::Int64Type};
    use millstream_api::pipeline::Expectation;
    use millstream_plan::{RecordSchema, SinkPlan};

    use super::*;
    use crate::transform::Transform;

    fn transformed(records: &[&str], expectations: &[(&str, &str, OnFailure)]) -> Transformed {
        let schema = RecordSchema::parse("id BIGINT, age INT").unwrap();
        let plan = SinkPlan::new(&schema, "users", "SELECT id, age FROM records").unwrap();
        let expectations: Vec<_> = expectations
            .iter()
            .map(|(name, check, on_failure)| Expectation {
                name: (*name).into(),
                check: (*check).into(),
                on_failure: *on_failure,
            })
            .collect();
        let expectations = Expectations::new(&plan, &expectations).unwrap();
        let mut batch = Batch::default();
        for (offset, record) in (100..).zip(records) {
            batch.push_record(2, offset, None, None, Some(record.as_bytes()));
        }
        let mut transform = Transform::new(&plan).unwrap().expecting(expectations);
        transform.run(&batch).unwrap()
    }

    fn ids(transformed: &Transformed) -> Vec<i64> {
        let rows = transformed.rows.iter();
        rows.flat_map(|rows| {
            let ids = rows.columns.column(0).as_primitive::<Int64Type>();
            assert_eq!(ids.len(), rows.records.len());
            ids.values().to_vec()
        })
        .collect()
    }

    const RECORDS: [&str; 6] = [
        r#"{"id": 0, "age": 20}"#,
        r#"{"id": 1, "age": -1}"#,
        "no record",
        r#"{"id": 3}"#,
        r#"{"id": 4, "age": 300}"#,
        r#"{"id": 5, "age": 7}"#,
    ];

    #[test]
    fn the_strictest_of_what_is_asked_for_is_done() {
        use OnFailure::{DeadLetter, Drop, Fail};
        let told = transformed(
            &RECORDS,
            &[
                ("positive", "age > 0", Drop),
                ("known", "age IS NOT NULL", DeadLetter),
            ],
        );
        assert_eq!(ids(&told), [0, 4, 5]);
        let rejected: Vec<_> = told.rejected.iter().map(|dead| dead.record).collect();
        assert_eq!(rejected, [2, 3]);
        assert_eq!(
            told.rejected[1].reason,
            "expectation `known` failed: age IS NOT NULL, with age = null"
        );
        assert_eq!((told.failed.len(), told.stop), (3, None));

        let told = transformed(
            &RECORDS,
            &[
                ("positive", "age > 0", DeadLetter),
                ("human", "age < 150", Fail),
                ("known", "age IS NOT NULL", Drop),
            ],
        );
        // `human` fails for record 3, where it is null, before it does for 4.
        assert_eq!(ids(&told), [0]);
        let rejected: Vec<_> = told.rejected.iter().map(|dead| dead.record).collect();
        assert_eq!(rejected, [2, 1]);
        assert_eq!(told.failed, [Failed { record: 1, rule: 0 }]);
        let stop = told.stop.unwrap();
        assert_eq!(stop.record, 3);
        assert!(stop.reason.contains("partition 2, offset 103"), "{stop:?}");
    }
}
