use millstream_api::{
    cql::CqlType,
    keyspace::{ClusteringColumn, ColumnSpec, Order, PrimaryKey, TableSpec},
};
use millstream_plan::{RecordSchema, SinkPlan, fits, timestamp};

use crate::{assert_told, plan};

fn key(partition: &[String], clustering: &[String]) -> PrimaryKey {
    let clustering = clustering.iter().map(|name| ClusteringColumn {
        name: name.clone(),
        order: Order::Ascending,
    });
    PrimaryKey {
        partition_key: partition.to_vec(),
        clustering_key: clustering.collect(),
    }
}

/// `id uuid, age int` with the first column as its key.
fn table(columns: &str) -> TableSpec {
    let columns = columns.split(", ").map(|column| {
        let (name, cql_type) = column.split_once(' ').unwrap();
        ColumnSpec {
            name: name.into(),
            cql_type: cql_type.parse().unwrap(),
        }
    });
    let columns: Vec<_> = columns.collect();
    TableSpec {
        name: "users".into(),
        primary_key: key(&[columns[0].name.clone()], &[]),
        columns,
        options: None,
    }
}

/// `partition key | clustering key`.
fn declared(primary_key: &str) -> String {
    let sql = "SELECT login.uuid AS id, registered.date AS at, tags, _offset AS o, CAST(gender AS UUID) AS g, price FROM records";
    let (partition, clustering) = primary_key.split_once(" | ").unwrap();
    let split = |part: &str| -> Vec<String> {
        let names = part.split(", ").filter(|name| !name.is_empty());
        names.map(str::to_owned).collect()
    };
    match plan(sql).declare_table("users", &key(&split(partition), &split(clustering))) {
        Ok(table) => {
            let columns = table
                .columns
                .iter()
                .map(|column| format!("{} {}", column.name, column.cql_type));
            columns.collect::<Vec<_>>().join(", ")
        }
        Err(error) => error.to_string(),
    }
}

#[test]
fn declares_a_table_from_the_result() {
    assert_told!(
        [
            "id | at", "id, g | ", "idd | ", "id | att", "tags | ", "id | id", " | id"
        ],
        declared
    );
}

#[test]
fn holds_the_result_against_a_table() {
    let plan =
        plan("SELECT login.uuid AS id, visits, gender, tags, registered.date AS at FROM records");
    let check = |columns: &'static str| match plan.check_table("ks", &table(columns)) {
        Ok(()) => "fits".to_owned(),
        Err(error) => error.to_string(),
    };
    assert_told!(
        [
            "id uuid, visits bigint, gender text, tags frozen<list<text>>, at timestamp",
            "id text, visits varint, gender ascii, tags frozen<list<text>>, at timestamp, more int",
            "id uuid, visits bigint, sex text, tags frozen<list<text>>, at timestamp",
            "id uuid, visit bigint, gender text, tags frozen<list<text>>, at timestamp",
            "id uuid, visits int, gender text, tags frozen<list<text>>, at timestamp",
            "id uuid, visits text, gender text, tags frozen<list<text>>, at timestamp",
            "id uuid, visits bigint, gender timestamp, tags frozen<list<text>>, at timestamp",
            "id uuid, visits bigint, gender text, tags list<text>, at timestamp",
            "id uuid, visits bigint, gender text, tags set<text>, at timestamp",
            "id uuid, visits bigint, gender text, tags text, at timestamp",
            "id uuid, visits bigint, gender text, tags frozen<list<text>>, at date",
            "id uuid, visits bigint, gender map<text,text>, tags frozen<list<text>>, at timestamp",
            "key uuid, id uuid, visits bigint, gender text, tags frozen<list<text>>, at timestamp",
        ],
        check
    );
}

/// Other targets take other names.
#[test]
fn a_column_in_cassandra_has_a_name_that_cassandra_takes() {
    let long = "a".repeat(49);
    for (alias, fits) in [
        ("GENDER", true),
        ("\"Gender\"", false),
        (long.as_str(), false),
    ] {
        let plan = plan(&format!(
            "SELECT login.uuid AS id, gender AS {alias} FROM records"
        ));
        let declared = plan.declare_table("users", &key(&["id".into()], &[]));
        assert_eq!(declared.is_ok(), fits, "{alias}");
        let Err(refused) = declared else { continue };
        let said = refused.to_string();
        assert!(
            said.starts_with("sink `created-users`, line 1, column 36: `")
                && said.contains("the name of a column in Cassandra"),
            "{said}"
        );
        assert_eq!(
            plan.check_table("ks", &table("id uuid, gender text")),
            Err(refused)
        );
    }
}

