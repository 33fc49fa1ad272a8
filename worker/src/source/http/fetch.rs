//! One request, for as long as it takes.

use std::{
    collections::BTreeMap,
    num::NonZeroU32,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, SystemTime},
};

use anyhow::Context;
use bytes::{Bytes, BytesMut};
use chrono::{DateTime, Utc};
use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use millstream_api::source::{
    HttpSource,
    http::{RateLimit, credentials},
};
use reqwest::{
    Client, Response, StatusCode,
    header::{HeaderMap, HeaderName, HeaderValue, LINK, LOCATION, RETRY_AFTER},
    redirect::Policy,
};
use tokio::time::Instant;
use url::Url;

use crate::{
    config::Credentials,
    retry::Delays,
    source::http::auth::{Auth, is_home, shown},
    status::{Concern, StatusPart},
    tls::trusting,
};

/// The concern of a result that may not be whole.
pub const LACKING: &str = "lacking";
/// Between the attempts of a request that the server refuses.
pub const REFUSED: Duration = Duration::from_secs(30);
/// What the server refuses so often it doesn't have.
const REFUSALS: u32 = 3;
/// A `Retry-After` beyond this is a mistake.
const LONGEST_RETRY_AFTER: Duration = Duration::from_secs(24 * 60 * 60);
const MAX_REDIRECTS: usize = 10;
/// The byte order mark of UTF-8.
const BOM: &[u8] = "\u{feff}".as_bytes();

pub struct Fetch {
    client: Client,
    /// The server that credentials and headers are meant for.
    home: Url,
    headers: HeaderMap,
    auth: Auth,
    limit: Option<DefaultDirectRateLimiter>,
    /// The server wants no request before.
    quiet_until: Mutex<Option<Instant>>,
    max_bytes: usize,
    /// Whether the result may not be whole.
    lacking: AtomicBool,
    status: StatusPart,
}

/// A whole answer.
pub struct Answer {
    /// Empty only where the server says that there is no content, or gives none again and again.
    pub body: Bytes,
    /// Where it came from in the end.
    url: Url,
    /// The header `Link`.
    pub links: String,
}

impl Answer {
    fn empty(url: &Url) -> Self {
        Answer {
            body: Bytes::new(),
            url: url.clone(),
            links: String::new(),
        }
    }
}

/// The server won't answer this request, however often it is sent.
struct Refused {
    status: StatusCode,
    wait: Duration,
}

impl Refused {
    /// Waits until asking again isn't rude.
    async fn wait(&self) {
        tokio::time::sleep(self.wait).await;
    }

    /// Whether it may be that the server doesn't have what it is asked for.
    fn may_be_gone(&self) -> bool {
        matches!(self.status.as_u16(), 400 | 404 | 410 | 416 | 422) || self.is_empty()
    }

    /// Whether the answer had no content, though its status tells of some.
    fn is_empty(&self) -> bool {
        self.status == StatusCode::OK
    }
}

/// A request that may fail: what is said of it is shown until it is over, or nobody waits for it
/// any more.
struct Asking<'a> {
    status: &'a StatusPart,
    concern: Concern,
}

impl Asking<'_> {
    /// Shows why it fails.
    fn say(&self, message: String) {
        self.status.fail(self.concern.clone(), message);
    }
}

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        self.status.clear(self.concern.clone());
    }
}

/// Why a request has to be repeated, and when, where that isn't a matter of the usual delays.
struct Failure {
    message: String,
    retry_after: Option<Duration>,
    refused: Option<StatusCode>,
}

impl From<String> for Failure {
    fn from(message: String) -> Self {
        Failure {
            message,
            retry_after: None,
            refused: None,
        }
    }
}

