//! Replay by date: all records are sorted into a file per date first, then given date by date.

use std::{
    collections::BTreeMap,
    fs::{File, OpenOptions},
    io::{self, BufReader, ErrorKind, Read, Write},
    path::PathBuf,
    time::Duration,
};

use chrono::{DateTime, Datelike, NaiveDate, NaiveDateTime};
use flate2::Crc;
use millstream_api::source::file::{Granularity, Replay};
use tokio::{sync::mpsc::Sender, time::Instant};

use super::{
    error::ReadError,
    local::BUFFER,
    scratch::{Scratch, Share},
    take::{Batches, Take},
};
use crate::{
    pointer::{self, Pointer},
    source::SourceBatch,
};

/// Held in memory before it is written to the disk.
const HELD_BYTES: usize = 8 * 1024 * 1024;
/// A century of days.
const MAX_DATES: usize = 36_525;
/// The date of what has none: it comes first, and is all rejected.
const NO_DATE: &str = "";

const RECORD: u8 = 0;
const REJECTED: u8 = 1;

/// The records of all files, by date.
pub struct Dates {
    event_time: Pointer,
    granularity: Granularity,
    interval: Option<Duration>,
    folder: tempfile::TempDir,
    share: Share,
    dates: BTreeMap<String, Date>,
    held: usize,
    /// Sum of what was read for the record that is taken now.
    read: [u8; 4],
    /// Closed where nobody waits for the records any more.
    out: Sender<SourceBatch>,
}

struct Date {
    path: PathBuf,
    held: Vec<u8>,
}

impl Dates {
    /// No records yet.
    pub fn new(
        replay: &Replay,
        scratch: &Scratch,
        out: Sender<SourceBatch>,
    ) -> Result<Self, ReadError> {
        let event_time = match replay.event_time.starts_with('/') {
            true => Pointer::parse(&replay.event_time),
            false => Pointer::parse(&format!(
                "/{}",
                replay.event_time.replace('~', "~0").replace('/', "~1")
            )),
        };
        Ok(Dates {
            event_time,
            granularity: replay.granularity,
            interval: replay.interval.map(Duration::from),
            folder: tempfile::tempdir()?,
            share: scratch.share(),
            dates: BTreeMap::new(),
            held: 0,
            read: [0; 4],
            out,
        })
    }

    fn date_of(&self, json: &[u8]) -> Result<String, String> {
        let pointer = &self.event_time;
        let value = pointer
            .find(json)
            .ok_or_else(|| format!("it has no event time `{pointer}`"))?;
        let time = event_time(value)
            .ok_or_else(|| format!("its event time `{pointer}` is {}, not a time", shown(value)))?;
        let format = match self.granularity {
            Granularity::Hour => "%Y-%m-%dT%H",
            Granularity::Date => "%Y-%m-%d",
            Granularity::Month => "%Y-%m",
        };
        Ok(time.format(format).to_string())
    }

    /// Keeps a value, and the reason where it is rejected.
    fn keep(&mut self, date: &str, kind: u8, parts: [&[u8]; 2]) -> Result<(), ReadError> {
        if self.out.is_closed() {
            return Err(ReadError::Closed);
        }
        if !self.dates.contains_key(date) {
            if self.dates.len() == MAX_DATES {
                return Err(ReadError::Unreadable(format!(
                    "there are more than {MAX_DATES} dates; is `eventTime` the right field, or `granularity` too fine?"
                )));
            }
            let path = self.folder.path().join(self.dates.len().to_string());
            let held = Vec::new();
            self.dates.insert(date.to_owned(), Date { path, held });
        }
        let Some(there) = self.dates.get_mut(date) else {
            return Ok(());
        };
        let before = there.held.len();
        there.held.push(kind);
        there.held.extend_from_slice(&self.read);
        for part in parts {
            let length = u32::try_from(part.len()).map_err(io::Error::other)?;
            there.held.extend_from_slice(&length.to_le_bytes());
            there.held.extend_from_slice(part);
        }
        self.held += there.held.len() - before;
        if self.held < HELD_BYTES {
            return Ok(());
        }
        self.write()
    }

    /// Writes what is held to the disk.
    fn write(&mut self) -> Result<(), ReadError> {
        self.share
            .grow(self.held as u64)
            .map_err(ReadError::Unreadable)?;
        for date in self.dates.values_mut().filter(|date| !date.held.is_empty()) {
            let mut file = OpenOptions::new()
                .append(true)
                .create(true)
                .open(&date.path)?;
            file.write_all(&date.held)?;
            date.held = Vec::new();
        }
        self.held = 0;
        Ok(())
    }

    /// Gives the records date by date, from the position on.
    pub fn give(mut self, batches: &mut Batches) -> Result<(), ReadError> {
        self.write()?;
        let mut next = None;
        let from = batches.position().date.clone().unwrap_or_default();
        for (date, there) in self.dates.range(from..) {
            if date != NO_DATE {
                wait(next, &self.out)?;
                next = self.interval.map(|interval| Instant::now() + interval);
            }
            batches.begin_date(date)?;
            give_date(there, batches)?;
            batches.end()?;
        }
        Ok(())
    }
}

