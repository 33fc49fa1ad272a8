//! Programs that are built from Go modules.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::process;

/// The first question may download the toolchain.
const FETCH: Duration = Duration::from_secs(600);

/// `go` in the folder of a module, told to change nothing of it.
pub fn command(module: &Path) -> Command {
    let mut go = Command::new("go");
    go.current_dir(module)
        // Debian's Go is told not to fetch the version that go.mod asks for.
        .env("GOTOOLCHAIN", "auto")
        .env("CGO_ENABLED", "0")
        .env("GOFLAGS", "-buildvcs=false -mod=readonly");
    go
}

/// The version that builds a module, such as `go1.26.8`.
///
/// # Errors
/// When there is no Go, or one that can't fetch a newer one.
pub fn version(module: &Path) -> Result<String> {
    let go = process::output(command(module).args(["env", "GOVERSION"]), FETCH).context(
        "Go can't be used: put Go 1.26 on the path, or 1.21 or newer, which fetches it by itself",
    )?;
    let go = go.trim();
    ensure!(
        minor(go).is_some_and(|minor| minor >= 21),
        "{go} is too old to build Kubernetes: put Go 1.26 first on the path (or 1.21 or newer, \
         which fetches it by itself); Debian has newer ones in its backports"
    );
    Ok(go.to_owned())
}

/// `go1.26.8` is 26.
fn minor(version: &str) -> Option<u32> {
    let rest = version.strip_prefix("go1.")?;
    rest.split(|c: char| !c.is_ascii_digit())
        .next()?
        .parse()
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_old_go_is_told_from_a_new_one() {
        assert_eq!(minor("go1.19.8"), Some(19));
        assert_eq!(minor("go1.26rc1"), Some(26));
        assert_eq!(minor("devel"), None);
    }
}
