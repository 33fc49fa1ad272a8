//! Source → topic: always, or in runs that end.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::Context;
use bytes::Bytes;
use futures::{FutureExt, StreamExt, future::BoxFuture, stream::FuturesOrdered};
use millstream_api::worker::IngestConfig;
use millstream_plan::RecordSchema;
use rdkafka::{
    error::{KafkaError, RDKafkaErrorCode},
    producer::{DeliveryFuture, FutureRecord},
};
use sha2::{Digest as _, Sha256};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use crate::{
    avro::encode::Encode,
    config::Credentials,
    dead_letter::{DeadLetter, DeadLetters},
    kafka::{self, LazyProducer},
    metrics::{Metrics, StageMetrics},
    position::{Position, PositionStore, fingerprint},
    retry::Delays,
    source::{self, Connections, Opening, Purpose, SourceBatch},
    stage::{INGEST, key::Keys},
    status::{Status, StatusPart},
    transaction::Transactions,
};

/// Batches whose deliveries are awaited at once; their bytes are bounded by the producer's queue.
const IN_FLIGHT: usize = 64;
/// Between commits: so long a record waits at most before it can be read.
const COMMIT_INTERVAL: Duration = Duration::from_millis(250);
const PRODUCE: &str = "produce";

/// SHA-256 of a record.
type Digest = [u8; 32];
const POSITION: &str = "position";

/// A run of a pipeline with a schedule.
#[derive(Clone, Debug)]
pub struct Run {
    /// Name of the run: its position is nobody else's.
    pub name: String,
    /// How long the source is read from the run's beginning on; to its end where absent.
    pub limit: Option<Duration>,
}

/// Runs the source until shutdown, or until the run is over; fails where a restart is needed, and
/// where a run is interrupted.
pub async fn run(
    config: IngestConfig,
    run: Option<Run>,
    credentials: &Credentials,
    status: Arc<Status>,
    metrics: Arc<Metrics>,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let status = status.part(INGEST);
    let ingest = Ingest::new(config, run, credentials, status, metrics.stage(INGEST))?;
    let mut delays = Delays::default();
    while !shutdown.is_cancelled() {
        let error = match ingest.attempt(&shutdown).await {
            Ok(Left::Done) => return Ok(()),
            Ok(Left::ToDo) => break,
            Err(error) => error,
        };
        if let Some(fatal) = kafka::fatal_error(ingest.transactions.producer()) {
            anyhow::bail!(fatal);
        }
        if error.is::<Refused>() {
            // The next attempt knows of it.
            tracing::info!("{error}");
            continue;
        }
        ingest.status.fail(PRODUCE, format!("{error:#}"));
        tokio::select! {
            () = ingest.status.alive_while(delays.wait()) => {}
            () = shutdown.cancelled() => {}
        }
    }
    // Whoever started the run must not take it for a whole one.
    anyhow::ensure!(ingest.run.is_none(), "the run is interrupted");
    Ok(())
}

/// Kafka doesn't take some records, and so not the transaction that they are in.
#[derive(Debug, thiserror::Error)]
#[error("Kafka refuses records: they go to the dead letters, and the others are sent again")]
struct Refused;

/// What is left where the stage stops without an error.
enum Left {
    /// Nothing: the run is over.
    Done,
    /// What comes after the shutdown.
    ToDo,
}

struct Ingest {
    config: IngestConfig,
    run: Option<Run>,
    credentials: Credentials,
    fingerprint: String,
    keys: Keys,
    positions: PositionStore,
    transactions: Transactions,
    dead_letters: DeadLetters,
    /// Records that Kafka refused in this transaction or the one before, by their digests, and why.
    refused: Mutex<HashMap<Digest, String>>,
    status: StatusPart,
    metrics: StageMetrics,
}

/// A batch on its way: the position after it and the number of its records, once Kafka has them all.
type Delivery<'a> = BoxFuture<'a, anyhow::Result<(serde_json::Value, i64)>>;

