//! How a result gets into the cache: pushed page by page to a list of another name, which takes the
//! place of the old one when it is whole.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use redis::{ErrorKind, Pipeline, RedisError, aio::MultiplexedConnection};

use crate::{
    pointer,
    source::http::{
        cache::{Cache, Header},
        paging::Page,
    },
};

/// A result that is being written is forgotten where nothing is added for so long.
const UNFINISHED_SECONDS: i64 = 3600;
/// Largest result that is kept.
const MAX_BYTES: usize = 512 * 1024 * 1024;
/// Records that are set at once.
const CHUNK: usize = 500;
const TOO_LARGE: &str = "cache size";

/// A result on its way into the cache.
pub struct Filling {
    cache: Arc<Cache>,
    connection: MultiplexedConnection,
    /// The list's name until it is whole.
    key: String,
    header: Header,
    bytes: usize,
}

impl Filling {
    pub(super) fn new(cache: Arc<Cache>, connection: MultiplexedConnection) -> Self {
        let id = uuid::Uuid::new_v4().simple().to_string();
        Filling {
            key: format!("{}.{id}", cache.key),
            header: Header {
                source: cache.source.clone(),
                id,
                ..Header::default()
            },
            cache,
            connection,
            bytes: 0,
        }
    }

    /// Adds a page, with which the result may not be whole; the filling comes back unless it is over. A
    /// cache that fails stops nothing.
    pub async fn add(mut self, page: &Page, lacking: bool) -> Option<Self> {
        if lacking {
            // Later passes would take it for the whole result, without a word.
            let _ = self.forget().await;
            return None;
        }
        let element = element(page);
        self.bytes += element.len();
        if self.bytes > MAX_BYTES {
            let message = format!(
                "the cache doesn't take results of more than {} MiB; the records are fetched each time",
                MAX_BYTES / 1024 / 1024
            );
            self.cache.status.warn(TOO_LARGE, message);
            let _ = self.forget().await;
            return None;
        }
        let added = match self.push(element, page).await {
            Ok(()) if page.next.is_none() => self.finish().await.map(|()| None),
            Ok(()) => Ok(Some(())),
            Err(error) => Err(error),
        };
        match added {
            Ok(more) => more.map(|()| self),
            Err(error) => {
                self.cache.away(&error);
                None
            }
        }
    }

    async fn push(&mut self, element: Vec<u8>, page: &Page) -> Result<(), RedisError> {
        for records in page.records.chunks(CHUNK) {
            let mut sets = redis::pipe();
            for record in records {
                self.cache.set(&mut sets, record);
            }
            if !sets.is_empty() {
                sets.query_async::<()>(&mut self.connection).await?;
            }
        }
        let mut push = redis::pipe();
        push.atomic();
        if self.header.pages == 0 {
            // In the place of the header, until it is known.
            push.cmd("RPUSH").arg(&self.key).arg("").ignore();
        }
        push.cmd("RPUSH").arg(&self.key).arg(element);
        push.cmd("EXPIRE")
            .arg(&self.key)
            .arg(UNFINISHED_SECONDS)
            .ignore();
        let (length,): (usize,) = push.query_async(&mut self.connection).await?;
        self.header.pages += 1;
        self.header.records += page.records.len();
        if length != self.header.pages + 1 {
            let kind = ErrorKind::UnexpectedReturnType;
            return Err((kind, "what was cached so far was evicted").into());
        }
        Ok(())
    }

    /// The result is whole. One without records is not worth keeping.
    async fn finish(&mut self) -> Result<(), RedisError> {
        self.cache.status.clear(TOO_LARGE);
        if self.header.records == 0 {
            return self.forget().await;
        }
        let header = serde_json::json!(self.header).to_string();
        let mut finish = redis::pipe();
        finish.atomic();
        finish
            .cmd("LSET")
            .arg(&self.key)
            .arg(0)
            .arg(header)
            .ignore();
        let ttl = milliseconds(self.cache.spec.ttl.into());
        finish.cmd("PEXPIRE").arg(&self.key).arg(ttl).ignore();
        finish
            .cmd("RENAME")
            .arg(&self.key)
            .arg(&self.cache.key)
            .ignore();
        finish.query_async(&mut self.connection).await
    }

    async fn forget(&mut self) -> Result<(), RedisError> {
        let unlink = redis::cmd("UNLINK").arg(&self.key).to_owned();
        unlink.query_async(&mut self.connection).await
    }
}

impl Cache {
    /// Sets a record under its own key, where it has one.
    fn set(&self, sets: &mut Pipeline, record: &Bytes) {
        let found = self.record_key.as_ref().and_then(|key| key.find(record));
        let Some(own) = found.and_then(pointer::scalar_text) else {
            return;
        };
        let key = format!("{}{own}", self.spec.key_prefix);
        if key == self.key {
            // It would take the place of the whole result.
            return;
        }
        let set = sets.cmd("SET").arg(key).arg(record.as_ref());
        if let Some(ttl) = self.spec.record_ttl {
            set.arg("PX").arg(milliseconds(ttl.into()));
        }
        set.ignore();
    }
}

/// Redis takes no time to live of nothing.
fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis())
        .unwrap_or(u64::MAX)
        .max(1)
}

/// `{"next": …, "records": […]}`, with the records byte for byte.
pub(super) fn element(page: &Page) -> Vec<u8> {
    let next = serde_json::json!(page.next).to_string();
    let bytes: usize = page.records.iter().map(|record| record.len() + 1).sum();
    let mut element = Vec::with_capacity(bytes + next.len() + 32);
    element.extend_from_slice(br#"{"next":"#);
    element.extend_from_slice(next.as_bytes());
    element.extend_from_slice(br#","records":["#);
    for (index, record) in page.records.iter().enumerate() {
        if index > 0 {
            element.push(b',');
        }
        element.extend_from_slice(record);
    }
    element.extend_from_slice(b"]}");
    element
}
