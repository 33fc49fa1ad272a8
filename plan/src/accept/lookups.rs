//! Whether a pipeline's lookups make sense, and what their columns are.

use std::time::Duration;

use millstream_api::{
    DataPipeline, Keyspace, Lookup as Spec,
    cql::CqlType,
    keyspace::{ColumnSpec, TableSpec},
    lookup::LookupTable,
};

use super::find_keyspace;
use crate::{Lookup, PlanError, Refusal, schema::SchemaType, table::schema_type_name};

/// Cassandra and the servers of files aren't asked more often.
const SHORTEST_REFRESH: Duration = Duration::from_secs(1);

/// The pipeline's lookups, each with its schema.
pub(super) fn accept_lookups(
    pipeline: &DataPipeline,
    keyspaces: &[Keyspace],
) -> Result<Vec<Spec>, Refusal> {
    let lookups = pipeline.spec.lookups.iter();
    let accepted = lookups.map(|lookup| {
        accept_lookup(lookup, keyspaces)
            .map_err(|problem| Refusal::InvalidSpec(format!("lookup `{}`: {problem}", lookup.name)))
    });
    accepted.collect()
}

/// What queries have to know of lookups that were accepted.
pub fn plan_lookups(lookups: &[Spec]) -> Result<Vec<Lookup>, PlanError> {
    let planned = lookups.iter().map(|lookup| {
        let schema = lookup.schema.as_deref().unwrap_or_default();
        Lookup::new(&lookup.name, schema)
    });
    planned.collect()
}

fn accept_lookup(lookup: &Spec, keyspaces: &[Keyspace]) -> Result<Spec, String> {
    if Duration::from(lookup.refresh) < SHORTEST_REFRESH {
        return Err("refresh: 1s is the shortest".into());
    }
    if lookup.max_bytes().is_none() {
        let size = &lookup.max_size;
        return Err(format!(
            "maxSize: `{size}` isn't a size such as 64Mi or 1Gi"
        ));
    }
    let schema = match (&lookup.cassandra, &lookup.schema) {
        (Some(_), Some(schema)) => {
            check_columns(lookup, schema)?;
            schema.clone()
        }
        (Some(table), None) => schema_of(table, declared(table, keyspaces)?)?,
        (None, Some(schema)) => schema.clone(),
        (None, None) => return Err("schema: give the columns and their types".into()),
    };
    Ok(Spec {
        schema: Some(schema),
        ..lookup.clone()
    })
}

/// Cassandra has no nested values that could be told from text.
fn check_columns(lookup: &Spec, schema: &str) -> Result<(), String> {
    let Ok(planned) = Lookup::new(&lookup.name, schema) else {
        // Told with its place where the queries are planned.
        return Ok(());
    };
    let mut fields = planned.schema.fields().iter();
    let nested = fields.find(|field| {
        matches!(
            field.data_type,
            SchemaType::Struct(_) | SchemaType::Array(_)
        )
    });
    match nested {
        Some(field) => Err(format!(
            "schema: `{}` is {}; a collection of Cassandra is read as TEXT in JSON: declare it so",
            field.name,
            schema_type_name(&field.data_type)
        )),
        None => Ok(()),
    }
}

fn declared<'a>(table: &LookupTable, keyspaces: &'a [Keyspace]) -> Result<&'a TableSpec, String> {
    let keyspace = find_keyspace(keyspaces, &table.keyspace);
    let mut tables = keyspace.iter().flat_map(|keyspace| &keyspace.spec.tables);
    tables
        .find(|declared| declared.name == table.table)
        .ok_or_else(|| {
            format!(
                "no Keyspace of this namespace declares table {}.{}: give the columns that the SQL reads in `schema`",
                table.keyspace, table.table
            )
        })
}

/// The columns of a table as a schema.
fn schema_of(table: &LookupTable, declared: &TableSpec) -> Result<String, String> {
    let column = |column: &ColumnSpec| {
        let data_type = schema_type(&column.cql_type)?;
        let data_type = schema_type_name(&data_type);
        Some(format!("\"{}\" {data_type}", column.name))
    };
    let columns: Vec<_> = declared.columns.iter().filter_map(column).collect();
    match columns.is_empty() {
        true => Err(format!(
            "table {}.{} has no columns that SQL can read",
            table.keyspace, table.table
        )),
        false => Ok(columns.join(", ")),
    }
}

/// The type in SQL of values of a CQL type: what it has no type for is text, as where the REST
/// service reads it.
fn schema_type(cql_type: &CqlType) -> Option<SchemaType> {
    Some(match cql_type {
        CqlType::Blob => return None,
        CqlType::Boolean => SchemaType::Boolean,
        CqlType::TinyInt => SchemaType::TinyInt,
        CqlType::SmallInt => SchemaType::SmallInt,
        CqlType::Int => SchemaType::Int,
        CqlType::BigInt => SchemaType::BigInt,
        CqlType::Float => SchemaType::Float,
        CqlType::Double => SchemaType::Double,
        CqlType::Date => SchemaType::Date,
        CqlType::Timestamp => SchemaType::Timestamp,
        CqlType::Uuid | CqlType::TimeUuid => SchemaType::Uuid,
        _ => SchemaType::Text,
    })
}
