//! Where records come from: a stream of batches that ends where the source ends.
//!
//! A new source is a file here, a variant of `millstream_api::source::Source`, and a line in
//! [`open`].

pub mod generator;
pub mod http;

use bytes::Bytes;
use futures::stream::BoxStream;
use millstream_api::source::Source;
use serde_json::Value;

use crate::status::StatusPart;

/// Records, and the position after them.
#[derive(Clone, Debug, PartialEq)]
pub struct SourceBatch {
    /// JSON records, byte for byte as the source gave them.
    pub records: Vec<Bytes>,
    /// From here the source goes on once Kafka has these records and all before.
    pub position: Value,
}

/// The records of a source. A source that fails shows the error in the status and tries again by
/// itself; the end of the stream is the end of the source.
pub type Records = BoxStream<'static, SourceBatch>;

/// Opens a source at a position; at its beginning where there is none.
pub fn open(
    source: &Source,
    schema: &str,
    position: Option<&Value>,
    status: &StatusPart,
) -> anyhow::Result<Records> {
    match source {
        Source {
            http: Some(http), ..
        } => http::open(http.clone(), position, status.clone()),
        Source {
            generator: Some(generator),
            ..
        } => generator::open(generator.clone(), schema, position),
        _ => anyhow::bail!("the pipeline has no source; set one of http and generator"),
    }
}
