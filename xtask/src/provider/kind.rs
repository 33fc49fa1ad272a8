//! Kubernetes in Docker, with the data services as pods from the public images.
//!
//! Written against kind's documented interface and held by tests of what it generates; it
//! hasn't been run where the project is built, because no Docker engine is there.

use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::{Action, Part, Provider, ProviderName};
use crate::debian;
use crate::environment::{Addresses, Environment, run_folder};
use crate::process::{self, SHORT};
use crate::progress::Progress;
use crate::services::{self, Service};
use crate::template::render;

const CLUSTER: &str = "millstream";
const NAMESPACE: &str = "millstream-services";
const CLUSTER_YAML: &str = include_str!("../../kind/cluster.yaml");
const SERVICES_YAML: &str = include_str!("../../kind/services.yaml");
/// Port on this machine's loopback, and the node port behind it.
const PORTS: [(u16, u16); 6] = [
    (9092, 30092),
    (9094, 30094),
    (9042, 30042),
    (6379, 30379),
    (8081, 30081),
    (27017, 30017),
];
/// Images come over the network.
const PULL: Duration = Duration::from_secs(900);
const HOST: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
/// Taken from the path.
const PROGRAMS: [&str; 3] = ["kind", "kubectl", "helm"];
const KAFKA_CONFIGS: &str = "/opt/kafka/bin/kafka-configs.sh";

/// The provider `kind`.
pub(super) struct Kind {
    run: PathBuf,
}

/// Whether there is a Docker engine.
pub(super) fn engine_answers() -> bool {
    let mut docker = Command::new("docker");
    process::succeeds(docker.arg("info"), Duration::from_secs(5))
}

/// The programs that this provider needs and the path doesn't have.
pub(super) fn missing_programs() -> Vec<&'static str> {
    let missing = |name: &&str| debian::find(name).is_none();
    PROGRAMS.into_iter().filter(missing).collect()
}

/// A program and its arguments.
type Words = Vec<String>;

fn words(line: &str) -> Words {
    line.split_whitespace().map(str::to_owned).collect()
}

fn cluster_config() -> Result<String> {
    let ports = PORTS.map(|(host, node)| {
        format!("      - {{containerPort: {node}, hostPort: {host}, listenAddress: 127.0.0.1}}")
    });
    render(
        CLUSTER_YAML,
        &[("name", CLUSTER), ("ports", &ports.join("\n"))],
    )
}

fn services_manifest() -> Result<String> {
    render(SERVICES_YAML, &[("namespace", NAMESPACE)])
}

/// SCRAM users can't be given to the image: they are altered in once the broker serves.
fn scram_user(user: &str, password: &str) -> Words {
    let mut command = words(&format!("kubectl exec --namespace {NAMESPACE} kafka-0 --"));
    command.extend(words(&format!(
        "{KAFKA_CONFIGS} --bootstrap-server localhost:9092 --alter --entity-type users \
         --entity-name {user} --add-config SCRAM-SHA-512=[password={password}]"
    )));
    command
}

fn stop(service: Service) -> [Words; 2] {
    let name = service.name();
    [
        words(&format!(
            "kubectl scale --namespace {NAMESPACE} statefulset/{name} --replicas=0"
        )),
        words(&format!(
            "kubectl wait --namespace {NAMESPACE} --for=delete pod/{name}-0 --timeout=120s"
        )),
    ]
}

fn start(service: Service) -> [Words; 2] {
    let name = service.name();
    [
        words(&format!(
            "kubectl scale --namespace {NAMESPACE} statefulset/{name} --replicas=1"
        )),
        words(&format!(
            "kubectl rollout status --namespace {NAMESPACE} statefulset/{name} --timeout=600s"
        )),
    ]
}

impl Kind {
    pub(super) fn new() -> Result<Self> {
        Ok(Self { run: run_folder()? })
    }

    fn kubeconfig(&self) -> PathBuf {
        self.run.join("kubeconfig")
    }

