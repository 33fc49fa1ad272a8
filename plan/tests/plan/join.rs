use std::{collections::BTreeMap, io::Cursor, sync::Arc};

use datafusion::arrow::{
    array::{AsArray, RecordBatch},
    datatypes::{Int64Type, UInt32Type},
    json::{ArrayWriter, ReaderBuilder},
};
use millstream_plan::{
    Lookup, LookupPlan, LookupTable, Lookups, ROW_COLUMN, RecordSchema, SinkPlan,
};
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::{execute::decoded, users};

/// Two lookups: of countries, and of words in languages.
pub fn lookups() -> Vec<Lookup> {
    let countries = "code TEXT, name TEXT, lang TEXT, area BIGINT, geo STRUCT<lat DOUBLE>, gender TEXT, id UUID";
    let words = "lang TEXT, word TEXT, text TEXT";
    [("countries", countries), ("words", words)]
        .map(|(name, schema)| Lookup::new(name, schema).unwrap())
        .into()
}

const COUNTRIES: &str = r#"
{"code":"DE","name":"Germany","lang":"de","area":357,"geo":{"lat":51.0}}
{"code":"FR","name":"France","lang":"fr","area":543}
{"code":"XX","name":null,"lang":"fr"}
{"name":"nobody's"}
{"name":"nobody's either"}
"#;
const WORDS: &str = r#"
{"lang":"de","word":"hello","text":"Hallo"}
{"lang":"fr","word":"hello","text":"Bonjour"}
{"lang":"de","word":"bye","text":"Tschüss"}
"#;
const RECORDS: &str = r#"
{"gender":"DE","visits":1,"name":{"first":"a"}}
{"gender":"fr","visits":2}
{"gender":null,"visits":357}
{"gender":"XX","visits":4}
{"gender":"FR","visits":543}
"#;

fn plan(sql: &str) -> Result<SinkPlan, String> {
    SinkPlan::joining(&users(), &lookups(), "s", sql).map_err(|error| error.to_string())
}

fn table(lookup: &Lookup, plan: &SinkPlan, rows: &str) -> Result<LookupTable, String> {
    let plan = LookupPlan::new(lookup, [plan]).unwrap();
    let text = Cursor::new(rows.trim().to_owned());
    let mut reader = ReaderBuilder::new(plan.columns().clone())
        .build(text)
        .unwrap();
    let rows = reader.next().unwrap().unwrap();
    plan.table(rows).map_err(|error| error.to_string())
}

/// What there is of each lookup that a query joins.
fn loaded(plan: &SinkPlan) -> Result<Lookups, String> {
    let tables = lookups().into_iter().zip([COUNTRIES, WORDS]);
    let joined = tables.filter(|(lookup, _)| plan.lookups().any(|name| name == lookup.name));
    let tables = joined.map(|(lookup, rows)| {
        let table = table(&lookup, plan, rows)?;
        Ok((lookup.name, Arc::new(table)))
    });
    tables.collect()
}

fn execute(sql: &str) -> Result<RecordBatch, String> {
    let plan = plan(sql)?;
    let mut executor = plan.executor();
    executor.set_lookups(loaded(&plan)?);
    let result = executor.execute(&decoded(&plan, RECORDS));
    result.map_err(|error| error.to_string())
}

/// The rows as JSON, without nulls.
fn rows(sql: &str) -> Value {
    let batch = execute(sql).unwrap_or_else(|told| panic!("{sql}: {told}"));
    let mut writer = ArrayWriter::new(Vec::new());
    writer.write(&batch).unwrap();
    writer.finish().unwrap();
    serde_json::from_slice(&writer.into_inner()).unwrap()
}

