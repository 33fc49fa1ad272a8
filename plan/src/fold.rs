//! Keeps groups up to date: folds records into their states, and makes rows of the states.
//!
//! A state is bytes, and bytes are all that is kept between batches. So what a state says follows
//! from the records alone: not from who folded them, when, or in how many batches.

use std::sync::Arc;

use datafusion::{
    arrow::{
        array::{
            Array, ArrayRef, AsArray, BooleanArray, RecordBatch, RecordBatchOptions, new_null_array,
        },
        datatypes::{Field, Schema, SchemaRef},
    },
    common::DataFusionError,
    logical_expr::{EmitTo, GroupsAccumulator},
    physical_expr::PhysicalExpr,
};

use crate::{
    execute::{ExecError, evaluate},
    group::Grouping,
    panics::caught,
};

/// Largest state of a group.
pub const MAX_STATE_BYTES: usize = 1024 * 1024;

/// What keeps the groups of a query. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Fold {
    grouping: Arc<Grouping>,
    exprs: Vec<Arc<dyn PhysicalExpr>>,
    result: SchemaRef,
}

/// The rows of groups.
#[derive(Debug)]
pub struct Results {
    /// The plan's result columns, a row for each group.
    pub columns: RecordBatch,
    /// The groups for which HAVING isn't true, and which have no row; none without a HAVING.
    pub absent: Option<BooleanArray>,
}

type Accumulators = Vec<Box<dyn GroupsAccumulator>>;

impl Fold {
    pub(crate) fn new(
        grouping: Arc<Grouping>,
        fields: Vec<Field>,
        exprs: Vec<Arc<dyn PhysicalExpr>>,
    ) -> Self {
        Fold {
            grouping,
            exprs,
            result: Arc::new(Schema::new(fields)),
        }
    }

    /// Folds rows, as the plan's executor gives them, into the states of their groups: `groups` is
    /// the index of each row's group in `states`, where a new group has none yet. Fails as a whole.
    pub fn fold(
        &self,
        rows: &RecordBatch,
        groups: &[usize],
        states: &[Option<&[u8]>],
    ) -> Result<Vec<Arc<[u8]>>, ExecError> {
        alive(|| self.try_fold(rows, groups, states))
    }

    fn try_fold(
        &self,
        rows: &RecordBatch,
        groups: &[usize],
        states: &[Option<&[u8]>],
    ) -> Result<Vec<Arc<[u8]>>, ExecError> {
        // Groups that have a state come first: the engine's accumulators take every group below the
        // number they are told for one that they have seen.
        let (mut order, new): (Vec<usize>, Vec<usize>) =
            (0..states.len()).partition(|group| states[*group].is_some());
        let known: Vec<_> = order.iter().filter_map(|group| states[*group]).collect();
        order.extend(new);
        let mut places = vec![0; order.len()];
        for (place, group) in order.iter().enumerate() {
            places[*group] = place;
        }
        let groups: Vec<_> = groups.iter().map(|group| places[*group]).collect();
        let mut accumulators = self.merged(&known).map_err(ExecError::Aggregate)?;
        self.update(&mut accumulators, rows, &groups, order.len())
            .map_err(ExecError::Aggregate)?;
        let mut folded = self.states(accumulators, order.len())?;
        let states: Vec<_> = places
            .iter()
            .map(|place| std::mem::take(&mut folded[*place]))
            .collect();
        match states.iter().map(|state| state.len()).max() {
            Some(bytes) if bytes > MAX_STATE_BYTES => Err(ExecError::State(bytes)),
            _ => Ok(states),
        }
    }

    /// Bytes of the state of a group whose record says nothing: no state has less. Nothing where
    /// that can't be told.
    pub fn least_state(&self) -> usize {
        let fields = self.grouping.input_fields();
        let columns = fields.iter();
        let columns = columns.map(|field| new_null_array(field.data_type(), 1));
        let columns = columns.collect();
        let rows = RecordBatch::try_new(Arc::new(Schema::new(fields)), columns);
        let states = rows.map(|rows| self.fold(&rows, &[0], &[None]));
        match states {
            Ok(Ok(states)) => states.iter().map(|state| state.len()).sum(),
            _ => 0,
        }
    }

