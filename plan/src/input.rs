//! What a query reads: fields of the record, virtual columns and columns of lookups, each a flat
//! column for the engine.
//!
//! The engine never sees a struct it doesn't need: `login.uuid` is resolved here and becomes one
//! column. That makes what is decoded exact, errors placed, and plain columns plain.

use std::sync::Arc;

use datafusion::{
    arrow::{
        array::{Array, ArrayRef, AsArray, RecordBatch, RecordBatchOptions, StructArray},
        compute::{is_null, nullif},
        datatypes::{DataType, Field, FieldRef, Schema, SchemaRef},
        error::ArrowError,
    },
    common::DataFusionError,
};

use crate::{
    RecordSchema,
    schema::{SchemaType, timestamp},
};

/// The last column of an executor's result (`UInt32`): index of the input row behind the row.
pub const ROW_COLUMN: &str = "_row";

/// A column that every record has beside its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum VirtualColumn {
    /// `_key` (`Utf8`): the record's key in Kafka.
    Key,
    /// `_partition` (`Int32`): the topic partition that the record is in.
    Partition,
    /// `_offset` (`Int64`): the record's offset.
    Offset,
    /// `_timestamp` (microseconds, UTC): the record's timestamp in Kafka.
    Timestamp,
}

impl VirtualColumn {
    /// All of them, in the order in which they follow in an input.
    pub const ALL: [VirtualColumn; 4] = [
        VirtualColumn::Key,
        VirtualColumn::Partition,
        VirtualColumn::Offset,
        VirtualColumn::Timestamp,
    ];

    /// Name in SQL.
    pub fn name(self) -> &'static str {
        match self {
            VirtualColumn::Key => "_key",
            VirtualColumn::Partition => "_partition",
            VirtualColumn::Offset => "_offset",
            VirtualColumn::Timestamp => "_timestamp",
        }
    }

    /// Type in Arrow.
    pub fn data_type(self) -> DataType {
        match self {
            VirtualColumn::Key => DataType::Utf8,
            VirtualColumn::Partition => DataType::Int32,
            VirtualColumn::Offset => DataType::Int64,
            VirtualColumn::Timestamp => timestamp(),
        }
    }

    pub(crate) fn field(self) -> FieldRef {
        Arc::new(Field::new(self.name(), self.data_type(), true))
    }
}

/// What a column is nothing but.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    Field {
        path: Vec<String>,
        data_type: SchemaType,
    },
    Virtual(VirtualColumn),
    /// A column of a lookup.
    Joined {
        /// Index of the join.
        join: usize,
        /// Its name in the query.
        qualifier: String,
        path: Vec<String>,
        data_type: SchemaType,
    },
}

impl Origin {
    /// Name for the engine, and for people.
    pub(crate) fn flat_name(&self) -> String {
        match self {
            Origin::Field { path, .. } => dotted(path),
            Origin::Virtual(column) => column.name().to_owned(),
            Origin::Joined {
                qualifier, path, ..
            } => format!(
                "{}.{}",
                dotted(std::slice::from_ref(qualifier)),
                dotted(path)
            ),
        }
    }

    pub(crate) fn data_type(&self) -> DataType {
        match self {
            Origin::Field { data_type, .. } | Origin::Joined { data_type, .. } => data_type.arrow(),
            Origin::Virtual(column) => column.data_type(),
        }
    }

    /// The column as the engine sees it.
    pub(crate) fn flat(&self) -> Field {
        Field::new(self.flat_name(), self.data_type(), true)
    }

    /// Joins after which it is there.
    fn joins(&self) -> usize {
        match self {
            Origin::Field { .. } | Origin::Virtual(_) => 0,
            Origin::Joined { join, .. } => join + 1,
        }
    }
}

/// A path as SQL writes it: `location.street.number`, `"@id"`. Different paths differ.
pub(crate) fn dotted(path: &[String]) -> String {
    let segments = path.iter().map(|name| {
        let is_word = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
            && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
        if is_word {
            name.clone()
        } else {
            format!("\"{}\"", name.replace('"', "\"\""))
        }
    });
    segments.collect::<Vec<_>>().join(".")
}

