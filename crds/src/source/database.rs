//! Records from a database.

use std::collections::BTreeMap;

use kube::{KubeSchema, core::Duration};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::DURATION;
use crate::connection::SecretValue;

/// File with the password, in the worker's folder of credentials.
pub const PASSWORD_FILE: &str = "database-password";
/// File with the certificate authority, PEM.
pub const CA_FILE: &str = "database-ca.crt";

/// Rows of a PostgreSQL database, each a record with the columns as its fields.
///
/// Rows are read page by page in the order of a key, and the key of the last row is the position: a
/// worker that starts again, or that has lost its connection, goes on behind that row.
///
/// PostgreSQL itself makes the JSON: numbers keep all their digits, `json` and arrays are nested,
/// `bytea` is Base64, dates and times are ISO 8601 in UTC.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(self.table) != has(self.query)").message("exactly one of table and query must be set"))]
#[x_kube(validation = Rule::new("has(self.key) || !has(self.query)").message("a query needs key: the columns that tell its rows apart"))]
pub struct DatabaseSource {
    /// Where the database is.
    pub postgres: PostgresConnection,
    /// The table or view, as the database spells it; with its schema where it isn't in the search
    /// path, such as `sales.orders`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 127), regex(pattern = r"^[^.]+(\.[^.]+)?$"))]
    pub table: Option<String>,
    /// A `SELECT` whose rows are read in place of a table's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 65536))]
    pub query: Option<String>,
    /// The columns that tell rows apart, and in whose order they are read; a table's primary key
    /// where absent. A row in which one of them is null isn't read; `status.source.warning` says so.
    /// An index over them makes pages cheap.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1, max = 16))]
    pub key: Vec<String>,
    /// Read only what is new; everything where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub incremental: Option<Incremental>,
    /// Rows of a page. A page also ends at 4 MiB.
    #[serde(default = "thousand")]
    #[schemars(range(min = 1, max = 100000))]
    pub fetch_size: u32,
    /// Longest that a page may take.
    #[serde(default = "super::http::thirty_seconds")]
    #[schemars(extend("pattern" = DURATION))]
    pub timeout: Duration,
    /// Read again and again; once where absent. Without `incremental` each time everything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub poll: Option<Poll>,
}

fn thousand() -> u32 {
    1_000
}

impl DatabaseSource {
    /// The Secrets that the source needs, by file.
    pub fn secrets(&self) -> BTreeMap<&'static str, &SecretValue> {
        let tls = self.postgres.tls.as_ref();
        let password = self.postgres.password_secret.as_ref();
        let ca = tls.and_then(|tls| tls.ca_secret.as_ref());
        let files = [(PASSWORD_FILE, password), (CA_FILE, ca)];
        let files = files.into_iter();
        files
            .filter_map(|(file, secret)| Some((file, secret?)))
            .collect()
    }
}

/// How new rows are told from those that were read.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Incremental {
    /// A column that grows with every insert, or with every update too, such as `updated_at` or a
    /// serial number. A row is read when its value, and then its key, is behind the last one that
    /// was read. A row in which it is null, infinity or NaN isn't read; `status.source.warning` says
    /// so.
    #[schemars(length(min = 1, max = 63))]
    pub column: String,
    /// Where the first reading begins, as the database writes the value; at the smallest where
    /// absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initial: Option<String>,
    /// A new value is read so long after it was seen first: transactions that took a smaller value
    /// and are still open have this time to commit, or their rows are missed. Not less than the
    /// value's own steps: a second for a column of whole seconds.
    #[serde(default = "second")]
    #[schemars(extend("pattern" = DURATION))]
    pub settle: Duration,
}

fn second() -> Duration {
    std::time::Duration::from_secs(1).into()
}

/// How a PostgreSQL server is reached.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct PostgresConnection {
    /// Name or address of the server.
    #[schemars(length(min = 1))]
    pub host: String,
    /// Its port.
    #[serde(default = "postgres_port")]
    pub port: u16,
    /// Name of the database.
    #[schemars(length(min = 1))]
    pub database: String,
    /// Who reads. `SELECT` on what is read is all that is needed.
    #[schemars(length(min = 1))]
    pub user: String,
    /// The password; none where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password_secret: Option<SecretValue>,
    /// TLS; plain text where absent. The server's name must be in its certificate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<DatabaseTls>,
}

fn postgres_port() -> u16 {
    5432
}

/// TLS towards a database.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct DatabaseTls {
    /// The certificate authority, in PEM; the system's authorities where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_secret: Option<SecretValue>,
}

/// Look for new rows again and again.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Poll {
    /// From the start of one look to the start of the next, such as `1s` or `5m`.
    #[schemars(extend("pattern" = DURATION))]
    pub interval: Duration,
}
