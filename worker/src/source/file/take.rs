//! What becomes of the records that are read: batches for the ingest stage.

use bytes::{Bytes, BytesMut};
use tokio::sync::mpsc::Sender;

use super::{
    READ,
    error::ReadError,
    position::{Done, Position, Tally},
};
use crate::{source::SourceBatch, status::StatusPart};

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
    fn begin(&mut self, member: Option<&str>) -> Result<bool, ReadError>;
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
    /// Of their values.
    rejected_bytes: usize,
    status: StatusPart,
}

impl Batches {
    /// Batches from the position on; it names a file, or a date.
    pub fn new(out: Sender<SourceBatch>, position: Position, status: StatusPart) -> Self {
        Batches {
            out,
            status,
            passing: (position.done.records > 0).then_some(position.done),
            position,
            tally: Tally::default(),
            bytes: BytesMut::new(),
            lengths: Vec::new(),
            rejected: Vec::new(),
            rejected_bytes: 0,
        }
    }

    /// The records of a date follow.
    pub fn begin_date(&mut self, date: &str) -> Result<(), ReadError> {
        if self.position.date.as_deref() != Some(date) {
            self.position.date = Some(date.to_owned());
            self.restart()?;
        }
        Ok(())
    }

    /// After all that was taken; where it wasn't reached again, the position to go on from.
    pub fn position(&self) -> &Position {
        &self.position
    }

    fn restart(&mut self) -> Result<(), ReadError> {
        self.passed()?;
        self.tally = Tally::default();
        self.position.done = Done::default();
        self.position.ended = false;
        Ok(())
    }

    /// What was given before must have come again, all of it.
    fn passed(&self) -> Result<(), ReadError> {
        match self.passing {
            Some(_) => Err(ReadError::Rewritten),
            None => Ok(()),
        }
    }

    /// Hands over what is left. There is no more: the file is at its end, or the last date.
    pub fn finish(&mut self) -> Result<(), ReadError> {
        self.passed()?;
        self.flush()?;
        if self.position.ended || self.position.file.is_none() {
            return Ok(());
        }
        // Whoever goes on with the next file needn't have this one any more.
        self.position.ended = true;
        self.hand_over(Vec::new())
    }

    fn flush_if_full(&mut self) -> Result<(), ReadError> {
        let count = self.lengths.len() + self.rejected.len();
        if count < MAX_RECORDS && self.bytes.len() + self.rejected_bytes < MAX_BYTES {
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
        let records = records.map(|length| bytes.split_to(length)).collect();
        self.hand_over(records)
    }

    fn hand_over(&mut self, records: Vec<Bytes>) -> Result<(), ReadError> {
        // It goes on, though it may have failed before.
        self.status.clear(READ);
        self.rejected_bytes = 0;
        let batch = SourceBatch {
            records,
            rejected: std::mem::take(&mut self.rejected),
            position: self.position.to_json(),
            ..SourceBatch::default()
        };
        self.out.blocking_send(batch).map_err(|_| ReadError::Closed)
    }
}

impl Take for Batches {
    fn begin(&mut self, member: Option<&str>) -> Result<bool, ReadError> {
        let before = self.position.member.as_deref();
        if member.is_some() && member < before {
            return Ok(false);
        }
        if member != before {
            self.position.member = member.map(str::to_owned);
            self.restart()?;
        }
        Ok(true)
    }

    fn passes(&mut self, read: &[u8]) -> Result<bool, ReadError> {
        self.tally.add(read);
        let now = self.tally.done();
        let Some(passing) = self.passing else {
            self.position.done = now;
            self.position.ended = false;
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
        self.rejected_bytes += value.len();
        self.flush_if_full()
    }

    fn end(&mut self) -> Result<(), ReadError> {
        self.passed()?;
        self.flush()
    }
}