impl Fetch {
    /// Requests of a source that may hold so many bytes of answers, unpacked.
    pub fn new(
        spec: &HttpSource,
        credentials: &Credentials,
        status: StatusPart,
        answers: usize,
    ) -> anyhow::Result<Self> {
        let mut headers = HeaderMap::new();
        for (name, value) in &spec.headers {
            let header = HeaderName::try_from(name).map_err(anyhow::Error::new);
            let header = header.and_then(|name| Ok((name, HeaderValue::try_from(value)?)));
            let (header, value) = header.with_context(|| format!("`headers`: `{name}`"))?;
            headers.insert(header, value);
        }
        let mut client = Client::builder()
            .timeout(spec.timeout.into())
            .user_agent(concat!("millstream/", env!("CARGO_PKG_VERSION")))
            // Followed here, so that credentials stay at home.
            .redirect(Policy::none());
        if spec.tls.is_some() {
            client = trusting(client, credentials, credentials::CA)?;
        }
        let side_by_side = match spec.pagination {
            Some(_) => spec.concurrency.max(1) as usize,
            None => 1,
        };
        // A page on its way into the cache is there twice more.
        let copies = if spec.cache.is_some() { 2 } else { 0 };
        Ok(Fetch {
            client: client.build()?,
            home: spec.url.parse().context("`url` is no URL")?,
            headers,
            auth: Auth::open(spec.auth.as_ref(), credentials)?,
            limit: spec.rate_limit.as_ref().and_then(rate_limiter),
            quiet_until: Mutex::default(),
            max_bytes: answers / (side_by_side + copies),
            lacking: AtomicBool::default(),
            status,
        })
    }

    /// The pipeline's own URL with this query.
    pub fn url(&self, query: &BTreeMap<String, String>) -> Url {
        let mut url = self.home.clone();
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        url
    }

    /// The URL that an answer names, without an API key.
    pub fn resolve(&self, answer: &Answer, reference: &str) -> Result<Url, String> {
        let url = answer.url.join(reference);
        match url {
            Ok(url) if ["http", "https"].contains(&url.scheme()) => Ok(self.auth.without_key(url)),
            _ => Err("the next page's URL isn't one of http or https".to_owned()),
        }
    }

    /// Sends the request until there is an answer that can be parsed. While it fails, the last
    /// error is shown under the concern. One that is empty again and again is taken for an empty one.
    pub async fn get<T>(
        &self,
        concern: impl Into<Concern>,
        url: &Url,
        parse: impl Fn(&Answer) -> Result<T, String>,
    ) -> T {
        let asking = self.asking(concern);
        let mut empty = 0;
        loop {
            let refused = match self.get_or_refusal(&asking, url, &parse).await {
                Ok(parsed) => return parsed,
                Err(refused) => refused,
            };
            empty = if refused.is_empty() { empty + 1 } else { 0 };
            if empty >= REFUSALS
                && let Some(parsed) = self.taken_for_empty(url, &parse)
            {
                return parsed;
            }
            refused.wait().await;
        }
    }

    /// What an answer with content would be that has none, where that can be a page.
    fn taken_for_empty<T>(
        &self,
        url: &Url,
        parse: impl Fn(&Answer) -> Result<T, String>,
    ) -> Option<T> {
        let parsed = parse(&Answer::empty(url)).ok()?;
        self.lacks("the server answers 200 with nothing at all, so that the source took this for an empty page; records are missing unless it is one: 204, or an empty array, would say so");
        Some(parsed)
    }

    /// Says why the result may not be whole.
    pub fn lacks(&self, message: impl ToString) {
        self.status.warn(LACKING, message);
        self.lacking.store(true, Ordering::Relaxed);
    }

    /// Whether that was said since this was asked last.
    pub fn has_lacked(&self) -> bool {
        self.lacking.swap(false, Ordering::Relaxed)
    }

    /// As [`Fetch::get`]; none where the server doesn't have it, and says so again and again while it
    /// has the first page. One that gives nothing for both isn't down: that is how it says so.
    pub async fn get_if_there<T>(
        &self,
        concern: impl Into<Concern>,
        url: &Url,
        first: &Url,
        parse: impl Fn(&Answer) -> Result<T, String>,
    ) -> Option<T> {
        let asking = self.asking(concern);
        let mut refusals = 0;
        loop {
            let refused = match self.get_or_refusal(&asking, url, &parse).await {
                Ok(parsed) => return Some(parsed),
                Err(refused) => refused,
            };
            refusals += u32::from(refused.may_be_gone());
            if refusals == REFUSALS {
                let empty = refused
                    .is_empty()
                    .then(|| self.taken_for_empty(url, &parse));
                return empty.flatten();
            }
            refused.wait().await;
            // One that is being replaced refuses everything, and isn't to be taken at its word.
            if refusals + 1 == REFUSALS
                && let Err(first) = self.get_or_refusal(&asking, first, |_| Ok(())).await
                && !(refused.is_empty() && first.is_empty())
            {
                refusals = 0;
                first.wait().await;
            }
        }
    }

