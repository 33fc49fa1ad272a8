//! Rows of text; a column becomes what the pipeline's schema says.

use std::{
    cell::Cell,
    io::{self, Read},
    rc::Rc,
};

use csv::{ByteRecord, ReaderBuilder, WriterBuilder};
use millstream_api::source::file::Csv;
use millstream_plan::{RecordSchema, SchemaType};
use serde::de::IgnoredAny;

use super::{Input, MAX_KEPT_BYTES, Output, skip_bom};
use crate::source::file::error::ReadError;

pub fn read(
    mut input: Input<'_>,
    csv: &Csv,
    schema: &RecordSchema,
    output: &mut Output<'_>,
) -> Result<(), ReadError> {
    skip_bom(&mut input)?;
    let delimiter = csv.delimiter.bytes().next().unwrap_or(b',');
    let quote = csv.quote.bytes().next().unwrap_or(b'"');
    let since_row = Rc::new(Cell::new(0));
    let bounded = Bounded {
        input,
        since_row: since_row.clone(),
    };
    let mut rows = ReaderBuilder::new()
        .has_headers(false)
        .flexible(true)
        .delimiter(delimiter)
        .quote(quote)
        .from_reader(bounded);
    let mut row = ByteRecord::new();
    let columns = if csv.header {
        if !next(&mut rows, &mut row)? {
            return Ok(());
        }
        header(&row, schema)?
    } else {
        let fields = schema.fields().iter();
        let columns = fields.map(|field| Column::new(&field.name, Some(&field.data_type)));
        columns.collect::<Result<_, _>>()?
    };
    let mut json = Vec::new();
    loop {
        since_row.set(0);
        if !next(&mut rows, &mut row)? {
            return Ok(());
        }
        if output.passes(row.as_slice())? {
            continue;
        }
        json.clear();
        match write(&mut json, &columns, &row, &csv.null_value) {
            Ok(()) => output.record(&json)?,
            Err(reason) => {
                let line = row.position().map_or(0, csv::Position::line);
                let value = text(&row, delimiter, quote)?;
                output.reject(format!("line {line}"), &value, &reason)?;
            }
        }
    }
}

fn next<R: Read>(rows: &mut csv::Reader<R>, row: &mut ByteRecord) -> Result<bool, ReadError> {
    rows.read_byte_record(row).map_err(|error| {
        let line = rows.position().line();
        match error.into_kind() {
            csv::ErrorKind::Io(error) => ReadError::from(error).at(format!("line {line}")),
            other => ReadError::Unreadable(format!("line {line}: {other:?}")),
        }
    })
}

/// The row as it was, but for needless quotes.
fn text(row: &ByteRecord, delimiter: u8, quote: u8) -> Result<Vec<u8>, ReadError> {
    let mut writer = WriterBuilder::new()
        .delimiter(delimiter)
        .quote(quote)
        .from_writer(Vec::new());
    let failed = |error: String| ReadError::Unreadable(error);
    writer
        .write_byte_record(row)
        .map_err(|error| failed(error.to_string()))?;
    let mut text = writer
        .into_inner()
        .map_err(|error| failed(error.to_string()))?;
    text.truncate(text.trim_ascii_end().len());
    Ok(text)
}

/// A column's name, ready to be written, and its type.
struct Column {
    name: String,
    key: Vec<u8>,
    kind: Kind,
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Text,
    Integer,
    Number,
    Boolean,
    Json,
}

fn header(row: &ByteRecord, schema: &RecordSchema) -> Result<Vec<Column>, ReadError> {
    let mut columns = Vec::<Column>::with_capacity(row.len());
    for (index, name) in row.iter().enumerate() {
        let name = std::str::from_utf8(name).map_err(|_| {
            let number = index + 1;
            ReadError::Unreadable(format!("column {number} of the header isn't UTF-8"))
        })?;
        let name = match name.trim() {
            // As Spark and others name it.
            "" => format!("_c{index}"),
            name => name.to_owned(),
        };
        if columns.iter().any(|column| column.name == name) {
            return Err(ReadError::Unreadable(format!(
                "the header has the column `{name}` twice"
            )));
        }
        let field = schema.fields().iter().find(|field| field.name == name);
        columns.push(Column::new(&name, field.map(|field| &field.data_type))?);
    }
    Ok(columns)
}

impl Column {
    fn new(name: &str, data_type: Option<&SchemaType>) -> Result<Self, ReadError> {
        let key = serde_json::to_vec(name).map_err(io::Error::from)?;
        let kind = match data_type {
            Some(SchemaType::Boolean) => Kind::Boolean,
            Some(
                SchemaType::TinyInt | SchemaType::SmallInt | SchemaType::Int | SchemaType::BigInt,
            ) => Kind::Integer,
            Some(SchemaType::Float | SchemaType::Double | SchemaType::Decimal { .. }) => {
                Kind::Number
            }
            Some(SchemaType::Struct(_) | SchemaType::Array(_)) => Kind::Json,
            _ => Kind::Text,
        };
        let name = name.to_owned();
        Ok(Column { name, key, kind })
    }

