//! Parquet, batch by batch. Its directory is at its end, so it has to be a file.

use std::io::{Read, Write};

use arrow_json::{WriterBuilder, writer::LineDelimited};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

use super::{Input, Output};
use crate::source::file::{
    error::ReadError,
    local::{BUFFER, LocalFile},
    scratch::Scratch,
};

/// Rows that are decoded at once.
const ROWS: usize = 500;

/// Reads a stream by way of a temporary file.
pub fn read_stream(
    mut input: Input<'_>,
    scratch: &Scratch,
    output: &mut Output<'_>,
) -> Result<(), ReadError> {
    let mut share = scratch.share();
    let mut file = tempfile::tempfile()?;
    let mut buffer = vec![0; BUFFER];
    loop {
        match input.read(&mut buffer)? {
            0 => break,
            read => {
                share.grow(read as u64).map_err(ReadError::Unreadable)?;
                file.write_all(&buffer[..read])?;
            }
        }
    }
    read_file(LocalFile::new(file)?, output)
}

/// Reads a file.
pub fn read_file(file: LocalFile, output: &mut Output<'_>) -> Result<(), ReadError> {
    let damaged = |error: &dyn std::fmt::Display| {
        ReadError::Unreadable(format!("it can't be read as Parquet: {error}"))
    };
    let reader = ParquetRecordBatchReaderBuilder::try_new(file)
        .map_err(|error| damaged(&error))?
        .with_batch_size(ROWS)
        .build()
        .map_err(|error| damaged(&error))?;
    for batch in reader {
        let batch = batch.map_err(|error| damaged(&error))?;
        let mut writer = WriterBuilder::new()
            .with_explicit_nulls(true)
            .build::<_, LineDelimited>(Vec::new());
        writer.write(&batch).map_err(|error| damaged(&error))?;
        writer.finish().map_err(|error| damaged(&error))?;
        // JSON writes line ends inside of text as `\n`.
        for record in writer.into_inner().split(|byte| *byte == b'\n') {
            if !record.is_empty() {
                output.record(record)?;
            }
        }
    }
    Ok(())
}
