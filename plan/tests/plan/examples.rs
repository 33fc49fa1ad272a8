//! The pipelines of `examples/` are accepted.

use std::path::Path;

use millstream_api::{DataPipeline, keyspace::PrimaryKey};
use millstream_plan::{Expectations, RecordSchema, SinkPlan, accept, plan_lookups, topic_key};

fn pipeline(example: &str) -> DataPipeline {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../examples")
        .join(example);
    let text = std::fs::read_to_string(path.join("pipeline.yaml")).unwrap();
    // Behind the Secrets and claims that it needs.
    let text = text.rsplit("\n---\n").next().unwrap();
    serde_saphyr::from_str(text).unwrap()
}

/// Plans a pipeline as the operator does; gives the record's key and the tables' columns.
fn plan(example: &str) -> (Vec<String>, Vec<String>) {
    let pipeline = pipeline(example);
    let schema = RecordSchema::parse(&pipeline.spec.schema).unwrap();
    let lookups = plan_lookups(&pipeline.spec.lookups).unwrap();
    let mut plans = Vec::new();
    for sink in &pipeline.spec.sinks {
        let plan = SinkPlan::joining(&schema, &lookups, &sink.name, &sink.sql).unwrap();
        Expectations::new(&plan, &sink.expectations).unwrap();
        let table = match (&sink.cassandra, &sink.document) {
            (Some(to), _) => {
                let key = to.primary_key.as_ref().unwrap();
                plan.declare_table(&to.table, key).unwrap()
            }
            (_, to) => {
                let key = PrimaryKey {
                    partition_key: vec![to.as_ref().unwrap().id.clone()],
                    ..PrimaryKey::default()
                };
                plan.declare_table(&sink.name, &key).unwrap()
            }
        };
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
        topic_key(&pipeline.spec.topic.key, 4, &sinks).unwrap(),
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
fn users_by_schedule_are_the_same_but_for_the_schedule() {
    for example in ["users", "users-avro"] {
        let mut scheduled = pipeline(&format!("{example}/scheduled"));
        let accepted = accept(&scheduled, &[]).unwrap();
        assert!(accepted.calendar.is_some(), "{example}");
        scheduled.spec.schedule = None;
        assert_eq!(scheduled, pipeline(example));
    }
}

#[test]
fn licenses() {
    let (key, tables) = plan("licenses");
    assert_eq!(key, ["/license_nbr"]);
    let all = "license_nbr text, license_type text, lic_expir_dd timestamp, license_status text, \
        license_creation_date timestamp, industry text, business_name text, business_name_2 text, \
        detail text, address_building text, address_street_name text, address_street_name_2 text, \
        address_city text, address_state text, address_zip text, contact_phone text, \
        address_borough text, borough_code text, community_board text, council_district text, \
        bin text, bbl text, nta text, census_tract text, longitude double, latitude double";
    assert_eq!(
        tables,
        [
            format!("licenses: {all}"),
            "active_by_borough: borough text, license_nbr text, business_name text, industry text, \
            expires timestamp"
                .to_owned(),
            format!("documents: {all}"),
        ]
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
fn users_avro() {
    let (key, tables) = plan("users-avro");
    assert_eq!(key, ["/login/uuid"]);
    assert_eq!(tables[0], plan("users").1[0]);
    assert_eq!(
        tables[1],
        "seniors: country text, id uuid, name text, age int"
    );
    assert_eq!(tables[2], tables[1].replace("seniors", "juniors"));
}

#[test]
fn meetup() {
    let (key, tables) = plan("meetup");
    assert_eq!(key, ["/venue/venue_id"]);
    assert_eq!(
        tables,
        [
            "venues: venue_id bigint, count bigint, group_city text, lat text, lon text, \
          venue_name text"
        ]
    );
}

#[test]
fn sessions() {
    let accepted = accept(&pipeline("sessions"), &[]).unwrap();
    assert_eq!(accepted.key, ["/session_id"]);
    let games = &accepted.declared["games"];
    let mut names: Vec<_> = games.iter().map(|table| table.name.as_str()).collect();
    names.sort_unstable();
    assert_eq!(
        names,
        [
            "sessions",
            "sessions__state",
            "started_sessions",
            "uc_delta_event_sessions__state"
        ]
    );
    let pipeline = pipeline("sessions");
    let schema = RecordSchema::parse(&pipeline.spec.schema).unwrap();
    let mut sinks = pipeline.spec.sinks.iter();
    let lake = sinks.find(|sink| sink.name == "event-sessions").unwrap();
    let lake = SinkPlan::new(&schema, &lake.name, &lake.sql).unwrap();
    let columns: Vec<_> = lake.columns.iter().map(|c| c.name.as_str()).collect();
    assert_eq!(
        columns.join(" "),
        "country player_id session_id start_ts end_ts session_status DL_INSERT_TS DL_UPDATE_TS"
    );
    let sessions = games.iter().find(|table| table.name == "sessions");
    let columns = sessions.unwrap().columns.iter();
    let columns: Vec<_> = columns.map(|column| column.name.as_str()).collect();
    assert_eq!(
        columns.join(" "),
        "player_id session_id country start_ts end_ts session_status dl_insert_ts dl_update_ts"
    );
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
