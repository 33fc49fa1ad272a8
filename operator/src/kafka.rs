//! Kafka as the operator needs it. The only file that knows the driver.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use millstream_api::{KafkaConnection, worker::CommitMetadata};
use rdkafka::{
    ClientConfig, ClientContext, Offset, TopicPartitionList,
    admin::{
        AdminClient, AdminOptions, AlterConfig, ConfigSource, NewPartitions, NewTopic,
        ResourceSpecifier, TopicReplication,
    },
    config::RDKafkaLogLevel,
    consumer::{BaseConsumer, CommitMode, Consumer, ConsumerContext},
    error::{KafkaError as DriverError, RDKafkaErrorCode as Code},
};
use serde::{Deserialize, Serialize};

use crate::credentials::Access;

/// Every call gives up after this time.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Consumers that were not used for this long are closed.
const IDLE: Duration = Duration::from_secs(120);

/// Why Kafka didn't do what it was asked.
#[derive(Debug, Clone, thiserror::Error)]
pub enum KafkaError {
    #[error("Kafka at {servers} doesn't answer within 10 s: {detail}")]
    Unreachable { servers: String, detail: String },
    #[error("Kafka at {servers} refuses: {detail}")]
    Refused { servers: String, detail: String },
}

/// A topic as it is in Kafka.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ObservedTopic {
    pub partitions: i32,
    pub replication_factor: i32,
    /// All configuration keys that this Kafka knows, with their values in force.
    pub config: BTreeMap<String, ConfigValue>,
}

/// A topic's configuration value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigValue {
    pub value: String,
    /// Set on this topic, rather than a default.
    pub set_here: bool,
}

/// Who a topic is. Neither Kafka's own topic id nor any other identity can be had from the driver
/// in safe code, so the operator marks the topic: with the metadata of an offset that a group of
/// its own has committed in the topic. Kafka forgets committed offsets with the topic, hence a
/// topic that was deleted and made anew has no mark, and an older one keeps it whatever happens to
/// the resource.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct TopicMark {
    /// Identity of the topic.
    pub id: String,
    /// Microseconds since 1970: see `TopicStatus::timestamp_base`.
    pub base: i64,
    /// Seconds since 1970 when the mark was last written. Kafka forgets offsets of idle groups
    /// after `offsets.retention.minutes` (a week), so the mark is written anew every day.
    pub written: i64,
}

/// What a consumer group has committed in one partition.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Committed {
    pub offset: Option<i64>,
    pub counts: CommitMetadata,
}

/// A Kafka cluster.
pub struct Kafka {
    servers: String,
    origin: Option<String>,
    config: ClientConfig,
    admin: AdminClient<LastError>,
    /// Consumers by group; none of them ever subscribes. The empty group is for what needs none.
    consumers: Mutex<HashMap<String, UsedConsumer>>,
}

/// A consumer, and when it was last asked for.
type UsedConsumer = (Arc<BaseConsumer<LastError>>, Instant);

impl Kafka {
    /// Makes the clients; they connect by themselves, and again and again.
    pub fn new(access: &Access<KafkaConnection>) -> Result<Kafka, KafkaError> {
        let servers = access.connection.bootstrap_servers.clone();
        let config = client_config(access);
        let admin = config
            .create_with_context(LastError::default())
            .map_err(|error| KafkaError::Refused {
                servers: servers.clone(),
                detail: format!("the connection's settings are wrong: {error}"),
            })?;
        Ok(Kafka {
            servers,
            origin: access.login.as_ref().map(|login| login.origin.clone()),
            config,
            admin,
            consumers: Mutex::default(),
        })
    }

