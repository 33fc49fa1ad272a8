//! The pages of a result, and the places where they begin.

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;
use futures::{FutureExt, StreamExt, stream::BoxStream};
use millstream_api::source::HttpSource;
use serde::{Deserialize, Serialize};
use url::Url;

use crate::{
    pointer::Pointer,
    source::http::{
        cursor,
        fetch::{Answer, Fetch},
        number, offset, page,
    },
    status::{Concern, StatusPart},
};

const LACKING: &str = "lacking";

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
    /// Whether, with this page, the result lacks what the server had told of.
    pub lacking: bool,
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
            lacking: false,
        }
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
        let page = Page {
            records,
            next: None,
            lacking: true,
        };
        self.lacking(message, page)
    }

    /// A page that isn't full, or has nothing, though the server had told of others after it. They
    /// may be there all the same.
    pub fn short(&self, page: Page) -> Page {
        let message = "the server has told of more records than it gives: a page before the last one is empty, or isn't full; records are missing unless the result has become shorter meanwhile";
        self.lacking(message, page)
    }

    /// A page of a result that may not be whole, for this reason.
    pub fn lacking(&self, message: impl ToString, page: Page) -> Page {
        // It stays: what is missing is missing later too.
        self.status.warn(LACKING, message);
        Page {
            lacking: true,
            ..page
        }
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

    /// Pages that may be fetched side by side.
    pub fn concurrency(&self) -> usize {
        self.spec.concurrency.max(1) as usize
    }
}
