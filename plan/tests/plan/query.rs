use datafusion::arrow::array::RecordBatch;
use millstream_plan::{RecordSchema, SinkPlan, VirtualColumn};

use crate::{assert_told, error, plan, users, verdict};

/// The columns as a person would put it: name, types, and what the column is nothing but.
fn columns(sql: &str) -> String {
    let columns = plan(sql).columns.into_iter().map(|column| {
        let plain = match (&column.path, column.virtual_column) {
            (Some(path), _) => format!(" = /{}", path.join("/")),
            (None, Some(known)) => format!(" = {}", known.name()),
            (None, None) => String::new(),
        };
        format!(
            "{}: {} {}{plain}",
            column.name, column.data_type, column.cql_type
        )
    });
    columns.collect::<Vec<_>>().join("\n    ")
}

fn reads(sql: &str) -> String {
    let schema = plan(sql).input_schema();
    let fields = schema
        .fields()
        .iter()
        .map(|field| format!("{} {}", field.name(), field.data_type()));
    fields.collect::<Vec<_>>().join("\n    ")
}

#[test]
fn resolves_names() {
    assert_told!(
        [
            "SELECT gender FROM records",
            "SELECT login.uuid AS id, name.first AS first_name FROM records",
            "SELECT login.uuid, location.street.number FROM records",
            "SELECT name['first'], location['street']['number'] AS number, location.street['name'] AS street FROM records",
            "SELECT r.login.uuid, r.gender FROM records AS r WHERE r.active",
            "SELECT records.login.uuid FROM Records",
            "select LOGIN.UUID as ID from RECORDS;",
            // Case: as written, or else the only one that differs by case alone.
            "SELECT location.postCode AS post_code FROM records",
            "SELECT location.postcode FROM records",
            "SELECT userName AS a, \"username\" AS b, USERNAME AS c FROM records",
            r#"SELECT "@id" AS id, "a/b~c"."d.e" AS odd FROM records"#,
            "SELECT (gender) AS gender, (location).city FROM records",
            "SELECT _key AS k, _partition AS p, _offset AS o, _timestamp AS t FROM records",
            "SELECT records._offset AS o FROM records",
        ],
        columns
    );
}

#[test]
fn gives_types() {
    assert_told!(
        [
            "SELECT small, visits, score, price, active, born, registered.date AS at, tags FROM records",
            "SELECT small + 1 AS a, small + small AS b, visits / 2 AS c, score * 2 AS d, price * 2 AS e FROM records",
            "SELECT upper(gender) AS a, name.first || ' ' || name.last AS b, length(gender) AS c FROM records",
            "SELECT tags[1] AS a, cardinality(tags) AS b, items[1].sku AS c, items[1]['amount'] AS d FROM records",
            "SELECT CAST(visits AS INT) AS a, visits::text AS b, TRY_CAST(gender AS DOUBLE) AS c FROM records",
            "SELECT CAST(login.uuid AS UUID) AS id, gender::uuid AS b, CAST(lower(gender) AS UUID) AS c FROM records",
            "SELECT CAST(gender AS TIMESTAMP) AS a, date_trunc('day', registered.date) AS b, CAST(registered.date AS DATE) AS c FROM records",
            "SELECT CASE WHEN active THEN 1 ELSE 0 END AS a, coalesce(gender, '?') AS b, NULLIF(gender, '') AS c FROM records",
            "SELECT 'x' AS a, 1 AS b, 1.5 AS c, true AS d, CAST(NULL AS INT) AS e FROM records",
            "SELECT decode(gender, 'base64') AS a, sha256(gender) AS b, md5(gender) AS c FROM records",
            "SELECT make_array(small, 2) AS a, string_to_array(gender, ',') AS b FROM records",
            "SELECT gender IS DISTINCT FROM coalesce(name.first, '') AS a, (gender IS NOT DISTINCT FROM '') AND active AS b FROM records",
            "SELECT extract(year FROM born) AS a, date_part('hour', _timestamp) AS b FROM records",
            "SELECT regexp_replace(gender, 'a', 'b') AS a, substring(gender, 1, 2) AS b, split_part(gender, '-', 1) AS c FROM records",
        ],
        columns
    );
}

/// Only what the SQL reads is decoded.
#[test]
fn reads_only_what_it_needs() {
    assert_told!(
        [
            "SELECT login.uuid, name.first FROM records WHERE location.street.number > 3",
            "SELECT gender FROM records WHERE location IS NOT NULL",
            "SELECT location.city FROM records WHERE location IS NOT NULL",
            "SELECT items[1].sku AS sku FROM records",
            "SELECT _offset AS o, gender, _key AS k FROM records",
            "SELECT 1 AS one FROM records",
        ],
        reads
    );
    let plan = plan("SELECT gender FROM records WHERE _timestamp IS NOT NULL AND _key <> ''");
    assert_eq!(
        plan.virtual_columns(),
        [VirtualColumn::Key, VirtualColumn::Timestamp]
    );
    assert_eq!(plan.record_schema().fields().len(), 1);
}

