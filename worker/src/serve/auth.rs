//! Who asks, and how often.

use std::{collections::BTreeMap, net::IpAddr, num::NonZeroU32};

use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use base64::{Engine, prelude::BASE64_STANDARD};
use governor::{
    DefaultKeyedRateLimiter, Quota, RateLimiter,
    clock::{Clock, DefaultClock},
};
use millstream_api::{
    serve::{RateLimit, Serve},
    worker::credentials,
};
use sha2::{Digest, Sha256};

use super::problem::Problem;
use crate::config::{ConfigError, Credentials};

const API_KEY: &str = "x-api-key";

/// Clients that are remembered; of those beyond, the ones who rest are forgotten.
const CLIENTS: usize = 10_000;

/// The one who asks.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Client {
    /// By the name of the key or the user.
    Named(String),
    /// By the address, where nobody has to say who he is.
    Address(IpAddr),
}

/// Keys and passwords, of which only digests are kept: comparing those takes the same time for all.
pub struct Auth {
    keys: Option<Vec<(String, Digested)>>,
    users: Option<Vec<(String, Digested)>>,
    challenges: Vec<HeaderValue>,
}

type Digested = [u8; 32];

impl Auth {
    /// Reads the mounted keys and passwords.
    pub fn new(serve: &Serve, credentials: &Credentials) -> Result<Self, ConfigError> {
        let auth = serve.auth.as_ref();
        let read = |file, what| -> Result<_, ConfigError> {
            let text = credentials.require(file, what)?;
            let named: BTreeMap<String, String> =
                serde_json::from_str(&text).map_err(|_| ConfigError::Parse {
                    path: file.into(),
                    // Not the parser's words: they could quote a secret.
                    reason: "it isn't a JSON object of names and secrets".into(),
                })?;
            let digested = named
                .into_iter()
                .map(|(name, secret)| (name, digest(&secret)));
            Ok(digested.collect())
        };
        let keys = auth.and_then(|auth| auth.api_keys_secret.as_ref());
        let users = auth.and_then(|auth| auth.basic_secret.as_ref());
        let mut challenges = Vec::new();
        if keys.is_some() {
            challenges.push(HeaderValue::from_static(
                "ApiKey realm=\"millstream\", header=\"X-API-Key\"",
            ));
        }
        if users.is_some() {
            let basic = "Basic realm=\"millstream\", charset=\"UTF-8\"";
            challenges.push(HeaderValue::from_static(basic));
        }
        Ok(Auth {
            keys: keys
                .map(|_| read(credentials::SERVE_API_KEYS, "API keys"))
                .transpose()?,
            users: users
                .map(|_| read(credentials::SERVE_PASSWORDS, "passwords"))
                .transpose()?,
            challenges,
        })
    }

    /// Whether one has to say who one is.
    pub fn is_asked_for(&self) -> bool {
        !self.challenges.is_empty()
    }

    /// Finds out who asks; nobody where the key or password is wrong or missing.
    pub fn client(&self, headers: &HeaderMap, address: IpAddr) -> Option<Client> {
        if !self.is_asked_for() {
            return Some(Client::Address(address));
        }
        let key = headers.get(API_KEY).and_then(|value| value.to_str().ok());
        if let (Some(keys), Some(key)) = (&self.keys, key) {
            return find(keys, |_| true, key);
        }
        let (user, password) = basic(headers)?;
        find(self.users.as_ref()?, |name| name == user, &password)
    }

    /// The answer to one who isn't known.
    pub fn challenge(&self) -> Problem {
        let ways = match (&self.keys, &self.users) {
            (Some(_), Some(_)) => "the header X-API-Key, or a user name and password",
            (Some(_), None) => "the header X-API-Key",
            _ => "a user name and password",
        };
        let detail = format!("a valid key is needed: send {ways}");
        let problem = Problem::new(StatusCode::UNAUTHORIZED, detail);
        self.challenges.iter().fold(problem, |problem, challenge| {
            problem.header(header::WWW_AUTHENTICATE, challenge.clone())
        })
    }
}

fn digest(secret: &str) -> Digested {
    Sha256::digest(secret).into()
}

/// Looks at every entry, so that the time tells nothing.
fn find(known: &[(String, Digested)], is: impl Fn(&str) -> bool, secret: &str) -> Option<Client> {
    let secret = digest(secret);
    let mut found = None;
    for (name, expected) in known {
        let difference = expected
            .iter()
            .zip(&secret)
            .fold(0, |all, (one, other)| all | (one ^ other));
        if (std::hint::black_box(difference) == 0) & is(name) {
            found = Some(Client::Named(name.clone()));
        }
    }
    found
}

fn basic(headers: &HeaderMap) -> Option<(String, String)> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, encoded) = value.split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let decoded = String::from_utf8(BASE64_STANDARD.decode(encoded.trim()).ok()?).ok()?;
    let (user, password) = decoded.split_once(':')?;
    Some((user.into(), password.into()))
}

/// How often each client may ask.
pub struct Limits(DefaultKeyedRateLimiter<Client>);

impl Limits {
    pub fn new(limit: &RateLimit) -> Self {
        let rate = NonZeroU32::new(limit.requests_per_second).unwrap_or(NonZeroU32::MIN);
        let burst = limit.burst.and_then(NonZeroU32::new).unwrap_or(rate);
        Limits(RateLimiter::keyed(
            Quota::per_second(rate).allow_burst(burst),
        ))
    }

    /// Counts a request.
    pub fn check(&self, client: &Client) -> Result<(), Problem> {
        if self.0.len() > CLIENTS {
            self.0.retain_recent();
        }
        self.0.check_key(client).map_err(|early| {
            let wait = early.wait_time_from(DefaultClock::default().now());
            let detail = "too many requests; ask again after the time in Retry-After";
            let seconds = wait.as_secs() + 1;
            Problem::new(StatusCode::TOO_MANY_REQUESTS, detail).retry_after(seconds)
        })
    }
}
