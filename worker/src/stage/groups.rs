//! Groups of records: their states are folded in order, one batch after the other, and written side
//! by side.
//!
//! What holds: the state and the row that are written with a record's offset follow from the
//! records of the group up to that offset, and from nothing else. So it doesn't matter who writes
//! them, how often, or in how many batches the records came.

use std::{collections::HashMap, sync::Arc, time::Duration};

use anyhow::Context;
use datafusion::arrow::{
    array::{ArrayRef, RecordBatch, UInt64Array},
    compute::{concat_batches, filter_record_batch, not, take, take_record_batch},
    datatypes::Schema,
};
use millstream_api::keyspace::TableSpec;
use millstream_plan::{ExecError, Fold, SinkPlan};
use tokio::sync::Mutex;

use crate::{
    batch::{Batch, Rejected},
    sink::cassandra::{BoundRows, GroupKeys, StateTable},
    stage::turn::Turn,
    state::{Cache, State},
    transform::Rows,
};

/// Bytes of states that are at hand, for a sink.
const CACHE_BYTES: usize = 32 * 1024 * 1024;

/// The groups of a sink.
pub struct Groups {
    shape: Shape,
    table: StateTable,
    cache: Mutex<Cache>,
}

/// What the groups of a query are.
struct Shape {
    fold: Fold,
    keys: GroupKeys,
    /// Primary key columns of the fold's input.
    key_count: usize,
    base: i64,
    fingerprint: u64,
}

impl Shape {
    fn new(plan: &SinkPlan, table: &TableSpec, base: i64, owner: &str) -> anyhow::Result<Self> {
        const NONE: &str = "the query has no groups";
        Ok(Shape {
            fold: plan.fold().context(NONE)?,
            keys: GroupKeys::new(plan, table)?,
            key_count: plan.group_keys(),
            base,
            fingerprint: plan.state_fingerprint(owner).context(NONE)?,
        })
    }
}

/// The rows of all groups in a batch, as if there were none before it.
pub fn rows_of(
    plan: &SinkPlan,
    table: &TableSpec,
    batch: &Batch,
    rows: &[Rows],
) -> anyhow::Result<(Vec<Rows>, Vec<Rejected>)> {
    let shape = Shape::new(plan, table, 0, "")?;
    let mut work = Work::new(&shape, batch, rows)?;
    work.fold()?;
    let folded = work.finish(0)?;
    Ok((folded.rows, folded.rejected))
}

/// What a batch changes.
pub struct Folded {
    /// The rows of the groups; the record of each is the last that is in it.
    pub rows: Vec<Rows>,
    /// Records that can't be taken up.
    pub rejected: Vec<Rejected>,
    states: BoundRows,
    /// Rows that aren't there any more.
    gone: BoundRows,
    batch: u64,
}

/// A group that a batch touches.
struct Group {
    key: Vec<u8>,
    partition: i32,
    state: Option<Box<[u8]>>,
    /// The last record that is in the state.
    applied: Option<i64>,
    /// The row, of those of the batch, that is the last in the state.
    last: Option<usize>,
    changed: bool,
}

impl Groups {
    /// The groups of a plan, with their states in the table. `owner` is whose they are.
    pub fn new(
        plan: &SinkPlan,
        rows: &TableSpec,
        ttl_seconds: Option<u64>,
        table: StateTable,
        owner: &str,
        base: i64,
    ) -> anyhow::Result<Self> {
        let ttl = ttl_seconds.map(Duration::from_secs);
        Ok(Groups {
            shape: Shape::new(plan, rows, base, owner)?,
            table,
            cache: Mutex::new(Cache::new(CACHE_BYTES, ttl)),
        })
    }

    /// Forgets all states that are at hand: a new consumer reads records again.
    pub async fn forget(&self) {
        self.cache.lock().await.clear();
    }

    /// Folds the rows of a batch, when it is its turn.
    pub async fn fold(&self, batch: &Batch, rows: &[Rows], turn: Turn) -> anyhow::Result<Folded> {
        let mut work = tokio::task::block_in_place(|| Work::new(&self.shape, batch, rows))?;
        let held = turn.wait().await?;
        let mut cache = self.cache.lock().await;
        self.load(&mut cache, batch, &mut work).await;
        let number = cache.begin();
        tokio::task::block_in_place(|| work.fold())?;
        for group in work.groups.iter().filter(|group| group.changed) {
            let epoch = epoch(batch, group.partition);
            cache.put(
                &group.key,
                epoch,
                Some(number),
                group.state(self.shape.base),
            );
        }
        drop(cache);
        held.pass();
        tokio::task::block_in_place(|| work.finish(number))
    }

    /// Finds the states of the groups, at hand or in the table.
    async fn load(&self, cache: &mut Cache, batch: &Batch, work: &mut Work<'_>) {
        let mut missing = Vec::new();
        for (index, group) in work.groups.iter_mut().enumerate() {
            match cache.get(&group.key, epoch(batch, group.partition)) {
                Some(state) => group.take_up(state, self.shape.base),
                None => missing.push(index),
            }
        }
        let keys: Vec<&[u8]> = missing
            .iter()
            .map(|&index| work.groups[index].key.as_slice())
            .collect();
        let states = self.table.read(&keys).await;
        for (index, state) in missing.into_iter().zip(states) {
            let group = &mut work.groups[index];
            cache.put(
                &group.key,
                epoch(batch, group.partition),
                None,
                state.clone(),
            );
            group.take_up(state, self.shape.base);
        }
    }

