//! Debian packages: what is missing is named, with the reason, and installed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail};

use crate::cache;
use crate::process::{self, SHORT};
use crate::progress::{Progress, Step};

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

/// Debian asks this script whether a package's server may start when it is installed.
const POLICY: &str = "/usr/sbin/policy-rc.d";

/// Installs those of `packages` that are missing; `why` completes "they are needed to …".
///
/// # Errors
/// When not root, on a system without apt, or when apt fails: each with the way out.
pub fn ensure(packages: &[&str], why: &str, progress: &Progress) -> Result<()> {
    tidy()?;
    if missing(packages)?.is_empty() {
        return Ok(());
    }
    // `cargo xtask test` fetches servers beside its steps. Who comes second finds some installed.
    let _lock = cache::lock(&lock_file()?)?;
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
    // Debian starts a server when it is installed; ours are started by `up` alone.
    let _stay_off = NoAutostart::new()?;
    if lists_are_stale() {
        apt(&["update"], &log, &step)?;
    }
    // After a dpkg that was killed apt refuses until this is done. Should it fail, apt says why, or
    // waits for whoever else installs.
    let _ = unattended(
        Command::new("dpkg").args(["--configure", "-a"]),
        &log,
        &step,
    );
    let mut arguments = vec!["install", "--yes", "--no-install-recommends"];
    arguments.extend(&missing);
    apt(&arguments, &log, &step).with_context(|| format!("try it by hand: {by_hand}"))?;
    step.done("done");
    Ok(())
}

/// Takes away the `policy-rc.d` that a killed installation has left: while it is there, no server
/// starts that somebody installs. Another xtask that is installing at this moment keeps its own.
///
/// # Errors
/// Those of the lock.
pub fn tidy() -> Result<()> {
    let policy = Path::new(POLICY);
    if is_ours(policy)
        && let Some(_lock) = cache::try_lock(&lock_file()?)?
    {
        // Should it fail, as it does for who isn't root, the next one tries again.
        let _ = fs::remove_file(policy);
    }
    Ok(())
}

/// Held by the one xtask that installs.
fn lock_file() -> Result<PathBuf> {
    Ok(cache::root()?.join("apt.lock"))
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
        bail!("this needs Debian or Ubuntu on x86-64 (there is no dpkg-query): use such a machine");
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

fn apt(arguments: &[&str], log: &Path, step: &Step) -> Result<()> {
    let mut command = Command::new("apt-get");
    command
        .args(["-o", "DPkg::Lock::Timeout=120"])
        .args(arguments);
    unattended(&mut command, log, step)
}

/// Runs a command of Debian's that may have questions: it takes the answers that are there.
fn unattended(command: &mut Command, log: &Path, step: &Step) -> Result<()> {
    command.env("DEBIAN_FRONTEND", "noninteractive");
    process::logged(command, log, step, Duration::from_secs(900))
}

/// Debian's way to keep a package's server from starting by itself: a `policy-rc.d` that
/// says no. It is left alone where the system has one of its own.
/// One that was left behind by a kill is recognised by its text: [`tidy`].
struct NoAutostart(Option<&'static Path>);

const STAY_OFF: &str =
    "#!/bin/sh\n# written by Millstream's xtask while it installs packages\nexit 101\n";

fn is_ours(policy: &Path) -> bool {
    fs::read_to_string(policy).is_ok_and(|script| script == STAY_OFF)
}

impl NoAutostart {
    fn new() -> Result<Self> {
        use std::os::unix::fs::PermissionsExt;
        let path = Path::new(POLICY);
        if path.exists() && !is_ours(path) {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_our_own_policy_is_recognised() {
        let folder = tempfile::tempdir().unwrap();
        let policy = folder.path().join("policy-rc.d");
        assert!(!is_ours(&policy), "there is none");
        for (script, ours) in [
            (STAY_OFF, true),
            ("#!/bin/sh\nexit 101\n", false),
            ("", false),
        ] {
            fs::write(&policy, script).unwrap();
            assert_eq!(is_ours(&policy), ours, "{script:?}");
        }
    }
}
