//! Where Kubernetes and the data services run: two providers behind one interface.

mod choice;
mod kind;
mod node;

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use self::choice::{choose, forget, record, recorded};
use crate::cache;
use crate::environment::{Environment, run_folder};
use crate::progress::Progress;
use crate::services::Service;

/// The providers by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ProviderName {
    /// Kubernetes in Docker; the services are pods from the public images.
    Kind,
    /// A one-node Kubernetes in namespaces of its own, from package registries alone.
    Node,
}

impl ProviderName {
    fn name(self) -> &'static str {
        match self {
            Self::Kind => "kind",
            Self::Node => "node",
        }
    }
}

/// What is done to a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Action {
    /// Starts it, and waits until it serves.
    Start,
    /// Ends its process.
    Stop,
    /// Stops it, and starts it again.
    Restart,
    /// Stands still, as a server does whose machine is out of breath.
    Pause,
    /// Goes on after a pause.
    Resume,
}

/// One part of what is up, for `status`.
pub struct Part {
    pub name: String,
    /// In a word or two, with the process id where there is one.
    pub state: String,
    pub address: String,
}

/// A place for Kubernetes and the services.
pub trait Provider {
    /// Fetches and builds ahead of time what takes minutes the first time. Where this machine can't
    /// run the provider, it says why.
    fn fetch(&self, progress: &Progress) -> Result<()>;
    /// Brings everything up, or up again what died; returns at once what already runs.
    fn up(&self, progress: &Progress) -> Result<Environment>;
    /// Leaves no process, interface, route or data.
    fn down(&self, progress: &Progress) -> Result<()>;
    /// Empty when nothing is up.
    fn parts(&self) -> Result<Vec<Part>>;
    fn service(&self, action: Action, service: Service, progress: &Progress) -> Result<()>;
    /// Gives images, as OCI archives, to the cluster.
    fn load(&self, images: &[PathBuf]) -> Result<()>;
}

const NOT_UP: &str = "nothing is up: run `cargo xtask up`";

fn provider(name: ProviderName) -> Result<Box<dyn Provider>> {
    Ok(match name {
        ProviderName::Kind => Box::new(kind::Kind::new()?),
        ProviderName::Node => Box::new(node::Node::new(run_folder()?)),
    })
}

/// One command at a time changes what runs.
fn exclusively() -> Result<std::fs::File> {
    cache::lock(&cache::root()?.join("run.lock"))
}

/// Fetches and builds what `up` starts, and starts nothing.
///
/// # Errors
/// What can't be fetched or built, why, and where its log is.
pub fn fetch(asked: Option<ProviderName>) -> Result<()> {
    provider(choose(asked)?)?.fetch(&Progress::new())
}

/// Brings everything up; safe to call when it is.
///
/// # Errors
/// The part that failed, why, and where its log is.
pub fn up(asked: Option<ProviderName>) -> Result<Environment> {
    let _lock = exclusively()?;
    let progress = Progress::new();
    let root = cache::root()?;
    let name = choose(asked)?;
    let chosen = provider(name)?;
    if recorded(&root)? != Some(name) {
        // Written down before anything starts, but not where this machine can't run it: `down`
        // couldn't either.
        chosen.fetch(&progress)?;
        record(&root, name)?;
    }
    let environment = chosen.up(&progress)?;
    environment.save()?;
    let at = &environment.addresses;
    progress.say(format!(
        "up: Kafka {}, Cassandra {}, Redis {}, registry {}, documents {}",
        at.kafka, at.cassandra, at.redis, at.registry, at.documents
    ));
    println!("export KUBECONFIG={}", environment.kubeconfig.display());
    Ok(environment)
}

/// # Errors
/// When something can't be removed.
pub fn down(asked: Option<ProviderName>) -> Result<()> {
    let _lock = exclusively()?;
    let progress = Progress::new();
    provider(choose(asked)?)?.down(&progress)?;
    forget(&cache::root()?)?;
    progress.say("down: nothing is left running");
    Ok(())
}

/// # Errors
/// With `json`, when nothing is up.
pub fn status(json: bool) -> Result<()> {
    let parts = match recorded(&cache::root()?)? {
        Some(name) => provider(name)?.parts()?,
        None => Vec::new(),
    };
    if json {
        let environment = Environment::load()?.filter(|_| !parts.is_empty());
        let environment = environment.context(NOT_UP)?;
        println!("{}", serde_json::to_string_pretty(&environment)?);
        return Ok(());
    }
    if parts.is_empty() {
        println!("{NOT_UP}");
        return Ok(());
    }
    for part in &parts {
        println!("{:<24} {:<24} {}", part.name, part.state, part.address);
    }
    let Some(environment) = Environment::load()? else {
        println!("\n`cargo xtask up` didn't come to its end: run it again, or `cargo xtask down`");
        return Ok(());
    };
    println!("\nlogs        {}", environment.logs.display());
    println!("kubeconfig  {}", environment.kubeconfig.display());
    Ok(())
}

/// # Errors
/// When nothing is up, or the service doesn't do as it is told.
pub fn service(action: Action, service: Service) -> Result<()> {
    let _lock = exclusively()?;
    let environment = running()?;
    provider(environment.provider)?.service(action, service, &Progress::new())
}

/// # Errors
/// When nothing is up, or an archive isn't an image.
pub fn load(images: &[PathBuf]) -> Result<()> {
    let _lock = exclusively()?;
    for image in images {
        if !image.is_file() {
            bail!("there is no {}", image.display());
        }
    }
    provider(running()?.provider)?.load(images)
}

/// # Errors
/// When nothing is up.
pub fn kubeconfig() -> Result<()> {
    println!("{}", running()?.kubeconfig.display());
    Ok(())
}

/// The environment that is up.
///
/// # Errors
/// When nothing is.
pub fn running() -> Result<Environment> {
    Environment::load()?.context(NOT_UP)
}
