//! The crate as the operator and the worker see it. Tests are data: what a person writes, and in a
//! snapshot what they are told.

// Whatever is unwrapped here fails the test that it is for.
#![allow(clippy::unwrap_used)]

mod avro;
mod examples;
mod execute;
mod expectation;
mod fold;
mod group;
mod join;
mod key;
mod panics;
mod query;
mod schema;
mod serve;
mod table;

use millstream_plan::{RecordSchema, SinkPlan};

/// The Randomuser API's records, in part, with names that need care.
const USERS: &str = r#"
    gender TEXT,
    name STRUCT<title TEXT, first TEXT, last TEXT>,
    location STRUCT<street STRUCT<number INT, name TEXT>, city TEXT, postCode TEXT>,
    login STRUCT<uuid UUID, username TEXT>,
    registered STRUCT<date TIMESTAMP, age INT>,
    tags ARRAY<TEXT>,
    items ARRAY<STRUCT<sku TEXT, amount INT>>,
    score DOUBLE, price DECIMAL(10, 2), small SMALLINT, visits BIGINT, active BOOLEAN, born DATE,
    "@id" TEXT, "a/b~c" STRUCT<"d.e" TEXT>,
    userName TEXT, username TEXT, USERNAME TEXT
"#;

fn users() -> RecordSchema {
    RecordSchema::parse(USERS).unwrap()
}

fn plan(sql: &str) -> SinkPlan {
    SinkPlan::new(&users(), "created-users", sql).unwrap_or_else(|error| panic!("{sql}: {error}"))
}

fn error(sql: &str) -> String {
    match SinkPlan::new(&users(), "created-users", sql) {
        Ok(plan) => panic!("{sql}: was accepted as {:?}", plan.columns),
        Err(error) => error.to_string(),
    }
}

/// What is said of a query, be it refused or not.
fn verdict(sql: &str) -> String {
    match SinkPlan::new(&users(), "created-users", sql) {
        Ok(_) => "is accepted".to_owned(),
        Err(error) => error.to_string(),
    }
}

/// A snapshot of each input, and below it what comes of it.
macro_rules! assert_told {
    ($inputs:expr, $outcome:expr) => {
        insta::with_settings!({omit_expression => true}, {
            let told = $inputs.iter().map(|input| format!("{input}\n    {}\n", $outcome(*input)));
            insta::assert_snapshot!(told.collect::<Vec<_>>().join("\n"));
        })
    };
}
use assert_told;