#[test]
fn star_is_the_record() {
    let schema = RecordSchema::parse("b INT, a TEXT").unwrap();
    for (sql, names) in [
        ("SELECT * FROM records", vec!["b", "a"]),
        (
            "SELECT _offset AS o, r.* FROM records r",
            vec!["o", "b", "a"],
        ),
    ] {
        let plan = SinkPlan::new(&schema, "s", sql).unwrap();
        let found: Vec<_> = plan
            .columns
            .iter()
            .map(|column| column.name.as_str())
            .collect();
        assert_eq!(found, names, "{sql}");
    }
}

#[test]
fn refuses_names() {
    assert_told!(
        [
            "SELECT gendr FROM records",
            "SELECT\n  gender,\n  upper(nam.first) AS x\nFROM records",
            "SELECT login.uid FROM records",
            "SELECT location.street.nr FROM records",
            "SELECT gender.first FROM records",
            "SELECT tags.first FROM records",
            "SELECT \"Gender\" FROM records",
            "SELECT UserName AS u FROM records",
            "SELECT _ofset AS o FROM records",
            "SELECT gender FROM record",
            "SELECT gender FROM other.records",
            "SELECT x.gender FROM records AS r",
            "SELECT gender",
            "SELECT uper(gender) AS g FROM records",
            "SELECT gender FROM records WHERE lenght(gender) > 1",
        ],
        error
    );
}

#[test]
fn refuses_result_columns() {
    assert_told!(
        [
            "SELECT upper(gender) FROM records",
            "SELECT gender, 1 + 1 FROM records",
            "SELECT tags[1] FROM records",
            "SELECT gender AS \"ä\" FROM records",
            "SELECT \"@id\" FROM records",
            "SELECT _offset FROM records",
            "SELECT gender, name.first AS gender FROM records",
            "SELECT gender, name.first AS \"Gender\" FROM records",
            "SELECT name FROM records",
            "SELECT * FROM records",
            "SELECT items FROM records",
            "SELECT NULL AS n FROM records",
            "SELECT INTERVAL '1 day' AS i FROM records",
            "SELECT CAST(visits AS UUID) AS id FROM records",
            "SELECT gender FROM records WHERE CAST(gender AS UUID) IS NOT NULL",
            "SELECT TRY_CAST(gender AS UUID) AS id FROM records",
            "SELECT gender + 1 AS x FROM records WHERE gender",
            "SELECT active + 1 AS x FROM records",
            "SELECT upper(gender, 2) AS x FROM records",
            "SELECT gender FROM records WHERE visits + 1",
            "SELECT gender FROM records WHERE active IS DISTINCT FROM true AND gender = 'x'",
            "SELECT gender IS NOT DISTINCT FROM '' OR active AS a FROM records",
            "SELECT gender FROM records WHERE gender SIMILAR TO 'm%'",
            "SELECT CAST(gender AS NONSENSE) AS x FROM records",
        ],
        error
    );
}

#[test]
fn takes_one_select_and_refuses_the_rest() {
    assert_told!(
        [
            "",
            "-- nothing",
            "SELECT gender FROM records; SELECT gender FROM records",
            "DROP TABLE records",
            "INSERT INTO records SELECT gender FROM records",
            "EXPLAIN SELECT gender FROM records",
            "VALUES (1)",
            "(SELECT gender FROM records)",
            "FROM records",
            "SELECT gender, count(*) AS n FROM records GROUP BY gender",
            "SELECT gender FROM records GROUP BY ALL",
            "SELECT count(*) AS n FROM records",
            "SELECT gender FROM records\nWHERE visits > avg(visits)",
            "SELECT row_number() OVER (ORDER BY visits) AS n FROM records",
            "SELECT sum(visits) OVER () AS n FROM records",
            "SELECT lag(visits) AS n FROM records",
            "SELECT DISTINCT gender FROM records",
            "SELECT gender FROM records HAVING true",
            "SELECT gender FROM records ORDER BY gender",
            "SELECT gender FROM records LIMIT 1",
            "SELECT gender FROM records OFFSET 1",
            "SELECT gender FROM records FETCH FIRST 1 ROW ONLY",
            "SELECT r.gender FROM records r JOIN records s ON r.gender = s.gender",
            "SELECT gender FROM records, records",
            "SELECT gender FROM (SELECT gender FROM records)",
            "SELECT gender FROM generate_series(1, 2)",
            "SELECT gender FROM records WHERE visits = (SELECT 1)",
            "SELECT gender FROM records WHERE visits IN (SELECT 1)",
            "SELECT gender FROM records WHERE EXISTS (SELECT 1)",
            "WITH x AS (SELECT 1) SELECT gender FROM records",
            "SELECT gender FROM records UNION ALL SELECT gender FROM records",
            "SELECT gender INTO other FROM records",
            "SELECT TOP 1 gender FROM records",
            "SELECT gender FROM records TABLESAMPLE (10 PERCENT)",
            "SELECT gender FROM records QUALIFY true",
            "SELECT * EXCEPT (gender) FROM records",
            "SELECT unnest(tags) AS tag FROM records",
            "SELECT now() AS at FROM records",
            "SELECT gender FROM records WHERE born < CURRENT_DATE",
            "SELECT current_timestamp AS at FROM records",
            "SELECT random() AS r FROM records",
            "SELECT uuid() AS id FROM records",
            "SELECT array_transform(tags, x -> upper(x)) AS t FROM records",
            "SELECT gender FROM records WHERE visits = $1",
            "SELECT gender FROM records WHERE",
            "SELECT gender FRM records",
            "SELECT 'unclosed FROM records",
            "SELECT (gender FROM records",
        ],
        verdict
    );
}

