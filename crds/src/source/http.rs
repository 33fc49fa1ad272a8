//! The source `http`.

use std::collections::BTreeMap;

use kube::{KubeSchema, core::Duration};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::DURATION;
use crate::connection::SecretValue;

/// Records from an HTTP API that answers with JSON.
///
/// Requests that fail (connection, timeout, status 408, 429 or 5xx, an answer that is cut off or
/// isn't JSON) are repeated with a growing delay for as long as it takes; `Retry-After` is obeyed.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("!has(self.cache) || !has(self.poll) || !has(self.poll.incremental)").message("cache and poll.incremental exclude each other: what is new isn't in a cache"))]
#[x_kube(validation = Rule::new("!has(self.tls) || self.url.startsWith('https://')").message("tls goes with a url that begins with https://"))]
pub struct HttpSource {
    /// `http://` or `https://`.
    #[schemars(regex(pattern = r"^https?://"))]
    pub url: String,
    /// Whom to trust behind `https://`; the system's authorities where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<HttpTls>,
    /// Query parameters that every request carries. Not for credentials.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub query: BTreeMap<String, String>,
    /// Headers that every request carries. Not for credentials.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub headers: BTreeMap<String, String>,
    /// Who asks; nobody in particular where absent. Credentials go to the host of `url` alone,
    /// wherever the server points or redirects to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub auth: Option<HttpAuth>,
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
    /// Keep what was fetched for a while, and take it from there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache: Option<HttpCache>,
    /// How often the server may be asked, repeated requests included; as often as it answers where
    /// absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_limit: Option<RateLimit>,
    /// Pages that are fetched at the same time, where it is known which there are. A page may have
    /// 256 MiB, unpacked, divided by this; less in a pod with less memory than 512Mi.
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

pub(super) fn thirty_seconds() -> Duration {
    seconds(30)
}

fn seconds(seconds: u64) -> Duration {
    std::time::Duration::from_secs(seconds).into()
}

/// TLS towards a server of HTTP.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct HttpTls {
    /// The certificate authority, in PEM. No other is trusted, also where the server leads elsewhere,
    /// and nothing goes by plain HTTP.
    pub ca_secret: SecretValue,
}

/// Files with the values of Secrets, in the folder of mounted credentials.
pub mod credentials {
    /// Certificate authority of the server, PEM.
    pub const CA: &str = "http-ca.crt";
    /// Bearer token.
    pub const TOKEN: &str = "http-token";
    /// User name for basic authentication.
    pub const USERNAME: &str = "http-username";
    /// Password for basic authentication.
    pub const PASSWORD: &str = "http-password";
    /// API key.
    pub const API_KEY: &str = "http-api-key";
    /// Password for Redis.
    pub const REDIS_PASSWORD: &str = "redis-password";
    /// Certificate authority of Redis, PEM.
    pub const REDIS_CA: &str = "redis-ca.crt";
}

impl HttpSource {
    /// See [`Source::secrets`](super::Source::secrets).
    pub(super) fn secrets(&self) -> impl Iterator<Item = (&'static str, &SecretValue)> {
        let auth = self.auth.as_ref();
        let bearer = auth.and_then(|auth| auth.bearer.as_ref());
        let basic = auth.and_then(|auth| auth.basic.as_ref());
        let api_key = auth.and_then(|auth| auth.api_key.as_ref());
        let redis = self.cache.as_ref().map(|cache| &cache.redis);
        let tls = redis.and_then(|redis| redis.tls.as_ref());
        [
            (credentials::CA, self.tls.as_ref().map(|tls| &tls.ca_secret)),
            (credentials::TOKEN, bearer.map(|auth| &auth.token_secret)),
            (
                credentials::USERNAME,
                basic.map(|auth| &auth.username_secret),
            ),
            (
                credentials::PASSWORD,
                basic.map(|auth| &auth.password_secret),
            ),
            (credentials::API_KEY, api_key.map(|auth| &auth.secret)),
            (
                credentials::REDIS_PASSWORD,
                redis.and_then(|redis| redis.password_secret.as_ref()),
            ),
            (
                credentials::REDIS_CA,
                tls.and_then(|tls| tls.ca_secret.as_ref()),
            ),
        ]
        .into_iter()
        .filter_map(|(file, secret)| Some((file, secret?)))
    }
}

/// Who asks: exactly one of the fields is set.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("[has(self.bearer), has(self.basic), has(self.apiKey)].filter(x, x).size() == 1").message("exactly one of bearer, basic and apiKey must be set"))]
pub struct HttpAuth {
    /// A token in the header `Authorization: Bearer` (RFC 6750).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bearer: Option<BearerAuth>,
    /// User name and password (RFC 7617).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub basic: Option<BasicAuth>,
    /// A key in a header or in a query parameter.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub api_key: Option<ApiKeyAuth>,
}

/// A token in the header `Authorization: Bearer`.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct BearerAuth {
    /// The token.
    pub token_secret: SecretValue,
}

/// User name and password.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct BasicAuth {
    /// The user name.
    pub username_secret: SecretValue,
    /// The password.
    pub password_secret: SecretValue,
}

/// A key in a header or in a query parameter.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(self.header) != has(self.query)").message("exactly one of header and query must be set: where the server looks for the key"))]
pub struct ApiKeyAuth {
    /// Name of the header that carries the key, such as `X-Api-Key`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^[A-Za-z0-9!#$%&'*+.^_`|~-]+$"))]
    pub header: Option<String>,
    /// Name of the query parameter that carries the key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1))]
    pub query: Option<String>,
    /// The key; for a header its whole value, with what the server wants before the key.
    pub secret: SecretValue,
}

