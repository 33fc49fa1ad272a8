//! Rows as documents of a MongoDB-compatible server.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::connection::SecretValue;

/// A collection of a server that MongoDB's clients can speak to. A row is a document, a column a
/// field of the same name; the field `_version` says how new the document is: a record that comes
/// again, or late, never replaces what a newer one wrote. A null is written as null, and a field that
/// isn't in the record is left as it is. A collection takes the rows of one sink.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct DocumentSink {
    /// The connection string, such as `mongodb://user:password@mongo-0:27017,mongo-1:27017/?replicaSet=rs0`.
    /// Those that begin with `mongodb+srv` aren't taken: name the hosts.
    pub connection_secret: SecretValue,
    /// The certificate authority of the server, in PEM: with it TLS is used, whatever the connection
    /// string says; with `tls=true` there, and none here, the well-known ones are trusted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_secret: Option<SecretValue>,
    /// The database. The server makes it.
    #[schemars(length(min = 1, max = 63), regex(pattern = r"^[A-Za-z0-9_-]+$"))]
    pub database: String,
    /// The collection. The server makes it.
    #[schemars(
        length(min = 1, max = 120),
        regex(pattern = r"^[A-Za-z_][A-Za-z0-9_.-]*$")
    )]
    pub collection: String,
    /// The column of the SQL's result whose value is the document's `_id` too. A row without it goes
    /// to the dead letter.
    #[schemars(length(min = 1, max = 128))]
    pub id: String,
}

impl DocumentSink {
    /// See [`Sink::secrets`](super::Sink::secrets).
    pub(super) fn secrets(&self, sink: &str) -> impl Iterator<Item = (String, &SecretValue)> {
        let ca = self.ca_secret.as_ref().map(|ca| (ca_file(sink), ca));
        std::iter::once((connection_file(sink), &self.connection_secret)).chain(ca)
    }

    /// Where the documents are, for people.
    pub(super) fn place(&self) -> String {
        format!("{}.{}", self.database, self.collection)
    }
}

/// The file with the connection string of a sink.
pub fn connection_file(sink: &str) -> String {
    format!("sink-{sink}-document-connection")
}

/// The file with the certificate authority of a sink's server, PEM.
pub fn ca_file(sink: &str) -> String {
    format!("sink-{sink}-document-ca.crt")
}
