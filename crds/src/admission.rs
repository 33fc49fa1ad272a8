//! What the API server would say of a resource before it lets it in: unknown fields, types, bounds
//! and CEL rules of its definition. For checks without a cluster.

mod schema;

use std::fmt;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinition, CustomResourceDefinitionVersion, JSONSchemaProps,
};
use kube::core::cel::Validator;
use serde_json::Value;

/// Longest name of an object.
const MAX_NAME: usize = 253;

/// What is wrong with a field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Path from the top, such as `spec.sinks[0].name`; empty for the whole resource.
    pub field: String,
    /// In words.
    pub message: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.field.as_str() {
            "" => f.write_str(&self.message),
            field => write!(f, "{field}: {}", self.message),
        }
    }
}

/// Holds a new resource of this definition's kind to its schema, and then to its rules. Rules that
/// compare with an older state have nothing to say.
pub fn admit(definition: &CustomResourceDefinition, resource: &Value) -> Vec<Violation> {
    let mut violations = Vec::new();
    check_name(resource, &mut violations);
    let Some(schema) = schema_of(definition, resource, &mut violations) else {
        return violations;
    };
    schema::check_resource(schema, resource, &mut violations);
    if violations.is_empty() {
        check_rules(schema, &without_nulls(resource.clone()), &mut violations);
    }
    violations
}

/// Null stands for absent: the API server puts in the default.
pub fn without_nulls(value: Value) -> Value {
    match value {
        Value::Object(fields) => fields
            .into_iter()
            .filter(|(_, value)| !value.is_null())
            .map(|(name, value)| (name, without_nulls(value)))
            .collect(),
        Value::Array(items) => items.into_iter().map(without_nulls).collect(),
        other => other,
    }
}

/// The schema of the version that the resource says it is of.
fn schema_of<'a>(
    definition: &'a CustomResourceDefinition,
    resource: &Value,
    violations: &mut Vec<Violation>,
) -> Option<&'a JSONSchemaProps> {
    let group = &definition.spec.group;
    let api_version =
        |version: &CustomResourceDefinitionVersion| format!("{group}/{}", version.name);
    let served: Vec<_> = definition.spec.versions.iter().map(api_version).collect();
    let asked = resource["apiVersion"].as_str().unwrap_or_default();
    let found = served.iter().position(|version| version == asked);
    let Some(version) = found.and_then(|index| definition.spec.versions.get(index)) else {
        violations.push(Violation {
            field: "apiVersion".into(),
            message: format!("there is no `{asked}`; write {}", served.join(" or ")),
        });
        return None;
    };
    version.schema.as_ref()?.open_api_v3_schema.as_ref()
}

/// RFC 1123, as of all objects that are defined so.
fn check_name(resource: &Value, violations: &mut Vec<Violation>) {
    let name = resource["metadata"]["name"].as_str().unwrap_or_default();
    let valid = |label: &str| {
        let alphanumeric = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
        label.starts_with(alphanumeric)
            && label.ends_with(alphanumeric)
            && label.chars().all(|c| alphanumeric(c) || c == '-')
    };
    let message = if name.is_empty() {
        "a name is required".to_owned()
    } else if name.len() > MAX_NAME || !name.split('.').all(valid) {
        format!("`{name}` can't be a name: it takes a-z, 0-9, `-` and `.`, {MAX_NAME} at most")
    } else {
        return;
    };
    violations.push(Violation {
        field: "metadata.name".into(),
        message,
    });
}

fn check_rules(schema: &JSONSchemaProps, resource: &Value, violations: &mut Vec<Violation>) {
    let Ok(schema) = serde_json::to_value(schema) else {
        return;
    };
    let Err(errors) = Validator::new().validate(&schema, resource, None) else {
        return;
    };
    violations.extend(errors.into_iter().map(|error| Violation {
        field: error.field_path,
        message: error.message,
    }));
}

#[cfg(test)]
mod tests;
