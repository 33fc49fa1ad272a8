//! A HAVING deletes the rows of groups that it excludes, and with a row what others write into it: so it
//! needs a table that no other sink writes into.

use millstream_api::{
    Keyspace,
    keyspace::TableSpec,
    sink::CassandraSink,
    worker::{Destination, SinkConfig},
};

use super::{keyspace_manager, owners};
use crate::{Refusal, SinkPlan};

/// At the end of the comment of a table with states: by it other pipelines know that rows are deleted.
const MARK: &str = ", with HAVING";

/// Notes on the table with the states of a sink's groups that rows are deleted.
pub(super) fn mark(state: &mut TableSpec, plan: &SinkPlan) {
    let options = state.options.as_mut().filter(|_| plan.has_having());
    if let Some(comment) = options.and_then(|options| options.comment.as_mut()) {
        comment.push_str(MARK);
    }
}

/// The comment of a table with states as it is without a HAVING, which may come and go.
pub(super) fn without(comment: &str) -> &str {
    comment.strip_suffix(MARK).unwrap_or(comment)
}

/// Refuses a HAVING in a table into which another sink of the pipeline writes.
pub(super) fn check_alone(planned: &[(SinkPlan, TableSpec, SinkConfig)]) -> Result<(), Refusal> {
    for (_, _, sink) in planned.iter().filter(|(plan, ..)| plan.has_having()) {
        let mut others = planned.iter().map(|(.., other)| other);
        let other = others.find(|other| other.name != sink.name && is_one_table(other, sink));
        if let Some(other) = other {
            let other = format!("sink `{}`", other.name);
            return Err(deletes(&sink.name, &sink_place(sink), &other));
        }
    }
    Ok(())
}

/// Refuses a HAVING in a table that another pipeline declares too, and any sink in a table from which the
/// HAVING of another pipeline deletes rows.
pub(super) fn check_shared(
    sink: &str,
    to: &CassandraSink,
    plan: &SinkPlan,
    keyspace: &Keyspace,
    manager: &str,
) -> Result<(), Refusal> {
    let place = format!("{}.{}", to.keyspace, to.table);
    if let Some(other) = other_pipeline(keyspace, &to.table, manager)
        && plan.has_having()
    {
        return Err(deletes(sink, &place, &format!("pipeline `{other}`")));
    }
    let state = format!("{}__state", to.table);
    let mut tables = keyspace.spec.tables.iter();
    let there = tables.find(|table| table.name == state);
    if there.is_some_and(is_marked)
        && let Some(other) = other_pipeline(keyspace, &state, manager)
    {
        return Err(Refusal::InvalidSpec(format!(
            "sink `{sink}`: the HAVING of pipeline `{other}` deletes rows of table {place}, and would delete what this sink writes into them: give one of the two a table of its own"
        )));
    }
    Ok(())
}

fn deletes(sink: &str, place: &str, other: &str) -> Refusal {
    Refusal::InvalidSpec(format!(
        "sink `{sink}`: HAVING deletes rows of table {place}, and with them what {other} writes into them: give one of the two a table of its own, or take HAVING out and let readers choose"
    ))
}

fn is_marked(state: &TableSpec) -> bool {
    let comment = state.options.as_ref().and_then(|it| it.comment.as_ref());
    comment.is_some_and(|comment| comment.ends_with(MARK))
}

/// Another pipeline that declares a table. One that writes into a table that a person declares isn't
/// known here.
fn other_pipeline(keyspace: &Keyspace, table: &str, manager: &str) -> Option<String> {
    let owners = owners(keyspace, table);
    let mut others = owners.iter().filter(|owner| *owner != manager);
    others.find_map(|owner| Some(owner.strip_prefix(&keyspace_manager(""))?.to_owned()))
}

fn is_one_table(one: &SinkConfig, other: &SinkConfig) -> bool {
    let in_cassandra = |sink: &SinkConfig| matches!(sink.destination, Destination::Cassandra(_));
    in_cassandra(one) && in_cassandra(other) && sink_place(one) == sink_place(other)
}

/// The table of a sink, for people too.
fn sink_place(sink: &SinkConfig) -> String {
    sink.cassandra().map_or_else(String::new, |to| {
        format!("{}.{}", to.keyspace, to.table.name)
    })
}
