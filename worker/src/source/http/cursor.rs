//! Pages that say where the next one is.

use std::{sync::Arc, time::Duration};

use futures::{StreamExt, stream};
use millstream_api::source::http::Cursor;
use tokio::time::Instant;
use url::Url;

use crate::{
    pointer::Pointer,
    source::http::{
        fetch::Answer,
        link, page,
        paging::{Page, Pager, Pages, Place},
    },
};

/// A cursor that is asked for so soon after the server has told of it, and refused, hasn't become too old:
/// the API goes no deeper.
const FRESH: Duration = Duration::from_secs(30);

struct Cursors {
    pager: Arc<Pager>,
    paging: Cursor,
    next: Option<Pointer>,
}

/// The pages; ends before the last one where the server doesn't know the place any more that it is to
/// go on from.
pub fn pages(pager: Arc<Pager>, paging: Cursor, from: Option<Place>) -> Pages {
    let next = paging.next.as_deref().map(Pointer::parse);
    let cursors = Arc::new(Cursors {
        pager,
        paging,
        next,
    });
    stream::unfold(Some((from, None)), move |state| {
        let cursors = cursors.clone();
        async move {
            let (at, told): (_, Option<Instant>) = state?;
            let is_fresh = told.is_some_and(|told| told.elapsed() < FRESH);
            let page = match cursors.page(at.as_ref()).await {
                // Read again from its beginning, the result would end here again.
                None if is_fresh => cursors.pager.cut_off(Vec::new()),
                page => page?,
            };
            let next = page.next.clone();
            let next = next.map(|next| (Some(next), Some(Instant::now())));
            Some((page, next))
        }
    })
    .boxed()
}

impl Cursors {
    async fn page(&self, at: Option<&Place>) -> Option<Page> {
        let url = self.url(at)?;
        let parse = |answer: &Answer| {
            let records = self.pager.records_of(answer)?;
            Ok((records, self.next(answer)?))
        };
        // Cursors don't live for ever, and a worker may be away for long.
        let first = self.pager.url([]);
        let (records, next) = self.pager.get("page", &url, &first, parse).await?;
        // A page that is its own next one is the last.
        let own = Place::Url(url.into());
        let next = next.filter(|next| Some(next) != at && *next != own);
        Some(Page { records, next })
    }

    /// None for what was kept and is no URL.
    fn url(&self, at: Option<&Place>) -> Option<Url> {
        match (at, &self.paging.parameter) {
            (Some(Place::Url(url)), _) => url.parse().ok(),
            (Some(Place::Cursor(cursor)), Some(name)) => {
                Some(self.pager.url([(name, cursor.clone())]))
            }
            _ => Some(self.pager.url([])),
        }
    }

    fn next(&self, answer: &Answer) -> Result<Option<Place>, String> {
        let next = match &self.next {
            Some(pointer) => page::optional_text(&answer.body, pointer)?,
            None => link::next(&answer.links).map(str::to_owned),
        };
        match next {
            None => Ok(None),
            Some(cursor) if self.paging.parameter.is_some() => Ok(Some(Place::Cursor(cursor))),
            Some(url) => {
                let url = self.pager.fetch.resolve(answer, &url)?;
                Ok(Some(Place::Url(url.into())))
            }
        }
    }
}