#[test]
fn a_record_meets_the_row_that_has_its_key() {
    for (sql, expected) in [
        (
            "SELECT r.visits, c.name FROM records r LEFT JOIN countries c ON r.gender = c.code",
            json!([
                {"visits": 1, "name": "Germany", "_row": 0},
                {"visits": 2, "_row": 1},
                {"visits": 357, "_row": 2},
                {"visits": 4, "_row": 3},
                {"visits": 543, "name": "France", "_row": 4},
            ]),
        ),
        (
            "SELECT visits, countries.name AS name FROM records JOIN countries ON code = records.gender",
            json!([
                {"visits": 1, "name": "Germany", "_row": 0},
                {"visits": 4, "_row": 3},
                {"visits": 543, "name": "France", "_row": 4},
            ]),
        ),
        (
            "SELECT visits, c.name FROM records r INNER JOIN countries c ON upper(r.gender) = c.code WHERE c.name IS NOT NULL",
            json!([
                {"visits": 1, "name": "Germany", "_row": 0},
                {"visits": 2, "name": "France", "_row": 1},
                {"visits": 543, "name": "France", "_row": 4},
            ]),
        ),
        (
            "SELECT visits FROM records r JOIN countries c ON r.gender = c.code WHERE _offset > 100",
            json!([{"visits": 4, "_row": 3}, {"visits": 543, "_row": 4}]),
        ),
        (
            "SELECT visits, c.geo.lat AS lat, c.area - visits AS rest FROM records LEFT JOIN countries AS c ON visits = c.area",
            json!([
                {"visits": 1, "_row": 0},
                {"visits": 2, "_row": 1},
                {"visits": 357, "lat": 51.0, "rest": 0, "_row": 2},
                {"visits": 4, "_row": 3},
                {"visits": 543, "rest": 0, "_row": 4},
            ]),
        ),
        (
            "SELECT visits, w.text FROM records r JOIN countries c ON r.gender = c.code LEFT JOIN words w ON w.lang = c.lang AND w.word = 'hello'",
            json!([
                {"visits": 1, "text": "Hallo", "_row": 0},
                {"visits": 4, "text": "Bonjour", "_row": 3},
                {"visits": 543, "text": "Bonjour", "_row": 4},
            ]),
        ),
        (
            "SELECT a.name AS a, b.name AS b FROM records r JOIN countries a ON r.gender = a.code LEFT JOIN countries b ON (r.gender) = (lower(upper(b.code)))",
            json!([{"a": "Germany", "_row": 0}, {"_row": 3}, {"a": "France", "_row": 4}]),
        ),
        (
            "SELECT visits, w.* FROM records r JOIN words w ON r.name.first = w.lang AND w.word = r.gender",
            json!([]),
        ),
        (
            "SELECT visits FROM records r LEFT JOIN countries c ON r.gender = c.code WHERE c.code IS NULL",
            json!([{"visits": 2, "_row": 1}, {"visits": 357, "_row": 2}]),
        ),
        (
            "SELECT coalesce(c.name, '?') AS name, CASE WHEN c.area > 400 THEN 'large' ELSE 'small' END AS size FROM records r LEFT JOIN countries c ON r.gender = c.code WHERE visits > 100",
            json!([
                {"name": "?", "size": "small", "_row": 2},
                {"name": "France", "size": "large", "_row": 4},
            ]),
        ),
    ] {
        assert_eq!(rows(sql), expected, "{sql}");
    }
}

