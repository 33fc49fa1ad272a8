//! Millstream on the cluster that is up, the way its users install it: by Helm.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::cache;
use crate::dist::Images;
use crate::environment::{Addresses, Environment};
use crate::process;
use crate::progress::Progress;

/// Where the operator lives.
pub const NAMESPACE: &str = "millstream-system";

const HELM: Duration = Duration::from_secs(180);

/// The root of the checkout.
///
/// Cargo says so when it runs a program, and is asked first: a program that was built in another
/// checkout into the same target folder may be taken for this one's.
pub fn root() -> PathBuf {
    let package = std::env::var_os("CARGO_MANIFEST_DIR").map(PathBuf::from);
    let package = package.unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
    package.parent().unwrap_or(&package).to_owned()
}

/// `kubectl` on this cluster.
pub fn kubectl(environment: &Environment) -> Command {
    let mut command = Command::new(&environment.kubectl);
    command.env("KUBECONFIG", &environment.kubeconfig);
    command
}

/// Installs or upgrades the charts with connections to the services that are up, and waits until
/// the operator is ready.
///
/// # Errors
/// What `kubectl` or `helm` says.
pub fn install(environment: &Environment, images: &Images, progress: &Progress) -> Result<()> {
    // With one at a time, a release that is pending is one whose Helm was killed.
    let _lock = cache::lock(&cache::root()?.join("helm.lock"))?;
    let step = progress.step("installing the charts");
    apply(environment, &namespace_and_credentials(environment))?;
    let charts = root().join("charts");
    helm(
        environment,
        "millstream-crds",
        &charts.join("millstream-crds"),
        &[],
    )?;
    let values = values(&environment.in_cluster, images);
    let values: Vec<_> = values.iter().map(String::as_str).collect();
    helm(
        environment,
        "millstream",
        &charts.join("millstream"),
        &values,
    )?;
    step.done(format!("done: the operator runs in {NAMESPACE}"));
    Ok(())
}

/// `kubectl apply` of a text.
///
/// # Errors
/// What `kubectl` says.
pub fn apply(environment: &Environment, manifests: &str) -> Result<()> {
    let file = tempfile::NamedTempFile::new()?;
    std::fs::write(file.path(), manifests)?;
    process::run(
        kubectl(environment)
            .arg("apply")
            .arg("--server-side")
            .arg("-f")
            .arg(file.path()),
    )
}

fn helm(environment: &Environment, release: &str, chart: &Path, values: &[&str]) -> Result<()> {
    forget_pending(environment, release)?;
    let mut command = Command::new(&environment.helm);
    command
        .env("KUBECONFIG", &environment.kubeconfig)
        .args(["upgrade", "--install", release])
        .arg(chart)
        .args(["--namespace", NAMESPACE, "--wait", "--timeout", "150s"]);
    for value in values {
        command.args(["--set-string", value]);
    }
    let why = || format!("see `kubectl -n {NAMESPACE} get pods,events`");
    process::output(&mut command, HELM)
        .with_context(why)
        .map(drop)
}

/// Helm refuses to touch a release that is pending: "another operation is in progress". It keeps each
/// revision in a Secret.
fn forget_pending(environment: &Environment, release: &str) -> Result<()> {
    let pending = format!(
        "owner=helm,name={release},\
         status in (pending-install,pending-upgrade,pending-rollback)"
    );
    process::run(
        kubectl(environment)
            .args(["--namespace", NAMESPACE, "delete", "secret"])
            .args(["--ignore-not-found", "--selector", &pending]),
    )
}

/// The connections are those of the services that `up` started.
fn values(services: &Addresses, images: &Images) -> Vec<String> {
    let image = |name: &str, reference: &str| {
        let (repository, tag) = reference.rsplit_once(':').unwrap_or((reference, ""));
        [
            format!("image.{name}.repository={repository}"),
            format!("image.{name}.tag={tag}"),
        ]
    };
    let mut values = vec![
        format!("kafka.bootstrapServers={}", services.kafka),
        format!("cassandra.contactPoints[0]={}", services.cassandra),
        "cassandra.credentialsSecret=cassandra-credentials".to_owned(),
        format!("schemaRegistry.url={}", services.registry),
    ];
    values.extend(image("operator", &images.operator.reference));
    values.extend(image("worker", &images.worker.reference));
    values
}

fn namespace_and_credentials(environment: &Environment) -> String {
    let Environment {
        cassandra_user,
        cassandra_password,
        ..
    } = environment;
    format!(
        "apiVersion: v1
kind: Namespace
metadata:
  name: {NAMESPACE}
  labels: {{pod-security.kubernetes.io/enforce: restricted}}
---
apiVersion: v1
kind: Secret
metadata: {{name: cassandra-credentials, namespace: {NAMESPACE}}}
stringData:
  username: {cassandra_user}
  password: {cassandra_password}
"
    )
}
