//! A Kafka topic, a Cassandra table and worker processes for a test, on the real servers.

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Arc, LazyLock},
    time::{Duration, Instant},
};

use millstream_api::worker::{CommitMetadata, PipelineRef, WorkerStatus};
use rdkafka::{
    ClientConfig, Message, Offset, TopicPartitionList,
    admin::{
        AdminClient, AdminOptions, AlterConfig, NewTopic, ResourceSpecifier, TopicReplication,
    },
    client::DefaultClientContext,
    consumer::{BaseConsumer, Consumer},
    error::KafkaError,
    message::Headers,
    producer::{FutureProducer, FutureRecord},
};
use scylla::client::{session::Session, session_builder::SessionBuilder};
use serde_json::{Value, json};
use tempfile::NamedTempFile;
use tokio::sync::{OwnedRwLockReadGuard, OwnedRwLockWriteGuard, RwLock};

use crate::ports::free_port;

const TIMEOUT: Duration = Duration::from_secs(10);

/// Writes a file of a worker whole, as a kubelet does: another worker that starts may be reading it.
fn mount(folder: &Path, name: &str, text: &str) -> PathBuf {
    let mut file = NamedTempFile::new_in(folder).expect("a file");
    file.write_all(text.as_bytes()).expect("written");
    let path = folder.join(name);
    file.persist(&path).expect("renamed");
    path
}

/// Tests run beside each other, but for those that stop what all of them stand on.
static SERVERS: LazyLock<Arc<RwLock<()>>> = LazyLock::new(Arc::default);

/// What keeps the servers as they are, or keeps them for one test.
#[expect(dead_code, reason = "held")]
enum Hold {
    Shared(OwnedRwLockReadGuard<()>),
    Alone(OwnedRwLockWriteGuard<()>),
}

/// Where the servers are, from the file that `MILLSTREAM_ENVIRONMENT` names.
#[derive(Clone)]
pub struct Environment {
    _hold: Arc<Hold>,
    /// All that the file says.
    pub json: Value,
    kafka: String,
    pub cassandra: String,
    pub user: String,
    pub password: String,
    pub redis: String,
}

impl Environment {
    /// None, and a word why, where there are no servers to test against. Once in a test.
    pub async fn find() -> Option<Self> {
        let shared = SERVERS.clone().read_owned().await;
        Environment::of(Hold::Shared(shared))
    }

    /// Likewise, while no other test runs.
    pub async fn find_alone() -> Option<Self> {
        let alone = SERVERS.clone().write_owned().await;
        Environment::of(Hold::Alone(alone))
    }

    fn of(hold: Hold) -> Option<Self> {
        let Ok(path) = std::env::var("MILLSTREAM_ENVIRONMENT") else {
            eprintln!("skipped: MILLSTREAM_ENVIRONMENT names no environment");
            return None;
        };
        let text = std::fs::read_to_string(path).expect("MILLSTREAM_ENVIRONMENT can be read");
        let json: Value = serde_json::from_str(&text).expect("it is JSON");
        let text = |key: &str| json[key].as_str().expect(key).to_owned();
        Some(Environment {
            _hold: Arc::new(hold),
            kafka: text("kafka"),
            cassandra: text("cassandra"),
            user: text("cassandraUser"),
            password: text("cassandraPassword"),
            redis: text("redis"),
            json,
        })
    }
}

/// A server that is stopped until this is dropped, also by a test that fails.
pub struct StoppedService {
    name: &'static str,
    /// What it goes on with.
    again: &'static str,
}

impl StoppedService {
    /// Stops a server, such as `cassandra`; nothing, and a word why, where that can't be done.
    pub async fn stop(name: &'static str) -> Option<Self> {
        StoppedService::by("stop", name, "start").await
    }

    /// Pauses a server: its connections stay, and nothing answers.
    pub async fn pause(name: &'static str) -> Option<Self> {
        StoppedService::by("pause", name, "resume").await
    }