    /// Writes the states of a batch, then what `rows` writes: a row is never ahead of its state.
    pub async fn write<T>(
        &self,
        folded: &Folded,
        rows: impl Future<Output = T>,
    ) -> anyhow::Result<T> {
        self.table.write(&folded.states).await?;
        let (written, gone) = futures::join!(rows, self.table.delete(&folded.gone));
        gone?;
        self.cache.lock().await.settle(folded.batch);
        Ok(written)
    }
}

fn epoch(batch: &Batch, partition: i32) -> u64 {
    batch.ends().get(&partition).map_or(0, |end| end.epoch)
}

impl Group {
    fn take_up(&mut self, state: Option<State>, base: i64) {
        let Some(state) = state else {
            return;
        };
        self.applied = match state.base.cmp(&base) {
            std::cmp::Ordering::Equal => {
                self.partition = state.partition;
                Some(state.offset)
            }
            // Of a topic that was before this one: all that is in this one is new.
            std::cmp::Ordering::Less => None,
            // This worker is of a topic that was before: whatever it writes is older.
            std::cmp::Ordering::Greater => Some(i64::MAX),
        };
        self.state = Some(state.bytes);
    }

    fn state(&self, base: i64) -> Option<State> {
        Some(State {
            base,
            partition: self.partition,
            offset: self.applied?,
            bytes: self.state.clone()?,
        })
    }
}

/// A batch on its way.
struct Work<'a> {
    shape: &'a Shape,
    batch: &'a Batch,
    rows: RecordBatch,
    /// For every row, its record.
    records: Vec<usize>,
    /// For every row, its group.
    group_of: Vec<usize>,
    groups: Vec<Group>,
    rejected: Vec<Rejected>,
}

impl<'a> Work<'a> {
    /// Parts the rows into groups.
    fn new(shape: &'a Shape, batch: &'a Batch, rows: &[Rows]) -> anyhow::Result<Self> {
        let mut work = Work {
            shape,
            batch,
            rows: match rows {
                [] => RecordBatch::new_empty(Arc::new(Schema::empty())),
                [rows] => rows.columns.clone(),
                several => concat_batches(
                    &several[0].columns.schema(),
                    several.iter().map(|rows| &rows.columns),
                )?,
            },
            records: rows
                .iter()
                .flat_map(|rows| &rows.records)
                .copied()
                .collect(),
            group_of: Vec::new(),
            groups: Vec::new(),
            rejected: Vec::new(),
        };
        let mut known: HashMap<Vec<u8>, usize> = HashMap::new();
        for (row, key) in shape.keys.encode(&work.rows).into_iter().enumerate() {
            let partition = batch.records()[work.records[row]].partition;
            let group = match key {
                Ok(key) => *known.entry(key).or_insert_with_key(|key| {
                    work.groups.push(Group::new(key.clone(), partition));
                    work.groups.len() - 1
                }),
                Err(reason) => {
                    work.reject(row, reason);
                    usize::MAX
                }
            };
            work.group_of.push(group);
        }
        Ok(work)
    }

    fn reject(&mut self, row: usize, reason: String) {
        let record = self.records[row];
        self.rejected.push(Rejected { record, reason });
    }

    /// Folds what isn't in the states yet.
    fn fold(&mut self) -> anyhow::Result<()> {
        let mut new = Vec::with_capacity(self.records.len());
        for row in 0..self.records.len() {
            let Some(group) = self.groups.get_mut(self.group_of[row]) else {
                continue;
            };
            let record = &self.batch.records()[self.records[row]];
            if record.partition != group.partition {
                let reason = format!(
                    "the group's records come from the partitions {} and {} of the topic: key the topic by a field that has one spelling for each group",
                    group.partition, record.partition
                );
                self.reject(row, reason);
            } else if group.applied.is_none_or(|applied| record.offset > applied) {
                new.push(row);
            } else if group.applied == Some(record.offset) {
                // The state has it, but whoever wrote that may not have come to the row.
                group.last = Some(row);
            }
        }
        let mut ranges = vec![new.as_slice()];
        while let Some(range) = ranges.pop() {
            match self.attempt(range) {
                Ok(()) => {}
                Err(ExecError::Input(error)) => return Err(error.into()),
                Err(error) => match range {
                    [] => return Err(error.into()),
                    [row] => self.reject(*row, error.to_string()),
                    rows => {
                        let (first, second) = rows.split_at(rows.len() / 2);
                        // The first half is on top: order is kept.
                        ranges.extend([second, first]);
                    }
                },
            }
        }
        Ok(())
    }