    /// The topic, or nothing where there is none.
    pub async fn describe(&self, topic: &str) -> Result<Option<ObservedTopic>, KafkaError> {
        let name = topic.to_string();
        let found = self
            .with_consumer("", move |consumer| {
                let metadata = consumer.fetch_metadata(Some(&name), TIMEOUT)?;
                let Some(topic) = metadata.topics().iter().find(|topic| topic.name() == name)
                else {
                    return Ok(None);
                };
                if let Some(error) = topic.error() {
                    return match Code::from(error) {
                        Code::UnknownTopicOrPartition | Code::UnknownTopic => Ok(None),
                        code => Err(DriverError::MetadataFetch(code)),
                    };
                }
                let replicas = topic.partitions().iter().map(|p| p.replicas().len());
                Ok(Some(ObservedTopic {
                    partitions: topic.partitions().len() as i32,
                    replication_factor: replicas.max().unwrap_or(0) as i32,
                    config: BTreeMap::new(),
                }))
            })
            .await?;
        match found {
            Some(observed) if observed.partitions > 0 => {
                let config = self.topic_config(topic).await?;
                Ok(Some(ObservedTopic { config, ..observed }))
            }
            _ => Ok(None),
        }
    }

    async fn topic_config(&self, topic: &str) -> Result<BTreeMap<String, ConfigValue>, KafkaError> {
        let wanted = [ResourceSpecifier::Topic(topic)];
        let described = self
            .limited(self.admin.describe_configs(wanted.iter(), &options()))
            .await?;
        let mut config = BTreeMap::new();
        for resource in described {
            let resource = resource.map_err(|code| self.refused(code, "describe the topic"))?;
            for entry in resource.entries {
                let set_here = entry.source == ConfigSource::DynamicTopic;
                if let Some(value) = entry.value {
                    config.insert(entry.name, ConfigValue { value, set_here });
                }
            }
        }
        Ok(config)
    }

    /// Makes a topic, and waits until it can be used.
    pub async fn create(
        &self,
        topic: &str,
        partitions: i32,
        replication_factor: Option<i32>,
        config: &BTreeMap<String, String>,
    ) -> Result<(), KafkaError> {
        let new = new_topic(topic, partitions, replication_factor, config);
        let results = self
            .limited(self.admin.create_topics([&new], &options()))
            .await?;
        for result in results {
            match result {
                Ok(_) | Err((_, Code::TopicAlreadyExists)) => {}
                Err((_, Code::InvalidConfig)) => {
                    return Err(self.wrong_config(topic, config).await);
                }
                Err((_, code)) => return Err(self.refused(code, &format!("make topic `{topic}`"))),
            }
        }
        self.await_partitions(topic, partitions).await
    }

    /// Adds partitions, up to a number in all.
    pub async fn grow(&self, topic: &str, partitions: i32) -> Result<(), KafkaError> {
        let new = NewPartitions::new(topic, partitions as usize);
        let results = self
            .limited(self.admin.create_partitions([&new], &options()))
            .await?;
        for result in results {
            if let Err((_, code)) = result {
                return Err(self.refused(code, &format!("add partitions to topic `{topic}`")));
            }
        }
        self.await_partitions(topic, partitions).await
    }

