//! The server of `examples/apis` as a pod: it knows what it served, and fails on request.

use std::collections::BTreeMap;
use std::io::Write;

use anyhow::{Context, Result};
use flate2::{Compression, write::GzEncoder};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::ResourceExt;
use kube::api::{ListParams, PostParams};
use serde_json::{Value, json};

use crate::{Environment, Namespace, PATIENCE, eventually};

/// What the server serves.
pub enum Data<'a> {
    /// So many generated records under `/resource/`, and no end of users under `/api/`.
    Generated(u64),
    /// Recorded records, as JSON; packed, less than a ConfigMap may hold (1 MiB).
    Recorded(&'a str),
    /// A file under `/files/`, by its name there (`NAME.ndjson.gz`); as large at most.
    File(&'a str, Vec<u8>),
}

/// The server, running.
pub struct Apis<'a> {
    namespace: &'a Namespace,
    pod: String,
}

impl<'a> Apis<'a> {
    /// Starts the server and waits until it answers.
    ///
    /// # Errors
    /// When its pod doesn't become ready.
    pub async fn start(namespace: &'a Namespace, data: Data<'_>) -> Result<Self> {
        let mut arguments = vec!["--listen=0.0.0.0:8080".to_owned()];
        let (name, bytes) = match data {
            Data::Generated(records) => {
                arguments.push(format!("--records={records}"));
                ("nothing", Vec::new())
            }
            Data::Recorded(text) => {
                arguments.push("--data=/data/records.json.gz".to_owned());
                let mut packed = GzEncoder::new(Vec::new(), Compression::best());
                packed.write_all(text.as_bytes())?;
                ("records.json.gz", packed.finish()?)
            }
            Data::File(name, bytes) => {
                arguments.push("--files=/data".to_owned());
                (name, bytes)
            }
        };
        // Not by `kubectl apply`, whose annotation holds the whole object again.
        let records = ConfigMap {
            metadata: ObjectMeta {
                name: Some("apis".into()),
                ..ObjectMeta::default()
            },
            binary_data: Some(BTreeMap::from([(name.to_owned(), ByteString(bytes))])),
            ..ConfigMap::default()
        };
        namespace
            .api::<ConfigMap>()
            .create(&PostParams::default(), &records)
            .await?;
        namespace
            .apply(&manifests(&Environment::image("apis")?, &arguments))
            .await?;
        let pods = namespace.api::<Pod>();
        let pod = eventually(PATIENCE, async || {
            let found = pods.list(&ListParams::default().labels("app=apis")).await?;
            let pod = found.items.first().context("no pod yet")?.name_any();
            proxied(namespace, &pod, "get", "/healthz", "").await?;
            Ok(pod)
        })
        .await?;
        Ok(Apis { namespace, pod })
    }

    /// The URL of a path, as pods reach it.
    pub fn url(&self, path: &str) -> String {
        format!("http://apis.{}.svc{path}", self.namespace.name)
    }

    /// What the server answers to `GET`.
    ///
    /// # Errors
    /// When it isn't JSON, or the server says no.
    pub async fn get(&self, path: &str) -> Result<Value> {
        let text = self.text(path).await?;
        serde_json::from_str(&text).with_context(|| text)
    }

    /// The text that the server answers to `GET`.
    ///
    /// # Errors
    /// When the server says no.
    pub async fn text(&self, path: &str) -> Result<String> {
        proxied(self.namespace, &self.pod, "get", path, "").await
    }

    /// Number of records that were served so far, and their ids: of `api` or `resource`.
    ///
    /// # Errors
    /// When the server doesn't answer.
    pub async fn sent(&self, api: &str) -> Result<(u64, Vec<String>)> {
        let sent = self.get("/sent").await?;
        let count = sent[api]["records"]
            .as_u64()
            .context("`records` of /sent")?;
        let ids = sent[api].get("ids").cloned().unwrap_or_else(|| json!([]));
        Ok((count, serde_json::from_value(ids)?))
    }

    /// Orders faults, such as `{"kind": "cut", "next": 3}`; `null` ends them.
    ///
    /// # Errors
    /// When the server doesn't know the fault.
    pub async fn faults(&self, order: Value) -> Result<()> {
        let (verb, body) = match order {
            Value::Null => ("delete", String::new()),
            order => ("create", order.to_string()),
        };
        proxied(self.namespace, &self.pod, verb, "/faults", &body).await?;
        Ok(())
    }

    /// How many requests got a fault of that kind.
    ///
    /// # Errors
    /// When the server doesn't answer.
    pub async fn injected(&self, kind: &str) -> Result<u64> {
        let faults = self.get("/faults").await?;
        Ok(faults["injected"][kind].as_u64().unwrap_or_default())
    }
}

/// A request through the API server, which reaches every pod.
async fn proxied(
    namespace: &Namespace,
    pod: &str,
    verb: &str,
    path: &str,
    body: &str,
) -> Result<String> {
    let path = format!(
        "/api/v1/namespaces/{}/pods/{pod}:8080/proxy{path}",
        namespace.name
    );
    let mut arguments = vec![verb, "--raw", &path];
    if verb == "create" {
        arguments.extend(["-f", "-"]);
    }
    namespace.environment.kubectl(&arguments, body).await?.ok()
}

fn manifests(image: &str, arguments: &[String]) -> String {
    let arguments = json!(arguments);
    format!(
        "
apiVersion: apps/v1
kind: Deployment
metadata: {{name: apis}}
spec:
  selector: {{matchLabels: {{app: apis}}}}
  template:
    metadata: {{labels: {{app: apis}}}}
    spec:
      automountServiceAccountToken: false
      securityContext: {{runAsNonRoot: true, runAsUser: 65532, seccompProfile: {{type: RuntimeDefault}}}}
      containers:
        - name: apis
          image: {image}
          args: {arguments}
          ports: [{{name: http, containerPort: 8080}}]
          readinessProbe: {{httpGet: {{path: /healthz, port: http}}, periodSeconds: 1}}
          securityContext: {{allowPrivilegeEscalation: false, readOnlyRootFilesystem: true, capabilities: {{drop: [ALL]}}}}
          volumeMounts: [{{name: data, mountPath: /data}}]
      volumes: [{{name: data, configMap: {{name: apis}}}}]
---
apiVersion: v1
kind: Service
metadata: {{name: apis}}
spec:
  selector: {{app: apis}}
  ports: [{{port: 80, targetPort: http}}]
"
    )
}