    /// Accumulators that have taken up states, the first groups'.
    fn merged(&self, states: &[&[u8]]) -> Result<Accumulators, DataFusionError> {
        let mut accumulators = Vec::with_capacity(self.grouping.aggregates.len());
        if self.grouping.aggregates.is_empty() {
            return Ok(accumulators);
        }
        let groups: Vec<_> = (0..states.len()).collect();
        let parser = self.grouping.states.parser();
        let rows = states.iter().map(|state| parser.parse(state));
        let mut columns = self.grouping.states.convert_rows(rows)?.into_iter();
        for aggregate in &self.grouping.aggregates {
            let mut accumulator = aggregate.accumulator()?;
            let columns: Vec<_> = columns.by_ref().take(aggregate.states()).collect();
            if !groups.is_empty() {
                accumulator.merge_batch(&columns, &groups, states.len())?;
            }
            accumulators.push(accumulator);
        }
        Ok(accumulators)
    }

    fn update(
        &self,
        accumulators: &mut Accumulators,
        rows: &RecordBatch,
        groups: &[usize],
        total: usize,
    ) -> Result<(), DataFusionError> {
        let mut columns = rows.columns().iter().skip(self.grouping.keys.len());
        let aggregates = self.grouping.aggregates.iter().zip(accumulators);
        for (aggregate, accumulator) in aggregates {
            let inputs: Vec<_> = columns.by_ref().take(aggregate.inputs()).cloned().collect();
            let filter = columns.by_ref().take(usize::from(aggregate.has_filter()));
            let filter = filter.last().and_then(|filter| filter.as_boolean_opt());
            accumulator.update_batch(&inputs, groups, filter, total)?;
        }
        Ok(())
    }

    fn states(
        &self,
        accumulators: Accumulators,
        total: usize,
    ) -> Result<Vec<Arc<[u8]>>, ExecError> {
        if accumulators.is_empty() {
            return Ok(vec![Arc::default(); total]);
        }
        let mut columns: Vec<ArrayRef> = Vec::new();
        for mut accumulator in accumulators {
            let state = accumulator.state(EmitTo::All);
            columns.extend(state.map_err(ExecError::Aggregate)?);
        }
        let rows = self.grouping.states.convert_columns(&columns);
        let rows = rows.map_err(|error| ExecError::Input(error.into()))?;
        Ok(rows.iter().map(|row| row.as_ref().into()).collect())
    }

    /// The rows of groups, of their keys and their states. Fails as a whole.
    pub fn results(&self, keys: &[ArrayRef], states: &[&[u8]]) -> Result<Results, ExecError> {
        alive(|| self.try_results(keys, states))
    }

    fn try_results(&self, keys: &[ArrayRef], states: &[&[u8]]) -> Result<Results, ExecError> {
        let outputs = self.outputs(keys, states).map_err(ExecError::Aggregate)?;
        let absent = match &self.grouping.having {
            Some(having) => Some(absent(having.as_ref(), &outputs).map_err(ExecError::Having)?),
            None => None,
        };
        let mut columns = Vec::with_capacity(self.exprs.len());
        for (expr, field) in self.exprs.iter().zip(self.result.fields()) {
            let column = evaluate(expr.as_ref(), &outputs);
            columns.push(column.map_err(|source| ExecError::Column {
                column: field.name().clone(),
                source,
            })?);
        }
        let columns = RecordBatch::try_new(Arc::clone(&self.result), columns);
        Ok(Results {
            columns: columns.map_err(|error| ExecError::Input(error.into()))?,
            absent,
        })
    }

    /// Keys and results of the aggregates.
    fn outputs(&self, keys: &[ArrayRef], states: &[&[u8]]) -> Result<RecordBatch, DataFusionError> {
        let mut columns = keys.to_vec();
        for mut accumulator in self.merged(states)? {
            columns.push(accumulator.evaluate(EmitTo::All)?);
        }
        let options = RecordBatchOptions::new().with_row_count(Some(states.len()));
        let schema = Arc::clone(self.grouping.outputs());
        Ok(RecordBatch::try_new_with_options(
            schema, columns, &options,
        )?)
    }
}

/// What reads the bytes of states trusts them, and panics at those that nobody wrote.
fn alive<T>(work: impl FnOnce() -> Result<T, ExecError>) -> Result<T, ExecError> {
    caught(work).unwrap_or(Err(ExecError::Spoilt))
}

/// Where a condition isn't true.
fn absent(
    having: &dyn PhysicalExpr,
    outputs: &RecordBatch,
) -> Result<BooleanArray, DataFusionError> {
    let holds = evaluate(having, outputs)?;
    let Some(holds) = holds.as_boolean_opt() else {
        return Err(DataFusionError::Internal("HAVING isn't a condition".into()));
    };
    let absent = (0..holds.len()).map(|group| !(holds.is_valid(group) && holds.value(group)));
    Ok(absent.collect::<Vec<bool>>().into())
}
