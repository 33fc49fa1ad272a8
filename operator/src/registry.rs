//! A schema registry as the operator needs it: one schema, registered for a topic.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use millstream_api::SchemaRegistryConnection;
use millstream_plan::avro::check_readable;
use reqwest::{Certificate, Client, Method, StatusCode};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Value, json};

use crate::{
    credentials::{Access, Login},
    error::root_cause,
};

/// Every call gives up after this time.
const TIMEOUT: Duration = Duration::from_secs(10);
/// What is registered is looked up again after so long.
const FRESH: Duration = Duration::from_secs(30);
/// More schemas than this are not remembered.
const MEMORY: usize = 10_000;
/// The registry's own numbers for what it doesn't have, or has deleted: a plain 404 may be a wrong URL.
const NOT_FOUND: [u32; 5] = [40_401, 40_402, 40_403, 40_404, 40_406];

/// Why a schema isn't registered.
#[derive(Debug, Clone, thiserror::Error)]
pub enum RegistryError {
    #[error("the schema registry {url} doesn't answer within 10 s: {detail}")]
    Unreachable { url: String, detail: String },
    #[error("the schema registry {url} refuses: {detail}")]
    Refused { url: String, detail: String },
    #[error(
        "the schema isn't compatible with what is registered as `{subject}`: {detail}; take the change back, or use a new topic"
    )]
    Incompatible { subject: String, detail: String },
}

/// A schema registry.
pub struct Registry {
    client: Client,
    url: String,
    login: Option<Login>,
    /// Ids by subject and schema, and when they were looked up.
    ids: Mutex<HashMap<(String, String), (u32, Instant)>>,
}

/// The subject of a topic's values.
pub fn subject(topic: &str) -> String {
    format!("{topic}-value")
}

impl Registry {
    /// Makes the client; it connects by itself.
    pub fn new(access: &Access<SchemaRegistryConnection>) -> Result<Registry, RegistryError> {
        let url = access.connection.url.trim_end_matches('/').to_owned();
        let wrong = |error: reqwest::Error| RegistryError::Refused {
            url: url.clone(),
            detail: format!("the connection's settings are wrong: {error}"),
        };
        let mut client = Client::builder()
            .timeout(TIMEOUT)
            .user_agent(concat!("millstream/", env!("CARGO_PKG_VERSION")));
        if let Some(pem) = &access.ca {
            let authorities = Certificate::from_pem_bundle(pem.as_bytes()).map_err(wrong)?;
            client = client.tls_certs_only(authorities).https_only(true);
        }
        Ok(Registry {
            client: client.build().map_err(wrong)?,
            url,
            login: access.login.clone(),
            ids: Mutex::default(),
        })
    }

    /// The id of a schema under a subject. Registers it where it isn't there, which is told before;
    /// refuses it where records of the versions that are there couldn't be read with it.
    pub async fn id(
        &self,
        subject: &str,
        schema: &Value,
        registering: impl FnOnce(),
    ) -> Result<u32, RegistryError> {
        let text = schema.to_string();
        let key = (subject.to_owned(), text.clone());
        if let Some((id, at)) = self.ids().get(&key)
            && at.elapsed() < FRESH
        {
            return Ok(*id);
        }
        let body = json!({"schema": text, "schemaType": "AVRO"});
        let path = format!("/subjects/{subject}");
        let found: Option<Registered> = self.call(Method::POST, &path, Some(&body)).await?;
        let id = match found {
            Some(found) => found.id,
            None => {
                self.check(subject, schema).await?;
                registering();
                self.register(subject, &body).await?
            }
        };
        let mut ids = self.ids();
        if ids.len() >= MEMORY {
            ids.clear();
        }
        ids.insert(key, (id, Instant::now()));
        Ok(id)
    }

