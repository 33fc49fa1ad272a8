//! Rows of a PostgreSQL database, page by page in the order of a key.

mod connect;
mod query;
mod tls;

use std::{pin::pin, time::Duration};

use anyhow::Context;
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use millstream_api::source::DatabaseSource;
use serde::{Deserialize, Serialize};
use tokio::time::{Interval, MissedTickBehavior};
use tokio_postgres::{Client, error::SqlState, types::Type};

use self::{
    connect::Connector,
    query::{Relation, Start},
};
use crate::{
    retry::Delays,
    source::{Opening, Records, SourceBatch},
    status::StatusPart,
};

/// A page ends where it has so many bytes: what is left of it is read with the next.
const PAGE_BYTES: usize = 4 * 1024 * 1024;
/// What the server needs beside the statement's own time.
const GRACE: Duration = Duration::from_secs(5);
const DATABASE: &str = "database";
const UNREAD: &str = "rows without a key";
const REORDERED: &str = "another order";

/// Opens the source; the position is the key of the last row that was read.
pub fn open(spec: DatabaseSource, opening: &Opening<'_>) -> anyhow::Result<Records> {
    let position: Option<Position> = opening
        .position
        .and_then(|position| Position::deserialize(position).ok());
    let reader = Reader {
        connector: Connector::new(&spec.postgres, opening.credentials, spec.timeout.into())?,
        position: position.unwrap_or_default(),
        interval: spec.poll.as_ref().map(|poll| {
            let interval = Duration::from(poll.interval).max(Duration::from_millis(1));
            let mut interval = tokio::time::interval(interval);
            interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
            interval
        }),
        // With an interval its first tick, which comes at once, begins the first pass.
        pass: match spec.poll {
            Some(_) => Pass::Over,
            None => Pass::Begins,
        },
        session: None,
        rows: spec.fetch_size,
        delays: Delays::default(),
        status: opening.status.clone(),
        spec,
    };
    Ok(stream::unfold(reader, Reader::next).boxed())
}

struct Reader {
    spec: DatabaseSource,
    connector: Connector,
    session: Option<Session>,
    position: Position,
    pass: Pass,
    /// Rows of the next page: fewer than `fetchSize` where rows are large.
    rows: u32,
    interval: Option<Interval>,
    delays: Delays,
    status: StatusPart,
}

/// The last row that was read.
#[derive(Serialize, Deserialize, Clone, Debug, Default)]
struct Position {
    /// What orders it among the others, as text; none before the first one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    after: Option<Vec<String>>,
    /// The columns that these values are of.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    order: Vec<String>,
}

impl Position {
    /// The place among rows that are ordered by these columns; whether some of them come again.
    fn among(&mut self, order: Vec<String>, incremental: bool) -> bool {
        let moved = self.after.is_some() && !self.order.is_empty() && self.order != order;
        if moved {
            // The first column is the incremental one, as before: all of the last value come again.
            self.after = self.after.take().filter(|_| incremental);
            self.after.iter_mut().for_each(|after| after.truncate(1));
        }
        self.order = order;
        moved
    }
}

/// A connection, and what was asked of the relation under it.
struct Session {
    client: Client,
    relation: Relation,
}

/// Once through everything that there is.
enum Pass {
    Begins,
    /// Up to this value of the incremental column, where there is one.
    Reads(Option<Vec<String>>),
    Over,
}

/// Rows that were read.
struct Page {
    records: Vec<Bytes>,
    last: Option<Vec<String>>,
    /// Whether it was cut, as it had too many bytes.
    cut: bool,
}

impl Reader {
    /// The next batch. What fails is shown, and done again for as long as it takes.
    async fn next(mut self) -> Option<(SourceBatch, Self)> {
        loop {
            if let Pass::Over = self.pass {
                self.interval.as_mut()?.tick().await;
                self.pass = Pass::Begins;
            }
            match self.step().await {
                Ok(batch) => {
                    self.status.clear(DATABASE);
                    self.delays = Delays::default();
                    if let Some(batch) = batch {
                        return Some((batch, self));
                    }
                }
                Err(error) => {
                    self.session = None;
                    let place = &self.spec.postgres;
                    let (host, port, database) = (&place.host, place.port, &place.database);
                    // The driver's own word for it says nothing.
                    let error = format!("{error:#}").replace("db error: ", "");
                    let message = format!("PostgreSQL {host}:{port}/{database}: {error}");
                    self.status.fail(DATABASE, message);
                    self.delays.wait().await;
                }
            }
        }
    }

