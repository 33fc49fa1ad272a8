//! Groups of records: their states are folded in order, one batch after the other, and written side
//! by side. Where the states of a batch are more than memory has room for, some of its groups are
//! folded and written after the others.
//!
//! What holds: the state and the row that are written with a record's offset follow from the
//! records of the group up to that offset, and from nothing else. So it doesn't matter who writes
//! them, how often, or in how many batches the records came.

use std::{collections::HashMap, ops::Range, sync::Arc, time::Duration};

use anyhow::Context;
use datafusion::arrow::{
    array::{ArrayRef, RecordBatch, UInt64Array},
    compute::{concat_batches, filter_record_batch, not, take, take_record_batch},
    datatypes::Schema,
};
use futures::{StreamExt, stream::FuturesUnordered};
use millstream_api::keyspace::TableSpec;
use millstream_plan::{ExecError, Fold, SinkPlan};
use tokio::sync::{Mutex, Semaphore, SemaphorePermit};

use crate::{
    batch::{Batch, Rejected},
    budget::SinkMemory,
    sink::cassandra::{BoundRows, GroupKeys, StateTable, cell},
    stage::turn::{Held, Turn},
    state::{Cache, State},
    transform::Rows,
};

/// States that are read at once.
const READS: usize = 64;

/// The groups of a sink.
pub struct Groups {
    shape: Shape,
    states: StateTable,
    cache: Mutex<Cache>,
    /// Bytes of states that may be on their way, from being loaded until they are written.
    room: Semaphore,
    /// Bytes of states that are loaded and folded at once: half of that, so that others are written
    /// meanwhile.
    part: usize,
}

/// What the groups of a query are.
struct Shape {
    fold: Fold,
    keys: GroupKeys,
    /// Primary key columns of the fold's input.
    key_count: usize,
    base: i64,
    fingerprint: u64,
    /// Bytes that each state has at the least.
    least: usize,
}

impl Shape {
    fn new(plan: &SinkPlan, table: &TableSpec, base: i64, owner: &str) -> anyhow::Result<Self> {
        const NONE: &str = "the query has no groups";
        let fold = plan.fold().context(NONE)?;
        Ok(Shape {
            least: fold.least_state(),
            fold,
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
    let all = 0..work.groups.len();
    work.fold(all.clone())?;
    let folded = work.finish(all, 0)?;
    Ok((folded.rows, folded.rejected))
}

/// What a part of a batch changes.
pub struct Folded<'a> {
    /// The rows of the groups; the record of each is the last that is in it.
    pub rows: Vec<Rows>,
    /// Records that can't be taken up.
    pub rejected: Vec<Rejected>,
    states: BoundRows,
    /// Rows that aren't there any more.
    gone: BoundRows,
    part: u64,
    /// Room that the states take until they are written.
    room: Option<SemaphorePermit<'a>>,
}

/// A batch whose groups are folded part by part. In which part a group is makes no difference: a
/// state follows from its own records alone.
pub struct Folding<'a> {
    groups: &'a Groups,
    work: Work<'a>,
    /// Its turn, until it lets the batch behind go on.
    held: Option<Held>,
    /// The first group that isn't folded.
    next: usize,
    /// Whether all are. A batch without a group is folded once, too.
    folded: bool,
}

/// A group that a batch touches.
struct Group {
    key: Vec<u8>,
    partition: i32,
    state: Option<Arc<[u8]>>,
    /// The last record that is in the state.
    applied: Option<i64>,
    /// The row, of those of the batch, that is the last in the state.
    last: Option<usize>,
    changed: bool,
}

impl Groups {
    /// The groups of a plan by the primary key of a table, and their states; `owner` is whose these are.
    pub fn new(
        plan: &SinkPlan,
        table: &TableSpec,
        ttl_seconds: Option<u64>,
        states: StateTable,
        owner: &str,
        base: i64,
        memory: &SinkMemory,
    ) -> anyhow::Result<Self> {
        let ttl = ttl_seconds.map(Duration::from_secs);
        Ok(Groups {
            shape: Shape::new(plan, table, base, owner)?,
            states,
            cache: Mutex::new(Cache::new(memory.cache, ttl)),
            room: Semaphore::new(memory.states),
            part: memory.states / 2,
        })
    }

    /// Forgets all states that are at hand: a new consumer reads records again.
    pub async fn forget(&self) {
        self.cache.lock().await.clear();
    }

