//! Conditions as `kubectl wait` sees them, and stricter: a stale one doesn't count.

use std::fmt::Debug;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{Api, Resource, ResourceExt};
use serde::{Serialize, de::DeserializeOwned};

use crate::eventually;

/// A kind whose status has conditions.
pub trait Kind: Resource + Clone + Debug + Serialize + DeserializeOwned {}
impl<K: Resource + Clone + Debug + Serialize + DeserializeOwned> Kind for K {}

/// The condition of that type, if it is about the current spec.
///
/// # Errors
/// When there is none, or it is about an older generation, or so is the whole status.
pub fn condition<K: Kind>(object: &K, type_: &str) -> Result<Condition> {
    let name = object.name_any();
    let value = serde_json::to_value(object)?;
    let status = &value["status"];
    let conditions = status["conditions"].as_array();
    let found = conditions
        .into_iter()
        .flatten()
        .find(|condition| condition["type"] == type_)
        .with_context(|| format!("{name} has no condition {type_}"))?;
    let found: Condition = serde_json::from_value(found.clone())?;
    let generation = object.meta().generation;
    ensure!(
        found.observed_generation == generation,
        "{type_} of {name} is about generation {:?}, the spec is at {generation:?}: {}",
        found.observed_generation,
        found.message
    );
    ensure!(
        status["observedGeneration"].as_i64() == generation,
        "the status of {name} is about an older generation than its condition {type_}"
    );
    Ok(found)
}

/// Waits until the condition is `True` for the current spec.
///
/// # Errors
/// After `timeout`, with the reason and message that stand in the way.
pub async fn await_condition<K: Kind>(
    api: &Api<K>,
    name: &str,
    type_: &str,
    timeout: Duration,
) -> Result<K> {
    eventually(timeout, async || {
        let object = api.get(name).await?;
        let found = condition(&object, type_)?;
        if found.status != "True" {
            bail!(
                "{type_} of {name} is {}: {}: {}",
                found.status,
                found.reason,
                found.message
            );
        }
        Ok(object)
    })
    .await
}

/// Waits until the condition is `False` for that reason, and gives its message.
///
/// # Errors
/// After `timeout`, with the condition that was there instead.
pub async fn await_reason<K: Kind>(
    api: &Api<K>,
    name: &str,
    type_: &str,
    reason: &str,
    timeout: Duration,
) -> Result<String> {
    eventually(timeout, async || {
        let found = condition(&api.get(name).await?, type_)?;
        ensure!(
            found.status == "False" && found.reason == reason,
            "{type_} of {name} is {} with reason {}, not False with {reason}: {}",
            found.status,
            found.reason,
            found.message
        );
        Ok(found.message)
    })
    .await
}
