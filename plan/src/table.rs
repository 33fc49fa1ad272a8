//! A query's result and the table that takes it: which types there are, and which fit.

use std::sync::Arc;

use datafusion::arrow::datatypes::{DataType, Field, TimeUnit};
use millstream_api::{
    cql::CqlType,
    keyspace::{ColumnSpec, PrimaryKey, TableOptions, TableSpec},
};

use crate::{
    SinkPlan,
    error::{PlanError, Position, QueryProblem, TableProblem, similar},
    schema::{SchemaType, timestamp},
    sink::is_cassandra_name,
};

/// The column of a state table that has the state; no result column begins with `_`, and none in
/// a primary key is called so.
pub const STATE_COLUMN: &str = "state__";
/// Longest name of a table.
const MAX_TABLE_NAME: usize = 48;

/// The name of the table with the states of a table's groups.
fn state_table_name(table: &str) -> Option<String> {
    let name = format!("{table}__state");
    (name.len() <= MAX_TABLE_NAME).then_some(name)
}

/// The type as which values of this type leave an executor: there are few of them, so that a sink
/// has few to know. `None`: no CQL type takes such values.
pub(crate) fn result_type(data_type: &DataType) -> Option<DataType> {
    Some(match data_type {
        DataType::Boolean
        | DataType::Int8
        | DataType::Int16
        | DataType::Int32
        | DataType::Int64
        | DataType::Float32
        | DataType::Float64
        | DataType::Decimal128(..)
        | DataType::Utf8
        | DataType::Binary
        | DataType::Date32 => data_type.clone(),
        DataType::UInt8 => DataType::Int16,
        DataType::UInt16 => DataType::Int32,
        // Counts and lengths: a value above the range of BIGINT fails its batch.
        DataType::UInt32 | DataType::UInt64 => DataType::Int64,
        DataType::Float16 => DataType::Float32,
        DataType::Decimal32(precision, scale) | DataType::Decimal64(precision, scale) => {
            DataType::Decimal128(*precision, *scale)
        }
        DataType::Utf8View | DataType::LargeUtf8 => DataType::Utf8,
        DataType::BinaryView | DataType::LargeBinary | DataType::FixedSizeBinary(_) => {
            DataType::Binary
        }
        DataType::Date64 => DataType::Date32,
        DataType::Time32(_) | DataType::Time64(_) => DataType::Time64(TimeUnit::Nanosecond),
        DataType::Timestamp(..) => timestamp(),
        DataType::Dictionary(_, value) => result_type(value)?,
        DataType::List(element)
        | DataType::LargeList(element)
        | DataType::ListView(element)
        | DataType::FixedSizeList(element, _) => {
            let element = result_type(element.data_type())?;
            DataType::List(Arc::new(Field::new_list_field(element, true)))
        }
        _ => return None,
    })
}

/// The CQL type that a declared column gets, for a type that leaves an executor.
pub(crate) fn default_cql_type(data_type: &DataType) -> Option<CqlType> {
    Some(match data_type {
        DataType::Boolean => CqlType::Boolean,
        DataType::Int8 => CqlType::TinyInt,
        DataType::Int16 => CqlType::SmallInt,
        DataType::Int32 => CqlType::Int,
        DataType::Int64 => CqlType::BigInt,
        DataType::Float32 => CqlType::Float,
        DataType::Float64 => CqlType::Double,
        DataType::Decimal128(..) => CqlType::Decimal,
        DataType::Utf8 => CqlType::Text,
        DataType::Binary => CqlType::Blob,
        DataType::Date32 => CqlType::Date,
        DataType::Time64(_) => CqlType::Time,
        DataType::Timestamp(..) => CqlType::Timestamp,
        DataType::List(element) => frozen_list(default_cql_type(element.data_type())?),
        _ => return None,
    })
}

/// The type of a list. It is frozen, so that a list is one cell, which a replay writes again: of one
/// that isn't each element is a cell of its own, and another one each time that it is written.
pub(crate) fn frozen_list(element: CqlType) -> CqlType {
    CqlType::Frozen(Box::new(CqlType::List(Box::new(element))))
}

