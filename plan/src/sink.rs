//! A sink's query, checked and planned.

use std::sync::Arc;

use datafusion::{
    arrow::datatypes::{DataType, Field, Schema, SchemaRef},
    physical_expr::{PhysicalExpr, expressions::Column},
    sql::sqlparser::ast::{Expr, Ident, Spanned},
};
use millstream_api::cql::CqlType;

use crate::{
    RecordSchema, engine,
    error::{PlanError, Position, QueryProblem},
    execute::SinkExecutor,
    fold::Fold,
    group::{Clauses, Grouping, IN_WHERE},
    input::{Inputs, Origin, VirtualColumn},
    join::{self, Join},
    lookup::Lookup,
    query::{self, Item, Placed, folded, place},
    resolve::{Aggregates, Resolver, cast_as_uuid},
    table::{default_cql_type, result_type, sql_name},
};

const IN_ON: Aggregates =
    Aggregates::Refused("in ON, which is asked for every record; compare a field of the record");
/// Longest name of a column: with a value it is the name of a folder, where a lake's table is laid out by it.
const MAX_NAME: usize = 128;
/// Longest name of a column in Cassandra, as the Keyspace kind has it.
const MAX_CASSANDRA_NAME: usize = 48;
/// Columns of a result, as the Keyspace kind has it.
const MAX_COLUMNS: usize = 500;

/// A sink's query over the records of a schema: checked, planned, ready to run.
#[derive(Clone, Debug)]
pub struct SinkPlan {
    /// Name of the sink.
    pub name: String,
    /// The columns of the result, in order; names are unique.
    pub columns: Vec<ResultColumn>,
    pub(crate) schema: RecordSchema,
    inputs: Inputs,
    joins: Vec<Join>,
    condition: Option<Arc<dyn PhysicalExpr>>,
    /// One for each column; over the groups, where there are any.
    exprs: Vec<Arc<dyn PhysicalExpr>>,
    /// For each column, what it is of the record's fields alone, as SQL.
    of_record: Vec<Option<String>>,
    grouping: Option<Arc<Grouping>>,
}

/// A column of a query's result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResultColumn {
    /// Name: a letter, then letters, digits and `_`.
    pub name: String,
    /// Type of the values: one of `Boolean`, `Int8` to `Int64`, `Float32`, `Float64`, `Decimal128`,
    /// `Utf8`, `Binary`, `Date32`, `Time64` (ns), `Timestamp` (µs, `+00:00`), and `List` of these.
    pub data_type: DataType,
    /// Type of the column where the pipeline declares the table.
    pub cql_type: CqlType,
    /// Set if the column is nothing but this field of the record.
    pub path: Option<Vec<String>>,
    /// Set if the column is nothing but this virtual column.
    pub virtual_column: Option<VirtualColumn>,
    /// Whether there can be nulls.
    pub nullable: bool,
    /// Where the column is in the SQL.
    pub at: Option<Position>,
}

/// A result column before it is planned: every name in it is looked up.
pub(crate) struct Resolved {
    pub(crate) name: String,
    pub(crate) at: Option<Position>,
    pub(crate) expr: Expr,
    pub(crate) origin: Option<Origin>,
    pub(crate) as_uuid: bool,
}

impl SinkPlan {
    /// Checks and plans a query. No constant is evaluated: that costs whoever runs it, not whoever
    /// checks it.
    pub fn new(schema: &RecordSchema, name: &str, sql: &str) -> Result<SinkPlan, PlanError> {
        Self::joining(schema, &[], name, sql)
    }

    /// Checks and plans a query that may join these lookups.
    pub fn joining(
        schema: &RecordSchema,
        lookups: &[Lookup],
        name: &str,
        sql: &str,
    ) -> Result<SinkPlan, PlanError> {
        Self::plan(schema, lookups, name, sql).map_err(|(at, problem)| PlanError::Query {
            sink: name.to_owned(),
            at,
            problem: Box::new(problem),
        })
    }

