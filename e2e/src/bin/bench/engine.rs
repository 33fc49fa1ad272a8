//! The engines: each a program of its own that is started with a worker's configuration, watched
//! from outside, and killed when everything is committed.

use std::{
    fmt, fs,
    net::TcpListener,
    process::{Child, Command, Stdio},
    time::Instant,
};

use anyhow::{Context, Result, bail};
use millstream_api::{
    CassandraConnection, KafkaConnection,
    connection::SecretReference,
    cql::CqlType,
    keyspace::{ColumnSpec, PrimaryKey, TableSpec},
    sink::ConsistencyLevel,
    worker::{
        CassandraTable, Destination, PipelineRef, ProcessConfig, SinkConfig, TopicRef,
        WorkerConfig, credentials,
    },
};
use millstream_e2e::Environment;
use tempfile::TempDir;
use uuid::Uuid;

use crate::{
    Bench,
    kafka::{PARTITIONS, dead_letter},
    records::TEXT_COLUMNS,
};

const SCHEMA: &str = "
    gender TEXT,
    name STRUCT<title TEXT, first TEXT, last TEXT>,
    location STRUCT<
        street STRUCT<number INT, name TEXT>,
        city TEXT, state TEXT, country TEXT, postcode TEXT
    >,
    email TEXT,
    login STRUCT<uuid UUID, username TEXT>,
    dob STRUCT<age INT>,
    registered STRUCT<date TEXT, age INT>,
    phone TEXT,
    picture STRUCT<medium TEXT>,
    nat TEXT";

/// The projection of the users pipeline.
const SQL: &str = "
    SELECT
        login.uuid AS id,
        name.first AS first_name,
        name.last AS last_name,
        gender,
        CAST(location.street.number AS TEXT) || ' ' || location.street.name || ', '
            || location.city || ', ' || location.state || ', ' || location.country AS address,
        location.postcode AS post_code,
        email,
        login.username AS username,
        registered.date AS registered_date,
        phone,
        picture.medium AS picture
    FROM records
    WHERE gender IS NOT NULL";

const SINK: &str = "users";
const LOG: &str = "log";
/// Any time before now; every table is new, so the same one does for all runs.
const TIMESTAMP_BASE: i64 = 1_700_000_000_000_000;
/// Linux counts a process's time in hundredths of a second wherever it shows it.
const TICKS_PER_SECOND: f64 = 100.0;

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Ceiling,
    Millstream,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Kind::Ceiling => "ceiling",
            Kind::Millstream => "millstream",
        })
    }
}

/// An engine at work.
pub struct Engine {
    child: Child,
    pub started: Instant,
    pub group: String,
    /// Holds the configuration, the credentials and the log.
    folder: TempDir,
}

/// What a process has used since its start.
pub struct Usage {
    pub cpu_seconds: f64,
    pub peak_rss_mb: f64,
}

impl Engine {
    /// Starts an engine with a group of its own, from `topic` to `table`.
    pub fn start(bench: &Bench, kind: Kind, topic: &str, table: &str) -> Result<Self> {
        let environment = &bench.environment;
        let folder = tempfile::tempdir()?;
        let config = config(environment, topic, &bench.cassandra.keyspace, table);
        let config_file = folder.path().join("worker.yaml");
        // JSON is YAML.
        fs::write(
            &config_file,
            serde_json::to_vec_pretty(&WorkerConfig::Process(config.clone()))?,
        )?;
        for (file, secret) in [
            (credentials::CASSANDRA_USERNAME, &environment.cassandra_user),
            (
                credentials::CASSANDRA_PASSWORD,
                &environment.cassandra_password,
            ),
        ] {
            fs::write(folder.path().join(file), secret)?;
        }
        let program = std::env::current_exe()?.with_file_name(match kind {
            Kind::Ceiling => "ceiling",
            Kind::Millstream => "millstream-worker",
        });
        let mut command = Command::new(&program);
        if kind == Kind::Millstream {
            let port = free_port()?.to_string();
            command.args(["run", "--http-port", &port]);
        }
        let output = fs::File::create(folder.path().join(LOG))?;
        let started = Instant::now();
        let child = command
            .arg("--config")
            .arg(&config_file)
            .arg("--credentials-dir")
            .arg(folder.path())
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()
            .with_context(|| {
                let program = program.display();
                format!("{program} can't be started: `cargo xtask bench` builds it")
            })?;
        Ok(Self {
            child,
            started,
            group: config.pipeline.sink_group(SINK),
            folder,
        })
    }

