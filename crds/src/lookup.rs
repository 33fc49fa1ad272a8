//! Lookups: small tables that the records of a pipeline are joined with.

use std::{collections::BTreeMap, time};

use kube::{KubeSchema, core::Duration};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    connection::SecretValue,
    source::{
        DURATION, FileSource,
        file::{Compression, Csv, FileFormat, S3Objects, Volume, credentials},
        http::HttpTls,
    },
};

/// Where the pods find [`LookupFile::volume`]: in a folder with the name of the lookup.
pub const LOOKUPS_PATH: &str = "/lookups";

/// Room on a pod's disk for each lookup that is a file: downloads, and what has to be unpacked.
pub const SCRATCH_GIBIBYTES: u64 = 1;

/// A table that the SQL of a sink may join, kept whole in the memory of each process pod.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(self.cassandra) != has(self.file)").message("exactly one of cassandra and file must be set"))]
#[x_kube(validation = Rule::new("!has(self.file) || has(self.schema)").message("schema must be set for a file: nothing else tells its columns and their types"))]
#[x_kube(validation = Rule::new("self.name != 'records'").message("the records themselves are called records: give the lookup another name"))]
#[x_kube(validation = Rule::new("!has(self.file) || !has(self.file.volume) || (has(self.file.path) && self.file.path.startsWith('/lookups/' + self.name + '/'))").message("the volume of a lookup is mounted at /lookups/NAME: path must begin with that and a /"))]
pub struct Lookup {
    /// Name of the table in SQL, unique in the pipeline.
    #[schemars(length(min = 1, max = 48), regex(pattern = r"^[a-z][a-z0-9_]*$"))]
    pub name: String,
    /// A table of the pipeline's Cassandra.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cassandra: Option<LookupTable>,
    /// A file, or several of the same shape.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<LookupFile>,
    /// The columns, as SQL column definitions like those of the pipeline's `schema`. May be absent
    /// for a table that a Keyspace of the namespace declares: then they are its columns, where what
    /// SQL has no type for (`decimal`, `varint`, `inet`, collections) is TEXT, and `blob` is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 65536))]
    pub schema: Option<String>,
    /// How often it is read again, `1s` at the least. Until the new content is there, and where it
    /// can't be read, the last one stays in use.
    #[serde(default = "a_minute")]
    #[schemars(extend("pattern" = DURATION))]
    pub refresh: Duration,
    /// Rows at most. A lookup with more isn't loaded, which is an error in the status.
    #[serde(default = "default_rows")]
    #[schemars(range(min = 1, max = 100000000))]
    pub max_rows: u32,
    /// Memory of a pod that its columns in use and their index may take, such as `64Mi`: up to three
    /// times as much while it is read again. A lookup that takes more isn't loaded, which is an error
    /// in the status.
    #[serde(default = "default_size")]
    #[schemars(regex(pattern = r"^[1-9][0-9]{0,5}[MG]i$"))]
    pub max_size: String,
}

fn a_minute() -> Duration {
    time::Duration::from_secs(60).into()
}

fn default_rows() -> u32 {
    100_000
}

fn default_size() -> String {
    "64Mi".into()
}

/// A Cassandra table that is read as a whole, at `LOCAL_QUORUM`.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct LookupTable {
    /// Name of the keyspace in Cassandra.
    #[schemars(length(min = 1, max = 48), regex(pattern = r"^[a-z][a-z0-9_]*$"))]
    pub keyspace: String,
    /// Name of the table.
    #[schemars(length(min = 1, max = 48), regex(pattern = r"^[a-z][a-z0-9_]*$"))]
    pub table: String,
}

/// Files that are read as a whole. A record in them that can't be read fails the lookup.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("[has(self.path), has(self.url), has(self.s3)].filter(x, x).size() == 1").message("exactly one of path, url and s3 must be set"))]
#[x_kube(validation = Rule::new("!has(self.csv) || !has(self.format) || self.format == 'csv'").message("csv goes with format csv"))]
#[x_kube(validation = Rule::new("!has(self.records) || !has(self.format) || self.format == 'jsonArray'").message("records goes with format jsonArray"))]
#[x_kube(validation = Rule::new("!has(self.members) || !has(self.compression) || self.compression == 'zip'").message("members goes with compression zip"))]
#[x_kube(validation = Rule::new("!has(self.tls) || (has(self.url) && self.url.startsWith('https://'))").message("tls goes with a url that begins with https://"))]
pub struct LookupFile {
    /// A file in the pod, or a folder: then all files in it, without its subfolders.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 4096), regex(pattern = r"^/"))]
    pub path: Option<String>,
    /// The volume of `path`, mounted at `/lookups/` and the lookup's name, and only read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volume: Option<Volume>,
    /// `http://` or `https://`.
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
    /// Which members of a zip are read, with `*` and `?`; all where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1))]
    pub members: Option<String>,
    /// JSON Pointer (RFC 6901) to the array of records in a `jsonArray`; the whole file where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^(/.*)?$"))]
    pub records: Option<String>,
    /// How CSV is read; the lookup's `schema` tells its numbers and booleans.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub csv: Option<Csv>,
}

