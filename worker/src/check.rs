//! `check`: everything that the API server and the operator would refuse, without either.

mod claims;

use std::{path::PathBuf, process::ExitCode};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use millstream_api::{DataPipeline, DeletionPolicy, Keyspace, KeyspaceSpec, keyspace::TableSpec};
use millstream_plan::{
    Accepted, Refusal, accept, accept_keyspace, accept_topic,
    claim::{accept_cassandra, accept_made, made_name},
    claim_table, keyspace_manager,
};

use self::claims::Claims;
use crate::manifest::{self, Content, Resource};

pub const EXAMPLES: &str = "\
Examples:
  Before you apply:
    millstream-worker check -f pipeline.yaml

  In a build, with a chart's output:
    helm template . | millstream-worker check -f -

  Several files, and all of a folder, together:
    millstream-worker check -f keyspaces.yaml -f pipelines/

  What is in the cluster, before an upgrade:
    kubectl get millstream -o yaml | millstream-worker check -f -

The Keyspaces among them count as declared, and of two that claim one topic or keyspace the second is
refused; what is only in the cluster is not known. It fails where something would be refused; each line
says what, and the way out.";

/// Arguments of `check`.
#[derive(clap::Args)]
pub struct Check {
    /// A file of DataPipelines, Topics and Keyspaces, or a folder of such files; `-` is the standard
    /// input. May be given several times.
    #[arg(short, long, required = true)]
    file: Vec<PathBuf>,
}

/// What is to be said of a resource.
#[derive(Debug, PartialEq, Eq)]
pub struct Finding {
    /// Kind and name.
    pub resource: String,
    /// What it comes to, or what is wrong with it.
    pub verdict: Result<String, Vec<String>>,
}

