//! What becomes of the records that are read: batches for the ingest stage.

use bytes::{Bytes, BytesMut};
use tokio::sync::mpsc::Sender;

use super::{
    error::ReadError,
    position::{Done, Position, Tally},
};
use crate::source::SourceBatch;

/// Records of a batch at most.
const MAX_RECORDS: usize = 500;
/// Records that are passed over until somebody is asked whether the rest is wanted.
const PASSED_AT_ONCE: u64 = 1_000;
/// A batch is full with so many bytes.
const MAX_BYTES: usize = 256 * 1024;

/// Takes the records of a file one by one.
pub trait Take {
    /// The records of this member of a zip follow, or of the file itself. False where they are
    /// done already and needn't be read.
    fn begin(&mut self, member: Option<&str>) -> bool;
    /// Counts what comes next, by its bytes in the file: what is made of them is another thing where
    /// the schema changes. True where it was given before: then it is passed over.
    fn passes(&mut self, _read: &[u8]) -> Result<bool, ReadError> {
        Ok(false)
    }
    /// Takes a JSON object.
    fn record(&mut self, json: &[u8]) -> Result<(), ReadError>;
    /// Takes what can't be read as a record, and why.
    fn reject(&mut self, value: &[u8], reason: String) -> Result<(), ReadError>;
    /// The member, or the file, is at its end.
    fn end(&mut self) -> Result<(), ReadError>;
}

/// Makes batches, from a position on.
pub struct Batches {
    out: Sender<SourceBatch>,
    position: Position,
    /// What is to be passed over in what is read now.
    passing: Option<Done>,
    tally: Tally,
    bytes: BytesMut,
    lengths: Vec<usize>,
    rejected: Vec<(Bytes, String)>,
}

impl Batches {
    /// Batches from the position on; it names a file, or a date.
    pub fn new(out: Sender<SourceBatch>, position: Position) -> Self {
        Batches {
            out,
            passing: (position.done.records > 0).then_some(position.done),
            position,
            tally: Tally::default(),
            bytes: BytesMut::new(),
            lengths: Vec::new(),
            rejected: Vec::new(),
        }
    }

    /// The records of a date follow.
    pub fn begin_date(&mut self, date: &str) {
        if self.position.date.as_deref() != Some(date) {
            self.position.date = Some(date.to_owned());
            self.restart();
        }
    }

    /// After all that was taken; where it wasn't reached again, the position to go on from.
    pub fn position(&self) -> &Position {
        &self.position
    }

    fn restart(&mut self) {
        self.passing = None;
        self.tally = Tally::default();
        self.position.done = Done::default();
    }

    fn flush_if_full(&mut self) -> Result<(), ReadError> {
        let count = self.lengths.len() + self.rejected.len();
        if count < MAX_RECORDS && self.bytes.len() < MAX_BYTES {
            return Ok(());
        }
        self.flush()
    }

    /// Hands over what was taken.
    pub fn flush(&mut self) -> Result<(), ReadError> {
        if self.lengths.is_empty() && self.rejected.is_empty() {
            return Ok(());
        }
        let mut bytes = self.bytes.split().freeze();
        let records = self.lengths.drain(..);
        let batch = SourceBatch {
            records: records.map(|length| bytes.split_to(length)).collect(),
            rejected: std::mem::take(&mut self.rejected),
            position: self.position.to_json(),
            ..SourceBatch::default()
        };
        self.out.blocking_send(batch).map_err(|_| ReadError::Closed)
    }
}

impl Take for Batches {
    fn begin(&mut self, member: Option<&str>) -> bool {
        let before = self.position.member.as_deref();
        if member.is_some() && member < before {
            return false;
        }
        if member != before {
            self.position.member = member.map(str::to_owned);
            self.restart();
        }
        true
    }

    fn passes(&mut self, read: &[u8]) -> Result<bool, ReadError> {
        self.tally.add(read);
        let now = self.tally.done();
        let Some(passing) = self.passing else {
            self.position.done = now;
            return Ok(false);
        };
        if now.records == passing.records {
            if now != passing {
                return Err(ReadError::Rewritten);
            }
            self.passing = None;
        }
        if now.records.is_multiple_of(PASSED_AT_ONCE) && self.out.is_closed() {
            return Err(ReadError::Closed);
        }
        Ok(true)
    }

    fn record(&mut self, json: &[u8]) -> Result<(), ReadError> {
        self.bytes.extend_from_slice(json);
        self.lengths.push(json.len());
        self.flush_if_full()
    }

    fn reject(&mut self, value: &[u8], reason: String) -> Result<(), ReadError> {
        self.rejected.push((Bytes::copy_from_slice(value), reason));
        // A rejected value may be large.
        if value.len() > MAX_BYTES {
            return self.flush();
        }
        self.flush_if_full()
    }

    fn end(&mut self) -> Result<(), ReadError> {
        if self.passing.is_some() {
            return Err(ReadError::Rewritten);
        }
        self.flush()
    }
}