/// The columns that a query reads: those of the records, then those of each lookup.
#[derive(Clone, Debug)]
pub(crate) struct Inputs {
    origins: Vec<Origin>,
    virtual_columns: Vec<VirtualColumn>,
    record: SchemaRef,
    /// The columns there are after so many joins.
    flat: Vec<SchemaRef>,
}

impl Inputs {
    pub(crate) fn new(schema: &RecordSchema, mut origins: Vec<Origin>, joins: usize) -> Self {
        origins.sort_by_key(Origin::joins);
        let paths: Vec<&[String]> = origins
            .iter()
            .filter_map(|origin| match origin {
                Origin::Field { path, .. } => Some(path.as_slice()),
                Origin::Virtual(_) | Origin::Joined { .. } => None,
            })
            .collect();
        let is_read = |column: &VirtualColumn| origins.contains(&Origin::Virtual(*column));
        let flat = (0..=joins).map(|joins| {
            let there = origins.iter().filter(|origin| origin.joins() <= joins);
            Arc::new(Schema::new(there.map(Origin::flat).collect::<Vec<_>>()))
        });
        Inputs {
            virtual_columns: VirtualColumn::ALL.into_iter().filter(is_read).collect(),
            record: Arc::new(Schema::new(schema.pruned(&paths))),
            flat: flat.collect(),
            origins,
        }
    }

    /// The virtual columns that are read.
    pub(crate) fn virtual_columns(&self) -> &[VirtualColumn] {
        &self.virtual_columns
    }

    /// The record's columns that are read, nested as they are, without what isn't read.
    pub(crate) fn record(&self) -> &SchemaRef {
        &self.record
    }

    /// The columns as the engine sees them.
    pub(crate) fn flat(&self) -> &SchemaRef {
        self.flat_after(usize::MAX)
    }

    /// The columns that there are after so many joins.
    pub(crate) fn flat_after(&self, joins: usize) -> &SchemaRef {
        &self.flat[joins.min(self.flat.len() - 1)]
    }

    /// The paths of what is read of the lookup of a join, in their order.
    pub(crate) fn joined(&self, index: usize) -> Vec<Vec<String>> {
        let paths = self.origins.iter().filter_map(|origin| match origin {
            Origin::Joined { join, path, .. } if *join == index => Some(path.clone()),
            _ => None,
        });
        paths.collect()
    }

    /// A batch as it was decoded, as the engine sees it before any join. Nothing is copied, unless a
    /// struct is null.
    pub(crate) fn flatten(&self, batch: &RecordBatch) -> Result<RecordBatch, DataFusionError> {
        let columns = self.origins.iter().filter_map(|origin| match origin {
            Origin::Field { path, .. } => Some(nested(batch, path)),
            Origin::Virtual(column) => Some(top(batch, column.name()).cloned()),
            Origin::Joined { .. } => None,
        });
        let columns = columns.collect::<Result<Vec<_>, _>>()?;
        let rows = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
        let flat = Arc::clone(self.flat_after(0));
        Ok(RecordBatch::try_new_with_options(flat, columns, &rows)?)
    }
}

fn missing(name: &str) -> ArrowError {
    ArrowError::SchemaError(format!("the input has no column `{name}`"))
}

fn top<'a>(batch: &'a RecordBatch, name: &str) -> Result<&'a ArrayRef, ArrowError> {
    batch.column_by_name(name).ok_or_else(|| missing(name))
}

pub(crate) fn nested(batch: &RecordBatch, path: &[String]) -> Result<ArrayRef, ArrowError> {
    let Some((first, rest)) = path.split_first() else {
        return Err(missing(""));
    };
    rest.iter()
        .try_fold(Arc::clone(top(batch, first)?), |array, name| {
            let parent = array.as_struct_opt().ok_or_else(|| missing(name))?;
            child(parent, name)
        })
}

/// A field of a null struct is null, whatever lies beneath.
fn child(parent: &StructArray, name: &str) -> Result<ArrayRef, ArrowError> {
    let array = parent.column_by_name(name).ok_or_else(|| missing(name))?;
    if parent.null_count() == 0 {
        return Ok(Arc::clone(array));
    }
    nullif(array, &is_null(parent)?)
}
