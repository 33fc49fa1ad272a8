//! Rows for people and for programs.

use std::fmt::Write;

use arrow_json::ArrayWriter;
use bytes::Bytes;
use comfy_table::{ContentArrangement, Row, Table, presets::UTF8_FULL_CONDENSED};
use datafusion::arrow::{
    array::RecordBatch,
    error::ArrowError,
    util::display::{ArrayFormatter, FormatOptions},
};
use serde::Serialize;
use serde_json::{Value, json, value::RawValue};

use super::{Previewed, rows::SinkRows};

/// Narrower columns than this say nothing: rows are shown one below the other.
const NARROW: usize = 14;
/// Longest cell where there is no terminal.
const LONGEST: usize = 60;
/// Beginning of a record that was rejected.
const EXCERPT: usize = 200;
/// Rejected records that are shown, of each kind.
const SHOWN: usize = 10;

/// Columns of the terminal; none where the output goes elsewhere.
pub fn terminal_width() -> Option<usize> {
    let (width, _) = terminal_size::terminal_size_of(std::io::stdout())?;
    Some(usize::from(width.0))
}

/// The rows of each sink as a table, and what was rejected.
pub fn table(previewed: &Previewed, width: Option<usize>) -> String {
    let mut text = String::new();
    if !previewed.unreadable.is_empty() {
        let count = previewed.unreadable.len();
        let line = format!(
            "{count} {} of the source can't be read, and would go to the dead letter:",
            records(count)
        );
        push(&mut text, &line);
        let unreadable = previewed.unreadable.iter();
        let shown = unreadable.map(|(record, reason)| (reason.clone(), record));
        push_rejected(&mut text, shown);
    }
    if !previewed.refused.is_empty() {
        let (refused, of) = (previewed.refused.len(), previewed.records.len());
        push(
            &mut text,
            &format!(
                "{refused} of {of} {} would not get into the topic:",
                records(of)
            ),
        );
        push_rejected(&mut text, numbered(previewed, &previewed.refused));
    }
    for sink in &previewed.sinks {
        let rows: usize = sink.rows.iter().map(RecordBatch::num_rows).sum();
        let header = format!(
            "sink `{}` → {} ({rows} {} of {} {}, {} rejected)",
            sink.sink,
            sink.table,
            if rows == 1 { "row" } else { "rows" },
            sink.records,
            records(sink.records),
            sink.rejected.len()
        );
        push(&mut text, &header);
        if rows > 0 {
            push(&mut text, &rows_of(sink, width));
        }
        push_rejected(&mut text, numbered(previewed, &sink.rejected));
        for (name, failed) in sink.expectations.iter().filter(|(_, failed)| *failed > 0) {
            let rows = if *failed == 1 {
                "row fails"
            } else {
                "rows fail"
            };
            push(
                &mut text,
                &format!("  {failed} {rows} the expectation `{name}`"),
            );
        }
        if let Some(reason) = &sink.stopped {
            push(&mut text, &format!("  the sink stops: {reason}"));
        }
    }
    text
}

fn records(count: usize) -> &'static str {
    if count == 1 { "record" } else { "records" }
}

fn push(text: &mut String, line: &str) {
    // Writing to a String can't fail.
    let _ = writeln!(text, "{line}");
}

/// Rejected records, each by its number.
fn numbered<'a>(
    previewed: &'a Previewed,
    rejected: &'a [(usize, String)],
) -> impl ExactSizeIterator<Item = (String, &'a Bytes)> {
    rejected.iter().map(move |(index, reason)| {
        let record = &previewed.records[*index];
        (format!("record {index}: {reason}"), record)
    })
}

fn push_rejected<'a>(
    text: &mut String,
    rejected: impl ExactSizeIterator<Item = (String, &'a Bytes)>,
) {
    let more = rejected.len().saturating_sub(SHOWN);
    for (reason, record) in rejected.take(SHOWN) {
        push(text, &format!("  {reason}"));
        let excerpt = shortened(&String::from_utf8_lossy(record), EXCERPT);
        if !excerpt.is_empty() {
            push(text, &format!("    {excerpt}"));
        }
    }
    if more > 0 {
        push(text, &format!("  and {more} more; -o json has them all"));
    }
}

