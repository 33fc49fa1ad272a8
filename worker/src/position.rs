//! Where the ingest stage is in its source: the metadata of an offset that is committed under a
//! consumer group which nobody joins, in one transaction with the records before it. The offset
//! itself says nothing.

use std::{sync::Arc, time::Duration};

use anyhow::Context;
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
/// Bytes that Kafka keeps beside an offset, as it is by default.
const MAX_BYTES: usize = 4096;

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
    /// With which end it was read; another one may come later.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end: Option<End>,
    /// Records that the stage has sent to the topic, of whatever source. The topic's offsets don't
    /// tell: the markers of transactions take some, and what was given up.
    #[serde(default)]
    pub records: i64,
    /// How far the run is, where the pipeline has a schedule.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run: Option<RunProgress>,
}

/// Where a generator ends. It isn't part of the fingerprint: up to there the records are the same.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct End {
    /// After so many records.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    count: Option<u64>,
    /// Whether a recording begins again at its own end.
    #[serde(default)]
    repeat: bool,
}

impl End {
    /// The end of a generator; none of other sources.
    pub fn of(source: &Source) -> Option<Self> {
        let generator = source.generator.as_ref()?;
        let replay = generator.replay.as_ref();
        Some(End {
            count: generator.count,
            repeat: replay.is_some_and(|replay| replay.repeat),
        })
    }
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
            end: self.end,
            records: self.records,
            run: Some(RunProgress {
                name: name.to_owned(),
                since: now,
                ..RunProgress::default()
            }),
        }
    }

    /// From where on a source is read: another one than before from its beginning. One that has got
    /// another end goes on.
    pub fn of_source(self, source: &str, end: Option<End>) -> Self {
        if self.source == source {
            return Position {
                complete: self.complete && self.end == end,
                end,
                ..self
            };
        }
        Position {
            source: source.to_owned(),
            end,
            records: self.records,
            ..Position::default()
        }
    }
}

/// A position as it is kept: of a warning as much as there is room for.
fn text(position: &Position) -> serde_json::Result<String> {
    let mut position = position.clone();
    loop {
        let text = serde_json::to_string(&position)?;
        let run = position.run.as_mut();
        let warning = run.and_then(|run| run.warning.as_mut());
        match warning.filter(|warning| !warning.is_empty()) {
            Some(warning) if text.len() > MAX_BYTES => {
                warning.truncate(warning.floor_char_boundary(warning.len() / 2));
            }
            _ => return Ok(text),
        }
    }
}

