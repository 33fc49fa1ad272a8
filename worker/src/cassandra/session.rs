//! The connection to Cassandra.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use futures::{
    FutureExt,
    future::{BoxFuture, Shared},
};
use millstream_api::{CassandraConnection, worker::credentials};
use rustls::ClientConfig;
use scylla::{
    client::{
        execution_profile::ExecutionProfile, session::Session, session_builder::SessionBuilder,
    },
    policies::load_balancing::DefaultPolicy,
};

use super::CASSANDRA;
use crate::{
    config::{ConfigError, Credentials},
    retry::Delays,
    status::StatusPart,
    tls::authorities,
};

/// At most between two attempts to connect.
const RETRY: Duration = Duration::from_secs(5);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const DATACENTERS: &str = "datacenters";
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// A connection without an answer is closed after twice this time, and with it goes what waits to be
/// sent there: requests that have timed out are among it, each as large as its rows.
const KEEPALIVE: Duration = Duration::from_secs(10);

/// The session, to be waited for by each that needs it; the first begins to connect.
pub type Connecting = Shared<BoxFuture<'static, Arc<Session>>>;

/// Connects; tries for as long as it takes. Fails only where the credentials can't be read.
pub fn connect(
    connection: &CassandraConnection,
    credentials: &Credentials,
    status: Vec<StatusPart>,
) -> Result<Connecting, ConfigError> {
    let builder = builder(connection, credentials)?;
    let contact_points = connection.contact_points.join(", ");
    let connecting = async move { Arc::new(session(&builder, &contact_points, &status).await) };
    Ok(connecting.boxed().shared())
}

async fn session(builder: &SessionBuilder, contact_points: &str, status: &[StatusPart]) -> Session {
    // Short: what is served is waited for.
    let mut delays = Delays::up_to(RETRY);
    loop {
        match builder.build().await {
            Ok(session) => {
                status.iter().for_each(|part| part.clear(CASSANDRA));
                return session;
            }
            Err(error) => {
                let message = format!("can't connect to Cassandra at {contact_points}: {error}");
                status
                    .iter()
                    .for_each(|part| part.fail(CASSANDRA, &message));
                delays.wait().await;
            }
        }
    }
}

/// Returns where Cassandra has one datacenter. With several, a quorum of the one that a state is read
/// from needn't have what that of another has acknowledged.
pub async fn one_datacenter(session: &Session, status: &StatusPart) {
    let mut delays = Delays::default();
    loop {
        let cluster = session.get_cluster_state();
        let nodes = cluster.get_nodes_info().iter();
        let names: BTreeSet<_> = nodes
            .filter_map(|node| node.datacenter.as_deref())
            .collect();
        if names.len() < 2 {
            return status.clear(DATACENTERS);
        }
        let names = names.into_iter().collect::<Vec<_>>().join(", ");
        let message = format!(
            "Cassandra has several datacenters ({names}), and groups are counted in one: name it in cassandra.datacenter"
        );
        status.fail(DATACENTERS, message);
        status.alive_while(delays.wait()).await;
    }
}

fn builder(
    connection: &CassandraConnection,
    credentials: &Credentials,
) -> Result<SessionBuilder, ConfigError> {
    let mut policy = DefaultPolicy::builder().token_aware(true);
    if let Some(datacenter) = &connection.datacenter {
        policy = policy.prefer_datacenter(datacenter.clone());
    }
    let profile = ExecutionProfile::builder()
        .load_balancing_policy(policy.build())
        .request_timeout(Some(REQUEST_TIMEOUT))
        .build();
    let mut builder = SessionBuilder::new()
        .known_nodes(&connection.contact_points)
        .connection_timeout(CONNECT_TIMEOUT)
        .keepalive_interval(KEEPALIVE)
        .keepalive_timeout(KEEPALIVE)
        .default_execution_profile_handle(profile.into_handle());
    if connection.credentials_secret.is_some() {
        let username = credentials.require(credentials::CASSANDRA_USERNAME, "authentication")?;
        let password = credentials.require(credentials::CASSANDRA_PASSWORD, "authentication")?;
        builder = builder.user(username, password);
    }
    if connection.tls.is_some() {
        let authorities = authorities(credentials.path(credentials::CASSANDRA_CA).as_deref())?;
        let tls = ClientConfig::builder()
            .with_root_certificates(authorities)
            .with_no_client_auth();
        builder = builder.tls_context(Some(Arc::new(tls)));
    }
    Ok(builder)
}
