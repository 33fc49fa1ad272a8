//! Where a table is: a folder, or a bucket that speaks S3.

use std::{path::PathBuf, sync::Arc};

use anyhow::Context;
use deltalake::{
    DeltaResult, DeltaTable, DeltaTableBuilder,
    logstore::{
        LogStore, LogStoreFactory, ObjectStoreRef, StorageConfig, default_logstore,
        logstore_factories,
    },
};
use millstream_api::{sink::s3_files, source::file::S3Folder, worker::DeltaTable as Config};
use url::Url;

use crate::{config::Credentials, source::file::Bucket};

/// Where a table is.
pub enum Place {
    Folder(PathBuf),
    /// The bucket, and the table's URL.
    Bucket(ObjectStoreRef, Url),
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
                let bucket = Bucket::new(&s3.bucket, credentials, &id, &secret)?;
                let mut url = Url::parse(&format!("s3://{}", s3.bucket.bucket))
                    .with_context(|| format!("`{}` is no name of a bucket", s3.bucket.bucket))?;
                url.set_path(s3.prefix.as_deref().unwrap_or_default().trim_matches('/'));
                // Commits go by a conditional put, which a log store of its own isn't needed for.
                let scheme = Url::parse("s3://").context("s3://")?;
                logstore_factories().insert(scheme, Arc::new(Conditional));
                Ok(Place::Bucket(Arc::new(bucket.store().clone()), url))
            }
            _ => anyhow::bail!("a Delta Lake table is on a volume or in a bucket"),
        }
    }

    /// The same place under a URL of its own: an engine that reads several tables knows their stores
    /// by the hosts, and buckets of one name may be at several servers.
    pub fn apart(self, name: &str) -> anyhow::Result<Self> {
        let Place::Bucket(store, mut url) = self else {
            return Ok(self);
        };
        let host = format!("{name}.{}", url.host_str().unwrap_or_default());
        url.set_host(Some(&host))
            .with_context(|| format!("`{host}` is no host"))?;
        Ok(Place::Bucket(store, url))
    }

    /// Sees to it that a table can be made there.
    pub fn prepare(&self) -> anyhow::Result<()> {
        match self {
            Place::Folder(folder) => std::fs::create_dir_all(folder)
                .with_context(|| format!("can't make the folder {}", folder.display())),
            Place::Bucket(..) => Ok(()),
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
            Place::Bucket(store, url) => DeltaTableBuilder::from_url(url.clone())?
                .with_storage_backend(store.clone(), url.clone()),
        };
        Ok(builder.build()?)
    }
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
