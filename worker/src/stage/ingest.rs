//! Source → topic: always, or in runs that end. How it stays exact is told in [`crate::transaction`].

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use futures::{StreamExt, stream, stream::LocalBoxStream};
use millstream_api::worker::IngestConfig;
use millstream_plan::RecordSchema;
use rdkafka::ClientConfig;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use crate::{
    avro::encode::Encode,
    budget::{self, MEMORY},
    config::Credentials,
    dead_letter::{DeadLetter, DeadLetters},
    kafka::{self, LazyProducer},
    metrics::{Metrics, StageMetrics},
    position::{End, Position, PositionStore, fingerprint},
    retry::Delays,
    source::{self, Connections, Opening, Purpose, SourceBatch},
    stage::{INGEST, key::Keys},
    status::{Status, StatusPart},
    transaction::{Admitted, Open, Outgoing, Stalled, Transactions},
};

/// Between commits: so long a record waits at most before it can be read.
const COMMIT_INTERVAL: Duration = Duration::from_millis(250);
/// Of a transaction, if it isn't a single batch: its records are held, and have to get through before
/// it times out.
const MAX_BYTES: usize = 16 * 1024 * 1024;
/// Likewise: should Kafka refuse its batches, they have to get through one by one.
const MAX_RECORDS: usize = 10_000;
/// Kafka forgets offsets, and the ids of producers, after a week in which nothing was committed.
const RENEWAL: Duration = Duration::from_secs(24 * 60 * 60);
/// After so long an attempt was one that worked.
const WORKED: Duration = Duration::from_secs(60);
const PRODUCE: &str = "produce";
const POSITION: &str = "position";
const CHANGED: &str = "another source";

/// A run of a pipeline with a schedule.
#[derive(Clone, Debug)]
pub struct Run {
    /// Name of the run: its position is nobody else's.
    pub name: String,
    /// How long the source is read from the run's beginning on; to its end where absent.
    pub limit: Option<Duration>,
}

/// Runs the source until shutdown, or until the run is over; fails where a run is interrupted.
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
        let started = Instant::now();
        let error = match ingest.attempt(&shutdown).await {
            Ok(Left::Done) => return Ok(()),
            Ok(Left::ToDo) => break,
            Err(error) => error,
        };
        if started.elapsed() > WORKED {
            delays = Delays::default();
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
    /// Nothing: the source has come to its end, or the run has.
    Done,
    /// What comes after the shutdown.
    ToDo,
}

