//! The connection to PostgreSQL.

use std::{sync::Arc, time::Duration};

use anyhow::Context;
use millstream_api::source::database::{CA_FILE, PASSWORD_FILE, PostgresConnection};
use rustls::ClientConfig;
use tokio_postgres::{Client, Config, NoTls, config::SslMode};

use crate::{config::Credentials, source::database::tls::Tls, tls::authorities};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// For each address of the host, so that one that is silent doesn't stand for the others.
const ADDRESS_TIMEOUT: Duration = Duration::from_secs(3);
/// A server that is gone without a word is given up after so long.
const SILENCE: Duration = Duration::from_secs(15);

/// How the server is reached, credentials included. Not `Debug`: it would show them.
pub struct Connector {
    config: Config,
    tls: Option<Tls>,
    /// Settings of every session: values as text have one form, and nothing is changed.
    settings: String,
}

impl Connector {
    /// Reads the credentials; nothing is sent yet. A statement may take so long.
    pub fn new(
        connection: &PostgresConnection,
        credentials: &Credentials,
        statement_timeout: Duration,
    ) -> anyhow::Result<Self> {
        let mut config = Config::new();
        config
            .host(&connection.host)
            .port(connection.port)
            .dbname(&connection.database)
            .user(&connection.user)
            .application_name("millstream")
            .connect_timeout(ADDRESS_TIMEOUT)
            .keepalives_idle(SILENCE)
            .keepalives_interval(Duration::from_secs(5))
            .keepalives_retries(3)
            .tcp_user_timeout(SILENCE);
        if connection.password_secret.is_some() {
            config.password(credentials.require(PASSWORD_FILE, "the database's password")?);
        }
        let tls = match &connection.tls {
            None => None,
            Some(tls) => {
                if tls.ca_secret.is_some() {
                    credentials.require(CA_FILE, "the database's certificate authority")?;
                }
                config.ssl_mode(SslMode::Require);
                let authorities = authorities(credentials.path(CA_FILE).as_deref())?;
                let client = ClientConfig::builder()
                    .with_root_certificates(authorities)
                    .with_no_client_auth();
                Some(Tls(Arc::new(client)))
            }
        };
        let settings = format!(
            "SET statement_timeout = {}; SET default_transaction_read_only = on; \
             SET TimeZone = 'UTC'; SET DateStyle = 'ISO'; SET IntervalStyle = 'iso_8601'; \
             SET extra_float_digits = 1",
            statement_timeout.as_millis().max(1)
        );
        Ok(Connector {
            config,
            tls,
            settings,
        })
    }

    /// Connects. The connection ends with the client.
    pub async fn connect(&self) -> anyhow::Result<Client> {
        let connected = async {
            let client = match &self.tls {
                Some(tls) => {
                    let (client, connection) = self.config.connect(tls.clone()).await?;
                    tokio::spawn(connection);
                    client
                }
                None => {
                    let (client, connection) = self.config.connect(NoTls).await?;
                    tokio::spawn(connection);
                    client
                }
            };
            client.batch_execute(&self.settings).await?;
            anyhow::Ok(client)
        };
        tokio::time::timeout(CONNECT_TIMEOUT, connected)
            .await
            .context("no answer in time")?
    }
}
