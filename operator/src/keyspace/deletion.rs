//! A Keyspace goes: its tables go with it, and the keyspace where nothing else is in it.

use std::collections::BTreeSet;

use kube::{Resource, ResourceExt, runtime::controller::Action, runtime::events::EventType};
use millstream_api::{DeletionPolicy, Keyspace};

use super::{FINALIZER, connect, ddl, plan::refusals, rivals};
use crate::{context::Context, deadline::Deadline, error::Error, metrics::System};

pub async fn reconcile(keyspace: &Keyspace, context: &Context) -> Result<Action, Error> {
    if !keyspace.finalizers().iter().any(|held| held == FINALIZER) {
        return Ok(Action::await_change());
    }
    if keyspace.spec.deletion_policy == DeletionPolicy::Delete {
        let name = keyspace.keyspace_name();
        let left = match remove(keyspace, context).await {
            Ok(left) => left,
            Err(error) if Deadline::of(keyspace.meta()).is_over() => Some(error.to_string()),
            Err(error) => {
                tracing::warn!(keyspace = name, "not dropped yet: {error}");
                return Ok(Action::requeue(Deadline::RETRY));
            }
        };
        if let Some(left) = left {
            let note = format!("keyspace `{name}` is left in Cassandra: {left}");
            context
                .event(keyspace, EventType::Warning, "LeftInCassandra", note)
                .await;
        }
    }
    context.hold(keyspace, FINALIZER, false).await?;
    Ok(Action::await_change())
}

/// Drops what the resource declares; or says what is left, and why.
async fn remove(keyspace: &Keyspace, context: &Context) -> Result<Option<String>, Error> {
    let name = keyspace.keyspace_name();
    if keyspace
        .status
        .as_ref()
        .is_none_or(|status| status.tables.is_none())
    {
        // This resource never got as far as to make or adopt anything.
        return Ok(None);
    }
    if let Some(rival) = rivals(keyspace, context).first() {
        let rival = crate::claims::name(rival.meta());
        return Ok(Some(format!("Keyspace {rival} claims it too")));
    }
    let cassandra = connect(keyspace, context).await?;
    let Some(observed) = cassandra.describe(&name).await? else {
        return Ok(None);
    };
    // A table with another primary key or other types isn't the one that was declared.
    let refused = refusals(&name, &keyspace.spec.tables, &observed);
    let mut left: BTreeSet<_> = observed.tables.keys().cloned().collect();
    for table in &keyspace.spec.tables {
        if refused.contains_key(&table.name) || !left.remove(&table.name) {
            continue;
        }
        context.metrics.wrote(System::Cassandra);
        cassandra
            .alter(&ddl::drop_table(&name, &table.name))
            .await?;
    }
    if !left.is_empty() {
        let left: Vec<_> = left.into_iter().collect();
        return Ok(Some(format!(
            "it has tables that this resource doesn't declare: {}",
            left.join(", ")
        )));
    }
    if cassandra.has_more_than_tables(&name).await? {
        return Ok(Some("it has types, functions or views".into()));
    }
    context.metrics.wrote(System::Cassandra);
    cassandra.alter(&ddl::drop_keyspace(&name)).await?;
    Ok(None)
}
