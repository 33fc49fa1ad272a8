//! The sessions pipeline of the examples: a zip by way of a landing zone, date by date, becomes one
//! row a session; what is served of them, and what the expectations count, is right.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use k8s_openapi::jiff::{Timestamp, ToSpan, tz::TimeZone};
use kube::Api;
use millstream_api::DataPipeline;
use millstream_e2e::{Namespace, PATIENCE, Volume, eventually, with_temp_namespace};
use scylla::value::CqlTimestamp;
use serde_json::{Value, json};

use crate::{
    delta,
    example::{self, get, get_json},
};

const SESSIONS: &str = "sessions";
/// Debug mode: a slice of the data, less than there is of either kind.
const SLICE: usize = 5_000;

/// A session, put together here.
#[derive(Default)]
struct Session {
    country: Option<String>,
    start: Option<i64>,
    end: Option<i64>,
}

impl Session {
    fn is_complete(&self) -> bool {
        self.start.is_some() && self.end.is_some()
    }
}

/// By player and session.
type Sessions = BTreeMap<(String, String), Session>;

/// A recorded time in milliseconds since 1970, as Cassandra keeps it.
fn milliseconds(record: &Value) -> Result<i64> {
    let ts = record["ts"].as_str().context("ts")?;
    let ts: Timestamp = format!("{ts}Z").parse()?;
    Ok(ts.as_microsecond().div_euclid(1000))
}

fn text(record: &Value, field: &str) -> Option<String> {
    Some(record.get(field)?.as_str()?.to_owned())
}

/// The records as the replay gives them: date by date, each in the file's order; a slice of them.
fn slice(mut records: Vec<Value>) -> Vec<Value> {
    records.sort_by_key(|record| text(record, "ts").map(|ts| ts[..10].to_owned()));
    records.truncate(SLICE);
    records
}

fn sessions(records: &[Value]) -> Result<Sessions> {
    let mut sessions = Sessions::new();
    for record in records {
        let of = |field| text(record, field).with_context(|| format!("{field} of {record}"));
        let session = sessions.entry((of("player_id")?, of("session_id")?));
        let session = session.or_default();
        let ts = milliseconds(record)?;
        if of("event")? == "start" {
            session.country = session.country.take().or(text(record, "country"));
            session.start = Some(session.start.map_or(ts, |start| start.min(ts)));
        } else {
            session.end = Some(session.end.map_or(ts, |end| end.max(ts)));
        }
    }
    Ok(sessions)
}

/// The groups with the most, those of as many in the order of their names: `[{name: …, sessions: …}]`.
fn top<'a>(name: &str, groups: impl Iterator<Item = &'a str>, length: usize) -> Value {
    let mut counts = BTreeMap::<&str, u64>::new();
    groups.for_each(|group| *counts.entry(group).or_default() += 1);
    let mut counts: Vec<_> = counts.into_iter().collect();
    counts.sort_by(|(a, many), (b, more)| more.cmp(many).then(a.cmp(b)));
    let counts = counts.into_iter().take(length);
    counts
        .map(|(group, count)| json!({name: group, "sessions": count}))
        .collect()
}

fn shown(milliseconds: i64) -> Result<String> {
    let ts = Timestamp::from_millisecond(milliseconds)?;
    Ok(format!("{ts:.3}"))
}

