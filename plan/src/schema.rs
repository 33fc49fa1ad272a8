//! The shape of a record: `spec.schema` parsed.
//!
//! Field names are JSON's: their case counts, written in quotes or not.

mod parser;

use std::sync::Arc;

use datafusion::{
    arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit},
    sql::sqlparser::tokenizer::Token,
};
use millstream_api::cql::CqlType;

use self::parser::Parser;
use crate::{
    error::{PlanError, Position, SchemaProblem},
    input::{ROW_COLUMN, VirtualColumn},
    table::frozen_list,
};

/// As the DataPipeline's own schema has it.
const MAX_BYTES: usize = 65_536;

/// The shape of a record. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordSchema {
    fields: Arc<[SchemaField]>,
}

/// A field of a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SchemaField {
    /// Name in JSON.
    pub name: String,
    /// Type of the value. It may always be null.
    pub data_type: SchemaType,
}

/// The type of a field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SchemaType {
    Boolean,
    TinyInt,
    SmallInt,
    Int,
    BigInt,
    Float,
    Double,
    Decimal {
        precision: u8,
        scale: i8,
    },
    /// `TEXT`, `STRING`, `VARCHAR(n)` and `CHAR(n)`; the length is not enforced.
    Text,
    /// Text in Arrow, `uuid` in Cassandra.
    Uuid,
    Date,
    /// Microseconds, UTC.
    Timestamp,
    Struct(Vec<SchemaField>),
    Array(Box<SchemaType>),
}

/// The type of a timestamp in Arrow: microseconds, UTC.
pub fn timestamp() -> DataType {
    DataType::Timestamp(TimeUnit::Microsecond, Some("+00:00".into()))
}

impl RecordSchema {
    /// Parses SQL column definitions, such as `id UUID, name STRUCT<first TEXT, last TEXT>`.
    pub fn parse(text: &str) -> Result<Self, PlanError> {
        let start = Position { line: 1, column: 1 };
        if text.len() > MAX_BYTES {
            return Err(SchemaProblem::TooLong(MAX_BYTES).at(start));
        }
        let mut parser = Parser::new(text)?;
        let fields = parser.fields(&Token::EOF, 0)?;
        for (field, at) in &fields {
            let is_virtual = VirtualColumn::ALL
                .map(VirtualColumn::name)
                .contains(&field.name.as_str());
            if is_virtual || field.name == ROW_COLUMN {
                return Err(SchemaProblem::Reserved(field.name.clone()).at(*at));
            }
        }
        Ok(RecordSchema {
            fields: fields.into_iter().map(|(field, _)| field).collect(),
        })
    }

    /// The columns, in the order of the text.
    pub fn fields(&self) -> &[SchemaField] {
        &self.fields
    }

    /// The record's columns in Arrow, without virtual columns.
    pub fn arrow(&self) -> SchemaRef {
        let fields: Vec<Field> = self.fields.iter().map(SchemaField::arrow).collect();
        Arc::new(Schema::new(fields))
    }

    /// The columns that are needed to read these paths, without what else is in their structs.
    pub(crate) fn pruned(&self, paths: &[&[String]]) -> Vec<Field> {
        prune(&self.fields, paths)
    }
}

fn prune(fields: &[SchemaField], paths: &[&[String]]) -> Vec<Field> {
    let pruned = fields.iter().filter_map(|field| {
        let below: Vec<&[String]> = paths
            .iter()
            .filter_map(|path| path.split_first())
            .filter_map(|(first, rest)| (*first == field.name).then_some(rest))
            .collect();
        match &field.data_type {
            _ if below.is_empty() => None,
            SchemaType::Struct(children) if below.iter().all(|path| !path.is_empty()) => {
                let children = DataType::Struct(prune(children, &below).into());
                Some(Field::new(&field.name, children, true))
            }
            _ => Some(field.arrow()),
        }
    });
    pruned.collect()
}

impl SchemaField {
    fn arrow(&self) -> Field {
        Field::new(&self.name, self.data_type.arrow(), true)
    }
}

impl SchemaType {
    /// The type in Arrow.
    pub fn arrow(&self) -> DataType {
        match self {
            SchemaType::Boolean => DataType::Boolean,
            SchemaType::TinyInt => DataType::Int8,
            SchemaType::SmallInt => DataType::Int16,
            SchemaType::Int => DataType::Int32,
            SchemaType::BigInt => DataType::Int64,
            SchemaType::Float => DataType::Float32,
            SchemaType::Double => DataType::Float64,
            SchemaType::Decimal { precision, scale } => DataType::Decimal128(*precision, *scale),
            SchemaType::Text | SchemaType::Uuid => DataType::Utf8,
            SchemaType::Date => DataType::Date32,
            SchemaType::Timestamp => timestamp(),
            SchemaType::Struct(fields) => {
                DataType::Struct(fields.iter().map(SchemaField::arrow).collect())
            }
            SchemaType::Array(element) => {
                DataType::List(Arc::new(Field::new_list_field(element.arrow(), true)))
            }
        }
    }

    /// The CQL type where it isn't just what follows from the type in Arrow.
    pub(crate) fn own_cql_type(&self) -> Option<CqlType> {
        match self {
            SchemaType::Uuid => Some(CqlType::Uuid),
            SchemaType::Array(element) => element.own_cql_type().map(frozen_list),
            _ => None,
        }
    }
}
