//! The SQL that a page is read with. Pure: names are quoted, and values are only ever parameters.

use anyhow::{bail, ensure};
use millstream_api::source::DatabaseSource;
use tokio_postgres::types::Type;

/// What is read, and in which order.
#[derive(Debug)]
pub struct Relation {
    from: String,
    columns: Vec<(String, Type)>,
    /// The columns that order the rows, with their types: the incremental one, then the key.
    order: Vec<(String, String)>,
    incremental: bool,
    /// What values of the incremental column are below, where its type has infinity or NaN.
    bound: Option<String>,
}

/// What goes behind FROM.
pub fn from(spec: &DatabaseSource) -> anyhow::Result<String> {
    match (&spec.table, &spec.query) {
        (Some(table), None) => Ok(quoted_table(table)),
        // On lines of its own: it may end with a comment.
        (None, Some(query)) => {
            let query = query.trim_end().trim_end_matches(';');
            Ok(format!("(\n{query}\n)"))
        }
        _ => bail!("the source needs a table or a query, and not both"),
    }
}

/// The name of a table, as it is written in SQL.
pub fn quoted_table(table: &str) -> String {
    let parts: Vec<_> = table.split('.').map(quoted).collect();
    parts.join(".")
}

fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

fn column(name: &str) -> String {
    format!("t.{}", quoted(name))
}

/// What all ordinary values of a type are below, where it has others as well.
fn bound_of(data_type: &Type) -> Option<&'static str> {
    match *data_type {
        Type::FLOAT4 | Type::FLOAT8 | Type::DATE | Type::TIMESTAMP | Type::TIMESTAMPTZ => {
            Some("infinity")
        }
        // It has NaN alone before version 14.
        Type::NUMERIC => Some("1e131000"),
        _ => None,
    }
}

impl Relation {
    /// The relation with its columns as the database describes them, and its key.
    pub fn new(
        spec: &DatabaseSource,
        columns: Vec<(String, Type)>,
        key: &[String],
    ) -> anyhow::Result<Self> {
        let mut order: Vec<(String, String)> = Vec::new();
        let mut bound = None;
        let incremental = spec.incremental.as_ref().map(|of| &of.column);
        for name in incremental.into_iter().chain(key) {
            let mut found = columns.iter().filter(|(known, _)| known == name);
            let Some((_, data_type)) = found.next() else {
                let known: Vec<_> = columns.iter().map(|(name, _)| name.as_str()).collect();
                bail!(
                    "there is no column `{name}`; there are {}",
                    known.join(", ")
                );
            };
            let quoted_type = format!(
                "{}.{}",
                quoted(data_type.schema()),
                quoted(data_type.name())
            );
            if Some(name) == incremental {
                bound = bound_of(data_type).map(|bound| format!("'{bound}'::{quoted_type}"));
            }
            if !order.iter().any(|(known, _)| known == name) {
                order.push((name.clone(), quoted_type));
            }
        }
        for (index, (name, _)) in columns.iter().enumerate() {
            let twice = columns[..index].iter().any(|(other, _)| other == name);
            ensure!(!twice, "two columns are named `{name}`; rename one with AS");
        }
        Ok(Relation {
            from: from(spec)?,
            columns,
            order,
            incremental: incremental.is_some(),
            bound,
        })
    }

    /// The names of the columns that order the rows: what a position is a place among.
    pub fn order(&self) -> Vec<String> {
        self.order.iter().map(|(name, _)| name.clone()).collect()
    }

    /// Number of columns that order the rows.
    pub fn depth(&self) -> usize {
        self.order.len()
    }

    /// Whether these are the columns still.
    pub fn has(&self, columns: &[(String, Type)]) -> bool {
        self.columns == columns
    }

    /// The largest value of the incremental column, as text.
    pub fn largest(&self) -> String {
        let (name, _) = &self.order[0];
        let name = column(name);
        // Not max(), which isn't there for every type that has an order.
        format!(
            "SELECT ARRAY[{name}::text] FROM {} AS t WHERE {} ORDER BY {name} DESC LIMIT 1",
            self.from,
            self.readable().join(" AND "),
        )
    }

