//! A one-node Kubernetes and the data services, in namespaces of their own.
//!
//! No container registry and no container engine are needed: the programs come from the Go
//! module proxy, Maven Central and Debian. Nothing of the machine's network is touched but
//! for one interface and four routes, and nothing is left after `down`. Root is needed.
//!
//! What is up and what isn't is asked of the kernel each time, so a run that was killed at
//! any point is put right by the next: while process 1 of the node lives, `up` starts what is
//! missing and keeps the data; once it is gone, `up` begins with an empty run folder.

mod build;
mod cgroups;
mod config;
mod kubernetes;
mod layout;
mod mounts;
mod namespaces;
mod net;
mod pki;
mod units;

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;

use anyhow::{Context, Result, bail};

use self::kubernetes::Kubernetes;
use self::layout::{API_PORT, Layout, NODE, address};
use self::namespaces::{Namespaces, Unit};
use self::units::Units;
use super::{Action, NOT_UP, Part, Provider, ProviderName};
use crate::debian;
use crate::environment::{Addresses, Environment, KafkaTls};
use crate::progress::Progress;
use crate::services::{self, Place, Service};

const PACKAGES: &[&str] = &[
    "bash",
    "conntrack",
    "containerd",
    "containernetworking-plugins",
    "iproute2",
    "iptables",
    "openssl",
    "procps",
    "redis-server",
    "runc",
    "util-linux",
];

/// The provider `node`.
pub(super) struct Node {
    layout: Layout,
}

impl Node {
    pub(super) fn new(run: PathBuf) -> Self {
        Self {
            layout: Layout { run },
        }
    }

    fn find(&self) -> Option<Namespaces> {
        Namespaces::find(&self.layout)
    }

    /// Programs and jars; the first time takes minutes.
    fn programs(progress: &Progress) -> Result<PathBuf> {
        let why = "run Kubernetes, Kafka, Cassandra and Redis on this machine";
        debian::ensure(PACKAGES, why, progress)?;
        debian::ensure_program("java", "openjdk-17-jre-headless", "run Kafka", progress)?;
        debian::ensure_program("mvn", "maven", "fetch Kafka and Cassandra", progress)?;
        debian::ensure_program("go", "golang-go", "build Kubernetes", progress)?;
        thread::scope(|scope| {
            let jars = scope.spawn(|| {
                let mut services = Service::ALL.iter();
                services.try_for_each(|service| service.fetch(progress).map(drop))
            });
            let binaries = build::binaries(progress);
            join(jars)?;
            binaries
        })
    }

    /// The namespaces that are there, or new ones over an empty run folder.
    fn namespaces(&self, progress: &Progress) -> Result<Namespaces> {
        let node = match self.find() {
            Some(node) if self.layout.namespaces_ready().exists() => node,
            _ => {
                let step = progress.step("the node's namespaces");
                self.clear()?;
                fs::create_dir_all(self.layout.logs())?;
                mounts::create(&self.layout)?;
                config::write(&self.layout)?;
                let init = self.layout.config().join("init.sh");
                let node = Namespaces::create(&self.layout, &init)?;
                step.done("ready");
                node
            }
        };
        cgroups::create()?;
        net::connect(&node)?;
        Ok(node)
    }

    /// Ends the node and takes away what it leaves.
    fn clear(&self) -> Result<()> {
        namespaces::end_all(&self.layout)?;
        net::disconnect()?;
        cgroups::remove()?;
        mounts::remove(&self.layout)?;
        match fs::remove_dir_all(&self.layout.run) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("removing {}", self.layout.run.display()))
            }
            _ => Ok(()),
        }
    }

    fn start_service(&self, service: Service, units: &Units, progress: &Progress) -> Result<()> {
        let name = service.name();
        if !units.runs(name) {
            let step = progress.step(name);
            let place = Place {
                address: address(),
                data: &self.layout.data(name),
                config: &self.layout.config().join(name),
                java_options: service.fetch(progress)?,
            };
            let launch = service.launch(&place, progress)?;
            units.start(&Unit {
                name,
                program: launch.program.to_owned(),
                command: launch.command,
            })?;
            Self::await_service(service, units)?;
            step.done("ready");
            return Ok(());
        }
        // A test that was killed may have left it paused.
        units.resume(name)?;
        Self::await_service(service, units)
    }

    fn await_service(service: Service, units: &Units) -> Result<()> {
        let what = format!("{} answers", service.name());
        units.wait(service.name(), &what, service.start_timeout(), || {
            service.probe(address())
        })
    }

    fn environment(&self, binaries: &Path) -> Environment {
        let addresses = Addresses {
            kafka: format!("{NODE}:{}", Service::Kafka.port()),
            kafka_sasl: format!("{NODE}:{}", services::KAFKA_SASL_PORT),
            cassandra: format!("{NODE}:{}", Service::Cassandra.port()),
            redis: format!("{NODE}:{}", Service::Redis.port()),
            registry: format!(
                "http://{NODE}:{}{}",
                Service::Registry.port(),
                services::REGISTRY_API
            ),
            documents: format!("{NODE}:{}", Service::Documents.port()),
        };
        let kafka = self.layout.config().join(Service::Kafka.name());
        let certificates = services::kafka_certificates(&kafka);
        Environment {
            provider: ProviderName::Node,
            kubeconfig: self.layout.kubeconfig(),
            kubectl: binaries.join("kubectl"),
            helm: binaries.join("helm"),
            in_cluster: addresses.clone(),
            addresses,
            cassandra_user: services::CASSANDRA_USER.to_owned(),
            cassandra_password: services::CASSANDRA_PASSWORD.to_owned(),
            kafka_user: services::KAFKA_USER.to_owned(),
            kafka_password: services::KAFKA_PASSWORD.to_owned(),
            kafka_tls: Some(KafkaTls {
                servers: format!("{NODE}:{}", services::KAFKA_TLS_PORT),
                user: services::KAFKA_USER.to_owned(),
                password: services::KAFKA_PASSWORD.to_owned(),
                ca: certificates.join("ca.crt"),
                other_ca: certificates.join("other-ca.crt"),
            }),
            audit_log: Some(self.layout.audit_log()),
            logs: self.layout.logs(),
            services: Service::ALL.to_vec(),
        }
    }
}

