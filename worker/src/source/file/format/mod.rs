//! The formats: bytes in, JSON objects out.

mod csv;
mod json_array;
mod ndjson;
mod parquet;

use std::io::{BufRead, BufReader, Read};

use millstream_api::source::file::{Csv, FileFormat};
use millstream_plan::RecordSchema;
use serde::de::IgnoredAny;

use super::{error::ReadError, scratch::Scratch, take::Take};
use crate::pointer::{self, Pointer};

/// Of a longer record only the beginning is kept, for the dead letter.
const MAX_KEPT_BYTES: usize = millstream_api::worker::MAX_DEAD_LETTER_BYTES;

/// How records are found in a file.
pub struct Formats {
    /// Found out for each file where there is none.
    pub format: Option<FileFormat>,
    /// Where the array is in a JSON file.
    pub records: Pointer,
    /// None where it isn't said: then a `.tsv` has tabs.
    pub csv: Option<Csv>,
    /// The types of CSV's columns.
    pub schema: RecordSchema,
    /// For Parquet that has to be unpacked first.
    pub scratch: Scratch,
}

/// A stream of unpacked bytes.
pub type Input<'a> = BufReader<Box<dyn Read + 'a>>;

/// Where the records of a file go.
pub struct Output<'a> {
    /// The file and the member, for messages.
    pub place: &'a str,
    pub take: &'a mut dyn Take,
}

impl Output<'_> {
    /// Counts what comes next; true where it was given before.
    fn passes(&mut self, read: &[u8]) -> Result<bool, ReadError> {
        self.take.passes(read)
    }

    fn record(&mut self, json: &[u8]) -> Result<(), ReadError> {
        self.take.record(json)
    }

    fn reject(&mut self, at: String, value: &[u8], reason: &str) -> Result<(), ReadError> {
        self.take
            .reject(value, format!("{}, {at}: {reason}", self.place))
    }

    /// Takes what should be a JSON object.
    fn checked(&mut self, at: impl FnOnce() -> String, value: &[u8]) -> Result<(), ReadError> {
        if self.passes(value)? {
            return Ok(());
        }
        match object(value) {
            Ok(json) => self.record(json),
            Err(reason) => self.reject(at(), value, &reason),
        }
    }
}

/// Reads a stream to its end.
pub fn read(
    formats: &Formats,
    name: &str,
    mut input: Input<'_>,
    output: &mut Output<'_>,
) -> Result<(), ReadError> {
    match formats.of(name, &mut input)? {
        FileFormat::Ndjson => ndjson::read(input, output),
        FileFormat::JsonArray => json_array::read(input, formats.records.tokens(), output),
        FileFormat::Csv => csv::read(input, &formats.csv_of(name), &formats.schema, output),
        FileFormat::Parquet => parquet::read_stream(input, &formats.scratch, output),
    }
}

pub use self::parquet::read_file as read_parquet;

impl Formats {
    /// The format of a stream, by what is said, by its name, by its beginning.
    pub fn of(&self, name: &str, input: &mut impl BufRead) -> Result<FileFormat, ReadError> {
        if let Some(format) = self.format {
            return Ok(format);
        }
        let beginning = input.fill_buf()?;
        let beginning = beginning.strip_prefix(BOM).unwrap_or(beginning);
        let first = beginning.iter().find(|byte| !byte.is_ascii_whitespace());
        match (extension(name), first) {
            ("ndjson" | "jsonl", _) => Ok(FileFormat::Ndjson),
            ("csv" | "tsv", _) => Ok(FileFormat::Csv),
            ("parquet", _) => Ok(FileFormat::Parquet),
            _ if beginning.starts_with(b"PAR1") => Ok(FileFormat::Parquet),
            (_, Some(b'[')) => Ok(FileFormat::JsonArray),
            (_, Some(b'{')) if !self.records.tokens().is_empty() || spread(beginning) => {
                Ok(FileFormat::JsonArray)
            }
            (_, Some(b'{') | None) => Ok(FileFormat::Ndjson),
            _ => Err(ReadError::Unreadable(
                "its format can't be told from its name and beginning: set `format`".into(),
            )),
        }
    }

    fn csv_of(&self, name: &str) -> Csv {
        let mut csv = self.csv.clone().unwrap_or_default();
        if self.csv.is_none() && extension(name) == "tsv" {
            csv.delimiter = "\t".into();
        }
        csv
    }
}

/// Whether the first object goes on after the end of its line.
fn spread(beginning: &[u8]) -> bool {
    let line = beginning
        .trim_ascii_start()
        .split_inclusive(|byte| *byte == b'\n');
    line.take(1)
        .filter(|line| line.ends_with(b"\n"))
        // One that is wrong in another way is a record that can't be read.
        .any(|line| serde_json::from_slice::<IgnoredAny>(line).is_err_and(|error| error.is_eof()))
}

/// What editors and spreadsheets put before UTF-8.
const BOM: &[u8] = b"\xef\xbb\xbf";

fn skip_bom(input: &mut impl BufRead) -> Result<(), ReadError> {
    if input.fill_buf()?.starts_with(BOM) {
        input.consume(BOM.len());
    }
    Ok(())
}

/// The extension before those of compression; none where there isn't one.
fn extension(name: &str) -> &str {
    let packed = [".gz", ".gzip", ".bz2", ".zst", ".zstd", ".zip"];
    let inner = packed.iter().find_map(|packed| name.strip_suffix(packed));
    let name = inner.unwrap_or(name);
    let file = name.rsplit('/').next().unwrap_or(name);
    file.rsplit_once('.').map_or("", |(_, extension)| extension)
}

/// The JSON object in these bytes, without the space around it.
fn object(value: &[u8]) -> Result<&[u8], String> {
    let text = std::str::from_utf8(value).map_err(|error| format!("it isn't UTF-8 ({error})"))?;
    let text = text.trim_matches([' ', '\t', '\r', '\n']);
    serde_json::from_str::<IgnoredAny>(text).map_err(|error| {
        // There is just one line.
        let error = error.to_string().replace("at line 1 column", "at column");
        format!("it isn't JSON ({error})")
    })?;
    match text.as_bytes() {
        json @ [b'{', ..] => Ok(json),
        _ => Err(format!("it is {}, not an object", pointer::kind(text))),
    }
}
