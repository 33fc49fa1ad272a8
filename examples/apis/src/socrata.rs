//! Socrata: `GET /resource/<id>.json` with `$limit`, `$offset`, `$order` and `$select`, over one
//! dataset whatever the id. Generated rows are business licences, as New York publishes them.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use rand::RngExt;
use serde_json::{Map, Value, json};

use crate::faults::Injected;
use crate::randomuser::{fill, pick};
use crate::{Apis, random};

const DEFAULT_LIMIT: u64 = 1000;
/// As many as the public API gives at most.
const MAX_LIMIT: u64 = 50_000;

pub(crate) async fn serve(
    State(apis): State<Arc<Apis>>,
    Path(file): Path<String>,
    fault: Injected,
    Query(parameters): Query<BTreeMap<String, String>>,
) -> Response {
    if !file.ends_with(".json") {
        return refusal(StatusCode::NOT_FOUND, "there is only /resource/<id>.json");
    }
    match Soql::parse(&parameters) {
        Ok(query) => fault.answer(|delivered| apis.rows(&query, delivered)).await,
        Err(message) => refusal(StatusCode::BAD_REQUEST, &message),
    }
}

fn refusal(status: StatusCode, message: &str) -> Response {
    let body = json!({"code": "query.soql.refused", "error": true, "message": message});
    (status, Json(body)).into_response()
}

/// A query, as far as this server understands it.
struct Soql {
    limit: u64,
    offset: u64,
    order: Vec<Column>,
    select: Select,
}

struct Column {
    name: String,
    descending: bool,
}

enum Select {
    All,
    Count,
    Columns(Vec<String>),
}

impl Soql {
    fn parse(parameters: &BTreeMap<String, String>) -> Result<Self, String> {
        let mut query = Soql {
            limit: DEFAULT_LIMIT,
            offset: 0,
            order: Vec::new(),
            select: Select::All,
        };
        for (name, value) in parameters {
            let number = || {
                value
                    .parse()
                    .map_err(|_| format!("`{name}={value}` is no number"))
            };
            match name.as_str() {
                "$limit" => query.limit = number()?,
                "$offset" => query.offset = number()?,
                "$order" => query.order = list(value).map(column).collect::<Result<_, _>>()?,
                "$select" => query.select = select(value),
                "fault" | "delay" | "retryAfter" => {}
                _ => {
                    return Err(format!(
                        "`{name}` isn't understood; there are $limit, $offset, $order and $select"
                    ));
                }
            }
        }
        match query.limit {
            0..=MAX_LIMIT => Ok(query),
            _ => Err(format!("`$limit` is {MAX_LIMIT} at most")),
        }
    }
}

fn list(value: &str) -> impl Iterator<Item = &str> {
    value.split(',').map(str::trim)
}

fn column(text: &str) -> Result<Column, String> {
    let (name, order) = text.split_once(' ').unwrap_or((text, "ASC"));
    let descending = match order.trim().to_ascii_uppercase().as_str() {
        "ASC" => false,
        "DESC" => true,
        other => return Err(format!("`$order`: `{other}` is neither ASC nor DESC")),
    };
    Ok(Column {
        name: name.to_owned(),
        descending,
    })
}

fn select(value: &str) -> Select {
    match value.replace(' ', "").to_ascii_lowercase().as_str() {
        "*" => Select::All,
        "count(*)" => Select::Count,
        _ => Select::Columns(list(value).map(str::to_owned).collect()),
    }
}

impl Apis {
    fn rows(&self, query: &Soql, delivered: bool) -> Value {
        let dataset = self.dataset();
        if let Select::Count = query.select {
            return json!([{"count": dataset.records().len().to_string()}]);
        }
        let page = match query.order.as_slice() {
            [] => dataset.page(query.offset, query.limit).to_vec(),
            order => {
                let mut rows: Vec<&Value> = dataset.records().iter().collect();
                rows.sort_by(|a, b| compare(a, b, order));
                let skip = usize::try_from(query.offset).unwrap_or(usize::MAX);
                let rows = rows.into_iter().skip(skip).take(query.limit as usize);
                rows.cloned().collect()
            }
        };
        if delivered {
            self.rows_sent.add(&page);
        }
        match &query.select {
            Select::Columns(columns) => page.iter().map(|row| only(row, columns)).collect(),
            _ => Value::Array(page),
        }
    }
}