    /// Folds rows; changes nothing where it fails.
    fn attempt(&mut self, rows: &[usize]) -> Result<(), ExecError> {
        if rows.is_empty() {
            return Ok(());
        }
        let mut touched = Vec::new();
        let mut places = vec![usize::MAX; self.groups.len()];
        let mut group_of = Vec::with_capacity(rows.len());
        for &row in rows {
            let group = self.group_of[row];
            if places[group] == usize::MAX {
                places[group] = touched.len();
                touched.push(group);
            }
            group_of.push(places[group]);
        }
        let states: Vec<_> = touched
            .iter()
            .map(|&group| self.groups[group].state.as_deref())
            .collect();
        let states = match rows.len() == self.rows.num_rows() {
            true => self.shape.fold.fold(&self.rows, &group_of, &states)?,
            false => {
                let indices = UInt64Array::from_iter_values(rows.iter().map(|&row| row as u64));
                let rows = take_record_batch(&self.rows, &indices)
                    .map_err(|error| ExecError::Input(error.into()))?;
                self.shape.fold.fold(&rows, &group_of, &states)?
            }
        };
        for (group, state) in touched.into_iter().zip(states) {
            let group = &mut self.groups[group];
            group.state = Some(state);
            group.changed = true;
        }
        for &row in rows {
            let group = &mut self.groups[self.group_of[row]];
            group.last = Some(row);
            group.applied = Some(self.batch.records()[self.records[row]].offset);
        }
        Ok(())
    }

    /// Makes rows of the states, and what is to be written.
    fn finish(mut self, batch: u64) -> anyhow::Result<Folded> {
        let mut folded = Folded {
            rows: Vec::new(),
            rejected: Vec::new(),
            states: BoundRows::default(),
            gone: BoundRows::default(),
            batch,
        };
        let mut cell = Vec::new();
        for group in &self.groups {
            let (Some(state), Some(row), true) =
                (group.state(self.shape.base), group.last, group.changed)
            else {
                continue;
            };
            cell.clear();
            cell.extend([0; 4]);
            state.encode(self.shape.fingerprint, &mut cell);
            let length = i32::try_from(cell.len() - 4).context("the state is too large")?;
            cell[..4].copy_from_slice(&length.to_be_bytes());
            let timestamp = self.shape.base + state.offset;
            let cells = [group.key.as_slice(), &cell];
            folded
                .states
                .push(&cells, Some(timestamp), self.records[row]);
        }
        let shown: Vec<usize> = (0..self.groups.len())
            .filter(|&group| self.groups[group].last.is_some())
            .collect();
        let mut ranges = vec![shown.as_slice()];
        while let Some(range) = ranges.pop() {
            match self.results(range, &mut folded) {
                Ok(()) => {}
                Err(ExecError::Input(error)) => return Err(error.into()),
                Err(error) => match range {
                    [] => return Err(error.into()),
                    [group] => {
                        if let Some(row) = self.groups[*group].last {
                            self.reject(row, error.to_string());
                        }
                    }
                    several => {
                        let (first, second) = several.split_at(several.len() / 2);
                        ranges.extend([second, first]);
                    }
                },
            }
        }
        folded.rejected = self.rejected;
        Ok(folded)
    }

    /// The rows of some groups.
    fn results(&self, shown: &[usize], folded: &mut Folded) -> Result<(), ExecError> {
        let shown = shown.iter().map(|&group| &self.groups[group]);
        let (last, states): (Vec<usize>, Vec<&[u8]>) = shown
            .clone()
            .filter_map(|group| Some((group.last?, group.state.as_deref()?)))
            .unzip();
        if last.is_empty() {
            return Ok(());
        }
        let input = |error: datafusion::arrow::error::ArrowError| ExecError::Input(error.into());
        let indices = UInt64Array::from_iter_values(last.iter().map(|&row| row as u64));
        let keys = self.rows.columns().iter().take(self.shape.key_count);
        let keys = keys.map(|key| take(key, &indices, None).map_err(input));
        let keys = keys.collect::<Result<Vec<ArrayRef>, _>>()?;
        let results = self.shape.fold.results(&keys, &states)?;
        let records: Vec<usize> = last.iter().map(|&row| self.records[row]).collect();
        let Some(absent) = results.absent else {
            folded.rows.push(Rows {
                columns: results.columns,
                records,
            });
            return Ok(());
        };
        let present = not(&absent).map_err(input)?;
        let columns = filter_record_batch(&results.columns, &present).map_err(input)?;
        let mut kept = Vec::with_capacity(columns.num_rows());
        for ((group, record), absent) in shown.zip(records).zip(&absent) {
            if absent != Some(true) {
                kept.push(record);
                continue;
            }
            let timestamp = self.shape.base + self.batch.records()[record].offset;
            let mut cell = 8_i32.to_be_bytes().to_vec();
            cell.extend(timestamp.to_be_bytes());
            folded.gone.push(&[&cell, &group.key], None, record);
        }
        folded.rows.push(Rows {
            columns,
            records: kept,
        });
        Ok(())
    }
}

impl Group {
    fn new(key: Vec<u8>, partition: i32) -> Self {
        Group {
            key,
            partition,
            state: None,
            applied: None,
            last: None,
            changed: false,
        }
    }
}
