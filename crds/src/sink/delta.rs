//! Rows into a Delta Lake table.

use kube::{KubeSchema, core::Duration};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::source::{
    DURATION,
    file::{S3Folder, VolumeClaim},
};

/// Where a pod finds the volumes of Delta Lake tables: each in a folder named after its sink.
pub const DELTA_PATH: &str = "/delta";

/// A Delta Lake table that takes rows. It is made where it isn't there, with the columns of the SQL's
/// result; columns that the result gains are added to it. Each commit carries how far the topic was
/// read, so that every record is in the table once. Rows are seen when they are committed. The table
/// stays when the pipeline is deleted.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(self.volume) != has(self.s3)").message("exactly one of volume and s3 must be set"))]
#[x_kube(validation = Rule::new("(has(self.mode) && self.mode == 'merge') == has(self.mergeKeys)").message("mergeKeys goes with mode merge"))]
pub struct DeltaSink {
    /// A folder on a volume.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volume: Option<DeltaVolume>,
    /// A folder in a bucket.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub s3: Option<S3Folder>,
    /// What becomes of a row that comes again.
    #[serde(default)]
    pub mode: DeltaMode,
    /// The columns by which a row replaces another, where `mode` is `merge`; with a `GROUP BY` its
    /// keys. A row without a value in one of them goes to the dead letter. The table has a column
    /// `_version` too, by which an older row never replaces a newer one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub merge_keys: Vec<String>,
    /// The columns by whose values the table is laid out in folders. A table that is there already keeps
    /// its own layout: name the columns of that. An empty text in them is stored as null, as Spark does,
    /// and one that is too long for the name of a folder (255 bytes; letters that aren't ASCII take 6 or
    /// more) goes to the dead-letter topic, as does an empty one that is in `mergeKeys` too.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 4))]
    pub partition_by: Vec<String>,
    /// Longest time until rows are committed, such as `10s`.
    #[serde(default = "ten_seconds")]
    #[schemars(extend("pattern" = DURATION))]
    pub commit_interval: Duration,
    /// Records after which rows are committed earlier. 16 MiB of records are committed at any rate, less
    /// where the pod has little memory.
    #[serde(default = "hundred_thousand")]
    #[schemars(range(min = 1, max = 1000000))]
    pub commit_rows: u32,
    /// How small files are put together.
    #[serde(default)]
    pub compaction: Compaction,
}

impl DeltaSink {
    /// Where the table is, for people.
    pub(super) fn place(&self) -> String {
        let volume = self.volume.as_ref().map(|volume| {
            let claim = &volume.persistent_volume_claim.claim_name;
            format!("{claim}:{}", volume.path)
        });
        let s3 = self.s3.as_ref().map(|s3| {
            let prefix = s3.prefix.as_deref().unwrap_or_default();
            format!("s3://{}/{}", s3.bucket.bucket, prefix)
        });
        volume.or(s3).unwrap_or_default()
    }
}

/// What becomes of a row that comes again.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub enum DeltaMode {
    /// Every row is added.
    #[default]
    Append,
    /// A row replaces the one with the same keys.
    Merge,
}

/// A folder on a volume that is mounted for writing.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct DeltaVolume {
    /// A PersistentVolumeClaim in the namespace of the resource; `ReadWriteMany` where several pods
    /// on several nodes write.
    pub persistent_volume_claim: VolumeClaim,
    /// The table's folder on the volume, such as `lake/sessions`.
    #[schemars(
        length(min = 1, max = 900),
        regex(pattern = r"^[A-Za-z0-9_-][A-Za-z0-9._-]*(/[A-Za-z0-9_-][A-Za-z0-9._-]*)*$")
    )]
    pub path: String,
}

/// How small files are put together.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Compaction {
    /// Whether they are, and files that were replaced are removed when the table's
    /// `delta.deletedFileRetentionDuration` is over. Other pods and pipelines may write meanwhile; turn
    /// it off where somebody else compacts the table, or changes rows, with delta-rs (`deltalake`).
    #[serde(default = "yes")]
    pub enabled: bool,
    /// Bytes that a file should have; one that has half of it stays as it is.
    #[serde(default = "target_file_size")]
    #[schemars(range(min = 1048576, max = 1073741824))]
    pub target_file_size: u64,
    /// Small files from which on they are put together; of a table with `partitionBy`: those in one
    /// of its folders.
    #[serde(default = "min_files")]
    #[schemars(range(min = 2, max = 10000))]
    pub min_files: u32,
}

impl Default for Compaction {
    fn default() -> Self {
        Compaction {
            enabled: yes(),
            target_file_size: target_file_size(),
            min_files: min_files(),
        }
    }
}

fn ten_seconds() -> Duration {
    std::time::Duration::from_secs(10).into()
}

fn hundred_thousand() -> u32 {
    100_000
}

fn yes() -> bool {
    true
}

fn target_file_size() -> u64 {
    128 * 1024 * 1024
}

fn min_files() -> u32 {
    16
}
