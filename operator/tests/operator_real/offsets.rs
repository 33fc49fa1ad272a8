//! Lag and gaps as Kafka's own offsets show them.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use millstream_api::{
    DataPipelineStatus,
    condition::reason,
    worker::{CommitMetadata, TopicRef},
};
use millstream_operator::{
    kafka::{Kafka, TopicMark},
    pipeline::{
        gap::{self, DataGap},
        offsets::{Offsets, Tails, read},
    },
};
use rdkafka::{
    ClientConfig, Offset, TopicPartitionList,
    admin::{AdminClient, AdminOptions},
    client::DefaultClientContext,
    producer::{BaseProducer, BaseRecord, Producer},
};

use crate::{Environment, eventually, kafka_at, unique};

const PATIENCE: Duration = Duration::from_secs(20);

/// A topic with one partition, and a sink whose group is named as the topic is.
struct Topic<'a> {
    environment: &'a Environment,
    kafka: Kafka,
    name: String,
    tails: Tails,
}

impl<'a> Topic<'a> {
    async fn new(environment: &'a Environment, what: &str) -> Self {
        let topic = Topic {
            environment,
            kafka: environment.kafka(),
            name: unique(what),
            tails: Tails::default(),
        };
        topic.create("one").await;
        topic
    }

    async fn create(&self, id: &str) {
        let config = BTreeMap::new();
        self.kafka
            .create(&self.name, 1, None, &config)
            .await
            .unwrap();
        let mark = TopicMark {
            id: id.into(),
            base: 1,
            written: 1,
            keys: vec!["/id".into()],
        };
        self.kafka.set_mark(&self.name, &mark).await.unwrap();
    }

    fn client(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", self.environment.text("kafka"));
        config
    }

    /// Sends records; nothing where none are asked for.
    fn send(&self, producer: &BaseProducer, records: usize) {
        for _ in 0..records {
            let record = BaseRecord::<str, str>::to(&self.name).payload("{}");
            producer.send(record).map_err(|(error, _)| error).unwrap();
        }
        producer.flush(PATIENCE).unwrap();
    }

    fn produce(&self, records: usize) {
        self.send(&self.client().create().unwrap(), records);
    }

    /// With three records, and the marker of their transaction behind them; nothing is read yet.
    async fn with_a_marker(environment: &'a Environment, what: &str) -> (Self, BaseProducer) {
        let mut topic = Topic::new(environment, what).await;
        let mut client = topic.client();
        client.set("transactional.id", &topic.name);
        let producer: BaseProducer = client.create().unwrap();
        producer.init_transactions(PATIENCE).unwrap();
        producer.begin_transaction().unwrap();
        topic.send(&producer, 3);
        producer.commit_transaction(PATIENCE).unwrap();
        topic.commit(0).await;
        topic.await_lag(4).await;
        (topic, producer)
    }

    /// As somebody does who runs out of space.
    async fn delete_before(&self, offset: i64) {
        let admin: AdminClient<DefaultClientContext> = self.client().create().unwrap();
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(&self.name, 0, Offset::Offset(offset))
            .unwrap();
        admin
            .delete_records(&list, &AdminOptions::new())
            .await
            .unwrap();
    }

    async fn commit(&self, offset: i64) {
        let counts = CommitMetadata {
            rows: offset,
            ..CommitMetadata::default()
        };
        let offsets = BTreeMap::from([(0, (offset, counts))]);
        let committed = self.kafka.commit(&self.name, &self.name, offsets).await;
        assert!(committed.unwrap());
    }

    /// What a visit sees.
    async fn look(&mut self) -> Offsets {
        let groups = [("s".to_string(), self.name.clone())];
        read(&self.kafka, &self.name, 1, &groups, &mut self.tails)
            .await
            .unwrap()
    }

    async fn lag(&mut self) -> i64 {
        self.look().await.sinks[0].lag
    }

    /// Waits for so much at least: Kafka writes the marker of a transaction a moment after it has
    /// promised to, and until then nobody sees the records before it.
    async fn await_lag(&mut self, least: i64) {
        eventually(PATIENCE, async || self.lag().await, |lag| *lag >= least).await;
    }

    async fn gap(&mut self, known_id: &str) -> Option<DataGap> {
        let offsets = self.look().await;
        let before = DataPipelineStatus {
            topic_id: Some(known_id.into()),
            sinks: offsets.statuses(&[]),
            ..DataPipelineStatus::default()
        };
        let topic = TopicRef {
            name: self.name.clone(),
            id: offsets.topic_id.clone().unwrap(),
            timestamp_base: 1,
            partitions: 1,
        };
        gap::find(&before, &topic, &offsets)
    }

