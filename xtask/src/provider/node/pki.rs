//! The certificates and tokens of one cluster, made anew for each.

use std::fs;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use anyhow::{Context, Result};

use super::layout::{API_SERVICE, NODE};
use crate::certificates::{authority, certificate, key, openssl};
use crate::oci::hex;

/// Who talks to the API server: user name, and the groups that RBAC knows them by.
pub(super) const USERS: [(&str, &str, &str); 6] = [
    ("admin", "admin", "system:masters"),
    ("controller-manager", "system:kube-controller-manager", ""),
    ("scheduler", "system:kube-scheduler", ""),
    ("proxy", "system:kube-proxy", ""),
    // Reads what it resolves, and that is what the built-in role of admins may.
    ("dns", "coredns", "system:masters"),
    ("kubelet", "system:node:node0", "system:nodes"),
];

/// Writes the authority, the server's and its client certificate, the key of service
/// account tokens and `tokens.csv`; gives the token of each of [`USERS`].
pub(super) fn create(folder: &Path) -> Result<Vec<String>> {
    fs::create_dir_all(folder)?;
    authority(folder, "ca", "/CN=millstream")?;
    let names = [
        "localhost",
        "kubernetes",
        "kubernetes.default",
        "kubernetes.default.svc",
        "kubernetes.default.svc.cluster.local",
    ]
    .map(|name| format!("DNS:{name}"))
    .join(",");
    let names = format!("subjectAltName={names},IP:127.0.0.1,IP:{NODE},IP:{API_SERVICE}");
    certificate(folder, "apiserver", "/CN=kube-apiserver", &names)?;
    let client = "extendedKeyUsage=clientAuth";
    certificate(
        folder,
        "kubelet-client",
        "/O=system:masters/CN=kube-apiserver",
        client,
    )?;
    key(folder, "service-account")?;
    openssl(
        folder,
        &[
            "ec",
            "-in",
            "service-account.key",
            "-pubout",
            "-out",
            "service-account.pub",
        ],
    )?;

    let tokens = USERS.iter().map(|_| random()).collect::<Result<Vec<_>>>()?;
    let lines = USERS
        .iter()
        .zip(&tokens)
        .map(|((id, user, group), token)| format!("{token},{user},{id},\"{group}\"\n"));
    write_secret(&folder.join("tokens.csv"), &lines.collect::<String>())?;
    Ok(tokens)
}

/// Writes a file that only root reads.
pub(super) fn write_secret(path: &Path, text: &str) -> Result<()> {
    let mut options = fs::OpenOptions::new();
    let file = options
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path);
    std::io::Write::write_all(
        &mut file.with_context(|| format!("writing {}", path.display()))?,
        text.as_bytes(),
    )?;
    Ok(())
}

fn random() -> Result<String> {
    let mut bytes = [0; 16];
    fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(hex(&bytes))
}
