//! Who a connection authenticates as: a Secret that the resource names, or the operator's own files.

use std::{collections::BTreeMap, fmt, path::PathBuf};

use k8s_openapi::api::core::v1::Secret as SecretObject;
use kube::{Api, Client};
use millstream_api::{
    CassandraConnection, KafkaConnection, Lookup, SchemaRegistryConnection,
    connection::{SecretKeyReference, SecretReference},
    serve::ServeAuth,
    sink::Sink,
    worker::credentials as file,
};
use millstream_plan::Refusal;
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

/// A connection that a resource can name, and what it refers to.
pub trait Connection: Clone + serde::Serialize {
    /// The name of the system.
    const SYSTEM: &str;
    /// The field of a spec.
    const FIELD: &str;
    /// Names of the files with user name, password and certificate authority.
    const FILES: [&str; 3];
    /// The Secret to log in with.
    fn login(&self) -> Option<&SecretReference>;
    /// Where the certificate authority is.
    fn ca(&self) -> Option<&SecretKeyReference>;
}

impl Connection for KafkaConnection {
    const SYSTEM: &str = "Kafka";
    const FIELD: &str = "kafka";
    const FILES: [&str; 3] = [file::KAFKA_USERNAME, file::KAFKA_PASSWORD, file::KAFKA_CA];

    fn login(&self) -> Option<&SecretReference> {
        self.sasl.as_ref().map(|sasl| &sasl.credentials_secret)
    }

    fn ca(&self) -> Option<&SecretKeyReference> {
        self.tls.as_ref()?.ca_secret.as_ref()
    }
}

impl Connection for CassandraConnection {
    const SYSTEM: &str = "Cassandra";
    const FIELD: &str = "cassandra";
    const FILES: [&str; 3] = [
        file::CASSANDRA_USERNAME,
        file::CASSANDRA_PASSWORD,
        file::CASSANDRA_CA,
    ];

    fn login(&self) -> Option<&SecretReference> {
        self.credentials_secret.as_ref()
    }

    fn ca(&self) -> Option<&SecretKeyReference> {
        self.tls.as_ref()?.ca_secret.as_ref()
    }
}

impl Connection for SchemaRegistryConnection {
    const SYSTEM: &str = "schema registry";
    const FIELD: &str = "schemaRegistry";
    const FILES: [&str; 3] = [
        file::REGISTRY_USERNAME,
        file::REGISTRY_PASSWORD,
        file::REGISTRY_CA,
    ];

    fn login(&self) -> Option<&SecretReference> {
        self.credentials_secret.as_ref()
    }

    fn ca(&self) -> Option<&SecretKeyReference> {
        self.tls.as_ref()?.ca_secret.as_ref()
    }
}

impl<C: Connection> Access<C> {
    /// The files that a worker finds in its credentials folder.
    pub fn files(&self) -> BTreeMap<String, String> {
        self.files_as(C::FILES)
    }
}

