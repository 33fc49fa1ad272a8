//! `preview`: what a pipeline would write of the first records of its real source. It writes
//! nothing anywhere.

mod print;
mod rows;
mod secrets;

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use anyhow::Context;
use bytes::Bytes;
use clap::ValueEnum;
use millstream_api::{
    DataPipeline, Lookup,
    pipeline::Encoding,
    sink::Sink,
    source::{Source, Start},
};
use millstream_plan::{Accepted, RecordSchema, SinkPlan, plan_lookups};

use self::rows::{SinkRows, Topic};
use crate::{
    avro::encode::Encode,
    cassandra::connect,
    check::accept_within,
    config::Credentials,
    lookup::{self, Joined},
    manifest::{self, Content},
    sample::{Sampled, Wanted, sample},
    source::{Connections, Purpose},
    stage::key::Keys,
    status::Status,
};

pub const EXAMPLES: &str = "\
Examples:
  What would be written of the first ten records:
    millstream-worker preview -f pipeline.yaml

  One sink, more records, for a program:
    millstream-worker preview -f pipeline.yaml --sink created-users --limit 1000 -o json

  A pipeline with Secrets: what is missing is told, with the commands that get it.
    millstream-worker preview -f pipeline.yaml --credentials-dir ./credentials

  The newest records of a topic, in place of its oldest:
    millstream-worker preview -f pipeline.yaml --latest

  Files of a pod's volume, such as /lookups/countries/countries.csv, out of ./pod/lookups/countries:
    millstream-worker preview -f pipeline.yaml --root ./pod

It writes nothing anywhere: no topic, no table, no offset, no position. A topic is read up to its end,
and no consumer group is joined. Schedules and pipelines that come before are not waited for.";

/// Arguments of `preview`.
#[derive(clap::Args)]
pub struct Preview {
    /// A file with a DataPipeline, and the Keyspaces that declare its tables, or a folder of such
    /// files; `-` is the standard input. May be given several times.
    #[arg(short, long, required = true)]
    file: Vec<PathBuf>,
    /// Name of the DataPipeline, where there are several.
    #[arg(long)]
    name: Option<String>,
    /// Only this sink; may be given several times.
    #[arg(long)]
    sink: Vec<String>,
    /// Records to read.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    limit: u32,
    /// Of a topic, read the last records of each partition in place of the first ones.
    #[arg(long)]
    latest: bool,
    /// How long to wait for them, such as `30s` or `2m`.
    #[arg(long, default_value = "30s", value_parser = duration)]
    timeout: Duration,
    /// The folder with the credentials of the source and the lookups, one file each, named as in the
    /// pods. Those that are missing are told.
    #[arg(
        long,
        env = "MILLSTREAM_CREDENTIALS_DIR",
        default_value = "/etc/millstream-credentials"
    )]
    credentials_dir: PathBuf,
    /// A folder that stands for `/` of the pods: files of their volumes are read out of it.
    #[arg(long)]
    root: Option<PathBuf>,
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
    /// What the source can't make records of, and why.
    unreadable: Vec<(Bytes, String)>,
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
    let names = pipelines.iter().map(name).collect::<Vec<_>>().join(", ");
    anyhow::ensure!(
        !pipelines.is_empty(),
        "there is no DataPipeline in the file"
    );
    if let Some(wanted) = &arguments.name {
        pipelines.retain(|pipeline| name(pipeline) == *wanted);
    }
    let only = pipelines.len() == 1;
    let pipeline = match (pipelines.pop(), &arguments.name) {
        (Some(pipeline), _) if only => pipeline,
        (None, Some(wanted)) => {
            anyhow::bail!("there is no DataPipeline `{wanted}`; there are {names}")
        }
        _ => anyhow::bail!("choose one of the DataPipelines with --name: {names}"),
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
    let sinks = sinks(&spec.sinks, &arguments.sink)?;
    // What is wrong with the SQL is told before the source is asked.
    let mut specs = accepted.map_or_else(|| spec.lookups.clone(), |known| known.lookups.clone());
    let lookups = plan_lookups(&specs)?;
    let plans = sinks
        .iter()
        .map(|sink| SinkPlan::joining(&schema, &lookups, &sink.name, &sink.sql));
    let plans = plans.collect::<Result<Vec<_>, _>>()?;
    let mut source = source(&spec.source, arguments.latest)?;
    if let Some(root) = &arguments.root {
        move_below(root, &mut source, &mut specs);
    }
    let connections = connections(pipeline, arguments.limit)?;
    let credentials = Credentials::new(arguments.credentials_dir.clone());
    secrets::ensure_there(pipeline, &specs, &plans, &credentials)?;
    let joined = load(pipeline, &specs, &plans, &credentials, arguments.timeout).await?;
    let wanted = Wanted {
        records: arguments.limit as usize,
        within: arguments.timeout,
    };
    let Sampled {
        records,
        rejected: unreadable,
    } = sample(&source, &spec.schema, &credentials, connections, wanted).await?;
    let key = accepted.map_or(&spec.topic.key, |accepted| &accepted.key);
    let keys = Keys::new(key, &spec.schema)?;
    let encode = match spec.topic.encoding {
        Encoding::Json => None,
        Encoding::Avro => Some(Encode::new(&schema, &pipeline.topic_name(), 0)?),
    };
    let (topic, refused) = Topic::of(&records, &keys, encode);
    let mut previewed = Vec::with_capacity(plans.len());
    for ((sink, plan), joined) in sinks.into_iter().zip(plans).zip(joined) {
        let mut configs = accepted.iter().flat_map(|accepted| &accepted.sinks);
        let config = configs.find(|known| known.name == sink.name);
        let rows = topic
            .through(sink, &plan, joined, config)
            .with_context(|| format!("sink `{}`", sink.name))?;
        previewed.push(rows);
    }
    Ok(Previewed {
        records,
        unreadable,
        refused,
        sinks: previewed,
    })
}