/// Half of the stack that threads have is enough for the deepest expression.
#[test]
fn the_deepest_takes_little_stack() {
    let deepest = || {
        let links = "+ 1 ".repeat(248);
        let plan = self::plan(&format!(
            "SELECT visits {links} AS v FROM records WHERE visits {links} > 0"
        ));
        let batch = RecordBatch::new_empty(plan.input_schema());
        plan.executor().execute(&batch).unwrap();
        // Here the two last are one chain.
        let half = "+ 1 ".repeat(120);
        let grouped = format!(
            "SELECT visits {half} AS v, sum(visits {links}) AS s FROM records GROUP BY visits {half} HAVING max(visits) {half} > 0"
        );
        let _ = self::plan(&grouped);
        let calls = format!(
            "SELECT {}visits{} AS v FROM records",
            "abs(".repeat(40),
            ")".repeat(40)
        );
        let _ = SinkPlan::new(&users(), "s", &calls);
    };
    let thread = std::thread::Builder::new().stack_size(1024 * 1024);
    thread.spawn(deepest).unwrap().join().unwrap();
}

/// What would take a stack or a time without bounds is refused, or planned in no time.
#[test]
fn bounds_depth() {
    let chain = |link: &str, links: usize| {
        format!(
            "SELECT gender FROM records WHERE visits > 0 {}",
            link.repeat(links)
        )
    };
    let nested = |open: &str, close: &str, levels: usize| {
        format!(
            "SELECT {}gender{} AS x FROM records",
            open.repeat(levels),
            close.repeat(levels)
        )
    };
    for sql in [
        chain("OR visits = 1 ", 5_000),
        chain("+ 1 ", 10_000),
        chain("IS NULL ", 3_000),
        // Names that stand for result columns count as what they stand for.
        format!(
            "SELECT gender, visits {} AS a, count(*) AS n FROM records GROUP BY gender, a HAVING a {} > 0",
            "+ 1 ".repeat(200),
            "+ 1 ".repeat(200)
        ),
        format!(
            "SELECT gender, visits {} AS a, count(*) AS n FROM records GROUP BY gender, a HAVING a IN (a{})",
            "+ 1 ".repeat(200),
            ", a".repeat(10_000)
        ),
        nested("(", ")", 10_000),
        nested("upper(", ")", 5_000),
        nested("(", ")", 60),
        nested("NOT ", "", 5_000),
        nested("- ", "", 5_000),
        nested("", "[1]", 5_000),
        nested("", "::text", 5_000),
        nested("CASE WHEN true THEN ", " END", 1_000),
        format!(
            "SELECT CAST(gender AS {}INT{}) AS x FROM records",
            "ARRAY<".repeat(5_000),
            ">".repeat(5_000)
        ),
        "x".repeat(65_537),
    ] {
        let told = error(&sql);
        assert!(
            told.contains("deep") || told.contains("bytes") || told.contains("expected"),
            "{told}"
        );
    }
    plan(&chain("OR visits = 1 ", 100));
    plan(&nested("", "::text", 100));
    plan(&nested("upper(", ")", 20));
    let cases = "WHEN visits = 1 THEN 'x' ".repeat(500);
    plan(&format!("SELECT CASE {cases} END AS x FROM records"));
    let wide: Vec<_> = (0..500)
        .map(|n| format!("CAST(visits + {n} AS INT) AS c{n}"))
        .collect();
    plan(&format!("SELECT {} FROM records", wide.join(", ")));
    let wider: Vec<_> = (0..501).map(|n| format!("visits AS c{n}")).collect();
    assert!(error(&format!("SELECT {} FROM records", wider.join(", "))).contains("500 columns"));
}
