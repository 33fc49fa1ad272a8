//! The topic partitions that a consumer owns, and how far each has come.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use millstream_api::{
    condition::reason,
    worker::{CommitMetadata, TopicGap},
};
use rdkafka::{
    ClientContext, Offset, Statistics, TopicPartitionList,
    config::RDKafkaLogLevel,
    consumer::{BaseConsumer, CommitMode, Consumer, ConsumerContext},
    error::{KafkaError, KafkaResult, RDKafkaErrorCode},
    types::RDKafkaRespErr,
};

use crate::{
    batch::End, kafka::Reports, metrics::Metrics, stage::place::Place, status::StatusPart,
};

const TIMEOUT: Duration = Duration::from_secs(5);
const COMMIT: &str = "commit";
/// The concern under which errors of reading are shown.
pub const READ: &str = "read";
/// The concern under which a truncated log is shown.
const TRUNCATED: &str = "truncated log";
/// What Kafka's client says where a new leader of a partition ends before the place that was read,
/// whatever has been written since. It tells that in words alone.
const TRUNCATION: &str = "log truncation detected at";
/// What it says where Kafka doesn't have the offset that was asked for.
const OUT_OF_RANGE: &str = "Offset out of range";

/// What a sink's consumer owns. Kafka's client calls it back while the consumer is polled.
pub struct Assignment {
    reports: Reports,
    status: StatusPart,
    metrics: Arc<Metrics>,
    sink: String,
    topic: String,
    known: Known,
    expectations: BTreeSet<String>,
    state: Mutex<State>,
}

/// The partitions under which this process has seen a committed offset: one that is gone later is a
/// gap. Outlives the consumer.
pub type Known = Arc<Mutex<BTreeSet<i32>>>;

#[derive(Default)]
struct State {
    partitions: BTreeMap<i32, Partition>,
    /// Counts assignments: what was read under an older one must not be counted under a newer.
    epoch: u64,
    failure: Option<String>,
    /// Whether Kafka's client has told of a truncated log.
    truncated: bool,
    /// Whether it has told of an offset that Kafka didn't have.
    out_of_range: bool,
    /// Whether the gaps are to be looked for again.
    look_again: bool,
}

struct Partition {
    epoch: u64,
    place: Place,
    committed: Option<i64>,
    counts: CommitMetadata,
}

/// A batch that is acknowledged: where it ends, and what it adds, by partition.
#[derive(Debug, Default)]
pub struct Acknowledged {
    /// Where it ends.
    pub ends: BTreeMap<i32, End>,
    /// What it adds.
    pub counts: BTreeMap<i32, CommitMetadata>,
}

