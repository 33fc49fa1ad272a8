//! The connection to a MongoDB-compatible server.

use std::time::Duration;

use anyhow::Context;
use millstream_api::sink::{DocumentSink, document};
use mongodb::{
    Client, Database,
    options::{ClientOptions, Tls, TlsOptions},
};

use crate::config::Credentials;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a server is looked for that takes writes.
const SELECTION_TIMEOUT: Duration = Duration::from_secs(5);
const MAX_CONNECTIONS: u32 = 8;
const NOT_A_STRING: &str = "the value isn't a connection string that can be used: \
    mongodb://user:password@host:27017,host:27017/?replicaSet=... with user and password \
    percent-encoded and without socketTimeoutMS; mongodb+srv can't be looked up: name the hosts";

/// The database of a sink. Nothing is connected before it is used.
pub async fn database(
    sink: &str,
    to: &DocumentSink,
    credentials: &Credentials,
) -> anyhow::Result<Database> {
    let file = document::connection_file(sink);
    let uri = credentials.require(&file, "a connection string for documents")?;
    let ca = credentials.path(&document::ca_file(sink));
    let Ok(mut options) = ClientOptions::parse(uri).await else {
        // The driver's own words may hold a part of the password.
        let secret = &to.connection_secret;
        anyhow::bail!("Secret {}, key {}: {NOT_A_STRING}", secret.name, secret.key);
    };
    options.app_name.get_or_insert_with(|| "millstream".into());
    options.connect_timeout.get_or_insert(CONNECT_TIMEOUT);
    options.max_pool_size.get_or_insert(MAX_CONNECTIONS);
    options
        .server_selection_timeout
        .get_or_insert(SELECTION_TIMEOUT);
    if let Some(ca) = ca {
        options.tls = Some(Tls::Enabled(TlsOptions::builder().ca_file_path(ca).build()));
    }
    let client = Client::with_options(options).context("the document server's client")?;
    Ok(client.database(&to.database))
}
