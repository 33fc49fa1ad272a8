//! Why a reconcile stopped: which condition says so, and when it is tried again.

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
    /// The API server refused or didn't answer.
    #[error("the Kubernetes API refuses: {0}")]
    Kubernetes(String),
}

impl From<PlanError> for Error {
    fn from(error: PlanError) -> Self {
        Refusal::from(error).into()
    }
}

impl From<kube::Error> for Error {
    fn from(error: kube::Error) -> Self {
        Error::Kubernetes(match error {
            kube::Error::Api(status) => status.message,
            other => other.to_string(),
        })
    }
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
            Error::Waiting(_) | Error::Kubernetes(_) => reason::WAITING,
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
        matches!(
            self,
            Error::Waiting(_)
                | Error::Child { .. }
                | Error::Kubernetes(_)
                | Error::Kafka(KafkaError::Unreachable { .. })
                | Error::Cassandra(CassandraError::Unreachable { .. })
                | Error::Registry(RegistryError::Unreachable { .. })
        )
    }
}