/// The engine's nanoseconds end in the year 2262.
#[test]
fn times_meet_dates_however_far_they_are() {
    let days = Lookup::new("days", "day DATE, name TEXT").unwrap();
    let sql = "SELECT d.name FROM records r JOIN days d ON r.registered.date = d.day";
    let plan = SinkPlan::joining(&users(), std::slice::from_ref(&days), "s", sql).unwrap();
    let rows = table(&days, &plan, r#"{"day":"9999-12-31","name":"the last"}"#).unwrap();
    let mut executor = plan.executor();
    executor.set_lookups([("days".to_owned(), Arc::new(rows))].into_iter().collect());
    let record = r#"{"registered":{"date":"9999-12-31T00:00:00Z"}}"#;
    let joined = executor.execute(&decoded(&plan, record)).unwrap();
    assert_eq!(joined.column(0).as_string::<i32>().value(0), "the last");
}

#[test]
fn a_key_is_there_once() {
    for (on, says) in [
        (
            "countries l ON r.gender = l.lang",
            "`l.lang` is `fr` in two rows",
        ),
        (
            "words l ON r.gender = l.lang",
            "`l.lang` is `de` in two rows",
        ),
    ] {
        let told = execute(&format!("SELECT visits FROM records r JOIN {on}")).unwrap_err();
        assert!(told.contains(says), "{told}");
    }
}

#[test]
fn says_what_is_wrong_with_a_join() {
    for (from, says) in [
        (
            "JOIN country c ON r.gender = c.code",
            "no lookup `country` in spec.lookups",
        ),
        (
            "JOIN records s ON r.gender = s.gender",
            "can't be joined with themselves",
        ),
        (
            "RIGHT JOIN countries c ON r.gender = c.code",
            "RIGHT JOIN is not supported",
        ),
        (
            "FULL JOIN countries c ON r.gender = c.code",
            "FULL JOIN is not supported",
        ),
        ("CROSS JOIN countries c", "CROSS JOIN is not supported"),
        ("JOIN countries c USING (gender)", "USING is not supported"),
        ("NATURAL JOIN countries c", "NATURAL JOIN is not supported"),
        ("JOIN countries c", "a JOIN without ON is not supported"),
        (
            "JOIN (SELECT 1) c ON true",
            "a query or a function after FROM",
        ),
        (
            "JOIN a.countries c ON r.gender = c.code",
            "a table in a schema",
        ),
        (", countries c WHERE r.gender = c.code", "a second table"),
        (
            "JOIN countries c ON r.gender < c.code",
            "after ON come equalities",
        ),
        (
            "JOIN countries c ON r.gender = c.code OR r.gender = c.name",
            "after ON come equalities",
        ),
        (
            "JOIN countries c ON r.gender = r.gender",
            "one side of = must be of `c` alone",
        ),
        (
            "JOIN countries c ON c.code = c.name",
            "one side of = must be of `c` alone",
        ),
        (
            "JOIN countries c ON r.gender || c.code = c.name",
            "one side of = must be of `c` alone",
        ),
        (
            "JOIN countries c ON 1 = 1",
            "one side of = must be of `c` alone",
        ),
        (
            "JOIN countries c ON r.visits = c.code",
            "BIGINT and TEXT can't be compared",
        ),
        (
            "JOIN countries c ON r.tags = c.geo",
            "after ON a key takes single values, and this is ARRAY<TEXT>",
        ),
        (
            "JOIN countries c ON count(*) = c.area",
            "count() can't stand in ON",
        ),
        ("JOIN countries c ON random() = c.area", "random() differs"),
        (
            "JOIN countries c ON r.gender = c.cod",
            "no column `cod` in the lookup `countries`; did you mean `code`?",
        ),
        (
            "JOIN countries r ON r.gender = r.code",
            "`r` stands for two tables",
        ),
        (
            "JOIN countries c ON r.gender = c.code JOIN words C ON C.word = r.gender",
            "`c` stands for two tables",
        ),
        (
            "JOIN countries name ON r.gender = name.code",
            "`name` is a field of the records",
        ),
        (
            "JOIN words w ON w.lang = c.lang JOIN countries c ON r.gender = c.code",
            "no column `c`",
        ),
    ] {
        let told = plan(&format!("SELECT visits FROM records r {from}")).unwrap_err();
        assert!(told.contains(says), "{from}: {told}");
    }
    for (select, says) in [
        (
            "c.nam",
            "no column `nam` in the lookup `countries`; did you mean `name`?",
        ),
        ("gender", "`gender` could be any of r.gender, c.gender"),
        ("r.gender, x.code", "no column `x`"),
        ("c.geo.lat.x AS x", "which has no field `x`"),
        ("c.geo AS geo", "which no CQL type can take"),
        ("count(*) AS n", "can't follow a JOIN"),
    ] {
        let sql = format!("SELECT {select} FROM records r JOIN countries c ON r.gender = c.code");
        let told = plan(&sql).unwrap_err();
        assert!(told.contains(says), "{select}: {told}");
    }
    let grouped = "SELECT r.gender, count(*) AS n FROM records r LEFT JOIN countries c ON r.gender = c.code GROUP BY r.gender";
    let told = plan(grouped).unwrap_err();
    assert!(told.contains("can't follow a JOIN"), "{told}");
    let many = "JOIN countries c ON r.gender = c.code ".repeat(9);
    let told = plan(&format!("SELECT visits FROM records r {many}")).unwrap_err();
    assert!(told.contains("more than 8 lookups"), "{told}");
}

/// A value of a lookup is no field of the record: no key of the topic follows from it.
#[test]
fn columns_keep_their_types_and_are_no_fields_of_the_record() {
    let plan =
        plan("SELECT c.id, c.area, r.gender FROM records r JOIN countries c ON r.gender = c.code")
            .unwrap();
    let told = plan.columns.iter().map(|column| {
        let path = column.path.as_ref().map(|path| path.join("/"));
        (column.name.as_str(), column.cql_type.to_string(), path)
    });
    let told: Vec<_> = told.collect();
    assert_eq!(told[0], ("id", "uuid".to_owned(), None));
    assert_eq!(told[1], ("area", "bigint".to_owned(), None));
    assert_eq!(told[2].2.as_deref(), Some("gender"));
    let record: Vec<_> = plan.record_schema().fields().iter().cloned().collect();
    assert_eq!(record.len(), 1, "{record:?}");
    let lookup = LookupPlan::new(&lookups()[0], [&plan]).unwrap();
    let names: Vec<_> = lookup
        .columns()
        .fields()
        .iter()
        .map(|field| field.name().clone())
        .collect();
    assert_eq!(names, ["code", "area", "id"]);
    assert!(LookupPlan::new(&lookups()[1], [&plan]).is_none());
}

#[test]
fn nothing_is_joined_before_the_lookup_is_there() {
    let plan =
        plan("SELECT visits FROM records r LEFT JOIN countries c ON r.gender = c.code").unwrap();
    let batch = decoded(&plan, RECORDS);
    let told = plan.executor().execute(&batch).unwrap_err().to_string();
    assert!(told.contains("`countries` isn't loaded"), "{told}");
}

#[test]
fn a_lookup_serves_queries_with_keys_of_their_own() {
    let by_code = plan("SELECT c.name FROM records r JOIN countries c ON r.gender = c.code");
    let by_area = plan("SELECT c.name FROM records r JOIN countries c ON r.visits = c.area");
    let plans = [by_code.unwrap(), by_area.unwrap()];
    let lookup = LookupPlan::new(&lookups()[0], &plans).unwrap();
    let text = Cursor::new(COUNTRIES.trim());
    let mut reader = ReaderBuilder::new(lookup.columns().clone())
        .build(text)
        .unwrap();
    let table = Arc::new(lookup.table(reader.next().unwrap().unwrap()).unwrap());
    assert_eq!(table.rows(), 5);
    assert!(table.bytes() > 100);
    for (plan, found) in plans.iter().zip([3, 2]) {
        let mut executor = plan.executor();
        executor.set_lookups(Lookups::from([("countries".to_owned(), table.clone())]));
        let rows = executor.execute(&decoded(plan, RECORDS)).unwrap();
        assert_eq!(rows.num_rows(), found);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    /// Against a join in a map.
    #[test]
    fn joins_as_a_map_does(
        table in proptest::collection::btree_map(0i64..20, any::<i64>(), 1..20),
        records in proptest::collection::vec(proptest::option::of(0i64..25), 1..50),
        left in any::<bool>(),
    ) {
        let schema = RecordSchema::parse("k INT").unwrap();
        let lookup = Lookup::new("t", "k BIGINT, v BIGINT").unwrap();
        let kind = if left { "LEFT JOIN" } else { "JOIN" };
        let sql = format!("SELECT t.v FROM records r {kind} t ON r.k = t.k");
        let plan = SinkPlan::joining(&schema, std::slice::from_ref(&lookup), "s", &sql).unwrap();
        let rows = table.iter().map(|(k, v)| format!("{{\"k\":{k},\"v\":{v}}}"));
        let rows: Vec<_> = rows.collect();
        let loaded = self::table(&lookup, &plan, &rows.join("\n")).unwrap();
        let mut executor = plan.executor();
        executor.set_lookups(BTreeMap::from([("t".to_owned(), Arc::new(loaded))]));
        let text = records.iter().map(|k| match k {
            Some(k) => format!("{{\"k\":{k}}}\n"),
            None => "{}\n".to_owned(),
        });
        let result = executor.execute(&decoded(&plan, &text.collect::<String>())).unwrap();
        let values = result.column(0).as_primitive::<Int64Type>();
        let index = result.column_by_name(ROW_COLUMN).unwrap();
        let index = index.as_primitive::<UInt32Type>().values().to_vec();
        let found: Vec<_> = index.into_iter().zip(values).collect();
        let expected = (0u32..).zip(&records).filter_map(|(row, k)| {
            let value = k.and_then(|k| table.get(&k).copied());
            (left || value.is_some()).then_some((row, value))
        });
        prop_assert_eq!(found, expected.collect::<Vec<_>>());
    }
}