    async fn by(action: &'static str, name: &'static str, again: &'static str) -> Option<Self> {
        if std::env::var_os("MILLSTREAM_XTASK").is_none() {
            eprintln!("skipped: MILLSTREAM_XTASK names no program that stops servers");
            return None;
        }
        let stopped = StoppedService { name, again };
        let done = tokio::task::spawn_blocking(move || service(action, name));
        done.await.expect("it ends").expect("it stops");
        Some(stopped)
    }

    /// Lets it go on, and waits until it is there.
    pub async fn start(self) {
        let done = tokio::task::spawn_blocking(move || drop(self));
        done.await.expect("it ends");
    }
}

impl Drop for StoppedService {
    fn drop(&mut self) {
        if let Err(error) = service(self.again, self.name) {
            eprintln!("{error}");
        }
    }
}

/// `start`, `stop`, `restart`, `pause` or `resume` a server, and wait until it is done.
pub fn service(action: &str, name: &str) -> Result<(), String> {
    let xtask = std::env::var_os("MILLSTREAM_XTASK").ok_or("MILLSTREAM_XTASK isn't set")?;
    let mut command = Command::new(xtask);
    let output = command.args(["service", action, name]).output();
    let output = output.map_err(|error| error.to_string())?;
    match output.status.success() {
        true => Ok(()),
        false => Err(format!(
            "service {action} {name}: {}",
            String::from_utf8_lossy(&output.stderr)
        )),
    }
}

/// A pipeline of one test, with names of its own.
pub struct Pipeline {
    pub environment: Environment,
    pub name: String,
    /// Named as the pipeline, if it isn't one beside another.
    pub keyspace: String,
    pub session: Arc<Session>,
    folder: tempfile::TempDir,
    pub settings: Settings,
    /// What else the configurations say.
    pub more: Value,
    /// How long groups are kept.
    pub state_ttl: Option<&'static str>,
}

/// What tests differ in.
#[derive(Clone, Copy)]
pub struct Settings {
    pub schema: &'static str,
    pub sql: &'static str,
    /// The table's columns, its primary key first.
    pub columns: &'static [(&'static str, &'static str)],
    pub key: &'static str,
    pub partitions: i32,
    pub base: i64,
}

impl Pipeline {
    /// Makes topics, keyspace and table.
    pub async fn create(environment: Environment, settings: Settings) -> Self {
        let name = format!("worker_{}", uuid::Uuid::new_v4().simple());
        let session = SessionBuilder::new()
            .known_node(&environment.cassandra)
            .user(&environment.user, &environment.password)
            .build()
            .await
            .expect("Cassandra answers");
        let columns: Vec<_> = settings
            .columns
            .iter()
            .map(|(name, cql)| format!("{name} {cql}"))
            .collect();
        let key = settings.columns[0].0;
        let keyspace = name.clone();
        for statement in [
            format!(
                "CREATE KEYSPACE {name} WITH replication = {{'class': 'SimpleStrategy', 'replication_factor': 1}}"
            ),
            format!(
                "CREATE TABLE {name}.rows ({}, PRIMARY KEY ({key}))",
                columns.join(", ")
            ),
        ] {
            session.query_unpaged(statement, ()).await.expect("DDL");
        }
        let pipeline = Pipeline {
            environment,
            name,
            keyspace,
            session: Arc::new(session),
            folder: tempfile::tempdir().expect("a folder"),
            settings,
            more: json!({}),
            state_ttl: None,
        };
        pipeline.create_topics().await;
        pipeline
    }

    /// Another pipeline with topics of its own, into the same tables.
    pub async fn beside(&self) -> Self {
        let pipeline = Pipeline {
            environment: self.environment.clone(),
            name: format!("worker_{}", uuid::Uuid::new_v4().simple()),
            keyspace: self.keyspace.clone(),
            session: self.session.clone(),
            folder: tempfile::tempdir().expect("a folder"),
            settings: self.settings,
            more: self.more.clone(),
            state_ttl: self.state_ttl,
        };
        pipeline.create_topics().await;
        pipeline
    }

