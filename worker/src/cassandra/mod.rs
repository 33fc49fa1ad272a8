//! The connection to Cassandra and its values: for sinks, lookups and the REST service.

mod session;
pub mod value;

pub use session::{Connecting, connect, one_datacenter};

/// The concern under which errors of Cassandra are shown.
pub const CASSANDRA: &str = "cassandra";