/// Whether a sink writes values of a type that leaves an executor into this CQL type: without loss,
/// or (text into `uuid`, `timeuuid`, `inet`, `ascii`) value by value, where one that can't be read
/// sends its record to the dead letter.
pub fn fits(data_type: &DataType, cql_type: &CqlType) -> bool {
    use CqlType as Cql;
    match data_type {
        DataType::Boolean => matches!(cql_type, Cql::Boolean),
        DataType::Int8 => fits_integer(8, cql_type),
        DataType::Int16 => fits_integer(16, cql_type),
        DataType::Int32 => fits_integer(32, cql_type),
        DataType::Int64 => fits_integer(64, cql_type),
        DataType::Float32 => matches!(cql_type, Cql::Float | Cql::Double),
        DataType::Float64 => matches!(cql_type, Cql::Double),
        DataType::Decimal128(_, 0) => matches!(cql_type, Cql::Decimal | Cql::VarInt),
        DataType::Decimal128(..) => matches!(cql_type, Cql::Decimal),
        DataType::Utf8 => matches!(
            cql_type,
            Cql::Text | Cql::Ascii | Cql::Uuid | Cql::TimeUuid | Cql::Inet
        ),
        DataType::Binary => matches!(cql_type, Cql::Blob),
        DataType::Date32 => matches!(cql_type, Cql::Date),
        DataType::Time64(_) => matches!(cql_type, Cql::Time),
        DataType::Timestamp(..) => matches!(cql_type, Cql::Timestamp),
        DataType::List(_) => {
            matches!(cql_type, Cql::Frozen(inner) if fits_within_frozen(data_type, inner))
        }
        _ => false,
    }
}

/// The same within `frozen<>`, where a list needs none of its own.
fn fits_within_frozen(data_type: &DataType, cql_type: &CqlType) -> bool {
    match (data_type, cql_type) {
        (DataType::List(_), CqlType::Frozen(inner)) => fits_within_frozen(data_type, inner),
        (DataType::List(element), CqlType::List(inner)) => {
            fits_within_frozen(element.data_type(), inner)
        }
        _ => fits(data_type, cql_type),
    }
}

fn fits_integer(bits: u8, cql_type: &CqlType) -> bool {
    match cql_type {
        CqlType::TinyInt => bits <= 8,
        CqlType::SmallInt => bits <= 16,
        CqlType::Int => bits <= 32,
        CqlType::BigInt | CqlType::VarInt | CqlType::Decimal => true,
        _ => false,
    }
}

/// A type as SQL names it.
pub(crate) fn sql_name(data_type: &DataType) -> String {
    match data_type {
        DataType::Null => "NULL".into(),
        DataType::Boolean => "BOOLEAN".into(),
        DataType::Int8 => "TINYINT".into(),
        DataType::Int16 => "SMALLINT".into(),
        DataType::Int32 => "INT".into(),
        DataType::Int64 => "BIGINT".into(),
        DataType::Float32 => "FLOAT".into(),
        DataType::Float64 => "DOUBLE".into(),
        DataType::Decimal128(precision, scale) => format!("DECIMAL({precision}, {scale})"),
        DataType::Utf8 => "TEXT".into(),
        DataType::Binary => "BINARY".into(),
        DataType::Date32 => "DATE".into(),
        DataType::Time64(_) => "TIME".into(),
        DataType::Timestamp(..) => "TIMESTAMP".into(),
        DataType::Interval(_) | DataType::Duration(_) => "an INTERVAL".into(),
        DataType::Struct(_) => "a STRUCT".into(),
        DataType::Map(..) => "a MAP".into(),
        DataType::List(element) => format!("ARRAY<{}>", sql_name(element.data_type())),
        other => other.to_string(),
    }
}

/// A schema's type as SQL names it.
pub(crate) fn schema_type_name(data_type: &SchemaType) -> String {
    match data_type {
        SchemaType::Uuid => "UUID".into(),
        SchemaType::Array(element) => format!("ARRAY<{}>", schema_type_name(element)),
        other => sql_name(&other.arrow()),
    }
}

