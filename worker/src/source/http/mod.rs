//! Records from an HTTP API that answers with JSON.

mod fetch;
mod page;

use std::{sync::Arc, time::Duration};

use futures::{FutureExt, StreamExt, stream};
use millstream_api::source::{HttpSource, LimitOffset};
use serde_json::{Value, json};
use tokio::time::MissedTickBehavior;

use crate::{
    pointer::Pointer,
    source::{Opening, Records, SourceBatch, http::fetch::Fetch},
    status::StatusPart,
};

/// Opens the source; the position is the offset of the next page.
pub fn open(spec: HttpSource, opening: &Opening<'_>) -> anyhow::Result<Records> {
    let start = opening
        .position
        .and_then(|position| position["offset"].as_u64());
    let poll = spec.poll.clone();
    let http = Arc::new(Http {
        fetch: Fetch::new(&spec, opening.status.clone())?,
        records: Pointer::parse(&spec.records),
        spec,
    });
    let first = start.unwrap_or(0);
    let Some(poll) = poll else {
        return Ok(http.pass(first));
    };
    let mut interval = tokio::time::interval(at_least_a_millisecond(poll.interval.into()));
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let ticks = stream::unfold(interval, |mut interval| async move {
        interval.tick().await;
        Some(((), interval))
    });
    let passes = ticks.enumerate().flat_map(move |(pass, ())| {
        // Only the first pass goes on where another worker stopped.
        http.clone().pass(if pass == 0 { first } else { 0 })
    });
    Ok(passes.boxed())
}

fn at_least_a_millisecond(interval: Duration) -> Duration {
    interval.max(Duration::from_millis(1))
}

struct Http {
    spec: HttpSource,
    fetch: Fetch,
    records: Pointer,
}

impl Http {
    /// All records once, from this offset on.
    fn pass(self: Arc<Self>, start: u64) -> Records {
        let Some(pagination) = self.spec.pagination.clone() else {
            let page = async move { self.single().await };
            return page.into_stream().boxed();
        };
        let paging = pagination.limit_offset;
        if paging.count.is_some() {
            self.counted(paging, start)
        } else {
            self.until_short(paging, start)
        }
    }

    async fn single(&self) -> SourceBatch {
        let parse = |body| page::records(body, &self.records);
        let records = self.fetch.get("page", &self.spec.query, parse).await;
        SourceBatch {
            records,
            position: json!({}),
            ..SourceBatch::default()
        }
    }

    /// The number of records is asked for first; pages are fetched side by side and given in order.
    fn counted(self: Arc<Self>, paging: LimitOffset, start: u64) -> Records {
        let concurrency = self.spec.concurrency.max(1) as usize;
        let count = {
            let (http, paging) = (self.clone(), paging.clone());
            async move { http.count(&paging).await }
        };
        let pages = move |count: u64| {
            let end = count.min(paging.max_records.unwrap_or(u64::MAX));
            let http = self.clone();
            let paging = Arc::new(paging.clone());
            let mut next = start;
            let offsets = std::iter::from_fn(move || {
                let offset = next;
                next = offset.saturating_add(paging.page_size.max(1));
                (offset < end).then(|| (paging.clone(), offset))
            });
            stream::iter(offsets)
                .map(move |(paging, offset)| {
                    let http = http.clone();
                    async move { http.page(&paging, offset).await }
                })
                .buffered(concurrency)
        };
        count.into_stream().flat_map(pages).boxed()
    }

    /// One page after the other until one isn't full.
    fn until_short(self: Arc<Self>, paging: LimitOffset, start: u64) -> Records {
        stream::unfold(Some(start), move |offset| {
            let (http, paging) = (self.clone(), paging.clone());
            async move {
                let offset = offset?;
                let limit = page_limit(&paging, offset);
                if limit == 0 {
                    return None;
                }
                let page = http.page(&paging, offset).await;
                let full = page.records.len() as u64 >= limit;
                Some((page, full.then_some(offset + limit)))
            }
        })
        .boxed()
    }

    async fn page(&self, paging: &LimitOffset, offset: u64) -> SourceBatch {
        let limit = page_limit(paging, offset);
        let mut query = self.spec.query.clone();
        query.insert(paging.limit_parameter.clone(), limit.to_string());
        query.insert(paging.offset_parameter.clone(), offset.to_string());
        let parse = |body| page::records(body, &self.records);
        let concern = format!("page at {offset}");
        let mut records = self.fetch.get(concern, &query, parse).await;
        // An API that doesn't know the limit's name answers with more.
        records.truncate(usize::try_from(limit).unwrap_or(usize::MAX));
        SourceBatch {
            records,
            position: json!({"offset": offset + limit}),
            ..SourceBatch::default()
        }
    }

    async fn count(&self, paging: &LimitOffset) -> u64 {
        let Some(count) = &paging.count else { return 0 };
        let pointer = Pointer::parse(&count.pointer);
        let mut query = self.spec.query.clone();
        query.extend(count.query.clone());
        let parse = |body| page::number(body, &pointer);
        self.fetch.get("count", &query, parse).await
    }
}

/// Records to ask for at this offset: a page, or what is left of `maxRecords`.
fn page_limit(paging: &LimitOffset, offset: u64) -> u64 {
    let left = paging
        .max_records
        .unwrap_or(u64::MAX)
        .saturating_sub(offset);
    paging.page_size.max(1).min(left)
}
