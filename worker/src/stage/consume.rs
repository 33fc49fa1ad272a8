//! The loop of a sink: read → transform → write → acknowledge → commit.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use anyhow::Context;
use futures::{FutureExt, StreamExt, stream::FuturesOrdered};
use millstream_api::worker::{CommitMetadata, SinkConfig};
use millstream_plan::{Expectations, SinkPlan};
use rdkafka::{
    ClientConfig, Message,
    consumer::{Consumer, MessageStream},
    error::{KafkaError, RDKafkaErrorCode},
    message::BorrowedMessage,
};
use tokio::{
    sync::Mutex,
    task::JoinError,
    time::{Instant, MissedTickBehavior},
};
use tokio_util::sync::CancellationToken;

use crate::{
    avro::decode::AvroTopic,
    batch::{Batch, MAX_BYTES, MAX_RECORDS, Rejected},
    budget::{GROUPED_BATCH, SinkMemory},
    cassandra::{self, Connecting},
    config::Credentials,
    dead_letter::DeadLetters,
    decode::Decode,
    expectations::Failed,
    kafka::{self, KAFKA},
    lookup::Joined,
    metrics::{Metrics, StageMetrics},
    retry::Delays,
    sink::{
        self, NO_CASSANDRA, Opening, Pace, Sink,
        cassandra::{StateTable, is_of_one_datacenter},
    },
    stage::{
        assignment::{Acknowledged, Assignment, Known, READ},
        flow::{Commit, Flow, Running, SinkConsumer},
        groups::Groups,
        turn::{Turn, Turns},
    },
    status::StatusPart,
    transform::{Rows, Transform, Transformed},
};

/// Between commits.
const COMMIT_INTERVAL: Duration = Duration::from_millis(200);
const METADATA_TIMEOUT: Duration = Duration::from_secs(5);
/// After so long without an error a consumer is one that works.
const WORKED: Duration = Duration::from_secs(60);
const PROCESS: &str = "process";
const EXPECTATIONS: &str = "expectations";
/// Where the sink has no needs of its own.
const PACE: Pace = Pace {
    records: MAX_RECORDS,
    bytes: MAX_BYTES,
    linger: Duration::ZERO,
    in_flight: 3,
};
/// For groups: each of them is written once a batch, so that larger batches cost less. No more
/// than what is decoded at once.
const GROUPED: Pace = Pace {
    records: 10_000,
    bytes: GROUPED_BATCH,
    linger: Duration::from_millis(100),
    in_flight: 3,
};

/// What a sink's loop is made of.
pub struct Parts {
    pub config: SinkConfig,
    /// Its query.
    pub plan: SinkPlan,
    pub consumer: ClientConfig,
    /// The consumer group; states of groups are known by it.
    pub group: String,
    pub topic: String,
    /// The topic's identity.
    pub topic_id: String,
    /// The topic's: a row's write timestamp is this plus its record's offset.
    pub timestamp_base: i64,
    pub dead_letters: DeadLetters,
    pub status: StatusPart,
    pub metrics: Arc<Metrics>,
    pub stage_metrics: StageMetrics,
    /// What the query joins.
    pub joined: Joined,
    /// What it may hold.
    pub memory: SinkMemory,
    /// Where the records are Avro.
    pub avro: Option<AvroTopic>,
    /// Where the configuration has Cassandra.
    pub session: Option<Connecting>,
    /// Whether it prefers the nodes of one datacenter.
    pub prefers_datacenter: bool,
    /// Those of the sinks.
    pub credentials: Credentials,
}

/// A sink, and what leads to it.
pub struct SinkStage {
    parts: Parts,
    transform: Mutex<Transform>,
    expectations: Expectations,
    sink: Box<dyn Sink>,
    pace: Pace,
    /// Where the query has a GROUP BY.
    groups: Option<Groups>,
    known: Known,
}

type InFlight = FuturesOrdered<Running<Processed>>;
type Processed = anyhow::Result<Done>;

/// A batch that is done.
struct Done {
    acknowledged: Acknowledged,
    /// For its memory.
    batch: Batch,
    /// Why the sink stops here, if it does.
    stop: Option<String>,
}

