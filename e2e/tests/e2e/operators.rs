//! Two operators never work at once: one holds the lease, the other takes over.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::{coordination::v1::Lease, core::v1::Pod};
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, ListParams},
};
use millstream_e2e::{
    Namespace, OPERATOR_NAMESPACE, PATIENCE, alone_in_temp_namespace, eventually, is_ready,
};

use crate::orders::{self, ORDERS};

/// A holder that dies without a word is replaced within this time.
const TAKEOVER: Duration = Duration::from_secs(25);

/// Sees to it that so many operators are there.
pub async fn scale(namespace: &Namespace, operators: usize) -> Result<Vec<Pod>> {
    let replicas = format!("--replicas={operators}");
    let scale = ["scale", "deployment", "millstream-operator", &replicas];
    let arguments = [&["--namespace", OPERATOR_NAMESPACE][..], &scale].concat();
    namespace.environment.kubectl(&arguments, "").await?.ok()?;
    let pods = Api::<Pod>::namespaced(namespace.client.clone(), OPERATOR_NAMESPACE);
    let labels = ListParams::default().labels("app.kubernetes.io/name=millstream");
    eventually(PATIENCE, async || {
        let found = pods.list(&labels).await?.items;
        let ready = found.iter().filter(|pod| is_ready(pod)).count();
        ensure!(
            ready == operators && found.len() == operators,
            "{ready} of {} operators are ready",
            found.len()
        );
        Ok(found)
    })
    .await
}

/// The pod that holds the lease.
async fn holder(namespace: &Namespace) -> Result<String> {
    let leases = Api::<Lease>::namespaced(namespace.client.clone(), OPERATOR_NAMESPACE);
    let lease = leases.get("millstream-operator").await?;
    let holder = lease.spec.and_then(|spec| spec.holder_identity);
    let holder = holder.context("nobody holds the lease")?;
    let pod = holder.split('_').next().unwrap_or_default();
    Ok(pod.to_owned())
}

async fn another_holder(namespace: &Namespace, than: &str) -> Result<String> {
    eventually(TAKEOVER, async || {
        let now = holder(namespace).await?;
        ensure!(now != than, "{than} still holds the lease");
        Ok(now)
    })
    .await
}

async fn takes_over(namespace: &Namespace) -> Result<()> {
    let both = scale(namespace, 2).await?;
    let first = holder(namespace).await?;
    ensure!(both.iter().any(|pod| pod.name_any() == first), "{first}");
    let pods = Api::<Pod>::namespaced(namespace.client.clone(), OPERATOR_NAMESPACE);

    // Killed: the lease runs out. Drained: it is given up.
    let killed = DeleteParams::default().grace_period(0);
    pods.delete(&first, &killed).await?;
    let second = another_holder(namespace, &first).await?;
    pods.delete(&second, &DeleteParams::default()).await?;
    another_holder(namespace, &second).await?;
    namespace
        .apply(&orders::pipeline(namespace).to_string())
        .await?;
    namespace.ready(ORDERS).await?;
    Ok(())
}

#[test]
fn another_operator_takes_over() {
    alone_in_temp_namespace("operators", async |namespace| {
        let result = takes_over(namespace).await;
        scale(namespace, 1).await?;
        result
    });
}
