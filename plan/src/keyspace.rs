//! Whether a Keyspace's spec makes sense: what the API server's schema can't check.

use std::collections::{BTreeMap, BTreeSet};

use millstream_api::{
    cql::CqlType,
    keyspace::{KeyspaceSpec, ReplicationClass, TableSpec},
};

use crate::Refusal;

/// Checks a spec; the error names the field.
pub fn accept_keyspace(keyspace: &str, spec: &KeyspaceSpec) -> Result<(), Refusal> {
    if keyspace == "system" || keyspace.starts_with("system_") {
        return Err(Refusal::InvalidSpec(format!(
            "keyspace `{keyspace}` is Cassandra's own: choose another name"
        )));
    }
    let valid = |name: &str| {
        name.len() <= 48
            && name.starts_with(|c: char| c.is_ascii_lowercase())
            && name
                .chars()
                .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
    };
    if !valid(keyspace) {
        return Err(Refusal::InvalidSpec(format!(
            "`{keyspace}` (from metadata.name) can't be a keyspace's name: set spec.keyspaceName, at most 48 of a-z, 0-9 and _, a letter first"
        )));
    }
    if let Some(replication) = &spec.replication
        && replication.class == ReplicationClass::NetworkTopologyStrategy
        && replication
            .datacenters
            .as_ref()
            .is_none_or(BTreeMap::is_empty)
    {
        return Err(Refusal::InvalidSpec(
            "spec.replication.datacenters is empty: name a datacenter and its replicas".into(),
        ));
    }
    let mut names = BTreeSet::new();
    for table in &spec.tables {
        if !names.insert(&table.name) {
            return Err(Refusal::InvalidSpec(format!(
                "spec.tables has `{}` twice",
                table.name
            )));
        }
        accept_table(table)
            .map_err(|wrong| Refusal::InvalidSpec(format!("spec.tables[{}]{wrong}", table.name)))?;
    }
    Ok(())
}

/// What is wrong, beginning with the field within the table.
fn accept_table(table: &TableSpec) -> Result<(), String> {
    let mut columns = BTreeMap::new();
    for column in &table.columns {
        if columns
            .insert(column.name.as_str(), &column.cql_type)
            .is_some()
        {
            return Err(format!(".columns has `{}` twice", column.name));
        }
    }
    if table.primary_key.partition_key.is_empty() {
        return Err(".primaryKey.partitionKey is empty: name a column".into());
    }
    let mut in_key = BTreeSet::new();
    for name in table.primary_key.columns() {
        let Some(cql_type) = columns.get(name) else {
            return Err(format!(
                ".primaryKey names `{name}`, which isn't in .columns: add it there"
            ));
        };
        if !in_key.insert(name) {
            return Err(format!(".primaryKey has `{name}` twice"));
        }
        let unfit = match cql_type {
            CqlType::List(_) | CqlType::Set(_) | CqlType::Map(..) => Some("freeze it: frozen<…>"),
            CqlType::Duration => Some("use another type"),
            _ => None,
        };
        if let Some(way_out) = unfit {
            return Err(format!(
                ".primaryKey: column `{name}` is `{cql_type}`, which can't be in a primary key; {way_out}"
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_which_field_is_wrong() {
        for (keyspace, spec, says) in [
            ("system_auth", "{}", "Cassandra's own"),
            ("9lives", "{}", "spec.keyspaceName"),
            (
                "k",
                "{replication: {class: NetworkTopologyStrategy, datacenters: {}}}",
                "spec.replication.datacenters",
            ),
            (
                "k",
                "{tables: [{name: t, columns: [{name: a, type: int}, {name: a, type: int}], primaryKey: {partitionKey: [a]}}]}",
                "spec.tables[t].columns has `a` twice",
            ),
            (
                "k",
                "{tables: [{name: t, columns: [{name: a, type: int}], primaryKey: {partitionKey: [b]}}]}",
                "spec.tables[t].primaryKey names `b`",
            ),
            (
                "k",
                "{tables: [{name: t, columns: [{name: a, type: list<int>}], primaryKey: {partitionKey: [a]}}]}",
                "freeze it",
            ),
            (
                "k",
                "{tables: [{name: t, columns: [{name: a, type: int}], primaryKey: {partitionKey: [a], clusteringKey: [{name: a}]}}]}",
                "has `a` twice",
            ),
        ] {
            let spec: KeyspaceSpec = serde_saphyr::from_str(spec).unwrap();
            let error = accept_keyspace(keyspace, &spec).unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        }
        let good = "{tables: [{name: t, columns: [{name: a, type: frozen<list<int>>}], primaryKey: {partitionKey: [a]}}]}";
        accept_keyspace("k", &serde_saphyr::from_str(good).unwrap()).unwrap();
    }
}
