//! The shape of a record in Avro: what is registered, and what can be read with it.
//!
//! Every field is a union of null and its type, with null as its default, so that a field that is
//! added is null in the records from before.

use datafusion::arrow::datatypes::{DataType, Fields};
use serde_json::{Map, Value, json};
use thiserror::Error;

use crate::schema::{RecordSchema, SchemaField, SchemaType};

/// The namespace of all records.
const NAMESPACE: &str = "millstream";

/// Why a record can't be Avro, or not be read with another schema.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum AvroProblem {
    #[error(
        "field `{0}` can't be in Avro, whose names consist of letters, digits and `_`; use topic.encoding: json, or leave the field out"
    )]
    Name(String),
    #[error("field `{field}` was written as {writer} and can't be read as {reader}")]
    Type {
        field: String,
        writer: String,
        reader: String,
    },
    #[error("{place} was written by the name of {writer}, not {reader}")]
    RecordName {
        place: String,
        writer: String,
        reader: String,
    },
}

impl RecordSchema {
    /// The Avro schema of the records in a topic. It depends on nothing but schema and topic.
    pub fn avro(&self, topic: &str) -> Result<Value, AvroProblem> {
        record(self.fields(), NAMESPACE, &identifier(topic), "")
    }
}

/// A name for Avro that is as near to the text as can be.
fn identifier(text: &str) -> String {
    let valid = |c: char| if c.is_ascii_alphanumeric() { c } else { '_' };
    let name: String = text.chars().map(valid).collect();
    match name.starts_with(|c: char| c.is_ascii_digit()) {
        true => format!("_{name}"),
        false => name,
    }
}

/// Records are named by where they are: two of one name can't be in a schema.
fn record(
    fields: &[SchemaField],
    namespace: &str,
    name: &str,
    path: &str,
) -> Result<Value, AvroProblem> {
    let inner = format!("{namespace}.{name}");
    let fields = fields.iter().map(|field| {
        let path = join(path, &field.name);
        if identifier(&field.name) != field.name {
            return Err(AvroProblem::Name(path));
        }
        let value = avro_type(&field.data_type, &inner, &field.name, &path)?;
        Ok(json!({"name": field.name, "type": ["null", value], "default": null}))
    });
    let fields = fields.collect::<Result<Vec<_>, _>>()?;
    Ok(json!({"type": "record", "name": name, "namespace": namespace, "fields": fields}))
}

fn avro_type(
    data_type: &SchemaType,
    namespace: &str,
    name: &str,
    path: &str,
) -> Result<Value, AvroProblem> {
    let logical =
        |avro: &str, logical_type: &str| json!({"type": avro, "logicalType": logical_type});
    Ok(match data_type {
        SchemaType::Boolean => json!("boolean"),
        SchemaType::TinyInt | SchemaType::SmallInt | SchemaType::Int => json!("int"),
        SchemaType::BigInt => json!("long"),
        SchemaType::Float => json!("float"),
        SchemaType::Double => json!("double"),
        SchemaType::Decimal { precision, scale } => json!({
            "type": "bytes", "logicalType": "decimal", "precision": precision, "scale": scale,
        }),
        SchemaType::Text => json!("string"),
        SchemaType::Uuid => logical("string", "uuid"),
        SchemaType::Date => logical("int", "date"),
        SchemaType::Timestamp => logical("long", "timestamp-micros"),
        SchemaType::Struct(fields) => record(fields, namespace, name, path)?,
        SchemaType::Array(element) => {
            let element = avro_type(element, namespace, name, path)?;
            json!({"type": "array", "items": ["null", element]})
        }
    })
}

fn join(path: &str, name: &str) -> String {
    match path {
        "" => name.to_owned(),
        _ => format!("{path}.{name}"),
    }
}

/// An Avro schema without the fields that aren't among these columns.
pub fn narrow(schema: &Value, columns: &Fields) -> Value {
    let mut narrowed = schema.clone();
    if let Some(Value::Array(fields)) = narrowed.get_mut("fields") {
        fields.retain_mut(|field| {
            let column = columns
                .iter()
                .find(|column| field["name"] == *column.name());
            let Some(column) = column else { return false };
            narrow_type(&mut field["type"], column.data_type());
            true
        });
    }
    narrowed
}

fn narrow_type(schema: &mut Value, data_type: &DataType) {
    match (schema, data_type) {
        (Value::Array(branches), _) => {
            for branch in branches {
                narrow_type(branch, data_type);
            }
        }
        (schema, DataType::Struct(columns)) => *schema = narrow(schema, columns),
        (schema, DataType::List(element)) if schema["type"] == "array" => {
            narrow_type(&mut schema["items"], element.data_type());
        }
        _ => {}
    }
}

