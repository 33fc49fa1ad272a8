use std::fmt::Write;

use super::*;
use crate::keyspace::ddl;

const SPEC: &str = "
replication: {class: NetworkTopologyStrategy, datacenters: {dc1: 3}}
durableWrites: true
tables:
  - name: users
    columns:
      - {name: id, type: uuid}
      - {name: ts, type: timestamp}
      - {name: name, type: text}
      - {name: tags, type: 'frozen<list<text>>'}
    primaryKey: {partitionKey: [id], clusteringKey: [{name: ts, order: DESC}]}
    options: {defaultTimeToLive: 60, comment: it's}
";

fn users() -> ObservedTable {
    let column = |name: &str, cql_type: &str| (name.to_string(), cql_type.to_string());
    ObservedTable {
        columns: BTreeMap::from([
            column("id", "uuid"),
            column("ts", "timestamp"),
            column("name", "text"),
            column("tags", "frozen<list<text>>"),
            column("of_others", "int"),
        ]),
        partition_key: vec!["id".into()],
        clustering_key: vec![("ts".into(), Order::Descending)],
        options: TableOptions {
            default_time_to_live: Some(60),
            gc_grace_seconds: Some(864000),
            comment: Some("it's".into()),
        },
    }
}

fn observed(users: ObservedTable) -> ObservedKeyspace {
    let class = "org.apache.cassandra.locator.NetworkTopologyStrategy";
    ObservedKeyspace {
        replication: BTreeMap::from([("class".into(), class.into()), ("dc1".into(), "3".into())]),
        durable_writes: true,
        tables: BTreeMap::from([("users".into(), users)]),
    }
}

/// The statements and refusals for what is there, as text.
fn planned(observed: Option<&ObservedKeyspace>) -> String {
    let spec: KeyspaceSpec = serde_saphyr::from_str(SPEC).unwrap();
    let plan = plan("ks", &spec, &Replication::simple(1), observed);
    let mut text = String::new();
    for change in &plan.changes {
        writeln!(text, "{}", change.describe()).unwrap();
        writeln!(text, "  {}", ddl::statement("ks", change)).unwrap();
    }
    let refusals = plan.refused_replication.iter();
    for refusal in refusals.chain(plan.refusals.values()) {
        writeln!(text, "refused: {refusal}").unwrap();
    }
    text
}

#[test]
fn creates_everything() {
    insta::assert_snapshot!(planned(None), @r#"
    created the keyspace
      CREATE KEYSPACE IF NOT EXISTS "ks" WITH replication = {'class': 'NetworkTopologyStrategy', 'dc1': 3} AND durable_writes = true
    created table users
      CREATE TABLE IF NOT EXISTS "ks"."users" ("id" uuid, "ts" timestamp, "name" text, "tags" frozen<list<text>>, PRIMARY KEY (("id"), "ts")) WITH CLUSTERING ORDER BY ("ts" DESC) AND default_time_to_live = 60 AND comment = 'it''s'
    "#);
}

#[test]
fn does_nothing_where_all_is_as_declared() {
    assert_eq!(planned(Some(&observed(users()))), "");
}

#[test]
fn adds_columns_and_puts_options_right() {
    let mut table = users();
    table.columns.remove("name");
    table.options.default_time_to_live = Some(0);
    table.options.comment = None;
    let mut keyspace = observed(table);
    keyspace.durable_writes = false;
    keyspace.replication.insert("dc1".into(), "1".into());
    insta::assert_snapshot!(planned(Some(&keyspace)), @r#"
    set replication and durable_writes = true
      ALTER KEYSPACE "ks" WITH replication = {'class': 'NetworkTopologyStrategy', 'dc1': 3} AND durable_writes = true
    added column name text to table users
      ALTER TABLE "ks"."users" ADD "name" text
    set default_time_to_live = 60, comment of table users
      ALTER TABLE "ks"."users" WITH default_time_to_live = 60 AND comment = 'it''s'
    "#);
}

#[test]
fn takes_no_replicas_away() {
    let planned = |options: &[(&str, &str)]| {
        let mut keyspace = observed(users());
        let options = options.iter();
        let options = options.map(|(name, value)| (name.to_string(), value.to_string()));
        keyspace.replication = options.collect();
        keyspace.durable_writes = false;
        planned(Some(&keyspace))
    };
    let class = (
        "class",
        "org.apache.cassandra.locator.NetworkTopologyStrategy",
    );
    let simple = ("class", "org.apache.cassandra.locator.SimpleStrategy");
    insta::assert_snapshot!(planned(&[class, ("dc1", "5")]), @r#"
    set durable_writes = true
      ALTER KEYSPACE "ks" WITH durable_writes = true
    refused: replication: keyspace ks has NetworkTopologyStrategy with dc1: 5 in Cassandra, and Millstream takes no replicas away: declare that, or more replicas, or alter the keyspace in Cassandra by hand (and repair it)
    "#);
    insta::assert_snapshot!(planned(&[class, ("dc1", "3"), ("dc2", "3")]), @r#"
    set durable_writes = true
      ALTER KEYSPACE "ks" WITH durable_writes = true
    refused: replication: keyspace ks has NetworkTopologyStrategy with dc1: 3, dc2: 3 in Cassandra, and Millstream takes no replicas away: declare that, or more replicas, or alter the keyspace in Cassandra by hand (and repair it)
    "#);
    insta::assert_snapshot!(planned(&[simple, ("replication_factor", "1")]), @r#"
    set durable_writes = true
      ALTER KEYSPACE "ks" WITH durable_writes = true
    refused: replication: keyspace ks has SimpleStrategy with replication_factor: 1 in Cassandra, and Millstream takes no replicas away: declare that, or more replicas, or alter the keyspace in Cassandra by hand (and repair it)
    "#);
    insta::assert_snapshot!(planned(&[class]), @r#"
    set replication and durable_writes = true
      ALTER KEYSPACE "ks" WITH replication = {'class': 'NetworkTopologyStrategy', 'dc1': 3} AND durable_writes = true
    "#);
}

#[test]
fn refuses_another_type_and_alters_nothing_of_the_table() {
    let mut table = users();
    table.columns.insert("name".into(), "int".into());
    table.columns.remove("tags");
    insta::assert_snapshot!(planned(Some(&observed(table))), @"refused: column `name` of table ks.users is `int` in Cassandra and `text` here; Cassandra can't change a column's type: declare `int`, or use a new column or table");
}

#[test]
fn refuses_another_primary_key() {
    let mut other_column = users();
    other_column.partition_key = vec!["name".into()];
    let mut other_order = users();
    other_order.clustering_key = vec![("ts".into(), Order::Ascending)];
    let refusals = [other_column, other_order].map(|table| planned(Some(&observed(table))));
    insta::assert_snapshot!(refusals.join(""), @r"
    refused: the primary key of table ks.users is ((name), ts DESC) in Cassandra and ((id), ts DESC) here (they differ in `id`, `name`); a primary key can't be changed: declare ((name), ts DESC), or use a new table
    refused: the primary key of table ks.users is ((id), ts) in Cassandra and ((id), ts DESC) here (the columns are the same, their places or orders are not); a primary key can't be changed: declare ((id), ts), or use a new table
    ");
}

#[test]
fn types_are_compared_by_meaning() {
    for (declared, there, same) in [
        ("varchar", "text", true),
        ("tuple<int,text>", "frozen<tuple<int, text>>", true),
        ("list<tuple<int>>", "list<frozen<tuple<int>>>", true),
        (
            "frozen<map<text, list<int>>>",
            "frozen<map<text, frozen<list<int>>>>",
            true,
        ),
        (
            "frozen<list<frozen<list<int>>>>",
            "frozen<list<frozen<list<int>>>>",
            true,
        ),
        ("list<int>", "frozen<list<int>>", false),
        ("int", "bigint", false),
        ("text", "address", false),
    ] {
        let declared: CqlType = declared.parse().unwrap();
        assert_eq!(same_type(&declared, there), same, "{declared} and {there}");
    }
}