    /// Begins a pass, or reads a page of it.
    async fn step(&mut self) -> anyhow::Result<Option<SourceBatch>> {
        if let (Some(session), Pass::Begins) = (&self.session, &self.pass)
            && !session.is_current(&self.spec).await?
        {
            // Columns were added, or others are there.
            self.session = None;
        }
        if self.session.is_none() {
            let session = Session::open(&self.connector, &self.spec, &self.status).await?;
            let order = session.relation.order();
            if self.position.among(order, self.spec.incremental.is_some()) {
                let message = "the primary key has changed, so that the place in the old order means nothing: rows were read again";
                // It stays: what was given before is there too.
                self.status.warn(REORDERED, message);
            }
            self.session = Some(session);
        }
        let session = self.session.as_ref().context("there is no session")?;
        let until = match &self.pass {
            Pass::Reads(until) => until.clone(),
            Pass::Begins | Pass::Over => {
                self.pass = session.begin(&self.spec).await?;
                return Ok(None);
            }
        };
        let limit = Duration::from(self.spec.timeout) + GRACE;
        let asked = self.rows;
        let page = session.page(&self.spec, asked, self.position.after.as_deref(), until);
        let page = tokio::time::timeout(limit, page).await;
        let page = page.context("the page wasn't there in time; see fetchSize and timeout")??;
        let read = u32::try_from(page.records.len()).unwrap_or(asked);
        self.rows = match page.cut {
            true => read.max(1),
            false => asked.saturating_mul(2).min(self.spec.fetch_size),
        };
        if page.last.is_some() {
            self.position.after = page.last;
        }
        if !page.cut && read < asked {
            self.pass = Pass::Over;
            if self.spec.incremental.is_none() && self.interval.is_some() {
                // The next pass reads everything again.
                self.position.after = None;
            }
        }
        Ok((!page.records.is_empty()).then(|| SourceBatch {
            records: page.records,
            // Texts: it serializes.
            position: serde_json::to_value(&self.position).unwrap_or_default(),
            ..SourceBatch::default()
        }))
    }
}

impl Session {
    /// Connects, asks what columns there are, and tells of rows that are never read.
    async fn open(
        connector: &Connector,
        spec: &DatabaseSource,
        status: &StatusPart,
    ) -> anyhow::Result<Self> {
        let client = connector.connect().await?;
        let limit = Duration::from(spec.timeout) + GRACE;
        let asked = async {
            let columns = columns(&client, spec).await?;
            let key = match (&spec.table, spec.key.as_slice()) {
                (Some(table), []) => primary_key(&client, table).await?,
                (_, key) => key.to_vec(),
            };
            let relation = Relation::new(spec, columns, &key)?;
            tell_of_unread(&client, spec, &relation, status).await?;
            anyhow::Ok(relation)
        };
        let relation = tokio::time::timeout(limit, asked).await;
        Ok(Session {
            relation: relation.context("no answer in time")??,
            client,
        })
    }

    /// Whether the relation is still what was asked of it.
    async fn is_current(&self, spec: &DatabaseSource) -> anyhow::Result<bool> {
        let limit = Duration::from(spec.timeout) + GRACE;
        let columns = tokio::time::timeout(limit, columns(&self.client, spec)).await;
        Ok(self.relation.has(&columns.context("no answer in time")??))
    }

    /// Up to where there is something to read, and has been for long enough.
    async fn begin(&self, spec: &DatabaseSource) -> anyhow::Result<Pass> {
        let Some(incremental) = &spec.incremental else {
            return Ok(Pass::Reads(None));
        };
        let limit = Duration::from(spec.timeout) + GRACE;
        let largest = self.relation.largest();
        let largest = self.client.query_opt(&largest, &[]);
        let largest = tokio::time::timeout(limit, largest).await;
        let Some(largest) = largest.context("no answer in time")?? else {
            return Ok(Pass::Over);
        };
        let until = largest.try_get(0)?;
        tokio::time::sleep(incremental.settle.into()).await;
        Ok(Pass::Reads(Some(until)))
    }

