//! Where a table is: a folder, or a bucket that speaks S3.

use std::{path::PathBuf, sync::Arc, time::Duration};

use anyhow::Context;
use deltalake::{
    DeltaResult, DeltaTable, DeltaTableBuilder,
    logstore::{
        LogStore, LogStoreFactory, ObjectStoreRef, StorageConfig, default_logstore,
        logstore_factories,
    },
};
use millstream_api::{sink::s3_files, source::file::S3Folder, worker::DeltaTable as Config};
use object_store::{Error, ObjectStore, PutMode, path::Path};
use tokio::sync::OnceCell;
use url::Url;

use crate::{config::Credentials, source::file::Bucket};

/// An object beside the log by which it is seen whether the store keeps what is there.
const PROBE: &str = "_conditional_put";
/// A request of the bucket's takes no longer: one of a file's part, or of a commit.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(180);

/// Where a table is.
pub enum Place {
    Folder(PathBuf),
    Bucket {
        store: ObjectStoreRef,
        /// The table's.
        url: Url,
        keeps: OnceCell<()>,
    },
}

impl Place {
    /// The place that a sink names.
    pub fn new(sink: &str, config: &Config, credentials: &Credentials) -> anyhow::Result<Self> {
        Place::at(
            sink,
            config.path.as_deref(),
            config.sink.s3.as_ref(),
            credentials,
        )
    }

    /// A sink's folder, or its part of a bucket.
    pub fn at(
        sink: &str,
        path: Option<&str>,
        s3: Option<&S3Folder>,
        credentials: &Credentials,
    ) -> anyhow::Result<Self> {
        match (path, s3) {
            (Some(path), None) => Ok(Place::Folder(path.into())),
            (None, Some(s3)) => {
                let [id, secret] = s3_files(sink);
                let bucket =
                    Bucket::new(&s3.bucket, credentials, &id, &secret, Some(REQUEST_TIMEOUT))?;
                let mut url = Url::parse(&format!("s3://{}", s3.bucket.bucket))
                    .with_context(|| format!("`{}` is no name of a bucket", s3.bucket.bucket))?;
                url.set_path(s3.prefix.as_deref().unwrap_or_default().trim_matches('/'));
                // Commits go by a conditional put, which a log store of its own isn't needed for.
                let scheme = Url::parse("s3://").context("s3://")?;
                logstore_factories().insert(scheme, Arc::new(Conditional));
                Ok(Place::Bucket {
                    store: Arc::new(bucket.store().clone()),
                    url,
                    keeps: OnceCell::new(),
                })
            }
            _ => anyhow::bail!("a Delta Lake table is on a volume or in a bucket"),
        }
    }

    /// The same place under a URL of its own: an engine that reads several tables knows their stores
    /// by the hosts, and buckets of one name may be at several servers.
    pub fn apart(mut self, name: &str) -> anyhow::Result<Self> {
        if let Place::Bucket { url, .. } = &mut self {
            let host = format!("{name}.{}", url.host_str().unwrap_or_default());
            url.set_host(Some(&host))
                .with_context(|| format!("`{host}` is no host"))?;
        }
        Ok(self)
    }

    /// Sees to it that a table can be made there: in a folder that is there, or in a bucket where two
    /// commits of one version can't both be made. All that is known of a table rests on that, and a
    /// store that doesn't know the header would lose rows without a word. A file system has links for
    /// it, and says so where it hasn't.
    pub async fn prepare(&self) -> anyhow::Result<()> {
        match self {
            Place::Folder(folder) => std::fs::create_dir_all(folder)
                .with_context(|| format!("can't make the folder {}", folder.display())),
            Place::Bucket { store, url, keeps } => {
                let checked = keeps.get_or_try_init(|| check_bucket(store, url)).await;
                checked.copied()
            }
        }
    }

    /// The table, which isn't read yet.
    pub fn table(&self) -> anyhow::Result<DeltaTable> {
        let builder = match self {
            Place::Folder(folder) => {
                let url = Url::from_directory_path(folder)
                    .map_err(|()| anyhow::anyhow!("{} isn't absolute", folder.display()))?;
                DeltaTableBuilder::from_url(url)?
            }
            Place::Bucket { store, url, .. } => DeltaTableBuilder::from_url(url.clone())?
                .with_storage_backend(store.clone(), url.clone()),
        };
        Ok(builder.build()?)
    }
}

async fn check_bucket(store: &ObjectStoreRef, url: &Url) -> anyhow::Result<()> {
    let folder = url.path().trim_end_matches('/');
    let probe = Path::from_url_path(format!("{folder}/{PROBE}"))?;
    let keeps = keeps_what_is_there(store, &probe).await;
    match keeps.context("can't see whether the bucket is fit for a table")? {
        true => Ok(()),
        false => anyhow::bail!(
            "the bucket's server overwrites an object in spite of `If-None-Match: *`; without conditional writes commits would be lost"
        ),
    }
}

/// Puts an object where it isn't, until the store says that it is there.
async fn keeps_what_is_there(store: &ObjectStoreRef, path: &Path) -> object_store::Result<bool> {
    for _ in 0..2 {
        let payload = "Millstream was here first.".into();
        match store.put_opts(path, payload, PutMode::Create.into()).await {
            Ok(_) => {}
            Err(Error::AlreadyExists { .. }) => return Ok(true),
            Err(error) => return Err(error),
        }
    }
    Ok(false)
}

/// A log whose store has a put that fails where there is something already.
struct Conditional;

impl LogStoreFactory for Conditional {
    fn with_options(
        &self,
        prefixed_store: ObjectStoreRef,
        root_store: ObjectStoreRef,
        location: &Url,
        options: &StorageConfig,
    ) -> DeltaResult<Arc<dyn LogStore>> {
        Ok(default_logstore(
            prefixed_store,
            root_store,
            location,
            options,
        ))
    }
}
