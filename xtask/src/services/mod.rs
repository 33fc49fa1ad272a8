//! The data services beside the cluster: the real servers, told how to run here.
//!
//! Each file says how its server is started and asks it, in its own protocol, whether it
//! serves; where the process lives is the provider's business.

mod archive;
mod cassandra;
mod documents;
pub mod jars;
pub mod java;
mod kafka;
mod redis;
mod registry;
mod wire;

use std::fs;
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
/// Kafka's third listener: SASL_SSL with the same.
pub const KAFKA_TLS_PORT: u16 = 9095;
/// Where the registry's Confluent-compatible API lies.
pub const REGISTRY_API: &str = "/apis/ccompat/v7";
pub const KAFKA_USERS: [(&str, &str); 2] = [("admin", "admin-secret"), ("app", "app-secret")];
/// The one that status tells of.
pub const KAFKA_USER: &str = KAFKA_USERS[1].0;
pub const KAFKA_PASSWORD: &str = KAFKA_USERS[1].1;

/// The services by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Service {
    Kafka,
    Cassandra,
    Redis,
    Registry,
    /// For MongoDB's clients.
    Documents,
}

impl Service {
    pub const ALL: [Self; 5] = [
        Self::Kafka,
        Self::Cassandra,
        Self::Redis,
        Self::Registry,
        Self::Documents,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::Kafka => "kafka",
            Self::Cassandra => "cassandra",
            Self::Redis => "redis",
            Self::Registry => "registry",
            Self::Documents => "documents",
        }
    }

    pub fn port(self) -> u16 {
        match self {
            Self::Kafka => kafka::PORT,
            Self::Cassandra => cassandra::PORT,
            Self::Redis => redis::PORT,
            Self::Registry => registry::PORT,
            Self::Documents => documents::PORT,
        }
    }

    /// How long a first start may take on a loaded machine.
    pub fn start_timeout(self) -> Duration {
        Duration::from_secs(180)
    }

    /// Fetches or builds the server; prepares fast starts, and gives the Java options for them.
    ///
    /// # Errors
    /// When Maven or Go fails, or the server doesn't start at all.
    pub fn fetch(self, progress: &Progress) -> Result<Vec<String>> {
        match self {
            Self::Kafka | Self::Cassandra | Self::Registry => archive::options(self, progress),
            Self::Documents => documents::program(progress).map(|_| Vec::new()),
            Self::Redis => Ok(Vec::new()),
        }
    }

    /// Writes the server's configuration and says how it is started.
    ///
    /// # Errors
    /// When the server can't be fetched or a file can't be written.
    pub fn launch(self, place: &Place, progress: &Progress) -> Result<Launch> {
        fs::create_dir_all(place.data)?;
        fs::create_dir_all(place.config)?;
        match self {
            Self::Kafka => kafka::configure(place)?,
            Self::Cassandra => cassandra::configure(place)?,
            Self::Redis | Self::Registry | Self::Documents => {}
        }
        self.command(place, progress)
    }

    fn command(self, place: &Place, progress: &Progress) -> Result<Launch> {
        match self {
            Self::Kafka => kafka::command(place, progress),
            Self::Cassandra => cassandra::command(place, progress),
            Self::Redis => Ok(redis::command(place)),
            Self::Registry => registry::command(place, progress),
            Self::Documents => documents::command(place, progress),
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
            Self::Documents => documents::probe(address),
        }
    }
}

/// Where the certificates are of a Kafka that is configured in this folder: `ca.crt` is the authority,
/// `other-ca.crt` one that isn't.
pub fn kafka_certificates(config: &Path) -> PathBuf {
    kafka::tls_folder(config)
}

/// Where a service runs: the address it listens on, and folders of its own.
pub struct Place<'a> {
    pub address: IpAddr,
    /// For its files; kept while the environment is up.
    pub data: &'a Path,
    pub config: &'a Path,
    /// Those that [`Service::fetch`] gave.
    pub java_options: Vec<String>,
}

/// How a server is started.
#[derive(Debug)]
pub struct Launch {
    /// What the process is in the end.
    pub program: &'static str,
    /// Stays in the foreground.
    pub command: Vec<String>,
}

impl Launch {
    fn new(program: &'static str, arguments: Vec<String>) -> Self {
        let command = [vec![program.to_owned()], arguments].concat();
        Self { program, command }
    }

    fn java(place: &Place, arguments: Vec<String>) -> Result<Self> {
        let own = vec![
            java::find()?.program.display().to_string(),
            // Nothing of it is left under /tmp.
            "-XX:-UsePerfData".to_owned(),
            format!("-Djava.io.tmpdir={}", place.config.display()),
        ];
        Ok(Self {
            program: "java",
            command: [own, place.java_options.clone(), arguments].concat(),
        })
    }

    /// Runs another command first; the server starts if that succeeds.
    fn after(mut self, first: &[String]) -> Self {
        let script = format!("{} && exec {}", quoted(first), quoted(&self.command));
        self.command = vec!["sh".to_owned(), "-c".to_owned(), script];
        self
    }
}

/// Words as a shell takes them literally.
fn quoted(words: &[String]) -> String {
    let words = words
        .iter()
        .map(|word| format!("'{}'", word.replace('\'', r"'\''")));
    words.collect::<Vec<_>>().join(" ")
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(ToString::to_string).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_starts_after_its_preparation_and_only_if_that_succeeds() {
        let run = |first: &str| {
            let launch = Launch::new("echo", words(&["it's", "$HOME"])).after(&words(&[first]));
            let (program, arguments) = launch.command.split_first().unwrap();
            let output = std::process::Command::new(program).args(arguments).output();
            String::from_utf8(output.unwrap().stdout).unwrap()
        };
        assert_eq!(run("true"), "it's $HOME\n");
        assert_eq!(run("false"), "");
    }
}