impl SinkStage {
    /// Opens the sink, and the states of its groups; waits for the lookups and the tables.
    pub async fn open(parts: Parts) -> anyhow::Result<Self> {
        parts.joined.loaded().await;
        let plan = &parts.plan;
        let groups = match plan.is_grouped() {
            true => Some(open_groups(&parts).await?),
            false => None,
        };
        let sink = sink::open(Opening {
            config: &parts.config,
            plan,
            session: parts.session.clone(),
            timestamp_base: parts.timestamp_base,
            reader: format!("{}/{}", parts.group, parts.topic_id),
            credentials: &parts.credentials,
            status: &parts.status,
            metrics: &parts.stage_metrics,
        });
        let sink = sink.await?;
        let pace = match groups {
            Some(_) => GROUPED,
            None => PACE,
        };
        let mut pace = sink.pace(pace);
        pace.bytes = pace.bytes.min(parts.memory.batch);
        let decode = match &parts.avro {
            Some(topic) => Decode::avro(plan, topic.clone()),
            None => Decode::new(plan)?,
        };
        let expectations = Expectations::new(plan, &parts.config.expectations)?;
        let transform = Transform::with(plan, decode).joining(parts.joined.clone());
        Ok(SinkStage {
            transform: Mutex::new(transform.expecting(expectations.clone())),
            expectations,
            sink,
            pace,
            groups,
            known: Known::default(),
            parts,
        })
    }

    /// Consumes until shutdown; a consumer that fails is replaced.
    pub async fn run(self: Arc<Self>, shutdown: &CancellationToken) -> anyhow::Result<()> {
        let status = &self.parts.status;
        let mut delays = Delays::default();
        while !shutdown.is_cancelled() {
            let consumer = self.consumer()?;
            let started = Instant::now();
            let result = self.consume(&consumer, shutdown).await;
            match &result {
                Ok(()) | Err(Stop::Fatal(_)) => {}
                Err(Stop::Retry(message)) => status.fail(READ, message),
                Err(Stop::Batch(error)) => {
                    status.fail(PROCESS, format!("a batch can't be processed: {error:#}"));
                }
                Err(Stop::Expectation(message)) => status.fail(EXPECTATIONS, message),
            }
            // Leaving the group waits for its coordinator.
            let left = tokio::task::spawn_blocking(move || drop(consumer));
            status.alive_while(left).await?;
            match result {
                Ok(()) => return Ok(()),
                Err(Stop::Fatal(error)) => return Err(error),
                Err(Stop::Expectation(_)) => {
                    // A restart does no better: the pipeline has to be changed, and that is one.
                    status.alive_while(shutdown.cancelled()).await;
                    return Ok(());
                }
                Err(Stop::Retry(_) | Stop::Batch(_)) => {}
            }
            if started.elapsed() > WORKED {
                delays = Delays::default();
            }
            tokio::select! {
                () = status.alive_while(delays.wait()) => {}
                () = shutdown.cancelled() => {}
            }
        }
        Ok(())
    }

    fn consumer(&self) -> anyhow::Result<Arc<SinkConsumer>> {
        let parts = &self.parts;
        let assignment = Assignment::new(
            parts.status.clone(),
            parts.metrics.clone(),
            &parts.config.name,
            &parts.topic,
            self.known.clone(),
            self.expectations
                .rules()
                .iter()
                .map(|rule| rule.name.clone()),
        );
        let consumer: SinkConsumer = parts
            .consumer
            .create_with_context(assignment)
            .context("the Kafka client refuses its configuration")?;
        Ok(Arc::new(consumer))
    }

