//! The two clients against real servers: `MILLSTREAM_ENVIRONMENT` names the file that
//! `cargo xtask status --json` prints. Without it these tests say that they are skipped.

// A test's own functions may end it as the test itself may.
#![allow(clippy::unwrap_used)]

mod offsets;

use std::{
    collections::BTreeMap,
    fmt::Debug,
    time::{Duration, Instant},
};

use millstream_api::{
    CassandraConnection, KafkaConnection, KeyspaceSpec, SchemaRegistryConnection,
    keyspace::Replication, worker::CommitMetadata,
};
use millstream_operator::{
    cassandra::{Cassandra, CassandraError},
    credentials::{Access, Login},
    kafka::{Kafka, KafkaError, ObservedTopic, TopicMark},
    keyspace::{
        ddl,
        plan::{KeyspacePlan, plan},
    },
    metrics::Metrics,
    registry::{Registry, RegistryError, subject},
    topic::{
        observe,
        plan::{DesiredTopic, TopicChange, plan as plan_topic},
    },
};
use millstream_plan::RecordSchema;

struct Environment(serde_json::Value);

impl Environment {
    fn load() -> Option<Self> {
        let Some(path) = std::env::var_os("MILLSTREAM_ENVIRONMENT") else {
            eprintln!("skipped: MILLSTREAM_ENVIRONMENT isn't set (cargo xtask up)");
            return None;
        };
        let text = std::fs::read_to_string(path).unwrap();
        // The provider exists once for the process; a second test finds it installed.
        let _ = rustls::crypto::ring::default_provider().install_default();
        Some(Environment(serde_json::from_str(&text).unwrap()))
    }

    fn text(&self, key: &str) -> String {
        self.0[key].as_str().unwrap().to_string()
    }

    fn kafka(&self) -> Kafka {
        kafka_at(&self.text("kafka"))
    }

    fn cassandra(&self, password: &str) -> Access<CassandraConnection> {
        Access {
            connection: CassandraConnection {
                contact_points: vec![self.text("cassandra")],
                datacenter: None,
                credentials_secret: None,
                tls: None,
            },
            login: Some(Login {
                username: self.text("cassandraUser"),
                password: password.to_string().into(),
                origin: "Secret n/cassandra".into(),
            }),
            ca: None,
        }
    }
}

fn kafka_at(servers: &str) -> Kafka {
    let connection = KafkaConnection {
        bootstrap_servers: servers.into(),
        sasl: None,
        tls: None,
    };
    Kafka::new(&Access {
        connection,
        login: None,
        ca: None,
    })
    .unwrap()
}

/// A name that no other run has.
fn unique(what: &str) -> String {
    let id = uuid::Uuid::new_v4().simple().to_string();
    format!("op_{what}_{}", &id[..12])
}

fn config(entries: &[(&str, &str)]) -> BTreeMap<String, String> {
    let owned = entries
        .iter()
        .map(|(key, value)| (key.to_string(), value.to_string()));
    owned.collect()
}

const PATIENCE: Duration = Duration::from_secs(10);