    fn plan(schema: &RecordSchema, lookups: &[Lookup], name: &str, sql: &str) -> Placed<SinkPlan> {
        let query = query::parse(sql)?;
        let mut clauses = Clauses::new(schema, &query)?;
        let mut resolver = Resolver {
            schema,
            qualifier: query.qualifier,
            joined: Vec::new(),
            origins: Vec::new(),
            aggregates: IN_ON,
            aggregated: false,
        };
        let joins = join::resolve(&mut resolver, lookups, query.joins)?;
        resolver.aggregates = IN_WHERE;
        let mut condition = query.condition;
        // Taken first: names that were looked up have no place any more.
        let condition_at = condition
            .as_ref()
            .and_then(|condition| place(condition.span()));
        if let Some(condition) = &mut condition {
            resolver.resolve(condition)?;
        }
        resolver.aggregates = Aggregates::Allowed;
        let mut resolved = resolve_items(&mut resolver, query.items)?;
        let of_record = resolved.iter();
        let of_record = of_record
            .map(|item| resolver.of_record(&item.expr))
            .collect();
        let groups = clauses.resolve(&mut resolver, &mut resolved)?;
        if groups.is_some()
            && let Some(join) = joins.first()
        {
            return Err((join.at, QueryProblem::GroupedJoin));
        }
        let inputs = Inputs::new(schema, resolver.origins, joins.len());
        let joins = joins.into_iter().enumerate();
        let joins = joins.map(|(index, join)| join.plan(index, &inputs));
        let joins = joins.collect::<Result<Vec<_>, _>>()?;
        let grouping = groups
            .map(|groups| groups.plan(inputs.flat(), condition.as_ref()))
            .transpose()?
            .map(Arc::new);
        let columns_of = match &grouping {
            Some(grouping) => grouping.outputs(),
            None => inputs.flat(),
        };
        let condition = condition
            .map(|condition| plan_condition(condition, inputs.flat()))
            .transpose()
            .map_err(|problem| (condition_at, problem))?;
        let mut columns = Vec::with_capacity(resolved.len());
        let mut exprs = Vec::with_capacity(resolved.len());
        for item in resolved {
            let at = item.at;
            let (column, expr) = plan_column(item, columns_of).map_err(|problem| (at, problem))?;
            columns.push(column);
            exprs.push(expr);
        }
        Ok(SinkPlan {
            name: name.to_owned(),
            columns,
            schema: schema.clone(),
            inputs,
            joins,
            condition,
            exprs,
            of_record,
            grouping,
        })
    }

    /// The joins with lookups, in their order.
    pub(crate) fn joins(&self) -> &[Join] {
        &self.joins
    }

    /// Names of the lookups that the query joins.
    pub fn lookups(&self) -> impl Iterator<Item = &str> {
        self.joins.iter().map(|join| join.lookup.as_str())
    }

    /// What the groups are, where the query has a GROUP BY or aggregates.
    pub(crate) fn grouping(&self) -> Option<&Arc<Grouping>> {
        self.grouping.as_ref()
    }

    /// The column of this name.
    pub fn column(&self, name: &str) -> Option<&ResultColumn> {
        self.columns.iter().find(|column| column.name == name)
    }

    /// Digits behind the point of a column that is a DECIMAL.
    pub fn scale(&self, name: &str) -> Option<i8> {
        match self.column(name)?.data_type {
            DataType::Decimal128(_, scale) => Some(scale),
            _ => None,
        }
    }

    /// What the column of this name is, where it follows from the record's fields alone: an SQL
    /// expression, the same for all that are the same but for how names are written. None for a
    /// constant.
    pub(crate) fn of_record(&self, name: &str) -> Option<&str> {
        let index = self.columns.iter().position(|column| column.name == name)?;
        self.of_record.get(index)?.as_deref()
    }

    /// The column that is nothing but a list of what a group's records have, nulls too, and of what.
    pub(crate) fn list_with_nulls(&self) -> Option<(&ResultColumn, &str)> {
        let grouping = self.grouping()?;
        let mut columns = self.columns.iter().zip(&self.exprs);
        columns.find_map(|(column, expr)| {
            let output = expr.downcast_ref::<Column>()?.index();
            Some((column, grouping.with_nulls(output)?))
        })
    }

    /// What is to be decoded of a record: the columns in use, nested as they are in the record,
    /// without the fields of structs that aren't in use.
    pub fn record_schema(&self) -> SchemaRef {
        Arc::clone(self.inputs.record())
    }

    /// The virtual columns in use.
    pub fn virtual_columns(&self) -> &[VirtualColumn] {
        self.inputs.virtual_columns()
    }

    /// What an executor takes: [`record_schema`](Self::record_schema), then
    /// [`virtual_columns`](Self::virtual_columns).
    pub fn input_schema(&self) -> SchemaRef {
        let record = self.inputs.record().fields().iter().cloned();
        let virtual_columns = self.virtual_columns().iter().map(|column| column.field());
        Arc::new(Schema::new(
            record.chain(virtual_columns).collect::<Vec<_>>(),
        ))
    }

