//! What an answer holds: records and numbers, found by JSON Pointers.

use bytes::Bytes;
use serde::de::IgnoredAny;

use crate::pointer::{self, Pointer};

/// Up to here a float has every whole number.
const EXACT: f64 = 9_007_199_254_740_992.0;

/// Slices the records out of an answer, byte for byte. There are none in an answer without content
/// (204, 205), nor in a null where the array should be: some servers write an empty array so.
pub fn records(body: Bytes, pointer: &Pointer) -> Result<Vec<Bytes>, String> {
    if body.is_empty() {
        return Ok(Vec::new());
    }
    let found = find(&body, pointer)?;
    let found = body.slice_ref(found.as_bytes());
    match found.first() {
        Some(b'{') => Ok(vec![found]),
        Some(b'[') if pointer::is_too_deep(&found) => {
            let array = std::str::from_utf8(&found).map_err(|error| error.to_string())?;
            let records = pointer::elements(array).map_err(|error| error.to_string())?;
            let records = records
                .iter()
                .map(|raw| found.slice_ref(raw.get().as_bytes()));
            Ok(records.collect())
        }
        Some(b'[') => sonic_rs::to_array_iter(found.as_ref())
            .map(|record| {
                let record = record.map_err(|error| error.to_string())?;
                let raw = pointer::slice(&record).ok_or("the answer changed while it was read")?;
                Ok(found.slice_ref(raw.as_bytes()))
            })
            .collect(),
        Some(b'n') if !pointer.tokens().is_empty() => Ok(Vec::new()),
        _ => {
            let what = pointer::kind(&String::from_utf8_lossy(&found));
            Err(format!(
                "{} is {what}, not an array of records; set `records` to the JSON Pointer of the array",
                place(pointer)
            ))
        }
    }
}

/// The whole number, or string of digits, in an answer; `setting` is where its pointer is from.
pub fn number(body: &Bytes, pointer: &Pointer, setting: &str) -> Result<u64, String> {
    let found = find(body, pointer)?;
    let text = pointer::scalar_text(found).unwrap_or_default();
    whole(&text).ok_or_else(|| {
        format!(
            "{} is {}, not a whole number from 0 on; set `{setting}` to the JSON Pointer of the number",
            place(pointer),
            pointer::kind(found)
        )
    })
}

/// `15.0` and `1e3` are whole numbers too.
fn whole(text: &str) -> Option<u64> {
    text.parse().ok().or_else(|| {
        let number: f64 = text.parse().ok()?;
        (number.fract() == 0.0 && (0.0..=EXACT).contains(&number)).then_some(number as u64)
    })
}

/// The text of a string or a number in an answer whose JSON was checked; none where there isn't any,
/// or null, false or nothing in it.
pub fn optional_text(body: &Bytes, pointer: &Pointer) -> Result<Option<String>, String> {
    let text = std::str::from_utf8(body).unwrap_or_default();
    match look(text, pointer) {
        None | Some("null" | "false" | "\"\"") => Ok(None),
        Some(found) => match pointer::scalar_text(found) {
            Some(text) => Ok(Some(text)),
            None => Err(format!(
                "{} is {}, not where the next page is",
                place(pointer),
                pointer::kind(found)
            )),
        },
    }
}

fn find<'a>(body: &'a Bytes, pointer: &Pointer) -> Result<&'a str, String> {
    let text =
        std::str::from_utf8(body).map_err(|error| format!("the answer isn't UTF-8: {error}"))?;
    // The whole answer is checked, for the part that is wanted may come before a fault.
    serde_json::from_str::<IgnoredAny>(text)
        .map_err(|error| format!("the answer isn't JSON: {error}"))?;
    look(text, pointer)
        .ok_or_else(|| format!("{} is not in the answer, {}", place(pointer), holds(text)))
}

