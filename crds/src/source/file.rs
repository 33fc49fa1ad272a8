//! Records from files: on a volume, behind a URL, or in an object store that speaks S3.

use std::collections::BTreeMap;

use kube::{KubeSchema, core::Duration};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{DURATION, http::HttpTls};
use crate::connection::SecretValue;

/// Where a pod finds [`FileSource::volume`].
pub const DATA_PATH: &str = "/data";

/// Where a pod finds [`LandingZone::volume`].
pub const LANDING_PATH: &str = "/landing";

/// File names in the folder of mounted credentials.
pub mod credentials {
    /// Certificate authority of the server of `file.url`, PEM.
    pub const CA: &str = "file-ca.crt";
    /// Access key of `file.s3`.
    pub const S3_ACCESS_KEY_ID: &str = "file-s3-access-key-id";
    /// Secret access key of `file.s3`.
    pub const S3_SECRET_ACCESS_KEY: &str = "file-s3-secret-access-key";
    /// Access key of `file.landingZone.s3`.
    pub const LANDING_ACCESS_KEY_ID: &str = "landing-s3-access-key-id";
    /// Secret access key of `file.landingZone.s3`.
    pub const LANDING_SECRET_ACCESS_KEY: &str = "landing-s3-secret-access-key";
}

/// Records from files, once each: after the last record the source is complete.
///
/// Files are read in the order of their names. A record that can't be read (a line that isn't JSON,
/// a row with too many columns) goes to the dead letter with its file and line. A file that is
/// damaged or not there shows as an error and is tried again; what was read of it before stays. A
/// file that has grown since is read on, one with another beginning is read from its beginning.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("[has(self.path), has(self.url), has(self.s3)].filter(x, x).size() == 1").message("exactly one of path, url and s3 must be set"))]
#[x_kube(validation = Rule::new("!has(self.volume) || (has(self.path) && self.path.startsWith('/data/'))").message("a volume is mounted at /data: path must begin with /data/"))]
#[x_kube(validation = Rule::new("!has(self.landingZone) || !has(self.path)").message("landingZone keeps what is downloaded: it goes with url and s3"))]
#[x_kube(validation = Rule::new("!has(self.csv) || !has(self.format) || self.format == 'csv'").message("csv goes with format csv"))]
#[x_kube(validation = Rule::new("!has(self.records) || !has(self.format) || self.format == 'jsonArray'").message("records goes with format jsonArray"))]
#[x_kube(validation = Rule::new("!has(self.members) || !has(self.compression) || self.compression == 'zip'").message("members goes with compression zip"))]
#[x_kube(validation = Rule::new("!has(self.tls) || (has(self.url) && self.url.startsWith('https://'))").message("tls goes with a url that begins with https://"))]
pub struct FileSource {
    /// A file in the pod, or a folder: then all files in it, without its subfolders.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 4096), regex(pattern = r"^/"))]
    pub path: Option<String>,
    /// The volume of `path`, mounted at `/data` and only read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volume: Option<Volume>,
    /// `http://` or `https://`. A download that is cut goes on where it was cut.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^https?://"))]
    pub url: Option<String>,
    /// Whom to trust behind an `https://` URL; the system's authorities where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<HttpTls>,
    /// Objects in Amazon S3, or in what speaks its protocol.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub s3: Option<S3Objects>,
    /// How records are written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub format: Option<FileFormat>,
    /// How the file is packed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compression: Option<Compression>,
    /// Which members of a zip are read, with `*` and `?`; all where absent. They are read in the
    /// order of their names.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1))]
    pub members: Option<String>,
    /// JSON Pointer (RFC 6901) to the array of records in a `jsonArray`; the whole file where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^(/.*)?$"))]
    pub records: Option<String>,
    /// How CSV is read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub csv: Option<Csv>,
    /// Keeps what is downloaded, byte for byte, and reads it from there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub landing_zone: Option<LandingZone>,
    /// Give the records in the order of their time, date by date, instead of the file's order.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replay: Option<Replay>,
    /// Room on the pod's disk for downloads and for sorting, such as `10Gi`.
    #[serde(default = "ten_gibibytes")]
    #[schemars(regex(pattern = r"^[1-9][0-9]{0,8}[MGT]i$"))]
    pub scratch_size: String,
}

