//! A source in another cluster, with SASL and TLS. The environment says where it is:
//! `"kafkaTls": {"servers", "user", "password", "ca", "otherCa"}`, the last two as files.

use rdkafka::ClientConfig;
use serde_json::{Value, json};

use super::{
    preview::preview,
    topic::{NUMBERS, ids, rows},
    upstream::Upstream,
};
use crate::support::{Environment, Pipeline};

struct Secure {
    servers: String,
    user: String,
    password: String,
    ca: String,
    other_ca: String,
}

impl Secure {
    fn find(environment: &Environment) -> Option<Self> {
        let there = &environment.json["kafkaTls"];
        let text = |key: &str| there[key].as_str().map(str::to_owned);
        let Some(servers) = text("servers") else {
            eprintln!("skipped: the environment has no Kafka with TLS");
            return None;
        };
        let pem = |key: &str| std::fs::read_to_string(text(key).unwrap()).unwrap();
        Some(Secure {
            servers,
            user: text("user").unwrap(),
            password: text("password").unwrap(),
            ca: pem("ca"),
            other_ca: pem("otherCa"),
        })
    }

    fn config(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        config
            .set("bootstrap.servers", &self.servers)
            .set("security.protocol", "sasl_ssl")
            .set("sasl.mechanism", "SCRAM-SHA-512")
            .set("sasl.username", &self.user)
            .set("sasl.password", &self.password)
            .set("ssl.ca.pem", &self.ca);
        config
    }

    fn source(&self, upstream: &Upstream, mechanism: &str) -> Value {
        let kafka = json!({
            "bootstrapServers": self.servers,
            "sasl": {"mechanism": mechanism, "credentialsSecret": {"name": "unused"}},
            "tls": {"caSecret": {"name": "unused"}},
        });
        json!({"topic": {"name": upstream.name, "kafka": kafka}})
    }

    fn give(&self, pipeline: &Pipeline, password: &str, ca: &str) {
        pipeline.give("source-kafka-username", &self.user);
        pipeline.give("source-kafka-password", password);
        pipeline.give("source-kafka-ca.crt", ca);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_of_another_cluster_is_read_with_sasl_and_tls() {
    let Some(environment) = Environment::find().await else {
        return;
    };
    let Some(secure) = Secure::find(&environment) else {
        return;
    };
    let upstream = Upstream::create(secure.config(), 2).await;
    upstream.write_ids(0, 0..1_000).await;
    upstream.write_ids(1, 1_000..2_000).await;
    let pipeline = Pipeline::create(environment, NUMBERS).await;
    let process = pipeline.process();
    let source = secure.source(&upstream, "SCRAM-SHA-512");

    secure.give(&pipeline, &secure.password, &secure.other_ca);
    let ingest = pipeline.ingest(source.clone());
    let says = "TLS to the source's Kafka fails";
    let status = ingest.await_status(|status| {
        let error = status.errors.get("ingest");
        error.is_some_and(|error| error.contains(says))
    });
    let error = status.await.errors["ingest"].clone();
    assert!(error.contains("certificate verify failed"), "{error}");
    ingest.terminate().await;

    secure.give(&pipeline, "wrong", &secure.ca);
    let ingest = pipeline.ingest(source.clone());
    let says = "the source's Kafka refuses the credentials";
    let status = ingest.await_status(|status| {
        let error = status.errors.get("ingest");
        error.is_some_and(|error| error.contains(says))
    });
    assert!(!status.await.errors["ingest"].contains("wrong"));
    ingest.terminate().await;

    secure.give(&pipeline, &secure.password, &secure.ca);
    let ingest = pipeline.ingest(source);
    pipeline.await_progress(rows(2_000)).await;
    assert_eq!(ids(&pipeline).await, (0..2_000).collect::<Vec<_>>());
    ingest.await_status(|status| status.errors.is_empty()).await;
    ingest.terminate().await;

    // By the other mechanism, going on where the first was.
    upstream.write_ids(1, 2_000..2_100).await;
    let ingest = pipeline.ingest(secure.source(&upstream, "PLAIN"));
    pipeline.await_progress(rows(2_100)).await;
    drop((ingest, process));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_preview_reads_a_topic_with_sasl_and_tls() {
    let Some(environment) = Environment::find().await else {
        return;
    };
    let Some(secure) = Secure::find(&environment) else {
        return;
    };
    let upstream = Upstream::create(secure.config(), 1).await;
    upstream.write_ids(0, 0..3).await;
    let spec = json!({"source": secure.source(&upstream, "SCRAM-SHA-512")});
    let folder = tempfile::tempdir().unwrap();
    let give = |file: &str, value: &str| std::fs::write(folder.path().join(file), value).unwrap();

    give("source-kafka-username", &secure.user);
    let missing = preview(folder.path(), spec.clone(), &[]);
    for file in ["> source-kafka-password\n", "> source-kafka-ca.crt\n"] {
        assert!(missing.told.contains(file), "{}", missing.told);
    }
    assert!(
        !missing.told.contains("> source-kafka-username"),
        "{}",
        missing.told
    );

    give("source-kafka-ca.crt", &secure.ca);
    give("source-kafka-password", "wrong");
    let refused = preview(folder.path(), spec.clone(), &["--timeout", "20s"]);
    let says = "the source's Kafka refuses the credentials";
    assert!(refused.told.contains(says), "{}", refused.told);
    assert!(!refused.told.contains("wrong"), "{}", refused.told);

    give("source-kafka-password", &secure.password);
    let seen = preview(folder.path(), spec, &[]);
    assert_eq!(seen.ids(), [0, 1, 2]);
}
