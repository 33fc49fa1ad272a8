//! A lookup that is a file, or several.

use bytes::Bytes;
use millstream_api::source::FileSource;
use millstream_plan::RecordSchema;

use super::rows::Rows;
use crate::{
    config::Credentials,
    decode::JsonColumns,
    source::file::{ReadError, Take, read_whole},
};

/// Records that are decoded at once.
const DECODED_AT_ONCE: usize = 1_000;
const BYTES_AT_ONCE: usize = 1024 * 1024;

/// Reads the columns of the rows, of all records of the files. The schema is that of the whole records.
pub async fn read(
    files: &FileSource,
    schema: &RecordSchema,
    credentials: &Credentials,
    rows: Rows,
) -> anyhow::Result<Rows> {
    let decoding = Decoding {
        decoder: JsonColumns::new(rows.schema().clone())?,
        rows,
        waiting: Vec::new(),
        bytes: 0,
        decoded: 0,
    };
    let decoded = read_whole(files, schema.clone(), credentials, decoding).await?;
    Ok(decoded.rows)
}

/// Takes records and makes rows of them.
struct Decoding {
    decoder: JsonColumns,
    rows: Rows,
    waiting: Vec<Bytes>,
    bytes: usize,
    /// Records of the file, or of the member, that are rows already.
    decoded: usize,
}

impl Decoding {
    fn decode(&mut self) -> Result<(), ReadError> {
        let records = std::mem::take(&mut self.waiting);
        self.bytes = 0;
        let batch = match self.decoder.decode(records.iter().map(Bytes::as_ref)) {
            Ok(batch) => batch,
            Err(reason) => return Err(self.misfit(&records, reason)),
        };
        self.decoded += records.len();
        let added = self.rows.add(batch);
        added.map_err(|error| ReadError::Unreadable(format!("{error:#}")))
    }

    /// Which of the records it is.
    fn misfit(&mut self, records: &[Bytes], reason: String) -> ReadError {
        let mut alone = records.iter().zip(self.decoded + 1..);
        let found = alone.find_map(|(record, number)| {
            let decoded = self.decoder.decode(std::iter::once(record.as_ref()));
            Some(format!("record {number}: {}", decoded.err()?))
        });
        ReadError::Unreadable(found.unwrap_or(reason))
    }
}

impl Take for Decoding {
    fn begin(&mut self, _: Option<&str>) -> Result<bool, ReadError> {
        self.decoded = 0;
        Ok(true)
    }

    fn record(&mut self, json: &[u8]) -> Result<(), ReadError> {
        self.bytes += json.len();
        self.waiting.push(Bytes::copy_from_slice(json));
        match self.waiting.len() < DECODED_AT_ONCE && self.bytes < BYTES_AT_ONCE {
            true => Ok(()),
            false => self.decode(),
        }
    }

    /// A lookup with a row less would be wrong in silence.
    fn reject(&mut self, _: &[u8], reason: String) -> Result<(), ReadError> {
        Err(ReadError::Unreadable(reason))
    }

    fn end(&mut self) -> Result<(), ReadError> {
        self.decode()
    }
}
