//! Whether a topic can have a name: what the API server's schema can't check.

use crate::Refusal;

/// Checks a topic's name.
pub fn accept_topic(name: &str) -> Result<(), Refusal> {
    if name == "." || name == ".." || name.len() > 249 {
        return Err(Refusal::InvalidSpec(format!(
            "`{name}` can't be a topic's name: set spec.topicName, at most 249 of a-z, A-Z, 0-9, `.`, `_` and `-`"
        )));
    }
    if name.starts_with("__") {
        return Err(Refusal::InvalidSpec(format!(
            "topic `{name}` is Kafka's own: choose another name"
        )));
    }
    Ok(())
}
