//! Records of a Kafka topic that is there already, also of another cluster.
//!
//! The topic is copied into the pipeline's own: that gives the records the pipeline's key and
//! encoding, and leaves one way from there to the sinks. The position is the offset of the next
//! record of each topic partition, with the time of the last one: that is read again first, as a topic
//! that was made anew has another record there. So has that of another cluster, whose name is kept as well.
//! No consumer group is joined: there is one reader, and its place is kept with the pipeline.

mod place;
mod record;

use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context;
use bytes::Bytes;
use futures::{FutureExt, StreamExt, stream};
use millstream_api::{
    source::{OnGap, Start, TopicSource},
    worker::TopicGap,
};
use rdkafka::{
    ClientConfig, Message, Offset, TopicPartitionList,
    consumer::{Consumer, StreamConsumer},
    error::{KafkaError, RDKafkaErrorCode},
    message::OwnedMessage,
};

use self::{
    place::{Gap, Places, Taken, Watermarks},
    record::Convert,
};
use crate::{
    dead_letter::{DeadLetter, DeadLetters, Replayed},
    kafka::{self, Reports},
    retry::Delays,
    source::{Opening, Purpose, Records, SourceBatch},
    status::StatusPart,
};

const MAX_RECORDS: usize = 1_000;
const MAX_BYTES: usize = 2 * 1024 * 1024;
/// Partitions that a topic may have: their offsets must fit into the metadata of a commit.
const MAX_PARTITIONS: usize = 250;
/// Between looks at the topic's partitions.
const DISCOVERY: Duration = Duration::from_secs(10);
const TIMEOUT: Duration = Duration::from_secs(5);
const READ: &str = "source topic";
const LOOK: &str = "partitions of the source topic";

/// Opens the source.
pub fn open(spec: TopicSource, opening: &Opening<'_>) -> anyhow::Result<Records> {
    let connections = opening
        .connections
        .context("a topic is read with the pipeline's connections")?;
    let credentials = match &spec.kafka {
        Some(_) => opening.credentials.of_source(),
        None => opening.credentials.clone(),
    };
    let connection = spec.kafka.as_ref().unwrap_or(connections.kafka);
    let client = kafka::client(connection, &credentials, "millstream-source")?;
    let mut config = kafka::consumer_config(&client, "millstream-source");
    config.set("allow.auto.create.topics", "false");
    let (dead_letters, look) = match connections.purpose {
        Purpose::Copy(letters) => (Some(letters), None),
        Purpose::Look(records) => (None, Some(Look::new(records))),
    };
    if look.is_some() {
        config.set("enable.partition.eof", "true");
    }
    let mirror = Mirror {
        convert: Convert::new(&spec, opening.credentials, connections.registry)?,
        places: Places::new(opening.position)?,
        dead_letters: dead_letters.map(|letters| DeadLetters {
            origin: spec.name.clone(),
            ..letters.clone()
        }),
        consumer: connect(&config, opening.status)?,
        config,
        looked: None,
        failed: false,
        look,
        servers: connection.bootstrap_servers.clone(),
        status: opening.status.clone(),
        spec,
    };
    let batches = stream::unfold(mirror, |mut mirror| async move {
        let batch = mirror.next().await?;
        Some((batch, mirror))
    });
    Ok(batches.boxed())
}

fn connect(
    config: &ClientConfig,
    status: &StatusPart,
) -> anyhow::Result<Arc<StreamConsumer<Reports>>> {
    let consumer = config
        .create_with_context(Reports::of_source(status.clone()))
        .context("the Kafka client refuses its configuration")?;
    Ok(Arc::new(consumer))
}

/// The reader of the topic.
struct Mirror {
    spec: TopicSource,
    servers: String,
    config: ClientConfig,
    consumer: Arc<StreamConsumer<Reports>>,
    convert: Convert,
    places: Places,
    /// When the partitions were last looked at; none where they must be before anything is read.
    looked: Option<Instant>,
    /// Whether the consumer had an error since it was assigned.
    failed: bool,
    dead_letters: Option<DeadLetters>,
    /// How far it has come, where it is only a look.
    look: Option<Look>,
    status: StatusPart,
}

/// A look at what a topic has now.
struct Look {
    /// So many records at the end of each partition, where the topic is begun at its end.
    last: i64,
    /// Partitions whose end isn't reached yet.
    left: BTreeSet<i32>,
}

