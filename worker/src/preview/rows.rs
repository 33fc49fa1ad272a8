//! Records through a sink's query, as in the process stage.

use anyhow::Context;
use bytes::Bytes;
use chrono::Utc;
use datafusion::arrow::{
    array::{BooleanArray, RecordBatch},
    compute::filter_record_batch,
};
use millstream_api::{keyspace::TableSpec, sink::Sink};
use millstream_plan::SinkPlan;

use crate::{
    batch::Batch,
    lookup::Joined,
    sink::cassandra::refused,
    stage::{groups::rows_of, key::Keys},
    transform::Transform,
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
}

impl Topic {
    /// Takes the records that the topic would take; gives the others with their reasons.
    pub fn of(records: &[Bytes], keys: &Keys) -> (Self, Vec<(usize, String)>) {
        let now = Some(Utc::now().timestamp_millis());
        let mut batches = vec![Batch::default()];
        let mut refused = Vec::new();
        for (index, record) in records.iter().enumerate() {
            if batches.last().is_none_or(Batch::is_full) {
                batches.push(Batch::default());
            }
            match (keys.admit(record), batches.last_mut()) {
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

    /// Runs the query of a sink over the records.
    pub fn through(
        &self,
        sink: &Sink,
        plan: &SinkPlan,
        joined: Joined,
        table: Option<&TableSpec>,
    ) -> anyhow::Result<SinkRows> {
        if plan.is_grouped() {
            return self.grouped(sink, plan, table);
        }
        let mut transform = Transform::new(plan)?.joining(joined);
        let mut rows = Vec::new();
        let mut rejected = Vec::new();
        for batch in &self.batches {
            let transformed = transform.run(batch)?;
            let unfit = match table.filter(|_| sink.cassandra.is_some()) {
                Some(table) => refused(plan, table, batch, &transformed.rows)?,
                None => Vec::new(),
            };
            for part in transformed.rows {
                let fits = |record: &usize| !unfit.iter().any(|unfit| unfit.record == *record);
                let fit: BooleanArray = part.records.iter().map(|r| Some(fits(r))).collect();
                rows.push(filter_record_batch(&part.columns, &fit)?);
            }
            for rejection in transformed.rejected.into_iter().chain(unfit) {
                let index = batch.records()[rejection.record].offset;
                rejected.push((usize::try_from(index)?, rejection.reason));
            }
        }
        Ok(self.seen(sink, rows, rejected))
    }

    /// Runs a query with groups, which are counted within one batch.
    fn grouped(
        &self,
        sink: &Sink,
        plan: &SinkPlan,
        table: Option<&TableSpec>,
    ) -> anyhow::Result<SinkRows> {
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
        let (rows, unfit) = rows_of(plan, table, &all, &transformed.rows)?;
        let rejected = transformed.rejected.into_iter().chain(unfit);
        let rejected = rejected.map(|rejection| {
            let index = all.records()[rejection.record].offset;
            Ok((usize::try_from(index)?, rejection.reason))
        });
        let rejected = rejected.collect::<anyhow::Result<_>>()?;
        let rows = rows.into_iter().map(|rows| rows.columns).collect();
        Ok(self.seen(sink, rows, rejected))
    }

    fn seen(
        &self,
        sink: &Sink,
        rows: Vec<RecordBatch>,
        mut rejected: Vec<(usize, String)>,
    ) -> SinkRows {
        rejected.sort_by_key(|(record, _)| *record);
        SinkRows {
            sink: sink.name.clone(),
            table: sink.place(),
            records: self.records,
            rows,
            rejected,
        }
    }
}