    async fn await_partitions(&self, topic: &str, partitions: i32) -> Result<(), KafkaError> {
        let deadline = Instant::now() + TIMEOUT;
        loop {
            let observed = self.describe(topic).await?;
            if observed.is_some_and(|observed| observed.partitions >= partitions) {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(KafkaError::Unreachable {
                    servers: self.servers.clone(),
                    detail: format!("topic `{topic}` doesn't show up with {partitions} partitions"),
                });
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Sets a topic's own configuration to exactly this: what isn't in it goes back to its default.
    pub async fn set_config(
        &self,
        topic: &str,
        config: &BTreeMap<String, String>,
    ) -> Result<(), KafkaError> {
        let alter = config.iter().fold(
            AlterConfig::new(ResourceSpecifier::Topic(topic)),
            |alter, (key, value)| alter.set(key, value),
        );
        let results = self
            .limited(self.admin.alter_configs([&alter], &options()))
            .await?;
        for result in results {
            match result {
                Ok(_) => {}
                Err((_, Code::InvalidConfig)) => {
                    return Err(self.wrong_config(topic, config).await);
                }
                Err((_, code)) => {
                    return Err(self.refused(code, &format!("configure topic `{topic}`")));
                }
            }
        }
        Ok(())
    }

    /// Kafka's answer doesn't say which key is wrong, so each is tried alone, without effect.
    async fn wrong_config(&self, topic: &str, config: &BTreeMap<String, String>) -> KafkaError {
        let mut wrong = Vec::new();
        let probe = format!("{}.probe", &topic[..topic.len().min(200)]);
        for (key, value) in config {
            let alone = BTreeMap::from([(key.clone(), value.clone())]);
            let new = new_topic(&probe, 1, None, &alone);
            let tried = self
                .admin
                .create_topics([&new], &options().validate_only(true));
            if let Ok(results) = self.limited(tried).await
                && results
                    .iter()
                    .any(|result| matches!(result, Err((_, Code::InvalidConfig))))
            {
                wrong.push(format!("{key}={value}"));
            }
        }
        KafkaError::Refused {
            servers: self.servers.clone(),
            detail: format!(
                "spec.config has a key that it doesn't know, or a value that it doesn't take: {}",
                wrong.join(", ")
            ),
        }
    }

    /// Deletes a topic; one that isn't there counts as deleted.
    pub async fn delete(&self, topic: &str) -> Result<(), KafkaError> {
        let deleted = self.admin.delete_topics(&[topic], &options());
        for result in self.limited(deleted).await? {
            match result {
                Ok(_) | Err((_, Code::UnknownTopicOrPartition)) => {}
                Err((_, code)) => {
                    return Err(self.refused(code, &format!("delete topic `{topic}`")));
                }
            }
        }
        Ok(())
    }

    /// Deletes consumer groups; those that aren't there count as deleted.
    pub async fn delete_groups(&self, groups: &[&str]) -> Result<(), KafkaError> {
        let deleted = self.admin.delete_groups(groups, &options());
        for result in self.limited(deleted).await? {
            match result {
                Ok(_) | Err((_, Code::GroupIdNotFound)) => {}
                Err((group, code)) => {
                    return Err(self.refused(code, &format!("delete consumer group `{group}`")));
                }
            }
        }
        Ok(())
    }

    /// The mark of a topic, where it has one.
    pub async fn mark(&self, topic: &str) -> Result<Option<TopicMark>, KafkaError> {
        let name = topic.to_string();
        self.with_consumer(&mark_group(topic), move |consumer| {
            let mut list = TopicPartitionList::new();
            list.add_partition(&name, 0);
            let committed = consumer.committed_offsets(list, TIMEOUT)?;
            let elements = committed.elements();
            let Some(element) = elements.first() else {
                return Ok(None);
            };
            element.error()?;
            Ok(serde_json::from_str(element.metadata()).ok())
        })
        .await
    }

    /// Marks a topic.
    pub async fn set_mark(&self, topic: &str, mark: &TopicMark) -> Result<(), KafkaError> {
        let name = topic.to_string();
        // Plain data: it serializes.
        let metadata = serde_json::to_string(mark).unwrap_or_default();
        self.with_consumer(&mark_group(topic), move |consumer| {
            let mut list = TopicPartitionList::new();
            list.add_partition_offset(&name, 0, Offset::Offset(0))?;
            if let Some(mut element) = list.find_partition(&name, 0) {
                element.set_metadata(metadata);
            }
            consumer.commit(&list, CommitMode::Sync)
        })
        .await
    }

    /// The group that marks a topic.
    pub async fn forget_mark(&self, topic: &str) -> Result<(), KafkaError> {
        self.delete_groups(&[&mark_group(topic)]).await
    }

    /// The offsets after the last record, by partition.
    pub async fn ends(&self, topic: &str, partitions: i32) -> Result<Vec<i64>, KafkaError> {
        self.offsets(topic, partitions, Offset::End).await
    }

    /// The offsets of the first records that are still there, by partition.
    pub async fn starts(&self, topic: &str, partitions: i32) -> Result<Vec<i64>, KafkaError> {
        self.offsets(topic, partitions, Offset::Beginning).await
    }

    async fn offsets(
        &self,
        topic: &str,
        partitions: i32,
        at: Offset,
    ) -> Result<Vec<i64>, KafkaError> {
        let name = topic.to_string();
        self.with_consumer("", move |consumer| {
            let mut list = TopicPartitionList::new();
            for partition in 0..partitions {
                list.add_partition_offset(&name, partition, at)?;
            }
            let found = consumer.offsets_for_times(list, TIMEOUT)?;
            let mut offsets = vec![0; partitions as usize];
            for element in found.elements() {
                element.error()?;
                if let (Offset::Offset(offset), Some(slot)) = (
                    element.offset(),
                    offsets.get_mut(element.partition() as usize),
                ) {
                    *slot = offset;
                }
            }
            Ok(offsets)
        })
        .await
    }

    /// What a group has committed, by partition.
    pub async fn committed(
        &self,
        group: &str,
        topic: &str,
        partitions: i32,
    ) -> Result<Vec<Committed>, KafkaError> {
        let name = topic.to_string();
        self.with_consumer(group, move |consumer| {
            let mut list = TopicPartitionList::new();
            list.add_partition_range(&name, 0, partitions - 1);
            let found = consumer.committed_offsets(list, TIMEOUT)?;
            let mut committed = vec![Committed::default(); partitions as usize];
            for element in found.elements() {
                element.error()?;
                if let (Offset::Offset(offset), Some(slot)) = (
                    element.offset(),
                    committed.get_mut(element.partition() as usize),
                ) {
                    *slot = Committed {
                        offset: Some(offset),
                        counts: CommitMetadata::parse(element.metadata()),
                    };
                }
            }
            Ok(committed)
        })
        .await
    }

    /// Commits offsets (partition, offset) for a group without members. False where it has some.
    pub async fn commit(
        &self,
        group: &str,
        topic: &str,
        offsets: Vec<(i32, i64)>,
    ) -> Result<bool, KafkaError> {
        let name = topic.to_string();
        self.with_consumer(group, move |consumer| {
            let mut list = TopicPartitionList::new();
            for (partition, offset) in offsets {
                list.add_partition_offset(&name, partition, Offset::Offset(offset))?;
            }
            let committed = consumer.commit(&list, CommitMode::Sync);
            match committed.as_ref().map_err(DriverError::rdkafka_error_code) {
                Ok(()) => Ok(true),
                Err(Some(
                    Code::UnknownMemberId | Code::RebalanceInProgress | Code::IllegalGeneration,
                )) => Ok(false),
                Err(_) => committed.map(|()| true),
            }
        })
        .await
    }

    /// Runs blocking calls of a consumer where they block nobody.
    async fn with_consumer<T: Send + 'static>(
        &self,
        group: &str,
        call: impl FnOnce(&BaseConsumer<LastError>) -> Result<T, DriverError> + Send + 'static,
    ) -> Result<T, KafkaError> {
        let consumer = self
            .consumer(group)
            .map_err(|error| self.failed(&error, None))?;
        let last = consumer.context().clone();
        let result = tokio::task::spawn_blocking(move || {
            let result = call(&consumer);
            if result.is_err() {
                // Hands what the client has to say about its connections to the context.
                for _ in 0..16 {
                    let _ = consumer.poll(Duration::ZERO);
                }
            }
            result
        })
        .await;
        match result {
            Ok(Ok(value)) => {
                last.clear();
                Ok(value)
            }
            Ok(Err(error)) => Err(self.failed(&error, last.get())),
            Err(error) => Err(KafkaError::Unreachable {
                servers: self.servers.clone(),
                detail: error.to_string(),
            }),
        }
    }

    fn consumer(&self, group: &str) -> Result<Arc<BaseConsumer<LastError>>, DriverError> {
        let mut consumers = self
            .consumers
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let idle: Vec<_> = consumers
            .extract_if(|key, (_, used)| key != group && now.duration_since(*used) > IDLE)
            .collect();
        if !idle.is_empty() {
            // Closing a client waits for its threads.
            tokio::task::spawn_blocking(move || drop(idle));
        }
        if let Some((consumer, used)) = consumers.get_mut(group) {
            *used = now;
            return Ok(consumer.clone());
        }
        let mut config = self.config.clone();
        if !group.is_empty() {
            config.set("group.id", group);
        }
        let consumer: Arc<BaseConsumer<LastError>> =
            Arc::new(config.create_with_context(LastError::default())?);
        consumers.insert(group.to_string(), (consumer.clone(), now));
        Ok(consumer)
    }

    async fn limited<T>(
        &self,
        call: impl Future<Output = Result<T, DriverError>>,
    ) -> Result<T, KafkaError> {
        // The driver keeps its own time; this is for when it doesn't.
        match tokio::time::timeout(TIMEOUT + Duration::from_secs(2), call).await {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(error)) => Err(self.failed(&error, self.admin.inner().context().get())),
            Err(_) => Err(KafkaError::Unreachable {
                servers: self.servers.clone(),
                detail: "no answer".into(),
            }),
        }
    }

    fn failed(&self, error: &DriverError, last: Option<(Code, String)>) -> KafkaError {
        let servers = self.servers.clone();
        let code = last
            .as_ref()
            .map(|(code, _)| *code)
            .or_else(|| error.rdkafka_error_code());
        let said = last.map_or_else(|| error.to_string(), |(_, said)| said);
        // The driver also blames the authentication when a connection breaks in the midst of it.
        let broke = said.contains("Broker transport failure");
        match code {
            Some(Code::Authentication | Code::SaslAuthenticationFailed) if !broke => {
                KafkaError::Refused {
                    servers,
                    detail: match &self.origin {
                        Some(origin) => format!("the credentials of {origin} are wrong: {said}"),
                        None => format!("it wants credentials, and none are set: {said}"),
                    },
                }
            }
            Some(
                Code::TopicAuthorizationFailed
                | Code::GroupAuthorizationFailed
                | Code::ClusterAuthorizationFailed
                | Code::PolicyViolation,
            ) => KafkaError::Refused {
                servers,
                detail: said,
            },
            _ => KafkaError::Unreachable {
                servers,
                detail: said,
            },
        }
    }

    fn refused(&self, code: Code, what: &str) -> KafkaError {
        let servers = self.servers.clone();
        match code {
            Code::OperationTimedOut | Code::RequestTimedOut | Code::BrokerTransportFailure => {
                KafkaError::Unreachable {
                    servers,
                    detail: format!("it was asked to {what}"),
                }
            }
            code => KafkaError::Refused {
                servers,
                detail: format!("it won't {what}: {code}"),
            },
        }
    }
}

fn mark_group(topic: &str) -> String {
    format!("millstream.topic.{topic}")
}

fn options() -> AdminOptions {
    AdminOptions::new()
        .request_timeout(Some(TIMEOUT))
        .operation_timeout(Some(TIMEOUT))
}

fn new_topic<'a>(
    topic: &'a str,
    partitions: i32,
    replication_factor: Option<i32>,
    config: &'a BTreeMap<String, String>,
) -> NewTopic<'a> {
    // -1: as many as the brokers' default says.
    let replication = TopicReplication::Fixed(replication_factor.unwrap_or(-1));
    config.iter().fold(
        NewTopic::new(topic, partitions, replication),
        |new, (key, value)| new.set(key, value),
    )
}

fn client_config(access: &Access<KafkaConnection>) -> ClientConfig {
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

/// Remembers what a client last said about its connections: its calls themselves only say that
/// time is over.
#[derive(Debug, Default)]
struct LastError(Mutex<Option<(Code, String)>>);

impl LastError {
    fn get(&self) -> Option<(Code, String)> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    fn clear(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

impl ClientContext for LastError {
    fn error(&self, error: DriverError, reason: &str) {
        tracing::debug!(%error, reason, "Kafka client");
        let Some(code) = error.rdkafka_error_code() else {
            return;
        };
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // That all brokers are down follows from what was said of the last one.
        if code != Code::AllBrokersDown || last.is_none() {
            *last = Some((code, plain(reason)));
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
    fn errors_in_plain_words() {
        assert_eq!(
            plain(
                "h:1/bootstrap: Connect to ipv4#10.0.0.1:1 failed: Connection refused (after 0ms in state CONNECT)"
            ),
            "Connection refused"
        );
    }
}
