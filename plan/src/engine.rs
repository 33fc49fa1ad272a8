//! The SQL engine: DataFusion's functions, types and expressions, without tables or plans.
//!
//! A query without state is a condition and a list of expressions. They are planned once and
//! evaluated for every batch; there is no plan to run, and so nothing to wait for.

use std::{
    ops::ControlFlow,
    sync::{Arc, LazyLock},
};

use datafusion::{
    arrow::datatypes::{DataType, Schema, SchemaRef, TimeUnit},
    common::{
        DFSchema, DFSchemaRef, DataFusionError,
        tree_node::{Transformed, TreeNode, TreeNodeRecursion},
    },
    execution::{SessionState, SessionStateBuilder},
    logical_expr::{
        self, Operator, Volatility,
        expr::{Cast, ScalarFunction},
        physical_planning_context::PhysicalPlanningContext,
        simplify::{ExprSimplifyResult, SimplifyContext},
        type_coercion::binary::comparison_coercion,
    },
    optimizer::simplify_expressions::ExprSimplifier,
    physical_expr::{
        PhysicalExpr,
        aggregate::{LoweredAggregate, LoweredAggregateBuilder},
        expressions::{BinaryExpr, Column, Literal, case, cast},
    },
    prelude::SessionConfig,
    sql::{
        parser::Statement,
        sqlparser::ast::{self, Expr, ExprWithAlias},
    },
};

use crate::error::similar;

static ENGINE: LazyLock<SessionState> = LazyLock::new(|| {
    let mut config = SessionConfig::new();
    // One type for text is enough: rows go to Cassandra, not through joins and sorts.
    config.options_mut().sql_parser.map_string_types_to_utf8view = false;
    SessionStateBuilder::new()
        .with_config(config)
        .with_default_features()
        .build()
});

/// What a name is among the engine's functions.
pub(crate) enum Function {
    /// Its result follows from its arguments.
    Immutable,
    /// Its result differs from run to run.
    Volatile,
    Aggregate,
    Window,
    Unknown {
        similar: Option<String>,
    },
}

/// Looks up a function by its name in lower case.
pub(crate) fn function(name: &str) -> Function {
    let scalars = ENGINE.scalar_functions();
    if let Some(function) = scalars.get(name) {
        return match function.signature().volatility {
            Volatility::Immutable => Function::Immutable,
            Volatility::Stable | Volatility::Volatile => Function::Volatile,
        };
    }
    if ENGINE.aggregate_functions().contains_key(name) {
        return Function::Aggregate;
    }
    if ENGINE.window_functions().contains_key(name) {
        return Function::Window;
    }
    let mut names: Vec<&str> = scalars.keys().map(String::as_str).collect();
    names.sort_unstable();
    Function::Unknown {
        similar: similar(name, names),
    }
}

/// The tables that a SELECT names, in their order and without functions that stand for one; none
/// where the SQL is something else.
pub(crate) fn tables(sql: &str) -> Result<Option<Vec<String>>, String> {
    let read = || {
        let dialect = &ENGINE.config_options().sql_parser.dialect;
        let statement = ENGINE.sql_to_statement(sql, dialect)?;
        let is_query = |statement: &Statement| match statement {
            Statement::Statement(statement) => matches!(**statement, ast::Statement::Query(_)),
            _ => false,
        };
        if !is_query(&statement) {
            return Ok(None);
        }
        let references = ENGINE.resolve_table_references(&statement)?;
        let names = references.iter().map(|reference| reference.table());
        let names = names.filter(|name| !ENGINE.table_functions().contains_key(*name));
        Ok(Some(names.map(str::to_owned).collect()))
    };
    read().map_err(|error: DataFusionError| in_words(&error))
}

/// Whether SQL has such an expression anywhere.
pub(crate) fn has(sql: &str, wanted: impl Fn(&Expr) -> bool) -> Result<bool, String> {
    let dialect = &ENGINE.config_options().sql_parser.dialect;
    let statement = ENGINE.sql_to_statement(sql, dialect);
    let Statement::Statement(statement) = statement.map_err(|error| in_words(&error))? else {
        return Ok(false);
    };
    let found = ast::visit_expressions(statement.as_ref(), |expr| match wanted(expr) {
        true => ControlFlow::Break(()),
        false => ControlFlow::Continue(()),
    });
    Ok(found.is_break())
}