    /// Written when `kind create` has come to its end: a killed one leaves half a cluster.
    fn created(&self) -> PathBuf {
        self.run.join("kind-created")
    }

    fn exists(&self) -> Result<bool> {
        let mut list = Command::new("kind");
        let listed = process::output(list.args(["get", "clusters"]), SHORT)
            .context("kind can't be used: does a Docker engine answer?")?;
        Ok(listed.lines().any(|line| line == CLUSTER))
    }

    fn create(&self, progress: &Progress) -> Result<()> {
        let step = progress.step("creating the kind cluster");
        self.delete()?;
        fs::create_dir_all(self.run.join("logs"))?;
        let config = self.run.join("kind.yaml");
        fs::write(&config, cluster_config()?)?;
        let mut create = Command::new("kind");
        create
            .args(["create", "cluster", "--wait", "180s", "--config"])
            .arg(config)
            .arg("--kubeconfig")
            .arg(self.kubeconfig());
        process::logged(&mut create, &self.run.join("logs/kind.log"), &step, PULL)?;
        fs::write(self.created(), "")?;
        step.done("done");
        Ok(())
    }

    fn delete(&self) -> Result<()> {
        let mut delete = Command::new("kind");
        delete
            .args(["delete", "cluster", "--name", CLUSTER, "--kubeconfig"])
            .arg(self.kubeconfig());
        process::output(&mut delete, Duration::from_secs(120))?;
        if self.run.exists() {
            fs::remove_dir_all(&self.run)?;
        }
        Ok(())
    }

    fn execute(&self, command: &Words) -> Result<String> {
        let (program, arguments) = command.split_first().context("a command has a program")?;
        let mut command = Command::new(program);
        command.args(arguments).env("KUBECONFIG", self.kubeconfig());
        process::output(&mut command, PULL)
    }

    fn serve(&self, service: Service, progress: &Progress) -> Result<()> {
        let step = progress.step(service.name());
        for command in start(service) {
            self.execute(&command).with_context(|| {
                format!("kubectl logs --namespace {NAMESPACE} {}-0", service.name())
            })?;
        }
        process::wait_until(
            &format!("{} answers", service.name()),
            service.start_timeout(),
            || Ok(service.probe(HOST).ok()),
        )?;
        step.done("ready");
        Ok(())
    }
}

impl Provider for Kind {
    /// Docker pulls the images while they are started. The rest is for the user to install.
    fn fetch(&self, _: &Progress) -> Result<()> {
        let missing = missing_programs();
        if !missing.is_empty() {
            bail!(
                "the provider `kind` needs programs that aren't on the path: {} (see \
                 https://kind.sigs.k8s.io)",
                missing.join(", ")
            );
        }
        self.exists().map(drop)
    }

    fn up(&self, progress: &Progress) -> Result<Environment> {
        if !(self.exists()? && self.created().exists()) {
            self.create(progress)?;
        }
        let manifest = self.run.join("services.yaml");
        fs::write(&manifest, services_manifest()?)?;
        self.execute(&words(&format!(
            "kubectl apply --filename {}",
            manifest.display()
        )))?;
        for service in Service::ALL {
            self.serve(service, progress)?;
        }
        for (user, password) in services::KAFKA_USERS {
            self.execute(&scram_user(user, password))?;
        }
        Ok(environment(&self.run))
    }

    fn down(&self, progress: &Progress) -> Result<()> {
        let step = progress.step("deleting the kind cluster");
        self.delete()?;
        step.done("done");
        Ok(())
    }

    fn parts(&self) -> Result<Vec<Part>> {
        if !self.exists()? {
            return Ok(Vec::new());
        }
        let parts = Service::ALL.iter().map(|service| Part {
            name: service.name().to_owned(),
            state: match service.probe(HOST) {
                Ok(()) => "serves".to_owned(),
                Err(error) => format!("{error:#}"),
            },
            address: format!("{HOST}:{}", service.port()),
        });
        Ok(parts.collect())
    }

