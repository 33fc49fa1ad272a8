//! The key of a record: it decides on the topic partition, and so on the order of rows.

use millstream_api::worker::MAX_RECORD_BYTES;

use crate::{
    pointer::{self, Pointer},
    transform::too_large,
};

/// Makes the key of a record out of its fields.
pub struct Keys {
    pointers: Vec<Pointer>,
}

impl Keys {
    /// Keys out of the fields at these JSON Pointers.
    pub fn new(pointers: &[String]) -> Self {
        Keys {
            pointers: pointers.iter().map(|text| Pointer::parse(text)).collect(),
        }
    }

    /// The key of a record, or why the topic can't take the record.
    pub fn admit(&self, record: &[u8]) -> Result<Option<String>, String> {
        if record.len() > MAX_RECORD_BYTES {
            return Err(too_large(record.len()));
        }
        if record.first() != Some(&b'{') {
            return Err("the record isn't a JSON object".to_owned());
        }
        self.of(record)
    }

    /// One field: its plain text. Several: a JSON array of their texts. None: no key.
    pub fn of(&self, record: &[u8]) -> Result<Option<String>, String> {
        let mut texts = Vec::with_capacity(self.pointers.len());
        for pointer in &self.pointers {
            let raw = pointer
                .find(record)
                .ok_or_else(|| format!("the key field `{pointer}` is not in the record"))?;
            let text = pointer::scalar_text(raw)
                .ok_or_else(|| format!("the key field `{pointer}` is {}", pointer::kind(raw)))?;
            texts.push(text);
        }
        Ok(match texts.len() {
            0 => None,
            1 => texts.pop(),
            _ => Some(serde_json::Value::from(texts).to_string()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_the_texts_of_fields() {
        let record = r#"{"login": {"uuid": "a-1"}, "n": 7.0, "zero": null, "o": {}}"#.as_bytes();
        let of = |pointers: &[&str]| {
            let pointers: Vec<_> = pointers.iter().map(|text| (*text).to_owned()).collect();
            Keys::new(&pointers).of(record)
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
}
