//! One request, for as long as it takes.

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime},
};

use bytes::{Bytes, BytesMut};
use chrono::{DateTime, Utc};
use millstream_api::source::HttpSource;
use reqwest::{
    Client, Response, StatusCode,
    header::{HeaderMap, HeaderName, HeaderValue, RETRY_AFTER},
};

use crate::{
    retry::Delays,
    status::{Concern, StatusPart},
};

/// Largest answer, in bytes and unpacked.
const MAX_ANSWER_BYTES: usize = 256 * 1024 * 1024;
/// Between the attempts of a request that the server refuses.
const REFUSED: Duration = Duration::from_secs(30);
/// A `Retry-After` beyond this is a mistake.
const LONGEST_RETRY_AFTER: Duration = Duration::from_secs(24 * 60 * 60);

pub struct Fetch {
    client: Client,
    url: String,
    status: StatusPart,
}

/// Why a request has to be repeated, and when, where that isn't a matter of the usual delays.
struct Failure {
    message: String,
    retry_after: Option<Duration>,
}

impl From<String> for Failure {
    fn from(message: String) -> Self {
        Failure {
            message,
            retry_after: None,
        }
    }
}

impl Fetch {
    pub fn new(spec: &HttpSource, status: StatusPart) -> anyhow::Result<Self> {
        let mut headers = HeaderMap::new();
        for (name, value) in &spec.headers {
            headers.insert(HeaderName::try_from(name)?, HeaderValue::try_from(value)?);
        }
        let client = Client::builder()
            .timeout(spec.timeout.into())
            .default_headers(headers)
            .user_agent(concat!("millstream/", env!("CARGO_PKG_VERSION")))
            .build()?;
        Ok(Fetch {
            client,
            url: spec.url.clone(),
            status,
        })
    }

    /// Sends the request until there is an answer that can be parsed. While it fails, the last
    /// error is shown under the concern.
    pub async fn get<T>(
        &self,
        concern: impl Into<Concern>,
        query: &BTreeMap<String, String>,
        parse: impl Fn(Bytes) -> Result<T, String>,
    ) -> T {
        let concern = concern.into();
        let mut delays = Delays::default();
        loop {
            let answer = self.attempt(query).await;
            let parsed = answer.and_then(|body| parse(body).map_err(Failure::from));
            match parsed {
                Ok(parsed) => {
                    self.status.clear(concern);
                    return parsed;
                }
                Err(failure) => {
                    let message = format!("GET {}: {}", self.url, failure.message);
                    self.status.fail(concern.clone(), message);
                    let delay = delays.next_delay();
                    tokio::time::sleep(failure.retry_after.unwrap_or(delay)).await;
                }
            }
        }
    }

    async fn attempt(&self, query: &BTreeMap<String, String>) -> Result<Bytes, Failure> {
        let request = self.client.get(&self.url).query(query);
        let response = request.send().await.map_err(describe)?;
        let status = response.status();
        if status.is_success() {
            return body(response).await;
        }
        let transient = status.is_server_error()
            || status == StatusCode::REQUEST_TIMEOUT
            || status == StatusCode::TOO_MANY_REQUESTS;
        let asked = retry_after(response.headers(), SystemTime::now().into());
        Err(Failure {
            message: format!("the server answers {status}"),
            retry_after: asked.or((!transient).then_some(REFUSED)),
        })
    }
}

async fn body(mut response: Response) -> Result<Bytes, Failure> {
    let mut body = BytesMut::new();
    while let Some(chunk) = response.chunk().await.map_err(describe)? {
        if body.len() + chunk.len() > MAX_ANSWER_BYTES {
            let message = format!(
                "the answer has more than {} MiB; ask for smaller pages",
                MAX_ANSWER_BYTES / 1024 / 1024
            );
            return Err(Failure {
                message,
                retry_after: Some(REFUSED),
            });
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body.freeze())
}

/// The whole chain of an error, without the URL: its query may hold what isn't for everybody.
fn describe(error: reqwest::Error) -> Failure {
    let what = if error.is_timeout() {
        "no answer in time"
    } else if error.is_connect() {
        "can't connect"
    } else if error.is_body() || error.is_decode() {
        "the answer was cut off"
    } else {
        "the request failed"
    };
    let error = anyhow::Error::new(error.without_url());
    Failure::from(format!("{what} ({error:#})"))
}

/// `Retry-After`: seconds, or a date.
fn retry_after(headers: &HeaderMap, now: DateTime<Utc>) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    let wait = match text.parse() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => {
            let date = DateTime::parse_from_rfc2822(text).ok()?;
            (date.to_utc() - now).to_std().unwrap_or_default()
        }
    };
    Some(wait.min(LONGEST_RETRY_AFTER))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let now = "2026-11-21T15:00:00Z".parse().unwrap();
        let wait = |text: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(RETRY_AFTER, HeaderValue::from_static(text));
            retry_after(&headers, now).map(|wait| wait.as_secs())
        };
        assert_eq!(wait("7"), Some(7));
        assert_eq!(wait("Sat, 21 Nov 2026 15:00:42 GMT"), Some(42));
        assert_eq!(wait("Sat, 21 Nov 2026 14:00:00 GMT"), Some(0));
        assert_eq!(wait("999999999999"), Some(24 * 60 * 60));
        assert_eq!(wait("soon"), None);
        assert_eq!(retry_after(&HeaderMap::new(), now), None);
    }
}
