//! The Delta Lake tables that endpoints read, each as it was last seen.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::Context;
use datafusion::{
    arrow::datatypes::{Schema, SchemaRef},
    catalog::TableProvider,
    prelude::SessionContext,
};
use deltalake::{
    DeltaTable,
    delta_datafusion::{DeltaScanConfig, DeltaScanNext},
};
use millstream_api::worker::ServeTable;
use tokio::{
    sync::{Mutex, OwnedMutexGuard},
    time::timeout,
};

use super::problem::Problem;
use crate::{config::Credentials, sink::delta::place::Place};

/// A look at a table that takes longer is given up.
const LOOK: Duration = Duration::from_secs(60);

/// Why a table isn't read.
#[derive(Debug)]
pub enum Unreadable {
    /// Nobody has written it yet.
    Absent(String),
    /// Something is wrong with it.
    Failed(String, anyhow::Error),
    /// It isn't as the query needs it.
    Unfit(String),
}

impl Unreadable {
    /// What the service's owner is told.
    pub fn reason(&self) -> String {
        match self {
            Unreadable::Absent(name) => absent(name),
            Unreadable::Failed(name, error) => {
                format!("the Delta Lake table of sink `{name}` can't be read: {error:#}")
            }
            Unreadable::Unfit(problem) => problem.clone(),
        }
    }
}

impl From<Unreadable> for Problem {
    fn from(unreadable: Unreadable) -> Self {
        let says = match &unreadable {
            Unreadable::Absent(name) => absent(name),
            // What is wrong is for the owner alone.
            Unreadable::Failed(name, _) => format!("the table of sink `{name}` can't be read"),
            Unreadable::Unfit(_) => "the tables aren't as the query needs them".into(),
        };
        tracing::debug!("{}", unreadable.reason());
        Problem::unavailable(format!("{says}; ask again after the time in Retry-After"))
    }
}

fn absent(name: &str) -> String {
    format!("the table of sink `{name}` isn't there yet: the sink makes it when it begins")
}

/// The tables by the names of their sinks.
pub struct Lake {
    tables: BTreeMap<String, Arc<Table>>,
    context: SessionContext,
}

struct Table {
    place: Place,
    seen: Arc<Mutex<Option<Seen>>>,
    /// Whether it was read when it was looked at last.
    readable: AtomicBool,
}

/// A table at one of its versions.
struct Seen {
    table: DeltaTable,
    /// What reads this version.
    provider: Arc<dyn TableProvider>,
    looked: Instant,
}

impl Lake {
    /// Tables that are read in this context.
    pub fn new(
        tables: &[ServeTable],
        credentials: &Credentials,
        context: SessionContext,
    ) -> anyhow::Result<Self> {
        let tables = tables.iter().map(|table| {
            let ServeTable { name, path, s3 } = table;
            let place = Place::at(name, path.as_deref(), s3.as_ref(), credentials)
                .and_then(|place| place.apart(name))
                .with_context(|| format!("the table of sink `{name}`"))?;
            let table = Table {
                place,
                seen: Arc::default(),
                readable: AtomicBool::new(false),
            };
            anyhow::Ok((name.clone(), Arc::new(table)))
        });
        Ok(Lake {
            tables: tables.collect::<anyhow::Result<_>>()?,
            context,
        })
    }

    /// Whether a table was read when it was looked at last.
    pub fn is_readable(&self, name: &str) -> bool {
        let table = self.tables.get(name);
        table.is_some_and(|table| table.readable.load(Ordering::Relaxed))
    }

    /// A table as it is now, or as somebody saw it after it was asked for.
    pub async fn look(&self, name: &str) -> Result<Arc<dyn TableProvider>, Unreadable> {
        let failed = |error| Unreadable::Failed(name.into(), error);
        let asked = Instant::now();
        let table = self.tables.get(name).context("it isn't known");
        let table = table.map_err(failed)?;
        let seen = table.seen.clone().lock_owned().await;
        if let Some(seen) = seen.as_ref().filter(|seen| seen.looked >= asked) {
            return Ok(seen.provider.clone());
        }
        // It goes on where the one who asked has gone: the next would begin from the start again.
        let look = tokio::spawn(table.clone().look(seen, self.context.clone()));
        let looked = look.await.unwrap_or_else(|error| {
            table.readable.store(false, Ordering::Relaxed);
            Err(error.into())
        });
        let provider = looked.map_err(failed)?;
        provider.ok_or_else(|| Unreadable::Absent(name.into()))
    }

    /// Forgets what was seen of tables whose files can't be read: they may be gone with a table that
    /// was made anew, whose log isn't that of the one before.
    pub async fn forget(&self, names: &[String]) {
        for table in names.iter().filter_map(|name| self.tables.get(name)) {
            *table.seen.lock().await = None;
            table.readable.store(false, Ordering::Relaxed);
        }
    }
}

