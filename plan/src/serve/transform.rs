//! SQL over the rows of a CQL query: planned once, run for each request.

use std::{collections::HashMap, sync::Arc};

use datafusion::{
    arrow::{
        array::RecordBatch,
        datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit},
    },
    catalog::{MemTable, default_table_source::provider_as_source, empty::EmptyTable},
    common::{
        DataFusionError, ParamValues, ScalarValue,
        tree_node::{Transformed, TreeNodeRecursion},
    },
    execution::context::SQLOptions,
    logical_expr::LogicalPlan,
    prelude::{SessionConfig, SessionContext},
    sql::sqlparser::{
        dialect::GenericDialect,
        tokenizer::{Token, Tokenizer},
    },
};
use futures::FutureExt;
use millstream_api::{
    cql::CqlType,
    serve::{Parameter, ParameterType},
};

use super::{NOW, Value};
use crate::{engine::in_words, schema::timestamp, tokens};

/// The table that a transform reads.
pub const ROWS: &str = "rows";

/// A transform that makes sense.
#[derive(Clone, Debug)]
pub struct Transform {
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

impl Transform {
    /// Plans SQL over these columns.
    pub fn plan(sql: &str, rows: &SchemaRef, parameters: &[Parameter]) -> Result<Self, String> {
        placeholders(sql)?;
        let context = SessionContext::new_with_config(SessionConfig::new());
        let samples = parameters
            .iter()
            .map(|parameter| (parameter.name.clone(), sample(parameter)));
        let samples = samples.chain([(
            NOW.to_owned(),
            scalar(&Value::Timestamp(Default::default())),
        )]);
        let plan = || {
            context.register_table(ROWS, Arc::new(EmptyTable::new(rows.clone())))?;
            let state = context.state();
            let plan = state
                .create_logical_plan(sql)
                .now_or_never()
                .unwrap_or_else(|| {
                    // The one table is in memory: there is nothing to wait for.
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
            Ok(Transform { plan, columns })
        };
        plan().map_err(|error: DataFusionError| in_words(&error).replace("datafusion.public.", ""))
    }

    /// The result's columns.
    pub fn columns(&self) -> &SchemaRef {
        &self.columns
    }

    /// The plan over the rows of one request, with its parameters' values.
    pub fn bind(
        &self,
        rows: RecordBatch,
        parameters: impl IntoIterator<Item = (String, Value)>,
    ) -> Result<LogicalPlan, String> {
        let bind = || {
            let rows = MemTable::try_new(rows.schema(), vec![vec![rows]])?;
            let source = provider_as_source(Arc::new(rows));
            let plan = self
                .plan
                .clone()
                .transform_up_with_subqueries(|node| match node {
                    LogicalPlan::TableScan(mut scan) if scan.table_name.table() == ROWS => {
                        scan.source = source.clone();
                        Ok(Transformed::new(
                            LogicalPlan::TableScan(scan),
                            true,
                            TreeNodeRecursion::Continue,
                        ))
                    }
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
