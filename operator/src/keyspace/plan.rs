//! What has to be done to a keyspace. Pure: no client, no clock.

use std::collections::{BTreeMap, BTreeSet};

use millstream_api::{
    cql::CqlType,
    keyspace::{
        ColumnSpec, KeyspaceSpec, Order, Replication, ReplicationClass, TableOptions, TableSpec,
    },
};

/// A keyspace as it is in Cassandra.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ObservedKeyspace {
    /// As in `system_schema.keyspaces`: `class` and its options.
    pub replication: BTreeMap<String, String>,
    pub durable_writes: bool,
    pub tables: BTreeMap<String, ObservedTable>,
}

/// A table as it is in Cassandra.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ObservedTable {
    /// Types by column, as Cassandra writes them.
    pub columns: BTreeMap<String, String>,
    pub partition_key: Vec<String>,
    pub clustering_key: Vec<(String, Order)>,
    pub options: TableOptions,
}

/// A change that brings a keyspace nearer to its spec.
#[derive(Clone, Debug, PartialEq)]
pub enum KeyspaceChange {
    CreateKeyspace {
        replication: Replication,
        durable_writes: bool,
    },
    AlterKeyspace {
        replication: Option<Replication>,
        durable_writes: Option<bool>,
    },
    CreateTable(TableSpec),
    AddColumn {
        table: String,
        column: ColumnSpec,
    },
    AlterOptions {
        table: String,
        options: TableOptions,
    },
}

/// What has to be done, and what can't be.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct KeyspacePlan {
    pub changes: Vec<KeyspaceChange>,
    /// Why the replication stays as it is in Cassandra.
    pub refused_replication: Option<String>,
    /// Tables that can't be made to fit, each with the reason.
    pub refusals: BTreeMap<String, String>,
}

/// Compares a keyspace with what is there.
pub fn plan(
    keyspace: &str,
    spec: &KeyspaceSpec,
    default_replication: &Replication,
    observed: Option<&ObservedKeyspace>,
) -> KeyspacePlan {
    let mut plan = KeyspacePlan::default();
    match observed {
        None => plan.changes.push(KeyspaceChange::CreateKeyspace {
            replication: spec
                .replication
                .clone()
                .unwrap_or_else(|| default_replication.clone()),
            durable_writes: spec.durable_writes.unwrap_or(true),
        }),
        Some(observed) => {
            let replication = raised(keyspace, spec, observed).unwrap_or_else(|reason| {
                plan.refused_replication = Some(reason);
                None
            });
            plan.changes
                .extend(alter_keyspace(spec, replication, observed));
        }
    }
    for table in &spec.tables {
        let there = observed.and_then(|observed| observed.tables.get(&table.name));
        match there {
            None => plan
                .changes
                .push(KeyspaceChange::CreateTable(table.clone())),
            Some(there) => match alter_table(keyspace, table, there) {
                Ok(changes) => plan.changes.extend(changes),
                Err(reason) => {
                    plan.refusals.insert(table.name.clone(), reason);
                }
            },
        }
    }
    plan
}

/// The tables that aren't those that are declared, each with the reason.
pub fn refusals(
    keyspace: &str,
    tables: &[TableSpec],
    observed: &ObservedKeyspace,
) -> BTreeMap<String, String> {
    let there = tables.iter().filter_map(|table| {
        let observed = observed.tables.get(&table.name)?;
        let reason = alter_table(keyspace, table, observed).err()?;
        Some((table.name.clone(), reason))
    });
    there.collect()
}

fn alter_keyspace(
    spec: &KeyspaceSpec,
    replication: Option<Replication>,
    observed: &ObservedKeyspace,
) -> Option<KeyspaceChange> {
    let durable_writes = spec
        .durable_writes
        .filter(|declared| *declared != observed.durable_writes);
    (replication.is_some() || durable_writes.is_some()).then_some(KeyspaceChange::AlterKeyspace {
        replication,
        durable_writes,
    })
}

