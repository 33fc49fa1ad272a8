//! GROUP BY, HAVING and aggregates: taken apart into what is computed for every record, what is
//! kept for every group, and what is computed of that for its row.

use std::{ops::ControlFlow, sync::Arc};

use datafusion::{
    arrow::{
        array::new_null_array,
        datatypes::{DataType, Field, Schema, SchemaRef},
        row::{RowConverter, SortField},
    },
    common::DataFusionError,
    logical_expr::{EmitTo, GroupsAccumulator},
    physical_expr::{GroupsAccumulatorAdapter, PhysicalExpr, aggregate::AggregateFunctionExpr},
    sql::sqlparser::ast::{
        BinaryOperator, DuplicateTreatment, Expr, FunctionArg, FunctionArgExpr,
        FunctionArgumentClause, FunctionArguments, Ident, OrderByExpr, Spanned, Value, VisitMut,
        VisitorMut,
    },
};

use crate::{
    Position, RecordSchema, SinkPlan, VirtualColumn,
    engine::{self, in_words},
    error::QueryProblem,
    input::Origin,
    panics::caught,
    query::{Item, MAX_BYTES, ParsedQuery, Placed, folded, place},
    resolve::{Aggregates, Resolver, aggregate_name, cast_as_uuid},
    sink::{Resolved, plan_condition},
    table::{default_cql_type, result_type, sql_name},
    tokens::MAX_DEPTH,
};

pub(crate) const IN_WHERE: Aggregates = Aggregates::Refused(
    "in WHERE, which is asked before there are groups; use HAVING, or FILTER (WHERE ...) after an aggregate",
);
const IN_GROUP_BY: &str =
    "in GROUP BY, which makes the groups; leave it to the result columns, or to HAVING";
/// As many as a table's primary key has columns, at most.
const MAX_KEYS: usize = 32;

/// What a query groups by, before its names are looked up.
pub(crate) struct Clauses {
    keys: Option<Vec<Expr>>,
    having: Option<Expr>,
}

/// The same, looked up. Of the result columns and HAVING there are only keys and aggregates left.
pub(crate) struct Groups {
    keys: Vec<KeyExpr>,
    aggregates: Vec<AggregateExpr>,
    having: Option<(Expr, Option<Position>)>,
    /// For every result column, the key that it is.
    columns: Vec<Option<usize>>,
}

struct KeyExpr {
    expr: Expr,
    at: Option<Position>,
    /// As a person would write it.
    text: String,
    /// Whether it parts the records: it isn't a constant.
    parts: bool,
}

struct AggregateExpr {
    expr: Expr,
    at: Option<Position>,
}

impl Clauses {
    /// Writes out the names that stand for result columns. As elsewhere in SQL a field of the
    /// record comes first.
    pub(crate) fn new(schema: &RecordSchema, query: &ParsedQuery) -> Placed<Self> {
        let mut aliases = Aliases {
            schema,
            items: &query.items,
            bytes: 0,
            depth: 0,
        };
        let mut clauses = Clauses {
            keys: query.group_by.clone(),
            having: query.having.clone(),
        };
        let keys = clauses.keys.iter_mut().flatten();
        for expr in keys.chain(&mut clauses.having) {
            let at = place(expr.span());
            if let ControlFlow::Break(problem) = expr.visit(&mut aliases) {
                return Err((at, problem));
            }
        }
        Ok(clauses)
    }

