//! Faults on request: for one request by its query (`fault=500|429|slow|cut|malformed`), or for
//! the requests to come by `POST /faults` with `{"kind": K, "next": N}` or `{"kind": K, "rate": R}`.
//!
//! A request that gets a fault other than `slow` takes no record: what it would have got is served
//! to the next one.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::{FromRequestParts, Query, State};
use axum::http::{HeaderValue, StatusCode, header, request::Parts};
use axum::response::{IntoResponse, Response};
use futures::{StreamExt, stream};
use rand::RngExt;
use rand::rngs::StdRng;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::{Apis, random};

/// What goes wrong.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Status 500.
    #[serde(rename = "500")]
    InternalError,
    /// Status 429 with `Retry-After`.
    #[serde(rename = "429")]
    TooManyRequests,
    /// The whole answer, but late.
    Slow,
    /// The connection is closed in the middle of the answer.
    Cut,
    /// Status 200 and half a JSON text.
    Malformed,
}

/// A fault and its details.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Fault {
    /// What goes wrong.
    pub kind: Kind,
    /// For `429`: the value of `Retry-After`, in seconds.
    #[serde(default = "one")]
    pub retry_after: u64,
    /// For `slow`: how late the answer is, in milliseconds.
    #[serde(default = "ten_seconds")]
    pub delay: u64,
}

fn one() -> u64 {
    1
}

fn ten_seconds() -> u64 {
    10_000
}

/// Which requests get a fault: the `next` ones, or a share of all (`rate`, 0 to 1).
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq)]
pub(crate) struct Order {
    #[serde(flatten)]
    fault: Fault,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    next: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    rate: Option<f64>,
}

/// The order in force and the faults so far.
pub(crate) struct Faults(Mutex<Ordered>);

struct Ordered {
    order: Option<Order>,
    injected: BTreeMap<Kind, u64>,
    random: StdRng,
}

impl Faults {
    pub(crate) fn new(seed: &str) -> Self {
        Faults(Mutex::new(Ordered {
            order: None,
            injected: BTreeMap::new(),
            random: random(seed, "faults", 0),
        }))
    }

    /// The fault of the next request, if it gets one.
    fn draw(&self, asked_for: Option<Fault>) -> Option<Fault> {
        let mut ordered = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let fault = asked_for.or_else(|| ordered.draw())?;
        *ordered.injected.entry(fault.kind).or_default() += 1;
        Some(fault)
    }
}

impl Ordered {
    fn draw(&mut self) -> Option<Fault> {
        let order = self.order.as_mut()?;
        let hit = match (&mut order.next, order.rate) {
            (Some(0), _) => false,
            (Some(next), _) => {
                *next -= 1;
                true
            }
            (None, rate) => self.random.random::<f64>() < rate.unwrap_or_default(),
        };
        hit.then_some(order.fault)
    }
}

/// `GET /faults`: the order in force, and how many requests got which fault.
pub(crate) async fn show(State(apis): State<Arc<Apis>>) -> Json<Value> {
    let ordered = apis.faults.0.lock().unwrap_or_else(PoisonError::into_inner);
    let counts = ordered
        .injected
        .iter()
        .map(|(kind, count)| (json!(kind), count));
    let injected: BTreeMap<_, _> = counts
        .filter_map(|(kind, count)| Some((kind.as_str()?.to_owned(), count)))
        .collect();
    Json(json!({"order": ordered.order, "injected": injected}))
}

/// `POST /faults`: puts an order in the place of the one in force.
pub(crate) async fn order(State(apis): State<Arc<Apis>>, body: Bytes) -> Response {
    let order: Order = match serde_json::from_slice(&body) {
        Ok(order) => order,
        Err(error) => return refusal(&error.to_string()),
    };
    match (order.next, order.rate) {
        (Some(_), None) => {}
        (None, Some(rate)) if (0.0..=1.0).contains(&rate) => {}
        _ => return refusal("either `next` (a number of requests) or `rate` (0 to 1) is needed"),
    }
    apis.faults
        .0
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .order = Some(order);
    show(State(apis)).await.into_response()
}

/// `DELETE /faults`: no more faults from now on.
pub(crate) async fn clear(State(apis): State<Arc<Apis>>) {
    apis.faults
        .0
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .order = None;
}

/// The fault that a request gets, asked for by itself or by an order.
pub(crate) struct Injected(Option<Fault>);

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Asked {
    fault: Option<Kind>,
    #[serde(default = "one")]
    retry_after: u64,
    #[serde(default = "ten_seconds")]
    delay: u64,
}

impl FromRequestParts<Arc<Apis>> for Injected {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, apis: &Arc<Apis>) -> Result<Self, Response> {
        let Query(asked) = Query::<Asked>::try_from_uri(&parts.uri)
            .map_err(|error| refusal(&error.body_text()))?;
        let Asked {
            retry_after, delay, ..
        } = asked;
        let fault = asked.fault.map(|kind| Fault {
            kind,
            retry_after,
            delay,
        });
        Ok(Injected(apis.faults.draw(fault)))
    }
}

impl Injected {
    /// Answers with what `serve` gives, or with the fault. `serve` is told whether the records
    /// reach the client, and so count as served.
    pub(crate) async fn answer(self, serve: impl FnOnce(bool) -> Value) -> Response {
        let Some(Fault {
            kind,
            retry_after,
            delay,
        }) = self.0
        else {
            return Json(serve(true)).into_response();
        };
        match kind {
            Kind::InternalError => error(StatusCode::INTERNAL_SERVER_ERROR, "a fault as ordered"),
            Kind::TooManyRequests => {
                let mut response = error(StatusCode::TOO_MANY_REQUESTS, "too many requests");
                let headers = response.headers_mut();
                headers.insert(header::RETRY_AFTER, HeaderValue::from(retry_after));
                response
            }
            Kind::Slow => {
                tokio::time::sleep(Duration::from_millis(delay)).await;
                Json(serve(true)).into_response()
            }
            Kind::Cut => json_text(cut(half(&serve(false)))),
            Kind::Malformed => json_text(Body::from(half(&serve(false)))),
        }
    }
}

fn half(answer: &Value) -> Bytes {
    let text = answer.to_string().into_bytes();
    Bytes::copy_from_slice(&text[..text.len() / 2])
}

/// A body that ends in an error: the connection is closed without the end of the answer.
fn cut(half: Bytes) -> Body {
    let half = stream::iter([Ok(half)]);
    let end = stream::once(async {
        // What there is so far is sent when there is nothing more at once.
        tokio::task::yield_now().await;
        Err(io::Error::from(io::ErrorKind::ConnectionAborted))
    });
    Body::from_stream(half.chain(end))
}

fn json_text(body: Body) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], body).into_response()
}

fn error(status: StatusCode, message: &str) -> Response {
    (status, Json(json!({"error": message}))).into_response()
}

/// Status 400 with the reason.
pub(crate) fn refusal(message: &str) -> Response {
    error(StatusCode::BAD_REQUEST, message)
}
