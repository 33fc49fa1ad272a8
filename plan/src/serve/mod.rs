//! `spec.serve`, checked and planned: paths, parameters, CQL and the SQL over its rows, SQL over Delta
//! Lake tables.
//!
//! The operator asks with the columns that it knows of, the worker without: it has them from the
//! tables themselves and plans the [`SqlQuery`] with them.

pub(crate) mod accept;
mod cql;
mod parameter;
mod path;
mod sql;

pub use accept::readable_keyspaces;
pub use parameter::{Value, fits_marker, parse, parse_time};
pub use path::Path;
pub use sql::{ROWS, SqlQuery, arrow_type, rows_schema};

use std::collections::BTreeSet;

use datafusion::arrow::datatypes::SchemaRef;
use millstream_api::{
    DataPipelineSpec,
    cql::CqlType,
    keyspace::TableSpec,
    serve::{Endpoint, Format, Parameter, Serve},
};
use thiserror::Error;

use self::cql::Select;

/// The marker in CQL, and the parameter in SQL, for the present.
pub const NOW: &str = "now";

/// Query parameters that every endpoint has.
pub const RESERVED_PARAMETERS: [&str; 3] = ["format", "limit", "page"];

/// First segments of the paths that every service has.
const RESERVED_PATHS: [&str; 3] = ["health", "docs", "openapi.json"];

/// What may be read.
#[derive(Clone, Debug, Default)]
pub struct Readable<'a> {
    /// The keyspaces of the pipeline's sinks.
    pub keyspaces: &'a [String],
    /// The tables that are known, with their keyspaces; there may be others.
    pub tables: &'a [(String, TableSpec)],
    /// The Delta Lake tables of the pipeline's sinks.
    pub lake: &'a [LakeTable],
}

/// A Delta Lake table that may be read.
#[derive(Clone, Debug)]
pub struct LakeTable {
    /// The name of its sink.
    pub name: String,
    /// Its columns, where they are known.
    pub columns: Option<SchemaRef>,
}

/// Why a service can't be as it is declared.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum ServeError {
    #[error("serve.now: `{0}` is not a time of RFC 3339, such as 2016-11-06T00:00:00Z")]
    Now(String),
    #[error("serve: endpoints `{0}` and `{1}` have the same path; change one of them")]
    SamePath(String, String),
    #[error("serve: endpoint `{endpoint}`: {problem}")]
    Endpoint {
        endpoint: String,
        problem: EndpointProblem,
    },
}

/// What is wrong with an endpoint.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum EndpointProblem {
    #[error("path: {0}")]
    Path(String),
    #[error("parameter `{name}`: {problem}")]
    Parameter { name: String, problem: String },
    #[error("exactly one of cql and sql must be set")]
    Query,
    #[error("cql: {0}")]
    Cql(String),
    #[error("sql: {0}")]
    Sql(String),
    #[error("transform: {0}")]
    Transform(String),
    #[error("plot: {0}")]
    Plot(String),
}

/// An endpoint that makes sense.
#[derive(Clone, Debug)]
pub struct EndpointPlan {
    /// The path.
    pub path: Path,
    /// What it reads.
    pub query: EndpointQuery,
}

/// What an endpoint reads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EndpointQuery {
    /// A CQL statement, with the keyspace in it.
    Cql(String),
    /// SQL on the Delta Lake tables of these sinks.
    Sql(Vec<String>),
}

impl EndpointPlan {
    /// Checks an endpoint.
    pub fn new(endpoint: &Endpoint, readable: &Readable) -> Result<Self, ServeError> {
        plan(endpoint, readable).map_err(|problem| ServeError::Endpoint {
            endpoint: endpoint.name.clone(),
            problem,
        })
    }
}

/// Checks a service; the endpoints in their order.
pub fn plan_service(serve: &Serve, readable: &Readable) -> Result<Vec<EndpointPlan>, ServeError> {
    if let Some(now) = &serve.now {
        parse_time(now).ok_or_else(|| ServeError::Now(now.clone()))?;
    }
    let mut plans: Vec<EndpointPlan> = Vec::new();
    for endpoint in &serve.endpoints {
        let plan = EndpointPlan::new(endpoint, readable)?;
        if let Some(same) = plans
            .iter()
            .position(|other| other.path.is_like(&plan.path))
        {
            let other = serve.endpoints[same].name.clone();
            return Err(ServeError::SamePath(other, endpoint.name.clone()));
        }
        plans.push(plan);
    }
    Ok(plans)
}

/// The sinks whose Delta Lake tables a pipeline's REST service reads.
pub fn lake_sinks(spec: &DataPipelineSpec) -> BTreeSet<String> {
    let lake = spec.sinks.iter().filter(|sink| sink.delta.is_some());
    let table = |name: &String| LakeTable {
        name: name.clone(),
        columns: None,
    };
    let lake: Vec<_> = lake.map(|sink| table(&sink.name)).collect();
    let endpoints = spec.serve.iter().flat_map(|serve| &serve.endpoints);
    // What can't be read is refused elsewhere.
    let read = endpoints.filter_map(|endpoint| sql::tables(endpoint.sql.as_deref()?, &lake).ok());
    read.flatten().collect()
}

