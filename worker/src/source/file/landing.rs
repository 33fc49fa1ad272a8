//! The landing zone: downloads are kept as they came, under the date of the download.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::Context;
use chrono::Utc;
use millstream_api::source::file::{LandingZone, credentials};
use object_store::{ObjectStoreExt, WriteMultipart, path::Path as Key};
use tokio::{fs::File, io::AsyncReadExt};

use super::{
    Files, Local,
    download::download,
    origin::{Bucket, Objects, Origin, STALLED},
    scratch::Scratch,
};
use crate::{config::Credentials, retry::Delays};

const CONCERN: &str = "landing zone";
/// Parts of an upload at once.
const PARTS: usize = 4;
/// Bytes of a part: no less is taken but of the last one.
const PART: u64 = 5 * 1024 * 1024;
/// An upload has 10,000 parts at most.
const MAX_PARTS: u64 = 9_000;
/// The server may take minutes to make one object of the parts.
const COMPLETION: Duration = Duration::from_secs(10 * 60);

/// Where downloads are kept.
pub enum Landing {
    /// A folder on a volume.
    Folder(PathBuf),
    /// A folder of a bucket: downloads go to the disk first, and from there.
    Bucket(Origin),
}

impl Landing {
    /// The place that a source names.
    pub fn new(spec: &LandingZone, secrets: &Credentials) -> anyhow::Result<Self> {
        match (&spec.volume, &spec.s3) {
            (Some(volume), None) => Ok(Landing::Folder(volume.path.clone().into())),
            (None, Some(s3)) => {
                let bucket = Bucket::new(
                    &s3.bucket,
                    secrets,
                    credentials::LANDING_ACCESS_KEY_ID,
                    credentials::LANDING_SECRET_ACCESS_KEY,
                    None,
                )?;
                let prefix = s3.prefix.clone().unwrap_or_default();
                Ok(Landing::Bucket(Origin::Bucket(
                    bucket,
                    Objects::Prefix(prefix),
                )))
            }
            _ => anyhow::bail!("file.landingZone needs exactly one of volume and s3"),
        }
    }
}

impl Files {
    /// Downloads a file into the landing zone and gives it from there; `again`: it may have been
    /// done before.
    pub async fn land(
        &mut self,
        landing: &Landing,
        name: &str,
        again: bool,
    ) -> anyhow::Result<Local> {
        let day = self.position.landed.clone();
        let day = day.unwrap_or_else(|| Utc::now().format("%Y/%m/%d").to_string());
        let kept = format!("{day}/{name}");
        let local = match landing {
            Landing::Folder(folder) => self.land_in_folder(&folder.join(kept), name, again).await?,
            Landing::Bucket(zone) => self.land_in_bucket(zone, &kept, name, again).await?,
        };
        self.position.landed = Some(day);
        Ok(local)
    }

    async fn land_in_folder(&self, path: &Path, name: &str, again: bool) -> anyhow::Result<Local> {
        if !(again && path.is_file()) {
            let unwritable = || format!("can't write {}", path.display());
            let parent = path.parent().unwrap_or(path);
            tokio::fs::create_dir_all(parent)
                .await
                .with_context(unwritable)?;
            let file = path.file_name().unwrap_or_default().to_string_lossy();
            let part = path.with_file_name(format!(".{file}.part"));
            // The volume isn't the pod's own disk: it has its own bound.
            let mut share = Scratch::new(u64::MAX).share();
            download(&self.origin, name, &part, &mut share, &self.status).await?;
            tokio::fs::rename(&part, path)
                .await
                .with_context(unwritable)?;
        }
        Ok(Local {
            path: path.to_owned(),
            _temporary: None,
        })
    }

    async fn land_in_bucket(
        &self,
        zone: &Origin,
        kept: &str,
        name: &str,
        again: bool,
    ) -> anyhow::Result<Local> {
        if again && zone.has(kept).await? {
            return self.download(zone, kept).await;
        }
        let local = self.download(&self.origin, name).await?;
        let mut delays = Delays::default();
        while let Err(error) = upload(zone, kept, &local.path).await {
            self.status
                .fail(CONCERN, format!("can't keep {kept}: {error:#}"));
            delays.wait().await;
        }
        self.status.clear(CONCERN);
        Ok(local)
    }
}

/// Keeps a download in a bucket.
async fn upload(zone: &Origin, kept: &str, path: &Path) -> anyhow::Result<()> {
    let (bucket, key) = zone.object(kept)?;
    let key = Key::parse(key)?;
    let size = tokio::fs::metadata(path).await?.len();
    let part = usize::try_from(PART.max(size / MAX_PARTS))?;
    let started = tokio::time::timeout(STALLED, bucket.store().put_multipart(&key)).await;
    let started = started.context("the bucket's server doesn't answer")??;
    let mut upload = WriteMultipart::new_with_chunk_size(started, part);
    let written = write(&mut upload, path).await;
    if let Err(error) = written {
        // Parts of an upload that isn't finished are paid for.
        let _ = tokio::time::timeout(STALLED, upload.abort()).await;
        return Err(error);
    }
    let finished = tokio::time::timeout(COMPLETION, upload.finish()).await;
    finished.context("the bucket's server doesn't finish the upload")??;
    Ok(())
}

async fn write(upload: &mut WriteMultipart, path: &Path) -> anyhow::Result<()> {
    let mut file = File::open(path).await?;
    let mut buffer = vec![0; 1024 * 1024];
    loop {
        let read = file.read(&mut buffer).await?;
        if read == 0 {
            break;
        }
        goes_on(upload, PARTS).await?;
        upload.write(&buffer[..read]);
    }
    for parts in (1..PARTS).rev() {
        goes_on(upload, parts).await?;
    }
    Ok(())
}

/// Waits until fewer parts than these are on their way.
async fn goes_on(upload: &mut WriteMultipart, parts: usize) -> anyhow::Result<()> {
    let capacity = tokio::time::timeout(STALLED, upload.wait_for_capacity(parts)).await;
    Ok(capacity.context("the upload doesn't go on")??)
}