/// Waits for the time of the next date, or until nobody wants it any more.
fn wait(until: Option<Instant>, out: &Sender<SourceBatch>) -> Result<(), ReadError> {
    let Some(until) = until else { return Ok(()) };
    tokio::runtime::Handle::current().block_on(async {
        tokio::select! {
            () = tokio::time::sleep_until(until) => Ok(()),
            () = out.closed() => Err(ReadError::Closed),
        }
    })
}

fn give_date(date: &Date, batches: &mut Batches) -> Result<(), ReadError> {
    let mut file = BufReader::with_capacity(BUFFER, File::open(&date.path)?);
    let (mut value, mut reason) = (Vec::new(), Vec::new());
    loop {
        let (mut kind, mut read) = ([0], [0; 4]);
        match file.read_exact(&mut kind) {
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(()),
            other => other?,
        }
        file.read_exact(&mut read)?;
        part(&mut file, &mut value)?;
        part(&mut file, &mut reason)?;
        if batches.passes(&read)? {
            continue;
        }
        match kind == [RECORD] {
            true => batches.record(&value)?,
            false => batches.reject(&value, String::from_utf8_lossy(&reason).into_owned())?,
        }
    }
}

fn part(file: &mut impl Read, into: &mut Vec<u8>) -> io::Result<()> {
    let mut length = [0; 4];
    file.read_exact(&mut length)?;
    into.resize(u32::from_le_bytes(length) as usize, 0);
    file.read_exact(into)
}

impl Take for Dates {
    fn begin(&mut self, _member: Option<&str>) -> Result<bool, ReadError> {
        Ok(true)
    }

    fn passes(&mut self, read: &[u8]) -> Result<bool, ReadError> {
        let mut crc = Crc::new();
        crc.update(read);
        self.read = crc.sum().to_le_bytes();
        Ok(false)
    }

    fn record(&mut self, json: &[u8]) -> Result<(), ReadError> {
        match self.date_of(json) {
            Ok(date) => self.keep(&date, RECORD, [json, b""]),
            Err(reason) => self.reject(json, reason),
        }
    }

    fn reject(&mut self, value: &[u8], reason: String) -> Result<(), ReadError> {
        self.keep(NO_DATE, REJECTED, [value, reason.as_bytes()])
    }

    fn end(&mut self) -> Result<(), ReadError> {
        Ok(())
    }
}

fn shown(value: &str) -> String {
    value.chars().take(60).collect()
}

/// The time, in UTC, that a JSON value says.
fn event_time(value: &str) -> Option<NaiveDateTime> {
    let text = pointer::scalar_text(value)?;
    let text = text.trim();
    let time = match text.parse::<i64>() {
        Ok(number) => since_1970(number)?,
        Err(_) => written(text)?,
    };
    // Other years have more or fewer digits and would be out of order.
    (1..=9999).contains(&time.year()).then_some(time)
}

/// Seconds until the year 5138, milliseconds until the same, then microseconds.
fn since_1970(number: i64) -> Option<NaiveDateTime> {
    const SECONDS: u64 = 100_000_000_000;
    let time = match number.unsigned_abs() {
        ..SECONDS => DateTime::from_timestamp(number, 0),
        size if size < SECONDS * 1_000 => DateTime::from_timestamp_millis(number),
        _ => DateTime::from_timestamp_micros(number),
    };
    Some(time?.naive_utc())
}

fn written(text: &str) -> Option<NaiveDateTime> {
    if let Ok(time) = DateTime::parse_from_rfc3339(text) {
        return Some(time.naive_utc());
    }
    for format in ["%Y-%m-%dT%H:%M:%S%.f%z", "%Y-%m-%d %H:%M:%S%.f%z"] {
        if let Ok(time) = DateTime::parse_from_str(text, format) {
            return Some(time.naive_utc());
        }
    }
    for format in [
        "%Y-%m-%dT%H:%M:%S%.f",
        "%Y-%m-%d %H:%M:%S%.f",
        "%Y-%m-%dT%H:%M",
    ] {
        if let Ok(time) = NaiveDateTime::parse_from_str(text, format) {
            return Some(time);
        }
    }
    let date = NaiveDate::parse_from_str(text, "%Y-%m-%d").ok()?;
    date.and_hms_opt(0, 0, 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_in_all_their_forms() {
        for (value, time) in [
            (
                r#""2018-05-06T17:44:05.866769""#,
                Some("2018-05-06 17:44:05.866769"),
            ),
            (
                r#""2018-05-06T01:00:00+02:00""#,
                Some("2018-05-05 23:00:00"),
            ),
            (r#""2018-05-06 01:00:00+0200""#, Some("2018-05-05 23:00:00")),
            (r#""2018-05-06 01:00:00""#, Some("2018-05-06 01:00:00")),
            (r#""2018-05-06""#, Some("2018-05-06 00:00:00")),
            ("1489925470960", Some("2017-03-19 12:11:10.960")),
            (r#""1489925470""#, Some("2017-03-19 12:11:10")),
            ("1489925470960123", Some("2017-03-19 12:11:10.960123")),
            (r#""yesterday""#, None),
            ("9223372036854775807", None),
            ("null", None),
            ("1.5", None),
        ] {
            let found = event_time(value).map(|time| time.to_string());
            assert_eq!(found.as_deref(), time, "{value}");
        }
    }
}
