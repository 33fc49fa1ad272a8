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
use millstream_plan::{ROW_COLUMN, SinkPlan, VirtualColumn};

use crate::{assert_told, plan};

const RECORDS: &str = r#"
{"gender":"female","name":{"first":"Zoé","last":"Ångström"},"login":{"uuid":"7a0eed16-9430-4d68-901f-c0d4c1c3bf00"},"visits":3,"tags":["a","b"],"items":[{"sku":"x","amount":2}],"price":"12.50","registered":{"date":"2020-02-29T12:00:00.123Z"}}
{"gender":null,"name":null,"login":{"uuid":"7a0eed16-9430-4d68-901f-c0d4c1c3bf01"},"visits":null}
{"gender":"male","name":{"first":"محمد"},"login":{"uuid":"7a0eed16-9430-4d68-901f-c0d4c1c3bf02"},"visits":40,"tags":[],"location":{"street":{"number":7}},"extra":{"not":"in the schema"}}
{}
"#;

/// Records as the worker decodes them: the columns that the plan reads, and the virtual ones.
pub fn decoded(plan: &SinkPlan, records: &str) -> RecordBatch {
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

/// The rows as JSON, a line each; or what failed.
fn rows(sql: &str) -> String {
    let plan = plan(sql);
    match plan.executor().execute(&decoded(&plan, RECORDS)) {
        Ok(batch) => {
            let mut writer = ArrayWriter::new(Vec::new());
            writer.write(&batch).unwrap();
            writer.finish().unwrap();
            let rows = String::from_utf8(writer.into_inner()).unwrap();
            rows.replace("},{", "}\n    {")
        }
        Err(error) => error.to_string(),
    }
}

#[test]
fn gives_rows_with_the_index_of_their_record() {
    assert_told!(
        [
            "SELECT login.uuid AS id, name.first || ' ' || name.last AS name, visits FROM records",
            "SELECT gender, visits * 2 AS twice FROM records WHERE visits > 10",
            "SELECT gender FROM records WHERE name IS NULL",
            "SELECT gender FROM records WHERE false",
            "SELECT _key AS k, _partition AS p, _offset AS o, _timestamp AS t FROM records WHERE _offset >= 101",
            "SELECT 1 AS one, 'x' AS text FROM records",
        ],
        rows
    );
}

#[test]
fn computes() {
    assert_told!(
        [
            "SELECT tags, tags[2] AS second, items[1].amount AS amount, cardinality(tags) AS n FROM records",
            "SELECT price, price * 2 AS twice, location.street.number FROM records",
            "SELECT registered.date AS at, date_trunc('day', registered.date) AS day, CAST(registered.date AS DATE) AS date FROM records WHERE visits = 3",
            "SELECT CAST('9999-12-31T00:00:00+02:00' AS TIMESTAMP) AS far FROM records WHERE visits = 3",
            // Functions that are but other words for something else.
            "SELECT coalesce(gender, name.first, '?') AS a, nvl(visits, 0) AS b, nullif(gender, 'male') AS c FROM records",
            "SELECT arrow_cast(visits, 'UInt64') AS a, arrow_cast(gender, 'LargeUtf8') AS b, to_timestamp('2024-01-01') AS c FROM records WHERE visits = 3",
            "SELECT greatest(visits, 10) AS a, concat(gender, '-', visits) AS b, md5(gender) AS c, regexp_replace(gender, 'e(.)', '<$1>') AS d FROM records",
            "SELECT gender LIKE 'f%' AS a, gender IN ('male', 'x') AS b, visits BETWEEN 1 AND 5 AS c, gender ~ 'a.e' AS d FROM records",
            "SELECT CASE gender WHEN 'male' THEN 'm' ELSE 'f' END AS g, extract(year FROM registered.date) AS year FROM records",
            "SELECT array_to_string(tags, '|') AS a, array_contains(tags, 'b') AS b, make_array(visits, 1) AS c FROM records",
            "SELECT TRY_CAST(gender AS INT) AS a, CAST(visits AS TEXT) AS b, trim(BOTH 'f' FROM gender) AS c, substring(gender FROM 2 FOR 3) AS d FROM records",
        ],
        rows
    );
}

#[test]
fn says_what_failed() {
    assert_told!(
        [
            "SELECT CAST(gender AS TIMESTAMP) AS at FROM records",
            "SELECT visits, CAST(gender AS INT) AS g FROM records",
            "SELECT CAST(visits + 9223372036854775800 AS BIGINT) AS v FROM records",
            "SELECT CAST(visits * 1000 AS SMALLINT) AS v FROM records",
            "SELECT visits / 0 AS v FROM records",
            "SELECT visits FROM records WHERE CAST(gender AS INT) > 1",
        ],
        rows
    );
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
    let told = executor.execute(&batch).unwrap_err().to_string();
    assert_eq!(
        told,
        "column `age`: Cannot cast string 'forty' to value of Int32 type"
    );
    assert_eq!(executor.execute(&batch.slice(0, 1)).unwrap().num_rows(), 1);
    assert!(executor.execute(&batch.slice(1, 1)).is_err());
    assert_eq!(executor.execute(&batch.slice(2, 1)).unwrap().num_rows(), 1);
}

/// The engine's nanoseconds end in the year 2262.
#[test]
fn times_are_compared_however_far_they_are() {
    let times = [
        "9999-12-31T23:59:59Z",
        "0001-01-01T00:00:00Z",
        "2024-06-01T00:00:00Z",
    ];
    let records = times.map(|at| format!(r#"{{"registered":{{"date":"{at}"}}}}"#));
    for (condition, found) in [
        ("> '2024-01-01'", &[0, 2][..]),
        ("<= DATE '2024-06-01'", &[1, 2]),
        ("> TIMESTAMP '2024-06-01'", &[0]),
        ("= TIMESTAMP '9999-12-31T23:59:59'", &[0]),
        ("IS DISTINCT FROM '2024-06-01'", &[0, 1]),
        ("BETWEEN '0001-01-01' AND '2024-06-01'", &[1, 2]),
        ("NOT IN ('0001-01-01', '9999-12-31T23:59:59Z')", &[2]),
    ] {
        let plan = plan(&format!(
            "SELECT registered.date AS at FROM records WHERE registered.date {condition}"
        ));
        let result = plan
            .executor()
            .execute(&decoded(&plan, &records.join("\n")));
        let result = result.unwrap_or_else(|error| panic!("{condition}: {error}"));
        let rows = result.column(1).as_primitive::<UInt32Type>();
        assert_eq!(rows.values(), found, "{condition}");
    }
}

#[test]
fn refuses_a_batch_without_its_columns() {
    let plan = plan("SELECT visits, gender FROM records");
    let wrong = decoded(&plan, RECORDS).project(&[0]).unwrap();
    let told = plan.executor().execute(&wrong).unwrap_err().to_string();
    assert!(told.contains("no column"), "{told}");
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
