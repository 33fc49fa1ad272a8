//! Records that can't be processed go to the dead-letter topic, with the reason in a header.

use std::{fmt::Display, pin::pin, sync::Arc};

use futures::future::join_all;
use millstream_api::worker::{MAX_DEAD_LETTER_BYTES, dead_letter};
use millstream_plan::caught;
use rdkafka::{
    error::RDKafkaErrorCode,
    message::{Header, Headers, Message, OwnedHeaders},
    producer::FutureRecord,
    util::Timeout,
};
use tokio::time::timeout;

use crate::{
    batch::{Batch, Rejected},
    kafka::{LOST, LazyProducer},
    metrics::StageMetrics,
    retry::Delays,
    status::StatusPart,
};

/// Room for headers and for what Kafka adds.
const OVERHEAD: usize = 32 * 1024;
/// Of a longer key the beginning is kept.
pub const MAX_KEY_BYTES: usize = 64 * 1024;
const MAX_REASON_CHARS: usize = 1_000;
/// So many are on their way at once: bounds the memory where whole batches are bad.
const AT_ONCE: usize = 100;
const CONCERN: &str = "dead letters";
/// What a header says that isn't there otherwise.
const TRUE: &str = "true";

/// The way to the dead-letter topic.
#[derive(Clone)]
pub struct DeadLetters {
    /// The producer.
    pub producer: Arc<LazyProducer>,
    /// The dead-letter topic.
    pub topic: String,
    /// `namespace/name` of the pipeline.
    pub pipeline: String,
    /// `ingest`, or the name of the sink.
    pub stage: String,
    /// The topic that the records were in, or were meant for.
    pub origin: String,
    /// The id of the topic, where the records were in it.
    pub origin_id: Option<String>,
    /// Where errors are shown.
    pub status: StatusPart,
    /// Where they are counted.
    pub metrics: StageMetrics,
}

/// A record for the dead-letter topic.
pub struct DeadLetter<'a> {
    /// Its key.
    pub key: Option<&'a [u8]>,
    /// Its value.
    pub value: Option<&'a [u8]>,
    /// Why it is there, in one sentence.
    pub reason: &'a str,
    /// Partition and offset, where it was in the topic already.
    pub position: Option<(i32, i64)>,
    /// Its timestamp there: milliseconds since 1970.
    pub timestamp: Option<i64>,
    /// Whether the state of its group has it.
    pub folded: bool,
}

impl DeadLetters {
    /// Sends the rejected records of a batch; returns when Kafka has them.
    pub async fn send_rejected(&self, batch: &Batch, rejected: &[Rejected]) -> anyhow::Result<()> {
        let letters: Vec<_> = rejected
            .iter()
            .map(|rejected| {
                let record = &batch.records()[rejected.record];
                DeadLetter {
                    key: batch.key(record),
                    value: batch.value(record),
                    reason: &rejected.reason,
                    position: Some((record.partition, record.first_offset())),
                    timestamp: record.timestamp,
                    // It stays so, whatever it is rejected for when it is replayed.
                    folded: rejected.folded || record.is_folded(),
                }
            })
            .collect();
        self.send(&letters).await
    }

