//! `preview`: what a pipeline would write of the first records of its real source. It writes
//! nothing anywhere.

mod print;
mod rows;

use std::{path::PathBuf, process::ExitCode, sync::Arc, time::Duration};

use anyhow::Context;
use bytes::Bytes;
use clap::ValueEnum;
use millstream_api::{DataPipeline, Lookup, worker::SinkConfig};
use millstream_plan::{Accepted, RecordSchema, SinkPlan, plan_lookups};

use self::rows::{SinkRows, Topic};
use crate::{
    check::accept_within,
    config::Credentials,
    lookup::{self, Joined},
    manifest::{self, Content},
    sample::{Wanted, sample},
    sink::cassandra::connect,
    stage::key::Keys,
    status::Status,
};

pub const EXAMPLES: &str = "\
Examples:
  What would be written of the first ten records:
    millstream-worker preview -f pipeline.yaml

  One sink, more records, for a program:
    millstream-worker preview -f pipeline.yaml --sink created-users --limit 1000 -o json

  A source that needs a secret, as a file named as the operator names it:
    millstream-worker preview -f pipeline.yaml --credentials-dir ./credentials";

/// Arguments of `preview`.
#[derive(clap::Args)]
pub struct Preview {
    /// A file with a DataPipeline, and the Keyspaces that declare its tables; `-` is the standard
    /// input.
    #[arg(short, long)]
    file: PathBuf,
    /// Name of the DataPipeline, where the file has several.
    #[arg(long)]
    name: Option<String>,
    /// Only this sink; may be given several times.
    #[arg(long)]
    sink: Vec<String>,
    /// Records to read.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    limit: u32,
    /// How long to wait for them, such as `30s` or `2m`.
    #[arg(long, default_value = "30s", value_parser = duration)]
    timeout: Duration,
    /// The folder with the credentials of the source and the lookups, one file each.
    #[arg(
        long,
        env = "MILLSTREAM_CREDENTIALS_DIR",
        default_value = "/etc/millstream-credentials"
    )]
    credentials_dir: PathBuf,
    /// How the rows are written.
    #[arg(short, long, default_value = "table")]
    output: Output,
}

#[derive(Clone, Copy, ValueEnum)]
enum Output {
    /// For people.
    Table,
    /// One JSON object.
    Json,
}

/// A duration as Kubernetes writes it.
pub fn duration(text: &str) -> Result<Duration, String> {
    let duration: jiff::SignedDuration = text.parse().map_err(|_| "write such as 30s or 2m")?;
    duration.try_into().map_err(|_| "it is negative".to_owned())
}

/// What became of the records.
struct Previewed {
    records: Vec<Bytes>,
    /// Records that the topic wouldn't take: their index, and why.
    refused: Vec<(usize, String)>,
    sinks: Vec<SinkRows>,
}

/// Reads, runs the SQL and prints.
pub async fn run(arguments: &Preview) -> anyhow::Result<ExitCode> {
    let (pipeline, accepted) = pipeline(arguments)?;
    let previewed = preview(&pipeline, accepted.as_ref(), arguments).await?;
    match arguments.output {
        Output::Table => print!("{}", print::table(&previewed, print::terminal_width())),
        Output::Json => println!("{}", print::json(&previewed)?),
    }
    Ok(ExitCode::SUCCESS)
}

/// The pipeline of the file, and what the operator makes of it. A table may be declared in a
/// Keyspace that isn't in the file: then only the SQL is looked at.
fn pipeline(arguments: &Preview) -> anyhow::Result<(DataPipeline, Option<Accepted>)> {
    let mut pipelines = Vec::new();
    let mut keyspaces = Vec::new();
    for resource in manifest::read(&arguments.file)? {
        match resource.content {
            Ok(Content::Pipeline(pipeline)) => pipelines.push(*pipeline),
            Ok(Content::Keyspace(keyspace)) => keyspaces.push(*keyspace),
            Ok(_) => {}
            Err(problems) => anyhow::bail!("{}: {}", resource.name, problems.join("; ")),
        }
    }
    let name = |pipeline: &DataPipeline| pipeline.metadata.name.clone().unwrap_or_default();
    if let Some(wanted) = &arguments.name {
        pipelines.retain(|pipeline| name(pipeline) == *wanted);
    }
    let count = pipelines.len();
    let pipeline = match pipelines.pop() {
        Some(pipeline) if count == 1 => pipeline,
        None => anyhow::bail!("there is no such DataPipeline in the file"),
        Some(_) => anyhow::bail!("the file has {count} DataPipelines: choose one with --name"),
    };
    let accepted = match accept_within(&pipeline, &keyspaces) {
        Ok(accepted) => Some(accepted),
        Err(refusal) => {
            eprintln!("note: {refusal}");
            None
        }
    };
    Ok((pipeline, accepted))
}

