//! Records that are served in an order of their own.

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;

use anyhow::{Context, Result, bail};
use flate2::read::MultiGzDecoder;
use serde_json::Value;

/// A list of records.
#[derive(Debug, Default)]
pub struct Dataset(Vec<Value>);

impl Dataset {
    /// These records, in this order.
    pub fn new(records: Vec<Value>) -> Self {
        Dataset(records)
    }

    /// Reads a file of JSON lines, a JSON array or a Randomuser answer (an object with `results`);
    /// gzip is undone where the name ends in `.gz`.
    ///
    /// # Errors
    /// When the file can't be read, or what is in it isn't JSON or isn't a list of records.
    pub fn load(path: &Path) -> Result<Self> {
        let what = || format!("reading records from {}", path.display());
        let mut file = BufReader::new(File::open(path).with_context(what)?);
        let mut text = String::new();
        if path.extension().is_some_and(|extension| extension == "gz") {
            MultiGzDecoder::new(file).read_to_string(&mut text)
        } else {
            file.read_to_string(&mut text)
        }
        .with_context(what)?;
        Self::parse(&text).with_context(what)
    }

    fn parse(text: &str) -> Result<Self> {
        let mut values = serde_json::Deserializer::from_str(text)
            .into_iter()
            .collect::<Result<Vec<Value>, _>>()?;
        if values.len() != 1 {
            return Ok(Dataset(values));
        }
        match values.pop() {
            Some(Value::Array(records)) => Ok(Dataset(records)),
            Some(Value::Object(mut answer)) => match answer.remove("results") {
                Some(Value::Array(records)) => Ok(Dataset(records)),
                Some(_) => bail!("`results` isn't an array"),
                None => Ok(Dataset(vec![Value::Object(answer)])),
            },
            _ => bail!("there is neither an array nor an object in it"),
        }
    }

    /// All records.
    pub fn records(&self) -> &[Value] {
        &self.0
    }

    /// At most `limit` records from `offset` on.
    pub fn page(&self, offset: u64, limit: u64) -> &[Value] {
        let end =
            |position: u64| usize::try_from(position).map_or(self.0.len(), |p| p.min(self.0.len()));
        &self.0[end(offset)..end(offset.saturating_add(limit))]
    }
}

/// What a check recognises a record by: a user's UUID or a licence's number.
pub fn id(record: &Value) -> Option<&str> {
    let id = record.pointer("/login/uuid").or(record.get("license_nbr"));
    id.and_then(Value::as_str)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_every_form_of_a_list() {
        for text in [
            "{\"a\": 1}\n{\"a\": 2}\n",
            "[{\"a\": 1}, {\"a\": 2}]",
            "{\"results\": [{\"a\": 1}, {\"a\": 2}], \"info\": {}}",
        ] {
            let dataset = Dataset::parse(text).unwrap();
            assert_eq!(dataset.records().len(), 2, "{text}");
            assert_eq!(dataset.page(1, 10), &dataset.records()[1..]);
            assert!(dataset.page(u64::MAX, u64::MAX).is_empty());
        }
        assert_eq!(Dataset::parse("{\"a\": 1}").unwrap().records().len(), 1);
    }

    #[test]
    fn refuses_what_is_no_list() {
        for text in ["12", "{\"results\": 1}", "{\"a\": ", "[1"] {
            assert!(Dataset::parse(text).is_err(), "{text}");
        }
    }
}