/// The replication, where it has more replicas than are there; the reason why it can't be set, where
/// it has fewer or others: rows would be gone, or not be found until a repair.
fn raised(
    keyspace: &str,
    spec: &KeyspaceSpec,
    observed: &ObservedKeyspace,
) -> Result<Option<Replication>, String> {
    let Some(declared) = &spec.replication else {
        return Ok(None);
    };
    let (class, there) = class_and_options(&observed.replication);
    let (declared_class, factors) = class_and_factors(declared);
    let kept = there.iter().all(|(name, there)| {
        let declared = factors.get(name);
        declared.is_some_and(|declared| there.parse::<u32>().is_ok_and(|there| there <= *declared))
    });
    if class != declared_class || !kept {
        let entries = there.iter().map(|(name, value)| format!("{name}: {value}"));
        return Err(format!(
            "replication: keyspace {keyspace} has {class} with {} in Cassandra, and Millstream takes no replicas away: declare that, or more replicas, or alter the keyspace in Cassandra by hand (and repair it)",
            entries.collect::<Vec<_>>().join(", ")
        ));
    }
    let same = factors.len() == there.len()
        && factors
            .iter()
            .all(|(name, factor)| there[name] == factor.to_string());
    Ok((!same).then(|| declared.clone()))
}

fn class_and_factors(declared: &Replication) -> (&str, BTreeMap<&str, u32>) {
    match declared.class {
        ReplicationClass::SimpleStrategy => {
            let factor = declared.replication_factor.unwrap_or(1);
            let factors = BTreeMap::from([("replication_factor", factor)]);
            ("SimpleStrategy", factors)
        }
        ReplicationClass::NetworkTopologyStrategy => {
            let datacenters = declared.datacenters.iter().flatten();
            let factors = datacenters.map(|(name, factor)| (name.as_str(), *factor));
            ("NetworkTopologyStrategy", factors.collect())
        }
    }
}

/// As in `system_schema.keyspaces`; Cassandra writes the class with its package.
fn class_and_options(observed: &BTreeMap<String, String>) -> (&str, BTreeMap<&str, &str>) {
    let options = observed.iter();
    let options = options.map(|(name, value)| (name.as_str(), value.as_str()));
    let mut options: BTreeMap<_, _> = options.collect();
    let class = options.remove("class").unwrap_or_default();
    (class.rsplit('.').next().unwrap_or_default(), options)
}

/// Changes to a table, or the reason why it can't be made to fit.
fn alter_table(
    keyspace: &str,
    declared: &TableSpec,
    observed: &ObservedTable,
) -> Result<Vec<KeyspaceChange>, String> {
    let name = format!("{keyspace}.{}", declared.name);
    check_primary_key(&name, declared, observed)?;
    let mut changes = Vec::new();
    for column in &declared.columns {
        match observed.columns.get(&column.name) {
            None => changes.push(KeyspaceChange::AddColumn {
                table: declared.name.clone(),
                column: column.clone(),
            }),
            Some(there) if !same_type(&column.cql_type, there) => {
                return Err(format!(
                    "column `{}` of table {name} is `{there}` in Cassandra and `{}` here; Cassandra can't change a column's type: declare `{there}`, or use a new column or table",
                    column.name, column.cql_type
                ));
            }
            Some(_) => {}
        }
    }
    changes.extend(alter_options(declared, observed));
    Ok(changes)
}

fn check_primary_key(
    name: &str,
    declared: &TableSpec,
    observed: &ObservedTable,
) -> Result<(), String> {
    let key = &declared.primary_key;
    let clustering: Vec<_> = key
        .clustering_key
        .iter()
        .map(|column| (column.name.clone(), column.order))
        .collect();
    if key.partition_key == observed.partition_key && clustering == observed.clustering_key {
        return Ok(());
    }
    let here = print_key(&key.partition_key, &clustering);
    let there = print_key(&observed.partition_key, &observed.clustering_key);
    let in_cassandra: BTreeSet<_> = key_columns(&observed.partition_key, &observed.clustering_key);
    let in_spec = key_columns(&key.partition_key, &clustering);
    let differing: Vec<_> = in_cassandra
        .symmetric_difference(&in_spec)
        .map(|column| format!("`{column}`"))
        .collect();
    let differing = if differing.is_empty() {
        "the columns are the same, their places or orders are not".to_string()
    } else {
        format!("they differ in {}", differing.join(", "))
    };
    Err(format!(
        "the primary key of table {name} is {there} in Cassandra and {here} here ({differing}); a primary key can't be changed: declare {there}, or use a new table"
    ))
}

