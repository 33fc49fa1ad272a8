//! Records of the topic on their way to a sink.

use std::{collections::BTreeMap, ops::Range};

use millstream_plan::SinkPlan;
use rdkafka::{Message, message::BorrowedMessage};

use crate::dead_letter::Replayed;

/// Records of a batch, where nothing else is asked for.
pub const MAX_RECORDS: usize = 2_000;
/// Bytes of a batch, where nothing else is asked for.
pub const MAX_BYTES: usize = 4 * 1024 * 1024;

/// A batch: records of one topic, of one or more of its partitions, in the order in which they were
/// read. Their bytes lie in one buffer.
#[derive(Default)]
pub struct Batch {
    bytes: Vec<u8>,
    records: Vec<Record>,
    ends: BTreeMap<i32, End>,
}

/// Where a batch ends in a topic partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct End {
    /// The assignment under which the records were read.
    pub epoch: u64,
    /// The offset after the last record.
    pub next_offset: i64,
}

/// A record of a batch.
#[derive(Clone, Debug)]
pub struct Record {
    /// The topic partition.
    pub partition: i32,
    /// The offset in it.
    pub offset: i64,
    /// Milliseconds since 1970; none where Kafka has none.
    pub timestamp: Option<i64>,
    /// The offset that it had at first, where it was replayed.
    replayed: Option<i64>,
    /// Whether the state of its group had it before.
    folded: bool,
    key: Option<Range<usize>>,
    value: Option<Range<usize>>,
}

impl Record {
    /// The offset that the record had when it first came into the topic.
    pub fn first_offset(&self) -> i64 {
        self.replayed.unwrap_or(self.offset)
    }

    /// Whether the record was in the topic before.
    pub fn is_replayed(&self) -> bool {
        self.replayed.is_some()
    }

    /// Whether the state of its group had the record before it was replayed.
    pub fn is_folded(&self) -> bool {
        self.folded
    }
}

impl Batch {
    /// Adds a record that was read under an assignment; one that was replayed for another sink just
    /// counts as read.
    pub fn push_for(&mut self, sink: &str, message: &BorrowedMessage<'_>, epoch: u64) {
        match Replayed::of(message) {
            None => self.push(message, epoch),
            Some(replayed) if replayed.sink == sink => {
                self.push(message, epoch);
                self.mark(&replayed);
            }
            Some(_) => self.pass(message, epoch),
        }
    }

    /// Takes note that the last record was replayed.
    pub fn mark(&mut self, replayed: &Replayed) {
        if let Some(record) = self.records.last_mut() {
            record.replayed = Some(replayed.offset);
            record.folded = replayed.folded;
        }
    }

    /// Adds a record that was read under an assignment.
    pub fn push(&mut self, message: &BorrowedMessage<'_>, epoch: u64) {
        self.pass(message, epoch);
        self.push_record(
            message.partition(),
            message.offset(),
            message.timestamp().to_millis(),
            message.key(),
            message.payload(),
        );
    }

    /// Takes note of a record that was read under an assignment.
    fn pass(&mut self, message: &BorrowedMessage<'_>, epoch: u64) {
        let end = End {
            epoch,
            next_offset: message.offset() + 1,
        };
        let before = self.ends.insert(message.partition(), end);
        if before.is_some_and(|before| before.epoch != epoch) {
            // The partition was lost and came back: what was read before is read again.
            self.records
                .retain(|record| record.partition != message.partition());
        }
    }

    /// Adds a record.
    pub fn push_record(
        &mut self,
        partition: i32,
        offset: i64,
        timestamp: Option<i64>,
        key: Option<&[u8]>,
        value: Option<&[u8]>,
    ) {
        let key = key.map(|key| self.keep(key));
        let value = value.map(|value| self.keep(value));
        self.records.push(Record {
            partition,
            offset,
            timestamp,
            replayed: None,
            folded: false,
            key,
            value,
        });
    }

    fn keep(&mut self, bytes: &[u8]) -> Range<usize> {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(bytes);
        start..self.bytes.len()
    }

    /// Empties the batch and keeps its memory for the next, up to so many bytes: fresh memory for
    /// every batch costs more than decoding it.
    pub fn clear(&mut self, kept: usize) {
        self.bytes.clear();
        self.bytes.shrink_to(kept);
        self.records.clear();
        self.ends.clear();
    }