    /// Removes the topics.
    pub async fn delete_topics(&self) {
        let admin: AdminClient<DefaultClientContext> = self.client().create().expect("admin");
        let topics = [self.name.as_str(), &self.dead_letter_topic()];
        let deleted = admin.delete_topics(&topics, &AdminOptions::new()).await;
        deleted.expect("Kafka answers");
    }

    async fn create_topics(&self) {
        let admin: AdminClient<DefaultClientContext> = self.client().create().expect("admin");
        let dead_letters = self.dead_letter_topic();
        let topics = [
            NewTopic::new(
                &self.name,
                self.settings.partitions,
                TopicReplication::Fixed(1),
            )
            .set("max.message.bytes", "10485760"),
            NewTopic::new(&dead_letters, 1, TopicReplication::Fixed(1))
                .set("max.message.bytes", "10485760"),
        ];
        let created = admin.create_topics(&topics, &AdminOptions::new()).await;
        for result in created.expect("Kafka answers") {
            result.expect("the topic is made");
        }
    }

    pub fn client(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", &self.environment.kafka);
        config
    }

    pub fn dead_letter_topic(&self) -> String {
        format!("{}.dead-letter", self.name)
    }

    /// Who it is.
    pub fn reference(&self) -> PipelineRef {
        PipelineRef {
            namespace: "test".into(),
            name: self.name.clone(),
        }
    }

    fn config(&self, stage: &str) -> Value {
        let mut config = json!({
            "stage": stage,
            "pipeline": self.reference(),
            "kafka": {"bootstrapServers": self.environment.kafka},
            "topic": {
                "name": self.name, "id": "unknown", "timestampBase": self.settings.base,
                "partitions": self.settings.partitions,
            },
            "deadLetterTopic": self.dead_letter_topic(),
            "schema": self.settings.schema,
        });
        for (name, value) in self.more.as_object().expect("an object") {
            config[name] = value.clone();
        }
        config
    }

    /// Gives the workers that are started from now on a credential.
    pub fn give(&self, file: &str, value: &str) {
        mount(self.folder.path(), file, value);
    }

    /// Starts a worker that ingests from the source.
    pub fn ingest(&self, source: Value) -> Worker {
        self.ingest_with(source, &[])
    }

    /// Starts a worker that ingests from the source, with more arguments.
    pub fn ingest_with(&self, source: Value, arguments: &[&str]) -> Worker {
        let mut config = self.config("ingest");
        config["key"] = json!([self.settings.key]);
        config["source"] = source;
        self.start_with(&config, arguments)
    }

    /// Ingests up to the end of the source, by two workers: the first is killed when it has read records.
    pub async fn ingest_killed(&self, source: Value) {
        let first = self.ingest(source.clone());
        first
            .await_metric("millstream_worker_records_total", 1)
            .await;
        first.kill();
        let second = self.ingest(source);
        second.await_status(|status| status.complete).await;
    }

    /// What the ingest stage has kept; null where that is nothing.
    pub async fn kept(&self) -> Value {
        let mut config = self.client();
        config.set("group.id", self.reference().ingest_group());
        let topic = self.name.clone();
        tokio::task::spawn_blocking(move || {
            let consumer: BaseConsumer = config.create().expect("consumer");
            let mut list = TopicPartitionList::new();
            list.add_partition(&topic, 0);
            let deadline = Instant::now() + TIMEOUT;
            // Kafka doesn't tell while a transaction is being committed.
            while Instant::now() < deadline {
                if let Ok(committed) = consumer.committed_offsets(list.clone(), TIMEOUT) {
                    let metadata = committed.elements()[0].metadata().to_owned();
                    return serde_json::from_str(&metadata).unwrap_or_default();
                }
            }
            Value::Null
        })
        .await
        .expect("the task ends")
    }