/// A record that is nested too deep is to be found before it can be refused.
fn look<'a>(text: &'a str, pointer: &Pointer) -> Option<&'a str> {
    match pointer::is_too_deep(text.as_bytes()) {
        true => pointer.find_deep(text),
        false => pointer.find(text.as_bytes()),
    }
}

fn place(pointer: &Pointer) -> String {
    match pointer.to_string().as_str() {
        "" => "the answer".to_owned(),
        text => format!("`{text}`"),
    }
}

/// What an answer holds instead, for messages.
fn holds(text: &str) -> String {
    const SHOWN: usize = 10;
    let kind = pointer::kind(text);
    if !text.trim_start().starts_with('{') || pointer::is_too_deep(text.as_bytes()) {
        return format!("which is {kind}");
    }
    let fields = sonic_rs::to_object_iter(text);
    let names: Vec<_> = fields
        .filter_map(|field| field.ok().map(|(name, _)| name.to_string()))
        .take(SHOWN)
        .collect();
    format!("which has the fields {}", names.join(", "))
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;
    use crate::fuzz::{bytes, json};

    fn records_of(body: &str, pointer: &str) -> Result<Vec<String>, String> {
        let found = records(Bytes::from(body.to_owned()), &Pointer::parse(pointer))?;
        let text = found
            .iter()
            .map(|record| String::from_utf8(record.to_vec()).unwrap());
        Ok(text.collect())
    }

    #[test]
    fn records_keep_their_bytes() {
        let body = r#"{"info": {}, "results": [ {"b": 1.50, "a":"Zoë \u00e9"} , {"b":1e400}, 7 ]}"#;
        assert_eq!(
            records_of(body, "/results").unwrap(),
            [r#"{"b": 1.50, "a":"Zoë \u00e9"}"#, r#"{"b":1e400}"#, "7"]
        );
        assert_eq!(records_of(r#" {"a": 1} "#, "").unwrap(), [r#"{"a": 1}"#]);
        assert!(records_of("[]", "").unwrap().is_empty());
    }

    #[test]
    fn a_record_that_is_nested_too_deep_is_one_among_others() {
        let deep = format!("{}1{}", r#"{"a":"#.repeat(100_000), "}".repeat(100_000));
        let body = format!(r#"{{"results": [ {{"b": 1.50}} , {deep},7], "next": ["x"]}}"#);
        let expected = vec![r#"{"b": 1.50}"#.to_owned(), deep, "7".to_owned()];
        assert_eq!(records_of(&body, "/results"), Ok(expected));
        let body = Bytes::from(body);
        let next = optional_text(&body, &Pointer::parse("/next/0"));
        assert_eq!(next, Ok(Some("x".into())));
        let error = number(&body, &Pointer::parse("/results/1/a"), "count").unwrap_err();
        assert!(
            error.contains("is an object, not a whole number"),
            "{error}"
        );
        let error = records_of(&"[".repeat(100_000), "/items").unwrap_err();
        assert!(error.contains("isn't JSON"), "{error}");
    }

    #[test]
    fn nothing_and_null_are_no_records() {
        for (body, pointer) in [
            ("", ""),
            ("", "/items"),
            (r#"{"items": null, "next": null}"#, "/items"),
            (r#"{"data": {"items": null}}"#, "/data/items"),
        ] {
            assert_eq!(records_of(body, pointer), Ok(vec![]), "{body}");
        }
        let body = Bytes::new();
        assert_eq!(optional_text(&body, &Pointer::parse("/next")), Ok(None));
    }

    #[test]
    fn faults_are_named() {
        for (body, pointer, says) in [
            (
                r#"{"error": "busy"}"#,
                "/results",
                "`/results` is not in the answer, which has the fields error",
            ),
            (
                r#"{"results": "none"}"#,
                "/results",
                "`/results` is a string, not an array",
            ),
            ("[1]", "/results", "which is an array"),
            (r#"{"results": [1]"#, "/results", "isn't JSON"),
            (r#"{"results": [1]} x"#, "/results", "isn't JSON"),
            ("<html>", "", "isn't JSON"),
            ("null", "", "the answer is null"),
            ("null", "/items", "`/items` is not in the answer"),
            (" ", "/items", "isn't JSON"),
        ] {
            let error = records_of(body, pointer).unwrap_err();
            assert!(error.contains(says), "{body}: {error}");
        }
    }

    #[test]
    fn counts_are_numbers_or_digits() {
        let number_of = |body: &str| {
            number(
                &Bytes::from(body.to_owned()),
                &Pointer::parse("/0/count"),
                "count",
            )
        };
        assert_eq!(number_of(r#"[{"count": "14776"}]"#), Ok(14776));
        assert_eq!(number_of(r#"[{"count": 3}]"#), Ok(3));
        for (whole, number) in [("15.0", 15), (r#""15.0""#, 15), ("1e3", 1000), ("-0.0", 0)] {
            let body = format!(r#"[{{"count": {whole}}}]"#);
            assert_eq!(number_of(&body), Ok(number), "{whole}");
        }
        for (other, kind) in [
            ("-3", "a number"),
            ("15.5", "a number"),
            ("1e300", "a number"),
            (r#""inf""#, "a string"),
            ("null", "null"),
            ("[]", "an array"),
        ] {
            let error = number_of(&format!(r#"[{{"count": {other}}}]"#)).unwrap_err();
            let says = format!("`/0/count` is {kind}, not a whole number from 0 on; set `count`");
            assert!(error.starts_with(&says), "{other}: {error}");
        }
        assert!(number_of(r#"[]"#).unwrap_err().contains("`/0/count`"));
    }

    #[test]
    fn the_last_page_has_no_next() {
        let next = |body: &str| {
            optional_text(&Bytes::from(body.to_owned()), &Pointer::parse("/meta/next"))
        };
        assert_eq!(
            next(r#"{"meta": {"next": "a\"b"}}"#),
            Ok(Some("a\"b".into()))
        );
        assert_eq!(next(r#"{"meta": {"next": 17}}"#), Ok(Some("17".into())));
        for last in ["{}", r#"{"meta": {}}"#, r#"{"meta": {"next": null}}"#] {
            assert_eq!(next(last), Ok(None), "{last}");
        }
        assert_eq!(next(r#"{"meta": {"next": ""}}"#), Ok(None));
        assert!(
            next(r#"{"meta": {"next": {}}}"#)
                .unwrap_err()
                .contains("an object")
        );
    }

    const ANSWER: &str = r#"{"data": [{"a": 1.50, "b": "\u00e9"}, [], null, -1e3], "count": "12", "next": {"url": "/b?c=1"}}"#;

    proptest! {
        #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn an_answer_is_refused_or_taken_apart(
            body in bytes(ANSWER),
            pointer in prop_oneof![Just(String::new()), Just("/data".to_owned()), "(/[a-z~01]{0,5}){0,3}"],
        ) {
            let (body, pointer) = (Bytes::from(body), Pointer::parse(&pointer));
            for record in records(body.clone(), &pointer).unwrap_or_default() {
                prop_assert!(serde_json::from_slice::<IgnoredAny>(&record).is_ok(), "{:?}", record);
            }
            let _ = number(&body, &pointer, "count");
            let _ = optional_text(&body, &pointer);
        }

        #[test]
        fn records_come_out_as_they_went_in(values in vec(json(), 0..6)) {
            let texts: Vec<_> = values.iter().map(ToString::to_string).collect();
            let body = format!("{{\"data\": [ {} ], \"count\": {}}}", texts.join("\n, "), texts.len());
            prop_assert_eq!(records_of(&body, "/data"), Ok(texts));
            prop_assert_eq!(number(&body.into(), &Pointer::parse("/count"), "count"), Ok(values.len() as u64));
        }
    }
}
