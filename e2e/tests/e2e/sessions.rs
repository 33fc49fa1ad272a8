//! The sessions pipeline of the examples: a zip by way of a landing zone, date by date, becomes one
//! row a session; what is served of them, and what the expectations count, is right.

mod lake;
mod recorded;

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, ensure};
use k8s_openapi::jiff::{Timestamp, ToSpan, tz::TimeZone};
use kube::Api;
use millstream_api::{DataPipeline, worker::dead_letter};
use millstream_e2e::{Namespace, PATIENCE, Volume, eventually, header, with_temp_namespace};
use rdkafka::Message;
use scylla::value::CqlTimestamp;
use serde_json::{Value, json};

use self::recorded::{Session, Sessions, milliseconds, text};
use crate::{
    delta,
    example::{self, get, get_json},
};

const SESSIONS: &str = "sessions";

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
        let (apis, records) = example::recording(
            namespace,
            SESSIONS,
            "session_start_end.jsonl.gz",
            &recorded::bad(),
        )
        .await?;
        // Debug mode takes so many.
        let records = recorded::slice(records);
        let last = records.iter().filter_map(|record| text(record, "ts")).max();
        let now = midnight_after(&last.context("records")?)?;
        let landing = Volume::claim(namespace, "landing").await?;
        let volume = Volume::claim(namespace, "lake").await?;
        let mut pipeline = example::pipeline(namespace, SESSIONS)?;
        let spec = &mut pipeline["spec"];
        let generator = &mut spec["source"]["generator"];
        generator["count"] = records.len().into();
        generator["replay"]["file"]["url"] = apis.url("/files/sessions.zip").into();
        spec["serve"]["now"] = shown(now)?.into();
        lake::serve(spec)?;
        namespace.apply(&pipeline.to_string()).await?;
        namespace.ready(SESSIONS).await?;
        let keyed = records.iter().filter(|record| recorded::has_key(record));
        example::stored(namespace, &pipeline, keyed.count()).await?;

        if let Some(files) = landing.files()? {
            ensure!(
                files.len() == 1 && files[0].ends_with("sessions.zip"),
                "{files:?}"
            );
        }
        let topic = text(&pipeline["spec"]["topic"], "name").context("a topic")?;
        let mut expected = recorded::sessions(&records)?;
        recorded::stamp(&mut expected, &namespace.kafka.consume(&topic)?)?;
        let complete = expected.values().filter(|session| session.is_complete());
        ensure!((1..expected.len()).contains(&complete.count()));
        rows_are(namespace, &expected).await?;
        started_are(namespace, &records).await?;
        lake::sessions_are(namespace, &expected).await?;
        let events = lake::events_are(namespace, &records).await?;
        models_are(namespace, &expected, now).await?;
        insights_are(namespace, &expected).await?;
        dead_letters_are(namespace, &topic, &records)?;
        report_is(namespace, &records).await?;
        if let Some(folder) = volume.folder() {
            for (table, rows) in [
                ("r_session_events", events),
                ("uc_delta_event_sessions", expected.len()),
            ] {
                assert_eq!(delta::rows(&folder.join(table))?, i64::try_from(rows)?);
            }
        }
        landing.remove(namespace).await?;
        volume.remove(namespace).await
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
        let stamps = (inserted.0 * 1000, updated.0 * 1000);
        assert_eq!(
            (country, times, status, Some(stamps)),
            (
                known.country.clone(),
                [known.start, known.end].map(|ts| ts.map(milliseconds)),
                i32::from(known.is_complete()),
                known.stamps
            ),
            "{session}"
        );
    }
    Ok(())
}

