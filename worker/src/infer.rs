//! `infer`: a schema, or a whole pipeline to start from, out of what a source really gives.

mod key;
mod schema;
mod select;
mod shape;

use std::{path::PathBuf, process::ExitCode, time::Duration};

use anyhow::Context;
use bytes::Bytes;
use millstream_api::source::Source;
use millstream_plan::RecordSchema;
use serde_json::{Value, json};

use self::{
    key::Key,
    schema::Columns,
    select::Selection,
    shape::{Field, Shape},
};
use crate::{
    config::Credentials,
    decode::misfits,
    preview::duration,
    sample::{Sampled, Wanted, sample},
};

pub const EXAMPLES: &str = "\
Examples:
  The schema of an API's answers, whose records are in the array `results`:
    millstream-worker infer --url 'https://randomuser.me/api/?results=200' --records /results

  The same of one that asks for a token:
    millstream-worker infer --url https://api.example.com/orders --header \"Authorization: Bearer $TOKEN\"

  A whole pipeline to start from:
    millstream-worker infer --file licences.csv.gz --pipeline licences > pipeline.yaml
    millstream-worker check -f pipeline.yaml
    millstream-worker preview -f pipeline.yaml

Types are widened until they take every record that was read: integers to DOUBLE to TEXT; TIMESTAMP,
DATE and UUID only where every text is one. Read more records (--limit) to be surer.";

/// A schema is what a source is opened with; a column that isn't in it is given as it comes.
const UNKNOWN: &str = "unknown TEXT";
/// Longest name, of which a keyspace's is made.
const MAX_NAME: usize = 48;

/// Arguments of `infer`.
#[derive(clap::Args)]
pub struct Infer {
    #[command(flatten)]
    origin: Origin,
    /// JSON Pointer to the array of records, where they aren't the whole answer or file.
    #[arg(long)]
    records: Option<String>,
    /// Records to read.
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    limit: u32,
    /// A header of the requests, such as 'Authorization: Bearer TOKEN'; it isn't printed. In the pipeline it is
    /// `source.http.auth`, with a Secret.
    #[arg(long = "header", value_name = "NAME: VALUE", conflicts_with = "file")]
    headers: Vec<String>,
    /// How long to wait for them, such as `30s` or `2m`.
    #[arg(long, default_value = "30s", value_parser = duration)]
    timeout: Duration,
    /// Print a whole DataPipeline of this name: source, schema, SQL and key.
    #[arg(long, value_name = "NAME", value_parser = pipeline_name)]
    pipeline: Option<String>,
}

/// Where the records come from.
#[derive(clap::Args)]
#[group(required = true, multiple = false)]
struct Origin {
    /// An HTTP API that answers with JSON.
    #[arg(long)]
    url: Option<String>,
    /// A file, or the URL of one: NDJSON, a JSON array, CSV or Parquet, also compressed.
    #[arg(long)]
    file: Option<PathBuf>,
}

impl Infer {
    /// Whether everything in the file is text.
    fn is_csv(&self) -> bool {
        let name = self.origin.file.iter().map(|file| file.to_string_lossy());
        let mut names = name.map(|name| name.to_ascii_lowercase());
        names.any(|name| [".csv", ".tsv"].iter().any(|ending| name.contains(ending)))
    }
}

/// A header's name and value; the error doesn't show it.
fn header(text: &str) -> anyhow::Result<(String, String)> {
    let (name, value) = text
        .split_once(':')
        .context("--header: there is no `:` in it; write 'NAME: VALUE'")?;
    Ok((name.trim().to_owned(), value.trim().to_owned()))
}

/// A name for a pipeline, and for the sink, the keyspace and the table that are named after it.
fn pipeline_name(text: &str) -> Result<String, String> {
    let is_name = text.len() <= MAX_NAME
        && text.starts_with(|c: char| c.is_ascii_lowercase())
        && !text.ends_with('-')
        && text
            .chars()
            .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-');
    match is_name {
        true => Ok(text.to_owned()),
        false => Err(format!(
            "write a-z, 0-9 and `-`, a letter first and no `-` at the end, {MAX_NAME} at most"
        )),
    }
}

/// What was found out.
pub struct Inferred {
    /// Records that were read.
    records: usize,
    pub schema: String,
    selection: Selection,
    key: Option<Key>,
    /// What a person should know besides.
    notes: Vec<String>,
}

/// Reads, infers and prints.
pub async fn run(arguments: &Infer) -> anyhow::Result<ExitCode> {
    let fields = source_fields(arguments)?;
    let mut source: Source =
        serde_json::from_value(fields.clone()).context("can't read that source")?;
    if let Some(http) = &mut source.http {
        let headers = arguments.headers.iter().map(|text| header(text));
        for (name, value) in headers.collect::<anyhow::Result<Vec<_>>>()? {
            http.headers.insert(name, value);
        }
    }
    let credentials = Credentials::new(PathBuf::new());
    let wanted = Wanted {
        records: arguments.limit as usize,
        within: arguments.timeout,
    };
    let Sampled { records, rejected } =
        sample(&source, UNKNOWN, &credentials, None, wanted).await?;
    if let Some((_, reason)) = rejected.first() {
        let (lost, all) = (rejected.len(), records.len() + rejected.len());
        anyhow::ensure!(
            lost < all,
            "none of {all} records can be read; the first: {reason}"
        );
        eprintln!(
            "note: {lost} of {all} records can't be read and aren't looked at; the first: {reason}"
        );
    }
    let inferred = infer(&records, arguments.is_csv())?;
    for note in &inferred.notes {
        eprintln!("note: {note}");
    }
    match &arguments.pipeline {
        Some(name) => {
            if fields["file"]["path"].is_string() {
                eprintln!(
                    "note: the file's path is one of this machine; pods need it on a volume (source.file.volume), behind a URL or in S3"
                );
            }
            print!("{}", inferred.pipeline(name, &fields));
        }
        None => println!("{}", inferred.schema),
    }
    Ok(ExitCode::SUCCESS)
}