    fn asking(&self, concern: impl Into<Concern>) -> Asking<'_> {
        Asking {
            status: &self.status,
            concern: concern.into(),
        }
    }

    /// The answer, or the first refusal.
    async fn get_or_refusal<T>(
        &self,
        asking: &Asking<'_>,
        url: &Url,
        parse: impl Fn(&Answer) -> Result<T, String>,
    ) -> Result<T, Refused> {
        let mut delays = Delays::default();
        loop {
            let answer = self.attempt(url).await;
            let parsed = answer.and_then(|answer| parse(&answer).map_err(Failure::from));
            let failure = match parsed {
                Ok(parsed) => return Ok(parsed),
                Err(failure) => failure,
            };
            asking.say(format!("GET {}: {}", shown(url), failure.message));
            // A server that wants to be asked again at once isn't.
            let delay = delays.next_delay();
            if let Some(status) = failure.refused {
                let wait = failure.retry_after.unwrap_or(REFUSED).max(delay);
                return Err(Refused { status, wait });
            }
            tokio::time::sleep(failure.retry_after.unwrap_or_default().max(delay)).await;
        }
    }

    async fn attempt(&self, url: &Url) -> Result<Answer, Failure> {
        let mut url = url.clone();
        for _ in 0..=MAX_REDIRECTS {
            let response = self.send(&url).await?;
            match redirect(&url, &response)? {
                // The key is put back where it belongs.
                Some(target) => url = self.auth.without_key(target),
                None if response.status().is_success() => {
                    let status = response.status();
                    let may_be_empty = matches!(status.as_u16(), 204 | 205);
                    let links = links(response.headers());
                    let body = self.body(response).await?;
                    if body.is_empty() && !may_be_empty {
                        return Err(Failure {
                            refused: (status == StatusCode::OK).then_some(status),
                            ..Failure::from("the answer is empty".to_owned())
                        });
                    }
                    let body = without_bom(body);
                    return Ok(Answer { body, url, links });
                }
                None => return Err(self.unsuccessful(&response)),
            }
        }
        let message = format!("the server redirects more than {MAX_REDIRECTS} times");
        Err(Failure::from(message))
    }

    /// Sends one request when it may be sent.
    async fn send(&self, url: &Url) -> Result<Response, Failure> {
        loop {
            while let Some(until) = self.quiet_until() {
                tokio::time::sleep_until(until).await;
            }
            if let Some(limit) = &self.limit {
                limit.until_ready().await;
            }
            // Another request may have been told to wait while this one waited for its turn.
            if self.quiet_until().is_none() {
                break;
            }
        }
        let request = if is_home(&self.home, url) {
            let request = self.client.get(self.auth.sign_url(url.clone()));
            self.auth.sign(request.headers(self.headers.clone()))
        } else {
            self.client.get(url.clone())
        };
        request.send().await.map_err(describe)
    }

    fn quiet_until(&self) -> Option<Instant> {
        let until = self.quiet_until.lock();
        let until = until.unwrap_or_else(PoisonError::into_inner);
        until.filter(|until| *until > Instant::now())
    }

    /// Nobody asks for so long; a longer wait that was wanted before holds.
    fn be_quiet(&self, wait: Duration) {
        let until = self.quiet_until.lock();
        let mut until = until.unwrap_or_else(PoisonError::into_inner);
        *until = (*until).max(Some(Instant::now() + wait));
    }

    fn unsuccessful(&self, response: &Response) -> Failure {
        let status = response.status();
        let transient = status.is_server_error()
            || status == StatusCode::REQUEST_TIMEOUT
            || status == StatusCode::TOO_MANY_REQUESTS;
        let retry_after = retry_after(response.headers(), SystemTime::now().into());
        if let (true, Some(wait)) = (transient, retry_after) {
            // Meant for every page that is fetched beside this one.
            self.be_quiet(wait);
        }
        Failure {
            message: format!("the server answers {status}"),
            retry_after,
            refused: (!transient).then_some(status),
        }
    }

    async fn body(&self, mut response: Response) -> Result<Bytes, Failure> {
        let mut body = BytesMut::new();
        while let Some(chunk) = response.chunk().await.map_err(describe)? {
            if let Err(message) = self.fits(body.len() + chunk.len()) {
                return Err(Failure {
                    retry_after: Some(REFUSED),
                    ..Failure::from(message)
                });
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body.freeze())
    }

    /// Whether memory has room for so many bytes of one page.
    pub fn fits(&self, bytes: usize) -> Result<(), String> {
        match bytes <= self.max_bytes {
            true => Ok(()),
            false => Err(format!(
                "a page has more than {:.1} MiB; ask for smaller pages",
                self.max_bytes as f64 / 1024.0 / 1024.0
            )),
        }
    }
}

