//! Pages of an HTTP API go into a topic: four at a time, each record as its bytes are, found by one
//! pass of the JSON parser.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use futures::{StreamExt, TryStreamExt, stream};
use millstream_api::worker::IngestConfig;
use rdkafka::{
    ClientConfig,
    error::RDKafkaErrorCode,
    producer::{BaseRecord, DefaultProducerContext, Producer, ThreadedProducer},
};
use serde::Deserialize;
use serde_json::Value;

const PAGES: usize = 4;
const TIMEOUT: Duration = Duration::from_secs(30);

pub async fn run(config: &IngestConfig) -> Result<()> {
    let http = config.source.http.as_ref().context("no http source")?;
    let pages = http.pagination.as_ref();
    let pages = pages.and_then(|pages| pages.limit_offset.as_ref());
    let size = pages.context("no pages")?.page_size;
    let client = reqwest::Client::new();
    let get = async |query: &[(&str, &str)]| {
        let answer = client.get(&http.url).query(query).send().await?;
        anyhow::Ok(answer.error_for_status()?.bytes().await?)
    };
    let count: Value = serde_json::from_slice(&get(&[("$select", "count(*)")]).await?)?;
    let count: u64 = count[0]["count"].as_str().context("a count")?.parse()?;
    let producer: ThreadedProducer<DefaultProducerContext> = ClientConfig::new()
        .set("bootstrap.servers", &config.kafka.bootstrap_servers)
        .set("enable.idempotence", "true")
        .set("partitioner", "murmur2_random")
        .set("linger.ms", "5")
        .create()?;
    let offsets = (0..count).step_by(usize::try_from(size)?);
    let mut pages = stream::iter(offsets)
        .map(|offset| {
            let (limit, offset) = (size.to_string(), offset.to_string());
            let get = &get;
            async move { get(&[("$limit", limit.as_str()), ("$offset", offset.as_str())]).await }
        })
        .buffered(PAGES);
    while let Some(page) = pages.try_next().await? {
        produce(&producer, &config.topic.name, &page)?;
    }
    producer.flush(TIMEOUT)?;
    // As the worker does: whoever started it ends it.
    std::future::pending().await
}

#[derive(Deserialize)]
struct Licence<'a> {
    license_nbr: &'a str,
}

/// Produces the records of an array.
fn produce(
    producer: &ThreadedProducer<DefaultProducerContext>,
    topic: &str,
    page: &[u8],
) -> Result<()> {
    let mut rest = page.strip_prefix(b"[").context("not an array")?;
    while rest != b"]" {
        let mut records = serde_json::Deserializer::from_slice(rest).into_iter::<Licence>();
        let licence = records.next().context("half a page")??;
        let (record, after) = rest.split_at(records.byte_offset());
        send(
            producer,
            BaseRecord::to(topic)
                .key(licence.license_nbr)
                .payload(record),
        )?;
        rest = after.strip_prefix(b",").unwrap_or(after);
        ensure!(!rest.is_empty(), "half a page");
    }
    Ok(())
}

/// Waits while the producer's queue is full.
fn send(
    producer: &ThreadedProducer<DefaultProducerContext>,
    mut record: BaseRecord<'_, str, [u8]>,
) -> Result<()> {
    loop {
        match producer.send(record) {
            Ok(()) => return Ok(()),
            Err((error, back))
                if error.rdkafka_error_code() == Some(RDKafkaErrorCode::QueueFull) =>
            {
                record = back;
                std::thread::sleep(Duration::from_millis(1));
            }
            Err((error, _)) => return Err(error.into()),
        }
    }
}
