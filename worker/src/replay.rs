//! `millstream-worker replay`: dead letters go back to their topic.
//!
//! A record that comes back keeps its place in history: it goes to its old partition with its old
//! key and time, and carries its old offset, from which the timestamp of its row is made; a row
//! that a newer record has written since stays. Only the sink that rejected it takes it. A group whose
//! state has it already doesn't count it again.
//!
//! How far each stage's letters are replayed is the metadata of an offset in the dead-letter topic,
//! committed under a group of its own, in one transaction with the letters before it: a replay that is
//! killed has sent each letter once, or not yet.

use std::{collections::BTreeMap, process::ExitCode, sync::Arc, time::Duration};

use anyhow::{Context, bail};
use bytes::Bytes;
use millstream_api::{
    KafkaConnection,
    worker::{IngestConfig, PipelineRef, WorkerConfig, dead_letter},
};
use millstream_plan::RecordSchema;
use rdkafka::{
    ClientConfig, Message, Offset, TopicPartitionList,
    consumer::{Consumer, ConsumerGroupMetadata, StreamConsumer},
    error::KafkaError,
    message::OwnedMessage,
};
use serde_json::Value;

use crate::{
    avro::{self, encode::Encode},
    config::{Credentials, Mounted},
    dead_letter::{Letter, MAX_KEY_BYTES, Replayed, header_text, is_true},
    kafka,
    stage::{INGEST, key::Keys},
    status::Status,
    transaction::{Admitted, Open, Outgoing, Transactions},
};

/// What follows the help.
pub const EXAMPLES: &str = "\
Examples:
  See what would be replayed:
    kubectl exec deploy/users-process -- millstream-worker replay --dry-run

  Replay what the sink `created-users` rejected, after its SQL was mended:
    kubectl exec deploy/users-process -- millstream-worker replay --sink created-users

  Replay what was rejected before it came into the topic:
    kubectl exec deploy/users-ingest -- millstream-worker replay";

const TIMEOUT: Duration = Duration::from_secs(30);
/// Of a transaction: its letters are held until it is committed.
const CHUNK: usize = 500;
const CHUNK_BYTES: usize = 4 * 1024 * 1024;
/// It runs in the container of a worker, whose memory is given away.
const AHEAD: usize = 1024 * 1024;

/// Send the dead letters that weren't replayed yet to the topic again.
///
/// In a process pod those of its sinks, in an ingest pod those of the source. A record goes to the
/// sink that rejected it and to no other, and never replaces what a newer record wrote.
#[derive(clap::Args)]
pub struct Replay {
    #[command(flatten)]
    mounted: Mounted,
    /// Only the letters of this sink.
    #[arg(long)]
    sink: Option<String>,
    /// Send no more than so many.
    #[arg(long)]
    limit: Option<usize>,
    /// Show each letter and send nothing.
    #[arg(long)]
    dry_run: bool,
}

/// By stage: the offset in the dead-letter topic before which its letters were replayed.
type Progress = BTreeMap<String, i64>;

/// What became of the letters of a stage.
#[derive(Default)]
struct Count {
    replayed: usize,
    skipped: usize,
}

struct Session {
    letters: Letters,
    client: ClientConfig,
    consumer: StreamConsumer,
    /// None while nothing may be sent.
    transactions: Option<Transactions>,
    /// The letters at hand.
    open: Open,
    dry_run: bool,
    counts: BTreeMap<String, Count>,
}

/// The letters that a worker may replay.
struct Letters {
    pipeline: PipelineRef,
    kafka: KafkaConnection,
    /// The dead-letter topic.
    topic: String,
    /// The topic to which they go back.
    origin: String,
    /// Its id, where the letters were in it.
    origin_id: Option<String>,
    /// Whose letters are replayed.
    stages: Vec<String>,
    /// Makes new records, where the letters never came into the topic.
    records: Option<Records>,
}

/// Makes records of what a source gave, as the ingest stage does.
struct Records {
    keys: Keys,
    /// With the id of its schema; none where records are JSON.
    encode: Option<(u32, Encode)>,
}

/// Replays, and prints what was done.
pub async fn run(replay: &Replay) -> anyhow::Result<ExitCode> {
    let (config, credentials) = replay.mounted.load()?;
    let mut session = Session::open(config, &credentials, replay)?;
    let ends = session.partitions()?;
    if !replay.dry_run {
        session.take_over().await?;
    }
    let mut left = replay.limit.unwrap_or(usize::MAX);
    for (partition, end) in ends {
        session.replay(partition, end, &mut left).await?;
    }
    session.report();
    Ok(ExitCode::SUCCESS)
}

