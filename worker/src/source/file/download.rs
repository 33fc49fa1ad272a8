//! From a server to the disk, for as long as it takes.

use std::{io, path::Path, time::Duration};

use anyhow::{Context, bail};
use futures::StreamExt;
use tokio::{
    fs::File,
    io::{AsyncSeekExt, AsyncWriteExt},
};

use super::{
    origin::{Origin, STALLED},
    scratch::Share,
};
use crate::{retry::Delays, status::StatusPart};

const CONCERN: &str = "download";

/// What is on the disk so far.
struct Progress {
    file: File,
    written: u64,
    version: Option<String>,
}

/// Downloads a file; what is cut goes on where it was cut, as long as the server has the same
/// version. Tries until it is there, and shows meanwhile what is wrong.
pub async fn download(
    origin: &Origin,
    name: &str,
    into: &Path,
    share: &mut Share,
    status: &StatusPart,
) -> anyhow::Result<()> {
    let mut progress = Progress::new(into).await?;
    let mut delays = Delays::default();
    loop {
        let before = progress.written;
        let Err(error) = progress.attempt(origin, name, share).await else {
            progress.file.sync_all().await?;
            status.clear(CONCERN);
            return Ok(());
        };
        if progress.written > before {
            delays = Delays::default();
        }
        status.fail(CONCERN, format!("downloading {name}: {error:#}"));
        delays.wait().await;
    }
}

/// Downloads a file, or fails.
pub async fn download_once(
    origin: &Origin,
    name: &str,
    into: &Path,
    share: &mut Share,
) -> anyhow::Result<()> {
    let mut progress = Progress::new(into).await?;
    let attempt = progress.attempt(origin, name, share).await;
    attempt.with_context(|| format!("downloading {name}"))
}

impl Progress {
    async fn new(into: &Path) -> anyhow::Result<Self> {
        let file = File::create(into)
            .await
            .with_context(|| format!("can't write {}", into.display()))?;
        Ok(Progress {
            file,
            written: 0,
            version: None,
        })
    }

    async fn attempt(
        &mut self,
        origin: &Origin,
        name: &str,
        share: &mut Share,
    ) -> anyhow::Result<()> {
        let version = self.version.as_deref();
        let mut part = origin.get(name, self.written, version).await?;
        if part.start != self.written {
            tracing::info!("{name} is downloaded from its beginning");
            self.restart(share).await?;
        }
        self.version = part.version;
        // A file that is too large is refused before it fills the disk.
        reserve(share, part.size.unwrap_or(0))?;
        while let Some(chunk) = stalled(STALLED, part.body.next()).await? {
            let chunk = chunk.context("the download was cut off")?;
            reserve(share, self.written + chunk.len() as u64)?;
            let written = self.file.write_all(&chunk).await;
            self.held(written, share).await?;
            self.written += chunk.len() as u64;
        }
        let written = self.file.flush().await;
        self.held(written, share).await?;
        if let Some(size) = part.size
            && size != self.written
        {
            let written = self.written;
            self.restart(share).await?;
            bail!("{written} bytes came, the server said {size}: the file changed meanwhile");
        }
        Ok(())
    }

    /// What can't be written may be something from before: an error is told one write later. So nothing
    /// that is there counts any more.
    async fn held(&mut self, written: io::Result<()>, share: &mut Share) -> anyhow::Result<()> {
        let Err(error) = written else {
            return Ok(());
        };
        self.written = 0;
        self.restart(share).await?;
        Err(error).context("it can't be written to the disk")
    }

    async fn restart(&mut self, share: &mut Share) -> anyhow::Result<()> {
        share.clear();
        self.written = 0;
        self.version = None;
        self.file.set_len(0).await?;
        self.file.rewind().await?;
        Ok(())
    }
}

fn reserve(share: &mut Share, bytes: u64) -> anyhow::Result<()> {
    share.grow_to(bytes).map_err(anyhow::Error::msg)
}

async fn stalled<T>(limit: Duration, wait: impl Future<Output = T>) -> anyhow::Result<T> {
    tokio::time::timeout(limit, wait)
        .await
        .with_context(|| format!("no byte came for {} s", limit.as_secs()))
}
