//! Whether a pipeline makes sense: schema, SQL, tables, key.

mod delta;
mod document;
mod having;

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{FieldsV1, ManagedFieldsEntry};
use kube::ResourceExt;
use millstream_api::{
    DataPipeline, Keyspace, Lookup,
    condition::{READY, holds},
    keyspace::{PrimaryKey, TableSpec},
    sink::{CassandraSink, Sink, Target},
    worker::{CassandraTable, Destination, PipelineRef, SinkConfig},
};

use crate::{
    Calendar, Expectations, RecordSchema, Refusal, SinkPlan, check_records,
    key::is_keyed,
    schedule::{accept_after, accept_schedule},
    serve::accept::accept_service,
    topic_key,
};

mod lookups;

pub use delta::{delta_type, has_rounded_statistics};
pub use lookups::plan_lookups;

/// Cassandra's limit for a time to live: 20 years.
const MAX_TTL_SECONDS: u64 = 630_720_000;

/// The stage that reads the source, as status, metrics and dead letters name it beside the sinks.
const INGEST: &str = "ingest";

/// A pipeline that makes sense.
#[derive(Clone, Debug, PartialEq)]
pub struct Accepted {
    /// JSON Pointers to the fields that make a record's key.
    pub key: Vec<String>,
    /// Names of the sinks that have a GROUP BY: all records of a group must have been keyed alike, and
    /// its state stays where it is.
    pub grouped: Vec<String>,
    /// Names of the sinks whose topic can't change its key: all records of a group, or of a row that
    /// later ones replace, must have been keyed alike.
    pub keyed: Vec<String>,
    /// What the sinks may join, each with its schema.
    pub lookups: Vec<Lookup>,
    pub sinks: Vec<SinkConfig>,
    /// By keyspace: the tables that the pipeline declares itself.
    pub declared: BTreeMap<String, Vec<TableSpec>>,
    /// When its runs begin, where it has a schedule.
    pub calendar: Option<Calendar>,
}

/// By keyspace: tables that a pipeline declares.
type Declared = BTreeMap<String, Vec<TableSpec>>;

/// Field manager under which a pipeline declares tables: each has its own, so that several can
/// share a Keyspace.
pub fn keyspace_manager(pipeline: &str) -> String {
    format!("millstream-pipeline-{pipeline}")
}

/// Checks a pipeline against the Keyspaces of its namespace.
pub fn accept(pipeline: &DataPipeline, keyspaces: &[Keyspace]) -> Result<Accepted, Refusal> {
    let schema = RecordSchema::parse(&pipeline.spec.schema)?;
    check_records(pipeline, &schema)?;
    accept_after(pipeline)?;
    let calendar = accept_schedule(pipeline)?;
    let lookups = lookups::accept_lookups(pipeline, keyspaces)?;
    let joinable = plan_lookups(&lookups)?;
    let mut planned: Vec<(SinkPlan, TableSpec, SinkConfig)> = Vec::new();
    let mut declared = Declared::new();
    for sink in &pipeline.spec.sinks {
        check_name(sink)?;
        let plan = SinkPlan::joining(&schema, &joinable, &sink.name, &sink.sql)?;
        Expectations::new(&plan, &sink.expectations)?;
        check_ttl(sink, &plan)?;
        let (rows, destination) = match sink.target() {
            Some(Target::Cassandra(to)) => {
                let to = accept_table(pipeline, sink, to, &plan, keyspaces, &mut declared)?;
                (to.table.clone(), Destination::Cassandra(to))
            }
            Some(Target::Delta(to)) => delta::accept_delta(sink, to, &plan)?,
            Some(Target::Document(to)) => document::accept_document(pipeline, sink, to, &plan)?,
            None => return Err(not_one_target(sink)),
        };
        let state = match destination {
            Destination::Cassandra(_) => None,
            Destination::Delta(_) | Destination::Document(_) => state_beside(sink, &plan, &rows)?,
        };
        let config = SinkConfig {
            name: sink.name.clone(),
            sql: sink.sql.clone(),
            expectations: sink.expectations.clone(),
            destination,
            state,
            state_ttl: sink.state_ttl,
        };
        delta::check_alone(&config, planned.iter().map(|(_, _, before)| before))?;
        if let Some(beside) = config.cassandra() {
            let owner = owner(pipeline).sink_group(&sink.name);
            if let Some(mut state) = plan.state_table(&beside.table, &owner) {
                having::mark(&mut state, &plan);
                let keyspace = find_keyspace(keyspaces, &beside.keyspace);
                same_state(sink, beside, &state, keyspace)?;
                let tables = declared.entry(beside.keyspace.clone()).or_default();
                declare_state(tables, state, sink, beside)?;
            }
        }
        planned.push((plan, rows, config));
    }
    having::check_alone(&planned)?;
    let with_tables: Vec<_> = planned.iter().map(|(plan, rows, _)| (plan, rows)).collect();
    let topic = &pipeline.spec.topic;
    let key = topic_key(&topic.key, topic.partitions, &with_tables)?;
    let keyed = planned.iter();
    let keyed = keyed.filter(|(plan, rows, _)| plan.is_grouped() || is_keyed(&(plan, rows)));
    let keyed = keyed.map(|(plan, ..)| plan.name.clone()).collect();
    let in_lake = planned.iter().filter(|(_, _, config)| config.is_delta());
    let lake: Vec<_> = in_lake.map(|(plan, ..)| delta::lake_table(plan)).collect();
    let grouped = planned.iter().filter(|(plan, ..)| plan.is_grouped());
    let grouped = grouped.map(|(plan, ..)| plan.name.clone()).collect();
    let sinks: Vec<_> = planned.into_iter().map(|(_, _, config)| config).collect();
    accept_service(pipeline, keyspaces, &sinks, &lake)?;
    Ok(Accepted {
        key,
        grouped,
        keyed,
        lookups,
        sinks,
        declared,
        calendar,
    })
}

