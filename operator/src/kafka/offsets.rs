//! Offsets: where topics begin and end, what groups have committed, and the mark that says who a
//! topic is.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Instant,
};

use millstream_api::worker::{CommitMetadata, RunProgress};
use rdkafka::{
    Message, Offset, TopicPartitionList,
    consumer::{BaseConsumer, CommitMode, Consumer},
    error::{KafkaError as DriverError, RDKafkaErrorCode as Code},
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::{Kafka, KafkaError, TIMEOUT, client::LastError, is_of_a_broker, options};

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
    /// See `TopicStatus::keys`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub keys: Vec<String>,
}

/// What a consumer group has committed in one partition.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Committed {
    pub offset: Option<i64>,
    pub counts: CommitMetadata,
}

/// What the ingest stage keeps with its position, in one transaction with its records.
#[derive(Deserialize, Clone, Debug, Default, PartialEq, Eq)]
pub struct Ingested {
    /// Records that it has sent to the topic since that was made.
    #[serde(default)]
    pub records: i64,
    /// How far the run is whose worker kept a position last.
    #[serde(default)]
    pub run: Option<RunProgress>,
}

impl Kafka {
    /// The mark of a topic, where it has one.
    pub async fn mark(&self, topic: &str) -> Result<Option<TopicMark>, KafkaError> {
        self.kept(&mark_group(topic), topic).await
    }

    /// What the ingest stage has kept with its position.
    pub async fn ingested(&self, group: &str, topic: &str) -> Result<Option<Ingested>, KafkaError> {
        self.kept(group, topic).await
    }

    /// What a group keeps beside its offset in a topic's first partition, where it can be read.
    async fn kept<T: DeserializeOwned + Send + 'static>(
        &self,
        group: &str,
        topic: &str,
    ) -> Result<Option<T>, KafkaError> {
        let name = topic.to_string();
        self.with_consumer(group, move |consumer| {
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
                element.set_metadata(&metadata);
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
            let mut offsets = BTreeMap::new();
            for element in found.elements() {
                element.error()?;
                if let Offset::Offset(offset) = element.offset() {
                    offsets.insert(element.partition(), offset);
                }
            }
            // A partition that says nothing must not pass for an empty one.
            let of = |partition| offsets.get(&partition).copied();
            let all: Option<Vec<_>> = (0..partitions).map(of).collect();
            all.ok_or(DriverError::OffsetFetch(Code::LeaderNotAvailable))
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

    /// Of these partitions those that hold a record from the given offset on. Where there is none,
    /// the offsets up to the end are taken by the markers of transactions, or by records of one
    /// that was given up. Reads under the name of the group, without joining it.
    pub async fn holding_records(
        &self,
        group: &str,
        topic: &str,
        from: BTreeMap<i32, i64>,
        ends: Vec<i64>,
    ) -> Result<BTreeSet<i32>, KafkaError> {
        let name = topic.to_string();
        // One of its own: one that was assigned before doesn't always say again where an end is.
        let consumer = self.new_consumer(group);
        let consumer = consumer.map_err(|error| self.failed(&error, None))?;
        self.with(consumer, move |consumer| {
            let mut list = TopicPartitionList::new();
            for (partition, offset) in &from {
                list.add_partition_offset(&name, *partition, Offset::Offset(*offset))?;
            }
            consumer.assign(&list)?;
            first_records(consumer, from.keys().copied().collect(), &ends)
        })
        .await
    }

    /// Commits offsets with their counts, by partition, for a group without members. False where it
    /// has some.
    pub async fn commit(
        &self,
        group: &str,
        topic: &str,
        offsets: BTreeMap<i32, (i64, CommitMetadata)>,
    ) -> Result<bool, KafkaError> {
        let name = topic.to_string();
        self.with_consumer(group, move |consumer| {
            let mut list = TopicPartitionList::new();
            for (partition, (offset, counts)) in &offsets {
                list.add_partition_offset(&name, *partition, Offset::Offset(*offset))?;
                if let Some(mut element) = list.find_partition(&name, *partition) {
                    // Plain data: it serializes.
                    element.set_metadata(serde_json::to_string(counts).unwrap_or_default());
                }
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

    /// Deletes consumer groups; those that aren't there count as deleted.
    pub async fn delete_groups(&self, groups: &[&str]) -> Result<(), KafkaError> {
        let deleted = self.administer(|admin| admin.delete_groups(groups, &options()));
        for result in deleted.await? {
            match result {
                Ok(_) | Err((_, Code::GroupIdNotFound)) => {}
                Err((group, code)) => {
                    return Err(self.refused(code, &format!("delete consumer group `{group}`")));
                }
            }
        }
        Ok(())
    }
}

/// Polls until each of the partitions has given a record or come to its end. A broker that has just
/// become the leader may know of an earlier end: what is behind it counts as a record.
fn first_records(
    consumer: &BaseConsumer<LastError>,
    mut open: BTreeSet<i32>,
    ends: &[i64],
) -> Result<BTreeSet<i32>, DriverError> {
    let mut found = BTreeSet::new();
    let deadline = Instant::now() + TIMEOUT;
    while !open.is_empty() {
        let left = deadline.saturating_duration_since(Instant::now());
        match consumer.poll(left) {
            Some(Ok(record)) => {
                if open.remove(&record.partition()) {
                    found.insert(record.partition());
                }
            }
            Some(Err(DriverError::PartitionEOF(partition))) => {
                let position = consumer.position()?;
                let element = position
                    .elements()
                    .into_iter()
                    .find(|at| at.partition() == partition);
                let at = element.and_then(|element| element.offset().to_raw());
                if open.remove(&partition) && at < ends.get(partition as usize).copied() {
                    found.insert(partition);
                }
            }
            // Others may serve.
            Some(Err(error)) if error.rdkafka_error_code().is_some_and(is_of_a_broker) => {}
            Some(Err(error)) => return Err(error),
            None => return Err(DriverError::MessageConsumption(Code::OperationTimedOut)),
        }
    }
    Ok(found)
}

fn mark_group(topic: &str) -> String {
    format!("millstream.topic.{topic}")
}
