//! Where the ingest stage is in its source: the metadata of an offset that is committed under a
//! consumer group which nobody joins, in one transaction with the records before it. The offset
//! itself says nothing.

use std::{sync::Arc, time::Duration};

use millstream_api::{
    source::{OnGap, Source, Start},
    worker::RunProgress,
};
use rdkafka::{
    ClientConfig, Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer, ConsumerGroupMetadata},
    error::{KafkaError, KafkaResult},
};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::{kafka::Reports, status::StatusPart};

const TIMEOUT: Duration = Duration::from_secs(10);

/// What is kept.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
pub struct Position {
    /// Fingerprint of the source; the position of another source means nothing.
    pub source: String,
    /// The source's own position; none at its start.
    #[serde(default)]
    pub position: Option<Value>,
    /// Whether a source with an end has given all its records.
    #[serde(default)]
    pub complete: bool,
    /// Records that the stage has sent to the topic, of whatever source. The topic's offsets don't
    /// tell: the markers of transactions take some, and what was given up.
    #[serde(default)]
    pub records: i64,
    /// How far the run is, where the pipeline has a schedule.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run: Option<RunProgress>,
}

impl Position {
    /// From where a run goes on that begins now, unless it has begun before. One that reads the
    /// source anew begins at its beginning.
    pub fn of_run(self, name: &str, now: i64, anew: bool) -> Self {
        if self.run.as_ref().is_some_and(|run| run.name == name) {
            return self;
        }
        Position {
            source: self.source,
            position: self.position.filter(|_| !anew),
            complete: false,
            records: self.records,
            run: Some(RunProgress {
                name: name.to_owned(),
                since: now,
                ..RunProgress::default()
            }),
        }
    }

    /// From where on a source is read: another one than before from its beginning.
    pub fn of_source(self, source: &str) -> Self {
        if self.source == source {
            return self;
        }
        Position {
            source: source.to_owned(),
            records: self.records,
            ..Position::default()
        }
    }
}