/// The starts by country, as the REST service reads them.
async fn started_are(namespace: &Namespace, records: &[Value]) -> Result<()> {
    let cql = format!(
        "SELECT country, ts, session_id, player_id FROM {}.started_sessions",
        namespace.unique("games")
    );
    let rows = namespace
        .cassandra
        .select::<(String, CqlTimestamp, String, Option<String>)>(&cql)
        .await?;
    let mut found = BTreeSet::new();
    for (country, ts, session, player) in rows {
        let player = player.with_context(|| format!("{session} has no player"))?;
        found.insert((country, ts.0, session, player));
    }
    let expected = recorded::started(records)?;
    ensure!(found.len() == expected.len(), "{} starts", found.len());
    for (found, expected) in found.iter().zip(&expected) {
        assert_eq!(found, expected);
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
                .push(item((key, known), milliseconds(end))?);
        }
        let start = known.start.map(milliseconds);
        if let (Some(start), Some(country)) = (start, &known.country)
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

    // Any text may be asked for.
    for path in [
        "/models/completed-sessions/nobody".to_owned(),
        format!("/models/started_sessions/nowhere/{hours}"),
    ] {
        let nothing = get_json(namespace, SESSIONS, &path).await?;
        assert_eq!(nothing, json!({"count": 0, "items": []}), "{path}");
    }
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
                .and_then(|ts| Timestamp::from_microsecond(ts).ok());
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

/// What can't be stored is in the dead-letter topic, once, with the stage and the reason.
fn dead_letters_are(namespace: &Namespace, topic: &str, records: &[Value]) -> Result<()> {
    let mut expected: Vec<_> = records.iter().filter_map(refused).collect();
    let mut found = Vec::new();
    for letter in namespace.kafka.consume(&format!("{topic}.dead-letter"))? {
        let record: Value = serde_json::from_slice(letter.payload().context("a value")?)?;
        let stage = header(&letter, dead_letter::STAGE).context("a stage")?;
        let reason = header(&letter, dead_letter::REASON).context("a reason")?;
        for name in recorded::failed(&record) {
            ensure!(reason.contains(name), "`{name}` isn't in {reason}");
        }
        found.push((
            stage,
            text(&record, "player_id"),
            text(&record, "session_id"),
        ));
    }
    expected.sort();
    found.sort();
    assert_eq!(found, expected);
    Ok(())
}

/// The stage that refuses a record, if one does, with the record's player and session.
fn refused(record: &Value) -> Option<(String, Option<String>, Option<String>)> {
    let stage = match recorded::has_key(record) {
        false => "ingest",
        true if recorded::failed(record).is_empty() => return None,
        true => "events",
    };
    let of = |field| text(record, field);
    Some((stage.to_owned(), of("player_id"), of("session_id")))
}

/// The data-quality report: how many rows failed each expectation.
async fn report_is(namespace: &Namespace, records: &[Value]) -> Result<()> {
    let count = |fails: &dyn Fn(&Value) -> bool| {
        let records = records.iter().filter(|record| recorded::has_key(record));
        records.filter(|record| fails(record)).count()
    };
    let failed = |name| count(&|record| recorded::failed(record).contains(&name));
    let without_country = count(&|record| {
        let is_start = record["event"] == "start" && recorded::failed(record).is_empty();
        is_start && text(record, "country").is_none()
    });
    let wanted = json!({
        "events": {
            "known-event": failed("known-event"),
            "has-player": failed("has-player"),
            "dead letters": count(&|record| !recorded::failed(record).is_empty()),
        },
        "started": {"has-country": without_country, "dead letters": 0},
    });
    let pipelines: Api<DataPipeline> = namespace.api();
    eventually(PATIENCE, async || {
        let status = pipelines.get(SESSIONS).await?.status.context("a status")?;
        let mut report = json!({});
        for sink in &status.sinks {
            for expectation in &sink.expectations {
                report[&sink.name][&expectation.name] = expectation.failed.into();
                report[&sink.name]["dead letters"] = sink.dead_lettered.into();
            }
        }
        ensure!(report == wanted, "{report} isn't {wanted}");
        Ok(())
    })
    .await
}
