//! A record that can't be stored goes to the dead letter with its reason; the rest goes on.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use millstream_api::worker::dead_letter;
use millstream_e2e::{PATIENCE, Record, eventually, header, with_temp_namespace};
use rdkafka::message::{Message, OwnedMessage};
use serde_json::json;
use uuid::Uuid;

use crate::orders::{self, ORDERS};

/// All records have one key, so that the good ones stand behind the bad ones in one partition.
fn keyed(value: impl Into<Vec<u8>>) -> Record {
    Record::keyed("Schlüssel", value)
}

fn good(numbers: std::ops::Range<u64>) -> Vec<Record> {
    orders::plain(numbers)
        .map(|record| keyed(record.value))
        .collect()
}

/// What can't be stored, and a word of the reason.
fn bad() -> Vec<(Vec<u8>, &'static str)> {
    let large = json!({"id": orders::id(900), "note": "x".repeat(5 * 1024 * 1024)});
    let mut bad = vec![(large.to_string().into_bytes(), "1,048,576")];
    let texts = [
        (r#"{"id": "0b7b"#.to_owned(), "JSON"),
        ("no JSON at all".to_owned(), "JSON"),
        (r#"{"id": "not-a-uuid", "version": 1}"#.to_owned(), "id"),
        (r#"{"version": 1}"#.to_owned(), "id"),
        (
            json!({"id": orders::id(901), "version": "twelve"}).to_string(),
            "version",
        ),
        (
            json!({"id": orders::id(902), "version": 9_000_000_000_u64}).to_string(),
            "version",
        ),
        (json!([{"id": orders::id(903)}]).to_string(), ""),
    ];
    bad.extend(texts.map(|(text, word)| (text.into_bytes(), word)));
    // No text at all: not UTF-8.
    bad.push((vec![0xff, 0xfe, 0x00], ""));
    bad
}

fn required(record: &OwnedMessage, name: &str) -> Result<String> {
    header(record, name).with_context(|| format!("a dead letter lacks {name}"))
}

#[test]
fn what_cannot_be_stored_goes_to_the_dead_letter_and_the_rest_goes_on() {
    with_temp_namespace("dead-letter", async |namespace| {
        let topic = orders::topic(namespace);
        let config = json!({"max.message.bytes": "10485760"});
        let manifest = orders::pipeline_with(
            namespace,
            json!({
                "topic": {"name": topic, "partitions": 2, "config": config},
            }),
        );
        namespace.apply(&manifest.to_string()).await?;
        namespace.ready(ORDERS).await?;
        let bad = bad();
        let mut records = good(0..5);
        for (number, (value, _)) in (5..).zip(&bad) {
            records.push(keyed(value.clone()));
            records.extend(good(number..number + 1));
        }
        let stored = 5 + bad.len();
        namespace.kafka.produce(&topic, records).await?;
        namespace.drained(ORDERS, ORDERS, &topic, PATIENCE).await?;

        let ids = namespace
            .cassandra
            .select::<(Uuid,)>(format!("SELECT id FROM {}", orders::table(namespace)));
        let ids: BTreeSet<_> = ids.await?.into_iter().map(|(id,)| id).collect();
        assert_eq!(ids, (0..stored as u64).map(orders::id).collect());

        let origins = namespace.kafka.consume(&topic)?;
        let dead_letters = namespace.kafka.consume(&format!("{topic}.dead-letter"))?;
        assert_eq!(dead_letters.len(), bad.len());
        for (value, word) in &bad {
            let dead = dead_letters
                .iter()
                .find(|record| record.payload() == Some(value));
            let shown = String::from_utf8_lossy(&value[..value.len().min(80)]).into_owned();
            let dead = dead.with_context(|| format!("no dead letter for {shown}"))?;
            let reason = required(dead, dead_letter::REASON)?;
            println!("{shown}: {reason}");
            assert!(
                !reason.is_empty() && reason.contains(word),
                "`{word}` isn't in `{reason}`, of {shown}"
            );
            assert_eq!(
                required(dead, dead_letter::PIPELINE)?,
                format!("{}/{ORDERS}", namespace.name)
            );
            assert_eq!(required(dead, dead_letter::STAGE)?, ORDERS);
            assert_eq!(required(dead, dead_letter::TOPIC)?, topic);
            let partition: i32 = required(dead, dead_letter::PARTITION)?.parse()?;
            let offset: i64 = required(dead, dead_letter::OFFSET)?.parse()?;
            let origin = origins
                .iter()
                .find(|record| (record.partition(), record.offset()) == (partition, offset));
            assert_eq!(
                origin.and_then(Message::payload),
                Some(value.as_slice()),
                "the origin of {shown}"
            );
            assert_eq!(dead.key(), Some("Schlüssel".as_bytes()));
        }

        eventually(PATIENCE, async || {
            let status = namespace.ready(ORDERS).await?.status.unwrap_or_default();
            let sink = status.sinks.first().context("the status shows the sink")?;
            let counts = (sink.dead_lettered, sink.rows, sink.lag);
            let expected = (
                Some(i64::try_from(bad.len())?),
                Some(i64::try_from(stored)?),
                Some(0),
            );
            ensure!(
                counts == expected,
                "dead-lettered, rows and lag are {counts:?}, not {expected:?}"
            );
            Ok(())
        })
        .await?;

        // What is settled stays settled: a new pod doesn't send it again.
        for pod in namespace.pods(ORDERS, "process").await? {
            namespace.kill(&pod).await?;
        }
        namespace.kafka.produce(&topic, good(100..101)).await?;
        namespace.drained(ORDERS, ORDERS, &topic, PATIENCE).await?;
        assert_eq!(
            namespace.kafka.records(&format!("{topic}.dead-letter"))?,
            i64::try_from(bad.len())?
        );
        Ok(())
    });
}
