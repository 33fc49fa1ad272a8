//! Where each partition of the source's topic is read.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use anyhow::Context;
use millstream_api::source::Start;
use rdkafka::{Offset, TopicPartitionList, error::KafkaResult};
use serde_json::{Value, json};

/// The offsets that a topic partition holds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Watermarks {
    pub partition: i32,
    /// The first.
    pub low: i64,
    /// After the last.
    pub high: i64,
}

/// Records that are gone before they were read.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Gap {
    pub partition: i32,
    next: i64,
    marks: Option<Watermarks>,
}

impl fmt::Display for Gap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Gap {
            partition, next, ..
        } = self;
        write!(
            f,
            "partition {partition} is to be read from offset {next} on, "
        )?;
        match self.marks {
            Some(Watermarks { low, high, .. }) => write!(f, "but holds {low} to {high}"),
            None => f.write_str("but isn't there any more"),
        }
    }
}

/// The offset of the next record by partition.
#[derive(Debug, Default)]
pub struct Places {
    next: BTreeMap<i32, i64>,
    /// Whether the topic was read before.
    begun: bool,
    /// Partitions with a gap, which aren't read.
    stopped: BTreeSet<i32>,
}

impl Places {
    /// The places of a position: an array with the offset for each partition.
    pub fn new(position: Option<&Value>) -> anyhow::Result<Self> {
        let Some(position) = position else {
            return Ok(Places::default());
        };
        let offsets = position["offsets"]
            .as_array()
            .with_context(|| format!("`{position}` isn't a position in a topic"))?;
        let next = (0..).zip(offsets);
        let next = next.filter_map(|(partition, offset)| Some((partition, offset.as_i64()?)));
        Ok(Places {
            next: next.collect(),
            begun: true,
            stopped: BTreeSet::new(),
        })
    }

    /// The position from which [`Places::new`] goes on.
    pub fn position(&self) -> Value {
        let partitions = self.next.keys().last().map_or(0, |last| last + 1);
        let offsets: Vec<_> = (0..partitions)
            .map(|partition| self.next.get(&partition))
            .collect();
        json!({"offsets": offsets})
    }

    /// Whether the topic was read before.
    pub fn begun(&self) -> bool {
        self.begun
    }

    /// Number of partitions.
    pub fn len(&self) -> usize {
        self.next.len()
    }

    /// Adds a partition that isn't known yet; whether it wasn't. One that is begun at its end is
    /// begun so many offsets before it.
    pub fn add(&mut self, marks: &Watermarks, start: Start, last: i64) -> bool {
        if self.next.contains_key(&marks.partition) {
            return false;
        }
        let offset = match start {
            Start::Earliest => marks.low,
            Start::Latest => marks.high.saturating_sub(last).max(marks.low),
        };
        self.next.insert(marks.partition, offset);
        self.begun = true;
        true
    }

    /// All partitions that are known.
    pub fn partitions(&self) -> Vec<i32> {
        self.next.keys().copied().collect()
    }

    /// What is missing in a partition that holds this; none holds anything where it is gone.
    pub fn gap(&self, partition: i32, marks: Option<&Watermarks>) -> Option<Gap> {
        let next = self.next.get(&partition).copied()?;
        let there = marks.is_some_and(|marks| (marks.low..=marks.high).contains(&next));
        (!there).then_some(Gap {
            partition,
            next,
            marks: marks.copied(),
        })
    }

    /// Goes on with what there is.
    pub fn skip(&mut self, gap: &Gap) {
        match gap.marks {
            Some(marks) => self.next.insert(gap.partition, marks.low),
            None => self.next.remove(&gap.partition),
        };
    }

    /// Stops reading a partition; whether it was read.
    pub fn stop(&mut self, partition: i32) -> bool {
        self.stopped.insert(partition)
    }

    /// Reads a partition again; whether it was stopped.
    pub fn resume(&mut self, partition: i32) -> bool {
        self.stopped.remove(&partition)
    }

