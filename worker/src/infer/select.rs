//! A SELECT of all that a table can take of a record.

use anyhow::Context;
use millstream_plan::{RecordSchema, SinkPlan};

use super::{
    schema::{Columns, quoted},
    shape::{Field, Shape},
};

/// As the Keyspace kind has it.
const MAX_NAME: usize = 48;
const MAX_COLUMNS: usize = 490;

/// The SELECT list.
pub struct Selection {
    pub columns: Vec<Selected>,
}

/// A field and its column.
pub struct Selected {
    /// Names from the top of the record.
    pub path: Vec<String>,
    /// As in the SQL.
    pub expr: String,
    pub column: String,
    pub shape: Shape,
}

impl Selection {
    /// Single values, and arrays of them, at any depth.
    pub fn of(schema: &RecordSchema, columns: &Columns) -> anyhow::Result<Self> {
        let mut selection = Selection {
            columns: Vec::new(),
        };
        selection.add(schema, &[], &columns.columns);
        selection.columns.truncate(MAX_COLUMNS);
        // Each column was planned by itself. Records of nothing but arrays of objects have none.
        if !selection.columns.is_empty() {
            SinkPlan::new(schema, "inferred", &selection.sql(&[]))
                .context("the SQL that was inferred")?;
        }
        Ok(selection)
    }

    fn add(&mut self, schema: &RecordSchema, above: &[String], fields: &[Field]) {
        for field in fields {
            let mut path = above.to_vec();
            path.push(field.name.clone());
            if let Shape::Struct(fields) = &field.shape {
                self.add(schema, &path, fields);
                continue;
            }
            let column = self.column_name(&path);
            // Some words have a meaning in SQL; what they mean is the planner's to say.
            let plain = path.join(".");
            let exact: Vec<_> = path.iter().map(|name| always_quoted(name)).collect();
            let expr = [plain, exact.join(".")].into_iter().find(|expr| {
                // Behind a comma, where `order` could end the list.
                let sql = format!("SELECT _offset AS {column}_0, {expr} AS {column} FROM records");
                let plan = SinkPlan::new(schema, "inferred", &sql);
                plan.is_ok_and(|plan| plan.columns[1].path.as_ref() == Some(&path))
            });
            // An array of objects has no place in a table.
            if let Some(expr) = expr {
                self.columns.push(Selected {
                    path,
                    expr,
                    column,
                    shape: field.shape.clone(),
                });
            }
        }
    }

    /// A name fit for Cassandra, and not there yet: `name.first` is `name_first`.
    fn column_name(&self, path: &[String]) -> String {
        let mut name = String::new();
        let mut before = '_';
        for c in path.join("_").chars() {
            if c.is_ascii_uppercase() && (before.is_ascii_lowercase() || before.is_ascii_digit()) {
                name.push('_');
            }
            let c = if c.is_ascii_alphanumeric() { c } else { '_' };
            if c != '_' || before != '_' {
                name.push(c.to_ascii_lowercase());
            }
            before = c;
        }
        if !name.starts_with(|c: char| c.is_ascii_lowercase()) {
            name = format!("c_{name}");
        }
        name.truncate(MAX_NAME - 4);
        let name = name.trim_end_matches('_').to_owned();
        let taken = |name: &String| self.columns.iter().any(|known| known.column == *name);
        let numbered = (2..).map(|number| format!("{name}_{number}"));
        let mut names = std::iter::once(name.clone()).chain(numbered);
        names.find(|name| !taken(name)).unwrap_or(name)
    }

    /// The query, with these columns before the others.
    pub fn sql(&self, first: &[&str]) -> String {
        let columns = self.columns.iter().map(|selected| {
            let own = selected.path.last() == Some(&selected.column);
            match own && selected.path.len() == 1 && selected.expr == selected.column {
                true => selected.expr.clone(),
                false => format!("{} AS {}", selected.expr, selected.column),
            }
        });
        let columns: Vec<_> = first
            .iter()
            .map(|column| (*column).to_owned())
            .chain(columns)
            .collect();
        format!("SELECT {}\nFROM records", columns.join(",\n       "))
    }
}

fn always_quoted(name: &str) -> String {
    match quoted(name) {
        plain if plain == name => format!("\"{name}\""),
        quoted => quoted,
    }
}
