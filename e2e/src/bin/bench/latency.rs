//! Latency: records at a steady rate, and for some of them the time from producing until a read
//! finds the row.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use tokio::task::JoinSet;
use uuid::Uuid;

use crate::{
    Bench,
    cassandra::Table,
    drain::{committed, still_going},
    engine::{Engine, Kind},
    kafka::Records,
};

/// Records that are produced before the first sample is taken.
const WARM_UP: Duration = Duration::from_secs(5);
/// One record in so many is looked for.
const SAMPLE: u64 = 20;
/// Between two looks: the precision of a figure.
const LOOK: Duration = Duration::from_millis(1);
const PATIENCE: Duration = Duration::from_secs(30);

/// What came of it.
pub struct Latency {
    pub p50_ms: f64,
    pub p99_ms: f64,
    /// What is wrong with the table; nothing where it is exact.
    pub wrong: Option<String>,
}

impl Bench {
    /// Runs an engine over a topic that gets `rate` records a second for so many seconds.
    pub async fn latency(&self, kind: Kind, topic: &str, table: &str) -> Result<Latency> {
        self.kafka.create_topic(topic).await?;
        let table = Arc::new(self.cassandra.create_table(table).await?);
        let mut engine = Engine::start(self, kind, topic, &table.name)?;
        let records = self.kafka.producer(topic, Duration::ZERO)?;
        let first = self.users.user(0);
        records.send(&first)?;
        while !table.has(first.id).await? {
            still_going(&mut engine).with_context(|| format!("{kind} has written no row"))?;
            tokio::time::sleep(LOOK).await;
        }
        let seconds = WARM_UP + Duration::from_secs(self.latency_seconds);
        let total = 1 + seconds.as_secs() * self.rate;
        let mut samples = self.produce_steadily(&records, &table, total).await?;
        samples.sort();
        let group = self.kafka.group(topic, &engine.group)?;
        committed(&group, &mut engine, total).await?;
        drop(engine);
        let wrong = table.differs(self.users, total).await?;
        self.kafka.delete_topic(topic).await?;
        Ok(Latency {
            p50_ms: percentile(&samples, 50),
            p99_ms: percentile(&samples, 99),
            wrong,
        })
    }

    /// Produces the users from the second on, and gives the samples' times.
    async fn produce_steadily(
        &self,
        records: &Records,
        table: &Arc<Table>,
        total: u64,
    ) -> Result<Vec<Duration>> {
        let mut samples = JoinSet::new();
        let started = Instant::now();
        for index in 1..total {
            let due = started + Duration::from_secs_f64(index as f64 / self.rate as f64);
            tokio::time::sleep_until(due.into()).await;
            let user = self.users.user(index);
            let sent = Instant::now();
            records.send(&user)?;
            if index % SAMPLE == 0 && sent - started > WARM_UP {
                samples.spawn(visible(Arc::clone(table), user.id, sent));
            }
        }
        let rate = total as f64 / started.elapsed().as_secs_f64();
        if rate < 0.95 * self.rate as f64 {
            bail!("this machine got no further than {rate:.0} records/s: try a lower --rate");
        }
        samples.join_all().await.into_iter().collect()
    }
}

/// The time from `sent` until a read finds the row.
async fn visible(table: Arc<Table>, id: Uuid, sent: Instant) -> Result<Duration> {
    while !table.has(id).await? {
        if sent.elapsed() > PATIENCE {
            bail!("row {id} was not there after {} s", PATIENCE.as_secs());
        }
        tokio::time::sleep(LOOK).await;
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