    /// The loop: read → transform → write → acknowledge → commit.
    async fn consume(
        self: &Arc<Self>,
        consumer: &Arc<SinkConsumer>,
        shutdown: &CancellationToken,
    ) -> Result<(), Stop> {
        let status = &self.parts.status;
        tokio::select! {
            seen = self.await_topic(consumer) => seen?,
            () = shutdown.cancelled() => return Ok(()),
        }
        if let Some(groups) = &self.groups {
            groups.forget().await;
        }
        consumer.subscribe(&[&self.parts.topic])?;
        status.ready();

        let mut records = consumer.stream();
        let begun = Instant::now();
        let mut batch = Batch::default();
        let mut since = Instant::now();
        let mut turns = Turns::default();
        let mut spare = Vec::new();
        let mut in_flight = InFlight::new();
        let mut bytes_in_flight = 0;
        let mut flow = Flow::default();
        let mut commit = Commit::default();
        let mut stop = None;
        let mut tick = tokio::time::interval(COMMIT_INTERVAL);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = shutdown.cancelled() => break,
                Some(done) = in_flight.next() => {
                    let (mut batch, reason) = acknowledge(consumer, done)?;
                    status.clear(PROCESS);
                    bytes_in_flight -= batch.bytes();
                    batch.clear(2 * self.pace.bytes.min(MAX_BYTES));
                    spare.push(batch);
                    stop = reason;
                    if stop.is_some() {
                        break;
                    }
                }
                _ = tick.tick() => {
                    status.turned();
                    if begun.elapsed() > WORKED {
                        // The records that failed may be another worker's now, and none come here.
                        status.clear(PROCESS);
                    }
                    if let Some(failure) = consumer.context().take_failure() {
                        return Err(Stop::Retry(failure));
                    }
                    if consumer.context().looks_again() {
                        self.look_for_gaps(consumer)?;
                    }
                    consumer.context().pass(&**consumer);
                    commit.start(consumer);
                    flow.adjust(consumer, self.is_full(&batch))?;
                }
                () = tokio::time::sleep_until(since + self.pace.linger), if self.waits(&batch, since) => {}
                Some(record) = records.next(), if flow.paused || !self.is_full(&batch) => {
                    if batch.is_empty() {
                        since = Instant::now();
                    }
                    self.read(consumer, record, &mut records, &mut batch)?;
                    if flow.paused {
                        // A partition that was assigned since isn't paused yet.
                        consumer.pause(&consumer.context().partitions())?;
                    }
                }
            }
            let ready = !batch.is_empty() && !self.waits(&batch, since);
            if ready && self.pace.admits(in_flight.len(), bytes_in_flight) {
                bytes_in_flight += batch.bytes();
                let stage = self.clone();
                let next = spare.pop().unwrap_or_default();
                let batch = std::mem::replace(&mut batch, next);
                in_flight.push_back(Running::spawn(stage.process(batch, turns.take())));
            }
        }
        // What is behind the record at which the sink stops is never acknowledged.
        while stop.is_none()
            && let Some(done) = in_flight.next().await
        {
            stop = acknowledge(consumer, done)?.1;
        }
        consumer.context().pass(&**consumer);
        let last = commit.finish(consumer).await;
        last.map_err(|error| Stop::Fatal(error.into()))?;
        stop.map_or(Ok(()), |reason| Err(Stop::Expectation(reason)))
    }

    /// Whether no more records should be added to a batch.
    fn is_full(&self, batch: &Batch) -> bool {
        batch.len() >= self.pace.records || batch.bytes() >= self.pace.bytes
    }

    /// Whether a batch waits for more records.
    fn waits(&self, batch: &Batch, since: Instant) -> bool {
        let full = batch.is_empty() || self.is_full(batch);
        !full && since.elapsed() < self.pace.linger
    }

    /// Adds a record to the batch, and all that are there already.
    fn read(
        &self,
        consumer: &SinkConsumer,
        first: Result<BorrowedMessage<'_>, KafkaError>,
        records: &mut MessageStream<'_, Assignment>,
        batch: &mut Batch,
    ) -> Result<(), Stop> {
        let mut next = Some(first);
        let before = batch.len();
        while let Some(record) = next {
            match record {
                Ok(record) => {
                    // What was fetched before its partition was revoked is not ours.
                    let read = consumer.context().read(record.partition(), record.offset());
                    if let Some(epoch) = read {
                        batch.push_for(&self.parts.config.name, &record, epoch);
                    }
                }
                Err(error) => self.report(consumer, error)?,
            }
            if self.is_full(batch) {
                break;
            }
            next = records.next().now_or_never().flatten();
        }
        // Fewer than before, where a partition was lost and came back meanwhile.
        let read = batch.len().saturating_sub(before);
        if read > 0 {
            self.parts.status.clear(READ);
            self.parts.stage_metrics.records.inc_by(read as u64);
        }
        Ok(())
    }

    /// Shows an error of the consumer; stops where it can't go on.
    fn report(&self, consumer: &SinkConsumer, error: KafkaError) -> Result<(), Stop> {
        use RDKafkaErrorCode as Code;
        let status = &self.parts.status;
        match (&error, error.rdkafka_error_code()) {
            (KafkaError::MessageConsumptionFatal(_), _) | (_, Some(Code::PollExceeded)) => {
                return Err(Stop::Retry(format!("the consumer failed: {error}")));
            }
            (_, Some(Code::AutoOffsetReset | Code::OffsetOutOfRange)) => {
                self.look_for_gaps(consumer)?;
            }
            // Shown as long as they last, by the client's context.
            (
                _,
                Some(
                    Code::AllBrokersDown
                    | Code::BrokerTransportFailure
                    | Code::Resolve
                    | Code::Authentication
                    | Code::SSL,
                ),
            ) => tracing::debug!(%error, "consumer"),
            _ => status.fail(READ, format!("can't read {}: {error}", self.parts.topic)),
        }
        Ok(())
    }

    /// Looks why the client doesn't read a partition any more. Where no gap says why, another one begins
    /// at what is committed; this one stays while Kafka doesn't tell, for it knows what was read.
    fn look_for_gaps(&self, consumer: &SinkConsumer) -> Result<(), Stop> {
        match tokio::task::block_in_place(|| consumer.context().show_gaps(consumer)) {
            Ok(true) => Ok(()),
            Ok(false) => {
                let message = "Kafka doesn't have an offset that was to be read";
                Err(Stop::Retry(message.to_owned()))
            }
            Err(error) => {
                let message = format!(
                    "Kafka doesn't have an offset that was to be read, and doesn't tell which ones it has: {error}"
                );
                self.parts.status.fail(READ, message);
                Ok(())
            }
        }
    }

    /// Transforms and writes a batch; returns when it is acknowledged.
    async fn process(self: Arc<Self>, batch: Batch, turn: Turn) -> Processed {
        let started = Instant::now();
        if let Some(topic) = &self.parts.avro {
            topic.fetch_schemas(&batch, &self.parts.status).await;
        }
        let Transformed {
            rows,
            rejected,
            failed,
            stop,
        } = {
            let mut transform = self.transform.lock().await;
            tokio::task::block_in_place(|| transform.run(&batch))?
        };
        let dead_letters = &self.parts.dead_letters;
        let (lost, refused) = match &self.groups {
            None => (Vec::new(), self.sink.write(&batch, &rows).await),
            Some(groups) => {
                // Before the states: see `write_groups`.
                dead_letters.send_rejected(&batch, &rejected).await?;
                self.write_groups(groups, &batch, &rows, turn).await?
            }
        };
        let mut acknowledged = Acknowledged {
            ends: match &stop {
                Some(stop) => batch.ends_before(stop.record),
                None => batch.ends().clone(),
            },
            counts: counts(&batch, &rows, &rejected, &[lost, refused.clone()].concat()),
        };
        self.count_failed(&batch, &failed, &mut acknowledged.counts);
        let letters = match &self.groups {
            None => [rejected, refused].concat(),
            Some(_) => refused,
        };
        dead_letters.send_rejected(&batch, &letters).await?;
        let written: i64 = acknowledged.counts.values().map(|counts| counts.rows).sum();
        let metrics = &self.parts.stage_metrics;
        metrics.rows.inc_by(u64::try_from(written).unwrap_or(0));
        metrics
            .batch_seconds
            .observe(started.elapsed().as_secs_f64());
        Ok(Done {
            acknowledged,
            batch,
            stop: stop.map(|stop| stop.reason),
        })
    }

    /// Counts the rows that failed an expectation, by partition and in the metrics.
    fn count_failed(
        &self,
        batch: &Batch,
        failed: &[Failed],
        counts: &mut BTreeMap<i32, CommitMetadata>,
    ) {
        let rules = self.expectations.rules();
        for failed in failed {
            let partition = batch.records()[failed.record].partition;
            let name = &rules[failed.rule].name;
            let counts = counts.entry(partition).or_default();
            *counts.failed.entry(name.clone()).or_default() += 1;
            self.parts.stage_metrics.failed(name).inc();
        }
    }

    /// Folds the rows of a batch and writes the groups: as many at once as memory allows. Gives the
    /// records of which no row could be made, and those whose rows are refused.
    async fn write_groups(
        &self,
        groups: &Groups,
        batch: &Batch,
        rows: &[Rows],
        turn: Turn,
    ) -> anyhow::Result<(Vec<Rejected>, Vec<Rejected>)> {
        let (mut lost, mut refused, mut kept) = (Vec::new(), Vec::new(), Vec::new());
        let in_parts = self.sink.takes_parts();
        let mut folding = groups.begin(batch, rows, turn).await?;
        while let Some(mut part) = folding.next().await? {
            // Before the states, also those of the batch behind: once they are written, nobody looks
            // at these records again.
            let dead_letters = &self.parts.dead_letters;
            dead_letters.send_rejected(batch, &part.rejected).await?;
            folding.pass();
            lost.append(&mut part.rejected);
            let rows = std::mem::take(&mut part.rows);
            if in_parts {
                let written = self.sink.write(batch, &rows);
                refused.extend(groups.write(part, written).await?);
            } else {
                groups.write(part, std::future::ready(())).await?;
                kept.extend(rows);
            }
        }
        if !in_parts {
            refused = self.sink.write(batch, &kept).await;
        }
        for rejected in &mut refused {
            // What was refused is a row: its state is written.
            rejected.folded = true;
        }
        Ok((lost, refused))
    }

    /// Waits until the topic can be seen.
    async fn await_topic(&self, consumer: &SinkConsumer) -> Result<(), Stop> {
        let status = &self.parts.status;
        let mut delays = Delays::default();
        loop {
            let topic = self.parts.topic.as_str();
            let seen = tokio::task::block_in_place(|| {
                let seen = consumer.fetch_metadata(Some(topic), METADATA_TIMEOUT);
                // Nothing is subscribed to yet, and so no record is lost.
                kafka::hear(consumer);
                seen
            });
            let lost = consumer.context().take_failure();
            let problem = match seen {
                Ok(seen) => match seen.topics().first().and_then(|topic| topic.error()) {
                    None => break,
                    Some(error) => {
                        let code = RDKafkaErrorCode::from(error);
                        format!("can't read the topic {topic}: {code}")
                    }
                },
                Err(error) => format!("Kafka can't be reached: {error}"),
            };
            status.fail(KAFKA, problem);
            if let Some(lost) = lost {
                return Err(Stop::Retry(lost));
            }
            status.alive_while(delays.wait()).await;
        }
        status.clear(KAFKA);
        Ok(())
    }
}

