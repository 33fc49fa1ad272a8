//! The data services beside the cluster: the real servers, told how to run here.
//!
//! Each file says how its server is started and asks it, in its own protocol, whether it
//! serves; where the process lives is the provider's business.

mod cassandra;
mod jars;
mod kafka;
mod redis;
mod registry;
mod wire;

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;
use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use crate::progress::Progress;

pub const CASSANDRA_USER: &str = "cassandra";
pub const CASSANDRA_PASSWORD: &str = "cassandra";
/// Kafka's second listener: SASL_PLAINTEXT with PLAIN and SCRAM-SHA-512.
pub const KAFKA_SASL_PORT: u16 = 9094;
/// Where the registry's Confluent-compatible API lies.
pub const REGISTRY_API: &str = "/apis/ccompat/v7";
pub const KAFKA_USER: &str = "app";
pub const KAFKA_PASSWORD: &str = "app-secret";

/// The services by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Service {
    Kafka,
    Cassandra,
    Redis,
    Registry,
}

impl Service {
    pub const ALL: [Self; 4] = [Self::Kafka, Self::Cassandra, Self::Redis, Self::Registry];

    pub fn name(self) -> &'static str {
        match self {
            Self::Kafka => "kafka",
            Self::Cassandra => "cassandra",
            Self::Redis => "redis",
            Self::Registry => "registry",
        }
    }

    pub fn port(self) -> u16 {
        match self {
            Self::Kafka => kafka::PORT,
            Self::Cassandra => cassandra::PORT,
            Self::Redis => redis::PORT,
            Self::Registry => registry::PORT,
        }
    }

    /// How long a first start may take on a loaded machine.
    pub fn start_timeout(self) -> Duration {
        Duration::from_secs(180)
    }

    /// Fetches the server's jars into the cache.
    ///
    /// # Errors
    /// When Maven fails.
    pub fn fetch(self, progress: &Progress) -> Result<()> {
        match self {
            Self::Kafka => kafka::JARS.fetch(progress).map(drop),
            Self::Cassandra => cassandra::JARS.fetch(progress).map(drop),
            Self::Registry => registry::JARS.fetch(progress).map(drop),
            Self::Redis => Ok(()),
        }
    }

    /// Writes the server's configuration and says how it is started.
    ///
    /// # Errors
    /// When the jars aren't there or a file can't be written.
    pub fn launch(self, place: &Place, progress: &Progress) -> Result<Launch> {
        match self {
            Self::Kafka => kafka::launch(place, progress),
            Self::Cassandra => cassandra::launch(place, progress),
            Self::Redis => redis::launch(place),
            Self::Registry => registry::launch(place, progress),
        }
    }

    /// Asks the server, in its own protocol, whether it serves.
    ///
    /// # Errors
    /// What the server said or didn't say.
    pub fn probe(self, address: IpAddr) -> Result<()> {
        let address = SocketAddr::new(address, self.port());
        match self {
            Self::Kafka => kafka::probe(address),
            Self::Cassandra => cassandra::probe(address),
            Self::Redis => redis::probe(address),
            Self::Registry => registry::probe(address),
        }
    }
}

/// Where a service runs: the address it listens on, and folders of its own.
pub struct Place<'a> {
    pub address: IpAddr,
    /// For its files; kept while the environment is up.
    pub data: &'a Path,
    pub config: PathBuf,
}

/// Commands that start a server.
#[derive(Debug)]
pub struct Launch {
    /// Runs to its end first: formats a storage folder, say.
    pub before: Option<Vec<String>>,
    /// The server, in the foreground.
    pub server: Vec<String>,
}