fn key_columns(partition: &[String], clustering: &[(String, Order)]) -> BTreeSet<String> {
    let clustering = clustering.iter().map(|(name, _)| name.clone());
    partition.iter().cloned().chain(clustering).collect()
}

fn print_key(partition: &[String], clustering: &[(String, Order)]) -> String {
    let clustering: String = clustering
        .iter()
        .map(|(name, order)| match order {
            Order::Ascending => format!(", {name}"),
            Order::Descending => format!(", {name} DESC"),
        })
        .collect();
    format!("(({}){clustering})", partition.join(", "))
}

fn alter_options(declared: &TableSpec, observed: &ObservedTable) -> Option<KeyspaceChange> {
    let declared_options = declared.options.as_ref()?;
    let there = &observed.options;
    let options = TableOptions {
        default_time_to_live: declared_options
            .default_time_to_live
            .filter(|seconds| there.default_time_to_live != Some(*seconds)),
        gc_grace_seconds: declared_options
            .gc_grace_seconds
            .filter(|seconds| there.gc_grace_seconds != Some(*seconds)),
        comment: declared_options
            .comment
            .clone()
            .filter(|comment| there.comment.as_ref() != Some(comment)),
    };
    (options != TableOptions::default()).then(|| KeyspaceChange::AlterOptions {
        table: declared.name.clone(),
        options,
    })
}

/// Whether a type as Cassandra writes it is the declared one.
pub fn same_type(declared: &CqlType, observed: &str) -> bool {
    match observed.parse::<CqlType>() {
        Ok(observed) => canonical(declared, false) == canonical(&observed, false),
        Err(_) => declared.to_string() == observed,
    }
}

/// Without the `frozen` that says nothing: around a tuple, which always is, and within what is
/// frozen already.
fn canonical(cql_type: &CqlType, frozen: bool) -> CqlType {
    let inner = |inner: &CqlType| Box::new(canonical(inner, frozen));
    match cql_type {
        CqlType::Frozen(inner) => match canonical(inner, true) {
            tuple @ CqlType::Tuple(_) => tuple,
            collection if frozen => collection,
            collection => CqlType::Frozen(Box::new(collection)),
        },
        CqlType::List(element) => CqlType::List(inner(element)),
        CqlType::Set(element) => CqlType::Set(inner(element)),
        CqlType::Map(key, value) => CqlType::Map(inner(key), inner(value)),
        CqlType::Tuple(members) => {
            CqlType::Tuple(members.iter().map(|m| canonical(m, true)).collect())
        }
        simple => simple.clone(),
    }
}

impl KeyspaceChange {
    /// The table that is changed, where it is one.
    pub fn table(&self) -> Option<&str> {
        match self {
            KeyspaceChange::CreateKeyspace { .. } | KeyspaceChange::AlterKeyspace { .. } => None,
            KeyspaceChange::CreateTable(table) => Some(&table.name),
            KeyspaceChange::AddColumn { table, .. }
            | KeyspaceChange::AlterOptions { table, .. } => Some(table),
        }
    }

    /// The change in words, for events and for what was put right.
    pub fn describe(&self) -> String {
        match self {
            KeyspaceChange::CreateKeyspace { .. } => "created the keyspace".into(),
            KeyspaceChange::AlterKeyspace {
                replication,
                durable_writes,
            } => {
                let replication = replication.as_ref().map(|_| "replication".to_string());
                let durable = durable_writes.map(|value| format!("durable_writes = {value}"));
                let what: Vec<_> = replication.into_iter().chain(durable).collect();
                format!("set {}", what.join(" and "))
            }
            KeyspaceChange::CreateTable(table) => format!("created table {}", table.name),
            KeyspaceChange::AddColumn { table, column } => format!(
                "added column {} {} to table {table}",
                column.name, column.cql_type
            ),
            KeyspaceChange::AlterOptions { table, options } => {
                let ttl = options
                    .default_time_to_live
                    .map(|v| ("default_time_to_live", v));
                let grace = options.gc_grace_seconds.map(|v| ("gc_grace_seconds", v));
                let numbers = ttl.into_iter().chain(grace);
                let mut set: Vec<_> = numbers.map(|(key, v)| format!("{key} = {v}")).collect();
                set.extend(options.comment.as_ref().map(|_| "comment".to_string()));
                format!("set {} of table {table}", set.join(", "))
            }
        }
    }
}

#[cfg(test)]
mod tests;
