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
    datatypes::{DataType, FieldRef, Fields, Float32Type, Float64Type, Schema, TimeUnit},
    error::ArrowError,
};
use millstream_plan::caught;
use parquet::{
    arrow::arrow_reader::{
        ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReaderBuilder,
    },
    basic::{ConvertedType, Type as PhysicalType},
    errors::ParquetError,
    file::{metadata::RowGroupMetaData, reader::ChunkReader},
    schema::types::ColumnDescPtr,
};
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

/// Rows that are decoded at once, at most: rows of a megabyte each, among many small ones, have room too.
const ROWS: usize = 32;
/// What they take on average, at most, where rows are large.
const BYTES: usize = 4 * 1024 * 1024;

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
        let reader = open(file)?;
        let rows = rows_at_once(reader.metadata().row_groups());
        reader.with_batch_size(rows).build()
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

fn open<R: ChunkReader + 'static>(
    file: R,
) -> Result<ParquetRecordBatchReaderBuilder<R>, ParquetError> {
    let found = ArrowReaderMetadata::load(&file, ArrowReaderOptions::new())?;
    let mut leaves = found.parquet_schema().columns().iter();
    let fields = found.schema().fields().iter();
    let fields: Fields = fields.map(|field| meant(field, &mut leaves)).collect();
    let schema = Schema::new_with_metadata(fields, found.schema().metadata().clone());
    let options = ArrowReaderOptions::new().with_schema(Arc::new(schema));
    let metadata = ArrowReaderMetadata::try_new(found.metadata().clone(), options)?;
    Ok(ParquetRecordBatchReaderBuilder::new_with_metadata(
        file, metadata,
    ))
}

/// A field as what wrote the file meant it, where the library takes it for something else: the nanoseconds of
/// an INT96 would wrap around before 1677 and after 2262, and an ENUM is a text. Its leaves are the next
/// columns of the file.
fn meant<'a>(field: &FieldRef, leaves: &mut impl Iterator<Item = &'a ColumnDescPtr>) -> FieldRef {
    let data_type = match field.data_type() {
        DataType::Struct(fields) => {
            DataType::Struct(fields.iter().map(|field| meant(field, leaves)).collect())
        }
        DataType::List(element) => DataType::List(meant(element, leaves)),
        DataType::LargeList(element) => DataType::LargeList(meant(element, leaves)),
        DataType::FixedSizeList(element, size) => {
            DataType::FixedSizeList(meant(element, leaves), *size)
        }
        DataType::Map(entry, sorted) => DataType::Map(meant(entry, leaves), *sorted),
        leaf => match (leaf, leaves.next()) {
            (DataType::Timestamp(TimeUnit::Nanosecond, zone), Some(column))
                if column.physical_type() == PhysicalType::INT96 =>
            {
                DataType::Timestamp(TimeUnit::Microsecond, zone.clone())
            }
            (DataType::Binary, Some(column)) if column.converted_type() == ConvertedType::ENUM => {
                DataType::Utf8
            }
            _ => leaf.clone(),
        },
    };
    Arc::new(field.as_ref().clone().with_data_type(data_type))
}

/// By the largest average of the row groups.
fn rows_at_once(groups: &[RowGroupMetaData]) -> usize {
    let average = groups
        .iter()
        .map(|group| group.total_byte_size() / group.num_rows().max(1))
        .max()
        .and_then(|bytes| usize::try_from(bytes).ok());
    (BYTES / average.unwrap_or(1).max(1)).clamp(1, ROWS)
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

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use datafusion::arrow::array::StringArray;
    use parquet::{
        arrow::ArrowWriter,
        data_type::{ByteArray, ByteArrayType, Int96, Int96Type},
        file::writer::SerializedFileWriter,
        schema::parser::parse_message_type,
    };

    use super::*;

    fn groups(values: &[String]) -> Vec<RowGroupMetaData> {
        let column: Arc<dyn Array> = Arc::new(StringArray::from_iter_values(values));
        let batch = RecordBatch::try_from_iter([("value", column)]).unwrap();
        let mut writer = ArrowWriter::try_new(Vec::new(), batch.schema(), None).unwrap();
        writer.write(&batch).unwrap();
        let file = Bytes::from(writer.into_inner().unwrap());
        let reader = ParquetRecordBatchReaderBuilder::try_new(file).unwrap();
        reader.metadata().row_groups().to_vec()
    }

    #[test]
    fn old_times_and_enums_are_what_was_meant() {
        const SCHEMA: &str = "message m { required int96 at; required group of { optional binary status (ENUM); } optional binary raw; }";
        /// Days from the beginning of the Julian period to 1970.
        const JULIAN_1970: i64 = 2_440_588;
        let schema = Arc::new(parse_message_type(SCHEMA).unwrap());
        let mut writer = SerializedFileWriter::new(Vec::new(), schema, Default::default()).unwrap();
        let mut group = writer.next_row_group().unwrap();
        let times = ["0001-01-01", "1970-01-02", "9999-12-31"].map(|date| {
            let date: chrono::NaiveDate = date.parse().unwrap();
            let days = (date - chrono::NaiveDate::default()).num_days() + JULIAN_1970;
            let mut time = Int96::new();
            time.set_data(1_000, 0, u32::try_from(days).unwrap());
            time
        });
        let mut column = group.next_column().unwrap().unwrap();
        column
            .typed::<Int96Type>()
            .write_batch(&times, None, None)
            .unwrap();
        column.close().unwrap();
        let texts = ["PAID", "OPEN", "PAID"].map(ByteArray::from);
        while let Some(mut column) = group.next_column().unwrap() {
            let there = [1; 3];
            let column_of = column.typed::<ByteArrayType>();
            column_of.write_batch(&texts, Some(&there), None).unwrap();
            column.close().unwrap();
        }
        group.close().unwrap();
        let file = Bytes::from(writer.into_inner().unwrap());
        let mut batches = open(file).unwrap().build().unwrap();
        let lines = json_lines(&batches.next().unwrap().unwrap()).unwrap();
        let lines = String::from_utf8(lines).unwrap();
        let expected = [
            ("0001-01-01", "PAID"),
            ("1970-01-02", "OPEN"),
            ("9999-12-31", "PAID"),
        ];
        for (line, (date, status)) in lines.lines().zip(expected) {
            let raw: String = status.bytes().map(|byte| format!("{byte:02x}")).collect();
            assert_eq!(
                line,
                format!(
                    r#"{{"at":"{date}T00:00:00.000001","of":{{"status":"{status}"}},"raw":"{raw}"}}"#
                )
            );
        }
        assert_eq!(lines.lines().count(), 3);
    }

    #[test]
    fn of_large_rows_few_are_decoded_at_once() {
        let small: Vec<_> = (0..100).map(|row| row.to_string()).collect();
        let large: Vec<_> = (0..9).map(|row| row.to_string().repeat(1 << 20)).collect();
        let huge = vec!["x".repeat(BYTES + 1)];
        for (values, rows) in [(small, ROWS), (large, 3), (huge, 1), (vec![], ROWS)] {
            assert_eq!(rows_at_once(&groups(&values)), rows, "{}", values.len());
        }
    }
}