    /// Sends records; returns when Kafka has them. Tries for ever, and fails only where there can be
    /// no producer.
    pub async fn send(&self, letters: &[DeadLetter<'_>]) -> anyhow::Result<()> {
        for letters in letters.chunks(AT_ONCE) {
            for sent in join_all(letters.iter().map(|letter| self.send_one(letter))).await {
                sent?;
            }
            self.metrics.dead_letters.inc_by(letters.len() as u64);
        }
        Ok(())
    }

    async fn send_one(&self, letter: &DeadLetter<'_>) -> anyhow::Result<()> {
        let mut delays = Delays::default();
        let mut failing = None;
        let key = letter.key.map(|key| &key[..key.len().min(MAX_KEY_BYTES)]);
        let mut room = MAX_DEAD_LETTER_BYTES - OVERHEAD - MAX_KEY_BYTES;
        loop {
            let value = letter.value.map(|value| &value[..value.len().min(room)]);
            let record = FutureRecord {
                topic: &self.topic,
                partition: None,
                key,
                payload: value,
                timestamp: None,
                headers: Some(self.headers(letter, value)),
            };
            // Asked for each time: one that can't go on, or is lost, is replaced.
            let producer = self.producer.get()?;
            let sending = async {
                let mut sent = pin!(producer.send(record, Timeout::Never));
                loop {
                    match timeout(LOST, &mut sent).await {
                        Ok(sent) => break sent,
                        // Some brokers may be there, but not the topic's, or too few of them.
                        Err(_) => failing
                            .get_or_insert_with(|| self.status.failing(CONCERN))
                            .say(self.problem("Kafka takes nothing for it")),
                    }
                }
            };
            let sent = tokio::select! {
                sent = sending => sent,
                () = producer.lost() => continue,
            };
            let Err((error, _)) = sent else {
                return Ok(());
            };
            // The topic takes less than it was declared with: the beginning is better than nothing.
            if error.rdkafka_error_code() == Some(RDKafkaErrorCode::MessageSizeTooLarge)
                && room > OVERHEAD
            {
                room /= 2;
                continue;
            }
            let failing = failing.get_or_insert_with(|| self.status.failing(CONCERN));
            failing.say(self.problem(error));
            delays.wait().await;
        }
    }

    fn problem(&self, what: impl Display) -> String {
        format!(
            "can't write to the dead-letter topic {}: {what}",
            self.topic
        )
    }

    fn headers(&self, letter: &DeadLetter<'_>, kept: Option<&[u8]>) -> OwnedHeaders {
        let reason: String = letter.reason.chars().take(MAX_REASON_CHARS).collect();
        let mut headers = OwnedHeaders::new()
            .insert(header(dead_letter::REASON, &reason))
            .insert(header(dead_letter::PIPELINE, &self.pipeline))
            .insert(header(dead_letter::STAGE, &self.stage))
            .insert(header(dead_letter::TOPIC, &self.origin));
        if let Some((partition, offset)) = letter.position {
            headers = headers
                .insert(header(dead_letter::PARTITION, &partition.to_string()))
                .insert(header(dead_letter::OFFSET, &offset.to_string()));
        }
        if let Some(timestamp) = letter.timestamp {
            headers = headers.insert(header(dead_letter::TIMESTAMP, &timestamp.to_string()));
        }
        // Behind the others, which people name by their places.
        if let Some(id) = &self.origin_id {
            headers = headers.insert(header(dead_letter::TOPIC_ID, id));
        }
        if letter.folded {
            headers = headers.insert(header(dead_letter::FOLDED, TRUE));
        }
        match (letter.value, kept) {
            (Some(whole), Some(kept)) if kept.len() < whole.len() => headers.insert(header(
                dead_letter::TRUNCATED_FROM,
                &whole.len().to_string(),
            )),
            _ => headers,
        }
    }
}

fn header<'a>(key: &'a str, value: &'a str) -> Header<'a, &'a str> {
    Header {
        key,
        value: Some(value),
    }
}

/// What a dead letter has beside its key and its value, when it goes back.
#[derive(Debug, PartialEq)]
pub struct Letter {
    /// The stage that rejected it.
    pub stage: String,
    /// Its partition and its offset in the dead-letter topic.
    pub place: (i32, i64),
    /// The partition that it was in, if it was in the topic already.
    pub partition: Option<i32>,
    /// Its timestamp there.
    pub timestamp: Option<i64>,
    /// What it says then, if it was.
    pub replayed: Option<Replayed>,
}

/// The headers whose names are UTF-8: the client panics at others, and anybody may write to a topic.
pub fn headers_of(headers: &impl Headers) -> impl Iterator<Item = Header<'_, &[u8]>> {
    let at = |index| caught(|| headers.try_get(index));
    (0..headers.count()).filter_map(move |index| at(index).ok().flatten())
}

/// The text of a header; none where there is no such header, or it isn't UTF-8.
pub fn header_text<'a>(headers: &'a impl Headers, name: &str) -> Option<&'a str> {
    let header = headers_of(headers).find(|header| header.key == name)?;
    std::str::from_utf8(header.value?).ok()
}

/// Whether there is a header that says so.
pub fn is_true(headers: &impl Headers, name: &str) -> bool {
    header_text(headers, name) == Some(TRUE)
}

/// What a record says that was replayed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Replayed {
    /// The sink that takes it.
    pub sink: String,
    /// The offset that it had at first.
    pub offset: i64,
    /// Whether the state of its group has it.
    pub folded: bool,
}

impl Replayed {
    /// The headers that say it.
    pub fn headers(&self) -> OwnedHeaders {
        let headers = OwnedHeaders::new()
            .insert(header(dead_letter::REPLAY_SINK, &self.sink))
            .insert(header(dead_letter::REPLAY_OFFSET, &self.offset.to_string()));
        match self.folded {
            true => headers.insert(header(dead_letter::REPLAY_FOLDED, TRUE)),
            false => headers,
        }
    }

    /// None where the record comes for the first time.
    pub fn of(message: &impl Message) -> Option<Self> {
        let headers = message.headers()?;
        let replayed = Replayed {
            offset: header_text(headers, dead_letter::REPLAY_OFFSET)?
                .parse()
                .ok()?,
            sink: header_text(headers, dead_letter::REPLAY_SINK)?.to_owned(),
            folded: is_true(headers, dead_letter::REPLAY_FOLDED),
        };
        // A row from the future would hide all that follow.
        (0..message.offset())
            .contains(&replayed.offset)
            .then_some(replayed)
    }
}