impl Assignment {
    /// Nothing is owned yet.
    pub fn new(
        status: StatusPart,
        metrics: Arc<Metrics>,
        sink: &str,
        topic: &str,
        known: Known,
        expectations: impl Iterator<Item = String>,
    ) -> Self {
        Assignment {
            reports: Reports::new(status.clone()),
            status,
            metrics,
            sink: sink.to_owned(),
            topic: topic.to_owned(),
            known,
            expectations: expectations.collect(),
            state: Mutex::default(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn known(&self) -> MutexGuard<'_, BTreeSet<i32>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes note of a record that was read. Gives the assignment under which its partition is owned
    /// now; none where it isn't: then it is somebody else's.
    pub fn read(&self, partition: i32, offset: i64) -> Option<u64> {
        let mut state = self.state();
        let owned = state.partitions.get_mut(&partition)?;
        owned.place.read(offset);
        Some(owned.epoch)
    }

    /// Takes note of what the consumer has passed that are no records, such as the markers of
    /// transactions. Must be called where records are read, between two of them: what the consumer
    /// has handed out has to be in [`Assignment::read`] already.
    pub fn pass(&self, consumer: &impl Consumer<Self>) {
        // The client forgets the position with the assignment: it is never that of an older one.
        let Ok(position) = consumer.position() else {
            return;
        };
        let mut state = self.state();
        for element in position.elements() {
            if let (Some(owned), Offset::Offset(next)) = (
                state.partitions.get_mut(&element.partition()),
                element.offset(),
            ) {
                owned.place.pass(next);
            }
        }
    }

    /// All partitions that are owned.
    pub fn partitions(&self) -> TopicPartitionList {
        let mut list = TopicPartitionList::new();
        for partition in self.state().partitions.keys() {
            list.add_partition(&self.topic, *partition);
        }
        list
    }

    /// What stops the consumer, if anything does.
    pub fn take_failure(&self) -> Option<String> {
        self.state().failure.take()
    }

    /// Takes note of an acknowledged batch. Partitions that were lost since are skipped: who owns
    /// them now reads their records again.
    pub fn acknowledge(&self, batch: &Acknowledged) {
        let mut state = self.state();
        for (partition, end) in &batch.ends {
            let Some(owned) = state.partitions.get_mut(partition) else {
                continue;
            };
            if owned.epoch != end.epoch {
                continue;
            }
            owned.place.acknowledge(end.next_offset);
            if let Some(counts) = batch.counts.get(partition) {
                owned.counts.add(counts);
            }
        }
    }

    /// Commits what is acknowledged. Blocks: Kafka's client tells the result of a commit only to
    /// whom waits for it.
    pub fn commit(&self, consumer: &impl Consumer<Self>) {
        let committed = self.uncommitted().and_then(|list| {
            if list.count() > 0 {
                consumer.commit(&list, CommitMode::Sync)?;
            }
            Ok(list)
        });
        match committed {
            Ok(list) => {
                self.committed(&list);
                self.status.clear(COMMIT);
            }
            // The next commit, after the rebalance, covers this one.
            Err(error) if is_rebalance(&error) => tracing::debug!(%error, "commit"),
            Err(error) => self
                .status
                .fail(COMMIT, format!("can't commit offsets: {error}")),
        }
    }

    fn committed(&self, list: &TopicPartitionList) {
        let mut state = self.state();
        for element in list.elements() {
            let partition = element.partition();
            self.known().insert(partition);
            if let (Some(owned), Offset::Offset(offset)) =
                (state.partitions.get_mut(&partition), element.offset())
            {
                owned.committed = Some(offset);
            }
        }
    }

    fn uncommitted(&self) -> KafkaResult<TopicPartitionList> {
        let mut list = TopicPartitionList::new();
        let state = self.state();
        for (partition, owned) in &state.partitions {
            let Some(next) = owned.place.acknowledged() else {
                continue;
            };
            if owned.committed == Some(next) {
                continue;
            }
            list.add_partition_offset(&self.topic, *partition, Offset::Offset(next))?;
            if let Some(mut element) = list.find_partition(&self.topic, *partition) {
                element.set_metadata(serde_json::to_string(&owned.counts).unwrap_or_default());
            }
        }
        Ok(list)
    }

    /// Starts every new partition at its committed offset; one without any at its beginning.
    fn assign(
        &self,
        consumer: &BaseConsumer<Self>,
        list: &TopicPartitionList,
    ) -> Result<(), String> {
        // The callback runs on a thread of the runtime.
        let committed =
            tokio::task::block_in_place(|| consumer.committed_offsets(list.clone(), TIMEOUT))
                .map_err(|error| format!("can't read the committed offsets: {error}"))?;
        let mut start = TopicPartitionList::new();
        let mut state = self.state();
        state.epoch += 1;
        let epoch = state.epoch;
        for element in committed.elements() {
            let partition = element.partition();
            element
                .error()
                .map_err(|error| format!("can't read the committed offsets: {error}"))?;
            let committed = match element.offset() {
                Offset::Offset(offset) => Some(offset),
                _ => None,
            };
            if committed.is_some() {
                self.known().insert(partition);
            } else if self.known().contains(&partition) {
                return Err(format!(
                    "DataGap: the committed offset of partition {partition} is gone: the topic {} was made anew, or its consumer group was deleted; a new worker reads the topic from its beginning",
                    self.topic
                ));
            }
            self.status.clear(gap(partition));
            let offset = committed.map_or(Offset::Beginning, Offset::Offset);
            let mut counts = CommitMetadata::parse(element.metadata());
            // Those that are no longer there would fill the metadata in time.
            let names = &self.expectations;
            counts.failed.retain(|name, _| names.contains(name));
            start
                .add_partition_offset(&self.topic, partition, offset)
                .map_err(|error| error.to_string())?;
            let owned = Partition {
                epoch,
                place: Place::new(committed),
                committed,
                counts,
            };
            state.partitions.insert(partition, owned);
        }
        drop(state);
        tracing::info!(sink = self.sink, ?start, "partitions assigned");
        // The client keeps a pause when a partition goes: one that was paused then, and comes back,
        // would never be read again. Before it is assigned, as that has the reading begin anew.
        consumer
            .resume(list)
            .and_then(|()| consumer.incremental_assign(&start))
            .map_err(|error| format!("can't start reading: {error}"))?;
        // An error that lasts is told again.
        self.status.clear(READ);
        Ok(())
    }

    fn revoke(&self, consumer: &BaseConsumer<Self>, list: &TopicPartitionList) {
        // What isn't committed is written again by who owns the partitions next. Nobody waits here:
        // the client gives them up when it has Kafka's answer.
        if !consumer.assignment_lost() {
            let sent = self
                .uncommitted()
                .and_then(|offsets| match offsets.count() {
                    0 => Ok(()),
                    _ => consumer.commit(&offsets, CommitMode::Async),
                });
            if let Err(error) = sent {
                tracing::debug!(%error, "commit before the revoke");
            }
        }
        let mut state = self.state();
        for element in list.elements() {
            state.partitions.remove(&element.partition());
            self.metrics.forget_lag(&self.sink, element.partition());
            self.status.clear(gap(element.partition()));
        }
        drop(state);
        tracing::info!(sink = self.sink, ?list, "partitions revoked");
        if let Err(error) = consumer.incremental_unassign(list) {
            tracing::warn!(%error, "revoke");
        }
    }

    /// Whether gaps were looked for and Kafka didn't tell of every partition.
    pub fn looks_again(&self) -> bool {
        std::mem::take(&mut self.state().look_again)
    }

    /// Shows which partitions can't go on, after Kafka said that an offset isn't there; whether there
    /// is one. Blocks.
    pub fn show_gaps(&self, consumer: &impl Consumer<Self>) -> KafkaResult<bool> {
        let (positions, mut found, out_of_range) = {
            let mut state = self.state();
            let partitions = state.partitions.iter();
            let positions: Vec<_> = partitions
                .filter_map(|(partition, owned)| Some((*partition, owned.place.acknowledged()?)))
                .collect();
            let out_of_range = std::mem::take(&mut state.out_of_range);
            (positions, state.truncated, out_of_range)
        };
        let mut failed = None;
        for (partition, next) in positions {
            // Many without a leader take long, and that is no standstill.
            self.status.turned();
            let timeout = match failed {
                // Partitions whose leader is away aren't waited for one after the other.
                Some(_) => TIMEOUT / 10,
                None => TIMEOUT,
            };
            let (low, high) = match consumer.fetch_watermarks(&self.topic, partition, timeout) {
                Ok(marks) => marks,
                Err(error) => {
                    // The others are looked at all the same: what was truncated grows again.
                    failed = Some(error);
                    continue;
                }
            };
            if next > high {
                found = true;
                self.show_truncated(&format!(
                    "partition {partition} was truncated: it ends at offset {high}, and was read up to {next}"
                ));
            } else if next < low {
                found = true;
                self.status.fail(gap(partition), format!(
                    "DataGap: partition {partition} of the topic {} is to be read from offset {next} on, but holds {low} to {high}; spec.onDataGap: Continue accepts that",
                    self.topic
                ));
            }
        }
        if let Some(error) = failed {
            let mut state = self.state();
            state.out_of_range |= out_of_range;
            state.look_again = true;
            return Err(error);
        }
        if out_of_range && !found {
            found = true;
            self.show_truncated(
                "a partition was truncated before the place that was read, and has grown past it since",
            );
        }
        Ok(found)
    }

    /// Shows that the log was truncated for as long as the process lives: where it has grown past the
    /// place that was read, nothing else tells of it. The operator stops the process.
    fn show_truncated(&self, how: &str) {
        let lost = format!("sink `{}`: {how}", self.sink);
        let message = format!("DataGap: {lost}; spec.onDataGap: Continue accepts that");
        let reason = reason::LOG_TRUNCATED.to_owned();
        self.status
            .gap(TRUNCATED, message, TopicGap { reason, lost });
    }
}

/// The concern under which records of a partition that are gone are shown.
fn gap(partition: i32) -> String {
    format!("gap in partition {partition}")
}

impl ClientContext for Assignment {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        self.reports.log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        if error.rdkafka_error_code() == Some(RDKafkaErrorCode::AutoOffsetReset) {
            let truncated = reason.contains(TRUNCATION);
            if truncated {
                self.show_truncated(&format!("a partition was truncated: {reason}"));
            }
            let mut state = self.state();
            state.truncated |= truncated;
            state.out_of_range |= reason.contains(OUT_OF_RANGE);
        }
        self.reports.error(error, reason);
    }

    fn stats(&self, statistics: Statistics) {
        if let Some(topic) = statistics.topics.get(&self.topic) {
            let state = self.state();
            for (partition, owned) in &state.partitions {
                let Some(seen) = topic.partitions.get(partition) else {
                    continue;
                };
                let next = owned.place.acknowledged().unwrap_or(seen.lo_offset);
                if seen.hi_offset >= 0 && next >= 0 {
                    let lag = (seen.hi_offset - next).max(0);
                    self.metrics.set_lag(&self.sink, *partition, lag);
                }
            }
        }
        self.reports.stats(statistics);
        if self.reports.is_lost() {
            let failure = "Kafka can't be reached: another client tries";
            self.state().failure = Some(failure.to_owned());
        }
    }
}

impl ConsumerContext for Assignment {
    fn rebalance(
        &self,
        consumer: &BaseConsumer<Self>,
        code: RDKafkaRespErr,
        list: &mut TopicPartitionList,
    ) {
        match code {
            RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS => {
                if let Err(failure) = self.assign(consumer, list) {
                    self.state().failure = Some(failure);
                    // A consumer that is closed meanwhile would wait for an answer for ever.
                    if let Err(error) = consumer.incremental_assign(&TopicPartitionList::new()) {
                        tracing::debug!(%error, "assign nothing");
                    }
                }
            }
            _ => self.revoke(consumer, list),
        }
    }
}

fn is_rebalance(error: &KafkaError) -> bool {
    matches!(
        error.rdkafka_error_code(),
        Some(
            RDKafkaErrorCode::RebalanceInProgress
                | RDKafkaErrorCode::IllegalGeneration
                | RDKafkaErrorCode::UnknownMemberId
                | RDKafkaErrorCode::NoOffset
        )
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::Status;

    #[test]
    fn a_truncated_log_is_told_as_long_as_the_process_lives() {
        let status = Arc::new(Status::default());
        let assignment = Assignment::new(
            status.part("users"),
            Arc::new(Metrics::default()),
            "users",
            "t",
            Known::default(),
            std::iter::empty(),
        );
        let tell = |reason: &str| {
            let error = KafkaError::Global(RDKafkaErrorCode::AutoOffsetReset);
            assignment.error(error, reason);
        };
        // As the client says it.
        tell(
            "fetch failed due to requested offset not available on the broker: Broker: Offset out of range (broker 1)",
        );
        tell(
            "No epoch found less or equal to offset 100 (leader epoch 5): broker end offset is -1 (offset leader epoch -1). Reset using configured policy.: Local: Partition log truncation detected (broker 1)",
        );
        assert_eq!(status.report().gap, None, "retention, or nothing at all");
        assert!(assignment.state().out_of_range);
        tell(
            "Partition log truncation detected at offset 100 (leader epoch 5): broker end offset is 80 (offset leader epoch 4). Reset to INVALID.: Local: Partition log truncation detected (broker 1)",
        );
        // Another worker may have the partition now.
        assignment.status.clear(gap(0));
        let told = status.report();
        let gap = told.gap.unwrap();
        assert_eq!(gap.reason, reason::LOG_TRUNCATED);
        assert!(
            gap.lost
                .starts_with("sink `users`: a partition was truncated")
        );
        assert!(told.errors["users"].contains(&gap.lost));
        assert!(assignment.state().truncated);
    }
}
