//! Who asks: credentials from Secrets, for the server of the pipeline's own URL and for no other.

use anyhow::Context;
use millstream_api::source::http::{ApiKeyAuth, HttpAuth, credentials};
use reqwest::{
    RequestBuilder,
    header::{AUTHORIZATION, HeaderName, HeaderValue},
};
use url::Url;

use crate::config::Credentials;

/// What a request carries to be let in. It has no `Debug`, so that it can't be logged.
pub enum Auth {
    Nobody,
    Basic { username: String, password: String },
    Header(HeaderName, HeaderValue),
    Query { name: String, key: String },
}

impl Auth {
    pub fn open(spec: Option<&HttpAuth>, files: &Credentials) -> anyhow::Result<Self> {
        let Some(spec) = spec else {
            return Ok(Auth::Nobody);
        };
        if let Some(_bearer) = &spec.bearer {
            let token = files.require(credentials::TOKEN, "a bearer token")?;
            let value = HeaderValue::try_from(format!("Bearer {token}"))
                .context("the bearer token has characters that no header may have")?;
            return Ok(Auth::header(AUTHORIZATION, value));
        }
        if let Some(_basic) = &spec.basic {
            return Ok(Auth::Basic {
                username: files.require(credentials::USERNAME, "a user name")?,
                password: files.require(credentials::PASSWORD, "a password")?,
            });
        }
        if let Some(api_key) = &spec.api_key {
            let key = files.require(credentials::API_KEY, "an API key")?;
            return Auth::api_key(api_key, key);
        }
        anyhow::bail!("`auth` is empty; set one of bearer, basic and apiKey")
    }

    fn api_key(spec: &ApiKeyAuth, key: String) -> anyhow::Result<Self> {
        if let Some(name) = &spec.query {
            let name = name.clone();
            return Ok(Auth::Query { name, key });
        }
        let name = spec.header.as_deref().unwrap_or_default();
        let name = HeaderName::try_from(name)
            .with_context(|| format!("`apiKey.header`: `{name}` is no name of a header"))?;
        let value = HeaderValue::try_from(key)
            .context("the API key has characters that no header may have")?;
        Ok(Auth::header(name, value))
    }

    fn header(name: HeaderName, mut value: HeaderValue) -> Self {
        value.set_sensitive(true);
        Auth::Header(name, value)
    }

    /// The URL with the key, where the key belongs there.
    pub fn sign_url(&self, mut url: Url) -> Url {
        if let Auth::Query { name, key } = self {
            url = self.without_key(url);
            url.query_pairs_mut().append_pair(name, key);
        }
        url
    }

    pub fn sign(&self, request: RequestBuilder) -> RequestBuilder {
        match self {
            Auth::Nobody | Auth::Query { .. } => request,
            Auth::Basic { username, password } => request.basic_auth(username, Some(password)),
            Auth::Header(name, value) => request.header(name, value),
        }
    }

    /// The URL without the key: a server may repeat it in the next page's URL, which is kept in
    /// Kafka and in the cache.
    pub fn without_key(&self, mut url: Url) -> Url {
        let Auth::Query { name, .. } = self else {
            return url;
        };
        if url.query_pairs().all(|(key, _)| key != name.as_str()) {
            return url;
        }
        let kept: Vec<(String, String)> = url
            .query_pairs()
            .filter(|(key, _)| key != name.as_str())
            .map(|(key, value)| (key.into_owned(), value.into_owned()))
            .collect();
        url.set_query(None);
        if !kept.is_empty() {
            url.query_pairs_mut().extend_pairs(kept);
        }
        url
    }
}

/// Whether credentials for `home` may go to `url`: the same server, or the same under `https`.
pub fn is_home(home: &Url, url: &Url) -> bool {
    let secured = home.scheme() == "http" && url.scheme() == "https";
    let default_ports = home.port().is_none() && url.port().is_none();
    home.origin() == url.origin() || (secured && default_ports && home.host_str() == url.host_str())
}

/// A URL for messages: its query and its user may hold what isn't for everybody.
pub fn shown(url: &Url) -> String {
    let mut url = url.clone();
    url.set_query(None);
    url.set_fragment(None);
    // Fails only for URLs without a host, which have no user either.
    let _ = url.set_username("");
    let _ = url.set_password(None);
    url.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(text: &str) -> Url {
        text.parse().unwrap()
    }

    #[test]
    fn credentials_stay_at_home() {
        let home = url("http://api.example/records");
        for (other, trusted) in [
            ("http://api.example/next?page=2", true),
            ("http://api.example:80/", true),
            ("https://api.example/", true),
            ("http://api.example:8080/", false),
            ("https://api.example:8443/", false),
            ("http://api.example.evil/", false),
            ("http://evil/api.example", false),
        ] {
            assert_eq!(is_home(&home, &url(other)), trusted, "{other}");
        }
        let secure = url("https://api.example/");
        assert!(!is_home(&secure, &url("http://api.example/")));
    }

    #[test]
    fn a_key_in_the_query_is_there_once_and_taken_away_again() {
        let auth = Auth::Query {
            name: "key".into(),
            key: "s&cret".into(),
        };
        let signed = auth.sign_url(url("http://a/b?x=1&key=old"));
        assert_eq!(signed.as_str(), "http://a/b?x=1&key=s%26cret");
        assert_eq!(auth.without_key(signed).as_str(), "http://a/b?x=1");
        assert_eq!(
            auth.without_key(url("http://a/?key=1")).as_str(),
            "http://a/"
        );
        let untouched = url("http://a/?q=a%20b");
        assert_eq!(auth.without_key(untouched.clone()), untouched);
    }

    #[test]
    fn messages_show_neither_query_nor_user() {
        let shown = shown(&url("https://me:secret@api.example/a?key=secret#secret"));
        assert_eq!(shown, "https://api.example/a");
    }
}