    /// Looks up the names, and leaves of the result columns what is computed for a group. Nothing
    /// where the query has no groups.
    pub(crate) fn resolve(
        &mut self,
        resolver: &mut Resolver<'_>,
        items: &mut [Resolved],
    ) -> Placed<Option<Groups>> {
        let mut having = self.having.take();
        let having_at = having.as_ref().and_then(|having| place(having.span()));
        if let Some(having) = &mut having {
            resolver.resolve(having)?;
        }
        if self.keys.is_none() && having.is_none() && !resolver.aggregated {
            return Ok(None);
        }
        resolver.aggregates = Aggregates::Refused(IN_GROUP_BY);
        let mut keys: Vec<KeyExpr> = Vec::new();
        for key in self.keys.take().unwrap_or_default() {
            let key = resolve_key(resolver, key, items)?;
            if !keys.iter().any(|known| known.expr == key.expr) {
                keys.push(key);
            }
        }
        let mut extract = Extract {
            keys,
            aggregates: Vec::new(),
            at: None,
            computed: false,
        };
        let mut columns = Vec::with_capacity(items.len());
        for item in items {
            columns.push(extract.item(item)?);
        }
        if let Some(having) = &mut having {
            extract.take(having, having_at)?;
        }
        let Extract {
            keys,
            mut aggregates,
            ..
        } = extract;
        if keys.len() > MAX_KEYS {
            let at = keys.last().and_then(|key| key.at);
            return Err((at, QueryProblem::TooManyKeys(MAX_KEYS)));
        }
        for aggregate in &mut aggregates {
            check_aggregate(resolver, aggregate)?;
        }
        Ok(Some(Groups {
            keys,
            aggregates,
            having: having.map(|having| (having, having_at)),
            columns,
        }))
    }
}

/// Replaces names by the result columns that they stand for.
struct Aliases<'a> {
    schema: &'a RecordSchema,
    items: &'a [Item],
    /// Of what was written out.
    bytes: usize,
    /// Of the expression that is visited.
    depth: usize,
}

/// How deep an expression is.
#[derive(Default)]
struct Depth {
    here: usize,
    deepest: usize,
}

impl VisitorMut for Depth {
    type Break = ();

    fn pre_visit_expr(&mut self, _: &mut Expr) -> ControlFlow<()> {
        self.here += 1;
        self.deepest = self.deepest.max(self.here);
        ControlFlow::Continue(())
    }

    fn post_visit_expr(&mut self, _: &mut Expr) -> ControlFlow<()> {
        self.here -= 1;
        ControlFlow::Continue(())
    }
}

impl VisitorMut for Aliases<'_> {
    type Break = QueryProblem;

    fn pre_visit_expr(&mut self, _: &mut Expr) -> ControlFlow<Self::Break> {
        self.depth += 1;
        ControlFlow::Continue(())
    }

    // After what is within: what it is replaced by isn't visited.
    fn post_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<Self::Break> {
        self.depth -= 1;
        match self.replace(expr) {
            Ok(()) => ControlFlow::Continue(()),
            Err(problem) => ControlFlow::Break(problem),
        }
    }
}

impl Aliases<'_> {
    #[inline(never)]
    fn replace(&mut self, expr: &mut Expr) -> Result<(), QueryProblem> {
        let Expr::Identifier(ident) = expr else {
            return Ok(());
        };
        let name = folded(ident);
        let is_field = |field: &str| match ident.quote_style {
            Some(_) => field == name,
            None => field.to_lowercase() == name,
        };
        let fields = self.schema.fields().iter().map(|field| field.name.as_str());
        if fields
            .chain(VirtualColumn::ALL.map(VirtualColumn::name))
            .any(is_field)
        {
            return Ok(());
        }
        let meant = self.items.iter().find_map(|item| match item {
            Item::Expr {
                expr,
                alias: Some(alias),
            } if folded(alias) == name => Some(expr),
            _ => None,
        });
        let Some(meant) = meant else {
            return Ok(());
        };
        let mut meant = meant.clone();
        let mut depth = Depth::default();
        let _ = meant.visit(&mut depth);
        // It is held to what may be written as a whole.
        self.bytes += meant.to_string().len();
        if self.bytes > MAX_BYTES {
            return Err(QueryProblem::TooLong(MAX_BYTES));
        }
        if self.depth + depth.deepest > MAX_DEPTH {
            return Err(QueryProblem::TooDeep(MAX_DEPTH));
        }
        *expr = Expr::Nested(meant);
        Ok(())
    }
}

fn bare(mut expr: Expr) -> Expr {
    while let Expr::Nested(inner) = expr {
        expr = *inner;
    }
    expr
}

