//! Certificates for servers of tests.

use std::{
    path::Path,
    process::{Command, Stdio},
};

/// A certificate authority `NAME-ca.crt` in a folder, and a certificate of it for 127.0.0.1, `NAME.crt` with
/// `NAME.key`; none, and a word why, where there is no `openssl`.
pub fn make(folder: &Path, name: &str) -> Option<()> {
    let script = "set -e
        openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=ca -keyout ca.key -out $1-ca.crt
        openssl req -newkey rsa:2048 -nodes -subj /CN=$1 -keyout $1.key -out $1.csr
        echo subjectAltName=IP:127.0.0.1 > extensions
        openssl x509 -req -in $1.csr -CA $1-ca.crt -CAkey ca.key -days 2 -extfile extensions -out $1.crt";
    let shell = Command::new("sh")
        .args(["-c", script, "sh", name])
        .current_dir(folder)
        .stderr(Stdio::null())
        .status();
    let made = shell.unwrap().success();
    if !made {
        eprintln!("skipped: no openssl");
    }
    made.then_some(())
}