/// A fingerprint of what the source gives: another one starts at its beginning.
pub fn fingerprint(source: &Source, schema: &str) -> String {
    let mut source = source.clone();
    if let Some(http) = &mut source.http {
        // How fast and by whom it is fetched doesn't change what is fetched.
        http.concurrency = 0;
        http.timeout = Duration::ZERO.into();
        http.rate_limit = None;
        http.auth = None;
        http.tls = None;
        http.cache = None;
        if let Some(poll) = &mut http.poll {
            poll.interval = Duration::ZERO.into();
        }
    }
    if let Some(database) = &mut source.database {
        // Nor do page size, pace and credentials.
        database.fetch_size = 0;
        database.timeout = Duration::ZERO.into();
        database.postgres.password_secret = None;
        database.postgres.tls = None;
        if let Some(incremental) = &mut database.incremental {
            incremental.settle = Duration::ZERO.into();
        }
        if let Some(poll) = &mut database.poll {
            poll.interval = Duration::ZERO.into();
        }
    }
    if let Some(generator) = &mut source.generator {
        generator.rate = None;
    }
    if let Some(files) = source.files_mut() {
        // Neither do the disk, and who is trusted.
        files.scratch_size = String::new();
        files.tls = None;
    }
    if let Some(topic) = &mut source.topic {
        // How it is reached and where it was begun doesn't change what is in it.
        if let Some(kafka) = &mut topic.kafka {
            kafka.sasl = None;
            kafka.tls = None;
        }
        topic.schema_registry = None;
        topic.start = Start::default();
        topic.on_gap = OnGap::default();
    }
    let shape = source.generator.is_some().then_some(schema);
    let digest = Sha256::digest(serde_json::json!([source, shape]).to_string());
    digest[..8]
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

/// Keeps a position in Kafka.
#[derive(Clone)]
pub struct PositionStore {
    consumer: Arc<BaseConsumer<Reports>>,
    config: ClientConfig,
    status: StatusPart,
    topic: String,
}

impl PositionStore {
    /// A store for the group; nothing is sent yet.
    pub fn new(
        client: &ClientConfig,
        group: &str,
        topic: &str,
        status: StatusPart,
    ) -> KafkaResult<Self> {
        let mut config = client.clone();
        config
            .set("group.id", group)
            .set("enable.auto.commit", "false")
            // Nobody polls it regularly.
            .set("statistics.interval.ms", "0");
        let consumer = config.create_with_context(Reports::new(status.clone()))?;
        Ok(PositionStore {
            consumer: Arc::new(consumer),
            config,
            status,
            topic: topic.to_owned(),
        })
    }

    /// The position that was kept last; none where there is none, or nothing that can be read.
    pub async fn load(&self) -> anyhow::Result<Option<Position>> {
        let store = self.clone();
        tokio::task::spawn_blocking(move || {
            // One of its own each time: another one may be lost.
            let reports = Reports::new(store.status.clone());
            let consumer: BaseConsumer<_> = store.config.create_with_context(reports)?;
            let committed = consumer.committed_offsets(store.list(Offset::Invalid)?, TIMEOUT)?;
            let elements = committed.elements();
            let Some(element) = elements.first() else {
                return Ok(None);
            };
            element.error()?;
            Ok(serde_json::from_str(element.metadata()).ok())
        })
        .await?
    }

    /// What a transaction is to commit to keep the position.
    pub async fn offsets(
        &self,
        position: &Position,
    ) -> anyhow::Result<(TopicPartitionList, ConsumerGroupMetadata)> {
        let (store, text) = (self.clone(), serde_json::to_string(position)?);
        Ok(tokio::task::spawn_blocking(move || store.offsets_of(&text)).await??)
    }

    fn offsets_of(
        &self,
        position: &str,
    ) -> KafkaResult<(TopicPartitionList, ConsumerGroupMetadata)> {
        let list = self.list(Offset::Offset(0))?;
        if let Some(mut element) = list.find_partition(&self.topic, 0) {
            element.set_metadata(position);
        }
        let group = self.consumer.group_metadata();
        // What the client wants to tell is shown, and doesn't pile up.
        while self.consumer.poll(Duration::ZERO).is_some() {}
        Ok((
            list,
            group.ok_or(KafkaError::ClientCreation("no consumer group".into()))?,
        ))
    }

    fn list(&self, offset: Offset) -> KafkaResult<TopicPartitionList> {
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(&self.topic, 0, offset)?;
        Ok(list)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn http(url: &str, concurrency: u32) -> Source {
        serde_json::from_value(serde_json::json!({
            "http": {"url": url, "concurrency": concurrency}
        }))
        .unwrap()
    }

    #[test]
    fn a_run_goes_on_and_another_one_begins() {
        let position = || Position {
            source: "s".into(),
            position: Some(serde_json::json!({"at": 7})),
            complete: true,
            records: 30,
            run: None,
        };
        let first = position().of_run("one", 5, true);
        assert_eq!((&first.position, first.complete), (&None, false));
        assert_eq!(first.records, 30, "the topic is the same");
        let mut later = first.clone();
        later.position = position().position;
        assert_eq!(later.clone().of_run("one", 9, true), later);
        let second = later.of_run("two", 9, false);
        assert_eq!(second.position, position().position, "a poll goes on");
        assert_eq!(second.run.unwrap().since, 9);
    }

    #[test]
    fn another_source_is_read_from_its_beginning_into_the_same_topic() {
        let position = Position {
            source: "s".into(),
            position: Some(serde_json::json!({"at": 7})),
            complete: true,
            records: 30,
            run: None,
        };
        assert_eq!(position.clone().of_source("s"), position);
        let other = position.of_source("t");
        assert_eq!((other.position, other.complete), (None, false));
        assert_eq!((other.source.as_str(), other.records), ("t", 30));
    }

    #[test]
    fn another_source_has_another_fingerprint() {
        let users = fingerprint(&http("http://a/users", 4), "a TEXT");
        assert_eq!(users, fingerprint(&http("http://a/users", 8), "b TEXT"));
        assert_ne!(users, fingerprint(&http("http://a/orders", 4), "a TEXT"));
        let generator: Source =
            serde_json::from_value(serde_json::json!({"generator": {"seed": 1}})).unwrap();
        assert_ne!(
            fingerprint(&generator, "a TEXT"),
            fingerprint(&generator, "b TEXT")
        );
    }
}
