//! Where records come from: a stream of batches that ends where the source ends.
//!
//! A new source is a file here, a variant of `millstream_api::source::Source`, and a line in
//! [`open`].

pub mod database;
pub mod file;
pub mod generator;
pub mod http;
pub mod topic;

use bytes::Bytes;
use futures::stream::BoxStream;
use millstream_api::{
    KafkaConnection, SchemaRegistryConnection,
    source::{DatabaseSource, Source},
};
use serde_json::Value;

use crate::{
    config::Credentials, dead_letter::DeadLetters, metrics::StageMetrics, status::StatusPart,
};

/// Records, and the position after them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SourceBatch {
    /// JSON records, byte for byte as the source gave them.
    pub records: Vec<Bytes>,
    /// What isn't a record, and why: it goes to the dead letter.
    pub rejected: Vec<(Bytes, String)>,
    /// How many more weren't records; the source has put them into the dead letter itself.
    pub refused: usize,
    /// From here the source goes on once Kafka has these records and all before.
    pub position: Value,
}

/// The records of a source. A source that fails shows the error in the status and tries again by
/// itself; the end of the stream is the end of the source.
pub type Records = BoxStream<'static, SourceBatch>;

/// What a source is opened with.
pub struct Opening<'a> {
    /// The shape of a record, as in the DataPipeline.
    pub schema: &'a str,
    /// The folder with the values of [`Source::secrets`].
    pub credentials: &'a Credentials,
    /// Where another worker stopped; the source's beginning where there is none.
    pub position: Option<&'a Value>,
    pub status: &'a StatusPart,
    pub metrics: &'a StageMetrics,
    /// What a source needs that reads a topic; none where it can't be one.
    pub connections: Option<Connections<'a>>,
    /// Bytes of answers that are held at the same time.
    pub answers: usize,
}

/// The pipeline's own connections.
#[derive(Clone, Copy)]
pub struct Connections<'a> {
    /// The pipeline's Kafka.
    pub kafka: &'a KafkaConnection,
    /// The pipeline's schema registry.
    pub registry: Option<&'a SchemaRegistryConnection>,
    /// What the topic is read for.
    pub purpose: Purpose<'a>,
}

/// What a source's topic is read for.
#[derive(Clone, Copy)]
pub enum Purpose<'a> {
    /// To copy it, for ever. What can't be a record goes to the dead letter.
    Copy(&'a DeadLetters),
    /// To have a look at what is there now; then it ends. Of a topic that is to be begun at its end
    /// so many records of each partition are read, the last ones.
    Look(u32),
}

/// Opens a source.
pub fn open(source: &Source, opening: &Opening<'_>) -> anyhow::Result<Records> {
    match source {
        Source {
            http: Some(http), ..
        } => http::open(http.clone(), opening),
        Source {
            database: Some(database),
            ..
        } => database::open(DatabaseSource::clone(database), opening),
        Source {
            file: Some(file), ..
        } => file::open(file.clone(), opening),
        Source {
            topic: Some(topic), ..
        } => topic::open(topic.clone(), opening),
        Source {
            generator: Some(generator),
            ..
        } => generator::open(generator.clone(), opening),
        _ => anyhow::bail!(
            "the pipeline has no source; set one of http, file, database, topic and generator"
        ),
    }
}
