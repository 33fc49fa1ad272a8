//! Prints the rows of a CQL query as a table, or a document of a collection: the demo's last word.

use std::{env, time::Duration};

use anyhow::{Context, Result};
use mongodb::{
    Client,
    bson::{Document, doc},
    options::ClientOptions,
};
use scylla::{
    client::{execution_profile::ExecutionProfile, session_builder::SessionBuilder},
    value::{CqlValue, Row},
};

const TIMEOUT: Duration = Duration::from_secs(10);

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
    match arguments.as_slice() {
        ["--contact-point", node, query] => rows(node, query).await,
        ["--documents", server, database, collection] => {
            document(server, database, collection).await
        }
        _ => anyhow::bail!(
            "usage: cql --contact-point HOST:PORT QUERY, or cql --documents HOST:PORT DATABASE COLLECTION"
        ),
    }
}

/// Prints some document of a collection.
async fn document(server: &str, database: &str, collection: &str) -> Result<()> {
    let mut options = ClientOptions::parse(format!("mongodb://{server}/")).await?;
    options.server_selection_timeout = Some(TIMEOUT);
    let database = Client::with_options(options)?.database(database);
    let found = database.collection::<Document>(collection);
    let found = found.find_one(doc! {}).await?;
    println!("{:#}", found.context("no document")?);
    Ok(())
}

async fn rows(node: &str, query: &str) -> Result<()> {
    let profile = ExecutionProfile::builder()
        .request_timeout(Some(TIMEOUT))
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
    let result = session.query_unpaged(query, ()).await?.into_rows_result()?;
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
