//! Where the source is: its place in the pass under way, the highest value of a field so far, and
//! which records had it: an API that gives records from a value on gives those again.

use std::{cmp::Ordering, collections::BTreeMap};

use millstream_api::source::http::Poll;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::{
    pointer::{self, Pointer},
    source::http::paging::{Page, Place},
};

/// Kafka keeps 4,096 bytes beside an offset, the ingest stage's own among them.
const MAX_BYTES: usize = 3_800;
/// What a hash takes there at most, and how often it came.
const HASH_BYTES: usize = 34;
/// So many hashes are held: a few megabytes.
const MAX_HASHES: usize = 100_000;
const SOME_AFTER_RESTART: &str = "Kafka has no room for which records have the highest value of poll.incremental.field, as they are so many; after a restart some of them come again";
const SOME_EACH_TIME: &str = "100,000 records or more have the highest value of poll.incremental.field; each poll gives those beyond again";

/// Hashes of records, and how often each came: records without an id may be alike.
type Hashes = BTreeMap<u64, u32>;

/// What is kept in Kafka.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
pub struct Position {
    /// The next page; none for the first one of a pass.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<Place>,
    /// The highest value before the pass, which its requests carry.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<String>,
    /// The highest value so far, where the pass found a higher one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    highest: Option<String>,
    /// The records with the value `since` that were given before the pass, and didn't come again yet.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    known: Hashes,
    /// The records of the pass with the highest value so far: what the next one is to know.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    seen: Hashes,
}

impl Position {
    /// Sees a record, and says whether it is one that the passes before didn't give.
    fn is_new(&mut self, field: &Pointer, record: &[u8]) -> bool {
        let Some(value) = field.find(record).and_then(pointer::scalar_text) else {
            return true;
        };
        let to = |other: Option<&String>| other.map(|other| compare(&value, other));
        let to_since = to(self.since.as_ref());
        let to_highest = to(self.highest.as_ref()).or(to_since);
        let to_highest = to_highest.unwrap_or(Ordering::Greater);
        let at_since = to_since == Some(Ordering::Equal);
        if to_highest == Ordering::Less && !at_since {
            return true;
        }
        let hash = hash(record);
        match to_highest {
            Ordering::Greater => {
                self.highest = Some(value);
                self.seen = Hashes::from([(hash, 1)]);
            }
            Ordering::Equal if self.seen.len() < MAX_HASHES => {
                *self.seen.entry(hash).or_default() += 1;
            }
            Ordering::Equal | Ordering::Less => {}
        }
        !(at_since && remove(&mut self.known, hash))
    }

    /// The pass has come to its end.
    fn turn(&mut self) {
        self.since = self.highest.take().or(self.since.take());
        // Those of before stay where the API gave none with this value.
        if !self.seen.is_empty() {
            self.known = std::mem::take(&mut self.seen);
        }
    }

    /// The position as Kafka has room for it: the place goes before the hashes. None where it is too
    /// large without any.
    fn to_keep(&self) -> Option<Value> {
        let mut kept = Position {
            at: self.at.clone(),
            since: self.since.clone(),
            highest: self.highest.clone(),
            ..Position::default()
        };
        let bytes = serde_json::json!(kept).to_string().len();
        let room = MAX_BYTES.checked_sub(bytes)?;
        // The names of both lists take less than one hash.
        let room = (room / HASH_BYTES).saturating_sub(1);
        kept.known = first(&self.known, room);
        kept.seen = first(&self.seen, room - kept.known.len());
        Some(serde_json::json!(kept))
    }
}

/// Follows the pages.
pub struct Progress {
    pub position: Position,
    polled: bool,
    field: Option<Pointer>,
    /// The last position that wasn't too large to be kept.
    kept: Value,
}

impl Progress {
    pub fn new(position: Option<&Value>, poll: Option<&Poll>) -> Self {
        let incremental = poll.and_then(|poll| poll.incremental.as_ref());
        let read = position.and_then(|position| Position::deserialize(position).ok());
        let mut position = read.unwrap_or_default();
        if position.since.is_none() {
            position.since = incremental.and_then(|incremental| incremental.initial.clone());
        }
        Progress {
            kept: serde_json::json!(position),
            position,
            polled: poll.is_some(),
            field: incremental.map(|incremental| Pointer::parse(&incremental.field)),
        }
    }

