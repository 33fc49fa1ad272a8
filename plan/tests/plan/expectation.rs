use std::sync::Arc;

use datafusion::arrow::{
    array::{ArrayRef, Float64Array, Int64Array, RecordBatch, StringArray},
    datatypes::{Field, Schema},
};
use millstream_api::pipeline::{Expectation, OnFailure};
use millstream_plan::{Expectations, PlanError};

use crate::{assert_told, plan};

const SQL: &str = "SELECT login.uuid AS id, upper(gender) AS sex, visits, score FROM records";

fn expectations(check: &str) -> Result<Expectations, PlanError> {
    let expectation = Expectation {
        name: "sound".into(),
        check: check.into(),
        on_failure: OnFailure::Drop,
    };
    Expectations::new(&plan(SQL), &[expectation])
}

/// Rows as the query would give them.
fn rows() -> RecordBatch {
    let columns: [ArrayRef; 4] = [
        Arc::new(StringArray::from_iter_values(["a", "b", "c", "d"])),
        Arc::new(StringArray::from(vec![
            Some("MALE"),
            None,
            Some("7"),
            Some(""),
        ])),
        Arc::new(Int64Array::from(vec![Some(1), Some(0), None, Some(-4)])),
        Arc::new(Float64Array::from(vec![1.5, 2.5, f64::NAN, 0.0])),
    ];
    let fields = plan(SQL).columns.into_iter().zip(&columns);
    let fields =
        fields.map(|(column, array)| Field::new(column.name, array.data_type().clone(), true));
    let schema = Schema::new(fields.collect::<Vec<_>>());
    RecordBatch::try_new(Arc::new(schema), columns.to_vec()).unwrap()
}

fn failures(check: &str) -> String {
    let rows = rows();
    let expectations = expectations(check).unwrap_or_else(|error| panic!("{check}: {error}"));
    let rule = &expectations.rules()[0];
    let failures = rule.failures(&rows);
    let told = failures
        .iter()
        .map(|failure| format!("row {}: {}", failure.row, rule.reason(&rows, failure)));
    told.collect::<Vec<_>>().join("\n    ")
}

#[test]
fn rows_fail_where_the_check_is_not_true() {
    assert_told!(
        [
            "sex IS NOT NULL",
            // Null isn't true.
            "visits >= 0",
            "visits IS NULL OR visits >= 0",
            "SEX IN ('MALE', 'FEMALE') AND \"visits\" BETWEEN 0 AND 10",
            "true",
            "1 > 2",
            "isnan(score) = false",
            // One row's error is that row's failure.
            "10 / visits > 0",
            "CAST(sex AS INT) = 7",
            "length(coalesce(sex, 'none')) > 0",
        ],
        failures
    );
}

/// The engine trusts in the types that it planned for, and panics over others.
#[test]
fn a_panic_is_a_failure_too() {
    let expectation = Expectation {
        name: "sound".into(),
        check: "CASE WHEN active THEN visits END > 1".into(),
        on_failure: OnFailure::Drop,
    };
    let plan = plan("SELECT active, visits FROM records");
    let expectations = Expectations::new(&plan, &[expectation]).unwrap();
    let numbers: ArrayRef = Arc::new(Int64Array::from(vec![7]));
    let rows = [("active", Arc::clone(&numbers)), ("visits", numbers)];
    let rows = RecordBatch::try_from_iter(rows).unwrap();
    let failures = expectations.rules()[0].failures(&rows);
    assert_eq!(failures.len(), 1);
    let error = failures[0].error.as_deref().unwrap_or_default();
    assert!(error.contains("can't compute it"), "{error}");
}

#[test]
fn says_what_is_wrong_and_where() {
    assert_told!(
        [
            "visit > 0",
            "visits > 0 AND\n  gender = 'male'",
            "login.uuid = 'a'",
            "_offset > 1",
            "visits",
            "visits + 1",
            "sex > 1 AND",
            "visits > 0 GROUP BY sex",
            "visits > 0; DROP TABLE t",
            "SELECT visits FROM records",
            "visits IN (SELECT 1)",
            "EXISTS (SELECT 1)",
            "count(*) > 1",
            "now() > CAST('2020-01-01' AS TIMESTAMP)",
            "lenght(sex) > 1",
            "CAST(id AS UUID) = id",
            "visits AND true",
            "'open",
            "",
            "((((",
        ],
        |check| expectations(check).unwrap_err().to_string()
    );
}

#[test]
fn depth_is_bounded() {
    for deep in [
        format!("{}visits > 0{}", "(".repeat(5_000), ")".repeat(5_000)),
        vec!["visits > 0"; 5_000].join(" OR "),
        "NOT ".repeat(5_000) + "true",
    ] {
        let told = expectations(&deep).unwrap_err().to_string();
        assert!(told.contains("too deep"), "{told}");
    }
}

#[test]
fn groups_have_none() {
    let expectation = Expectation {
        name: "many".into(),
        check: "n > 1".into(),
        on_failure: OnFailure::Drop,
    };
    let groups = plan("SELECT gender, count(*) AS n FROM records GROUP BY gender");
    let told = Expectations::new(&groups, &[expectation])
        .unwrap_err()
        .to_string();
    assert!(
        told.contains("use WHERE for the records, HAVING for the groups"),
        "{told}"
    );
    assert!(Expectations::new(&groups, &[]).is_ok());
}