/// Texts by their characters, numbers by their value; what is absent comes last.
fn compare(a: &Value, b: &Value, order: &[Column]) -> Ordering {
    for Column { name, descending } in order {
        let ordering = match (a.get(name), b.get(name)) {
            (Some(Value::String(a)), Some(Value::String(b))) => a.cmp(b),
            (Some(a), Some(b)) => a
                .as_f64()
                .partial_cmp(&b.as_f64())
                .unwrap_or(Ordering::Equal),
            (a, b) => b.is_some().cmp(&a.is_some()),
        };
        match ordering {
            Ordering::Equal => {}
            ordering if *descending => return ordering.reverse(),
            ordering => return ordering,
        }
    }
    Ordering::Equal
}

fn only(row: &Value, columns: &[String]) -> Value {
    let kept = columns
        .iter()
        .filter_map(|name| Some((name.clone(), row.get(name)?.clone())));
    Value::Object(kept.collect::<Map<_, _>>())
}

/// The licence at this place of the seed's endless list.
pub fn business(seed: &str, index: u64) -> Value {
    const INDUSTRIES: &[&str] = &[
        "Tobacco Retail Dealer",
        "Stoop Line Stand",
        "Electronic Cigarette Dealer",
        "Sidewalk Cafe",
        "Laundries",
        "Secondhand Dealer - General",
    ];
    const BOROUGHS: &[(&str, &str, &str)] = &[
        ("Manhattan", "NEW YORK", "1"),
        ("Bronx", "BRONX", "2"),
        ("Brooklyn", "BROOKLYN", "3"),
        ("Queens", "OZONE PARK", "4"),
        ("Staten Island", "STATEN ISLAND", "5"),
    ];
    const NAMES: &[&str] = &[
        "CAESAR'S GROCERY & DELI",
        "JOEY EXPRESS DELI INC",
        "CAFÉ 2ND AVENUE",
        "SUN LAUNDRY, LLC",
    ];
    const STREETS: &[&str] = &["SUTTER AVE", "1ST AVE", "SOUTHERN BLVD", "BROADWAY"];

    let rng = &mut random(seed, "business", index);
    let detail = format!(
        "Sidewalk Cafe Type: Unenclosed, Square Feet: {}, Tables: {}, Chairs: {}",
        fill(rng, "2##"),
        fill(rng, "1#"),
        fill(rng, "2#"),
    );
    let (borough, city, code) = pick(rng, BOROUGHS);
    let year = rng.random_range(1995..2024);
    let month = rng.random_range(1..=12);
    let active = rng.random_ratio(1, 5);
    let expires = year + rng.random_range(1..10);
    let (latitude, longitude) = (rng.random_range(40.5..40.9), rng.random_range(-74.2..-73.7));
    let mut business = json!({
        "license_nbr": format!("{}-DCA", 1_000_000 + index),
        "license_type": "Business",
        "lic_expir_dd": format!("{expires}-{month:02}-28T00:00:00.000"),
        "license_status": if active { "Active" } else { "Inactive" },
        "license_creation_date": format!("{year}-{month:02}-05T00:00:00.000"),
        "industry": pick(rng, INDUSTRIES),
        "business_name": pick(rng, NAMES),
        "business_name_2": pick(rng, NAMES),
        "detail": detail,
        "address_building": fill(rng, "1##"),
        "address_street_name": pick(rng, STREETS),
        "address_city": city,
        "address_state": "NY",
        "address_zip": fill(rng, "11###"),
        "contact_phone": fill(rng, "555#######"),
        "address_borough": borough,
        "borough_code": code,
        "longitude": format!("{longitude:.8}"),
        "latitude": format!("{latitude:.8}"),
        "location": {"latitude": latitude.to_string(), "longitude": longitude.to_string()},
    });
    // The API leaves out what it doesn't know; it never says null.
    if let Some(fields) = business.as_object_mut() {
        for (field, known) in [
            ("business_name_2", 25),
            ("detail", 10),
            ("contact_phone", 96),
        ] {
            if !rng.random_ratio(known, 100) {
                fields.shift_remove(field);
            }
        }
    }
    business
}