impl Ingest {
    fn new(
        config: IngestConfig,
        run: Option<Run>,
        credentials: &Credentials,
        status: StatusPart,
        metrics: StageMetrics,
    ) -> anyhow::Result<Self> {
        let client_id = format!("millstream-ingest-{}", config.pipeline);
        let client = kafka::client(&config.kafka, credentials, &client_id)?;
        let positions = PositionStore::new(
            &client,
            &config.pipeline.ingest_group(),
            &config.topic.name,
            status.clone(),
        )?;
        let id = config.pipeline.ingest_group();
        let transactions = Transactions::new(&client, &id, positions.clone(), status.clone())?;
        let dead_letters = DeadLetters {
            // Not in the transaction: a letter that Kafka doesn't take whole would end it.
            producer: Arc::new(LazyProducer::new(client, status.clone())),
            topic: config.dead_letter_topic.clone(),
            pipeline: config.pipeline.to_string(),
            stage: INGEST.to_owned(),
            origin: config.topic.name.clone(),
            status: status.clone(),
            metrics: metrics.clone(),
        };
        Ok(Ingest {
            fingerprint: fingerprint(&config.source, &config.schema),
            keys: Keys::new(&config.key, &config.schema)?,
            config,
            run,
            credentials: credentials.clone(),
            positions,
            transactions,
            dead_letters,
            refused: Mutex::default(),
            status,
            metrics,
        })
    }

    /// The loop: read → produce → acknowledge → commit, from the last position on.
    async fn attempt(&self, shutdown: &CancellationToken) -> anyhow::Result<Left> {
        let position = tokio::select! {
            position = self.begin() => position?,
            () = shutdown.cancelled() => return Ok(Left::ToDo),
        };
        self.status.ready();
        let anew = self.config.source.begins_anew();
        let progress = Progress::new(position, self.run.as_ref(), anew);
        if progress.is_over() {
            return self.rest(shutdown).await;
        }
        self.read(progress, shutdown).await
    }

    /// The position to go on from, with a transaction that no other worker can get between.
    async fn begin(&self) -> anyhow::Result<Position> {
        if self.transactions.is_ours() {
            self.status.alive_while(self.transactions.abort()).await?;
        } else {
            // Before the position is read: the one before may be about to commit a later one.
            self.status
                .alive_while(self.transactions.take_over())
                .await?;
        }
        let position = self.load_position().await;
        self.transactions.begin()?;
        Ok(position)
    }

    /// Reads the source from a position on.
    async fn read(
        &self,
        mut progress: Progress,
        shutdown: &CancellationToken,
    ) -> anyhow::Result<Left> {
        // Kept before the first record: the time that a run has doesn't begin anew with a new worker.
        self.commit(&mut progress).await?;
        let mut source = source::open(
            &self.config.source,
            &Opening {
                schema: &self.config.schema,
                credentials: &self.credentials,
                position: progress.position.position.as_ref(),
                status: &self.status,
                metrics: &self.metrics,
                connections: Some(Connections {
                    kafka: &self.config.kafka,
                    registry: self.config.schema_registry.as_ref(),
                    purpose: Purpose::Copy(&self.dead_letters),
                }),
            },
        )?;
        let mut encode = self.encode()?;
        let mut in_flight = FuturesOrdered::<Delivery<'_>>::new();
        let (mut ended, mut complete) = (false, false);
        let mut tick = tokio::time::interval(COMMIT_INTERVAL);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let over = over(self.time_left(&progress));
        tokio::pin!(over);
        while !(ended && in_flight.is_empty()) {
            tokio::select! {
                () = shutdown.cancelled() => break,
                () = &mut over, if !ended => ended = true,
                Some(delivered) = in_flight.next() => {
                    self.status.clear(PRODUCE);
                    self.acknowledge(&mut progress, delivered, &mut in_flight).await?;
                }
                _ = tick.tick() => {
                    self.status.turned();
                    if let Some(fatal) = kafka::fatal_error(self.transactions.producer()) {
                        anyhow::bail!(fatal);
                    }
                    self.commit_all(&mut progress, &mut in_flight).await?;
                }
                batch = source.next(), if !ended && in_flight.len() < IN_FLIGHT => match batch {
                    Some(batch) => {
                        in_flight.push_back(self.produce(batch, encode.as_mut()).await?);
                    }
                    None => (ended, complete) = (true, true),
                },
            }
        }
        if !ended {
            self.commit_all(&mut progress, &mut in_flight).await?;
            return Ok(Left::ToDo);
        }
        progress.end(complete);
        self.commit(&mut progress).await?;
        self.rest(shutdown).await
    }

