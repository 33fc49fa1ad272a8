//! Records from an HTTP API that answers with JSON.
//!
//! A pass fetches everything once ([`paging`]); a polled source makes one pass after the other.

mod auth;
mod cache;
mod cursor;
mod fetch;
mod link;
mod number;
mod offset;
mod page;
mod paging;
mod position;

use std::{sync::Arc, time::Duration};

use futures::{StreamExt, stream};
use millstream_api::source::HttpSource;
use tokio::time::{Interval, MissedTickBehavior};

use crate::{
    pointer::Pointer,
    source::{
        Opening, Records, SourceBatch,
        http::{
            cache::{Cache, Found, filling::Filling},
            fetch::{Fetch, LACKING},
            paging::{Page, Pager, Pages, Place},
            position::Progress,
        },
    },
    status::StatusPart,
};

const PLACE: &str = "place";
const KNOWN: &str = "known records";
const STARTED_OVER: &str = "started over";

/// Opens the source; it goes on with the page after the last one that Kafka has.
pub fn open(spec: HttpSource, opening: &Opening<'_>) -> anyhow::Result<Records> {
    let (status, metrics) = (opening.status.clone(), opening.metrics.clone());
    let (credentials, answers) = (opening.credentials, opening.answers);
    let reader = Reader {
        fetch: Arc::new(Fetch::new(&spec, credentials, status.clone(), answers)?),
        cache: Cache::new(&spec, credentials, status.clone(), metrics)?.map(Arc::new),
        ticks: spec.poll.as_ref().map(|poll| ticks(poll.interval.into())),
        progress: Progress::new(opening.position, spec.poll.as_ref()),
        spec: Arc::new(spec),
        pass: None,
        status,
    };
    let batches = stream::unfold(reader, |mut reader| async move {
        let batch = reader.next().await?;
        Some((batch, reader))
    });
    Ok(batches.boxed())
}

fn ticks(interval: Duration) -> Interval {
    let mut ticks = tokio::time::interval(interval.max(Duration::from_millis(1)));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

struct Reader {
    spec: Arc<HttpSource>,
    fetch: Arc<Fetch>,
    cache: Option<Arc<Cache>>,
    /// When passes begin; one pass only where there are none.
    ticks: Option<Interval>,
    progress: Progress,
    /// The pass under way.
    pass: Option<Pass>,
    status: StatusPart,
}

struct Pass {
    pages: Pages,
    /// Whether the pages come from the cache.
    cached: bool,
    /// Whether it began with the first page.
    whole: bool,
    /// Whether the result may not be whole.
    lacking: bool,
    /// Takes the pages on their way, where the cache wants them.
    filling: Option<Filling>,
}

impl Reader {
    async fn next(&mut self) -> Option<SourceBatch> {
        loop {
            let pass = match &mut self.pass {
                Some(pass) => pass,
                None if self.progress.position.at == Some(Place::End) => return None,
                None => {
                    if let Some(ticks) = &mut self.ticks {
                        ticks.tick().await;
                    }
                    let pass = self.begin().await;
                    self.pass.insert(pass)
                }
            };
            match pass.next(&self.fetch).await {
                Some(page) => return Some(self.batch(page)),
                None => self.mend(),
            }
        }
    }

    /// A new pass, or the rest of one. Only a whole pass is one for the cache.
    async fn begin(&mut self) -> Pass {
        let whole = self.progress.position.at.is_none();
        let found = match &self.cache {
            Some(cache) if whole => cache.find().await,
            _ => Found::Away,
        };
        match found {
            Found::Hit(pages) => Pass {
                pages,
                cached: true,
                whole,
                lacking: false,
                filling: None,
            },
            Found::Miss(filling) => Pass {
                filling: Some(filling),
                ..self.fetch()
            },
            Found::Away => self.fetch(),
        }
    }

    fn is_incremental(&self) -> bool {
        let poll = self.spec.poll.as_ref();
        poll.is_some_and(|poll| poll.incremental.is_some())
    }

    /// What is left of a pass, from the server itself.
    fn fetch(&self) -> Pass {
        let position = &self.progress.position;
        let mut query = self.spec.query.clone();
        let poll = self.spec.poll.as_ref();
        let incremental = poll.and_then(|poll| poll.incremental.as_ref());
        if let (Some(incremental), Some(since)) = (incremental, &position.since) {
            query.insert(incremental.parameter.clone(), since.clone());
        }
        let pager = Pager {
            fetch: self.fetch.clone(),
            spec: self.spec.clone(),
            records: Pointer::parse(&self.spec.records),
            query,
            status: self.status.clone(),
        };
        Pass {
            pages: Arc::new(pager).pages(position.at.clone()),
            cached: false,
            whole: position.at.is_none(),
            lacking: false,
            filling: None,
        }
    }

    /// The pages have ended before the last one. What the cache doesn't have any more the server
    /// has; and where the server has lost the place, the pass starts over.
    fn mend(&mut self) {
        if self.pass.as_ref().is_some_and(|pass| !pass.cached) {
            let message = "the server didn't know the cursor of the next page any more: the source began again with the first page, and some records came twice";
            // It stays: what was given before is there too.
            self.status.warn(STARTED_OVER, message);
            self.progress.start_over();
        }
        self.pass = Some(self.fetch());
    }

    fn batch(&mut self, mut page: Page) -> SourceBatch {
        let (position, kept) = self.progress.pass(&mut page);
        if page.next.is_none() {
            let pass = self.pass.take();
            let complete = pass.is_some_and(|pass| pass.whole && !pass.lacking);
            if complete && !self.is_incremental() {
                // What was missing has come. It wouldn't where each pass gives what is newer.
                self.status.clear(LACKING);
            }
            match self.progress.forgets() {
                Some(message) => self.status.warn(KNOWN, message),
                None => self.status.clear(KNOWN),
            }
        }
        if kept {
            self.status.clear(PLACE);
        } else {
            let message = "the cursor is too long to be kept in Kafka; after a restart the source goes on from an earlier page";
            self.status.warn(PLACE, message);
        }
        SourceBatch {
            records: page.records,
            position,
            ..SourceBatch::default()
        }
    }
}

impl Pass {
    async fn next(&mut self, fetch: &Fetch) -> Option<Page> {
        let page = self.pages.next().await?;
        self.lacking |= fetch.has_lacked();
        if let Some(filling) = self.filling.take() {
            self.filling = filling.add(&page, self.lacking).await;
        }
        Some(page)
    }
}
