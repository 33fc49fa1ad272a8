//! What the tests of the examples share: their YAML with other names, recorded data, and what their
//! services answer.

use std::{
    io::Write,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use flate2::{Compression, write::GzEncoder};
use millstream_e2e::{Apis, Data, Namespace, PATIENCE, eventually};
use serde_json::Value;

/// The root of the project.
pub fn root() -> PathBuf {
    let crate_folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    crate_folder.parent().unwrap_or(crate_folder).to_owned()
}

/// The DataPipeline of `examples/<name>/pipeline.yaml`: topic and keyspaces have names of this
/// test's own.
///
/// # Errors
/// When the file has no such pipeline.
pub fn pipeline(namespace: &Namespace, name: &str) -> Result<Value> {
    let path = root().join("examples").join(name).join("pipeline.yaml");
    let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let mut manifests: Vec<Value> = serde_saphyr::from_multiple(&text)?;
    manifests.retain(|manifest| manifest["kind"] == "DataPipeline");
    let mut pipeline = manifests.pop().context("a DataPipeline")?;
    ensure!(pipeline["metadata"]["name"] == name && manifests.is_empty());
    let spec = &mut pipeline["spec"];
    let renamed = |name: &Value| {
        name.as_str()
            .map_or(Value::Null, |name| namespace.unique(name).into())
    };
    spec["topic"]["name"] = renamed(&spec["topic"]["name"]);
    for sink in spec["sinks"].as_array_mut().context("sinks")? {
        for pointer in ["/cassandra/keyspace", "/state/keyspace"] {
            if let Some(keyspace) = sink.pointer_mut(pointer) {
                *keyspace = renamed(keyspace);
            }
        }
    }
    Ok(pipeline)
}

/// The server of the examples with recorded lines and more behind them, or with generated ones where
/// nothing recorded is at hand; and the lines that it serves, in the order of the file.
///
/// # Errors
/// When the server doesn't start, or doesn't give the file.
pub async fn recording<'a>(
    namespace: &'a Namespace,
    name: &str,
    recorded: &str,
    more: &[Value],
) -> Result<(Apis<'a>, Vec<Value>)> {
    let file = format!("{name}.ndjson.gz");
    let data = match std::fs::read(root().join("../shared/data").join(recorded)) {
        Ok(bytes) => {
            // One packed file behind another is a packed file.
            let mut packed = GzEncoder::new(bytes, Compression::default());
            for record in more {
                writeln!(packed, "{record}")?;
            }
            Data::File(&file, packed.finish()?)
        }
        Err(_) => Data::Generated(0),
    };
    let apis = Apis::start(namespace, data).await?;
    let text = apis.text(&format!("/files/{name}.ndjson")).await?;
    let lines = text.lines().map(serde_json::from_str);
    Ok((apis, lines.collect::<Result<_, _>>()?))
}

/// Waits until so many records are in the topic and every sink has acknowledged them.
///
/// # Errors
/// When it isn't so in time.
pub async fn stored(namespace: &Namespace, pipeline: &Value, records: usize) -> Result<()> {
    let name = pipeline["metadata"]["name"].as_str().context("a name")?;
    let spec = &pipeline["spec"];
    let topic = spec["topic"]["name"].as_str().context("a topic")?;
    eventually(PATIENCE, async || {
        let found = namespace.kafka.records(topic)?;
        ensure!(
            found == i64::try_from(records)?,
            "of {records} records {found} are in the topic"
        );
        Ok(())
    })
    .await?;
    for sink in spec["sinks"].as_array().context("sinks")? {
        let sink = sink["name"].as_str().context("a sink's name")?;
        namespace.drained(name, sink, topic, PATIENCE).await?;
    }
    Ok(())
}

/// What the pipeline's REST service answers, by way of the API server.
///
/// # Errors
/// When the answer isn't 200.
pub async fn get(namespace: &Namespace, pipeline: &str, path: &str) -> Result<String> {
    let path = format!(
        "/api/v1/namespaces/{}/services/{pipeline}-serve:http/proxy{path}",
        namespace.name
    );
    namespace.kubectl(&["get", "--raw", &path]).await?.ok()
}

/// As [`get`], of JSON.
///
/// # Errors
/// When the answer isn't 200, or isn't JSON.
pub async fn get_json(namespace: &Namespace, pipeline: &str, path: &str) -> Result<Value> {
    let text = get(namespace, pipeline, path).await?;
    serde_json::from_str(&text).with_context(|| text)
}
