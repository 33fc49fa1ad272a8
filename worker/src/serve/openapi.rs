//! `/openapi.json`: the service as OpenAPI 3.1 describes it.

use datafusion::arrow::datatypes::{Schema, SchemaRef};
use millstream_api::serve::{Endpoint, Parameter, ParameterType, Shape};
use serde_json::{Map, Value, json};

use super::query::json_type;

/// Who may ask.
pub struct Security {
    pub api_key: bool,
    pub basic: bool,
}

/// The document; the columns are there for endpoints whose tables were seen already.
pub fn document<'a>(
    title: &str,
    security: &Security,
    endpoints: impl Iterator<Item = (&'a Endpoint, Option<SchemaRef>)>,
) -> Value {
    let mut paths = Map::new();
    for (endpoint, columns) in endpoints {
        paths.insert(
            endpoint.path.clone(),
            json!({"get": operation(endpoint, columns.as_deref(), security)}),
        );
    }
    let health = json!({"type": "object", "properties": {
        "status": {"type": "string"}, "cassandra": {"type": "string"}, "tables": {"type": "string"},
    }});
    let health = json!({"application/json": {"schema": health}});
    paths.insert(
        "/health".into(),
        json!({"get": {
            "operationId": "health",
            "summary": "Whether the service, and what it reads, are there",
            "security": [],
            "responses": {
                "200": {"description": "They are there", "content": health},
                "503": {"description": "What it reads is away", "content": health},
            },
        }}),
    );
    let mut document = json!({
        "openapi": "3.1.0",
        "info": {"title": title, "version": env!("CARGO_PKG_VERSION")},
        "paths": paths,
        "components": {"schemas": {"Problem": problem()}},
    });
    let mut schemes = Map::new();
    if security.api_key {
        let scheme = json!({"type": "apiKey", "in": "header", "name": "X-API-Key"});
        schemes.insert("apiKey".into(), scheme);
    }
    if security.basic {
        schemes.insert("basic".into(), json!({"type": "http", "scheme": "basic"}));
    }
    if !schemes.is_empty() {
        let any: Vec<_> = schemes.keys().map(|name| json!({name: []})).collect();
        document["security"] = json!(any);
        document["components"]["securitySchemes"] = Value::Object(schemes);
    }
    document
}

fn operation(endpoint: &Endpoint, columns: Option<&Schema>, security: &Security) -> Value {
    let mut parameters: Vec<_> = endpoint
        .parameters
        .iter()
        .map(|parameter| described(endpoint, parameter))
        .collect();
    let mut formats = vec!["json", "html"];
    let mut content = json!({
        "application/json": {"schema": answer(endpoint, columns)},
        "text/html": {"schema": {"type": "string"}},
    });
    if endpoint.plot.is_some() {
        formats.push("svg");
        content["image/svg+xml"] = json!({"schema": {"type": "string"}});
    }
    let mut query = |name: &str, description: &str, schema: Value| {
        parameters.push(json!({
            "name": name, "in": "query", "required": false,
            "description": description, "schema": schema,
        }));
    };
    let format = json!({"type": "string", "enum": formats});
    query(
        "format",
        "How rows are shown; `Accept` decides where absent",
        format,
    );
    if endpoint.transform.is_none() {
        let mut limit = json!({"type": "integer", "minimum": 1, "maximum": endpoint.max_rows});
        if endpoint.cql.is_some() {
            limit["default"] = json!(endpoint.max_rows);
        }
        query("limit", "Rows of an answer", limit);
    }
    if endpoint.cql.is_some() && endpoint.transform.is_none() {
        query(
            "page",
            "The token that the answer before gave",
            json!({"type": "string"}),
        );
    }
    let mut responses = json!({"200": {"description": "The rows", "content": content}});
    responses["304"] = json!({"description": "The one who asks has this answer already"});
    let mut failures = vec![
        ("400", "A parameter is wrong"),
        ("503", "What it reads is away; ask again"),
    ];
    if security.api_key || security.basic {
        failures.push(("401", "The key or password is missing or wrong"));
    }
    for (status, description) in failures {
        let schema = json!({"schema": {"$ref": "#/components/schemas/Problem"}});
        responses[status] =
            json!({"description": description, "content": {"application/problem+json": schema}});
    }
    let mut operation = json!({
        "operationId": endpoint.name,
        "parameters": parameters,
        "responses": responses,
    });
    if let Some(description) = &endpoint.description {
        operation["summary"] = json!(description);
    }
    operation
}

fn described(endpoint: &Endpoint, parameter: &Parameter) -> Value {
    let in_path = endpoint.path.contains(&format!("{{{}}}", parameter.name));
    let mut described = json!({
        "name": parameter.name,
        "in": if in_path { "path" } else { "query" },
        "required": in_path || parameter.default.is_none(),
        "schema": schema(parameter),
    });
    if let Some(description) = &parameter.description {
        described["description"] = json!(description);
    }
    described
}

fn schema(parameter: &Parameter) -> Value {
    let (name, format) = match parameter.parameter_type {
        ParameterType::Text => ("string", None),
        ParameterType::Int => ("integer", Some("int32")),
        ParameterType::Bigint => ("integer", Some("int64")),
        ParameterType::Uuid => ("string", Some("uuid")),
        ParameterType::Timestamp => ("string", Some("date-time")),
        ParameterType::Double => ("number", Some("double")),
        ParameterType::Boolean => ("boolean", None),
    };
    // The default and the allowed values are texts, as in a URL; here they are of their type.
    let typed = |text: &String| match name {
        "string" => json!(text),
        _ => serde_json::from_str(text).unwrap_or_else(|_| json!(text)),
    };
    let mut schema = Map::from_iter([("type".to_owned(), json!(name))]);
    for (key, value) in [
        ("format", format.map(|format| json!(format))),
        ("minimum", parameter.minimum.map(|number| json!(number))),
        ("maximum", parameter.maximum.map(|number| json!(number))),
        (
            "maxLength",
            parameter.max_length.map(|number| json!(number)),
        ),
        ("default", parameter.default.as_ref().map(typed)),
    ] {
        if let Some(value) = value {
            schema.insert(key.into(), value);
        }
    }
    if !parameter.allowed.is_empty() {
        schema.insert("enum".into(), parameter.allowed.iter().map(typed).collect());
    }
    Value::Object(schema)
}

fn answer(endpoint: &Endpoint, columns: Option<&Schema>) -> Value {
    let mut row = json!({"type": "object"});
    if let Some(columns) = columns {
        let property = |field: &std::sync::Arc<datafusion::arrow::datatypes::Field>| {
            let (name, format) = json_type(field.data_type());
            let mut property = json!({"type": [name, "null"]});
            if let Some(format) = format {
                property["format"] = json!(format);
            }
            (field.name().clone(), property)
        };
        row["properties"] = columns
            .fields()
            .iter()
            .map(property)
            .collect::<Map<_, _>>()
            .into();
    }
    let rows = json!({"type": "array", "items": row});
    match endpoint.shape {
        Shape::Array => rows,
        Shape::Object => json!({
            "type": "object",
            "required": ["items", "count"],
            "properties": {"items": rows, "count": {"type": "integer"}, "next": {"type": "string"}},
        }),
    }
}

fn problem() -> Value {
    json!({
        "type": "object",
        "description": "RFC 9457",
        "properties": {
            "type": {"type": "string"}, "title": {"type": "string"},
            "status": {"type": "integer"}, "detail": {"type": "string"},
            "parameter": {"type": "string"},
        },
    })
}