fn rate_limiter(limit: &RateLimit) -> Option<DefaultDirectRateLimiter> {
    let each = std::time::Duration::from(limit.per) / limit.requests.max(1);
    let burst = NonZeroU32::new(limit.burst).unwrap_or(NonZeroU32::MIN);
    let quota = Quota::with_period(each)?.allow_burst(burst);
    Some(RateLimiter::direct(quota))
}

/// Where a redirect leads; none where the answer is no redirect.
fn redirect(url: &Url, response: &Response) -> Result<Option<Url>, Failure> {
    if !matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
        return Ok(None);
    }
    let location = response.headers().get(LOCATION);
    let target = location.and_then(|location| url.join(location.to_str().ok()?).ok());
    match target.filter(|target| ["http", "https"].contains(&target.scheme())) {
        Some(target) => Ok(Some(target)),
        None => Err(Failure::from(format!(
            "the server answers {} without a URL to go to",
            response.status()
        ))),
    }
}

/// All `Link` headers as one. Some servers write URLs and titles that aren't ASCII.
fn links(headers: &HeaderMap) -> String {
    let links = headers.get_all(LINK).iter();
    let texts: Vec<_> = links
        .map(|link| String::from_utf8_lossy(link.as_bytes()))
        .collect();
    texts.join(", ")
}

/// A byte order mark may be ignored (RFC 8259, section 8.1).
fn without_bom(body: Bytes) -> Bytes {
    match body.starts_with(BOM) {
        true => body.slice(BOM.len()..),
        false => body,
    }
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
    use std::sync::Arc;

    use super::*;
    use crate::status::Status;

    #[tokio::test]
    async fn of_several_waits_the_longest_holds() {
        let spec = serde_json::json!({"url": "http://api.example/"});
        let spec = serde_json::from_value(spec).unwrap();
        let (credentials, status) = (Credentials::new("".into()), Arc::new(Status::default()));
        let fetch = Fetch::new(&spec, &credentials, status.part("ingest"), 1).unwrap();
        assert_eq!(fetch.quiet_until(), None);
        fetch.be_quiet(Duration::from_secs(60));
        let until = fetch.quiet_until();
        assert!(until.is_some());
        for shorter in [Duration::ZERO, Duration::from_secs(1)] {
            fetch.be_quiet(shorter);
            assert_eq!(fetch.quiet_until(), until);
        }
        fetch.be_quiet(Duration::from_secs(120));
        assert!(fetch.quiet_until() > until);
    }

    #[test]
    fn links_need_not_be_ascii() {
        let mut headers = HeaderMap::new();
        for link in ["</a?city=Zürich>; rel=\"next\"", "</b>; rel=\"last\""] {
            headers.append(LINK, HeaderValue::from_bytes(link.as_bytes()).unwrap());
        }
        let joined = "</a?city=Zürich>; rel=\"next\", </b>; rel=\"last\"";
        assert_eq!(links(&headers), joined);
    }

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
