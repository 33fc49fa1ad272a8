//! `spec.serve`: a REST service over the tables of a pipeline.

use kube::{KubeSchema, core::Duration};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::connection::SecretReference;

/// A REST service over the pipeline's tables: pods that answer GET requests, and a Service named
/// `<pipeline>-serve` before them. It goes on while the pipeline is paused.
///
/// Besides the endpoints there are `/health`, `/docs` for people and `/openapi.json` for programs;
/// these three ask for no key.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Serve {
    /// What the service is called on its pages; the pipeline's name where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 100))]
    pub title: Option<String>,
    /// Number of pods.
    #[serde(default = "one")]
    #[schemars(range(min = 0, max = 100))]
    pub replicas: i32,
    /// Port of the Service.
    #[serde(default = "eighty")]
    #[schemars(range(min = 1, max = 65535))]
    pub port: i32,
    /// Who may ask; everybody who can reach the Service where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub auth: Option<ServeAuth>,
    /// How often a client may ask; as often as it likes where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_limit: Option<RateLimit>,
    /// Time for one request; then it is answered with status 503.
    #[serde(default = "five_seconds")]
    #[schemars(extend("pattern" = crate::source::DURATION))]
    pub timeout: Duration,
    /// What `:now` and `ago` take for the present, such as `2016-11-06T00:00:00Z`; for recorded
    /// data. The clock's time where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(max = 40),
        regex(pattern = r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9:.]+(Z|[+-][0-9]{2}:[0-9]{2})$")
    )]
    pub now: Option<String>,
    /// What can be asked.
    #[schemars(length(min = 1, max = 64), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub endpoints: Vec<Endpoint>,
}

/// Who may ask: one who has a key or a password. Changes of the Secrets take effect by themselves.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(self.apiKeysSecret) || has(self.basicSecret)").message("auth needs apiKeysSecret, basicSecret or both"))]
pub struct ServeAuth {
    /// A Secret with API keys for the header `X-API-Key`: each of its keys is the name of a client,
    /// with the client's API key as its value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub api_keys_secret: Option<SecretReference>,
    /// A Secret with passwords for HTTP basic authentication: each of its keys is the name of a
    /// user, with the user's password as its value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub basic_secret: Option<SecretReference>,
}

/// How often a client may ask: by the name of its key or user, by its address where there is none.
/// Beyond it the answer is status 429 with `Retry-After`. Each pod counts for itself.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct RateLimit {
    /// Requests per second in the long run.
    #[schemars(range(min = 1, max = 1000000))]
    pub requests_per_second: u32,
    /// Requests at once after a rest; as many as in a second where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1000000))]
    pub burst: Option<u32>,
}

/// Something that can be asked: a path, its parameters, and the query that answers.
///
/// Every endpoint takes the query parameter `format` (`json`, `html`, and `svg` where it has a
/// plot); without it the header `Accept` decides. One without a `transform` also takes `limit`
/// (rows of an answer), and one with `cql` alone `page` (the token that the answer before gave in its
/// `Link` header, and as `next` in an object).
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(self.cql) != has(self.sql)").message("exactly one of cql and sql must be set"))]
#[x_kube(validation = Rule::new("!has(self.transform) || has(self.cql)").message("transform goes with cql: write all of it in sql"))]
pub struct Endpoint {
    /// Name of the endpoint, unique in the pipeline.
    #[schemars(
        length(min = 1, max = 63),
        regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")
    )]
    pub name: String,
    /// The path; a segment in braces is a parameter, as in `/models/sessions/{player_id}`.
    #[schemars(
        length(min = 1, max = 200),
        regex(pattern = r"^(/([A-Za-z0-9._~-]+|\{[a-z][a-z0-9_]*\}))+$")
    )]
    pub path: String,
    /// What it gives, for the pages.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1000))]
    pub description: Option<String>,
    /// The parameters of the path and, for the others, of the query.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub parameters: Vec<Parameter>,
    /// One CQL `SELECT` on a table in a keyspace of the pipeline's sinks; the keyspace's name can be
    /// left out where there is one. `:name` stands for a parameter, `:now` for the present.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 8192))]
    pub cql: Option<String>,
    /// One SQL `SELECT` on the Delta Lake tables of the pipeline's sinks, in place of `cql`. Each has
    /// the name of its sink, in double quotes where there is a `-` in it, and the columns of the
    /// sink's result. `$name` stands for a parameter, `$now` for the present.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 8192))]
    pub sql: Option<String>,
    /// SQL over the rows that the CQL gives, as the table `rows`: for what CQL can't do, as in
    /// `SELECT venue, n FROM rows ORDER BY n DESC LIMIT 20`. `$name` stands for a parameter.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 8192))]
    pub transform: Option<String>,
    /// Rows of an answer at most; more of them are had page by page. With a `transform`: rows that
    /// it reads; where there are more, the answer is an error. With `sql`: where there are more, and
    /// no `limit` is asked for, the answer is an error.
    #[serde(default = "thousand")]
    #[schemars(range(min = 1, max = 100000))]
    pub max_rows: u32,
    /// The shape of the JSON.
    #[serde(default)]
    pub shape: Shape,
    /// The format for those who ask for none, or take any, as browsers and `curl` do.
    #[serde(default)]
    pub format: Format,
    /// A bar plot of the rows, at `format=svg`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plot: Option<Plot>,
}

