//! Topics: described, made, grown, configured, deleted.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use rdkafka::{
    admin::{
        AlterConfig, ConfigSource, NewPartitions, NewTopic, ResourceSpecifier, TopicReplication,
    },
    consumer::Consumer,
    error::{KafkaError as DriverError, RDKafkaErrorCode as Code},
};

use super::{Kafka, KafkaError, TIMEOUT, options};

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

impl Kafka {
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
            .administer(|admin| admin.describe_configs(wanted.iter(), &options()))
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
            .administer(|admin| admin.create_topics([&new], &options()))
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
            .administer(|admin| admin.create_partitions([&new], &options()))
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
            .administer(|admin| admin.alter_configs([&alter], &options()))
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
            let only = options().validate_only(true);
            let tried = self.administer(|admin| admin.create_topics([&new], &only));
            if let Ok(results) = tried.await
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
        let deleted = self.administer(|admin| admin.delete_topics(&[topic], &options()));
        for result in deleted.await? {
            match result {
                Ok(_) | Err((_, Code::UnknownTopicOrPartition)) => {}
                Err((_, code)) => {
                    return Err(self.refused(code, &format!("delete topic `{topic}`")));
                }
            }
        }
        Ok(())
    }
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
