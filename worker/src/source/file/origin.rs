//! Where files are: a folder in the pod, a URL, a bucket.

use std::{
    io::ErrorKind,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, bail};
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream::BoxStream};
use millstream_api::source::file::{FileSource, S3Bucket, credentials};
use object_store::{
    ClientOptions, GetOptions, GetRange, ObjectStore, ObjectStoreExt, RetryConfig,
    aws::{AmazonS3, AmazonS3Builder},
    path::Path as Key,
};
use reqwest::{
    Client, Response, StatusCode,
    header::{CONTENT_RANGE, ETAG, HeaderMap, HeaderName, IF_RANGE, LAST_MODIFIED, RANGE},
};

use crate::{config::Credentials, tls::trusting};

const CONNECT: Duration = Duration::from_secs(10);
/// A server that sends nothing for so long has gone.
pub const STALLED: Duration = Duration::from_secs(30);
/// Why a bucket fails where it is silent for so long.
const SILENT: &str = "the bucket's server doesn't answer";

/// Where the files of a source are.
pub enum Origin {
    /// A file, or a folder of files.
    Path(PathBuf),
    /// One file behind a URL.
    Url(Client, String),
    /// One object, or all below a folder.
    Bucket(Bucket, Objects),
}

/// Which objects of a bucket.
pub enum Objects {
    Key(String),
    Prefix(String),
}

/// A part of a remote file, from a byte on to its end.
pub struct Part {
    /// The first byte; the server may begin at the file's beginning in spite of what was asked.
    pub start: u64,
    /// Bytes of the whole file, where the server tells.
    pub size: Option<u64>,
    /// What the file is recognised by when more of it is asked for.
    pub version: Option<String>,
    pub body: BoxStream<'static, anyhow::Result<Bytes>>,
}

impl Origin {
    /// The place that a source names.
    pub fn new(spec: &FileSource, secrets: &Credentials) -> anyhow::Result<Self> {
        match (&spec.path, &spec.url, &spec.s3) {
            (Some(path), None, None) => Ok(Origin::Path(path.into())),
            (None, Some(url), None) => Ok(Origin::Url(client(spec, secrets)?, url.clone())),
            (None, None, Some(s3)) => {
                let bucket = Bucket::new(
                    &s3.bucket,
                    secrets,
                    credentials::S3_ACCESS_KEY_ID,
                    credentials::S3_SECRET_ACCESS_KEY,
                    None,
                )?;
                let objects = match (&s3.key, &s3.prefix) {
                    (Some(key), None) => Objects::Key(key.clone()),
                    (None, Some(prefix)) => Objects::Prefix(prefix.clone()),
                    _ => bail!("file.s3 needs exactly one of key and prefix"),
                };
                Ok(Origin::Bucket(bucket, objects))
            }
            _ => bail!("source.file needs exactly one of path, url and s3"),
        }
    }

    /// Names of the files, in order. They are kept in positions. Those of a folder that are empty, and
    /// may be about to be written, are left out or `with_empty`; objects of a bucket are there as a
    /// whole, so that an empty one stands for a folder.
    pub async fn list(&self, with_empty: bool) -> anyhow::Result<Vec<String>> {
        let mut names = match self {
            Origin::Path(path) => list_path(path, with_empty).await?,
            Origin::Url(_, url) => {
                let path = url.split(['?', '#']).next().unwrap_or_default();
                vec![last(path).to_owned()]
            }
            Origin::Bucket(_, Objects::Key(key)) => vec![last(key).to_owned()],
            Origin::Bucket(bucket, Objects::Prefix(prefix)) => bucket.list(prefix).await?,
        };
        names.sort();
        Ok(names)
    }

    /// The path of a file that needs no download.
    pub fn local(&self, name: &str) -> Option<PathBuf> {
        match self {
            Origin::Path(path) if path.is_dir() => Some(path.join(name)),
            Origin::Path(path) => Some(path.clone()),
            _ => None,
        }
    }

    /// Asks for a file from a byte on: the whole file where it isn't the version any more.
    pub async fn get(&self, name: &str, from: u64, version: Option<&str>) -> anyhow::Result<Part> {
        match self {
            Origin::Path(path) => bail!("{} needs no download", path.display()),
            Origin::Url(client, url) => get_url(client, url, from, version).await,
            Origin::Bucket(..) => {
                let (bucket, key) = self.object(name)?;
                bucket.get(&key, from, version).await
            }
        }
    }

