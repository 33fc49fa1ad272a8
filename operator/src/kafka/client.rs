//! How a client is set up, and what it says of its connections.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use millstream_api::KafkaConnection;
use rdkafka::{
    ClientConfig, ClientContext,
    config::RDKafkaLogLevel,
    consumer::ConsumerContext,
    error::{KafkaError as DriverError, RDKafkaErrorCode as Code},
};

use crate::credentials::Access;

/// The settings of every client of a connection.
pub fn client_config(access: &Access<KafkaConnection>) -> ClientConfig {
    let connection = &access.connection;
    let mut config = ClientConfig::new();
    config
        .set("bootstrap.servers", &connection.bootstrap_servers)
        .set("client.id", "millstream-operator")
        .set("socket.timeout.ms", "10000")
        .set("socket.connection.setup.timeout.ms", "8000")
        .set("reconnect.backoff.max.ms", "2000")
        .set("allow.auto.create.topics", "false")
        .set("enable.auto.commit", "false")
        .set_log_level(RDKafkaLogLevel::Critical);
    let protocol = match (&connection.sasl, &connection.tls) {
        (None, None) => "plaintext",
        (None, Some(_)) => "ssl",
        (Some(_), None) => "sasl_plaintext",
        (Some(_), Some(_)) => "sasl_ssl",
    };
    config.set("security.protocol", protocol);
    if let (Some(sasl), Some(login)) = (&connection.sasl, &access.login) {
        config
            .set("sasl.mechanism", sasl.mechanism.as_str())
            .set("sasl.username", &login.username)
            .set("sasl.password", login.password.reveal());
    }
    if let Some(ca) = &access.ca {
        config.set("ssl.ca.pem", ca);
    }
    config
}

/// A client whose calls have failed for so long is replaced: it may never connect again. librdkafka
/// 2.12 forgets all brokers where one that has just started tells of none
/// (<https://github.com/confluentinc/librdkafka/issues/5301>).
const LOST: Duration = Duration::from_secs(20);

/// Remembers what a client last said about its connections: its calls themselves only say that
/// time is over.
#[derive(Debug, Default)]
pub struct LastError(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    said: Option<(Code, String)>,
    /// Since when no call has succeeded.
    failing: Option<Instant>,
}

impl LastError {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A call has failed; what the client said.
    pub fn failed(&self) -> Option<(Code, String)> {
        let mut state = self.state();
        state.failing.get_or_insert_with(Instant::now);
        state.said.clone()
    }

    /// A call has succeeded.
    pub fn succeeded(&self) {
        *self.state() = State::default();
    }

    /// Whether the client is to be replaced.
    pub fn is_lost(&self) -> bool {
        let failing = self.state().failing;
        failing.is_some_and(|since| since.elapsed() > LOST)
    }
}

impl ClientContext for LastError {
    fn error(&self, error: DriverError, reason: &str) {
        tracing::debug!(%error, reason, "Kafka client");
        let Some(code) = error.rdkafka_error_code() else {
            return;
        };
        let said = &mut self.state().said;
        // That all brokers are down follows from what was said of the last one.
        if code != Code::AllBrokersDown || said.is_none() {
            *said = Some((code, plain(reason)));
        }
    }
}

impl ConsumerContext for LastError {}

/// `sasl://h:1/bootstrap: Connect to ipv4#h:1 failed: Connection refused (after 0ms in state CONNECT)`
/// in fewer words.
fn plain(reason: &str) -> String {
    let reason = reason.split(" (after ").next().unwrap_or(reason);
    let reason = reason.rsplit(" failed: ").next().unwrap_or(reason);
    reason.trim().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_is_lost_when_its_calls_have_failed_for_long() {
        let client = LastError::default();
        assert_eq!(client.failed(), None);
        assert!(!client.is_lost());
        client.state().failing = Instant::now().checked_sub(2 * LOST);
        client.failed();
        assert!(client.is_lost());
        client.succeeded();
        assert!(!client.is_lost());
    }

    #[test]
    fn errors_in_plain_words() {
        assert_eq!(
            plain(
                "h:1/bootstrap: Connect to ipv4#10.0.0.1:1 failed: Connection refused (after 0ms in state CONNECT)"
            ),
            "Connection refused"
        );
    }
}