    /// All records that can be read in the topic, sorted.
    pub async fn records(&self) -> Vec<Vec<u8>> {
        let mut config = self.client();
        config
            .set("group.id", "unused")
            .set("enable.partition.eof", "true");
        let (topic, partitions) = (self.name.clone(), self.settings.partitions);
        let read = move || {
            let consumer: BaseConsumer = config.create().expect("consumer");
            let mut list = TopicPartitionList::new();
            list.add_partition_range(&topic, 0, partitions - 1);
            list.set_all_offsets(Offset::Beginning).expect("offsets");
            consumer.assign(&list).expect("assigned");
            let (mut records, mut open) = (Vec::new(), partitions);
            while open > 0 {
                match consumer.poll(TIMEOUT).expect("a record or the end") {
                    Ok(record) => records.push(record.payload().expect("a value").to_vec()),
                    Err(KafkaError::PartitionEOF(_)) => open -= 1,
                    Err(error) => panic!("{error}"),
                }
            }
            records.sort();
            records
        };
        tokio::task::spawn_blocking(read).await.expect("it ends")
    }

    /// The end of the topic, behind what isn't committed yet.
    pub fn end(&self) -> End {
        let mut config = self.client();
        config
            .set("group.id", "unused")
            .set("isolation.level", "read_uncommitted");
        End {
            consumer: config.create().expect("consumer"),
            topic: self.name.clone(),
            partitions: self.settings.partitions,
        }
    }

    /// Removes all that is in the topic now, as retention does.
    pub async fn empty_topic(&self) {
        let admin: AdminClient<DefaultClientContext> = self.client().create().expect("admin");
        let mut list = TopicPartitionList::new();
        list.add_partition_range(&self.name, 0, self.settings.partitions - 1);
        list.set_all_offsets(Offset::End).expect("offsets");
        let deleted = admin.delete_records(&list, &AdminOptions::new()).await;
        for element in deleted.expect("Kafka answers").elements() {
            element.error().expect("its records are removed");
        }
    }

    /// Sets what the topic takes at most at once, in bytes.
    pub async fn limit_topic(&self, bytes: &str) {
        self.limit(&self.name, bytes).await;
    }

    /// Whether Kafka takes dead letters: otherwise each is too large.
    pub async fn take_dead_letters(&self, takes: bool) {
        let bytes = if takes { "10485760" } else { "1" };
        self.limit(&self.dead_letter_topic(), bytes).await;
    }

    async fn limit(&self, topic: &str, bytes: &str) {
        let topic = ResourceSpecifier::Topic(topic);
        let config = AlterConfig::new(topic).set("max.message.bytes", bytes);
        let admin: AdminClient<DefaultClientContext> = self.client().create().expect("admin");
        let altered = admin.alter_configs([&config], &AdminOptions::new()).await;
        for result in altered.expect("Kafka answers") {
            result.expect("it is set");
        }
    }

    /// Starts a worker that processes.
    pub fn process(&self) -> Worker {
        self.process_with(json!({}))
    }

    /// Starts a worker that processes, with more said of the sink.
    pub fn process_with(&self, more: Value) -> Worker {
        let mut sink = self.sink("rows", self.settings.sql, self.settings.columns);
        for (name, value) in more.as_object().expect("an object") {
            sink[name] = value.clone();
        }
        if let Some(sink) = sink.as_object_mut() {
            // Null is for what isn't to be there.
            sink.retain(|_, value| !value.is_null());
        }
        self.process_into(json!([sink]))
    }

