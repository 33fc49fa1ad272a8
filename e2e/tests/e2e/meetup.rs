//! The meetup pipeline of the examples: the counts by venue are right in the table and in every form
//! that is served.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use millstream_e2e::with_temp_namespace;
use reqwest::header::{ACCEPT, CONTENT_TYPE};
use serde_json::{Value, json};

use crate::example::{self, get, get_json};

const MEETUP: &str = "meetup";
const BROWSER: &str =
    "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8";

/// A venue's row: count, city, lat, lon and name.
type Venue = (i64, String, String, String, String);

/// The venues, counted here.
fn counted(rsvps: &[Value]) -> Result<BTreeMap<i64, Venue>> {
    let mut venues = BTreeMap::new();
    for rsvp in rsvps {
        let Some(venue) = rsvp.get("venue") else {
            continue;
        };
        let text = |value: &Value| match value {
            Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        let id = venue["venue_id"].as_i64().context("venue_id")?;
        let (count, city, lat, lon, name): &mut Venue = venues.entry(id).or_default();
        *count += 1;
        *city = text(&rsvp["group"]["group_city"]);
        (*lat, *lon) = (text(&venue["lat"]), text(&venue["lon"]));
        *name = text(&venue["venue_name"]);
    }
    Ok(venues)
}

/// The objects of an array in an order that doesn't depend on the server's.
fn sorted(rows: &Value) -> Result<Vec<String>> {
    let rows = rows.as_array().context("an array")?.iter();
    let mut rows: Vec<_> = rows.map(Value::to_string).collect();
    rows.sort();
    Ok(rows)
}

/// What `/api/top_venues` has to give.
fn top(venues: &BTreeMap<i64, Venue>, length: usize) -> Value {
    let mut top: Vec<_> = venues.iter().collect();
    top.sort_by(|(a_id, a), (b_id, b)| b.0.cmp(&a.0).then(a.4.cmp(&b.4)).then(a_id.cmp(b_id)));
    let rows = top.into_iter().take(length);
    rows.map(|(_, (count, city, .., name))| {
        json!({"venue_name": name, "group_city": city, "count": count})
    })
    .collect()
}

#[test]
fn counts_by_venue_are_those_of_the_recording_wherever_one_looks() {
    with_temp_namespace(MEETUP, async |namespace| {
        let recorded = "meetup_rsvps.deid.jsonl.gz";
        let (apis, rsvps) = example::recording(namespace, "meetup_rsvps", recorded, &[]).await?;
        let expected = counted(&rsvps)?;
        let mut pipeline = example::pipeline(namespace, MEETUP)?;
        let generator = &mut pipeline["spec"]["source"]["generator"];
        generator["rate"] = 1000.into();
        generator["replay"]["file"]["url"] = apis.url("/files/meetup_rsvps.ndjson.gz").into();
        namespace.apply(&pipeline.to_string()).await?;
        namespace.ready(MEETUP).await?;
        // An RSVP without a venue has no key, and goes to the dead letters of the ingest stage.
        let counted = rsvps.iter().filter(|rsvp| rsvp.get("venue").is_some());
        example::stored(namespace, &pipeline, counted.count()).await?;

        let cql = format!(
            "SELECT venue_id, count, group_city, lat, lon, venue_name FROM {}.venues",
            namespace.unique(MEETUP)
        );
        let rows = namespace.cassandra.select(&cql).await?.into_iter();
        let rows = rows.map(|(id, a, b, c, d, e): (i64, _, _, _, _, _)| (id, (a, b, c, d, e)));
        assert_eq!(rows.collect::<BTreeMap<i64, Venue>>(), expected);

        let data = get_json(namespace, MEETUP, "/api/data").await?;
        let items: Value = expected.values().map(shown).collect();
        assert_eq!(sorted(&data)?, sorted(&items)?);

        // As people are told to look at it, in a browser.
        let forward = namespace.forward("meetup-serve", 5001).await?;
        let opened = async |path: &str| {
            let request = reqwest::Client::new().get(forward.url(path));
            let answer = request.header(ACCEPT, BROWSER).send().await?;
            let answer = answer.error_for_status()?;
            let content_type = answer.headers()[CONTENT_TYPE].to_str()?.to_owned();
            anyhow::Ok((content_type, answer.text().await?))
        };
        let (content_type, text) = opened("/api/data").await?;
        assert_eq!(content_type, "application/json");
        assert_eq!(sorted(&serde_json::from_str(&text)?)?, sorted(&items)?);
        let (content_type, html) = opened("/api/top_venues").await?;
        ensure!(content_type.starts_with("text/html") && html.contains("<table"));

        let path = "/api/top_venues?format=json";
        let served = get_json(namespace, MEETUP, path).await?;
        assert_eq!(served, top(&expected, 20));
        let served = get_json(namespace, MEETUP, &format!("{path}&top=3")).await?;
        assert_eq!(served, top(&expected, 3));
        let html = get(namespace, MEETUP, "/api/top_venues?format=html").await?;
        ensure!(html.matches("<tr>").count() == 21, "{html}");
        let svg = get(namespace, MEETUP, "/api/top_venues?format=svg").await?;
        ensure!(svg.starts_with("<svg"), "{svg}");
        Ok(())
    });
}

/// An element of `/api/data`.
fn shown((count, city, lat, lon, name): &Venue) -> Value {
    json!({"count": count, "group_city": city, "lat": lat, "lon": lon, "venue_name": name})
}
