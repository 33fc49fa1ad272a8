//! JSON Pointers (RFC 6901) over raw JSON: values are found and sliced, never written anew, so
//! numbers, the order of keys and non-ASCII text stay as they came.

use std::{borrow::Cow, cell::OnceCell, collections::BTreeMap, fmt};

use serde::de::IgnoredAny;
use serde_json::value::RawValue;
use sonic_rs::{JsonValueTrait, LazyValue};

use crate::avro::is_avro;

/// A parsed JSON Pointer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pointer {
    text: String,
    tokens: Vec<String>,
}

impl Pointer {
    /// Parses a pointer: empty, or `/` before every token, with `~1` for `/` and `~0` for `~`.
    pub fn parse(text: &str) -> Self {
        let tokens = text.split('/').skip(1);
        Pointer {
            text: text.to_owned(),
            tokens: tokens
                .map(|token| token.replace("~1", "/").replace("~0", "~"))
                .collect(),
        }
    }

    /// The names, or indices, that it consists of.
    pub fn tokens(&self) -> &[String] {
        &self.tokens
    }

    /// The value that the pointer leads to; none where there isn't any. A token leads into an
    /// object by its name, into an array by its index.
    pub fn find<'a>(&self, json: &'a [u8]) -> Option<&'a str> {
        if is_too_deep(json) {
            return None;
        }
        let whole = sonic_rs::get(json, NO_STEPS).ok()?;
        let mut found = slice(&whole)?;
        for token in &self.tokens {
            let child = match token.parse::<usize>() {
                Ok(index) if found.starts_with('[') => sonic_rs::get(found, [index]),
                _ => sonic_rs::get(found, [token]),
            };
            found = slice(&child.ok()?)?;
        }
        Some(found)
    }

    /// As [`Pointer::find`], more slowly, and however deep the JSON is nested.
    pub fn find_deep<'a>(&self, json: &'a str) -> Option<&'a str> {
        let mut found: &RawValue = serde_json::from_str(json).ok()?;
        for token in &self.tokens {
            let parent = found.get();
            found = match token.parse::<usize>() {
                Ok(index) if parent.starts_with('[') => elements(parent).ok()?.get(index)?,
                _ => {
                    let fields: BTreeMap<String, &RawValue> = serde_json::from_str(parent).ok()?;
                    fields.get(token)?
                }
            };
        }
        Some(found.get())
    }
}

impl fmt::Display for Pointer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

const NO_STEPS: [&str; 0] = [];

/// Objects and arrays within each other, at most; as many as serde_json takes.
pub const MAX_DEPTH: usize = 128;

/// Whether JSON is nested deeper than [`MAX_DEPTH`]. What finds values in it calls itself for each level,
/// and the stack ends somewhere.
pub fn is_too_deep(json: &[u8]) -> bool {
    // Most records don't have so many at all, and are known by a count, which is fast.
    let count: usize = json.chunks(COUNTED_AT_ONCE).map(begins).sum();
    count > MAX_DEPTH && depth(json) > MAX_DEPTH
}

/// Bytes that a `u8` can count, which the CPU does side by side.
const COUNTED_AT_ONCE: usize = 128;

/// How many objects and arrays begin in a chunk, or seem to.
fn begins(chunk: &[u8]) -> usize {
    let begins = chunk
        .iter()
        .map(|byte| u8::from(matches!(byte, b'{' | b'[')));
    // It can't wrap; a check for that would count them one by one, ten times as slowly.
    begins.fold(0, u8::wrapping_add).into()
}

/// How deep JSON is nested.
fn depth(json: &[u8]) -> usize {
    let (mut depth, mut deepest) = (0_usize, 0);
    let mut bytes = json.iter();
    while let Some(byte) = bytes.next() {
        match byte {
            b'{' | b'[' => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            b'}' | b']' => depth = depth.saturating_sub(1),
            b'"' => skip_string(&mut bytes),
            _ => {}
        }
    }
    deepest
}

fn skip_string(bytes: &mut std::slice::Iter<'_, u8>) {
    while let Some(byte) = bytes.next() {
        match byte {
            b'"' => return,
            b'\\' => {
                bytes.next();
            }
            _ => {}
        }
    }
}

/// Why a record that is nested too deep isn't taken.
pub fn too_deep() -> String {
    format!("the record is nested deeper than {MAX_DEPTH} levels")
}

/// The elements of an array, however deep they are nested.
pub fn elements(array: &str) -> serde_json::Result<Vec<&RawValue>> {
    serde_json::from_str(array)
}

/// The bytes of a value that was found in borrowed JSON.
pub fn slice<'a>(value: &LazyValue<'a>) -> Option<&'a str> {
    match value.as_raw_cow() {
        Cow::Borrowed(raw) => Some(raw),
        Cow::Owned(_) => None,
    }
}

/// Whether a record has a value at a path of field names, asked only where it decoded to null.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Presence {
    /// The record says nothing about the field.
    Absent,
    /// The record says null, for the field or for what contains it.
    Null,
}

type Found<'a> = Vec<(Cow<'a, str>, &'a str)>;

/// Tells a field of a record that is null from one that isn't there. In Avro there is no difference.
pub struct Fields<'a> {
    record: &'a [u8],
    /// Found in one pass, when the first of them is asked for; or why not all of them are.
    found: OnceCell<Result<Found<'a>, String>>,
}

impl<'a> Fields<'a> {
    /// Of a record that can be decoded.
    pub fn of(record: &'a [u8]) -> Self {
        Fields {
            record,
            found: OnceCell::new(),
        }
    }