#[test]
fn every_default_type_fits_itself() {
    let plan = plan(
        "SELECT small, visits, CAST(small AS TINYINT) AS t, CAST(visits AS INT) AS i, score, CAST(score AS FLOAT) AS f, price, active, born, registered.date AS at, gender, tags, sha256(gender) AS b, login.uuid FROM records",
    );
    for column in &plan.columns {
        assert!(fits(&column.data_type, &column.cql_type), "{column:?}");
    }
    assert!(!fits(&timestamp(), &CqlType::Date));
}

/// A list that isn't frozen would hold each element once more when a batch is replayed.
#[test]
fn a_list_is_one_cell() {
    let schema = RecordSchema::parse("deep ARRAY<ARRAY<INT>>, ids ARRAY<UUID>").unwrap();
    let plan = SinkPlan::new(&schema, "lists", "SELECT deep, ids FROM records").unwrap();
    let declared = |index: usize| plan.columns[index].cql_type.to_string();
    assert_eq!(declared(0), "frozen<list<frozen<list<int>>>>");
    assert_eq!(declared(1), "frozen<list<uuid>>");
    for (column, cql_type, taken) in [
        (0, "frozen<list<frozen<list<int>>>>", true),
        (0, "frozen<list<list<bigint>>>", true),
        (0, "list<frozen<list<int>>>", false),
        (0, "frozen<list<list<text>>>", false),
        (0, "frozen<set<list<int>>>", false),
        (1, "frozen<list<text>>", true),
        (1, "list<uuid>", false),
    ] {
        let there: CqlType = cql_type.parse().unwrap();
        let data_type = &plan.columns[column].data_type;
        assert_eq!(fits(data_type, &there), taken, "{data_type} {cql_type}");
    }
}

/// Cassandra's lists hold no null, and the state of a group never loses one.
#[test]
fn a_group_lists_no_nulls_in_cassandra() {
    for (list, condition, taken) in [
        ("array_agg(visits)", "", false),
        ("array_agg(DISTINCT visits)", "", false),
        ("array_agg(visits)", "WHERE active", false),
        (
            "array_agg(visits)",
            "WHERE active AND visits IS NOT NULL",
            true,
        ),
        (
            "array_agg(visits)",
            "WHERE active OR visits IS NOT NULL",
            false,
        ),
        ("array_agg(visits)", "WHERE NOT (visits IS NOT NULL)", false),
        (
            "array_agg(visits) FILTER (WHERE visits IS NOT NULL)",
            "",
            true,
        ),
        (
            "array_agg(visits) FILTER (WHERE active AND (visits) IS NOT NULL)",
            "",
            true,
        ),
        (
            "array_agg(visits) FILTER (WHERE active)",
            "WHERE (visits IS NOT NULL AND small > 1)",
            true,
        ),
        ("array_agg(visits) FILTER (WHERE active)", "", false),
        (
            "array_agg(visits) FILTER (WHERE small IS NOT NULL)",
            "",
            false,
        ),
        ("array_agg(visits) IGNORE NULLS", "", true),
        ("array_agg(coalesce(visits, 0))", "", true),
        ("cardinality(array_agg(visits))", "", true),
    ] {
        let plan = plan(&format!(
            "SELECT gender, {list} AS v FROM records {condition} GROUP BY gender"
        ));
        let said = match plan.declare_table("users", &key(&["gender".into()], &[])) {
            Ok(_) => "declared".to_owned(),
            Err(error) => error.to_string(),
        };
        let expected = match taken {
            true => "declared",
            false => {
                "sink `created-users`, line 1, column 16: column `v`: visits may be null, Cassandra's lists hold no null, and a group never loses one; write FILTER (WHERE visits IS NOT NULL) after array_agg(...)"
            }
        };
        assert_eq!(said, expected, "{list} {condition}");
    }
}

/// A table that a pipeline declared is one that its own check accepts.
#[test]
fn a_declared_table_checks() {
    let plan: SinkPlan =
        plan("SELECT login.uuid AS id, tags, price, items[1].amount AS n FROM records");
    let table = plan
        .declare_table("users", &key(&["id".into()], &[]))
        .unwrap();
    plan.check_table("ks", &table).unwrap();
}
