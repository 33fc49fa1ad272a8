//! Container images without a container engine: an OCI image layout in a tar, with one layer,
//! compressed by gzip.
//!
//! `ctr images import`, `docker load` and `kind load image-archive` all take it. The same
//! input gives the same bytes: owners are root, times are zero, entries keep their order.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use flate2::{Compression, write::GzEncoder};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tar::{Builder, EntryType, Header};
use tempfile::NamedTempFile;

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// How a container of the image starts unless its pod says otherwise.
#[derive(Debug, Clone, Default)]
pub struct Config {
    /// The program and its first arguments.
    pub entrypoint: Vec<String>,
    /// `uid:gid`; empty means root.
    pub user: String,
    /// `NAME=value`.
    pub env: Vec<String>,
    /// Empty means `/`.
    pub working_dir: String,
}

/// One thing in the image's file system. Parent folders come by themselves.
#[derive(Debug, Clone)]
pub enum Entry {
    /// A file of this machine.
    File {
        source: PathBuf,
        dest: String,
        mode: u32,
    },
    /// A file that exists nowhere else.
    Bytes {
        bytes: Vec<u8>,
        dest: String,
        mode: u32,
    },
    /// A symbolic link at `dest` that points to `target`.
    Symlink { target: String, dest: String },
    /// A folder with a mode of its own, as `/tmp` needs one.
    Directory { dest: String, mode: u32 },
}

/// Writes the image as `path`, whole or not at all, under the name `reference` (`host/name:tag`).
///
/// # Errors
/// A source that can't be read, or a folder that can't be written to.
pub fn write(path: &Path, reference: &str, config: &Config, files: &[Entry]) -> Result<()> {
    let folder = path.parent().context("an image needs a folder")?;
    std::fs::create_dir_all(folder).with_context(|| format!("creating {}", folder.display()))?;
    let mut layer = layer(folder, files)?;
    let tag = reference.rsplit_once(':').map_or("latest", |(_, tag)| tag);

    let image = Blob::json(&image_config(config, &layer.diff_id));
    let manifest = Blob::json(&json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": image.descriptor("application/vnd.oci.image.config.v1+json"),
        "layers": [layer.descriptor("application/vnd.oci.image.layer.v1.tar+gzip")],
    }));
    let mut named = manifest.descriptor(MANIFEST);
    named["annotations"] = json!({
        "io.containerd.image.name": reference,
        "org.opencontainers.image.ref.name": tag,
    });
    let index = json!({"schemaVersion": 2, "manifests": [named]});

    let out = NamedTempFile::new_in(folder)?;
    let mut tar = Builder::new(BufWriter::new(out));
    let layout = json!({"imageLayoutVersion": "1.0.0"});
    append(&mut tar, "oci-layout", 0o644, layout.to_string().as_bytes())?;
    append(&mut tar, "index.json", 0o644, index.to_string().as_bytes())?;
    for blob in [&image, &manifest] {
        append(&mut tar, &blob.name(), 0o644, &blob.bytes)?;
    }
    layer.file.seek(SeekFrom::Start(0))?;
    let mut entry = header(EntryType::Regular, 0o644, layer.size);
    let name = format!("blobs/sha256/{}", layer.digest);
    tar.append_data(&mut entry, name, BufReader::new(&layer.file))?;
    let out = tar.into_inner()?.into_inner().map_err(io::Error::from)?;
    out.persist(path)
        .with_context(|| format!("writing {}", path.display()))?;
    Ok(())
}

fn image_config(config: &Config, layer: &str) -> Value {
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    json!({
        "architecture": architecture,
        "os": "linux",
        "config": {
            "Entrypoint": config.entrypoint,
            "User": config.user,
            "Env": config.env,
            "WorkingDir": config.working_dir,
        },
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{layer}")]},
        "history": [{"created_by": "cargo xtask dist"}],
    })
}

struct Blob {
    digest: String,
    bytes: Vec<u8>,
}

impl Blob {
    fn json(value: &Value) -> Self {
        let bytes = value.to_string().into_bytes();
        let digest = hex(&Sha256::digest(&bytes));
        Self { digest, bytes }
    }

    fn name(&self) -> String {
        format!("blobs/sha256/{}", self.digest)
    }