fn resolve_key(resolver: &mut Resolver<'_>, key: Expr, items: &[Resolved]) -> Placed<KeyExpr> {
    let at = place(key.span());
    let mut expr = bare(key);
    if let Expr::Value(value) = &expr
        && let Value::Number(number, _) = &value.value
    {
        let index = number.parse::<usize>().ok();
        let item = index.and_then(|index| items.get(index.checked_sub(1)?));
        let item = item.ok_or_else(|| {
            let problem = QueryProblem::NoSuchColumn {
                number: number.clone(),
                columns: items.len(),
            };
            (at, problem)
        })?;
        if let ControlFlow::Break(name) = item.expr.clone().visit(&mut NoAggregate) {
            let place = IN_GROUP_BY;
            return Err((at, QueryProblem::MisplacedAggregate { name, place }));
        }
        return Ok(KeyExpr::new(bare(item.expr.clone()), at));
    }
    if let Some(inner) = cast_as_uuid(&expr) {
        expr = bare(inner.clone());
    }
    resolver.resolve(&mut expr)?;
    Ok(KeyExpr::new(expr, at))
}

/// Breaks at an aggregate.
struct NoAggregate;

impl VisitorMut for NoAggregate {
    type Break = String;

    fn pre_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<String> {
        match aggregate_name(expr) {
            Some(name) => ControlFlow::Break(name),
            None => ControlFlow::Continue(()),
        }
    }
}

/// Breaks at a column.
struct NoColumn;

impl VisitorMut for NoColumn {
    type Break = ();

    fn pre_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<()> {
        match expr {
            Expr::Identifier(_) => ControlFlow::Break(()),
            _ => ControlFlow::Continue(()),
        }
    }
}

impl KeyExpr {
    fn new(mut expr: Expr, at: Option<Position>) -> Self {
        KeyExpr {
            text: readable(&expr),
            parts: expr.visit(&mut NoColumn).is_break(),
            expr,
            at,
        }
    }
}

/// An expression whose names were looked up, for people: `"login.uuid"` is `login.uuid`.
fn readable(expr: &Expr) -> String {
    match expr {
        Expr::Identifier(ident) => ident.value.clone(),
        other => other.to_string(),
    }
}

fn key_name(index: usize) -> String {
    format!("#key{index}")
}

fn aggregate_column(index: usize) -> String {
    format!("#aggregate{index}")
}

/// Leaves keys and aggregates of an expression, each as a column of its own.
struct Extract {
    keys: Vec<KeyExpr>,
    aggregates: Vec<AggregateExpr>,
    /// Where the expression is.
    at: Option<Position>,
    /// Whether there was a key or an aggregate.
    computed: bool,
}

impl Extract {
    /// A result column; returns the key that it is.
    fn item(&mut self, item: &mut Resolved) -> Placed<Option<usize>> {
        item.expr = bare(std::mem::replace(&mut item.expr, Expr::value(Value::Null)));
        let whole = item.expr.clone();
        self.take(&mut item.expr, item.at)?;
        let known = self.keys.iter().position(|key| key.expr == whole);
        if self.computed {
            return Ok(known);
        }
        // A constant is the same for all groups: a key that parts nothing.
        let index = known.unwrap_or(self.keys.len());
        item.expr = column(key_name(index));
        if known.is_none() {
            self.keys.push(KeyExpr::new(whole, item.at));
        }
        Ok(Some(index))
    }

    fn take(&mut self, expr: &mut Expr, at: Option<Position>) -> Placed<()> {
        self.at = at;
        self.computed = false;
        match expr.visit(self) {
            ControlFlow::Break(error) => Err(error),
            ControlFlow::Continue(()) => Ok(()),
        }
    }

    fn aggregate(&mut self, expr: &Expr) -> usize {
        let known = self.aggregates.iter().position(|known| known.expr == *expr);
        known.unwrap_or_else(|| {
            self.aggregates.push(AggregateExpr {
                expr: expr.clone(),
                at: self.at,
            });
            self.aggregates.len() - 1
        })
    }
}

fn column(name: String) -> Expr {
    Expr::Identifier(Ident::with_quote('"', name))
}

impl Extract {
    /// Not inlined, so that it takes no stack where expressions are within one another.
    #[inline(never)]
    fn replace(&mut self, expr: &mut Expr) -> Placed<()> {
        // A constant stays one: some functions take nothing else.
        let mut keys = self.keys.iter();
        if let Some(index) = keys.position(|key| key.parts && key.expr == *expr) {
            *expr = column(key_name(index));
        } else if aggregate_name(expr).is_some() {
            *expr = column(aggregate_column(self.aggregate(expr)));
        } else if let Expr::Identifier(ident) = expr {
            return Err((self.at, QueryProblem::NotGrouped(ident.value.clone())));
        } else {
            return Ok(());
        }
        self.computed = true;
        Ok(())
    }
}

