//! Parquet, batch by batch. Its directory is at its end, so it has to be a file.

use std::{
    fmt::Display,
    io::{Read, Write},
    sync::Arc,
};

use arrow_json::{
    WriterBuilder,
    writer::{Encoder, EncoderFactory, EncoderOptions, LineDelimited, NullableEncoder},
};
use datafusion::arrow::{
    array::{Array, ArrowPrimitiveType, AsArray, PrimitiveArray, RecordBatch},
    datatypes::{DataType, FieldRef, Float32Type, Float64Type},
    error::ArrowError,
};
use millstream_plan::caught;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use serde::Serialize;

use super::{Input, Output};
use crate::{
    avro::json::not_finite,
    source::file::{
        error::ReadError,
        local::{BUFFER, LocalFile},
        scratch::Scratch,
    },
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
            if !record.is_empty() && !output.passes(record)? {
                output.record(record)?;
            }
        }
    }
    Ok(())
}

/// JSON has no number for NaN, and the library would write null.
#[derive(Debug)]
struct Floats;

impl EncoderFactory for Floats {
    fn make_default_encoder<'a>(
        &self,
        _: &'a FieldRef,
        array: &'a dyn Array,
        _: &'a EncoderOptions,
    ) -> Result<Option<NullableEncoder<'a>>, ArrowError> {
        let encoder: Box<dyn Encoder + 'a> = match array.data_type() {
            DataType::Float32 => Box::new(FloatEncoder(array.as_primitive::<Float32Type>())),
            DataType::Float64 => Box::new(FloatEncoder(array.as_primitive::<Float64Type>())),
            _ => return Ok(None),
        };
        Ok(Some(NullableEncoder::new(encoder, array.nulls().cloned())))
    }
}

struct FloatEncoder<'a, T: ArrowPrimitiveType>(&'a PrimitiveArray<T>);

impl<T: ArrowPrimitiveType<Native: Into<f64> + Serialize>> Encoder for FloatEncoder<'_, T> {
    fn encode(&mut self, index: usize, out: &mut Vec<u8>) {
        let number = self.0.value(index);
        let wide: f64 = number.into();
        // Into memory: it can't fail.
        let _ = match wide.is_finite() {
            true => serde_json::to_writer(out, &number),
            false => serde_json::to_writer(out, not_finite(wide)),
        };
    }
}

fn json_lines(batch: &RecordBatch) -> Result<Vec<u8>, ArrowError> {
    let mut writer = WriterBuilder::new()
        .with_explicit_nulls(true)
        .with_encoder_factory(Arc::new(Floats))
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