    /// Takes note of a batch that Kafka has. Where it refuses records, it is asked of all that are
    /// under way which it refuses: so one more attempt is enough.
    async fn acknowledge(
        &self,
        progress: &mut Progress,
        delivered: anyhow::Result<(serde_json::Value, i64)>,
        in_flight: &mut FuturesOrdered<Delivery<'_>>,
    ) -> anyhow::Result<()> {
        match delivered {
            Ok(batch) => progress.acknowledge(batch),
            Err(error) => {
                while error.is::<Refused>() && in_flight.next().await.is_some() {}
                return Err(error);
            }
        }
        Ok(())
    }

    /// Waits for what is under way, and commits it.
    async fn commit_all(
        &self,
        progress: &mut Progress,
        in_flight: &mut FuturesOrdered<Delivery<'_>>,
    ) -> anyhow::Result<()> {
        while let Some(delivered) = self.status.alive_while(in_flight.next()).await {
            self.acknowledge(progress, delivered, in_flight).await?;
        }
        self.commit(progress).await
    }

    /// All records are in Kafka: a run is over, otherwise only `/status` is left to answer.
    async fn rest(&self, shutdown: &CancellationToken) -> anyhow::Result<Left> {
        if self.run.is_some() {
            tracing::info!("the run is over");
            return Ok(Left::Done);
        }
        tracing::info!("the source is complete");
        self.status.complete();
        self.status.alive_while(shutdown.cancelled()).await;
        Ok(Left::ToDo)
    }

    /// The time that the run has left, where it has a limit.
    fn time_left(&self, progress: &Progress) -> Option<Duration> {
        let limit = self.run.as_ref()?.limit?;
        let since = progress.position.run.as_ref()?.since;
        let passed = u64::try_from(now_millis() - since).unwrap_or(0);
        Some(limit.saturating_sub(Duration::from_millis(passed)))
    }

    /// The position to go on from; tries until Kafka answers.
    async fn load_position(&self) -> Position {
        let mut delays = Delays::default();
        loop {
            self.status.turned();
            match self.positions.load().await {
                Ok(position) => {
                    self.status.clear(POSITION);
                    let beginning = Position {
                        source: self.fingerprint.clone(),
                        ..Position::default()
                    };
                    return position
                        .filter(|position| position.source == self.fingerprint)
                        .unwrap_or(beginning);
                }
                Err(error) => {
                    let message = format!("can't read the source's position from Kafka: {error:#}");
                    self.status.fail(POSITION, message);
                    self.status.alive_while(delays.wait()).await;
                }
            }
        }
    }

    /// Commits the records since the last time with the position after them, where there is anything
    /// to commit.
    async fn commit(&self, progress: &mut Progress) -> anyhow::Result<()> {
        if !progress.moved {
            return Ok(());
        }
        let committed = self.transactions.commit(&progress.position);
        self.status
            .alive_while(committed)
            .await
            .with_context(|| self.produce_failed())?;
        progress.moved = false;
        self.refused().clear();
        self.transactions.begin()?;
        Ok(())
    }

    /// The encoder, where the topic's records aren't JSON as the source's are.
    fn encode(&self) -> anyhow::Result<Option<Encode>> {
        let Some(id) = self.config.avro_schema_id else {
            return Ok(None);
        };
        let schema = RecordSchema::parse(&self.config.schema)?;
        Encode::new(&schema, &self.config.topic.name, id).map(Some)
    }

