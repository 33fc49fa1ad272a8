//! Kafka as the operator needs it. The only folder that knows the driver.

mod client;
mod offsets;
mod topics;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use backon::{BlockingRetryable, ExponentialBuilder};
use millstream_api::KafkaConnection;
use rdkafka::{
    ClientConfig,
    admin::{AdminClient, AdminOptions},
    consumer::{BaseConsumer, Consumer},
    error::{KafkaError as DriverError, RDKafkaErrorCode as Code},
};

use self::client::{LastError, client_config};
pub use self::{
    offsets::{Committed, Ingested, TopicMark},
    topics::{ConfigValue, ObservedTopic},
};
use crate::credentials::Access;

/// Every call gives up after this time.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Consumers that were not used for this long are closed.
const IDLE: Duration = Duration::from_secs(120);

/// So many consumers are kept: each has several threads, and connections of its own.
const KEPT: usize = 128;

/// Why Kafka didn't do what it was asked.
#[derive(Debug, Clone, thiserror::Error)]
pub enum KafkaError {
    #[error("Kafka at {servers} can't be reached: {detail}")]
    Unreachable { servers: String, detail: String },
    #[error("Kafka at {servers} refuses: {detail}")]
    Refused { servers: String, detail: String },
}

/// A Kafka cluster.
pub struct Kafka {
    servers: String,
    origin: Option<String>,
    config: ClientConfig,
    admin: Mutex<Arc<Admin>>,
    /// Consumers by group; none of them ever subscribes. The empty group is for what needs none.
    consumers: Mutex<HashMap<String, UsedConsumer>>,
}

type Admin = AdminClient<LastError>;

/// A consumer, and when it was last asked for.
type UsedConsumer = (Arc<BaseConsumer<LastError>>, Instant);

impl Kafka {
    /// Makes the clients; they connect by themselves, and again and again.
    pub fn new(access: &Access<KafkaConnection>) -> Result<Kafka, KafkaError> {
        let servers = access.connection.bootstrap_servers.clone();
        let config = client_config(access);
        let admin = admin(&config).map_err(|error| KafkaError::Refused {
            servers: servers.clone(),
            detail: format!("the connection's settings are wrong: {error}"),
        })?;
        Ok(Kafka {
            servers,
            origin: access.login.as_ref().map(|login| login.origin.clone()),
            config,
            admin: Mutex::new(admin),
            consumers: Mutex::default(),
        })
    }

