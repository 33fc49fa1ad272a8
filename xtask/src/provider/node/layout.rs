//! The node's addresses, and where its files are.

use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};

/// The node as the machine and its pods reach it.
pub(super) const NODE: Ipv4Addr = Ipv4Addr::new(10, 97, 0, 2);
/// This machine as the node sees it.
pub(super) const HOST: Ipv4Addr = Ipv4Addr::new(10, 97, 0, 1);
pub(super) const API_PORT: u16 = 6400;
pub(super) const SERVICES: &str = "10.96.0.0/16";
/// The first address of [`SERVICES`]: `kubernetes.default.svc`.
pub(super) const API_SERVICE: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 1);
pub(super) const PODS: &str = "10.244.0.0/16";
pub(super) const NODE_NAME: &str = "node0";
pub(super) const CGROUP: &str = "/millstream";
pub(super) const PAUSE_IMAGE: &str = "millstream.local/pause:1";

pub(super) fn address() -> IpAddr {
    IpAddr::V4(NODE)
}

/// The run folder's inside.
#[derive(Debug, Clone)]
pub(super) struct Layout {
    pub(super) run: PathBuf,
}

impl Layout {
    pub(super) fn logs(&self) -> PathBuf {
        self.run.join("logs")
    }

    pub(super) fn log(&self, part: &str) -> PathBuf {
        self.logs().join(format!("{part}.log"))
    }

    pub(super) fn config(&self) -> PathBuf {
        self.run.join("config")
    }

    pub(super) fn pki(&self) -> PathBuf {
        self.run.join("pki")
    }

    pub(super) fn data(&self, part: &str) -> PathBuf {
        self.run.join("data").join(part)
    }

    /// For people and programs on this machine.
    pub(super) fn kubeconfig(&self) -> PathBuf {
        self.run.join("kubeconfig")
    }

    pub(super) fn audit_log(&self) -> PathBuf {
        self.logs().join("audit.jsonl")
    }

    pub(super) fn containerd_socket(&self) -> PathBuf {
        self.run.join("containerd.sock")
    }

    /// The folders outside the run folder that were made for it.
    pub(super) fn made_folders(&self) -> PathBuf {
        self.run.join("made-folders")
    }

    /// Made by process 1 once the namespaces are fit to live in.
    pub(super) fn namespaces_ready(&self) -> PathBuf {
        self.run.join("namespaces-ready")
    }
}

/// A path as configuration files want it.
pub(super) fn text(path: &Path) -> String {
    path.display().to_string()
}