async fn preview(
    pipeline: &DataPipeline,
    accepted: Option<&Accepted>,
    arguments: &Preview,
) -> anyhow::Result<Previewed> {
    let spec = &pipeline.spec;
    let schema = RecordSchema::parse(&spec.schema)?;
    let mut sinks: Vec<_> = spec.sinks.iter().collect();
    if !arguments.sink.is_empty() {
        for name in &arguments.sink {
            let known = sinks.iter().any(|sink| sink.name == *name);
            anyhow::ensure!(known, "there is no sink `{name}` in the pipeline");
        }
        sinks.retain(|sink| arguments.sink.contains(&sink.name));
    }
    // What is wrong with the SQL is told before the source is asked.
    let specs = accepted.map_or(&spec.lookups, |accepted| &accepted.lookups);
    let lookups = plan_lookups(specs)?;
    let plans = sinks
        .iter()
        .map(|sink| SinkPlan::joining(&schema, &lookups, &sink.name, &sink.sql));
    let plans = plans.collect::<Result<Vec<_>, _>>()?;
    let credentials = Credentials::new(arguments.credentials_dir.clone());
    let joined = load(pipeline, specs, &plans, &credentials, arguments.timeout).await?;
    let wanted = Wanted {
        records: arguments.limit as usize,
        within: arguments.timeout,
    };
    let records = sample(&spec.source, &spec.schema, &credentials, wanted).await?;
    let key = accepted.map_or(&spec.topic.key, |accepted| &accepted.key);
    let keys = Keys::new(key, &spec.schema)?;
    let (topic, refused) = Topic::of(&records, &keys);
    let mut previewed = Vec::with_capacity(plans.len());
    for ((sink, plan), joined) in sinks.into_iter().zip(plans).zip(joined) {
        let mut tables = accepted.iter().flat_map(|accepted| &accepted.sinks);
        let config = tables.find(|known| known.name == sink.name);
        let table = config.and_then(SinkConfig::cassandra).map(|to| &to.table);
        let rows = topic
            .through(sink, &plan, joined, table)
            .with_context(|| format!("sink `{}`", sink.name))?;
        previewed.push(rows);
    }
    Ok(Previewed {
        records,
        refused,
        sinks: previewed,
    })
}

/// Reads the lookups; what each of the queries joins of them.
async fn load(
    pipeline: &DataPipeline,
    specs: &[Lookup],
    plans: &[SinkPlan],
    credentials: &Credentials,
    within: Duration,
) -> anyhow::Result<Vec<Joined>> {
    let is_joined = |spec: &Lookup| {
        let mut names = plans.iter().flat_map(SinkPlan::lookups);
        spec.cassandra.is_some() && names.any(|name| name == spec.name)
    };
    let session = match specs.iter().find(|spec| is_joined(spec)) {
        Some(spec) => {
            let connection = pipeline.spec.cassandra.as_ref().with_context(|| {
                format!("lookup `{}`: write into spec.cassandra where Cassandra is, as the operator's default isn't known here", spec.name)
            })?;
            let status = Arc::new(Status::default()).part("lookups");
            let connecting = connect(connection, credentials, std::slice::from_ref(&status));
            let connected = tokio::time::timeout(within, connecting).await;
            Some(connected.context("Cassandra can't be reached")??)
        }
        None => None,
    };
    let loaders = lookup::loaders(specs, plans, session.as_ref(), credentials)?;
    for loader in &loaders {
        loader.load_once().await?;
    }
    let joined = plans.iter().map(|plan| lookup::joined(&loaders, plan));
    Ok(joined.collect())
}
