//! The operator's own numbers.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::Pod;
use kube::api::ListParams;
use kube::{Api, ResourceExt};

use crate::Namespace;

/// Where `cargo xtask` installs the operator.
pub const OPERATOR_NAMESPACE: &str = "millstream-system";

/// The operator's pod.
///
/// # Errors
/// When it isn't running.
pub async fn operator_pod(namespace: &Namespace) -> Result<Pod> {
    let pods: Api<Pod> = Api::namespaced(namespace.client.clone(), OPERATOR_NAMESPACE);
    let labels = ListParams::default().labels("app.kubernetes.io/name=millstream");
    let running = pods.list(&labels).await?.items.into_iter().find(|pod| {
        let phase = pod
            .status
            .as_ref()
            .and_then(|status| status.phase.as_deref());
        phase == Some("Running") && pod.metadata.deletion_timestamp.is_none()
    });
    running.context("the operator isn't running")
}

/// The operator's writes so far, by system: `kafka`, `cassandra`, `kubernetes`.
///
/// # Errors
/// When its metrics can't be read or don't have them.
pub async fn external_writes(namespace: &Namespace) -> Result<BTreeMap<String, f64>> {
    let pod = operator_pod(namespace).await?.name_any();
    let metrics = format!("/api/v1/namespaces/{OPERATOR_NAMESPACE}/pods/{pod}:8080/proxy/metrics");
    let text = namespace
        .environment
        .kubectl(&["get", "--raw", &metrics], "")
        .await?
        .ok()?;
    let mut writes = BTreeMap::new();
    for line in text.lines() {
        let Some(rest) = line.strip_prefix("millstream_external_writes_total{") else {
            continue;
        };
        let (labels, value) = rest.split_once("} ").context("a sample has a value")?;
        let system = labels.split('"').nth(1).context("a label has a value")?;
        *writes.entry(system.to_owned()).or_default() += value.trim().parse::<f64>()?;
    }
    Ok(writes)
}