    async fn remove(self) {
        self.kafka.delete(&self.name).await.unwrap();
        let _ = self.kafka.delete_groups(&[&self.name]).await;
        self.kafka.forget_mark(&self.name).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn markers_of_transactions_are_no_lag() {
    let Some(environment) = Environment::load() else {
        return;
    };
    let (mut topic, producer) = Topic::with_a_marker(&environment, "markers").await;
    // That there are records is found out where nobody moves.
    assert_eq!(topic.lag().await, 4);
    topic.commit(3).await;
    assert_eq!([topic.lag().await, topic.lag().await], [1, 0]);
    assert_eq!(topic.look().await.ends, [4]);

    producer.begin_transaction().unwrap();
    topic.send(&producer, 5);
    producer.abort_transaction(PATIENCE).unwrap();
    assert_eq!(topic.lag().await, 0, "given up");
    producer.begin_transaction().unwrap();
    topic.send(&producer, 2);
    assert_eq!(topic.lag().await, 0, "not committed yet");
    producer.commit_transaction(PATIENCE).unwrap();
    topic.await_lag(2).await;
    topic.remove().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn servers_that_are_away_hide_no_records() {
    let Some(environment) = Environment::load() else {
        return;
    };
    let topic = Topic::new(&environment, "beside").await;
    topic.produce(1);
    // Several: in which order they are tried is the client's own affair.
    let away = "127.0.0.1:1,127.0.0.1:2,127.0.0.1:3,127.0.0.1:4";
    let kafka = kafka_at(&format!("{away},{}", environment.text("kafka")));
    let from = BTreeMap::from([(0, 0)]);
    let holding = kafka.holding_records(&topic.name, &topic.name, from, vec![1]);
    assert_eq!(holding.await.unwrap(), BTreeSet::from([0]));
    topic.remove().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn markers_that_retention_has_removed_are_no_gap() {
    let Some(environment) = Environment::load() else {
        return;
    };
    let (mut topic, _) = Topic::with_a_marker(&environment, "removed").await;
    assert_eq!(topic.look().await.sinks[0].passable, BTreeMap::new());
    topic.commit(3).await;
    // Nobody reads, so it is looked what is there.
    assert_eq!([topic.lag().await, topic.lag().await], [1, 0]);
    let passable = topic.look().await.sinks[0].passable.clone();
    assert_eq!(passable, BTreeMap::from([(0, 4)]));
    topic.commit(passable[&0]).await;
    topic.delete_before(4).await;
    assert_eq!(topic.gap("one").await, None);
    let seen = topic.look().await;
    assert_eq!((seen.sinks[0].lag, &seen.starts), (0, &vec![4]));
    assert_eq!(seen.sinks[0].passable, BTreeMap::new());
    topic.remove().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn records_that_are_gone_are_a_gap_and_no_lag() {
    let Some(environment) = Environment::load() else {
        return;
    };
    let mut topic = Topic::new(&environment, "gap").await;
    topic.produce(10);
    assert_eq!(topic.lag().await, 10, "nothing is committed yet");
    topic.commit(3).await;
    assert_eq!(topic.gap("one").await, None);
    topic.delete_before(3).await;
    assert_eq!(topic.gap("one").await, None, "read already");

    topic.delete_before(6).await;
    let gap = topic.gap("one").await.unwrap();
    assert_eq!(gap.reason, reason::RETENTION_PASSED);
    assert!(
        gap.lost.contains("records 3 to 5 of partition 0"),
        "{gap:?}"
    );
    assert_eq!(topic.lag().await, 4, "what is there");
    topic.commit(6).await;
    assert_eq!(topic.gap("one").await, None);

    topic.commit(12).await;
    let gap = topic.gap("one").await.unwrap();
    assert_eq!(gap.reason, reason::LOG_TRUNCATED);
    topic.remove().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_made_anew_is_another_one() {
    let Some(environment) = Environment::load() else {
        return;
    };
    let mut topic = Topic::new(&environment, "anew").await;
    topic.produce(10);
    topic.commit(10).await;
    assert_eq!(topic.gap("one").await, None);
    topic.kafka.delete(&topic.name).await.unwrap();
    let config = BTreeMap::new();
    topic
        .kafka
        .create(&topic.name, 1, None, &config)
        .await
        .unwrap();
    // The mark goes with the topic, and so does the offset; each by itself.
    let gone =
        |seen: &Offsets| seen.topic_id.is_none() && seen.sinks[0].committed[0].offset.is_none();
    let seen = eventually(PATIENCE, async || topic.look().await, gone).await;
    assert_eq!(seen.statuses(&[]), [], "what was seen last stays");
    topic.create("two").await;
    let gap = topic.gap("one").await.unwrap();
    assert_eq!(gap.reason, reason::TOPIC_RECREATED);
    topic.remove().await;
}
