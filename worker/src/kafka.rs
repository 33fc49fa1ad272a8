//! The settings of the Kafka clients, and what the clients report.

use std::{
    ops::Deref,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use futures::{FutureExt, StreamExt};
use millstream_api::{
    KafkaConnection,
    worker::{MAX_DEAD_LETTER_BYTES, credentials},
};
use rdkafka::{
    ClientConfig, ClientContext, Statistics,
    config::RDKafkaLogLevel,
    consumer::{ConsumerContext, StreamConsumer},
    error::{KafkaError, KafkaResult, RDKafkaErrorCode},
    producer::{FutureProducer, Producer as _},
};

use crate::{
    budget::QUEUE,
    config::{ConfigError, Credentials},
    status::StatusPart,
};

/// The producer of a worker.
#[derive(Clone)]
pub struct Producer {
    client: FutureProducer<Reports>,
    reports: Reports,
}

impl Producer {
    fn new(config: &ClientConfig, status: StatusPart) -> KafkaResult<Self> {
        let reports = Reports::new(status);
        let client = config.create_with_context(reports.clone())?;
        Ok(Producer { client, reports })
    }

    /// Whether it has to be replaced, see [`LOST`].
    pub fn is_lost(&self) -> bool {
        self.reports.is_lost()
    }

    /// Ends when it is lost.
    pub async fn lost(&self) {
        while !self.is_lost() {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }
}

impl Deref for Producer {
    type Target = FutureProducer<Reports>;

    fn deref(&self) -> &Self::Target {
        &self.client
    }
}

/// So long a worker can be away, or Kafka, before a transaction that it has open is given up; so long
/// readers wait for a worker that hangs and has no successor.
const TRANSACTION_TIMEOUT: Duration = Duration::from_secs(300);

/// Of a batch of records, as Kafka stores them: a larger record is a batch of its own.
pub const BATCH_BYTES: usize = 1_000_000;

/// A client that has had no broker for so long is replaced: it may never connect again. librdkafka 2.12
/// forgets all brokers where one that has just started tells of none
/// (<https://github.com/confluentinc/librdkafka/issues/5301>).
pub const LOST: Duration = Duration::from_secs(60);

/// Of a client, that are heard at a time.
const MAX_EVENTS: usize = 1_000;

/// The concern under which the connection to Kafka is shown.
pub const KAFKA: &str = "Kafka";

/// Shows in the status whether the brokers can be reached.
#[derive(Clone)]
pub struct Reports {
    status: StatusPart,
    /// Which Kafka it is about: also the concern.
    kafka: &'static str,
    /// When a broker was there last.
    up: Arc<Mutex<Instant>>,
}

impl Reports {
    /// About the pipeline's Kafka.
    pub fn new(status: StatusPart) -> Self {
        Reports {
            status,
            kafka: KAFKA,
            up: Arc::new(Mutex::new(Instant::now())),
        }
    }

    /// About the Kafka that a source reads.
    pub fn of_source(status: StatusPart) -> Self {
        Reports {
            kafka: "the source's Kafka",
            ..Reports::new(status)
        }
    }

    /// Whether the client has had no broker for [`LOST`]. One that isn't polled doesn't know.
    pub fn is_lost(&self) -> bool {
        let up = self.up.lock().unwrap_or_else(PoisonError::into_inner);
        up.elapsed() > LOST
    }

    fn tls(&self) -> String {
        format!("TLS to {}", self.kafka)
    }
}

impl ClientContext for Reports {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        tracing::debug!(target: "librdkafka", ?level, facility, "{message}");
    }

    fn error(&self, error: KafkaError, reason: &str) {
        match error.rdkafka_error_code() {
            Some(RDKafkaErrorCode::AllBrokersDown) => {
                let message = format!("{} can't be reached: all brokers are down", self.kafka);
                self.status.fail(self.kafka, message);
            }
            Some(RDKafkaErrorCode::Authentication) => {
                let message = format!("{} refuses the credentials: {reason}", self.kafka);
                self.status.fail(self.kafka, message);
            }
            // That all brokers are down comes after it.
            Some(RDKafkaErrorCode::SSL) => {
                let message = format!("TLS to {} fails: {reason}", self.kafka);
                self.status.fail(self.tls(), message);
            }
            _ => tracing::debug!(%error, reason, "Kafka client"),
        }
    }

    fn stats(&self, statistics: Statistics) {
        if statistics
            .brokers
            .values()
            .any(|broker| broker.state == "UP")
        {
            *self.up.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
            self.status.clear(self.kafka);
            self.status.clear(self.tls());
        }
    }
}

impl ConsumerContext for Reports {}

/// What all clients of a connection have in common.
pub fn client(
    connection: &KafkaConnection,
    credentials: &Credentials,
    client_id: &str,
) -> Result<ClientConfig, ConfigError> {
    let mut config = ClientConfig::new();
    config
        .set("bootstrap.servers", &connection.bootstrap_servers)
        .set("client.id", client_id)
        .set("socket.keepalive.enable", "true")
        .set("reconnect.backoff.max.ms", "2000")
        .set("statistics.interval.ms", "2000")
        .set("security.protocol", security_protocol(connection));
    if let Some(sasl) = &connection.sasl {
        let username = credentials.require(credentials::KAFKA_USERNAME, "SASL")?;
        let password = credentials.require(credentials::KAFKA_PASSWORD, "SASL")?;
        config
            .set("sasl.mechanism", sasl.mechanism.as_str())
            .set("sasl.username", username)
            .set("sasl.password", password);
    }
    if connection.tls.is_some() {
        match credentials.path(credentials::KAFKA_CA) {
            Some(path) => config.set("ssl.ca.location", path.to_string_lossy()),
            None => config.set("ssl.ca.location", "probe"),
        };
    }
    Ok(config)
}

fn security_protocol(connection: &KafkaConnection) -> &'static str {
    match (connection.sasl.is_some(), connection.tls.is_some()) {
        (false, false) => "plaintext",
        (false, true) => "ssl",
        (true, false) => "sasl_plaintext",
        (true, true) => "sasl_ssl",
    }
}

