//! A file of resources, as `kubectl apply -f` takes it.

use std::{
    ffi::OsStr,
    io::Read,
    path::{Path, PathBuf},
};

use anyhow::Context;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use millstream_api::{
    DataPipeline, GROUP, Keyspace, Topic,
    admission::{Violation, admit, without_nulls},
    custom_resource_definitions,
};
use serde::de::DeserializeOwned;
use serde_json::Value;

/// A resource of a file.
pub struct Resource {
    /// Kind and name, such as `DataPipeline/users`.
    pub name: String,
    /// The resource, or why the API server wouldn't take it.
    pub content: Result<Content, Vec<String>>,
}

/// What a resource is.
pub enum Content {
    Pipeline(Box<DataPipeline>),
    Topic(Box<Topic>),
    Keyspace(Box<Keyspace>),
    /// Not of a kind of ours.
    Foreign,
}

/// Reads files, and the YAML and JSON files of folders; `-` is the standard input.
pub fn read(paths: &[PathBuf]) -> anyhow::Result<Vec<Resource>> {
    let mut resources = Vec::new();
    for path in paths {
        for file in files(path)? {
            resources.extend(read_file(&file)?);
        }
    }
    Ok(resources)
}

/// The files that a path stands for, in the order of their names.
fn files(path: &Path) -> anyhow::Result<Vec<PathBuf>> {
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let named = || format!("can't read {}", path.display());
    let mut files = Vec::new();
    for entry in std::fs::read_dir(path).with_context(named)? {
        let file = entry.with_context(named)?.path();
        let ending = file.extension().and_then(OsStr::to_str);
        if matches!(ending, Some("yaml" | "yml" | "json")) {
            files.push(file);
        }
    }
    files.sort();
    anyhow::ensure!(
        !files.is_empty(),
        "there is no .yaml, .yml or .json in {}",
        path.display()
    );
    Ok(files)
}

fn read_file(path: &Path) -> anyhow::Result<Vec<Resource>> {
    let named = || format!("can't read {}", path.display());
    let text = if path == Path::new("-") {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text).map(|_| text)
    } else {
        std::fs::read_to_string(path)
    };
    parse(&text.with_context(named)?).with_context(named)
}

/// Parses a file's documents.
pub fn parse(text: &str) -> anyhow::Result<Vec<Resource>> {
    let documents: Vec<Value> = serde_saphyr::from_multiple(text)?;
    let definitions = custom_resource_definitions();
    let documents = documents.into_iter().filter(|document| !document.is_null());
    let resources: Vec<_> = documents
        .flat_map(members)
        .map(|document| resource(document, &definitions))
        .collect();
    anyhow::ensure!(!resources.is_empty(), "there is no resource in it");
    Ok(resources)
}

/// What `kubectl get -o yaml` puts into a List; the document itself where it is none.
fn members(mut document: Value) -> Vec<Value> {
    let is_list = document["kind"] == "List";
    match document.get_mut("items") {
        Some(Value::Array(items)) if is_list => std::mem::take(items),
        _ => vec![document],
    }
}

fn resource(document: Value, definitions: &[CustomResourceDefinition]) -> Resource {
    let text = |value: &Value| value.as_str().unwrap_or("?").to_owned();
    let kind = text(&document["kind"]);
    Resource {
        name: format!("{kind}/{}", text(&document["metadata"]["name"])),
        content: content(&kind, document, definitions),
    }
}

fn content(
    kind: &str,
    document: Value,
    definitions: &[CustomResourceDefinition],
) -> Result<Content, Vec<String>> {
    if !document.is_object() {
        return Err(vec![
            "it isn't a resource: one has apiVersion, kind, metadata and spec".into(),
        ]);
    }
    let group = document["apiVersion"].as_str().unwrap_or_default();
    let is_ours = group.split('/').next() == Some(GROUP);
    let mut kinds = definitions.iter();
    let Some(definition) = kinds.find(|definition| definition.spec.names.kind == kind) else {
        let kinds = definitions
            .iter()
            .map(|definition| definition.spec.names.kind.as_str());
        let kinds = kinds.collect::<Vec<_>>().join(", ");
        return match is_ours || group.is_empty() {
            true if document["kind"].is_null() => {
                Err(vec![format!("kind: is required: one of {kinds}")])
            }
            true => Err(vec![format!("kind: `{kind}` is none of {kinds}")]),
            false => Ok(Content::Foreign),
        };
    };
    let violations = admit(definition, &document);
    if !violations.is_empty() {
        return Err(violations.iter().map(Violation::to_string).collect());
    }
    match kind {
        "DataPipeline" => typed(document).map(Content::Pipeline),
        "Topic" => typed(document).map(Content::Topic),
        _ => typed(document).map(Content::Keyspace),
    }
}

fn typed<T: DeserializeOwned>(document: Value) -> Result<Box<T>, Vec<String>> {
    let read = serde_json::from_value(without_nulls(document));
    read.map(Box::new).map_err(|error| vec![error.to_string()])
}