impl Session {
    fn open(
        config: WorkerConfig,
        credentials: &Credentials,
        replay: &Replay,
    ) -> anyhow::Result<Self> {
        let mut letters = Letters::of(config)?;
        let stages = &mut letters.stages;
        if let Some(sink) = &replay.sink {
            if !stages.contains(sink) {
                bail!(
                    "there is no sink `{sink}` here; there are {}",
                    stages.join(", ")
                );
            }
            stages.retain(|stage| stage == sink);
        }
        let client = kafka::client(&letters.kafka, credentials, "millstream-replay")?;
        let mut consumer = kafka::fetching_ahead(client.clone(), AHEAD);
        consumer
            .set("group.id", letters.pipeline.replay_group())
            .set("enable.auto.commit", "false")
            .set("enable.partition.eof", "true")
            .set("isolation.level", "read_committed");
        Ok(Session {
            open: Open::new(&letters.origin),
            letters,
            client,
            consumer: consumer.create()?,
            transactions: None,
            dry_run: replay.dry_run,
            counts: BTreeMap::new(),
        })
    }

    /// The partitions of the dead-letter topic, and where each ends now.
    fn partitions(&self) -> anyhow::Result<Vec<(i32, i64)>> {
        let letters = self.letters.topic.as_str();
        tokio::task::block_in_place(|| {
            let seen = self.consumer.fetch_metadata(Some(letters), TIMEOUT);
            let seen = seen.context("Kafka can't be reached")?;
            let topic = seen.topics().first().context("Kafka names no topic")?;
            if let Some(error) = topic.error() {
                let code = rdkafka::error::RDKafkaErrorCode::from(error);
                bail!("can't read the topic {letters}: {code}");
            }
            let partitions = topic.partitions().iter();
            let ends = partitions.map(|partition| {
                let marks = self
                    .consumer
                    .fetch_watermarks(letters, partition.id(), TIMEOUT)?;
                Ok((partition.id(), marks.1))
            });
            ends.collect()
        })
    }

    /// Takes the place of any other replay of the pipeline. Only then how far it came can be read: that
    /// one might be about to commit more.
    async fn take_over(&mut self) -> anyhow::Result<()> {
        let id = self.letters.pipeline.replay_group();
        let status = Arc::new(Status::default()).part("replay");
        let taken = Transactions::take_over(&self.client, &id, status);
        let transactions = tokio::time::timeout(TIMEOUT, taken).await;
        let transactions = transactions.context("Kafka begins no transactions")??;
        transactions.begin()?;
        self.transactions = Some(transactions);
        Ok(())
    }

    /// Replays the letters of a partition, from where the last replay ended.
    async fn replay(&mut self, partition: i32, end: i64, left: &mut usize) -> anyhow::Result<()> {
        let mut progress = match (self.progress(partition), &self.transactions) {
            (Err(_), Some(to)) => {
                // As ingest does it: see `Transactions::clear`.
                to.abort().await?;
                to.clear(self.offsets(partition, 0, "")?).await?;
                to.begin()?;
                self.progress(partition)?
            }
            (progress, _) => progress?,
        };
        let replayed = |progress: &Progress, stage: &str| progress.get(stage).copied().unwrap_or(0);
        let stages = self.letters.stages.iter();
        let start = stages.map(|stage| replayed(&progress, stage));
        let mut next = start.min().unwrap_or(0);
        self.read_from(partition, next)?;
        while *left > 0 && next < end {
            let Some(message) = self.next(partition, end).await? else {
                break;
            };
            next = message.offset() + 1;
            let stage = text(&message, dead_letter::STAGE).unwrap_or_default();
            let wanted = self.letters.stages.contains(&stage);
            if !wanted || message.offset() < replayed(&progress, &stage) {
                continue;
            }
            match self.letter(&message, &stage) {
                Ok(letter) => {
                    *left -= 1;
                    self.show(&message, &stage, "would be replayed");
                    self.open.add(Admitted {
                        records: vec![letter],
                        given: 1,
                        position: Value::Null,
                    });
                }
                Err(reason) => self.skip((partition, message.offset()), stage, &reason),
            }
            if self.open.count() >= CHUNK || self.open.bytes() >= CHUNK_BYTES {
                self.commit(partition, next, &mut progress).await?;
            }
        }
        self.commit(partition, next, &mut progress).await
    }

