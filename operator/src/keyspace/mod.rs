//! `Keyspace`: created, or adopted; tables and columns are added online; drift of options is put
//! right; what would lose data is refused.

pub mod ddl;
mod deletion;
pub mod plan;

use std::{collections::BTreeMap, sync::Arc};

use kube::{
    Resource, ResourceExt,
    runtime::{controller::Action, events::EventType},
};
use millstream_api::{DeletionPolicy, Keyspace, KeyspaceStatus, keyspace::RefusedTable};
use millstream_plan::{
    Refusal, accept_keyspace,
    claim::{keyspace_conflict, same_cassandra},
};

use self::plan::{KeyspaceChange, KeyspacePlan, plan};
use crate::{
    cassandra::{Cassandra, CassandraError},
    claims, conditions,
    context::Context,
    controller::{Reconcile, namespace},
    error::Error,
    metrics::System,
};

impl Reconcile for Keyspace {
    const FINALIZER: &'static str = "millstream.dev/keyspace";

    async fn reconcile(&self, context: &Context) -> Result<Action, Error> {
        if self.meta().deletion_timestamp.is_some() {
            return deletion::reconcile(self, context).await;
        }
        let deletes = self.spec.deletion_policy == DeletionPolicy::Delete;
        context.hold(self, Self::FINALIZER, deletes).await?;
        let mut progress = Progress::default();
        let outcome = provision(self, context, &mut progress).await;
        report(self, context, &progress, &outcome).await?;
        outcome.map(|()| Action::requeue(context.resync))
    }
}

/// What a visit did, however it ended.
#[derive(Default)]
struct Progress {
    drift: Vec<String>,
    tables: Option<i32>,
    refused: Option<Vec<RefusedTable>>,
}

async fn provision(
    keyspace: &Keyspace,
    context: &Context,
    progress: &mut Progress,
) -> Result<(), Error> {
    let name = keyspace.keyspace_name();
    // 1. Accept. (no client)
    accept_keyspace(&name, &keyspace.spec)?;
    let rivals = rivals(keyspace, context);
    if let Some(rival) = claims::older(keyspace.meta(), rivals.iter().map(Resource::meta)) {
        let rival = format!("the older Keyspace {rival}");
        return Err(keyspace_conflict(&rival, &name).into());
    }
    // 2. Observe.
    let cassandra = connect(keyspace, context).await?;
    let observed = cassandra.describe(&name).await?;
    // 3. Plan. (no client)
    let replication = &context.config.keyspace_replication;
    let mut plan = plan(&name, &keyspace.spec, replication, observed.as_ref());
    // 4. Apply.
    apply(keyspace, context, &cassandra, &mut plan, progress).await?;
    progress.tables = Some((keyspace.spec.tables.len() - plan.refusals.len()) as i32);
    let refused = plan.refusals.iter().map(|(name, message)| RefusedTable {
        name: name.clone(),
        message: message.clone(),
    });
    progress.refused = Some(refused.collect());
    let refusals = plan.refused_replication.into_iter();
    let refusals = refusals.chain(plan.refusals.into_values());
    match refusals.reduce(|all, one| format!("{all}; {one}")) {
        Some(refusals) => Err(Refusal::Incompatible(refusals).into()),
        None => Ok(()),
    }
}

/// The connection of a Keyspace.
async fn connect(keyspace: &Keyspace, context: &Context) -> Result<Arc<Cassandra>, Error> {
    let own = keyspace.spec.cassandra.as_ref();
    let access = context
        .credentials
        .cassandra(&namespace(keyspace), own)
        .await?;
    context.cassandra(&access).await
}

/// Other Keyspaces that claim the same keyspace of the same Cassandra.
fn rivals(keyspace: &Keyspace, context: &Context) -> Vec<Keyspace> {
    let default = context.config.cassandra.as_ref();
    let mine = keyspace.spec.cassandra.as_ref().or(default);
    let mut rivals = context.stores.keyspaces();
    rivals.retain(|rival| {
        rival.uid() != keyspace.uid()
            && rival.keyspace_name() == keyspace.keyspace_name()
            && same_cassandra(mine, rival.spec.cassandra.as_ref().or(default))
    });
    rivals
}

