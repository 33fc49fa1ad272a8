//! Kafka as the benchmark needs it: topics, records, and the lag of a group.

use std::time::Duration;

use anyhow::{Context, Result};
use rdkafka::{
    ClientConfig, TopicPartitionList,
    admin::{AdminClient, AdminOptions, NewTopic, TopicReplication},
    client::DefaultClientContext,
    consumer::{BaseConsumer, Consumer},
    error::RDKafkaErrorCode,
    producer::{BaseRecord, DefaultProducerContext, Producer, ThreadedProducer},
};
use tokio::task::block_in_place;

use crate::records::User;

pub const PARTITIONS: i32 = 4;
const TIMEOUT: Duration = Duration::from_secs(30);

/// The admin side of a Kafka cluster.
pub struct Kafka {
    bootstrap_servers: String,
    admin: AdminClient<DefaultClientContext>,
}

impl Kafka {
    pub fn new(bootstrap_servers: &str) -> Result<Self> {
        let admin = client(bootstrap_servers).create()?;
        Ok(Self {
            bootstrap_servers: bootstrap_servers.into(),
            admin,
        })
    }

    /// Makes a topic that isn't there yet, and another for its dead letters.
    pub async fn create_topic(&self, topic: &str) -> Result<()> {
        let dead_letter = dead_letter(topic);
        let new = [
            NewTopic::new(topic, PARTITIONS, TopicReplication::Fixed(1)),
            NewTopic::new(&dead_letter, 1, TopicReplication::Fixed(1)),
        ];
        for result in self.admin.create_topics(&new, &options()).await? {
            result.map_err(|(topic, code)| anyhow::anyhow!("creating topic {topic}: {code}"))?;
        }
        Ok(())
    }

    /// Removes a topic and that of its dead letters.
    pub async fn delete_topic(&self, topic: &str) -> Result<()> {
        let topics = [topic, &dead_letter(topic)];
        for result in self.admin.delete_topics(&topics, &options()).await? {
            result.map_err(|(topic, code)| anyhow::anyhow!("deleting topic {topic}: {code}"))?;
        }
        Ok(())
    }

    /// A producer to `topic`; it waits `linger` for a batch to fill.
    pub fn producer(&self, topic: &str, linger: Duration) -> Result<Records> {
        let producer = client(&self.bootstrap_servers)
            .set("enable.idempotence", "true")
            .set("partitioner", "murmur2_random")
            .set("linger.ms", linger.as_millis().to_string())
            .set("message.timeout.ms", TIMEOUT.as_millis().to_string())
            .create()?;
        Ok(Records {
            producer,
            topic: topic.into(),
        })
    }

    /// Records in a topic.
    pub fn records(&self, topic: &str) -> Result<i64> {
        let consumer: BaseConsumer = client(&self.bootstrap_servers).create()?;
        let mut records = 0;
        for partition in 0..PARTITIONS {
            let (low, high) =
                block_in_place(|| consumer.fetch_watermarks(topic, partition, TIMEOUT))?;
            records += high - low;
        }
        Ok(records)
    }

    /// What a consumer group has committed.
    pub fn group(&self, topic: &str, group: &str) -> Result<Group> {
        let consumer = client(&self.bootstrap_servers)
            .set("group.id", group)
            .create()?;
        Ok(Group {
            consumer,
            topic: topic.into(),
        })
    }
}

/// The topic for the records of `topic` that can't be processed.
pub fn dead_letter(topic: &str) -> String {
    format!("{topic}.dead-letter")
}

fn client(bootstrap_servers: &str) -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", bootstrap_servers);
    config
}

fn options() -> AdminOptions {
    AdminOptions::new().operation_timeout(Some(TIMEOUT))
}

/// Records on their way to a topic.
pub struct Records {
    producer: ThreadedProducer<DefaultProducerContext>,
    topic: String,
}

impl Records {
    /// Hands a record to the producer; waits only while its queue is full.
    pub fn send(&self, user: &User) -> Result<()> {
        let (key, payload) = (user.id.to_string(), user.json());
        let mut record = BaseRecord::to(&self.topic).key(&key).payload(&payload);
        loop {
            match self.producer.send(record) {
                Ok(()) => return Ok(()),
                Err((error, back))
                    if error.rdkafka_error_code() == Some(RDKafkaErrorCode::QueueFull) =>
                {
                    record = back;
                    std::thread::sleep(Duration::from_millis(1));
                }
                Err((error, _)) => return Err(error).context("producing"),
            }
        }
    }

    /// Waits until Kafka has acknowledged every record.
    pub fn flush(&self) -> Result<()> {
        block_in_place(|| self.producer.flush(TIMEOUT)).context("producing")
    }
}

/// Watches a consumer group without ever joining it.
pub struct Group {
    consumer: BaseConsumer,
    topic: String,
}

impl Group {
    /// Records that the group has committed.
    pub fn committed(&self) -> Result<i64> {
        let mut partitions = TopicPartitionList::new();
        partitions.add_partition_range(&self.topic, 0, PARTITIONS - 1);
        let committed = block_in_place(|| self.consumer.committed_offsets(partitions, TIMEOUT))?;
        let offsets = committed.elements();
        Ok(offsets
            .iter()
            .filter_map(|partition| partition.offset().to_raw())
            .filter(|offset| *offset > 0)
            .sum())
    }
}