    /// Reads a partition from an offset on; what retention has removed meanwhile is passed over.
    fn read_from(&self, partition: i32, start: i64) -> anyhow::Result<()> {
        let topic = &self.letters.topic;
        let (low, _) = tokio::task::block_in_place(|| {
            self.consumer.fetch_watermarks(topic, partition, TIMEOUT)
        })?;
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(topic, partition, Offset::Offset(start.max(low)))?;
        Ok(self.consumer.assign(&list)?)
    }

    /// The next letter before an end; none where there is no other.
    async fn next(&self, partition: i32, end: i64) -> anyhow::Result<Option<OwnedMessage>> {
        loop {
            let received = tokio::time::timeout(TIMEOUT, self.consumer.recv()).await;
            return match received.context("Kafka doesn't answer")? {
                Ok(message) if message.offset() < end => Ok(Some(message.detach())),
                Err(KafkaError::PartitionEOF(other)) if other != partition => continue,
                Ok(_) | Err(KafkaError::PartitionEOF(_)) => Ok(None),
                Err(error) => Err(error).context("can't read the dead letters"),
            };
        }
    }

    /// A letter as the record that it was; why it can't be that again, else.
    fn letter(&mut self, message: &OwnedMessage, stage: &str) -> Result<Outgoing, String> {
        if let Some(bytes) = text(message, dead_letter::TRUNCATED_FROM) {
            return Err(format!("only the beginning of its {bytes} bytes was kept"));
        }
        if message.key().is_some_and(|key| key.len() >= MAX_KEY_BYTES) {
            return Err("only the beginning of its key was kept".to_owned());
        }
        self.letters.check_origin(message)?;
        let number = |name| text(message, name).and_then(|text| text.parse::<i64>().ok());
        let mut key = message.key().map(<[u8]>::to_vec);
        let mut value = message.payload().map(Bytes::copy_from_slice);
        let mut replayed = None;
        if let Some(records) = &mut self.letters.records {
            (key, value) = records.make(key, value.unwrap_or_default())?;
        } else {
            replayed = Some(Replayed {
                sink: stage.to_owned(),
                offset: number(dead_letter::OFFSET).ok_or("it doesn't say its offset")?,
                folded: message
                    .headers()
                    .is_some_and(|headers| is_true(headers, dead_letter::FOLDED)),
            });
        }
        let partition = number(dead_letter::PARTITION).and_then(|number| number.try_into().ok());
        let letter = Letter {
            stage: stage.to_owned(),
            place: (message.partition(), message.offset()),
            partition,
            timestamp: number(dead_letter::TIMESTAMP),
            replayed,
        };
        Ok(Outgoing {
            key,
            value,
            letter: Some(Box::new(letter)),
        })
    }

    /// Sends the letters at hand, and keeps that all before an offset are replayed: both, or neither.
    async fn commit(
        &mut self,
        partition: i32,
        next: i64,
        progress: &mut Progress,
    ) -> anyhow::Result<()> {
        for stage in &self.letters.stages {
            let replayed = progress.entry(stage.clone()).or_default();
            *replayed = next.max(*replayed);
        }
        if let Some(transactions) = self.transactions.take() {
            // Also where there are no letters: Kafka forgets what isn't committed for a week.
            let metadata = serde_json::to_string(progress)?;
            let mut again = true;
            while let Err(error) = self
                .try_commit(&transactions, partition, next, &metadata)
                .await
            {
                again = self.give_up(&transactions, error, again).await?;
            }
            transactions.begin()?;
            self.transactions = Some(transactions);
        }
        for record in self.open.records() {
            if let Some(letter) = &record.letter {
                let count = self.counts.entry(letter.stage.clone()).or_default();
                count.replayed += 1;
            }
        }
        self.open.clear();
        Ok(())
    }

    async fn try_commit(
        &mut self,
        to: &Transactions,
        partition: i32,
        next: i64,
        metadata: &str,
    ) -> anyhow::Result<()> {
        self.open.send(to).await?;
        self.open.delivered().await?;
        to.commit(self.offsets(partition, next, metadata)?).await
    }

