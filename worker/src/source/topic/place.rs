//! Where each partition of the source's topic is read.

use std::{collections::BTreeMap, fmt};

use anyhow::Context;
use millstream_api::{condition::reason, source::Start};
use rdkafka::{Offset, TopicPartitionList, error::KafkaResult};
use serde_json::{Value, json};

/// What a position may take of the 4,096 bytes that Kafka keeps beside an offset. Of a topic with many
/// partitions the last records aren't kept: their offsets come first.
const MAX_BYTES: usize = 3_500;

/// The offsets that a topic partition holds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Watermarks {
    pub partition: i32,
    /// The first.
    pub low: i64,
    /// After the last.
    pub high: i64,
    /// Whether there is a record that is newer than the last one that was read, though all offsets
    /// are before that: then it is another log.
    pub newer: bool,
}

/// Records that are gone before they were read.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Gap {
    pub partition: i32,
    next: i64,
    marks: Option<Watermarks>,
    /// Whether there are other records than those that were read.
    anew: bool,
}

impl Gap {
    /// Why they are gone.
    pub fn reason(&self) -> &'static str {
        match self.marks {
            // A partition goes only with its topic; an offset of 0 at the end is that of a new one.
            None | Some(Watermarks { high: 0, .. }) => reason::TOPIC_RECREATED,
            Some(marks) if self.anew || marks.newer => reason::TOPIC_RECREATED,
            Some(marks) if self.next < marks.low => reason::RETENTION_PASSED,
            Some(_) => reason::LOG_TRUNCATED,
        }
    }
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
            Some(_) if self.anew => {
                f.write_str("but the records before that aren't those that were read, or are another Kafka cluster's")
            }
            Some(Watermarks { low, high, .. }) => write!(f, "but holds {low} to {high}"),
            None => f.write_str("but isn't there any more"),
        }
    }
}

/// The last record that was read of a partition. One of another time at its offset is another record,
/// and so the log is another.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Last {
    offset: i64,
    /// Milliseconds since 1970.
    timestamp: i64,
}

/// What a record is to a partition.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Taken {
    /// It comes next.
    Next,
    /// It was read before, or isn't to be read.
    Known,
    /// It isn't the one that was read before, though it has its place.
    Another,
}

/// The place in a partition.
#[derive(Debug)]
struct Place {
    /// The offset of the next record.
    next: i64,
    last: Option<Last>,
    /// Whether the last record is read again first, to see whether the log is still the same.
    doubted: bool,
    /// Whether the log is another one.
    anew: bool,
    /// Whether it isn't read any more, as it has a gap.
    stopped: bool,
}

impl Place {
    fn new(next: i64, last: Option<Last>) -> Self {
        Place {
            next,
            last,
            doubted: last.is_some(),
            anew: false,
            stopped: false,
        }
    }

    /// From where on it is to be read.
    fn reads_from(&self) -> i64 {
        let last = self.last.filter(|_| self.doubted);
        last.map_or(self.next, |last| last.offset)
    }

    fn take(&mut self, offset: i64, timestamp: Option<i64>) -> Taken {
        if self.anew || offset < self.reads_from() {
            // Fetched before the consumer was sent elsewhere.
            return Taken::Known;
        }
        if let Some(last) = self.last.filter(|_| self.doubted) {
            self.doubted = false;
            // Between the last record and the next there was none. Where one that comes later is the
            // first that is found, compaction may have removed the last one: that tells nothing.
            self.anew = match offset == last.offset {
                true => timestamp != Some(last.timestamp),
                false => offset < self.next,
            };
        }
        if self.anew {
            return Taken::Another;
        }
        if offset < self.next {
            return Taken::Known;
        }
        self.next = offset + 1;
        self.last = timestamp.map(|timestamp| Last { offset, timestamp });
        Taken::Next
    }
}

/// The places in all partitions.
#[derive(Debug, Default)]
pub struct Places {
    places: BTreeMap<i32, Place>,
    /// Whether the topic was read before.
    begun: bool,
    /// The id of the Kafka cluster that they are places of, as far as it is known.
    cluster: Option<String>,
    /// Another one that is read, while places of the former are left.
    entered: Option<String>,
}

