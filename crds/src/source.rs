//! Where the records of a pipeline come from.

use std::collections::BTreeMap;

use kube::{KubeSchema, core::Duration};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::connection::SecretValue;

/// Durations as Go and Kubernetes write them. Checked by the API server, because a resource that
/// can't be deserialized can't be told what is wrong with it.
pub(crate) const DURATION: &str = r"^([0-9]+(\.[0-9]+)?(ns|us|ms|s|m|h))+$";

/// The source of a pipeline: exactly one of its fields is set.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("[has(self.http), has(self.generator)].filter(x, x).size() == 1").message("exactly one of http and generator must be set"))]
pub struct Source {
    /// Records from an HTTP API.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http: Option<HttpSource>,
    /// Made-up records in the shape of the schema, for trying out and for load tests.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generator: Option<GeneratorSource>,
}

impl Source {
    /// The Secrets that the source needs, by the name of the file in which the worker finds the value.
    pub fn secrets(&self) -> BTreeMap<&'static str, &SecretValue> {
        BTreeMap::new()
    }
}

/// Records from an HTTP API that answers with JSON.
///
/// Requests that fail (connection, timeout, status 408, 429 or 5xx, an answer that is cut off or
/// isn't JSON) are repeated with a growing delay for as long as it takes; `Retry-After` is obeyed.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct HttpSource {
    /// `http://` or `https://`.
    #[schemars(regex(pattern = r"^https?://"))]
    pub url: String,
    /// Query parameters that every request carries.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub query: BTreeMap<String, String>,
    /// Headers that every request carries. Not for credentials.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub headers: BTreeMap<String, String>,
    /// JSON Pointer (RFC 6901) to the array of records in the answer; empty for the whole answer.
    /// An object there counts as one record.
    #[serde(default)]
    #[schemars(regex(pattern = r"^(/.*)?$"))]
    pub records: String,
    /// How a large result is fetched page by page; a single request where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pagination: Option<Pagination>,
    /// Fetch again and again; once where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub poll: Option<Poll>,
    /// Pages that are fetched at the same time.
    #[serde(default = "four")]
    #[schemars(range(min = 1, max = 64))]
    pub concurrency: u32,
    /// Time for one request, answer included.
    #[serde(default = "thirty_seconds")]
    #[schemars(extend("pattern" = DURATION))]
    pub timeout: Duration,
}

fn four() -> u32 {
    4
}

fn thirty_seconds() -> Duration {
    std::time::Duration::from_secs(30).into()
}

/// Fetch again and again.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Poll {
    /// From the start of one fetch to the start of the next, such as `1s` or `5m`.
    #[schemars(extend("pattern" = DURATION))]
    pub interval: Duration,
}

/// How a large result is fetched page by page.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Pagination {
    /// By two query parameters: how many records, and from which on.
    pub limit_offset: LimitOffset,
}

/// Pages by a limit and an offset, as Socrata and many others have them.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct LimitOffset {
    /// Name of the query parameter for the number of records of a page.
    #[serde(default = "limit")]
    pub limit_parameter: String,
    /// Name of the query parameter for the number of records before the page.
    #[serde(default = "offset")]
    pub offset_parameter: String,
    /// Records of a page.
    #[schemars(range(min = 1, max = 100000))]
    pub page_size: u64,
    /// A request for the number of records; without it pages are fetched one after the other until
    /// one is not full.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub count: Option<CountRequest>,
    /// Fetch no more records than this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_records: Option<u64>,
}

fn limit() -> String {
    "limit".into()
}

fn offset() -> String {
    "offset".into()
}

/// A request for the number of records.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct CountRequest {
    /// Query parameters in place of the page's.
    pub query: BTreeMap<String, String>,
    /// JSON Pointer to the number (or a string of digits) in the answer.
    pub pointer: String,
}

/// Made-up records: the same seed gives the same records.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct GeneratorSource {
    /// Records per second; as many as Kafka takes where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 10000000))]
    pub rate: Option<u32>,
    /// Stop after so many records; never where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub count: Option<u64>,
    /// Seed of the random values.
    #[serde(default)]
    pub seed: u64,
}
