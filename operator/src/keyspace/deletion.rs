//! A Keyspace goes: its tables go with it, and the keyspace where nothing else is in it.

use std::collections::BTreeSet;

use kube::{Resource, runtime::controller::Action};
use millstream_api::{DeletionPolicy, Keyspace};

use super::{connect, ddl, plan::refusals, rivals};
use crate::{
    context::Context, controller::Reconcile, deadline::let_go, error::Error, metrics::System,
};

pub async fn reconcile(keyspace: &Keyspace, context: &Context) -> Result<Action, Error> {
    let name = keyspace.keyspace_name();
    let what = format!("keyspace `{name}` is left in Cassandra");
    let event = ("LeftInCassandra", what.as_str());
    let remove = remove(keyspace, context);
    let_go(keyspace, context, Keyspace::FINALIZER, event, remove).await
}

/// Drops what the resource declares; or says what is left, and why.
async fn remove(keyspace: &Keyspace, context: &Context) -> Result<Option<String>, Error> {
    if keyspace.spec.deletion_policy == DeletionPolicy::Retain {
        return Ok(None);
    }
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