/// Makes the changes. What Cassandra refuses of a table is told with what the plan refuses, and doesn't
/// keep the others back.
async fn apply(
    keyspace: &Keyspace,
    context: &Context,
    cassandra: &Cassandra,
    plan: &mut KeyspacePlan,
    progress: &mut Progress,
) -> Result<(), Error> {
    let name = keyspace.keyspace_name();
    let before = keyspace.status.as_ref();
    let generation = keyspace.meta().generation;
    let was_as_declared =
        before.is_some_and(|status| conditions::was_provisioned(&status.conditions, generation));
    for change in &plan.changes {
        context.metrics.wrote(System::Cassandra);
        if let Err(error) = cassandra.alter(&ddl::statement(&name, change)).await {
            refuse(&mut plan.refusals, &name, change, error)?;
            continue;
        }
        let what = change.describe();
        let (type_, reason) = if was_as_declared {
            progress.drift.push(what.clone());
            (EventType::Warning, "DriftCorrected")
        } else {
            (EventType::Normal, change.event_reason())
        };
        let note = format!("{what} (keyspace `{name}`)");
        context.event(keyspace, type_, reason, note).await;
    }
    Ok(())
}

/// Takes note of a table's change that Cassandra refuses; any other error stops the visit.
fn refuse(
    refusals: &mut BTreeMap<String, String>,
    keyspace: &str,
    change: &KeyspaceChange,
    error: CassandraError,
) -> Result<(), CassandraError> {
    match (change.table(), &error) {
        (Some(table), CassandraError::Refused { .. }) => {
            let message = format!("table {keyspace}.{table}: {error}");
            // What was refused first is most likely why the rest is.
            refusals.entry(table.into()).or_insert(message);
            Ok(())
        }
        _ => Err(error),
    }
}

async fn report(
    keyspace: &Keyspace,
    context: &Context,
    progress: &Progress,
    outcome: &Result<(), Error>,
) -> Result<(), Error> {
    let name = keyspace.keyspace_name();
    let before = keyspace.status.clone().unwrap_or_default();
    let generation = keyspace.meta().generation;
    let message = match keyspace.spec.tables.len() {
        0 => format!("keyspace `{name}` is there"),
        1 => format!("keyspace `{name}` has the table as declared"),
        tables => format!("keyspace `{name}` has the {tables} tables as declared"),
    };
    let verdicts =
        conditions::accepted_and_provisioned(outcome.as_ref().map(|()| message.as_str()));
    let drift = (!progress.drift.is_empty()).then(|| progress.drift.join("; "));
    let status = KeyspaceStatus {
        observed_generation: generation,
        conditions: conditions::merge(&before.conditions, &verdicts, &message, generation),
        tables: progress.tables.or(before.tables),
        refused_tables: match &progress.refused {
            Some(refused) => refused.clone(),
            None => before.refused_tables.clone(),
        },
        last_drift: drift.or(before.last_drift.clone()),
        keyspace_name: Some(name),
    };
    if keyspace.status.as_ref() == Some(&status) {
        return Ok(());
    }
    context
        .patch_status::<Keyspace>(keyspace.meta(), &status)
        .await?;
    context
        .event_of_transition(keyspace, &before.conditions, &status.conditions)
        .await;
    Ok(())
}

impl KeyspaceChange {
    /// Reason of the event.
    fn event_reason(&self) -> &'static str {
        match self {
            KeyspaceChange::CreateKeyspace { .. } => "KeyspaceCreated",
            KeyspaceChange::AlterKeyspace { .. } => "KeyspaceAltered",
            KeyspaceChange::CreateTable(_) => "TableCreated",
            KeyspaceChange::AddColumn { .. } => "ColumnAdded",
            KeyspaceChange::AlterOptions { .. } => "TableAltered",
        }
    }
}

#[cfg(test)]
mod tests {
    use millstream_api::keyspace::TableOptions;

    use super::*;

    #[test]
    fn what_cassandra_refuses_of_a_table_stops_that_table_alone() {
        let of_table = |table: &str| KeyspaceChange::AlterOptions {
            table: table.into(),
            options: TableOptions::default(),
        };
        let of_all = KeyspaceChange::AlterKeyspace {
            replication: None,
            durable_writes: Some(true),
        };
        let refused = |detail: &str| CassandraError::Refused {
            servers: "c:9042".into(),
            detail: detail.into(),
        };
        let away = CassandraError::Unreachable {
            servers: "c:9042".into(),
            detail: "no answer".into(),
        };
        let mut refusals = BTreeMap::new();
        let mut refuse =
            |change: &KeyspaceChange, error| refuse(&mut refusals, "ks", change, error);
        refuse(&of_table("a"), refused("too large")).unwrap();
        refuse(&of_table("a"), refused("no such column")).unwrap();
        refuse(&of_table("b"), refused("too small")).unwrap();
        refuse(&of_all, refused("no")).unwrap_err();
        refuse(&of_table("c"), away).unwrap_err();
        let told = |table: &str, detail: &str| {
            let message = format!("table ks.{table}: Cassandra at c:9042 refuses: {detail}");
            (table.to_owned(), message)
        };
        let told = [told("a", "too large"), told("b", "too small")];
        assert_eq!(refusals, BTreeMap::from(told));
    }
}