    /// Whether a bucket has a file.
    pub async fn has(&self, name: &str) -> anyhow::Result<bool> {
        let (bucket, key) = self.object(name)?;
        let key = Key::parse(&key)?;
        let asked = tokio::time::timeout(STALLED, bucket.store.head(&key)).await;
        match asked.context(SILENT)? {
            Ok(_) => Ok(true),
            Err(object_store::Error::NotFound { .. }) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// The bucket, and the key of a file in it.
    pub fn object(&self, name: &str) -> anyhow::Result<(&Bucket, String)> {
        match self {
            Origin::Bucket(bucket, Objects::Key(key)) => {
                Ok((bucket, key.trim_start_matches('/').to_owned()))
            }
            Origin::Bucket(bucket, Objects::Prefix(prefix)) => match prefix.trim_matches('/') {
                "" => Ok((bucket, name.to_owned())),
                prefix => Ok((bucket, format!("{prefix}/{name}"))),
            },
            _ => bail!("{name} isn't in a bucket"),
        }
    }
}

fn last(path: &str) -> &str {
    match path.rsplit('/').next() {
        None | Some("" | "." | "..") => "download",
        Some(last) => last,
    }
}

async fn list_path(path: &Path, with_empty: bool) -> anyhow::Result<Vec<String>> {
    let unreadable = || format!("can't read {}", path.display());
    let metadata = tokio::fs::metadata(path).await.with_context(unreadable)?;
    if !metadata.is_dir() {
        return Ok(vec![last(&path.to_string_lossy()).to_owned()]);
    }
    let mut names = Vec::new();
    let mut entries = tokio::fs::read_dir(path).await.with_context(unreadable)?;
    while let Some(entry) = entries.next_entry().await.with_context(unreadable)? {
        let name = entry.file_name();
        if name.as_encoded_bytes().starts_with(b".") {
            continue;
        }
        let place = entry.path();
        let name = name.to_str();
        let name = name.with_context(|| format!("the name of {} isn't UTF-8", place.display()))?;
        // The files of a mounted ConfigMap are links.
        let file = match tokio::fs::metadata(&place).await {
            Ok(file) => file,
            // Removed just now, or a link to nothing.
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            error => error.with_context(|| format!("can't read {}", place.display()))?,
        };
        // Without a byte there are no records in any format: `_SUCCESS` of Spark isn't Parquet.
        let listed = file.len() > 0 || (with_empty && !name.starts_with('_'));
        if file.is_file() && listed {
            names.push(name.to_owned());
        }
    }
    Ok(names)
}

fn client(spec: &FileSource, secrets: &Credentials) -> anyhow::Result<Client> {
    let mut client = Client::builder()
        .connect_timeout(CONNECT)
        .read_timeout(STALLED)
        // The file is kept as it is, and ranges are of its own bytes.
        .no_gzip()
        .user_agent(concat!("millstream/", env!("CARGO_PKG_VERSION")));
    if spec.tls.is_some() {
        client = trusting(client, secrets, credentials::CA)?;
    }
    Ok(client.build()?)
}

async fn get_url(
    client: &Client,
    url: &str,
    from: u64,
    version: Option<&str>,
) -> anyhow::Result<Part> {
    let version = version.filter(|_| from > 0);
    let ask = |version: Option<&str>| {
        let mut request = client.get(url);
        if let Some(version) = version {
            request = request
                .header(RANGE, format!("bytes={from}-"))
                .header(IF_RANGE, version);
        }
        request.send()
    };
    // The URL may hold what isn't for everybody.
    let secret = reqwest::Error::without_url;
    let mut response = ask(version).await.map_err(secret)?;
    if response.status() == StatusCode::RANGE_NOT_SATISFIABLE {
        // It ends where it was cut, or before.
        response = ask(None).await.map_err(secret)?;
    }
    let headers = response.headers();
    let (start, size) = match response.status() {
        StatusCode::OK => (0, response.content_length()),
        StatusCode::PARTIAL_CONTENT => content_range(headers)
            .filter(|(start, _)| version.is_some() && *start == from)
            .context("the server answers with another range than it was asked for")?,
        status => bail!("the server answers {status}"),
    };
    Ok(Part {
        start,
        size,
        version: version_of(headers),
        body: body(response),
    })
}

fn body(response: Response) -> BoxStream<'static, anyhow::Result<Bytes>> {
    let chunks = response.bytes_stream();
    chunks.map_err(|error| error.without_url().into()).boxed()
}

/// Whether there is another version of an object by now, or the range begins where this one ends.
fn is_other_or_at_its_end(error: &object_store::Error) -> bool {
    let precondition = matches!(error, object_store::Error::Precondition { .. });
    precondition || error.to_string().contains("416")
}

/// What `If-Range` takes: an entity tag that isn't weak, or a date.
fn version_of(headers: &HeaderMap) -> Option<String> {
    let text = |name: HeaderName| headers.get(name)?.to_str().ok().map(str::to_owned);
    text(ETAG)
        .filter(|tag| !tag.starts_with("W/"))
        .or_else(|| text(LAST_MODIFIED))
}

/// `bytes 7-9/10`: the first byte, and the size where it is known.
fn content_range(headers: &HeaderMap) -> Option<(u64, Option<u64>)> {
    let range = headers.get(CONTENT_RANGE)?.to_str().ok()?;
    let (range, size) = range.strip_prefix("bytes ")?.split_once('/')?;
    let (start, _) = range.split_once('-')?;
    Some((start.parse().ok()?, size.parse().ok()))
}

/// A bucket of an object store that speaks S3.
pub struct Bucket {
    store: AmazonS3,
}

impl Bucket {
    /// The bucket, with the keys in these files where it names Secrets. A request takes no longer than
    /// `timeout`; where there is none, whoever reads sees to it that the bytes keep coming.
    pub fn new(
        spec: &S3Bucket,
        secrets: &Credentials,
        id_file: &str,
        secret_file: &str,
        timeout: Option<Duration>,
    ) -> anyhow::Result<Self> {
        let client = ClientOptions::new()
            .with_connect_timeout(CONNECT)
            .with_allow_http(spec.allow_http);
        let client = match timeout {
            Some(timeout) => client.with_timeout(timeout),
            None => client.with_timeout_disabled(),
        };
        let retry = RetryConfig {
            max_retries: 2,
            retry_timeout: STALLED,
            ..RetryConfig::default()
        };
        let mut builder = AmazonS3Builder::new()
            .with_bucket_name(&spec.bucket)
            .with_region(&spec.region)
            .with_client_options(client)
            .with_allow_http(spec.allow_http)
            .with_retry(retry);
        if let Some(endpoint) = &spec.endpoint {
            builder = builder.with_endpoint(endpoint);
        }
        builder = match (&spec.access_key_id_secret, &spec.secret_access_key_secret) {
            (None, None) => builder.with_skip_signature(true),
            _ => builder
                .with_access_key_id(secrets.require(id_file, "S3")?)
                .with_secret_access_key(secrets.require(secret_file, "S3")?),
        };
        let store = builder
            .build()
            .with_context(|| format!("the bucket {} can't be used", spec.bucket))?;
        Ok(Bucket { store })
    }

