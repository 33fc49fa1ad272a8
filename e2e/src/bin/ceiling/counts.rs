//! RSVPs are counted by venue, in a map in memory: a program that is started again would have to
//! read the topic from its beginning.

use std::{
    borrow::Cow,
    collections::HashMap,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use futures::{FutureExt, StreamExt, TryStreamExt, stream};
use millstream_api::worker::ProcessConfig;
use rdkafka::{Message, consumer::Consumer, message::BorrowedMessage};
use scylla::SerializeRow;
use serde::Deserialize;

use crate::{
    cassandra::{BATCH, IN_FLIGHT, Writer},
    consumer,
};

/// What has changed is written when no record is left to read, and at the latest after this.
const WRITE_AFTER: Duration = Duration::from_secs(1);
const COLUMNS: [&str; 6] = [
    "venue_id",
    "count",
    "group_city",
    "lat",
    "lon",
    "venue_name",
];

pub async fn run(config: &ProcessConfig, credentials: &Path) -> Result<()> {
    let writer = Writer::connect(config, credentials, &COLUMNS).await?;
    let consumer = consumer(config)?;
    let mut records = consumer.stream();
    let mut counts = Counts {
        base: config.topic.timestamp_base,
        ..Counts::default()
    };
    loop {
        counts.add(&records.next().await.context("no more records")??)?;
        let since = Instant::now();
        while since.elapsed() < WRITE_AFTER {
            let Some(record) = records.next().now_or_never() else {
                break;
            };
            counts.add(&record.context("no more records")??)?;
        }
        let batches = stream::iter(counts.changed.chunks(BATCH)).map(|venues| {
            let rows = venues.iter().map(|venue| &counts.rows[venue]);
            writer.write(rows.collect())
        });
        batches
            .buffer_unordered(IN_FLIGHT)
            .try_collect::<()>()
            .await?;
        counts.changed.clear();
        for (partition, offset) in counts.last.drain() {
            consumer.store_offset(&config.topic.name, partition, offset)?;
        }
        counts.turn += 1;
    }
}

#[derive(Default)]
struct Counts {
    rows: HashMap<i64, Row>,
    /// Venues whose row isn't written yet.
    changed: Vec<i64>,
    /// The last offset of each partition.
    last: HashMap<i32, i64>,
    /// Rows have been written so often.
    turn: u64,
    base: i64,
}

#[derive(SerializeRow, Default)]
struct Row {
    venue_id: i64,
    count: i64,
    group_city: String,
    lat: String,
    lon: String,
    venue_name: String,
    written: i64,
    /// The turn in which the row changed last.
    #[scylla(skip)]
    changed: Option<u64>,
}

impl Counts {
    fn add(&mut self, record: &BorrowedMessage<'_>) -> Result<()> {
        let rsvp: Rsvp = serde_json::from_slice(record.payload().context("no payload")?)?;
        let venue = rsvp.venue;
        let row = self.rows.entry(venue.venue_id).or_default();
        row.venue_id = venue.venue_id;
        row.count += 1;
        set(&mut row.group_city, &rsvp.group.group_city);
        set(&mut row.lat, &venue.lat.to_string());
        set(&mut row.lon, &venue.lon.to_string());
        set(&mut row.venue_name, &venue.venue_name);
        row.written = self.base + record.offset();
        if row.changed.replace(self.turn) != Some(self.turn) {
            self.changed.push(venue.venue_id);
        }
        self.last.insert(record.partition(), record.offset());
        Ok(())
    }
}

/// Keeps the text's memory.
fn set(text: &mut String, to: &str) {
    if text != to {
        text.clear();
        text.push_str(to);
    }
}

#[derive(Deserialize)]
struct Rsvp<'a> {
    #[serde(borrow)]
    venue: Venue<'a>,
    #[serde(borrow)]
    group: Group<'a>,
}

#[derive(Deserialize)]
struct Venue<'a> {
    venue_id: i64,
    #[serde(borrow)]
    venue_name: Cow<'a, str>,
    lat: f64,
    lon: f64,
}

#[derive(Deserialize)]
struct Group<'a> {
    #[serde(borrow)]
    group_city: Cow<'a, str>,
}
