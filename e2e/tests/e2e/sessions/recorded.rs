//! What follows from the recorded records, computed here: sessions, refused records, failed checks.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result};
use k8s_openapi::jiff::Timestamp;
use rdkafka::{Message, message::OwnedMessage};
use serde_json::{Value, json};

/// Debug mode leaves so many records: an odd number, so that a recorded session is cut in two.
const LEFT: usize = 999;

/// A session; times in microseconds since 1970, as the lake keeps them.
#[derive(Default)]
pub struct Session {
    pub country: Option<String>,
    pub start: Option<i64>,
    pub end: Option<i64>,
    /// When its first and its last record came into the topic.
    pub stamps: Option<(i64, i64)>,
}

impl Session {
    pub fn is_complete(&self) -> bool {
        self.start.is_some() && self.end.is_some()
    }
}

/// By player and session.
pub type Sessions = BTreeMap<(String, String), Session>;

/// Records that nobody recorded, each wrong in another way.
pub fn bad() -> Vec<Value> {
    let ts = "2018-05-06T12:00:00.000001";
    vec![
        json!({"event": "pause", "player_id": "p", "session_id": "of no known event", "ts": ts}),
        json!({"event": "end", "session_id": "without a player", "ts": ts}),
        json!({"event": "start", "country": "IT", "session_id": "started by nobody", "ts": ts}),
        json!({"event": null, "player_id": null, "session_id": "without both", "ts": ts}),
        json!({"event": "start", "country": "IT", "player_id": "without a session", "ts": ts}),
    ]
}

/// The records as the replay gives them: date by date, each in the file's order; a slice of them.
pub fn slice(mut records: Vec<Value>) -> Vec<Value> {
    records.sort_by_key(|record| text(record, "ts").map(|ts| ts[..10].to_owned()));
    records.truncate(records.len().saturating_sub(LEFT));
    records
}

pub fn text(record: &Value, field: &str) -> Option<String> {
    Some(record.get(field)?.as_str()?.to_owned())
}

/// A recorded time.
pub fn microseconds(record: &Value) -> Result<i64> {
    let ts = record["ts"].as_str().context("ts")?;
    let ts: Timestamp = format!("{ts}Z").parse()?;
    Ok(ts.as_microsecond())
}

/// As Cassandra keeps a time.
pub fn milliseconds(microseconds: i64) -> i64 {
    microseconds.div_euclid(1000)
}

/// A record without a session has no key, and doesn't get into the topic.
pub fn has_key(record: &Value) -> bool {
    record["session_id"].is_string()
}

/// The expectations of the sink `events` that a record fails.
pub fn failed(record: &Value) -> Vec<&'static str> {
    let is_known = matches!(record["event"].as_str(), Some("start" | "end"));
    let checks = [
        ("known-event", is_known),
        ("has-player", record["player_id"].is_string()),
    ];
    let failed = checks.into_iter().filter(|(_, holds)| !holds);
    failed.map(|(name, _)| name).collect()
}

/// The player and the session of a record that belongs to a session.
fn belongs(record: &Value) -> Option<(String, String)> {
    let key = (text(record, "player_id")?, text(record, "session_id")?);
    failed(record).is_empty().then_some(key)
}

pub fn sessions(records: &[Value]) -> Result<Sessions> {
    let mut sessions = Sessions::new();
    for record in records {
        let Some(key) = belongs(record) else { continue };
        let session = sessions.entry(key).or_default();
        let ts = microseconds(record)?;
        if record["event"] == "start" {
            session.country = session.country.take().or(text(record, "country"));
            session.start = Some(session.start.map_or(ts, |start| start.min(ts)));
        } else {
            session.end = Some(session.end.map_or(ts, |end| end.max(ts)));
        }
    }
    Ok(sessions)
}

/// A row of a started session: country, time in milliseconds, session and player.
pub type Started = (String, i64, String, String);

/// The starts of which country and player are known.
pub fn started(records: &[Value]) -> Result<BTreeSet<Started>> {
    let mut started = BTreeSet::new();
    for record in records.iter().filter(|record| record["event"] == "start") {
        let Some((player, session)) = belongs(record) else {
            continue;
        };
        let Some(country) = text(record, "country") else {
            continue;
        };
        let ts = milliseconds(microseconds(record)?);
        started.insert((country, ts, session, player));
    }
    Ok(started)
}

/// Notes when the records of the sessions came into the topic, in microseconds.
pub fn stamp(sessions: &mut Sessions, topic: &[OwnedMessage]) -> Result<()> {
    for message in topic {
        let record: Value = serde_json::from_slice(message.payload().context("a value")?)?;
        let Some(key) = belongs(&record) else {
            continue;
        };
        let session = sessions.get_mut(&key).context("a session")?;
        let came = message.timestamp().to_millis().context("a timestamp")? * 1000;
        let (first, last) = session.stamps.unwrap_or((came, came));
        session.stamps = Some((first.min(came), last.max(came)));
    }
    Ok(())
}
