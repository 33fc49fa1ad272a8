//! The dataset once more, in the other ways in which APIs give pages: by number
//! (`/pages/numbered?page=P&per_page=N`), by cursor (`/pages/cursor?after=C&per_page=N`), and by the
//! header `Link` (`/pages/linked?page=P&per_page=N`).
//!
//! These routes ask for a token and limit the rate, where the server is told to.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::Json;
use axum::extract::{Query, Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, Uri, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::faults::{Injected, refusal};
use crate::{Apis, Options};

/// As many as the server gives, whatever it is asked for.
const MAX_PER_PAGE: u64 = 1000;

#[derive(Deserialize)]
pub(crate) struct Parameters {
    #[serde(default = "one")]
    page: u64,
    #[serde(default = "hundred")]
    per_page: u64,
    after: Option<String>,
}

fn one() -> u64 {
    1
}

fn hundred() -> u64 {
    100
}

impl Parameters {
    fn size(&self) -> u64 {
        self.per_page.clamp(1, MAX_PER_PAGE)
    }
}

/// `{"items": […], "total_pages": T}`
pub(crate) async fn numbered(
    State(apis): State<Arc<Apis>>,
    fault: Injected,
    Query(asked): Query<Parameters>,
) -> Response {
    let total = apis.total().div_ceil(asked.size());
    let page = |delivered| {
        let items = apis.page(
            (asked.page.max(1) - 1) * asked.size(),
            asked.size(),
            delivered,
        );
        json!({"items": items, "total_pages": total})
    };
    fault.answer(page).await
}

/// `{"data": […], "paging": {"next": C}}`; `next` is null on the last page.
pub(crate) async fn cursor(
    State(apis): State<Arc<Apis>>,
    fault: Injected,
    Query(asked): Query<Parameters>,
) -> Response {
    let offset = match asked
        .after
        .as_deref()
        .map(|cursor| u64::from_str_radix(cursor, 16))
    {
        None => 0,
        Some(Ok(offset)) if offset < apis.total() => offset,
        Some(_) => return refusal("`after` is no cursor of ours"),
    };
    let next = offset + asked.size();
    let next = (next < apis.total()).then(|| format!("{next:08x}"));
    let page = |delivered| {
        let data = apis.page(offset, asked.size(), delivered);
        json!({"data": data, "paging": {"next": next}})
    };
    fault.answer(page).await
}

/// An array, and the next page's URL in the header `Link`, with all parameters of this one.
pub(crate) async fn linked(
    State(apis): State<Arc<Apis>>,
    uri: Uri,
    fault: Injected,
    Query(asked): Query<Parameters>,
) -> Response {
    let start = (asked.page.max(1) - 1) * asked.size();
    let page = |delivered| Value::from(apis.page(start, asked.size(), delivered));
    let mut response = fault.answer(page).await;
    if start + asked.size() < apis.total() {
        let others = uri.query().unwrap_or_default().split('&');
        let others = others.filter(|pair| !pair.is_empty() && !pair.starts_with("page="));
        let query: String = others.map(|pair| format!("&{pair}")).collect();
        let link = format!("<?page={}{query}>; rel=\"next\"", asked.page + 1);
        if let Ok(link) = HeaderValue::try_from(link) {
            response.headers_mut().insert(header::LINK, link);
        }
    }
    response
}

impl Apis {
    fn total(&self) -> u64 {
        self.dataset().records().len() as u64
    }

    fn page(&self, offset: u64, limit: u64, delivered: bool) -> Vec<Value> {
        let page = self.dataset().page(offset, limit);
        if delivered {
            self.rows_sent.add(page);
        }
        page.to_vec()
    }
}

/// Who may ask, and how often.
pub(crate) struct Admission {
    token: Option<String>,
    rate: Option<u32>,
    /// Requests in the second that began then.
    second: Mutex<(Instant, u32)>,
}

impl Admission {
    pub(crate) fn new(options: &Options) -> Self {
        Admission {
            token: options.token.clone(),
            rate: options.rate,
            second: Mutex::new((Instant::now(), 0)),
        }
    }

    /// Whether a request more is one too many in this second.
    fn exceeded(&self) -> bool {
        let Some(rate) = self.rate else { return false };
        let mut second = self.second.lock().unwrap_or_else(PoisonError::into_inner);
        if second.0.elapsed() >= Duration::from_secs(1) {
            *second = (Instant::now(), 0);
        }
        second.1 += 1;
        second.1 > rate
    }

    /// Whether the token is there: in `Authorization: Bearer`, in `X-Api-Key`, or in `api_key`.
    fn knows(&self, headers: &HeaderMap, query: &str) -> bool {
        let Some(token) = &self.token else {
            return true;
        };
        let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        let bearer = header("authorization").and_then(|value| value.strip_prefix("Bearer "));
        let query = query
            .split('&')
            .find_map(|pair| pair.strip_prefix("api_key="));
        let given = [bearer, header("x-api-key"), query];
        given.into_iter().flatten().any(|given| given == token)
    }
}

/// Status 401 without the token, 429 with `Retry-After` for what is too much.
pub(crate) async fn admit(State(apis): State<Arc<Apis>>, request: Request, next: Next) -> Response {
    let query = request.uri().query().unwrap_or_default();
    if !apis.admission.knows(request.headers(), query) {
        let error = Json(json!({"error": "the token is missing or wrong"}));
        return (StatusCode::UNAUTHORIZED, error).into_response();
    }
    if apis.admission.exceeded() {
        let error = Json(json!({"error": "too many requests"}));
        return (StatusCode::TOO_MANY_REQUESTS, [("retry-after", "1")], error).into_response();
    }
    next.run(request).await
}
