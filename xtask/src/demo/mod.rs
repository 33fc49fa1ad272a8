//! `cargo xtask demo`: from a fresh machine to an example's result, in one command.

mod examples;
mod servers;

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::builder::{PossibleValue, PossibleValuesParser};
use serde_json::Value;

use self::examples::{EXAMPLES, Example, Page, Until};
use crate::environment::{self, Environment};
use crate::install::{self, kubectl, root};
use crate::process::{self, SHORT};
use crate::progress::Progress;
use crate::{dist, provider, test};

/// Pods have to start, and all records to be stored, on a small machine.
const PATIENCE: Duration = Duration::from_secs(300);
/// Elements of a JSON array that are shown.
const SHOWN: usize = 3;

/// What the demo shows, and what it leaves.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  cargo xtask demo              users, and leaves everything up, to look around
  cargo xtask demo meetup       counts by venue; the table and the plot are in target/demo/meetup
  cargo xtask demo --once       takes everything down at the end")]
pub struct Options {
    /// Which of the examples.
    #[arg(default_value = "users", value_parser = names())]
    name: String,
    /// Take everything down at the end.
    #[arg(long)]
    once: bool,
}

fn names() -> PossibleValuesParser {
    let names = EXAMPLES.iter();
    names
        .map(|example| PossibleValue::new(example.name).help(example.about))
        .collect::<Vec<_>>()
        .into()
}

/// Brings everything up, applies an example, and shows its result.
///
/// # Errors
/// When the result doesn't come about, with what the pipeline says about it.
pub fn demo(options: &Options) -> Result<()> {
    let found = EXAMPLES.iter().find(|example| example.name == options.name);
    let example = found.context("there is no such example")?;
    let progress = Progress::new();
    let outcome = show(example, &progress, options.once);
    let gone = match options.once {
        true => provider::down(None),
        false => Ok(()),
    };
    progress.say(match outcome {
        Ok(()) => format!("demo: {} did what it promises", example.name),
        Err(_) => format!("demo: {} failed", example.name),
    });
    // Why it failed is worth more than what is left.
    outcome.and(gone)
}

fn show(example: &Example, progress: &Progress, once: bool) -> Result<()> {
    // Built first: a person who sees rows arrive shouldn't wait for a compiler to look at them.
    let shell = dist::binary("cql", progress)?;
    let (environment, images) = test::installed(progress)?;
    serve_apis(&environment, &images.apis.reference)?;
    servers::name(&environment)?;
    for claim in example.claims {
        volume(&environment, claim)?;
    }
    let manifests = root().join("examples").join(example.name);
    process::run(kubectl(&environment).arg("apply").arg("-f").arg(&manifests))?;
    await_result(example, &environment, progress)?;
    println!();
    print(kubectl(&environment).args(["get", "datapipelines,topics,keyspaces"]))?;
    for query in example.queries {
        cql(&shell, &environment, query)?;
    }
    if let Some((database, collection)) = example.documents {
        document(&shell, &environment, database, collection)?;
    }
    if let Some(key) = example.cached {
        cached(&environment, key)?;
    }
    for page in example.pages {
        ask(example, &environment, page)?;
    }
    if !once {
        println!("{}", next_steps(example, &environment));
    }
    Ok(())
}

/// The server that the examples read from.
fn serve_apis(environment: &Environment, image: &str) -> Result<()> {
    let apis = fs::read_to_string(root().join("examples/apis/deploy.yaml"))?;
    let published = concat!("millstream/apis:", env!("CARGO_PKG_VERSION"));
    install::apply(environment, &apis.replace(published, image))?;
    let rollout = [
        "-n",
        "millstream-examples",
        "rollout",
        "status",
        "deployment/apis",
        "--timeout=60s",
    ];
    process::output(kubectl(environment).args(rollout), Duration::from_secs(70))?;
    Ok(())
}