    /// Gives up what couldn't be committed, and begins again without what Kafka refuses. Where nothing
    /// was refused, it may follow from what was refused before; whether that can be once more.
    async fn give_up(
        &mut self,
        to: &Transactions,
        error: anyhow::Error,
        again: bool,
    ) -> anyhow::Result<bool> {
        let aborted = to.abort().await;
        if to.shut_out() {
            bail!(
                "another replay of this pipeline has begun, and goes on from where this one was; \
                 if none has, Kafka was away for too long: run it again"
            );
        }
        aborted?;
        let again = match self.open.given_up(error).await {
            Ok(refused) => {
                for (record, reason) in refused {
                    if let Some(letter) = record.letter {
                        self.skip(letter.place, letter.stage, &reason);
                    }
                }
                true
            }
            Err(_) if again => false,
            Err(cause) => return Err(cause),
        };
        to.begin()?;
        Ok(again)
    }

    /// What a transaction is to commit to keep how far the letters of a partition are replayed.
    fn offsets(
        &self,
        partition: i32,
        next: i64,
        metadata: &str,
    ) -> anyhow::Result<(TopicPartitionList, ConsumerGroupMetadata)> {
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(&self.letters.topic, partition, Offset::Offset(next))?;
        if let Some(mut element) = list.find_partition(&self.letters.topic, partition) {
            element.set_metadata(metadata);
        }
        let group = self.consumer.group_metadata();
        Ok((list, group.context("the consumer has no group")?))
    }

    fn progress(&self, partition: i32) -> anyhow::Result<Progress> {
        let mut list = TopicPartitionList::new();
        list.add_partition(&self.letters.topic, partition);
        let committed =
            tokio::task::block_in_place(|| self.consumer.committed_offsets(list, TIMEOUT));
        let said = "can't read how far the last replay came";
        let committed = committed.context(said)?;
        let elements = committed.elements();
        let Some(element) = elements.first() else {
            return Ok(Progress::new());
        };
        element.error().context(said)?;
        Ok(serde_json::from_str(element.metadata()).unwrap_or_default())
    }

    fn skip(&mut self, (partition, offset): (i32, i64), stage: String, reason: &str) {
        println!("skipped partition {partition}, offset {offset}, of {stage}: {reason}");
        self.counts.entry(stage).or_default().skipped += 1;
    }

    fn show(&self, message: &OwnedMessage, stage: &str, what: &str) {
        if self.dry_run {
            let (partition, offset) = (message.partition(), message.offset());
            let reason = text(message, dead_letter::REASON).unwrap_or_default();
            println!("{what}: partition {partition}, offset {offset}, of {stage}: {reason}");
        }
    }

    fn report(&self) {
        let done = if self.dry_run {
            "TO REPLAY"
        } else {
            "REPLAYED"
        };
        let longest = self
            .letters
            .stages
            .iter()
            .map(String::len)
            .max()
            .unwrap_or(0)
            .max(5);
        println!("{:longest$}  {done:>9}  {:>7}", "STAGE", "SKIPPED");
        for stage in &self.letters.stages {
            let none = Count::default();
            let Count { replayed, skipped } = self.counts.get(stage).unwrap_or(&none);
            println!("{stage:longest$}  {replayed:>9}  {skipped:>7}");
        }
    }
}

impl Letters {
    fn of(config: WorkerConfig) -> anyhow::Result<Self> {
        Ok(match config {
            WorkerConfig::Ingest(ingest) => Letters {
                records: Some(Records::new(&ingest)?),
                pipeline: ingest.pipeline,
                kafka: ingest.kafka,
                topic: ingest.dead_letter_topic,
                origin: ingest.topic.name,
                origin_id: None,
                stages: vec![INGEST.to_owned()],
            },
            WorkerConfig::Process(process) => Letters {
                records: None,
                pipeline: process.pipeline,
                kafka: process.kafka,
                topic: process.dead_letter_topic,
                origin: process.topic.name,
                origin_id: Some(process.topic.id),
                stages: process.sinks.into_iter().map(|sink| sink.name).collect(),
            },
            WorkerConfig::Serve(_) => bail!(
                "the serve stage has no dead letters: run it where the ingest or the process stage runs"
            ),
        })
    }
}