    /// Whether the record has a value at a path of field names. Fails where it isn't JSON: what decodes
    /// records takes some that aren't.
    pub fn presence(&self, path: &[String]) -> Result<Presence, String> {
        let Some((first, path)) = path.split_first() else {
            return Ok(Presence::Null);
        };
        if is_avro(self.record) {
            return Ok(Presence::Null);
        }
        let found = self.found.get_or_init(|| self.find());
        let found = found.as_ref().map_err(String::clone)?;
        let Some((_, field)) = found.iter().find(|(name, _)| name == first) else {
            return Ok(Presence::Absent);
        };
        for end in 0..=path.len() {
            match sonic_rs::get(*field, &path[..end]) {
                Err(_) => return Ok(Presence::Absent),
                Ok(value) if value.is_null() => return Ok(Presence::Null),
                Ok(_) => {}
            }
        }
        Ok(Presence::Null)
    }

    fn find(&self) -> Result<Found<'a>, String> {
        let mut found = Vec::new();
        for field in sonic_rs::to_object_iter(self.record) {
            // The library's own error has the record in it.
            let (name, value) = field.map_err(|_| not_json(self.record))?;
            found.extend(slice(&value).map(|value| (name, value)));
        }
        Ok(found)
    }
}

/// Why a record can't be read as JSON.
pub fn not_json(record: &[u8]) -> String {
    match serde_json::from_slice::<IgnoredAny>(record) {
        Err(error) => format!("the record isn't valid JSON: {error}"),
        Ok(_) => "the record isn't valid JSON".to_owned(),
    }
}

/// What kind of value this is, for messages.
pub fn kind(raw: &str) -> &'static str {
    match raw.trim_ascii_start().as_bytes().first() {
        Some(b'n') => "null",
        Some(b't' | b'f') => "a boolean",
        Some(b'-' | b'0'..=b'9') => "a number",
        Some(b'"') => "a string",
        Some(b'{') => "an object",
        Some(b'[') => "an array",
        _ => "not JSON",
    }
}

/// The text of a number, a string or a boolean; none for anything else.
pub fn scalar_text(raw: &str) -> Option<String> {
    match raw.as_bytes().first()? {
        b'"' => serde_json::from_str(raw).ok(),
        b'{' | b'[' | b'n' => None,
        _ => Some(raw.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_and_keeps_the_bytes() {
        let json = r#" {"a": {"b/c": [1.50, {"~": "Zoë\u00e9"}]}, "n": null} "#.as_bytes();
        for (pointer, found) in [
            ("/a/b~1c/0", Some("1.50")),
            ("/a/b~1c/1/~0", Some(r#""Zoë\u00e9""#)),
            ("/n", Some("null")),
            ("/a/x", None),
            ("/a/b~1c/9", None),
            ("/a/b~1c/x", None),
            ("/n/x", None),
        ] {
            let value = Pointer::parse(pointer).find(json);
            assert_eq!(value, found, "{pointer}");
        }
        let whole = Pointer::parse("").find(b"[1]");
        assert_eq!(whole, Some("[1]"));
    }

    #[test]
    fn null_is_not_absent() {
        let record = br#"{"venue": null, "name": {"first": null}}"#;
        let fields = Fields::of(record);
        let presence = |path: &str| {
            let path: Vec<_> = path.split('.').map(str::to_owned).collect();
            fields.presence(&path).unwrap()
        };
        assert_eq!(presence("venue"), Presence::Null);
        assert_eq!(presence("venue.name"), Presence::Null);
        assert_eq!(presence("name.first"), Presence::Null);
        assert_eq!(presence("name.last"), Presence::Absent);
        assert_eq!(presence("city"), Presence::Absent);
    }

    #[test]
    fn what_is_behind_a_fault_is_neither_null_nor_absent() {
        let record = b"{\"email\": \"A\", \"memo\": \"two\nlines\", \"note\": null}";
        let presence = Fields::of(record).presence(&["note".to_owned()]);
        assert!(presence.is_err_and(|error| error.contains("isn't valid JSON: ")));
    }

    #[test]
    fn what_is_nested_too_deep_is_not_looked_into() {
        let nested = |levels: usize| {
            let (open, close) = ("[".repeat(levels), "]".repeat(levels));
            format!(r#"{{"id": 1, "text": "\\\"[[", "deep": {open}{close}}}"#)
        };
        let id = Pointer::parse("/id");
        let deepest = nested(MAX_DEPTH - 1);
        // The stack of a test is small for the library without optimisation: 60 kB for each level.
        let found = std::thread::Builder::new().stack_size(64 << 20).spawn({
            let id = id.clone();
            move || assert_eq!(id.find(deepest.as_bytes()), Some("1"))
        });
        found.unwrap().join().unwrap();
        for levels in [MAX_DEPTH, 1_000_000] {
            assert!(is_too_deep(nested(levels).as_bytes()));
            assert_eq!(id.find(nested(levels).as_bytes()), None);
        }
        let deep = nested(1_000_000);
        assert_eq!(id.find_deep(&deep), Some("1"));
        assert_eq!(kind(&deep), "an object");
        let side_by_side = format!("[{}[]]", "[],".repeat(1_000));
        assert!(!is_too_deep(side_by_side.as_bytes()));
        assert!(!is_too_deep(format!("\"{}", "[".repeat(1_000)).as_bytes()));
    }

    #[test]
    fn scalars_become_plain_text() {
        assert_eq!(scalar_text(r#""a\"b""#).as_deref(), Some("a\"b"));
        assert_eq!(scalar_text("12.50").as_deref(), Some("12.50"));
        assert_eq!(scalar_text("true").as_deref(), Some("true"));
        assert_eq!(scalar_text("null"), None);
        assert_eq!(scalar_text("{}"), None);
    }
}