/// A position as it was kept by a group.
fn parse(kept: &str, group: &str) -> anyhow::Result<Position> {
    serde_json::from_str(kept).with_context(|| {
        format!(
            "what is kept isn't a position that this version knows: go back to the version that kept it, or delete the consumer group {group}, and the source is read from its beginning"
        )
    })
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
        // Nor do its pace, and how much is wanted of it.
        generator.rate = None;
        generator.count = None;
        if let Some(replay) = &mut generator.replay {
            replay.repeat = false;
        }
    }
    if let Some(files) = source.files_mut() {
        // Neither do the disk, the pace, who is trusted, and who asks.
        files.scratch_size = String::new();
        files.tls = None;
        if let Some(replay) = &mut files.replay {
            replay.interval = None;
        }
        let landing = files.landing_zone.as_mut();
        let landing = landing.and_then(|zone| zone.s3.as_mut());
        let landing = landing.map(|folder| &mut folder.bucket);
        let read = files.s3.as_mut().map(|objects| &mut objects.bucket);
        for bucket in read.into_iter().chain(landing) {
            bucket.access_key_id_secret = None;
            bucket.secret_access_key_secret = None;
        }
    }
    if let Some(topic) = &mut source.topic {
        // How it is reached and where it was begun doesn't change what is in it; the position tells of
        // which cluster it is.
        topic.kafka = None;
        topic.schema_registry = None;
        topic.start = Start::default();
        topic.on_gap = OnGap::default();
    }
    // Recorded records have a shape of their own.
    let generator = source.generator.as_ref();
    let made_up = generator.is_some_and(|generator| generator.replay.is_none());
    let shape = made_up.then_some(schema);
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

    /// The position that was kept last; none where there is none.
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
            let group = store.config.get("group.id").unwrap_or_default();
            match element.offset() {
                Offset::Offset(_) => parse(element.metadata(), group).map(Some),
                _ => Ok(None),
            }
        })
        .await?
    }

    /// What a transaction is to commit to keep the position.
    pub async fn offsets(
        &self,
        position: &Position,
    ) -> anyhow::Result<(TopicPartitionList, ConsumerGroupMetadata)> {
        let (store, text) = (self.clone(), text(position)?);
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
    use serde_json::json;

    use super::*;

    fn source(spec: Value) -> Source {
        serde_json::from_value(spec).unwrap()
    }

    fn http(url: &str, concurrency: u32) -> Source {
        source(json!({"http": {"url": url, "concurrency": concurrency}}))
    }

    #[test]
    fn what_is_kept_and_is_no_position_is_an_error() {
        let group = "millstream.shop.users._ingest";
        let oldest = parse(r#"{"source": "s", "position": {"next": 5}}"#, group).unwrap();
        let expected = Position {
            source: "s".into(),
            position: Some(json!({"next": 5})),
            ..Position::default()
        };
        assert_eq!(oldest, expected);
        for kept in ["", "7", "{}", r#"{"source": "s", "records": "many"}"#] {
            let error = format!("{:#}", parse(kept, group).unwrap_err());
            assert!(error.contains(group), "{error}");
        }
    }

    #[test]
    fn a_warning_takes_what_room_there_is() {
        let mut position = Position::default().of_run("one", 5, true);
        for (held, kept) in [(0, 1000), (3500, 250), (3800, 124), (5000, 0)] {
            let run = position.run.as_mut().unwrap();
            run.warning = Some("é".repeat(500));
            position.position = Some(json!("x".repeat(held)));
            let run = parse(&text(&position).unwrap(), "g").unwrap().run.unwrap();
            assert_eq!(run.warning.unwrap().len(), kept, "{held}");
        }
    }

    #[test]
    fn a_run_goes_on_and_another_one_begins() {
        let position = || Position {
            source: "s".into(),
            position: Some(serde_json::json!({"at": 7})),
            complete: true,
            end: None,
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
            end: None,
            records: 30,
            run: None,
        };
        assert_eq!(position.clone().of_source("s", None), position);
        let other = position.of_source("t", None);
        assert_eq!((other.position, other.complete), (None, false));
        assert_eq!((other.source.as_str(), other.records), ("t", 30));
    }

    #[test]
    fn a_source_that_was_complete_goes_on_where_it_gets_another_end() {
        let end = |generator: Value| End::of(&source(json!({ "generator": generator })));
        let recorded = |repeat| json!({"file": {"path": "/data"}, "repeat": repeat});
        let ends = [
            end(json!({})),
            end(json!({"count": 5})),
            end(json!({"count": 9})),
            end(json!({"replay": recorded(true)})),
            end(json!({"count": 5, "replay": recorded(true)})),
            None,
        ];
        for (before, now) in ends.iter().flat_map(|a| ends.iter().map(move |b| (a, b))) {
            let kept = Position {
                source: "s".into(),
                position: Some(json!({"next": 5})),
                complete: true,
                records: 5,
                ..Position::default()
            };
            let kept = kept.of_source("s", *before);
            let kept = Position {
                complete: true,
                ..kept
            };
            let kept: Position = serde_json::from_value(json!(kept)).unwrap();
            let expected = Position {
                complete: before == now,
                end: *now,
                ..kept.clone()
            };
            assert_eq!(kept.of_source("s", *now), expected, "{before:?}, {now:?}");
        }
    }

    #[test]
    fn another_source_has_another_fingerprint() {
        let users = fingerprint(&http("http://a/users", 4), "a TEXT");
        assert_eq!(users, fingerprint(&http("http://a/users", 8), "b TEXT"));
        assert_ne!(users, fingerprint(&http("http://a/orders", 4), "a TEXT"));
        let generator = source(json!({"generator": {"seed": 1}}));
        assert_ne!(
            fingerprint(&generator, "a TEXT"),
            fingerprint(&generator, "b TEXT")
        );
    }

    #[test]
    fn what_changes_no_record_leaves_the_source_the_same() {
        let key = |name: &str| json!({"name": "keys", "key": name});
        let bucket = |at: &str, id: &str, secret: &str| {
            json!({
                "bucket": "b", "prefix": at,
                "accessKeyIdSecret": key(id), "secretAccessKeySecret": key(secret),
            })
        };
        let in_s3 = |id: &str, secret: &str| {
            json!({"file": {
                "s3": bucket("in", id, secret), "landingZone": {"s3": bucket("landing", id, secret)},
            }})
        };
        let dates = |interval: &str| json!({"eventTime": "ts", "interval": interval});
        let by_date = |interval: &str| json!({"path": "/data", "replay": dates(interval)});
        let played = |interval: &str, repeat: bool| {
            let file = by_date(interval);
            json!({"generator": {"replay": {"file": file, "repeat": repeat}}})
        };
        let topic = |servers: &str| json!({"topic": {"name": "users", "kafka": {"bootstrapServers": servers}}});
        for (one, same) in [
            (
                json!({"generator": {"seed": 1, "count": 5}}),
                json!({"generator": {"seed": 1, "rate": 9}}),
            ),
            (played("1s", false), played("5s", true)),
            (
                json!({"file": by_date("1s")}),
                json!({"file": {"path": "/data", "replay": {"eventTime": "ts"}}}),
            ),
            (in_s3("a", "b"), in_s3("c", "d")),
            (topic("one:9092"), topic("one:9092,two:9092")),
            (topic("one:9092"), json!({"topic": {"name": "users"}})),
        ] {
            let prints = [&one, &same].map(|spec| fingerprint(&source(spec.clone()), "a TEXT"));
            assert_eq!(prints[0], prints[1], "{one} {same}");
        }
        let recording = source(played("1s", false));
        assert_eq!(
            fingerprint(&recording, "a TEXT"),
            fingerprint(&recording, "b TEXT"),
            "its records are what they are"
        );
        let other = source(json!({"generator": {"replay": {"file": {"path": "/data"}}}}));
        assert_ne!(
            fingerprint(&recording, "a TEXT"),
            fingerprint(&other, "a TEXT"),
            "another order"
        );
    }
}
