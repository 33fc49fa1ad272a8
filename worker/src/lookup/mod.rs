//! Lookups: read as a whole before the first record is processed, and again from time to time.
//!
//! A lookup that can't be read is an error at first, and nothing is processed until it is there; later
//! it is a warning, and the rows that were read last stay in use. One without rows counts as one that
//! can't be read: a join with it would be wrong in silence.

mod cassandra;
mod file;
mod rows;

use std::{sync::Arc, time::Duration};

use anyhow::Context;
use chrono::{SecondsFormat, Utc};
use millstream_api::{Lookup as Spec, lookup, source::FileSource};
use millstream_plan::{Lookup, LookupPlan, LookupTable, Lookups, RecordSchema, SinkPlan};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use self::rows::{Limits, Rows};
use crate::{
    cassandra::Connecting, config::Credentials, metrics::Metrics, retry::Delays, status::StatusPart,
};

/// At most between two attempts to read one.
const RETRY: Duration = Duration::from_secs(15);

type Loaded = Option<Arc<LookupTable>>;

/// The lookups that a sink joins.
#[derive(Clone, Default)]
pub struct Joined(Vec<(String, watch::Receiver<Loaded>)>);

impl Joined {
    /// Returns when all of them are there.
    pub async fn loaded(&self) {
        for (_, current) in &self.0 {
            // An error means that nobody reads it any more: the worker ends.
            let _ = current.clone().wait_for(Option::is_some).await;
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The rows as they were read last.
    pub fn now(&self) -> Lookups {
        let loaded = self.0.iter().filter_map(|(name, current)| {
            let table = current.borrow().clone()?;
            Some((name.clone(), table))
        });
        loaded.collect()
    }
}

/// Reads a lookup, for as long as the worker runs.
pub struct Loader {
    spec: Spec,
    plan: LookupPlan,
    origin: Origin,
    limits: Limits,
    current: watch::Sender<Loaded>,
}

/// Where the rows are.
enum Origin {
    Table(Connecting, lookup::LookupTable),
    Files(Box<FileSource>, RecordSchema, Credentials),
}

/// The loaders of the lookups that queries join; none of those that no query joins.
pub fn loaders(
    specs: &[Spec],
    plans: &[SinkPlan],
    session: Option<&Connecting>,
    credentials: &Credentials,
) -> anyhow::Result<Vec<Loader>> {
    let mut loaders = Vec::new();
    for spec in specs {
        let lookup = Lookup::new(&spec.name, spec.schema.as_deref().unwrap_or_default())?;
        let Some(plan) = LookupPlan::new(&lookup, plans) else {
            continue;
        };
        let named = || format!("lookup `{}`", spec.name);
        let origin = match (&spec.cassandra, &spec.file) {
            (Some(table), None) => {
                let session = session.context("there is no connection to Cassandra");
                Origin::Table(session.with_context(named)?.clone(), table.clone())
            }
            (None, Some(file)) => {
                let credentials = credentials.of_lookup(spec);
                Origin::Files(Box::new(file.source()), lookup.schema, credentials)
            }
            _ => anyhow::bail!("{}: set exactly one of cassandra and file", named()),
        };
        let bytes = spec.max_bytes().context("maxSize isn't a size");
        loaders.push(Loader {
            limits: Limits {
                rows: spec.max_rows as usize,
                bytes: usize::try_from(bytes.with_context(named)?)?,
            },
            spec: spec.clone(),
            plan,
            origin,
            current: watch::Sender::new(None),
        });
    }
    Ok(loaders)
}

/// What a query joins of these.
pub fn joined(loaders: &[Loader], plan: &SinkPlan) -> Joined {
    let joined = loaders.iter().filter(|loader| loader.is_joined(plan));
    let joined = joined.map(|loader| (loader.spec.name.clone(), loader.current.subscribe()));
    Joined(joined.collect())
}

impl Loader {
    /// Whether a query joins it.
    pub fn is_joined(&self, plan: &SinkPlan) -> bool {
        plan.lookups().any(|name| name == self.spec.name)
    }

    /// Reads the lookup once; an error says which one it is.
    pub async fn load_once(&self) -> anyhow::Result<()> {
        let loaded = self.load().await;
        let table = loaded.with_context(|| format!("lookup `{}`", self.spec.name))?;
        self.current.send_replace(Some(Arc::new(table)));
        Ok(())
    }

    /// Reads the lookup until shutdown; shows the sinks that join it what is wrong with it.
    pub async fn run(
        self,
        status: Vec<StatusPart>,
        metrics: &Metrics,
        shutdown: CancellationToken,
    ) {
        tokio::select! {
            () = self.keep(&status, metrics) => {}
            () = shutdown.cancelled() => {}
        }
    }

    async fn keep(&self, status: &[StatusPart], metrics: &Metrics) {
        let name = &self.spec.name;
        let concern = format!("lookup {name}");
        let refresh = Duration::from(self.spec.refresh);
        let mut delays = Delays::up_to(RETRY);
        let mut since = None;
        loop {
            match self.load().await {
                Ok(table) => {
                    let (rows, bytes) = (table.rows(), table.bytes());
                    tracing::info!(rows, bytes, "read the lookup {name}");
                    let now = Utc::now();
                    metrics.set_lookup(name, rows, now.timestamp());
                    since = Some(now.to_rfc3339_opts(SecondsFormat::Secs, true));
                    self.current.send_replace(Some(Arc::new(table)));
                    status.iter().for_each(|part| part.clear(concern.clone()));
                    delays = Delays::up_to(RETRY);
                    tokio::time::sleep(refresh).await;
                }
                Err(error) => {
                    for part in status {
                        match &since {
                            None => part.fail(
                                concern.clone(),
                                format!("the lookup `{name}` can't be read: {error:#}"),
                            ),
                            Some(since) => part.warn(
                                concern.clone(),
                                format!(
                                    "the lookup `{name}` can't be read again, its rows of {since} stay in use: {error:#}"
                                ),
                            ),
                        }
                    }
                    delays.wait().await;
                }
            }
        }
    }

    async fn load(&self) -> anyhow::Result<LookupTable> {
        let columns = self.plan.columns();
        let rows = Rows::new(columns.clone(), self.limits);
        let rows = match &self.origin {
            Origin::Table(session, table) => {
                let session = session.clone().await;
                cassandra::read(&session, table, rows).await?
            }
            Origin::Files(files, schema, credentials) => {
                file::read(files, schema, credentials, rows).await?
            }
        };
        let (plan, limits) = (self.plan.clone(), self.limits);
        // It takes the processor for a while.
        let table = tokio::task::spawn_blocking(move || {
            let columns = rows.whole()?;
            anyhow::ensure!(columns.num_rows() > 0, "it has no rows");
            let table = plan.table(columns)?;
            limits.check(table.rows(), table.bytes())?;
            Ok(table)
        });
        table.await?
    }
}
