//! A worker's configuration, as the operator would write it; the ceiling reads the same, so that
//! both do one job.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::Result;
use millstream_api::{
    CassandraConnection, KafkaConnection,
    connection::SecretReference,
    keyspace::{ColumnSpec, PrimaryKey, TableSpec},
    sink::ConsistencyLevel,
    source::Source,
    worker::{
        CassandraTable, Destination, IngestConfig, PipelineRef, ProcessConfig, SinkConfig,
        TopicRef, WorkerConfig, credentials,
    },
};
use serde_json::json;
use uuid::Uuid;

use super::Work;
use crate::{
    Bench,
    job::{TableJob, ingest},
    kafka::{PARTITIONS, dead_letter},
};

/// Any time before now; every table is new, so the same one does for all runs.
const TIMESTAMP_BASE: i64 = 1_700_000_000_000_000;

/// Writes the configuration and the credentials into a folder, and gives the configuration's path.
pub fn write(bench: &Bench, work: &Work<'_>, folder: &Path) -> Result<PathBuf> {
    let environment = &bench.environment;
    for (file, secret) in [
        (credentials::CASSANDRA_USERNAME, &environment.cassandra_user),
        (
            credentials::CASSANDRA_PASSWORD,
            &environment.cassandra_password,
        ),
    ] {
        fs::write(folder.join(file), secret)?;
    }
    let config = match work {
        Work::Table { job, topic, table } => {
            WorkerConfig::Process(process(bench, *job, topic, table))
        }
        Work::Decode { job, .. } => {
            // Topic and table are only named.
            WorkerConfig::Process(process(bench, *job, "decode", "decode"))
        }
        Work::Ingest { url, topic } => WorkerConfig::Ingest(ingest(bench, url, topic)?),
    };
    let path = folder.join("worker.yaml");
    // JSON is YAML.
    fs::write(&path, serde_json::to_vec_pretty(&config)?)?;
    Ok(path)
}

fn pipeline(name: &str) -> PipelineRef {
    PipelineRef {
        namespace: "bench".into(),
        name: name.into(),
    }
}

fn kafka(bench: &Bench) -> KafkaConnection {
    KafkaConnection {
        bootstrap_servers: bench.environment.addresses.kafka.clone(),
        sasl: None,
        tls: None,
    }
}

fn topic_ref(topic: &str) -> TopicRef {
    TopicRef {
        name: topic.into(),
        id: Uuid::new_v4().to_string(),
        timestamp_base: TIMESTAMP_BASE,
        partitions: PARTITIONS,
    }
}

fn process(bench: &Bench, job: &dyn TableJob, topic: &str, table: &str) -> ProcessConfig {
    let columns = job.columns().into_iter();
    let columns: Vec<_> = columns
        .map(|(name, cql_type)| ColumnSpec {
            name: name.into(),
            cql_type,
        })
        .collect();
    ProcessConfig {
        pipeline: pipeline(table),
        kafka: kafka(bench),
        cassandra: Some(CassandraConnection {
            contact_points: vec![bench.environment.addresses.cassandra.clone()],
            datacenter: None,
            credentials_secret: Some(SecretReference {
                name: "bench".into(),
            }),
            tls: None,
        }),
        topic: topic_ref(topic),
        dead_letter_topic: dead_letter(topic),
        schema: job.schema().into(),
        avro: None,
        lookups: Vec::new(),
        sinks: vec![SinkConfig {
            name: "rows".into(),
            sql: job.sql().into(),
            expectations: Vec::new(),
            destination: Destination::Cassandra(CassandraTable {
                keyspace: bench.cassandra.keyspace.clone(),
                table: TableSpec {
                    name: table.into(),
                    primary_key: PrimaryKey {
                        partition_key: vec![columns[0].name.clone()],
                        clustering_key: Vec::new(),
                    },
                    columns,
                    options: None,
                },
                consistency: ConsistencyLevel::LocalQuorum,
            }),
            state: None,
            state_ttl: None,
        }],
        memory_limit: None,
    }
}

/// As the licences pipeline has it, without a cache and without an order: the server gives a fixed
/// one, and would sort for each page.
fn ingest(bench: &Bench, url: &str, topic: &str) -> Result<IngestConfig> {
    let source: Source = serde_json::from_value(json!({"http": {
        "url": url,
        "concurrency": 4,
        "pagination": {"limitOffset": {
            "limitParameter": "$limit",
            "offsetParameter": "$offset",
            "pageSize": ingest::PAGE,
            "count": {"query": {"$select": "count(*)"}, "pointer": "/0/count"},
        }},
    }}))?;
    Ok(IngestConfig {
        pipeline: pipeline(topic),
        kafka: kafka(bench),
        topic: topic_ref(topic),
        dead_letter_topic: dead_letter(topic),
        key: vec![format!("/{}", ingest::KEY)],
        source,
        schema: format!("{} TEXT, business_name TEXT", ingest::KEY),
        schema_registry: None,
        avro_schema_id: None,
        memory_limit: None,
    })
}
