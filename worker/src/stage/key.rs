//! The key of a record: it decides on the topic partition, and so on the order of rows.

use std::sync::{Mutex, PoisonError};

use datafusion::arrow::{
    array::{ArrayRef, AsArray, RecordBatch},
    compute::cast,
    datatypes::{DataType, Int64Type},
    error::ArrowError,
};
use millstream_api::worker::MAX_RECORD_BYTES;
use millstream_plan::{RecordSchema, SinkPlan};
use serde::de::IgnoredAny;

use crate::{
    batch::Batch,
    pointer::{self, Pointer},
    transform::{Transform, too_large},
};

/// The key of a record, or why it has none.
pub type Key = Result<Option<String>, String>;

/// Makes the keys of records.
pub enum Keys {
    /// Out of fields.
    Fields(Vec<Pointer>),
    /// Out of what is computed of fields.
    Computed(Box<Computed>),
}

/// SQL expressions over a record.
pub struct Computed {
    texts: Vec<String>,
    transform: Mutex<Transform>,
}

impl Keys {
    /// Keys out of the fields at these JSON Pointers, or of SQL expressions over records of this
    /// schema: no such expression begins with a slash.
    pub fn new(key: &[String], schema: &str) -> anyhow::Result<Self> {
        if key.iter().all(|text| text.starts_with('/')) {
            let pointers = key.iter().map(|text| Pointer::parse(text));
            return Ok(Keys::Fields(pointers.collect()));
        }
        let columns = key.iter().enumerate();
        let columns: Vec<_> = columns
            .map(|(index, text)| format!("{text} AS key{index}"))
            .collect();
        let sql = format!("SELECT {} FROM records", columns.join(", "));
        let plan = SinkPlan::new(&RecordSchema::parse(schema)?, "topic.key", &sql)?;
        Ok(Keys::Computed(Box::new(Computed {
            texts: key.to_vec(),
            transform: Mutex::new(Transform::new(&plan)?),
        })))
    }

    /// The key of a record, or why the topic can't take the record.
    pub fn admit(&self, record: &[u8]) -> Key {
        match self.admit_all(&[record]) {
            Ok(mut keys) => keys.pop().unwrap_or(Ok(None)),
            Err(error) => Err(format!("the key can't be computed: {error:#}")),
        }
    }

    /// The key of each record, or why the topic can't take the record. CPU-bound, where keys are
    /// computed: about a microsecond for a small record. Fails where it isn't the records' fault.
    pub fn admit_all(&self, records: &[impl AsRef<[u8]>]) -> anyhow::Result<Vec<Key>> {
        let fit = records.iter().map(|record| fits(record.as_ref()));
        Ok(match self {
            Keys::Fields(pointers) => {
                let keys = fit.zip(records);
                keys.map(|(fit, record)| fit.and_then(|()| of(pointers, record.as_ref())))
                    .collect()
            }
            Keys::Computed(computed) => {
                let keys = fit.zip(computed.of_all(records)?);
                keys.map(|(fit, key)| fit.and(key)).collect()
            }
        })
    }
}

/// Why the topic can't take a record, whatever its key is.
fn fits(record: &[u8]) -> Result<(), String> {
    if record.len() > MAX_RECORD_BYTES {
        return Err(too_large(record.len()));
    }
    match record.trim_ascii_start().first() {
        Some(b'{') if pointer::is_too_deep(record) => Err(pointer::too_deep()),
        Some(b'{') => Ok(()),
        _ => Err("the record isn't a JSON object".to_owned()),
    }
}

/// One text: itself. Several: a JSON array of them. None: no key.
fn joined(mut texts: Vec<String>) -> Option<String> {
    match texts.len() {
        0 | 1 => texts.pop(),
        _ => Some(serde_json::Value::from(texts).to_string()),
    }
}

fn missing(pointer: &Pointer, record: &[u8]) -> String {
    match serde_json::from_slice::<IgnoredAny>(record) {
        Ok(_) => format!("the key field `{pointer}` is not in the record"),
        Err(_) => pointer::not_json(record),
    }
}

fn of(pointers: &[Pointer], record: &[u8]) -> Key {
    let mut texts = Vec::with_capacity(pointers.len());
    for pointer in pointers {
        let raw = pointer
            .find(record)
            .ok_or_else(|| missing(pointer, record))?;
        let text = pointer::scalar_text(raw)
            .ok_or_else(|| format!("the key field `{pointer}` is {}", pointer::kind(raw)))?;
        texts.push(text);
    }
    Ok(joined(texts))
}

impl Computed {
    fn of_all(&self, records: &[impl AsRef<[u8]>]) -> anyhow::Result<Vec<Key>> {
        let mut batch = Batch::default();
        for (index, record) in records.iter().enumerate() {
            batch.push_record(0, index as i64, None, None, Some(record.as_ref()));
        }
        let mut transform = self
            .transform
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let transformed = transform.run(&batch)?;
        let mut keys: Vec<Key> = vec![Ok(None); records.len()];
        for rows in &transformed.rows {
            for (record, key) in rows.records.iter().zip(self.keys(&rows.columns)?) {
                keys[*record] = key;
            }
        }
        for rejected in transformed.rejected {
            keys[rejected.record] = Err(format!("the key can't be computed: {}", rejected.reason));
        }
        Ok(keys)
    }

