//! What the end-to-end tests stand on: a namespace of their own, conditions to await, and direct
//! sight of what the product only reports: Kafka, Cassandra, the audit log, the operator's metrics.
//!
//! `cargo xtask test --only e2e` brings up what they need. Without it every test says `skipped`.

mod apis;
mod audit;
mod cassandra;
mod condition;
mod diagnostics;
mod documents;
mod environment;
mod forward;
mod kafka;
mod kubectl;
mod metrics;
mod namespace;
// What the worker's own tests take.
#[path = "../../worker/tests/worker_sources/ports.rs"]
mod ports;
mod volume;
mod wait;
mod workloads;

pub use apis::{Apis, Data};
pub use audit::AuditLog;
pub use cassandra::Cassandra;
pub use condition::{Kind, await_condition, await_reason, condition};
pub use documents::Documents;
pub use environment::{Addresses, Environment, StoppedServices};
pub use forward::Forward;
pub use kafka::{Kafka, Record, header};
pub use kubectl::Outcome;
pub use metrics::{OPERATOR_NAMESPACE, external_writes, operator_pod};
pub use namespace::{Namespace, alone_in_temp_namespace, with_temp_namespace};
pub use ports::free_port;
pub use volume::Volume;
pub use wait::eventually;
pub use workloads::is_ready;

use std::time::Duration;

/// Within this, on a loaded machine of two cores, pods start and a resource becomes ready.
pub const PATIENCE: Duration = Duration::from_secs(120);