impl Table {
    /// Reads the table now, and keeps what was seen. None where there is no table.
    async fn look(
        self: Arc<Self>,
        mut seen: OwnedMutexGuard<Option<Seen>>,
        context: SessionContext,
    ) -> anyhow::Result<Option<Arc<dyn TableProvider>>> {
        let read = self.read(seen.as_ref(), &context);
        let read = match timeout(LOOK, read).await {
            Ok(read) => read,
            Err(_) => Err(anyhow::anyhow!("it takes longer than {LOOK:?}")),
        };
        self.readable
            .store(matches!(read, Ok(Some(_))), Ordering::Relaxed);
        // After anything went wrong it is read anew.
        *seen = None;
        *seen = read?;
        Ok(seen.as_ref().map(|seen| seen.provider.clone()))
    }

    /// The table now: what is new in its log, or all of it where it wasn't seen before. None where
    /// there is no table.
    async fn read(
        &self,
        before: Option<&Seen>,
        context: &SessionContext,
    ) -> anyhow::Result<Option<Seen>> {
        let looked = Instant::now();
        let mut table = match before {
            Some(seen) => seen.table.clone(),
            None => self.place.table()?,
        };
        if before.is_none() && !table.verify_deltatable_existence().await? {
            return Ok(None);
        }
        table.update_state().await?;
        let provider = match before {
            Some(seen) if seen.table.version() == table.version() => seen.provider.clone(),
            _ => provider(&table, context)?,
        };
        Ok(Some(Seen {
            table,
            provider,
            looked,
        }))
    }
}

/// What reads a version of a table: its values have the types that they have in SQL.
fn provider(
    table: &DeltaTable,
    context: &SessionContext,
) -> anyhow::Result<Arc<dyn TableProvider>> {
    let mut config = DeltaScanConfig::new().with_wrap_partition_values(false);
    config.schema_force_view_types = false;
    table.update_datafusion_session(&context.state())?;
    let snapshot = table.snapshot()?.snapshot().clone();
    Ok(Arc::new(DeltaScanNext::new(snapshot, config)?))
}

/// The columns that are a result's: a merged table has one more, which is none of them.
pub fn columns(table: &dyn TableProvider) -> SchemaRef {
    let schema = table.schema();
    let fields = schema.fields().iter();
    let own = fields.filter(|field| !field.name().starts_with('_'));
    Arc::new(Schema::new(own.cloned().collect::<Vec<_>>()))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use datafusion::arrow::{
        array::{ArrayRef, Int64Array},
        record_batch::RecordBatch,
    };
    use deltalake::protocol::SaveMode;
    use futures::FutureExt;

    use super::*;

    async fn append(folder: &Path, rows: i64) {
        std::fs::create_dir_all(folder).unwrap();
        let place = Place::Folder(folder.into());
        let mut table = place.table().unwrap();
        if table.verify_deltatable_existence().await.unwrap() {
            table.load().await.unwrap();
        }
        let numbers: ArrayRef = Arc::new(Int64Array::from_iter_values(0..rows));
        let columns = [("id", numbers.clone()), ("_version", numbers)];
        let rows = RecordBatch::try_from_iter(columns).unwrap();
        let write = table.write([rows]).with_save_mode(SaveMode::Append);
        write.await.unwrap();
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_table_is_seen_as_it_is_now() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("table");
        let table = ServeTable {
            name: "log".into(),
            path: Some(path.display().to_string()),
            s3: None,
        };
        let nothing = Credentials::new("/nowhere".into());
        let tables = [table];
        let lake = Lake::new(&tables, &nothing, SessionContext::new()).unwrap();
        let absent = lake.look("log").await;
        assert!(matches!(absent, Err(Unreadable::Absent(_))));
        assert!(!path.exists(), "who reads makes nothing");
        assert!(!lake.is_readable("log"));

        let count = async || {
            let table = lake.look("log").await.unwrap();
            lake.context.read_table(table).unwrap().count().await
        };
        append(&path, 3).await;
        assert_eq!(count().await.unwrap(), 3);
        assert!(lake.is_readable("log"));
        let seen = lake.look("log").await.unwrap();
        assert_eq!(columns(seen.as_ref()).fields().len(), 1);
        let again = lake.look("log").await.unwrap();
        assert!(Arc::ptr_eq(&seen, &again), "nothing is new");
        append(&path, 4).await;
        assert_eq!(count().await.unwrap(), 7);

        // A table that is made anew has another log.
        std::fs::remove_dir_all(&path).unwrap();
        append(&path, 5).await;
        lake.forget(&["log".into()]).await;
        assert_eq!(count().await.unwrap(), 5);

        // A look comes to its end without the one who asked for it.
        let lake = Lake::new(&tables, &nothing, SessionContext::new()).unwrap();
        drop(lake.look("log").now_or_never());
        let seen = async {
            while !lake.is_readable("log") {
                tokio::task::yield_now().await;
            }
        };
        timeout(LOOK, seen).await.unwrap();
    }
}
