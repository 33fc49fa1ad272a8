use millstream_api::keyspace::{ClusteringColumn, Order, PrimaryKey, TableSpec};
use millstream_plan::{SinkPlan, topic_key};

use crate::{assert_told, users};

/// A sink as `SELECT list | partition key | clustering key`.
fn sink(index: usize, text: &str) -> (SinkPlan, TableSpec) {
    let mut parts = text.split(" | ");
    let sql = format!("SELECT {} FROM records", parts.next().unwrap());
    let mut names = || -> Vec<String> {
        let names = parts.next().unwrap_or_default().split(", ");
        let names = names.filter(|name| !name.is_empty());
        names.map(str::to_owned).collect()
    };
    let partition_key = names();
    let clustering_key = names().into_iter().map(|name| ClusteringColumn {
        name,
        order: Order::Descending,
    });
    let primary_key = PrimaryKey {
        partition_key,
        clustering_key: clustering_key.collect(),
    };
    let plan = SinkPlan::new(&users(), &format!("s{index}"), &sql).unwrap();
    let table = plan.declare_table("t", &primary_key).unwrap();
    (plan, table)
}

/// Sinks parted by ` + `, and the pointers that were asked for.
fn outcome(asked: &str, sinks: &str) -> String {
    let parts = sinks.split(" + ").enumerate();
    let sinks: Vec<_> = parts.map(|(index, text)| sink(index, text)).collect();
    let sinks: Vec<_> = sinks.iter().map(|(plan, table)| (plan, table)).collect();
    let asked = asked.split_whitespace().map(str::to_owned);
    match topic_key(&asked.collect::<Vec<_>>(), 4, &sinks) {
        Ok(key) => {
            for text in key.iter().filter(|text| !text.starts_with('/')) {
                let again = sink(0, &format!("{text} AS again | again"));
                let again = topic_key(&[], 4, &[(&again.0, &again.1)]).unwrap();
                assert_eq!(again, [text.as_str()], "what is computed is what was read");
            }
            format!("{key:?}")
        }
        Err(error) => error.to_string(),
    }
}

#[test]
fn derives_the_key() {
    let cases = [
        "login.uuid AS id, gender | id",
        "login.uuid AS id, gender, visits | gender, id | visits",
        // Part of the primary key is enough, as the rest doesn't move a row to another partition.
        "login.uuid AS id, date_trunc('day', registered.date) AS day | day | id",
        // The second sink has the first's partition key within its primary key.
        "login.uuid AS id | id + gender, login.uuid AS u | gender | u",
        "gender, login.uuid AS u | gender | u + login.uuid AS id | id",
        // Every record a row of its own.
        "_partition AS p, _offset AS o, gender | p | o",
        "_partition AS p, _offset AS o, gender | p | o + login.uuid AS id | id",
        "_key AS k, gender | k + login.uuid AS id | id",
        r#""a/b~c"."d.e" AS odd, "@id" AS id | odd, id"#,
        "CAST(gender AS UUID) AS id | id",
        // Computed, where nothing else is in common: the same whatever the spelling.
        "lower(gender) AS g | g",
        "lower(gender) AS g | g + lower(records.Gender) AS h, visits | visits | h",
        "date_bin(INTERVAL '1 minute', registered.date) AS m, upper(login.username) AS u | m | u",
        "tags[1] AS t | t",
        r#"upper("a/b~c"."d.e") AS odd | odd"#,
        // Refused.
        "CAST(lower(gender) AS UUID) AS id | id",
        "CAST(visits AS DOUBLE) AS v | v",
        "'x' AS c | c",
        "lower(_key) AS k | k",
        "login.uuid AS id | id + upper(gender) AS g | g",
        "login.uuid AS id | id + gender | gender",
        "_offset AS o | o",
        "_key AS k | k",
    ];
    assert_told!(cases, |sinks: &str| outcome("", sinks));
}

#[test]
fn one_partition_needs_no_key() {
    let (plan, table) = sink(0, "lower(gender) AS g | g");
    let sinks = [(&plan, &table)];
    assert_eq!(topic_key(&[], 2, &sinks).unwrap(), [r#"lower("gender")"#]);
    assert!(topic_key(&[], 1, &sinks).unwrap().is_empty());
    // What is no key at all isn't one here either.
    assert!(topic_key(&["gender".into()], 1, &sinks).is_err());
    assert_eq!(
        topic_key(&["/gender".into()], 1, &sinks).unwrap(),
        ["/gender"]
    );
}

#[test]
fn checks_the_key_that_was_asked_for() {
    let cases = [
        "/login/uuid FOR login.uuid AS id, gender | id | gender",
        "/gender /login/uuid FOR login.uuid AS id, gender | id | gender",
        "/gender FOR login.uuid AS id, gender | id | gender",
        "/gender FOR _partition AS p, _offset AS o | p | o",
        "/gender FOR _key AS k | k",
        r#"/a~1b~0c/d.e FOR "a/b~c"."d.e" AS odd | odd"#,
        // Refused.
        "/visits FOR login.uuid AS id, gender | id | gender",
        "/gender FOR login.uuid AS id, gender | id | gender + login.uuid AS id | id",
        "/gender FOR lower(gender) AS g | g",
        "login.uuid FOR login.uuid AS id | id",
        "/login/uid FOR login.uuid AS id | id",
        "/login FOR login.uuid AS id | id",
        "/ FOR login.uuid AS id | id",
        "/gender /gender FOR gender | gender",
    ];
    assert_told!(cases, |case: &str| {
        let (asked, sinks) = case.split_once(" FOR ").unwrap();
        outcome(asked, sinks)
    });
}