impl Places {
    /// The places of a position: an array with the offset for each partition, one with the last record
    /// before it, where that is known: how far before, and its timestamp; and the cluster's id.
    pub fn new(position: Option<&Value>) -> anyhow::Result<Self> {
        let Some(position) = position else {
            return Ok(Places::default());
        };
        let offsets = position["offsets"]
            .as_array()
            .with_context(|| format!("`{position}` isn't a position in a topic"))?;
        let places = (0..).zip(offsets).enumerate();
        let places = places.filter_map(|(index, (partition, offset))| {
            let next = offset.as_i64()?;
            let last = &position["last"][index];
            let last = last[0].as_i64().zip(last[1].as_i64());
            let last = last.map(|(before, timestamp)| Last {
                offset: next - before,
                timestamp,
            });
            Some((partition, Place::new(next, last)))
        });
        Ok(Places {
            places: places.collect(),
            begun: true,
            cluster: position["cluster"].as_str().map(Into::into),
            entered: None,
        })
    }

    /// The position from which [`Places::new`] goes on.
    pub fn position(&self) -> Value {
        let partitions = self.places.keys().last().map_or(0, |last| last + 1);
        let places = (0..partitions).map(|partition| self.places.get(&partition));
        let offsets: Vec<_> = places.clone().map(|place| place.map(|p| p.next)).collect();
        let last = places.map(|place| {
            let place = place?;
            let last = place.last?;
            Some([place.next - last.offset, last.timestamp])
        });
        let last: Vec<_> = last.collect();
        let mut position = json!({"offsets": offsets});
        if let Some(cluster) = &self.cluster {
            position["cluster"] = json!(cluster);
        }
        let mut whole = position.clone();
        whole["last"] = json!(last);
        match last.iter().any(Option::is_some) && whole.to_string().len() <= MAX_BYTES {
            true => whole,
            false => position,
        }
    }

    /// Takes note of the cluster that is read: another one has other logs.
    pub fn enter(&mut self, cluster: String) {
        if self.cluster.as_ref().is_some_and(|known| *known != cluster) {
            self.places.values_mut().for_each(|place| place.anew = true);
            self.entered = Some(cluster);
        } else {
            self.cluster = Some(cluster);
        }
    }

    /// Whether the topic was read before.
    pub fn begun(&self) -> bool {
        self.begun
    }

    /// Number of partitions.
    pub fn len(&self) -> usize {
        self.places.len()
    }

    /// Adds a partition that isn't known yet; whether it wasn't. One that is begun at its end is
    /// begun so many offsets before it.
    pub fn add(&mut self, marks: &Watermarks, start: Start, last: i64) -> bool {
        if let Some(place) = self.places.get_mut(&marks.partition) {
            // Retention has removed it.
            place.doubted = place.doubted && place.reads_from() >= marks.low;
            return false;
        }
        let offset = match start {
            Start::Earliest => marks.low,
            Start::Latest => marks.high.saturating_sub(last).max(marks.low),
        };
        self.places
            .insert(marks.partition, Place::new(offset, None));
        self.begun = true;
        true
    }

    /// All partitions that are known.
    pub fn partitions(&self) -> Vec<i32> {
        self.places.keys().copied().collect()
    }

    /// The timestamp of the last record that was read of a partition, if that ends before it.
    pub fn beyond(&self, partition: i32, high: i64) -> Option<i64> {
        let place = self.places.get(&partition)?;
        let last = place.last.filter(|_| place.next > high)?;
        Some(last.timestamp)
    }

    /// What is missing in a partition that holds this; none holds anything where it is gone.
    pub fn gap(&self, partition: i32, marks: Option<&Watermarks>) -> Option<Gap> {
        let Place { next, anew, .. } = *self.places.get(&partition)?;
        let there = marks.is_some_and(|marks| (marks.low..=marks.high).contains(&next));
        (anew || !there).then_some(Gap {
            partition,
            next,
            marks: marks.copied(),
            anew,
        })
    }

    /// Goes on with what there is.
    pub fn skip(&mut self, gap: &Gap) {
        match gap.marks {
            Some(marks) => {
                let place = Place::new(marks.low, None);
                self.places.insert(gap.partition, place)
            }
            None => self.places.remove(&gap.partition),
        };
        if self.places.values().all(|place| !place.anew) {
            self.cluster = self.entered.take().or(self.cluster.take());
        }
    }

