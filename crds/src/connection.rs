//! How Kafka, Cassandra and a schema registry are reached. Credentials are only ever named here, never held.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A Secret in the namespace of the resource (for the operator's defaults: of the operator).
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct SecretReference {
    /// Name of the Secret.
    #[schemars(length(min = 1))]
    pub name: String,
}

/// One key of a Secret in the namespace of the resource.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct SecretKeyReference {
    /// Name of the Secret.
    #[schemars(length(min = 1))]
    pub name: String,
    /// Key in the Secret.
    #[serde(default = "ca_crt")]
    pub key: String,
}

fn ca_crt() -> String {
    "ca.crt".into()
}

/// A value of a Secret in the namespace of the resource: a password, a token.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct SecretValue {
    /// Name of the Secret.
    #[schemars(length(min = 1))]
    pub name: String,
    /// Key in the Secret.
    #[schemars(length(min = 1))]
    pub key: String,
}

/// TLS towards a server.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Tls {
    /// The certificate authority, in PEM; the system's authorities where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_secret: Option<SecretKeyReference>,
}

/// How a Kafka cluster is reached.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct KafkaConnection {
    /// `host:port`, several separated by commas, as in Kafka's own clients.
    #[schemars(length(min = 1))]
    pub bootstrap_servers: String,
    /// SASL authentication; none where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sasl: Option<Sasl>,
    /// TLS; plain text where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<Tls>,
}

/// SASL authentication towards Kafka.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Sasl {
    /// The SASL mechanism.
    #[serde(default)]
    pub mechanism: SaslMechanism,
    /// A Secret with the keys `username` and `password`.
    pub credentials_secret: SecretReference,
}

/// The SASL mechanisms that are supported.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SaslMechanism {
    /// RFC 4616.
    #[serde(rename = "PLAIN")]
    Plain,
    /// RFC 7677 with SHA-256.
    #[serde(rename = "SCRAM-SHA-256")]
    ScramSha256,
    /// RFC 7677 with SHA-512.
    #[default]
    #[serde(rename = "SCRAM-SHA-512")]
    ScramSha512,
}

impl SaslMechanism {
    /// The name as Kafka's `sasl.mechanism` takes it.
    pub fn as_str(self) -> &'static str {
        match self {
            SaslMechanism::Plain => "PLAIN",
            SaslMechanism::ScramSha256 => "SCRAM-SHA-256",
            SaslMechanism::ScramSha512 => "SCRAM-SHA-512",
        }
    }
}

/// How a Cassandra cluster is reached.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct CassandraConnection {
    /// `host` or `host:port` (9042 where no port is given) of one node or more.
    #[schemars(length(min = 1))]
    pub contact_points: Vec<String>,
    /// The datacenter whose nodes are preferred and whose quorum `LOCAL_QUORUM` means.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub datacenter: Option<String>,
    /// A Secret with the keys `username` and `password`; no authentication where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credentials_secret: Option<SecretReference>,
    /// TLS; plain text where absent. Each node's certificate must have the node's IP address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<Tls>,
}

/// How a schema registry is reached.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("!has(self.tls) || self.url.startsWith('https://')").message("tls goes with a url that begins with https://"))]
pub struct SchemaRegistryConnection {
    /// Where its REST API as Confluent defines it begins, such as `http://registry:8081`; of an
    /// Apicurio Registry with `/apis/ccompat/v7`. Credentials don't belong in it.
    #[schemars(regex(pattern = r"^https?://[^/@]+(/.*)?$"))]
    pub url: String,
    /// A Secret with the keys `username` and `password` for basic authentication; none where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credentials_secret: Option<SecretReference>,
    /// TLS: the certificate authority of an `https://` URL; the system's authorities where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<Tls>,
}