/// How to make a value fit a column: the CAST to write, if there is one.
fn way_out(column: &str, found: &DataType, expected: &CqlType) -> String {
    if fits_within_frozen(found, expected) {
        return format!(
            "the column must be `frozen<{expected}>`: Cassandra keeps the elements of a list that is written again beside the old ones"
        );
    }
    let sql_type = match expected {
        CqlType::Boolean => "BOOLEAN",
        CqlType::TinyInt => "TINYINT",
        CqlType::SmallInt => "SMALLINT",
        CqlType::Int => "INT",
        CqlType::BigInt | CqlType::VarInt => "BIGINT",
        CqlType::Float => "FLOAT",
        CqlType::Double => "DOUBLE",
        CqlType::Decimal => "DECIMAL(38, 10)",
        CqlType::Ascii | CqlType::Text => "TEXT",
        CqlType::Uuid | CqlType::TimeUuid | CqlType::Inet => "TEXT",
        CqlType::Date => "DATE",
        CqlType::Time => "TIME",
        CqlType::Timestamp => "TIMESTAMP",
        _ => return "give the column of the table another type".into(),
    };
    if matches!(found, DataType::List(_)) {
        return format!("take an element of it, as in {column}[1] AS {column}");
    }
    format!("write CAST(... AS {sql_type}) AS {column}")
}

impl SinkPlan {
    /// The table that the pipeline declares for this result.
    pub fn declare_table(
        &self,
        table: &str,
        primary_key: &PrimaryKey,
    ) -> Result<TableSpec, PlanError> {
        self.check_columns()?;
        self.keyed_table(table, primary_key)
    }

    /// Columns and key of rows that don't go to Cassandra. The state of groups does all the same, in a
    /// table with their keys.
    pub(crate) fn rows_elsewhere(
        &self,
        table: &str,
        primary_key: &PrimaryKey,
    ) -> Result<TableSpec, PlanError> {
        if self.is_grouped() {
            let is_key = |name: &str| primary_key.columns().any(|key| key == name);
            self.check_names(is_key, QueryProblem::BadStateName)?;
        }
        self.keyed_table(table, primary_key)
    }

    /// Holds the columns to what Cassandra takes, as far as their types don't tell.
    fn check_columns(&self) -> Result<(), PlanError> {
        self.check_names(|_| true, QueryProblem::BadCassandraName)?;
        match self.list_with_nulls() {
            None => Ok(()),
            Some((column, of)) => Err(self.table_error(
                column.at,
                TableProblem::ListWithNulls {
                    column: column.name.clone(),
                    of: of.into(),
                },
            )),
        }
    }

    /// Holds the names of columns to what Cassandra takes.
    fn check_names(
        &self,
        is_meant: impl Fn(&str) -> bool,
        problem: fn(String) -> QueryProblem,
    ) -> Result<(), PlanError> {
        let mut columns = self.columns.iter().filter(|column| is_meant(&column.name));
        match columns.find(|column| !is_cassandra_name(&column.name)) {
            None => Ok(()),
            Some(column) => Err(PlanError::Query {
                sink: self.name.clone(),
                at: column.at,
                problem: Box::new(problem(column.name.clone())),
            }),
        }
    }

    fn keyed_table(&self, table: &str, primary_key: &PrimaryKey) -> Result<TableSpec, PlanError> {
        let columns = self.columns.iter().map(|column| ColumnSpec {
            name: column.name.clone(),
            cql_type: column.cql_type.clone(),
        });
        let table = TableSpec {
            name: table.to_owned(),
            columns: columns.collect(),
            primary_key: primary_key.clone(),
            options: None,
        };
        self.check_key(&table.name, &table)?;
        Ok(table)
    }

