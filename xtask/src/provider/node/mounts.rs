//! Folders that container tools have their names for compiled in.
//!
//! In the node's mount namespace they are empty file systems of its own. A mount needs a
//! folder to cover, though, and that is made on the machine and taken away again.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use anyhow::{Context, Result};

use super::layout::Layout;

const COVERED: [&str; 3] = ["/var/lib/cni", "/var/lib/kubelet", "/var/log/containers"];

/// Makes the folders that are missing, each noted down before it is made.
pub(super) fn create(layout: &Layout) -> Result<()> {
    let missing = COVERED
        .into_iter()
        .filter(|folder| !Path::new(folder).exists());
    let missing: Vec<_> = missing.collect();
    fs::write(layout.made_folders(), missing.join("\n"))?;
    for folder in missing {
        fs::create_dir_all(folder).with_context(|| format!("creating {folder}"))?;
    }
    Ok(())
}

/// Takes away those that were made.
pub(super) fn remove(layout: &Layout) -> Result<()> {
    let made = fs::read_to_string(layout.made_folders()).unwrap_or_default();
    for folder in made.lines().filter(|line| COVERED.contains(line)) {
        match fs::remove_dir(folder) {
            // Somebody else's by now.
            Err(error) if error.kind() == ErrorKind::DirectoryNotEmpty => {}
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            result => result.with_context(|| format!("removing {folder}"))?,
        }
    }
    Ok(())
}

/// For the script that mounts over them.
pub(super) fn list() -> String {
    COVERED.join(" ")
}
