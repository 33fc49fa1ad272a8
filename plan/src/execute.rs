//! Runs a sink's query over batches of records.

use std::sync::Arc;

use datafusion::{
    arrow::{
        array::{ArrayRef, AsArray, RecordBatch, UInt32Array},
        compute::{filter, filter_record_batch},
        datatypes::{DataType, Field, Schema, SchemaRef},
        error::ArrowError,
    },
    common::DataFusionError,
    physical_expr::PhysicalExpr,
};
use thiserror::Error;

use crate::{
    engine::in_words,
    fold::MAX_STATE_BYTES,
    input::{Inputs, ROW_COLUMN},
    join::Join,
    lookup::Lookups,
    panics::caught,
};

/// A batch that a query can't be run over. It is the records' fault, or one record's, unless it is
/// [`Input`](ExecError::Input) or [`Spoilt`](ExecError::Spoilt): smaller batches find out which.
#[derive(Debug, Error)]
pub enum ExecError {
    /// The expression of a result column failed, such as a CAST of text that isn't a number.
    #[error("column `{column}`: {}", in_words(.source))]
    Column {
        column: String,
        source: DataFusionError,
    },
    /// A record can't be taken into the aggregates of its group.
    #[error("{}", in_words(.0))]
    Aggregate(#[source] DataFusionError),
    /// The state of a group would be too large.
    #[error(
        "the state of the record's group would have {0} bytes, the limit is {MAX_STATE_BYTES}; an aggregate that doesn't keep every value, such as approx_distinct, has a small one"
    )]
    State(usize),
    /// The engine panicked at what is kept of a group.
    #[error(
        "the state of a group was spoilt where it is kept, as the engine can't read it (the log says where it gave up); let a sink of a new name write into a new table"
    )]
    Spoilt,
    /// The HAVING failed.
    #[error("HAVING: {}", in_words(.0))]
    Having(#[source] DataFusionError),
    /// What a lookup is asked for can't be computed.
    #[error("JOIN {lookup}: {}", in_words(.source))]
    Join {
        lookup: String,
        source: DataFusionError,
    },
    /// The WHERE failed.
    #[error("WHERE: {}", in_words(.0))]
    Condition(#[source] DataFusionError),
    /// The batch hasn't the columns of the plan's input schema.
    #[error("{}", in_words(.0))]
    Input(#[source] DataFusionError),
}

/// A sink's query, run over one batch at a time. Keeps nothing from batch to batch.
#[derive(Clone, Debug)]
pub struct SinkExecutor {
    inputs: Inputs,
    joins: Vec<Join>,
    lookups: Lookups,
    condition: Option<Arc<dyn PhysicalExpr>>,
    exprs: Vec<Arc<dyn PhysicalExpr>>,
    result: SchemaRef,
}

impl SinkExecutor {
    pub(crate) fn new(
        inputs: Inputs,
        joins: Vec<Join>,
        condition: Option<Arc<dyn PhysicalExpr>>,
        mut fields: Vec<Field>,
        exprs: Vec<Arc<dyn PhysicalExpr>>,
    ) -> Self {
        fields.push(Field::new(ROW_COLUMN, DataType::UInt32, false));
        SinkExecutor {
            inputs,
            joins,
            lookups: Lookups::new(),
            condition,
            exprs,
            result: Arc::new(Schema::new(fields)),
        }
    }

    /// What [`execute`](Self::execute) gives: the plan's columns, then [`ROW_COLUMN`].
    pub fn result_schema(&self) -> &SchemaRef {
        &self.result
    }

    /// Gives the executor the lookups that the query joins, as they are now.
    pub fn set_lookups(&mut self, lookups: Lookups) {
        self.lookups = lookups;
    }

    /// Runs the query. Takes the columns of the plan's input schema, in any order and with others
    /// beside them. Rows keep their order. One failing value fails the batch.
    pub fn execute(&self, batch: &RecordBatch) -> Result<RecordBatch, ExecError> {
        let input = self.inputs.flatten(batch).map_err(ExecError::Input)?;
        let rows = u32::try_from(input.num_rows()).map_err(|_| {
            let problem = DataFusionError::Execution("a batch of more than 2^32 rows".into());
            ExecError::Input(problem)
        })?;
        let rows: ArrayRef = Arc::new(UInt32Array::from_iter_values(0..rows));
        let (input, rows) = self.join(input, rows)?;
        let (input, rows) = match &self.condition {
            Some(condition) => {
                select(condition.as_ref(), &input, &rows).map_err(ExecError::Condition)?
            }
            None => (input, rows),
        };
        if rows.is_empty() {
            return Ok(RecordBatch::new_empty(Arc::clone(&self.result)));
        }
        let mut columns = Vec::with_capacity(self.exprs.len() + 1);
        for (expr, field) in self.exprs.iter().zip(self.result.fields()) {
            let column = evaluate(expr.as_ref(), &input).map_err(|source| ExecError::Column {
                column: field.name().clone(),
                source,
            })?;
            columns.push(column);
        }
        columns.push(rows);
        RecordBatch::try_new(Arc::clone(&self.result), columns)
            .map_err(|error: ArrowError| ExecError::Input(error.into()))
    }

    /// Adds the columns of the lookups.
    fn join(
        &self,
        mut input: RecordBatch,
        mut rows: ArrayRef,
    ) -> Result<(RecordBatch, ArrayRef), ExecError> {
        for (index, join) in self.joins.iter().enumerate() {
            let lookup = self.lookups.get(&join.lookup).ok_or_else(|| {
                let problem = format!("the lookup `{}` isn't loaded", join.lookup);
                ExecError::Input(DataFusionError::Execution(problem))
            })?;
            let columns = self.inputs.flat_after(index + 1);
            let joined = join.add(input, rows, lookup, columns);
            (input, rows) = joined.map_err(|source| ExecError::Join {
                lookup: join.lookup.clone(),
                source,
            })?;
        }
        Ok((input, rows))
    }
}

pub(crate) fn evaluate(
    expr: &dyn PhysicalExpr,
    input: &RecordBatch,
) -> Result<ArrayRef, DataFusionError> {
    caught(|| expr.evaluate(input)?.into_array(input.num_rows())).unwrap_or_else(|panic| {
        let problem = format!("the SQL engine can't compute it: {panic}");
        Err(DataFusionError::Execution(problem))
    })
}

/// The rows for which the condition is true (not false, not null), and their indexes.
fn select(
    condition: &dyn PhysicalExpr,
    input: &RecordBatch,
    rows: &ArrayRef,
) -> Result<(RecordBatch, ArrayRef), DataFusionError> {
    let mask = evaluate(condition, input)?;
    let Some(mask) = mask.as_boolean_opt() else {
        return Err(DataFusionError::Internal("WHERE isn't a condition".into()));
    };
    Ok((filter_record_batch(input, mask)?, filter(rows, mask)?))
}