/// Checks a file and prints what it finds, a line each; fails where something would be refused.
pub fn run(arguments: &Check) -> anyhow::Result<ExitCode> {
    let findings = check(manifest::read(&arguments.file)?);
    for Finding { resource, verdict } in &findings {
        match verdict {
            Ok(summary) => println!("{resource}: ok: {summary}"),
            Err(problems) => {
                for problem in problems {
                    println!("{resource}: {problem}");
                }
            }
        }
    }
    let refused = findings.iter().any(|finding| finding.verdict.is_err());
    Ok(if refused {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

/// Checks the resources of a file, together.
pub fn check(resources: Vec<Resource>) -> Vec<Finding> {
    let mut keyspaces = Vec::new();
    let mut claims = Claims::default();
    for resource in &resources {
        match &resource.content {
            Ok(Content::Keyspace(keyspace)) => keyspaces.push(declared_by_a_person(keyspace)),
            Ok(Content::Topic(topic)) => claims.note(topic),
            _ => {}
        }
    }
    let findings = resources.into_iter().map(|resource| Finding {
        resource: resource.name,
        verdict: resource.content.and_then(|content| {
            verdict(&content, &mut keyspaces, &mut claims)
                .map_err(|refusal| vec![format!("{}: {refusal}", refusal.reason())])
        }),
    });
    findings.collect()
}

fn verdict(
    content: &Content,
    keyspaces: &mut Vec<Keyspace>,
    claims: &mut Claims,
) -> Result<String, Refusal> {
    match content {
        Content::Pipeline(pipeline) => {
            let accepted = accept_beside(pipeline, keyspaces)?;
            claims.pipeline(pipeline)?;
            declare(pipeline, &accepted, keyspaces, claims)?;
            Ok(summary(pipeline, &accepted))
        }
        Content::Topic(topic) => {
            let name = topic.topic_name();
            accept_topic(&name)?;
            claims.topic(topic)?;
            Ok(format!("topic {name}"))
        }
        Content::Keyspace(keyspace) => {
            let name = keyspace.keyspace_name();
            accept_keyspace(&name, &keyspace.spec)?;
            claims.keyspace(keyspace)?;
            Ok(match keyspace.spec.tables.len() {
                1 => format!("keyspace {name} with 1 table"),
                tables => format!("keyspace {name} with {tables} tables"),
            })
        }
        Content::Foreign => Ok("not Millstream's, not looked at".into()),
    }
}

/// Checks a pipeline of a file that has these Keyspaces too.
pub fn accept_within(pipeline: &DataPipeline, keyspaces: &[Keyspace]) -> Result<Accepted, Refusal> {
    let keyspaces: Vec<_> = keyspaces.iter().map(declared_by_a_person).collect();
    accept_beside(pipeline, &keyspaces)
}

/// Checks a pipeline against the Keyspaces of its namespace.
fn accept_beside(pipeline: &DataPipeline, keyspaces: &[Keyspace]) -> Result<Accepted, Refusal> {
    accept_topic(&pipeline.topic_name())?;
    accept(pipeline, &beside(pipeline, keyspaces))
}

/// The Keyspaces of the pipeline's namespace.
fn beside(pipeline: &DataPipeline, keyspaces: &[Keyspace]) -> Vec<Keyspace> {
    let mut beside = keyspaces.to_vec();
    beside.retain(|keyspace| keyspace.metadata.namespace == pipeline.metadata.namespace);
    beside
}

fn summary(pipeline: &DataPipeline, accepted: &Accepted) -> String {
    let key = match accepted.key.as_slice() {
        [] => "without a key".to_owned(),
        key => format!("by {}", key.join(", ")),
    };
    let sinks: Vec<_> = pipeline
        .spec
        .sinks
        .iter()
        .map(|sink| format!("{} → {}", sink.name, sink.place()))
        .collect();
    format!(
        "topic {} {key}; {}",
        pipeline.topic_name(),
        sinks.join(", ")
    )
}

/// The Keyspace as it is in the cluster after `kubectl apply`.
fn declared_by_a_person(keyspace: &Keyspace) -> Keyspace {
    let mut declared = keyspace.clone();
    for table in &keyspace.spec.tables {
        claim_table(&mut declared, &table.name, "kubectl");
    }
    declared
}

/// Puts the tables that a pipeline declares where the next pipelines find them.
fn declare(
    pipeline: &DataPipeline,
    accepted: &Accepted,
    keyspaces: &mut Vec<Keyspace>,
    claims: &mut Claims,
) -> Result<(), Refusal> {
    let namespace = &pipeline.metadata.namespace;
    let manager = keyspace_manager(pipeline.metadata.name.as_deref().unwrap_or_default());
    for (name, tables) in &accepted.declared {
        let here = |keyspace: &Keyspace| {
            keyspace.metadata.namespace == *namespace && keyspace.keyspace_name() == *name
        };
        let index = match keyspaces.iter().position(here) {
            Some(index) => {
                if !is_alone(pipeline, &keyspaces[index]) {
                    accept_cassandra(pipeline, &keyspaces[index], None)?;
                }
                index
            }
            None => {
                accept_made(name, &beside(pipeline, keyspaces))?;
                let made = made_for_pipelines(pipeline, name);
                accept_keyspace(name, &made.spec)?;
                claims.keyspace(&made)?;
                keyspaces.push(made);
                keyspaces.len() - 1
            }
        };
        for table in tables {
            merge(&mut keyspaces[index].spec.tables, table);
            claim_table(&mut keyspaces[index], &table.name, &manager);
        }
    }
    Ok(())
}

/// Whether the operator made a Keyspace for this pipeline alone, and moves it with the pipeline: one that
/// comes from the cluster.
fn is_alone(pipeline: &DataPipeline, keyspace: &Keyspace) -> bool {
    let mut owners = keyspace.metadata.owner_references.iter().flatten();
    let uid = pipeline.metadata.uid.as_ref();
    let others = |owner: &OwnerReference| uid != Some(&owner.uid);
    owners.clone().next().is_some() && !owners.any(others)
}

/// The Keyspace that the operator makes where there is none.
fn made_for_pipelines(pipeline: &DataPipeline, name: &str) -> Keyspace {
    let spec = KeyspaceSpec {
        keyspace_name: Some(name.to_owned()),
        replication: None,
        durable_writes: None,
        tables: Vec::new(),
        deletion_policy: DeletionPolicy::default(),
        cassandra: pipeline.spec.cassandra.clone(),
    };
    let mut made = Keyspace::new(&made_name(name), spec);
    made.metadata
        .namespace
        .clone_from(&pipeline.metadata.namespace);
    made
}

fn merge(tables: &mut Vec<TableSpec>, table: &TableSpec) {
    let Some(known) = tables.iter_mut().find(|known| known.name == table.name) else {
        return tables.push(table.clone());
    };
    for column in &table.columns {
        if !known.columns.iter().any(|there| there.name == column.name) {
            known.columns.push(column.clone());
        }
    }
}

#[cfg(test)]
mod tests;
