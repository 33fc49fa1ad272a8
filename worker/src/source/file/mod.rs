//! Records from files: on a volume, behind a URL, in an object store.
//!
//! A file is brought to the disk first ([`origin`], [`download`], [`landing`]), for the directory
//! of a zip and of Parquet is at its end. Then a thread reads it ([`unpack`], [`format`]) and makes
//! batches of its records ([`take`]), or sorts them by date before ([`replay`]).
//!
//! After a crash the records that are done are read and passed over: that works for every format,
//! and tells, by their checksum, whether it is still the same file.

mod download;
mod error;
mod format;
mod landing;
mod local;
mod origin;
mod position;
mod replay;
mod scratch;
mod take;
mod unpack;
mod whole;

use std::{path::PathBuf, sync::Arc};

use futures::{StreamExt, stream};
use millstream_api::source::file::{FileSource, Replay};
use millstream_plan::RecordSchema;
use tempfile::TempPath;
use tokio::{
    sync::mpsc::{self, Sender},
    task::JoinSet,
};

pub use self::{error::ReadError, origin::Bucket, take::Take, whole::read_whole};
use self::{
    format::Formats,
    landing::Landing,
    origin::Origin,
    position::Position,
    replay::Dates,
    scratch::{Scratch, Share},
    take::Batches,
    unpack::Reading,
};
use crate::{
    pointer::Pointer,
    retry::Delays,
    source::{Opening, Records, SourceBatch},
    status::StatusPart,
};

/// Batches that wait for the ingest stage.
const WAITING: usize = 4;
const DEFAULT_SCRATCH: u64 = 10 << 30;
const LIST: &str = "files";
const READ: &str = "file";
const REWRITTEN: &str = "rewritten file";

/// Opens the source; the position is a file, and the records of it that are done.
pub fn open(spec: FileSource, opening: &Opening<'_>) -> anyhow::Result<Records> {
    let scratch = Scratch::new(spec.scratch_bytes().unwrap_or(DEFAULT_SCRATCH));
    let landing = spec.landing_zone.as_ref();
    let landing = landing.map(|zone| Landing::new(zone, opening.credentials));
    let formats = Formats {
        format: spec.format,
        records: Pointer::parse(spec.records.as_deref().unwrap_or_default()),
        csv: spec.csv.clone(),
        schema: RecordSchema::parse(opening.schema)?,
        scratch: scratch.clone(),
    };
    let files = Files {
        origin: Origin::new(&spec, opening.credentials)?,
        landing: landing.transpose()?.map(Arc::new),
        reading: Arc::new(Reading {
            compression: spec.compression,
            members: spec.members.clone(),
            formats,
        }),
        replay: spec.replay,
        scratch,
        status: opening.status.clone(),
        position: Position::parse(opening.position),
        // A position says that the landed file was good so far.
        trusted: opening.position.is_some(),
    };
    let (out, batches) = mpsc::channel(WAITING);
    let mut reading = JoinSet::new();
    reading.spawn(files.run(out));
    let state = (batches, reading);
    let batches = stream::unfold(state, |(mut batches, mut reading)| async move {
        if let Some(batch) = batches.recv().await {
            return Some((batch, (batches, reading)));
        }
        // A panic must not look like the end of the source.
        if let Some(Err(error)) = reading.join_next().await
            && let Ok(panic) = error.try_into_panic()
        {
            std::panic::resume_unwind(panic);
        }
        None
    });
    Ok(batches.boxed())
}

/// The files of a source, read one after the other.
struct Files {
    origin: Origin,
    landing: Option<Arc<Landing>>,
    reading: Arc<Reading>,
    replay: Option<Replay>,
    scratch: Scratch,
    status: StatusPart,
    position: Position,
    /// Whether a landed file may be read again, or has to be downloaded anew.
    trusted: bool,
}

/// A file on the disk; a temporary one is gone with this.
struct Local {
    path: PathBuf,
    _temporary: Option<(TempPath, Share)>,
}

impl Files {
    /// Reads all files; tries again what fails.
    async fn run(mut self, out: Sender<SourceBatch>) {
        let mut delays = Delays::default();
        loop {
            let before = self.position.clone();
            match self.pass(&out).await {
                Ok(()) | Err(ReadError::Closed) => return,
                Err(error @ ReadError::Rewritten) => {
                    let file = self.position.file.clone();
                    let file = file.as_deref().unwrap_or("replay");
                    let message = format!("{file}: {error}; it is read from its beginning");
                    // It stays: what the file gave before is there too.
                    self.status.warn(REWRITTEN, message);
                }
                Err(error) => {
                    if self.position != before {
                        delays = Delays::default();
                    }
                    self.trusted = false;
                    self.status.fail(READ, error);
                    delays.wait().await;
                }
            }
        }
    }

