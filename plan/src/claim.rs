//! What two resources can't both have: a topic of one Kafka, a keyspace of one Cassandra, a name.

use kube::ResourceExt;
use millstream_api::{CassandraConnection, DataPipeline, KafkaConnection, Keyspace};

use crate::Refusal;

/// Whether two resources are of one Kafka: their connections have a server in common, or both have
/// none of their own and take the operator's.
pub fn same_kafka(a: Option<&KafkaConnection>, b: Option<&KafkaConnection>) -> bool {
    let of = |kafka: &KafkaConnection| servers(&kafka.bootstrap_servers);
    same_cluster(a.map(of), b.map(of))
}

/// Whether two resources are of one Cassandra, as with Kafka.
pub fn same_cassandra(a: Option<&CassandraConnection>, b: Option<&CassandraConnection>) -> bool {
    let of = |cassandra: &CassandraConnection| {
        let mut servers = servers(&cassandra.contact_points.join(","));
        let without_port = servers.iter_mut().filter(|server| !server.contains(':'));
        without_port.for_each(|server| server.push_str(":9042"));
        servers
    };
    same_cluster(a.map(of), b.map(of))
}

/// Where two Cassandras are, if they are two.
pub fn two_cassandras(
    one: Option<&CassandraConnection>,
    other: Option<&CassandraConnection>,
) -> Option<(String, String)> {
    let at = |cassandra: &CassandraConnection| cassandra.contact_points.join(", ");
    let two = one.zip(other).filter(|_| !same_cassandra(one, other));
    two.map(|(one, other)| (at(one), at(other)))
}

/// Whether a Keyspace of others is of the Cassandra that the pipeline's pods write to. Where the default
/// isn't known, what takes it may be any.
pub fn accept_cassandra(
    pipeline: &DataPipeline,
    keyspace: &Keyspace,
    default: Option<&CassandraConnection>,
) -> Result<(), Refusal> {
    let there = keyspace.spec.cassandra.as_ref().or(default);
    let mine = pipeline.spec.cassandra.as_ref().or(default);
    match two_cassandras(there, mine) {
        Some((there, mine)) => Err(Refusal::Conflict(format!(
            "Keyspace `{}` is of the Cassandra at {there}, and the pipeline of that at {mine}: take a keyspace of another name, or another namespace; where both are one Cassandra, let their contactPoints have a server in common",
            keyspace.name_any()
        ))),
        None => Ok(()),
    }
}

fn same_cluster(a: Option<Vec<String>>, b: Option<Vec<String>>) -> bool {
    match (a, b) {
        (Some(a), Some(b)) => a.iter().any(|server| b.contains(server)),
        (None, None) => true,
        _ => false,
    }
}

fn servers(list: &str) -> Vec<String> {
    let servers = list.split(',');
    servers
        .map(|server| server.trim().to_ascii_lowercase())
        .collect()
}

/// The rival has the topic.
pub fn topic_conflict(rival: &str, topic: &str) -> Refusal {
    Refusal::Conflict(format!(
        "{rival} claims the topic `{topic}` of this Kafka too: give this one another topic name (delete it first where it is applied already)"
    ))
}

/// The rival has the keyspace.
pub fn keyspace_conflict(rival: &str, keyspace: &str) -> Refusal {
    Refusal::Conflict(format!(
        "{rival} claims the keyspace `{keyspace}` of this Cassandra too: declare the tables in that one, in its namespace, or choose another keyspace"
    ))
}

/// Somebody else has the name that a pipeline needs for an object of its own.
pub fn name_conflict(kind: &str, name: &str) -> Refusal {
    Refusal::Conflict(format!(
        "{kind} `{name}` exists and doesn't belong to this pipeline, which needs one of this name: rename or delete one of the two"
    ))
}

/// The name of the Keyspace that pipelines make for a keyspace. In Kubernetes none ends in `-`.
pub fn made_name(keyspace: &str) -> String {
    keyspace.trim_end_matches('_').replace('_', "-")
}

/// Whether pipelines can make a Keyspace for a keyspace, beside those that are in their namespace.
pub fn accept_made(keyspace: &str, there: &[Keyspace]) -> Result<(), Refusal> {
    let taken = made_name(keyspace);
    match there.iter().find(|other| other.name_any() == taken) {
        None => Ok(()),
        Some(other) => Err(Refusal::Conflict(format!(
            "the pipeline needs a Keyspace for `{keyspace}`, and its name `{taken}` is taken by one for `{}`: declare `{keyspace}` in a Keyspace of another name",
            other.keyspace_name()
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_made_name_is_one_that_kubernetes_takes() {
        for (keyspace, name) in [("logs", "logs"), ("l_o__gs", "l-o--gs"), ("logs__", "logs")] {
            assert_eq!(made_name(keyspace), name);
        }
    }

    #[test]
    fn one_server_in_common_is_the_same_cluster() {
        let kafka = |servers: &str| KafkaConnection {
            bootstrap_servers: servers.into(),
            sasl: None,
            tls: None,
        };
        let cassandra = |servers: &str| CassandraConnection {
            contact_points: servers.split(',').map(Into::into).collect(),
            datacenter: None,
            credentials_secret: None,
            tls: None,
        };
        for (a, b, same) in [
            (Some("a:1, B:1"), Some("b:1"), true),
            (Some("a:1"), Some("a:2,b:1"), false),
            (Some("a:1"), None, false),
            (None, None, true),
        ] {
            let found = same_kafka(a.map(kafka).as_ref(), b.map(kafka).as_ref());
            assert_eq!(found, same, "Kafka: {a:?} and {b:?}");
            let found = same_cassandra(a.map(cassandra).as_ref(), b.map(cassandra).as_ref());
            assert_eq!(found, same, "Cassandra: {a:?} and {b:?}");
        }
        // Cassandra has a port where none is given.
        let with_port = |port: &str| cassandra(&format!("a{port}"));
        for (port, same) in [("", true), (":9042", true), (":9043", false)] {
            let found = same_cassandra(Some(&with_port("")), Some(&with_port(port)));
            assert_eq!(found, same, "{port}");
        }
    }
}
