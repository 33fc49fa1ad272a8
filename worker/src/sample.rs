//! The first records of a source, read as the ingest stage reads them, and kept nowhere.

use std::{sync::Arc, time::Duration};

use anyhow::Context;
use bytes::Bytes;
use futures::StreamExt;
use millstream_api::source::Source;
use tokio::time::{Instant, timeout_at};

use crate::{
    config::Credentials,
    metrics::Metrics,
    source::{self, Opening},
    status::Status,
};

const STAGE: &str = "ingest";

/// Which records are wanted.
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    /// So many at most.
    pub records: usize,
    /// Those that come within this time.
    pub within: Duration,
}

/// The source without what it would write: its cache in Redis, its landing zone.
fn only_read(source: &Source) -> Source {
    let mut source = source.clone();
    if let Some(http) = &mut source.http {
        http.cache = None;
    }
    let generator = source.generator.as_mut();
    let replayed = generator.and_then(|generator| generator.replay.as_mut());
    let files = replayed.map(|replay| &mut replay.file);
    for file in source.file.iter_mut().chain(files) {
        file.landing_zone = None;
    }
    source
}

/// Reads the first records: fewer where the source ends or the time is over. None at all is an
/// error, which says what the source says of itself.
pub async fn sample(
    source: &Source,
    schema: &str,
    credentials: &Credentials,
    wanted: Wanted,
) -> anyhow::Result<Vec<Bytes>> {
    let status = Arc::new(Status::default());
    let opening = Opening {
        schema,
        credentials,
        position: None,
        status: &status.part(STAGE),
        metrics: &Metrics::default().stage(STAGE),
        connections: None,
    };
    let mut batches =
        source::open(&only_read(source), &opening).context("can't open the source")?;
    let end = Instant::now() + wanted.within;
    let mut records = Vec::new();
    let mut in_time = true;
    while records.len() < wanted.records && in_time {
        match timeout_at(end, batches.next()).await {
            Ok(Some(batch)) => records.extend(batch.records),
            Ok(None) => break,
            Err(_) => in_time = false,
        }
    }
    records.truncate(wanted.records);
    if !records.is_empty() {
        return Ok(records);
    }
    let errors = status.report().errors;
    match errors.get(STAGE) {
        Some(error) => anyhow::bail!("no record within {:?}: {error}", wanted.within),
        None if in_time => anyhow::bail!("the source ended without a record"),
        None => anyhow::bail!(
            "no record within {:?}; --timeout gives it longer",
            wanted.within
        ),
    }
}

#[cfg(test)]
mod tests {
    use millstream_api::source::file::LandingZone;
    use serde_json::json;

    use super::*;

    #[test]
    fn what_a_source_would_write_is_left_out() {
        let cache = json!({"redis": {"address": "redis", "key": "all"}});
        let http = |fields| serde_json::from_value::<Source>(json!({"http": fields})).unwrap();
        let cached = http(json!({"url": "http://x", "cache": cache}));
        assert_eq!(only_read(&cached), http(json!({"url": "http://x"})));

        let file = json!({"file": {"url": "http://x/a.zip"}});
        let plain: Source = serde_json::from_value(file).unwrap();
        let mut landing = plain.clone();
        if let Some(file) = &mut landing.file {
            file.landing_zone = Some(LandingZone::default());
        }
        assert_ne!(landing, plain);
        assert_eq!(only_read(&landing), plain);
    }
}
