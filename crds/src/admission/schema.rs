//! A value held to a structural schema, as the API server reads it.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    JSONSchemaProps, JSONSchemaPropsOrArray, JSONSchemaPropsOrBool,
};
use regex::Regex;
use serde_json::{Map, Value};

use super::Violation;

/// What every resource has, whatever its schema.
const META: [&str; 3] = ["apiVersion", "kind", "metadata"];

/// Checks a whole resource.
pub fn check_resource(schema: &JSONSchemaProps, resource: &Value, violations: &mut Vec<Violation>) {
    let Value::Object(fields) = resource else {
        return;
    };
    let mut fields = fields.clone();
    fields.retain(|name, _| !META.contains(&name.as_str()));
    Check { violations }.value(schema, &Value::Object(fields), "");
}

struct Check<'a> {
    violations: &'a mut Vec<Violation>,
}

impl Check<'_> {
    fn say(&mut self, field: &str, message: impl Into<String>) {
        self.violations.push(Violation {
            field: field.to_owned(),
            message: message.into(),
        });
    }

    fn value(&mut self, schema: &JSONSchemaProps, value: &Value, field: &str) {
        // Null stands for absent where there is a default, or where the field may be null.
        if value.is_null() && (schema.nullable == Some(true) || schema.default.is_some()) {
            return;
        }
        if let Some(expected) = expected(schema)
            && !is_of(value, expected)
        {
            let found = kind(value);
            return self.say(field, format!("must be {expected}, and is {found}"));
        }
        if let Some(allowed) = &schema.enum_
            && !allowed.iter().any(|allowed| allowed.0 == *value)
        {
            let allowed: Vec<_> = allowed.iter().map(|value| plain(&value.0)).collect();
            let allowed = allowed.join(", ");
            self.say(
                field,
                format!("must be one of {allowed}, and is {}", plain(value)),
            );
        }
        match value {
            Value::Object(fields) => self.object(schema, fields, field),
            Value::Array(items) => self.array(schema, items, field),
            Value::String(text) => self.text(schema, text, field),
            Value::Number(number) => {
                self.number(schema, number.as_f64().unwrap_or(f64::NAN), field)
            }
            Value::Bool(_) | Value::Null => {}
        }
    }

    fn object(&mut self, schema: &JSONSchemaProps, fields: &Map<String, Value>, field: &str) {
        for name in schema.required.iter().flatten() {
            if !fields.contains_key(name) {
                self.say(&below(field, name), "is required");
            }
        }
        let known = |name: &String| schema.properties.as_ref()?.get(name);
        for (name, value) in fields {
            let path = below(field, name);
            match (known(name), &schema.additional_properties) {
                (Some(schema), _) => self.value(schema, value, &path),
                (None, Some(JSONSchemaPropsOrBool::Schema(schema))) => {
                    self.value(schema, value, &path);
                }
                (None, Some(JSONSchemaPropsOrBool::Bool(true))) => {}
                _ if schema.x_kubernetes_preserve_unknown_fields == Some(true) => {}
                _ => {
                    let names = schema
                        .properties
                        .iter()
                        .flatten()
                        .map(|(name, _)| name.as_str());
                    let names = names.collect::<Vec<_>>().join(", ");
                    self.say(&path, format!("unknown field; there are {names}"));
                }
            }
        }
    }

    fn array(&mut self, schema: &JSONSchemaProps, items: &[Value], field: &str) {
        let count = items.len() as i64;
        self.at_least(field, schema.min_items, count, "items");
        self.at_most(field, schema.max_items, count, "items");
        if let Some(JSONSchemaPropsOrArray::Schema(schema)) = &schema.items {
            for (index, item) in items.iter().enumerate() {
                self.value(schema, item, &format!("{field}[{index}]"));
            }
        }
        let list_type = schema.x_kubernetes_list_type.as_deref();
        if !matches!(list_type, Some("map" | "set")) {
            return;
        }
        let key = |item: &Value| match &schema.x_kubernetes_list_map_keys {
            Some(keys) => keys.iter().map(|key| item[key].clone()).collect(),
            // Of a set: an item is its own key.
            None => vec![item.clone()],
        };
        for (index, item) in items.iter().enumerate() {
            if items[..index].iter().any(|before| key(before) == key(item)) {
                let keys: Vec<_> = key(item).iter().map(plain).collect();
                self.say(
                    &format!("{field}[{index}]"),
                    format!("{} is there twice", keys.join(", ")),
                );
            }
        }
    }

    fn text(&mut self, schema: &JSONSchemaProps, text: &str, field: &str) {
        let length = text.chars().count() as i64;
        self.at_least(field, schema.min_length, length, "characters");
        self.at_most(field, schema.max_length, length, "characters");
        let pattern = schema.pattern.as_ref();
        if let Some(pattern) = pattern.and_then(|pattern| Regex::new(pattern).ok())
            && !pattern.is_match(text)
        {
            self.say(field, format!("`{text}` must match {pattern}"));
        }
    }

    fn number(&mut self, schema: &JSONSchemaProps, number: f64, field: &str) {
        if let Some(minimum) = schema.minimum.filter(|minimum| number < *minimum) {
            self.say(
                field,
                format!("must be at least {minimum}, and is {number}"),
            );
        }
        if let Some(maximum) = schema.maximum.filter(|maximum| number > *maximum) {
            self.say(field, format!("must be at most {maximum}, and is {number}"));
        }
    }

    fn at_least(&mut self, field: &str, minimum: Option<i64>, found: i64, what: &str) {
        if let Some(minimum) = minimum.filter(|minimum| found < *minimum) {
            self.say(
                field,
                format!("must have at least {minimum} {what}, and has {found}"),
            );
        }
    }

    fn at_most(&mut self, field: &str, maximum: Option<i64>, found: i64, what: &str) {
        if let Some(maximum) = maximum.filter(|maximum| found > *maximum) {
            self.say(
                field,
                format!("may have {maximum} {what} at most, and has {found}"),
            );
        }
    }
}

fn below(field: &str, name: &str) -> String {
    match field {
        "" => name.to_owned(),
        field => format!("{field}.{name}"),
    }
}

/// The type that a schema asks for, in words.
fn expected(schema: &JSONSchemaProps) -> Option<&'static str> {
    if schema.x_kubernetes_int_or_string == Some(true) {
        return Some("an integer or a string");
    }
    Some(match schema.type_.as_deref()? {
        "object" => "an object",
        "array" => "a list",
        "string" => "a string",
        "boolean" => "a boolean",
        "integer" => "an integer",
        "number" => "a number",
        _ => return None,
    })
}

fn is_of(value: &Value, expected: &str) -> bool {
    let kind = kind(value);
    kind == expected
        || expected == "a number" && kind == "an integer"
        || expected == "an integer or a string" && matches!(kind, "an integer" | "a string")
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(number) if number.as_f64().is_some_and(|number| number.fract() == 0.0) => {
            "an integer"
        }
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

/// A value as a person writes it in YAML.
fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        value => value.to_string(),
    }
}
