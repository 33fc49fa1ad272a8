//! Made-up records: record `i` depends on the seed and on `i` alone, so a generator that is started
//! again anywhere gives the same records.

mod replay;
mod text;
mod value;

use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::{StreamExt, stream};
use millstream_api::source::GeneratorSource;
use millstream_plan::RecordSchema;
use rand::{SeedableRng, rngs::Xoshiro256PlusPlus};
use serde_json::json;

use crate::source::{Opening, Records, SourceBatch, generator::value::Object};

/// Records that are made at once.
const BATCH: u64 = 500;
/// Between batches where there is a rate.
const TICK: Duration = Duration::from_millis(10);

/// Opens the source; the position is the index of the next record.
pub fn open(spec: GeneratorSource, opening: &Opening<'_>) -> anyhow::Result<Records> {
    if let Some(recorded) = spec.replay.clone() {
        return replay::open(spec, recorded, opening);
    }
    let schema = RecordSchema::parse(opening.schema)?;
    let start = opening
        .position
        .and_then(|position| position["next"].as_u64());
    let generator = Generator::new(&schema, spec.seed);
    let pace = Pace::new(spec.rate);
    let end = spec.count.unwrap_or(u64::MAX);
    let state = (generator, pace, start.unwrap_or(0));
    let batches = stream::unfold(state, move |(generator, mut pace, next)| async move {
        if next >= end {
            return None;
        }
        let size = pace.wait().await.min(end - next);
        let records = (next..next + size).map(|index| generator.record(index));
        let batch = SourceBatch {
            records: records.collect(),
            position: json!({"next": next + size}),
            ..SourceBatch::default()
        };
        Some((batch, (generator, pace, next + size)))
    });
    Ok(batches.boxed())
}

/// Keeps a rate over any length of time: what was missed is made up for.
struct Pace {
    rate: Option<u32>,
    started: Instant,
    made: u64,
}

impl Pace {
    fn new(rate: Option<u32>) -> Self {
        Pace {
            rate,
            started: Instant::now(),
            made: 0,
        }
    }

    /// Waits until records are due; tells how many, at least one.
    async fn wait(&mut self) -> u64 {
        let Some(rate) = self.rate else { return BATCH };
        loop {
            let due = (self.started.elapsed().as_secs_f64() * f64::from(rate)) as u64;
            let missing = due.saturating_sub(self.made).min(BATCH);
            if missing > 0 {
                self.made += missing;
                return missing;
            }
            let next = (self.made + 1) as f64 / f64::from(rate);
            let until = Duration::from_secs_f64(next).saturating_sub(self.started.elapsed());
            tokio::time::sleep(until.max(TICK)).await;
        }
    }
}

/// Makes records in the shape of a schema.
pub struct Generator {
    object: Object,
    seed: u64,
}

impl Generator {
    /// A generator of records in this shape.
    pub fn new(schema: &RecordSchema, seed: u64) -> Self {
        Generator {
            object: Object::new(schema.fields()),
            seed,
        }
    }

    /// The record of this index.
    pub fn record(&self, index: u64) -> Bytes {
        // Seeding mixes the bits: neighbours have nothing in common.
        let seed = self.seed.rotate_left(32) ^ index;
        let mut random = Xoshiro256PlusPlus::seed_from_u64(seed);
        let mut json = Vec::with_capacity(512);
        self.object.write(&mut json, &mut random);
        json.into()
    }
}

#[cfg(test)]
mod tests {
    use std::{path::PathBuf, sync::Arc};

    use serde_json::Value;

    use super::*;
    use crate::{budget::ANSWERS, config::Credentials, metrics::Metrics, status::Status};

    const USERS: &str = "gender TEXT, name STRUCT<first TEXT, last TEXT>, \
        login STRUCT<uuid UUID, username TEXT>, email TEXT, tags ARRAY<TEXT>, \
        location STRUCT<street STRUCT<number INT, name TEXT>, postcode TEXT, latitude DOUBLE>, \
        registered TIMESTAMP, born DATE, balance DECIMAL(10, 2), active BOOLEAN";

    fn generator(seed: u64) -> Generator {
        Generator::new(&RecordSchema::parse(USERS).unwrap(), seed)
    }

    #[test]
    fn a_record_depends_on_seed_and_index_alone() {
        let (one, again, other) = (generator(1), generator(1), generator(2));
        for index in [0, 7, 7_000_000_000] {
            assert_eq!(one.record(index), again.record(index));
            assert_ne!(one.record(index), other.record(index));
            assert_ne!(one.record(index), one.record(index + 1));
        }
    }

    #[test]
    fn records_have_the_shape_of_the_schema() {
        let generator = generator(3);
        let mut non_ascii = 0;
        let mut uuids = std::collections::HashSet::new();
        for index in 0..2_000 {
            let record = generator.record(index);
            let json: Value = serde_json::from_slice(&record).unwrap();
            let uuid: uuid::Uuid = serde_json::from_value(json["login"]["uuid"].clone()).unwrap();
            assert!(uuids.insert(uuid));
            assert!(json["email"].as_str().unwrap().contains('@'), "{json}");
            assert!(json["tags"].is_array());
            assert!(json["active"].is_boolean());
            let name = json["name"]["first"].as_str().unwrap();
            non_ascii += usize::from(!name.is_ascii());
        }
        assert!(
            (50..1_000).contains(&non_ascii),
            "{non_ascii} names beyond ASCII"
        );
    }

    /// All records from a position on.
    async fn batches(count: u64, position: Option<&Value>) -> Vec<SourceBatch> {
        let spec = GeneratorSource {
            count: Some(count),
            seed: 1,
            ..GeneratorSource::default()
        };
        let opening = Opening {
            schema: USERS,
            credentials: &Credentials::new(PathBuf::new()),
            position,
            status: &Arc::new(Status::default()).part("ingest"),
            metrics: &Metrics::default().stage("ingest"),
            connections: None,
            answers: ANSWERS,
        };
        open(spec, &opening).unwrap().collect().await
    }

    #[tokio::test]
    async fn goes_on_at_its_position_and_ends_at_its_count() {
        let all = batches(1_200, None).await;
        let rest = batches(1_200, Some(&all[0].position)).await;
        let sizes: Vec<_> = all.iter().map(|batch| batch.records.len()).collect();
        assert_eq!(sizes, [500, 500, 200]);
        assert_eq!(rest, all[1..]);
    }

    #[tokio::test]
    async fn goes_on_where_a_smaller_count_had_ended_it() {
        let all = batches(9, None).await;
        let first = batches(5, None).await;
        let more = batches(9, Some(&first[0].position)).await;
        let records = first.iter().chain(&more).flat_map(|batch| &batch.records);
        assert!(records.eq(&all[0].records));
        assert!(batches(3, Some(&more[0].position)).await.is_empty());
    }
}