/// Opens the states of a sink's groups; waits for their table.
async fn open_groups(parts: &Parts) -> anyhow::Result<Groups> {
    let session = parts.session.clone().context(NO_CASSANDRA)?.await;
    let beside = parts.config.cassandra().context(NO_CASSANDRA)?;
    if !parts.prefers_datacenter && is_of_one_datacenter(beside.consistency) {
        cassandra::one_datacenter(&session, &parts.status).await;
    }
    let ttl = parts.config.ttl_seconds();
    let states = StateTable::open(
        session,
        beside,
        ttl,
        &parts.plan,
        &parts.group,
        parts.status.clone(),
        parts.stage_metrics.clone(),
    );
    let states = states.await?;
    Groups::new(
        &parts.plan,
        &beside.table,
        ttl,
        states,
        &parts.group,
        parts.timestamp_base,
        &parts.memory,
    )
}

/// Why a consumer ends before shutdown.
enum Stop {
    /// A new one may do better.
    Retry(String),
    /// A batch failed: a new one reads it again. The other sinks go on.
    Batch(anyhow::Error),
    /// Only another configuration may do better.
    Expectation(String),
    /// Only a new process may do better.
    Fatal(anyhow::Error),
}

impl From<KafkaError> for Stop {
    fn from(error: KafkaError) -> Self {
        Stop::Retry(format!("the consumer failed: {error}"))
    }
}

/// Takes note of a batch that is done; gives it back, and why the sink stops there.
fn acknowledge(
    consumer: &SinkConsumer,
    processed: Result<Processed, JoinError>,
) -> Result<(Batch, Option<String>), Stop> {
    let done = processed
        .map_err(|panicked| Stop::Fatal(panicked.into()))?
        .map_err(Stop::Batch)?;
    consumer.context().acknowledge(&done.acknowledged);
    Ok((done.batch, done.stop))
}

/// What a batch adds to the counts of its partitions.
fn counts(
    batch: &Batch,
    rows: &[Rows],
    rejected: &[Rejected],
    refused: &[Rejected],
) -> BTreeMap<i32, CommitMetadata> {
    let mut counts = BTreeMap::<i32, CommitMetadata>::new();
    let partition = |record: usize| batch.records()[record].partition;
    for record in rows.iter().flat_map(|rows| &rows.records) {
        counts.entry(partition(*record)).or_default().rows += 1;
    }
    for refused in refused {
        counts.entry(partition(refused.record)).or_default().rows -= 1;
    }
    for dead in rejected.iter().chain(refused) {
        counts
            .entry(partition(dead.record))
            .or_default()
            .dead_lettered += 1;
    }
    counts
}
