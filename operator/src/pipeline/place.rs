//! Where a pipeline's tables and states are: a keyspace is in one Cassandra, and groups are counted on
//! where they were counted before.

use k8s_openapi::api::core::v1::ConfigMap;
use millstream_api::{
    CassandraConnection, DataPipeline, Keyspace,
    worker::{ProcessConfig, SinkConfig, WorkerConfig},
};
use millstream_plan::{
    Accepted, PlanError, RecordSchema, Refusal, SinkPlan,
    claim::{accept_cassandra, two_cassandras},
    find_keyspace, plan_lookups,
};

use super::{
    children::{Stage, is_alone},
    provision::watched,
};
use crate::context::Context;

/// Refuses an accepted pipeline that would take a Keyspace to another Cassandra, or begin to count
/// its groups anew.
pub fn check(
    pipeline: &DataPipeline,
    context: &Context,
    keyspaces: &[Keyspace],
    accepted: &Accepted,
) -> Result<(), Refusal> {
    let default = context.config.cassandra.as_ref();
    let used = accepted.declared.keys();
    for keyspace in used.filter_map(|name| find_keyspace(keyspaces, name)) {
        check_keyspace(pipeline, keyspace, default)?;
    }
    if accepted.grouped.is_empty() {
        return Ok(());
    }
    let name = Stage::Process.object_name(pipeline);
    let told = watched::<ConfigMap>(&context.stores.config_maps, pipeline, &name);
    match told.and_then(|told| read(told.data.as_ref()?.get("worker.yaml")?)) {
        Some(former) => {
            let cassandra = pipeline.spec.cassandra.as_ref().or(default);
            check_groups(&former, cassandra, &pipeline.spec.schema, accepted)
        }
        None => Ok(()),
    }
}

/// What the process pods were told; nothing where another version has told them what this one can't
/// read.
fn read(yaml: &str) -> Option<ProcessConfig> {
    match serde_saphyr::from_str(yaml) {
        Ok(WorkerConfig::Process(config)) => Some(config),
        _ => None,
    }
}

/// A Keyspace that isn't the pipeline's alone has to be of the Cassandra that its pods write to.
fn check_keyspace(
    pipeline: &DataPipeline,
    keyspace: &Keyspace,
    default: Option<&CassandraConnection>,
) -> Result<(), Refusal> {
    match is_alone(pipeline, keyspace) {
        true => Ok(()),
        false => accept_cassandra(pipeline, keyspace, default),
    }
}

/// The consumer group of a sink hangs on its name alone: it would go on behind the records that the
/// former states have counted. Whether there were any isn't asked: pods that run may be about to
/// commit their first.
fn check_groups(
    former: &ProcessConfig,
    cassandra: Option<&CassandraConnection>,
    schema: &str,
    accepted: &Accepted,
) -> Result<(), Refusal> {
    let now = ProcessConfig {
        schema: schema.to_owned(),
        lookups: accepted.lookups.clone(),
        ..former.clone()
    };
    let moved = two_cassandras(former.cassandra.as_ref(), cassandra);
    let sinks = accepted.sinks.iter();
    for sink in sinks.filter(|sink| accepted.grouped.contains(&sink.name)) {
        let Some(before) = former.sinks.iter().find(|before| before.name == sink.name) else {
            continue;
        };
        let was_grouped = before.sql == sink.sql
            || planned(former, before).is_ok_and(|before| before.is_grouped());
        let (there, here) = (place(before), place(sink));
        let problem = if !was_grouped {
            "the records that it has read without a GROUP BY don't come again: go back to the former SQL, or let a sink of a new name write into a new table".into()
        } else if let Some((former, new)) = &moved {
            format!(
                "its groups were counted in {there} of the Cassandra at {former}, and would be counted from nothing in that at {new}: go back, or give the sink a new name; where both are one Cassandra, let the new contactPoints have a server of the former ones"
            )
        } else if there != here {
            format!(
                "its groups were counted in {there}, and would be counted from nothing in {here}: go back to the former table, or give the sink a new name"
            )
        } else if let Some(key) = rescaled((former, before), (&now, sink)) {
            format!(
                "its key `{key}` would have another number of digits behind the point, and 1.5 and 1.50 are two keys to Cassandra: its groups would be counted from nothing; go back, or let a sink of a new name write into a new table"
            )
        } else {
            continue;
        };
        let name = &sink.name;
        return Err(Refusal::Incompatible(format!("sink `{name}`: {problem}")));
    }
    Ok(())
}

/// The column of a sink's primary key whose scale isn't what it was.
fn rescaled(
    before: (&ProcessConfig, &SinkConfig),
    now: (&ProcessConfig, &SinkConfig),
) -> Option<String> {
    let parts = |(config, sink): (&ProcessConfig, &SinkConfig)| {
        (
            config.schema.clone(),
            config.lookups.clone(),
            sink.sql.clone(),
        )
    };
    // Plans take their time, and most visits are of a pipeline that stays as it is.
    if parts(before) == parts(now) {
        return None;
    }
    let plans = [before, now].map(|(config, sink)| planned(config, sink).ok());
    let mut keys = now.1.cassandra()?.table.primary_key.columns();
    let key = keys.find(|key| {
        let scales = plans.each_ref().map(|plan| plan.as_ref()?.scale(key));
        matches!(scales, [Some(before), Some(now)] if before != now)
    });
    key.map(ToString::to_string)
}

fn planned(config: &ProcessConfig, sink: &SinkConfig) -> Result<SinkPlan, PlanError> {
    let schema = RecordSchema::parse(&config.schema)?;
    let lookups = plan_lookups(&config.lookups)?;
    SinkPlan::joining(&schema, &lookups, &sink.name, &sink.sql)
}

/// The table beside which the states of a sink's groups are.
fn place(sink: &SinkConfig) -> String {
    sink.cassandra().map_or_else(String::new, |beside| {
        format!("`{}.{}`", beside.keyspace, beside.table.name)
    })
}

#[cfg(test)]
mod tests;