    /// What holds of the rows that are read. One with infinity or NaN in the incremental column would
    /// be the last for ever: nothing is behind it.
    fn readable(&self) -> Vec<String> {
        let order = self.order.iter();
        let mut conditions: Vec<_> = order
            .map(|(name, _)| format!("{} IS NOT NULL", column(name)))
            .collect();
        if let Some(bound) = &self.bound {
            conditions.push(format!("{} < {bound}", column(&self.order[0].0)));
        }
        conditions
    }

    /// What a column of a row that is never read is, in words.
    pub fn unreadable(&self) -> &'static str {
        match self.bound {
            Some(_) => "null, infinity or NaN",
            None => "null",
        }
    }

    /// Whether there are rows that are never read.
    pub fn unread(&self) -> String {
        // PostgreSQL takes it apart, so that indexes serve.
        format!(
            "SELECT EXISTS (SELECT 1 FROM {} AS t WHERE NOT ({}))",
            self.from,
            self.readable().join(" AND "),
        )
    }

    /// A page: the record as JSON, and its position. `$1` is where it starts, `$2` the largest value
    /// of the incremental column.
    pub fn page(&self, start: Start, rows: u32) -> String {
        let fields = self.columns.iter().map(|(name, data_type)| {
            let value = column(name);
            let value = match *data_type {
                // Without the line ends that PostgreSQL puts into Base64.
                Type::BYTEA => format!("translate(encode({value}, 'base64'), E'\\n', '')"),
                _ => value,
            };
            format!("{value} AS {}", quoted(name))
        });
        let fields = fields.collect::<Vec<_>>().join(", ");
        let order: Vec<_> = self.order.iter().map(|(name, _)| column(name)).collect();
        let texts: Vec<_> = order.iter().map(|name| format!("{name}::text")).collect();
        let mut conditions = self.readable();
        let value = |parameter: u8, index: usize| {
            let data_type = &self.order[index - 1].1;
            format!("(${parameter}::text[])[{index}]::{data_type}")
        };
        match start {
            Start::Beginning => {}
            Start::At => conditions.push(format!("{} >= {}", order[0], value(1, 1))),
            Start::Behind => {
                let values: Vec<_> = (1..=order.len()).map(|index| value(1, index)).collect();
                let (order, values) = (order.join(", "), values.join(", "));
                conditions.push(format!("({order}) > ({values})"));
            }
        }
        if self.incremental {
            conditions.push(format!("{} <= {}", order[0], value(2, 1)));
        }
        format!(
            "SELECT (SELECT row_to_json(j.*) FROM (SELECT {fields}) AS j)::text, ARRAY[{}] \
             FROM {} AS t WHERE {} ORDER BY {} LIMIT {rows}",
            texts.join(", "),
            self.from,
            conditions.join(" AND "),
            order.join(", "),
        )
    }
}

/// Where a page begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// With the first row.
    Beginning,
    /// With the first row whose incremental column isn't smaller.
    At,
    /// With the first row behind a position.
    Behind,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn relation(settings: serde_json::Value) -> anyhow::Result<Relation> {
        let mut spec = settings;
        spec["postgres"] = serde_json::json!({"host": "h", "database": "d", "user": "u"});
        let spec: DatabaseSource = serde_json::from_value(spec)?;
        let columns = [
            ("id", Type::INT8),
            ("a\"b", Type::BYTEA),
            ("at", Type::DATE),
        ];
        let columns = columns.map(|(name, data_type)| (name.to_owned(), data_type));
        Relation::new(&spec, columns.to_vec(), &spec.key)
    }

    #[test]
    fn names_are_quoted_and_values_are_parameters() {
        let relation = relation(serde_json::json!({
            "table": "Shop.it\"ems; --", "key": ["a\"b", "id"],
            "incremental": {"column": "at", "initial": "'; DROP TABLE t"},
        }))
        .unwrap();
        let pages =
            [Start::Beginning, Start::At, Start::Behind].map(|start| relation.page(start, 7));
        let all = [pages.join("\n\n"), relation.largest(), relation.unread()];
        insta::assert_snapshot!(all.join("\n\n"));
    }

    #[test]
    fn a_column_that_is_not_there_is_named() {
        let error =
            relation(serde_json::json!({"query": "SELECT 1;\n", "key": ["idd"]})).unwrap_err();
        assert_eq!(
            error.to_string(),
            "there is no column `idd`; there are id, a\"b, at"
        );
    }
}