/// A volume for a claim, where the cluster has no storage class that makes one: a folder of this
/// machine, which is the cluster's node then.
fn volume(environment: &Environment, claim: &str) -> Result<()> {
    let classes = process::output(
        kubectl(environment).args(["get", "storageclasses", "--output=name"]),
        SHORT,
    )?;
    if !classes.trim().is_empty() {
        return Ok(());
    }
    let name = format!("persistentvolume/demo-{claim}");
    let phase = [
        "get",
        &name,
        "--ignore-not-found",
        "--output=jsonpath={.status.phase}",
    ];
    let phase = process::output(kubectl(environment).args(phase), SHORT)?;
    if phase.trim() == "Released" {
        // It waits for the claim that was deleted, and takes no other of that name. Its folder stays.
        process::output(kubectl(environment).args(["delete", &name]), SHORT)?;
    }
    let folder = environment::run_folder()?.join("volumes").join(claim);
    fs::create_dir_all(&folder)?;
    // Pods run as somebody else.
    fs::set_permissions(&folder, Permissions::from_mode(0o777))?;
    install::apply(
        environment,
        &format!(
            "apiVersion: v1
kind: PersistentVolume
metadata: {{name: demo-{claim}}}
spec:
  accessModes: [ReadWriteOnce]
  capacity: {{storage: 1Gi}}
  claimRef: {{namespace: default, name: {claim}}}
  hostPath: {{path: {folder}, type: Directory}}
  persistentVolumeReclaimPolicy: Retain
",
            folder = folder.display()
        ),
    )
}

fn await_result(example: &Example, environment: &Environment, progress: &Progress) -> Result<()> {
    let step = progress.step("rows in Cassandra");
    let resource = format!("datapipeline/{}", example.name);
    let described = |error: anyhow::Error| {
        // What it says is worth more than that it took too long.
        match print(kubectl(environment).args(["describe", &resource])) {
            Ok(()) => error,
            Err(other) => error.context(other),
        }
    };
    let wait = ["wait", "--for=condition=Ready", &resource, "--timeout=120s"];
    process::output(kubectl(environment).args(wait), Duration::from_secs(130))
        .with_context(|| format!("the pipeline {} doesn't get ready", example.name))
        .map_err(described)?;
    let rows = process::wait_until("rows", PATIENCE, || {
        let status = "jsonpath={.status.rows} {.status.lag} {.status.source.complete}";
        let status = ["get", &resource, "--output", status];
        let status = process::output(kubectl(environment).args(status), SHORT)?;
        let (rows, done) = done(example, &status);
        step.detail(|| format!("{rows} so far"));
        Ok(done.then_some(rows))
    })
    .map_err(described)?;
    step.done(format!("{rows}"));
    Ok(())
}