/// The default of [`FileSource::scratch_size`].
pub fn ten_gibibytes() -> String {
    "10Gi".into()
}

impl FileSource {
    /// [`FileSource::scratch_size`] in bytes; none where it isn't a size.
    pub fn scratch_bytes(&self) -> Option<u64> {
        let unit = self
            .scratch_size
            .get(self.scratch_size.len().checked_sub(2)?..)?;
        let shift = match unit {
            "Mi" => 20,
            "Gi" => 30,
            "Ti" => 40,
            _ => return None,
        };
        let number: u64 = self.scratch_size.strip_suffix(unit)?.parse().ok()?;
        number.checked_mul(1 << shift)
    }

    /// The Secrets of the source, by the name of the file in which the worker finds the value.
    pub fn secrets(&self) -> BTreeMap<&'static str, &SecretValue> {
        let landing = self.landing_zone.as_ref().and_then(|zone| zone.s3.as_ref());
        let keys = [
            (credentials::CA, self.tls.as_ref().map(|tls| &tls.ca_secret)),
            (
                credentials::S3_ACCESS_KEY_ID,
                self.s3
                    .as_ref()
                    .and_then(|s3| s3.bucket.access_key_id_secret.as_ref()),
            ),
            (
                credentials::S3_SECRET_ACCESS_KEY,
                self.s3
                    .as_ref()
                    .and_then(|s3| s3.bucket.secret_access_key_secret.as_ref()),
            ),
            (
                credentials::LANDING_ACCESS_KEY_ID,
                landing.and_then(|s3| s3.bucket.access_key_id_secret.as_ref()),
            ),
            (
                credentials::LANDING_SECRET_ACCESS_KEY,
                landing.and_then(|s3| s3.bucket.secret_access_key_secret.as_ref()),
            ),
        ];
        keys.into_iter()
            .filter_map(|(file, secret)| Some((file, secret?)))
            .collect()
    }
}

/// What holds the files.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(self.persistentVolumeClaim) != has(self.configMap)").message("exactly one of persistentVolumeClaim and configMap must be set"))]
pub struct Volume {
    /// A PersistentVolumeClaim in the namespace of the resource.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub persistent_volume_claim: Option<VolumeClaim>,
    /// A ConfigMap in the namespace of the resource: each key is a file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config_map: Option<ConfigMapFiles>,
}

/// A PersistentVolumeClaim.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct VolumeClaim {
    /// Name of the claim.
    #[schemars(length(min = 1))]
    pub claim_name: String,
}

/// A ConfigMap with files.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
pub struct ConfigMapFiles {
    /// Name of the ConfigMap.
    #[schemars(length(min = 1))]
    pub name: String,
}

/// Objects in a bucket.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(self.key) != has(self.prefix)").message("exactly one of key and prefix must be set"))]
#[x_kube(validation = Rule::new("has(self.accessKeyIdSecret) == has(self.secretAccessKeySecret)").message("accessKeyIdSecret and secretAccessKeySecret go together"))]
pub struct S3Objects {
    /// The bucket.
    #[serde(flatten)]
    pub bucket: S3Bucket,
    /// Key of the one object.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024))]
    pub key: Option<String>,
    /// All objects below this folder, such as `sessions/2018`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub prefix: Option<String>,
}

/// A folder of a bucket.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(self.accessKeyIdSecret) == has(self.secretAccessKeySecret)").message("accessKeyIdSecret and secretAccessKeySecret go together"))]
pub struct S3Folder {
    /// The bucket.
    #[serde(flatten)]
    pub bucket: S3Bucket,
    /// The folder, such as `landing/sessions`; the bucket's top where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 900))]
    pub prefix: Option<String>,
}