/// The sinks of these names; all of them where there are no names.
fn sinks<'a>(all: &'a [Sink], names: &[String]) -> anyhow::Result<Vec<&'a Sink>> {
    let known: Vec<_> = all.iter().map(|sink| sink.name.as_str()).collect();
    if let Some(name) = names.iter().find(|name| !known.contains(&name.as_str())) {
        let known = known.join(", ");
        anyhow::bail!("there is no sink `{name}` in the pipeline; there are {known}");
    }
    let chosen = all.iter();
    let chosen = chosen.filter(|sink| names.is_empty() || names.contains(&sink.name));
    Ok(chosen.collect())
}

/// The source, begun at its end where that is asked for.
fn source(source: &Source, latest: bool) -> anyhow::Result<Source> {
    let mut source = source.clone();
    if latest {
        let topic = source.topic.as_mut();
        topic
            .context("--latest is for a pipeline whose source is a topic")?
            .start = Start::Latest;
    }
    Ok(source)
}

/// Has files of the pods read out of a folder that stands for `/`.
fn move_below(root: &Path, source: &mut Source, lookups: &mut [Lookup]) {
    let files = source.files_mut().map(|files| &mut files.path);
    let lookups = lookups.iter_mut().filter_map(|lookup| lookup.file.as_mut());
    let paths = files.into_iter().chain(lookups.map(|file| &mut file.path));
    for path in paths.flatten() {
        let moved = root.join(path.trim_start_matches('/'));
        *path = moved.to_string_lossy().into_owned();
    }
}

/// What a source needs that is a topic; none where it is another.
fn connections(pipeline: &DataPipeline, limit: u32) -> anyhow::Result<Option<Connections<'_>>> {
    let spec = &pipeline.spec;
    let Some(topic) = &spec.source.topic else {
        return Ok(None);
    };
    let kafka = topic.kafka.as_ref().or(spec.kafka.as_ref());
    Ok(Some(Connections {
        kafka: kafka.context("the source is a topic: write into spec.kafka, or into spec.source.topic.kafka, where Kafka is, as the operator's default isn't known here")?,
        registry: spec.schema_registry.as_ref(),
        purpose: Purpose::Look(limit),
    }))
}

/// Reads the lookups; what each of the queries joins of them.
async fn load(
    pipeline: &DataPipeline,
    specs: &[Lookup],
    plans: &[SinkPlan],
    credentials: &Credentials,
    within: Duration,
) -> anyhow::Result<Vec<Joined>> {
    let mut joined = specs.iter().filter(|spec| is_joined(spec, plans));
    let session = match joined.find(|spec| spec.cassandra.is_some()) {
        Some(spec) => {
            let connection = pipeline.spec.cassandra.as_ref().with_context(|| {
                format!("lookup `{}`: write into spec.cassandra where Cassandra is, as the operator's default isn't known here", spec.name)
            })?;
            let status = Arc::new(Status::default()).part("lookups");
            let connecting = connect(connection, credentials, vec![status])?;
            let connected = tokio::time::timeout(within, connecting.clone()).await;
            connected.context("Cassandra can't be reached")?;
            Some(connecting)
        }
        None => None,
    };
    let loaders = lookup::loaders(specs, plans, session.as_ref(), credentials)?;
    for loader in &loaders {
        let loaded = tokio::time::timeout(within, loader.load_once()).await;
        loaded.with_context(|| {
            format!("a lookup isn't read within {within:?}; --timeout gives it longer")
        })??;
    }
    let joined = plans.iter().map(|plan| lookup::joined(&loaders, plan));
    Ok(joined.collect())
}

/// Whether one of the queries joins a lookup.
fn is_joined(lookup: &Lookup, plans: &[SinkPlan]) -> bool {
    let mut names = plans.iter().flat_map(SinkPlan::lookups);
    names.any(|name| name == lookup.name)
}

#[cfg(test)]
mod tests;
