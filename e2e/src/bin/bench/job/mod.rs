//! The jobs: one file each.

pub mod counts;
pub mod decode;
pub mod ingest;
pub mod projection;
mod rsvps;
mod users;

use std::fmt;

use clap::ValueEnum;
use millstream_api::cql::CqlType;
use scylla::value::CqlValue;

use crate::verify::Expected;

/// What is measured.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum JobName {
    /// Users from a topic become rows.
    Projection,
    /// RSVPs of a topic are counted by venue.
    Counts,
    /// Pages of an HTTP API go into a topic.
    Ingest,
    /// The projection without Kafka and Cassandra.
    Decode,
}

impl fmt::Display for JobName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            JobName::Projection => "projection",
            JobName::Counts => "counts",
            JobName::Ingest => "ingest",
            JobName::Decode => "decode",
        })
    }
}

/// A job from a topic to a table.
pub trait TableJob: Sync {
    fn name(&self) -> JobName;
    fn schema(&self) -> &'static str;
    fn sql(&self) -> &'static str;
    /// The table's columns; the first is its primary key.
    fn columns(&self) -> Vec<(&'static str, CqlType)>;
    /// Whether the worker keeps states of groups beside the table.
    fn has_groups(&self) -> bool;
    /// The records, in their order and without an end.
    fn records(&self) -> Box<dyn Iterator<Item = Record> + Send>;
    /// The table after the first `records`.
    fn expected(&self, records: u64) -> Box<dyn Expected>;
}

/// A record of a topic.
pub struct Record {
    pub key: String,
    pub json: String,
    pub mark: Mark,
}

/// By what a record is known to have arrived in the table: the row of this key is there.
#[derive(Clone)]
pub struct Mark {
    pub key: CqlValue,
    /// The second column has to be as large; a count only grows.
    pub at_least: Option<i64>,
}

/// SplitMix64's output function: every bit of the input changes half of the output's.
fn mix(input: u64) -> u64 {
    let z = input.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}
