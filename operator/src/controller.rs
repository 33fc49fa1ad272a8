//! The frame around every reconcile: malformed objects, metrics, and when to try again.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use futures::StreamExt;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, ObjectMeta};
use kube::{
    Resource, ResourceExt,
    core::{DeserializeGuard, PartialObjectMetaExt, error_boundary::InvalidObject},
    runtime::{
        Controller,
        controller::{self, Action},
    },
};

use millstream_api::DataPipeline;
use millstream_plan::Refusal;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::{
    conditions,
    context::{Context, Kind},
    deadline::let_go,
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
        Err(invalid) => visit_malformed::<K>(invalid, &context).await,
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
/// definitions. It is told so, and the others go on. It goes when it is deleted, as any other does.
async fn visit_malformed<K: Reconcile>(
    invalid: &InvalidObject,
    context: &Context,
) -> Result<Action, Error> {
    let meta = &invalid.metadata;
    let error = Error::from(Refusal::InvalidSpec(format!(
        "the resource can't be read by this version of the operator: {}",
        invalid.error
    )));
    if meta.deletion_timestamp.is_some() {
        let object = meta.clone().into_request_partial::<K>();
        let event = ("LeftBehind", "what the resource stands for is left");
        let remove = std::future::ready(Err(error));
        return let_go(&object, context, K::FINALIZER, event, remove).await;
    }
    let namespace = meta.namespace.as_deref().unwrap_or_default();
    let name = meta.name.as_deref().unwrap_or_default();
    let Some(live) = context.untyped::<K>(namespace).get_opt(name).await? else {
        return Ok(Action::await_change());
    };
    let before = &live.data["status"];
    let status = status_of_malformed(before, &error, meta.generation);
    if status != *before {
        tracing::warn!(object = key::<K>(meta), "{error}");
        context.patch_status::<K>(meta, &status).await?;
    }
    Ok(Action::await_change())
}

/// The status with what is wrong, and otherwise as it is: what is known from before, such as a topic's
/// identity, must be there for the version that can read the object.
fn status_of_malformed(before: &Value, error: &Error, generation: Option<i64>) -> Value {
    let there = before["conditions"].as_array();
    let there = there.map_or(&[][..], Vec::as_slice);
    let known: Vec<_> = there
        .iter()
        .filter_map(|condition| Condition::deserialize(condition).ok())
        .collect();
    let verdicts = conditions::accepted_and_provisioned(Err(error));
    let told = conditions::merge(&known, &verdicts, "", generation);
    let is_told = |type_: &Value| told.iter().any(|told| *type_ == *told.type_);
    let others = there.iter().filter(|other| !is_told(&other["type"]));
    let conditions = told.iter().map(|told| json!(told)).chain(others.cloned());
    let mut status = before.clone();
    status["observedGeneration"] = json!(generation);
    status["conditions"] = conditions.collect();
    status
}

/// The namespace of an object; all kinds have one.
pub fn namespace(object: &impl ResourceExt) -> String {
    object.namespace().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_that_cannot_be_read_keeps_what_is_known_of_it() {
        let condition =
            |type_: &str, status: &str, reason: &str, message: &str, generation: i64| {
                json!({
                    "type": type_, "status": status, "reason": reason, "message": message,
                    "observedGeneration": generation, "lastTransitionTime": "2026-01-02T03:04:05Z",
                })
            };
        let gap = condition("DataGap", "True", "LogTruncated", "of yesterday", 1);
        // As a newer version may write it.
        let newer = json!({"type": "Newer", "since": 5});
        let before = json!({
            "observedGeneration": 1,
            "topicId": "one",
            "newer": {"count": 7},
            "conditions": [
                condition("Ready", "False", "InvalidSpec", "of before", 1),
                condition("Accepted", "True", "Valid", "the spec is valid", 1),
                &gap,
                &newer,
            ],
        });
        let error = Error::from(Refusal::InvalidSpec("unreadable".into()));
        let mut status = status_of_malformed(&before, &error, Some(2));
        let again = status_of_malformed(&status, &error, Some(2));
        assert_eq!(status, again, "it is written once");
        // That of Accepted has moved, and there was none of Provisioned.
        for moved in [1_usize, 2] {
            let time = status["conditions"][moved]["lastTransitionTime"].take();
            assert!(time.is_string() && time != "2026-01-02T03:04:05Z", "{time}");
            status["conditions"][moved]["lastTransitionTime"] = json!("2026-01-02T03:04:05Z");
        }
        let not_looked_at = "not looked at before the spec is accepted";
        let expected = json!({
            "observedGeneration": 2,
            "topicId": "one",
            "newer": {"count": 7},
            "conditions": [
                condition("Ready", "False", "InvalidSpec", "unreadable", 2),
                condition("Accepted", "False", "InvalidSpec", "unreadable", 2),
                condition("Provisioned", "Unknown", "Waiting", not_looked_at, 2),
                gap,
                newer,
            ],
        });
        assert_eq!(status, expected);

        let first = status_of_malformed(&Value::Null, &error, Some(1));
        assert_eq!(first["conditions"].as_array().map(Vec::len), Some(3));
    }
}
