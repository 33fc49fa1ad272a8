//! The field that tells records apart.

use std::{cmp::Reverse, collections::HashSet};

use serde_json::Value;

use super::{
    select::{Selected, Selection},
    shape::{Reading, Shape},
};

/// A column for a primary key.
pub struct Key {
    pub column: String,
    values: usize,
    records: usize,
}

impl Key {
    /// The best candidate among fields that every record has: one whose values are all different,
    /// or else one that is named as an identifier and mostly differs.
    pub fn of(selection: &Selection, records: &[Value]) -> Option<Self> {
        let candidates = selection.columns.iter().filter_map(|selected| {
            let values = distinct(selected, records)?;
            let rank = rank(selected, values, records.len())?;
            Some((rank, selected, values))
        });
        // Of equals the one that tells more records apart, and then the first.
        let (_, selected, values) =
            candidates.min_by_key(|(rank, _, values)| (*rank, Reverse(*values)))?;
        Some(Key {
            column: selected.column.clone(),
            values,
            records: records.len(),
        })
    }

    /// What is to be said of it.
    pub fn note(&self) -> String {
        let Key {
            column,
            values,
            records,
        } = self;
        match values == records {
            true => format!("{column} was there and different in all {records} records"),
            false => format!(
                "{column} had {values} values in {records} records: of those of one value the last stays"
            ),
        }
    }
}

/// How many different values there are; none where a record has no value.
fn distinct(selected: &Selected, records: &[Value]) -> Option<usize> {
    let values = records.iter().map(|record| {
        let mut names = selected.path.iter();
        let value = names.try_fold(record, |value, name| value.get(name))?;
        (!value.is_null() && *value != "").then(|| value.to_string())
    });
    values
        .collect::<Option<HashSet<_>>>()
        .map(|values| values.len())
}

/// Smaller is better; none where it can't be a key.
fn rank(selected: &Selected, values: usize, records: usize) -> Option<u8> {
    let is_named_so = {
        let name = selected.column.as_str();
        let ends = ["id", "_nbr", "_number", "_key", "_code"];
        name.contains("uuid") || ends.iter().any(|end| name.ends_with(end))
    };
    let is_uuid = matches!(selected.shape, Shape::Text(Reading { uuid: true, .. }));
    let is_discrete = match selected.shape {
        Shape::Integer => true,
        Shape::Text(reading) => !reading.timestamp,
        _ => false,
    };
    let differ = values == records;
    match (differ, is_uuid, is_named_so) {
        _ if !is_discrete => None,
        (true, true, _) => Some(0),
        (true, _, true) => Some(1),
        (false, _, true) if values * 3 > records => Some(2),
        (true, ..) => Some(3),
        _ => None,
    }
}
