use std::{io::Cursor, sync::Arc};

use datafusion::arrow::{
    array::{
        ArrayRef, AsArray, Int32Array, Int64Array, RecordBatch, RecordBatchOptions, StringArray,
        StructArray, TimestampMicrosecondArray, UInt32Array,
    },
    buffer::NullBuffer,
    datatypes::{DataType, Field, Fields, Schema, UInt32Type},
    json::{ArrayWriter, ReaderBuilder},
};
use insta::assert_snapshot;
use millstream_plan::{ROW_COLUMN, SinkPlan, VirtualColumn};

use crate::{plan, users};

const RECORDS: &str = r#"
{"gender":"female","name":{"first":"Zoé","last":"Ångström"},"login":{"uuid":"7a0eed16-9430-4d68-901f-c0d4c1c3bf00"},"visits":3,"tags":["a","b"],"items":[{"sku":"x","amount":2}],"price":"12.50","registered":{"date":"2020-02-29T12:00:00.123Z"}}
{"gender":null,"name":null,"login":{"uuid":"7a0eed16-9430-4d68-901f-c0d4c1c3bf01"},"visits":null}
{"gender":"male","name":{"first":"محمد"},"login":{"uuid":"7a0eed16-9430-4d68-901f-c0d4c1c3bf02"},"visits":40,"tags":[],"location":{"street":{"number":7}},"extra":{"not":"in the schema"}}
{}
"#;

/// Records as the worker decodes them: the columns that the plan reads, and the virtual ones.
fn decoded(plan: &SinkPlan, records: &str) -> RecordBatch {
    let records: Vec<&str> = records.lines().filter(|line| !line.is_empty()).collect();
    let record_schema = plan.record_schema();
    let mut columns: Vec<ArrayRef> = Vec::new();
    if !record_schema.fields().is_empty() {
        let text = Cursor::new(records.join("\n"));
        let mut reader = ReaderBuilder::new(record_schema).build(text).unwrap();
        columns.extend_from_slice(reader.next().unwrap().unwrap().columns());
    }
    let rows = records.len();
    for column in plan.virtual_columns() {
        columns.push(match column {
            VirtualColumn::Key => Arc::new(StringArray::from_iter(
                (0..rows).map(|row| (row > 0).then(|| format!("k{row}"))),
            )),
            VirtualColumn::Partition => Arc::new(Int32Array::from(vec![2; rows])),
            VirtualColumn::Offset => Arc::new(Int64Array::from_iter_values(100..100 + rows as i64)),
            VirtualColumn::Timestamp => Arc::new(
                TimestampMicrosecondArray::from(vec![1_700_000_000_000_000; rows])
                    .with_timezone("+00:00"),
            ),
        });
    }
    let options = RecordBatchOptions::new().with_row_count(Some(rows));
    RecordBatch::try_new_with_options(plan.input_schema(), columns, &options).unwrap()
}

/// The rows as JSON, a line each.
fn rows(sql: &str) -> String {
    let plan = plan(sql);
    let result = plan.executor().execute(&decoded(&plan, RECORDS)).unwrap();
    shown(&result)
}

fn shown(batch: &RecordBatch) -> String {
    let mut writer = ArrayWriter::new(Vec::new());
    writer.write(batch).unwrap();
    writer.finish().unwrap();
    String::from_utf8(writer.into_inner())
        .unwrap()
        .replace("},{", "}\n{")
}

#[test]
fn gives_rows_with_the_index_of_their_record() {
    assert_snapshot!(rows("SELECT login.uuid AS id, name.first || ' ' || name.last AS name, visits FROM records"), @"");
    assert_snapshot!(rows("SELECT gender, visits * 2 AS twice FROM records WHERE visits > 10"), @"");
    assert_snapshot!(rows("SELECT gender FROM records WHERE name IS NULL"), @"");
    assert_snapshot!(rows("SELECT gender FROM records WHERE false"), @"");
    assert_snapshot!(rows("SELECT _key AS k, _partition AS p, _offset AS o, _timestamp AS t FROM records WHERE _offset >= 101"), @"");
    assert_snapshot!(rows("SELECT 1 AS one, 'x' AS text FROM records"), @"");
}

#[test]
fn gives_every_type() {
    assert_snapshot!(rows(
        "SELECT tags, tags[2] AS second, items[1].amount AS amount, price, registered.date AS at, cardinality(tags) AS n, location.street.number, date_trunc('day', registered.date) AS day, CAST('9999-12-31T00:00:00+02:00' AS TIMESTAMP) AS far FROM records"
    ), @"");
}