impl Look {
    fn new(records: u32) -> Self {
        Look {
            last: records.into(),
            left: BTreeSet::new(),
        }
    }
}

impl Mirror {
    /// The next records; waits for as long as it takes. None at the end of a look.
    async fn next(&mut self) -> Option<SourceBatch> {
        loop {
            let known = self.places.len();
            let until_look = self.look_if_due().await;
            if self.places.len() > known {
                // Kept before anything is read: another worker mustn't choose other places.
                return Some(self.batch(Vec::new()));
            }
            if self.is_seen() {
                return None;
            }
            let mut messages = Vec::new();
            // Nothing is lost where time is over: it waits only while it has nothing.
            let _ = tokio::time::timeout(until_look, self.read(&mut messages)).await;
            let passed = self.pass();
            if !messages.is_empty() {
                self.status.clear(READ);
                return Some(self.convert(&messages).await);
            }
            if passed {
                return Some(self.batch(Vec::new()));
            }
        }
    }

    /// Takes note of offsets that were read and are no records', such as those of transactions'
    /// markers: nothing is missing where retention removes them. Whether there were any.
    fn pass(&mut self) -> bool {
        // All records up to there are in the places already; the client forgets the position when
        // the consumer is sent elsewhere.
        let Ok(position) = self.consumer.position() else {
            return false;
        };
        let mut passed = false;
        for element in position.elements() {
            if let Offset::Offset(next) = element.offset() {
                passed |= self.places.pass(element.partition(), next);
            }
        }
        passed
    }

    /// Whether it was a look, and all that was there is read.
    fn is_seen(&self) -> bool {
        self.look.as_ref().is_some_and(|look| look.left.is_empty())
    }

    fn batch(&self, records: Vec<Bytes>) -> SourceBatch {
        SourceBatch {
            records,
            position: self.places.position(),
            ..SourceBatch::default()
        }
    }

    /// Waits for records, and takes all that are there already.
    async fn read(&mut self, messages: &mut Vec<OwnedMessage>) {
        let consumer = self.consumer.clone();
        let mut stream = consumer.stream();
        let mut bytes = 0;
        while messages.len() < MAX_RECORDS && bytes < MAX_BYTES {
            let next = match messages.is_empty() {
                true => stream.next().await,
                false => stream.next().now_or_never().flatten(),
            };
            match next {
                Some(Ok(message)) => {
                    let at = (message.partition(), message.offset());
                    match self.places.take(at, message.timestamp().to_millis()) {
                        Taken::Next => {
                            bytes += message.payload_len();
                            messages.push(message.detach());
                        }
                        Taken::Known => {}
                        Taken::Another => {
                            self.looked = None;
                            return;
                        }
                    }
                }
                Some(Err(KafkaError::PartitionEOF(partition))) => {
                    if let Some(look) = &mut self.look {
                        look.left.remove(&partition);
                    }
                    if self.is_seen() {
                        return;
                    }
                }
                Some(Err(error)) => {
                    self.report(&error);
                    if self.looked.is_none() {
                        return;
                    }
                }
                None => return,
            }
        }
    }

    /// Records in JSON. What can't be one goes to the dead letter, and this returns when Kafka has
    /// it; where there is no dead letter, it is given with the reason.
    async fn convert(&self, messages: &[OwnedMessage]) -> SourceBatch {
        let mut records = Vec::with_capacity(messages.len());
        let mut refused = Vec::new();
        // What was replayed was there before, and is for a sink of the pipeline that has the topic.
        let first = |message: &&OwnedMessage| Replayed::of(*message).is_none();
        for message in messages.iter().filter(first) {
            match self.convert.convert(message, &self.status).await {
                Ok(record) => records.push(record),
                Err(reason) => refused.push((message, reason)),
            }
        }
        let Some(dead_letters) = &self.dead_letters else {
            let rejected = refused.into_iter().map(|(message, reason)| {
                let (partition, offset) = (message.partition(), message.offset());
                let value = Bytes::copy_from_slice(message.payload().unwrap_or_default());
                (
                    value,
                    format!("partition {partition}, offset {offset}: {reason}"),
                )
            });
            return SourceBatch {
                rejected: rejected.collect(),
                ..self.batch(records)
            };
        };
        self.send_refused(dead_letters, &refused).await;
        SourceBatch {
            refused: refused.len(),
            ..self.batch(records)
        }
    }

