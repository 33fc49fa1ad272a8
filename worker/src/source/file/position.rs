//! Where reading goes on: a file (or a date of a replay), and the records of it that are done.

use flate2::Crc;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// What is kept in Kafka. Its commit metadata takes 4 KiB.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
pub struct Position {
    /// The day under which downloads are kept, as `YYYY/MM/DD`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub landed: Option<String>,
    /// Name of the file; files before it in order are done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
    /// Name of the zip's member; members before it in order are done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub member: Option<String>,
    /// In a replay, the date in place of file and member.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub date: Option<String>,
    /// Whether the file was read to its end; it may have grown since.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub ended: bool,
    #[serde(flatten)]
    pub done: Done,
}

/// The records of a file, member or date that are done.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Done {
    /// How many, the rejected ones included.
    #[serde(default)]
    pub records: u64,
    /// Checksum of their bytes: another file must not be read on in the middle.
    #[serde(default)]
    pub crc: u32,
}

impl Position {
    /// Reads what was kept; the beginning where it isn't one of ours.
    pub fn parse(kept: Option<&Value>) -> Self {
        kept.and_then(|kept| Position::deserialize(kept).ok())
            .unwrap_or_default()
    }

    /// The beginning of a file.
    pub fn at(&self, file: &str) -> Self {
        Position {
            landed: self.landed.clone(),
            file: Some(file.to_owned()),
            ..Position::default()
        }
    }

    /// The file of which some records are done, and others may be left.
    pub fn begun(&self) -> Option<&String> {
        let begun = self.done.records > 0 && !self.ended;
        self.file.as_ref().filter(|_| begun)
    }

    /// For Kafka.
    pub fn to_json(&self) -> Value {
        // Names and numbers: it serializes.
        serde_json::to_value(self).unwrap_or_default()
    }
}

/// Counts records and sums them up.
#[derive(Default)]
pub struct Tally {
    records: u64,
    crc: Crc,
}

impl Tally {
    /// Counts a record.
    pub fn add(&mut self, record: &[u8]) {
        self.records += 1;
        self.crc.update(record);
        self.crc.update(b"\n");
    }

    /// All so far.
    pub fn done(&self) -> Done {
        Done {
            records: self.records,
            crc: self.crc.sum(),
        }
    }
}
