//! The ceiling of the benchmark: what a person would write by hand for one topic and one table.
//!
//! No engine, no retries, no dead letter, one thread: typed JSON, unlogged batches, offsets committed
//! behind the acknowledged writes. It reads the worker's own configuration, so that both do one job.

use std::{
    borrow::Cow,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use clap::Parser;
use futures::{StreamExt, TryStreamExt};
use millstream_api::worker::{ProcessConfig, WorkerConfig, credentials};
use rdkafka::{
    ClientConfig, Message,
    consumer::{Consumer, StreamConsumer},
    error::KafkaResult,
    message::BorrowedMessage,
};
use scylla::{
    SerializeRow,
    client::{
        execution_profile::ExecutionProfile, session::Session, session_builder::SessionBuilder,
    },
    statement::{
        Consistency,
        batch::{Batch, BatchType},
        prepared::PreparedStatement,
    },
};
use serde::Deserialize;
use uuid::Uuid;

/// Rows of a batch; 200 of them are too large for Cassandra's default limits.
const BATCH: usize = 32;
/// Batches that wait for Cassandra's answer; more gain nothing.
const IN_FLIGHT: usize = 32;

#[derive(Parser)]
#[command(about = "A minimal consumer for `bench` to compare with")]
struct Arguments {
    /// The configuration of a worker's process stage.
    #[arg(long)]
    config: PathBuf,
    /// The folder with the Cassandra user name and password.
    #[arg(long)]
    credentials_dir: PathBuf,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let config = read_config(&arguments.config)?;
    let writer = Writer::connect(&config, &arguments.credentials_dir).await?;
    let consumer = consumer(&config)?;
    let mut written = consumer
        .stream()
        .ready_chunks(BATCH)
        .map(|records| writer.write(records))
        .buffered(IN_FLIGHT);
    while let Some(records) = written.try_next().await? {
        for record in &records {
            consumer.store_offset_from_message(record)?;
        }
    }
    Ok(())
}

fn read_config(path: &Path) -> Result<ProcessConfig> {
    let text = fs::read(path).with_context(|| format!("reading {}", path.display()))?;
    match serde_json::from_slice(&text)? {
        WorkerConfig::Process(config) => Ok(config),
        _ => bail!("{} is not a process stage", path.display()),
    }
}

fn consumer(config: &ProcessConfig) -> Result<StreamConsumer> {
    let consumer: StreamConsumer = ClientConfig::new()
        .set("bootstrap.servers", &config.kafka.bootstrap_servers)
        .set(
            "group.id",
            config.pipeline.sink_group(&config.sinks[0].name),
        )
        .set("auto.offset.reset", "earliest")
        .set("enable.auto.offset.store", "false")
        .set("auto.commit.interval.ms", "100")
        .set("queued.max.messages.kbytes", "32768")
        // A full queue is filled again at once, not after a second.
        .set("fetch.queue.backoff.ms", "10")
        .create()?;
    consumer.subscribe(&[&config.topic.name])?;
    Ok(consumer)
}

struct Writer {
    session: Session,
    insert: PreparedStatement,
    full_batch: Batch,
    timestamp_base: i64,
}

impl Writer {
    async fn connect(config: &ProcessConfig, credentials: &Path) -> Result<Self> {
        let secret = |name: &str| fs::read_to_string(credentials.join(name));
        let profile = ExecutionProfile::builder().consistency(Consistency::LocalQuorum);
        let cassandra = config.cassandra.as_ref().context("no Cassandra")?;
        let session = SessionBuilder::new()
            .known_nodes(&cassandra.contact_points)
            .user(
                secret(credentials::CASSANDRA_USERNAME)?,
                secret(credentials::CASSANDRA_PASSWORD)?,
            )
            .default_execution_profile_handle(profile.build().into_handle())
            .build()
            .await?;
        let to = config.sinks[0].cassandra().context("no table")?;
        let insert = session
            .prepare(format!(
                "INSERT INTO {}.{} (id, first_name, last_name, gender, address, post_code, email, \
                 username, registered_date, phone, picture) VALUES (:id, :first_name, :last_name, \
                 :gender, :address, :post_code, :email, :username, :registered_date, :phone, \
                 :picture) USING TIMESTAMP :written",
                to.keyspace, to.table.name
            ))
            .await?;
        Ok(Self {
            full_batch: batch(&insert, BATCH),
            session,
            insert,
            timestamp_base: config.topic.timestamp_base,
        })
    }

    /// Writes the rows of a chunk and gives the records back once Cassandra has acknowledged them.
    async fn write<'a>(
        &self,
        records: Vec<KafkaResult<BorrowedMessage<'a>>>,
    ) -> Result<Vec<BorrowedMessage<'a>>> {
        let records = records.into_iter().collect::<KafkaResult<Vec<_>>>()?;
        let rows = records
            .iter()
            .map(|record| self.row(record))
            .collect::<Result<Vec<_>>>()?;
        if rows.len() == BATCH {
            self.session.batch(&self.full_batch, rows).await?;
        } else {
            let batch = batch(&self.insert, rows.len());
            self.session.batch(&batch, rows).await?;
        }
        Ok(records)
    }

    fn row<'a>(&self, record: &'a BorrowedMessage<'_>) -> Result<Row<'a>> {
        let user: User = serde_json::from_slice(record.payload().context("no payload")?)?;
        let (location, street) = (&user.location, &user.location.street);
        Ok(Row {
            id: user.login.uuid,
            address: format!(
                "{} {}, {}, {}, {}",
                street.number, street.name, location.city, location.state, location.country
            ),
            first_name: user.name.first,
            last_name: user.name.last,
            gender: user.gender,
            post_code: match user.location.postcode {
                PostCode::Number(number) => Cow::Owned(number.to_string()),
                PostCode::Text(text) => text,
            },
            email: user.email,
            username: user.login.username,
            registered_date: user.registered.date,
            phone: user.phone,
            picture: user.picture.medium,
            written: self.timestamp_base + record.offset(),
        })
    }
}