    /// Bytes of all keys and values.
    pub fn bytes(&self) -> usize {
        self.bytes.len()
    }

    /// Whether no more records should be added.
    pub fn is_full(&self) -> bool {
        self.records.len() >= MAX_RECORDS || self.bytes.len() >= MAX_BYTES
    }

    /// Whether nothing was read.
    pub fn is_empty(&self) -> bool {
        self.records.is_empty() && self.ends.is_empty()
    }

    /// Number of records.
    pub fn len(&self) -> usize {
        self.records.len()
    }

    /// All records.
    pub fn records(&self) -> &[Record] {
        &self.records
    }

    /// A record's key.
    pub fn key(&self, record: &Record) -> Option<&[u8]> {
        record.key.clone().map(|range| &self.bytes[range])
    }

    /// A record's value.
    pub fn value(&self, record: &Record) -> Option<&[u8]> {
        record.value.clone().map(|range| &self.bytes[range])
    }

    /// Where the batch ends in each of its topic partitions.
    pub fn ends(&self) -> &BTreeMap<i32, End> {
        &self.ends
    }

    /// Where the part of the batch before this record ends in each of its topic partitions.
    pub fn ends_before(&self, record: usize) -> BTreeMap<i32, End> {
        let mut ends = self.ends.clone();
        for record in self.records[record..].iter().rev() {
            if let Some(end) = ends.get_mut(&record.partition) {
                end.next_offset = record.offset;
            }
        }
        ends
    }
}

/// How new the rows of records are: the write timestamp in Cassandra, `_version` elsewhere. An older
/// row never replaces a newer one.
#[derive(Clone, Copy)]
pub struct Versions {
    base: i64,
    /// Whether the rows are those of groups.
    pub grouped: bool,
}

impl Versions {
    /// Those of a query's rows, over a topic with this timestamp base.
    pub fn new(plan: &SinkPlan, base: i64) -> Self {
        Versions {
            base,
            grouped: plan.is_grouped(),
        }
    }

    /// The version of a record's row. A record that was replayed has its old place, so that it never
    /// replaces what a newer one wrote; but the row of a group says how far the group has come, for
    /// which it is a new one.
    pub fn of(self, record: &Record) -> i64 {
        let offset = match self.grouped {
            true => record.offset,
            false => record.first_offset(),
        };
        self.base + offset
    }
}

/// A record that can never be written, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejected {
    /// Index of the record in its batch.
    pub record: usize,
    /// In one sentence.
    pub reason: String,
    /// Whether the state of its group has it: only a row couldn't be made of it.
    pub folded: bool,
}

impl Rejected {
    /// A record that no state of a group has.
    pub fn new(record: usize, reason: String) -> Self {
        Rejected {
            record,
            reason,
            folded: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replayed_record_has_its_old_place_but_is_new_to_its_group() {
        let mut batch = Batch::default();
        batch.push_record(0, 7, None, None, None);
        batch.push_record(0, 8, None, None, None);
        batch.mark(&Replayed {
            sink: "users".to_owned(),
            offset: 3,
            folded: false,
        });
        for (grouped, expected) in [(false, [107, 103]), (true, [107, 108])] {
            let versions = Versions { base: 100, grouped };
            let records = batch.records().iter();
            let found: Vec<_> = records.map(|record| versions.of(record)).collect();
            assert_eq!(found, expected);
        }
    }

    #[test]
    fn a_part_of_a_batch_ends_before_the_first_record_that_is_not_in_it() {
        let mut batch = Batch::default();
        for (partition, offset) in [(0, 10), (1, 7), (0, 12), (1, 8), (2, 3)] {
            batch.push_record(partition, offset, None, None, None);
            let end = End {
                epoch: 1,
                next_offset: offset + 1,
            };
            batch.ends.insert(partition, end);
        }
        let ends = |record| {
            let ends = batch.ends_before(record);
            ends.into_values()
                .map(|end| end.next_offset)
                .collect::<Vec<_>>()
        };
        assert_eq!(ends(0), [10, 7, 3]);
        assert_eq!(ends(2), [12, 8, 3]);
        assert_eq!(ends(4), [13, 9, 3]);
    }
}
