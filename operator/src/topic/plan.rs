//! What has to be done to a topic. Pure: no client, no clock.

use std::collections::BTreeMap;

use millstream_plan::Refusal;

use crate::{error::Error, kafka::ObservedTopic};

/// A topic as it is declared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DesiredTopic {
    pub name: String,
    pub partitions: i32,
    pub replication_factor: Option<i32>,
    pub config: BTreeMap<String, String>,
    /// What the records are keyed by, where that is known; an empty text where they have no key.
    pub key: Option<String>,
    /// Whether no other key may follow, because the records are put together in groups, or in rows that
    /// later ones replace.
    pub grouped: bool,
}

/// So many different keys are kept: more than one are too many for groups and rows, whichever they are.
const KEYS: usize = 2;

impl DesiredTopic {
    /// Whether records are found by their key's partition, which more partitions would move.
    fn is_keyed(&self) -> bool {
        self.key.as_ref().is_some_and(|key| !key.is_empty())
    }

    /// What the records are keyed by from now on, all of them, after those with the known keys.
    pub fn keys(&self, known: &[String]) -> Vec<String> {
        let other = self.key.iter().filter(|key| !known.contains(key));
        let other = other.filter(|_| known.is_empty() || !self.grouped);
        known.iter().chain(other).take(KEYS).cloned().collect()
    }
}

/// A change that brings a topic nearer to its declaration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TopicChange {
    Create,
    GrowPartitions {
        from: i32,
        to: i32,
    },
    SetConfig {
        /// Declared keys whose values differ: what is there, and what is wanted.
        differing: BTreeMap<String, (Option<String>, String)>,
        /// All that is to be set on the topic: setting replaces, and keys that others have set are
        /// theirs.
        all: BTreeMap<String, String>,
    },
}

/// Compares a topic with what is there.
pub fn plan(
    desired: &DesiredTopic,
    observed: Option<&ObservedTopic>,
) -> Result<Vec<TopicChange>, Error> {
    let Some(observed) = observed else {
        return Ok(vec![TopicChange::Create]);
    };
    let mut changes = Vec::new();
    if observed.partitions < desired.partitions {
        if desired.is_keyed() {
            return Err(Refusal::Incompatible(format!(
                "topic `{}` exists with {} partitions, and {} are declared; more partitions would move keys between them and break the order of updates: declare {}, or use another topic",
                desired.name, observed.partitions, desired.partitions, observed.partitions
            )).into());
        }
        changes.push(TopicChange::GrowPartitions {
            from: observed.partitions,
            to: desired.partitions,
        });
    }
    changes.extend(set_config(desired, observed));
    Ok(changes)
}

fn set_config(desired: &DesiredTopic, observed: &ObservedTopic) -> Option<TopicChange> {
    let mut differing = BTreeMap::new();
    for (key, wanted) in &desired.config {
        let there = observed.config.get(key).map(|there| there.value.clone());
        if !there
            .as_ref()
            .is_some_and(|there| same_value(wanted, there))
        {
            differing.insert(key.clone(), (there, wanted.clone()));
        }
    }
    if differing.is_empty() {
        return None;
    }
    let theirs = observed.config.iter().filter(|(_, value)| value.set_here);
    let mut all: BTreeMap<_, _> = theirs
        .map(|(key, value)| (key.clone(), value.value.clone()))
        .collect();
    all.extend(desired.config.clone());
    Some(TopicChange::SetConfig { differing, all })
}

/// Kafka gives values back as it understood them: `TRUE` as `true`, `a, b` as `a,b`.
fn same_value(wanted: &str, there: &str) -> bool {
    let plain = |value: &str| {
        let parts = value.split(',').map(str::trim);
        parts.collect::<Vec<_>>().join(",").to_ascii_lowercase()
    };
    let number = |value: &str| value.trim().parse::<f64>().ok();
    plain(wanted) == plain(there)
        || number(wanted)
            .zip(number(there))
            .is_some_and(|(wanted, there)| wanted == there)
}