    /// A sink into the table of its name.
    pub fn sink(&self, name: &str, sql: &str, columns: &[(&str, &str)]) -> Value {
        let typed = columns.iter();
        let typed: Vec<_> = typed
            .map(|(name, cql)| json!({"name": name, "type": cql}))
            .collect();
        json!({
            "name": name,
            "sql": sql,
            "cassandra": {
                "keyspace": self.keyspace,
                "table": {
                    "name": name, "columns": typed,
                    "primaryKey": {"partitionKey": [columns[0].0]},
                },
                "consistency": "LOCAL_QUORUM",
            },
            "stateTtl": self.state_ttl,
        })
    }

    /// Starts a worker that processes into these sinks.
    pub fn process_into(&self, sinks: Value) -> Worker {
        let mut config = self.config("process");
        config["cassandra"] = json!({
            "contactPoints": [self.environment.cassandra],
            "credentialsSecret": {"name": "cassandra"},
        });
        config["sinks"] = sinks;
        self.start(&config)
    }

    /// Runs `replay` with the configuration of the stage that was started last; what it prints.
    pub fn replay(&self, stage: &str, arguments: &[&str]) -> String {
        let replay = self.start_replay(stage, arguments);
        let output = replay.wait_with_output().expect("the worker ends");
        let told = String::from_utf8(output.stdout).expect("UTF-8");
        assert!(
            output.status.success(),
            "{told}{}",
            String::from_utf8_lossy(&output.stderr)
        );
        told
    }

    /// Starts `replay`; whoever does so ends it.
    pub fn start_replay(&self, stage: &str, arguments: &[&str]) -> Child {
        Command::new(env!("CARGO_BIN_EXE_millstream-worker"))
            .arg("replay")
            .arg("--config")
            .arg(self.folder.path().join(format!("{stage}.yaml")))
            .arg("--credentials-dir")
            .arg(self.folder.path())
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the worker starts")
    }

    fn start(&self, config: &Value) -> Worker {
        self.start_with(config, &[])
    }

    fn start_with(&self, config: &Value, arguments: &[&str]) -> Worker {
        let folder = self.folder.path();
        for (name, text) in [
            ("cassandra-username", &self.environment.user),
            ("cassandra-password", &self.environment.password),
        ] {
            mount(folder, name, text);
        }
        let stage = config["stage"].as_str().unwrap_or_default();
        let path = mount(folder, &format!("{stage}.yaml"), &config.to_string());
        Worker::start(path, folder.to_owned(), arguments)
    }

    /// Produces records to the topic, past any source.
    pub async fn produce(&self, records: &[(Option<&str>, Option<Vec<u8>>)]) {
        let mut config = self.client();
        config.set("message.max.bytes", "10485760");
        let producer: FutureProducer = config.create().expect("producer");
        for (key, value) in records {
            let mut record = FutureRecord::<str, [u8]>::to(&self.name);
            record.key = *key;
            record.payload = value.as_deref();
            producer.send(record, TIMEOUT).await.expect("produced");
        }
    }

