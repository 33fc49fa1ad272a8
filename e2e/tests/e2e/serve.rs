//! A pipeline with `serve` answers requests through a Service of its own, to those who may ask, and
//! stops without it.

use anyhow::{Result, bail, ensure};
use k8s_openapi::api::{
    apps::v1::Deployment,
    core::v1::{ConfigMap, Service},
};
use kube::Api;
use millstream_api::{
    DataPipeline,
    condition::{READY, reason},
};
use millstream_e2e::{Namespace, PATIENCE, await_reason, eventually, with_temp_namespace};
use serde_json::{Value, json};

use crate::orders::{self, ORDERS};

const SERVE: &str = "orders-serve";

fn serve() -> Value {
    json!({
        "port": 5001,
        "endpoints": [{
            "name": "order",
            "path": "/orders/{id}",
            "parameters": [{"name": "id", "type": "uuid"}],
            "cql": "SELECT id, name, version FROM orders WHERE id = :id",
            "shape": "object",
        }],
    })
}

/// What the Service answers, by way of the API server.
async fn get(namespace: &Namespace, path: &str) -> Result<Value> {
    let name = &namespace.name;
    let path = format!("/api/v1/namespaces/{name}/services/{SERVE}:http/proxy{path}");
    let answer = namespace.kubectl(&["get", "--raw", &path]).await?.ok()?;
    Ok(serde_json::from_str(&answer)?)
}

#[test]
fn rows_are_served_while_the_pipeline_asks_for_it() {
    with_temp_namespace("serve", async |namespace| {
        let manifest = orders::pipeline_with(namespace, json!({"serve": serve()}));
        namespace.apply(&manifest.to_string()).await?;
        let pipeline = namespace.ready(ORDERS).await?;
        let status = pipeline.status.and_then(|status| status.serve);
        let url = format!("http://{SERVE}.{}.svc:5001", namespace.name);
        ensure!(
            status
                .as_ref()
                .is_some_and(|serve| serve.url == url && serve.ready == 1),
            "status.serve is {status:?}"
        );
        orders::store(namespace, 0..10).await?;
        let id = orders::id(7);
        assert_eq!(
            get(namespace, &format!("/orders/{id}")).await?,
            json!({"count": 1, "items": [{"id": id, "name": "Jürgen 7", "version": 1}]})
        );
        assert_eq!(get(namespace, "/health").await?["status"], "healthy");

        // It doesn't read what isn't the pipeline's.
        let mut other = serve();
        other["endpoints"][0]["cql"] = "SELECT role FROM system_auth.roles WHERE role = :id".into();
        let manifest = orders::pipeline_with(namespace, json!({"serve": other}));
        namespace.apply(&manifest.to_string()).await?;
        let api: Api<DataPipeline> = namespace.api();
        let message = await_reason(&api, ORDERS, READY, reason::INVALID_SPEC, PATIENCE).await?;
        ensure!(message.contains("keyspace `system_auth`"), "{message}");
        get(namespace, &format!("/orders/{id}")).await?;

        // Taken out, it is gone.
        let without = orders::pipeline(namespace).to_string();
        namespace.apply(&without).await?;
        let services: Api<Service> = namespace.api();
        let deployments: Api<Deployment> = namespace.api();
        let configs: Api<ConfigMap> = namespace.api();
        eventually(PATIENCE, async || {
            let left = services.get_opt(SERVE).await?.is_some()
                || deployments.get_opt(SERVE).await?.is_some()
                || configs.get_opt(SERVE).await?.is_some();
            if left {
                bail!("something of it is left");
            }
            Ok(())
        })
        .await?;
        namespace.ready(ORDERS).await?;
        Ok(())
    });
}

/// The status of an answer to nobody, to one with a key, and to one with a password.
async fn statuses(namespace: &Namespace, path: &str, secret: &str) -> Result<[u16; 3]> {
    let forward = namespace.forward(SERVE, 5001).await?;
    let ask = || reqwest::Client::new().get(forward.url(path));
    let mut statuses = [0; 3];
    for (status, request) in statuses.iter_mut().zip([
        ask(),
        ask().header("X-API-Key", format!("key-{secret}")),
        ask().basic_auth("ann", Some(format!("password-{secret}"))),
    ]) {
        *status = request.send().await?.status().as_u16();
    }
    Ok(statuses)
}

/// The Secrets with the key and the password.
fn secrets(secret: &str) -> String {
    let object = |name: &str, client: &str, value: String| {
        json!({
            "apiVersion": "v1", "kind": "Secret", "metadata": {"name": name},
            "stringData": {client: value},
        })
    };
    let keys = object("clients", "shop", format!("key-{secret}"));
    let passwords = object("users", "ann", format!("password-{secret}"));
    format!("{keys}\n---\n{passwords}\n")
}

#[test]
fn only_who_has_a_key_or_a_password_of_now_is_answered() {
    with_temp_namespace("serve-keys", async |namespace| {
        namespace.apply(&secrets("first")).await?;
        let mut serve = serve();
        serve["auth"] =
            json!({"apiKeysSecret": {"name": "clients"}, "basicSecret": {"name": "users"}});
        let manifest = orders::pipeline_with(namespace, json!({"serve": serve}));
        namespace.apply(&manifest.to_string()).await?;
        namespace.ready(ORDERS).await?;

        let path = format!("/orders/{}", orders::id(0));
        let asked = async |secret: &str| statuses(namespace, &path, secret).await;
        assert_eq!(asked("first").await?, [401, 200, 200]);
        assert_eq!(asked("second").await?, [401; 3]);
        assert_eq!(statuses(namespace, "/health", "second").await?, [200; 3]);

        namespace.apply(&secrets("second")).await?;
        eventually(PATIENCE, async || {
            let (new, old) = (asked("second").await?, asked("first").await?);
            ensure!(
                new == [401, 200, 200] && old == [401; 3],
                "with the new ones {new:?}, with the old ones {old:?}"
            );
            Ok(())
        })
        .await
    });
}
