//! The Java that runs the servers, and what `bench` compares with.

use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;

use anyhow::{Context, Result, ensure};

use crate::debian;
use crate::process::{self, SHORT};

/// Cassandra 5.0 runs on this one; Kafka and the registry need no newer.
const MAJOR: &str = "17";

pub struct Java {
    /// Absolute: the servers don't see this user's path.
    pub program: PathBuf,
    /// All it says of itself.
    pub version: String,
}

/// The `java` on the path.
///
/// # Errors
/// When there is none, or one of another version.
pub fn find() -> Result<&'static Java> {
    static JAVA: OnceLock<Java> = OnceLock::new();
    if let Some(java) = JAVA.get() {
        return Ok(java);
    }
    let program = debian::find("java").context("there is no `java` on the path")?;
    let version = process::output(Command::new(&program).arg("--version"), SHORT)?;
    ensure!(
        major(&version) == Some(MAJOR),
        "Cassandra 5.0 needs Java {MAJOR}, but {} says {}: put a Java {MAJOR} first on the path",
        program.display(),
        version.lines().next().unwrap_or_default()
    );
    Ok(JAVA.get_or_init(|| Java { program, version }))
}

/// `openjdk 17.0.15 2025-04-15` and the like.
fn major(version: &str) -> Option<&str> {
    version.split_whitespace().nth(1)?.split('.').next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_major_version_is_read() {
        assert_eq!(major("openjdk 17.0.15 2025-04-15\nOpenJDK …"), Some("17"));
        assert_eq!(major("java 21 2023-09-19 LTS"), Some("21"));
        assert_eq!(major(""), None);
    }
}