impl VisitorMut for Extract {
    type Break = (Option<Position>, QueryProblem);

    fn pre_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<Self::Break> {
        match self.replace(expr) {
            Ok(()) => ControlFlow::Continue(()),
            Err(error) => ControlFlow::Break(error),
        }
    }
}

/// Holds an aggregate to what can be kept exact.
fn check_aggregate(resolver: &mut Resolver<'_>, aggregate: &mut AggregateExpr) -> Placed<()> {
    let at = aggregate.at;
    let Some(name) = aggregate_name(&aggregate.expr) else {
        return Ok(());
    };
    let Expr::Function(function) = &mut aggregate.expr else {
        return Ok(());
    };
    let refuse = |what: &str, why| {
        let what = format!("{name}(){what}");
        Err((at, QueryProblem::NotExact { what, why }))
    };
    if name == "grouping" {
        return refuse("", "there are no GROUPING SETS here");
    }
    if !function.within_group.is_empty() {
        let why = "write the value as an argument, as in approx_percentile_cont(value, 0.5)";
        return refuse(" WITHIN GROUP", why);
    }
    let FunctionArguments::List(arguments) = &mut function.args else {
        return Ok(());
    };
    for clause in &mut arguments.clauses {
        let FunctionArgumentClause::OrderBy(order) = clause else {
            continue;
        };
        if !matches!(name.as_str(), "first_value" | "last_value") {
            let why = "the state of an ordered list can't be taken up again; without ORDER BY its order is that of the records";
            return refuse(" with ORDER BY", why);
        }
        // What is equal comes in the order of the records, however they fall into batches.
        let offset = resolver.read(Origin::Virtual(VirtualColumn::Offset));
        order.push(OrderByExpr {
            expr: offset,
            options: Default::default(),
            with_fill: None,
        });
        // What is there twice, such as the offset where a person names it too, orders once.
        let mut seen = Vec::new();
        order.retain(|by| {
            let is_new = !seen.contains(&by.expr);
            seen.push(by.expr.clone());
            is_new
        });
    }
    if arguments.duplicate_treatment == Some(DuplicateTreatment::Distinct)
        && matches!(name.as_str(), "array_agg" | "string_agg")
        && let Some(FunctionArg::Unnamed(FunctionArgExpr::Expr(value))) = arguments.args.first()
    {
        // The engine lists them in the order of a hash table's places, another one after each batch.
        let order = FunctionArgumentClause::OrderBy(vec![OrderByExpr {
            expr: value.clone(),
            options: Default::default(),
            with_fill: None,
        }]);
        arguments.clauses.push(order);
    }
    // All of them is what there is without the word.
    if arguments.duplicate_treatment == Some(DuplicateTreatment::All) {
        arguments.duplicate_treatment = None;
    }
    Ok(())
}

/// What a query keeps for every group.
#[derive(Debug)]
pub(crate) struct Grouping {
    pub(crate) keys: Vec<Key>,
    pub(crate) aggregates: Vec<Aggregate>,
    pub(crate) having: Option<Arc<dyn PhysicalExpr>>,
    /// Bytes of states.
    pub(crate) states: RowConverter,
    /// For every result column, the key that it is.
    columns: Vec<Option<usize>>,
    outputs: SchemaRef,
    definition: String,
}

#[derive(Debug)]
pub(crate) struct Key {
    expr: Arc<dyn PhysicalExpr>,
    data_type: DataType,
    text: String,
    parts: bool,
}

#[derive(Debug)]
pub(crate) struct Aggregate {
    function: Arc<AggregateFunctionExpr>,
    /// Arguments, then what it is ordered by; both only of the records that the filter takes.
    inputs: Vec<Arc<dyn PhysicalExpr>>,
    filter: Option<Arc<dyn PhysicalExpr>>,
    /// Of all these.
    input_types: Vec<DataType>,
    state: Vec<DataType>,
    text: String,
    /// What it lists, where nulls may be among it: neither its FILTER nor WHERE leaves them out.
    with_nulls: Option<String>,
}

