//! What the topic's records are keyed by. The records of one row must come from one partition, also
//! those that are in the topic already: from another one they would have smaller offsets, and the row
//! would stay as it was. So a pipeline whose rows replace one another can't change its key.

use millstream_api::worker::TopicRef;
use millstream_plan::{Accepted, Refusal};

use super::children::hash;
use crate::error::Error;

/// Kafka takes 4,096 bytes beside an offset, and there the keys are kept.
const LONGEST: usize = 800;

/// A key as people read it, and as the Topic keeps it.
pub fn text(key: &[String]) -> String {
    let text = key.join(", ");
    match text.len() {
        0..=LONGEST => text,
        _ => {
            let hash = hash(&text);
            format!("{}… ({hash})", &text[..text.floor_char_boundary(LONGEST)])
        }
    }
}

/// Whether the topic, of several partitions, can take records with the pipeline's key beside those with
/// the known keys, and knows of it.
pub fn check(known: &[String], accepted: &Accepted) -> Result<(), Error> {
    let key = text(&accepted.key);
    let waiting = || Error::Waiting("its Topic doesn't tell by what it is keyed yet".into());
    match (accepted.keyed.first(), known) {
        (_, []) => Err(waiting()),
        (_, [only]) if *only == key => Ok(()),
        (Some(sink), known) => {
            let of = match accepted.grouped.contains(sink) {
                true => "group",
                false => "row",
            };
            Err(Refusal::Incompatible(problem(sink, of, known, &key)).into())
        }
        (None, [_]) => Err(waiting()),
        // More aren't noted.
        (None, _) => Ok(()),
    }
}

/// Whether the topic has as many partitions as are declared. By the declared number it was decided
/// whether the records need a key; and where partitions are added, keys move between them.
pub fn check_partitions(declared: i32, accepted: &Accepted, topic: &TopicRef) -> Result<(), Error> {
    let TopicRef {
        name, partitions, ..
    } = topic;
    let in_order = declared == 1 || !accepted.key.is_empty();
    if *partitions <= declared || !in_order {
        return Ok(());
    }
    Err(Refusal::Incompatible(format!(
        "topic `{name}` has {partitions} partitions, and topic.partitions is {declared}: the records of one row would be in several, and older ones could replace newer ones: use another topic, in a pipeline of a new name; or, if it has always had so many, declare {partitions} (where the pipeline has run already, delete it for that, with deletionPolicy: Retain, and apply it again)"
    ))
    .into())
}

