//! Who a connection authenticates as: a Secret that the resource names, or the operator's own files.

use std::{collections::BTreeMap, fmt, path::PathBuf};

use k8s_openapi::api::core::v1::Secret as SecretObject;
use kube::{Api, Client};
use millstream_api::{
    CassandraConnection, KafkaConnection,
    connection::{SecretKeyReference, SecretReference},
    serve::ServeAuth,
    worker::credentials as file,
};
use sha2::{Digest, Sha256};

use crate::{config::Config, error::Error};

/// A value that is never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Hidden(String);

impl Hidden {
    /// The value itself, for the driver.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl From<String> for Hidden {
    fn from(value: String) -> Self {
        Hidden(value)
    }
}

impl fmt::Debug for Hidden {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// A connection with all that is needed to use it.
#[derive(Clone, Debug)]
pub struct Access<C> {
    pub connection: C,
    pub login: Option<Login>,
    /// Certificate authority, PEM.
    pub ca: Option<String>,
}

/// A user name and its password.
#[derive(Clone, Debug)]
pub struct Login {
    pub username: String,
    pub password: Hidden,
    /// Where they are from, for people.
    pub origin: String,
}

impl<C: serde::Serialize> Access<C> {
    /// Equal for equal connections with equal credentials. Says nothing about them.
    pub fn fingerprint(&self) -> String {
        let mut hash = Sha256::new();
        // Plain data: it serializes.
        hash.update(serde_json::to_vec(&self.connection).unwrap_or_default());
        for part in [
            self.login.as_ref().map(|login| login.username.as_str()),
            self.login.as_ref().map(|login| login.password.reveal()),
            self.ca.as_deref(),
        ] {
            hash.update([0]);
            hash.update(part.unwrap_or_default());
        }
        crate::hex(&hash.finalize())
    }
}

impl Access<KafkaConnection> {
    /// The files that a worker finds in its credentials folder.
    pub fn files(&self) -> BTreeMap<&'static str, String> {
        self.named(file::KAFKA_USERNAME, file::KAFKA_PASSWORD, file::KAFKA_CA)
    }
}

impl Access<CassandraConnection> {
    /// The files that a worker finds in its credentials folder.
    pub fn files(&self) -> BTreeMap<&'static str, String> {
        self.named(
            file::CASSANDRA_USERNAME,
            file::CASSANDRA_PASSWORD,
            file::CASSANDRA_CA,
        )
    }
}

impl<C> Access<C> {
    fn named(
        &self,
        username: &'static str,
        password: &'static str,
        ca: &'static str,
    ) -> BTreeMap<&'static str, String> {
        let mut files = BTreeMap::new();
        if let Some(login) = &self.login {
            files.insert(username, login.username.clone());
            files.insert(password, login.password.reveal().into());
        }
        if let Some(pem) = &self.ca {
            files.insert(ca, pem.clone());
        }
        files
    }
}

/// Finds connections and their credentials.
#[derive(Clone)]
pub struct Credentials {
    pub client: Client,
    pub config: std::sync::Arc<Config>,
    pub folder: PathBuf,
}

impl Credentials {
    /// The Kafka of a resource: its own, or the operator's default.
    pub async fn kafka(
        &self,
        namespace: &str,
        own: Option<&KafkaConnection>,
    ) -> Result<Access<KafkaConnection>, Error> {
        let connection = own.or(self.config.kafka.as_ref()).ok_or_else(|| {
            Error::InvalidSpec(
                "spec.kafka is absent, and the operator has no default Kafka: set one of the two"
                    .into(),
            )
        })?;
        let source = self.source(namespace, own.is_some());
        let login = match &connection.sasl {
            Some(sasl) => Some(
                source
                    .login(
                        &sasl.credentials_secret,
                        file::KAFKA_USERNAME,
                        file::KAFKA_PASSWORD,
                    )
                    .await?,
            ),
            None => None,
        };
        let ca = connection
            .tls
            .as_ref()
            .and_then(|tls| tls.ca_secret.as_ref());
        Ok(Access {
            connection: connection.clone(),
            login,
            ca: source.ca(ca, file::KAFKA_CA).await?,
        })
    }

    /// The Cassandra of a resource: its own, or the operator's default.
    pub async fn cassandra(
        &self,
        namespace: &str,
        own: Option<&CassandraConnection>,
    ) -> Result<Access<CassandraConnection>, Error> {
        let connection = own.or(self.config.cassandra.as_ref()).ok_or_else(|| {
            Error::InvalidSpec(
                "spec.cassandra is absent, and the operator has no default Cassandra: set one of the two"
                    .into(),
            )
        })?;
        let source = self.source(namespace, own.is_some());
        let login = match &connection.credentials_secret {
            Some(secret) => Some(
                source
                    .login(secret, file::CASSANDRA_USERNAME, file::CASSANDRA_PASSWORD)
                    .await?,
            ),
            None => None,
        };
        let ca = connection
            .tls
            .as_ref()
            .and_then(|tls| tls.ca_secret.as_ref());
        Ok(Access {
            connection: connection.clone(),
            login,
            ca: source.ca(ca, file::CASSANDRA_CA).await?,
        })
    }

