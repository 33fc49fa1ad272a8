//! A namespace for one test, with nothing left of it afterwards.

use std::panic::AssertUnwindSafe;
use std::sync::{PoisonError, RwLock};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use futures::FutureExt;
use k8s_openapi::api::core::v1::Namespace as KubeNamespace;
use kube::api::{DeleteParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::NamespaceResourceScope;
use kube::{Api, Client, Config, Resource};

use crate::{Cassandra, Environment, Kafka, Outcome, PATIENCE, diagnostics, eventually};

/// A namespace can always be deleted in this time, whatever is down.
const DELETION: Duration = Duration::from_secs(120);

/// A namespace of its own, and clients for all that a test looks at.
pub struct Namespace {
    pub name: String,
    pub environment: Environment,
    pub client: Client,
    pub kafka: Kafka,
    pub cassandra: Cassandra,
    suffix: String,
}

/// Tests run beside each other, but for those that stop what all of them stand on, or that count
/// what all of them do.
static INSTALLATION: RwLock<()> = RwLock::new(());

/// Runs a test in a namespace of its own, beside others: see [`alone_in_temp_namespace`].
///
/// # Panics
/// When the test fails, or the namespace can't be deleted in bounded time.
pub fn with_temp_namespace(stem: &str, test: impl AsyncFnOnce(&Namespace) -> Result<()>) {
    let _shared = INSTALLATION.read().unwrap_or_else(PoisonError::into_inner);
    in_temp_namespace(stem, test);
}

/// Runs a test in a namespace of its own while no other test runs.
///
/// # Panics
/// When the test fails, or the namespace can't be deleted in bounded time.
pub fn alone_in_temp_namespace(stem: &str, test: impl AsyncFnOnce(&Namespace) -> Result<()>) {
    let _alone = INSTALLATION.write().unwrap_or_else(PoisonError::into_inner);
    in_temp_namespace(stem, test);
}

/// Runs a test in a namespace that enforces the restricted pod security standard. On failure
/// everything that may tell why is printed; in any case the namespace is deleted, and the topics
/// and keyspaces with [`Namespace::unique`] names are removed.
///
/// Says `skipped` where no environment is up.
fn in_temp_namespace(stem: &str, test: impl AsyncFnOnce(&Namespace) -> Result<()>) {
    let Some(environment) = Environment::load().expect("the environment can be read") else {
        println!("skipped: MILLSTREAM_ENVIRONMENT isn't set; run `cargo xtask test --only e2e`");
        return;
    };
    // Fails where another test has installed it already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(async {
        let namespace = Namespace::create(stem, environment)
            .await
            .expect("a namespace");
        let result = AssertUnwindSafe(test(&namespace)).catch_unwind().await;
        if !matches!(result, Ok(Ok(()))) {
            diagnostics::print(&namespace).await;
        }
        let deleted = namespace.delete().await;
        match result {
            Err(panic) => std::panic::resume_unwind(panic),
            Ok(Err(error)) => panic!("{error:?}"),
            Ok(Ok(())) => deleted.expect("the namespace can be deleted"),
        }
    });
}

impl Namespace {
    async fn create(stem: &str, environment: Environment) -> Result<Self> {
        let kubeconfig = Kubeconfig::read_from(&environment.kubeconfig)?;
        let config =
            Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
        let client = Client::try_from(config)?;
        let kafka = Kafka::connect(&environment.addresses.kafka)?;
        let cassandra = Cassandra::connect(&environment).await?;
        let suffix = uuid::Uuid::new_v4().simple().to_string()[..8].to_owned();
        let name = format!("e2e-{stem}-{suffix}");
        let namespace = serde_json::from_value(serde_json::json!({
            "metadata": {"name": name, "labels": {"pod-security.kubernetes.io/enforce": "restricted"}},
        }))?;
        let api: Api<KubeNamespace> = Api::all(client.clone());
        api.create(&PostParams::default(), &namespace).await?;
        let namespace = Namespace {
            name,
            environment,
            client,
            kafka,
            cassandra,
            suffix,
        };
        let accounts = namespace.api::<k8s_openapi::api::core::v1::ServiceAccount>();
        eventually(DELETION, async || Ok(accounts.get("default").await?)).await?;
        Ok(namespace)
    }

    /// The resources of one kind in this namespace.
    pub fn api<K>(&self) -> Api<K>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>,
    {
        Api::namespaced(self.client.clone(), &self.name)
    }

    /// A name that no other test has, for a topic or a keyspace.
    pub fn unique(&self, stem: &str) -> String {
        format!("{stem}_{}", self.suffix)
    }

    /// Runs `kubectl` in this namespace.
    ///
    /// # Errors
    /// When it can't be started.
    pub async fn kubectl(&self, arguments: &[&str]) -> Result<Outcome> {
        let arguments = [&["--namespace", &self.name], arguments].concat();
        self.environment.kubectl(&arguments, "").await
    }

    /// `kubectl apply -f -`.
    ///
    /// # Errors
    /// What `kubectl` says where it refuses.
    pub async fn apply(&self, manifests: &str) -> Result<String> {
        self.try_apply(manifests)
            .await?
            .ok()
            .with_context(|| manifests.to_owned())
    }

    /// `kubectl apply -f -` of something that must be refused; gives what it says.
    ///
    /// # Errors
    /// When it is accepted.
    pub async fn refused(&self, manifests: &str) -> Result<String> {
        let outcome = self.try_apply(manifests).await?;
        if outcome.success {
            bail!("kubectl applied what must be refused:\n{manifests}");
        }
        Ok(outcome.stderr)
    }

    async fn try_apply(&self, manifests: &str) -> Result<Outcome> {
        let arguments = ["--namespace", &self.name, "apply", "-f", "-"];
        self.environment.kubectl(&arguments, manifests).await
    }

    /// Deletes the namespace and waits until it is gone.
    ///
    /// # Errors
    /// When it is still there after two minutes.
    pub async fn delete_namespace(&self) -> Result<()> {
        let api: Api<KubeNamespace> = Api::all(self.client.clone());
        if api.get_opt(&self.name).await?.is_some() {
            api.delete(&self.name, &DeleteParams::default()).await?;
        }
        eventually(DELETION, async || match api.get_opt(&self.name).await? {
            None => Ok(()),
            Some(left) => bail!("namespace {} is still there: {:?}", self.name, left.status),
        })
        .await
    }

    async fn delete(&self) -> Result<()> {
        let deleted = self.delete_namespace().await;
        // The test may have stopped the services: clients need a moment to find them again.
        eventually(PATIENCE, async || {
            self.kafka.delete_topics_of(&self.suffix).await?;
            self.cassandra.drop_keyspaces_of(&self.suffix).await
        })
        .await?;
        deleted
    }
}