fn problem(sink: &str, of: &str, known: &[String], key: &str) -> String {
    let named = |key: &String| match key.as_str() {
        "" => "without a key".into(),
        key => format!("keyed by `{key}`"),
    };
    let new = named(&key.to_string());
    let former: Vec<_> = known.iter().map(named).collect();
    let keep = match known {
        [pointers] if pointers.starts_with('/') => format!(
            "keep the key with topic.key: [{pointers}], where the primary key of each sink has it, or "
        ),
        [key] if !key.is_empty() => {
            "go back to sinks whose primary keys have the former key in common, or ".into()
        }
        _ => String::new(),
    };
    format!(
        "sink `{sink}`: the records in the topic are {}, and with these sinks they would be {new}; the records of one {of} would be in two partitions: {keep}give what needs another key to a pipeline of a new name, with a topic and tables of its own (its source.topic may be this topic)",
        former.join(" or ")
    )
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn accepted() -> Accepted {
        Accepted {
            key: Vec::new(),
            grouped: Vec::new(),
            keyed: Vec::new(),
            lookups: Vec::new(),
            sinks: Vec::new(),
            declared: BTreeMap::new(),
            calendar: None,
        }
    }

    /// With a sink whose rows replace one another, or one that only appends.
    fn checked(known: &[&str], key: &str, keyed: bool) -> Result<(), Error> {
        checked_with(known, key, keyed, false)
    }

    fn checked_with(known: &[&str], key: &str, keyed: bool, grouped: bool) -> Result<(), Error> {
        let named = |has: bool| has.then(|| "counts".into()).into_iter().collect();
        let accepted = Accepted {
            key: (!key.is_empty()).then(|| key.into()).into_iter().collect(),
            grouped: named(grouped),
            keyed: named(keyed),
            ..accepted()
        };
        let known: Vec<_> = known.iter().copied().map(String::from).collect();
        check(&known, &accepted)
    }

    #[test]
    fn a_key_changes_where_no_row_replaces_another() {
        for (known, key, keyed) in [
            (&["/a"][..], "/a", true),
            (&["lower(\"a\")"], "lower(\"a\")", true),
            (&["/a"], "/a", false),
            (&["/a", "/b"], "/b", false),
            (&["/a", "/b"], "/c", false),
            (&[""], "", false),
        ] {
            let checked = checked(known, key, keyed);
            assert!(checked.is_ok(), "{known:?} {key}: {checked:?}");
        }
        for (known, key, keyed) in [
            (&[][..], "/a", true),
            (&[], "/a", false),
            // The Topic notes it, and then it is so.
            (&["/a"], "/b", false),
        ] {
            let checked = checked(known, key, keyed);
            assert!(matches!(checked, Err(Error::Waiting(_))), "{checked:?}");
        }
    }

    #[test]
    fn a_changed_key_is_refused_where_rows_replace_one_another() {
        let said = |known: &[&str], key, grouped| match checked_with(known, key, true, grouped) {
            Err(Error::Refused(Refusal::Incompatible(message))) => message,
            other => panic!("{known:?} {key}: {other:?}"),
        };
        assert!(said(&["/a"], "/b", false).contains("the records of one row"));
        assert!(said(&["/a"], "/b", true).contains("the records of one group"));
        for (known, key, words) in [
            (&["/a"][..], "/b", &["`/a`", "`/b`", "topic.key: [/a]"][..]),
            (&["/a, /b"], "/b", &["`/a, /b`", "topic.key: [/a, /b]"]),
            (&["lower(\"a\")"], "/b", &["`lower(\"a\")`", "go back to"]),
            (&[""], "/b", &["are without a key", "a new name"]),
            (&["/a", "/b"], "/b", &["`/a` or keyed by `/b`"]),
        ] {
            let said = said(known, key, false);
            for word in words {
                assert!(said.contains(word), "{word} isn't in: {said}");
            }
        }
    }

    #[test]
    fn more_partitions_than_are_declared_are_refused_where_order_matters() {
        let checked = |declared, key: &[&str], partitions| {
            let accepted = Accepted {
                key: key.iter().copied().map(String::from).collect(),
                ..accepted()
            };
            let topic = TopicRef {
                name: "users".into(),
                id: "0x1f".into(),
                timestamp_base: 1_700_000_000_000_000,
                partitions,
            };
            check_partitions(declared, &accepted, &topic)
        };
        for (declared, key, partitions) in [
            (1, &[][..], 1),
            (4, &["/id"], 4),
            // Records without a key come from anywhere.
            (4, &[], 8),
        ] {
            let checked = checked(declared, key, partitions);
            assert!(checked.is_ok(), "{declared} {partitions}: {checked:?}");
        }
        for (declared, key, partitions) in [
            (1, &[][..], 4),
            (1, &["/id"], 4),
            // Somebody has added them in Kafka.
            (4, &["/id"], 8),
        ] {
            let said = match checked(declared, key, partitions) {
                Err(Error::Refused(Refusal::Incompatible(message))) => message,
                other => panic!("{declared} {partitions}: {other:?}"),
            };
            let counts = format!("has {partitions} partitions, and topic.partitions is {declared}");
            let declare = format!("declare {partitions}");
            for words in [counts.as_str(), "another topic", &declare] {
                assert!(said.contains(words), "{words} isn't in: {said}");
            }
        }
    }

    #[test]
    fn long_keys_are_cut_and_differ_still() {
        let long = |last: &str| text(&["é".repeat(1000) + last]);
        assert!(long("a").len() < LONGEST + 30);
        assert_ne!(long("a"), long("b"));
        assert_eq!(text(&["/a".into(), "/b".into()]), "/a, /b");
    }
}
