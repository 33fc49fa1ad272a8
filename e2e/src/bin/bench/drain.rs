//! Throughput: a full topic, an empty table, and the time until the last records have arrived.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};

use crate::{
    Bench,
    engine::{Engine, Kind, Work},
    job::{Mark, TableJob},
    report::Measured,
};

const POLL: Duration = Duration::from_millis(10);
/// So many of the last records are looked for: they are in all partitions, and in whatever is
/// written last.
const LAST: usize = 256;

/// A topic with records, and by what its last ones are known.
pub struct Filled {
    pub topic: String,
    last: VecDeque<Mark>,
}

impl Bench {
    /// Makes a topic with all the records of a job.
    pub async fn fill(&self, job: &dyn TableJob) -> Result<Filled> {
        let topic = format!("{}_{}", self.name, job.name());
        self.kafka.create_topic(&topic).await?;
        let producer = self.kafka.producer(&topic, Duration::from_millis(5))?;
        let (mut last, mut bytes) = (VecDeque::new(), 0);
        for record in job.records().take(usize::try_from(self.records)?) {
            bytes += record.json.len() as u64;
            producer.send(&record)?;
            last.push_back(record.mark);
            if last.len() > LAST {
                last.pop_front();
            }
        }
        producer.flush()?;
        ensure!(
            self.kafka.count(&topic)? == self.records,
            "Kafka has not got every record"
        );
        let (count, mean) = (self.records, bytes / self.records.max(1));
        println!("{count} records of {mean} bytes in {topic}");
        Ok(Filled { topic, last })
    }

    /// Runs an engine over the topic, from its start until the table has everything.
    pub async fn drain(
        &self,
        kind: Kind,
        job: &dyn TableJob,
        from: &Filled,
        run: &str,
    ) -> Result<Measured> {
        let table = self.cassandra.create_table(job, run).await?;
        let work = Work::Table {
            job,
            topic: &from.topic,
            table: run,
        };
        let mut engine = Engine::start(self, kind, &work)?;
        while !table.has_rows().await? {
            engine.goes_on(self.patience()).context("no row yet")?;
            tokio::time::sleep(POLL).await;
        }
        let first_row = engine.started.elapsed();
        for mark in &from.last {
            while !table.shows(mark).await? {
                engine
                    .goes_on(self.patience())
                    .context("not all rows yet")?;
                tokio::time::sleep(POLL).await;
            }
        }
        let whole = engine.started.elapsed();
        let usage = engine.usage()?;
        let expected = job.expected(self.records);
        let wrong = table.differs(expected.as_ref()).await?;
        Ok(Measured {
            wrong: wrong.into_iter().collect(),
            ..Measured::of(self.records, whole, first_row, &usage)
        })
    }

    /// More time than any engine needs.
    pub fn patience(&self) -> Duration {
        Duration::from_secs(180 + self.records / 1_000)
    }
}

/// Waits until `done`, for as long as the engine goes on; the time since its start.
pub async fn until(
    bench: &Bench,
    engine: &mut Engine,
    mut done: impl FnMut() -> Result<bool>,
) -> Result<Duration> {
    while !done()? {
        engine.goes_on(bench.patience())?;
        tokio::time::sleep(POLL).await;
    }
    Ok(Instant::now() - engine.started)
}
