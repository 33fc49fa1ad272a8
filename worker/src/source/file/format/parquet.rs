//! Parquet, batch by batch. Its directory is at its end, so it has to be a file.

use std::{
    fmt::Display,
    io::{Read, Write},
};

use arrow_json::{WriterBuilder, writer::LineDelimited};
use datafusion::arrow::{array::RecordBatch, error::ArrowError};
use millstream_plan::caught;
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
    let mut batches = decoding(|| {
        ParquetRecordBatchReaderBuilder::try_new(file)?
            .with_batch_size(ROWS)
            .build()
    })?;
    while let Some(batch) = decoding(|| batches.next().transpose())? {
        let lines = decoding(|| json_lines(&batch))?;
        // JSON writes line ends inside of text as `\n`.
        for record in lines.split(|byte| *byte == b'\n') {
            if !record.is_empty() {
                output.record(record)?;
            }
        }
    }
    Ok(())
}

fn json_lines(batch: &RecordBatch) -> Result<Vec<u8>, ArrowError> {
    let mut writer = WriterBuilder::new()
        .with_explicit_nulls(true)
        .build::<_, LineDelimited>(Vec::new());
    writer.write(batch)?;
    writer.finish()?;
    Ok(writer.into_inner())
}

/// The library panics at some damages that it doesn't look for.
fn decoding<T, E: Display>(decode: impl FnOnce() -> Result<T, E>) -> Result<T, ReadError> {
    caught(decode)
        .map_err(|_| damaged("its pages contradict each other"))?
        .map_err(damaged)
}

fn damaged(error: impl Display) -> ReadError {
    ReadError::Unreadable(format!("it can't be read as Parquet: {error}"))
}
