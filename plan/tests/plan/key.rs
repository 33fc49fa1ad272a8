use insta::assert_snapshot;
use millstream_api::keyspace::{ClusteringColumn, Order, PrimaryKey, TableSpec};
use millstream_plan::{SinkPlan, key_pointers};

use crate::users;

/// Sinks as `SELECT list | partition key | clustering key`, with a key that was asked for.
fn outcome(asked: &[&str], sinks: &[&str]) -> String {
    let schema = users();
    let sinks: Vec<(SinkPlan, TableSpec)> = sinks
        .iter()
        .enumerate()
        .map(|(index, sink)| {
            let mut parts = sink.split(" | ");
            let sql = format!("SELECT {} FROM records", parts.next().unwrap());
            let mut names = || -> Vec<String> {
                let part = parts.next().unwrap_or_default();
                part.split(", ")
                    .filter(|name| !name.is_empty())
                    .map(str::to_owned)
                    .collect()
            };
            let plan = SinkPlan::new(&schema, &format!("s{index}"), &sql).unwrap();
            let primary_key = PrimaryKey {
                partition_key: names(),
                clustering_key: names()
                    .into_iter()
                    .map(|name| ClusteringColumn {
                        name,
                        order: Order::Descending,
                    })
                    .collect(),
            };
            let table = plan.declare_table("t", &primary_key).unwrap();
            (plan, table)
        })
        .collect();
    let asked: Vec<String> = asked.iter().map(|pointer| (*pointer).to_owned()).collect();
    let borrowed: Vec<_> = sinks.iter().map(|(plan, table)| (plan, table)).collect();
    match key_pointers(&asked, &borrowed) {
        Ok(pointers) => format!("{pointers:?}"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn derives_the_key() {
    let cases: &[&[&str]] = &[
        &["login.uuid AS id, gender | id"],
        &["login.uuid AS id, gender, visits | gender, id | visits"],
        // Part of the primary key is enough, as the rest doesn't move a row to another partition.
        &["login.uuid AS id, date_trunc('day', registered.date) AS day | day | id"],
        // The second sink has the first's partition key within its primary key.
        &[
            "login.uuid AS id | id",
            "gender, login.uuid AS u | gender | u",
        ],
        &[
            "gender, login.uuid AS u | gender | u",
            "login.uuid AS id | id",
        ],
        // Every record a row of its own.
        &["_partition AS p, _offset AS o, gender | p | o"],
        &[
            "_partition AS p, _offset AS o, gender | p | o",
            "login.uuid AS id | id",
        ],
        &["_key AS k, gender | k", "login.uuid AS id | id"],
        &[r#""a/b~c"."d.e" AS odd, "@id" AS id | odd, id"#],
        &["CAST(gender AS UUID) AS id | id"],
        // Refused.
        &["lower(gender) AS g | g"],
        &["login.uuid AS id | id", "upper(gender) AS g | g"],
        &["login.uuid AS id | id", "gender | gender"],
        &["_offset AS o | o"],
        &["_key AS k | k"],
        &["tags[1] AS t | t"],
    ];
    let told: Vec<_> = cases
        .iter()
        .map(|sinks| format!("{}\n    {}\n", sinks.join("\n"), outcome(&[], sinks)))
        .collect();
    assert_snapshot!(told.join("\n"));
}

#[test]
fn checks_the_key_that_was_asked_for() {
    let by_id = "login.uuid AS id, gender | id | gender";
    let cases: &[(&[&str], &[&str])] = &[
        (&["/login/uuid"], &[by_id]),
        (&["/gender", "/login/uuid"], &[by_id]),
        (&["/gender"], &[by_id]),
        (&["/gender"], &["_partition AS p, _offset AS o | p | o"]),
        (&["/gender"], &["_key AS k | k"]),
        (&["/a~1b~0c/d.e"], &[r#""a/b~c"."d.e" AS odd | odd"#]),
        // Refused.
        (&["/visits"], &[by_id]),
        (&["/gender"], &[by_id, "login.uuid AS id | id"]),
        (&["/gender"], &["lower(gender) AS g | g"]),
        (&["login.uuid"], &[by_id]),
        (&["/login/uid"], &[by_id]),
        (&["/login"], &[by_id]),
        (&["/gender", "/gender"], &[by_id]),
        (&[""], &[by_id]),
    ];
    let told: Vec<_> = cases
        .iter()
        .map(|(asked, sinks)| {
            format!(
                "{} for {}\n    {}\n",
                asked.join(" "),
                sinks.join("\n"),
                outcome(asked, sinks)
            )
        })
        .collect();
    assert_snapshot!(told.join("\n"));
}
