//! `millstream-worker replay`: dead letters go back to their topic.
//!
//! A record that comes back keeps its place in history: it goes to its old partition with its old
//! key and time, and carries its old offset, from which the timestamp of its row is made; a row
//! that a newer record has written since stays. Only the sink that rejected it takes it.
//!
//! How far each stage's letters are replayed is the metadata of an offset in the dead-letter topic,
//! committed under a group of its own.

use std::{collections::BTreeMap, process::ExitCode, time::Duration};

use anyhow::{Context, bail};
use futures::future::try_join_all;
use millstream_api::worker::{WorkerConfig, dead_letter};
use rdkafka::{
    ClientConfig, Message, Offset, TopicPartitionList,
    consumer::{CommitMode, Consumer, StreamConsumer},
    error::KafkaError,
    message::{BorrowedMessage, Header, Headers, OwnedHeaders},
    producer::{FutureProducer, FutureRecord},
    util::Timeout,
};

use crate::{
    config::{Credentials, Mounted},
    dead_letter::MAX_KEY_BYTES,
    kafka,
    stage::{INGEST, key::Keys},
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
/// Letters between commits; those after the last commit are sent again after a crash.
const CHUNK: usize = 500;
const CHUNK_BYTES: usize = 16 * 1024 * 1024;

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

/// A letter on its way back.
struct Letter {
    stage: String,
    /// Where it is in the dead-letter topic.
    place: (i32, i64),
    partition: Option<i32>,
    key: Option<Vec<u8>>,
    value: Option<Vec<u8>>,
    timestamp: Option<i64>,
    headers: OwnedHeaders,
}

struct Session {
    topic: String,
    letters: String,
    /// Whose letters are replayed.
    stages: Vec<String>,
    /// The key of a record that never had one.
    keys: Option<Keys>,
    consumer: StreamConsumer,
    producer: FutureProducer,
    dry_run: bool,
    counts: BTreeMap<String, Count>,
}

/// Replays, and prints what was done.
pub async fn run(replay: &Replay) -> anyhow::Result<ExitCode> {
    let (config, credentials) = replay.mounted.load()?;
    let mut session = Session::open(config, &credentials, replay)?;
    let ends = session.partitions()?;
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
        let (pipeline, connection, topic, letters, mut stages, keys) = match config {
            WorkerConfig::Ingest(ingest) if ingest.avro_schema_id.is_some() => bail!(
                "the records of the topic {} are Avro, and what the source's dead letters hold is JSON: they can't be replayed; mend the source, and let it give them again",
                ingest.topic.name
            ),
            WorkerConfig::Ingest(ingest) => {
                let keys = Some(Keys::new(&ingest.key, &ingest.schema)?);
                let stages = vec![INGEST.to_owned()];
                let (topic, letters) = (ingest.topic.name, ingest.dead_letter_topic);
                (ingest.pipeline, ingest.kafka, topic, letters, stages, keys)
            }
            WorkerConfig::Process(process) => {
                let stages = process.sinks.into_iter().map(|sink| sink.name).collect();
                let (topic, letters) = (process.topic.name, process.dead_letter_topic);
                (
                    process.pipeline,
                    process.kafka,
                    topic,
                    letters,
                    stages,
                    None,
                )
            }
            WorkerConfig::Serve(_) => bail!(
                "the serve stage has no dead letters: run it where the ingest or the process stage runs"
            ),
        };
        if let Some(sink) = &replay.sink {
            if !stages.contains(sink) {
                bail!(
                    "there is no sink `{sink}` here; there are {}",
                    stages.join(", ")
                );
            }
            stages.retain(|stage| stage == sink);
        }
        let client = kafka::client(&connection, credentials, "millstream-replay")?;
        let mut consumer = client.clone();
        consumer
            .set("group.id", pipeline.replay_group())
            .set("enable.auto.commit", "false")
            .set("enable.partition.eof", "true")
            .set("isolation.level", "read_committed");
        Ok(Session {
            topic,
            letters,
            stages,
            keys,
            consumer: consumer.create()?,
            producer: producer(client).create()?,
            dry_run: replay.dry_run,
            counts: BTreeMap::new(),
        })
    }

    /// The partitions of the dead-letter topic, and where each ends now.
    fn partitions(&self) -> anyhow::Result<Vec<(i32, i64)>> {
        let letters = self.letters.as_str();
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

    /// Replays the letters of a partition, from where the last replay ended.
    async fn replay(&mut self, partition: i32, end: i64, left: &mut usize) -> anyhow::Result<()> {
        let mut progress = self.progress(partition)?;
        let replayed = |progress: &Progress, stage: &str| progress.get(stage).copied().unwrap_or(0);
        let start = self.stages.iter().map(|stage| replayed(&progress, stage));
        let start = start.min().unwrap_or(0);
        let mut chunk = Vec::new();
        let mut bytes = 0;
        let mut next = start;
        let consumer = &self.consumer;
        let mut list = TopicPartitionList::new();
        // What retention has removed meanwhile is passed over.
        let (low, _) = tokio::task::block_in_place(|| {
            consumer.fetch_watermarks(&self.letters, partition, TIMEOUT)
        })?;
        list.add_partition_offset(&self.letters, partition, Offset::Offset(start.max(low)))?;
        consumer.assign(&list)?;
        while *left > 0 && next < end {
            let received = tokio::time::timeout(TIMEOUT, self.consumer.recv()).await;
            let message = match received.context("Kafka doesn't answer")? {
                Ok(message) if message.offset() < end => message,
                Err(KafkaError::PartitionEOF(other)) if other != partition => continue,
                Ok(_) | Err(KafkaError::PartitionEOF(_)) => break,
                Err(error) => return Err(error).context("can't read the dead letters"),
            };
            next = message.offset() + 1;
            let stage = text(&message, dead_letter::STAGE).unwrap_or_default();
            let wanted = self.stages.contains(&stage);
            if !wanted || message.offset() < replayed(&progress, &stage) {
                continue;
            }
            match self.letter(&message, &stage) {
                Ok(letter) => {
                    *left -= 1;
                    bytes += message.payload_len();
                    self.show(&message, &stage, "would be replayed");
                    chunk.push(letter);
                }
                Err(reason) => {
                    self.counts.entry(stage.clone()).or_default().skipped += 1;
                    let offset = message.offset();
                    println!(
                        "skipped partition {partition}, offset {offset}, of {stage}: {reason}"
                    );
                }
            }
            drop(message);
            if chunk.len() >= CHUNK || bytes >= CHUNK_BYTES {
                bytes = 0;
                self.send(std::mem::take(&mut chunk)).await?;
                self.keep(partition, next, &mut progress)?;
            }
        }
        self.send(chunk).await?;
        self.keep(partition, next, &mut progress)
    }

    /// A letter as the record that it was; why it can't be that again, else.
    fn letter(&self, message: &BorrowedMessage<'_>, stage: &str) -> Result<Letter, String> {
        if let Some(bytes) = text(message, dead_letter::TRUNCATED_FROM) {
            return Err(format!("only the beginning of its {bytes} bytes was kept"));
        }
        if message.key().is_some_and(|key| key.len() >= MAX_KEY_BYTES) {
            return Err("only the beginning of its key was kept".to_owned());
        }
        let origin = text(message, dead_letter::TOPIC).unwrap_or_default();
        if origin != self.topic {
            return Err(format!("it is from another topic, `{origin}`"));
        }
        let number = |name| text(message, name).and_then(|text| text.parse::<i64>().ok());
        let mut key = message.key().map(<[u8]>::to_vec);
        let mut headers = OwnedHeaders::new();
        let partition = number(dead_letter::PARTITION).and_then(|number| number.try_into().ok());
        if let Some(keys) = &self.keys {
            key = keys
                .admit(message.payload().unwrap_or_default())?
                .map(String::into_bytes);
        } else {
            let offset = number(dead_letter::OFFSET).ok_or("it doesn't say its offset")?;
            headers = headers
                .insert(Header {
                    key: dead_letter::REPLAY_SINK,
                    value: Some(stage),
                })
                .insert(Header {
                    key: dead_letter::REPLAY_OFFSET,
                    value: Some(&offset.to_string()),
                });
        }
        Ok(Letter {
            stage: stage.to_owned(),
            place: (message.partition(), message.offset()),
            partition,
            key,
            value: message.payload().map(<[u8]>::to_vec),
            timestamp: number(dead_letter::TIMESTAMP),
            headers,
        })
    }

    /// Sends letters; returns when Kafka has them.
    async fn send(&mut self, letters: Vec<Letter>) -> anyhow::Result<()> {
        for letter in &letters {
            self.counts
                .entry(letter.stage.clone())
                .or_default()
                .replayed += 1;
        }
        if self.dry_run {
            return Ok(());
        }
        let sent = letters.iter().map(|letter| async {
            let record = FutureRecord {
                topic: &self.topic,
                partition: letter.partition,
                key: letter.key.as_ref(),
                payload: letter.value.as_ref(),
                timestamp: letter.timestamp,
                headers: Some(letter.headers.clone()),
            };
            let sent = self.producer.send(record, Timeout::After(TIMEOUT)).await;
            sent.map_err(|(error, _)| error).with_context(|| {
                let ((partition, offset), topic) = (letter.place, &self.topic);
                format!("can't write the letter at partition {partition}, offset {offset} to the topic {topic}")
            })
        });
        try_join_all(sent).await?;
        Ok(())
    }

    fn progress(&self, partition: i32) -> anyhow::Result<Progress> {
        let mut list = TopicPartitionList::new();
        list.add_partition(&self.letters, partition);
        let committed =
            tokio::task::block_in_place(|| self.consumer.committed_offsets(list, TIMEOUT));
        let committed = committed.context("can't read how far the last replay came")?;
        let elements = committed.elements();
        let metadata = elements.first().map(|element| element.metadata());
        Ok(serde_json::from_str(metadata.unwrap_or_default()).unwrap_or_default())
    }

    /// Keeps how far the letters are replayed.
    fn keep(&self, partition: i32, next: i64, progress: &mut Progress) -> anyhow::Result<()> {
        for stage in &self.stages {
            let replayed = progress.entry(stage.clone()).or_default();
            *replayed = next.max(*replayed);
        }
        if self.dry_run {
            return Ok(());
        }
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(&self.letters, partition, Offset::Offset(next))?;
        if let Some(mut element) = list.find_partition(&self.letters, partition) {
            element.set_metadata(serde_json::to_string(progress)?);
        }
        tokio::task::block_in_place(|| self.consumer.commit(&list, CommitMode::Sync)).context(
            "can't keep how far the letters are replayed: those of this run will be replayed again",
        )
    }

    fn show(&self, message: &BorrowedMessage<'_>, stage: &str, what: &str) {
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
            .stages
            .iter()
            .map(String::len)
            .max()
            .unwrap_or(0)
            .max(5);
        println!("{:longest$}  {done:>9}  {:>7}", "STAGE", "SKIPPED");
        for stage in &self.stages {
            let none = Count::default();
            let Count { replayed, skipped } = self.counts.get(stage).unwrap_or(&none);
            println!("{stage:longest$}  {replayed:>9}  {skipped:>7}");
        }
    }
}

fn producer(mut client: ClientConfig) -> ClientConfig {
    client
        .set("enable.idempotence", "true")
        .set("acks", "all")
        .set("message.timeout.ms", TIMEOUT.as_millis().to_string())
        .set("partitioner", "murmur2_random")
        .set("message.max.bytes", (2 * CHUNK_BYTES).to_string());
    client
}

/// A header as text.
fn text(message: &BorrowedMessage<'_>, name: &str) -> Option<String> {
    let headers = message.headers()?;
    let header = headers.iter().find(|header| header.key == name)?;
    String::from_utf8(header.value?.to_vec()).ok()
}
