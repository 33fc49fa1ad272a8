//! RSVPs are counted by venue: the SQL of the meetup pipeline.

use std::collections::BTreeMap;

use millstream_api::cql::CqlType;
use scylla::value::CqlValue;

use super::{JobName, Mark, Record, TableJob, rsvps::Rsvps};
use crate::verify::{Expected, Row};

const SCHEMA: &str = r#"
    rsvp_id  BIGINT,
    response TEXT,
    venue    STRUCT<venue_id BIGINT, venue_name TEXT, lat TEXT, lon TEXT>,
    "group"  STRUCT<group_city TEXT>"#;

const SQL: &str = r#"
    SELECT venue.venue_id                  AS venue_id,
           count(*)                        AS count,
           last_value("group".group_city)  AS group_city,
           last_value(venue.lat)           AS lat,
           last_value(venue.lon)           AS lon,
           last_value(venue.venue_name)    AS venue_name
    FROM records
    WHERE venue.venue_id IS NOT NULL
    GROUP BY venue.venue_id"#;

pub struct Counts {
    rsvps: Rsvps,
}

impl Counts {
    /// RSVPs for so many venues; the same seed gives the same.
    pub fn new(seed: u64, venues: u64) -> Self {
        let rsvps = Rsvps { seed, venues };
        Counts { rsvps }
    }
}

impl TableJob for Counts {
    fn name(&self) -> JobName {
        JobName::Counts
    }

    fn schema(&self) -> &'static str {
        SCHEMA
    }

    fn sql(&self) -> &'static str {
        SQL
    }

    fn columns(&self) -> Vec<(&'static str, CqlType)> {
        let texts = ["group_city", "lat", "lon", "venue_name"];
        let texts = texts.map(|name| (name, CqlType::Text));
        let numbers = [("venue_id", CqlType::BigInt), ("count", CqlType::BigInt)];
        numbers.into_iter().chain(texts).collect()
    }

    fn has_groups(&self) -> bool {
        true
    }

    fn records(&self) -> Box<dyn Iterator<Item = Record> + Send> {
        let rsvps = self.rsvps;
        let mut counts = BTreeMap::<u64, i64>::new();
        Box::new((0..).map(move |index| {
            let venue = rsvps.venue(index);
            let count = counts.entry(venue).or_default();
            *count += 1;
            Record {
                key: venue.to_string(),
                json: rsvps.json(index),
                mark: Mark {
                    key: CqlValue::BigInt(venue.cast_signed()),
                    at_least: Some(*count),
                },
            }
        }))
    }

    fn expected(&self, records: u64) -> Box<dyn Expected> {
        let mut counts = BTreeMap::<u64, u64>::new();
        for index in 0..records {
            *counts.entry(self.rsvps.venue(index)).or_default() += 1;
        }
        Box::new(Rows {
            rsvps: self.rsvps,
            counts: counts.into_iter().collect(),
        })
    }
}

struct Rows {
    rsvps: Rsvps,
    /// Venues and their counts, by venue.
    counts: Vec<(u64, u64)>,
}

impl Expected for Rows {
    fn len(&self) -> usize {
        self.counts.len()
    }

    fn place(&self, key: &str) -> Option<usize> {
        let venue: u64 = key.parse().ok()?;
        self.counts
            .binary_search_by_key(&venue, |(venue, _)| *venue)
            .ok()
    }

    fn row(&self, place: usize) -> Row {
        let (venue, count) = self.counts[place];
        let facts = self.rsvps.facts(venue);
        [venue.to_string(), count.to_string()]
            .into_iter()
            .chain(facts)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_mark_of_a_venue_is_its_count() {
        let job = Counts::new(1, 20);
        let mut last = BTreeMap::new();
        for record in job.records().take(1_000) {
            last.insert(record.key, record.mark.at_least.unwrap());
        }
        let expected = job.expected(1_000);
        assert_eq!(expected.len(), last.len());
        for (venue, count) in last {
            let row = expected.row(expected.place(&venue).unwrap());
            assert_eq!(row[..2], [venue, count.to_string()]);
        }
        assert_eq!(expected.place("20"), None);
    }
}
