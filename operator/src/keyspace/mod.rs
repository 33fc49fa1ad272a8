//! `Keyspace`: created, or adopted; tables and columns are added online; drift of options is put
//! right; what would lose data is refused.

pub mod ddl;
mod deletion;
pub mod plan;

use std::sync::Arc;

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
    cassandra::Cassandra,
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
    let plan = plan(&name, &keyspace.spec, replication, observed.as_ref());
    // 4. Apply.
    apply(keyspace, context, &cassandra, &plan, progress).await?;
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

async fn apply(
    keyspace: &Keyspace,
    context: &Context,
    cassandra: &Cassandra,
    plan: &KeyspacePlan,
    progress: &mut Progress,
) -> Result<(), Error> {
    let name = keyspace.keyspace_name();
    let before = keyspace.status.as_ref();
    let generation = keyspace.meta().generation;
    let was_as_declared =
        before.is_some_and(|status| conditions::was_provisioned(&status.conditions, generation));
    for change in &plan.changes {
        context.metrics.wrote(System::Cassandra);
        cassandra.alter(&ddl::statement(&name, change)).await?;
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