impl Letters {
    /// Whether a letter can go back to the topic as what it was.
    fn check_origin(&self, message: &OwnedMessage) -> Result<(), String> {
        let origin = text(message, dead_letter::TOPIC).unwrap_or_default();
        if origin != self.origin {
            return Err(format!("it is from another topic, `{origin}`"));
        }
        let id = text(message, dead_letter::TOPIC_ID);
        if id.is_some() && self.origin_id.is_some() && id != self.origin_id {
            return Err(
                "its topic was made anew since, where its place is another record's".into(),
            );
        }
        // As a new record it would come to all sinks, and replace newer ones.
        if self.records.is_some() && text(message, dead_letter::OFFSET).is_some() {
            return Err("it was in the topic: a sink of the name `ingest` has rejected it".into());
        }
        Ok(())
    }
}

impl Records {
    fn new(ingest: &IngestConfig) -> anyhow::Result<Self> {
        let encode = match ingest.avro_schema_id {
            Some(id) => {
                let schema = RecordSchema::parse(&ingest.schema)?;
                Some((id, Encode::new(&schema, &ingest.topic.name, id)?))
            }
            None => None,
        };
        Ok(Records {
            keys: Keys::new(&ingest.key, &ingest.schema)?,
            encode,
        })
    }

    /// Key and value of a record; why the topic can't take it, else.
    fn make(
        &mut self,
        key: Option<Vec<u8>>,
        record: Bytes,
    ) -> Result<(Option<Vec<u8>>, Option<Bytes>), String> {
        let encoded = match &mut self.encode {
            // Kafka refused it as it was: then it has a key, and may be of an older schema.
            Some((id, _))
                if avro::split(&record)
                    .is_ok_and(|(written, _)| key.is_some() || written == *id) =>
            {
                return Ok((key, Some(record)));
            }
            Some((_, encode)) => encode.encode(std::slice::from_ref(&record)).pop(),
            None => None,
        };
        let key = self.keys.admit(&record)?.map(String::into_bytes);
        Ok((key, Some(encoded.unwrap_or(Ok(record))?)))
    }
}

fn text(message: &OwnedMessage, name: &str) -> Option<String> {
    header_text(message.headers()?, name).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use rdkafka::{
        Timestamp,
        message::{Header, OwnedHeaders},
    };

    use super::*;

    /// A letter of the stage `ingest`, with these headers.
    fn letter(headers: &[(&str, &str)]) -> OwnedMessage {
        let headers = headers.iter().map(|(key, value)| Header {
            key,
            value: Some(*value),
        });
        let headers = headers.fold(OwnedHeaders::new(), OwnedHeaders::insert);
        let at = Timestamp::NotAvailable;
        let topic = "users.dead-letter".into();
        OwnedMessage::new(None, None, topic, at, 0, 0, Some(headers))
    }

    fn letters(is_ingest: bool) -> Letters {
        let records = || Records {
            keys: Keys::new(&[], "id UUID").unwrap(),
            encode: None,
        };
        Letters {
            pipeline: PipelineRef {
                namespace: "shop".into(),
                name: "users".into(),
            },
            kafka: KafkaConnection {
                bootstrap_servers: "k:9092".into(),
                sasl: None,
                tls: None,
            },
            topic: "users.dead-letter".into(),
            origin: "users".into(),
            origin_id: (!is_ingest).then(|| "0x1f".into()),
            stages: vec![INGEST.to_owned()],
            records: is_ingest.then(records),
        }
    }

    #[test]
    fn only_letters_of_its_own_go_back_to_the_topic() {
        let mine = (dead_letter::TOPIC, "users");
        let there = (dead_letter::OFFSET, "7");
        let id = (dead_letter::TOPIC_ID, "0x1f");
        for (headers, is_ingest) in [(&[mine][..], true), (&[mine, id, there], false)] {
            let checked = letters(is_ingest).check_origin(&letter(headers));
            assert_eq!(checked, Ok(()), "{headers:?}");
        }
        for (headers, is_ingest, said) in [
            (
                &[(dead_letter::TOPIC, "orders")][..],
                true,
                "another topic, `orders`",
            ),
            (&[mine, (dead_letter::TOPIC_ID, "0x20")], false, "made anew"),
            (&[mine, id, there], true, "a sink of the name `ingest`"),
        ] {
            let reason = letters(is_ingest).check_origin(&letter(headers));
            let reason = reason.unwrap_err();
            assert!(reason.contains(said), "{reason}");
        }
    }
}
