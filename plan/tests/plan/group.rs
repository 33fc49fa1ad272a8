use millstream_api::keyspace::{ClusteringColumn, Order, PrimaryKey};
use millstream_plan::{MAX_STATE_BYTES, SinkPlan, topic_key};

use crate::{assert_told, error, plan, users};

fn columns(sql: &str) -> String {
    let columns = plan(sql)
        .columns
        .into_iter()
        .map(|column| format!("{}: {} {}", column.name, column.data_type, column.cql_type));
    columns.collect::<Vec<_>>().join("\n    ")
}

#[test]
fn gives_types() {
    assert_told!(
        [
            "SELECT gender, count(*) AS n FROM records GROUP BY gender",
            "SELECT login.uuid AS id, count(visits) AS n, sum(visits) AS s, avg(visits) AS a, min(score) AS lo, max(price) AS hi FROM records WHERE active GROUP BY login.uuid",
            // By alias, by number, by expression.
            "SELECT date_bin(INTERVAL '1 hour', registered.date) AS hour, count(*) AS n FROM records GROUP BY hour",
            "SELECT upper(gender) AS g, born, count(*) AS n FROM records GROUP BY 1, 2",
            "SELECT upper(gender) || '!' AS g, count(*) AS n FROM records GROUP BY upper(gender)",
            "SELECT UPPER(gender) AS g, COUNT(*) + count(*) AS n FROM records GROUP BY upper(gender)",
            "SELECT CAST(gender AS UUID) AS g, count(*) AS n FROM records GROUP BY CAST(gender AS UUID)",
            "SELECT g FROM (records) GROUP BY g",
            "SELECT gender AS g FROM records GROUP BY g",
            // Everything is one group.
            "SELECT 'all' AS id, count(*) AS n FROM records",
            "SELECT 'all' AS id, count(*) AS n FROM records GROUP BY 'all'",
            "SELECT gender, count(DISTINCT tags[1]) AS a, approx_distinct(tags[1]) AS b, bool_and(active) AS c, array_agg(small) AS d FROM records GROUP BY gender",
            "SELECT gender, first_value(score ORDER BY registered.date) AS a, last_value(name.first ORDER BY registered.date DESC, visits) AS b, last_value(born) AS c FROM records GROUP BY gender",
            "SELECT gender, count(*) FILTER (WHERE active) AS a, sum(visits) * 1.0 / count(*) AS b, sum(visits + 1) AS c FROM records GROUP BY gender HAVING count(*) > 2 AND a > 1",
            "SELECT gender, stddev(score) AS a, corr(score, visits) AS b, median(visits) AS c, approx_percentile_cont(score, 0.5) AS d, string_agg(name.first, ',') AS e, bit_or(visits) AS f FROM records GROUP BY gender",
            "SELECT gender, any_value(score) AS a, sum(DISTINCT visits) AS b, var_pop(score) AS c, percentile_cont(score, 0.5) AS d FROM records GROUP BY gender",
        ],
        |sql: &str| match SinkPlan::new(&users(), "s", sql) {
            Ok(_) => columns(sql),
            Err(error) => error.to_string(),
        }
    );
}

#[test]
fn refuses_what_cannot_be_kept() {
    assert_told!(
        [
            "SELECT gender, count(*) AS n FROM records",
            "SELECT gender, name.first, count(*) AS n FROM records GROUP BY gender",
            "SELECT gender, count(*) AS n FROM records GROUP BY gender HAVING visits > 1",
            "SELECT gender FROM records WHERE count(*) > 1 GROUP BY gender",
            "SELECT gender, count(*) AS n FROM records GROUP BY gender, count(*)",
            "SELECT gender, count(*) AS n FROM records GROUP BY gender, n",
            "SELECT gender, count(*) AS n FROM records GROUP BY 1, 2",
            "SELECT gender, count(*) AS n FROM records GROUP BY 3",
            "SELECT gender, count(*) AS n FROM records GROUP BY 0",
            "SELECT gender, sum(max(visits)) AS n FROM records GROUP BY gender",
            "SELECT gender, sum(visits) OVER () AS n FROM records GROUP BY gender",
            "SELECT gender, count(*) AS n FROM records GROUP BY ROLLUP (gender)",
            "SELECT gender, count(*) AS n FROM records GROUP BY GROUPING SETS ((gender), ())",
            "SELECT gender, count(*) AS n FROM records GROUP BY gender WITH ROLLUP",
            "SELECT gender, count(*) AS n FROM records GROUP BY ALL",
            "SELECT gender, grouping(gender) AS n FROM records GROUP BY gender",
            "SELECT DISTINCT gender FROM records",
            "SELECT gender, array_agg(visits ORDER BY visits) AS n FROM records GROUP BY gender",
            "SELECT gender, percentile_cont(0.5) WITHIN GROUP (ORDER BY score) AS n FROM records GROUP BY gender",
            "SELECT gender, max(random()) AS n FROM records GROUP BY gender",
            "SELECT gender, count(*) AS n FROM records GROUP BY gender, now()",
            "SELECT gender, sum(active) AS n FROM records GROUP BY gender",
            "SELECT gender, sum(visits, 1) AS n FROM records GROUP BY gender",
            "SELECT gender, count(*) AS n FROM records GROUP BY gender HAVING count(*)",
            "SELECT gender, count(*) FROM records GROUP BY gender",
            "SELECT name, count(*) AS n FROM records GROUP BY name",
            "SELECT gender, last_value(name) AS n FROM records GROUP BY gender",
            "SELECT gender, nth_value(visits, 2 ORDER BY score) AS n FROM records GROUP BY gender",
            "SELECT gendr, count(*) AS n FROM records GROUP BY gendr",
            "SELECT gender, conut(*) AS n FROM records GROUP BY gender",
        ],
        error
    );
}