/// Refuses the name under which the source is told of: dead letters of the two couldn't be told apart.
fn check_name(sink: &Sink) -> Result<(), Refusal> {
    match sink.name.as_str() {
        INGEST => Err(Refusal::InvalidSpec(format!(
            "sink `{INGEST}`: in status, metrics and dead letters the source has this name: give the sink another one"
        ))),
        _ => Ok(()),
    }
}

fn not_one_target(sink: &Sink) -> Refusal {
    Refusal::InvalidSpec(format!(
        "sink `{}`: exactly one of cassandra, delta and document must be set",
        sink.name
    ))
}

/// A Cassandra table that takes rows; declares it where nobody else does.
fn accept_table(
    pipeline: &DataPipeline,
    sink: &Sink,
    to: &CassandraSink,
    plan: &SinkPlan,
    keyspaces: &[Keyspace],
    declared: &mut Declared,
) -> Result<CassandraTable, Refusal> {
    let manager = keyspace_manager(&pipeline.name_any());
    let keyspace = find_keyspace(keyspaces, &to.keyspace);
    let (table, mine) = table(&sink.name, to, plan, keyspace, &manager)?;
    if let Some(keyspace) = keyspace {
        having::check_shared(&sink.name, to, plan, keyspace, &manager)?;
    }
    let tables = declared.entry(to.keyspace.clone()).or_default();
    if mine {
        declare(tables, &table, &sink.name)?;
    }
    Ok(CassandraTable {
        keyspace: to.keyspace.clone(),
        table,
        consistency: to.consistency,
    })
}

/// The table beside which the states of groups are whose rows don't go to Cassandra: `rows`, which
/// isn't there.
fn state_beside(
    sink: &Sink,
    plan: &SinkPlan,
    rows: &TableSpec,
) -> Result<Option<CassandraTable>, Refusal> {
    let problem = match (&sink.state, plan.is_grouped()) {
        (None, false) => return Ok(None),
        (Some(state), true) => {
            return Ok(Some(CassandraTable {
                keyspace: state.keyspace.clone(),
                table: rows.clone(),
                consistency: state.consistency,
            }));
        }
        (None, true) => {
            "the SQL has a GROUP BY, whose state is kept in Cassandra: say where with state.keyspace and state.table"
        }
        (Some(_), false) => "state: the SQL has no GROUP BY, and so no state: take it out",
    };
    Err(Refusal::InvalidSpec(format!(
        "sink `{}`: {problem}",
        sink.name
    )))
}

/// The Keyspace that has a keyspace: of several that claim it the oldest, as it is the one that
/// wins.
pub fn find_keyspace<'a>(keyspaces: &'a [Keyspace], name: &str) -> Option<&'a Keyspace> {
    keyspaces
        .iter()
        .filter(|keyspace| keyspace.keyspace_name() == name)
        .min_by_key(|keyspace| {
            let created = keyspace.creation_timestamp().map(|time| time.0);
            (created, keyspace.uid())
        })
}

