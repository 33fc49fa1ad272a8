//! Conditions: built from what the steps say, merged with those that are there.

use k8s_openapi::{
    apimachinery::pkg::apis::meta::v1::{Condition, Time},
    jiff::Timestamp,
};
use millstream_api::condition::{self, reason};
pub use millstream_api::condition::{find, holds};

use crate::error::Error;

/// What one step says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    pub condition: &'static str,
    pub holds: Holds,
    pub reason: String,
    pub message: String,
}

/// A condition's status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holds {
    True,
    False,
    Unknown,
}

impl Holds {
    fn as_str(self) -> &'static str {
        match self {
            Holds::True => "True",
            Holds::False => "False",
            Holds::Unknown => "Unknown",
        }
    }
}

impl Verdict {
    pub fn new(
        condition: &'static str,
        holds: Holds,
        reason: &str,
        message: impl Into<String>,
    ) -> Self {
        let message: String = message.into();
        Verdict {
            condition,
            holds,
            reason: reason.into(),
            message: clip(&message, MESSAGE),
        }
    }

    /// Whether the resource can't be ready with this. A gap is the one condition that is better
    /// not met, and one that works may not have succeeded yet.
    fn stops(&self) -> bool {
        match self.condition {
            condition::DATA_GAP => self.holds == Holds::True,
            condition::SUCCEEDED => false,
            _ => self.holds != Holds::True,
        }
    }
}

/// Bytes of a condition's message, or an Event's note. Kubernetes takes 32 KiB and 1 KiB; nobody reads
/// that much.
pub const MESSAGE: usize = 1000;
/// Bytes of an error that a status repeats.
pub const ERROR: usize = 500;

/// The beginning of a text that is longer than so many bytes.
pub fn clip(text: &str, longest: usize) -> String {
    if text.len() <= longest {
        return text.into();
    }
    format!("{}…", &text[..text.floor_char_boundary(longest)])
}

/// Verdicts of a resource that is accepted first and provisioned then.
pub fn accepted_and_provisioned(outcome: Result<&str, &Error>) -> Vec<Verdict> {
    let accepted = Verdict::new(
        condition::ACCEPTED,
        Holds::True,
        reason::VALID,
        "the spec is valid",
    );
    match outcome {
        Ok(message) => vec![
            accepted,
            Verdict::new(condition::PROVISIONED, Holds::True, reason::READY, message),
        ],
        Err(error) if error.condition() == condition::ACCEPTED => vec![
            refused(error),
            Verdict::new(
                condition::PROVISIONED,
                Holds::Unknown,
                reason::WAITING,
                "not looked at before the spec is accepted",
            ),
        ],
        Err(error) => vec![accepted, refused(error)],
    }
}

/// The verdict of the step that an error stopped.
pub fn refused(error: &Error) -> Verdict {
    Verdict::new(
        error.condition(),
        Holds::False,
        error.reason(),
        error.to_string(),
    )
}

/// Whether all was as declared before this visit: what differs now, somebody else has changed.
pub fn was_provisioned(conditions: &[Condition], generation: Option<i64>) -> bool {
    holds(conditions, condition::PROVISIONED, generation)
}

/// The conditions to write: `Ready`, which is the first verdict that stands in the way, and the verdicts.
/// `lastTransitionTime` moves only where the status does.
pub fn merge(
    current: &[Condition],
    verdicts: &[Verdict],
    ready_message: &str,
    generation: Option<i64>,
) -> Vec<Condition> {
    let ready = match verdicts.iter().find(|verdict| verdict.stops()) {
        Some(stopped) => Verdict::new(
            condition::READY,
            Holds::False,
            &stopped.reason,
            stopped.message.clone(),
        ),
        None => {
            let mut verdicts = verdicts.iter();
            let done =
                verdicts.any(|of| of.condition == condition::SUCCEEDED && of.holds == Holds::True);
            let reason = if done {
                reason::SUCCEEDED
            } else {
                reason::READY
            };
            Verdict::new(condition::READY, Holds::True, reason, ready_message)
        }
    };
    let now = Time(Timestamp::now());
    std::iter::once(&ready)
        .chain(verdicts)
        .map(|verdict| {
            let status = verdict.holds.as_str();
            let before = current.iter().find(|condition| {
                condition.type_ == verdict.condition && condition.status == status
            });
            Condition {
                type_: verdict.condition.into(),
                status: status.into(),
                reason: verdict.reason.clone(),
                message: verdict.message.clone(),
                observed_generation: generation,
                last_transition_time: before
                    .map_or_else(|| now.clone(), |before| before.last_transition_time.clone()),
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use millstream_plan::Refusal;

    use super::*;

    #[test]
    fn transition_time_moves_only_with_the_status() {
        let ok = accepted_and_provisioned(Ok("topic t has 4 partitions"));
        let mut first = merge(&[], &ok, "all there", Some(1));
        for condition in &mut first {
            condition.last_transition_time = Time(Timestamp::UNIX_EPOCH);
        }
        assert_eq!(merge(&first, &ok, "all there", Some(1)), first);

        let error = Error::from(Refusal::Incompatible("column a".into()));
        let failed = merge(&first, &accepted_and_provisioned(Err(&error)), "", Some(2));
        let moved: Vec<_> = failed
            .iter()
            .map(|c| {
                let moved = c.last_transition_time.0 != Timestamp::UNIX_EPOCH;
                (
                    c.type_.as_str(),
                    c.status.as_str(),
                    c.reason.as_str(),
                    moved,
                )
            })
            .collect();
        assert_eq!(
            moved,
            [
                ("Ready", "False", "Incompatible", true),
                ("Accepted", "True", "Valid", false),
                ("Provisioned", "False", "Incompatible", true),
            ]
        );
    }

    #[test]
    fn what_is_clipped_fits_into_an_event() {
        let long = "ä".repeat(600);
        assert_eq!(clip(&long, MESSAGE), format!("{}…", "ä".repeat(500)));
        assert!(clip(&long, MESSAGE).len() < 1024);
        assert_eq!(clip("aäo", 2), "a…", "whole characters");
        assert_eq!(clip("aä", 3), "aä");
    }

    #[test]
    fn a_spec_that_is_refused_leaves_the_rest_unknown() {
        let error = Error::from(Refusal::InvalidSpec("no".into()));
        let conditions = merge(&[], &accepted_and_provisioned(Err(&error)), "", Some(1));
        let said: Vec<_> = conditions.iter().map(|c| c.status.as_str()).collect();
        assert_eq!(said, ["False", "False", "Unknown"]);
    }
}