    async fn send_refused(&self, to: &DeadLetters, refused: &[(&OwnedMessage, String)]) {
        let letters: Vec<_> = refused
            .iter()
            .map(|(message, reason)| DeadLetter {
                key: message.key(),
                value: message.payload(),
                reason,
                position: Some((message.partition(), message.offset())),
                timestamp: message.timestamp().to_millis(),
                folded: false,
            })
            .collect();
        if let Err(error) = to.send(&letters).await {
            // There can be no producer with this configuration: only another one helps.
            self.status.fail(READ, format!("{error:#}"));
            std::future::pending::<()>().await;
        }
    }

    /// Shows an error of the consumer; has the partitions looked at where an offset is gone.
    fn report(&mut self, error: &KafkaError) {
        use RDKafkaErrorCode as Code;
        match error.rdkafka_error_code() {
            Some(Code::AutoOffsetReset | Code::OffsetOutOfRange) => {
                // A topic that was made anew may have grown past the offset before it is looked at.
                self.places.doubt();
                self.looked = None;
            }
            // Shown as long as they last, by the client's context.
            Some(
                Code::AllBrokersDown
                | Code::BrokerTransportFailure
                | Code::Resolve
                | Code::Authentication
                | Code::SSL,
            ) => tracing::debug!(%error, "source topic"),
            _ => {
                self.failed = true;
                let message = format!("can't read the topic {}: {error}", self.spec.name);
                self.status.fail(READ, message);
            }
        }
    }

    /// Looks at the partitions, where that is due; the time until it is due again.
    async fn look_if_due(&mut self) -> Duration {
        let mut delays = Delays::default();
        loop {
            let since = self.looked.map(|looked| looked.elapsed());
            if let Some(left) = since.and_then(|since| DISCOVERY.checked_sub(since)) {
                return left;
            }
            match self.look().await {
                Ok(()) => {
                    self.status.clear(LOOK);
                    self.status.looked();
                    self.looked = Some(Instant::now());
                }
                Err(error) => {
                    let (topic, servers) = (&self.spec.name, &self.servers);
                    let message = format!("can't read the topic {topic} at {servers}: {error:#}");
                    self.hear();
                    self.status.fail(LOOK, message);
                    self.replace_if_lost();
                    match &mut self.looked {
                        // What is known can still be read.
                        Some(looked) => *looked = Instant::now(),
                        None => delays.wait().await,
                    }
                }
            }
        }
    }

    /// Reads with another client where this one may never connect again.
    fn replace_if_lost(&mut self) {
        if !self.consumer.context().is_lost() {
            return;
        }
        // The configuration was taken before.
        let Ok(another) = connect(&self.config, &self.status) else {
            return;
        };
        let lost = std::mem::replace(&mut self.consumer, another);
        // Closing a client waits for its threads.
        tokio::task::spawn_blocking(move || drop(lost));
        self.looked = None;
    }

    /// Has the client tell what it knows of its connections, as long as there is nothing to read:
    /// what were read here would be lost.
    fn hear(&self) {
        let assigned = self.consumer.assignment();
        if !assigned.is_ok_and(|partitions| partitions.count() == 0) {
            return;
        }
        kafka::hear(&self.consumer);
    }

