//! Whatever happens to workers and servers, every table equals the model, cell for cell.
//!
//! A seed makes a schedule: records (repeated keys, absent and null fields, broken ones), workers that
//! are killed, frozen and thawed, ended and started. In every third seed an ingest stage, whose workers fare
//! likewise, reads the records out of a file; in the others the test sends them. In every second group of
//! seeds Kafka and Cassandra are paused and restarted meanwhile. The model knows every record and folds it in
//! memory.
//!
//! `MILLSTREAM_SEEDS=1000` runs so many, `MILLSTREAM_SEEDS=500..1000` goes on where another run has
//! ended, `MILLSTREAM_SEED=17` runs that one. `MILLSTREAM_SEEDS_AT_ONCE=24` takes more memory, and less time.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    io::Write,
    ops::Range,
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use millstream_api::worker::dead_letter;
use rand::{RngExt, SeedableRng, rngs::Xoshiro256PlusPlus};
use rdkafka::{
    Message, Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer},
    message::Headers,
};
use serde_json::json;
use tempfile::NamedTempFile;

use crate::{
    sender::Sender,
    support::{Environment, Pipeline, Settings, StoppedService, Worker, service},
};

/// Keys of one seed: few, so that each gets many records.
const KEYS: i64 = 40;
const TIMEOUT: Duration = Duration::from_secs(10);
/// Records per second that the ingest stage reads.
const RATE: u32 = 500;
/// For everything to be stored after the last fault.
const PATIENCE: Duration = Duration::from_secs(180);

const SETTINGS: Settings = Settings {
    schema: "id BIGINT, version BIGINT, note TEXT, amount BIGINT, tags ARRAY<TEXT>",
    sql: "SELECT id, version, note, amount, tags FROM records",
    columns: &[
        ("id", "bigint"),
        ("version", "bigint"),
        ("note", "text"),
        ("amount", "bigint"),
        ("tags", "frozen<list<text>>"),
    ],
    key: "/id",
    partitions: 4,
    base: 1_700_000_000_000_000,
};

const LARGE: &str = "SELECT id, version, amount * 2 AS twice FROM records WHERE amount >= 500";
const LARGE_COLUMNS: [(&str, &str); 3] =
    [("id", "bigint"), ("version", "bigint"), ("twice", "bigint")];

const TOTALS: &str = "SELECT id, count(*) AS records, sum(amount) AS total, min(amount) AS least, \
    max(amount) AS most, last_value(version) AS latest, count(DISTINCT note) AS notes \
    FROM records GROUP BY id";
const TOTALS_COLUMNS: [(&str, &str); 7] = [
    ("id", "bigint"),
    ("records", "bigint"),
    ("total", "bigint"),
    ("least", "bigint"),
    ("most", "bigint"),
    ("latest", "bigint"),
    ("notes", "bigint"),
];

const SINKS: [&str; 3] = ["rows", "large", "totals"];

#[derive(Clone, Debug, Default, PartialEq)]
struct Row {
    version: Option<i64>,
    note: Option<String>,
    amount: Option<i64>,
    tags: Option<Vec<String>>,
}

/// The row of a group: count, sum, least, most, latest version and number of different notes.
type Total = (i64, Option<i64>, Option<i64>, Option<i64>, i64, i64);

/// A dead letter: the stage that rejected it, and the record.
type Letter = (String, Vec<u8>);

/// What the tables and the dead-letter topic must hold, by the records that were sent.
#[derive(Default)]
struct Model {
    rows: BTreeMap<i64, Row>,
    large: BTreeMap<i64, (i64, i64)>,
    totals: BTreeMap<i64, Total>,
    notes: BTreeMap<i64, BTreeSet<String>>,
    records: i64,
    letters: BTreeSet<Letter>,
}