    /// Moves behind the page, and takes out of it what the passes before gave; the position to keep,
    /// and whether its place is the true one.
    pub fn pass(&mut self, page: &mut Page) -> (Value, bool) {
        let position = &mut self.position;
        if let Some(field) = &self.field {
            page.records.retain(|record| position.is_new(field, record));
        }
        position.at = page.next.clone();
        if position.at.is_none() && self.polled {
            position.turn();
        } else if position.at.is_none() {
            position.at = Some(Place::End);
        }
        let now = position.to_keep();
        let fits = now.is_some();
        if let Some(now) = now {
            self.kept = now;
        }
        (self.kept.clone(), fits)
    }

    /// Between two passes: which records the next one may give again, if any.
    pub fn forgets(&self) -> Option<&'static str> {
        let known = self.position.known.len();
        let kept = self.kept["known"].as_object().map_or(0, |kept| kept.len());
        match known {
            MAX_HASHES.. => Some(SOME_EACH_TIME),
            _ if known > kept => Some(SOME_AFTER_RESTART),
            _ => None,
        }
    }

    /// Goes back to the first page of the pass, which then sees all of its records again.
    pub fn start_over(&mut self) {
        let position = &mut self.position;
        position.at = None;
        position.highest = None;
        position.seen.clear();
    }
}

/// A hash that is kept, so it must be the same for ever.
fn hash(record: &[u8]) -> u64 {
    let digest = Sha256::digest(record);
    let bytes = digest[..8].iter();
    bytes.fold(0, |hash, byte| (hash << 8) | u64::from(*byte))
}

/// Takes out one of a record; false where there is none.
fn remove(hashes: &mut Hashes, hash: u64) -> bool {
    match hashes.get_mut(&hash) {
        Some(times) if *times > 1 => *times -= 1,
        Some(_) => {
            hashes.remove(&hash);
        }
        None => return false,
    }
    true
}

fn first(hashes: &Hashes, most: usize) -> Hashes {
    let hashes = hashes.iter().take(most);
    hashes.map(|(hash, times)| (*hash, *times)).collect()
}

/// Numbers by value, other texts by their characters.
fn compare(a: &str, b: &str) -> Ordering {
    if let (Ok(a), Ok(b)) = (a.parse::<i128>(), b.parse::<i128>()) {
        return a.cmp(&b);
    }
    match (decimal(a), decimal(b)) {
        (Some(a), Some(b)) => a.total_cmp(&b),
        _ => a.cmp(b),
    }
}