    /// The keys of rows: equal for rows whose values are equal in Cassandra.
    fn keys(&self, rows: &RecordBatch) -> Result<Vec<Key>, ArrowError> {
        let columns = rows.columns().iter().map(texts);
        let columns = columns.map(|texts| texts.map(Vec::into_iter));
        let mut columns = columns.collect::<Result<Vec<_>, _>>()?;
        let keys = (0..rows.num_rows()).map(|_| {
            let texts = columns
                .iter_mut()
                .zip(&self.texts)
                .map(|(texts, expression)| {
                    let text = texts.next().flatten();
                    text.ok_or_else(|| format!("the key `{expression}` is null"))
                });
            // Each column is gone on with, also where one before it is null.
            let texts: Vec<_> = texts.collect();
            texts.into_iter().collect::<Result<Vec<_>, _>>().map(joined)
        });
        Ok(keys.collect())
    }
}

/// Values as texts, for ever the same: records of one key must come into one partition. TEXT is as it
/// is; all else is a number, of TIMESTAMP the milliseconds, as Cassandra has no finer ones.
fn texts(column: &ArrayRef) -> Result<Vec<Option<String>>, ArrowError> {
    let unit = match column.data_type() {
        DataType::Utf8 => {
            let texts = column.as_string::<i32>().iter();
            return Ok(texts.map(|text| text.map(str::to_owned)).collect());
        }
        DataType::Timestamp(..) => 1_000,
        _ => 1,
    };
    let numbers = cast(column, &DataType::Int64)?;
    let numbers = numbers.as_primitive::<Int64Type>().iter();
    Ok(numbers
        .map(|number| number.map(|number| number.div_euclid(unit).to_string()))
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_may_begin_with_white_space() {
        let keys = Keys::new(&["/a".to_owned()], "").unwrap();
        assert_eq!(keys.admit(b" \n{\"a\": 1}"), Ok(Some("1".into())));
        assert!(keys.admit(b" [1]").is_err());
        let deep = format!(r#"{{"a": 1, "b": {}"#, "[".repeat(1_000_000));
        let error = keys.admit(deep.as_bytes()).unwrap_err();
        assert_eq!(error, "the record is nested deeper than 128 levels");
        let error = keys.admit(b"{\"b\": \"\n\", \"a\": 1}").unwrap_err();
        assert!(
            error.starts_with("the record isn't valid JSON: "),
            "{error}"
        );
    }

    #[test]
    fn keys_are_the_texts_of_fields() {
        let record = r#"{"login": {"uuid": "a-1"}, "n": 7.0, "zero": null, "o": {}}"#.as_bytes();
        let of = |pointers: &[&str]| {
            let pointers: Vec<_> = pointers.iter().map(|text| (*text).to_owned()).collect();
            Keys::new(&pointers, "").unwrap().admit(record)
        };
        assert_eq!(of(&[]), Ok(None));
        assert_eq!(of(&["/login/uuid"]), Ok(Some("a-1".into())));
        assert_eq!(
            of(&["/n", "/login/uuid"]),
            Ok(Some(r#"["7.0","a-1"]"#.into()))
        );
        for (pointer, says) in [
            ("/zero", "`/zero` is null"),
            ("/o", "`/o` is an object"),
            ("/login/id", "`/login/id` is not in the record"),
        ] {
            let error = of(&[pointer]).unwrap_err();
            assert!(error.contains(says), "{error}");
        }
    }

    /// Should this test fail after an upgrade, records of one group would come into two partitions.
    #[test]
    fn computed_keys_are_the_same_for_ever() {
        let schema = "id BIGINT, email TEXT, at TIMESTAMP, yes BOOLEAN";
        let record =
            r#"{"id": -7, "email": "Zoë@X.org", "at": "1969-12-31T23:59:59.999900Z", "yes": true}"#;
        for (key, text) in [
            (r#"lower("email")"#, "zoë@x.org"),
            (r#""id" % 5"#, "-2"),
            (r#""at""#, "-1"),
            (r#"date_bin(INTERVAL '1 minute', "at")"#, "-60000"),
            (r#"CAST("at" AS DATE)"#, "-1"),
            (r#"NOT "yes" | upper("email")"#, r#"["0","ZOË@X.ORG"]"#),
        ] {
            let parts: Vec<_> = key.split(" | ").map(str::to_owned).collect();
            let found = Keys::new(&parts, schema).unwrap().admit(record.as_bytes());
            assert_eq!(found, Ok(Some(text.into())), "{key}");
        }
        let keys = Keys::new(
            &[
                r#"CAST("email" AS BIGINT) / "id""#.into(),
                "upper(email)".into(),
            ],
            schema,
        );
        let records = [
            r#"{"id": 2, "email": "8"}"#,
            r#"{"id": 0, "email": "8"}"#,
            r#"{"email": "8"}"#,
            "[]",
            r#"{"id": 1, "email": "5"}"#,
        ];
        let keys = keys.unwrap().admit_all(&records).unwrap();
        assert_eq!(keys[0], Ok(Some(r#"["4","8"]"#.into())));
        assert!(
            keys[1]
                .as_ref()
                .is_err_and(|why| why.starts_with("the key can't be computed: ")),
            "{keys:?}"
        );
        assert_eq!(
            keys[2],
            Err(r#"the key `CAST("email" AS BIGINT) / "id"` is null"#.into())
        );
        assert_eq!(keys[3], Err("the record isn't a JSON object".into()));
        assert_eq!(keys[4], Ok(Some(r#"["5","5"]"#.into())));
    }
}