impl Model {
    /// A record, as it is sent; the model then holds what it says. These stages read it: a broken one is a
    /// dead letter of each.
    fn record(
        &mut self,
        random: &mut Xoshiro256PlusPlus,
        first_id: i64,
        stages: &[&str],
    ) -> (String, Vec<u8>) {
        let id = first_id + random.random_range(0..KEYS);
        let version = self.records;
        self.records += 1;
        let key = id.to_string();
        if random.random_ratio(1, 100) {
            let broken = format!(r#"{{"id": {id}, "version": {version}, "note":"#).into_bytes();
            let letters = stages
                .iter()
                .map(|stage| ((*stage).to_owned(), broken.clone()));
            self.letters.extend(letters);
            return (key, broken);
        }
        let mut record = json!({"id": id, "version": version});
        let row = self.rows.entry(id).or_default();
        row.version = Some(version);
        let note = match random.random_range(0..4) {
            0 => None,
            1 => Some(None),
            _ => Some(Some(format!("naïve №{}", random.random_range(0..20)))),
        };
        if let Some(note) = &note {
            record["note"] = json!(note);
            row.note.clone_from(note);
        }
        let amount = match random.random_range(0..4) {
            0 => None,
            1 => Some(None),
            _ => Some(Some(random.random_range(-1_000..1_000))),
        };
        if let Some(amount) = amount {
            record["amount"] = json!(amount);
            row.amount = amount;
        }
        let tags = match random.random_range(0..4) {
            0 => None,
            1 => Some(None),
            count => {
                let tags = (1..count).map(|tag| format!("{tag} of {version}"));
                Some(Some(tags.collect::<Vec<_>>()))
            }
        };
        if let Some(tags) = tags {
            record["tags"] = json!(tags);
            row.tags = tags;
        }
        self.fold(id, version, note.flatten(), amount.flatten());
        (key, record.to_string().into_bytes())
    }

    fn fold(&mut self, id: i64, version: i64, note: Option<String>, amount: Option<i64>) {
        if let Some(amount) = amount.filter(|amount| *amount >= 500) {
            self.large.insert(id, (version, amount * 2));
        }
        let notes = self.notes.entry(id).or_default();
        notes.extend(note);
        let total = self.totals.entry(id).or_default();
        total.0 += 1;
        if let Some(amount) = amount {
            total.1 = Some(total.1.unwrap_or_default() + amount);
            total.2 = Some(total.2.map_or(amount, |least| least.min(amount)));
            total.3 = Some(total.3.map_or(amount, |most| most.max(amount)));
        }
        total.4 = version;
        total.5 = i64::try_from(notes.len()).unwrap();
    }
}

/// What happens next.
#[derive(Clone, Copy, Debug)]
enum Step {
    /// So many records are sent, or read by the ingest stage meanwhile.
    Send(u32),
    /// So many milliseconds pass: faults come at any instant of the workers' work.
    Pass(u64),
    /// SIGKILL, and another worker takes its place.
    Kill,
    /// SIGSTOP: to the others it is dead, once its session has timed out.
    Freeze,
    /// SIGCONT: a zombie comes back.
    Thaw,
    /// One more worker that processes.
    Start,
    /// SIGTERM to one; the last of its stage is replaced.
    End,
}

/// What a worker does.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Stage {
    Ingest,
    Process,
}

impl Step {
    fn records(self) -> u32 {
        match self {
            Step::Send(count) => count,
            _ => 0,
        }
    }
}

fn schedule(random: &mut Xoshiro256PlusPlus) -> Vec<Step> {
    let step = |random: &mut Xoshiro256PlusPlus| match random.random_range(0..14) {
        0..5 => Step::Send(random.random_range(1..500)),
        5..8 => Step::Pass(random.random_range(1..1_500)),
        8..10 => Step::Kill,
        10 => Step::Freeze,
        11 => Step::Thaw,
        12 => Step::Start,
        _ => Step::End,
    };
    let steps = random.random_range(8..20);
    (0..steps).map(|_| step(random)).collect()
}

/// A pipeline on its way through the schedule of a seed.
struct Seed {
    number: u64,
    steps: Vec<Step>,
    random: Xoshiro256PlusPlus,
    pipeline: Pipeline,
    sender: Sender,
    model: Model,
    /// What the ingest stage reads, where there is one.
    file: Option<NamedTempFile>,
    /// The one that takes a step is behind the others then.
    workers: VecDeque<(Stage, Worker)>,
    zombies: Vec<(Stage, Worker)>,
}

