//! `cargo xtask demo`: from a fresh machine to rows in Cassandra, in one command.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::environment::Environment;
use crate::install::{self, kubectl, root};
use crate::process::{self, SHORT};
use crate::progress::Progress;
use crate::{dist, provider, test};

/// The demo is a success with this many rows.
const ROWS: i64 = 300;

/// What the demo shows, and what it leaves.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  cargo xtask demo          leaves everything up, to look around
  cargo xtask demo --once   takes everything down at the end")]
pub struct Options {
    /// Take everything down at the end.
    #[arg(long)]
    once: bool,
}

/// Brings everything up, applies `examples/users`, and shows the rows.
///
/// # Errors
/// When rows don't arrive, with what the pipeline says about it.
pub fn demo(options: &Options) -> Result<()> {
    let progress = Progress::new();
    let outcome = show(&progress);
    if options.once {
        provider::down(None)?;
    }
    progress.say(match outcome {
        Ok(()) => "demo: rows are in Cassandra",
        Err(_) => "demo: failed",
    });
    outcome
}

fn show(progress: &Progress) -> Result<()> {
    // Built first: a person who sees rows arrive shouldn't wait for a compiler to look at them.
    let shell = dist::binary("cql")?;
    let (environment, images) = test::installed(progress)?;
    let apis = std::fs::read_to_string(root().join("examples/apis/deploy.yaml"))?;
    let published = concat!("millstream/apis:", env!("CARGO_PKG_VERSION"));
    install::apply(
        &environment,
        &apis.replace(published, &images.apis.reference),
    )?;
    let rollout = [
        "-n",
        "millstream-examples",
        "rollout",
        "status",
        "deployment/apis",
        "--timeout=60s",
    ];
    process::output(kubectl(&environment).args(rollout), Duration::from_secs(70))?;

    let pipeline = root().join("examples/users/pipeline.yaml");
    process::run(kubectl(&environment).arg("apply").arg("-f").arg(&pipeline))?;
    await_rows(&environment, progress)?;
    println!();
    print(kubectl(&environment).args(["get", "datapipelines,topics,keyspaces"]))?;
    cql(
        &shell,
        &environment,
        "SELECT count(*) AS rows FROM spark_streams.created_users",
    )?;
    cql(
        &shell,
        &environment,
        "SELECT first_name, last_name, gender, post_code, email, registered_date FROM spark_streams.created_users LIMIT 5",
    )?;
    println!("{}", next_steps(&environment));
    Ok(())
}

fn await_rows(environment: &Environment, progress: &Progress) -> Result<()> {
    let step = progress.step("rows in Cassandra");
    let wait = [
        "wait",
        "--for=condition=Ready",
        "datapipeline/users",
        "--timeout=90s",
    ];
    if let Err(error) = process::output(kubectl(environment).args(wait), Duration::from_secs(100)) {
        print(kubectl(environment).args(["describe", "datapipeline", "users"]))?;
        return Err(error.context("the pipeline users doesn't get ready"));
    }
    let rows = process::wait_until("rows", Duration::from_secs(90), || {
        let rows = [
            "get",
            "datapipeline",
            "users",
            "-o",
            "jsonpath={.status.rows}",
        ];
        let rows: i64 = process::output(kubectl(environment).args(rows), SHORT)?
            .parse()
            .unwrap_or(0);
        step.detail(|| format!("{rows} so far"));
        Ok((rows >= ROWS).then_some(rows))
    })?;
    step.done(format!("{rows}"));
    Ok(())
}

fn print(command: &mut Command) -> Result<()> {
    println!(
        "$ {}",
        process::shown(command).replace(&*command.get_program().to_string_lossy(), "kubectl")
    );
    println!("{}", process::output(command, SHORT)?);
    Ok(())
}

/// Prints the rows of a query.
fn cql(shell: &Path, environment: &Environment, query: &str) -> Result<()> {
    println!("cql> {query};");
    let mut command = Command::new(shell);
    command
        .args(["--contact-point", &environment.addresses.cassandra])
        .env("CASSANDRA_USERNAME", &environment.cassandra_user)
        .env("CASSANDRA_PASSWORD", &environment.cassandra_password)
        .arg(query);
    let rows = process::output(&mut command, SHORT).context("asking Cassandra")?;
    if rows.trim().is_empty() {
        bail!("no rows");
    }
    println!("{rows}");
    Ok(())
}

fn next_steps(environment: &Environment) -> String {
    format!(
        "Try next:
  export KUBECONFIG={kubeconfig}
  export PATH={tools}:$PATH
  kubectl get dp users --watch                       # lag and rows as they move
  kubectl describe dp users                          # conditions and events
  kubectl scale dp users --replicas=2                # two process pods
  kubectl delete -f examples/users/pipeline.yaml     # the data stay
  cargo xtask down                                   # everything goes
",
        kubeconfig = environment.kubeconfig.display(),
        tools = environment
            .kubectl
            .parent()
            .unwrap_or(&environment.kubectl)
            .display(),
    )
}