/// Asks until the answer is as wanted: of what one part of Kafka has done, another tells a moment
/// later.
async fn eventually<T: Debug>(
    patience: Duration,
    mut ask: impl AsyncFnMut() -> T,
    wanted: impl Fn(&T) -> bool,
) -> T {
    let deadline = Instant::now() + patience;
    loop {
        let answer = ask().await;
        if wanted(&answer) {
            return answer;
        }
        assert!(Instant::now() < deadline, "{answer:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_is_made_grown_configured_and_identified() {
    let Some(environment) = Environment::load() else {
        return;
    };
    let kafka = environment.kafka();
    let name = unique("topic");
    assert_eq!(kafka.describe(&name).await.unwrap(), None);

    let declared = config(&[
        ("retention.ms", "86400000"),
        ("cleanup.policy", "compact, delete"),
    ]);
    let desired = DesiredTopic {
        name: name.clone(),
        partitions: 3,
        replication_factor: None,
        config: declared.clone(),
        key: None,
        grouped: false,
    };
    kafka.create(&name, 2, None, &declared).await.unwrap();
    let observed = kafka.describe(&name).await.unwrap().unwrap();
    assert_eq!((observed.partitions, observed.replication_factor), (2, 1));
    let changes = plan_topic(&desired, Some(&observed)).unwrap();
    assert_eq!(changes, [TopicChange::GrowPartitions { from: 2, to: 3 }]);
    kafka.grow(&name, 3).await.unwrap();

    // Somebody else changes one of ours, and sets one of theirs.
    let theirs = config(&[("retention.ms", "5"), ("segment.ms", "777000")]);
    kafka.set_config(&name, &theirs).await.unwrap();
    let drifted = |seen: &ObservedTopic| !plan_topic(&desired, Some(seen)).unwrap().is_empty();
    let describe = async || kafka.describe(&name).await.unwrap().unwrap();
    let observed = eventually(PATIENCE, &describe, drifted).await;
    let changes = plan_topic(&desired, Some(&observed)).unwrap();
    let [TopicChange::SetConfig { all, .. }] = &changes[..] else {
        panic!("{changes:?}");
    };
    kafka.set_config(&name, all).await.unwrap();
    let observed = eventually(PATIENCE, &describe, |seen| !drifted(seen)).await;
    assert_eq!(observed.config["segment.ms"].value, "777000");

    // A mark stays with the topic, and goes with it.
    assert_eq!(kafka.mark(&name).await.unwrap(), None);
    let mark = TopicMark {
        id: "a".into(),
        base: 7,
        written: 1,
        keys: vec!["/id".into()],
    };
    kafka.set_mark(&name, &mark).await.unwrap();
    assert_eq!(environment.kafka().mark(&name).await.unwrap(), Some(mark));
    kafka.delete(&name).await.unwrap();
    kafka
        .create(&name, 1, None, &BTreeMap::new())
        .await
        .unwrap();
    let mark = async || kafka.mark(&name).await.unwrap();
    eventually(PATIENCE, mark, Option::is_none).await;
    kafka.delete(&name).await.unwrap();
    kafka.delete(&name).await.unwrap();
    kafka.forget_mark(&name).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_old_mark_is_renewed_as_soon_as_its_topic_is_seen() {
    let Some(environment) = Environment::load() else {
        return;
    };
    let kafka = environment.kafka();
    let name = unique("marked");
    let metrics = Metrics::default();
    let seen = async || observe(&kafka, &name, &metrics).await.unwrap();
    assert_eq!(seen().await, (None, None));

    kafka
        .create(&name, 1, None, &BTreeMap::new())
        .await
        .unwrap();
    eventually(PATIENCE, &seen, |(topic, _)| topic.is_some()).await;
    let old = TopicMark {
        id: "a".into(),
        base: 7,
        written: 1,
        keys: vec!["/id".into()],
    };
    kafka.set_mark(&name, &old).await.unwrap();
    let (_, renewed) = seen().await;
    let renewed = renewed.unwrap();
    assert!(renewed.written > old.written);
    let written = renewed.written;
    assert_eq!(renewed, TopicMark { written, ..old });
    // It is in Kafka, and for a day it is left alone.
    assert_eq!(kafka.mark(&name).await.unwrap(), Some(renewed.clone()));
    assert_eq!(seen().await.1, Some(renewed));
    kafka.delete(&name).await.unwrap();
    kafka.forget_mark(&name).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_without_members_is_given_offsets() {
    let Some(environment) = Environment::load() else {
        return;
    };
    let kafka = environment.kafka();
    let name = unique("offsets");
    kafka
        .create(&name, 2, None, &BTreeMap::new())
        .await
        .unwrap();
    let before = kafka.committed(&name, &name, 2).await.unwrap();
    assert!(before.iter().all(|committed| committed.offset.is_none()));
    assert_eq!(kafka.starts(&name, 2).await.unwrap(), [0, 0]);
    assert_eq!(kafka.ends(&name, 2).await.unwrap(), [0, 0]);
    let counts = CommitMetadata {
        rows: 5,
        ..CommitMetadata::default()
    };
    let offsets = BTreeMap::from([(1, (0, counts.clone()))]);
    assert!(kafka.commit(&name, &name, offsets).await.unwrap());
    let after = kafka.committed(&name, &name, 2).await.unwrap();
    assert_eq!([after[0].offset, after[1].offset], [None, Some(0)]);
    assert_eq!(after[1].counts, counts);
    kafka.delete_groups(&[&name]).await.unwrap();
    kafka.delete(&name).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn kafka_says_what_is_wrong() {
    let Some(environment) = Environment::load() else {
        return;
    };
    let wrong = config(&[
        ("retention.ms", "soon"),
        ("no.such.key", "1"),
        ("segment.ms", "100000"),
    ]);
    let name = unique("wrong");
    let error = environment
        .kafka()
        .create(&name, 1, None, &wrong)
        .await
        .unwrap_err();
    let said = error.to_string();
    assert!(
        said.contains("retention.ms=soon")
            && said.contains("no.such.key=1")
            && !said.contains("segment.ms"),
        "{said}"
    );
    let error = kafka_at("127.0.0.1:1").describe(&name).await.unwrap_err();
    assert!(matches!(error, KafkaError::Unreachable { .. }));
    assert!(error.to_string().contains("Connection refused"), "{error}");
}

const TABLES: &str = "
replication: {class: SimpleStrategy, replicationFactor: 1}
durableWrites: true
tables:
  - name: everything
    columns:
      - {name: id, type: uuid}
      - {name: day, type: date}
      - {name: at, type: timestamp}
      - {name: a, type: varchar}
      - {name: b, type: 'map<text, frozen<list<int>>>'}
      - {name: c, type: 'tuple<int, text>'}
      - {name: d, type: 'frozen<set<timeuuid>>'}
      - {name: e, type: 'list<frozen<tuple<int, blob>>>'}
      - {name: f, type: varint}
      - {name: order, type: decimal}
      - {name: lists, type: 'frozen<list<frozen<list<int>>>>'}
    primaryKey: {partitionKey: [id, day], clusteringKey: [{name: at, order: DESC}]}
    options: {defaultTimeToLive: 3600, gcGraceSeconds: 60, comment: it's a table}
";

async fn plan_and_apply(cassandra: &Cassandra, name: &str, spec: &KeyspaceSpec) -> KeyspacePlan {
    let observed = cassandra.describe(name).await.unwrap();
    let plan = plan(name, spec, &Replication::simple(1), observed.as_ref());
    for change in &plan.changes {
        cassandra
            .alter(&ddl::statement(name, change))
            .await
            .unwrap();
    }
    plan
}

#[tokio::test(flavor = "multi_thread")]
async fn a_keyspace_is_made_and_then_left_alone() {
    let Some(environment) = Environment::load() else {
        return;
    };
    let access = environment.cassandra(&environment.text("cassandraPassword"));
    let cassandra = Cassandra::connect(&access).await.unwrap();
    let name = unique("ks");
    let mut spec: KeyspaceSpec = serde_saphyr::from_str(TABLES).unwrap();
    let first = plan_and_apply(&cassandra, &name, &spec).await;
    assert_eq!(first.changes.len(), 2);
    assert_eq!(
        plan_and_apply(&cassandra, &name, &spec).await,
        KeyspacePlan::default()
    );

    // A column more, an option put right, and a type that can't be changed.
    let column = serde_saphyr::from_str("{name: g, type: 'set<int>'}").unwrap();
    spec.tables[0].columns.push(column);
    let elsewhere = format!("ALTER TABLE {name}.everything WITH comment = 'mine'");
    cassandra.alter(&elsewhere).await.unwrap();
    assert_eq!(
        plan_and_apply(&cassandra, &name, &spec).await.changes.len(),
        2
    );
    assert_eq!(
        plan_and_apply(&cassandra, &name, &spec).await,
        KeyspacePlan::default()
    );
    spec.tables[0].columns[3].cql_type = "int".parse().unwrap();
    let refused = plan_and_apply(&cassandra, &name, &spec).await;
    assert!(refused.changes.is_empty() && refused.refusals["everything"].contains("`a`"));

    assert!(!cassandra.has_more_than_tables(&name).await.unwrap());
    cassandra
        .alter(&ddl::drop_table(&name, "everything"))
        .await
        .unwrap();
    cassandra.alter(&ddl::drop_keyspace(&name)).await.unwrap();
    assert_eq!(cassandra.describe(&name).await.unwrap(), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn cassandra_says_what_is_wrong() {
    let Some(environment) = Environment::load() else {
        return;
    };
    let refused = Cassandra::connect(&environment.cassandra("wrong"))
        .await
        .err()
        .unwrap();
    assert!(matches!(refused, CassandraError::Refused { .. }));
    assert!(
        refused.to_string().contains("Secret n/cassandra"),
        "{refused}"
    );

    let mut away = environment.cassandra("any");
    away.connection.contact_points = vec!["127.0.0.1:1".into()];
    let unreachable = Cassandra::connect(&away).await.err().unwrap();
    assert!(matches!(unreachable, CassandraError::Unreachable { .. }));
    assert!(unreachable.to_string().contains("refused"), "{unreachable}");
}

fn registry_at(url: &str, password: Option<&str>) -> Registry {
    let connection = SchemaRegistryConnection {
        url: url.into(),
        credentials_secret: None,
        tls: None,
    };
    let login = password.map(|password| Login {
        username: "app".into(),
        password: password.to_string().into(),
        origin: "Secret n/registry".into(),
    });
    Registry::new(&Access {
        connection,
        login,
        ca: None,
    })
    .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_schema_is_registered_once_and_changed_only_where_records_stay_readable() {
    let Some(environment) = Environment::load() else {
        return;
    };
    let topic = unique("avro");
    let subject = subject(&topic);
    let avro = |text: &str| RecordSchema::parse(text).unwrap().avro(&topic).unwrap();
    let url = environment.text("registry");
    let registered = std::cell::Cell::new(0);
    // Each with a memory of its own.
    let id = async |text: &str| {
        let registry = registry_at(&url, None);
        let registering = || registered.set(registered.get() + 1);
        registry.id(&subject, &avro(text), registering).await
    };
    let first = id("id INT, price DECIMAL(10, 2)").await.unwrap();
    assert_eq!(id("id INT, price DECIMAL(10, 2)").await.unwrap(), first);
    let second = id("id BIGINT, price DECIMAL(10, 2), note TEXT")
        .await
        .unwrap();
    assert_ne!(first, second);
    assert_eq!(registered.get(), 2);

    for (change, says) in [
        // What the registry itself would allow.
        (
            "id BIGINT, price DECIMAL(10, 4), note TEXT",
            "version 1: field `price` was written as `decimal(10, 2)` and can't be read as `decimal(10, 4)`",
        ),
        ("id BIGINT, note INT", "version 2: field `note`"),
        // Without `note` between them, the first version and this one would go together.
        ("id TEXT", "version 1: field `id`"),
    ] {
        let error = id(change).await.unwrap_err();
        assert!(
            matches!(error, RegistryError::Incompatible { .. }),
            "{error}"
        );
        assert!(error.to_string().contains(says), "{error}");
    }
    assert_eq!(registered.get(), 2);
    assert_eq!(id("id INT, price DECIMAL(10, 2)").await.unwrap(), first);

    // Stricter than we are: what is taken out can't be.
    let client = reqwest::Client::new();
    let rule = client.put(format!("{url}/config/{subject}"));
    let rule = rule.json(&serde_json::json!({"compatibility": "FULL"}));
    assert!(rule.send().await.unwrap().status().is_success());
    let error = id("id BIGINT, price DOUBLE").await.unwrap_err();
    assert!(
        matches!(error, RegistryError::Incompatible { .. }),
        "{error}"
    );

    let registry = registry_at(&url, None);
    registry.delete(&subject).await.unwrap();
    registry.delete(&subject).await.unwrap();
    assert_ne!(id("id TEXT").await.unwrap(), first);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_is_away_or_none_says_so() {
    let Some(environment) = Environment::load() else {
        return;
    };
    let schema = RecordSchema::parse("id INT").unwrap().avro("t").unwrap();
    let id = async |url: &str| {
        registry_at(url, Some("x"))
            .id("t-value", &schema, || {})
            .await
    };
    let error = id("http://127.0.0.1:1").await.unwrap_err();
    assert!(
        matches!(error, RegistryError::Unreachable { .. }),
        "{error}"
    );
    // The same server, and nothing of the kind there.
    let url = environment.text("registry");
    let elsewhere = url.replace("/apis/ccompat/v7", "/nothing/here");
    let error = id(&elsewhere).await.unwrap_err();
    assert!(matches!(error, RegistryError::Refused { .. }), "{error}");
}