    /// Parts the rows of a batch into groups, and waits for its turn.
    pub async fn begin<'a>(
        &'a self,
        batch: &'a Batch,
        rows: &[Rows],
        turn: Turn,
    ) -> anyhow::Result<Folding<'a>> {
        let work = tokio::task::block_in_place(|| Work::new(&self.shape, batch, rows))?;
        Ok(Folding {
            groups: self,
            work,
            held: Some(turn.wait().await?),
            next: 0,
            folded: false,
        })
    }

    /// Writes the states of a part, then what `rows` writes: a row is never ahead of its state.
    pub async fn write<T>(
        &self,
        folded: Folded<'_>,
        rows: impl Future<Output = T>,
    ) -> anyhow::Result<T> {
        self.states.write(&folded.states).await?;
        drop(folded.states);
        let (written, gone) = futures::join!(rows, self.states.delete(&folded.gone));
        gone?;
        self.cache.lock().await.settle(folded.part);
        drop(folded.room);
        Ok(written)
    }
}

impl<'a> Folding<'a> {
    /// Folds the next groups, as many as there is room for; none where all are folded. What is given
    /// has to be written before more is asked for, as its room is needed.
    pub async fn next(&mut self) -> anyhow::Result<Option<Folded<'a>>> {
        if self.folded {
            return Ok(None);
        }
        let groups = self.groups;
        // A batch that was given up meanwhile ends here, and not with the cache of those after it.
        tokio::task::yield_now().await;
        let all = u32::try_from(groups.part).unwrap_or(u32::MAX);
        let mut room = groups.room.acquire_many(all).await?;
        let mut cache = groups.cache.lock().await;
        let read = move |key: Vec<u8>| async move { groups.states.read(&key).await };
        let part = load(&mut cache, &mut self.work, self.next, groups.part, read).await;
        let number = cache.begin();
        tokio::task::block_in_place(|| self.work.fold(part.clone()))?;
        self.work.keep(part.clone(), number, &mut cache);
        drop(cache);
        let spare = groups.part.saturating_sub(self.work.bytes(part.clone()));
        drop(room.split(spare));
        self.next = part.end;
        self.folded = self.next == self.work.groups.len();
        let mut folded = tokio::task::block_in_place(|| self.work.finish(part, number))?;
        folded.room = Some(room);
        Ok(Some(folded))
    }

    /// Lets the batch behind go on where all groups are folded. It writes later states of the same
    /// groups, and once those are there nobody looks again at what was rejected here: that has to
    /// be kept by then.
    pub fn pass(&mut self) {
        if self.folded
            && let Some(held) = self.held.take()
        {
            held.pass();
        }
    }
}

