//! Pages by a limit and an offset.

use std::sync::Arc;

use bytes::Bytes;
use futures::{FutureExt, StreamExt, stream};
use millstream_api::source::http::{CountRequest, LimitOffset};

use crate::{
    pointer::Pointer,
    source::http::{
        fetch::Answer,
        page,
        paging::{Before, Page, Pager, Pages, Place},
    },
};

struct Offsets {
    pager: Arc<Pager>,
    paging: LimitOffset,
}

pub fn pages(pager: Arc<Pager>, paging: LimitOffset, from: Option<Place>) -> Pages {
    let start = match from {
        Some(Place::Offset(offset)) => offset,
        _ => 0,
    };
    let count = paging.count.clone();
    let offsets = Arc::new(Offsets { pager, paging });
    match count {
        Some(count) => offsets.counted(count, start),
        None => offsets.in_turn(start),
    }
}

impl Offsets {
    /// The number of records is asked for first; pages are fetched side by side and given in order.
    fn counted(self: Arc<Self>, count: CountRequest, start: u64) -> Pages {
        let counting = self.clone();
        let end = async move {
            let count = counting.count(&count).await;
            let end = count.min(counting.paging.max_records.unwrap_or(u64::MAX));
            let limit = counting.limit(start).min(end.saturating_sub(start));
            (end, counting.given_before(start, limit).await)
        };
        let pages = move |(end, before): (u64, Before)| {
            let size = self.paging.page_size.max(1);
            let all = self.clone();
            let next = move |offset: &u64| Some(offset.saturating_add(size)).filter(|at| *at < end);
            // There is always one page, though it may be empty: the pass has to have a last one.
            let starts = std::iter::successors(Some(start), next);
            let fetch = move |offset: u64| {
                let all = all.clone();
                async move { all.page(offset, end).await }
            };
            let parameter = &self.paging.offset_parameter;
            self.pager.side_by_side(starts, parameter, before, fetch)
        };
        end.into_stream().flat_map(pages).boxed()
    }

    /// A page of a result whose end is known. A server that gives less than it is asked for, because
    /// it has a limit of its own, is asked for the rest.
    async fn page(&self, offset: u64, end: u64) -> Page {
        let limit = self.paging.page_size.max(1);
        let limit = limit.min(end.saturating_sub(offset));
        let (mut records, mut bytes) = (Vec::new(), 0);
        let (mut before, parameter) = (Before::default(), &self.paging.offset_parameter);
        loop {
            let missing = limit - records.len() as u64;
            if missing == 0 {
                break;
            }
            let at = offset + records.len() as u64;
            let Some((more, length)) = self.part(at, missing, bytes).await else {
                return self.pager.cut_off(records);
            };
            if more.is_empty() {
                break;
            }
            // The rest isn't what there is already, from a server that doesn't know the parameter.
            if self.pager.takes(&mut before, parameter, at, &more).await {
                records.extend(more);
                bytes += length;
            }
        }
        let full = records.len() as u64 == limit;
        let next = offset.saturating_add(limit);
        let page = Page {
            records,
            next: (next < end).then_some(Place::Offset(next)),
        };
        // That the last page is shorter than it was counted needs no word.
        if !full && page.next.is_some() {
            self.pager.short();
        }
        page
    }

    /// One page after the other until one is empty, or shorter than the one before, or not there: a
    /// server's own limit may be lower than ours.
    fn in_turn(self: Arc<Self>, start: u64) -> Pages {
        stream::unfold(Some((start, 0, Before::default())), move |state| {
            let offsets = self.clone();
            async move {
                let (offset, given_before, mut before) = state?;
                if offset == start {
                    before = offsets.given_before(start, offsets.limit(start)).await;
                }
                let mut records = offsets.some(offset).await;
                let (pager, parameter) = (&offsets.pager, &offsets.paging.offset_parameter);
                while !pager.takes(&mut before, parameter, offset, &records).await {
                    records = offsets.some(offset).await;
                }
                let given = records.len() as u64;
                let next = offset + given;
                let last = given == 0 || given < given_before || offsets.limit(next) == 0;
                let page = Page {
                    records,
                    next: (!last).then_some(Place::Offset(next)),
                };
                Some((page, (!last).then_some((next, given, before))))
            }
        })
        .boxed()
    }

    /// The first so many records, where a worker before this one has given them: a server that doesn't
    /// know the parameter gives them again.
    async fn given_before(&self, start: u64, limit: u64) -> Before {
        let mut before = Before::default();
        if start > 0 && limit > 0 {
            let first = self.part(0, limit, 0).await;
            before.again(&first.unwrap_or_default().0);
        }
        before
    }

    /// Records to ask for at this offset: a page, or what is left of `maxRecords`.
    fn limit(&self, offset: u64) -> u64 {
        let max = self.paging.max_records.unwrap_or(u64::MAX);
        let left = max.saturating_sub(offset);
        self.paging.page_size.max(1).min(left)
    }

    /// A page of a result whose end isn't known; empty where there is nothing left.
    async fn some(&self, offset: u64) -> Vec<Bytes> {
        match self.limit(offset) {
            0 => Vec::new(),
            limit => self.part(offset, limit, 0).await.unwrap_or_default().0,
        }
    }

    /// So many records at most, and the length of the answer that holds them, beside those of the
    /// page that are held; none where the server has nothing at this offset, and refuses it.
    async fn part(&self, offset: u64, limit: u64, held: usize) -> Option<(Vec<Bytes>, usize)> {
        let url = |offset: u64| {
            self.pager.url([
                (&self.paging.limit_parameter, limit.to_string()),
                (&self.paging.offset_parameter, offset.to_string()),
            ])
        };
        let (url, first) = (url(offset), url(0));
        let parse = |answer: &Answer| {
            self.pager.fetch.fits(held + answer.body.len())?;
            let mut records = self.pager.records_of(answer)?;
            // A server that doesn't know the limit's name answers with more.
            records.truncate(usize::try_from(limit).unwrap_or(usize::MAX));
            Ok((records, answer.body.len()))
        };
        let concern = format!("page at {offset}");
        self.pager.get(concern, &url, &first, parse).await
    }

    async fn count(&self, count: &CountRequest) -> u64 {
        let pointer = Pointer::parse(&count.pointer);
        let mut query = self.pager.query.clone();
        query.extend(count.query.clone());
        let url = self.pager.fetch.url(&query);
        let parse = |answer: &Answer| page::number(&answer.body, &pointer, "count.pointer");
        self.pager.fetch.get("count", &url, parse).await
    }
}