/// Plans an expression over these columns.
pub(crate) fn plan(expr: Expr, columns: &SchemaRef) -> Result<Arc<dyn PhysicalExpr>, String> {
    let plan = || {
        let columns = Arc::new(DFSchema::try_from(Schema::clone(columns))?);
        let expr = ExprWithAlias { expr, alias: None };
        let expr = ENGINE.create_logical_expr_from_sql_expr(expr, &columns)?;
        let expr = spelled_out(expr, &columns)?;
        checked(ENGINE.create_physical_expr(expr, &columns)?)
    };
    plan().map_err(|error| in_words(&error))
}

/// Plans an aggregate over these columns.
pub(crate) fn plan_aggregate(expr: Expr, columns: &SchemaRef) -> Result<LoweredAggregate, String> {
    let plan = || {
        let logical = Arc::new(DFSchema::try_from(Schema::clone(columns))?);
        let expr = ExprWithAlias { expr, alias: None };
        let expr = ENGINE.create_logical_expr_from_sql_expr(expr, &logical)?;
        let expr = spelled_out(expr, &logical)?;
        let properties = ENGINE.execution_props();
        let context = PhysicalPlanningContext::default();
        LoweredAggregateBuilder::new(&expr, &logical, columns, properties, &context).build()
    };
    plan().map_err(|error| in_words(&error))
}

/// Some functions are but another word for an expression (`coalesce` for a CASE), and can't be run
/// before they are replaced by it. Constants are left alone: the operator doesn't compute for users.
fn spelled_out(
    expr: logical_expr::Expr,
    columns: &DFSchemaRef,
) -> Result<logical_expr::Expr, DataFusionError> {
    let context = SimplifyContext::builder()
        .with_schema(Arc::clone(columns))
        .with_config_options(Arc::clone(ENGINE.config_options()))
        .build();
    let expr = ExprSimplifier::new(context.clone()).coerce(expr, columns)?;
    let expr = expr.transform_up(compared_in_microseconds)?.data;
    let spelled = expr.transform_up(|expr| match expr {
        logical_expr::Expr::ScalarFunction(ScalarFunction { func, args }) => {
            Ok(match func.simplify(args, &context)? {
                ExprSimplifyResult::Simplified(expr) => Transformed::yes(expr),
                ExprSimplifyResult::Original(args) => {
                    Transformed::no(logical_expr::Expr::ScalarFunction(ScalarFunction {
                        func,
                        args,
                    }))
                }
            })
        }
        other => Ok(Transformed::no(other)),
    });
    Ok(spelled?.data)
}

/// The engine compares times in nanoseconds where they aren't of one type, and those end in the year
/// 2262: microseconds, as everywhere. What is in nanoseconds by itself stays so.
fn compared_in_microseconds(
    expr: logical_expr::Expr,
) -> Result<Transformed<logical_expr::Expr>, DataFusionError> {
    if !is_comparison(&expr) {
        return Ok(Transformed::no(expr));
    }
    let mut cast = true;
    expr.apply_children(|operand| {
        cast &= as_nanoseconds(operand).is_some();
        Ok(TreeNodeRecursion::Continue)
    })?;
    match cast {
        true => expr.map_children(|operand| Ok(Transformed::yes(in_microseconds(operand)))),
        false => Ok(Transformed::no(expr)),
    }
}

fn is_comparison(expr: &logical_expr::Expr) -> bool {
    match expr {
        logical_expr::Expr::BinaryExpr(binary) => matches!(
            binary.op,
            Operator::Eq
                | Operator::NotEq
                | Operator::Lt
                | Operator::LtEq
                | Operator::Gt
                | Operator::GtEq
                | Operator::IsDistinctFrom
                | Operator::IsNotDistinctFrom
        ),
        logical_expr::Expr::Between(_) | logical_expr::Expr::InList(_) => true,
        _ => false,
    }
}

