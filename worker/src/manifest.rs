//! A file of resources, as `kubectl apply -f` takes it.

use std::{io::Read, path::Path};

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

/// Reads a file; `-` is the standard input.
pub fn read(path: &Path) -> anyhow::Result<Vec<Resource>> {
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
        .map(|document| resource(document, &definitions))
        .collect();
    anyhow::ensure!(!resources.is_empty(), "there is no resource in it");
    Ok(resources)
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
    let group = document["apiVersion"].as_str().unwrap_or_default();
    let is_ours = group.split('/').next() == Some(GROUP);
    let mut kinds = definitions.iter();
    let Some(definition) = kinds.find(|definition| definition.spec.names.kind == kind) else {
        let kinds = definitions
            .iter()
            .map(|definition| definition.spec.names.kind.as_str());
        let kinds = kinds.collect::<Vec<_>>().join(", ");
        return match is_ours || group.is_empty() {
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