    /// Stops reading a partition; whether it was read.
    pub fn stop(&mut self, partition: i32) -> bool {
        let Some(place) = self.places.get_mut(&partition) else {
            return false;
        };
        // Where its offset is there again, it may be another log's.
        place.doubted = place.last.is_some();
        !std::mem::replace(&mut place.stopped, true)
    }

    /// The log may be another one: the last records are read again first.
    pub fn doubt(&mut self) {
        for place in self.places.values_mut() {
            place.doubted = place.last.is_some();
        }
    }

    /// Reads a partition again; whether it was stopped.
    pub fn resume(&mut self, partition: i32) -> bool {
        let place = self.places.get_mut(&partition);
        place.is_some_and(|place| std::mem::take(&mut place.stopped))
    }

    /// Takes note of a record and its timestamp, and says what it is.
    pub fn take(&mut self, (partition, offset): (i32, i64), timestamp: Option<i64>) -> Taken {
        let place = self.places.get_mut(&partition);
        place.map_or(Taken::Known, |place| place.take(offset, timestamp))
    }

    /// Takes note that there is no record before this offset that wasn't read; whether that is new.
    pub fn pass(&mut self, partition: i32, to: i64) -> bool {
        match self.places.get_mut(&partition) {
            Some(place) if to > place.next && !place.stopped && !place.anew => {
                place.next = to;
                true
            }
            _ => false,
        }
    }