/// The rows, and whether there is enough to see, by the status' `rows lag complete`.
fn done(example: &Example, status: &str) -> (i64, bool) {
    let mut fields = status.split(' ');
    let rows = fields
        .next()
        .and_then(|rows| rows.parse().ok())
        .unwrap_or(0);
    let (lag, complete) = (fields.next(), fields.next());
    let done = match example.until {
        Until::Rows(enough) => rows >= enough,
        Until::Complete => rows > 0 && lag == Some("0") && complete == Some("true"),
    };
    (rows, done)
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

/// Prints a document.
fn document(
    shell: &Path,
    environment: &Environment,
    database: &str,
    collection: &str,
) -> Result<()> {
    println!("{database}> db.{collection}.findOne()");
    let mut command = Command::new(shell);
    let server = &environment.addresses.documents;
    command.args(["--documents", server, database, collection]);
    let found = process::output(&mut command, SHORT).context("asking for a document")?;
    println!("{found}");
    Ok(())
}

/// Prints the first element of a list in Redis, where its client is at hand: it comes with Debian's
/// server.
fn cached(environment: &Environment, key: &str) -> Result<()> {
    let server = format!("redis://{}", environment.addresses.redis);
    println!("$ redis-cli -u {server} LRANGE {key} 0 0");
    if !process::succeeds(Command::new("redis-cli").arg("--version"), SHORT) {
        println!("redis-cli isn't installed\n");
        return Ok(());
    }
    let mut command = Command::new("redis-cli");
    command.args(["-u", &server, "LRANGE", key, "0", "0"]);
    let found = process::output(&mut command, SHORT).context("asking Redis")?;
    println!("{found}");
    Ok(())
}

/// Asks the REST service, by way of the API server; shows what it says, or keeps it in a file.
fn ask(example: &Example, environment: &Environment, page: &Page) -> Result<()> {
    let (Page::Json(path) | Page::File(path, _)) = page;
    println!("GET {path}");
    let service = format!("services/{}-serve:http", example.name);
    let path = format!("/api/v1/namespaces/default/{service}/proxy{path}");
    // The pods of the service may still start when the rows are there.
    let answer = process::wait_until("an answer", Duration::from_secs(60), || {
        let answer = process::output(kubectl(environment).args(["get", "--raw", &path]), SHORT);
        Ok(answer.ok())
    })?;
    match page {
        Page::Json(_) => println!("{}\n", shortened(&answer)?),
        Page::File(_, name) => {
            let file = keep(example, name, &answer)?;
            println!("is in {}\n", file.display());
        }
    }
    Ok(())
}

/// The first elements of an array, or of `items`, a line each, and how many there are besides.
fn shortened(json: &str) -> Result<String> {
    let json: Value = serde_json::from_str(json).with_context(|| json.to_owned())?;
    let rows = json.get("items").unwrap_or(&json).as_array();
    let Some(rows) = rows else {
        return Ok(json.to_string());
    };
    let mut lines: Vec<_> = rows.iter().take(SHOWN).map(Value::to_string).collect();
    if let more @ 1.. = rows.len().saturating_sub(SHOWN) {
        lines.push(format!("… and {more} more"));
    }
    Ok(lines.join("\n"))
}

fn keep(example: &Example, name: &str, text: &str) -> Result<PathBuf> {
    let folder = root().join("target/demo").join(example.name);
    fs::create_dir_all(&folder)?;
    let file = folder.join(name);
    fs::write(&file, text).with_context(|| format!("writing {}", file.display()))?;
    Ok(file)
}

fn next_steps(example: &Example, environment: &Environment) -> String {
    let name = example.name;
    let tools = environment.kubectl.parent();
    let mut steps = vec![
        "Try next:".to_owned(),
        format!("export KUBECONFIG={}", environment.kubeconfig.display()),
    ];
    // On kind it is the one on the path.
    if let Some(tools) = tools.filter(|tools| !tools.as_os_str().is_empty()) {
        steps.push(format!("export PATH={}:$PATH", tools.display()));
    }
    if let Some(port) = example.port {
        steps.push(format!(
            "kubectl port-forward service/{name}-serve {port}      # and then:"
        ));
    }
    let at = &environment.addresses;
    let open = example.open.iter();
    steps.extend(open.map(|open| {
        open.replace("{registry}", &at.registry)
            .replace("{redis}", &at.redis)
            .replace("{documents}", &at.documents)
    }));
    for (command, what) in [
        (
            format!("kubectl get dp {name} --watch"),
            "lag and rows as they move",
        ),
        (
            format!("kubectl describe dp {name}"),
            "conditions and events",
        ),
        (
            format!("kubectl scale dp {name} --replicas=2"),
            "two process pods",
        ),
        (
            format!("kubectl delete -f examples/{name}/pipeline.yaml"),
            "the data stay",
        ),
        ("cargo xtask down".to_owned(), "everything goes"),
    ] {
        steps.push(format!("{command:<52} # {what}"));
    }
    steps.join("\n  ") + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example(name: &str) -> &'static Example {
        EXAMPLES
            .iter()
            .find(|example| example.name == name)
            .unwrap()
    }

    #[test]
    fn a_polled_source_is_done_with_rows_and_one_with_an_end_when_all_is_stored() {
        let (users, sessions) = (example("users"), example("sessions"));
        assert_eq!(done(users, "299 0 false"), (299, false));
        assert_eq!(done(users, "300 7 "), (300, true));
        assert_eq!(done(sessions, "9000 3 true"), (9000, false));
        assert_eq!(done(sessions, "9000 0 true"), (9000, true));
        assert_eq!(done(sessions, "  "), (0, false));
        assert_eq!(done(sessions, ""), (0, false));
    }

    #[test]
    fn long_answers_are_shortened() {
        let rows = shortened("[1,2,3,4,5]").unwrap();
        assert_eq!(rows, "1\n2\n3\n… and 2 more");
        assert_eq!(
            shortened(r#"{"count":1,"items":[{"a":1}]}"#).unwrap(),
            r#"{"a":1}"#
        );
        assert_eq!(shortened("7").unwrap(), "7");
        assert!(shortened("<html>").is_err());
    }
}
