//! Keys, authorities and certificates, made with the `openssl` that is there.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::Result;

use crate::process;

const DAYS: &str = "365";

/// Writes `<name>.key` and `<name>.crt` of an authority.
///
/// # Errors
/// When `openssl` fails.
pub fn authority(folder: &Path, name: &str, subject: &str) -> Result<()> {
    key(folder, name)?;
    let (key, certificate) = (format!("{name}.key"), format!("{name}.crt"));
    openssl(
        folder,
        &[
            "req",
            "-x509",
            "-new",
            "-key",
            &key,
            "-subj",
            subject,
            "-days",
            DAYS,
            "-out",
            &certificate,
        ],
    )
}

/// Writes `<name>.key` and `<name>.crt`, signed by the authority `ca` of the same folder.
///
/// # Errors
/// When `openssl` fails, or a file can't be written.
pub fn certificate(folder: &Path, name: &str, subject: &str, extension: &str) -> Result<()> {
    key(folder, name)?;
    let (key, request, extensions) = (
        format!("{name}.key"),
        format!("{name}.csr"),
        format!("{name}.ext"),
    );
    openssl(
        folder,
        &[
            "req", "-new", "-key", &key, "-subj", subject, "-out", &request,
        ],
    )?;
    fs::write(folder.join(&extensions), extension)?;
    let certificate = format!("{name}.crt");
    openssl(
        folder,
        &[
            "x509",
            "-req",
            "-in",
            &request,
            "-CA",
            "ca.crt",
            "-CAkey",
            "ca.key",
            "-CAcreateserial",
            "-days",
            DAYS,
            "-extfile",
            &extensions,
            "-out",
            &certificate,
        ],
    )
}

/// Writes `<name>.key`.
///
/// # Errors
/// When `openssl` fails.
pub fn key(folder: &Path, name: &str) -> Result<()> {
    let file = format!("{name}.key");
    openssl(
        folder,
        &[
            "ecparam",
            "-name",
            "prime256v1",
            "-genkey",
            "-noout",
            "-out",
            &file,
        ],
    )
}

/// Runs `openssl` in a folder.
///
/// # Errors
/// When it fails.
pub fn openssl(folder: &Path, arguments: &[&str]) -> Result<()> {
    process::run(Command::new("openssl").args(arguments).current_dir(folder))
}
