//! CQL statements. Every identifier is quoted, every text escaped.

use std::fmt::Write;

use millstream_api::{
    cql::quoted,
    keyspace::{ColumnSpec, Order, Replication, ReplicationClass, TableOptions, TableSpec},
};

use super::plan::KeyspaceChange;

/// The statement that makes a change.
pub fn statement(keyspace: &str, change: &KeyspaceChange) -> String {
    match change {
        KeyspaceChange::CreateKeyspace {
            replication,
            durable_writes,
        } => format!(
            "CREATE KEYSPACE IF NOT EXISTS {} WITH {}",
            quoted(keyspace),
            keyspace_options(Some(replication), Some(*durable_writes))
        ),
        KeyspaceChange::AlterKeyspace {
            replication,
            durable_writes,
        } => format!(
            "ALTER KEYSPACE {} WITH {}",
            quoted(keyspace),
            keyspace_options(replication.as_ref(), *durable_writes)
        ),
        KeyspaceChange::CreateTable(table) => create_table(keyspace, table),
        KeyspaceChange::AddColumn { table, column } => format!(
            "ALTER TABLE {} ADD {}",
            qualified(keyspace, table),
            definition(column)
        ),
        KeyspaceChange::AlterOptions { table, options } => format!(
            "ALTER TABLE {} WITH {}",
            qualified(keyspace, table),
            table_options(options).join(" AND ")
        ),
    }
}

/// Drops a table, if it is there.
pub fn drop_table(keyspace: &str, table: &str) -> String {
    format!("DROP TABLE IF EXISTS {}", qualified(keyspace, table))
}

/// Drops a keyspace, if it is there.
pub fn drop_keyspace(keyspace: &str) -> String {
    format!("DROP KEYSPACE IF EXISTS {}", quoted(keyspace))
}

fn create_table(keyspace: &str, table: &TableSpec) -> String {
    let columns: Vec<_> = table.columns.iter().map(definition).collect();
    let key = &table.primary_key;
    let partition: Vec<_> = key.partition_key.iter().map(|c| quoted(c)).collect();
    let clustering: String = key
        .clustering_key
        .iter()
        .map(|column| format!(", {}", quoted(&column.name)))
        .collect();
    let mut options = Vec::new();
    if !key.clustering_key.is_empty() {
        let order: Vec<_> = key
            .clustering_key
            .iter()
            .map(|column| {
                let direction = match column.order {
                    Order::Ascending => "ASC",
                    Order::Descending => "DESC",
                };
                format!("{} {direction}", quoted(&column.name))
            })
            .collect();
        options.push(format!("CLUSTERING ORDER BY ({})", order.join(", ")));
    }
    if let Some(declared) = &table.options {
        options.extend(table_options(declared));
    }
    let mut cql = format!(
        "CREATE TABLE IF NOT EXISTS {} ({}, PRIMARY KEY (({}){clustering}))",
        qualified(keyspace, &table.name),
        columns.join(", "),
        partition.join(", "),
    );
    if !options.is_empty() {
        let _ = write!(cql, " WITH {}", options.join(" AND "));
    }
    cql
}

fn definition(column: &ColumnSpec) -> String {
    format!("{} {}", quoted(&column.name), column.cql_type)
}

fn keyspace_options(replication: Option<&Replication>, durable_writes: Option<bool>) -> String {
    let replication = replication.map(|replication| format!("replication = {}", map(replication)));
    let durable = durable_writes.map(|durable| format!("durable_writes = {durable}"));
    let options: Vec<_> = replication.into_iter().chain(durable).collect();
    options.join(" AND ")
}

fn map(replication: &Replication) -> String {
    let mut entries = Vec::new();
    match replication.class {
        ReplicationClass::SimpleStrategy => {
            let factor = replication.replication_factor.unwrap_or(1);
            entries.push("'class': 'SimpleStrategy'".to_string());
            entries.push(format!("'replication_factor': {factor}"));
        }
        ReplicationClass::NetworkTopologyStrategy => {
            entries.push("'class': 'NetworkTopologyStrategy'".to_string());
            for (datacenter, factor) in replication.datacenters.iter().flatten() {
                entries.push(format!("{}: {factor}", text(datacenter)));
            }
        }
    }
    format!("{{{}}}", entries.join(", "))
}

fn table_options(options: &TableOptions) -> Vec<String> {
    let ttl = options
        .default_time_to_live
        .map(|seconds| format!("default_time_to_live = {seconds}"));
    let grace = options
        .gc_grace_seconds
        .map(|seconds| format!("gc_grace_seconds = {seconds}"));
    let comment = options
        .comment
        .as_ref()
        .map(|comment| format!("comment = {}", text(comment)));
    ttl.into_iter().chain(grace).chain(comment).collect()
}

fn qualified(keyspace: &str, table: &str) -> String {
    format!("{}.{}", quoted(keyspace), quoted(table))
}

fn text(value: &str) -> String {
    format!("'{}'", value.replace('\'', "''"))
}
