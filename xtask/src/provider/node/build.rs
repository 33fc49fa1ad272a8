//! The node's programs, built from the Go modules that `xtask/node/go.mod` pins.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::cache;
use crate::oci;
use crate::process;
use crate::progress::Progress;

use super::layout::PAUSE_IMAGE;

const SOURCE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/node");
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
/// The first question may download the toolchain.
const FETCH_GO: Duration = Duration::from_secs(600);
const TIMEOUT: Duration = Duration::from_secs(3600);

/// The folder with all programs and the pause image; the first time takes minutes.
pub(super) fn binaries(progress: &Progress) -> Result<PathBuf> {
    let go = process::output(go().args(["env", "GOVERSION"]), FETCH_GO).context(
        "Go can't be used: put Go 1.26 on the path, or 1.21 or newer, which fetches it by itself",
    )?;
    let go = go.trim();
    ensure!(
        go_minor(go).is_some_and(|minor| minor >= 21),
        "{go} is too old to build Kubernetes: put Go 1.26 first on the path (or 1.21 or newer, \
         which fetches it by itself); Debian has newer ones in its backports"
    );
    let flags = linker_flags()?;
    let mut parts = vec![GO_MOD, GO_SUM, go, &flags, PAUSE_IMAGE];
    parts.extend(MAINS);
    cache::entry("bin", &cache::key(&parts), |folder| {
        build(folder, &flags, progress)
    })
}

/// `go1.26.8` is 26.
fn go_minor(version: &str) -> Option<u32> {
    let rest = version.strip_prefix("go1.")?;
    rest.split(|c: char| !c.is_ascii_digit())
        .next()?
        .parse()
        .ok()
}

fn build(folder: &Path, flags: &str, progress: &Progress) -> Result<()> {
    let step = progress.step("building Kubernetes, etcd, CoreDNS and Helm (6 min on 2 cores)");
    let log = cache::root()?.join("go-build.log");
    for (package, name) in [
        (".", "kubernetes"),
        ("./cmd/coredns", "coredns"),
        ("helm.sh/helm/v4/cmd/helm", "helm"),
        ("./cmd/pause", "pause"),
    ] {
        let mut build = go();
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

fn go() -> Command {
    let mut go = Command::new("go");
    go.current_dir(SOURCE)
        // Debian's Go is told not to fetch the version that go.mod asks for.
        .env("GOTOOLCHAIN", "auto")
        .env("CGO_ENABLED", "0")
        .env("GOFLAGS", "-buildvcs=false -mod=readonly");
    go
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
    fn an_old_go_is_told_from_a_new_one() {
        assert_eq!(go_minor("go1.19.8"), Some(19));
        assert_eq!(go_minor("go1.26rc1"), Some(26));
        assert_eq!(go_minor("devel"), None);
    }

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
