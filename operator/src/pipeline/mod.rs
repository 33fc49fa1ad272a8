//! `DataPipeline`: source → topic → SQL → tables. Accept, provision, run, observe, report.

mod after;
pub mod amiss;
pub mod children;
mod deletion;
mod ensure;
pub mod gap;
mod key;
mod observe;
pub mod offsets;
mod pause;
mod place;
mod provision;
mod report;
mod runs;
pub mod scaling;
mod serve;
mod start;

use std::time::Duration;

use k8s_openapi::{
    api::{apps::v1::Deployment, batch::v1::Job, core::v1::ConfigMap},
    jiff::Timestamp,
};
use kube::{
    Api, Client, Resource, ResourceExt,
    core::DeserializeGuard,
    runtime::{
        Controller,
        controller::Action,
        reflector::{ObjectRef, Store},
        watcher,
    },
};
use millstream_api::{DataPipeline, DeletionPolicy, Keyspace, Lookup, Topic, sink::Sink};
use millstream_plan::accept;

use self::{
    children::{MANAGED_BY, OPERATOR, Stage},
    observe::{Observed, observe},
    offsets::look,
    pause::pause,
    provision::{keyspaces, provision},
    report::report,
    runs::Runs,
};
use crate::{context::Context, controller::Reconcile, error::Error};

/// How often lag and rows are looked at.
const PACE: Duration = Duration::from_secs(5);

/// How often it is looked whether there is something to process, where no pod waits for it.
const PACE_AT_ZERO: Duration = Duration::from_secs(2);

/// The controller of DataPipelines watches their children, and the Keyspaces that they write to.
pub fn controller(
    controller: Controller<DeserializeGuard<DataPipeline>>,
    client: &Client,
) -> Controller<DeserializeGuard<DataPipeline>> {
    let mine = || watcher::Config::default().labels(&format!("{MANAGED_BY}={OPERATOR}"));
    let all = watcher::Config::default;
    let pipelines = controller.store();
    controller
        .owns(Api::<Deployment>::all(client.clone()), mine())
        .owns(Api::<Job>::all(client.clone()), mine())
        .owns(Api::<ConfigMap>::all(client.clone()), mine())
        .owns(Api::<DeserializeGuard<Topic>>::all(client.clone()), mine())
        .watches(
            Api::<DeserializeGuard<Keyspace>>::all(client.clone()),
            all(),
            move |keyspace| users(&pipelines, &keyspace),
        )
}

/// The pipelines that write to a keyspace, or look something up in it.
fn users(
    pipelines: &Store<DeserializeGuard<DataPipeline>>,
    keyspace: &DeserializeGuard<Keyspace>,
) -> Vec<ObjectRef<DeserializeGuard<DataPipeline>>> {
    let Ok(keyspace) = &keyspace.0 else {
        return Vec::new();
    };
    let name = keyspace.keyspace_name();
    let state = pipelines.state();
    let uses = state.iter().filter(|guard| {
        guard.0.as_ref().is_ok_and(|pipeline| {
            let sinks = pipeline.spec.sinks.iter().filter_map(Sink::keyspace);
            let lookups = pipeline.spec.lookups.iter().filter_map(Lookup::keyspace);
            pipeline.namespace() == keyspace.namespace()
                && sinks.chain(lookups).any(|used| used == name)
        })
    });
    uses.map(|guard| ObjectRef::from_obj(guard.as_ref()))
        .collect()
}

impl Reconcile for DataPipeline {
    const FINALIZER: &'static str = "millstream.dev/pipeline";

    async fn reconcile(&self, context: &Context) -> Result<Action, Error> {
        deletion::hand_down_policy(self, context).await?;
        if self.meta().deletion_timestamp.is_some() {
            return deletion::reconcile(self, context).await;
        }
        let deletes = self.spec.deletion_policy == DeletionPolicy::Delete;
        context.hold(self, Self::FINALIZER, deletes).await?;
        let mut runs = Runs::look(self, context).await?;
        // First: whoever pauses a pipeline may do so because something else is wrong with it.
        let paused = pause(self, context, &runs).await;
        let offsets = look(self, context).await;
        let uid = self.uid().unwrap_or_default();
        context
            .memory
            .of_pipeline(&uid, |memory| memory.looked(&offsets));
        let keyspaces = keyspaces(self, context);
        let accepted = accept(self, &keyspaces).and_then(|accepted| {
            place::check(self, context, &keyspaces, &accepted)?;
            Ok(accepted)
        });
        let outcome = match paused.and(accepted.map_err(Error::from)) {
            Ok(accepted) => {
                let provisioned = provision(self, context, &accepted, &offsets, &mut runs).await;
                // It needs the tables alone: what else there is may be away.
                let served = serve::provision(self, context, &accepted).await;
                provisioned.and(served)
            }
            Err(error) => Err(error),
        };
        let observed = observe(self, context, &offsets, runs).await;
        report(self, context, &outcome, &observed).await?;
        outcome.map(|()| Action::requeue(pace(self, &observed)))
    }
}

fn pace(pipeline: &DataPipeline, observed: &Observed) -> Duration {
    let process = observed.stages.get(&Stage::Process);
    let at_zero = process.is_some_and(|stage| stage.wanted == 0);
    let pace = match at_zero && pipeline.spec.scaling.is_some() && !pipeline.spec.paused {
        true => PACE_AT_ZERO,
        false => PACE,
    };
    // Just behind the time of the next run, if that comes first.
    let next = observed
        .runs
        .next
        .map(|next| next.duration_since(Timestamp::now()));
    let next = next.and_then(|next| Duration::try_from(next).ok());
    next.map_or(pace, |next| pace.min(next + Duration::from_millis(50)))
}
