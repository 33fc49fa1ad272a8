//! What one resource of the files claims, and no other can have: the name of a Topic, a topic of a
//! Kafka, a keyspace of a Cassandra. In the cluster the older wins, here the first; but as there, a
//! pipeline never gets the name of a Topic that isn't its own.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use millstream_api::{CassandraConnection, DataPipeline, KafkaConnection, Keyspace, Topic};
use millstream_plan::{
    Refusal,
    claim::{keyspace_conflict, name_conflict, same_cassandra, same_kafka, topic_conflict},
};

/// What is claimed so far.
#[derive(Default)]
pub struct Claims {
    /// Names of Topics, within a namespace.
    names: Vec<Claim<Option<String>>>,
    topics: Vec<Claim<Option<KafkaConnection>>>,
    keyspaces: Vec<Claim<Option<CassandraConnection>>>,
}

struct Claim<W> {
    /// The resource, as messages tell of it.
    by: String,
    name: String,
    within: W,
}

impl Claims {
    /// Notes the name of a Topic that is in the files.
    pub fn note(&mut self, topic: &Topic) {
        self.names.push(Claim {
            by: claimant("Topic", &topic.metadata),
            name: topic.metadata.name.clone().unwrap_or_default(),
            within: topic.metadata.namespace.clone(),
        });
    }

    /// A Topic claims its topic.
    pub fn topic(&mut self, topic: &Topic) -> Result<(), Refusal> {
        let by = claimant("Topic", &topic.metadata);
        self.claim_topic(by, topic.topic_name(), &topic.spec.kafka)
    }

    /// A pipeline claims the names and the topics of its two Topics.
    pub fn pipeline(&mut self, pipeline: &DataPipeline) -> Result<(), Refusal> {
        let meta = &pipeline.metadata;
        let by = claimant("DataPipeline", meta);
        let own = meta.name.clone().unwrap_or_default();
        for name in [own, pipeline.dead_letter_name()] {
            let claim = Claim {
                by: by.clone(),
                name,
                within: meta.namespace.clone(),
            };
            let refusal = |_: &str, name: &str| name_conflict("Topic", name);
            add(&mut self.names, claim, |a, b| a == b, refusal)?;
        }
        for topic in [pipeline.topic_name(), pipeline.dead_letter_topic_name()] {
            self.claim_topic(by.clone(), topic, &pipeline.spec.kafka)?;
        }
        Ok(())
    }

    /// A Keyspace claims its keyspace.
    pub fn keyspace(&mut self, keyspace: &Keyspace) -> Result<(), Refusal> {
        let claim = Claim {
            by: claimant("Keyspace", &keyspace.metadata),
            name: keyspace.keyspace_name(),
            within: keyspace.spec.cassandra.clone(),
        };
        let same = |a: &Option<_>, b: &Option<_>| same_cassandra(a.as_ref(), b.as_ref());
        add(&mut self.keyspaces, claim, same, keyspace_conflict)
    }

    fn claim_topic(
        &mut self,
        by: String,
        name: String,
        kafka: &Option<KafkaConnection>,
    ) -> Result<(), Refusal> {
        let within = kafka.clone();
        let same = |a: &Option<_>, b: &Option<_>| same_kafka(a.as_ref(), b.as_ref());
        add(
            &mut self.topics,
            Claim { by, name, within },
            same,
            topic_conflict,
        )
    }
}

/// Adds a claim, unless another resource has the same.
fn add<W>(
    claims: &mut Vec<Claim<W>>,
    mine: Claim<W>,
    same: impl Fn(&W, &W) -> bool,
    refusal: impl Fn(&str, &str) -> Refusal,
) -> Result<(), Refusal> {
    let rival = claims.iter().find(|other| {
        other.by != mine.by && other.name == mine.name && same(&other.within, &mine.within)
    });
    if let Some(rival) = rival {
        return Err(refusal(&rival.by, &mine.name));
    }
    claims.push(mine);
    Ok(())
}

/// The resource that a claim is of: what a pipeline has made is the pipeline's.
fn claimant(kind: &str, meta: &ObjectMeta) -> String {
    let mut owners = meta.owner_references.iter().flatten();
    let pipeline =
        owners.find(|owner| owner.controller == Some(true) && owner.kind == "DataPipeline");
    let (kind, name) = match pipeline {
        Some(owner) => (owner.kind.as_str(), Some(&owner.name)),
        None => (kind, meta.name.as_ref()),
    };
    let name = name.map_or("", String::as_str);
    match &meta.namespace {
        Some(namespace) => format!("{kind} {namespace}/{name}"),
        None => format!("{kind} {name}"),
    }
}