    fn descriptor(&self, media_type: &str) -> Value {
        descriptor(media_type, &self.digest, self.bytes.len() as u64)
    }
}

fn descriptor(media_type: &str, digest: &str, size: u64) -> Value {
    json!({"mediaType": media_type, "digest": format!("sha256:{digest}"), "size": size})
}

/// The image's one layer, in a file without a name: it may be large.
struct Layer {
    /// Digest of the tar, as the image's configuration names the layer.
    diff_id: String,
    /// Digest of the compressed tar, as the manifest names it.
    digest: String,
    size: u64,
    file: File,
}

impl Layer {
    fn descriptor(&self, media_type: &str) -> Value {
        descriptor(media_type, &self.digest, self.size)
    }
}

fn layer(folder: &Path, files: &[Entry]) -> Result<Layer> {
    let out = Hashed::new(BufWriter::new(tempfile::tempfile_in(folder)?));
    let mut tar = Builder::new(Hashed::new(GzEncoder::new(out, Compression::fast())));
    let mut folders = BTreeSet::new();
    for file in files {
        append_entry(&mut tar, &mut folders, file)?;
    }
    let tar = tar.into_inner()?;
    let out = tar.inner.finish()?;
    Ok(Layer {
        diff_id: hex(&tar.hash.finalize()),
        digest: hex(&out.hash.finalize()),
        size: out.size,
        file: out.inner.into_inner().map_err(io::Error::from)?,
    })
}

fn append_entry<W: Write>(
    tar: &mut Builder<W>,
    folders: &mut BTreeSet<String>,
    entry: &Entry,
) -> Result<()> {
    let (Entry::File { dest, .. }
    | Entry::Bytes { dest, .. }
    | Entry::Symlink { dest, .. }
    | Entry::Directory { dest, .. }) = entry;
    let dest = dest.trim_matches('/');
    for (end, _) in dest.match_indices('/') {
        append_folder(tar, folders, &dest[..end], 0o755)?;
    }
    match entry {
        Entry::File { source, mode, .. } => {
            let file =
                File::open(source).with_context(|| format!("reading {}", source.display()))?;
            let mut header = header(EntryType::Regular, *mode, file.metadata()?.len());
            tar.append_data(&mut header, dest, BufReader::new(file))?;
        }
        Entry::Bytes { bytes, mode, .. } => append(tar, dest, *mode, bytes)?,
        Entry::Symlink { target, .. } => {
            tar.append_link(&mut header(EntryType::Symlink, 0o777, 0), dest, target)?;
        }
        Entry::Directory { mode, .. } => append_folder(tar, folders, dest, *mode)?,
    }
    Ok(())
}

fn append_folder<W: Write>(
    tar: &mut Builder<W>,
    folders: &mut BTreeSet<String>,
    dest: &str,
    mode: u32,
) -> Result<()> {
    if folders.insert(dest.to_owned()) {
        let mut header = header(EntryType::Directory, mode, 0);
        tar.append_data(&mut header, format!("{dest}/"), io::empty())?;
    }
    Ok(())
}

fn append<W: Write>(tar: &mut Builder<W>, name: &str, mode: u32, bytes: &[u8]) -> Result<()> {
    let mut header = header(EntryType::Regular, mode, bytes.len() as u64);
    Ok(tar.append_data(&mut header, name, bytes)?)
}

fn header(kind: EntryType, mode: u32, size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header
}

/// Hashes and counts what passes through.
struct Hashed<W> {
    inner: W,
    hash: Sha256,
    size: u64,
}

impl<W> Hashed<W> {
    fn new(inner: W) -> Self {
        Self {
            inner,
            hash: Sha256::new(),
            size: 0,
        }
    }
}

impl<W: Write> Write for Hashed<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.hash.update(&bytes[..written]);
        self.size += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// Lower-case hexadecimal, as digests are written.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// SHA-256 of everything `read` gives, as hexadecimal.
pub fn sha256(mut read: impl Read) -> io::Result<String> {
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 16];
    loop {
        match read.read(&mut buffer)? {
            0 => return Ok(hex(&hash.finalize())),
            n => hash.update(&buffer[..n]),
        }
    }
}

#[cfg(test)]
mod tests;
