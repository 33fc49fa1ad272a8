//! Where the records of a pipeline come from.

pub mod database;
pub mod file;
pub mod http;
pub mod topic;

use std::collections::BTreeMap;

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use self::{
    database::DatabaseSource,
    file::FileSource,
    http::HttpSource,
    topic::{OnGap, Start, TopicEncoding, TopicSource},
};
use crate::connection::SecretValue;

/// Durations as Go and Kubernetes write them. Checked by the API server, because a resource that
/// can't be deserialized can't be told what is wrong with it.
pub(crate) const DURATION: &str = r"^([0-9]+(\.[0-9]+)?(ns|us|ms|s|m|h))+$";

/// The source of a pipeline: exactly one of its fields is set.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("[has(self.http), has(self.file), has(self.database), has(self.topic), has(self.generator)].filter(x, x).size() == 1").message("exactly one of http, file, database, topic and generator must be set"))]
pub struct Source {
    /// Records from an HTTP API.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http: Option<HttpSource>,
    /// Rows of a database.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub database: Option<Box<DatabaseSource>>,
    /// Records from files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<FileSource>,
    /// Records of a Kafka topic that is there already, also of another cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub topic: Option<TopicSource>,
    /// Made-up records in the shape of the schema, for trying out and for load tests.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generator: Option<GeneratorSource>,
}

impl Source {
    /// The Secrets that the source needs, by the name of the file in which the worker finds the value.
    pub fn secrets(&self) -> BTreeMap<&'static str, &SecretValue> {
        let http = self.http.iter().flat_map(HttpSource::secrets);
        let database = self.database.iter().flat_map(|database| database.secrets());
        let files = self.files().map(FileSource::secrets);
        http.chain(database)
            .chain(files.into_iter().flatten())
            .collect()
    }

    /// Whether it has an end: it is read once, and not again and again.
    pub fn ends(&self) -> bool {
        let once = |generator: &GeneratorSource| {
            let replay = generator.replay.as_ref();
            generator.count.is_some() || replay.is_some_and(|replay| !replay.repeat)
        };
        self.file.is_some()
            || self.http.as_ref().is_some_and(|http| http.poll.is_none())
            || self.database.as_ref().is_some_and(|of| of.poll.is_none())
            || self.generator.as_ref().is_some_and(once)
    }

    /// Whether each run of a schedule reads it from its beginning; otherwise a run goes on where the
    /// one before it stopped.
    pub fn begins_anew(&self) -> bool {
        let database = self.database.as_ref();
        self.ends() && database.is_none_or(|database| database.incremental.is_none())
    }

    /// The files that are read, as the source itself or to be replayed.
    pub fn files(&self) -> Option<&FileSource> {
        let generator = self.generator.as_ref();
        let replay = generator.and_then(|generator| generator.replay.as_ref());
        self.file.as_ref().or(replay.map(|replay| &replay.file))
    }

    /// [`Source::files`], to be changed.
    pub fn files_mut(&mut self) -> Option<&mut FileSource> {
        let generator = self.generator.as_mut();
        let replay = generator.and_then(|generator| generator.replay.as_mut());
        self.file.as_mut().or(replay.map(|replay| &mut replay.file))
    }
}

/// Made-up records: the same seed gives the same records. Or recorded ones, played again.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("!has(self.replay) || self.seed == 0").message("seed is for made-up records: leave it out beside replay"))]
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
    /// Play the records of files in place of made-up ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replay: Option<RecordedFile>,
}

/// Records of files, played at the generator's rate.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct RecordedFile {
    /// The files.
    pub file: FileSource,
    /// Begin again at the end, until `count` records are played.
    #[serde(default)]
    pub repeat: bool,
}
