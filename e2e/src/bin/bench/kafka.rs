//! Kafka as the benchmark needs it: topics, and the records in them.

use std::time::Duration;

use anyhow::{Context, Result};
use rdkafka::{
    ClientConfig, Message, Offset, TopicPartitionList,
    admin::{AdminClient, AdminOptions, NewTopic, TopicReplication},
    client::DefaultClientContext,
    consumer::{BaseConsumer, Consumer},
    error::RDKafkaErrorCode,
    producer::{BaseRecord, DefaultProducerContext, Producer, ThreadedProducer},
};
use tokio::task::block_in_place;

use crate::job::Record;

pub const PARTITIONS: i32 = 4;
const TIMEOUT: Duration = Duration::from_secs(30);

/// A Kafka cluster, seen from outside.
pub struct Kafka {
    bootstrap_servers: String,
    admin: AdminClient<DefaultClientContext>,
    consumer: BaseConsumer,
}

impl Kafka {
    pub fn new(bootstrap_servers: &str) -> Result<Self> {
        Ok(Self {
            bootstrap_servers: bootstrap_servers.into(),
            admin: client(bootstrap_servers).create()?,
            // It joins no group, and commits nothing.
            consumer: client(bootstrap_servers)
                .set("group.id", "bench")
                .set("enable.auto.commit", "false")
                .create()?,
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

    /// Number of records in a topic.
    pub fn count(&self, topic: &str) -> Result<u64> {
        let ends = self.ends(topic)?;
        Ok(u64::try_from(ends.iter().sum::<i64>())?)
    }

    /// The end of each partition; nothing is ever removed from these topics.
    fn ends(&self, topic: &str) -> Result<Vec<i64>> {
        (0..PARTITIONS)
            .map(|partition| {
                let ends =
                    block_in_place(|| self.consumer.fetch_watermarks(topic, partition, TIMEOUT));
                Ok(ends?.1)
            })
            .collect()
    }

    /// Begins to read a topic from its first records on.
    pub fn follow(&self, topic: &str) -> Result<()> {
        let mut partitions = TopicPartitionList::new();
        for partition in 0..PARTITIONS {
            partitions.add_partition_offset(topic, partition, Offset::Beginning)?;
        }
        Ok(self.consumer.assign(&partitions)?)
    }

    /// Adds the keys and values that have come since the last time: offsets don't tell how many
    /// there are, as the markers of transactions take some too.
    pub fn receive(&self, records: &mut Vec<(Vec<u8>, Vec<u8>)>) -> Result<()> {
        while let Some(record) = self.consumer.poll(Duration::ZERO) {
            match record {
                Ok(record) => records.push((
                    record.key().unwrap_or_default().to_vec(),
                    record.payload().unwrap_or_default().to_vec(),
                )),
                // A topic may be unknown for a moment after it was made.
                Err(error)
                    if error.rdkafka_error_code()
                        == Some(RDKafkaErrorCode::UnknownTopicOrPartition) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
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
    pub fn send(&self, sent: &Record) -> Result<()> {
        let record = BaseRecord::to(&self.topic);
        let mut record = record.key(&sent.key).payload(&sent.json);
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
