//! Records through a sink's query, as in the process stage.

use anyhow::Context;
use bytes::Bytes;
use chrono::Utc;
use datafusion::arrow::{
    array::{BooleanArray, RecordBatch},
    compute::filter_record_batch,
};
use millstream_api::{
    sink::Sink,
    worker::{Destination, SinkConfig},
};
use millstream_plan::{Expectations, SinkPlan};

use crate::{
    avro::encode::Encode,
    batch::{Batch, Rejected},
    lookup::Joined,
    sink::{cassandra, delta, document},
    stage::{groups::rows_of, key::Keys},
    transform::{Rows, Transform},
};

/// Records of one batch, in which groups are counted.
const GROUPED_RECORDS: usize = 10_000;

/// The topic as it would be: one partition with the records in their order.
pub struct Topic {
    batches: Vec<Batch>,
    records: usize,
}

/// What a sink makes of the records.
pub struct SinkRows {
    pub sink: String,
    /// Where the rows would go, for people.
    pub table: String,
    /// Records that it read.
    pub records: usize,
    pub rows: Vec<RecordBatch>,
    /// Records that would go to the dead letter: their index, and why.
    pub rejected: Vec<(usize, String)>,
    /// Names of the expectations, and how many rows failed each.
    pub expectations: Vec<(String, usize)>,
    /// Why the sink would stand still before it has read all records.
    pub stopped: Option<String>,
}

impl Topic {
    /// Takes the records that the topic would take; gives the others with their reasons. An encoder
    /// is given where they have to be encoded.
    pub fn of(
        records: &[Bytes],
        keys: &Keys,
        encode: Option<Encode>,
    ) -> (Self, Vec<(usize, String)>) {
        let now = Some(Utc::now().timestamp_millis());
        let encoded = encode.map(|mut encode| encode.encode(records));
        let mut encoded = encoded.into_iter().flatten();
        let mut batches = vec![Batch::default()];
        let mut refused = Vec::new();
        for (index, record) in records.iter().enumerate() {
            let encoded = encoded.next().transpose();
            if batches.last().is_none_or(Batch::is_full) {
                batches.push(Batch::default());
            }
            let admitted = keys.admit(record).and_then(|key| encoded.map(|_| key));
            match (admitted, batches.last_mut()) {
                (Ok(key), Some(batch)) => {
                    let key = key.as_deref().map(str::as_bytes);
                    batch.push_record(0, index as i64, now, key, Some(record));
                }
                (Err(reason), _) => refused.push((index, reason)),
                (Ok(_), None) => {}
            }
        }
        let records = records.len() - refused.len();
        (Topic { batches, records }, refused)
    }

    /// Runs the query of a sink over the records. Where the operator wouldn't take the sink, there is
    /// no configuration of it.
    pub fn through(
        &self,
        sink: &Sink,
        plan: &SinkPlan,
        joined: Joined,
        config: Option<&SinkConfig>,
    ) -> anyhow::Result<SinkRows> {
        if plan.is_grouped() {
            return self.grouped(sink, plan, config);
        }
        let expectations = Expectations::new(plan, &sink.expectations)?;
        let mut transform = Transform::new(plan)?
            .joining(joined)
            .expecting(expectations.clone());
        let mut seen = self.nothing(sink);
        let mut failed = vec![0; expectations.rules().len()];
        for batch in &self.batches {
            let transformed = transform.run(batch)?;
            let unfit = refused(plan, config, batch, &transformed.rows)?;
            seen.take(batch, transformed.rows, unfit)?;
            seen.reject(batch, transformed.rejected)?;
            for failure in transformed.failed {
                failed[failure.rule] += 1;
            }
            if let Some(stop) = transformed.stop {
                seen.stopped = Some(stop.reason);
                break;
            }
        }
        let names = expectations.rules().iter().map(|rule| rule.name.clone());
        seen.expectations = names.zip(failed).collect();
        Ok(seen)
    }

    /// Runs a query with groups, which are counted within one batch.
    fn grouped(
        &self,
        sink: &Sink,
        plan: &SinkPlan,
        config: Option<&SinkConfig>,
    ) -> anyhow::Result<SinkRows> {
        let table = config.and_then(SinkConfig::cassandra);
        let table = table.context("the groups' rows need the table's primary key: give cassandra.primaryKey, or the Keyspace that declares the table, or mend what the note says")?;
        anyhow::ensure!(
            self.records <= GROUPED_RECORDS,
            "groups are previewed over {GROUPED_RECORDS} records at most: give a smaller --limit"
        );
        let mut all = Batch::default();
        for batch in &self.batches {
            for record in batch.records() {
                let (key, value) = (batch.key(record), batch.value(record));
                all.push_record(0, record.offset, record.timestamp, key, value);
            }
        }
        let transformed = Transform::new(plan)?.run(&all)?;
        let (rows, unfit) = rows_of(plan, &table.table, &all, &transformed.rows)?;
        let mut seen = self.nothing(sink);
        seen.reject(&all, transformed.rejected)?;
        seen.reject(&all, unfit)?;
        let unfit = refused(plan, config, &all, &rows)?;
        seen.take(&all, rows, unfit)?;
        Ok(seen)
    }

    fn nothing(&self, sink: &Sink) -> SinkRows {
        SinkRows {
            sink: sink.name.clone(),
            table: sink.place(),
            records: self.records,
            rows: Vec::new(),
            rejected: Vec::new(),
            expectations: Vec::new(),
            stopped: None,
        }
    }
}

impl SinkRows {
    /// Takes the rows that fit where they go, and notes the others.
    fn take(&mut self, batch: &Batch, rows: Vec<Rows>, unfit: Vec<Rejected>) -> anyhow::Result<()> {
        for part in rows {
            let fits = |record: &usize| !unfit.iter().any(|unfit| unfit.record == *record);
            let fit: BooleanArray = part.records.iter().map(|r| Some(fits(r))).collect();
            self.rows.push(filter_record_batch(&part.columns, &fit)?);
        }
        self.reject(batch, unfit)
    }

    /// Takes note of what is rejected of a batch.
    fn reject(&mut self, batch: &Batch, rejected: Vec<Rejected>) -> anyhow::Result<()> {
        for rejection in rejected {
            let index = usize::try_from(batch.records()[rejection.record].offset)?;
            self.rejected.push((index, rejection.reason));
        }
        self.rejected.sort_by_key(|(record, _)| *record);
        Ok(())
    }
}

/// The records whose rows wouldn't fit where they go, as far as that can be told without asking.
fn refused(
    plan: &SinkPlan,
    config: Option<&SinkConfig>,
    batch: &Batch,
    rows: &[Rows],
) -> anyhow::Result<Vec<Rejected>> {
    match config.map(|config| &config.destination) {
        Some(Destination::Cassandra(to)) => cassandra::refused(plan, &to.table, batch, rows),
        Some(Destination::Delta(to)) => delta::refused(plan, &to.sink, batch, rows),
        Some(Destination::Document(to)) => document::refused(plan, to, batch, rows),
        None => Ok(Vec::new()),
    }
}