/// A bucket, and how it is reached.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct S3Bucket {
    /// Name of the bucket.
    #[schemars(length(min = 1))]
    pub bucket: String,
    /// The region.
    #[serde(default = "us_east_1")]
    #[schemars(length(min = 1))]
    pub region: String,
    /// URL of the service; Amazon's own where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^https?://"))]
    pub endpoint: Option<String>,
    /// Allow an endpoint without TLS.
    #[serde(default)]
    pub allow_http: bool,
    /// The access key; requests aren't signed where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub access_key_id_secret: Option<SecretValue>,
    /// The secret access key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_access_key_secret: Option<SecretValue>,
}

fn us_east_1() -> String {
    "us-east-1".into()
}

/// How records are written: `ndjson` is one JSON object a line, `jsonArray` an array of objects, `csv`
/// rows of text whose numbers and booleans the pipeline's schema tells, `parquet` Apache Parquet, whose bytes become hexadecimal text. Found
/// out by the file's name and beginning where absent.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub enum FileFormat {
    /// One JSON object a line.
    Ndjson,
    /// A JSON array of objects.
    JsonArray,
    /// Rows of text (RFC 4180).
    Csv,
    /// Apache Parquet.
    Parquet,
}

/// How the file is packed; a zip may hold several files. Found out by the file's beginning where
/// absent.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub enum Compression {
    /// Not at all.
    None,
    /// RFC 1952.
    Gzip,
    /// bzip2.
    Bzip2,
    /// RFC 8878.
    Zstd,
    /// An archive of files.
    Zip,
}

/// How CSV is read.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Csv {
    /// Between the columns, one ASCII character.
    #[serde(default = "comma")]
    #[schemars(regex(pattern = r"^[\x00-\x7f]$"))]
    pub delimiter: String,
    /// Whether the first row holds the names of the columns; otherwise they are those of the
    /// pipeline's schema, in its order.
    #[serde(default = "yes")]
    pub header: bool,
    /// Around a column that holds delimiters or line ends, one ASCII character.
    #[serde(default = "double_quote")]
    #[schemars(regex(pattern = r"^[\x00-\x7f]$"))]
    pub quote: String,
    /// The text that stands for null.
    #[serde(default)]
    pub null_value: String,
}

fn comma() -> String {
    ",".into()
}

fn yes() -> bool {
    true
}

fn double_quote() -> String {
    "\"".into()
}

impl Default for Csv {
    fn default() -> Self {
        Csv {
            delimiter: comma(),
            header: yes(),
            quote: double_quote(),
            null_value: String::new(),
        }
    }
}

/// Keeps downloads under `{folder}/YYYY/MM/DD/{name}`, with the date (UTC) of the download. A later
/// download of the same day replaces an earlier one.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(self.volume) != has(self.s3)").message("exactly one of volume and s3 must be set"))]
pub struct LandingZone {
    /// A folder on a volume.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volume: Option<LandingVolume>,
    /// A folder in a bucket.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub s3: Option<S3Folder>,
}

/// A folder on a volume that is mounted for writing.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct LandingVolume {
    /// A PersistentVolumeClaim in the namespace of the resource, mounted at `/landing`.
    pub persistent_volume_claim: VolumeClaim,
    /// The folder, `/landing` or below.
    #[serde(default = "landing")]
    #[schemars(regex(pattern = r"^/landing(/|$)"))]
    pub path: String,
}

fn landing() -> String {
    LANDING_PATH.into()
}

/// Gives the records in the order of their time. All files are read first and sorted on the pod's
/// disk; a batch never holds records of two dates.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Replay {
    /// The column, or the JSON Pointer to the field, with the record's time: RFC 3339, a date, or
    /// seconds, milliseconds or microseconds since 1970. Without an offset it is UTC.
    #[schemars(length(min = 1))]
    pub event_time: String,
    /// What counts as one date.
    #[serde(default)]
    pub granularity: Granularity,
    /// From the start of one date to the start of the next, such as `1s`; without a pause where
    /// absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("pattern" = DURATION))]
    pub interval: Option<Duration>,
}

/// What counts as one date in a replay.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub enum Granularity {
    /// An hour.
    Hour,
    /// A day.
    #[default]
    Date,
    /// A month.
    Month,
}
