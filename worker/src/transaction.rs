//! Records go to Kafka in one transaction with the source's position after them: whoever reads them
//! sees them once, whatever dies in between.
//!
//! The protocol of an ingest stage, from its start on:
//! 1. It takes over the pipeline's transactional id. What a worker before it had open is given up
//!    then, and that worker can't commit anything any more, should it wake up.
//! 2. It reads the position that was committed last, and opens the source there.
//! 3. It sends records, and commits them with the position after them: both are there, or neither.
//!
//! What the producer can't mend (it was shut out, the transaction has timed out, it is lost or doesn't
//! go on) ends in step 1, with a new producer. A transaction that is given up while the producer lives
//! is sent again, see [`Open`].
//!
//! The replay of dead letters does the same, with an id of its own; its position is how far it came.

use std::{
    collections::VecDeque,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use anyhow::Context;
use bytes::Bytes;
use rdkafka::{
    ClientConfig, TopicPartitionList,
    consumer::ConsumerGroupMetadata,
    error::{KafkaError, KafkaResult, RDKafkaErrorCode},
    producer::{DeliveryFuture, FutureRecord, Producer as _},
};
use serde_json::Value;
use tokio::sync::oneshot;

use crate::{
    dead_letter::Letter,
    kafka::{self, BATCH_BYTES, LOST, Producer},
    retry::Delays,
    status::StatusPart,
};

const TIMEOUT: Duration = Duration::from_secs(10);
/// A call that takes longer than this, though it has a timeout of its own, may never come back
/// (<https://github.com/confluentinc/librdkafka/issues/5511>).
const HUNG: Duration = Duration::from_secs(30);
const CONCERN: &str = "transaction";

/// A producer doesn't go on, though it may have a broker: another one may. With librdkafka 2.12 it was seen to
/// wait for ever for a transaction that Kafka was restarted under.
#[derive(Debug, thiserror::Error)]
#[error("the producer doesn't go on: another one tries")]
pub struct Stalled;

/// A producer that has taken over. While one of its transactions is open, those who read the topic wait
/// for its end.
pub struct Transactions {
    producer: Producer,
    status: StatusPart,
}

impl Transactions {
    /// Takes the place of any worker that had the id before: its open transaction is given up, and
    /// it can't commit another one. Tries until Kafka answers.
    pub async fn take_over(
        client: &ClientConfig,
        id: &str,
        status: StatusPart,
    ) -> anyhow::Result<Self> {
        let transactions = Transactions {
            producer: kafka::transactional_producer(client, id, status.clone())?,
            status,
        };
        let taken = transactions.call(|producer| producer.init_transactions(TIMEOUT));
        taken.await.context("can't take over the transactions")?;
        Ok(transactions)
    }

    /// Opens a transaction. Kafka doesn't hear of it before something is sent.
    pub fn begin(&self) -> KafkaResult<()> {
        self.producer.begin_transaction()
    }

    /// Ends the transaction: its records and these offsets of the group, whose metadata tell the position
    /// after them, are there, or neither.
    pub async fn commit(
        &self,
        (offsets, group): (TopicPartitionList, ConsumerGroupMetadata),
    ) -> anyhow::Result<()> {
        let group = Arc::new(group);
        self.call(move |producer| producer.send_offsets_to_transaction(&offsets, &group, TIMEOUT))
            .await?;
        self.call(|producer| producer.commit_transaction(TIMEOUT))
            .await
    }

    /// Begins a transaction with these offsets of the group, and gives it up. Where Kafka was restarted it may
    /// hold those of one that is over for pending, and tells nobody the group's offsets before the end of
    /// the next one that has any (seen with 4.4).
    pub async fn clear(
        &self,
        (offsets, group): (TopicPartitionList, ConsumerGroupMetadata),
    ) -> anyhow::Result<()> {
        self.begin()?;
        let group = Arc::new(group);
        self.call(move |producer| producer.send_offsets_to_transaction(&offsets, &group, TIMEOUT))
            .await?;
        self.abort().await
    }

    /// Ends when Kafka can't be reached, and another producer may do better.
    pub async fn lost(&self) {
        self.producer.lost().await;
    }

    /// Gives the open transaction up.
    pub async fn abort(&self) -> anyhow::Result<()> {
        self.call(|producer| producer.abort_transaction(TIMEOUT))
            .await
    }

    /// Why the producer can't go on, if it can't.
    pub fn fatal_error(&self) -> Option<String> {
        kafka::fatal_error(&self.producer)
    }

    /// Whether somebody else has taken over.
    pub fn shut_out(&self) -> bool {
        let fatal = self.producer.client().fatal_error();
        fatal.is_some_and(|(code, _)| code == RDKafkaErrorCode::Fenced)
    }

    /// Calls the client, which blocks, while it says that another try may help, for as long as is enough.
    async fn call(
        &self,
        call: impl Fn(&Producer) -> KafkaResult<()> + Clone + Send + 'static,
    ) -> anyhow::Result<()> {
        let mut delays = Delays::up_to(Duration::from_secs(5));
        let begun = Instant::now();
        loop {
            let (producer, call) = (self.producer.clone(), call.clone());
            let (done, result) = oneshot::channel();
            // Not one of the runtime's, which would be waited for at its end.
            thread::Builder::new().spawn(move || done.send(call(&producer)))?;
            let result = tokio::time::timeout(HUNG, result).await;
            match result.map_err(|_| Stalled)?? {
                Err(KafkaError::Transaction(error)) if error.is_retriable() => {
                    let message = format!("Kafka keeps a transaction waiting: {error}");
                    if begun.elapsed() > LOST {
                        return Err(anyhow::Error::new(Stalled).context(message));
                    }
                    self.status.fail(CONCERN, message);
                    delays.wait().await;
                }
                ended => {
                    self.status.clear(CONCERN);
                    return Ok(ended?);
                }
            }
        }
    }
}

/// A record for the topic.
#[derive(Debug, PartialEq)]
pub struct Outgoing {
    /// Its key.
    pub key: Option<Vec<u8>>,
    /// Its value.
    pub value: Option<Bytes>,
    /// What else it was as a dead letter, where it comes back.
    pub letter: Option<Box<Letter>>,
}

impl Outgoing {
    /// A record that comes for the first time.
    pub fn new(key: Option<String>, value: Bytes) -> Self {
        Outgoing {
            key: key.map(String::into_bytes),
            value: Some(value),
            letter: None,
        }
    }

    fn bytes(&self) -> usize {
        self.key.as_ref().map_or(0, Vec::len) + self.value.as_ref().map_or(0, Bytes::len)
    }

    fn message<'a>(&'a self, topic: &'a str) -> FutureRecord<'a, [u8], [u8]> {
        let letter = self.letter.as_deref();
        FutureRecord {
            topic,
            partition: letter.and_then(|letter| letter.partition),
            key: self.key.as_deref(),
            payload: self.value.as_deref(),
            timestamp: letter.and_then(|letter| letter.timestamp),
            headers: letter.and_then(|letter| Some(letter.replayed.as_ref()?.headers())),
        }
    }
}

/// A batch of the source, as the topic takes it.
pub struct Admitted {
    /// Its records, without those that went to the dead letters.
    pub records: Vec<Outgoing>,
    /// Records that the source gave for it.
    pub given: i64,
    /// The source's position after it.
    pub position: Value,
}

impl Admitted {
    /// Bytes of all keys and values.
    pub fn bytes(&self) -> usize {
        self.records.iter().map(Outgoing::bytes).sum()
    }
}

/// The open transaction. Its records are held until it is committed: where it has to be given up they
/// are sent again, without those that Kafka refused. A source needn't give them twice.
pub struct Open {
    topic: String,
    records: Vec<Held>,
    /// So many of them were handed to the producer.
    sent: usize,
    /// What is on its way, with its index.
    deliveries: VecDeque<(usize, DeliveryFuture)>,
    /// Whether the next attempt is to be another one than this.
    learned: bool,
    /// The first error that didn't follow from another.
    cause: Option<KafkaError>,
    bytes: usize,
    given: i64,
    position: Option<Value>,
    /// For how long nothing need be delivered.
    patience: Duration,
}

/// A record of the open transaction. Kafka takes or refuses records in batches: one that was refused
/// with others is sent alone, and only what is refused then is at fault.
struct Held {
    record: Outgoing,
    alone: bool,
    /// Why Kafka refuses it, if it does.
    refused: Option<String>,
}

impl Held {
    fn new(record: Outgoing) -> Self {
        Held {
            record,
            alone: false,
            refused: None,
        }
    }
}

impl Open {
    /// A transaction without records.
    pub fn new(topic: &str) -> Self {
        Open {
            topic: topic.to_owned(),
            records: Vec::new(),
            sent: 0,
            deliveries: VecDeque::new(),
            learned: false,
            cause: None,
            bytes: 0,
            given: 0,
            position: None,
            patience: LOST,
        }
    }

    /// Empties it, after it was committed.
    pub fn clear(&mut self) {
        let topic = std::mem::take(&mut self.topic);
        *self = Open::new(&topic);
    }

    /// Adds a batch; nothing of it is sent yet.
    pub fn add(&mut self, batch: Admitted) {
        self.bytes += batch.bytes();
        self.records
            .extend(batch.records.into_iter().map(Held::new));
        self.given += batch.given;
        self.position = Some(batch.position);
    }

    /// Its records.
    pub fn records(&self) -> impl Iterator<Item = &Outgoing> {
        self.records.iter().map(|held| &held.record)
    }

    /// Number of records.
    pub fn count(&self) -> usize {
        self.records.len()
    }

    /// Bytes of all keys and values that were added.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Records that the source gave for it.
    pub fn given(&self) -> i64 {
        self.given
    }

    /// The source's position after the last batch; none where there is no batch.
    pub fn position(&self) -> Option<&Value> {
        self.position.as_ref()
    }

    /// Hands to the producer what it doesn't have yet; waits while its queue is full.
    pub async fn send(&mut self, to: &Transactions) -> anyhow::Result<()> {
        let mut delay = Duration::from_millis(1);
        let mut sent_last = Instant::now();
        while self.sent < self.records.len() {
            let alone = self.records[self.sent].alone;
            if alone {
                self.delivered().await?;
            }
            let message = self.records[self.sent].record.message(&self.topic);
            let sent = to.producer.send_result(message);
            match sent.map_err(|(error, _)| error) {
                Ok(delivery) => {
                    self.deliveries.push_back((self.sent, delivery));
                    self.sent += 1;
                    sent_last = Instant::now();
                }
                Err(KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull)) => {
                    if sent_last.elapsed() > self.patience {
                        return Err(Stalled.into());
                    }
                    // The client has no signal for room in its queue.
                    to.status.turned();
                    tokio::time::sleep(delay).await;
                    delay = (delay * 2).min(Duration::from_millis(100));
                    continue;
                }
                Err(error) => return self.failed(self.sent, error),
            }
            if alone {
                self.delivered().await?;
            }
        }
        Ok(())
    }

    /// Returns when Kafka has all that was sent, or doesn't take one of them.
    pub async fn delivered(&mut self) -> anyhow::Result<()> {
        while let Some((index, delivery)) = self.deliveries.pop_front() {
            let delivered = tokio::time::timeout(self.patience, delivery).await;
            if let Err((error, _)) = delivered.map_err(|_| Stalled)?? {
                return self.failed(index, error);
            }
        }
        Ok(())
    }

    /// Goes back to where nothing was sent, after the transaction was given up by an error. Takes out
    /// what Kafka refuses, with the reason. Fails with the cause of the error where nothing is known by
    /// which the next attempt could do better.
    pub async fn given_up(
        &mut self,
        error: anyhow::Error,
    ) -> anyhow::Result<Vec<(Outgoing, String)>> {
        while !self.deliveries.is_empty() {
            // Each of these takes one at least.
            let _ = self.delivered().await;
        }
        self.sent = 0;
        let cause = self.cause.take();
        if !std::mem::take(&mut self.learned) {
            return Err(match cause {
                Some(cause) => anyhow::Error::new(cause).context(self.concerns()),
                None => error,
            });
        }
        let mut refused = Vec::new();
        for mut held in std::mem::take(&mut self.records) {
            match held.refused.take() {
                Some(reason) => refused.push((held.record, reason)),
                None => self.records.push(held),
            }
        }
        Ok(refused)
    }

    /// Takes note of an error, by which the transaction can't be committed; and of a record that the
    /// topic doesn't take, such as one that is too large for it.
    fn failed(&mut self, index: usize, error: KafkaError) -> anyhow::Result<()> {
        use RDKafkaErrorCode as Code;
        let held = &mut self.records[index];
        match error.rdkafka_error_code() {
            Some(Code::MessageSizeTooLarge | Code::InvalidRecord | Code::InvalidMessageSize) => {
                self.learned = true;
                match held.alone || held.record.bytes() > BATCH_BYTES {
                    true => held.refused = Some(format!("Kafka refuses the record: {error}")),
                    false => held.alone = true,
                }
            }
            // These follow from another error.
            Some(Code::PurgeQueue | Code::PurgeInflight | Code::State) => {}
            _ => {
                self.cause.get_or_insert_with(|| error.clone());
            }
        }
        Err(error).with_context(|| self.concerns())
    }

    fn concerns(&self) -> String {
        format!("can't write to the topic {}", self.topic)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(values: &[&'static str], position: i64) -> Admitted {
        let records = values
            .iter()
            .map(|value| Outgoing::new(Some("k".into()), Bytes::from_static(value.as_bytes())));
        Admitted {
            records: records.collect(),
            given: 3,
            position: position.into(),
        }
    }

    fn fail(open: &mut Open, code: RDKafkaErrorCode, indexes: &[usize]) {
        for index in indexes {
            let error = KafkaError::MessageProduction(code);
            assert!(open.failed(*index, error).is_err());
        }
    }

    async fn given_up(open: &mut Open) -> Result<Vec<(Outgoing, String)>, String> {
        let refused = open.given_up(anyhow::anyhow!("it failed")).await;
        refused.map_err(|error| format!("{error:#}"))
    }

    fn values(open: &Open) -> Vec<&[u8]> {
        let values = open.records().map(|record| record.value.as_deref());
        values.map(Option::unwrap).collect()
    }

    #[tokio::test]
    async fn what_is_given_up_is_sent_again_without_what_was_refused() {
        use RDKafkaErrorCode::{MessageSizeTooLarge, PurgeQueue};
        let mut open = Open::new("t");
        assert_eq!((open.count(), open.position()), (0, None));
        open.add(batch(&["a", "too large", "c"], 1));
        open.add(batch(&["also too large", "e"], 2));
        assert_eq!((open.given(), open.bytes()), (6, 31));

        // The first three were one batch.
        open.sent = 5;
        fail(&mut open, MessageSizeTooLarge, &[0, 1, 2]);
        fail(&mut open, PurgeQueue, &[3, 4]);
        assert_eq!(given_up(&mut open).await, Ok(vec![]), "which isn't known");
        assert_eq!((open.count(), open.sent), (5, 0));
        let alone: Vec<_> = open.records.iter().map(|held| held.alone).collect();
        assert_eq!(alone, [true, true, true, false, false]);

        open.sent = 2;
        fail(&mut open, MessageSizeTooLarge, &[1]);
        let refused = given_up(&mut open).await.unwrap();
        assert_eq!(refused.len(), 1);
        assert_eq!(refused[0].0.value.as_deref(), Some(&b"too large"[..]));
        assert!(refused[0].1.starts_with("Kafka refuses the record"));
        let left: [&[u8]; 4] = [b"a", b"c", b"also too large", b"e"];
        assert_eq!(values(&open), left);
        assert_eq!((open.given(), open.position()), (6, Some(&2.into())));
        fail(&mut open, PurgeQueue, &[0]);
        assert_eq!(given_up(&mut open).await, Err("it failed".into()));
        fail(&mut open, PurgeQueue, &[0]);
        fail(&mut open, RDKafkaErrorCode::UnknownTopic, &[1]);
        let cause = given_up(&mut open).await.unwrap_err();
        assert!(cause.contains("UnknownTopic"), "{cause}");
        open.clear();
        assert_eq!((open.count(), open.bytes(), open.given()), (0, 0, 0));
    }

    #[tokio::test]
    async fn a_producer_that_delivers_nothing_is_given_up() {
        let mut client = ClientConfig::new();
        client.set("bootstrap.servers", "127.0.0.1:1");
        let status = Arc::new(crate::status::Status::default()).part("ingest");
        let producer = kafka::producer(&client, status).unwrap();
        let mut open = Open::new("t");
        open.patience = Duration::from_millis(50);
        open.add(batch(&["a"], 1));
        let sent = producer.send_result(open.records[0].record.message("t"));
        open.deliveries.push_back((0, sent.unwrap()));
        let error = open.delivered().await.unwrap_err();
        assert!(error.is::<Stalled>(), "{error:#}");
    }

    #[test]
    fn a_record_larger_than_a_batch_is_alone_from_the_start() {
        let mut open = Open::new("t");
        open.add(Admitted {
            records: vec![Outgoing::new(None, vec![0; BATCH_BYTES + 1].into())],
            given: 1,
            position: Value::Null,
        });
        fail(&mut open, RDKafkaErrorCode::MessageSizeTooLarge, &[0]);
        assert!(open.records[0].refused.is_some());
    }
}
