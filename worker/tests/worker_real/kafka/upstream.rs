//! A topic that somebody else writes.

use std::time::{Duration, Instant};

use millstream_api::worker::dead_letter;
use rdkafka::{
    ClientConfig, Offset, TopicPartitionList,
    admin::{AdminClient, AdminOptions, NewPartitions, NewTopic, TopicReplication},
    client::DefaultClientContext,
    error::RDKafkaErrorCode,
    message::{Header, OwnedHeaders},
    producer::{FutureProducer, FutureRecord, Producer},
};

use crate::support::Environment;

const TIMEOUT: Duration = Duration::from_secs(10);

/// Of the records, in milliseconds since 1970.
const TIME: i64 = 1_700_000_000_123;

fn record(id: i64) -> Vec<u8> {
    format!(r#"{{"id": {id}, "name": "n{id}"}}"#).into_bytes()
}

/// The environment's Kafka, without a login.
pub fn plain(environment: &Environment) -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set(
        "bootstrap.servers",
        environment.json["kafka"].as_str().unwrap(),
    );
    config
}

/// A topic that somebody else writes.
pub struct Upstream {
    pub name: String,
    config: ClientConfig,
    admin: AdminClient<DefaultClientContext>,
}

impl Upstream {
    /// Makes a topic.
    pub async fn create(config: ClientConfig, partitions: i32) -> Self {
        let upstream = Upstream {
            name: format!("upstream-{}", uuid::Uuid::new_v4().simple()),
            admin: config.create().unwrap(),
            config,
        };
        upstream.make(partitions).await;
        upstream
    }

    async fn make(&self, partitions: i32) {
        let topic = NewTopic::new(&self.name, partitions, TopicReplication::Fixed(1))
            // The records' timestamps are of long ago.
            .set("retention.ms", "-1");
        let made = self.admin.create_topics([&topic], &AdminOptions::new());
        made.await.unwrap().remove(0).unwrap();
    }

    /// Deletes the topic and makes it anew.
    pub async fn recreate(&self, partitions: i32) {
        let names = [self.name.as_str()];
        let deleted = self.admin.delete_topics(&names, &AdminOptions::new());
        deleted.await.unwrap().remove(0).unwrap();
        self.make(partitions).await;
    }

    /// Adds partitions.
    pub async fn grow(&self, partitions: usize) {
        let more = NewPartitions::new(&self.name, partitions);
        let grown = self.admin.create_partitions([&more], &AdminOptions::new());
        grown.await.unwrap().remove(0).unwrap();
    }

    /// Deletes the records of partition 0 before an offset, as retention does.
    pub async fn delete_before(&self, offset: i64) {
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(&self.name, 0, Offset::Offset(offset))
            .unwrap();
        let deleted = self.admin.delete_records(&list, &AdminOptions::new());
        deleted.await.unwrap();
    }

    /// Writes records, in this order in each partition.
    pub async fn write(&self, records: impl IntoIterator<Item = (i32, Option<Vec<u8>>)>) {
        self.write_at(TIME, records).await;
    }

    /// Writes records of that time in milliseconds, in this order in each partition.
    async fn write_at(
        &self,
        timestamp: i64,
        records: impl IntoIterator<Item = (i32, Option<Vec<u8>>)>,
    ) {
        let producer: FutureProducer = self.config.create().unwrap();
        let sent = records.into_iter().map(|(partition, value)| {
            let producer = producer.clone();
            async move {
                let deadline = Instant::now() + TIMEOUT;
                loop {
                    let mut record = FutureRecord::<[u8], [u8]>::to(&self.name)
                        .partition(partition)
                        .key(b"k\xff")
                        .timestamp(timestamp)
                        .headers(OwnedHeaders::new().insert(Header {
                            key: "trace",
                            value: Some("t-1"),
                        }));
                    record.payload = value.as_deref();
                    let Err((error, _)) = producer.send(record, TIMEOUT).await else {
                        break;
                    };
                    // A partition that was just added isn't known to every client yet.
                    let unknown = Some(RDKafkaErrorCode::UnknownPartition);
                    assert_eq!(error.rdkafka_error_code(), unknown, "{error}");
                    assert!(Instant::now() < deadline, "{error}");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        });
        futures::future::join_all(sent).await;
    }

    /// Writes JSON records with these ids into a partition.
    pub async fn write_ids(&self, partition: i32, ids: std::ops::Range<i64>) {
        self.write(ids.map(|id| (partition, Some(record(id)))))
            .await;
    }

    /// Writes such a record into partition 0, as a replay for a sink that rejected it does.
    pub async fn write_replayed(&self, id: i64, offset: i64) {
        let offset = offset.to_string();
        let header = |key, value| Header {
            key,
            value: Some(value),
        };
        let headers = OwnedHeaders::new()
            .insert(header(dead_letter::REPLAY_SINK, "rows"))
            .insert(header(dead_letter::REPLAY_OFFSET, &offset));
        let value = record(id);
        let record = FutureRecord::<(), _>::to(&self.name)
            .partition(0)
            .payload(&value)
            .headers(headers);
        let producer: FutureProducer = self.config.create().unwrap();
        producer.send(record, TIMEOUT).await.unwrap();
    }

    /// Writes such records into partition 0, an hour later.
    pub async fn write_ids_later(&self, ids: std::ops::Range<i64>) {
        let records = ids.map(|id| (0, Some(record(id))));
        self.write_at(TIME + 3_600_000, records).await;
    }

    /// Writes such records into partition 0 in a transaction, which is committed or given up.
    pub async fn write_in_transaction(&self, ids: std::ops::Range<i64>, commit: bool) {
        let mut config = self.config.clone();
        config.set("transactional.id", &self.name);
        let producer: FutureProducer = config.create().unwrap();
        tokio::task::block_in_place(|| producer.init_transactions(TIMEOUT)).unwrap();
        producer.begin_transaction().unwrap();
        for record in ids.map(record).collect::<Vec<_>>() {
            let record = FutureRecord::<[u8], [u8]>::to(&self.name)
                .partition(0)
                .payload(&record);
            producer.send(record, TIMEOUT).await.unwrap();
        }
        tokio::task::block_in_place(|| match commit {
            true => producer.commit_transaction(TIMEOUT),
            false => producer.abort_transaction(TIMEOUT),
        })
        .unwrap();
    }
}
