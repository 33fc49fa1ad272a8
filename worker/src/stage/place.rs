//! How far a sink has come in a topic partition.

use std::collections::BTreeMap;

/// A place in a partition. Offsets aren't always those of records: markers of transactions take some,
/// so do records of a transaction that was given up, and what is compacted away leaves holes as well.
/// What is acknowledged ends behind such holes: a log that holds nothing but them holds nothing that a
/// sink has to read, and retention may remove them.
#[derive(Debug, Default)]
pub struct Place {
    /// The offset after the last that was read; none before the first record.
    read: Option<i64>,
    acknowledged: Option<i64>,
    /// Offsets without records between those that were read and aren't acknowledged: from, to.
    holes: BTreeMap<i64, i64>,
}

impl Place {
    /// At the offset from which the partition is read; at its beginning where there is none.
    pub fn new(from: Option<i64>) -> Self {
        Place {
            read: from,
            acknowledged: from,
            holes: BTreeMap::new(),
        }
    }

    /// The offset before which there is nothing left to do; none before the first record.
    pub fn acknowledged(&self) -> Option<i64> {
        self.acknowledged
    }

    /// Takes note of a record that was read: there is none between it and the one before.
    pub fn read(&mut self, offset: i64) {
        self.pass(offset);
        self.read = Some(offset + 1);
    }

    /// Takes note that there is no record from what was read last up to this offset.
    pub fn pass(&mut self, to: i64) {
        if let Some(from) = self.read.filter(|from| *from < to) {
            self.holes.insert(from, to);
            self.read = Some(to);
            self.pass_holes();
        }
    }

    /// Takes note that all records before this offset are acknowledged.
    pub fn acknowledge(&mut self, next: i64) {
        self.acknowledged = Some(next);
        self.holes = self.holes.split_off(&next);
        self.pass_holes();
    }

    fn pass_holes(&mut self) {
        let hole = |place: &mut Self| place.holes.remove(&place.acknowledged?);
        while let Some(to) = hole(self) {
            self.acknowledged = Some(to);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(place: &mut Place, steps: &[(&str, i64)]) -> Option<i64> {
        for (step, offset) in steps {
            match *step {
                "read" => place.read(*offset),
                "pass" => place.pass(*offset),
                _ => place.acknowledge(*offset),
            }
        }
        place.acknowledged()
    }

    #[test]
    fn what_is_acknowledged_ends_behind_the_markers() {
        let mut place = Place::new(Some(5));
        assert_eq!(after(&mut place, &[("pass", 5)]), Some(5), "nothing there");
        assert_eq!(after(&mut place, &[("read", 5), ("read", 6)]), Some(5));
        assert_eq!(after(&mut place, &[("pass", 8)]), Some(5), "a marker");
        assert_eq!(after(&mut place, &[("done", 6)]), Some(6));
        assert_eq!(after(&mut place, &[("done", 7)]), Some(8));
        assert_eq!(after(&mut place, &[("pass", 9)]), Some(9), "another");
        assert_eq!(after(&mut place, &[("pass", 9)]), Some(9), "known");
        assert_eq!(place.holes.len(), 0);
    }

    #[test]
    fn what_is_read_and_not_acknowledged_is_never_passed() {
        let mut place = Place::new(Some(0));
        let steps = [("read", 0), ("read", 3), ("read", 4), ("pass", 7)];
        assert_eq!(after(&mut place, &steps), Some(0));
        assert_eq!(after(&mut place, &[("done", 1)]), Some(3), "1 and 2");
        let steps = [("read", 9), ("pass", 10), ("pass", 11)];
        assert_eq!(after(&mut place, &steps), Some(3));
        // A batch has many holes; the one at its end counts.
        assert_eq!(after(&mut place, &[("done", 5)]), Some(9), "5 to 8");
        assert_eq!(after(&mut place, &[("done", 10)]), Some(11));
        assert_eq!(place.holes.len(), 0);
    }

    #[test]
    fn a_sink_that_stops_at_a_record_stays_there() {
        let mut place = Place::new(Some(0));
        let steps = [("read", 0), ("read", 2), ("pass", 4), ("done", 2)];
        assert_eq!(after(&mut place, &steps), Some(2));
    }

    #[test]
    fn without_a_place_it_begins_with_the_first_record() {
        let mut place = Place::new(None);
        assert_eq!(after(&mut place, &[("pass", 4), ("read", 7)]), None);
        assert_eq!(after(&mut place, &[("pass", 9), ("done", 8)]), Some(9));
    }
}