    /// Says what the engine said last, if it has ended: it never should.
    pub fn check(&mut self) -> Result<()> {
        if let Some(status) = self.child.try_wait()? {
            bail!("it ended ({status}): {}", self.last_words());
        }
        Ok(())
    }

    /// The end of the engine's log.
    pub fn last_words(&self) -> String {
        let log = fs::read(self.folder.path().join(LOG)).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let lines: Vec<_> = log.lines().collect();
        lines[lines.len().saturating_sub(10)..].join("\n")
    }

    pub fn usage(&self) -> Result<Usage> {
        let read = |file: &str| fs::read_to_string(format!("/proc/{}/{file}", self.child.id()));
        let (stat, status) = (read("stat")?, read("status")?);
        let after_name = stat.rsplit_once(')').context("/proc/PID/stat")?.1;
        let ticks = |field: usize| -> Result<f64> {
            // The third field, the state, is the first after the name.
            let field = after_name.split_whitespace().nth(field - 3);
            Ok(field.context("/proc/PID/stat is short")?.parse()?)
        };
        let peak = status
            .lines()
            .find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix("kB"))
            .context("/proc/PID/status has no VmHWM")?;
        Ok(Usage {
            cpu_seconds: (ticks(14)? + ticks(15)?) / TICKS_PER_SECOND,
            peak_rss_mb: peak.trim().parse::<f64>()? / 1024.0,
        })
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        // It may have ended by itself; either way nothing is left to do.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

fn config(environment: &Environment, topic: &str, keyspace: &str, table: &str) -> ProcessConfig {
    let column = |name: &str, cql_type| ColumnSpec {
        name: name.into(),
        cql_type,
    };
    let texts = TEXT_COLUMNS.map(|name| column(name, CqlType::Text));
    ProcessConfig {
        pipeline: PipelineRef {
            namespace: "bench".into(),
            name: table.into(),
        },
        kafka: KafkaConnection {
            bootstrap_servers: environment.addresses.kafka.clone(),
            sasl: None,
            tls: None,
        },
        cassandra: Some(CassandraConnection {
            contact_points: vec![environment.addresses.cassandra.clone()],
            datacenter: None,
            credentials_secret: Some(SecretReference {
                name: "bench".into(),
            }),
            tls: None,
        }),
        topic: TopicRef {
            name: topic.into(),
            id: Uuid::new_v4().to_string(),
            timestamp_base: TIMESTAMP_BASE,
            partitions: PARTITIONS,
        },
        dead_letter_topic: dead_letter(topic),
        schema: SCHEMA.into(),
        avro: None,
        lookups: Vec::new(),
        sinks: vec![SinkConfig {
            name: SINK.into(),
            sql: SQL.into(),
            expectations: Vec::new(),
            destination: Destination::Cassandra(CassandraTable {
                keyspace: keyspace.into(),
                table: TableSpec {
                    name: table.into(),
                    columns: [column("id", CqlType::Uuid)]
                        .into_iter()
                        .chain(texts)
                        .collect(),
                    primary_key: PrimaryKey {
                        partition_key: vec!["id".into()],
                        clustering_key: Vec::new(),
                    },
                    options: None,
                },
                consistency: ConsistencyLevel::LocalQuorum,
            }),
            state: None,
            state_ttl: None,
        }],
    }
}
