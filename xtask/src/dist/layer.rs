//! What is in an image.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};

use crate::oci::{self, Entry};
use crate::process::{self, SHORT};

const CERTIFICATES: &str = "/etc/ssl/certs/ca-certificates.crt";
const ZONES: &str = "/usr/share/zoneinfo";
/// Copies of all zones in other forms, which programs don't read.
const OTHER_ZONES: [&str; 3] = ["posix", "right", "localtime"];

/// The files of an image whose program is `binary`, at `dest`.
///
/// # Errors
/// When a shared library or one of the system's files is missing.
pub fn entries(binary: &Path, dest: &str) -> Result<Vec<Entry>> {
    let mut entries = vec![
        text(
            "/etc/passwd",
            "nonroot:x:65532:65532::/:/usr/sbin/nologin\n",
        ),
        text("/etc/group", "nonroot:x:65532:\n"),
        // Names in /etc/hosts before those that a server knows.
        text("/etc/nsswitch.conf", "hosts: files dns\n"),
        Entry::Directory {
            dest: "/tmp".into(),
            mode: 0o1777,
        },
        file(Path::new(CERTIFICATES), CERTIFICATES, 0o644),
    ];
    zones(&mut entries, Path::new(ZONES))?;
    for library in libraries(binary)? {
        entries.push(file(Path::new(&library), &library, 0o755));
    }
    entries.push(file(binary, dest, 0o755));
    Ok(entries)
}

/// A hash of all that is in the image.
///
/// # Errors
/// When a file can't be read.
pub fn digest(entries: &[Entry]) -> Result<String> {
    let mut hash = Sha256::new();
    for entry in entries {
        hash.update(match entry {
            Entry::File { source, dest, mode } => {
                let content = fs::File::open(source).and_then(oci::sha256);
                let content = content.with_context(|| format!("reading {}", source.display()))?;
                format!("file {dest} {mode} {content}\n")
            }
            Entry::Bytes { bytes, dest, mode } => {
                format!("bytes {dest} {mode} {}\n", oci::sha256(bytes.as_slice())?)
            }
            Entry::Symlink { target, dest } => format!("symlink {dest} {target}\n"),
            Entry::Directory { dest, mode } => format!("directory {dest} {mode}\n"),
        });
    }
    Ok(oci::hex(&hash.finalize()))
}

fn text(dest: &str, text: &str) -> Entry {
    Entry::Bytes {
        bytes: text.into(),
        dest: dest.into(),
        mode: 0o644,
    }
}

fn file(source: &Path, dest: &str, mode: u32) -> Entry {
    Entry::File {
        source: source.into(),
        dest: dest.into(),
        mode,
    }
}

fn zones(entries: &mut Vec<Entry>, folder: &Path) -> Result<()> {
    let mut paths = fs::read_dir(folder)
        .with_context(|| format!("reading {}", folder.display()))?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<std::io::Result<Vec<PathBuf>>>()?;
    paths.sort();
    for path in paths {
        let name = path.file_name().and_then(|name| name.to_str());
        if folder == Path::new(ZONES) && name.is_some_and(|name| OTHER_ZONES.contains(&name)) {
            continue;
        }
        let dest = path.to_string_lossy().into_owned();
        if path.is_symlink() {
            let target = fs::read_link(&path)?.to_string_lossy().into_owned();
            entries.push(Entry::Symlink { target, dest });
        } else if path.is_dir() {
            zones(entries, &path)?;
        } else {
            entries.push(file(&path, &dest, 0o644));
        }
    }
    Ok(())
}

/// The shared libraries of a program, its loader among them, where the loader looks for them.
fn libraries(binary: &Path) -> Result<Vec<String>> {
    let output = process::output(Command::new("ldd").arg(binary), SHORT)?;
    parse_libraries(&output).with_context(|| format!("the libraries of {}", binary.display()))
}

/// `libm.so.6 => /lib/libm.so.6 (0x…)`, `/lib64/ld-linux.so.2 (0x…)`, `linux-vdso.so.1 (0x…)`.
fn parse_libraries(ldd: &str) -> Result<Vec<String>> {
    let mut libraries = Vec::new();
    for line in ldd.lines().map(str::trim) {
        let place = line.split_once(" => ").map_or(line, |(_, place)| place);
        if place.starts_with("not found") {
            bail!("{line}");
        }
        let path = place.split(" (").next().unwrap_or(place);
        if path.starts_with('/') {
            libraries.push(path.to_owned());
        }
    }
    libraries.sort();
    Ok(libraries)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_and_the_loader_are_found() {
        let ldd = "\tlinux-vdso.so.1 (0x00007ffc)
\tlibssl.so.3 => /lib/x86_64-linux-gnu/libssl.so.3 (0x00007f1)
\t/lib64/ld-linux-x86-64.so.2 (0x00007f2)\n";
        let libraries = parse_libraries(ldd).unwrap();
        assert_eq!(
            libraries,
            [
                "/lib/x86_64-linux-gnu/libssl.so.3",
                "/lib64/ld-linux-x86-64.so.2"
            ]
        );
        let error = parse_libraries("\tlibx.so.1 => not found").unwrap_err();
        assert!(error.to_string().contains("libx.so.1"), "{error}");
        assert!(parse_libraries("\tstatically linked").unwrap().is_empty());
    }

    #[test]
    fn another_content_is_another_digest() {
        let digest = |mode, content: &str| {
            let bytes = content.into();
            digest(&[Entry::Bytes {
                bytes,
                dest: "/a".into(),
                mode,
            }])
            .unwrap()
        };
        assert_eq!(digest(0o644, "x"), digest(0o644, "x"));
        assert_ne!(digest(0o644, "x"), digest(0o755, "x"));
        assert_ne!(digest(0o644, "x"), digest(0o644, "y"));
    }

    #[test]
    fn time_zones_are_there_once() {
        let mut entries = Vec::new();
        zones(&mut entries, Path::new(ZONES)).unwrap();
        let has = |wanted: &str| {
            entries.iter().any(|entry| match entry {
                Entry::File { dest, .. } | Entry::Symlink { dest, .. } => dest == wanted,
                _ => false,
            })
        };
        assert!(has("/usr/share/zoneinfo/Europe/Paris"));
        assert!(!has("/usr/share/zoneinfo/right/Europe/Paris"));
    }
}