    /// Takes note of a record; whether it is one that comes next.
    pub fn advance(&mut self, (partition, offset): (i32, i64)) -> bool {
        match self.next.get_mut(&partition) {
            Some(next) if offset >= *next => {
                *next = offset + 1;
                true
            }
            // Fetched before the consumer was sent elsewhere.
            _ => false,
        }
    }

    /// Takes note that there is no record before this offset that wasn't read; whether that is new.
    pub fn pass(&mut self, partition: i32, to: i64) -> bool {
        match self.next.get_mut(&partition) {
            Some(next) if to > *next && !self.stopped.contains(&partition) => {
                *next = to;
                true
            }
            _ => false,
        }
    }

    /// What is to be read, and from where.
    pub fn list(&self, topic: &str) -> KafkaResult<TopicPartitionList> {
        let mut list = TopicPartitionList::new();
        for (partition, offset) in &self.next {
            if !self.stopped.contains(partition) {
                list.add_partition_offset(topic, *partition, Offset::Offset(*offset))?;
            }
        }
        Ok(list)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn marks(partition: i32, low: i64, high: i64) -> Watermarks {
        Watermarks {
            partition,
            low,
            high,
        }
    }

    #[test]
    fn a_position_is_gone_on_from() {
        let mut places = Places::default();
        assert!(!places.begun());
        assert!(places.add(&marks(0, 3, 9), Start::Latest, 0));
        assert!(places.add(&marks(2, 5, 9), Start::Earliest, 0));
        assert!(!places.add(&marks(0, 3, 10), Start::Latest, 0));
        assert_eq!(places.position(), json!({"offsets": [9, null, 5]}));
        assert!(places.advance((2, 7)));
        assert!(!places.advance((2, 7)), "it was read already");
        assert!(!places.advance((1, 0)), "it isn't read at all");
        assert!(
            places.pass(0, 9) | places.pass(0, 11),
            "a marker at 9 and 10"
        );
        assert!(!places.pass(0, 11) && !places.pass(2, 3) && !places.pass(1, 4));
        assert_eq!(places.position(), json!({"offsets": [11, null, 8]}));
        let again = Places::new(Some(&places.position())).unwrap();
        assert_eq!(again.position(), json!({"offsets": [11, null, 8]}));
        assert!(Places::new(Some(&json!({"next": 5}))).is_err());
    }

    #[test]
    fn the_last_records_may_be_those_that_are_there() {
        let mut places = Places::default();
        assert!(places.add(&marks(0, 3, 9), Start::Latest, 4));
        assert!(places.add(&marks(1, 3, 9), Start::Latest, 100));
        assert!(places.add(&marks(2, 3, 9), Start::Earliest, 4));
        assert_eq!(places.position(), json!({"offsets": [5, 3, 3]}));
    }

    #[test]
    fn what_is_gone_is_a_gap() {
        let mut places = Places::new(Some(&json!({"offsets": [5]}))).unwrap();
        let gap = |places: &Places, low, high| {
            let gap = places.gap(0, Some(&marks(0, low, high)));
            gap.map(|gap| gap.to_string())
        };
        assert_eq!(gap(&places, 0, 5), None);
        assert_eq!(gap(&places, 5, 5), None);
        let says = "partition 0 is to be read from offset 5 on, but holds";
        assert_eq!(gap(&places, 6, 9), Some(format!("{says} 6 to 9")));
        assert_eq!(gap(&places, 0, 4), Some(format!("{says} 0 to 4")));
        assert!(places.stop(0) && !places.stop(0));
        assert!(!places.pass(0, 9), "it isn't read");
        assert_eq!(places.list("t").unwrap().count(), 0);

        let retention = places.gap(0, Some(&marks(0, 6, 9))).unwrap();
        places.skip(&retention);
        assert_eq!(gap(&places, 6, 9), None);
        let gone = places.gap(0, None).unwrap();
        places.skip(&gone);
        assert!(places.partitions().is_empty());
    }
}