    /// What runs the query, batch by batch. Where it has groups: only up to them, which is what
    /// [`fold`](Self::fold) takes.
    pub fn executor(&self) -> SinkExecutor {
        let (fields, exprs) = match &self.grouping {
            Some(grouping) => (grouping.input_fields(), grouping.inputs()),
            None => (self.fields(), self.exprs.clone()),
        };
        let (inputs, joins) = (self.inputs.clone(), self.joins.clone());
        SinkExecutor::new(inputs, joins, self.condition.clone(), fields, exprs)
    }

    /// What keeps the groups up to date; none where the query has none.
    pub fn fold(&self) -> Option<Fold> {
        let grouping = Arc::clone(self.grouping.as_ref()?);
        Some(Fold::new(grouping, self.fields(), self.exprs.clone()))
    }

    fn fields(&self) -> Vec<Field> {
        let columns = self.columns.iter();
        let fields = columns.map(|column| Field::new(&column.name, column.data_type.clone(), true));
        fields.collect()
    }
}

/// Looks up the names in the SELECT list, and gives every column its own.
fn resolve_items(resolver: &mut Resolver<'_>, items: Vec<Item>) -> Placed<Vec<Resolved>> {
    let mut resolved: Vec<Resolved> = Vec::new();
    for item in items {
        match item {
            Item::Wildcard { at, table } => {
                for origin in all_columns(resolver, table) {
                    let name = match &origin {
                        Origin::Field { path, .. } | Origin::Joined { path, .. } => path.last(),
                        Origin::Virtual(_) => None,
                    };
                    resolved.push(Resolved {
                        name: name.cloned().unwrap_or_default(),
                        at,
                        expr: resolver.read(origin.clone()),
                        origin: Some(origin),
                        as_uuid: false,
                    });
                }
            }
            Item::Expr { expr, alias } => resolved.push(resolve_item(resolver, *expr, alias)?),
        }
        if resolved.len() > MAX_COLUMNS {
            let at = resolved.last().and_then(|column| column.at);
            return Err((at, QueryProblem::TooManyColumns(MAX_COLUMNS)));
        }
    }
    for (index, column) in resolved.iter().enumerate() {
        if let Some(problem) = name_problem(&column.name, &resolved[..index]) {
            return Err((column.at, problem));
        }
    }
    Ok(resolved)
}

/// What is wrong with a column's name, whatever the target is.
fn name_problem(name: &str, before: &[Resolved]) -> Option<QueryProblem> {
    if !is_column_name(name) {
        return Some(QueryProblem::BadName(name.to_owned()));
    }
    // As Delta Lake tells them apart.
    let mut before = before.iter().map(|column| &column.name);
    let other = before.find(|other| other.eq_ignore_ascii_case(name))?;
    Some(match other == name {
        true => QueryProblem::DuplicateName(name.to_owned()),
        false => QueryProblem::SameButCase(other.clone(), name.to_owned()),
    })
}

/// What `*` stands for: the columns of the table with this index, or of all of them.
fn all_columns(resolver: &Resolver<'_>, table: Option<usize>) -> Vec<Origin> {
    let is_meant = |index: usize| table.is_none_or(|table| table == index);
    let mut origins = Vec::new();
    if is_meant(0) {
        let fields = resolver.schema.fields().iter();
        origins.extend(fields.map(|field| Origin::Field {
            path: vec![field.name.clone()],
            data_type: field.data_type.clone(),
        }));
    }
    for (join, joined) in resolver.joined.iter().enumerate() {
        if is_meant(join + 1) {
            let fields = joined.lookup.schema.fields().iter();
            origins.extend(fields.map(|field| Origin::Joined {
                join,
                qualifier: joined.qualifier.clone(),
                path: vec![field.name.clone()],
                data_type: field.data_type.clone(),
            }));
        }
    }
    origins
}