/// How often the server may be asked.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct RateLimit {
    /// Requests in each `per`, evenly spread.
    #[schemars(range(min = 1, max = 1000000))]
    pub requests: u32,
    /// The time for so many requests.
    #[serde(default = "one_second")]
    #[schemars(extend("pattern" = DURATION))]
    pub per: Duration,
    /// Requests that may follow one another at once, after a time without any.
    #[serde(default = "one")]
    #[schemars(range(min = 1, max = 1000000))]
    pub burst: u32,
}

fn one_second() -> Duration {
    seconds(1)
}

fn one() -> u32 {
    1
}

/// Fetch again and again.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Poll {
    /// From the start of one fetch to the start of the next, such as `1s` or `5m`.
    #[schemars(extend("pattern" = DURATION))]
    pub interval: Duration,
    /// Ask only for what is new, by the highest value that a field had in the fetches before; for
    /// everything where absent. The value is kept with the position, so it outlives the worker.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub incremental: Option<Incremental>,
}

/// Ask only for what is new.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Incremental {
    /// JSON Pointer to the field in a record. Numbers, and strings of digits, are compared by value,
    /// other strings by their characters: timestamps must be in one format and time zone. Records
    /// without the field don't count.
    #[schemars(regex(pattern = r"^(/.*)?$"))]
    pub field: String,
    /// Name of the query parameter that takes the highest value. Choose one that gives records from
    /// this value on: those that were given before, byte for byte, are left out; what the API leaves
    /// out is lost.
    #[schemars(length(min = 1))]
    pub parameter: String,
    /// The parameter's value in the first fetch; the parameter isn't sent where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initial: Option<String>,
}

/// How a large result is fetched page by page: exactly one of the fields is set.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("[has(self.limitOffset), has(self.pageNumber), has(self.cursor)].filter(x, x).size() == 1").message("exactly one of limitOffset, pageNumber and cursor must be set"))]
pub struct Pagination {
    /// By two query parameters: how many records, and from which on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit_offset: Option<LimitOffset>,
    /// By the number of the page. Pages end with one that is empty, or shorter than the one before,
    /// or with the last one where the answer says how many there are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub page_number: Option<PageNumber>,
    /// Each page says where the next one is; the last one says nothing, null or an empty string.
    /// Pages are fetched one after the other.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cursor: Option<Cursor>,
}

/// Pages by a limit and an offset, as Socrata and many others have them.
///
/// A server that gives fewer records than it is asked for is asked for the rest.
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
    /// one is empty, or shorter than the one before.
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

/// Pages by their number.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(self.sizeParameter) == has(self.pageSize)").message("sizeParameter and pageSize are set together"))]
pub struct PageNumber {
    /// Name of the query parameter for the number of the page.
    #[serde(default = "page")]
    #[schemars(length(min = 1))]
    pub parameter: String,
    /// Number of the first page.
    #[serde(default = "first_page")]
    #[schemars(range(max = 1))]
    pub first_page: u64,
    /// Name of the query parameter for the number of records of a page; the server decides where
    /// absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1))]
    pub size_parameter: Option<String>,
    /// Records of a page.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100000))]
    pub page_size: Option<u64>,
    /// JSON Pointer to the number of pages (or a string of digits) in the answer. With it pages are
    /// fetched side by side.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^/.*$"))]
    pub total_pages: Option<String>,
}

fn page() -> String {
    "page".into()
}

fn first_page() -> u64 {
    1
}

/// Each page says where the next one is.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(self.next) != (has(self.linkHeader) && self.linkHeader)").message("exactly one of next and linkHeader must be set"))]
#[x_kube(validation = Rule::new("!has(self.parameter) || has(self.next)").message("parameter goes with next, the JSON Pointer to the value that it takes"))]
pub struct Cursor {
    /// JSON Pointer to the next page's cursor in the answer, or, without `parameter`, to its URL.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^/.*$"))]
    pub next: Option<String>,
    /// Name of the query parameter that takes the cursor.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1))]
    pub parameter: Option<String>,
    /// The next page's URL is in the header `Link` with `rel="next"` (RFC 8288).
    #[serde(default)]
    pub link_header: bool,
}

/// Where what was fetched is kept.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct HttpCache {
    /// A Redis server: the whole result under one key, and each record under a key of its own. While
    /// it can't be reached the source fetches without it, and `status.source.warning` says so.
    pub redis: RedisCache,
}

/// A Redis server that keeps what was fetched.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct RedisCache {
    /// `host` or `host:port` (6379 where no port is given).
    #[schemars(length(min = 1))]
    pub address: String,
    /// TLS; plain text where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<RedisTls>,
    /// The password; no authentication where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password_secret: Option<SecretValue>,
    /// Written before every key.
    #[serde(default)]
    pub key_prefix: String,
    /// The key of the whole result: a list whose first element describes it; each of the others is
    /// a page, a JSON object with the array `records`. A result without records, or of more than
    /// 512 MiB, isn't kept; one that is found empty is dropped and fetched again.
    #[schemars(length(min = 1))]
    pub key: String,
    /// How long the whole result is kept.
    #[serde(default = "one_hour")]
    #[schemars(extend("pattern" = DURATION))]
    pub ttl: Duration,
    /// JSON Pointer to the field whose value is a record's own key; records have no keys of their
    /// own where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^/.*$"))]
    pub record_key: Option<String>,
    /// How long a record is kept under its own key; for ever where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("pattern" = DURATION))]
    pub record_ttl: Option<Duration>,
}

fn one_hour() -> Duration {
    seconds(3600)
}

/// TLS towards Redis.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct RedisTls {
    /// The certificate authority, in PEM; the system's authorities where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_secret: Option<SecretValue>,
}