    /// The rows behind a position.
    async fn page(
        &self,
        spec: &DatabaseSource,
        asked: u32,
        after: Option<&[String]>,
        until: Option<Vec<String>>,
    ) -> anyhow::Result<Page> {
        let initial = spec.incremental.as_ref().and_then(|of| of.initial.clone());
        let (start, from) = match (after, initial) {
            (Some(after), _) if after.len() < self.relation.depth() => (Start::At, after.to_vec()),
            (Some(after), _) => (Start::Behind, after.to_vec()),
            (None, Some(initial)) => (Start::At, vec![initial]),
            (None, None) => (Start::Beginning, Vec::new()),
        };
        let sql = self.relation.page(start, asked);
        let types = [Type::TEXT_ARRAY, Type::TEXT_ARRAY];
        let statement = self.client.prepare_typed(&sql, &types).await?;
        let parameters = [from, until.unwrap_or_default()];
        let rows = self.client.query_raw(&statement, parameters).await?;
        let mut rows = pin!(rows);
        let mut page = Page {
            records: Vec::new(),
            last: None,
            cut: false,
        };
        let mut bytes = 0;
        while let Some(row) = rows.try_next().await? {
            let record: &str = row.try_get(0)?;
            bytes += record.len();
            page.records.push(Bytes::copy_from_slice(record.as_bytes()));
            page.last = Some(row.try_get(1)?);
            if bytes >= PAGE_BYTES {
                page.cut = true;
                break;
            }
        }
        Ok(page)
    }
}

/// The columns that there are.
async fn columns(client: &Client, spec: &DatabaseSource) -> anyhow::Result<Vec<(String, Type)>> {
    let any = format!("SELECT * FROM {} AS t LIMIT 0", query::from(spec)?);
    let statement = client.prepare(&any).await?;
    let columns = statement.columns().iter();
    let columns = columns.map(|column| (column.name().to_owned(), column.type_().clone()));
    Ok(columns.collect())
}

/// Tells of rows that are never read. Where that takes longer than a statement may, they are read
/// all the same.
async fn tell_of_unread(
    client: &Client,
    spec: &DatabaseSource,
    relation: &Relation,
    status: &StatusPart,
) -> anyhow::Result<()> {
    let incremental = spec.incremental.iter().map(|of| &of.column);
    let said = incremental
        .chain(&spec.key)
        .map(|name| format!("`{name}`"))
        .collect::<Vec<_>>()
        .join(" or ");
    // Otherwise the order is that of a primary key.
    if said.is_empty() {
        return Ok(());
    }
    let said = format!("{said} is {}", relation.unreadable());
    match client.query_one(&relation.unread(), &[]).await {
        Ok(row) if row.try_get(0)? => status.warn(
            UNREAD,
            format!(
                "there are rows whose {said}: they aren't read (looked at when the source connects)"
            ),
        ),
        Ok(_) => status.clear(UNREAD),
        Err(error) if error.code() == Some(&SqlState::QUERY_CANCELED) => status.warn(
            UNREAD,
            format!(
                "rows whose {said} aren't read; whether there are some takes longer to find out than `timeout` ({}): without them in the column (as with NOT NULL), all is well",
                spec.timeout
            ),
        ),
        Err(error) => return Err(error.into()),
    }
    Ok(())
}

/// The columns of a table's primary key, in its order.
async fn primary_key(client: &Client, table: &str) -> anyhow::Result<Vec<String>> {
    // What an index only includes stands behind its key.
    const COLUMNS: &str = "SELECT a.attname::text FROM pg_index AS i \
        JOIN pg_attribute AS a ON a.attrelid = i.indrelid \
        AND array_position(i.indkey::int2[], a.attnum) < i.indnkeyatts \
        WHERE i.indrelid = $1::text::regclass AND i.indisprimary \
        ORDER BY array_position(i.indkey::int2[], a.attnum)";
    let quoted = query::quoted_table(table);
    let rows = client.query(COLUMNS, &[&quoted]).await?;
    anyhow::ensure!(
        !rows.is_empty(),
        "table {table} has no primary key: name the columns that tell its rows apart in `key`"
    );
    let columns = rows.iter().map(|row| Ok(row.try_get(0)?));
    columns.collect()
}
