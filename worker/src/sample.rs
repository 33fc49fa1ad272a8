//! The first records of a source, read as the ingest stage reads them, and kept nowhere.

use std::{sync::Arc, time::Duration};

use anyhow::Context;
use bytes::Bytes;
use futures::StreamExt;
use millstream_api::source::Source;
use tokio::time::{interval, timeout};

use crate::{
    budget::ANSWERS,
    config::Credentials,
    metrics::Metrics,
    source::{self, Connections, Opening},
    status::Status,
};

const STAGE: &str = "ingest";
/// Between looks at what the source says of itself.
const LOOK: Duration = Duration::from_millis(200);

/// Which records are wanted.
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    /// So many at most.
    pub records: usize,
    /// Those that come within this time.
    pub within: Duration,
}

/// What a source gave.
#[derive(Debug, Default, PartialEq)]
pub struct Sampled {
    pub records: Vec<Bytes>,
    /// What it can't make records of, and why.
    pub rejected: Vec<(Bytes, String)>,
}

impl Sampled {
    fn len(&self) -> usize {
        self.records.len() + self.rejected.len()
    }
}

/// The source without what it would write: its cache in Redis, its landing zone.
pub fn only_read(source: &Source) -> Source {
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
    connections: Option<Connections<'_>>,
    wanted: Wanted,
) -> anyhow::Result<Sampled> {
    let status = Arc::new(Status::default());
    let opening = Opening {
        schema,
        credentials,
        position: None,
        status: &status.part(STAGE),
        metrics: &Metrics::default().stage(STAGE),
        connections,
        answers: ANSWERS,
    };
    let mut batches =
        source::open(&only_read(source), &opening).context("can't open the source")?;
    let mut sampled = Sampled::default();
    let reading = async {
        while sampled.len() < wanted.records {
            let Some(batch) = batches.next().await else {
                return;
            };
            sampled.records.extend(batch.records);
            sampled.rejected.extend(batch.rejected);
        }
    };
    let in_time = tokio::select! {
        read = timeout(wanted.within, reading) => read.is_ok(),
        () = tell(&status) => false,
    };
    sampled.records.truncate(wanted.records);
    if sampled.len() > 0 {
        return Ok(sampled);
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

/// Tells what the source says is wrong as soon as it does: it tries again, but a person may know
/// better than to wait for it.
async fn tell(status: &Status) {
    let mut told = None;
    let mut looks = interval(LOOK);
    loop {
        looks.tick().await;
        let error = status.report().errors.remove(STAGE);
        if let Some(error) = error
            && told.as_ref() != Some(&error)
        {
            eprintln!("note: {error}; it is tried again");
            told = Some(error);
        }
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
