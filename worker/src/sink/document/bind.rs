//! Result rows to upserts of documents.

use std::collections::HashMap;

use millstream_plan::SinkPlan;
use mongodb::bson::{Bson, Document, doc, serialize_to_vec};

use super::value::{Kind, value};
use crate::{
    batch::{Batch, Record, Rejected, Versions},
    pointer::{Fields, Presence},
    sink::column::Column,
    transform::Rows,
};

/// The field with what a document's newest record says of its place: base plus offset.
pub const VERSION: &str = "_version";
pub const ID: &str = "_id";

/// Binds the result of a sink's query to documents.
pub struct Binder {
    targets: Vec<Target>,
    /// Index in `targets`.
    id: usize,
    versions: Versions,
}

struct Target {
    name: String,
    /// Index in the result.
    index: usize,
    kind: Kind,
    /// Where the column is nothing but a field of the record: what it says where it is null.
    path: Option<Vec<String>>,
}

/// What the records of one batch say of a document, oldest first.
#[derive(Clone, Debug, PartialEq)]
pub struct Upsert {
    pub id: Bson,
    pub parts: Vec<Part>,
}

/// What one record says of a document.
#[derive(Clone, Debug, PartialEq)]
pub struct Part {
    pub version: i64,
    /// The fields that it sets, without those that the record says nothing of.
    pub fields: Document,
    /// Index of the record in its batch.
    pub record: usize,
    replayed: bool,
}

/// The bytes of an id: equal for equal ids of one column.
type Key = Vec<u8>;

impl Upsert {
    /// The version of the document once it is written.
    pub fn version(&self) -> i64 {
        self.parts.last().map_or(i64::MIN, |part| part.version)
    }

    /// All fields but the id, with the version.
    pub fn fields(&self) -> Document {
        let mut fields = Document::new();
        for part in &self.parts {
            fields.extend(part.fields.clone());
        }
        fields.insert(VERSION, self.version());
        fields
    }

    /// About how many bytes it is when it is sent.
    pub fn size(&self) -> usize {
        let parts = self.parts.iter();
        size(&self.id) + parts.map(|part| fields_size(&part.fields)).sum::<usize>()
    }

    /// The whole document.
    pub fn document(&self) -> Document {
        let mut document = doc! {ID: self.id.clone()};
        document.extend(self.fields());
        document
    }

    /// The older and the newer half; none where there is but one record.
    pub fn halves(&self) -> Option<[Upsert; 2]> {
        let (older, newer) = self.parts.split_at(self.parts.len() / 2);
        (!older.is_empty()).then(|| {
            [older, newer].map(|parts| Upsert {
                id: self.id.clone(),
                parts: parts.to_vec(),
            })
        })
    }
}

impl Binder {
    /// A binder of the query's result to documents of which the column `id` is the id.
    pub fn new(plan: &SinkPlan, id: &str, version_base: i64) -> anyhow::Result<Self> {
        let columns = plan.columns.iter().enumerate();
        let targets: Vec<_> = columns
            .map(|(index, column)| Target {
                name: column.name.clone(),
                index,
                kind: Kind::new(&column.data_type, &column.cql_type),
                path: column.path.clone(),
            })
            .collect();
        let id = targets.iter().position(|target| target.name == id);
        Ok(Binder {
            id: id.ok_or_else(|| anyhow::anyhow!("the SQL's result has no column for the id"))?,
            targets,
            versions: Versions::new(plan, version_base),
        })
    }

    /// Binds rows, in rounds that are to be written one after the other: in a round no two upserts
    /// are of one document.
    pub fn bind(&self, batch: &Batch, rows: &[Rows]) -> (Vec<Vec<Upsert>>, Vec<Rejected>) {
        let mut bound = Vec::with_capacity(batch.len());
        let mut rejected = Vec::new();
        for rows in rows {
            let columns = self
                .targets
                .iter()
                .map(|target| Column::new(rows.columns.column(target.index)))
                .collect::<Result<Vec<_>, _>>();
            for (row, &record) in rows.records.iter().enumerate() {
                let upsert = match &columns {
                    Ok(columns) => self.upsert(batch, columns, row, record),
                    Err(reason) => Err(reason.clone()),
                };
                match upsert {
                    Ok(upsert) => bound.push(upsert),
                    Err(reason) => rejected.push(Rejected::new(record, reason)),
                }
            }
        }
        if batch.records().iter().any(Record::is_replayed) {
            // It comes late, and is older than what comes before it.
            bound.sort_by_key(|(_, _, part)| part.version);
        }
        (rounds(bound), rejected)
    }

    fn upsert(
        &self,
        batch: &Batch,
        columns: &[Column],
        row: usize,
        record: usize,
    ) -> Result<(Key, Bson, Part), String> {
        let source = &batch.records()[record];
        let record_fields = Fields::of(batch.value(source).unwrap_or_default());
        let mut fields = Document::new();
        for (target, column) in self.targets.iter().zip(columns) {
            let value = value(column, row, target.kind)
                .map_err(|reason| format!("column `{}`: {reason}", target.name))?;
            if value != Bson::Null || !is_absent(target, &record_fields)? {
                fields.insert(target.name.clone(), value);
            }
        }
        let name = &self.targets[self.id].name;
        let id = match fields.get(name) {
            None | Some(Bson::Null) => return Err(format!("the document's id `{name}` is null")),
            Some(id) => id.clone(),
        };
        let key = serialize_to_vec(&doc! {ID: &id})
            .map_err(|error| format!("the document's id `{name}`: {error}"))?;
        let part = Part {
            version: self.versions.of(source),
            replayed: source.is_replayed() && !self.versions.grouped,
            record,
            fields,
        };
        Ok((key, id, part))
    }
}

fn fields_size(fields: &Document) -> usize {
    fields
        .iter()
        .map(|(name, value)| name.len() + size(value))
        .sum()
}

fn size(value: &Bson) -> usize {
    const OWN: usize = 16;
    OWN + match value {
        Bson::String(text) => text.len(),
        Bson::Binary(binary) => binary.bytes.len(),
        Bson::Array(elements) => elements.iter().map(size).sum(),
        _ => 0,
    }
}

/// Whether the record says nothing of the field.
fn is_absent(target: &Target, fields: &Fields<'_>) -> Result<bool, String> {
    match &target.path {
        Some(path) => Ok(fields.presence(path)? == Presence::Absent),
        None => Ok(false),
    }
}

/// Puts together what is said of one document. A record that was replayed stays alone: a newer
/// one may be in the document already, which what it says then mustn't touch.
fn rounds(bound: Vec<(Key, Bson, Part)>) -> Vec<Vec<Upsert>> {
    let mut rounds: Vec<Vec<Upsert>> = Vec::new();
    let mut places: HashMap<Key, (usize, usize)> = HashMap::with_capacity(bound.len());
    for (key, id, part) in bound {
        let place = places.get(&key).copied();
        if let Some((round, index)) = place
            && !part.replayed
            && !rounds[round][index].parts[0].replayed
        {
            rounds[round][index].parts.push(part);
            continue;
        }
        let round = place.map_or(0, |(round, _)| round + 1);
        if round == rounds.len() {
            rounds.push(Vec::new());
        }
        places.insert(key, (round, rounds[round].len()));
        let parts = vec![part];
        rounds[round].push(Upsert { id, parts });
    }
    rounds
}

#[cfg(test)]
mod tests;