    fn write(&self, json: &mut Vec<u8>, cell: &str) -> Result<(), String> {
        let wrong = |what: &str| format!("column `{}` is `{cell:.40}`, not {what}", self.name);
        let trimmed = cell.trim();
        match self.kind {
            Kind::Text => serde_json::to_writer(json, cell).map_err(|error| error.to_string())?,
            Kind::Boolean => json.extend_from_slice(match boolean(trimmed) {
                Some(true) => b"true",
                Some(false) => b"false",
                None => return Err(wrong("true or false")),
            }),
            Kind::Integer => {
                let number: i64 = trimmed.parse().map_err(|_| wrong("a whole number"))?;
                json.extend_from_slice(number.to_string().as_bytes());
            }
            Kind::Number => {
                let number = number(trimmed).ok_or_else(|| wrong("a number"))?;
                json.extend_from_slice(number.as_bytes());
            }
            Kind::Json => {
                serde_json::from_str::<IgnoredAny>(trimmed).map_err(|_| wrong("JSON"))?;
                json.extend_from_slice(trimmed.as_bytes());
            }
        }
        Ok(())
    }
}

fn boolean(text: &str) -> Option<bool> {
    let is = |words: [&str; 4]| words.iter().any(|word| text.eq_ignore_ascii_case(word));
    if is(["true", "t", "yes", "1"]) {
        return Some(true);
    }
    is(["false", "f", "no", "0"]).then_some(false)
}

/// The number as JSON writes it. Digits stay as they are: a decimal must not become a float.
fn number(text: &str) -> Option<String> {
    if !text.parse::<f64>().is_ok_and(f64::is_finite) {
        return None;
    }
    let unsigned = text.trim_start_matches(['+', '-']);
    let sign = if text.starts_with('-') { "-" } else { "" };
    let digits = unsigned.find(|c: char| !c.is_ascii_digit());
    let (whole, rest) = unsigned.split_at(digits.unwrap_or(unsigned.len()));
    let whole = match whole.trim_start_matches('0') {
        "" => "0",
        whole => whole,
    };
    // `1.` and `1.e5` are numbers for others.
    let rest = match rest.strip_prefix('.') {
        Some(fraction) if !fraction.starts_with(|c: char| c.is_ascii_digit()) => fraction,
        _ => rest,
    };
    let number = format!("{sign}{whole}{rest}");
    let json = serde_json::from_str::<IgnoredAny>(&number);
    json.is_ok().then_some(number)
}

fn write(
    json: &mut Vec<u8>,
    columns: &[Column],
    row: &ByteRecord,
    null_value: &str,
) -> Result<(), String> {
    if row.len() != columns.len() {
        let (there, expected) = (row.len(), columns.len());
        return Err(format!("it has {there} columns, not {expected}"));
    }
    json.push(b'{');
    for (index, (column, cell)) in columns.iter().zip(row).enumerate() {
        let cell = std::str::from_utf8(cell)
            .map_err(|error| format!("column `{}` isn't UTF-8 ({error})", column.name))?;
        if index > 0 {
            json.push(b',');
        }
        json.extend_from_slice(&column.key);
        json.push(b':');
        if cell == null_value {
            json.extend_from_slice(b"null");
        } else {
            column.write(json, cell)?;
        }
    }
    json.push(b'}');
    Ok(())
}

/// Bounds the memory for a row: a quote that isn't closed makes one row of the rest of the file.
struct Bounded<'a> {
    input: Input<'a>,
    since_row: Rc<Cell<usize>>,
}

impl Read for Bounded<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.input.read(buffer)?;
        let since_row = self.since_row.get() + read;
        self.since_row.set(since_row);
        if since_row > MAX_KEPT_BYTES {
            return Err(io::Error::other(format!(
                "a row has more than {MAX_KEPT_BYTES} bytes; is a quote not closed?"
            )));
        }
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_keep_their_digits() {
        for (text, json) in [
            ("1", Some("1")),
            ("+007", Some("7")),
            ("-0.50", Some("-0.50")),
            (".5", Some("0.5")),
            ("1.", Some("1")),
            ("1.e5", Some("1e5")),
            ("12345678901234567890.10", Some("12345678901234567890.10")),
            ("1E-3", Some("1E-3")),
            ("NaN", None),
            ("inf", None),
            ("1,5", None),
            ("", None),
            ("--1", None),
        ] {
            assert_eq!(number(text).as_deref(), json, "{text}");
        }
    }
}
