//! `spec.serve`, checked and planned: paths, parameters, CQL, and the SQL over its rows.
//!
//! The operator asks with the tables that it knows of, the worker without: it has the columns from
//! Cassandra itself and plans the [`Transform`] with them.

pub(crate) mod accept;
mod cql;
mod parameter;
mod path;
mod transform;

pub use accept::readable_keyspaces;
pub use parameter::{Value, fits_marker, parse, parse_time};
pub use path::Path;
pub use transform::{ROWS, Transform, arrow_type, rows_schema};

use millstream_api::{
    cql::CqlType,
    keyspace::TableSpec,
    serve::{Endpoint, Format, Parameter, Serve},
};
use thiserror::Error;

use self::cql::Select;

/// The marker, and the transform's parameter, for the present.
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
    #[error("cql: {0}")]
    Cql(String),
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
    /// The CQL, with the keyspace in it.
    pub statement: String,
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

fn plan(endpoint: &Endpoint, readable: &Readable) -> Result<EndpointPlan, EndpointProblem> {
    let path = Path::parse(&endpoint.path).map_err(EndpointProblem::Path)?;
    if RESERVED_PATHS.contains(&path.first()) {
        return Err(EndpointProblem::Path(format!(
            "/{} is there in every service; choose another path",
            path.first()
        )));
    }
    check_parameters(endpoint, &path)?;
    if endpoint.format == Format::Svg && endpoint.plot.is_none() {
        return Err(EndpointProblem::Plot(
            "format is svg, and there is no plot".into(),
        ));
    }
    let select = Select::parse(&endpoint.cql).map_err(EndpointProblem::Cql)?;
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
    Ok(EndpointPlan {
        path,
        statement: select.statement(keyspace),
    })
}

fn check_parameters(endpoint: &Endpoint, path: &Path) -> Result<(), EndpointProblem> {
    let problem = |name: &str, problem: &str| EndpointProblem::Parameter {
        name: name.into(),
        problem: problem.into(),
    };
    for name in path.parameters() {
        if !endpoint
            .parameters
            .iter()
            .any(|parameter| parameter.name == name)
        {
            return Err(problem(
                name,
                "it is in the path and not in `parameters`; declare it",
            ));
        }
    }
    let transform = endpoint.transform.as_deref().map(transform::placeholders);
    let transform = transform.transpose().map_err(EndpointProblem::Transform)?;
    let select = Select::parse(&endpoint.cql).map_err(EndpointProblem::Cql)?;
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
        let in_transform = transform.iter().flatten().any(|used| used == name);
        if !in_transform && !select.markers.iter().any(|marker| marker.name == name) {
            return Err(problem(
                name,
                "no query reads it: write `:name` in the cql or `$name` in the transform, or take it out",
            ));
        }
    }
    for used in transform.iter().flatten() {
        if used != NOW
            && !endpoint
                .parameters
                .iter()
                .any(|parameter| parameter.name == *used)
        {
            return Err(EndpointProblem::Transform(format!(
                "`${used}` is not in `parameters`; declare it"
            )));
        }
    }
    Ok(())
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
            let transform = Transform::plan(sql, &rows_schema(columns), &endpoint.parameters)
                .map_err(EndpointProblem::Transform)?;
            let fields = transform.columns().fields().iter();
            fields
                .map(|field| (field.name().clone(), field.data_type().is_numeric()))
                .collect()
        }
        None => {
            let columns = columns.iter();
            columns
                .map(|(name, cql_type)| (name.clone(), is_number(cql_type)))
                .collect::<Vec<_>>()
        }
    };
    check_plot(endpoint, &result)
}

/// Whether values of a type have a length in a plot.
pub fn is_number(cql_type: &CqlType) -> bool {
    arrow_type(cql_type).is_numeric()
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
    for (axis, column, number) in [("x", &plot.x, false), ("y", &plot.y, true)] {
        let found = result.iter().find(|(name, _)| name == column);
        let problem = match found {
            None => format!(
                "{axis}: the result has no column `{column}`; it has {}",
                names()
            ),
            Some((_, is_number)) if number && !is_number => {
                format!("{axis}: column `{column}` is not a number")
            }
            Some(_) => continue,
        };
        return Err(EndpointProblem::Plot(problem));
    }
    Ok(())
}
