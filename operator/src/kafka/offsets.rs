//! Offsets: where topics begin and end, what groups have committed, and the mark that says who a
//! topic is.

use millstream_api::worker::CommitMetadata;
use rdkafka::{
    Offset, TopicPartitionList,
    consumer::{CommitMode, Consumer},
    error::{KafkaError as DriverError, RDKafkaErrorCode as Code},
};
use serde::{Deserialize, Serialize};

use super::{Kafka, KafkaError, TIMEOUT, options};

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
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Committed {
    pub offset: Option<i64>,
    pub counts: CommitMetadata,
}

impl Kafka {
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
}

fn mark_group(topic: &str) -> String {
    format!("millstream.topic.{topic}")
}
