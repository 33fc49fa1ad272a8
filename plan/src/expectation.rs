//! What has to hold for the rows of a sink: conditions over the result of its query.

use std::{collections::BTreeSet, ops::ControlFlow, sync::Arc};

use datafusion::{
    arrow::{
        array::{Array, AsArray, BooleanArray, RecordBatch},
        datatypes::{DataType, Field, Schema, SchemaRef},
        util::display::array_value_to_string,
    },
    common::DataFusionError,
    physical_expr::{PhysicalExpr, utils::collect_columns},
    sql::sqlparser::ast::{Expr, Ident, Query, Spanned, VisitMut, VisitorMut},
};
use millstream_api::pipeline::{Expectation, OnFailure};

use crate::{
    ResultColumn, SinkPlan,
    engine::{self, in_words},
    error::{PlanError, Position, QueryProblem, similar},
    execute::evaluate,
    query::{Placed, folded, parse_condition, place},
    resolve::{aggregate_name, check, is_replaced},
    table::sql_name,
};

/// Values are shown in a reason up to so many characters.
const SHOWN_CHARS: usize = 100;

/// The expectations of a sink: checked, planned, ready to run. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Expectations {
    rules: Arc<[Rule]>,
}

/// One of them.
#[derive(Clone, Debug)]
pub struct Rule {
    /// Its name.
    pub name: String,
    /// The condition, as it is written.
    pub check: String,
    /// What becomes of a row that fails it.
    pub on_failure: OnFailure,
    expr: Arc<dyn PhysicalExpr>,
    /// The columns that it reads.
    columns: BTreeSet<usize>,
}

/// A row that fails an expectation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// Index of the row.
    pub row: usize,
    /// Where the check couldn't even be computed: why.
    pub error: Option<String>,
}

impl Expectations {
    /// Checks and plans the expectations of a sink. They see the columns of its query's result.
    pub fn new(plan: &SinkPlan, expectations: &[Expectation]) -> Result<Self, PlanError> {
        let fields = plan.columns.iter();
        let fields = fields.map(|column| Field::new(&column.name, column.data_type.clone(), true));
        let schema: SchemaRef = Arc::new(Schema::new(fields.collect::<Vec<_>>()));
        let rules = expectations.iter().map(|expectation| {
            if plan.is_grouped() {
                return Err(PlanError::Expectation {
                    sink: plan.name.clone(),
                    expectation: expectation.name.clone(),
                    at: None,
                    problem: Box::new(QueryProblem::GroupedCheck),
                });
            }
            Rule::new(&plan.columns, &schema, expectation).map_err(|(at, problem)| {
                PlanError::Expectation {
                    sink: plan.name.clone(),
                    expectation: expectation.name.clone(),
                    at,
                    problem: Box::new(problem),
                }
            })
        });
        Ok(Expectations {
            rules: rules.collect::<Result<_, _>>()?,
        })
    }

    /// Each of them, in the order in which they are written.
    pub fn rules(&self) -> &[Rule] {
        &self.rules
    }
}

impl Rule {
    fn new(
        columns: &[ResultColumn],
        schema: &SchemaRef,
        expectation: &Expectation,
    ) -> Placed<Self> {
        let mut condition = parse_condition(&expectation.check)?;
        // Taken first: names that were looked up have no place any more.
        let at = place(condition.span());
        if let ControlFlow::Break(error) = condition.visit(&mut Columns(columns)) {
            return Err(error);
        }
        let engine = |problem| (at, QueryProblem::Engine(problem));
        let expr = engine::plan(condition, schema).map_err(engine)?;
        match expr.data_type(schema) {
            Ok(DataType::Boolean) => {}
            Ok(other) => return Err((at, QueryProblem::NotCheck(sql_name(&other)))),
            Err(error) => return Err(engine(in_words(&error))),
        }
        let read = collect_columns(&expr);
        Ok(Rule {
            name: expectation.name.clone(),
            check: expectation.check.clone(),
            on_failure: expectation.on_failure,
            columns: read.iter().map(|column| column.index()).collect(),
            expr,
        })
    }