fn batch(insert: &PreparedStatement, rows: usize) -> Batch {
    Batch::new_with_statements(BatchType::Unlogged, vec![insert.clone().into(); rows])
}

#[derive(SerializeRow)]
struct Row<'a> {
    id: Uuid,
    first_name: Cow<'a, str>,
    last_name: Cow<'a, str>,
    gender: Cow<'a, str>,
    address: String,
    post_code: Cow<'a, str>,
    email: Cow<'a, str>,
    username: Cow<'a, str>,
    registered_date: Cow<'a, str>,
    phone: Cow<'a, str>,
    picture: Cow<'a, str>,
    written: i64,
}

#[derive(Deserialize)]
struct User<'a> {
    #[serde(borrow)]
    gender: Cow<'a, str>,
    #[serde(borrow)]
    name: Name<'a>,
    #[serde(borrow)]
    location: Location<'a>,
    #[serde(borrow)]
    email: Cow<'a, str>,
    #[serde(borrow)]
    login: Login<'a>,
    #[serde(borrow)]
    registered: Registered<'a>,
    #[serde(borrow)]
    phone: Cow<'a, str>,
    #[serde(borrow)]
    picture: Picture<'a>,
}

#[derive(Deserialize)]
struct Name<'a> {
    #[serde(borrow)]
    first: Cow<'a, str>,
    #[serde(borrow)]
    last: Cow<'a, str>,
}

#[derive(Deserialize)]
struct Location<'a> {
    #[serde(borrow)]
    street: Street<'a>,
    #[serde(borrow)]
    city: Cow<'a, str>,
    #[serde(borrow)]
    state: Cow<'a, str>,
    #[serde(borrow)]
    country: Cow<'a, str>,
    #[serde(borrow)]
    postcode: PostCode<'a>,
}

#[derive(Deserialize)]
struct Street<'a> {
    number: i32,
    #[serde(borrow)]
    name: Cow<'a, str>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum PostCode<'a> {
    Number(u32),
    #[serde(borrow)]
    Text(Cow<'a, str>),
}

#[derive(Deserialize)]
struct Login<'a> {
    uuid: Uuid,
    #[serde(borrow)]
    username: Cow<'a, str>,
}

#[derive(Deserialize)]
struct Registered<'a> {
    #[serde(borrow)]
    date: Cow<'a, str>,
}

#[derive(Deserialize)]
struct Picture<'a> {
    #[serde(borrow)]
    medium: Cow<'a, str>,
}