impl TopicChange {
    /// The change in words, for events and for what was put right.
    pub fn describe(&self) -> String {
        match self {
            TopicChange::Create => "created the topic".into(),
            TopicChange::GrowPartitions { from, to } => {
                format!("grew the topic from {from} to {to} partitions")
            }
            TopicChange::SetConfig { differing, .. } => {
                let set: Vec<_> = differing
                    .iter()
                    .map(|(key, (there, wanted))| match there {
                        Some(there) => format!("{key} from {there} to {wanted}"),
                        None => format!("{key} to {wanted}"),
                    })
                    .collect();
                format!("set {}", set.join(", "))
            }
        }
    }

    /// Reason of the event.
    pub fn event_reason(&self) -> &'static str {
        match self {
            TopicChange::Create => "TopicCreated",
            TopicChange::GrowPartitions { .. } => "PartitionsGrown",
            TopicChange::SetConfig { .. } => "TopicConfigured",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kafka::ConfigValue;

    fn desired(partitions: i32, config: &[(&str, &str)]) -> DesiredTopic {
        DesiredTopic {
            name: "t".into(),
            partitions,
            replication_factor: None,
            config: config
                .iter()
                .map(|(key, value)| (key.to_string(), value.to_string()))
                .collect(),
            key: None,
            grouped: false,
        }
    }

    fn observed(partitions: i32, config: &[(&str, &str, bool)]) -> ObservedTopic {
        let value = |value: &str, set_here| ConfigValue {
            value: value.into(),
            set_here,
        };
        ObservedTopic {
            partitions,
            replication_factor: 1,
            config: config
                .iter()
                .map(|(key, text, set_here)| (key.to_string(), value(text, *set_here)))
                .collect(),
        }
    }

    #[test]
    fn plans() {
        let both = &[
            ("retention.ms", "1000"),
            ("cleanup.policy", "delete, compact"),
        ];
        let keyed = DesiredTopic {
            key: Some("/id".into()),
            ..desired(4, &[])
        };
        let cases = [
            ("absent", plan(&desired(4, both), None)),
            (
                "as declared",
                plan(
                    &desired(2, both),
                    Some(&observed(
                        2,
                        &[
                            ("retention.ms", "1000", true),
                            ("cleanup.policy", "delete,compact", true),
                        ],
                    )),
                ),
            ),
            (
                "adopted with more partitions",
                plan(&desired(2, &[]), Some(&observed(8, &[]))),
            ),
            ("grows", plan(&desired(8, &[]), Some(&observed(2, &[])))),
            ("keyed", plan(&keyed, Some(&observed(2, &[])))),
            (
                "drift beside what others have set",
                plan(
                    &desired(2, both),
                    Some(&observed(
                        2,
                        &[
                            ("retention.ms", "5", true),
                            ("cleanup.policy", "delete,compact", true),
                            ("segment.ms", "7", true),
                            ("flush.ms", "9", false),
                        ],
                    )),
                ),
            ),
        ];
        let printed: Vec<_> = cases
            .iter()
            .map(|(name, plan)| format!("{name}: {plan:#?}"))
            .collect();
        insta::assert_snapshot!(printed.join("\n\n"));
    }

    #[test]
    fn a_second_key_is_kept_where_records_make_no_groups_and_no_rows() {
        let keys = |known: &[&str], key: Option<&str>, grouped| {
            let known: Vec<_> = known.iter().copied().map(String::from).collect();
            let key = key.map(String::from);
            let topic = DesiredTopic {
                key,
                grouped,
                ..desired(4, &[])
            };
            topic.keys(&known)
        };
        assert_eq!(keys(&[], None, false), [""; 0], "nobody has said it");
        assert_eq!(keys(&[], Some(""), false), [""], "records without a key");
        assert_eq!(keys(&[], Some("/a"), true), ["/a"]);
        assert_eq!(keys(&["/a"], Some("/a"), false), ["/a"]);
        assert_eq!(keys(&["/a"], None, false), ["/a"]);
        assert_eq!(keys(&["/a"], Some("/b"), true), ["/a"], "it is refused");
        assert_eq!(keys(&["/a"], Some("/b"), false), ["/a", "/b"]);
        assert_eq!(keys(&["/a", "/b"], Some("/c"), false), ["/a", "/b"]);
    }

    #[test]
    fn values_are_compared_by_meaning() {
        assert!(same_value("TRUE", "true") && same_value("0.50", "0.5"));
        assert!(!same_value("1000", "1001") && !same_value("delete", "compact"));
    }
}