struct Ingest {
    config: IngestConfig,
    run: Option<Run>,
    credentials: Credentials,
    fingerprint: String,
    end: Option<End>,
    keys: Keys,
    /// Bytes of answers that an HTTP source may hold.
    answers: usize,
    client: ClientConfig,
    positions: PositionStore,
    dead_letters: DeadLetters,
    status: StatusPart,
    metrics: StageMetrics,
}

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
        let (answers, too_small) = budget::of_answers(config.memory_limit);
        if let (Some(_), Some(too_small)) = (&config.source.http, too_small) {
            status.warn(MEMORY, too_small);
        }
        let dead_letters = DeadLetters {
            // Not in the transaction: a letter that Kafka doesn't take whole would end it.
            producer: Arc::new(LazyProducer::new(client.clone(), status.clone())),
            topic: config.dead_letter_topic.clone(),
            pipeline: config.pipeline.to_string(),
            stage: INGEST.to_owned(),
            origin: config.topic.name.clone(),
            origin_id: None,
            status: status.clone(),
            metrics: metrics.clone(),
        };
        Ok(Ingest {
            fingerprint: fingerprint(&config.source, &config.schema),
            end: End::of(&config.source),
            keys: Keys::new(&config.key, &config.schema)?,
            answers,
            config,
            run,
            credentials: credentials.clone(),
            client,
            positions,
            dead_letters,
            status,
            metrics,
        })
    }

    /// Takes over, reads the source from the last position on, and stops where it ends.
    async fn attempt(&self, shutdown: &CancellationToken) -> anyhow::Result<Left> {
        let (transactions, position) = tokio::select! {
            begun = self.status.alive_while(self.begin()) => begun?,
            () = shutdown.cancelled() => return Ok(Left::ToDo),
        };
        self.status.ready();
        let anew = self.config.source.begins_anew();
        let mut progress = Progress::new(position, self.run.as_ref(), anew);
        let mut open = Open::new(&self.config.topic.name);
        let work = async {
            // Kept before the first record: the time that a run has doesn't begin anew with a new worker,
            // and a position is forgotten where each worker ends before the next renewal.
            self.commit(&transactions, &mut open, &mut progress).await?;
            match progress.is_over() {
                true => Ok(Left::Done),
                false => self.read(&transactions, open, progress, shutdown).await,
            }
        };
        let left = tokio::select! {
            left = work => left,
            () = transactions.lost() => Err(anyhow::anyhow!("Kafka can't be reached: another producer tries")),
        };
        // Closing a client waits for its threads.
        tokio::task::spawn_blocking(move || drop(transactions));
        match left? {
            Left::Done => Ok(self.rest(shutdown).await),
            Left::ToDo => Ok(Left::ToDo),
        }
    }

    /// Takes over from any worker before. Only then the position is read: that one might be about to
    /// commit a later one.
    async fn begin(&self) -> anyhow::Result<(Transactions, Position)> {
        let id = self.config.pipeline.ingest_group();
        let transactions = Transactions::take_over(&self.client, &id, self.status.clone()).await?;
        let position = self.load_position(&transactions).await?;
        transactions.begin()?;
        Ok((transactions, position))
    }

    /// The loop: read → send → commit, from a position on.
    async fn read(
        &self,
        to: &Transactions,
        mut open: Open,
        mut progress: Progress,
        shutdown: &CancellationToken,
    ) -> anyhow::Result<Left> {
        let mut batches = self.batches(&progress.position)?;
        self.status.clear(PRODUCE);
        let mut tick = tokio::time::interval(COMMIT_INTERVAL);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let over = over(self.time_left(&progress));
        tokio::pin!(over);
        let complete = loop {
            tokio::select! {
                () = shutdown.cancelled() => {
                    self.commit(to, &mut open, &mut progress).await?;
                    return Ok(Left::ToDo);
                }
                () = &mut over => break false,
                _ = tick.tick() => {
                    self.status.turned();
                    self.commit(to, &mut open, &mut progress).await?;
                }
                batch = batches.next() => match batch.transpose()? {
                    Some(batch) => {
                        if open.bytes() + batch.bytes() > MAX_BYTES
                            || open.count() + batch.records.len() > MAX_RECORDS
                        {
                            self.commit(to, &mut open, &mut progress).await?;
                        }
                        open.add(batch);
                        let sent = self.status.alive_while(open.send(to)).await;
                        // A full one isn't held while the source gives more.
                        if sent.is_err() || open.bytes() >= MAX_BYTES {
                            // Which sees to what failed.
                            self.commit(to, &mut open, &mut progress).await?;
                        }
                    }
                    None => break true,
                },
            }
        };
        self.commit(to, &mut open, &mut progress).await?;
        // In a transaction of its own, which can't begin before the last records can be read: whoever
        // sees the end sees them.
        progress.end(complete, self.status.warning());
        self.commit(to, &mut open, &mut progress).await?;
        Ok(Left::Done)
    }

    /// Commits the open transaction with the position after it, where there is anything to commit.
    /// Where Kafka doesn't take it, it is given up and sent again without what Kafka refused.
    async fn commit(
        &self,
        to: &Transactions,
        open: &mut Open,
        progress: &mut Progress,
    ) -> anyhow::Result<()> {
        if !progress.moves(open) {
            return Ok(());
        }
        let mut delays = Delays::default();
        loop {
            let committed = self.try_commit(to, open, progress);
            let Err(error) = self.status.alive_while(committed).await else {
                break;
            };
            if let Some(fatal) = to.fatal_error() {
                anyhow::bail!(fatal);
            }
            if error.is::<Stalled>() {
                return Err(error);
            }
            self.status.alive_while(to.abort()).await?;
            match open.given_up(error).await {
                Ok(refused) => {
                    self.status.alive_while(self.send_refused(&refused)).await?;
                    // The next attempt knows more. It may fail once more, as what was refused has
                    // left a gap in the producer's sequence: that isn't one failure after another.
                    delays = Delays::default();
                }
                Err(cause) => {
                    self.status.fail(PRODUCE, format!("{cause:#}"));
                    self.status.alive_while(delays.wait()).await;
                }
            }
            to.begin()?;
        }
        self.status.clear(PRODUCE);
        to.begin()?;
        Ok(())
    }

    /// Sends what isn't sent yet, waits until Kafka has it all, and commits it with the position after it.
    async fn try_commit(
        &self,
        to: &Transactions,
        open: &mut Open,
        progress: &mut Progress,
    ) -> anyhow::Result<()> {
        open.send(to).await?;
        open.delivered().await?;
        let position = progress.after(open);
        to.commit(self.positions.offsets(&position).await?).await?;
        progress.committed(position);
        open.clear();
        Ok(())
    }

    /// The batches of the source from a position on, each as the topic takes it.
    fn batches(
        &self,
        position: &Position,
    ) -> anyhow::Result<LocalBoxStream<'_, anyhow::Result<Admitted>>> {
        let source = source::open(
            &self.config.source,
            &Opening {
                schema: &self.config.schema,
                credentials: &self.credentials,
                position: position.position.as_ref(),
                status: &self.status,
                metrics: &self.metrics,
                connections: Some(Connections {
                    kafka: &self.config.kafka,
                    registry: self.config.schema_registry.as_ref(),
                    purpose: Purpose::Copy(&self.dead_letters),
                }),
                answers: self.answers,
            },
        )?;
        let admitting = (source, self.encode()?);
        let batches = stream::unfold(admitting, move |(mut source, mut encode)| async move {
            let batch = source.next().await?;
            let admitted = self.admit(batch, encode.as_mut()).await;
            Some((admitted, (source, encode)))
        });
        Ok(batches.boxed_local())
    }

    /// All records are in Kafka: a run is over, otherwise only `/status` is left to answer.
    async fn rest(&self, shutdown: &CancellationToken) -> Left {
        self.status.clear(PRODUCE);
        if self.run.is_some() {
            tracing::info!("the run is over");
            return Left::Done;
        }
        tracing::info!("the source is complete");
        self.status.complete();
        self.status.alive_while(shutdown.cancelled()).await;
        Left::ToDo
    }

    /// The time that the run has left, where it has a limit.
    fn time_left(&self, progress: &Progress) -> Option<Duration> {
        let limit = self.run.as_ref()?.limit?;
        let since = progress.position.run.as_ref()?.since;
        let passed = u64::try_from(now_millis() - since).unwrap_or(0);
        Some(limit.saturating_sub(Duration::from_millis(passed)))
    }

    /// The position to go on from; tries until Kafka answers.
    async fn load_position(&self, to: &Transactions) -> anyhow::Result<Position> {
        let mut delays = Delays::default();
        loop {
            match self.positions.load().await {
                Ok(position) => {
                    self.status.clear(POSITION);
                    let position = position.unwrap_or_default();
                    self.tell_of_another(&position);
                    return Ok(position.of_source(&self.fingerprint, self.end));
                }
                Err(error) => {
                    let message = format!("can't read the source's position from Kafka: {error:#}");
                    self.status.fail(POSITION, message);
                    delays.wait().await;
                    let any = Position::default();
                    to.clear(self.positions.offsets(&any).await?).await?;
                }
            }
        }
    }

    /// Warns where the source is read from its start that was read before as another one. It stays
    /// until the pod is replaced.
    fn tell_of_another(&self, before: &Position) {
        let anew = self.run.is_some() && self.config.source.begins_anew();
        if before.position.is_some() && before.source != self.fingerprint && !anew {
            let message = "the source isn't the one that was read before: it is read from its start, and what both have comes twice";
            self.status.warn(CHANGED, message);
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

    /// The records of a batch with their keys. What can't be a record of the topic is in the dead
    /// letters before: a transaction isn't kept open for it.
    async fn admit(
        &self,
        batch: SourceBatch,
        encode: Option<&mut Encode>,
    ) -> anyhow::Result<Admitted> {
        let mut rejected = batch.rejected;
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
        let mut records = Vec::with_capacity(batch.records.len());
        let admitted = keys.into_iter().zip(encoded);
        for (record, (key, encoded)) in batch.records.into_iter().zip(admitted) {
            match key.and_then(|key| Ok((key, encoded?))) {
                Ok((key, value)) => records.push(Outgoing::new(key, value)),
                Err(reason) => rejected.push((record, reason)),
            }
        }
        let given = records.len() + rejected.len() + batch.refused;
        self.metrics.records.inc_by(given as u64);
        let letters = rejected.iter();
        let letters = letters.map(|(record, reason)| letter(None, Some(record), reason));
        self.dead_letters.send(&letters.collect::<Vec<_>>()).await?;
        Ok(Admitted {
            records,
            given: given as i64,
            position: batch.position,
        })
    }

    /// Sends records to the dead letters that Kafka didn't take.
    async fn send_refused(&self, refused: &[(Outgoing, String)]) -> anyhow::Result<()> {
        let letters = refused
            .iter()
            .map(|(record, reason)| letter(record.key.as_deref(), record.value.as_deref(), reason));
        self.dead_letters.send(&letters.collect::<Vec<_>>()).await
    }
}

fn letter<'a>(key: Option<&'a [u8]>, value: Option<&'a [u8]>, reason: &'a str) -> DeadLetter<'a> {
    DeadLetter {
        key,
        value,
        reason,
        position: None,
        timestamp: None,
        folded: false,
    }
}

