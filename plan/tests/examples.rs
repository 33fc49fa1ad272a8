//! The pipelines of `examples/` are accepted.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;

use millstream_api::DataPipeline;
use millstream_plan::{Expectations, RecordSchema, SinkPlan, key_pointers, plan_lookups};

/// Plans a pipeline as the operator does; gives the record's key and the tables' columns.
fn plan(example: &str) -> (Vec<String>, Vec<String>) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../examples")
        .join(example);
    let text = std::fs::read_to_string(path.join("pipeline.yaml")).unwrap();
    // Behind the Secrets that it needs.
    let text = text.rsplit("\n---\n").next().unwrap();
    let pipeline: DataPipeline = serde_saphyr::from_str(text).unwrap();
    let schema = RecordSchema::parse(&pipeline.spec.schema).unwrap();
    let lookups = plan_lookups(&pipeline.spec.lookups).unwrap();
    let mut plans = Vec::new();
    for sink in &pipeline.spec.sinks {
        let plan = SinkPlan::joining(&schema, &lookups, &sink.name, &sink.sql).unwrap();
        Expectations::new(&plan, &sink.expectations).unwrap();
        let to = sink.cassandra.as_ref().unwrap();
        let key = to.primary_key.as_ref().unwrap();
        let table = plan.declare_table(&to.table, key).unwrap();
        plans.push((plan, table));
    }
    let columns = |table: &millstream_api::keyspace::TableSpec| {
        let columns = table.columns.iter();
        let columns: Vec<_> = columns
            .map(|c| format!("{} {}", c.name, c.cql_type))
            .collect();
        format!("{}: {}", table.name, columns.join(", "))
    };
    let tables = plans.iter().map(|(_, table)| columns(table)).collect();
    let sinks: Vec<_> = plans.iter().map(|(plan, table)| (plan, table)).collect();
    (
        key_pointers(&pipeline.spec.topic.key, 4, &sinks).unwrap(),
        tables,
    )
}

#[test]
fn users() {
    let (key, tables) = plan("users");
    assert_eq!(key, ["/login/uuid"]);
    assert_eq!(
        tables,
        [
            "created_users: id uuid, first_name text, last_name text, gender text, address text, \
          post_code text, email text, username text, registered_date text, phone text, picture text"
        ]
    );
}

#[test]
fn licenses() {
    let (key, tables) = plan("licenses");
    assert_eq!(key, ["/license_nbr"]);
    assert_eq!(tables.len(), 2);
    assert!(
        tables[0].contains("lic_expir_dd timestamp"),
        "{}",
        tables[0]
    );
}

#[test]
fn generator() {
    let (key, tables) = plan("generator");
    assert_eq!(key, ["/order_id"]);
    assert!(tables[0].contains("total double"), "{}", tables[0]);
    assert_eq!(tables[1], "gifts: order_id uuid, customer text");
}

#[test]
fn database() {
    let (key, tables) = plan("database");
    assert_eq!(key, ["/id"]);
    assert_eq!(
        tables,
        ["orders: id bigint, email text, total decimal, status text, updated_at timestamp"]
    );
}

#[test]
fn topic() {
    let (key, tables) = plan("topic");
    assert_eq!(key, ["/order_id"]);
    assert!(tables[0].contains("total decimal"), "{}", tables[0]);
}

#[test]
fn lookups() {
    let (key, tables) = plan("lookups");
    assert_eq!(key, ["/order_id"]);
    assert_eq!(
        tables,
        ["orders_by_country: order_id uuid, email text, country text, region text, price double"]
    );
}