impl Groups {
    /// Plans what is kept. The text of WHERE is part of what a state means.
    pub(crate) fn plan(self, columns: &SchemaRef, condition: Option<&Expr>) -> Placed<Grouping> {
        let mut definition = Vec::new();
        let mut keys = Vec::with_capacity(self.keys.len());
        for key in self.keys {
            let at = key.at;
            let key = plan_key(key, columns).map_err(|problem| (at, problem))?;
            if key.parts {
                definition.push(format!("key {}", key.text));
            }
            keys.push(key);
        }
        let mut aggregates = Vec::with_capacity(self.aggregates.len());
        for AggregateExpr { expr, at } in self.aggregates {
            let aggregate =
                Aggregate::plan(expr, columns, condition).map_err(|problem| (at, problem))?;
            definition.push(format!("{} {:?}", aggregate.text, aggregate.state));
            aggregates.push(aggregate);
        }
        definition.extend(condition.map(|condition| format!("where {condition}")));
        let fields = keys.iter().map(|key| key.data_type.clone());
        let fields = fields.chain(aggregates.iter().map(Aggregate::data_type));
        let names = (0..keys.len()).map(key_name);
        let names = names.chain((0..aggregates.len()).map(aggregate_column));
        let fields = names.zip(fields);
        let fields = fields.map(|(name, data_type)| Field::new(name, data_type, true));
        let outputs = Arc::new(Schema::new(fields.collect::<Vec<_>>()));
        let having = self.having.map(|(having, at)| {
            plan_condition(having, &outputs).map_err(|problem| match problem {
                QueryProblem::NotCondition(found) => (at, QueryProblem::NotHaving(found)),
                other => (at, other),
            })
        });
        Ok(Grouping {
            states: states(&aggregates).map_err(|problem| (None, problem))?,
            having: having.transpose()?,
            columns: self.columns,
            definition: definition.join("\n"),
            keys,
            aggregates,
            outputs,
        })
    }
}

fn plan_key(key: KeyExpr, columns: &SchemaRef) -> Result<Key, QueryProblem> {
    let expr = engine::plan(key.expr, columns).map_err(QueryProblem::Engine)?;
    let found = expr
        .data_type(columns)
        .map_err(|error| QueryProblem::Engine(in_words(&error)))?;
    let data_type = result_type(&found).filter(|found| default_cql_type(found).is_some());
    let data_type = data_type.ok_or_else(|| QueryProblem::NoCqlType {
        name: key.text.clone(),
        data_type: sql_name(&found),
        way_out: "group by single values".into(),
    })?;
    let expr = match found == data_type {
        true => expr,
        false => engine::as_type(expr, columns, data_type.clone()).map_err(QueryProblem::Engine)?,
    };
    Ok(Key {
        expr,
        data_type,
        text: key.text,
        parts: key.parts,
    })
}

/// What makes bytes of states, if all of them can be kept.
fn states(aggregates: &[Aggregate]) -> Result<RowConverter, QueryProblem> {
    let fields = aggregates.iter().flat_map(|aggregate| &aggregate.state);
    let fields = fields.map(|data_type| SortField::new(data_type.clone()));
    RowConverter::new(fields.collect())
        .map_err(|error| QueryProblem::Engine(in_words(&DataFusionError::from(error))))
}

/// What an aggregate is of.
fn argument(aggregate: &Expr) -> Option<&Expr> {
    let Expr::Function(function) = aggregate else {
        return None;
    };
    let FunctionArguments::List(arguments) = &function.args else {
        return None;
    };
    match arguments.args.first()? {
        FunctionArg::Unnamed(FunctionArgExpr::Expr(argument)) => Some(argument),
        _ => None,
    }
}

/// The FILTER of an aggregate.
fn own_condition(aggregate: &Expr) -> Option<&Expr> {
    match aggregate {
        Expr::Function(function) => function.filter.as_deref(),
        _ => None,
    }
}