    /// Takes a subject away; nothing where there is none.
    pub async fn delete(&self, subject: &str) -> Result<(), RegistryError> {
        self.ids().retain(|(of, _), _| of != subject);
        let path = format!("/subjects/{subject}");
        let _: Option<Value> = self.call(Method::DELETE, &path, None).await?;
        Ok(())
    }

    /// Whether the records of every version can be read with a schema, whatever the registry's own
    /// rules are.
    async fn check(&self, subject: &str, schema: &Value) -> Result<(), RegistryError> {
        let path = format!("/subjects/{subject}/versions");
        let versions: Option<Vec<u32>> = self.call(Method::GET, &path, None).await?;
        for version in versions.unwrap_or_default() {
            let path = format!("{path}/{version}");
            let Some(registered) = self.call::<Version>(Method::GET, &path, None).await? else {
                continue;
            };
            let incompatible = |detail: String| RegistryError::Incompatible {
                subject: subject.to_owned(),
                detail: format!("version {version}: {detail}"),
            };
            let written: Value = serde_json::from_str(&registered.schema)
                .map_err(|_| incompatible("it isn't Avro".into()))?;
            check_readable(&written, schema).map_err(|error| incompatible(error.to_string()))?;
        }
        Ok(())
    }

    async fn register(&self, subject: &str, body: &Value) -> Result<u32, RegistryError> {
        let path = format!("/subjects/{subject}/versions");
        let registered: Option<Registered> = self.call(Method::POST, &path, Some(body)).await?;
        let registered = registered.ok_or_else(|| RegistryError::Refused {
            url: self.url.clone(),
            detail: format!("it answers 404 to {path}"),
        })?;
        Ok(registered.id)
    }

    /// Calls the registry; nothing where it doesn't have what is asked for.
    async fn call<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Option<T>, RegistryError> {
        let unreachable = |error: reqwest::Error| RegistryError::Unreachable {
            url: self.url.clone(),
            detail: root_cause(&error),
        };
        let mut request = self.client.request(method, format!("{}{path}", self.url));
        if let Some(login) = &self.login {
            request = request.basic_auth(&login.username, Some(login.password.reveal()));
        }
        if let Some(body) = body {
            request = request.json(body);
        }
        let response = request.send().await.map_err(unreachable)?;
        let status = response.status();
        let answer = response.bytes().await.map_err(unreachable)?;
        if status.is_success() {
            return serde_json::from_slice(&answer).map(Some).map_err(|_| {
                self.refused(
                    "it doesn't answer as a schema registry does; is the URL right?".into(),
                )
            });
        }
        let said: Option<Refusal> = serde_json::from_slice(&answer).ok();
        let code = said.as_ref().map_or(0, |said| said.error_code);
        let said = said.map_or_else(String::new, |said| said.message);
        match status {
            StatusCode::NOT_FOUND if NOT_FOUND.contains(&code) => Ok(None),
            StatusCode::CONFLICT => Err(RegistryError::Incompatible {
                subject: path.split('/').nth(2).unwrap_or_default().to_owned(),
                detail: said,
            }),
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                Err(self.refused(match &self.login {
                    Some(login) => format!("the credentials of {} are wrong", login.origin),
                    None => "it wants credentials, and none are set".into(),
                }))
            }
            status if status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS => {
                Err(RegistryError::Unreachable {
                    url: self.url.clone(),
                    detail: format!("it answers {status} {said}"),
                })
            }
            status => Err(self.refused(format!("it answers {status} to {path} {said}"))),
        }
    }

    fn refused(&self, detail: String) -> RegistryError {
        RegistryError::Refused {
            url: self.url.clone(),
            detail,
        }
    }

    fn ids(&self) -> MutexGuard<'_, HashMap<(String, String), (u32, Instant)>> {
        self.ids.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Deserialize)]
struct Registered {
    id: u32,
}

#[derive(Deserialize)]
struct Version {
    schema: String,
}

#[derive(Deserialize)]
struct Refusal {
    error_code: u32,
    #[serde(default)]
    message: String,
}