    /// Waits until the ingest stage has kept what is wanted.
    pub async fn await_kept(&self, wanted: impl Fn(&Value) -> bool) -> Value {
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            let kept = self.kept().await;
            if wanted(&kept) {
                return kept;
            }
            assert!(Instant::now() < deadline, "what is kept is {kept}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Produces records with their keys, many at once, in this order, each once.
    pub async fn produce_all(&self, records: &[(String, Vec<u8>)]) {
        let mut config = self.client();
        config
            .set("enable.idempotence", "true")
            // As the ingest stage does it.
            .set("partitioner", "murmur2_random");
        let producer: FutureProducer = config.create().expect("producer");
        let sent = records.iter().map(|(key, value)| {
            let record = FutureRecord::to(&self.name).key(key).payload(value);
            producer.send(record, TIMEOUT)
        });
        for sent in futures::future::join_all(sent).await {
            sent.expect("produced");
        }
    }

    /// Waits until everything in the topic is committed.
    pub async fn await_commits(&self) {
        let deadline = Instant::now() + Duration::from_secs(120);
        while self.progress().await.1 > 0 {
            let progress = self.progress().await;
            assert!(Instant::now() < deadline, "{progress:?}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Makes the table with the states of the groups.
    pub async fn create_state_table(&self) {
        let (key, cql) = self.settings.columns[0];
        let table = format!(
            "CREATE TABLE {}.rows__state ({key} {cql} PRIMARY KEY, state__ blob)",
            self.keyspace
        );
        self.session.query_unpaged(table, ()).await.expect("DDL");
    }

    /// Counts in the committed offsets, and the records that aren't committed.
    pub async fn progress(&self) -> (CommitMetadata, i64) {
        self.progress_of("rows").await
    }

    /// The same of a sink with another name.
    pub async fn progress_of(&self, sink: &str) -> (CommitMetadata, i64) {
        let mut config = self.client();
        config.set("group.id", self.reference().sink_group(sink));
        let topic = self.name.clone();
        let partitions = self.settings.partitions;
        tokio::task::spawn_blocking(move || {
            let consumer: BaseConsumer = config.create().expect("consumer");
            let mut list = TopicPartitionList::new();
            list.add_partition_range(&topic, 0, partitions - 1);
            let committed = consumer.committed_offsets(list, TIMEOUT).expect("offsets");
            let mut counts = CommitMetadata::default();
            let mut lag = 0;
            for element in committed.elements() {
                let added = CommitMetadata::parse(element.metadata());
                counts.add(&added);
                let (low, high) = consumer
                    .fetch_watermarks(&topic, element.partition(), TIMEOUT)
                    .expect("watermarks");
                lag += match element.offset() {
                    Offset::Offset(offset) => high - offset,
                    _ => high - low,
                };
            }
            (counts, lag)
        })
        .await
        .expect("the task ends")
    }

    /// Waits until everything in the topic is committed, and there are so many rows counted.
    pub async fn await_progress(&self, expected: CommitMetadata) {
        let deadline = Instant::now() + Duration::from_secs(120);
        loop {
            let (counts, lag) = self.progress().await;
            if lag == 0 && counts == expected {
                return;
            }
            assert!(
                Instant::now() < deadline && counts.rows <= expected.rows,
                "expected {expected:?}, there are {counts:?} and a lag of {lag}"
            );
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Dead letters: their reasons and the bytes of their values, by offset in the topic.
    pub async fn dead_letters(&self, count: usize) -> Vec<(String, usize)> {
        let mut config = self.client();
        config
            .set("group.id", "unused")
            .set("fetch.message.max.bytes", "10485760");
        let topic = self.dead_letter_topic();
        tokio::task::spawn_blocking(move || {
            let consumer: BaseConsumer = config.create().expect("consumer");
            let mut list = TopicPartitionList::new();
            list.add_partition_offset(&topic, 0, Offset::Beginning)
                .expect("offset");
            consumer.assign(&list).expect("assigned");
            let deadline = Instant::now() + Duration::from_secs(60);
            let mut letters = BTreeMap::new();
            while letters.len() < count {
                assert!(
                    Instant::now() < deadline,
                    "{} of {count} dead letters",
                    letters.len()
                );
                let Some(Ok(record)) = consumer.poll(Duration::from_millis(200)) else {
                    continue;
                };
                let headers = record.headers().expect("headers");
                let header = |name: &str| {
                    let found = headers.iter().find(|header| header.key == name);
                    let value = found.and_then(|header| header.value).unwrap_or_default();
                    String::from_utf8(value.to_vec()).expect("UTF-8")
                };
                let offset: i64 = header("millstream-offset").parse().unwrap_or(-1);
                let bytes = record.payload().map_or(0, <[u8]>::len);
                letters.insert(
                    (offset, record.offset()),
                    (header("millstream-reason"), bytes),
                );
            }
            letters.into_values().collect()
        })
        .await
        .expect("the task ends")
    }

    /// Rows of a query.
    pub async fn select<T>(&self, columns: &str) -> Vec<T>
    where
        T: for<'frame, 'metadata> scylla::deserialize::row::DeserializeRow<'frame, 'metadata>,
    {
        let query = format!("SELECT {columns} FROM {}.rows", self.keyspace);
        let result = self.session.query_unpaged(query, ()).await.expect("rows");
        let rows = result.into_rows_result().expect("rows");
        rows.rows::<T>()
            .expect("the types")
            .map(|row| row.expect("a row"))
            .collect()
    }
}

impl Drop for Pipeline {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!(
                "the topic and the keyspace {} are kept for a look",
                self.name
            );
        }
    }
}

/// The end of a topic, also behind records of transactions that are open.
pub struct End {
    consumer: BaseConsumer,
    topic: String,
    partitions: i32,
}

impl End {
    /// Offsets before it, of all partitions.
    pub fn offset(&self) -> i64 {
        let ends = (0..self.partitions).map(|partition| {
            let deadline = Instant::now() + TIMEOUT;
            loop {
                let marks = self
                    .consumer
                    .fetch_watermarks(&self.topic, partition, TIMEOUT);
                match marks {
                    Ok((_, end)) => return end,
                    // A topic that has just been made: its broker hears of it a little later.
                    Err(error) => assert!(Instant::now() < deadline, "watermarks: {error}"),
                }
            }
        });
        ends.sum()
    }

    /// Waits until there are so many.
    pub fn await_offset(&self, wanted: i64) {
        let deadline = Instant::now() + Duration::from_secs(60);
        while self.offset() < wanted {
            assert!(Instant::now() < deadline, "the topic ends before {wanted}");
        }
    }
}

/// A worker process; it is killed with the test.
pub struct Worker {
    child: Child,
    port: u16,
}

/// Starts a worker whose log is the test's own output, and so is shown where the test fails.
pub fn spawn(worker: &mut Command) -> Child {
    let worker = worker.stdin(Stdio::null()).stderr(Stdio::piped());
    let mut child = worker.spawn().expect("the worker starts");
    let log = BufReader::new(child.stderr.take().expect("its log"));
    std::thread::spawn(move || {
        for line in log.lines().map_while(Result::ok) {
            println!("{line}");
        }
    });
    child
}

/// Sends a process a signal, such as `STOP`.
pub fn signal(child: &Child, name: &str) {
    let id = child.id().to_string();
    let sent = Command::new("kill").args(["-s", name, &id]).status();
    assert!(sent.expect("kill").success());
}

impl Worker {
    fn start(config: PathBuf, credentials: PathBuf, arguments: &[&str]) -> Self {
        let port = free_port();
        let mut worker = Command::new(env!("CARGO_BIN_EXE_millstream-worker"));
        worker
            .arg("run")
            .arg("--config")
            .arg(config)
            .arg("--credentials-dir")
            .arg(credentials)
            .args(["--http-port", &port.to_string(), "--log-format", "human"])
            .args(arguments);
        let child = spawn(&mut worker);
        Worker { child, port }
    }

    /// What an endpoint answers; none where it isn't up.
    pub async fn get(&self, path: &str) -> Option<(u16, String)> {
        let url = format!("http://127.0.0.1:{}{path}", self.port);
        let response = reqwest::get(url).await.ok()?;
        Some((response.status().as_u16(), response.text().await.ok()?))
    }

    /// Waits until the status is as wanted.
    pub async fn await_status(&self, wanted: impl Fn(&WorkerStatus) -> bool) -> WorkerStatus {
        let deadline = Instant::now() + Duration::from_secs(60);
        let mut last = None;
        while Instant::now() < deadline {
            if let Some((200, text)) = self.get("/status").await {
                let status: WorkerStatus = serde_json::from_str(&text).expect("a status");
                if wanted(&status) {
                    return status;
                }
                last = Some(status);
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("the status is {last:?}");
    }

    /// A metric; the first, where there are several of the name.
    pub async fn metric(&self, name: &str) -> Option<u64> {
        let (_, text) = self.get("/metrics").await?;
        let line = text.lines().find(|line| line.starts_with(name))?;
        line.rsplit(' ').next()?.parse().ok()
    }

    /// Waits until a metric is so large.
    pub async fn await_metric(&self, name: &str, value: u64) {
        let deadline = Instant::now() + Duration::from_secs(60);
        while self.metric(name).await < Some(value) {
            if Instant::now() > deadline {
                let metrics = self.get("/metrics").await;
                panic!("{name} isn't {value}: {metrics:?}");
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Sends a signal, such as `STOP`.
    pub fn signal(&self, name: &str) {
        signal(&self.child, name);
    }

    /// The most memory that it has ever had, in bytes; without the pages of files, such as those of its
    /// program, which the system takes back where memory is short.
    pub fn most_memory(&self) -> u64 {
        let path = format!("/proc/{}/status", self.child.id());
        let status = std::fs::read_to_string(path).expect("the process is there");
        let kilobytes = |name: &str| -> u64 {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            let number =
                line.and_then(|line| line.trim_start_matches(':').trim().split(' ').next());
            let number = number.and_then(|number| number.parse().ok());
            number.unwrap_or_else(|| panic!("{name} isn't in {status}"))
        };
        1024 * (kilobytes("VmHWM") - kilobytes("RssFile"))
    }

    /// Whether it has ended by itself.
    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().expect("the child").is_some()
    }

    /// SIGKILL.
    pub fn kill(mut self) {
        self.child.kill().expect("killed");
        self.child.wait().expect("gone");
    }

    /// Waits until it ends by itself; the exit code.
    pub async fn ended(mut self) -> Option<i32> {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            if let Some(status) = self.child.try_wait().expect("the child") {
                return status.code();
            }
            assert!(Instant::now() < deadline, "it doesn't end");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// SIGTERM; the exit code and the time that it took.
    pub async fn terminate(mut self) -> (Option<i32>, Duration) {
        let started = Instant::now();
        let id = self.child.id().to_string();
        Command::new("kill").arg(id).status().expect("kill");
        loop {
            if let Some(status) = self.child.try_wait().expect("the child") {
                return (status.code(), started.elapsed());
            }
            assert!(
                started.elapsed() < Duration::from_secs(30),
                "it doesn't end"
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

/// Waits until each of the workers owns topic partitions: to kill one that owns none shows nothing. After a
/// kill no partition changes hands until Kafka has missed the dead worker for 6 s.
pub async fn await_owners(workers: &[Worker]) {
    for worker in workers {
        // There is one for each partition that it owns.
        worker.await_metric("millstream_worker_lag", 0).await;
    }
}

/// Kills the oldest of the workers while records are sent: when it has stored some of them, and others are
/// under way.
pub async fn kill_oldest(workers: &mut Vec<Worker>, send: impl Future<Output = ()>) {
    const ROWS: &str = "millstream_worker_rows_total";
    await_owners(workers).await;
    let oldest = workers.remove(0);
    let stored = oldest.metric(ROWS).await.expect("its rows");
    let killed = async {
        oldest.await_metric(ROWS, stored + 1).await;
        oldest.kill();
    };
    tokio::join!(killed, send);
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Passes connections on to a server, until it is dropped.
pub struct Relay(tokio::task::JoinHandle<()>);

impl Relay {
    pub async fn start(address: &str, server: String) -> Self {
        let listener = tokio::net::TcpListener::bind(address).await;
        let listener = listener.expect("the address is free");
        Relay(tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((mut client, _)) = listener.accept().await {
                let server = server.clone();
                connections.spawn(async move {
                    let mut server = tokio::net::TcpStream::connect(server).await?;
                    tokio::io::copy_bidirectional(&mut client, &mut server).await
                });
            }
        }))
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.0.abort();
    }
}
