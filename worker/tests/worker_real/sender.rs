//! Batches of records that are in the topic once, whatever happens to Kafka while they are sent.

use std::{
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use rdkafka::{
    ClientConfig, Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer},
    error::KafkaResult,
    producer::{BaseRecord, DefaultProducerContext, Producer, ThreadedProducer},
};
use tokio::sync::oneshot;

use crate::support::Pipeline;

const TIMEOUT: Duration = Duration::from_secs(10);
/// Kafka may be restarted several times meanwhile.
const PATIENCE: Duration = Duration::from_secs(300);
/// For one attempt.
const ATTEMPT: Duration = Duration::from_secs(60);

/// Sends each batch in a transaction with its number, and so knows which of them were committed. Each attempt
/// is a new producer's: one that Kafka was taken from at the wrong moment may never connect again.
#[derive(Clone)]
pub struct Sender {
    producer: ClientConfig,
    group: ClientConfig,
    topic: String,
    batches: i64,
}

impl Sender {
    /// Sends to the topic of the pipeline.
    pub fn to(pipeline: &Pipeline) -> Self {
        let topic = pipeline.name.clone();
        let (mut producer, mut group) = (pipeline.client(), pipeline.client());
        producer
            .set("transactional.id", format!("{topic}-sender"))
            // As the ingest stage does it.
            .set("partitioner", "murmur2_random");
        group.set("group.id", format!("{topic}-sender"));
        Sender {
            producer,
            group,
            topic,
            batches: 0,
        }
    }

    /// Sends records with their keys, in this order.
    pub async fn send(&mut self, records: Vec<(String, Vec<u8>)>) {
        self.batches += 1;
        let (deadline, records) = (Instant::now() + PATIENCE, Arc::new(records));
        loop {
            let (sender, records) = (self.clone(), records.clone());
            let (done, result) = oneshot::channel();
            // It may never come back: see `Transactions::call`.
            thread::spawn(move || done.send(sender.attempt(&records)));
            match tokio::time::timeout(ATTEMPT, result).await {
                Ok(Ok(Ok(()))) => return,
                other => assert!(Instant::now() < deadline, "{other:?}"),
            }
        }
    }

    fn attempt(&self, records: &[(String, Vec<u8>)]) -> KafkaResult<()> {
        let producer: ThreadedProducer<DefaultProducerContext> = self.producer.create()?;
        // What an attempt before has left is committed or given up then.
        producer.init_transactions(TIMEOUT)?;
        let group: BaseConsumer = self.group.create()?;
        let mut number = TopicPartitionList::new();
        number.add_partition(&self.topic, 0);
        let members = group.group_metadata().expect("it has a group");
        let found = group.committed_offsets(number.clone(), TIMEOUT);
        if found.is_err() {
            // As the ingest stage does it: see `Transactions::clear`.
            number.set_partition_offset(&self.topic, 0, Offset::Offset(0))?;
            producer.begin_transaction()?;
            producer.send_offsets_to_transaction(&number, &members, TIMEOUT)?;
            producer.abort_transaction(TIMEOUT)?;
        }
        let mut number = found?;
        let batch = Offset::Offset(self.batches);
        if number.elements()[0].offset() == batch {
            return Ok(());
        }
        producer.begin_transaction()?;
        for (key, value) in records {
            let record = BaseRecord::to(&self.topic).key(key).payload(value);
            producer.send(record).map_err(|(error, _)| error)?;
        }
        number.set_partition_offset(&self.topic, 0, batch)?;
        producer.send_offsets_to_transaction(&number, &members, TIMEOUT)?;
        producer.commit_transaction(TIMEOUT)
    }
}