/// A producer that loses and doubles nothing while it lives, and that tries for ever.
pub fn producer(client: &ClientConfig, status: StatusPart) -> KafkaResult<Producer> {
    let mut config = producer_config(client);
    config.set("message.timeout.ms", "0");
    Producer::new(&config, status)
}

/// A producer of transactions. Only one has the id: it takes the place of the one before.
pub fn transactional_producer(
    client: &ClientConfig,
    id: &str,
    status: StatusPart,
) -> KafkaResult<Producer> {
    let mut config = producer_config(client);
    config.set("transactional.id", id).set(
        "transaction.timeout.ms",
        TRANSACTION_TIMEOUT.as_millis().to_string(),
    );
    Producer::new(&config, status)
}

fn producer_config(client: &ClientConfig) -> ClientConfig {
    let mut config = client.clone();
    config
        .set("enable.idempotence", "true")
        .set("acks", "all")
        .set("linger.ms", "5")
        .set("batch.size", BATCH_BYTES.to_string())
        .set("compression.type", "lz4")
        .set("partitioner", "murmur2_random")
        .set("queue.buffering.max.messages", "100000")
        .set("queue.buffering.max.kbytes", "65536")
        // What a topic takes is for its broker to say; the dead letters are the largest.
        .set("message.max.bytes", MAX_DEAD_LETTER_BYTES.to_string());
    config
}

/// A producer that is made when it is first needed: one that has nothing to do polls all the same. One
/// that can't go on, or is lost, is replaced.
pub struct LazyProducer {
    client: ClientConfig,
    status: StatusPart,
    producer: Mutex<Option<Producer>>,
}

impl LazyProducer {
    /// Nothing is made yet.
    pub fn new(client: ClientConfig, status: StatusPart) -> Self {
        LazyProducer {
            client,
            status,
            producer: Mutex::default(),
        }
    }

    /// The producer.
    pub fn get(&self) -> KafkaResult<Producer> {
        let mut kept = self.producer.lock().unwrap_or_else(PoisonError::into_inner);
        let usable = |kept: &&Producer| fatal_error(kept).is_none() && !kept.is_lost();
        if let Some(producer) = kept.as_ref().filter(usable) {
            return Ok(producer.clone());
        }
        let producer = producer(&self.client, self.status.clone())?;
        *kept = Some(producer.clone());
        Ok(producer)
    }
}

/// A consumer of a sink: it joins the sink's group, commits by hand and never skips by itself.
pub fn consumer_config(client: &ClientConfig, group: &str) -> ClientConfig {
    let mut config = client.clone();
    config
        .set("group.id", group)
        .set("partition.assignment.strategy", "cooperative-sticky")
        .set("session.timeout.ms", "6000")
        .set("heartbeat.interval.ms", "2000")
        .set("max.poll.interval.ms", "300000")
        .set("enable.auto.commit", "false")
        .set("enable.auto.offset.store", "false")
        .set("auto.offset.reset", "error")
        .set("isolation.level", "read_committed")
        .set("fetch.wait.max.ms", "100")
        // A full queue is looked at again after so long; the default is a whole second.
        .set("fetch.queue.backoff.ms", "20");
    fetching_ahead(config, QUEUE)
}

