//! The control group that holds the pods, in every hierarchy this machine has.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

use super::layout::CGROUP;
use crate::process;

const MOUNTS: &str = "/sys/fs/cgroup";

/// The kubelet wants its root to be there.
pub(super) fn create() -> Result<()> {
    for folder in ours() {
        fs::create_dir_all(&folder).with_context(|| format!("creating {}", folder.display()))?;
    }
    Ok(())
}

/// To be called when every process in them has gone.
pub(super) fn remove() -> Result<()> {
    for folder in ours().into_iter().filter(|folder| folder.exists()) {
        // The kernel lets go of a group a moment after its last process.
        let what = format!("{} is empty", folder.display());
        process::wait_until(&what, Duration::from_secs(10), || {
            Ok(remove_tree(&folder).is_ok().then_some(()))
        })?;
    }
    Ok(())
}

fn remove_tree(folder: &Path) -> std::io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_tree(&entry.path())?;
        }
    }
    fs::remove_dir(folder)
}

/// One with cgroup v2, one for each controller with v1, both where both are mounted.
fn ours() -> Vec<PathBuf> {
    let root = Path::new(MOUNTS);
    let entries = fs::read_dir(root).into_iter().flatten().flatten();
    let mut hierarchies: Vec<_> = entries.map(|entry| entry.path()).collect();
    if root.join("cgroup.controllers").exists() {
        hierarchies = vec![root.to_owned()];
    }
    hierarchies.retain(|folder| folder.join("cgroup.procs").exists() && !folder.is_symlink());
    let name = CGROUP.trim_start_matches('/');
    hierarchies.iter().map(|folder| folder.join(name)).collect()
}
