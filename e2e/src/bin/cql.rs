//! Prints the rows of a CQL query as a table: the demo's last word.

use std::{env, time::Duration};

use anyhow::{Context, Result};
use scylla::{
    client::{execution_profile::ExecutionProfile, session_builder::SessionBuilder},
    value::{CqlValue, Row},
};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [flag, node, query] = arguments.as_slice() else {
        anyhow::bail!("usage: cql --contact-point HOST:PORT QUERY");
    };
    anyhow::ensure!(
        flag == "--contact-point",
        "usage: cql --contact-point HOST:PORT QUERY"
    );
    let profile = ExecutionProfile::builder()
        .request_timeout(Some(Duration::from_secs(10)))
        .build();
    let mut builder = SessionBuilder::new()
        .known_node(node)
        .default_execution_profile_handle(profile.into_handle());
    if let (Ok(user), Ok(password)) = (
        env::var("CASSANDRA_USERNAME"),
        env::var("CASSANDRA_PASSWORD"),
    ) {
        builder = builder.user(user, password);
    }
    let session = builder
        .build()
        .await
        .with_context(|| format!("connecting to Cassandra at {node}"))?;
    let result = session
        .query_unpaged(query.as_str(), ())
        .await?
        .into_rows_result()?;
    let mut table = comfy_table::Table::new();
    table.load_preset(comfy_table::presets::UTF8_FULL_CONDENSED);
    table.set_header(
        result
            .column_specs()
            .iter()
            .map(|column| column.name().to_owned()),
    );
    for row in result.rows::<Row>()? {
        table.add_row(row?.columns.iter().map(shown));
    }
    println!("{table}");
    Ok(())
}

fn shown(value: &Option<CqlValue>) -> String {
    match value {
        None => "null".to_owned(),
        Some(CqlValue::Text(text) | CqlValue::Ascii(text)) => text.clone(),
        Some(value) => value.to_string(),
    }
}
