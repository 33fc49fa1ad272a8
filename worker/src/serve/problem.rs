//! Errors as RFC 9457 has them: `application/problem+json`.

use axum::{
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde_json::json;

/// Seconds after which it is worth asking again.
const SOON: u64 = 5;

/// Why a request isn't answered with rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    pub status: StatusCode,
    /// For the one who asked: what is wrong, and the way out.
    pub detail: String,
    /// The parameter that is wrong.
    pub parameter: Option<String>,
    headers: Vec<(header::HeaderName, HeaderValue)>,
}

impl Problem {
    pub fn new(status: StatusCode, detail: impl Into<String>) -> Self {
        Problem {
            status,
            detail: detail.into(),
            parameter: None,
            headers: Vec::new(),
        }
    }

    /// A parameter is wrong; `says` completes "parameter `name` ...".
    pub fn parameter(name: &str, says: &str) -> Self {
        let detail = format!("parameter `{name}` {says}");
        Problem {
            parameter: Some(name.into()),
            ..Problem::new(StatusCode::BAD_REQUEST, detail)
        }
    }

    /// Something that passes.
    pub fn unavailable(detail: impl Into<String>) -> Self {
        Problem::new(StatusCode::SERVICE_UNAVAILABLE, detail).retry_after(SOON)
    }

    /// Something that only the service's owner can mend; `error` is for the log.
    pub fn internal(what: &str, error: impl std::fmt::Display) -> Self {
        tracing::error!("{what}: {error}");
        Problem::new(StatusCode::INTERNAL_SERVER_ERROR, what)
    }

    pub fn retry_after(self, seconds: u64) -> Self {
        self.header(header::RETRY_AFTER, HeaderValue::from(seconds))
    }

    pub fn header(mut self, name: header::HeaderName, value: HeaderValue) -> Self {
        self.headers.push((name, value));
        self
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let mut body = json!({
            "type": "about:blank",
            "title": self.status.canonical_reason().unwrap_or_default(),
            "status": self.status.as_u16(),
            "detail": self.detail,
        });
        if let Some(parameter) = self.parameter {
            body["parameter"] = json!(parameter);
        }
        let content_type = (header::CONTENT_TYPE, "application/problem+json");
        let mut response = (self.status, [content_type], body.to_string()).into_response();
        for (name, value) in self.headers {
            response.headers_mut().append(name, value);
        }
        response
    }
}
