//! Latency: records at a steady rate, and for some of them the time from producing until a read
//! finds what they lead to.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use tokio::task::JoinSet;

use crate::{
    Bench,
    engine::{Engine, Kind, Work},
    job::{Mark, Record, TableJob},
    kafka::Records,
    table::Table,
};

/// Records that are produced before the first sample is taken.
const WARM_UP: Duration = Duration::from_secs(10);
/// One record in so many is looked for.
const SAMPLE: usize = 50;
/// Between two looks at least: the precision of a small figure.
const LOOK: Duration = Duration::from_millis(1);
/// Of the time so far, between two looks: slow engines aren't slowed down by those who wait.
const LOOK_PART: u32 = 10;
const PATIENCE: Duration = Duration::from_secs(60);

/// What came of it.
pub struct Latency {
    pub p50_ms: f64,
    pub p99_ms: f64,
    /// What is wrong with the table; nothing where it is exact.
    pub wrong: Option<String>,
}

impl Bench {
    /// Runs an engine over a topic that gets `rate` records a second for so many seconds.
    pub async fn latency(&self, kind: Kind, job: &dyn TableJob, run: &str) -> Result<Latency> {
        self.kafka.create_topic(run).await?;
        let table = Arc::new(self.cassandra.create_table(job, run).await?);
        let work = Work::Table {
            job,
            topic: run,
            table: run,
        };
        let mut engine = Engine::start(self, kind, &work)?;
        let producer = self.kafka.producer(run, Duration::ZERO)?;
        let mut records = job.records();
        let first = records.next().context("a record")?;
        producer.send(&first)?;
        while !table.shows(&first.mark).await? {
            engine.goes_on(self.patience()).context("no row yet")?;
            tokio::time::sleep(LOOK).await;
        }
        let seconds = WARM_UP + Duration::from_secs(self.latency_seconds);
        let rest = usize::try_from(seconds.as_secs() * self.rate)?;
        let samples = self.produce_steadily(&producer, records.take(rest), &table);
        let mut samples = samples
            .await
            .with_context(|| format!("it says: {}", engine.last_words()))?;
        samples.sort();
        let expected = job.expected(1 + rest as u64);
        let wrong = table.differs(expected.as_ref()).await?;
        drop(engine);
        self.kafka.delete_topic(run).await?;
        Ok(Latency {
            p50_ms: percentile(&samples, 50),
            p99_ms: percentile(&samples, 99),
            wrong,
        })
    }

    /// Produces the records, and gives the samples' times.
    async fn produce_steadily(
        &self,
        producer: &Records,
        records: impl Iterator<Item = Record>,
        table: &Arc<Table>,
    ) -> Result<Vec<Duration>> {
        let mut samples = JoinSet::new();
        let started = Instant::now();
        let mut total = 0;
        for (index, record) in records.enumerate() {
            let due = started + Duration::from_secs_f64(index as f64 / self.rate as f64);
            tokio::time::sleep_until(due.into()).await;
            let sent = Instant::now();
            producer.send(&record)?;
            if index.is_multiple_of(SAMPLE) && sent - started > WARM_UP {
                samples.spawn(arrival(Arc::clone(table), record.mark, sent));
            }
            total += 1;
        }
        let rate = f64::from(total) / started.elapsed().as_secs_f64();
        if rate < 0.95 * self.rate as f64 {
            bail!("this machine got no further than {rate:.0} records/s: try a lower --rate");
        }
        samples.join_all().await.into_iter().collect()
    }
}

/// The time from `sent` until a read finds what the record leads to.
async fn arrival(table: Arc<Table>, mark: Mark, sent: Instant) -> Result<Duration> {
    while !table.shows(&mark).await? {
        if sent.elapsed() > PATIENCE {
            let seconds = PATIENCE.as_secs();
            bail!(
                "a record had not arrived at {:?} after {seconds} s",
                mark.key
            );
        }
        tokio::time::sleep(LOOK.max(sent.elapsed() / LOOK_PART)).await;
    }
    Ok(sent.elapsed())
}

/// In milliseconds, of a sorted list that isn't empty.
fn percentile(sorted: &[Duration], percent: usize) -> f64 {
    let place = (sorted.len() * percent).div_ceil(100).max(1) - 1;
    sorted[place].as_secs_f64() * 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percentile_is_the_smallest_value_that_so_many_do_not_exceed() {
        let sorted: Vec<_> = (1..=200).map(Duration::from_millis).collect();
        assert_eq!(percentile(&sorted, 50), 100.0);
        assert_eq!(percentile(&sorted, 99), 198.0);
        assert_eq!(percentile(&sorted[..1], 99), 1.0);
    }
}
