//! Where the source is: its place in the pass under way, and the highest value of a field so far.

use std::cmp::Ordering;

use millstream_api::source::http::Poll;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    pointer::{self, Pointer},
    source::http::paging::{Page, Place},
};

/// Kafka keeps 4,096 bytes beside an offset, the ingest stage's own among them.
const MAX_BYTES: usize = 3_800;

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
}

impl Position {
    fn see(&mut self, field: &Pointer, record: &[u8]) {
        let Some(value) = field.find(record).and_then(pointer::scalar_text) else {
            return;
        };
        let before = self.highest.as_ref().or(self.since.as_ref());
        if before.is_none_or(|before| compare(&value, before) == Ordering::Greater) {
            self.highest = Some(value);
        }
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

    /// Moves behind the page; the position to keep, and whether that is the true one.
    pub fn pass(&mut self, page: &Page) -> (Value, bool) {
        let position = &mut self.position;
        if let Some(field) = &self.field {
            for record in &page.records {
                position.see(field, record);
            }
        }
        position.at = page.next.clone();
        if position.at.is_none() && self.polled {
            position.since = position.highest.take().or(position.since.take());
        } else if position.at.is_none() {
            position.at = Some(Place::End);
        }
        let now = serde_json::json!(self.position);
        let fits = now.to_string().len() <= MAX_BYTES;
        if fits {
            self.kept = now;
        }
        (self.kept.clone(), fits)
    }

    /// Goes back to the first page of the pass.
    pub fn start_over(&mut self) {
        self.position.at = None;
    }
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

    fn poll(initial: Option<&str>) -> Poll {
        let incremental = json!({"field": "/at", "parameter": "since", "initial": initial});
        serde_json::from_value(json!({"interval": "1s", "incremental": incremental})).unwrap()
    }

    #[test]
    fn a_pass_asks_with_one_value_and_the_next_one_with_the_highest() {
        let mut progress = Progress::new(None, Some(&poll(Some("5"))));
        assert_eq!(progress.position.since.as_deref(), Some("5"));
        let first = page(
            &[json!({"at": 9}), json!({"at": 10}), json!({"at": 7})],
            Some(Place::Page(2)),
        );
        let (position, _) = progress.pass(&first);
        assert_eq!(
            position,
            json!({"at": {"page": 2}, "since": "5", "highest": "10"})
        );

        // Another worker goes on.
        let mut progress = Progress::new(Some(&position), Some(&poll(Some("5"))));
        let last = page(&[json!({"at": "8"}), json!({"at": null}), json!({})], None);
        assert_eq!(progress.pass(&last).0, json!({"since": "10"}));
        assert_eq!(progress.pass(&page(&[], None)).0, json!({"since": "10"}));
    }

    #[test]
    fn a_source_that_is_read_once_ends() {
        let mut progress = Progress::new(None, None);
        assert_eq!(progress.pass(&page(&[], None)).0, json!({"at": "end"}));
    }

    #[test]
    fn what_is_too_large_for_kafka_is_not_kept() {
        let mut progress = Progress::new(None, None);
        let (short, fits) = progress.pass(&page(&[], Some(Place::Cursor("short".into()))));
        assert!(fits);
        let long = page(&[], Some(Place::Cursor("x".repeat(MAX_BYTES))));
        assert_eq!(progress.pass(&long), (short, false));
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