    /// The files with a source's Secrets, as a worker finds them in its credentials folder.
    pub async fn source_files(
        &self,
        namespace: &str,
        source: &millstream_api::source::Source,
    ) -> Result<BTreeMap<&'static str, String>, Error> {
        let secrets = self.source(namespace, true);
        let mut files = BTreeMap::new();
        for (file, secret) in source.secrets() {
            files.insert(file, secrets.value(&secret.name, &secret.key, file).await?);
        }
        Ok(files)
    }

    /// The files with the keys and passwords of a REST service.
    pub async fn serve_files(
        &self,
        namespace: &str,
        auth: &ServeAuth,
    ) -> Result<BTreeMap<&'static str, String>, Error> {
        let mut files = BTreeMap::new();
        for (file, secret) in [
            (file::SERVE_API_KEYS, &auth.api_keys_secret),
            (file::SERVE_PASSWORDS, &auth.basic_secret),
        ] {
            if let Some(secret) = secret {
                let all = self.whole(namespace, &secret.name).await?;
                // Names and texts: they serialize.
                files.insert(file, serde_json::to_string(&all).unwrap_or_default());
            }
        }
        Ok(files)
    }

    /// All values of a Secret, of which there must be one, and none empty.
    async fn whole(&self, namespace: &str, name: &str) -> Result<BTreeMap<String, String>, Error> {
        let api = Api::<SecretObject>::namespaced(self.client.clone(), namespace);
        let missing =
            |what: &str| Error::SecretMissing(format!("Secret `{namespace}/{name}` {what}"));
        let object = api.get_opt(name).await?;
        let object = object.ok_or_else(|| {
            missing("isn't there: make it, with a name and a secret for each client")
        })?;
        let mut all = BTreeMap::new();
        for (key, value) in object.data.into_iter().flatten() {
            let text = String::from_utf8(value.0).unwrap_or_default();
            let text = text.trim_end_matches(['\r', '\n']);
            if text.is_empty() {
                return Err(missing(&format!(
                    "has an empty value, or none of text, at key `{key}`"
                )));
            }
            all.insert(key, text.to_owned());
        }
        if all.is_empty() {
            return Err(missing(
                "has no keys: put in a name and a secret for each client",
            ));
        }
        Ok(all)
    }

    fn source<'a>(&'a self, namespace: &'a str, own: bool) -> Source<'a> {
        if own {
            Source::Secrets(
                Box::new(Api::namespaced(self.client.clone(), namespace)),
                namespace,
            )
        } else {
            Source::Files(&self.folder)
        }
    }
}

/// Where values are read.
enum Source<'a> {
    Secrets(Box<Api<SecretObject>>, &'a str),
    Files(&'a PathBuf),
}

impl Source<'_> {
    async fn login(
        &self,
        secret: &SecretReference,
        username_file: &str,
        password_file: &str,
    ) -> Result<Login, Error> {
        let username = self.value(&secret.name, "username", username_file).await?;
        let password = self.value(&secret.name, "password", password_file).await?;
        let origin = match self {
            Source::Secrets(_, namespace) => format!("Secret {namespace}/{}", secret.name),
            Source::Files(_) => format!("the operator's Secret {}", secret.name),
        };
        // A newline at the end is an editor's, never part of a name or a password.
        Ok(Login {
            username: username.trim_end_matches(['\r', '\n']).into(),
            password: Hidden(password.trim_end_matches(['\r', '\n']).to_string()),
            origin,
        })
    }

    async fn ca(
        &self,
        reference: Option<&SecretKeyReference>,
        file: &str,
    ) -> Result<Option<String>, Error> {
        match reference {
            Some(reference) => self
                .value(&reference.name, &reference.key, file)
                .await
                .map(Some),
            None => Ok(None),
        }
    }

    async fn value(&self, secret: &str, key: &str, file: &str) -> Result<String, Error> {
        match self {
            Source::Secrets(api, namespace) => {
                let object = api.get_opt(secret).await?.ok_or_else(|| {
                    Error::SecretMissing(format!(
                        "there is no Secret `{secret}` in namespace `{namespace}`: make it, with the key `{key}`"
                    ))
                })?;
                let value = object.data.and_then(|mut data| data.remove(key));
                let value = value.ok_or_else(|| {
                    Error::SecretMissing(format!(
                        "Secret `{namespace}/{secret}` has no key `{key}`"
                    ))
                })?;
                String::from_utf8(value.0).map_err(|_| {
                    Error::SecretMissing(format!(
                        "key `{key}` of Secret `{namespace}/{secret}` isn't UTF-8 text"
                    ))
                })
            }
            Source::Files(folder) => {
                let path = folder.join(file);
                tokio::fs::read_to_string(&path).await.map_err(|error| {
                    Error::SecretMissing(format!(
                        "the operator's default credentials lack the file `{file}` ({error}): give the operator the Secret `{secret}` with the key `{key}`"
                    ))
                })
            }
        }
    }
}
