//! Folders under the user's cache directory, each made whole or not at all.
//!
//! What takes minutes to make (binaries, jars) is kept under the hash of all that goes into
//! it, so nothing stale can be taken for the real thing, and a killed build leaves nothing
//! but a temporary folder that the next one sweeps away.

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

use crate::oci::hex;

const UNFINISHED: &str = ".unfinished-";

/// `${XDG_CACHE_HOME:-~/.cache}/millstream`.
///
/// # Errors
/// When neither `XDG_CACHE_HOME` nor `HOME` is set to an absolute path.
pub fn root() -> Result<PathBuf> {
    let xdg = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let home = std::env::home_dir().map(|home| home.join(".cache"));
    xdg.filter(|path| path.is_absolute())
        .or(home.filter(|path| path.is_absolute()))
        .map(|cache| cache.join("millstream"))
        .context("no cache folder: set HOME or XDG_CACHE_HOME to an absolute path")
}

/// The name of a cache entry: a hash of everything that decides what is in it.
pub fn key(parts: &[&str]) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    hex(&hash.finalize()[..8])
}

/// The folder `kind/key`, filled by `make` if it isn't there yet.
///
/// `make` gets an empty folder; it becomes the entry only when `make` succeeds.
///
/// # Errors
/// Those of `make`, and of the file system.
pub fn entry(kind: &str, key: &str, make: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
    let folder = root()?.join(kind);
    let entry = folder.join(key);
    if entry.exists() {
        return Ok(entry);
    }
    fs::create_dir_all(&folder).with_context(|| format!("creating {}", folder.display()))?;
    let _lock = lock(&folder.join(".lock"))?;
    if entry.exists() {
        return Ok(entry);
    }
    sweep(&folder)?;
    let unfinished = tempfile::Builder::new()
        .prefix(UNFINISHED)
        .tempdir_in(&folder)?;
    make(unfinished.path())?;
    fs::rename(unfinished.path(), &entry)
        .with_context(|| format!("moving {} into place", entry.display()))?;
    Ok(entry)
}

fn sweep(folder: &Path) -> Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(UNFINISHED) {
            fs::remove_dir_all(entry.path())?;
        }
    }
    Ok(())
}

/// Waits until no other xtask holds `path`; the lock goes with the process, however it ends.
///
/// # Errors
/// When the file can't be made or locked.
pub fn lock(path: &Path) -> Result<File> {
    if let Some(file) = try_lock(path)? {
        return Ok(file);
    }
    eprintln!("waiting for another `cargo xtask` to finish");
    let file = create(path)?;
    file.lock()?;
    Ok(file)
}

/// As [`lock`], but without waiting: none while another holds `path`.
///
/// # Errors
/// As [`lock`].
pub fn try_lock(path: &Path) -> Result<Option<File>> {
    let file = create(path)?;
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(error)) => Err(error.into()),
    }
}

fn create(path: &Path) -> Result<File> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).with_context(|| format!("creating {}", folder.display()))?;
    }
    File::create(path).with_context(|| format!("creating {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_tells_apart_what_only_looks_alike_joined() {
        assert_ne!(key(&["ab", "c"]), key(&["a", "bc"]));
        assert_eq!(key(&["ab", "c"]), key(&["ab", "c"]));
    }

    #[test]
    fn a_lock_that_is_held_is_not_had_without_waiting() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deeper/lock");
        let held = lock(&path).unwrap();
        assert!(try_lock(&path).unwrap().is_none());
        drop(held);
        // A process that another test starts at this moment may have it a little longer.
        lock(&path).unwrap();
    }
}
