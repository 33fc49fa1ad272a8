//! Kafka as it is, seen with its own clients.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rdkafka::admin::{
    AdminClient, AdminOptions, AlterConfig, NewTopic, ResourceSpecifier, TopicReplication,
};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::{BorrowedMessage, Headers, Message, OwnedMessage};
use rdkafka::producer::future_producer::DeliveryFuture;
use rdkafka::producer::{FutureProducer, FutureRecord};
use rdkafka::{Offset, TopicPartitionList};

const TIMEOUT: Duration = Duration::from_secs(20);

/// Records that wait for their acknowledgement at the same time.
const IN_FLIGHT: usize = 10_000;

/// Larger than what a pipeline takes, so that tests can hand it too much.
const MAX_MESSAGE_BYTES: &str = "20971520";

/// A record to produce.
pub struct Record {
    pub key: Option<String>,
    pub value: Vec<u8>,
}

impl Record {
    /// A record with a key.
    pub fn keyed(key: impl Into<String>, value: impl Into<Vec<u8>>) -> Self {
        Record {
            key: Some(key.into()),
            value: value.into(),
        }
    }
}

/// The text of a record's header, if it is there.
pub fn header(record: &OwnedMessage, name: &str) -> Option<String> {
    let found = record.headers()?.iter().find(|header| header.key == name)?;
    Some(String::from_utf8_lossy(found.value?).into_owned())
}

/// Clients of one Kafka cluster.
pub struct Kafka {
    bootstrap: String,
    admin: AdminClient<DefaultClientContext>,
    producer: FutureProducer,
}

impl Kafka {
    pub(crate) fn connect(bootstrap: &str) -> Result<Self> {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", bootstrap);
        let admin = config.create()?;
        let producer = config
            .set("enable.idempotence", "true")
            // As Java producers and the workers partition.
            .set("partitioner", "murmur2_random")
            .set("message.max.bytes", MAX_MESSAGE_BYTES)
            .create()?;
        Ok(Kafka {
            bootstrap: bootstrap.to_owned(),
            admin,
            producer,
        })
    }

    /// Produces the records in order, and waits until Kafka has them all.
    ///
    /// # Errors
    /// When one of them isn't acknowledged within five minutes.
    pub async fn produce(
        &self,
        topic: &str,
        records: impl IntoIterator<Item = Record>,
    ) -> Result<()> {
        let mut deliveries = VecDeque::new();
        for record in records {
            if deliveries.len() == IN_FLIGHT {
                acknowledged(deliveries.pop_front()).await?;
            }
            let mut message = FutureRecord::<String, Vec<u8>>::to(topic).payload(&record.value);
            message.key = record.key.as_ref();
            deliveries.push_back(
                self.producer
                    .send_result(message)
                    .map_err(|(error, _)| error)?,
            );
        }
        while !deliveries.is_empty() {
            acknowledged(deliveries.pop_front()).await?;
        }
        Ok(())
    }

    /// Makes a topic that no resource declares.
    ///
    /// # Errors
    /// When it exists already, or Kafka refuses.
    pub async fn create_topic(
        &self,
        topic: &str,
        partitions: i32,
        config: &[(&str, &str)],
    ) -> Result<()> {
        let mut new = NewTopic::new(topic, partitions, TopicReplication::Fixed(1));
        for (key, value) in config {
            new = new.set(key, value);
        }
        let results = self.admin.create_topics(&[new], &options()).await?;
        results.into_iter().try_for_each(|result| match result {
            Ok(_) => Ok(()),
            Err((topic, code)) => bail!("creating {topic}: {code}"),
        })
    }

    /// The number of partitions; `None` where there is no such topic.
    ///
    /// # Errors
    /// When Kafka doesn't answer.
    pub fn partitions(&self, topic: &str) -> Result<Option<usize>> {
        // Of all topics: to ask for one that isn't there is an error.
        let metadata = self.admin.inner().fetch_metadata(None, TIMEOUT)?;
        let found = metadata.topics().iter().find(|found| found.name() == topic);
        Ok(found.map(|topic| topic.partitions().len()))
    }

    /// The value of a topic's configuration key, as it is in force.
    ///
    /// # Errors
    /// When there is no such topic or key.
    pub async fn config(&self, topic: &str, key: &str) -> Result<String> {
        let resource = ResourceSpecifier::Topic(topic);
        let found = self.admin.describe_configs(&[resource], &options()).await?;
        for resource in found {
            let resource =
                resource.map_err(|code| anyhow::anyhow!("describing {topic}: {code}"))?;
            if let Some(entry) = resource.get(key) {
                return entry
                    .value
                    .clone()
                    .with_context(|| format!("{key} has no value"));
            }
        }
        bail!("{topic} has no configuration {key}")
    }

    /// Replaces all that is configured on a topic, as somebody with Kafka's own tools might.
    ///
    /// # Errors
    /// When Kafka refuses.
    pub async fn set_config(&self, topic: &str, config: &[(&str, &str)]) -> Result<()> {
        let mut alter = AlterConfig::new(ResourceSpecifier::Topic(topic));
        for (key, value) in config {
            alter = alter.set(key, value);
        }
        let results = self.admin.alter_configs([&alter], &options()).await?;
        for result in results {
            result.map_err(|(_, code)| anyhow::anyhow!("configuring {topic}: {code}"))?;
        }
        Ok(())
    }

    /// The number of records in a topic; they are read, as the markers of transactions take offsets too.
    ///
    /// # Errors
    /// When there is no such topic, or Kafka doesn't give them.
    pub fn records(&self, topic: &str) -> Result<i64> {
        let mut records = 0;
        self.read(topic, |_| records += 1)?;
        Ok(records)
    }

