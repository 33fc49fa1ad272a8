//! The fetch cache in Redis: the whole result of a pass is a list under one key, so that neither
//! side ever has to hold more than a page of it; each record is also under a key of its own.
//!
//! The list's first element tells whose result it is; each of the others is a page with the place
//! after it.

mod client;
pub mod filling;

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use futures::{StreamExt, stream};
use millstream_api::source::{
    HttpSource,
    http::{RedisCache, credentials},
};
use redis::{AsyncConnectionConfig, Client, RedisError, aio::MultiplexedConnection};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::{
    config::{ConfigError, Credentials},
    metrics::StageMetrics,
    pointer::Pointer,
    source::http::{
        cache::filling::Filling,
        page,
        paging::{Page, Pages, Place},
    },
    status::StatusPart,
};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// For one page, written or read.
const TIMEOUT: Duration = Duration::from_secs(10);

const AWAY: &str = "cache";

pub struct Cache {
    client: Client,
    spec: RedisCache,
    key: String,
    record_key: Option<Pointer>,
    /// Fingerprint of what is asked for: another source's result means nothing.
    source: String,
    status: StatusPart,
    metrics: StageMetrics,
}

/// The first element of the list.
#[derive(Serialize, Deserialize, Clone, Default)]
struct Header {
    source: String,
    /// Tells one result from the next.
    id: String,
    pages: usize,
    records: usize,
}

/// The part of a page's element that isn't records.
#[derive(Deserialize)]
struct Stored {
    next: Option<Place>,
}

/// What the cache has for a pass.
pub enum Found {
    /// The pages; they end early where they go away meanwhile.
    Hit(Pages),
    /// Nothing: what is fetched is to be filled in.
    Miss(Filling),
    /// Redis can't be asked.
    Away,
}

impl Cache {
    pub fn new(
        spec: &HttpSource,
        files: &Credentials,
        status: StatusPart,
        metrics: StageMetrics,
    ) -> anyhow::Result<Option<Self>> {
        let Some(cache) = &spec.cache else {
            return Ok(None);
        };
        let redis = cache.redis.clone();
        Ok(Some(Cache {
            client: client::open(&redis, files)?,
            key: format!("{}{}", redis.key_prefix, redis.key),
            record_key: redis.record_key.as_deref().map(Pointer::parse),
            source: fingerprint(spec, files)?,
            spec: redis,
            status,
            metrics,
        }))
    }

    /// Looks for a whole result. What is there and empty, or nothing that we wrote, is dropped.
    pub async fn find(self: &Arc<Self>) -> Found {
        match self.look().await {
            Ok(found) => {
                self.status.clear(AWAY);
                found
            }
            Err(error) => {
                self.metrics.cache_misses.inc();
                self.away(&error);
                Found::Away
            }
        }
    }

    async fn look(self: &Arc<Self>) -> Result<Found, RedisError> {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(CONNECT_TIMEOUT))
            .set_response_timeout(Some(TIMEOUT));
        // One for each pass: an idle one may have been closed by Redis.
        let mut connection = self
            .client
            .get_multiplexed_async_connection_with_config(&config)
            .await?;
        let element = redis::cmd("LINDEX").arg(&self.key).arg(0).to_owned();
        let element = element
            .query_async::<Option<Vec<u8>>>(&mut connection)
            .await;
        let element = match element {
            Err(error) if error.code() == Some("WRONGTYPE") => Some(Vec::new()),
            element => element?,
        };
        if let Some(element) = element {
            let header = serde_json::from_slice::<Header>(&element).unwrap_or_default();
            if header.source == self.source && header.records > 0 {
                self.metrics.cache_hits.inc();
                tracing::info!(records = header.records, "the cache has the records");
                return Ok(Found::Hit(self.clone().pages(connection, element, header)));
            }
            if header.records == 0 {
                tracing::info!("what the cache has is empty, and dropped");
                let drop = redis::cmd("UNLINK").arg(&self.key).to_owned();
                drop.query_async::<()>(&mut connection).await?;
            }
        }
        self.metrics.cache_misses.inc();
        Ok(Found::Miss(Filling::new(self.clone(), connection)))
    }

    /// The pages of the result with this header.
    fn pages(
        self: Arc<Self>,
        connection: MultiplexedConnection,
        id: Vec<u8>,
        header: Header,
    ) -> Pages {
        let id = Arc::new(id);
        let page = move |index| {
            let (cache, mut connection, id) = (self.clone(), connection.clone(), id.clone());
            async move {
                let page = cache.page(&mut connection, &id, index).await;
                page.unwrap_or_else(|error| {
                    cache.away(&error);
                    None
                })
            }
        };
        let pages = stream::iter(1..=header.pages).then(page);
        pages
            .take_while(|page| std::future::ready(page.is_some()))
            .filter_map(std::future::ready)
            .boxed()
    }

    /// None where the result has gone, or another one has taken its place.
    async fn page(
        &self,
        connection: &mut MultiplexedConnection,
        id: &[u8],
        index: usize,
    ) -> Result<Option<Page>, RedisError> {
        let mut both = redis::pipe();
        both.atomic()
            .cmd("LINDEX")
            .arg(&self.key)
            .arg(0)
            .cmd("LINDEX")
            .arg(&self.key)
            .arg(index);
        let (header, page): (Option<Vec<u8>>, Option<Vec<u8>>) =
            both.query_async(connection).await?;
        Ok(page
            .filter(|_| header.as_deref() == Some(id))
            .and_then(parse))
    }

    fn away(&self, error: &RedisError) {
        self.status.warn(
            AWAY,
            format!(
                "the cache, Redis at {}, can't be used; the records are fetched without it: {error}",
                self.spec.address
            ),
        );
    }
}

fn parse(element: Vec<u8>) -> Option<Page> {
    let stored: Stored = serde_json::from_slice(&element).ok()?;
    let records = page::records(Bytes::from(element), &Pointer::parse("/records")).ok()?;
    Some(Page {
        records,
        next: stored.next,
    })
}

/// A fingerprint of what is asked for, and by whom: a Secret of the same name may be another account's.
fn fingerprint(spec: &HttpSource, files: &Credentials) -> Result<String, ConfigError> {
    use credentials::{API_KEY, PASSWORD, TOKEN, USERNAME};
    let account = [TOKEN, USERNAME, PASSWORD, API_KEY].map(|name| files.read(name));
    let account: Vec<_> = account.into_iter().collect::<Result<_, _>>()?;
    let asked = serde_json::json!([
        spec.url,
        spec.query,
        spec.headers,
        spec.auth,
        spec.records,
        spec.pagination,
        account
    ]);
    let digest = Sha256::digest(asked.to_string());
    let digest = digest[..8].iter().map(|byte| format!("{byte:02x}"));
    Ok(digest.collect())
}

#[cfg(test)]
mod tests {
    use super::{filling::element, *};

    #[test]
    fn a_page_comes_back_as_it_was() {
        for (records, next) in [
            (
                vec![r#"{"b": 1.50,"a":"Zoë \u00e9"}"#, "7"],
                Some(Place::Offset(2)),
            ),
            (vec![], None),
        ] {
            let page = Page {
                records: records.into_iter().map(Bytes::from).collect(),
                next,
            };
            assert_eq!(parse(element(&page)), Some(page));
        }
        assert_eq!(parse(b"[]".to_vec()), None);
    }
}
