//! The operator of Millstream: the only writer of Kafka's topics, of Cassandra's schema, and of
//! the status of DataPipelines, Topics and Keyspaces. It never touches a record.
//!
//! Each kind has a folder. A reconcile observes, plans (pure), applies and reports. Only `kafka`
//! and `cassandra` know their drivers.

pub mod cassandra;
pub mod claims;
pub mod conditions;
pub mod config;
pub mod connections;
pub mod context;
pub mod controller;
pub mod credentials;
pub mod deadline;
pub mod error;
pub mod kafka;
pub mod keyspace;
pub mod lease;
pub mod metrics;
pub mod pipeline;
pub mod registry;
pub mod server;
pub mod topic;

use std::{
    net::{Ipv4Addr, Ipv6Addr},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::Context as _;
use futures::StreamExt;
use kube::{
    Api, Client, ResourceExt,
    api::ListParams,
    core::{DeserializeGuard, PartialObjectMeta},
    runtime::{
        Controller, WatchStreamExt, controller as kube_controller,
        events::Reporter,
        reflector::{self, ObjectRef, Store, reflector},
        watcher,
    },
};
use millstream_api::{DataPipeline, Keyspace, Topic};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::{
    config::{Config, Options},
    context::{Context, Kind, Stores},
    credentials::Credentials,
    lease::Lease,
    metrics::Metrics,
    pipeline::children::{MANAGED_BY, OPERATOR},
};

/// How long running reconciles may take after SIGTERM.
const DRAIN: Duration = Duration::from_secs(20);

/// Runs the operator until SIGTERM or Ctrl-C.
pub async fn run(options: Options) -> anyhow::Result<()> {
    let config = Arc::new(Config::load(&options.config)?);
    let client = Client::try_default().await.context(
        "can't find out how to reach the Kubernetes API: set KUBECONFIG, or run in a pod",
    )?;
    let stop = CancellationToken::new();

    let topics = watch::<Topic>(&client, &stop);
    let keyspaces = watch::<Keyspace>(&client, &stop);
    let pipelines = pipeline::controller(watch::<DataPipeline>(&client, &stop), &client);
    let stores = Stores {
        topics: topics.store(),
        keyspaces: keyspaces.store(),
        pipelines: pipelines.store(),
        deployments: reflect(&client),
        config_maps: reflect(&client),
        pods: reflect(&client),
    };
    let metrics = Arc::new(Metrics::default());
    let context = Arc::new(Context {
        credentials: Credentials {
            client: client.clone(),
            config: config.clone(),
            folder: options.credentials_dir.clone(),
        },
        config,
        resync: options.resync,
        stores,
        metrics: metrics.clone(),
        reporter: reporter(),
        http: reqwest::Client::builder()
            .timeout(Duration::from_secs(2))
            .build()?,
        client,
        kafkas: Default::default(),
        cassandras: Default::default(),
        registries: Default::default(),
        memory: Default::default(),
    });

    let lease = Lease::new(context.client.clone(), &options.lease_namespace);
    let ready = Arc::new(AtomicBool::new(false));
    serve(
        options.http_port,
        server::Health {
            metrics,
            ready: ready.clone(),
        },
        stop.clone(),
    )
    .await?;
    tokio::spawn(stop_on_signal(stop.clone()));
    tokio::spawn(announce(context.client.clone(), ready));

    let work = async {
        await_workers(&context.stores).await;
        tokio::join!(
            controller::run(topics, context.clone()),
            controller::run(keyspaces, context.clone()),
            async {
                tokio::select! {
                    () = await_declared(&context) => {}
                    () = stop.cancelled() => {}
                }
                controller::run(pipelines, context.clone()).await;
            },
        )
    };
    let lost = tokio::select! {
        () = lease.acquire() => tokio::select! {
            _ = work => false,
            () = lease.keep() => true,
            () = async { stop.cancelled().await; tokio::time::sleep(DRAIN).await } => {
                tracing::warn!("stopped before all reconciles were done");
                false
            }
        },
        () = stop.cancelled() => false,
    };
    // At once: who holds the lease now must not be disturbed.
    anyhow::ensure!(!lost, "the lease is lost: another operator works now");
    lease.release().await;
    tracing::info!("stopped");
    Ok(())
}

/// Workers' objects must be known before a pipeline is looked at: it would think them gone.
/// Nobody else may wait for these stores: a store wakes only one who waits.
async fn await_workers(stores: &Stores) {
    let _ = tokio::join!(
        stores.deployments.wait_until_ready(),
        stores.config_maps.wait_until_ready(),
        stores.pods.wait_until_ready(),
    );
}

/// Likewise Topics and Keyspaces. Their own controllers wait for their stores.
async fn await_declared(context: &Context) {
    let (client, stores) = (&context.client, &context.stores);
    tokio::join!(
        await_all(client, &stores.topics),
        await_all(client, &stores.keyspaces),
    );
}

/// Waits until the store has what there is.
async fn await_all<K: Kind>(client: &Client, store: &Store<DeserializeGuard<K>>) {
    let api = Api::<K>::all(client.clone());
    loop {
        match api.list_metadata(&ListParams::default()).await {
            Ok(list) if list.items.iter().all(|object| is_in(store, object)) => return,
            Ok(_) => {}
            Err(error) => tracing::warn!(kind = %K::kind(&()), %error, "list"),
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

fn is_in<K: Kind>(store: &Store<DeserializeGuard<K>>, object: &PartialObjectMeta<K>) -> bool {
    let namespace = object.namespace().unwrap_or_default();
    let reference = ObjectRef::new(&object.name_any()).within(&namespace);
    store.get(&reference).is_some()
}

fn watch<K: Kind>(client: &Client, stop: &CancellationToken) -> Controller<DeserializeGuard<K>> {
    let settings = kube_controller::Config::default()
        .concurrency(16)
        .debounce(Duration::from_millis(100));
    Controller::new(Api::all(client.clone()), watcher::Config::default())
        .with_config(settings)
        .graceful_shutdown_on(stop.clone().cancelled_owned())
}

/// Watches what the operator made of a kind.
fn reflect<K>(client: &Client) -> Store<K>
where
    K: Kind,
{
    let (store, writer) = reflector::store();
    let mine = watcher::Config::default().labels(&format!("{MANAGED_BY}={OPERATOR}"));
    let stream = reflector(
        writer,
        watcher::watcher(Api::<K>::all(client.clone()), mine),
    )
    .default_backoff()
    .touched_objects();
    tokio::spawn(stream.for_each(|event| async move {
        if let Err(error) = event {
            tracing::warn!(kind = %K::kind(&()), %error, "watch");
        }
    }));
    store
}

fn reporter() -> Reporter {
    Reporter {
        controller: "millstream.dev/operator".into(),
        instance: std::env::var("HOSTNAME").ok(),
    }
}

/// Ready once all three kinds can be listed: the definitions are installed, and access is granted.
async fn announce(client: Client, ready: Arc<AtomicBool>) {
    loop {
        let listed = tokio::try_join!(
            list::<Topic>(&client),
            list::<Keyspace>(&client),
            list::<DataPipeline>(&client),
        );
        match listed {
            Ok(_) => break,
            Err(error) => tracing::warn!("can't list the resources yet: {error}"),
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    ready.store(true, Ordering::Relaxed);
    tracing::info!("watching DataPipelines, Topics and Keyspaces");
}

async fn list<K: Kind>(client: &Client) -> kube::Result<()> {
    let api = Api::<DeserializeGuard<K>>::all(client.clone());
    api.list(&ListParams::default().limit(1)).await.map(drop)
}

async fn serve(port: u16, health: server::Health, stop: CancellationToken) -> anyhow::Result<()> {
    let listener = listen_on(port)
        .await
        .with_context(|| format!("can't listen on port {port}: choose another with --http-port"))?;
    let server = axum::serve(listener, server::router(health))
        .with_graceful_shutdown(stop.cancelled_owned());
    tokio::spawn(server.into_future());
    Ok(())
}

/// Listens on all addresses: on Linux those of IPv4 are among those of IPv6. Where there is no IPv6, on
/// those of IPv4.
async fn listen_on(port: u16) -> std::io::Result<TcpListener> {
    match TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).await {
        Ok(listener) => Ok(listener),
        Err(_) => TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).await,
    }
}

async fn stop_on_signal(stop: CancellationToken) {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = match signal(SignalKind::terminate()) {
        Ok(terminate) => terminate,
        Err(error) => return tracing::error!(%error, "can't listen for SIGTERM"),
    };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = tokio::signal::ctrl_c() => {}
    }
    tracing::info!("stopping: running reconciles are finished first");
    stop.cancel();
}

/// Bytes in hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpStream;

    use super::*;

    #[tokio::test]
    async fn is_reached_by_either_protocol() {
        let listener = listen_on(0).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        TcpStream::connect((Ipv4Addr::LOCALHOST, port))
            .await
            .unwrap();
        if TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).await.is_ok() {
            TcpStream::connect((Ipv6Addr::LOCALHOST, port))
                .await
                .unwrap();
        }
        listen_on(port).await.unwrap_err();
    }
}