impl Seed {
    async fn new(number: u64, beside: &Pipeline) -> Self {
        let mut random = Xoshiro256PlusPlus::seed_from_u64(number);
        let pipeline = beside.beside().await;
        let mut seed = Seed {
            number,
            steps: schedule(&mut random),
            random,
            sender: Sender::to(&pipeline),
            pipeline,
            model: Model::default(),
            file: None,
            workers: VecDeque::new(),
            zombies: Vec::new(),
        };
        if number % 3 == 2 {
            seed.file = Some(seed.write());
        }
        seed
    }

    /// All records of the schedule, as a file.
    fn write(&mut self) -> NamedTempFile {
        let mut file = NamedTempFile::with_suffix(".ndjson").unwrap();
        let records = self.steps.clone().into_iter().map(Step::records).sum();
        for (_, record) in self.records(records, &["ingest"]) {
            file.write_all(&record).unwrap();
            file.write_all(b"\n").unwrap();
        }
        file
    }

    fn records(&mut self, count: u32, stages: &[&str]) -> Vec<(String, Vec<u8>)> {
        let first = self.ids().start;
        let record = |_| self.model.record(&mut self.random, first, stages);
        (0..count).map(record).collect()
    }

    fn ids(&self) -> Range<i64> {
        let first = i64::try_from(self.number).unwrap() * 1_000;
        first..first + KEYS
    }

    fn start(&mut self, stage: Stage) {
        let worker = match (stage, &self.file) {
            (Stage::Ingest, Some(file)) => {
                let replay = json!({"file": {"path": file.path()}});
                let source = json!({"generator": {"rate": RATE, "replay": replay}});
                self.pipeline.ingest(source)
            }
            _ => self.pipeline.process_into(json!([
                self.pipeline.sink("rows", SETTINGS.sql, SETTINGS.columns),
                self.pipeline.sink("large", LARGE, &LARGE_COLUMNS),
                self.pipeline.sink("totals", TOTALS, &TOTALS_COLUMNS),
            ])),
        };
        self.workers.push_back((stage, worker));
    }

    /// As Kubernetes does: a worker that has ended by itself is started again.
    fn revive(&mut self) {
        for _ in 0..self.workers.len() {
            let (stage, mut worker) = self.next();
            match worker.has_ended() {
                true => self.start(stage),
                false => self.workers.push_back((stage, worker)),
            }
        }
    }

    /// The worker whose turn it is.
    fn next(&mut self) -> (Stage, Worker) {
        self.workers.pop_front().expect("there always is one")
    }

    fn count(&self, wanted: Stage) -> usize {
        let stages = self.workers.iter().map(|(stage, _)| stage);
        stages.filter(|stage| **stage == wanted).count()
    }

    async fn send(&mut self, count: u32) {
        let records = self.records(count, &SINKS);
        self.sender.send(records).await;
    }

    async fn run(&mut self) {
        self.start(Stage::Process);
        if self.file.is_some() {
            self.start(Stage::Ingest);
        }
        for step in self.steps.clone() {
            self.revive();
            self.take(step).await;
        }
    }

    async fn take(&mut self, step: Step) {
        match step {
            Step::Send(count) if self.file.is_some() => {
                tokio::time::sleep(Duration::from_secs(1) * count / RATE).await;
            }
            Step::Send(count) => self.send(count).await,
            Step::Pass(milliseconds) => {
                tokio::time::sleep(Duration::from_millis(milliseconds)).await;
            }
            Step::Kill => {
                let (stage, worker) = self.next();
                worker.kill();
                self.start(stage);
            }
            Step::Freeze => {
                let (stage, worker) = self.next();
                worker.signal("STOP");
                self.zombies.push((stage, worker));
                self.start(stage);
            }
            Step::Thaw => self.thaw(),
            Step::Start if self.count(Stage::Process) < 3 => self.start(Stage::Process),
            Step::Start => {}
            Step::End => {
                let (stage, worker) = self.next();
                worker.terminate().await;
                if self.count(stage) == 0 {
                    self.start(stage);
                }
            }
        }
    }

    fn thaw(&mut self) {
        if let Some((stage, worker)) = self.zombies.pop() {
            worker.signal("CONT");
            self.workers.push_back((stage, worker));
        }
    }