/// Whether a condition says of this that it isn't null, alone or by AND.
fn leaves_out_nulls(condition: &Expr, of: &Expr) -> bool {
    match condition {
        Expr::Nested(inner) => leaves_out_nulls(inner, of),
        Expr::BinaryOp {
            left,
            op: BinaryOperator::And,
            right,
        } => leaves_out_nulls(left, of) || leaves_out_nulls(right, of),
        Expr::IsNotNull(tested) => bare(Expr::clone(tested)) == bare(of.clone()),
        _ => false,
    }
}

impl Aggregate {
    /// Plans an aggregate of the records for which the condition holds.
    fn plan(
        expr: Expr,
        columns: &SchemaRef,
        condition: Option<&Expr>,
    ) -> Result<Self, QueryProblem> {
        let text = expr.to_string();
        let name = aggregate_name(&expr).unwrap_or_default();
        let without_nulls = |argument: &Expr| {
            let mut conditions = own_condition(&expr).into_iter().chain(condition);
            conditions.any(|condition| leaves_out_nulls(condition, argument))
        };
        let argument = argument(&expr).filter(|argument| !without_nulls(argument));
        let argument = argument.map(readable);
        let planned = engine::plan_aggregate(expr, columns).map_err(QueryProblem::Engine)?;
        let engine = |error: DataFusionError| QueryProblem::Engine(in_words(&error));
        let order = planned.order_bys.into_iter().map(|order| order.expr);
        let inputs = planned.aggregate.expressions().into_iter().chain(order);
        let inputs = inputs.map(engine::checked).collect::<Result<Vec<_>, _>>();
        let inputs = inputs.map_err(engine)?;
        let filter = planned
            .filter
            .map(engine::checked)
            .transpose()
            .map_err(engine)?;
        let types = inputs
            .iter()
            .chain(&filter)
            .map(|expr| expr.data_type(columns));
        let input_types = types.collect::<Result<Vec<_>, _>>().map_err(engine)?;
        let state = planned.aggregate.state_fields().map_err(engine)?;
        let state: Vec<_> = state
            .iter()
            .map(|field| field.data_type().clone())
            .collect();
        let sorted = state
            .iter()
            .map(|data_type| SortField::new(data_type.clone()));
        if !RowConverter::supports_fields(&sorted.collect::<Vec<_>>()) {
            return Err(QueryProblem::NotExact {
                what: format!("{name}()"),
                why: "its state can't be kept: take single values for arguments",
            });
        }
        let keeps_nulls = planned.aggregate.fun().name() == "array_agg"
            && !planned.aggregate.ignore_nulls()
            && inputs
                .first()
                .is_some_and(|input| input.nullable(columns).unwrap_or(true));
        let inputs = inputs.into_iter().map(|input| match &filter {
            Some(filter) => engine::only_where(filter, input),
            None => Ok(input),
        });
        let inputs = inputs.collect::<Result<_, _>>().map_err(engine)?;
        let aggregate = Aggregate {
            function: planned.aggregate,
            inputs,
            filter,
            input_types,
            state,
            text,
            with_nulls: argument.filter(|_| keeps_nulls),
        };
        // The engine may panic at what it wasn't made for: that isn't to end the operator.
        let attempt = caught(|| aggregate.attempt());
        let attempt = attempt.unwrap_or_else(|_| {
            let message = "the engine can't compute this aggregate".to_owned();
            Err(DataFusionError::NotImplemented(message))
        });
        attempt.map_err(engine)?;
        Ok(aggregate)
    }

    /// Takes a null, and takes up what is kept of it: what can't be merged is found out here.
    fn attempt(&self) -> Result<(), DataFusionError> {
        let types = self.input_types.iter().take(self.inputs.len());
        let nulls: Vec<_> = types
            .map(|data_type| new_null_array(data_type, 1))
            .collect();
        let mut first = self.accumulator()?;
        first.update_batch(&nulls, &[0], None, 1)?;
        let state = first.state(EmitTo::All)?;
        let mut second = self.accumulator()?;
        second.merge_batch(&state, &[0], 1)?;
        let result = second.evaluate(EmitTo::All)?;
        let found = state.iter().map(|state| state.data_type());
        match found.eq(&self.state) && *result.data_type() == self.data_type() {
            true => Ok(()),
            false => Err(DataFusionError::NotImplemented(
                "this aggregate's state can't be kept".into(),
            )),
        }
    }

