//! Kubernetes itself: its programs, their order, and when it serves.

use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::layout::{API_PORT, Layout, NODE, NODE_NAME, SERVICES, address, text};
use super::namespaces::{Namespaces, Unit};
use super::units::Units;
use crate::process::{self, SHORT};
use crate::progress::Progress;

/// For a loaded machine; an idle one takes seconds.
const TIMEOUT: Duration = Duration::from_secs(180);
const ETCD: &str = "http://127.0.0.1:2379";
const ETCD_PEER: &str = "http://127.0.0.1:2380";

/// The names of the parts, in the order they start.
pub(super) const PARTS: [&str; 8] = [
    "etcd",
    "apiserver",
    "containerd",
    "controller-manager",
    "scheduler",
    "kubelet",
    "proxy",
    "dns",
];

/// The cluster in the node.
pub(super) struct Kubernetes<'a> {
    pub(super) layout: &'a Layout,
    pub(super) binaries: &'a Path,
}

impl Kubernetes<'_> {
    /// Starts what doesn't run and returns when pods can.
    pub(super) fn up(&self, node: &Namespaces, units: &Units, progress: &Progress) -> Result<()> {
        let step = progress.step("Kubernetes");
        // 1. What needs nothing.
        let mut first = false;
        first |= units.start(&self.etcd())?;
        first |= units.start(&self.apiserver())?;
        let runtime = units.start(&self.containerd())?;
        if runtime {
            self.import(node, units, &self.binaries.join("pause.tar"))?;
        }
        // 2. The API server: before its RBAC roles exist, the others give up or back off.
        units.wait("apiserver", "the API server is ready", TIMEOUT, || {
            self.api_is_ready()
        })?;
        // 3. What needs it.
        for unit in [
            self.controller_manager(),
            self.scheduler(),
            self.kubelet(),
            self.proxy(),
            self.dns(),
        ] {
            first |= units.start(&unit)?;
        }
        // 4. A pod can start.
        let ready = "the node is Ready";
        units.wait("kubelet", ready, TIMEOUT, || self.node_is_ready())?;
        let account = "the default service account exists";
        units.wait("controller-manager", account, TIMEOUT, || {
            process::run(self.kubectl().args(["get", "serviceaccount", "default"]))
        })?;
        if first || runtime {
            step.done("ready");
        }
        Ok(())
    }

    /// Gives an image archive to containerd.
    pub(super) fn load(&self, node: &Namespaces, image: &Path) -> Result<()> {
        let mut import = node.enter();
        import
            .args(["ctr", "--namespace", "k8s.io", "--address"])
            .arg(self.layout.containerd_socket())
            .args(["images", "import"])
            .arg(image);
        process::output(&mut import, Duration::from_secs(300))
            .map(drop)
            .with_context(|| format!("loading {}", image.display()))
    }

    pub(super) fn kubectl_path(&self) -> PathBuf {
        self.binaries.join("kubectl")
    }

    fn import(&self, node: &Namespaces, units: &Units, image: &Path) -> Result<()> {
        let image = image.canonicalize()?;
        units.wait("containerd", "containerd takes images", TIMEOUT, || {
            let socket = self.layout.containerd_socket();
            ensure!(socket.exists(), "there is no {}", socket.display());
            self.load(node, &image)
        })
    }

    fn kubectl(&self) -> Command {
        let mut kubectl = Command::new(self.kubectl_path());
        kubectl
            .arg("--kubeconfig")
            .arg(self.layout.kubeconfig())
            .arg("--request-timeout=5s")
            // Its discovery cache belongs to the cluster.
            .arg(format!(
                "--cache-dir={}",
                self.layout.run.join("kubectl").display()
            ));
        kubectl
    }

    fn api_is_ready(&self) -> Result<()> {
        // Saves a process for each question before there is anybody to answer.
        let address = SocketAddr::new(address(), API_PORT);
        TcpStream::connect_timeout(&address, SHORT).context("nothing listens yet")?;
        process::run(self.kubectl().args(["get", "--raw", "/readyz"]))
    }

    fn node_is_ready(&self) -> Result<()> {
        let path = r#"jsonpath={.status.conditions[?(@.type=="Ready")]}"#;
        let mut get = self.kubectl();
        let ready = process::output(get.args(["get", "node", NODE_NAME, "-o", path]), SHORT)?;
        ensure!(
            ready.contains(r#""status":"True""#),
            "the node says {ready}"
        );
        Ok(())
    }

    fn program(&self, name: &str) -> String {
        text(&self.binaries.join(name))
    }

    fn config(&self, name: &str) -> String {
        text(&self.layout.config().join(name))
    }

    fn pki(&self, name: &str) -> String {
        text(&self.layout.pki().join(name))
    }

    fn etcd(&self) -> Unit {
        let data = text(&self.layout.data("etcd"));
        Unit::new(
            "etcd",
            [
                self.program("etcd"),
                "--name=node0".into(),
                format!("--data-dir={data}"),
                format!("--listen-client-urls={ETCD}"),
                format!("--advertise-client-urls={ETCD}"),
                format!("--listen-peer-urls={ETCD_PEER}"),
                format!("--initial-advertise-peer-urls={ETCD_PEER}"),
                format!("--initial-cluster=node0={ETCD_PEER}"),
                // The data lives as long as the machine stays up.
                "--unsafe-no-fsync".into(),
                "--log-level=warn".into(),
            ],
        )
    }

    fn apiserver(&self) -> Unit {
        Unit::new(
            "apiserver",
            [
                self.program("kube-apiserver"),
                format!("--etcd-servers={ETCD}"),
                "--bind-address=0.0.0.0".into(),
                format!("--secure-port={API_PORT}"),
                format!("--advertise-address={NODE}"),
                format!("--tls-cert-file={}", self.pki("apiserver.crt")),
                format!("--tls-private-key-file={}", self.pki("apiserver.key")),
                format!("--client-ca-file={}", self.pki("ca.crt")),
                format!("--token-auth-file={}", self.pki("tokens.csv")),
                "--authorization-mode=Node,RBAC".into(),
                "--service-account-issuer=https://kubernetes.default.svc".into(),
                format!(
                    "--service-account-key-file={}",
                    self.pki("service-account.pub")
                ),
                format!(
                    "--service-account-signing-key-file={}",
                    self.pki("service-account.key")
                ),
                format!("--service-cluster-ip-range={SERVICES}"),
                "--allow-privileged=true".into(),
                format!(
                    "--kubelet-client-certificate={}",
                    self.pki("kubelet-client.crt")
                ),
                format!("--kubelet-client-key={}", self.pki("kubelet-client.key")),
                "--kubelet-preferred-address-types=InternalIP".into(),
                format!("--audit-policy-file={}", self.config("audit.yaml")),
                format!("--audit-log-path={}", text(&self.layout.audit_log())),
                "--profiling=false".into(),
            ],
        )
    }

    fn containerd(&self) -> Unit {
        Unit::new(
            "containerd",
            [
                "containerd".into(),
                "--config".into(),
                self.config("containerd.toml"),
            ],
        )
    }

    fn controller_manager(&self) -> Unit {
        let kubeconfig = self.config("controller-manager.kubeconfig");
        Unit::new(
            "controller-manager",
            [
                self.program("kube-controller-manager"),
                format!("--kubeconfig={kubeconfig}"),
                format!("--authentication-kubeconfig={kubeconfig}"),
                format!("--authorization-kubeconfig={kubeconfig}"),
                format!(
                    "--service-account-private-key-file={}",
                    self.pki("service-account.key")
                ),
                format!("--root-ca-file={}", self.pki("ca.crt")),
                "--use-service-account-credentials".into(),
                "--leader-elect=false".into(),
                "--bind-address=127.0.0.1".into(),
                "--secure-port=10257".into(),
                format!("--cert-dir={}", self.pki("controller-manager")),
            ],
        )
    }

    fn scheduler(&self) -> Unit {
        let kubeconfig = self.config("scheduler.kubeconfig");
        Unit::new(
            "scheduler",
            [
                self.program("kube-scheduler"),
                format!("--kubeconfig={kubeconfig}"),
                format!("--authentication-kubeconfig={kubeconfig}"),
                format!("--authorization-kubeconfig={kubeconfig}"),
                "--leader-elect=false".into(),
                "--bind-address=127.0.0.1".into(),
                "--secure-port=10259".into(),
                format!("--cert-dir={}", self.pki("scheduler")),
            ],
        )
    }

    fn kubelet(&self) -> Unit {
        Unit::new(
            "kubelet",
            [
                self.program("kubelet"),
                format!("--config={}", self.config("kubelet.yaml")),
                format!("--kubeconfig={}", self.config("kubelet.kubeconfig")),
                format!("--root-dir={}", text(&self.layout.run.join("kubelet"))),
                format!("--cert-dir={}", self.pki("kubelet")),
                format!("--hostname-override={NODE_NAME}"),
                format!("--node-ip={NODE}"),
            ],
        )
    }

    fn proxy(&self) -> Unit {
        Unit::new(
            "proxy",
            [
                self.program("kube-proxy"),
                format!("--config={}", self.config("proxy.yaml")),
            ],
        )
    }

    fn dns(&self) -> Unit {
        Unit::new(
            "dns",
            [
                self.program("coredns"),
                "-conf".into(),
                self.config("Corefile"),
            ],
        )
    }
}
