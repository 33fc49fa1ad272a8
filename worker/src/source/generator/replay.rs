//! Recorded records at the generator's rate, once or again and again.

use bytes::Bytes;
use futures::{StreamExt, stream};
use millstream_api::source::{FileSource, GeneratorSource, RecordedFile};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::Pace;
use crate::{
    budget::ANSWERS,
    config::Credentials,
    metrics::StageMetrics,
    source::{Opening, Records, SourceBatch, file},
    status::StatusPart,
};

/// Where the playing goes on.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
struct Position {
    /// Records that were played.
    next: u64,
    /// The files' position before the batch that is being played.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    file: Option<Value>,
    /// Records of that batch that were played.
    #[serde(default)]
    played: usize,
}

/// Opens the source; the position is the files', and how much of a batch was played.
pub fn open(
    spec: GeneratorSource,
    recorded: RecordedFile,
    opening: &Opening<'_>,
) -> anyhow::Result<Records> {
    let kept = opening.position.map(Position::deserialize);
    let position = kept.transpose().ok().flatten().unwrap_or_default();
    let recording = Recording {
        file: recorded.file,
        schema: opening.schema.to_owned(),
        credentials: opening.credentials.clone(),
        status: opening.status.clone(),
        metrics: opening.metrics.clone(),
    };
    // In the middle of the files others were played before.
    let round = u64::from(position.file.is_some());
    let player = Player {
        files: recording.open(position.file.as_ref())?,
        recording,
        repeat: recorded.repeat,
        playing: Vec::new().into_iter(),
        after: Value::Null,
        position,
        count: spec.count.unwrap_or(u64::MAX),
        pace: Pace::new(spec.rate),
        due: 0,
        round,
    };
    let batches = stream::unfold(player, |mut player| async move {
        let batch = player.next().await?;
        Some((batch, player))
    });
    Ok(batches.boxed())
}

/// What is needed to open the files once more.
struct Recording {
    file: FileSource,
    schema: String,
    credentials: Credentials,
    status: StatusPart,
    metrics: StageMetrics,
}

impl Recording {
    fn open(&self, position: Option<&Value>) -> anyhow::Result<Records> {
        let opening = Opening {
            schema: &self.schema,
            credentials: &self.credentials,
            position,
            status: &self.status,
            metrics: &self.metrics,
            connections: None,
            answers: ANSWERS,
        };
        file::open(self.file.clone(), &opening)
    }
}

struct Player {
    recording: Recording,
    repeat: bool,
    files: Records,
    /// What is left of the batch that is being played.
    playing: std::vec::IntoIter<Bytes>,
    /// The files' position after it.
    after: Value,
    position: Position,
    count: u64,
    pace: Pace,
    /// Records that may be played now.
    due: u64,
    /// Records of the files that were played since they were opened.
    round: u64,
}

impl Player {
    async fn next(&mut self) -> Option<SourceBatch> {
        while self.playing.len() == 0 {
            if self.position.next >= self.count {
                return None;
            }
            let Some(batch) = self.files.next().await else {
                self.rewind()?;
                continue;
            };
            let passed = self.begin(batch.records, batch.position);
            if passed == 0 && !batch.rejected.is_empty() {
                return Some(self.batch(Vec::new(), batch.rejected));
            }
        }
        if self.due == 0 {
            self.due = self.pace.wait().await;
        }
        let left = self.count.saturating_sub(self.position.next);
        let size = usize::try_from(self.due.min(left)).unwrap_or(usize::MAX);
        let played: Vec<_> = self.playing.by_ref().take(size).collect();
        self.due -= played.len() as u64;
        self.position.next += played.len() as u64;
        self.round += played.len() as u64;
        self.position.played += played.len();
        self.finish();
        (!played.is_empty()).then(|| self.batch(played, Vec::new()))
    }

    /// Begins with a batch of the files; the records of it that were played before.
    fn begin(&mut self, records: Vec<Bytes>, after: Value) -> usize {
        let (passed, size) = (self.position.played, records.len());
        self.playing = records.into_iter();
        self.playing.by_ref().take(passed).for_each(drop);
        self.after = after;
        // Files that couldn't be read on may give a smaller batch than before.
        let left = passed.saturating_sub(size);
        self.finish();
        if self.playing.len() == 0 {
            self.position.played = left;
        }
        passed
    }

    /// Where the batch is played to its end, the files' position moves on.
    fn finish(&mut self) {
        if self.playing.len() == 0 {
            self.position.file = Some(self.after.take());
            self.position.played = 0;
        }
    }

    /// Begins the files again; none where that isn't wanted, or they have no records that can be played.
    fn rewind(&mut self) -> Option<()> {
        let ends = self.position.file.take();
        ends.filter(|_| self.repeat && std::mem::take(&mut self.round) > 0)?;
        // They were opened with the same settings before.
        self.files = self.recording.open(None).ok()?;
        Some(())
    }

    fn batch(&self, records: Vec<Bytes>, rejected: Vec<(Bytes, String)>) -> SourceBatch {
        SourceBatch {
            records,
            rejected,
            // Numbers and JSON: it serializes.
            position: serde_json::to_value(&self.position).unwrap_or_default(),
            ..SourceBatch::default()
        }
    }
}
