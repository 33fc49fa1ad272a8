//! The Delta Lake tables, cell by cell, as the REST service reads them.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use millstream_e2e::Namespace;
use serde_json::{Value, json};

use super::{
    SESSIONS,
    recorded::{Sessions, failed, has_key, microseconds, text},
};
use crate::example::get_json;

/// All of the raw table, in two parts. Times are numbers: answers show them in milliseconds, and the
/// tables have more.
const EVENTS: &str = "SELECT date, CAST(ts AS BIGINT) AS ts, event, country, player_id, session_id
FROM events
WHERE event = $event";

/// All of the table of sessions.
const EVENT_SESSIONS: &str = r#"SELECT player_id, session_id, country, session_status,
       CAST(start_ts AS BIGINT) AS start_ts, CAST(end_ts AS BIGINT) AS end_ts,
       CAST("DL_INSERT_TS" AS BIGINT) AS inserted, CAST("DL_UPDATE_TS" AS BIGINT) AS updated
FROM "event-sessions""#;

/// Adds endpoints to a pipeline's spec that give the tables.
pub fn serve(spec: &mut Value) -> Result<()> {
    let endpoints = spec["serve"]["endpoints"].as_array_mut();
    endpoints.context("endpoints")?.extend([
        json!({
            "name": "lake-events", "path": "/lake/events/{event}", "sql": EVENTS, "maxRows": 100_000,
            "parameters": [{"name": "event", "type": "text"}],
        }),
        json!({
            "name": "lake-sessions", "path": "/lake/sessions", "sql": EVENT_SESSIONS,
            "maxRows": 100_000,
        }),
    ]);
    Ok(())
}

async fn rows(namespace: &Namespace, path: &str) -> Result<Vec<Value>> {
    let rows = get_json(namespace, SESSIONS, path).await?;
    Ok(rows.as_array().context("rows")?.clone())
}

/// Holds the raw table against the records that came into the topic: those that the expectations let
/// pass are in it, each once. Gives their number.
pub async fn events_are(namespace: &Namespace, records: &[Value]) -> Result<usize> {
    let cells = |record: &Value, date: Option<String>, ts: Option<i64>| {
        let of = |field| text(record, field);
        (
            (date, ts, of("event"), of("country")),
            (of("player_id"), of("session_id")),
        )
    };
    let mut expected = Vec::new();
    let passes = |record: &&Value| has_key(record) && failed(record).is_empty();
    for record in records.iter().filter(passes) {
        let date = text(record, "ts").map(|ts| ts[..10].to_owned());
        expected.push(cells(record, date, Some(microseconds(record)?)));
    }
    let mut found = rows(namespace, "/lake/events/start").await?;
    found.extend(rows(namespace, "/lake/events/end").await?);
    let found = found.iter();
    let mut found: Vec<_> = found
        .map(|row| cells(row, text(row, "date"), row["ts"].as_i64()))
        .collect();
    found.sort();
    expected.sort();
    ensure!(found.len() == expected.len(), "{} rows", found.len());
    for (found, expected) in found.iter().zip(&expected) {
        assert_eq!(found, expected);
    }
    Ok(found.len())
}

/// Holds the table of sessions against those that were computed here.
pub async fn sessions_are(namespace: &Namespace, expected: &Sessions) -> Result<()> {
    let mut left: BTreeSet<_> = expected.keys().collect();
    for row in rows(namespace, "/lake/sessions").await? {
        let key = text(&row, "player_id").zip(text(&row, "session_id"));
        let key = key.with_context(|| format!("the keys of {row}"))?;
        ensure!(left.remove(&key), "{key:?} is there twice, or isn't known");
        let known = &expected[&key];
        let times = |names: [&str; 2]| names.map(|name| row[name].as_i64());
        assert_eq!(
            (
                text(&row, "country"),
                times(["start_ts", "end_ts"]),
                row["session_status"].as_i64(),
                times(["inserted", "updated"]),
            ),
            (
                known.country.clone(),
                [known.start, known.end],
                Some(i64::from(known.is_complete())),
                [
                    known.stamps.map(|(first, _)| first),
                    known.stamps.map(|(_, last)| last)
                ],
            ),
            "{key:?}"
        );
    }
    ensure!(left.is_empty(), "{} sessions aren't there", left.len());
    Ok(())
}