/// The source as it stands in a DataPipeline.
fn source_fields(arguments: &Infer) -> anyhow::Result<Value> {
    let (kind, mut fields) = match (&arguments.origin.url, &arguments.origin.file) {
        (Some(url), _) => {
            anyhow::ensure!(
                is_http(url),
                "--url {url}: begin it with http:// or https://"
            );
            ("http", json!({"url": url}))
        }
        (None, Some(file)) => {
            let text = file.to_string_lossy();
            match is_http(&text) {
                true => ("file", json!({"url": text})),
                false => ("file", json!({"path": std::path::absolute(file)?})),
            }
        }
        (None, None) => anyhow::bail!("give --url or --file"),
    };
    if let Some(records) = &arguments.records {
        fields["records"] = json!(records);
    }
    Ok(json!({ (kind): fields }))
}

fn is_http(url: &str) -> bool {
    url.starts_with("http://") || url.starts_with("https://")
}

/// Infers from records.
pub fn infer(records: &[Bytes], is_csv: bool) -> anyhow::Result<Inferred> {
    let values: Vec<Value> = records
        .iter()
        .filter_map(|record| serde_json::from_slice(record).ok())
        .collect();
    let objects: Vec<Value> = values.into_iter().filter(Value::is_object).collect();
    let mut notes = Vec::new();
    if objects.len() < records.len() {
        let others = records.len() - objects.len();
        notes.push(format!(
            "{others} of {} records aren't JSON objects",
            records.len()
        ));
    }
    let mut shape = Shape::Unknown;
    objects.iter().for_each(|object| shape.widen(object));
    if is_csv {
        shape.read_numbers();
    }
    let fields = match shape {
        Shape::Struct(fields) => fields,
        Shape::Unfit(why) => anyhow::bail!("the records have no fields in common: {why}"),
        _ => anyhow::bail!("none of the records is a JSON object; --records says where they are"),
    };
    notes.extend(hint(&objects, &fields));
    let columns = Columns::of(&fields);
    let schema = columns.schema();
    let parsed = RecordSchema::parse(&schema).context("the schema that was inferred")?;
    let misfits = misfits(&parsed, records).into_iter().take(3);
    notes.extend(misfits.map(|(record, reason)| format!("record {record} doesn't fit: {reason}")));
    let selection = Selection::of(&parsed, &columns)?;
    Ok(Inferred {
        records: records.len(),
        key: Key::of(&selection, &objects),
        schema,
        selection,
        notes,
    })
}

/// One record with a list in it is most often an answer with records in it.
fn hint(objects: &[Value], fields: &[Field]) -> Option<String> {
    let [only] = objects else { return None };
    fields.iter().find_map(|field| {
        let (name, items) = (&field.name, only[&field.name].as_array()?);
        let are_records = items.len() > 1 && items[0].is_object();
        are_records.then(|| {
            let count = items.len();
            format!("there is one record, with {count} objects in `{name}`; did you mean --records /{name}?")
        })
    })
}

impl Inferred {
    /// A DataPipeline to start from.
    fn pipeline(&self, name: &str, source: &Value) -> String {
        let source = source.as_object().into_iter().flatten();
        let source: String = source
            .map(|(kind, fields)| {
                let fields = fields.as_object().into_iter().flatten();
                let lines = fields.map(|(name, value)| format!("      {name}: {value}\n"));
                format!("    {kind}:\n{}", lines.collect::<String>())
            })
            .collect();
        let identifier = name.replace('-', "_");
        let (sql, key, note) = match &self.key {
            Some(key) => (self.selection.sql(&[]), vec![key.column.clone()], key.note()),
            None => (
                self.selection.sql(&["_partition AS partition", "_offset AS record"]),
                vec!["partition".to_owned(), "record".to_owned()],
                "no field is there in every record with values of its own: each record becomes a row of its own".into(),
            ),
        };
        format!(
            "# Inferred from {records}. What it would write: millstream-worker preview -f FILE
apiVersion: millstream.dev/v1alpha1
kind: DataPipeline
metadata:
  name: {name}
spec:
  source:
{source}  schema: |
{schema}
  sinks:
    - name: {name}
      sql: |
{sql}
      cassandra:
        keyspace: {identifier}
        table: {identifier}
        # {note}
        primaryKey: {{partitionKey: [{key}]}}
",
            records = match self.records {
                1 => "1 record".to_owned(),
                records => format!("{records} records"),
            },
            schema = indented(&self.schema, 4),
            sql = indented(&sql, 8),
            key = key.join(", "),
        )
    }
}

fn indented(text: &str, by: usize) -> String {
    let lines = text.lines().map(|line| format!("{:by$}{line}", ""));
    lines.collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests;