impl Lookup {
    /// [`Lookup::max_size`] in bytes; none where it isn't a size.
    pub fn max_bytes(&self) -> Option<u64> {
        let (number, shift) = match self.max_size.strip_suffix("Mi") {
            Some(number) => (number, 20),
            None => (self.max_size.strip_suffix("Gi")?, 30),
        };
        number.parse::<u64>().ok()?.checked_mul(1 << shift)
    }

    /// The keyspace that its table is in.
    pub fn keyspace(&self) -> Option<&str> {
        let table = self.cassandra.as_ref()?;
        Some(&table.keyspace)
    }

    /// The beginning of the names of its files in the folder of mounted credentials.
    pub fn credentials_prefix(&self) -> String {
        format!("lookup-{}-", self.name)
    }

    /// The Secrets that it needs, by the name of the file in which the worker finds the value.
    pub fn secrets(&self) -> BTreeMap<String, &SecretValue> {
        let file = self.file.as_ref();
        let ca = file.and_then(|file| file.tls.as_ref());
        let bucket = file.and_then(|file| Some(&file.s3.as_ref()?.bucket));
        let secrets = [
            (credentials::CA, ca.map(|tls| &tls.ca_secret)),
            (
                credentials::S3_ACCESS_KEY_ID,
                bucket.and_then(|bucket| bucket.access_key_id_secret.as_ref()),
            ),
            (
                credentials::S3_SECRET_ACCESS_KEY,
                bucket.and_then(|bucket| bucket.secret_access_key_secret.as_ref()),
            ),
        ];
        let prefix = self.credentials_prefix();
        let named = secrets.into_iter();
        named
            .filter_map(|(file, secret)| Some((format!("{prefix}{file}"), secret?)))
            .collect()
    }
}

impl LookupFile {
    /// The file as a source would read it.
    pub fn source(&self) -> FileSource {
        FileSource {
            path: self.path.clone(),
            volume: self.volume.clone(),
            url: self.url.clone(),
            tls: self.tls.clone(),
            s3: self.s3.clone(),
            format: self.format,
            compression: self.compression,
            members: self.members.clone(),
            records: self.records.clone(),
            csv: self.csv.clone(),
            ..FileSource::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use schemars::schema_for;
    use serde_json::{Value, json};

    use super::*;

    /// A file is described in the same way, whether a source or a lookup reads it.
    #[test]
    fn files_are_those_of_the_source() {
        fn properties<T: JsonSchema>() -> BTreeMap<String, Value> {
            let schema = schema_for!(T).to_value();
            let properties = schema["properties"].as_object().unwrap().clone();
            let rules = properties.into_iter().map(|(name, mut rules)| {
                rules.as_object_mut().unwrap().remove("description");
                (name, rules)
            });
            rules.collect()
        }
        let sources = properties::<FileSource>();
        for (name, rules) in properties::<LookupFile>() {
            assert_eq!(sources.get(&name), Some(&rules), "{name}");
        }
    }

    #[test]
    fn sizes_and_secrets() {
        let lookup: Lookup = serde_json::from_value(json!({
            "name": "countries",
            "file": {"s3": {
                "bucket": "b", "key": "countries.csv",
                "accessKeyIdSecret": {"name": "s3", "key": "id"},
                "secretAccessKeySecret": {"name": "s3", "key": "secret"},
            }},
            "schema": "code TEXT",
        }))
        .unwrap();
        assert_eq!(lookup.max_bytes(), Some(64 << 20));
        let files: Vec<_> = lookup.secrets().into_keys().collect();
        assert_eq!(
            files,
            [
                "lookup-countries-file-s3-access-key-id",
                "lookup-countries-file-s3-secret-access-key"
            ]
        );
        let by_url: Lookup = serde_json::from_value(json!({
            "name": "articles",
            "file": {
                "url": "https://shop/articles.csv",
                "tls": {"caSecret": {"name": "shop", "key": "ca.crt"}},
            },
            "schema": "id BIGINT",
        }))
        .unwrap();
        let files: Vec<_> = by_url.secrets().into_keys().collect();
        assert_eq!(files, ["lookup-articles-file-ca.crt"]);
        for (text, bytes) in [("2Gi", Some(2 << 30)), ("1Ki", None), ("x", None)] {
            let max_size = text.to_owned();
            let lookup = Lookup {
                max_size,
                ..lookup.clone()
            };
            assert_eq!(lookup.max_bytes(), bytes, "{text}");
        }
    }
}