/// What is cast to nanoseconds, and the microseconds in their place.
fn as_nanoseconds(expr: &logical_expr::Expr) -> Option<(&logical_expr::Expr, DataType)> {
    let logical_expr::Expr::Cast(cast) = expr else {
        return None;
    };
    match cast.field.data_type() {
        DataType::Timestamp(TimeUnit::Nanosecond, zone) => {
            let micros = DataType::Timestamp(TimeUnit::Microsecond, zone.clone());
            Some((&cast.expr, micros))
        }
        _ => None,
    }
}

/// Casts of casts too: `TIMESTAMP '2024-01-01'` is one.
fn in_microseconds(expr: logical_expr::Expr) -> logical_expr::Expr {
    match as_nanoseconds(&expr) {
        Some((inner, micros)) => {
            let inner = in_microseconds(inner.clone());
            logical_expr::Expr::Cast(Cast::new(Box::new(inner), micros))
        }
        None => expr,
    }
}

/// A number out of range is an error, as elsewhere in SQL; the engine would wrap it around.
pub(crate) fn checked(
    expr: Arc<dyn PhysicalExpr>,
) -> Result<Arc<dyn PhysicalExpr>, DataFusionError> {
    let checked = expr.transform_up(|expr| {
        let Some(binary) = expr.downcast_ref::<BinaryExpr>() else {
            return Ok(Transformed::no(expr));
        };
        let binary = binary.clone().with_fail_on_overflow(true);
        Ok(Transformed::yes(Arc::new(binary) as Arc<dyn PhysicalExpr>))
    });
    Ok(checked?.data)
}

/// An expression that is computed only where a condition holds, and is null elsewhere.
pub(crate) fn only_where(
    condition: &Arc<dyn PhysicalExpr>,
    expr: Arc<dyn PhysicalExpr>,
) -> Result<Arc<dyn PhysicalExpr>, DataFusionError> {
    // Nothing is computed for these, and so nothing fails.
    if expr.is::<Column>() || expr.is::<Literal>() {
        return Ok(expr);
    }
    case(None, vec![(Arc::clone(condition), expr)], None)
}

/// The type as which values of these two are compared.
pub(crate) fn compared_as(left: &DataType, right: &DataType) -> Option<DataType> {
    let is_text = |data_type: &DataType| {
        matches!(
            data_type,
            DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View
        )
    };
    // The engine would read the text as a number, and fail where it is none.
    let compared =
        (is_text(left) == is_text(right)).then(|| comparison_coercion(left, right))??;
    match compared {
        DataType::Timestamp(TimeUnit::Nanosecond, zone)
            if !in_nanoseconds(left) && !in_nanoseconds(right) =>
        {
            Some(DataType::Timestamp(TimeUnit::Microsecond, zone))
        }
        other => Some(other),
    }
}

fn in_nanoseconds(data_type: &DataType) -> bool {
    matches!(data_type, DataType::Timestamp(TimeUnit::Nanosecond, _))
}

/// The same expression as this type; a value that doesn't fit is an error of its batch.
pub(crate) fn as_type(
    expr: Arc<dyn PhysicalExpr>,
    columns: &SchemaRef,
    data_type: DataType,
) -> Result<Arc<dyn PhysicalExpr>, String> {
    cast(expr, columns, data_type).map_err(|error| in_words(&error))
}

/// An error of the engine as one line, without the names of its layers.
pub(crate) fn in_words(error: &DataFusionError) -> String {
    let message = match error.find_root() {
        DataFusionError::ArrowError(error, _) => error.to_string(),
        root => root.message().into_owned(),
    };
    let message = message.split("\n\nbacktrace:").next().unwrap_or_default();
    if let Some((function, _)) = message.split_once(" failed to match any signature") {
        let name = function.trim_start_matches("Function ").trim_matches('\'');
        return format!("{name}() doesn't take these arguments");
    }
    let message = message
        .trim_start_matches("Cast error: ")
        .trim_start_matches("Parser error: ")
        .trim_start_matches("Compute error: ")
        .trim_start_matches("Invalid argument error: ");
    message.split_whitespace().collect::<Vec<_>>().join(" ")
}