/// The table of a sink, and whether the pipeline declares it.
fn table(
    sink: &str,
    to: &CassandraSink,
    plan: &SinkPlan,
    keyspace: Option<&Keyspace>,
    manager: &str,
) -> Result<(TableSpec, bool), Refusal> {
    let name = &to.table;
    let there = keyspace.and_then(|keyspace| {
        let table = keyspace
            .spec
            .tables
            .iter()
            .find(|table| table.name == *name)?;
        let owners = owners(keyspace, name);
        let others: Vec<_> = owners.iter().filter(|owner| *owner != manager).collect();
        let by_pipelines = others
            .iter()
            .all(|owner| owner.starts_with(&keyspace_manager("")));
        (!others.is_empty()).then_some((keyspace, table, by_pipelines))
    });
    match (there, &to.primary_key) {
        (None, Some(primary_key)) => {
            let mine = plan.declare_table(name, primary_key)?;
            if let Some(settled) = keyspace.and_then(|keyspace| settled(keyspace, name)) {
                fits_settled(sink, to, &mine, settled)?;
            }
            Ok((mine, true))
        }
        (None, None) => Err(Refusal::InvalidSpec(format!(
            "sink `{}`: no Keyspace of this namespace declares table {}.{name}: give cassandra.primaryKey here and the pipeline declares the table, or declare it in a Keyspace",
            sink, to.keyspace
        ))),
        (Some((keyspace, table, by_pipelines)), wanted) => {
            if let Some(wanted) = wanted {
                same_primary_key(sink, wanted, keyspace, table)?;
                if by_pipelines {
                    // Pipelines share a table: each declares the columns that it writes.
                    let mine = plan.declare_table(name, wanted)?;
                    same_types(sink, &mine, keyspace, table)?;
                    return Ok((mine, true));
                }
            }
            plan.check_table(&to.keyspace, table)?;
            Ok((table.clone(), false))
        }
    }
}

/// The table as it is in Cassandra, as far as the Keyspace knows: it is Ready with it.
fn settled<'a>(keyspace: &'a Keyspace, table: &str) -> Option<&'a TableSpec> {
    let status = keyspace.status.as_ref()?;
    let generation = keyspace.metadata.generation;
    holds(&status.conditions, READY, generation).then_some(())?;
    keyspace
        .spec
        .tables
        .iter()
        .find(|there| there.name == table)
}

/// Refuses a change that Cassandra can't make, before the Keyspace is asked for it: others have
/// tables in it.
fn fits_settled(
    sink: &str,
    to: &CassandraSink,
    mine: &TableSpec,
    settled: &TableSpec,
) -> Result<(), Refusal> {
    let table = format!("{}.{}", to.keyspace, mine.name);
    if mine.primary_key != settled.primary_key {
        let columns = settled.primary_key.columns().collect::<Vec<_>>().join(", ");
        return Err(Refusal::Incompatible(format!(
            "sink `{}`: the primary key of table {table} is ({columns}) in Cassandra and can't be changed: go back to it, or use a new table",
            sink
        )));
    }
    for column in &mine.columns {
        let mut there = settled.columns.iter();
        if let Some(there) = there.find(|there| there.name == column.name)
            && there.cql_type != column.cql_type
        {
            return Err(Refusal::Incompatible(format!(
                "sink `{}`: column `{}` of table {table} is `{}` in Cassandra and `{}` here; Cassandra can't change a column's type: CAST it, or use a new column or table",
                sink, column.name, there.cql_type, column.cql_type
            )));
        }
    }
    Ok(())
}

fn same_primary_key(
    sink: &str,
    wanted: &PrimaryKey,
    keyspace: &Keyspace,
    table: &TableSpec,
) -> Result<(), Refusal> {
    if *wanted == table.primary_key {
        return Ok(());
    }
    let columns = |key: &PrimaryKey| key.columns().collect::<Vec<_>>().join(", ");
    Err(Refusal::InvalidSpec(format!(
        "sink `{}`: primaryKey ({}) isn't that of table {} in Keyspace `{}` ({}): take it out here, or make them the same",
        sink,
        columns(wanted),
        table.name,
        keyspace.name_any(),
        columns(&table.primary_key),
    )))
}

fn same_types(
    sink: &str,
    mine: &TableSpec,
    keyspace: &Keyspace,
    theirs: &TableSpec,
) -> Result<(), Refusal> {
    for column in &mine.columns {
        let there = theirs
            .columns
            .iter()
            .find(|there| there.name == column.name);
        if let Some(there) = there
            && there.cql_type != column.cql_type
        {
            return Err(Refusal::InvalidSql(format!(
                "sink `{}`: column `{}` of table {} is `{}` here and `{}` for another pipeline in Keyspace `{}`: CAST it to the same type",
                sink,
                column.name,
                mine.name,
                column.cql_type,
                there.cql_type,
                keyspace.name_any(),
            )));
        }
    }
    Ok(())
}

/// Adds a table to those that the pipeline declares; two sinks may write into one.
fn declare(tables: &mut Vec<TableSpec>, table: &TableSpec, sink: &str) -> Result<(), Refusal> {
    let Some(known) = tables.iter_mut().find(|known| known.name == table.name) else {
        tables.push(table.clone());
        return Ok(());
    };
    if known.primary_key != table.primary_key {
        return Err(Refusal::InvalidSpec(format!(
            "sink `{sink}`: another sink declares table {} with another primaryKey: make them the same",
            table.name
        )));
    }
    for column in &table.columns {
        match known.columns.iter().find(|there| there.name == column.name) {
            None => known.columns.push(column.clone()),
            Some(there) if there.cql_type == column.cql_type => {}
            Some(there) => {
                return Err(Refusal::InvalidSql(format!(
                    "sink `{sink}`: column `{}` of table {} is `{}` here and `{}` in another sink: CAST it to the same type",
                    column.name, table.name, column.cql_type, there.cql_type
                )));
            }
        }
    }
    Ok(())
}