/// A number as JSON has it: neither `inf` nor `nan`.
fn decimal(text: &str) -> Option<f64> {
    let begins = text
        .trim_start_matches('-')
        .starts_with(|c: char| c.is_ascii_digit());
    text.parse().ok().filter(|_| begins)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use serde_json::json;

    use super::*;

    fn page(records: &[Value], next: Option<Place>) -> Page {
        let records = records.iter().map(|record| Bytes::from(record.to_string()));
        Page {
            records: records.collect(),
            next,
        }
    }

    /// Records in words: `9a` is the record `a` whose field is 9.
    fn records(words: &str) -> Vec<Value> {
        let record = |word: &str| {
            let at: u64 = word.trim_end_matches(char::is_alphabetic).parse().unwrap();
            json!({"at": at, "id": word.trim_start_matches(char::is_numeric)})
        };
        words.split_whitespace().map(record).collect()
    }

    fn hashes(records: &[Value]) -> Value {
        let mut hashes = Hashes::new();
        for record in records {
            *hashes
                .entry(hash(record.to_string().as_bytes()))
                .or_default() += 1;
        }
        json!(hashes)
    }

    fn poll(initial: Option<&str>) -> Poll {
        let incremental = json!({"field": "/at", "parameter": "since", "initial": initial});
        serde_json::from_value(json!({"interval": "1s", "incremental": incremental})).unwrap()
    }

    #[test]
    fn a_pass_asks_with_one_value_and_the_next_one_with_the_highest() {
        let mut progress = Progress::new(None, Some(&poll(Some("5"))));
        assert_eq!(progress.position.since.as_deref(), Some("5"));
        let ten = hashes(&[json!({"at": 10})]);
        let mut first = page(
            &[json!({"at": 9}), json!({"at": 10}), json!({"at": 7})],
            Some(Place::Page(2)),
        );
        let (position, _) = progress.pass(&mut first);
        assert_eq!(
            position,
            json!({"at": {"page": 2}, "since": "5", "highest": "10", "seen": ten})
        );

        // Another worker goes on.
        let mut progress = Progress::new(Some(&position), Some(&poll(Some("5"))));
        let mut last = page(&[json!({"at": "8"}), json!({"at": null}), json!({})], None);
        let after = json!({"since": "10", "known": ten});
        assert_eq!(progress.pass(&mut last).0, after);
        assert_eq!(progress.pass(&mut page(&[], None)).0, after);
        assert_eq!((first.records.len(), last.records.len()), (3, 3));
    }

    #[test]
    fn what_a_pass_gives_again_is_left_out() {
        let mut progress = Progress::new(None, Some(&poll(None)));
        for (answer, is_last, given) in [
            ("8a 9a 9", true, "8a 9a 9"),
            ("9a 9", true, ""),
            // A new one, and another one that is alike.
            ("9b 9 9a 9", true, "9b 9"),
            // An API that leaves them out.
            ("", true, ""),
            // Newest first, on two pages.
            ("10a 9b", false, "10a"),
            ("9 9a 9c 9", true, "9c"),
            ("10a 10b", false, "10b"),
            ("11a 10c", true, "11a 10c"),
            ("11a", true, ""),
        ] {
            let next = (!is_last).then_some(Place::Page(2));
            let mut answered = page(&records(answer), next);
            let (position, _) = progress.pass(&mut answered);
            assert_eq!(
                answered.records,
                page(&records(given), None).records,
                "{answer}"
            );
            // Each page has a worker of its own.
            progress = Progress::new(Some(&position), Some(&poll(None)));
        }
    }

    #[test]
    fn a_position_of_before_goes_on() {
        let position = json!({"since": "9"});
        let mut progress = Progress::new(Some(&position), Some(&poll(None)));
        for given in [1, 0] {
            let mut answered = page(&records("9a"), None);
            progress.pass(&mut answered);
            assert_eq!(answered.records.len(), given);
        }
    }

    #[test]
    fn a_pass_that_starts_over_counts_from_its_beginning() {
        let mut progress = Progress::new(None, Some(&poll(None)));
        progress.pass(&mut page(&records("9a"), None));
        progress.pass(&mut page(&records("10 9a"), Some(Place::Page(2))));
        progress.start_over();
        let (position, _) = progress.pass(&mut page(&records("10 9a"), None));
        assert_eq!(
            position,
            json!({"since": "10", "known": hashes(&records("10"))})
        );
    }

    #[test]
    fn records_that_kafka_has_no_room_for_are_known_until_a_restart() {
        let poll = poll(None);
        let mut progress = Progress::new(None, Some(&poll));
        let many: Vec<_> = (0..200).map(|id| json!({"at": 9, "id": id})).collect();
        let (position, fits) = progress.pass(&mut page(&many, None));
        assert!(fits && position.to_string().len() <= MAX_BYTES);
        assert_eq!(progress.forgets(), Some(SOME_AFTER_RESTART));
        let mut other = Progress::new(Some(&position), Some(&poll));
        for (progress, given) in [(&mut progress, 0..=0), (&mut other, 1..=100)] {
            let mut again = page(&many, None);
            progress.pass(&mut again);
            assert!(
                given.contains(&again.records.len()),
                "{}",
                again.records.len()
            );
        }

        // The place goes before them.
        let cursor = Place::Cursor("x".repeat(3_500));
        let (position, fits) = progress.pass(&mut page(&many, Some(cursor.clone())));
        assert!(fits && position.to_string().len() <= MAX_BYTES);
        assert_eq!(position["at"], json!(cursor));
        progress.pass(&mut page(&[json!({"at": 10})], None));
        assert_eq!(progress.forgets(), None);
    }

    #[test]
    fn a_source_that_is_read_once_ends() {
        let mut progress = Progress::new(None, None);
        assert_eq!(progress.pass(&mut page(&[], None)).0, json!({"at": "end"}));
    }

    #[test]
    fn what_is_too_large_for_kafka_is_not_kept() {
        let mut progress = Progress::new(None, None);
        let (short, fits) = progress.pass(&mut page(&[], Some(Place::Cursor("short".into()))));
        assert!(fits);
        let mut long = page(&[], Some(Place::Cursor("x".repeat(MAX_BYTES))));
        assert_eq!(progress.pass(&mut long), (short, false));
        assert_eq!(progress.position.at, long.next);
    }

    #[test]
    fn numbers_compare_by_value() {
        for (low, high) in [
            ("9", "10"),
            ("-10", "-9"),
            ("170141183460469231731", "170141183460469231732"),
            ("1.5", "1.25e1"),
            ("2026-01-09", "2026-01-10"),
            ("inf", "nan"),
        ] {
            assert_eq!(compare(low, high), Ordering::Less, "{low} {high}");
        }
    }
}