fn primary_key(text: &str) -> PrimaryKey {
    let (partition, clustering) = text.split_once(" | ").unwrap_or((text, ""));
    let split = |part: &str| -> Vec<String> {
        let names = part.split(", ").filter(|name| !name.is_empty());
        names.map(str::to_owned).collect()
    };
    let clustering = split(clustering).into_iter().map(|name| ClusteringColumn {
        name,
        order: Order::Ascending,
    });
    PrimaryKey {
        partition_key: split(partition),
        clustering_key: clustering.collect(),
    }
}

/// `primary key FOR sql`: the topic's key, and the table with the states.
#[test]
fn a_group_is_a_row_and_comes_from_one_partition() {
    assert_told!(
        [
            "id FOR SELECT login.uuid AS id, count(*) AS n FROM records GROUP BY login.uuid",
            "id | hour FOR SELECT login.uuid AS id, date_bin(INTERVAL '1 hour', registered.date) AS hour, count(*) AS n FROM records GROUP BY id, hour",
            "all | id FOR SELECT login.uuid AS id, 'x' AS all, count(*) AS n FROM records GROUP BY id",
            "p FOR SELECT _partition AS p, count(*) AS n FROM records GROUP BY _partition",
            "hour FOR SELECT date_bin(INTERVAL '1 hour', registered.date) AS hour, count(*) AS n FROM records GROUP BY hour",
            // Refused.
            "id FOR SELECT 'all' AS id, count(*) AS n FROM records",
            "id FOR SELECT login.uuid AS id, gender, count(*) AS n FROM records GROUP BY id, gender",
            "id FOR SELECT login.uuid AS id, count(*) AS n FROM records GROUP BY id, upper(gender)",
            "id | n FOR SELECT login.uuid AS id, count(*) AS n FROM records GROUP BY id",
            "id FOR SELECT upper(gender) AS id, count(*) AS n FROM records GROUP BY gender",
        ],
        |case: &str| {
            let (key, sql) = case.split_once(" FOR ").unwrap();
            let plan = plan(sql);
            let table = match plan.declare_table("t", &primary_key(key)) {
                Ok(table) => table,
                Err(error) => return error.to_string(),
            };
            let state = plan.state_table(&table, "owner").unwrap();
            let columns = state.columns.iter();
            let columns = columns.map(|column| format!("{} {}", column.name, column.cql_type));
            let columns = columns.collect::<Vec<_>>().join(", ");
            match topic_key(&[], 4, &[(&plan, &table)]) {
                Ok(key) => format!("{key:?}, {} ({columns})", state.name),
                Err(error) => error.to_string(),
            }
        }
    );
}

#[test]
fn the_name_of_the_state_table_must_fit() {
    let plan = plan("SELECT gender, count(*) AS n FROM records GROUP BY gender");
    let key = primary_key("gender");
    plan.declare_table(&"t".repeat(41), &key).unwrap();
    let error = plan.declare_table(&"t".repeat(42), &key).unwrap_err();
    assert!(error.to_string().contains("41 characters"), "{error}");
}

/// States are kept for ever, and so is what they are known by: should this test fail after an
/// upgrade, old states must be made known under the new fingerprint.
#[test]
fn fingerprints_stay_the_same() {
    let fingerprint = |sql: &str| plan(sql).state_fingerprint("owner").unwrap();
    let sql = "SELECT gender AS g, sum(visits) AS s, last_value(score ORDER BY born) AS l FROM records WHERE active GROUP BY gender";
    insta::assert_snapshot!(format!("{:016x}", fingerprint(sql)), @"e7637cc545241313");
    // Rows may be made otherwise of the same states.
    let same =
        "SELECT gender AS x, 'new' AS y, sum(visits) + 1 AS z, last_value(score ORDER BY born) AS l
        FROM records WHERE active GROUP BY x HAVING sum(visits) > 1";
    assert_eq!(fingerprint(sql), fingerprint(same));
    let shouted = sql
        .replace("sum(", "SUM(")
        .replace("last_value", "LAST_value");
    assert_eq!(fingerprint(sql), fingerprint(&shouted));
    for other in [
        "SELECT gender AS g, sum(visits) AS s, last_value(score ORDER BY born) AS l FROM records GROUP BY gender",
        "SELECT gender AS g, sum(small) AS s, last_value(score ORDER BY born) AS l FROM records WHERE active GROUP BY gender",
        "SELECT gender AS g, sum(visits) AS s, last_value(score ORDER BY visits) AS l FROM records WHERE active GROUP BY gender",
        "SELECT born AS g, sum(visits) AS s, last_value(score ORDER BY born) AS l FROM records WHERE active GROUP BY born",
    ] {
        assert_ne!(fingerprint(sql), fingerprint(other), "{other}");
    }
    let plan = plan(sql);
    assert_ne!(plan.state_fingerprint("a"), plan.state_fingerprint("b"));
    const {
        assert!(
            MAX_STATE_BYTES < 16 * 1024 * 1024,
            "Cassandra's limit for a write"
        )
    };
}