fn resolve_item(resolver: &mut Resolver<'_>, expr: Expr, alias: Option<Ident>) -> Placed<Resolved> {
    let at = place(expr.span());
    let (mut expr, as_uuid) = match cast_as_uuid(&expr) {
        Some(inner) => (inner.clone(), true),
        None => (expr, false),
    };
    let text = expr.to_string();
    // As SQL has it: the last name of `login.uuid`.
    let own_name = match &expr {
        Expr::Identifier(ident) => Some(folded(ident)),
        Expr::CompoundIdentifier(idents) => idents.last().map(folded),
        _ => None,
    };
    let origin = resolver.resolve(&mut expr)?;
    let field_name = match &origin {
        Some(Origin::Field { path, .. } | Origin::Joined { path, .. }) => path.last().cloned(),
        _ => None,
    };
    let (name, at) = match alias {
        Some(alias) => (
            folded(&alias),
            place(alias.span)
                .filter(|_| !is_cassandra_name(&folded(&alias)))
                .or(at),
        ),
        None => match own_name.or(field_name) {
            Some(name) => (name, at),
            None => return Err((at, QueryProblem::NoName(shortened(&text)))),
        },
    };
    Ok(Resolved {
        name,
        at,
        expr,
        origin,
        as_uuid,
    })
}

fn shortened(text: &str) -> String {
    match text.char_indices().nth(60) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.to_owned(),
    }
}

fn is_column_name(name: &str) -> bool {
    name.len() <= MAX_NAME
        && name.starts_with(|c: char| c.is_ascii_alphabetic())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

/// Whether a result column's name can be that of a column in Cassandra.
pub(crate) fn is_cassandra_name(name: &str) -> bool {
    is_column_name(name)
        && name.len() <= MAX_CASSANDRA_NAME
        && !name.contains(|c: char| c.is_ascii_uppercase())
}

pub(crate) fn plan_condition(
    expr: Expr,
    columns: &SchemaRef,
) -> Result<Arc<dyn PhysicalExpr>, QueryProblem> {
    let condition = engine::plan(expr, columns).map_err(QueryProblem::Engine)?;
    match condition.data_type(columns) {
        Ok(DataType::Boolean) => Ok(condition),
        Ok(other) => Err(QueryProblem::NotCondition(sql_name(&other))),
        Err(error) => Err(QueryProblem::Engine(engine::in_words(&error))),
    }
}

fn plan_column(
    item: Resolved,
    columns: &SchemaRef,
) -> Result<(ResultColumn, Arc<dyn PhysicalExpr>), QueryProblem> {
    let expr = engine::plan(item.expr, columns).map_err(QueryProblem::Engine)?;
    let found = expr
        .data_type(columns)
        .map_err(|error| QueryProblem::Engine(engine::in_words(&error)))?;
    let Some((data_type, own_type)) =
        result_type(&found).and_then(|result| Some((result.clone(), default_cql_type(&result)?)))
    else {
        return Err(no_cql_type(item.name, &found));
    };
    if item.as_uuid && data_type != DataType::Utf8 {
        return Err(QueryProblem::NotUuid {
            name: item.name,
            data_type: sql_name(&data_type),
        });
    }
    let expr = if found == data_type {
        expr
    } else {
        engine::as_type(expr, columns, data_type.clone()).map_err(QueryProblem::Engine)?
    };
    let (path, virtual_column, declared) = match item.origin {
        Some(Origin::Field { path, data_type }) => (Some(path), None, data_type.own_cql_type()),
        Some(Origin::Virtual(column)) => (None, Some(column), None),
        Some(Origin::Joined { data_type, .. }) => (None, None, data_type.own_cql_type()),
        None => (None, None, None),
    };
    let as_uuid = item.as_uuid.then_some(CqlType::Uuid);
    let column = ResultColumn {
        name: item.name,
        data_type,
        cql_type: as_uuid.or(declared).unwrap_or(own_type),
        path,
        virtual_column,
        nullable: expr.nullable(columns).unwrap_or(true),
        at: item.at,
    };
    Ok((column, expr))
}

fn no_cql_type(name: String, found: &DataType) -> QueryProblem {
    let way_out = match found {
        DataType::Null => "write CAST(NULL AS ...) with the column's type",
        DataType::Struct(fields) => match fields.first() {
            Some(field) => &format!("take its fields, as in {name}.{}", field.name()),
            None => "take something else",
        },
        DataType::List(_) => "take a field of one of its elements, as in [1]['name']",
        DataType::Interval(_) | DataType::Duration(_) => {
            "take a number of it, as in date_part('epoch', ...)"
        }
        _ => "write CAST(... AS ...) with a type that has one, such as TEXT or BIGINT",
    };
    QueryProblem::NoCqlType {
        way_out: way_out.to_owned(),
        data_type: sql_name(found),
        name,
    }
}