/// Who the pipeline is to its workers.
fn owner(pipeline: &DataPipeline) -> PipelineRef {
    PipelineRef {
        namespace: pipeline.namespace().unwrap_or_default(),
        name: pipeline.name_any(),
    }
}

/// Holds `stateTtl` to what Cassandra takes.
fn check_ttl(sink: &Sink, plan: &SinkPlan) -> Result<(), Refusal> {
    let Some(ttl) = sink.state_ttl else {
        return Ok(());
    };
    let seconds = std::time::Duration::from(ttl).as_secs();
    let problem = match () {
        () if !plan.is_grouped() => {
            "the SQL has no GROUP BY, and so no state: take it out, or set the table's option defaultTimeToLive"
        }
        () if sink.cassandra.is_none() => "rows expire in Cassandra alone: take it out",
        () if !(1..=MAX_TTL_SECONDS).contains(&seconds) => {
            "Cassandra keeps from a second to 20 years: take a duration from 1s to 175200h, or take it out to keep groups for ever"
        }
        () => return Ok(()),
    };
    Err(Refusal::InvalidSpec(format!(
        "sink `{}`: stateTtl: {problem}",
        sink.name
    )))
}

/// Adds the table with the states of a sink's groups.
fn declare_state(
    tables: &mut Vec<TableSpec>,
    state: TableSpec,
    sink: &Sink,
    beside: &CassandraTable,
) -> Result<(), Refusal> {
    if tables.iter().any(|known| known.name == state.name) {
        return Err(Refusal::InvalidSpec(format!(
            "sink `{}`: another sink keeps groups in table {} too, and a row can have but one state: give each a table of its own",
            sink.name, beside.table.name
        )));
    }
    tables.push(state);
    Ok(())
}

/// Refuses other groups than those whose states are kept already: the records that are in them
/// don't come again.
fn same_state(
    sink: &Sink,
    beside: &CassandraTable,
    state: &TableSpec,
    keyspace: Option<&Keyspace>,
) -> Result<(), Refusal> {
    let comment = |table: &TableSpec| table.options.as_ref()?.comment.clone();
    let mut tables = keyspace.iter().flat_map(|keyspace| &keyspace.spec.tables);
    let there = tables.find(|table| table.name == state.name);
    match there.and_then(comment) {
        Some(there)
            if Some(having::without(&there)) != comment(state).as_deref().map(having::without) =>
        {
            Err(Refusal::Incompatible(format!(
                "sink `{}`: the states in table {}.{} are those of another GROUP BY, other aggregates, another WHERE or another sink, and the records that made them don't come again: go back to the former SQL, or let a sink of a new name write into a new table",
                sink.name, beside.keyspace, state.name
            )))
        }
        _ => Ok(()),
    }
}

/// The field managers that declare a table of a Keyspace.
fn owners(keyspace: &Keyspace, table: &str) -> Vec<String> {
    let key = format!("k:{{\"name\":\"{table}\"}}");
    let owns = |entry: &ManagedFieldsEntry| {
        let fields = entry.fields_v1.as_ref()?;
        fields.0.get("f:spec")?.get("f:tables")?.get(&key).map(drop)
    };
    keyspace
        .managed_fields()
        .iter()
        .filter(|entry| owns(entry).is_some())
        .filter_map(|entry| entry.manager.clone())
        .collect()
}

/// The tables of a Keyspace that a field manager declares.
pub fn declared_by(keyspace: &Keyspace, manager: &str) -> Vec<TableSpec> {
    let mut tables = keyspace.spec.tables.clone();
    tables.retain(|table| {
        owners(keyspace, &table.name)
            .iter()
            .any(|owner| owner == manager)
    });
    tables
}

/// Notes on a Keyspace that a field manager declares one of its tables, as the API server does: for
/// checks without one.
pub fn claim_table(keyspace: &mut Keyspace, table: &str, manager: &str) {
    let key = format!("k:{{\"name\":\"{table}\"}}");
    let mut fields = serde_json::json!({"f:spec": {"f:tables": {}}});
    fields["f:spec"]["f:tables"][key] = serde_json::json!({});
    keyspace
        .metadata
        .managed_fields
        .get_or_insert_default()
        .push(ManagedFieldsEntry {
            manager: Some(manager.into()),
            fields_v1: Some(FieldsV1(fields)),
            ..ManagedFieldsEntry::default()
        });
}

#[cfg(test)]
mod tests;
