//! The configuration that the operator wrote, and the mounted credentials.

use std::{
    borrow::Cow,
    io,
    path::{Path, PathBuf},
};

use millstream_api::{
    Lookup,
    worker::{WorkerConfig, credentials::OF_SOURCE},
};

/// Why the worker can't be configured.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("can't read {path}: {source}", path = .path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{path} is not a worker configuration: {reason}", path = .path.display())]
    Parse { path: PathBuf, reason: String },
    #[error("the connection asks for {what}, but there is no file {path}; is the Secret's key missing?", path = .path.display())]
    Missing { what: &'static str, path: PathBuf },
    #[error("{path}: {reason}", path = .path.display())]
    Certificate { path: PathBuf, reason: String },
}

/// Where a pod finds what the operator gave it.
#[derive(clap::Args)]
pub struct Mounted {
    /// The configuration, as the operator writes it.
    #[arg(
        long,
        env = "MILLSTREAM_CONFIG",
        default_value = "/etc/millstream/worker.yaml"
    )]
    config: PathBuf,
    /// The folder with the credentials for Kafka and Cassandra, one file each.
    #[arg(
        long,
        env = "MILLSTREAM_CREDENTIALS_DIR",
        default_value = "/etc/millstream-credentials"
    )]
    credentials_dir: PathBuf,
}

impl Mounted {
    /// Reads the configuration; credentials are read when they are needed.
    pub fn load(&self) -> Result<(WorkerConfig, Credentials), ConfigError> {
        let credentials = Credentials::new(self.credentials_dir.clone());
        Ok((load(&self.config)?, credentials))
    }
}

/// Reads the configuration.
pub fn load(path: &Path) -> Result<WorkerConfig, ConfigError> {
    let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read {
        path: path.into(),
        source,
    })?;
    serde_saphyr::from_str(&text).map_err(|error| ConfigError::Parse {
        path: path.into(),
        reason: error.to_string(),
    })
}

/// The folder of mounted credentials.
#[derive(Clone, Debug)]
pub struct Credentials {
    folder: PathBuf,
    prefix: Cow<'static, str>,
}

impl Credentials {
    /// Credentials in this folder; it may be absent where none are needed.
    pub fn new(folder: PathBuf) -> Self {
        let prefix = Cow::Borrowed("");
        Credentials { folder, prefix }
    }

    /// Those of the connections that the source has of its own.
    pub fn of_source(&self) -> Self {
        Credentials {
            folder: self.folder.clone(),
            prefix: OF_SOURCE.into(),
        }
    }

    /// Those of a lookup.
    pub fn of_lookup(&self, lookup: &Lookup) -> Self {
        Credentials {
            folder: self.folder.clone(),
            prefix: lookup.credentials_prefix().into(),
        }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.join(format!("{}{name}", self.prefix))
    }

    /// The content of a file, without the line's end that editors leave; none where it isn't there.
    pub fn read(&self, name: &str) -> Result<Option<String>, ConfigError> {
        let path = self.file(name);
        match std::fs::read_to_string(&path) {
            Ok(text) => Ok(Some(text.trim_end_matches(['\n', '\r']).to_owned())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(ConfigError::Read { path, source }),
        }
    }

    /// The content of a file that the connection can't do without.
    pub fn require(&self, name: &str, what: &'static str) -> Result<String, ConfigError> {
        let path = self.file(name);
        self.read(name)?.ok_or(ConfigError::Missing { what, path })
    }

    /// The path of a file, where it is there.
    pub fn path(&self, name: &str) -> Option<PathBuf> {
        let path = self.file(name);
        path.is_file().then_some(path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INGEST: &str = r#"
stage: ingest
pipeline: {namespace: default, name: users}
kafka: {bootstrapServers: "kafka:9092"}
topic: {name: users_created, id: AAAA, timestampBase: 1700000000000000, partitions: 4}
deadLetterTopic: users_created.dead-letter
key: [/login/uuid]
schema: "gender TEXT"
source:
  http: {url: "https://randomuser.me/api/", records: /results, poll: {interval: 1s}}
"#;

    #[test]
    fn reads_what_the_operator_writes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("worker.yaml");
        std::fs::write(&path, INGEST).unwrap();
        let WorkerConfig::Ingest(ingest) = load(&path).unwrap() else {
            panic!("not an ingest stage");
        };
        assert_eq!(ingest.topic.timestamp_base, 1_700_000_000_000_000);
        assert_eq!(ingest.source.http.unwrap().concurrency, 4);

        std::fs::write(&path, "stage: nothing").unwrap();
        let error = load(&path).unwrap_err().to_string();
        assert!(
            error.contains("worker.yaml is not a worker configuration"),
            "{error}"
        );
    }

    #[test]
    fn a_missing_credential_is_named() {
        let credentials = Credentials::new("/nowhere".into());
        assert_eq!(credentials.read("kafka-username").unwrap(), None);
        let error = credentials.require("kafka-password", "SASL").unwrap_err();
        assert!(
            error.to_string().contains("/nowhere/kafka-password"),
            "{error}"
        );
    }
}