#[test]
fn sessions_and_what_is_served_of_them_are_those_of_the_recording() {
    with_temp_namespace(SESSIONS, async |namespace| {
        let (apis, records) =
            example::recording(namespace, SESSIONS, "session_start_end.jsonl.gz").await?;
        let records = slice(records);
        let last = records.iter().filter_map(|record| text(record, "ts")).max();
        let now = midnight_after(&last.context("records")?)?;
        let landing = Volume::claim(namespace, "landing").await?;
        let lake = Volume::claim(namespace, "lake").await?;
        let mut pipeline = example::pipeline(namespace, SESSIONS)?;
        let spec = &mut pipeline["spec"];
        let generator = &mut spec["source"]["generator"];
        generator["count"] = SLICE.into();
        generator["replay"]["file"]["url"] = apis.url("/files/sessions.zip").into();
        spec["serve"]["now"] = shown(now)?.into();
        namespace.apply(&pipeline.to_string()).await?;
        namespace.ready(SESSIONS).await?;
        example::stored(namespace, &pipeline, records.len()).await?;

        if let Some(files) = landing.files()? {
            ensure!(
                files.len() == 1 && files[0].ends_with("sessions.zip"),
                "{files:?}"
            );
        }
        let expected = sessions(&records)?;
        rows_are(namespace, &expected).await?;
        models_are(namespace, &expected, now).await?;
        insights_are(namespace, &expected).await?;
        report_is(namespace, &expected).await?;
        if let Some(lake) = lake.folder() {
            for (table, rows) in [
                ("r_session_events", records.len()),
                ("uc_delta_event_sessions", expected.len()),
            ] {
                assert_eq!(delta::rows(&lake.join(table))?, i64::try_from(rows)?);
            }
        }
        landing.remove(namespace).await?;
        lake.remove(namespace).await
    });
}

/// The first midnight after a recorded time.
fn midnight_after(ts: &str) -> Result<i64> {
    let ts: Timestamp = format!("{ts}Z").parse()?;
    let day = ts.to_zoned(TimeZone::UTC);
    Ok(day
        .start_of_day()?
        .checked_add(1.day())?
        .timestamp()
        .as_millisecond())
}

type Row = (
    String,
    String,
    Option<String>,
    Option<CqlTimestamp>,
    Option<CqlTimestamp>,
    i32,
    CqlTimestamp,
    CqlTimestamp,
);

async fn rows_are(namespace: &Namespace, expected: &Sessions) -> Result<()> {
    let cql = format!(
        "SELECT player_id, session_id, country, start_ts, end_ts, session_status, dl_insert_ts, \
         dl_update_ts FROM {}.sessions",
        namespace.unique("games")
    );
    let rows = namespace.cassandra.select::<Row>(&cql).await?;
    assert_eq!(rows.len(), expected.len());
    for (player, session, country, start, end, status, inserted, updated) in rows {
        let known = expected
            .get(&(player, session.clone()))
            .context("a session")?;
        let times = [start, end].map(|ts| ts.map(|ts| ts.0));
        assert_eq!(
            (country, times, status),
            (
                known.country.clone(),
                [known.start, known.end],
                i32::from(known.is_complete())
            ),
            "{session}"
        );
        ensure!(inserted.0 <= updated.0 && inserted.0 > 0, "{session}");
    }
    Ok(())
}

/// The items of `{items, count}`, in the order of their sessions.
fn items(answer: &Value) -> Result<Vec<Value>> {
    let mut items = answer["items"].as_array().context("items")?.clone();
    ensure!(answer["count"] == items.len(), "the count of {answer}");
    items.sort_by_key(|item| text(item, "session_id"));
    Ok(items)
}

/// An answer has so many items at most; more come page by page.
const PAGE: usize = 1000;

