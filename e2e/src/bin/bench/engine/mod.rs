//! The engines: one file each. Each is a program of its own that is started from a folder of its
//! own, watched from outside, and killed when the result is there.

mod ceiling;
mod flink;
mod jvm;
mod millstream;
mod spark;
mod usage;
mod worker_config;

use std::{
    fmt, fs,
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use tempfile::TempDir;

pub use usage::Usage;

use crate::{Bench, job::TableJob};

const LOG: &str = "log";

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Ceiling,
    Millstream,
    Spark,
    Flink,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Kind::Ceiling => "ceiling",
            Kind::Millstream => "millstream",
            Kind::Spark => "spark",
            Kind::Flink => "flink",
        })
    }
}

/// What an engine is started for.
pub enum Work<'a> {
    /// From a topic to a table.
    Table {
        job: &'a dyn TableJob,
        topic: &'a str,
        table: &'a str,
    },
    /// From an HTTP API, page by page, to a topic.
    Ingest { url: &'a str, topic: &'a str },
    /// From a file of records, one a line, to rows on standard output.
    Decode {
        job: &'a dyn TableJob,
        records: &'a Path,
    },
}

/// An engine at work.
pub struct Engine {
    child: Child,
    pub started: Instant,
    /// Holds what the engine is told, what it keeps on disk, and its log.
    folder: TempDir,
}

impl Engine {
    /// Starts an engine.
    pub fn start(bench: &Bench, kind: Kind, work: &Work<'_>) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let mut command = match kind {
            Kind::Ceiling => ceiling::command(bench, work, folder.path())?,
            Kind::Millstream => millstream::command(bench, work, folder.path())?,
            Kind::Spark => spark::command(bench, work, folder.path())?,
            Kind::Flink => flink::command(bench, work, folder.path())?,
        };
        let log = fs::File::create(folder.path().join(LOG))?;
        match work {
            // It prints rows, and stays until its input ends: so it can be looked at once it is done.
            Work::Decode { .. } => command.stdin(Stdio::piped()).stdout(Stdio::piped()),
            _ => command.stdin(Stdio::null()).stdout(log.try_clone()?),
        };
        command.stderr(log);
        let started = Instant::now();
        let child = command.spawn().with_context(|| {
            let program = command.get_program().display();
            format!("{program} can't be started: `cargo xtask bench` provides it")
        })?;
        Ok(Self {
            child,
            started,
            folder,
        })
    }

    /// What it prints, where it prints rows.
    pub fn rows(&mut self) -> Result<ChildStdout> {
        self.child.stdout.take().context("it prints no rows")
    }

    /// An error with what the engine said last, once it has ended, or has had more time than any
    /// needs.
    pub fn goes_on(&mut self, patience: Duration) -> Result<()> {
        if let Some(status) = self.child.try_wait()? {
            bail!("it ended ({status}): {}", self.last_words());
        }
        if self.started.elapsed() > patience {
            let seconds = patience.as_secs();
            bail!("not within {seconds} s; it says: {}", self.last_words());
        }
        Ok(())
    }

    /// The end of the engine's log.
    pub fn last_words(&self) -> String {
        let log = fs::read(self.folder.path().join(LOG)).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let lines: Vec<_> = log.lines().collect();
        lines[lines.len().saturating_sub(10)..].join("\n")
    }

    /// What it has used so far, with all processes that it has started.
    pub fn usage(&self) -> Result<Usage> {
        usage::of_tree(self.child.id())
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        // It may have ended by itself; either way nothing is left to do.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A program that cargo has built beside this one.
pub fn built(name: &str) -> Result<PathBuf> {
    Ok(std::env::current_exe()?.with_file_name(name))
}