    /// What is to be read, and from where.
    pub fn list(&self, topic: &str) -> KafkaResult<TopicPartitionList> {
        let mut list = TopicPartitionList::new();
        for (partition, place) in &self.places {
            if !place.stopped {
                list.add_partition_offset(topic, *partition, Offset::Offset(place.reads_from()))?;
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
            newer: false,
        }
    }

    /// Takes a record of time 7; whether it comes next.
    fn advance(places: &mut Places, at: (i32, i64)) -> bool {
        places.take(at, Some(7)) == Taken::Next
    }

    /// From where each partition is read.
    fn read_from(places: &Places) -> Vec<Offset> {
        let list = places.list("t").unwrap();
        list.elements().iter().map(|at| at.offset()).collect()
    }

    #[test]
    fn a_position_is_gone_on_from() {
        let mut places = Places::default();
        assert!(!places.begun());
        assert!(places.add(&marks(0, 3, 9), Start::Latest, 0));
        assert!(places.add(&marks(2, 5, 9), Start::Earliest, 0));
        assert!(!places.add(&marks(0, 3, 10), Start::Latest, 0));
        assert_eq!(places.position(), json!({"offsets": [9, null, 5]}));
        assert!(advance(&mut places, (2, 7)));
        assert!(!advance(&mut places, (2, 7)), "it was read already");
        assert!(!advance(&mut places, (1, 0)), "it isn't read at all");
        assert!(
            places.pass(0, 9) | places.pass(0, 11),
            "a marker at 9 and 10"
        );
        assert!(!places.pass(0, 11) && !places.pass(2, 3) && !places.pass(1, 4));
        let position = json!({"offsets": [11, null, 8], "last": [null, null, [1, 7]]});
        assert_eq!(places.position(), position);
        let again = Places::new(Some(&position)).unwrap();
        assert_eq!(again.position(), position);
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

    /// A partition of which the records up to offset 5 were read, and passed what came then up to 8.
    fn resumed() -> Places {
        let position = json!({"offsets": [8], "last": [[3, 7]]});
        let mut places = Places::new(Some(&position)).unwrap();
        assert!(!places.add(&marks(0, 0, 20), Start::Earliest, 0));
        assert_eq!(read_from(&places), [Offset::Offset(5)]);
        places
    }

    #[test]
    fn a_log_is_known_again_by_the_last_record() {
        let mut places = resumed();
        assert_eq!(places.take((0, 5), Some(7)), Taken::Known);
        assert_eq!(read_from(&places), [Offset::Offset(8)]);
        assert_eq!(places.take((0, 9), Some(6)), Taken::Next);
        assert_eq!(
            places.position(),
            json!({"offsets": [10], "last": [[1, 6]]})
        );
        assert_eq!(places.take((0, 10), None), Taken::Next);
        assert_eq!(
            places.position(),
            json!({"offsets": [11]}),
            "it has no time"
        );

        assert_eq!(places.take((0, 12), Some(8)), Taken::Next);
        places.doubt();
        assert_eq!(read_from(&places), [Offset::Offset(12)]);
        assert_eq!(places.take((0, 12), Some(9)), Taken::Another);

        let mut compacted = resumed();
        assert_eq!(compacted.take((0, 8), Some(9)), Taken::Next);
        let mut retained = resumed();
        retained.add(&marks(0, 6, 20), Start::Earliest, 0);
        assert_eq!(read_from(&retained), [Offset::Offset(8)]);
        let old = Places::new(Some(&json!({"offsets": [8]}))).unwrap();
        assert_eq!(read_from(&old), [Offset::Offset(8)]);
    }

    #[test]
    fn another_record_in_the_place_of_the_last_one_tells_of_another_log() {
        for (offset, timestamp) in [(5, Some(8)), (5, None), (6, Some(7))] {
            let mut places = resumed();
            assert_eq!(places.take((0, offset), timestamp), Taken::Another);
            assert_eq!(places.take((0, 9), Some(9)), Taken::Known, "it isn't read");
            assert!(!places.pass(0, 9));
            let marks = marks(0, 0, 20);
            let gap = places.gap(0, Some(&marks)).unwrap();
            assert_eq!(gap.reason(), reason::TOPIC_RECREATED);
            let position = json!({"offsets": [8], "last": [[3, 7]]});
            assert_eq!(
                places.position(),
                position,
                "so the next worker sees it too"
            );
            places.skip(&gap);
            assert_eq!(places.position(), json!({"offsets": [0]}));
            assert_eq!(places.gap(0, Some(&marks)), None);
        }
    }

    #[test]
    fn another_cluster_has_other_logs() {
        let kept = json!({"offsets": [8, 3], "cluster": "A"});
        let marks = [marks(0, 0, 20), marks(1, 2, 9)];
        let mut places = Places::new(Some(&kept)).unwrap();
        let gaps = |places: &Places| {
            let gaps = marks
                .iter()
                .map(|marks| places.gap(marks.partition, Some(marks)));
            gaps.collect::<Vec<_>>()
        };
        places.enter("A".into());
        assert_eq!(gaps(&places), [None, None]);
        assert_eq!(places.position(), kept);

        places.enter("B".into());
        for gap in gaps(&places) {
            assert_eq!(
                places.position()["cluster"],
                "A",
                "so the next worker sees it too"
            );
            places.skip(&gap.unwrap());
        }
        places.enter("B".into());
        assert_eq!(gaps(&places), [None, None]);
        assert_eq!(
            places.position(),
            json!({"offsets": [0, 2], "cluster": "B"})
        );

        let mut unknown = Places::new(Some(&json!({"offsets": [8, 3]}))).unwrap();
        unknown.enter("A".into());
        assert_eq!(gaps(&unknown), [None, None]);
        assert_eq!(unknown.position(), kept);
    }

    #[test]
    fn the_reason_of_a_gap() {
        let reason = |marks: Option<Watermarks>| resumed().gap(0, marks.as_ref()).unwrap().reason();
        let newer = Watermarks {
            newer: true,
            ..marks(0, 0, 7)
        };
        assert_eq!(reason(Some(marks(0, 9, 20))), reason::RETENTION_PASSED);
        assert_eq!(reason(Some(marks(0, 0, 7))), reason::LOG_TRUNCATED);
        assert_eq!(reason(Some(newer)), reason::TOPIC_RECREATED);
        assert_eq!(reason(Some(marks(0, 0, 0))), reason::TOPIC_RECREATED);
        assert_eq!(reason(None), reason::TOPIC_RECREATED);
        assert_eq!(resumed().beyond(0, 7), Some(7));
        assert_eq!(resumed().beyond(0, 8), None);
    }

    #[test]
    fn the_offsets_of_many_partitions_come_before_their_last_records() {
        let mut places = Places::default();
        for partition in 0..250 {
            places.add(&marks(partition, 0, 0), Start::Earliest, 0);
            let at = (partition, 9_999_999_999);
            assert_eq!(places.take(at, Some(1_700_000_000_000)), Taken::Next);
        }
        let position = places.position();
        assert_eq!(position["last"], Value::Null);
        assert!(position.to_string().len() <= MAX_BYTES);
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