/// The consumer fetches about so many bytes ahead: a full queue is followed by one answer more.
pub fn fetching_ahead(mut config: ClientConfig, bytes: usize) -> ClientConfig {
    let kbytes = (bytes / 1024).max(1);
    // What is asked for of a partition, and in all; the client refuses less than this in all.
    let partition = (bytes / 8).clamp(64 * 1024, 1024 * 1024);
    let all = (bytes / 2).clamp(1_000_000, 4 * 1024 * 1024);
    config
        .set("queued.max.messages.kbytes", kbytes.to_string())
        .set("fetch.message.max.bytes", partition.to_string())
        .set("fetch.max.bytes", all.to_string());
    config
}

/// Has a consumer that reads nothing yet tell what it knows of its connections: it keeps all that until
/// somebody asks.
pub fn hear<C: ConsumerContext + 'static>(consumer: &StreamConsumer<C>) {
    let mut stream = consumer.stream();
    // Each time gives one event at most, and most of them are nothing but lines of the log.
    for _ in 0..MAX_EVENTS {
        if let Some(Some(Err(error))) = stream.next().now_or_never() {
            tracing::debug!(%error, "consumer");
        }
    }
}

/// The error after which a producer can't go on, if there is one.
pub fn fatal_error(producer: &Producer) -> Option<String> {
    let (code, reason) = producer.client().fatal_error()?;
    Some(format!("the Kafka producer can't go on ({code}): {reason}"))
}

#[cfg(test)]
mod tests {
    use rdkafka::consumer::BaseConsumer;

    use super::*;

    #[test]
    fn security_follows_the_connection() {
        let folder = tempfile::tempdir().unwrap();
        let credentials = Credentials::new(folder.path().into());
        let connection: KafkaConnection = serde_json::from_value(serde_json::json!({
            "bootstrapServers": "kafka:9093",
            "sasl": {"credentialsSecret": {"name": "kafka"}},
            "tls": {},
        }))
        .unwrap();
        let error = client(&connection, &credentials, "test").unwrap_err();
        assert!(error.to_string().contains("kafka-username"), "{error}");

        std::fs::write(folder.path().join("kafka-username"), "worker").unwrap();
        std::fs::write(folder.path().join("kafka-password"), "secret\n").unwrap();
        let config = client(&connection, &credentials, "test").unwrap();
        assert_eq!(config.get("security.protocol"), Some("sasl_ssl"));
        assert_eq!(config.get("sasl.mechanism"), Some("SCRAM-SHA-512"));
        assert_eq!(config.get("sasl.password"), Some("secret"));
        assert_eq!(config.get("ssl.ca.location"), Some("probe"));
        assert!(!format!("{config:?}").contains("secret"));
    }

    #[tokio::test]
    async fn a_producer_that_is_lost_is_replaced() {
        let mut client = ClientConfig::new();
        client.set("bootstrap.servers", "127.0.0.1:1");
        let status = Arc::new(crate::status::Status::default());
        let producers = LazyProducer::new(client, status.part("ingest"));
        let up = |producer: &Producer| producer.reports.up.clone();
        let first = producers.get().unwrap();
        assert!(Arc::ptr_eq(&up(&first), &up(&producers.get().unwrap())));
        let long_ago = Instant::now().checked_sub(2 * LOST).unwrap();
        *up(&first).lock().unwrap() = long_ago;
        first.lost().await;
        assert!(!producers.get().unwrap().is_lost());
    }

    #[test]
    fn the_client_takes_every_bound_of_its_queue() {
        let mut client = ClientConfig::new();
        client.set("bootstrap.servers", "127.0.0.1:1");
        let usual = consumer_config(&client, "group");
        assert_eq!(usual.get("queued.max.messages.kbytes"), Some("8192"));
        assert_eq!(usual.get("fetch.message.max.bytes"), Some("1048576"));
        assert_eq!(usual.get("fetch.max.bytes"), Some("4194304"));
        for bytes in [0, 256 * 1024, 3_000_000] {
            let config = fetching_ahead(usual.clone(), bytes);
            config.create::<BaseConsumer>().unwrap();
        }
    }
}