/// An Avro schema in which UUIDs are the text that they are written as.
pub fn uuids_as_text(schema: &mut Value) {
    match schema {
        Value::Array(branches) => branches.iter_mut().for_each(uuids_as_text),
        Value::Object(members) => {
            if members.get("type") == Some(&json!("string")) {
                members.remove("logicalType");
            }
            members.values_mut().for_each(uuids_as_text);
        }
        _ => {}
    }
}

/// Whether records that were written with one schema mean the same when they are read with another,
/// which is one of [`RecordSchema::avro`]. Registries don't look at logical types: a decimal of
/// another scale would be another number.
pub fn check_readable(writer: &Value, reader: &Value) -> Result<(), AvroProblem> {
    readable(writer, reader, "")
}

fn readable(writer: &Value, reader: &Value, path: &str) -> Result<(), AvroProblem> {
    let differ = || AvroProblem::Type {
        field: path.to_owned(),
        writer: describe(writer),
        reader: describe(reader),
    };
    let (written, read) = (value(writer), value(reader));
    let (Some(written), Some(read)) = (written, read) else {
        return Err(differ());
    };
    match (type_name(written), type_name(read)) {
        (Some("record"), Some("record")) => readable_record(written, read, path),
        (Some("array"), Some("array")) => readable(&written["items"], &read["items"], path),
        (Some(from), Some(to)) => {
            let plain = logical(written).is_none() && logical(read).is_none();
            let same = from == to && logical(written) == logical(read);
            match same || plain && promotes(from, to) {
                true => Ok(()),
                false => Err(differ()),
            }
        }
        _ => Err(differ()),
    }
}

fn readable_record(writer: &Value, reader: &Value, path: &str) -> Result<(), AvroProblem> {
    let name = |schema: &Value| {
        let text = |key: &str| schema[key].as_str().unwrap_or_default().to_owned();
        match text("name") {
            full if full.contains('.') => full,
            name => join(&text("namespace"), &name),
        }
    };
    if name(writer) != name(reader) {
        return Err(AvroProblem::RecordName {
            place: match path {
                "" => "the record".to_owned(),
                _ => format!("field `{path}`"),
            },
            writer: name(writer),
            reader: name(reader),
        });
    }
    let fields = |schema: &'_ Value| schema["fields"].as_array().cloned().unwrap_or_default();
    let written = fields(writer);
    for field in fields(reader) {
        // A field that wasn't written is null.
        if let Some(there) = written.iter().find(|there| there["name"] == field["name"]) {
            let name = field["name"].as_str().unwrap_or_default();
            readable(&there["type"], &field["type"], &join(path, name))?;
        }
    }
    Ok(())
}

/// The schema of a value that may be null.
fn value(schema: &Value) -> Option<&Value> {
    let Value::Array(branches) = schema else {
        return Some(schema);
    };
    let mut values = branches.iter().filter(|branch| **branch != "null");
    let value = values.next();
    value.filter(|_| values.next().is_none() && branches.len() <= 2)
}

fn type_name(schema: &Value) -> Option<&str> {
    match schema {
        Value::String(name) => Some(name),
        Value::Object(members) => members.get("type")?.as_str(),
        _ => None,
    }
}

/// What a value means beyond its type; a UUID is a text.
fn logical(schema: &Value) -> Option<(&Value, Option<&Value>, Option<&Value>)> {
    let members: &Map<_, _> = schema.as_object()?;
    let logical_type = members.get("logicalType").filter(|name| **name != "uuid")?;
    let scale = members.get("scale").filter(|scale| **scale != 0);
    Some((logical_type, members.get("precision"), scale))
}

fn promotes(from: &str, to: &str) -> bool {
    matches!(
        (from, to),
        ("int", "long" | "float" | "double") | ("long", "float" | "double") | ("float", "double")
    )
}

fn describe(schema: &Value) -> String {
    match value(schema) {
        None => schema.to_string(),
        Some(value) => match (type_name(value), logical(value)) {
            (_, Some((name, Some(precision), scale))) => {
                let scale = scale.unwrap_or(&Value::Null).as_u64().unwrap_or(0);
                let name = name.as_str().unwrap_or_default();
                format!("`{name}({precision}, {scale})`")
            }
            (_, Some((name, ..))) => format!("`{}`", name.as_str().unwrap_or_default()),
            (Some(name), None) => format!("`{name}`"),
            (None, None) => value.to_string(),
        },
    }
}
