//! `cargo xtask dist`: the container images, without a container engine.
//!
//! An image holds one stripped binary, the shared libraries that it is linked against, CA
//! certificates and time zones. There is no shell in it and no package manager, and it runs as a
//! user without rights.

mod layer;

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::install::root;
use crate::progress::Progress;
use crate::{debian, oci, process};

/// Stripping a binary of some hundred MB on a busy machine.
const STRIP: Duration = Duration::from_secs(120);
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// What to build.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  cargo xtask dist              images for trying out; the tag tells their content
  cargo xtask dist --release    images to publish, tagged with the version")]
pub struct Options {
    /// Optimise for publishing: smaller, faster, and long to build.
    #[arg(long)]
    release: bool,
}

/// An image as an OCI archive.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Image {
    /// `repository:tag`, as pods name it.
    pub reference: String,
    /// The archive, for `cargo xtask load`, `kind load image-archive` or `docker load`.
    pub archive: PathBuf,
    /// Size of the archive.
    pub bytes: u64,
}

/// All images.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Images {
    /// Reconciles the resources.
    pub operator: Image,
    /// Runs the stages of a pipeline.
    pub worker: Image,
    /// The server of the examples.
    pub apis: Image,
}

/// Builds the images and prints their names and sizes.
///
/// # Errors
/// As [`images`].
pub fn dist(options: &Options) -> Result<()> {
    let images = images(options.release, &Progress::new())?;
    for Image {
        reference,
        archive,
        bytes,
    } in [&images.operator, &images.worker, &images.apis]
    {
        let megabytes = *bytes as f64 / 1e6;
        println!("{reference}  {megabytes:.1} MB  {}", archive.display());
    }
    println!("listed in {}", list().display());
    Ok(())
}

/// The file that lists the images: name → [`Image`].
pub fn list() -> PathBuf {
    folder().join("images.json")
}

fn folder() -> PathBuf {
    root().join("target/dist")
}

/// Builds what is stale of the images.
///
/// # Errors
/// When the build fails, or a file that belongs into an image is missing.
pub fn images(release: bool, progress: &Progress) -> Result<Images> {
    debian::ensure(debian::BUILD, "build librdkafka", progress)?;
    let parts = ["binutils", "ca-certificates", "tzdata"];
    debian::ensure(&parts, "strip binaries and fill images", progress)?;
    let names = ["operator", "worker", "apis"].map(|name| format!("millstream-{name}"));
    let step = progress.step("building the binaries");
    let [operator, worker, apis] = build(names.each_ref().map(String::as_str), release)?;
    step.done("done");
    let step = progress.step("writing the images");
    let before = fs::read(list()).ok();
    let before = before.and_then(|bytes| serde_json::from_slice::<Images>(&bytes).ok());
    let before = before.as_ref();
    let images = thread::scope(|scope| {
        let operator =
            scope.spawn(|| image("operator", &operator, release, before.map(|b| &b.operator)));
        let worker = scope.spawn(|| image("worker", &worker, release, before.map(|b| &b.worker)));
        anyhow::Ok(Images {
            apis: image("apis", &apis, release, before.map(|b| &b.apis))?,
            operator: joined(operator)?,
            worker: joined(worker)?,
        })
    })?;
    fs::write(list(), serde_json::to_vec_pretty(&images)?)?;
    step.done("done");
    Ok(images)
}

fn joined<T>(thread: thread::ScopedJoinHandle<'_, T>) -> T {
    thread
        .join()
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Builds a program of the workspace, and says where it is.
///
/// # Errors
/// When it doesn't compile, or what that needs can't be installed.
pub fn binary(name: &str, progress: &Progress) -> Result<PathBuf> {
    debian::ensure(debian::BUILD, "build librdkafka", progress)?;
    build([name], false).map(|[path]| path)
}

/// Builds binaries of the workspace and gives their paths.
///
/// They are picked from the whole workspace and not by `--package`: the features of dependencies
/// are the same then for every command, and nothing heavy is compiled twice.
fn build<const N: usize>(names: [&str; N], release: bool) -> Result<[PathBuf; N]> {
    let mut cargo = process::cargo();
    cargo.stdout(Stdio::piped());
    cargo.args([
        "build",
        "--locked",
        "--message-format=json-render-diagnostics",
    ]);
    cargo.args(names.iter().flat_map(|name| ["--bin", name]));
    cargo.args(release.then_some("--release"));
    let mut child = cargo.spawn().context("starting cargo")?;
    let messages = BufReader::new(child.stdout.take().context("cargo's output")?);
    let mut built = names.map(|_| None);
    for message in messages.lines() {
        let Ok(message) = serde_json::from_str::<Value>(&message?) else {
            continue;
        };
        let name = message["target"]["name"].as_str();
        let place = names.iter().position(|wanted| Some(*wanted) == name);
        if let (Some(place), Some(path)) = (place, message["executable"].as_str()) {
            built[place] = Some(PathBuf::from(path));
        }
    }
    if !child.wait()?.success() {
        bail!("`{}` failed", process::shown(&cargo));
    }
    let paths: Vec<PathBuf> = built.into_iter().flatten().collect();
    let paths = paths.try_into().ok();
    paths.context("cargo built something else than it was asked for")
}

/// Writes an image, unless `before` is the same one.
fn image(name: &str, binary: &Path, release: bool, before: Option<&Image>) -> Result<Image> {
    let folder = folder();
    fs::create_dir_all(&folder)?;
    let stripped = tempfile::tempdir_in(&folder)?;
    let program = stripped.path().join(name);
    process::output(
        Command::new("strip").arg("-o").arg(&program).arg(binary),
        STRIP,
    )?;
    let entrypoint = format!("/usr/bin/millstream-{name}");
    let entries = layer::entries(&program, &entrypoint)?;
    let tag = match release {
        true => VERSION.to_owned(),
        // A cluster that has an image of that name already must not take it for this one.
        false => format!("{VERSION}-{}", &layer::digest(&entries)?[..12]),
    };
    let reference = format!("millstream/{name}:{tag}");
    let archive = folder.join(format!("{name}.tar"));
    let same = before.is_some_and(|before| before.reference == reference) && archive.exists();
    if release || !same {
        write(&archive, &reference, entrypoint, &entries)?;
    }
    let bytes = fs::metadata(&archive)?.len();
    Ok(Image {
        reference,
        archive,
        bytes,
    })
}

fn write(archive: &Path, reference: &str, entrypoint: String, files: &[oci::Entry]) -> Result<()> {
    let config = oci::Config {
        entrypoint: vec![entrypoint],
        user: "65532:65532".into(),
        env: vec!["PATH=/usr/bin".into()],
        working_dir: "/".into(),
    };
    // Container runtimes know an image by its full name, whatever short one a pod uses.
    oci::write(archive, &format!("docker.io/{reference}"), &config, files)
}