/// Loads the states of groups from one on, at hand or by reading them: so many that they take about
/// `room` bytes, but one at least. Tells which groups.
async fn load<R: Future<Output = Option<State>>>(
    cache: &mut Cache,
    work: &mut Work<'_>,
    start: usize,
    room: usize,
    read: impl Fn(Vec<u8>) -> R,
) -> Range<usize> {
    let (shape, batch) = (work.shape, work.batch);
    let bytes_of = |state: &Option<State>| {
        let bytes = state.as_ref().map_or(0, |state| state.bytes.len());
        bytes.max(shape.least)
    };
    let (mut end, mut bytes) = (start, 0);
    let mut reads = FuturesUnordered::new();
    loop {
        while end < work.groups.len() && reads.len() < READS {
            let likely = shape.least.max(cache.likely());
            let group = &mut work.groups[end];
            let cached = cache.get(&group.key, epoch(batch, group.partition));
            let expected = cached.as_ref().map_or(likely, bytes_of);
            if end > start && bytes + reads.len() * likely + expected > room {
                break;
            }
            match cached {
                Some(state) => {
                    bytes += bytes_of(&state);
                    group.take_up(state, shape.base);
                }
                None => {
                    let (index, state) = (end, read(group.key.clone()));
                    reads.push(async move { (index, state.await) });
                }
            }
            end += 1;
        }
        let Some((index, state)) = reads.next().await else {
            return start..end;
        };
        let group = &mut work.groups[index];
        bytes += bytes_of(&state);
        let epoch = epoch(batch, group.partition);
        cache.put(&group.key, epoch, None, state.clone());
        group.take_up(state, shape.base);
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
        self.rejected.push(Rejected::new(self.records[row], reason));
    }

    /// Folds what isn't in the states yet, of some of the groups.
    fn fold(&mut self, part: Range<usize>) -> anyhow::Result<()> {
        let mut new = Vec::with_capacity(self.records.len());
        for row in 0..self.records.len() {
            if !part.contains(&self.group_of[row]) {
                continue;
            }
            let group = &mut self.groups[self.group_of[row]];
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
        for (row, reason) in halved(&new, |rows| self.attempt(rows))? {
            self.reject(row, reason);
        }
        Ok(())
    }

    /// Folds rows; changes nothing where it fails. Of a record that was folded before it was replayed
    /// only the row is lacking: that is made of the state, if there is one.
    fn attempt(&mut self, rows: &[usize]) -> Result<(), ExecError> {
        if rows.is_empty() {
            return Ok(());
        }
        let mut touched = Vec::new();
        let mut places = vec![usize::MAX; self.groups.len()];
        let mut group_of = Vec::with_capacity(rows.len());
        let mut new = Vec::with_capacity(rows.len());
        for &row in rows {
            let group = self.group_of[row];
            let is_first = places[group] == usize::MAX;
            let has_state = !is_first || self.groups[group].state.is_some();
            if has_state && self.batch.records()[self.records[row]].is_folded() {
                continue;
            }
            if is_first {
                places[group] = touched.len();
                touched.push(group);
            }
            group_of.push(places[group]);
            new.push(row as u64);
        }
        let states: Vec<_> = touched
            .iter()
            .map(|&group| self.groups[group].state.as_deref())
            .collect();
        let states = match new.len() {
            0 => Vec::new(),
            all if all == self.rows.num_rows() => {
                self.shape.fold.fold(&self.rows, &group_of, &states)?
            }
            _ => {
                let rows = take_record_batch(&self.rows, &UInt64Array::from(new))
                    .map_err(|error| ExecError::Input(error.into()))?;
                self.shape.fold.fold(&rows, &group_of, &states)?
            }
        };
        for (group, state) in touched.into_iter().zip(states) {
            self.groups[group].state = Some(state);
        }
        for &row in rows {
            let group = &mut self.groups[self.group_of[row]];
            group.changed = true;
            group.last = Some(row);
            group.applied = Some(self.batch.records()[self.records[row]].offset);
        }
        Ok(())
    }

    /// Has the cache keep the states that are to be written.
    fn keep(&self, part: Range<usize>, number: u64, cache: &mut Cache) {
        let changed = self.groups[part].iter().filter(|group| group.changed);
        for group in changed {
            let epoch = epoch(self.batch, group.partition);
            let state = group.state(self.shape.base);
            cache.put(&group.key, epoch, Some(number), state);
        }
    }

    /// Bytes of the states of some groups.
    fn bytes(&self, part: Range<usize>) -> usize {
        let states = self.groups[part]
            .iter()
            .filter_map(|group| group.state.as_ref());
        states.map(|state| state.len()).sum()
    }

    /// Makes rows of the states of some groups, and what is to be written. These states aren't held
    /// any longer.
    fn finish(&mut self, part: Range<usize>, number: u64) -> anyhow::Result<Folded<'static>> {
        let mut folded = Folded {
            rows: Vec::new(),
            rejected: Vec::new(),
            states: BoundRows::default(),
            gone: BoundRows::default(),
            part: number,
            room: None,
        };
        let mut bytes = Vec::new();
        for group in &self.groups[part.clone()] {
            let (Some(state), Some(row), true) =
                (group.state(self.shape.base), group.last, group.changed)
            else {
                continue;
            };
            bytes.clear();
            cell(&mut bytes, |bytes| {
                state.encode(self.shape.fingerprint, bytes);
                Ok(())
            })
            .map_err(anyhow::Error::msg)?;
            let timestamp = self.shape.base + state.offset;
            let cells = [group.key.as_slice(), &bytes];
            folded
                .states
                .push(&cells, Some(timestamp), self.records[row]);
        }
        let shown: Vec<usize> = part
            .clone()
            .filter(|&group| self.groups[group].last.is_some())
            .collect();
        for (group, reason) in halved(&shown, |groups| self.results(groups, &mut folded))? {
            if let Some(row) = self.groups[group].last {
                self.rejected.push(Rejected {
                    folded: true,
                    ..Rejected::new(self.records[row], reason)
                });
            }
        }
        for group in &mut self.groups[part] {
            group.state = None;
        }
        folded.rejected = std::mem::take(&mut self.rejected);
        Ok(folded)
    }

    /// The rows of some groups.
    fn results(&self, shown: &[usize], folded: &mut Folded<'_>) -> Result<(), ExecError> {
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

/// Attempts something with rows or groups, and where it fails with each half of them, until the bad
/// ones stand alone: gives those, and why. Fails where it isn't their fault.
fn halved(
    all: &[usize],
    mut attempt: impl FnMut(&[usize]) -> Result<(), ExecError>,
) -> Result<Vec<(usize, String)>, ExecError> {
    let mut bad = Vec::new();
    let mut parts = vec![all];
    while let Some(part) = parts.pop() {
        match (attempt(part), part) {
            (Ok(()), _) => {}
            (Err(error @ (ExecError::Input(_) | ExecError::Spoilt)), _) => return Err(error),
            (Err(error), []) => return Err(error),
            (Err(error), [one]) => bad.push((*one, error.to_string())),
            (Err(_), several) => {
                let (first, second) = several.split_at(several.len() / 2);
                // The first half is on top: order is kept.
                parts.extend([second, first]);
            }
        }
    }
    Ok(bad)
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

#[cfg(test)]
mod tests;