    /// Everything is stored without those that are frozen, then again with them.
    async fn settle(&mut self) -> Result<(), String> {
        if self.file.is_some() {
            self.ingested().await?;
        }
        self.send(50).await;
        self.drain().await?;
        while !self.zombies.is_empty() {
            self.thaw();
        }
        self.send(50).await;
        self.drain().await
    }

    /// Waits until the whole file is in the topic.
    async fn ingested(&mut self) -> Result<(), String> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            self.revive();
            let kept = self.pipeline.kept().await;
            if kept["complete"] == true {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(format!("ingest has come to {kept}"));
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    async fn drain(&mut self) -> Result<(), String> {
        let deadline = Instant::now() + PATIENCE;
        for sink in SINKS {
            loop {
                self.revive();
                let (counts, lag) = self.pipeline.progress_of(sink).await;
                if lag == 0 {
                    break;
                }
                if Instant::now() > deadline {
                    return Err(format!("{sink} has a lag of {lag} with {counts:?}"));
                }
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        }
        Ok(())
    }

    /// Holds tables, counts and dead letters against the model.
    async fn check(&self) -> Result<(), String> {
        let rows: BTreeMap<_, _> = self
            .select::<(
                i64,
                Option<i64>,
                Option<String>,
                Option<i64>,
                Option<Vec<String>>,
            )>("id, version, note, amount, tags FROM", "rows")
            .await
            .into_iter()
            .map(|(id, version, note, amount, tags)| {
                let row = Row {
                    version,
                    note,
                    amount,
                    tags,
                };
                (id, row)
            })
            .collect();
        same("rows", &self.model.rows, &rows)?;
        let large = self.select::<(i64, i64, i64)>("id, version, twice FROM", "large");
        let large = large.await.into_iter();
        let large = large.map(|(id, version, twice)| (id, (version, twice)));
        same("large", &self.model.large, &large.collect())?;
        let totals = self.select::<(i64, i64, Option<i64>, Option<i64>, Option<i64>, i64, i64)>(
            "id, records, total, least, most, latest, notes FROM",
            "totals",
        );
        let totals = totals.await.into_iter();
        let totals = totals.map(|row| (row.0, (row.1, row.2, row.3, row.4, row.5, row.6)));
        same("totals", &self.model.totals, &totals.collect())?;
        let letters = self.dead_letters().await;
        if letters != self.model.letters {
            let letters: Vec<_> = letters.symmetric_difference(&self.model.letters).collect();
            return Err(format!("other dead letters: {letters:?}"));
        }
        for sink in SINKS {
            let (counts, _) = self.pipeline.progress_of(sink).await;
            let letters = letters.iter().filter(|(stage, _)| stage == sink).count() as i64;
            if counts.dead_lettered != letters {
                return Err(format!(
                    "{sink} counts {counts:?}, there are {letters} letters"
                ));
            }
        }
        Ok(())
    }

    async fn select<T>(&self, columns: &str, table: &str) -> Vec<T>
    where
        T: for<'frame, 'metadata> scylla::deserialize::row::DeserializeRow<'frame, 'metadata>,
    {
        let ids: Vec<_> = self.ids().map(|id| id.to_string()).collect();
        let keyspace = &self.pipeline.keyspace;
        let query = format!(
            "SELECT {columns} {keyspace}.{table} WHERE id IN ({})",
            ids.join(", ")
        );
        let deadline = Instant::now() + PATIENCE;
        let rows = loop {
            match self
                .pipeline
                .session
                .query_unpaged(query.as_str(), ())
                .await
            {
                Ok(result) => break result.into_rows_result().unwrap(),
                // This test's own connections, too, have to come back after Cassandra's restart.
                Err(error) => assert!(Instant::now() < deadline, "{error}"),
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        };
        rows.rows::<T>().unwrap().map(Result::unwrap).collect()
    }

    /// What is in the dead-letter topic: a worker that is killed after it has sent a letter sends it again.
    async fn dead_letters(&self) -> BTreeSet<Letter> {
        let mut config = self.pipeline.client();
        config.set("group.id", "unused");
        let topic = self.pipeline.dead_letter_topic();
        let read = move || {
            let consumer: BaseConsumer = config.create().unwrap();
            let (_, end) = consumer.fetch_watermarks(&topic, 0, TIMEOUT).unwrap();
            let mut list = TopicPartitionList::new();
            list.add_partition_offset(&topic, 0, Offset::Beginning)
                .unwrap();
            consumer.assign(&list).unwrap();
            let (mut letters, mut next) = (BTreeSet::new(), 0);
            while next < end {
                let record = consumer.poll(TIMEOUT).expect("a dead letter").unwrap();
                next = record.offset() + 1;
                let mut headers = record.headers().unwrap().iter();
                let stage = headers.find(|header| header.key == dead_letter::STAGE);
                let stage = String::from_utf8(stage.unwrap().value.unwrap().to_vec()).unwrap();
                letters.insert((stage, record.payload().unwrap().to_vec()));
            }
            letters
        };
        tokio::task::spawn_blocking(read).await.unwrap()
    }

    /// The whole way; why it is wrong, where it is.
    async fn finish(mut self) -> Result<i64, String> {
        let outcome = match self.settle().await {
            Ok(()) => self.check().await,
            Err(error) => Err(error),
        };
        if let Err(error) = outcome {
            let (number, name) = (self.number, &self.pipeline.name);
            let steps = &self.steps;
            return Err(format!("seed {number}, topic {name}: {error}\n  {steps:?}"));
        }
        self.workers.clear();
        self.pipeline.delete_topics().await;
        Ok(self.model.records)
    }
}

fn same<T: PartialEq + std::fmt::Debug>(
    table: &str,
    expected: &BTreeMap<i64, T>,
    found: &BTreeMap<i64, T>,
) -> Result<(), String> {
    let ids: BTreeSet<_> = expected.keys().chain(found.keys()).collect();
    let different: Vec<_> = ids
        .into_iter()
        .filter(|id| expected.get(id) != found.get(id))
        .map(|id| format!("{id}: {:?}, not {:?}", found.get(id), expected.get(id)))
        .collect();
    if different.is_empty() {
        return Ok(());
    }
    Err(format!("{table}: {}", different.join("\n  ")))
}

async fn told(action: &'static str, name: &'static str) {
    let done = tokio::task::spawn_blocking(move || service(action, name)).await;
    done.unwrap().unwrap();
}

/// Pauses and restarts the servers until it is over; then both serve.
async fn storm(seed: u64, over: &AtomicBool) {
    let mut random = Xoshiro256PlusPlus::seed_from_u64(!seed);
    while !over.load(Ordering::Relaxed) {
        tokio::time::sleep(Duration::from_millis(random.random_range(500..3_000))).await;
        let name = ["kafka", "cassandra"][random.random_range(0..2)];
        if random.random_ratio(1, 3) {
            told("restart", name).await;
        } else {
            told("pause", name).await;
            // Up to what a session of a consumer group outlives, and beyond.
            tokio::time::sleep(Duration::from_millis(random.random_range(500..9_000))).await;
            told("resume", name).await;
        }
    }
}

/// Runs seeds beside each other; how many records each sent, or what was wrong.
async fn run(seeds: Range<u64>, beside: &Pipeline) -> Vec<Result<i64, String>> {
    let stormy = (seeds.start / at_once()) % 2 == 1;
    let first = seeds.start;
    let mut running = Vec::new();
    for number in seeds {
        running.push(Seed::new(number, beside).await);
    }
    let over = AtomicBool::new(!stormy);
    let schedules = async {
        futures::future::join_all(running.iter_mut().map(Seed::run)).await;
        over.store(true, Ordering::Relaxed);
    };
    tokio::join!(schedules, storm(first, &over));
    futures::future::join_all(running.into_iter().map(Seed::finish)).await
}

async fn create() -> Option<Pipeline> {
    let pipeline = Pipeline::create(Environment::find_alone().await?, SETTINGS).await;
    let columns = |columns: &[(&str, &str)]| {
        let columns = columns.iter().map(|(name, cql)| format!("{name} {cql}"));
        columns.collect::<Vec<_>>().join(", ")
    };
    for (table, columns) in [
        ("large", columns(&LARGE_COLUMNS)),
        ("totals", columns(&TOTALS_COLUMNS)),
        ("totals__state", "id bigint, state__ blob".to_owned()),
    ] {
        let keyspace = &pipeline.keyspace;
        let statement = format!("CREATE TABLE {keyspace}.{table} ({columns}, PRIMARY KEY (id))");
        pipeline.session.query_unpaged(statement, ()).await.unwrap();
    }
    Some(pipeline)
}

fn number(text: &str) -> u64 {
    text.parse().expect("it is a number")
}

/// Seeds that run at the same time, against the same servers.
fn at_once() -> u64 {
    std::env::var("MILLSTREAM_SEEDS_AT_ONCE").map_or(8, |text| number(&text))
}

/// The seeds that are asked for; a few where none are.
fn seeds() -> Range<u64> {
    if let Ok(one) = std::env::var("MILLSTREAM_SEED") {
        return number(&one)..number(&one) + 1;
    }
    let Ok(wanted) = std::env::var("MILLSTREAM_SEEDS") else {
        return 0..3 * at_once();
    };
    match wanted.split_once("..") {
        Some((first, end)) => number(first)..number(end),
        None => 0..number(&wanted),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_equal_the_model_whatever_happens() {
    let Some(pipeline) = create().await else {
        return;
    };
    let seeds = seeds();
    let (started, mut records, mut failures) = (Instant::now(), 0, Vec::new());
    for first in seeds.clone().step_by(at_once() as usize) {
        let group = first..seeds.end.min(first + at_once());
        for outcome in run(group.clone(), &pipeline).await {
            match outcome {
                Ok(sent) => records += sent,
                Err(error) => {
                    let at_once = at_once();
                    eprintln!(
                        "{error}\nMILLSTREAM_SEEDS={group:?} MILLSTREAM_SEEDS_AT_ONCE={at_once} has the same beside it"
                    );
                    failures.push(error);
                }
            }
        }
        let elapsed = started.elapsed();
        eprintln!("up to seed {first}: {records} records, {elapsed:.0?}");
    }
    let (wrong, all) = (failures.len(), seeds.count());
    assert!(failures.is_empty(), "{wrong} of {all} seeds are wrong");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ingest_stage_sends_each_record_once_whatever_happens() {
    const COUNT: usize = 30_000;
    let Some(environment) = Environment::find_alone().await else {
        return;
    };
    let disturbed = Pipeline::create(environment, SETTINGS).await;
    let quiet = disturbed.beside().await;
    let without_records = quiet.process();
    let source = json!({"generator": {"count": COUNT, "seed": 5, "rate": 2_500}});
    let complete = |kept: &serde_json::Value| kept["complete"] == true;
    let mut worker = disturbed.ingest(source.clone());
    for round in 0..8_u64 {
        tokio::time::sleep(Duration::from_millis(200 + round * 331 % 900)).await;
        match round {
            2 | 5 => {
                worker.signal("STOP");
                let other = disturbed.ingest(source.clone());
                other
                    .await_metric("millstream_worker_records_total", 1)
                    .await;
                // What it has under way was given up: another one has its place.
                worker.signal("CONT");
                let shut_out = |error: &String| error.contains("can't go on");
                worker
                    .await_status(|status| status.errors.get("ingest").is_some_and(shut_out))
                    .await;
                worker.kill();
                worker = other;
            }
            4 => {
                if let Some(kafka) = StoppedService::stop("kafka").await {
                    kafka.start().await;
                }
            }
            _ => {
                worker.kill();
                worker = disturbed.ingest(source.clone());
            }
        }
    }
    let kept = disturbed.await_kept(complete).await;
    assert_eq!(kept["records"], COUNT, "the markers aren't counted");
    let alone = disturbed.beside().await;
    let undisturbed = alone.ingest(source);
    alone.await_kept(complete).await;
    let (expected, found) = (alone.records().await, disturbed.records().await);
    assert_eq!(found.len(), COUNT);
    assert!(found == expected, "other records");
    // Where nothing comes, no record says that Kafka can be read again.
    without_records
        .await_status(|status| status.errors.is_empty())
        .await;
    drop((worker, undisturbed));
}
