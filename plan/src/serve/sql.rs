//! SQL over the rows of a CQL query, or over Delta Lake tables: planned once, run for each request.

use std::{collections::HashMap, sync::Arc};

use datafusion::{
    arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit},
    catalog::{TableProvider, default_table_source::provider_as_source, empty::EmptyTable},
    common::{
        Column, DataFusionError, ParamValues, ScalarValue, TableReference, tree_node::Transformed,
    },
    execution::context::SQLOptions,
    logical_expr::{Expr, LogicalPlan, LogicalPlanBuilder, TableScan},
    prelude::{SessionConfig, SessionContext},
    sql::sqlparser::{
        ast,
        dialect::GenericDialect,
        tokenizer::{Token, Tokenizer},
    },
};
use futures::FutureExt;
use millstream_api::{
    cql::CqlType,
    serve::{Parameter, ParameterType},
};

use super::{LakeTable, NOW, Value};
use crate::{
    engine::{self, in_words},
    error::{QueryProblem, similar},
    resolve::is_misread,
    schema::timestamp,
    tokens,
};

/// The table that a transform reads.
pub const ROWS: &str = "rows";

/// SQL that makes sense.
#[derive(Clone, Debug)]
pub struct SqlQuery {
    plan: LogicalPlan,
    columns: SchemaRef,
}

/// The type in a transform of values of a CQL type. What SQL has no type for is text.
pub fn arrow_type(cql_type: &CqlType) -> DataType {
    match cql_type {
        CqlType::Boolean => DataType::Boolean,
        CqlType::TinyInt => DataType::Int8,
        CqlType::SmallInt => DataType::Int16,
        CqlType::Int => DataType::Int32,
        CqlType::BigInt => DataType::Int64,
        CqlType::Float => DataType::Float32,
        CqlType::Double => DataType::Float64,
        CqlType::Date => DataType::Date32,
        CqlType::Time => DataType::Time64(TimeUnit::Nanosecond),
        CqlType::Timestamp => timestamp(),
        CqlType::Blob => DataType::Binary,
        _ => DataType::Utf8,
    }
}

/// The columns of [`ROWS`].
pub fn rows_schema(columns: &[(String, CqlType)]) -> SchemaRef {
    let field = |(name, cql_type): &(String, CqlType)| Field::new(name, arrow_type(cql_type), true);
    Arc::new(Schema::new(columns.iter().map(field).collect::<Vec<_>>()))
}

impl SqlQuery {
    /// Plans SQL over these tables.
    pub fn plan(
        sql: &str,
        tables: &[(&str, SchemaRef)],
        parameters: &[Parameter],
    ) -> Result<Self, String> {
        placeholders(sql)?;
        refuse_misread(sql)?;
        let context = SessionContext::new_with_config(SessionConfig::new());
        let samples = parameters
            .iter()
            .map(|parameter| (parameter.name.clone(), sample(parameter)));
        let samples = samples.chain([(
            NOW.to_owned(),
            scalar(&Value::Timestamp(Default::default())),
        )]);
        let plan = || {
            for (name, columns) in tables {
                // The name as it is: a text would be read as SQL.
                let name = TableReference::bare(*name);
                context.register_table(name, Arc::new(EmptyTable::new(columns.clone())))?;
            }
            let state = context.state();
            let plan = state
                .create_logical_plan(sql)
                .now_or_never()
                .unwrap_or_else(|| {
                    // The tables are in memory: there is nothing to wait for.
                    Err(DataFusionError::Internal("planning waits".into()))
                })?;
            let options = SQLOptions::new()
                .with_allow_ddl(false)
                .with_allow_dml(false);
            options.with_allow_statements(false).verify_plan(&plan)?;
            let sampled = plan.clone().with_param_values(param_values(samples))?;
            let analyzer = state.analyzer();
            let checked = analyzer.execute_and_check(sampled, state.config_options(), |_, _| {})?;
            let columns = Arc::new(checked.schema().as_arrow().clone());
            Ok(SqlQuery { plan, columns })
        };
        plan().map_err(|error: DataFusionError| in_words(&error).replace("datafusion.public.", ""))
    }

    /// The result's columns.
    pub fn columns(&self) -> &SchemaRef {
        &self.columns
    }

    /// The plan over the tables as they are for one request, with its parameters' values.
    pub fn bind(
        &self,
        tables: &[(&str, Arc<dyn TableProvider>)],
        parameters: impl IntoIterator<Item = (String, Value)>,
    ) -> Result<LogicalPlan, String> {
        let bind = || {
            let of = |scan: &TableScan| {
                let name = scan.table_name.table();
                tables.iter().find(|(table, _)| *table == name)
            };
            let plan = self
                .plan
                .clone()
                .transform_up_with_subqueries(|node| match node {
                    LogicalPlan::TableScan(scan) => match of(&scan) {
                        Some((_, table)) => Ok(Transformed::yes(read(&scan, table.clone())?)),
                        None => Ok(Transformed::no(LogicalPlan::TableScan(scan))),
                    },
                    other => Ok(Transformed::no(other)),
                })?;
            let values = parameters
                .into_iter()
                .map(|(name, value)| (name, scalar(&value)));
            plan.data.with_param_values(param_values(values))
        };
        bind().map_err(|error: DataFusionError| in_words(&error))
    }
}