    /// The engine's own, for any number of groups.
    pub(crate) fn accumulator(&self) -> Result<Box<dyn GroupsAccumulator>, DataFusionError> {
        if self.function.groups_accumulator_supported() {
            return self.function.create_groups_accumulator();
        }
        // Tried here: the adapter asks only when it has a group.
        self.function.create_accumulator()?;
        let function = Arc::clone(&self.function);
        let adapter = GroupsAccumulatorAdapter::new(move || function.create_accumulator());
        Ok(Box::new(adapter))
    }

    /// Columns that it takes of the inputs: its own, and the filter.
    pub(crate) fn inputs(&self) -> usize {
        self.inputs.len()
    }

    pub(crate) fn has_filter(&self) -> bool {
        self.filter.is_some()
    }

    /// Columns of its state.
    pub(crate) fn states(&self) -> usize {
        self.state.len()
    }

    fn data_type(&self) -> DataType {
        self.function.field().data_type().clone()
    }
}

impl Grouping {
    /// What is computed for every record: the keys, then for every aggregate its arguments and its
    /// filter.
    pub(crate) fn inputs(&self) -> Vec<Arc<dyn PhysicalExpr>> {
        let keys = self.keys.iter().map(|key| &key.expr);
        let aggregates = self
            .aggregates
            .iter()
            .flat_map(|aggregate| aggregate.inputs.iter().chain(&aggregate.filter));
        keys.chain(aggregates).cloned().collect()
    }

    /// The columns of that, under names that a person knows.
    pub(crate) fn input_fields(&self) -> Vec<Field> {
        let keys = self.keys.iter();
        let keys = keys.map(|key| Field::new(&key.text, key.data_type.clone(), true));
        let aggregates = self.aggregates.iter().flat_map(|aggregate| {
            let types = aggregate.input_types.iter();
            types.map(|data_type| Field::new(&aggregate.text, data_type.clone(), true))
        });
        keys.chain(aggregates).collect()
    }

    /// What there is for every group: the keys, then the results of the aggregates.
    pub(crate) fn outputs(&self) -> &SchemaRef {
        &self.outputs
    }

    /// What one of these lists, nulls too, where it does.
    pub(crate) fn with_nulls(&self, output: usize) -> Option<&str> {
        let aggregate = output.checked_sub(self.keys.len())?;
        self.aggregates.get(aggregate)?.with_nulls.as_deref()
    }
}

impl SinkPlan {
    /// Whether there are groups that have no row.
    pub fn has_having(&self) -> bool {
        self.grouping()
            .is_some_and(|grouping| grouping.having.is_some())
    }

    /// Whether the query has groups, so that the sink keeps a state.
    pub fn is_grouped(&self) -> bool {
        self.grouping().is_some()
    }

    /// The index of the group's key that a result column is, as it is; keys are the first columns
    /// of what the executor gives.
    pub fn group_key(&self, column: &str) -> Option<usize> {
        let index = self.columns.iter().position(|known| known.name == column)?;
        self.grouping()?.columns.get(index).copied().flatten()
    }

    /// Number of the group's keys.
    pub fn group_keys(&self) -> usize {
        self.grouping().map_or(0, |grouping| grouping.keys.len())
    }

    /// The keys that part the records into groups, as a person writes them, and their indexes.
    pub(crate) fn parting_keys(&self) -> impl Iterator<Item = (usize, &str)> {
        let keys = self
            .grouping()
            .into_iter()
            .flat_map(|grouping| &grouping.keys);
        let keys = keys.enumerate().filter(|(_, key)| key.parts);
        keys.map(|(index, key)| (index, key.text.as_str()))
    }

    /// What the states of the groups mean, and whose they are: states with another fingerprint
    /// can't be taken up.
    pub fn state_fingerprint(&self, owner: &str) -> Option<u64> {
        let definition = &self.grouping()?.definition;
        Some(fnv(definition.bytes().chain([0]).chain(owner.bytes())))
    }
}

/// FNV-1a: kept for ever, so it must be the same for ever.
fn fnv(bytes: impl Iterator<Item = u8>) -> u64 {
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}
