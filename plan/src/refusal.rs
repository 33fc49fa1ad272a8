//! Why a resource is refused, in the words of its conditions.

use millstream_api::condition::reason;
use thiserror::Error;

use crate::{PlanError, serve::ServeError};

/// Why a resource is refused. The message is what the person reads.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum Refusal {
    /// The spec is wrong.
    #[error("{0}")]
    InvalidSpec(String),
    /// The SQL or the schema is wrong.
    #[error("{0}")]
    InvalidSql(String),
    /// What exists can't be altered to fit.
    #[error("{0}")]
    Incompatible(String),
    /// Somebody else has what it claims.
    #[error("{0}")]
    Conflict(String),
}

impl Refusal {
    /// The reason that the condition gives.
    pub fn reason(&self) -> &'static str {
        match self {
            Refusal::InvalidSpec(_) => reason::INVALID_SPEC,
            Refusal::InvalidSql(_) => reason::INVALID_SQL,
            Refusal::Incompatible(_) => reason::INCOMPATIBLE,
            Refusal::Conflict(_) => reason::RESOURCE_CONFLICT,
        }
    }
}

impl From<ServeError> for Refusal {
    fn from(error: ServeError) -> Self {
        Refusal::InvalidSpec(error.to_string())
    }
}

impl From<PlanError> for Refusal {
    fn from(error: PlanError) -> Self {
        match error {
            // What is wrong with the key is wrong with `topic.key` or with a primary key.
            error @ (PlanError::Key(_) | PlanError::Source(_)) => {
                Refusal::InvalidSpec(error.to_string())
            }
            other => Refusal::InvalidSql(other.to_string()),
        }
    }
}
