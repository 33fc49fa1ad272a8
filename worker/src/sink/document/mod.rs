//! Rows as documents of a MongoDB-compatible server.

mod bind;
mod connect;
mod reply;
mod value;
mod write;

use futures::{FutureExt, future::BoxFuture};
use millstream_api::sink::DocumentSink as Spec;
use millstream_plan::SinkPlan;

use self::{bind::Binder, write::Writer};
use crate::{
    batch::{Batch, Rejected},
    config::Credentials,
    metrics::StageMetrics,
    sink::{Pace, Sink},
    status::StatusPart,
    transform::Rows,
};

/// The concern under which errors of the server are shown.
const DOCUMENTS: &str = "documents";

/// A collection that takes rows. Every document says which record was the last that changed it;
/// older ones don't change it any more.
pub struct DocumentSink {
    binder: Binder,
    writer: Writer,
}

impl DocumentSink {
    /// A sink into the collection. Fails only where the configuration doesn't make sense: a server
    /// that is away is waited for when there is something to write.
    pub async fn open(
        sink: &str,
        to: &Spec,
        plan: &SinkPlan,
        version_base: i64,
        credentials: &Credentials,
        status: StatusPart,
        metrics: StageMetrics,
    ) -> anyhow::Result<Self> {
        let database = connect::database(sink, to, credentials).await?;
        Ok(DocumentSink {
            binder: Binder::new(plan, &to.id, version_base)?,
            writer: Writer::new(database, &to.collection, status, metrics),
        })
    }
}

/// The records whose rows no document can take: one without an id, a value that doesn't fit.
pub fn refused(
    plan: &SinkPlan,
    to: &Spec,
    batch: &Batch,
    rows: &[Rows],
) -> anyhow::Result<Vec<Rejected>> {
    let (_, rejected) = Binder::new(plan, &to.id, 0)?.bind(batch, rows);
    Ok(rejected)
}

impl Sink for DocumentSink {
    fn write<'a>(&'a self, batch: &'a Batch, rows: &'a [Rows]) -> BoxFuture<'a, Vec<Rejected>> {
        async move {
            let (rounds, mut rejected) = self.binder.bind(batch, rows);
            for round in rounds {
                rejected.extend(self.writer.write(round).await);
            }
            rejected
        }
        .boxed()
    }

    /// One batch after the other: a record may leave fields of its document as they are, so what is
    /// older has to be there first. The rows of groups are whole, but a server that looks and writes
    /// in two steps can put an older one over a newer one where both are on their way.
    fn pace(&self, usual: Pace) -> Pace {
        Pace {
            in_flight: 1,
            ..usual
        }
    }
}
