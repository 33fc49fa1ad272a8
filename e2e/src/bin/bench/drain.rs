//! Throughput: a full topic, an empty table, and the time until the lag is zero.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::{
    Bench,
    engine::{Engine, Kind},
    kafka::Group,
};

const POLL: Duration = Duration::from_millis(10);
/// For an engine that doesn't get any further.
const PATIENCE: Duration = Duration::from_secs(300);

/// What came of it.
pub struct Drained {
    pub records_per_s: f64,
    pub client_cpu_s_per_million: f64,
    pub peak_rss_mb: f64,
    pub first_row_s: f64,
    /// What is wrong with the table; nothing where it is exact.
    pub wrong: Option<String>,
}

impl Bench {
    /// Runs an engine over the topic, from its start to a lag of zero.
    pub async fn drain(&self, kind: Kind, topic: &str, table: &str) -> Result<Drained> {
        let table = self.cassandra.create_table(table).await?;
        let mut engine = Engine::start(self, kind, topic, &table.name)?;
        while !table.has_rows().await? {
            still_going(&mut engine).with_context(|| format!("{kind} has written no row"))?;
            tokio::time::sleep(POLL).await;
        }
        let first_row = engine.started.elapsed();
        let group = self.kafka.group(topic, &engine.group)?;
        let whole = committed(&group, &mut engine, self.records)
            .await
            .with_context(|| format!("{kind} is not done"))?
            - engine.started;
        let usage = engine.usage()?;
        drop(engine);
        let records = self.records as f64;
        Ok(Drained {
            records_per_s: records / whole.as_secs_f64(),
            client_cpu_s_per_million: usage.cpu_seconds / records * 1e6,
            peak_rss_mb: usage.peak_rss_mb,
            first_row_s: first_row.as_secs_f64(),
            wrong: table.differs(self.users, self.records).await?,
        })
    }
}

/// Waits until the group has committed so many records, and says when that was.
pub async fn committed(group: &Group, engine: &mut Engine, records: u64) -> Result<Instant> {
    loop {
        let committed = group.committed()?;
        if committed >= i64::try_from(records)? {
            return Ok(Instant::now());
        }
        still_going(engine)
            .with_context(|| format!("{committed} of {records} records are committed"))?;
        tokio::time::sleep(POLL).await;
    }
}

/// An error once the engine has ended, or has had more time than any needs.
pub fn still_going(engine: &mut Engine) -> Result<()> {
    engine.check()?;
    if engine.started.elapsed() > PATIENCE {
        let seconds = PATIENCE.as_secs();
        bail!("not within {seconds} s; it says: {}", engine.last_words());
    }
    Ok(())
}