impl<C> Access<C> {
    fn files_as(&self, [username, password, ca]: [&'static str; 3]) -> BTreeMap<String, String> {
        let mut files = BTreeMap::new();
        if let Some(login) = &self.login {
            files.insert(username.into(), login.username.clone());
            files.insert(password.into(), login.password.reveal().into());
        }
        if let Some(pem) = &self.ca {
            files.insert(ca.into(), pem.clone());
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
        self.access(namespace, own, self.config.kafka.as_ref())
            .await
    }

    /// The Cassandra of a resource: its own, or the operator's default.
    pub async fn cassandra(
        &self,
        namespace: &str,
        own: Option<&CassandraConnection>,
    ) -> Result<Access<CassandraConnection>, Error> {
        let default = self.config.cassandra.as_ref();
        self.access(namespace, own, default).await
    }

    async fn access<C: Connection>(
        &self,
        namespace: &str,
        own: Option<&C>,
        default: Option<&C>,
    ) -> Result<Access<C>, Error> {
        let connection = own.or(default).ok_or_else(|| {
            Refusal::InvalidSpec(format!(
                "spec.{} is absent, and the operator has no default {}: set one of the two",
                C::FIELD,
                C::SYSTEM
            ))
        })?;
        let source = self.source(namespace, own.is_some());
        let [username, password, ca] = C::FILES;
        let login = match connection.login() {
            Some(secret) => Some(source.login(secret, username, password).await?),
            None => None,
        };
        Ok(Access {
            connection: connection.clone(),
            login,
            ca: source.ca(connection.ca(), ca).await?,
        })
    }

    /// The schema registry of a resource: its own, or the operator's default.
    pub async fn registry(
        &self,
        namespace: &str,
        own: Option<&SchemaRegistryConnection>,
    ) -> Result<Access<SchemaRegistryConnection>, Error> {
        let default = self.config.schema_registry.as_ref();
        self.access(namespace, own, default).await
    }

    /// The files for the connections that a source has of its own.
    async fn source_connections(
        &self,
        namespace: &str,
        source: &millstream_api::source::Source,
    ) -> Result<BTreeMap<String, String>, Error> {
        let mut files = BTreeMap::new();
        let Some(topic) = &source.topic else {
            return Ok(files);
        };
        if let Some(own) = &topic.kafka {
            let access = self.kafka(namespace, Some(own)).await?;
            files.extend(access.files_as(file::OF_SOURCE_KAFKA));
        }
        if let Some(own) = &topic.schema_registry {
            let access = self.registry(namespace, Some(own)).await?;
            files.extend(access.files_as(file::OF_SOURCE_REGISTRY));
        }
        Ok(files)
    }

    /// The files with a source's Secrets, as a worker finds them in its credentials folder.
    pub async fn source_files(
        &self,
        namespace: &str,
        source: &millstream_api::source::Source,
    ) -> Result<BTreeMap<String, String>, Error> {
        let secrets = self.source(namespace, true);
        let mut files = self.source_connections(namespace, source).await?;
        for (file, secret) in source.secrets() {
            let value = secrets.value(&secret.name, &secret.key, file).await?;
            files.insert(file.into(), value);
        }
        Ok(files)
    }

    /// The files with the Secrets of sinks, as a worker finds them in its credentials folder.
    pub async fn sink_files(
        &self,
        namespace: &str,
        sinks: &[Sink],
    ) -> Result<BTreeMap<String, String>, Error> {
        let secrets = self.source(namespace, true);
        let mut files = BTreeMap::new();
        for (file, secret) in sinks.iter().flat_map(Sink::secrets) {
            let value = secrets.value(&secret.name, &secret.key, &file).await?;
            files.insert(file, value);
        }
        Ok(files)
    }

    /// The files with the Secrets of lookups, as a worker finds them in its credentials folder.
    pub async fn lookup_files(
        &self,
        namespace: &str,
        lookups: &[Lookup],
    ) -> Result<BTreeMap<String, String>, Error> {
        let secrets = self.source(namespace, true);
        let mut files = BTreeMap::new();
        for (file, secret) in lookups.iter().flat_map(Lookup::secrets) {
            let value = secrets.value(&secret.name, &secret.key, &file).await?;
            files.insert(file, value);
        }
        Ok(files)
    }

    /// The files with the keys and passwords of a REST service.
    pub async fn serve_files(
        &self,
        namespace: &str,
        auth: &ServeAuth,
    ) -> Result<BTreeMap<String, String>, Error> {
        let mut files = BTreeMap::new();
        for (file, secret) in [
            (file::SERVE_API_KEYS, &auth.api_keys_secret),
            (file::SERVE_PASSWORDS, &auth.basic_secret),
        ] {
            if let Some(secret) = secret {
                let all = self.whole(namespace, &secret.name).await?;
                // Names and texts: they serialize.
                files.insert(file.into(), serde_json::to_string(&all).unwrap_or_default());
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
                        "Secret `{namespace}/{secret}` has no key `{key}`: put it in"
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
                        "the operator's default credentials lack the file `{file}` ({error}): give the operator, in its own namespace, the Secret `{secret}` with the key `{key}`"
                    ))
                })
            }
        }
    }
}