    /// Finds the topic's partitions and what they hold, and reads each from its place on.
    async fn look(&mut self) -> anyhow::Result<()> {
        let (consumer, topic) = (self.consumer.clone(), self.spec.name.clone());
        let found = tokio::task::spawn_blocking(move || watermarks(&consumer, &topic));
        let mut watermarks = found.await??;
        // Once for each client: it leaks a name each time, and doesn't go to another cluster.
        if self.looked.is_none() {
            let consumer = self.consumer.clone();
            let cluster = move || consumer.client().fetch_cluster_id(TIMEOUT);
            let cluster = tokio::task::spawn_blocking(cluster).await?;
            cluster.into_iter().for_each(|id| self.places.enter(id));
        }
        for marks in &mut watermarks {
            if let Some(last) = self.places.beyond(marks.partition, marks.high) {
                let (consumer, topic) = (self.consumer.clone(), self.spec.name.clone());
                let partition = marks.partition;
                let newer = move || holds_newer(&consumer, &topic, partition, last);
                marks.newer = tokio::task::spawn_blocking(newer).await??;
            }
        }
        let start = match self.places.begun() {
            true => Start::Earliest,
            false => self.spec.start,
        };
        let last = self.look.as_ref().map_or(0, |look| look.last);
        let mut changed = self.looked.is_none();
        for marks in &watermarks {
            let added = self.places.add(marks, start, last);
            if let (true, Some(look)) = (added, &mut self.look) {
                look.left.insert(marks.partition);
            }
            changed |= added;
        }
        for partition in self.places.partitions() {
            let marks = watermarks.iter().find(|marks| marks.partition == partition);
            match self.places.gap(partition, marks) {
                Some(gap) => changed |= self.face(&gap),
                None => {
                    self.status.clear(concern(partition));
                    changed |= self.places.resume(partition);
                }
            }
        }
        if !self.failed {
            self.status.clear(READ);
        }
        // An error is told once. It is told again by a reading that begins anew, where it lasts.
        if changed || self.failed {
            self.consumer.assign(&self.places.list(&self.spec.name)?)?;
            self.failed = false;
        }
        Ok(())
    }

    /// Stops in a partition with a gap, or goes on behind it. Whether another offset is read now.
    fn face(&mut self, gap: &Gap) -> bool {
        let lost = format!("topic {}, {gap}", self.spec.name);
        match self.spec.on_gap {
            OnGap::Continue => {
                let message = format!("{lost}; it went on with what is there");
                tracing::warn!("DataGap: {message}");
                // It stays: what was passed over isn't there later either.
                self.status.warn(passed_over(gap.partition), message);
                self.places.skip(gap);
                true
            }
            // It is told as it was seen first: the topic's end moves on.
            OnGap::Stop if self.places.stop(gap.partition) => {
                let way_out = "set source.topic.onGap to Continue to go on with what is there";
                let message = format!("DataGap: {lost}; {way_out}");
                let reason = gap.reason().to_owned();
                let of_source = TopicGap { reason, lost };
                self.status.gap(concern(gap.partition), message, of_source);
                true
            }
            OnGap::Stop => false,
        }
    }
}

/// The concern under which records of a partition that are gone are shown.
fn concern(partition: i32) -> String {
    format!("gap in partition {partition} of the source")
}

/// The concern under which a gap that was passed over is told of.
fn passed_over(partition: i32) -> String {
    format!("what was passed over in partition {partition} of the source")
}

/// What the topic's partitions hold. Blocks.
fn watermarks(consumer: &StreamConsumer<Reports>, topic: &str) -> anyhow::Result<Vec<Watermarks>> {
    let metadata = consumer.fetch_metadata(Some(topic), TIMEOUT)?;
    let found = metadata.topics().first().context("there is no topic")?;
    if let Some(error) = found.error() {
        anyhow::bail!("{}", RDKafkaErrorCode::from(error));
    }
    let count = found.partitions().len();
    anyhow::ensure!(
        count <= MAX_PARTITIONS,
        "it has {count} partitions, and a source can have {MAX_PARTITIONS} at most"
    );
    let mut partitions: Vec<_> = found.partitions().iter().map(|p| p.id()).collect();
    partitions.sort_unstable();
    let marks = partitions.into_iter().map(|partition| {
        let (low, high) = consumer.fetch_watermarks(topic, partition, TIMEOUT)?;
        Ok(Watermarks {
            partition,
            low,
            high,
            newer: false,
        })
    });
    marks.collect()
}

/// Whether a partition holds a record that is newer than that. Blocks.
fn holds_newer(
    consumer: &StreamConsumer<Reports>,
    topic: &str,
    partition: i32,
    than: i64,
) -> anyhow::Result<bool> {
    let mut list = TopicPartitionList::new();
    // A time goes where an offset is: what is found is the first offset of that time or later.
    list.add_partition_offset(topic, partition, Offset::Offset(than + 1))?;
    let found = consumer.offsets_for_times(list, TIMEOUT)?;
    let elements = found.elements();
    let element = elements
        .first()
        .context("Kafka doesn't tell of the partition")?;
    element.error()?;
    Ok(matches!(element.offset(), Offset::Offset(_)))
}