#[test]
fn the_same_executor_takes_batches_of_every_size() {
    let plan = plan("SELECT visits, upper(gender) AS gender FROM records WHERE visits IS NOT NULL");
    let executor = plan.executor();
    let batch = decoded(&plan, RECORDS);
    let whole = executor.execute(&batch).unwrap();
    assert_eq!(whole.schema(), *executor.result_schema());
    assert_eq!(whole.num_rows(), 2);
    for row in 0..batch.num_rows() {
        let single = executor.execute(&batch.slice(row, 1)).unwrap();
        let expected = usize::from(row == 0 || row == 2);
        assert_eq!(single.num_rows(), expected, "row {row}");
        if expected == 1 {
            assert_eq!(
                single.column_by_name(ROW_COLUMN).unwrap().as_ref(),
                &UInt32Array::from(vec![0])
            );
        }
    }
    assert_eq!(executor.execute(&batch.slice(0, 0)).unwrap().num_rows(), 0);
}

#[test]
fn one_bad_value_fails_its_batch_and_is_found_by_halving() {
    let plan = plan("SELECT CAST(gender AS INT) AS age FROM records");
    let executor = plan.executor();
    let batch = decoded(
        &plan,
        "{\"gender\":\"1\"}\n{\"gender\":\"forty\"}\n{\"gender\":null}",
    );
    assert_snapshot!(executor.execute(&batch).unwrap_err(), @"");
    assert_eq!(executor.execute(&batch.slice(0, 1)).unwrap().num_rows(), 1);
    assert!(executor.execute(&batch.slice(1, 1)).is_err());
    assert_eq!(executor.execute(&batch.slice(2, 1)).unwrap().num_rows(), 1);
}

#[test]
fn says_what_failed() {
    let failure = |sql: &str, records: &str| {
        let plan = plan(sql);
        plan.executor()
            .execute(&decoded(&plan, records))
            .unwrap_err()
            .to_string()
    };
    let record = r#"{"gender":"not a date","visits":9223372036854775807}"#;
    assert_snapshot!(failure("SELECT CAST(gender AS TIMESTAMP) AS at FROM records", record), @"");
    assert_snapshot!(failure("SELECT CAST(visits AS INT) AS v FROM records", record), @"");
    assert_snapshot!(failure("SELECT visits / 0 AS v FROM records", record), @"");
    assert_snapshot!(failure("SELECT visits FROM records WHERE CAST(gender AS INT) > 1", record), @"");
    let plan = plan("SELECT visits, gender FROM records");
    let wrong = decoded(&plan, record).project(&[0]).unwrap();
    assert_snapshot!(plan.executor().execute(&wrong).unwrap_err(), @"");
}

/// Arrow allows values beneath a null struct; SQL has none there.
#[test]
fn a_field_of_a_null_struct_is_null() {
    let plan = plan("SELECT login.uuid AS id FROM records WHERE login.uuid IS NULL");
    let fields = Fields::from(vec![Field::new("uuid", DataType::Utf8, true)]);
    let login = StructArray::new(
        fields.clone(),
        vec![Arc::new(StringArray::from(vec!["a", "b"]))],
        Some(NullBuffer::from(vec![true, false])),
    );
    let schema = Schema::new(vec![Field::new("login", DataType::Struct(fields), true)]);
    let batch = RecordBatch::try_new(Arc::new(schema), vec![Arc::new(login)]).unwrap();
    let result = plan.executor().execute(&batch).unwrap();
    assert_eq!(result.column(0).null_count(), 1);
    assert_eq!(result.column(1).as_primitive::<UInt32Type>().values(), &[1]);
}

/// What the worker counts on: the types of the plan are the types of the result.
#[test]
fn result_types_are_the_planned_ones() {
    let sql = "SELECT length(gender) AS a, cardinality(tags) AS b, sha256(gender) AS c, now_is AS d, price * 2 AS e, arrow_cast(gender, 'LargeUtf8') AS f, arrow_cast(visits, 'UInt64') AS g FROM records";
    let sql = sql.replace("now_is", "to_timestamp('2024-01-01')");
    let plan = SinkPlan::new(&users(), "s", &sql).unwrap();
    let result = plan
        .executor()
        .execute(&decoded(&plan, "{\"visits\":1}"))
        .unwrap();
    for (column, found) in plan.columns.iter().zip(result.columns()) {
        assert_eq!(column.data_type, *found.data_type(), "{}", column.name);
    }
}