    async fn pass(&mut self, out: &Sender<SourceBatch>) -> Result<(), ReadError> {
        let names = self.list().await;
        if let Some(replay) = self.replay.clone() {
            return self.by_date(&replay, &names, out).await;
        }
        for name in &names {
            if Some(name) >= self.position.file.as_ref() {
                self.one(name, out).await?;
            }
        }
        Ok(())
    }

    /// Names of the files, in order; waits until there are any, and the one that was begun is among
    /// them.
    async fn list(&self) -> Vec<String> {
        let mut delays = Delays::default();
        loop {
            let listed = self.origin.list(false).await;
            let error = match listed.and_then(|names| self.with_begun(names)) {
                Ok(names) if !names.is_empty() => {
                    self.status.clear(LIST);
                    return names;
                }
                Ok(_) => "there are no files".to_owned(),
                Err(error) => format!("{error:#}"),
            };
            self.status.fail(LIST, error);
            delays.wait().await;
        }
    }

    /// The names with that of the file that was begun; fails where it is neither there nor in the
    /// landing zone.
    fn with_begun(&self, mut names: Vec<String>) -> anyhow::Result<Vec<String>> {
        let begun = self.position.begun();
        let Some(begun) = begun.filter(|begun| !names.contains(begun)) else {
            return Ok(names);
        };
        anyhow::ensure!(
            self.landing.is_some(),
            "{begun} isn't there any more, or is empty, and only its first {} records were read; put it back, or in its place a file that has just a line end",
            self.position.done.records
        );
        names.push(begun.clone());
        names.sort();
        Ok(names)
    }

    /// Gives the records of a file.
    async fn one(&mut self, name: &str, out: &Sender<SourceBatch>) -> Result<(), ReadError> {
        let again = self.position.file.as_deref() == Some(name);
        let local = self.bring(name, again).await?;
        if !again {
            self.position = self.position.at(name);
        }
        let mut batches = Batches::new(out.clone(), self.position.clone(), self.status.clone());
        let (reading, file) = (self.reading.clone(), name.to_owned());
        let (position, read) = blocking(move || {
            let read = reading.path(&file, &local.path, &mut batches);
            let read = give_rest(read, &mut batches);
            (batches.position().clone(), read)
        })
        .await?;
        self.position = match &read {
            Err(ReadError::Rewritten) => self.position.at(name),
            _ => position,
        };
        read?;
        self.trusted = true;
        self.status.clear(READ);
        Ok(())
    }

    /// Gives the records of all files, date by date.
    async fn by_date(
        &mut self,
        replay: &Replay,
        names: &[String],
        out: &Sender<SourceBatch>,
    ) -> Result<(), ReadError> {
        let mut dates = Dates::new(replay, &self.scratch, out.clone())?;
        for name in names {
            let local = self.bring(name, self.position.date.is_some()).await?;
            let (reading, file) = (self.reading.clone(), name.clone());
            let (sorted, read) = blocking(move || {
                let read = reading.path(&file, &local.path, &mut dates);
                (dates, read)
            })
            .await?;
            read?;
            dates = sorted;
        }
        let mut batches = Batches::new(out.clone(), self.position.clone(), self.status.clone());
        let (position, read) = blocking(move || {
            let read = dates.give(&mut batches);
            let read = give_rest(read, &mut batches);
            (batches.position().clone(), read)
        })
        .await?;
        self.position = match &read {
            Err(ReadError::Rewritten) => Position {
                landed: self.position.landed.clone(),
                ..Position::default()
            },
            _ => position,
        };
        read?;
        self.status.clear(READ);
        Ok(())
    }

    /// Brings a file to the disk. `again`: records of it are done already.
    async fn bring(&mut self, name: &str, again: bool) -> Result<Local, ReadError> {
        if let Some(path) = self.origin.local(name) {
            return Ok(Local {
                path,
                _temporary: None,
            });
        }
        let brought = match self.landing.clone() {
            None => self.download(&self.origin, name).await,
            Some(landing) => self.land(&landing, name, again && self.trusted).await,
        };
        brought.map_err(|error| ReadError::Unreadable(format!("{name}: {error:#}")))
    }

    /// Downloads to a temporary file.
    async fn download(&self, origin: &Origin, name: &str) -> anyhow::Result<Local> {
        let temporary = tempfile::NamedTempFile::new()?.into_temp_path();
        let mut share = self.scratch.share();
        download::download(origin, name, &temporary, &mut share, &self.status).await?;
        Ok(Local {
            path: temporary.to_path_buf(),
            _temporary: Some((temporary, share)),
        })
    }
}

/// What was read before an error is given all the same.
fn give_rest(read: Result<(), ReadError>, batches: &mut Batches) -> Result<(), ReadError> {
    match read {
        Ok(()) => batches.finish(),
        Err(ReadError::Closed) => Err(ReadError::Closed),
        Err(error) => batches.flush().and(Err(error)),
    }
}

/// Runs what reads and computes on a thread of its own. A decoder that panics over a damaged file
/// has failed as any other.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, ReadError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|error| ReadError::Unreadable(format!("it can't be read: {error}")))
}

#[cfg(test)]
mod tests;
