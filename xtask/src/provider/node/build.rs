//! The node's programs, built from the Go modules that `xtask/node/go.mod` pins.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::cache;
use crate::go;
use crate::install::root;
use crate::oci;
use crate::process;
use crate::progress::Progress;

use super::layout::PAUSE_IMAGE;

const SOURCE: &str = "xtask/node";
const GO_MOD: &str = include_str!("../../../node/go.mod");
const GO_SUM: &str = include_str!("../../../node/go.sum");
const MAINS: [&str; 4] = [
    include_str!("../../../node/main.go"),
    include_str!("../../../node/cmd/coredns/main.go"),
    include_str!("../../../node/cmd/helm/tools.go"),
    include_str!("../../../node/cmd/pause/main.go"),
];
/// The names by which the one Kubernetes binary is called.
const CALLED: [&str; 7] = [
    "etcd",
    "kube-apiserver",
    "kube-controller-manager",
    "kube-scheduler",
    "kubelet",
    "kube-proxy",
    "kubectl",
];
const TIMEOUT: Duration = Duration::from_secs(3600);

/// The folder with all programs and the pause image; the first time takes minutes.
pub(super) fn binaries(progress: &Progress) -> Result<PathBuf> {
    let go = &go::version(&root().join(SOURCE))?;
    let flags = linker_flags()?;
    let mut parts = vec![GO_MOD, GO_SUM, go, &flags, PAUSE_IMAGE];
    parts.extend(MAINS);
    cache::entry("bin", &cache::key(&parts), |folder| {
        build(folder, &flags, progress)
    })
}

fn build(folder: &Path, flags: &str, progress: &Progress) -> Result<()> {
    let step = progress.step("building Kubernetes, etcd, CoreDNS and Helm (6 min on 2 cores)");
    let log = cache::root()?.join("go-build.log");
    let source = root().join(SOURCE);
    for (package, name) in [
        (".", "kubernetes"),
        ("./cmd/coredns", "coredns"),
        ("helm.sh/helm/v4/cmd/helm", "helm"),
        ("./cmd/pause", "pause"),
    ] {
        let mut build = go::command(&source);
        build
            .args([
                "build",
                "-v",
                "-trimpath",
                "-tags",
                "providerless",
                "-ldflags",
                flags,
                "-o",
            ])
            .args([folder.join(name).as_os_str(), package.as_ref()]);
        process::logged(&mut build, &log, &step, TIMEOUT)?;
    }
    for name in CALLED {
        symlink("kubernetes", folder.join(name))?;
    }
    let pause = oci::Entry::File {
        source: folder.join("pause"),
        dest: "/pause".to_owned(),
        mode: 0o755,
    };
    let config = oci::Config {
        entrypoint: vec!["/pause".to_owned()],
        user: "65535:65535".to_owned(),
        ..oci::Config::default()
    };
    oci::write(&folder.join("pause.tar"), PAUSE_IMAGE, &config, &[pause])?;
    fs::remove_file(folder.join("pause"))?;
    step.done("done");
    Ok(())
}

/// Without these the programs call themselves `v0.0.0-master+$Format`.
fn linker_flags() -> Result<String> {
    let version = kubernetes_version(GO_MOD)?;
    let Some((major, rest)) = version.trim_start_matches('v').split_once('.') else {
        bail!("go.mod names k8s.io/kubernetes {version}");
    };
    let minor = rest.split('.').next().unwrap_or(rest);
    let mut flags = "-s -w".to_owned();
    for package in [
        "k8s.io/component-base/version",
        "k8s.io/client-go/pkg/version",
    ] {
        for (name, value) in [
            ("gitVersion", version),
            ("gitMajor", major),
            ("gitMinor", minor),
            ("gitTreeState", "clean"),
            ("gitCommit", "module"),
            ("buildDate", "1970-01-01T00:00:00Z"),
        ] {
            flags.push_str(&format!(" -X {package}.{name}={value}"));
        }
    }
    Ok(flags)
}

fn kubernetes_version(go_mod: &str) -> Result<&str> {
    let mut lines = go_mod.lines().map(str::trim);
    lines
        .find_map(|line| line.strip_prefix("k8s.io/kubernetes "))
        .context("go.mod doesn't require k8s.io/kubernetes")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_programs_carry_the_version_of_the_module() {
        assert_eq!(kubernetes_version(GO_MOD).unwrap(), "v1.36.3");
        let flags = linker_flags().unwrap();
        assert!(
            flags.contains("-X k8s.io/client-go/pkg/version.gitMinor=36 "),
            "{flags}"
        );
    }
}
