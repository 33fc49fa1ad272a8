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

use crate::{assert_told, execute::decoded, users};

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

/// The rows as JSON, a line each; or what failed.
fn rows(sql: &str) -> String {
    match execute(sql) {
        Ok(batch) => {
            let mut writer = ArrayWriter::new(Vec::new());
            writer.write(&batch).unwrap();
            writer.finish().unwrap();
            let rows = String::from_utf8(writer.into_inner()).unwrap();
            rows.replace("},{", "}\n    {")
        }
        Err(told) => told,
    }
}

#[test]
fn a_record_meets_the_row_that_has_its_key() {
    assert_told!(
        [
            "SELECT r.visits, c.name FROM records r LEFT JOIN countries c ON r.gender = c.code",
            "SELECT visits, countries.name AS name FROM records JOIN countries ON code = records.gender",
            "SELECT visits, c.name FROM records r INNER JOIN countries c ON upper(r.gender) = c.code WHERE c.name IS NOT NULL",
            "SELECT visits FROM records r JOIN countries c ON r.gender = c.code WHERE _offset > 100",
            "SELECT visits, c.geo.lat AS lat, c.area - visits AS rest FROM records LEFT JOIN countries AS c ON visits = c.area",
            "SELECT visits, w.text FROM records r JOIN countries c ON r.gender = c.code LEFT JOIN words w ON w.lang = c.lang AND w.word = 'hello'",
            "SELECT visits, a.name AS a, b.name AS b FROM records r LEFT JOIN countries a ON r.gender = a.code LEFT JOIN countries b ON (upper(r.gender)) = (lower(upper(b.code)))",
            "SELECT visits, w.* FROM records r JOIN words w ON r.name.first = w.lang AND w.word = r.gender",
            "SELECT visits FROM records r LEFT JOIN countries c ON r.gender = c.code WHERE c.code IS NULL",
            "SELECT coalesce(c.name, '?') AS name, CASE WHEN c.area > 400 THEN 'large' ELSE 'small' END AS size FROM records r LEFT JOIN countries c ON r.gender = c.code",
            // Not unique.
            "SELECT visits FROM records r JOIN countries c ON r.gender = c.lang",
            "SELECT visits FROM records r JOIN words w ON r.gender = w.lang",
        ],
        rows
    );
}

#[test]
fn says_what_is_wrong_with_a_join() {
    assert_told!(
        [
            "SELECT visits FROM records r JOIN country c ON r.gender = c.code",
            "SELECT visits FROM records r JOIN elsewhere c ON r.gender = c.code",
            "SELECT r.visits FROM records r JOIN records s ON r.gender = s.gender",
            "SELECT visits FROM records r RIGHT JOIN countries c ON r.gender = c.code",
            "SELECT visits FROM records r FULL JOIN countries c ON r.gender = c.code",
            "SELECT visits FROM records r CROSS JOIN countries c",
            "SELECT visits FROM records r JOIN countries c USING (gender)",
            "SELECT visits FROM records r NATURAL JOIN countries c",
            "SELECT visits FROM records r JOIN countries c",
            "SELECT visits FROM records r JOIN (SELECT 1) c ON true",
            "SELECT visits FROM records r JOIN a.countries c ON r.gender = c.code",
            "SELECT visits FROM records r JOIN LATERAL countries c ON r.gender = c.code",
            "SELECT visits FROM records r, countries c WHERE r.gender = c.code",
            "SELECT visits FROM countries c JOIN records r ON r.gender = c.code",
            "SELECT visits FROM records r JOIN countries c ON r.gender < c.code",
            "SELECT visits FROM records r JOIN countries c ON r.gender = c.code OR r.gender = c.name",
            "SELECT visits FROM records r JOIN countries c ON r.gender = r.gender",
            "SELECT visits FROM records r JOIN countries c ON c.code = c.name",
            "SELECT visits FROM records r JOIN countries c ON r.gender || c.code = c.name",
            "SELECT visits FROM records r JOIN countries c ON 1 = 1",
            "SELECT visits FROM records r JOIN countries c ON r.visits = c.code",
            "SELECT visits FROM records r JOIN countries c ON r.tags = c.geo",
            "SELECT visits FROM records r JOIN countries c ON count(*) = c.area",
            "SELECT visits FROM records r JOIN countries c ON random() = c.area",
            "SELECT visits FROM records r JOIN countries c ON r.gender = c.cod",
            "SELECT visits, c.nam FROM records r JOIN countries c ON r.gender = c.code",
            "SELECT gender FROM records r JOIN countries c ON r.gender = c.code",
            "SELECT r.gender, x.code FROM records r JOIN countries c ON r.gender = c.code",
            "SELECT c.geo.lat.x AS x FROM records r JOIN countries c ON r.gender = c.code",
            "SELECT c.geo AS geo FROM records r JOIN countries c ON r.gender = c.code",
            "SELECT visits FROM records r JOIN countries r ON r.gender = r.code",
            "SELECT visits FROM records r JOIN countries c ON r.gender = c.code JOIN words C ON C.word = r.gender",
            "SELECT visits FROM records r JOIN countries name ON r.gender = name.code",
            "SELECT visits FROM records r JOIN words w ON w.lang = c.lang JOIN countries c ON r.gender = c.code",
            "SELECT r.gender, count(*) AS n FROM records r JOIN countries c ON r.gender = c.code GROUP BY r.gender",
            "SELECT count(*) AS n FROM records r\nLEFT JOIN countries c ON r.gender = c.code",
        ],
        |sql| match plan(sql) {
            Ok(plan) => format!("is accepted as {:?}", plan.columns),
            Err(told) => told,
        }
    );
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
