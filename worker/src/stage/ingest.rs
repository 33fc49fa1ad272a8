//! Source → topic: always, or in runs that end.

use std::{sync::Arc, time::Duration};

use anyhow::Context;
use bytes::Bytes;
use futures::{FutureExt, StreamExt, future::BoxFuture, stream::FuturesOrdered};
use millstream_api::worker::IngestConfig;
use millstream_plan::RecordSchema;
use rdkafka::{
    error::{KafkaError, RDKafkaErrorCode},
    producer::{DeliveryFuture, FutureRecord},
};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use crate::{
    avro::encode::Encode,
    config::Credentials,
    dead_letter::{DeadLetter, DeadLetters},
    kafka::{self, LazyProducer, Producer},
    metrics::{Metrics, StageMetrics},
    position::{Position, PositionStore, fingerprint},
    retry::Delays,
    source::{self, Connections, Opening, Purpose, SourceBatch},
    stage::{INGEST, key::Keys},
    status::{Status, StatusPart},
};

/// Batches whose deliveries are awaited at once; their bytes are bounded by the producer's queue.
const IN_FLIGHT: usize = 64;
/// Between commits of the position.
const COMMIT_INTERVAL: Duration = Duration::from_millis(500);
const PRODUCE: &str = "produce";
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
        if let Some(fatal) = kafka::fatal_error(&ingest.producer) {
            anyhow::bail!(fatal);
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
    producer: Producer,
    dead_letters: DeadLetters,
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
        let lazy = Arc::new(LazyProducer::new(client, status.clone()));
        let producer = lazy.get()?.clone();
        let dead_letters = DeadLetters {
            producer: lazy,
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
            producer,
            dead_letters,
            status,
            metrics,
        })
    }

    /// The loop: read → produce → acknowledge → commit, from the last position on.
    async fn attempt(&self, shutdown: &CancellationToken) -> anyhow::Result<Left> {
        let position = tokio::select! {
            position = self.load_position() => position,
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

    /// Reads the source from a position on.
    async fn read(
        &self,
        mut progress: Progress,
        shutdown: &CancellationToken,
    ) -> anyhow::Result<Left> {
        // Kept before the first record: the time that a run has doesn't begin anew with a new worker.
        self.commit(&mut progress).await;
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
                    progress.acknowledge(delivered?);
                }
                _ = tick.tick() => {
                    self.status.turned();
                    if let Some(fatal) = kafka::fatal_error(&self.producer) {
                        anyhow::bail!(fatal);
                    }
                    self.commit(&mut progress).await;
                }
                batch = source.next(), if !ended && in_flight.len() < IN_FLIGHT => match batch {
                    Some(batch) => {
                        in_flight.push_back(self.produce(batch, encode.as_mut()).await?);
                    }
                    None => (ended, complete) = (true, true),
                },
            }
        }
        while let Some(delivered) = in_flight.next().await {
            progress.acknowledge(delivered?);
        }
        if !ended {
            self.commit(&mut progress).await;
            return Ok(Left::ToDo);
        }
        progress.end(complete);
        let mut delays = Delays::default();
        while !self.commit(&mut progress).await {
            if shutdown.is_cancelled() {
                return Ok(Left::ToDo);
            }
            self.status.alive_while(delays.wait()).await;
        }
        self.rest(shutdown).await
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

    /// Keeps the position, where it has moved. Whether Kafka has it.
    async fn commit(&self, progress: &mut Progress) -> bool {
        if !progress.moved {
            return true;
        }
        let saved = self.positions.save(&progress.position);
        match self.status.alive_while(saved).await {
            Ok(()) => {
                self.status.clear(POSITION);
                progress.moved = false;
                true
            }
            Err(error) => {
                let message = format!("can't keep the source's position in Kafka: {error:#}");
                self.status.fail(POSITION, message);
                false
            }
        }
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
            match key.and_then(|key| Ok((key, encoded?))) {
                Ok((key, value)) => {
                    sent.push((self.send(key.as_deref(), &value).await?, key, value));
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
            for (delivery, key, record) in sent {
                if let Err((error, _)) = delivery.await? {
                    self.undeliverable(error, key, &record).await?;
                }
            }
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
            match self.producer.send_result(message) {
                Ok(delivery) => return Ok(delivery),
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), _)) => {
                    // The client has no signal for room in its queue.
                    self.status.turned();
                    tokio::time::sleep(delay).await;
                    delay = (delay * 2).min(Duration::from_millis(100));
                }
                Err((error, _)) => {
                    return Err(error).with_context(|| self.produce_failed());
                }
            }
        }
    }

    /// A record that Kafka didn't take: too large for the topic, or the topic can't be written.
    async fn undeliverable(
        &self,
        error: KafkaError,
        key: Option<String>,
        record: &Bytes,
    ) -> anyhow::Result<()> {
        use RDKafkaErrorCode::{InvalidMessageSize, InvalidRecord, MessageSizeTooLarge};
        match error.rdkafka_error_code() {
            Some(MessageSizeTooLarge | InvalidRecord | InvalidMessageSize) => {
                let letter = DeadLetter {
                    key: key.as_deref().map(str::as_bytes),
                    value: Some(record),
                    reason: &format!("Kafka refuses the record: {error}"),
                    position: None,
                    timestamp: None,
                };
                self.dead_letters.send(&[letter]).await
            }
            _ => Err(error).with_context(|| self.produce_failed()),
        }
    }

    fn produce_failed(&self) -> String {
        format!("can't write to the topic {}", self.config.topic.name)
    }
}

/// The position so far.
struct Progress {
    position: Position,
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
        self.moved |= self.position.position != position;
        self.position.position = position;
        if let Some(run) = &mut self.position.run {
            self.moved |= records > 0;
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