    /// The store itself.
    pub fn store(&self) -> &AmazonS3 {
        &self.store
    }

    async fn list(&self, prefix: &str) -> anyhow::Result<Vec<String>> {
        let folder = Key::parse(prefix.trim_matches('/'))?;
        let mut objects = self.store.list(Some(&folder));
        let mut names = Vec::new();
        loop {
            let next = tokio::time::timeout(STALLED, objects.next()).await;
            let Some(object) = next.context(SILENT)?.transpose()? else {
                return Ok(names);
            };
            let parts = object.location.prefix_match(&folder);
            let name: Vec<_> = parts
                .into_iter()
                .flatten()
                .map(|part| part.as_ref().to_owned())
                .collect();
            // The folder itself may be an object.
            if !name.is_empty() && object.size > 0 {
                names.push(name.join("/"));
            }
        }
    }

    async fn get(&self, key: &str, from: u64, version: Option<&str>) -> anyhow::Result<Part> {
        let key = Key::parse(key)?;
        let version = version.filter(|_| from > 0);
        let options = GetOptions {
            if_match: version.map(str::to_owned),
            range: version.map(|_| GetRange::Offset(from)),
            ..GetOptions::default()
        };
        let asked = tokio::time::timeout(STALLED, self.store.get_opts(&key, options)).await;
        let result = match asked.context(SILENT)? {
            Err(error) if is_other_or_at_its_end(&error) => {
                let asked = tokio::time::timeout(STALLED, self.store.get(&key)).await;
                asked.context(SILENT)??
            }
            other => other?,
        };
        Ok(Part {
            start: result.range.start,
            size: Some(result.meta.size),
            version: result.meta.e_tag.clone(),
            body: result.into_stream().map_err(anyhow::Error::from).boxed(),
        })
    }
}