    /// The rows, of a result without its last column [`ROW_COLUMN`](crate::ROW_COLUMN), for which
    /// the check isn't true.
    pub fn failures(&self, rows: &RecordBatch) -> Vec<Failure> {
        match self.evaluate(rows) {
            Ok(held) => failed(&held)
                .map(|row| Failure { row, error: None })
                .collect(),
            // One value fails the whole: each row is asked alone.
            Err(_) => (0..rows.num_rows())
                .filter_map(|row| self.failure(rows, row))
                .collect(),
        }
    }

    fn failure(&self, rows: &RecordBatch, row: usize) -> Option<Failure> {
        match self.evaluate(&rows.slice(row, 1)) {
            Ok(held) => failed(&held).next().map(|_| Failure { row, error: None }),
            Err(error) => Some(Failure {
                row,
                error: Some(in_words(&error)),
            }),
        }
    }

    fn evaluate(&self, rows: &RecordBatch) -> Result<BooleanArray, DataFusionError> {
        let held = evaluate(self.expr.as_ref(), rows)?;
        let held = held.as_boolean_opt().cloned();
        held.ok_or_else(|| DataFusionError::Internal("the check isn't a condition".into()))
    }

    /// Why a row fails, with the values that the check read. For the dead letter: the values are
    /// the record's.
    pub fn reason(&self, rows: &RecordBatch, failure: &Failure) -> String {
        let schema = rows.schema();
        let values = self.columns.iter().map(|&column| {
            let array = rows.column(column);
            let value = match array.is_null(failure.row) {
                true => "null".to_owned(),
                false => array_value_to_string(array, failure.row).unwrap_or_default(),
            };
            let shown: String = value.chars().take(SHOWN_CHARS).collect();
            format!("{} = {shown}", schema.field(column).name())
        });
        let values = values.collect::<Vec<_>>().join(", ");
        let mut reason = format!("expectation `{}` failed: {}", self.name, self.check);
        if !values.is_empty() {
            reason += &format!(", with {values}");
        }
        if let Some(error) = &failure.error {
            reason += &format!(" ({error})");
        }
        reason
    }
}

/// The rows for which a condition is false or null.
fn failed(held: &BooleanArray) -> impl Iterator<Item = usize> {
    let all = held.true_count() == held.len();
    let rows = if all { 0 } else { held.len() };
    (0..rows).filter(|&row| held.is_null(row) || !held.value(row))
}

/// Looks up the columns of a result.
struct Columns<'a>(&'a [ResultColumn]);

impl Columns<'_> {
    /// A column by its name. Results have no tables and no structs: `login.uuid` isn't there.
    fn find(&self, idents: &[Ident]) -> Result<Expr, QueryProblem> {
        let names: Vec<_> = idents.iter().map(folded).collect();
        let name = names.join(".");
        if self.0.iter().any(|column| column.name == name) {
            // Without a place: it isn't visited again.
            return Ok(Expr::Identifier(Ident::with_quote('"', name)));
        }
        let last = names.last().map(String::as_str).unwrap_or_default();
        let known = self.0.iter().map(|column| column.name.as_str());
        let similar = similar(last, known);
        Err(QueryProblem::UnknownResultColumn { name, similar })
    }
}

impl VisitorMut for Columns<'_> {
    type Break = (Option<Position>, QueryProblem);

    fn pre_visit_query(&mut self, query: &mut Query) -> ControlFlow<Self::Break> {
        ControlFlow::Break((place(query.span()), QueryProblem::Unsupported("a subquery")))
    }

    fn pre_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<Self::Break> {
        let at = place(expr.span());
        if is_replaced(expr) {
            return ControlFlow::Continue(());
        }
        if let Some(name) = aggregate_name(expr) {
            let place = "in a check, which sees one row; compare the columns of that row";
            let problem = QueryProblem::MisplacedAggregate { name, place };
            return ControlFlow::Break((at, problem));
        }
        let found = match expr {
            Expr::Identifier(ident) => self.find(std::slice::from_ref(ident)).map(Some),
            Expr::CompoundIdentifier(idents) => self.find(idents).map(Some),
            _ => check(expr).map(|()| None),
        };
        match found {
            Ok(Some(column)) => *expr = column,
            Ok(None) => {}
            Err(problem) => return ControlFlow::Break((at, problem)),
        }
        ControlFlow::Continue(())
    }
}