fn rows_of(sink: &SinkRows, width: Option<usize>) -> String {
    let names = sink.rows.first().map(RecordBatch::schema);
    let names: Vec<String> = names
        .iter()
        .flat_map(|schema| schema.fields())
        .map(|field| field.name().clone())
        .collect();
    let cells = cells(sink).unwrap_or_else(|error| vec![vec![error.to_string()]]);
    if width.is_some_and(|width| width < names.len() * NARROW) {
        return one_below_the_other(&names, &cells, width.unwrap_or(LONGEST));
    }
    let mut table = Table::new();
    table.load_preset(UTF8_FULL_CONDENSED).set_header(names);
    if let Some(width) = width {
        table.set_content_arrangement(ContentArrangement::Dynamic);
        table.set_width(u16::try_from(width).unwrap_or(u16::MAX));
    }
    for row in cells {
        let cells = row.iter().map(|cell| match width {
            Some(_) => cell.clone(),
            None => shortened(cell, LONGEST),
        });
        let mut row = Row::from(cells.collect::<Vec<_>>());
        row.max_height(1);
        table.add_row(row);
    }
    table.to_string()
}

fn one_below_the_other(names: &[String], cells: &[Vec<String>], width: usize) -> String {
    let label = names.iter().map(String::len).max().unwrap_or_default();
    let room = width.saturating_sub(label + 3).max(NARROW);
    let rows = cells.iter().map(|row| {
        let lines = names
            .iter()
            .zip(row)
            .map(|(name, cell)| format!("{name:label$} │ {}", shortened(cell, room)));
        lines.collect::<Vec<_>>().join("\n")
    });
    let rule = format!("\n{}┼{}\n", "─".repeat(label + 1), "─".repeat(room));
    rows.collect::<Vec<_>>().join(&rule)
}

fn cells(sink: &SinkRows) -> Result<Vec<Vec<String>>, ArrowError> {
    let options = FormatOptions::new().with_null("null");
    let mut cells = Vec::new();
    for batch in &sink.rows {
        let columns = batch
            .columns()
            .iter()
            .map(|column| ArrayFormatter::try_new(column, &options))
            .collect::<Result<Vec<_>, _>>()?;
        for row in 0..batch.num_rows() {
            let texts = columns.iter().map(|column| column.value(row).to_string());
            cells.push(texts.collect());
        }
    }
    Ok(cells)
}

/// The beginning of a text, on one line.
fn shortened(text: &str, chars: usize) -> String {
    let line = text.replace(['\n', '\r', '\t'], " ");
    match line.char_indices().nth(chars) {
        Some(_) => line
            .chars()
            .take(chars.saturating_sub(1))
            .chain(['…'])
            .collect(),
        None => line,
    }
}

/// A preview for programs.
#[derive(Serialize)]
struct Printed<'a> {
    records: usize,
    unreadable: Vec<Value>,
    refused: Vec<Value>,
    sinks: Vec<PrintedSink<'a>>,
}

#[derive(Serialize)]
struct PrintedSink<'a> {
    name: &'a str,
    table: &'a str,
    /// As they were written: a [`Value`] would take digits from a decimal.
    rows: Box<RawValue>,
    rejected: Vec<Value>,
    expectations: Vec<Value>,
    stopped: Option<&'a str>,
}

/// All of it, for programs.
pub fn json(previewed: &Previewed) -> anyhow::Result<String> {
    let rejected = |rejected: &[(usize, String)]| -> Vec<Value> {
        let rejected = rejected.iter().map(|(index, reason)| {
            let record = String::from_utf8_lossy(&previewed.records[*index]);
            json!({"record": record, "reason": reason})
        });
        rejected.collect()
    };
    let sinks = previewed.sinks.iter().map(|sink| {
        let expectations = sink.expectations.iter();
        let expectations =
            expectations.map(|(name, failed)| json!({"name": name, "failed": failed}));
        Ok(PrintedSink {
            name: &sink.sink,
            table: &sink.table,
            rows: json_rows(sink)?,
            rejected: rejected(&sink.rejected),
            expectations: expectations.collect(),
            stopped: sink.stopped.as_deref(),
        })
    });
    let unreadable = previewed.unreadable.iter().map(
        |(record, reason)| json!({"record": String::from_utf8_lossy(record), "reason": reason}),
    );
    let printed = Printed {
        records: previewed.records.len(),
        unreadable: unreadable.collect(),
        refused: rejected(&previewed.refused),
        sinks: sinks.collect::<anyhow::Result<_>>()?,
    };
    Ok(serde_json::to_string(&printed)?)
}

fn json_rows(sink: &SinkRows) -> anyhow::Result<Box<RawValue>> {
    let mut bytes = Vec::new();
    let options = arrow_json::WriterBuilder::new().with_explicit_nulls(true);
    let mut writer: ArrayWriter<_> = options.build(&mut bytes);
    writer.write_batches(&sink.rows.iter().collect::<Vec<_>>())?;
    writer.finish()?;
    drop(writer);
    // Nothing at all is written where there are no rows.
    let text = match bytes.is_empty() {
        true => "[]".to_owned(),
        false => String::from_utf8(bytes)?,
    };
    Ok(RawValue::from_string(text)?)
}

#[cfg(test)]
mod tests;