/// The shape of the JSON.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub enum Shape {
    /// The rows as an array.
    #[default]
    Array,
    /// An object with the rows as `items`, their `count`, and `next` where there is another page.
    Object,
}

/// How rows are shown.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub enum Format {
    /// For programs.
    #[default]
    Json,
    /// A page with a table.
    Html,
    /// The plot.
    Svg,
}

/// A bar plot: a bar for each of the first 50 rows.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Plot {
    /// The column with the names of the bars.
    #[schemars(length(min = 1, max = 100))]
    pub label: String,
    /// The column with their lengths, a number.
    #[schemars(length(min = 1, max = 100))]
    pub value: String,
    /// What stands above; the endpoint's name where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 200))]
    pub title: Option<String>,
}

/// A parameter: of the path where the path has it in braces, else of the query. One without a
/// default must be given. A value that isn't as declared is answered with status 400.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Parameter {
    /// Name of the parameter.
    #[schemars(length(min = 1, max = 48), regex(pattern = r"^[a-z][a-z0-9_]*$"))]
    pub name: String,
    /// Type of the value.
    #[serde(rename = "type")]
    pub parameter_type: ParameterType,
    /// What it means, for the pages.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 500))]
    pub description: Option<String>,
    /// The value where none is given, as it would be in the URL. Not for parameters of the path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1000))]
    pub default: Option<String>,
    /// The smallest number (`int`, `bigint`, `double`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub minimum: Option<f64>,
    /// The largest number (`int`, `bigint`, `double`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub maximum: Option<f64>,
    /// The longest text, in characters (`text`); 1000 where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 4000))]
    pub max_length: Option<u32>,
    /// The only values there are, as they would be in the URL.
    #[serde(default, rename = "enum", skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 100))]
    pub allowed: Vec<String>,
    /// The value (`int`) counts back from the present in this unit, and what the query gets is that
    /// time: with `hours`, 24 stands for the timestamp a day ago.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ago: Option<TimeUnit>,
}

/// Type of a parameter.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub enum ParameterType {
    /// Text in UTF-8.
    Text,
    /// An integer of 32 bits.
    Int,
    /// An integer of 64 bits.
    Bigint,
    /// A UUID.
    Uuid,
    /// A time of RFC 3339, such as `2018-05-06T12:00:00Z`, or a date.
    Timestamp,
    /// A finite number.
    Double,
    /// `true` or `false`.
    Boolean,
}

/// Unit of a time span.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub enum TimeUnit {
    /// Seconds.
    Seconds,
    /// 60 seconds.
    Minutes,
    /// 60 minutes.
    Hours,
    /// 24 hours.
    Days,
}

impl TimeUnit {
    /// Seconds of one unit.
    pub fn seconds(self) -> i64 {
        match self {
            TimeUnit::Seconds => 1,
            TimeUnit::Minutes => 60,
            TimeUnit::Hours => 3_600,
            TimeUnit::Days => 86_400,
        }
    }
}

/// What was last seen of the REST service.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct ServeStatus {
    /// Number of pods that answer.
    #[serde(default)]
    pub ready: i32,
    /// Where it is reached from within the cluster.
    #[serde(default)]
    pub url: String,
    /// The last error, while it lasts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
}

fn one() -> i32 {
    1
}

fn eighty() -> i32 {
    80
}

fn thousand() -> u32 {
    1000
}

fn five_seconds() -> Duration {
    std::time::Duration::from_secs(5).into()
}
