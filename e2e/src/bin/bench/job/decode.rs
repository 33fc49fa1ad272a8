//! The projection without Kafka and Cassandra: records of a file become rows on standard output.
//! The program that does it takes its own time: reading and printing isn't in it.

use std::{
    fs::File,
    io::{BufRead, BufReader, BufWriter, Write},
    path::Path,
    time::Duration,
};

use anyhow::{Context, Result};
use serde::Deserialize;
use tokio::task::block_in_place;

use super::{JobName, TableJob, projection::Projection};
use crate::{
    Bench,
    engine::{Engine, Kind, Usage, Work},
    report::{Measured, Report},
    verify::Check,
};

/// The last line that such a program prints, after the rows.
#[derive(Deserialize)]
struct Took {
    seconds: f64,
    cpu_seconds: f64,
}

impl Bench {
    pub async fn decode(&self, job: &Projection, report: &mut Report) -> Result<()> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("records.ndjson");
        let mut file = BufWriter::new(File::create(&path)?);
        for record in job.records().take(usize::try_from(self.records)?) {
            writeln!(file, "{}", record.json)?;
        }
        file.flush()?;
        let engines = [Kind::Ceiling, Kind::Millstream];
        self.turns(JobName::Decode, &engines, report, async |kind, _: &str| {
            block_in_place(|| self.decode_once(kind, job, &path))
        })
        .await;
        Ok(())
    }

    fn decode_once(&self, kind: Kind, job: &Projection, records: &Path) -> Result<Measured> {
        let expected = job.expected(self.records);
        let mut check = Check::new(expected.as_ref());
        let mut engine = Engine::start(self, kind, &Work::Decode { job, records })?;
        let (mut first, mut took) = (None, None);
        for line in BufReader::new(engine.rows()?).lines() {
            let line = line?;
            first.get_or_insert_with(|| engine.started.elapsed());
            if line.starts_with('{') {
                took = Some(serde_json::from_str::<Took>(&line)?);
                break;
            }
            check.see(serde_json::from_str(&line)?);
        }
        let says = || format!("it didn't come to its end: {}", engine.last_words());
        let (first, took) = first.zip(took).with_context(says)?;
        let usage = Usage {
            cpu_seconds: took.cpu_seconds,
            ..engine.usage()?
        };
        let whole = Duration::from_secs_f64(took.seconds);
        Ok(Measured {
            wrong: check.verdict().into_iter().collect(),
            ..Measured::of(self.records, whole, first, &usage)
        })
    }
}
