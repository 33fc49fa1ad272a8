//! Pages for people: a table of rows, and `/docs`. Self-contained: nothing is fetched from elsewhere.

use maud::{DOCTYPE, Markup, PreEscaped, html};
use millstream_api::serve::{Endpoint, Format, Parameter, ParameterType};
use serde_json::Value;

use super::answer::Answer;

const STYLE: &str = include_str!("page.css");

/// The script of `/docs`.
pub const SCRIPT: &str = include_str!("docs.js");

fn page(title: &str, body: &Markup) -> String {
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                title { (title) }
                style { (PreEscaped(STYLE)) }
            }
            body { main { (body) } }
        }
    }
    .into_string()
}

/// The rows as a table.
pub fn table(answer: &Answer) -> String {
    let (endpoint, table) = (answer.endpoint, answer.table);
    let is_number: Vec<bool> = (0..table.columns.len())
        .map(|index| {
            let mut values = table.rows.iter().filter_map(|row| row.get(index));
            values.clone().any(Value::is_number)
                && values.all(|value| value.is_number() || value.is_null())
        })
        .collect();
    let class = |index: usize| if is_number[index] { "number" } else { "text" };
    let rows = table.rows.len();
    page(
        &format!("{} · {}", endpoint.name, answer.title),
        &html! {
            header {
                p.service { (answer.title) }
                h1 { (heading(endpoint)) }
                @if let Some(description) = &endpoint.description { p { (description) } }
                p.muted { (rows) @if rows == 1 { " row" } @else { " rows" } }
            }
            @if endpoint.plot.is_some() {
                p.muted { "also as a plot: add " code { "format=svg" } " to the address" }
            }
            div.scroll {
                table {
                    thead { tr {
                        @for (index, column) in table.columns.iter().enumerate() {
                            th class=(class(index)) { (column) }
                        }
                    } }
                    tbody {
                        @for row in &table.rows {
                            tr {
                                @for (index, value) in row.iter().enumerate() {
                                    td class=(class(index)) { (cell(value)) }
                                }
                            }
                        }
                    }
                }
            }
            @if rows == 0 { p.muted { "There are no rows." } }
            @if let Some(next) = &answer.next { p { a href=(next.link) rel="next" { "Next page" } } }
        },
    )
}

fn heading(endpoint: &Endpoint) -> String {
    let title = endpoint.plot.as_ref().and_then(|plot| plot.title.clone());
    title.unwrap_or_else(|| {
        let words = endpoint.name.replace('-', " ");
        let mut letters = words.chars();
        let first = letters.next().map(|first| first.to_uppercase().to_string());
        first.unwrap_or_default() + letters.as_str()
    })
}

fn cell(value: &Value) -> Markup {
    match value {
        Value::Null => html! { span.muted { "–" } },
        Value::String(text) => html! { (text) },
        other => html! { (other) },
    }
}

/// `/docs`: what can be asked, with a form to try each.
pub fn docs(title: &str, endpoints: &[&Endpoint], asks_key: bool, asks_password: bool) -> String {
    page(
        title,
        &html! {
            header {
                h1 { (title) }
                p.muted { "For programs: " a href="openapi.json" { "openapi.json" } " · " a href="health" { "health" } }
            }
            @if asks_key {
                p { label { "API key " input #api-key type="password" autocomplete="off"; } }
            }
            @if asks_password { p.muted { "The browser asks for user name and password." } }
            @for endpoint in endpoints { (docs_of(endpoint)) }
            script src="docs/docs.js" {}
        },
    )
}

fn docs_of(endpoint: &Endpoint) -> Markup {
    let in_path =
        |parameter: &Parameter| endpoint.path.contains(&format!("{{{}}}", parameter.name));
    html! {
        section id=(endpoint.name) {
            h2 { span.method { "GET" } " " code { (endpoint.path) } }
            @if let Some(description) = &endpoint.description { p { (description) } }
            form data-path=(endpoint.path) {
                @for parameter in &endpoint.parameters {
                    (field(parameter, if in_path(parameter) { "path" } else { "query" }))
                }
                @if endpoint.transform.is_none() {
                    label { span { code { "limit" } small { "rows, 1 to " (endpoint.max_rows) } }
                        input name="limit" data-in="query" inputmode="numeric"; }
                }
                @if endpoint.transform.is_none() && endpoint.cql.is_some() {
                    label { span { code { "page" } small { "token of the answer before" } }
                        input name="page" data-in="query"; }
                }
                label { span { code { "format" } small { "how rows are shown" } }
                    select name="format" data-in="query" {
                        option selected[endpoint.format == Format::Json] { "json" }
                        option selected[endpoint.format == Format::Html] { "html" }
                        @if endpoint.plot.is_some() {
                            option selected[endpoint.format == Format::Svg] { "svg" }
                        }
                    }
                }
                button { "Try it" }
            }
            div.result hidden {
                p { code.url {} " " span.status {} }
                pre {}
                iframe sandbox="" hidden title="table" {}
                img hidden alt="plot";
            }
        }
    }
}

fn field(parameter: &Parameter, place: &str) -> Markup {
    html! {
        label {
            span {
                code { (parameter.name) }
                small { (limits(parameter)) }
                @if let Some(description) = &parameter.description { small { (description) } }
            }
            @if parameter.allowed.is_empty() {
                input name=(parameter.name) data-in=(place) placeholder=[parameter.default.as_deref()]
                    required[parameter.default.is_none()];
            } @else {
                select name=(parameter.name) data-in=(place) {
                    @for value in &parameter.allowed {
                        option selected[parameter.default.as_ref() == Some(value)] { (value) }
                    }
                }
            }
        }
    }
}

/// Type and limits in words.
fn limits(parameter: &Parameter) -> String {
    let mut words = format!("{:?}", parameter.parameter_type).to_lowercase();
    if let Some(unit) = parameter.ago {
        words = format!("{} back", format!("{unit:?}").to_lowercase());
    }
    match (parameter.minimum, parameter.maximum) {
        (Some(low), Some(high)) => words += &format!(", {low} to {high}"),
        (Some(low), None) => words += &format!(", at least {low}"),
        (None, Some(high)) => words += &format!(", at most {high}"),
        (None, None) => {}
    }
    if let (Some(longest), ParameterType::Text) = (parameter.max_length, parameter.parameter_type) {
        words += &format!(", at most {longest} characters");
    }
    words
}