async fn models_are(namespace: &Namespace, expected: &Sessions, now: i64) -> Result<()> {
    let item = |((player, session), known): (&(String, String), &Session), ts: i64| {
        anyhow::Ok(json!({
            "player_id": player, "session_id": session, "country": known.country, "ts": shown(ts)?,
        }))
    };
    let mut players = BTreeMap::<&str, Vec<Value>>::new();
    let mut countries = BTreeMap::<&str, Vec<Value>>::new();
    let hours = 24;
    for (key, known) in expected {
        if let (Some(end), true) = (known.end, known.is_complete()) {
            players
                .entry(&key.0)
                .or_default()
                .push(item((key, known), end)?);
        }
        if let (Some(start), Some(country)) = (known.start, &known.country)
            && (now - hours * 3_600_000..=now).contains(&start)
        {
            countries
                .entry(country)
                .or_default()
                .push(item((key, known), start)?);
        }
    }
    let most = |groups: BTreeMap<&str, Vec<Value>>| {
        let groups = groups.into_iter().filter(|(_, items)| items.len() <= PAGE);
        let (name, mut items) = groups
            .max_by_key(|(_, items)| items.len())
            .context("a group")?;
        items.sort_by_key(|item| text(item, "session_id"));
        anyhow::Ok((name.to_owned(), items))
    };
    let (player, completed) = most(players)?;
    let path = format!("/models/completed-sessions/{player}");
    assert_eq!(
        items(&get_json(namespace, SESSIONS, &path).await?)?,
        completed
    );
    let (country, started) = most(countries)?;
    let path = format!("/models/started_sessions/{country}/{hours}");
    assert_eq!(
        items(&get_json(namespace, SESSIONS, &path).await?)?,
        started
    );

    let nobody = get_json(namespace, SESSIONS, "/models/completed-sessions/nobody").await?;
    assert_eq!(nobody, json!({"count": 0, "items": []}));
    let path = format!("/models/started_sessions/{country}/25");
    ensure!(
        get(namespace, SESSIONS, &path).await.is_err(),
        "a day is the most"
    );
    Ok(())
}

async fn insights_are(namespace: &Namespace, expected: &Sessions) -> Result<()> {
    let asked = async |path: &str| get_json(namespace, SESSIONS, path).await;
    assert_eq!(
        asked("/insights/sessions").await?,
        json!([{"sessions": expected.len()}])
    );
    let complete = || expected.iter().filter(|(_, session)| session.is_complete());
    let countries = complete().filter_map(|(_, session)| session.country.as_deref());
    let countries = top("country", countries, 10);
    // What counts all sessions is SQL on the Delta Lake table.
    assert_eq!(asked("/insights/completed-per-country").await?, countries);
    let path = "/insights/plot-completed-per-country";
    assert_eq!(asked(&format!("{path}?format=json")).await?, countries);
    let svg = get(namespace, SESSIONS, &format!("{path}?format=svg")).await?;
    ensure!(svg.starts_with("<svg"), "{svg}");
    let players = complete().map(|((player, _), _)| player.as_str());
    assert_eq!(
        asked("/insights/completed-per-player").await?,
        top("player_id", players, 10)
    );
    for year in [2016, 2018] {
        let started = expected.values().filter(|session| {
            let start = session
                .start
                .and_then(|ts| Timestamp::from_millisecond(ts).ok());
            start.is_some_and(|ts| ts.to_zoned(TimeZone::UTC).year() == year)
        });
        let started = started.filter_map(|session| session.country.as_deref());
        assert_eq!(
            asked(&format!("/insights/top-country/{year}")).await?,
            top("country", started, 1)
        );
    }
    let healthy = json!({"status": "healthy", "cassandra": "reachable", "tables": "readable"});
    assert_eq!(asked("/health").await?, healthy);
    Ok(())
}

/// The data-quality report: how many rows failed each expectation.
async fn report_is(namespace: &Namespace, expected: &Sessions) -> Result<()> {
    let unknown = expected
        .values()
        .filter(|session| session.start.is_some() && session.country.is_none());
    let wanted = json!({"events": {"known-event": 0, "has-player": 0}, "started": {"has-country": unknown.count()}});
    let pipelines: Api<DataPipeline> = namespace.api();
    eventually(PATIENCE, async || {
        let status = pipelines.get(SESSIONS).await?.status.context("a status")?;
        let mut report = json!({});
        for sink in status.sinks.iter().filter(|sink| sink.name != SESSIONS) {
            for expectation in &sink.expectations {
                report[&sink.name][&expectation.name] = expectation.failed.into();
            }
        }
        ensure!(report == wanted, "{report} isn't {wanted}");
        Ok(())
    })
    .await
}
