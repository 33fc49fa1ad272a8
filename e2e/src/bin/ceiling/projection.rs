//! Users become rows.

use std::{borrow::Cow, path::Path};

use anyhow::{Context, Result};
use futures::{StreamExt, TryStreamExt};
use millstream_api::worker::ProcessConfig;
use rdkafka::{Message, consumer::Consumer, error::KafkaResult, message::BorrowedMessage};
use scylla::SerializeRow;
use serde::Deserialize;
use uuid::Uuid;

use crate::{
    cassandra::{BATCH, IN_FLIGHT, Writer},
    consumer,
};

const COLUMNS: [&str; 11] = [
    "id",
    "first_name",
    "last_name",
    "gender",
    "address",
    "post_code",
    "email",
    "username",
    "registered_date",
    "phone",
    "picture",
];

pub async fn run(config: &ProcessConfig, credentials: &Path) -> Result<()> {
    let writer = Writer::connect(config, credentials, &COLUMNS).await?;
    let consumer = consumer(config)?;
    let base = config.topic.timestamp_base;
    let mut written = consumer
        .stream()
        .ready_chunks(BATCH)
        .map(|records| write(&writer, records, base))
        .buffered(IN_FLIGHT);
    while let Some(records) = written.try_next().await? {
        for record in &records {
            consumer.store_offset_from_message(record)?;
        }
    }
    Ok(())
}

/// Writes the rows of a chunk and gives the records back once Cassandra has acknowledged them.
async fn write<'a>(
    writer: &Writer,
    records: Vec<KafkaResult<BorrowedMessage<'a>>>,
    base: i64,
) -> Result<Vec<BorrowedMessage<'a>>> {
    let records = records.into_iter().collect::<KafkaResult<Vec<_>>>()?;
    let rows = records.iter().map(|record| {
        let json = record.payload().context("no payload")?;
        row(json, base + record.offset())
    });
    writer.write(rows.collect::<Result<_>>()?).await?;
    Ok(records)
}

/// The row of a record, written at this time.
pub fn row(json: &[u8], written: i64) -> Result<Row<'_>> {
    let user: User = serde_json::from_slice(json)?;
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
        written,
    })
}

#[derive(SerializeRow)]
pub struct Row<'a> {
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

impl Row<'_> {
    /// The cells as text, in the order of the columns.
    pub fn cells(&self) -> Vec<String> {
        let id = self.id.to_string();
        let texts = [
            &*self.first_name,
            &self.last_name,
            &self.gender,
            &self.address,
            &self.post_code,
            &self.email,
            &self.username,
            &self.registered_date,
            &self.phone,
            &self.picture,
        ];
        let texts = texts.into_iter().map(str::to_owned);
        [id].into_iter().chain(texts).collect()
    }
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