    /// Holds the result against a table that is declared elsewhere. Columns of the table that the
    /// result hasn't are left alone.
    pub fn check_table(&self, keyspace: &str, table: &TableSpec) -> Result<(), PlanError> {
        self.check_columns()?;
        let name = format!("{keyspace}.{}", table.name);
        for column in &self.columns {
            let Some(expected) = table.columns.iter().find(|known| known.name == column.name)
            else {
                let known = table.columns.iter().map(|known| known.name.as_str());
                return Err(self.table_error(
                    column.at,
                    TableProblem::UnknownColumn {
                        similar: similar(&column.name, known),
                        table: name,
                        column: column.name.clone(),
                    },
                ));
            };
            if !fits(&column.data_type, &expected.cql_type) {
                return Err(self.table_error(
                    column.at,
                    TableProblem::Type {
                        way_out: way_out(&column.name, &column.data_type, &expected.cql_type),
                        table: name,
                        column: column.name.clone(),
                        found: sql_name(&column.data_type),
                        expected: expected.cql_type.to_string(),
                    },
                ));
            }
        }
        self.check_key(&name, table)
    }

    fn check_key(&self, name: &str, table: &TableSpec) -> Result<(), PlanError> {
        if table.primary_key.partition_key.is_empty() {
            return Err(self.table_error(None, TableProblem::NoPartitionKey));
        }
        let mut seen: Vec<&str> = Vec::new();
        for column in table.primary_key.columns() {
            if seen.contains(&column) {
                return Err(self.table_error(None, TableProblem::DuplicateKeyColumn(column.into())));
            }
            seen.push(column);
            let Some(result) = self.column(column) else {
                let known = self.columns.iter().map(|known| known.name.as_str());
                return Err(self.table_error(
                    None,
                    TableProblem::NoKeyColumn {
                        table: name.into(),
                        similar: similar(column, known),
                        column: column.into(),
                    },
                ));
            };
            // Cassandra would take it, frozen; the topic couldn't be keyed by it.
            if matches!(result.data_type, DataType::List(_)) {
                return Err(self.table_error(
                    None,
                    TableProblem::KeyType {
                        column: column.into(),
                        found: sql_name(&result.data_type),
                    },
                ));
            }
        }
        self.check_groups(name, table)
    }

    /// A group is a row: what parts the groups is the primary key.
    fn check_groups(&self, name: &str, table: &TableSpec) -> Result<(), PlanError> {
        if !self.is_grouped() {
            return Ok(());
        }
        let mut used = Vec::new();
        for column in table.primary_key.columns() {
            let Some(key) = self.group_key(column) else {
                let problem = TableProblem::NotGroupKey {
                    table: name.into(),
                    column: column.into(),
                };
                let at = self.column(column).and_then(|column| column.at);
                return Err(self.table_error(at, problem));
            };
            used.push(key);
        }
        for (key, text) in self.parting_keys() {
            if !used.contains(&key) {
                let problem = TableProblem::GroupKeyNotInPrimaryKey {
                    table: name.into(),
                    key: text.into(),
                };
                return Err(self.table_error(None, problem));
            }
        }
        match state_table_name(&table.name) {
            Some(_) => Ok(()),
            None => Err(self.table_error(None, TableProblem::NameTooLong(name.into()))),
        }
    }

    /// The table beside a sink's table that keeps the states of its groups; none where the query
    /// has no groups. Its comment says what the states mean, and whose they are.
    pub fn state_table(&self, table: &TableSpec, owner: &str) -> Option<TableSpec> {
        let fingerprint = self.state_fingerprint(owner)?;
        let in_key = |name: &str| table.primary_key.columns().any(|key| key == name);
        let columns = table.columns.iter().filter(|column| in_key(&column.name));
        let state = ColumnSpec {
            name: STATE_COLUMN.into(),
            cql_type: CqlType::Blob,
        };
        Some(TableSpec {
            name: state_table_name(&table.name)?,
            columns: columns.cloned().chain([state]).collect(),
            primary_key: table.primary_key.clone(),
            options: Some(TableOptions {
                comment: Some(format!(
                    "Millstream: state of the groups in {}, {owner} {fingerprint:016x}",
                    table.name
                )),
                ..TableOptions::default()
            }),
        })
    }

    fn table_error(&self, at: Option<Position>, problem: TableProblem) -> PlanError {
        PlanError::Table {
            sink: self.name.clone(),
            at,
            problem: Box::new(problem),
        }
    }
}