fn plan(endpoint: &Endpoint, readable: &Readable) -> Result<EndpointPlan, EndpointProblem> {
    let path = Path::parse(&endpoint.path).map_err(EndpointProblem::Path)?;
    if RESERVED_PATHS.contains(&path.first()) {
        return Err(EndpointProblem::Path(format!(
            "/{} is there in every service; choose another path",
            path.first()
        )));
    }
    let query = match (&endpoint.cql, &endpoint.sql) {
        (Some(cql), None) => plan_cql(endpoint, cql, &path, readable)?,
        (None, Some(sql)) => plan_sql(endpoint, sql, &path, readable)?,
        _ => return Err(EndpointProblem::Query),
    };
    Ok(EndpointPlan { path, query })
}

fn plan_cql(
    endpoint: &Endpoint,
    cql: &str,
    path: &Path,
    readable: &Readable,
) -> Result<EndpointQuery, EndpointProblem> {
    let select = Select::parse(cql).map_err(EndpointProblem::Cql)?;
    let transform = endpoint.transform.as_deref().map(sql::placeholders);
    let transform = transform.transpose().map_err(EndpointProblem::Transform)?;
    let transform = transform.unwrap_or_default();
    let markers = select.markers.iter().map(|marker| &marker.name);
    let used: Vec<_> = markers.chain(&transform).map(String::as_str).collect();
    let way = "write `:name` in the cql or `$name` in the transform, or take it out";
    check_parameters(endpoint, path, &used, way)?;
    check_placeholders(endpoint, &transform).map_err(EndpointProblem::Transform)?;
    check_format(endpoint)?;
    let keyspace = keyspace(&select, readable.keyspaces).map_err(EndpointProblem::Cql)?;
    let table = readable
        .tables
        .iter()
        .find(|(of, table)| of == keyspace && table.name == select.table)
        .map(|(_, table)| table);
    check_markers(endpoint, &select, table)?;
    let columns = match table {
        Some(table) => select.columns(table).map_err(EndpointProblem::Cql)?,
        None => None,
    };
    check_transform(endpoint, columns.as_deref())?;
    Ok(EndpointQuery::Cql(select.statement(keyspace)))
}

fn plan_sql(
    endpoint: &Endpoint,
    sql: &str,
    path: &Path,
    readable: &Readable,
) -> Result<EndpointQuery, EndpointProblem> {
    if endpoint.transform.is_some() {
        let says = "it goes with cql: write all of it in sql";
        return Err(EndpointProblem::Transform(says.into()));
    }
    let placeholders = sql::placeholders(sql).map_err(EndpointProblem::Sql)?;
    let used: Vec<_> = placeholders.iter().map(String::as_str).collect();
    let way = "write `$name` in the sql, or take it out";
    check_parameters(endpoint, path, &used, way)?;
    check_placeholders(endpoint, &placeholders).map_err(EndpointProblem::Sql)?;
    check_format(endpoint)?;
    let names = sql::tables(sql, readable.lake).map_err(EndpointProblem::Sql)?;
    sql::refuse_windows(sql).map_err(EndpointProblem::Sql)?;
    let columns = |name: &String| {
        let table = readable.lake.iter().find(|table| table.name == *name)?;
        Some((table.name.as_str(), table.columns.clone()?))
    };
    // Without the columns the worker plans it, who asks the tables.
    if let Some(tables) = names.iter().map(columns).collect::<Option<Vec<_>>>() {
        let query = SqlQuery::plan(sql, &tables, &endpoint.parameters);
        let query = query.map_err(EndpointProblem::Sql)?;
        check_plot(endpoint, &numbers(query.columns()))?;
    }
    Ok(EndpointQuery::Sql(names))
}

fn check_format(endpoint: &Endpoint) -> Result<(), EndpointProblem> {
    if endpoint.format == Format::Svg && endpoint.plot.is_none() {
        let says = "format is svg, and there is no plot";
        return Err(EndpointProblem::Plot(says.into()));
    }
    Ok(())
}

/// Checks the parameters themselves, and that the query reads them; `way` is the way out where it
/// doesn't.
fn check_parameters(
    endpoint: &Endpoint,
    path: &Path,
    used: &[&str],
    way: &str,
) -> Result<(), EndpointProblem> {
    let problem = |name: &str, problem: &str| EndpointProblem::Parameter {
        name: name.into(),
        problem: problem.into(),
    };
    for name in path.parameters() {
        if !is_declared(endpoint, name) {
            return Err(problem(
                name,
                "it is in the path and not in `parameters`; declare it",
            ));
        }
    }
    for parameter in &endpoint.parameters {
        let name = parameter.name.as_str();
        if name == NOW || RESERVED_PARAMETERS.contains(&name) {
            return Err(problem(
                name,
                "the name is taken: every endpoint has it; choose another",
            ));
        }
        if path.parameters().any(|of_path| of_path == name) && parameter.default.is_some() {
            return Err(problem(
                name,
                "it is in the path, and so always given: take out its default",
            ));
        }
        parameter::check(parameter).map_err(|error| problem(name, &error))?;
        if !used.contains(&name) {
            return Err(problem(name, &format!("no query reads it: {way}")));
        }
    }
    Ok(())
}