    /// Runs blocking calls of a consumer where they block nobody; again, where what they ask for
    /// is just moving to another broker.
    async fn with_consumer<T: Send + 'static>(
        &self,
        group: &str,
        call: impl Fn(&BaseConsumer<LastError>) -> Result<T, DriverError> + Send + 'static,
    ) -> Result<T, KafkaError> {
        let consumer = self
            .consumer(group)
            .map_err(|error| self.failed(&error, None))?;
        self.with(consumer, call).await
    }

    async fn with<T: Send + 'static>(
        &self,
        consumer: Arc<BaseConsumer<LastError>>,
        call: impl Fn(&BaseConsumer<LastError>) -> Result<T, DriverError> + Send + 'static,
    ) -> Result<T, KafkaError> {
        let last = consumer.context().clone();
        let result = tokio::task::spawn_blocking(move || {
            let result = (|| call(&consumer))
                .retry(settling())
                .when(|error| error.rdkafka_error_code().is_some_and(is_moving))
                .call();
            if result.is_err() {
                // Hands what the client has to say about its connections to the context.
                for _ in 0..16 {
                    let _ = consumer.poll(Duration::ZERO);
                }
            }
            result
        })
        .await;
        match result {
            Ok(Ok(value)) => {
                last.succeeded();
                Ok(value)
            }
            Ok(Err(error)) => Err(self.failed(&error, last.failed())),
            Err(error) => Err(KafkaError::Unreachable {
                servers: self.servers.clone(),
                detail: error.to_string(),
            }),
        }
    }

    fn consumer(&self, group: &str) -> Result<Arc<BaseConsumer<LastError>>, DriverError> {
        let mut consumers = self
            .consumers
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let unused: Vec<_> = consumers
            .extract_if(|key, (consumer, used)| {
                let idle = key != group && now.duration_since(*used) > IDLE;
                idle || consumer.context().is_lost()
            })
            .collect();
        if !unused.is_empty() {
            // Closing a client waits for its threads.
            tokio::task::spawn_blocking(move || drop(unused));
        }
        if let Some((consumer, used)) = consumers.get_mut(group) {
            *used = now;
            return Ok(consumer.clone());
        }
        let consumer = self.new_consumer(group)?;
        // Otherwise it is closed after the call. None is turned out for it: groups are asked for in
        // turn, so the one that was used longest ago is the next to be wanted.
        if consumers.len() < KEPT || group.is_empty() {
            consumers.insert(group.to_string(), (consumer.clone(), now));
        }
        Ok(consumer)
    }

    fn new_consumer(&self, group: &str) -> Result<Arc<BaseConsumer<LastError>>, DriverError> {
        let mut config = self.config.clone();
        // For looking whether there is a record at all: it says where a partition ends, doesn't
        // go elsewhere by itself, and doesn't fetch much ahead.
        config
            .set("enable.partition.eof", "true")
            .set("auto.offset.reset", "error")
            .set("fetch.message.max.bytes", "65536")
            .set("queued.max.messages.kbytes", "1024");
        if !group.is_empty() {
            config.set("group.id", group);
        }
        let consumer = config.create_with_context(LastError::default())?;
        Ok(Arc::new(consumer))
    }

    async fn administer<T, F>(&self, call: impl FnOnce(&Admin) -> F) -> Result<T, KafkaError>
    where
        F: Future<Output = Result<T, DriverError>>,
    {
        let admin = self.admin();
        let last = admin.inner().context();
        // The driver keeps its own time; this is for when it doesn't.
        match tokio::time::timeout(TIMEOUT + Duration::from_secs(2), call(&admin)).await {
            Ok(Ok(value)) => {
                last.succeeded();
                Ok(value)
            }
            Ok(Err(error)) => Err(self.failed(&error, last.failed())),
            Err(_) => {
                last.failed();
                Err(KafkaError::Unreachable {
                    servers: self.servers.clone(),
                    detail: "no answer".into(),
                })
            }
        }
    }

    fn admin(&self) -> Arc<Admin> {
        let mut kept = self.admin.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.inner().context().is_lost()
            && let Ok(another) = admin(&self.config)
        {
            let lost = std::mem::replace(&mut *kept, another);
            // Closing a client waits for its threads.
            tokio::task::spawn_blocking(move || drop(lost));
        }
        kept.clone()
    }

    fn failed(&self, error: &DriverError, last: Option<(Code, String)>) -> KafkaError {
        let servers = self.servers.clone();
        let code = last
            .as_ref()
            .map(|(code, _)| *code)
            .or_else(|| error.rdkafka_error_code());
        let said = last.map_or_else(|| error.to_string(), |(_, said)| said);
        // The driver also blames the authentication when a connection breaks in the midst of it.
        let broke = said.contains("Broker transport failure");
        match code {
            Some(Code::Authentication | Code::SaslAuthenticationFailed) if !broke => {
                KafkaError::Refused {
                    servers,
                    detail: match &self.origin {
                        Some(origin) => format!("the credentials of {origin} are wrong: {said}"),
                        None => format!("it wants credentials, and none are set: {said}"),
                    },
                }
            }
            Some(
                Code::TopicAuthorizationFailed
                | Code::GroupAuthorizationFailed
                | Code::ClusterAuthorizationFailed
                | Code::PolicyViolation,
            ) => KafkaError::Refused {
                servers,
                detail: said,
            },
            _ => KafkaError::Unreachable {
                servers,
                detail: said,
            },
        }
    }

    fn refused(&self, code: Code, what: &str) -> KafkaError {
        let servers = self.servers.clone();
        match code {
            Code::OperationTimedOut | Code::RequestTimedOut | Code::BrokerTransportFailure => {
                KafkaError::Unreachable {
                    servers,
                    detail: format!("it was asked to {what}"),
                }
            }
            code => KafkaError::Refused {
                servers,
                detail: format!("it won't {what}: {code}"),
            },
        }
    }
}

fn admin(config: &ClientConfig) -> Result<Arc<Admin>, DriverError> {
    config
        .create_with_context(LastError::default())
        .map(Arc::new)
}

/// Six more attempts in as many seconds.
fn settling() -> ExponentialBuilder {
    ExponentialBuilder::default()
        .with_min_delay(Duration::from_millis(100))
        .with_max_times(6)
}

/// A broker has just started, or leads no more: what it says of itself until others know.
fn is_moving(code: Code) -> bool {
    matches!(
        code,
        Code::NotCoordinator
            | Code::CoordinatorNotAvailable
            | Code::CoordinatorLoadInProgress
            | Code::NotLeaderForPartition
            | Code::LeaderNotAvailable
    )
}

/// What a client says of each broker that it can't connect to, also where others have all that it asks
/// for.
fn is_of_a_broker(code: Code) -> bool {
    matches!(
        code,
        Code::AllBrokersDown
            | Code::BrokerTransportFailure
            | Code::Resolve
            | Code::Authentication
            | Code::SSL
    )
}

fn options() -> AdminOptions {
    AdminOptions::new()
        .request_timeout(Some(TIMEOUT))
        .operation_timeout(Some(TIMEOUT))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn consumers_are_kept_up_to_a_number() {
        let connection = json!({"bootstrapServers": "127.0.0.1:1"});
        let kafka = Kafka::new(&Access {
            connection: serde_json::from_value(connection).unwrap(),
            login: None,
            ca: None,
        })
        .unwrap();
        let kept = kafka.consumer("0").unwrap();
        let others = (1..KEPT).map(|group| (group.to_string(), (kept.clone(), Instant::now())));
        kafka.consumers.lock().unwrap().extend(others);

        let count = || kafka.consumers.lock().unwrap().len();
        let more = kafka.consumer("more").unwrap();
        assert!(!Arc::ptr_eq(&more, &kafka.consumer("more").unwrap()));
        assert!(Arc::ptr_eq(&kept, &kafka.consumer("0").unwrap()));
        assert_eq!(count(), KEPT);
        kafka.consumer("").unwrap();
        assert_eq!(count(), KEPT + 1, "that of all topics");
    }
}