    fn watermarks(&self, topic: &str) -> Result<BTreeMap<i32, (i64, i64)>> {
        let partitions = self
            .partitions(topic)?
            .with_context(|| format!("no topic {topic}"))?;
        let of = |partition| {
            let client = self.admin.inner();
            let deadline = Instant::now() + TIMEOUT;
            loop {
                match client.fetch_watermarks(topic, partition, TIMEOUT) {
                    Ok(watermarks) => return Ok((partition, watermarks)),
                    // Kafka was started again, and the client's view of it is old.
                    Err(_) if Instant::now() < deadline => {
                        std::thread::sleep(Duration::from_millis(100));
                    }
                    Err(error) => return Err(error.into()),
                }
            }
        };
        (0..i32::try_from(partitions)?).map(of).collect()
    }

    /// Records that a consumer group has not committed yet.
    ///
    /// # Errors
    /// When there is no such topic, or the group has never committed.
    pub fn lag(&self, group: &str, topic: &str) -> Result<i64> {
        let consumer = self.consumer(group)?;
        let watermarks = self.watermarks(topic)?;
        let mut asked = TopicPartitionList::new();
        for partition in watermarks.keys() {
            asked.add_partition(topic, *partition);
        }
        let committed = consumer.committed_offsets(asked, TIMEOUT)?;
        committed
            .elements()
            .iter()
            .try_fold(0, |lag, element| match element.offset() {
                Offset::Offset(offset) => Ok(lag + watermarks[&element.partition()].1 - offset),
                _ => bail!(
                    "{group} has committed no offset in partition {}",
                    element.partition()
                ),
            })
    }

    /// All records that are in a topic now.
    ///
    /// # Errors
    /// When there is no such topic, or Kafka doesn't give them.
    pub fn consume(&self, topic: &str) -> Result<Vec<OwnedMessage>> {
        let mut records = Vec::new();
        self.read(topic, |record| records.push(record.detach()))?;
        Ok(records)
    }

    /// Reads a topic to where its end was at first. While records are committed again and again, Kafka doesn't
    /// tell of an end; where the last offset is a transaction's marker, nothing else does.
    fn read(&self, topic: &str, mut take: impl FnMut(&BorrowedMessage<'_>)) -> Result<()> {
        let consumer = self.consumer("e2e")?;
        let mut left = self.watermarks(topic)?;
        left.retain(|_, (low, high)| low < high);
        let mut assignment = TopicPartitionList::new();
        for partition in left.keys() {
            assignment.add_partition_offset(topic, *partition, Offset::Beginning)?;
        }
        consumer.assign(&assignment)?;
        while !left.is_empty() {
            match consumer.poll(TIMEOUT) {
                Some(Ok(record)) => {
                    take(&record);
                    let end = left.get(&record.partition()).map(|(_, high)| *high);
                    if end.is_some_and(|end| record.offset() + 1 >= end) {
                        left.remove(&record.partition());
                    }
                }
                Some(Err(KafkaError::PartitionEOF(partition))) => {
                    left.remove(&partition);
                }
                Some(Err(error)) => return Err(error.into()),
                None => bail!("Kafka gives no more records of {topic}"),
            }
        }
        Ok(())
    }

    fn consumer(&self, group: &str) -> Result<BaseConsumer> {
        let consumer = ClientConfig::new()
            .set("bootstrap.servers", &self.bootstrap)
            .set("group.id", group)
            .set("enable.auto.commit", "false")
            .set("enable.partition.eof", "true")
            .set("fetch.message.max.bytes", MAX_MESSAGE_BYTES)
            .create()?;
        Ok(consumer)
    }

    /// Commits an offset of partition 0 for a group without members, as if it had read up to there.
    ///
    /// # Errors
    /// When the group has members, or Kafka refuses.
    pub fn commit(&self, group: &str, topic: &str, offset: i64) -> Result<()> {
        let mut offsets = TopicPartitionList::new();
        offsets.add_partition_offset(topic, 0, Offset::Offset(offset))?;
        self.consumer(group)?.commit(&offsets, CommitMode::Sync)?;
        Ok(())
    }

    /// Removes the records of partition 0 before an offset, as retention does.
    ///
    /// # Errors
    /// When Kafka refuses.
    pub async fn delete_records(&self, topic: &str, before: i64) -> Result<()> {
        let mut offsets = TopicPartitionList::new();
        offsets.add_partition_offset(topic, 0, Offset::Offset(before))?;
        let deleted = self.admin.delete_records(&offsets, &options()).await?;
        for element in deleted.elements() {
            element.error()?;
        }
        Ok(())
    }

    /// Deletes a topic behind the operator's back.
    ///
    /// # Errors
    /// When Kafka refuses.
    pub async fn delete_topic(&self, topic: &str) -> Result<()> {
        let results = self.admin.delete_topics(&[topic], &options()).await?;
        results.into_iter().try_for_each(|result| match result {
            Ok(_) => Ok(()),
            Err((topic, code)) => bail!("deleting {topic}: {code}"),
        })
    }

    pub(crate) async fn delete_topics_of(&self, suffix: &str) -> Result<()> {
        let metadata = self.admin.inner().fetch_metadata(None, TIMEOUT)?;
        for topic in metadata
            .topics()
            .iter()
            .filter(|topic| topic.name().contains(suffix))
        {
            self.delete_topic(topic.name()).await?;
        }
        Ok(())
    }
}

fn options() -> AdminOptions {
    AdminOptions::new()
        .request_timeout(Some(TIMEOUT))
        .operation_timeout(Some(TIMEOUT))
}

async fn acknowledged(delivery: Option<DeliveryFuture>) -> Result<()> {
    if let Some(delivery) = delivery {
        delivery.await?.map_err(|(error, _)| error)?;
    }
    Ok(())
}
