//! The pages of a result, and the places where they begin.

use std::{
    collections::BTreeMap,
    hash::{DefaultHasher, Hash, Hasher},
    sync::Arc,
};

use bytes::Bytes;
use futures::{
    FutureExt, StreamExt,
    stream::{self, BoxStream},
};
use millstream_api::source::HttpSource;
use serde::{Deserialize, Serialize};
use url::Url;

use crate::{
    pointer::Pointer,
    source::http::{
        cursor,
        fetch::{Answer, Fetch, REFUSED},
        number, offset, page,
    },
    status::{Concern, StatusPart},
};

/// The concern of a page that is the one before again.
pub const AGAIN: &str = "page again";

/// Where a page begins. What a pagination doesn't know is its beginning.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub enum Place {
    Offset(u64),
    Page(u64),
    Cursor(String),
    Url(String),
    /// After the last page.
    End,
}

/// Some of the records.
#[derive(Clone, Debug, PartialEq)]
pub struct Page {
    pub records: Vec<Bytes>,
    /// The place after them; none after the last page.
    pub next: Option<Place>,
}

/// The pages from some place on. A stream that ends before the last page can't go on; what comes
/// after the last page is not to be asked for.
pub type Pages = BoxStream<'static, Page>;

/// Fetches the pages of one pass.
pub struct Pager {
    pub fetch: Arc<Fetch>,
    pub spec: Arc<HttpSource>,
    /// Where the records are in an answer.
    pub records: Pointer,
    /// What every request of the pass asks for.
    pub query: BTreeMap<String, String>,
    pub status: StatusPart,
}

impl Pager {
    /// All pages from a place on, the first one where there is none.
    pub fn pages(self: Arc<Self>, from: Option<Place>) -> Pages {
        let pagination = self.spec.pagination.clone().unwrap_or_default();
        if let Some(paging) = pagination.limit_offset {
            offset::pages(self, paging, from)
        } else if let Some(paging) = pagination.page_number {
            number::pages(self, paging, from)
        } else if let Some(paging) = pagination.cursor {
            cursor::pages(self, paging, from)
        } else {
            async move { self.single().await }.into_stream().boxed()
        }
    }

    async fn single(&self) -> Page {
        let url = self.url([]);
        let records = |answer: &Answer| self.records_of(answer);
        Page {
            records: self.fetch.get("page", &url, records).await,
            next: None,
        }
    }

    /// Pages that are fetched side by side, and given in their order. The parameter tells one from
    /// the other.
    pub fn side_by_side<F>(
        self: &Arc<Self>,
        numbers: impl Iterator<Item = u64> + Send + 'static,
        parameter: &str,
        before: Before,
        fetch: impl Fn(u64) -> F + Clone + Send + Sync + 'static,
    ) -> Pages
    where
        F: Future<Output = Page> + Send + 'static,
    {
        let (pager, parameter, again) = (self.clone(), parameter.to_owned(), fetch.clone());
        let fetched = stream::iter(numbers)
            .map(move |number| {
                let page = fetch(number);
                async move { (number, page.await) }
            })
            .buffered(self.spec.concurrency.max(1) as usize)
            .boxed();
        stream::unfold((fetched, before), move |(mut fetched, mut before)| {
            let (pager, parameter, again) = (pager.clone(), parameter.clone(), again.clone());
            async move {
                let (number, mut page) = fetched.next().await?;
                while !pager
                    .takes(&mut before, &parameter, number, &page.records)
                    .await
                {
                    page = again(number).await;
                }
                Some((page, (fetched, before)))
            }
        })
        .boxed()
    }

    /// Whether a page may be given. The one before again isn't, for it is a sign that the server
    /// doesn't know the parameter; the status says so, and after a while it is to be asked for anew.
    pub async fn takes(
        &self,
        before: &mut Before,
        parameter: &str,
        number: u64,
        records: &[Bytes],
    ) -> bool {
        if !before.again(records) {
            self.status.clear(AGAIN);
            return true;
        }
        let message = format!(
            "the page with `{parameter}={number}` is the one before again; does the API know `{parameter}`?"
        );
        self.status.fail(AGAIN, message);
        tokio::time::sleep(REFUSED).await;
        false
    }

    /// What a page holds. The first one is waited for; any other may be one that the server doesn't
    /// have.
    pub async fn get<T>(
        &self,
        concern: impl Into<Concern>,
        url: &Url,
        first: &Url,
        parse: impl Fn(&Answer) -> Result<T, String>,
    ) -> Option<T> {
        match url == first {
            true => Some(self.fetch.get(concern, url, parse).await),
            false => self.fetch.get_if_there(concern, url, first, parse).await,
        }
    }

    /// A last page, with these records, before the last one that the server had told of.
    pub fn cut_off(&self, records: Vec<Bytes>) -> Page {
        let message = "the server has told of more pages, and refuses them, so that the source took this for the end; records are missing unless the result has become shorter meanwhile";
        self.fetch.lacks(message);
        Page {
            records,
            next: None,
        }
    }

    /// Says that a page isn't full, or has nothing, though the server had told of others after it. They
    /// may be there all the same.
    pub fn short(&self) {
        let message = "the server has told of more records than it gives: a page before the last one is empty, or isn't full; records are missing unless the result has become shorter meanwhile";
        self.fetch.lacks(message);
    }

    /// The pipeline's URL with the pass's query and these parameters.
    pub fn url<const N: usize>(&self, parameters: [(&str, String); N]) -> Url {
        let mut query = self.query.clone();
        for (name, value) in parameters {
            query.insert(name.to_owned(), value);
        }
        self.fetch.url(&query)
    }

    pub fn records_of(&self, answer: &Answer) -> Result<Vec<Bytes>, String> {
        page::records(answer.body.clone(), &self.records)
    }
}

/// The page that came before, as far as it takes to know it again.
#[derive(Default)]
pub struct Before(Option<u64>);

impl Before {
    /// Whether these are the records of the page before again, byte for byte; they are what comes
    /// before the next ones.
    pub fn again(&mut self, records: &[Bytes]) -> bool {
        let mut hasher = DefaultHasher::new();
        records.hash(&mut hasher);
        let now = (!records.is_empty()).then(|| hasher.finish());
        std::mem::replace(&mut self.0, now) == now && now.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_known_again() {
        let mut before = Before::default();
        for (page, again) in [
            ("", false),
            ("a b", false),
            ("a b", true),
            ("a b", true),
            ("ab", false),
            ("a b", false),
            ("a", false),
            ("", false),
            ("", false),
            ("a", false),
        ] {
            let records = page
                .split_whitespace()
                .map(|record| Bytes::from_static(record.as_bytes()));
            let records: Vec<_> = records.collect();
            assert_eq!(before.again(&records), again, "{page}");
        }
    }
}
