//! Debian packages: what is missing is named, with the reason, and installed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail};

use crate::cache;
use crate::process::{self, SHORT};
use crate::progress::Progress;

/// What `cargo build` of the workspace needs: librdkafka is compiled from source.
pub const BUILD: &[&str] = &[
    "cmake",
    "g++",
    "make",
    "pkg-config",
    "libssl-dev",
    "libcurl4-openssl-dev",
];

/// Package lists older than this may name versions that the mirrors no longer have.
const STALE: Duration = Duration::from_secs(24 * 3600);

/// Installs those of `packages` that are missing; `why` completes "they are needed to …".
///
/// # Errors
/// When not root, on a system without apt, or when apt fails: each with the way out.
pub fn ensure(packages: &[&str], why: &str, progress: &Progress) -> Result<()> {
    if missing(packages)?.is_empty() {
        return Ok(());
    }
    // `cargo xtask test` fetches servers beside its steps. Who comes second finds some installed.
    let _lock = cache::lock(&cache::root()?.join("apt.lock"))?;
    let missing = missing(packages)?;
    if missing.is_empty() {
        return Ok(());
    }
    let names = missing.join(" ");
    let by_hand = format!("apt-get install --no-install-recommends {names}");
    if !is_root()? {
        bail!("Debian packages are missing to {why}; run as root, or install them: {by_hand}");
    }
    let step = progress.step(format!("installing {names} (to {why})"));
    let log = cache::root()?.join("apt.log");
    if lists_are_stale() {
        apt(&["update"], &log, &step)?;
    }
    // Debian starts a server when it is installed; ours are started by `up` alone.
    let _stay_off = NoAutostart::new()?;
    let mut arguments = vec!["install", "--yes", "--no-install-recommends"];
    arguments.extend(&missing);
    apt(&arguments, &log, &step).with_context(|| format!("try it by hand: {by_hand}"))?;
    step.done("done");
    Ok(())
}

/// Installs `package` unless `program` is on the path, from wherever it came.
///
/// # Errors
/// As [`ensure`].
pub fn ensure_program(program: &str, package: &str, why: &str, progress: &Progress) -> Result<()> {
    if find(program).is_some() {
        return Ok(());
    }
    ensure(&[package], why, progress)
}

/// # Errors
/// When `id` can't be run.
pub fn is_root() -> Result<bool> {
    let id = process::output(Command::new("id").arg("-u"), SHORT)?;
    Ok(id.trim() == "0")
}

/// Where the path has `program`.
pub fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|folder| folder.join(program))
        .find(|file| file.is_file())
}

fn missing<'a>(packages: &[&'a str]) -> Result<Vec<&'a str>> {
    if find("dpkg-query").is_none() {
        bail!(
            "this needs Debian or Ubuntu (there is no dpkg-query): use `--provider kind` with a \
             Docker engine instead"
        );
    }
    // It fails when one is unknown and still lists the others.
    let listed = Command::new("dpkg-query")
        .args(["-W", "-f", "${Package} ${db:Status-Status}\n"])
        .args(packages)
        .output()?;
    let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
    let installed = |name: &str| {
        listed
            .lines()
            .any(|line| line == format!("{name} installed"))
    };
    Ok(packages
        .iter()
        .copied()
        .filter(|name| !installed(name))
        .collect())
}

fn lists_are_stale() -> bool {
    let newest = fs::read_dir("/var/lib/apt/lists").ok().and_then(|lists| {
        let files = lists.flatten().filter(|file| file.path().is_file());
        let sized = files.filter_map(|file| file.metadata().ok());
        let sized = sized.filter(|data| data.len() > 0);
        sized.filter_map(|data| data.modified().ok()).max()
    });
    let age = newest.and_then(|time| SystemTime::now().duration_since(time).ok());
    age.is_none_or(|age| age > STALE)
}

fn apt(arguments: &[&str], log: &Path, step: &crate::progress::Step) -> Result<()> {
    let mut command = Command::new("apt-get");
    command
        .args(["-o", "DPkg::Lock::Timeout=120"])
        .args(arguments)
        .env("DEBIAN_FRONTEND", "noninteractive");
    process::logged(&mut command, log, step, Duration::from_secs(900))
}

/// Debian's way to keep a package's server from starting by itself: a `policy-rc.d` that
/// says no. It is left alone where the system has one of its own.
/// One that a killed `up` left behind is recognised by its text, and removed.
struct NoAutostart(Option<&'static Path>);

const STAY_OFF: &str =
    "#!/bin/sh\n# written by Millstream's xtask while it installs packages\nexit 101\n";

impl NoAutostart {
    fn new() -> Result<Self> {
        use std::os::unix::fs::PermissionsExt;
        let path = Path::new("/usr/sbin/policy-rc.d");
        let taken = fs::read_to_string(path).is_ok_and(|script| script != STAY_OFF);
        if taken {
            return Ok(Self(None));
        }
        fs::write(path, STAY_OFF)?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o755))?;
        Ok(Self(Some(path)))
    }
}

impl Drop for NoAutostart {
    fn drop(&mut self) {
        if let Some(path) = self.0 {
            // Should it fail, the next installation tries again.
            let _ = fs::remove_file(path);
        }
    }
}