/// The position so far.
struct Progress {
    /// The one that is committed, but for what hasn't moved it.
    position: Position,
    /// Whether it must be committed though there are no records.
    moved: bool,
    /// When it was committed last.
    since: Instant,
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
            moved: position.position.is_some() || position != kept,
            position,
            since: Instant::now(),
        }
    }

    /// Whether there is nothing left to do.
    fn is_over(&self) -> bool {
        match &self.position.run {
            Some(run) => run.done,
            None => self.position.complete,
        }
    }

    /// Whether there is anything to commit.
    fn moves(&self, open: &Open) -> bool {
        let further =
            open.position().is_some() && open.position() != self.position.position.as_ref();
        self.moved || open.given() > 0 || further || self.since.elapsed() > RENEWAL
    }

    /// The position after the open transaction.
    fn after(&self, open: &Open) -> Position {
        let mut position = self.position.clone();
        position.records += open.count() as i64;
        if let Some(after) = open.position() {
            position.position = Some(after.clone());
        }
        if let Some(run) = &mut position.run {
            run.records += open.given();
            run.dead_lettered += open.given() - open.count() as i64;
        }
        position
    }

    fn committed(&mut self, position: Position) {
        self.position = position;
        self.moved = false;
        self.since = Instant::now();
    }

    /// The run is over, or the source has come to its end, or both. With the run its pod goes, which
    /// nobody can ask any more what was amiss.
    fn end(&mut self, complete: bool, warning: Option<String>) {
        self.position.complete = complete;
        if let Some(run) = &mut self.position.run {
            run.done = true;
            run.warning = warning;
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
