//! Avro schemas out of a schema registry.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use anyhow::Context;
use millstream_api::{SchemaRegistryConnection, worker::credentials};
use reqwest::{Client, StatusCode};
use serde::Deserialize;
use serde_json::Value;

use crate::{config::Credentials, retry::Delays, status::StatusPart, tls::trusting};

const TIMEOUT: Duration = Duration::from_secs(10);
const CONCERN: &str = "schema registry";
/// Ids of which it is remembered that they are unknown; a topic has few.
const MEMORY: usize = 1_000;
/// A registry that doesn't know an id is asked again after so long.
const UNKNOWN: Duration = Duration::from_secs(30);
/// Largest schema, in bytes.
const MAX_BYTES: usize = 4 * 1024 * 1024;
/// The registry's own number for a schema that it doesn't have: a plain 404 may be a wrong URL.
const NOT_FOUND: u32 = 40_403;

/// A schema registry, and the schemas that it has given.
pub struct Registry {
    client: Client,
    url: String,
    login: Option<(String, String)>,
    seen: Mutex<HashMap<u32, Seen>>,
}

/// A schema, or when the registry had none.
#[derive(Clone)]
enum Seen {
    Schema(Arc<Value>),
    Unknown(Instant),
}

impl Registry {
    /// A client; nothing is asked yet.
    pub fn new(
        connection: &SchemaRegistryConnection,
        credentials: &Credentials,
    ) -> anyhow::Result<Self> {
        let mut client = Client::builder()
            .timeout(TIMEOUT)
            .user_agent(concat!("millstream/", env!("CARGO_PKG_VERSION")));
        if credentials.path(credentials::REGISTRY_CA).is_some() {
            client = trusting(client, credentials, credentials::REGISTRY_CA)?;
        }
        let login = match &connection.credentials_secret {
            None => None,
            Some(_) => Some((
                credentials.require(credentials::REGISTRY_USERNAME, "basic authentication")?,
                credentials.require(credentials::REGISTRY_PASSWORD, "basic authentication")?,
            )),
        };
        Ok(Registry {
            client: client.build()?,
            url: connection.url.trim_end_matches('/').to_owned(),
            login,
            seen: Mutex::default(),
        })
    }

    /// The schema of this id, if it has been fetched.
    pub fn known(&self, id: u32) -> Option<Arc<Value>> {
        match self.seen().get(&id) {
            Some(Seen::Schema(schema)) => Some(schema.clone()),
            _ => None,
        }
    }

    /// Fetches the schema of this id; none where the registry has none. Tries for as long as the
    /// registry doesn't answer, and shows why.
    pub async fn fetch(&self, id: u32, status: &StatusPart) -> Option<Arc<Value>> {
        match self.seen().get(&id).cloned() {
            Some(Seen::Schema(schema)) => return Some(schema),
            Some(Seen::Unknown(at)) if at.elapsed() < UNKNOWN => return None,
            _ => {}
        }
        let mut delays = Delays::default();
        loop {
            match self.get(id).await {
                Ok(schema) => {
                    status.clear(CONCERN);
                    return self.remember(id, schema);
                }
                Err(error) => {
                    let url = &self.url;
                    let message = format!("can't read schema {id} from {url}: {error:#}");
                    status.fail(CONCERN, message);
                    delays.wait().await;
                }
            }
        }
    }

    /// Takes note of what the registry has given.
    pub(crate) fn remember(&self, id: u32, schema: Option<Value>) -> Option<Arc<Value>> {
        let mut seen = self.seen();
        if seen.len() >= MEMORY {
            // Those of schemas stay: whoever has fetched one counts on it.
            seen.retain(|_, seen| matches!(seen, Seen::Schema(_)));
        }
        let schema = schema.map(Arc::new);
        let entry = match &schema {
            Some(schema) => Seen::Schema(schema.clone()),
            None => Seen::Unknown(Instant::now()),
        };
        seen.insert(id, entry);
        schema
    }

    async fn get(&self, id: u32) -> anyhow::Result<Option<Value>> {
        let mut request = self.client.get(format!("{}/schemas/ids/{id}", self.url));
        if let Some((username, password)) = &self.login {
            request = request.basic_auth(username, Some(password));
        }
        let mut response = request.send().await.map_err(reqwest::Error::without_url)?;
        let status = response.status();
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await? {
            body.extend_from_slice(&chunk);
            anyhow::ensure!(
                body.len() <= MAX_BYTES,
                "the answer has more than {MAX_BYTES} bytes"
            );
        }
        if status == StatusCode::NOT_FOUND
            && serde_json::from_slice::<Refusal>(&body).is_ok_and(|r| r.error_code == NOT_FOUND)
        {
            return Ok(None);
        }
        anyhow::ensure!(status.is_success(), "it answers {status}");
        let answer: Answer = serde_json::from_slice(&body)
            .context("it doesn't answer as a schema registry does; is the URL right?")?;
        let kind = answer.schema_type.as_deref().unwrap_or("AVRO");
        anyhow::ensure!(kind == "AVRO", "the schema is of type {kind}, not AVRO");
        anyhow::ensure!(
            answer.references.is_empty(),
            "the schema refers to other schemas of the registry, which isn't supported"
        );
        let schema = serde_json::from_str(&answer.schema).context("the schema isn't JSON")?;
        Ok(Some(schema))
    }

    fn seen(&self) -> MutexGuard<'_, HashMap<u32, Seen>> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Answer {
    schema: String,
    schema_type: Option<String>,
    #[serde(default)]
    references: Vec<Value>,
}

#[derive(Deserialize)]
struct Refusal {
    error_code: u32,
}