    /// Hands the records of a batch to the producer.
    async fn produce(
        &self,
        batch: SourceBatch,
        encode: Option<&mut Encode>,
    ) -> anyhow::Result<Delivery<'_>> {
        let mut sent = Vec::with_capacity(batch.records.len());
        let mut refused = batch.rejected;
        let encoded = match encode {
            Some(encode) => tokio::task::block_in_place(|| encode.encode(&batch.records)),
            None => batch.records.iter().cloned().map(Ok).collect(),
        };
        let keys = match &self.keys {
            Keys::Fields(_) => self.keys.admit_all(&batch.records),
            Keys::Computed(_) => {
                tokio::task::block_in_place(|| self.keys.admit_all(&batch.records))
            }
        }?;
        let admitted = keys.into_iter().zip(encoded);
        for (record, (key, encoded)) in batch.records.into_iter().zip(admitted) {
            let admitted = key.and_then(|key| Ok((key, self.not_refused(encoded?)?)));
            match admitted {
                Ok((key, value)) => {
                    sent.push((self.send(key.as_deref(), &value).await?, value));
                }
                Err(reason) => refused.push((record, reason)),
            }
        }
        self.metrics
            .records
            .inc_by((sent.len() + refused.len()) as u64);
        let position = batch.position;
        let records = (sent.len() + refused.len()) as i64;
        let delivery = async move {
            let mut taken = true;
            for (delivery, record) in sent {
                if let Err((error, _)) = delivery.await? {
                    self.refuse(error, &record)?;
                    taken = false;
                }
            }
            anyhow::ensure!(taken, Refused);
            let letters: Vec<_> = refused
                .iter()
                .map(|(record, reason)| DeadLetter {
                    key: None,
                    value: Some(record),
                    reason,
                    position: None,
                    timestamp: None,
                })
                .collect();
            self.dead_letters.send(&letters).await?;
            Ok((position, records))
        };
        Ok(delivery.boxed())
    }

    /// Queues a record; waits while the producer's queue is full.
    async fn send(&self, key: Option<&str>, record: &Bytes) -> anyhow::Result<DeliveryFuture> {
        let mut delay = Duration::from_millis(1);
        loop {
            let mut message = FutureRecord::<str, [u8]>::to(&self.config.topic.name);
            message = message.payload(record);
            message.key = key;
            match self.transactions.producer().send_result(message) {
                Ok(delivery) => return Ok(delivery),
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), _)) => {
                    // The client has no signal for room in its queue.
                    self.status.turned();
                    tokio::time::sleep(delay).await;
                    delay = (delay * 2).min(Duration::from_millis(100));
                }
                Err((error, _)) => {
                    self.refuse(error, record)?;
                    return Err(Refused.into());
                }
            }
        }
    }

    /// Takes note of a record that the topic doesn't take, such as one that is too large for it. The
    /// transaction can't be committed then: the next attempt leaves the record out. Other errors stay.
    fn refuse(&self, error: KafkaError, record: &[u8]) -> anyhow::Result<()> {
        use RDKafkaErrorCode::{InvalidMessageSize, InvalidRecord, MessageSizeTooLarge};
        match error.rdkafka_error_code() {
            Some(MessageSizeTooLarge | InvalidRecord | InvalidMessageSize) => {
                let reason = format!("Kafka refuses the record: {error}");
                self.refused().insert(Sha256::digest(record).into(), reason);
                Ok(())
            }
            _ => Err(error).with_context(|| self.produce_failed()),
        }
    }

    /// The record, or why Kafka refused it before.
    fn not_refused(&self, record: Bytes) -> Result<Bytes, String> {
        let refused = self.refused();
        let reason = (!refused.is_empty())
            .then(|| refused.get(&Digest::from(Sha256::digest(&record))))
            .flatten();
        reason.map_or(Ok(record), |reason| Err(reason.clone()))
    }

    fn refused(&self) -> MutexGuard<'_, HashMap<Digest, String>> {
        self.refused.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn produce_failed(&self) -> String {
        format!("can't write to the topic {}", self.config.topic.name)
    }
}

/// The position so far.
struct Progress {
    position: Position,
    /// Whether there is anything to commit.
    moved: bool,
}

impl Progress {
    /// From a position that was kept; from that of the run, where it is one.
    fn new(kept: Position, run: Option<&Run>, anew: bool) -> Self {
        let position = match run {
            Some(run) => kept.clone().of_run(&run.name, now_millis(), anew),
            None => Position {
                run: None,
                ..kept.clone()
            },
        };
        Progress {
            moved: run.is_some() && position != kept,
            position,
        }
    }

    /// Whether there is nothing left to do.
    fn is_over(&self) -> bool {
        match &self.position.run {
            Some(run) => run.done,
            None => self.position.complete,
        }
    }

    fn acknowledge(&mut self, (position, records): (serde_json::Value, i64)) {
        let position = Some(position);
        self.moved |= records > 0 || self.position.position != position;
        self.position.position = position;
        if let Some(run) = &mut self.position.run {
            run.records += records;
        }
    }

    /// The run is over, or the source has come to its end, or both.
    fn end(&mut self, complete: bool) {
        self.position.complete = complete;
        if let Some(run) = &mut self.position.run {
            run.done = true;
        }
        self.moved = true;
    }
}

/// Milliseconds since 1970.
fn now_millis() -> i64 {
    chrono::Utc::now().timestamp_millis()
}

/// Returns when a run is out of time; never where it has no limit.
async fn over(time_left: Option<Duration>) {
    match time_left {
        Some(left) => tokio::time::sleep(left).await,
        None => std::future::pending().await,
    }
}
