//! `docs/reference.md`: each kind's fields with their types, defaults and rules.

use std::fmt::Write;

use serde_json::{Map, Value};

/// Objects that Kubernetes documents better.
const KNOWN: [(&str, &str); 2] = [
    ("resources", "ResourceRequirements"),
    ("conditions", "[]Condition"),
];

/// The whole page.
pub fn page(notice: &str, definitions: &[Value]) -> String {
    let mut page = format!("<!-- {notice} -->\n\n# Reference\n");
    for definition in definitions {
        kind(&mut page, definition);
    }
    page
}

fn kind(page: &mut String, definition: &Value) {
    let spec = &definition["spec"];
    let (group, names) = (text(&spec["group"]), &spec["names"]);
    for version in array(&spec["versions"]) {
        let schema = &version["schema"]["openAPIV3Schema"];
        // Writing to a String can't fail.
        let _ = writeln!(
            page,
            "\n## {}\n\n`apiVersion: {group}/{}`, {}, short name `{}`\n\n{}",
            text(&names["kind"]),
            text(&version["name"]),
            text(&spec["scope"]).to_lowercase(),
            array(&names["shortNames"])
                .map(text)
                .collect::<Vec<_>>()
                .join("`, `"),
            text(&schema["description"]),
        );
        if let Some(scale) = version["subresources"].get("scale") {
            let _ = writeln!(
                page,
                "\n`kubectl scale` sets `{}`.",
                &text(&scale["specReplicasPath"])[1..]
            );
        }
        for part in ["spec", "status"] {
            let schema = &schema["properties"][part];
            let _ = writeln!(
                page,
                "\n### {} {part}\n\n{}\n",
                text(&names["kind"]),
                text(&schema["description"])
            );
            fields(page, schema, part);
        }
        rules(page, schema);
    }
}

fn fields(page: &mut String, schema: &Value, path: &str) {
    page.push_str("| field | type | default | |\n|---|---|---|---|\n");
    let mut rows = Vec::new();
    collect(&mut rows, schema, path);
    for row in rows {
        let _ = writeln!(
            page,
            "| `{}` | {} | {} | {} |",
            row.path, row.type_name, row.default, row.text
        );
    }
}

struct Row {
    path: String,
    type_name: String,
    default: String,
    text: String,
}

fn collect(rows: &mut Vec<Row>, schema: &Value, path: &str) {
    let required: Vec<_> = array(&schema["required"]).map(text).collect();
    for (name, field) in properties(schema) {
        let path = format!("{path}.{name}");
        let known = KNOWN.iter().find(|(known, _)| known == name);
        rows.push(Row {
            type_name: known.map_or_else(|| type_name(field), |(_, name)| (*name).to_owned()),
            default: match field.get("default") {
                Some(default) => format!("`{default}`"),
                None if required.contains(&name.as_str()) => "required".to_owned(),
                None => String::new(),
            },
            text: described(field),
            path: path.clone(),
        });
        if known.is_none() {
            collect(rows, field, &path);
            collect(rows, &field["items"], &format!("{path}[]"));
        }
    }
}

fn type_name(field: &Value) -> String {
    let name = text(&field["type"]);
    match name {
        "array" => format!("[]{}", type_name(&field["items"])),
        "object" => match field.get("additionalProperties") {
            Some(values) => format!("map of {}", type_name(values)),
            None => "object".to_owned(),
        },
        _ => name.to_owned(),
    }
}

/// The description and the limits, in one line that a table can hold.
fn described(field: &Value) -> String {
    let paragraph = |text: &str| text.replace("\n\n", "<br>").replace('\n', " ");
    let mut sentences = vec![paragraph(text(&field["description"]))];
    let values: Vec<_> = array(&field["enum"])
        .map(|value| format!("`{}`", text(value)))
        .collect();
    if !values.is_empty() {
        sentences.push(format!("One of {}.", values.join(", ")));
    }
    if let Some(pattern) = field["pattern"].as_str() {
        sentences.push(format!("Matches `{pattern}`."));
    }
    for (low, high, unit) in [
        ("minimum", "maximum", ""),
        ("minLength", "maxLength", " characters"),
        ("minItems", "maxItems", " items"),
    ] {
        let limit = match (field[low].as_f64(), field[high].as_f64()) {
            (Some(low), Some(high)) => format!("{low} to {high}{unit}."),
            (Some(low), None) if low == 1.0 && !unit.is_empty() => "Not empty.".to_owned(),
            (Some(low), None) => format!("At least {low}{unit}."),
            (None, Some(high)) => format!("At most {high}{unit}."),
            (None, None) => continue,
        };
        sentences.push(limit);
    }
    sentences.retain(|sentence| !sentence.is_empty());
    sentences.join(" ").replace('|', "\\|")
}

fn rules(page: &mut String, schema: &Value) {
    let mut found = Vec::new();
    collect_rules(&mut found, schema, "");
    if found.is_empty() {
        return;
    }
    page.push_str("\n### Rules\n\nThe API server refuses what breaks one of these.\n\n| where | says | rule |\n|---|---|---|\n");
    for (path, rule) in found {
        let (says, rule) = (
            text(&rule["message"]),
            text(&rule["rule"]).replace('|', "\\|"),
        );
        let path = if path.is_empty() {
            "the resource"
        } else {
            &path
        };
        let _ = writeln!(page, "| {path} | {says} | `{rule}` |");
    }
}

fn collect_rules<'a>(found: &mut Vec<(String, &'a Value)>, schema: &'a Value, path: &str) {
    for rule in array(&schema["x-kubernetes-validations"]) {
        found.push((path.to_owned(), rule));
    }
    for (name, field) in properties(schema) {
        let path = if path.is_empty() {
            name.clone()
        } else {
            format!("{path}.{name}")
        };
        collect_rules(found, field, &path);
        collect_rules(found, &field["items"], &format!("{path}[]"));
    }
}

fn properties(schema: &Value) -> impl Iterator<Item = (&String, &Value)> {
    schema["properties"]
        .as_object()
        .into_iter()
        .flat_map(Map::iter)
}

fn array(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}