    fn service(&self, action: Action, service: Service, progress: &Progress) -> Result<()> {
        if matches!(action, Action::Pause | Action::Resume) {
            bail!("a service of kind can't be paused; the provider `node` can");
        }
        if action != Action::Start {
            for command in stop(service) {
                self.execute(&command)?;
            }
        }
        match action {
            Action::Start | Action::Restart => self.serve(service, progress),
            _ => Ok(()),
        }
    }

    fn load(&self, images: &[PathBuf]) -> Result<()> {
        for image in images {
            let mut load = Command::new("kind");
            load.args(["load", "image-archive", "--name", CLUSTER])
                .arg(image);
            process::output(&mut load, Duration::from_secs(300))?;
        }
        Ok(())
    }
}

fn environment(run: &std::path::Path) -> Environment {
    let api = services::REGISTRY_API;
    let inside = |name: &str, port: u16| format!("{name}.{NAMESPACE}:{port}");
    Environment {
        provider: ProviderName::Kind,
        kubeconfig: run.join("kubeconfig"),
        // From the path, as kind's users have them.
        kubectl: "kubectl".into(),
        helm: "helm".into(),
        addresses: Addresses {
            kafka: format!("{HOST}:9092"),
            kafka_sasl: format!("{HOST}:9094"),
            cassandra: format!("{HOST}:9042"),
            redis: format!("{HOST}:6379"),
            registry: format!("http://{HOST}:8081{api}"),
            documents: format!("{HOST}:27017"),
        },
        in_cluster: Addresses {
            kafka: inside("kafka", 29092),
            kafka_sasl: inside("kafka", 29094),
            cassandra: inside("cassandra", 9042),
            redis: inside("redis", 6379),
            registry: format!("http://{}{api}", inside("registry", 8081)),
            documents: inside("documents", 27017),
        },
        cassandra_user: services::CASSANDRA_USER.to_owned(),
        cassandra_password: services::CASSANDRA_PASSWORD.to_owned(),
        kafka_user: services::KAFKA_USER.to_owned(),
        kafka_password: services::KAFKA_PASSWORD.to_owned(),
        kafka_tls: None,
        audit_log: None,
        logs: run.join("logs"),
        services: Service::ALL.to_vec(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cluster_maps_the_services_to_loopback() {
        insta::assert_snapshot!(cluster_config().unwrap());
    }

    #[test]
    fn the_commands_are_those_that_kubectl_documents() {
        let commands = [
            scram_user("app", "secret"),
            stop(Service::Kafka)[0].clone(),
            stop(Service::Kafka)[1].clone(),
            start(Service::Kafka)[0].clone(),
            start(Service::Kafka)[1].clone(),
        ];
        let lines: Vec<_> = commands.iter().map(|words| words.join(" ")).collect();
        insta::assert_snapshot!(lines.join("\n"));
    }

    #[test]
    fn every_service_has_a_pod_and_every_mapped_port_a_node_port() {
        let manifest = services_manifest().unwrap();
        let documents: Vec<serde_json::Value> = serde_saphyr::from_multiple(&manifest).unwrap();
        let of_kind = |kind: &str| -> Vec<_> {
            let found = documents.iter().filter(|document| document["kind"] == kind);
            found.cloned().collect()
        };
        let mut names: Vec<_> = of_kind("StatefulSet")
            .iter()
            .map(|set| set["metadata"]["name"].as_str().unwrap().to_owned())
            .collect();
        names.sort();
        let mut expected = Service::ALL.map(|service| service.name().to_owned());
        expected.sort();
        assert_eq!(names, expected);

        let mut node_ports: Vec<_> = of_kind("Service")
            .iter()
            .flat_map(|service| service["spec"]["ports"].as_array().unwrap().clone())
            .filter_map(|port| Some((port["port"].as_u64()?, port["nodePort"].as_u64()?)))
            .collect();
        node_ports.sort_unstable();
        let mut mapped = PORTS.map(|(host, node)| (u64::from(host), u64::from(node)));
        mapped.sort_unstable();
        assert_eq!(node_ports, mapped);
    }
}
