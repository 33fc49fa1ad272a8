//! The frame around every reconcile: malformed objects, metrics, and when to try again.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use futures::StreamExt;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::{
    Resource, ResourceExt,
    core::{DeserializeGuard, error_boundary::InvalidObject},
    runtime::{
        Controller,
        controller::{self, Action},
    },
};

use millstream_api::DataPipeline;
use millstream_plan::Refusal;
use serde_json::json;

use crate::{
    conditions,
    context::{Context, Kind},
    error::Error,
};

/// A kind that can be reconciled.
pub trait Reconcile: Kind {
    /// Holds a resource until what it stands for outside Kubernetes is removed.
    const FINALIZER: &'static str;

    /// One visit: observe, plan, apply, report.
    fn reconcile(&self, context: &Context) -> impl Future<Output = Result<Action, Error>> + Send;
}

/// A failure that waiting doesn't mend is looked at again this often all the same: what mends it
/// may be out of sight, such as a Secret.
const SLOW: Duration = Duration::from_secs(15);

/// Runs a controller until it is told to stop and its running reconciles are done.
pub async fn run<K: Reconcile>(controller: Controller<DeserializeGuard<K>>, context: Arc<Context>) {
    controller
        .run(visit::<K>, try_again::<K>, context.clone())
        .for_each(|result| {
            match result {
                Err(controller::Error::ObjectNotFound(gone))
                    if K::kind(&()) == DataPipeline::kind(&()) =>
                {
                    let namespace = gone.namespace.as_deref().unwrap_or_default();
                    context.metrics.forget(namespace, &gone.name);
                }
                Err(error) => tracing::debug!(kind = %K::kind(&()), %error, "reconcile"),
                Ok(_) => {}
            }
            std::future::ready(())
        })
        .await;
}

async fn visit<K: Reconcile>(
    guard: Arc<DeserializeGuard<K>>,
    context: Arc<Context>,
) -> Result<Action, Error> {
    let started = Instant::now();
    let result = match &guard.0 {
        Ok(object) => object.reconcile(&context).await,
        Err(invalid) => report_malformed::<K>(invalid, &context).await,
    };
    let outcome = if result.is_ok() { "ok" } else { "error" };
    context
        .metrics
        .reconciled(&K::kind(&()), outcome, started.elapsed());
    if result.is_ok() {
        context.memory.succeeded(&key::<K>(guard.meta()));
    }
    result
}

fn try_again<K: Reconcile>(
    guard: Arc<DeserializeGuard<K>>,
    error: &Error,
    context: Arc<Context>,
) -> Action {
    let key = key::<K>(guard.meta());
    let failures = context.memory.failed(&key);
    match error {
        Error::Waiting(_) => tracing::debug!(object = key, "{error}"),
        _ => tracing::warn!(object = key, reason = error.reason(), failures, "{error}"),
    }
    if !error.is_transient() {
        return Action::requeue(SLOW);
    }
    // 1 s, 2 s, 4 s, ... 60 s.
    let seconds = 1u64 << (failures - 1).min(6);
    Action::requeue(Duration::from_secs(seconds.min(60)))
}

fn key<K: Kind>(meta: &ObjectMeta) -> String {
    format!("{} {}", K::kind(&()), crate::claims::name(meta))
}

/// An object that the API server let in, but this version can't read: from another version of the
/// definitions. It is told so, once, and the others go on.
async fn report_malformed<K: Kind>(
    invalid: &InvalidObject,
    context: &Context,
) -> Result<Action, Error> {
    let meta = &invalid.metadata;
    let generation = meta.generation.unwrap_or_default();
    let uid = meta.uid.clone().unwrap_or_default();
    if meta.deletion_timestamp.is_none() && context.memory.is_new_malformed(&uid, generation) {
        let error = Error::from(Refusal::InvalidSpec(format!(
            "the resource can't be read by this version of the operator: {}",
            invalid.error
        )));
        tracing::warn!(object = key::<K>(meta), "{error}");
        let verdicts = conditions::accepted_and_provisioned(Err(&error));
        let conditions = conditions::merge(&[], &verdicts, "", meta.generation);
        let status = json!({"observedGeneration": meta.generation, "conditions": conditions});
        context.patch_status::<K>(meta, &status).await?;
    }
    Ok(Action::await_change())
}

/// The namespace of an object; all kinds have one.
pub fn namespace(object: &impl ResourceExt) -> String {
    object.namespace().unwrap_or_default()
}
