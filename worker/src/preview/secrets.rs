//! The files that stand for a pipeline's Secrets: which of them are missing, and how to get them.

use std::fmt::Write;

use millstream_api::{
    DataPipeline, KafkaConnection, Lookup, SchemaRegistryConnection,
    connection::{SecretReference, SecretValue, Tls},
    source::TopicEncoding,
    worker::credentials::{self as file, OF_SOURCE_KAFKA, OF_SOURCE_REGISTRY},
};
use millstream_plan::SinkPlan;

use super::is_joined;
use crate::{config::Credentials, sample::only_read};

/// A file of the credentials, and the Secret and its key that have the value.
#[derive(Debug, PartialEq, Eq)]
struct Wanted {
    file: String,
    secret: String,
    key: String,
}

/// An error that names every file that is missing, with the command that gets it.
pub fn ensure_there(
    pipeline: &DataPipeline,
    lookups: &[Lookup],
    plans: &[SinkPlan],
    credentials: &Credentials,
) -> anyhow::Result<()> {
    let mut missing = wanted(pipeline, lookups, plans);
    missing.retain(|wanted| credentials.path(&wanted.file).is_none());
    if missing.is_empty() {
        return Ok(());
    }
    let namespace = pipeline.metadata.namespace.iter();
    let namespace: String = namespace.map(|name| format!(" -n {name}")).collect();
    let mut commands = String::new();
    for Wanted { file, secret, key } in missing {
        // Writing to a String can't fail.
        let _ = write!(
            commands,
            "\n  kubectl get secret{namespace} {secret} -o go-template='{{{{index .data \"{key}\" | base64decode}}}}' > {file}"
        );
    }
    anyhow::bail!(
        "the pipeline reads with Secrets; get these files into a folder, and name it with --credentials-dir:{commands}"
    )
}

/// The files that are needed to read the source and the lookups.
fn wanted(pipeline: &DataPipeline, lookups: &[Lookup], plans: &[SinkPlan]) -> Vec<Wanted> {
    let mut wanted = Vec::new();
    for (file, secret) in only_read(&pipeline.spec.source).secrets() {
        wanted.push(Wanted::value(file, secret));
    }
    let joined = lookups.iter().filter(|lookup| is_joined(lookup, plans));
    let mut of_cassandra = false;
    for lookup in joined {
        of_cassandra |= lookup.cassandra.is_some();
        for (file, secret) in lookup.secrets() {
            wanted.push(Wanted::value(&file, secret));
        }
    }
    if let (true, Some(to)) = (of_cassandra, &pipeline.spec.cassandra) {
        let (login, tls) = (to.credentials_secret.as_ref(), to.tls.as_ref());
        wanted.extend(connection(CASSANDRA, login, tls));
    }
    wanted.extend(of_topic(pipeline));
    wanted
}

const CASSANDRA: [&str; 3] = [
    file::CASSANDRA_USERNAME,
    file::CASSANDRA_PASSWORD,
    file::CASSANDRA_CA,
];
const KAFKA: [&str; 3] = [file::KAFKA_USERNAME, file::KAFKA_PASSWORD, file::KAFKA_CA];
const REGISTRY: [&str; 3] = [
    file::REGISTRY_USERNAME,
    file::REGISTRY_PASSWORD,
    file::REGISTRY_CA,
];

/// Those of the Kafka, and of the schema registry, of a source that is a topic.
fn of_topic(pipeline: &DataPipeline) -> Vec<Wanted> {
    let spec = &pipeline.spec;
    let Some(topic) = &spec.source.topic else {
        return Vec::new();
    };
    let kafka = |files, to: &KafkaConnection| {
        let login = to.sasl.as_ref().map(|sasl| &sasl.credentials_secret);
        connection(files, login, to.tls.as_ref())
    };
    let registry = |files, to: &SchemaRegistryConnection| {
        connection(files, to.credentials_secret.as_ref(), to.tls.as_ref())
    };
    let mut wanted = match (&topic.kafka, &spec.kafka) {
        (Some(own), _) => kafka(OF_SOURCE_KAFKA, own),
        (None, Some(of_pipeline)) => kafka(KAFKA, of_pipeline),
        (None, None) => Vec::new(),
    };
    if topic.encoding == TopicEncoding::Avro {
        wanted.extend(match (&topic.schema_registry, &spec.schema_registry) {
            (Some(own), _) => registry(OF_SOURCE_REGISTRY, own),
            (None, Some(of_pipeline)) => registry(REGISTRY, of_pipeline),
            (None, None) => Vec::new(),
        });
    }
    wanted
}

/// User name, password and certificate authority of a connection, as far as it has them.
fn connection(
    [username, password, ca]: [&str; 3],
    login: Option<&SecretReference>,
    tls: Option<&Tls>,
) -> Vec<Wanted> {
    let login = login.into_iter().flat_map(|secret| {
        [(username, "username"), (password, "password")]
            .map(|(file, key)| Wanted::new(file, &secret.name, key))
    });
    let authority = tls.and_then(|tls| tls.ca_secret.as_ref());
    let authority = authority.map(|secret| Wanted::new(ca, &secret.name, &secret.key));
    login.chain(authority).collect()
}

impl Wanted {
    fn new(file: &str, secret: &str, key: &str) -> Self {
        Wanted {
            file: file.into(),
            secret: secret.into(),
            key: key.into(),
        }
    }

    fn value(file: &str, secret: &SecretValue) -> Self {
        Wanted::new(file, &secret.name, &secret.key)
    }
}