fn is_declared(endpoint: &Endpoint, name: &str) -> bool {
    let mut names = endpoint.parameters.iter().map(|parameter| &parameter.name);
    names.any(|declared| declared == name)
}

/// Holds the parameters that SQL reads against those that are declared.
fn check_placeholders(endpoint: &Endpoint, placeholders: &[String]) -> Result<(), String> {
    let mut placeholders = placeholders.iter();
    let unknown = placeholders.find(|used| *used != NOW && !is_declared(endpoint, used));
    unknown.map_or(Ok(()), |used| {
        Err(format!("`${used}` is not in `parameters`; declare it"))
    })
}

/// The keyspace that the query reads.
fn keyspace<'a>(select: &'a Select, keyspaces: &'a [String]) -> Result<&'a str, String> {
    let known = || keyspaces.join(", ");
    match (&select.keyspace, keyspaces) {
        (Some(named), _) if keyspaces.contains(named) => Ok(named),
        (Some(named), _) => Err(format!(
            "the pipeline has no sink in keyspace `{named}`, and only its own can be read: {}",
            known()
        )),
        (None, [only]) => Ok(only),
        (None, _) => Err(format!(
            "write the keyspace before the table, as in `keyspace.{}`; it can be one of {}",
            select.table,
            known()
        )),
    }
}

fn check_markers(
    endpoint: &Endpoint,
    select: &Select,
    table: Option<&TableSpec>,
) -> Result<(), EndpointProblem> {
    for marker in &select.markers {
        let parameter = endpoint
            .parameters
            .iter()
            .find(|parameter| parameter.name == marker.name);
        if parameter.is_none() && marker.name != NOW {
            return Err(EndpointProblem::Cql(format!(
                "`:{}` is not in `parameters`; declare it",
                marker.name
            )));
        }
        let Some(expected) = marker.cql_type(table).map_err(EndpointProblem::Cql)? else {
            continue;
        };
        if !fits_marker(parameter, &expected) {
            return Err(EndpointProblem::Cql(misfit(
                &marker.name,
                parameter,
                &expected,
            )));
        }
    }
    Ok(())
}

/// Says that a parameter can't stand where CQL expects another type.
pub fn misfit(name: &str, parameter: Option<&Parameter>, expected: &CqlType) -> String {
    let found = match parameter {
        Some(Parameter {
            ago: None,
            parameter_type,
            ..
        }) => format!("{parameter_type:?}").to_lowercase(),
        _ => "timestamp".into(),
    };
    format!("`:{name}` is `{found}` where Cassandra takes `{expected}`; give it another type")
}

fn check_transform(
    endpoint: &Endpoint,
    columns: Option<&[(String, CqlType)]>,
) -> Result<(), EndpointProblem> {
    // Without the columns' types the worker checks it, who asks Cassandra.
    let Some(columns) = columns else {
        return Ok(());
    };
    let result = match &endpoint.transform {
        Some(sql) => {
            let rows = [(ROWS, rows_schema(columns))];
            let transform = SqlQuery::plan(sql, &rows, &endpoint.parameters);
            numbers(transform.map_err(EndpointProblem::Transform)?.columns())
        }
        None => {
            let columns = columns.iter();
            columns
                .map(|(name, cql_type)| (name.clone(), is_number(cql_type)))
                .collect()
        }
    };
    check_plot(endpoint, &result)
}

/// Whether values of a type have a length in a plot.
pub fn is_number(cql_type: &CqlType) -> bool {
    arrow_type(cql_type).is_numeric()
}

/// The columns of SQL's result as [`check_plot`] takes them.
pub fn numbers(columns: &SchemaRef) -> Vec<(String, bool)> {
    let columns = columns.fields().iter();
    columns
        .map(|field| (field.name().clone(), field.data_type().is_numeric()))
        .collect()
}

/// Holds the plot against the result: names of columns, and whether they are numbers.
pub fn check_plot(endpoint: &Endpoint, result: &[(String, bool)]) -> Result<(), EndpointProblem> {
    let Some(plot) = &endpoint.plot else {
        return Ok(());
    };
    let names = || {
        result
            .iter()
            .map(|(name, _)| name.as_str())
            .collect::<Vec<_>>()
            .join(", ")
    };
    let columns = [("label", &plot.label, false), ("value", &plot.value, true)];
    for (field, column, number) in columns {
        let found = result.iter().find(|(name, _)| name == column);
        let problem = match found {
            None => format!(
                "{field}: the result has no column `{column}`; it has {}",
                names()
            ),
            Some((_, is_number)) if number && !is_number => {
                format!("{field}: column `{column}` is not a number")
            }
            Some(_) => continue,
        };
        return Err(EndpointProblem::Plot(problem));
    }
    Ok(())
}
