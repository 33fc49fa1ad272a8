//! A shape as SQL column definitions.

use millstream_plan::{ROW_COLUMN, VirtualColumn};

use super::shape::{Field, Shape};

/// As `RecordSchema` has it.
const MAX_DEPTH: usize = 16;
/// Columns of text before a struct is broken into lines.
const WIDTH: usize = 90;

/// A record's columns, and what is to be said of them.
#[derive(Default)]
pub struct Columns {
    pub columns: Vec<Field>,
    /// Fields that were left out, or whose type is a guess.
    pub notes: Vec<String>,
}

impl Columns {
    /// The columns of records of this shape.
    pub fn of(fields: &[Field]) -> Self {
        let mut notes = Vec::new();
        let columns = declarable(fields, "", 0, &mut notes);
        Columns { columns, notes }
    }

    /// The schema, notes first.
    pub fn schema(&self) -> String {
        let notes = self.notes.iter().map(|note| format!("-- {note}\n"));
        let names: Vec<String> = self
            .columns
            .iter()
            .map(|field| quoted(&field.name))
            .collect();
        let widest = names.iter().map(|name| name.chars().count()).max();
        let widest = widest.unwrap_or_default().min(24);
        let columns = self.columns.iter().zip(&names).map(|(field, name)| {
            let name = format!("{name:widest$} ");
            format!("{name}{}", type_text(&field.shape, 0, name.chars().count()))
        });
        notes.collect::<String>() + &columns.collect::<Vec<_>>().join(",\n")
    }
}

/// The fields that a schema can have; what is left out is noted.
fn declarable(fields: &[Field], path: &str, depth: usize, notes: &mut Vec<String>) -> Vec<Field> {
    let mut kept = Vec::new();
    for field in fields {
        let path = format!("{path}/{}", field.name.escape_debug());
        let reserved = depth == 0 && is_reserved(&field.name);
        if reserved || field.name.is_empty() {
            notes.push(format!("{path} is left out: the name can't be declared"));
        } else if let Some(shape) = declared(&field.shape, &path, depth, notes) {
            let name = field.name.clone();
            kept.push(Field { name, shape });
        }
    }
    kept
}

fn is_reserved(name: &str) -> bool {
    name == ROW_COLUMN || VirtualColumn::ALL.map(VirtualColumn::name).contains(&name)
}

fn declared(shape: &Shape, path: &str, depth: usize, notes: &mut Vec<String>) -> Option<Shape> {
    let why = match shape {
        Shape::Struct(_) | Shape::Array(_) if depth >= MAX_DEPTH => "it is nested too deep",
        Shape::Struct(fields) => match declarable(fields, path, depth + 1, notes) {
            fields if fields.is_empty() => "an object without fields",
            fields => return Some(Shape::Struct(fields)),
        },
        Shape::Array(element) => {
            let element = declared(element, &format!("{path}/0"), depth + 1, notes)?;
            return Some(Shape::Array(Box::new(element)));
        }
        Shape::Unfit(why) => why,
        Shape::Unknown => {
            notes.push(format!("{path} was null in all records: TEXT is a guess"));
            return Some(Shape::Unknown);
        }
        known => return Some(known.clone()),
    };
    notes.push(format!("{path} is left out: {why}"));
    None
}

/// On one line where it fits; `indent` and `column` are where the type begins.
fn type_text(shape: &Shape, indent: usize, column: usize) -> String {
    match shape {
        Shape::Struct(fields) => {
            let flat = fields.iter().map(|field| definition(field, indent, column));
            let flat = format!("STRUCT<{}>", flat.collect::<Vec<_>>().join(", "));
            if column + flat.chars().count() <= WIDTH && !flat.contains('\n') {
                return flat;
            }
            let indent = indent + 2;
            let lines = fields.iter().map(|field| definition(field, indent, indent));
            let separator = format!(",\n{:indent$}", "");
            let lines = lines.collect::<Vec<_>>().join(&separator);
            format!("STRUCT<\n{:indent$}{lines}>", "")
        }
        Shape::Array(element) => format!("ARRAY<{}>", type_text(element, indent, column + 6)),
        scalar => scalar.scalar_type().unwrap_or("TEXT").to_owned(),
    }
}

fn definition(field: &Field, indent: usize, column: usize) -> String {
    let name = quoted(&field.name);
    let column = column + name.chars().count() + 1;
    format!("{name} {}", type_text(&field.shape, indent, column))
}

/// A name as SQL takes it, where its case counts anyway.
pub fn quoted(name: &str) -> String {
    let plain = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    match plain {
        true => name.to_owned(),
        false => format!("\"{}\"", name.replace('"', "\"\"")),
    }
}
