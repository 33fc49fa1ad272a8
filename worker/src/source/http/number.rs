//! Pages by their number.

use std::sync::Arc;

use bytes::Bytes;
use futures::{FutureExt, StreamExt, stream};
use millstream_api::source::http::PageNumber;

use crate::{
    pointer::Pointer,
    source::http::{
        fetch::Answer,
        page,
        paging::{Before, Page, Pager, Pages, Place},
    },
};

struct Numbers {
    pager: Arc<Pager>,
    paging: PageNumber,
}

pub fn pages(pager: Arc<Pager>, paging: PageNumber, from: Option<Place>) -> Pages {
    let start = match from {
        Some(Place::Page(number)) => number,
        _ => paging.first_page,
    };
    let total = paging.total_pages.as_deref().map(Pointer::parse);
    let numbers = Arc::new(Numbers { pager, paging });
    match total {
        Some(total) => numbers.totalled(total, start),
        None => numbers.in_turn(start),
    }
}

impl Numbers {
    /// The first answer says how many pages there are; the others are fetched side by side and
    /// given in order.
    fn totalled(self: Arc<Self>, total: Pointer, start: u64) -> Pages {
        let first = self.clone();
        let first = async move {
            let mut before = first.given_before(start).await;
            let parse = |answer: &Answer| {
                let records = first.pager.records_of(answer)?;
                let total = match answer.body.is_empty() {
                    true => 0,
                    false => page::number(&answer.body, &total, "totalPages")?,
                };
                Ok((records, total))
            };
            let parameter = &first.paging.parameter;
            let (records, total) = loop {
                let (records, total) = first.get(start, &parse).await.unzip();
                let given = records.as_deref().unwrap_or_default();
                if first
                    .pager
                    .takes(&mut before, parameter, start, given)
                    .await
                {
                    break (records, total.unwrap_or_default());
                }
            };
            // The number of the page after the last one.
            let end = first.paging.first_page.saturating_add(total);
            (records, end, before)
        };
        let pages = move |(records, end, before): (Option<Vec<Bytes>>, u64, Before)| {
            let first = self.numbered(start, end, records);
            let numbers = self.clone();
            let fetch = move |number: u64| {
                let numbers = numbers.clone();
                async move { numbers.numbered(number, end, numbers.page(number).await) }
            };
            let parameter = &self.paging.parameter;
            let others = self
                .pager
                .side_by_side(start + 1..end, parameter, before, fetch);
            stream::once(async move { first }).chain(others)
        };
        first.into_stream().flat_map(pages).boxed()
    }

    /// A page of a result whose end is known; it ends there where the server doesn't have the page.
    fn numbered(&self, number: u64, end: u64, records: Option<Vec<Bytes>>) -> Page {
        let Some(records) = records else {
            return self.pager.cut_off(Vec::new());
        };
        let page = Page {
            records,
            next: (number + 1 < end).then_some(Place::Page(number + 1)),
        };
        if page.records.is_empty() && page.next.is_some() {
            self.pager.short();
        }
        page
    }

    /// One page after the other until one is empty, or shorter than the one before, or not there, or there
    /// is but the one before again.
    fn in_turn(self: Arc<Self>, start: u64) -> Pages {
        stream::unfold(Some((start, 0, Before::default())), move |state| {
            let numbers = self.clone();
            async move {
                let (mut number, given_before, mut before) = state?;
                if number == start {
                    before = numbers.given_before(start).await;
                }
                let mut records = numbers.some(number).await;
                if before.again(&records) {
                    // New records may have moved a whole page by one.
                    number += 1;
                    records = numbers.some(number).await;
                    if before.again(&records) {
                        return Some((numbers.end_again(number), None));
                    }
                    numbers.passed_over(number - 1);
                }
                let given = records.len();
                let last = given == 0 || given < given_before;
                let page = Page {
                    records,
                    next: (!last).then_some(Place::Page(number + 1)),
                };
                Some((page, (!last).then_some((number + 1, given, before))))
            }
        })
        .boxed()
    }

    /// The page before the start, which a worker before this one has given.
    async fn given_before(&self, start: u64) -> Before {
        let mut before = Before::default();
        if start > self.paging.first_page {
            before.again(&self.some(start - 1).await);
        }
        before
    }

    /// The end, where a page is the one before again: some servers give their last page for every
    /// number behind it. One that has given nothing else may not know the parameter.
    fn end_again(&self, number: u64) -> Page {
        if number == self.paging.first_page + 2 {
            let parameter = &self.paging.parameter;
            let message = format!(
                "the pages up to `{parameter}={number}` are the first one again, so that the source took this for the end; records are missing unless that was the only page: does the API know `{parameter}`?"
            );
            self.pager.fetch.lacks(message);
        }
        Page {
            records: Vec::new(),
            next: None,
        }
    }

    fn passed_over(&self, number: u64) {
        let parameter = &self.paging.parameter;
        let message = format!(
            "the page with `{parameter}={number}` was the one before again, byte for byte, and was passed over"
        );
        self.pager.fetch.lacks(message);
    }

    /// The records of a page of a result whose end isn't known; empty where there are none.
    async fn some(&self, number: u64) -> Vec<Bytes> {
        self.page(number).await.unwrap_or_default()
    }

    /// The records of a page; none where the server doesn't have the page.
    async fn page(&self, number: u64) -> Option<Vec<Bytes>> {
        let parse = |answer: &Answer| self.pager.records_of(answer);
        self.get(number, parse).await
    }

    async fn get<T>(&self, number: u64, parse: impl Fn(&Answer) -> Result<T, String>) -> Option<T> {
        let url = |number: u64| {
            let page = (self.paging.parameter.as_str(), number.to_string());
            match (&self.paging.size_parameter, self.paging.page_size) {
                (Some(name), Some(size)) => self.pager.url([page, (name, size.to_string())]),
                _ => self.pager.url([page]),
            }
        };
        let (url, first) = (url(number), url(self.paging.first_page));
        let concern = format!("page {number}");
        self.pager.get(concern, &url, &first, parse).await
    }
}
