//! How a resource goes: what it stands for is removed first, but not waited for for ever.

use std::time::Duration;

use k8s_openapi::{
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
    jiff::{SignedDuration, Timestamp},
};
use kube::{
    ResourceExt,
    runtime::{controller::Action, events::EventType},
};

use crate::{
    claims,
    context::{Context, Kind},
    error::Error,
};

/// A resource, and so a namespace, can always be deleted within this time and a little more.
const LIMIT: SignedDuration = SignedDuration::from_secs(60);
/// Tried again after this time.
const RETRY: Duration = Duration::from_secs(3);

/// Takes the finalizer off an object that is being deleted, once what it stands for is removed, or
/// the deadline is over. `remove` gives what is left on purpose, and why: an Event tells of it, or of
/// the error that there was until the end, after `what`.
pub async fn let_go<K: Kind>(
    object: &K,
    context: &Context,
    finalizer: &str,
    (reason, what): (&str, &str),
    remove: impl Future<Output = Result<Option<String>, Error>>,
) -> Result<Action, Error> {
    if !object.finalizers().iter().any(|held| held == finalizer) {
        return Ok(Action::await_change());
    }
    let left = match remove.await {
        Ok(left) => left,
        Err(error) if is_over(object.meta()) => Some(error.to_string()),
        Err(error) => {
            let (kind, name) = (K::kind(&()), claims::name(object.meta()));
            tracing::info!(%kind, name, "not removed yet: {error}");
            return Ok(Action::requeue(RETRY));
        }
    };
    if let Some(left) = left {
        let note = format!("{what}: {left}");
        context
            .event(object, EventType::Warning, reason, note)
            .await;
    }
    context.hold(object, finalizer, false).await?;
    Ok(Action::await_change())
}

/// Whether nothing is waited for any longer. Counts from the moment when the deletion was asked for.
fn is_over(meta: &ObjectMeta) -> bool {
    let asked = meta.deletion_timestamp.as_ref();
    asked.is_some_and(|asked| Timestamp::now().duration_since(asked.0) >= LIMIT)
}
