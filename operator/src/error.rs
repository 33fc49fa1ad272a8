//! Why a reconcile stopped: which condition says so, and when it is tried again.

use std::sync::Arc;

use millstream_api::condition::{self, reason};
use millstream_plan::{PlanError, Refusal};

use crate::{cassandra::CassandraError, kafka::KafkaError, registry::RegistryError};

/// Why a reconcile stopped. The message is what the person reads in the condition.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// The resource is wrong, what exists can't be altered to fit, or somebody else has it.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// A Secret, or a key in it, isn't there.
    #[error("{0}")]
    SecretMissing(String),
    /// A step before this one isn't done.
    #[error("{0}")]
    Waiting(String),
    /// A child isn't as it must be; the reason is the child's own.
    #[error("{message}")]
    Child { reason: String, message: String },
    /// Records are gone that a sink hasn't read.
    #[error("{message}")]
    DataGap {
        reason: &'static str,
        message: String,
    },
    #[error(transparent)]
    Kafka(#[from] KafkaError),
    #[error(transparent)]
    Cassandra(#[from] CassandraError),
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// The API server said no, in its own words.
    #[error("the Kubernetes API refuses ({code}): {message}")]
    KubernetesRefused { code: u16, message: String },
    /// The API server gave no answer, or none that can be read.
    #[error("asking the Kubernetes API failed: {}", root_cause(.0))]
    KubernetesUnreachable(#[source] Arc<kube::Error>),
    /// A bug of the operator's own.
    #[error("the operator can't read what it has made itself, please report it: {0}")]
    Internal(String),
}

impl From<PlanError> for Error {
    fn from(error: PlanError) -> Self {
        Refusal::from(error).into()
    }
}

impl From<kube::Error> for Error {
    fn from(error: kube::Error) -> Self {
        match error {
            kube::Error::Api(status) => Error::KubernetesRefused {
                code: status.code,
                message: status.message,
            },
            other => Error::KubernetesUnreachable(Arc::new(other)),
        }
    }
}

/// The innermost cause: what clients say themselves tells where it went wrong, not why.
pub fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string()
}

/// Whether the API server may take the next request: what is watched was behind what there is, or it
/// has too much to do.
fn passes(code: u16) -> bool {
    matches!(code, 404 | 409 | 429 | 500..=599)
}

impl Error {
    /// The condition that turns False.
    pub fn condition(&self) -> &'static str {
        match self {
            Error::Refused(
                Refusal::InvalidSpec(_) | Refusal::InvalidSql(_) | Refusal::Conflict(_),
            ) => condition::ACCEPTED,
            Error::DataGap { .. } => condition::DATA_GAP,
            _ => condition::PROVISIONED,
        }
    }

    /// The reason that the condition gives.
    pub fn reason(&self) -> &str {
        match self {
            Error::Refused(refusal) => refusal.reason(),
            Error::SecretMissing(_) => reason::SECRET_MISSING,
            Error::KubernetesRefused { code, .. } if !passes(*code) => reason::KUBERNETES_REFUSED,
            Error::Waiting(_)
            | Error::KubernetesRefused { .. }
            | Error::KubernetesUnreachable(_) => reason::WAITING,
            Error::Internal(_) => reason::INTERNAL_ERROR,
            Error::Child { reason, .. } => reason,
            Error::DataGap { reason, .. } => reason,
            Error::Kafka(KafkaError::Unreachable { .. }) => reason::KAFKA_UNREACHABLE,
            Error::Kafka(KafkaError::Refused { .. }) => reason::KAFKA_REFUSED,
            Error::Cassandra(CassandraError::Unreachable { .. }) => reason::CASSANDRA_UNREACHABLE,
            Error::Cassandra(CassandraError::Refused { .. }) => reason::CASSANDRA_REFUSED,
            Error::Registry(RegistryError::Unreachable { .. }) => reason::REGISTRY_UNREACHABLE,
            Error::Registry(RegistryError::Refused { .. }) => reason::REGISTRY_REFUSED,
            Error::Registry(RegistryError::Incompatible { .. }) => reason::INCOMPATIBLE_SCHEMA,
        }
    }

    /// Whether trying again soon can help, without anybody changing a resource.
    pub fn is_transient(&self) -> bool {
        match self {
            Error::KubernetesRefused { code, .. } => passes(*code),
            Error::Waiting(_)
            | Error::Child { .. }
            | Error::KubernetesUnreachable(_)
            | Error::Kafka(KafkaError::Unreachable { .. })
            | Error::Cassandra(CassandraError::Unreachable { .. })
            | Error::Registry(RegistryError::Unreachable { .. }) => true,
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use kube::core::Status;

    use super::*;

    #[test]
    fn what_the_api_server_refuses_differs_from_what_it_has_no_time_for() {
        let refused = |code| kube::Error::Api(Status::failure("no", "").with_code(code).boxed());
        let silent = kube::Error::Service("deadline has elapsed".into());
        let (never, later) = (reason::KUBERNETES_REFUSED, reason::WAITING);
        for (error, says, reason) in [
            (refused(403), "refuses (403): no", never),
            (refused(422), "refuses (422): no", never),
            (refused(404), "refuses (404): no", later),
            (refused(409), "refuses (409): no", later),
            (refused(429), "refuses (429): no", later),
            (refused(503), "refuses (503): no", later),
            (silent, "failed: deadline has elapsed", later),
        ] {
            let error = Error::from(error);
            assert!(error.to_string().ends_with(says), "{error}");
            assert_eq!(error.reason(), reason, "{error}");
            assert_eq!(error.is_transient(), reason == later, "{error}");
        }
    }
}