/// Of a table as it is now the columns that the query was planned with.
fn read(
    planned: &TableScan,
    table: Arc<dyn TableProvider>,
) -> Result<LogicalPlan, DataFusionError> {
    let name = &planned.table_name;
    let columns = planned.source.schema();
    let columns = columns.fields().iter();
    let columns = columns.map(|field| Expr::Column(Column::new(Some(name.clone()), field.name())));
    LogicalPlanBuilder::scan(name.clone(), provider_as_source(table), None)?
        .project(columns)?
        .build()
}

fn param_values(values: impl Iterator<Item = (String, ScalarValue)>) -> ParamValues {
    ParamValues::from(values.collect::<HashMap<_, _>>())
}

fn scalar(value: &Value) -> ScalarValue {
    match value {
        Value::Text(text) => ScalarValue::from(text.as_str()),
        Value::Int(number) => ScalarValue::from(*number),
        Value::Bigint(number) => ScalarValue::from(*number),
        Value::Uuid(uuid) => ScalarValue::from(uuid.to_string()),
        Value::Timestamp(time) => {
            let zone = match timestamp() {
                DataType::Timestamp(_, zone) => zone,
                _ => None,
            };
            ScalarValue::TimestampMicrosecond(Some(time.timestamp_micros()), zone)
        }
        Value::Double(number) => ScalarValue::from(*number),
        Value::Boolean(truth) => ScalarValue::from(*truth),
    }
}

/// Some value of a parameter's type: planning looks at the type alone.
fn sample(parameter: &Parameter) -> ScalarValue {
    scalar(&match parameter.parameter_type {
        _ if parameter.ago.is_some() => Value::Timestamp(Default::default()),
        ParameterType::Text => Value::Text(String::new()),
        ParameterType::Int => Value::Int(1),
        ParameterType::Bigint => Value::Bigint(1),
        ParameterType::Uuid => Value::Uuid(Default::default()),
        ParameterType::Timestamp => Value::Timestamp(Default::default()),
        ParameterType::Double => Value::Double(1.0),
        ParameterType::Boolean => Value::Boolean(true),
    })
}

/// The names of the parameters that SQL reads; refuses SQL that takes too much stack to plan.
pub(super) fn placeholders(sql: &str) -> Result<Vec<String>, String> {
    let tokens = Tokenizer::new(&GenericDialect {}, sql)
        .tokenize()
        .map_err(|error| error.to_string())?;
    if tokens::is_too_deep(&tokens) {
        return Err("it is too deep; write it simpler".into());
    }
    let names = tokens.iter().filter_map(|token| match token {
        Token::Placeholder(name) => Some(name.trim_start_matches('$').to_owned()),
        _ => None,
    });
    Ok(names.collect())
}

/// The tables that one SELECT reads, of those that there are.
pub(super) fn tables(sql: &str, known: &[LakeTable]) -> Result<Vec<String>, String> {
    let named = engine::tables(sql)?.ok_or("it is no SELECT; nothing else is run")?;
    for name in &named {
        let names = known.iter().map(|table| table.name.as_str());
        if names.clone().any(|known| known == name) {
            continue;
        }
        let hint = match similar(name, names.clone()) {
            Some(similar) => format!("; did you mean {}?", quoted(&similar)),
            None if known.is_empty() => "; it has none into Delta Lake".into(),
            None => {
                let all: Vec<_> = names.map(quoted).collect();
                format!("; a table has the name of its sink: {}", all.join(", "))
            }
        };
        return Err(format!(
            "the pipeline has no sink `{name}` into a Delta Lake table{hint}"
        ));
    }
    Ok(named)
}

/// Refuses window functions: they hold all rows of a partition, whatever memory there is. A
/// transform has no more than `maxRows`, a table may have any number.
pub(super) fn refuse_windows(sql: &str) -> Result<(), String> {
    let is_window = |expr: &ast::Expr| match expr {
        ast::Expr::Function(function) => function.over.is_some(),
        _ => false,
    };
    match engine::has(sql, is_window)? {
        true => Err(
            "window functions (`OVER`) aren't run on Delta Lake tables: they would hold all rows in memory; use GROUP BY, or ORDER BY with LIMIT".into(),
        ),
        false => Ok(()),
    }
}

/// Refuses what the engine takes for something else.
fn refuse_misread(sql: &str) -> Result<(), String> {
    if engine::has(sql, is_misread)? {
        return Err(QueryProblem::DistinctFrom.to_string());
    }
    match engine::has(sql, |expr| matches!(expr, ast::Expr::SimilarTo { .. }))? {
        true => Err(QueryProblem::SimilarTo.to_string()),
        false => Ok(()),
    }
}

/// A table's name as it is written in SQL.
fn quoted(name: &str) -> String {
    let is_plain = name.starts_with(|first: char| first.is_ascii_alphabetic())
        && name.chars().all(|letter| letter.is_ascii_alphanumeric());
    match is_plain {
        true => format!("`{name}`"),
        false => format!("`\"{name}\"`"),
    }
}