impl Provider for Node {
    fn fetch(&self, progress: &Progress) -> Result<()> {
        require_root()?;
        Self::programs(progress).map(drop)
    }

    fn up(&self, progress: &Progress) -> Result<Environment> {
        require_root()?;
        let binaries = Self::programs(progress)?;
        let node = self.namespaces(progress)?;
        let units = Units::new(&node, &self.layout);
        let kubernetes = Kubernetes {
            layout: &self.layout,
            binaries: &binaries,
        };
        thread::scope(|scope| {
            let starts = Service::ALL.map(|service| {
                let units = &units;
                scope.spawn(move || self.start_service(service, units, progress))
            });
            let cluster = kubernetes.up(&node, &units, progress);
            starts.into_iter().try_for_each(join)?;
            cluster
        })?;
        if units.count_started() == 0 {
            progress.say("everything was up already");
        }
        Ok(self.environment(&binaries))
    }

    fn down(&self, progress: &Progress) -> Result<()> {
        require_root()?;
        let step = progress.step("stopping the node");
        self.clear()?;
        debian::tidy()?;
        step.done("done");
        Ok(())
    }

    fn parts(&self) -> Result<Vec<Part>> {
        let Some(node) = self.find() else {
            return Ok(Vec::new());
        };
        let running = node.running();
        let part = |name: &str, address: String| Part {
            name: name.to_owned(),
            state: match running.get(name) {
                Some(pid) => format!("runs, process {pid}"),
                None => "doesn't run".to_owned(),
            },
            address,
        };
        let kubernetes = kubernetes::PARTS.iter().map(|name| match *name {
            "apiserver" => part(name, format!("https://{NODE}:{API_PORT}")),
            name => part(name, String::new()),
        });
        let services = Service::ALL
            .iter()
            .map(|service| part(service.name(), format!("{NODE}:{}", service.port())));
        Ok(kubernetes.chain(services).collect())
    }

    fn service(&self, action: Action, service: Service, progress: &Progress) -> Result<()> {
        require_root()?;
        let node = self.find().context(NOT_UP)?;
        match action {
            Action::Pause => return node.signal(service.name(), "STOP"),
            Action::Resume => return node.signal(service.name(), "CONT"),
            Action::Start | Action::Stop | Action::Restart => {}
        }
        if action != Action::Start {
            let step = progress.step(format!("stopping {}", service.name()));
            node.stop(service.name())?;
            step.done("done");
        }
        if action != Action::Stop {
            let units = Units::new(&node, &self.layout);
            self.start_service(service, &units, progress)?;
        }
        Ok(())
    }

    fn load(&self, images: &[PathBuf]) -> Result<()> {
        require_root()?;
        let node = self.find().context(NOT_UP)?;
        let kubernetes = Kubernetes {
            layout: &self.layout,
            binaries: Path::new(""),
        };
        images
            .iter()
            .try_for_each(|image| kubernetes.load(&node, &image.canonicalize()?))
    }
}

fn require_root() -> Result<()> {
    if !debian::is_root()? {
        bail!(
            "the provider `node` makes network namespaces and needs root: run it as root \
             (`sudo -E env PATH=\"$PATH\" cargo xtask …`), or start a Docker engine, with `kind`, \
             `kubectl` and `helm` on the path"
        );
    }
    Ok(())
}

/// A thread that panicked has printed why; the panic goes on here.
fn join<T>(thread: thread::ScopedJoinHandle<'_, Result<T>>) -> Result<T> {
    thread
        .join()
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}
