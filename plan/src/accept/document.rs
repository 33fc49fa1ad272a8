//! Whether a sink into a collection of documents makes sense.

use datafusion::arrow::datatypes::DataType;
use millstream_api::{
    DataPipeline,
    keyspace::{PrimaryKey, TableSpec},
    sink::{DocumentSink, Sink},
    worker::Destination,
};

use crate::{Refusal, SinkPlan, error::similar};

/// The columns and the key of a sink's documents, and where they go.
pub(super) fn accept_document(
    pipeline: &DataPipeline,
    sink: &Sink,
    to: &DocumentSink,
    plan: &SinkPlan,
) -> Result<(TableSpec, Destination), Refusal> {
    let problem = check(to, plan).or_else(|| shared(pipeline, sink, to));
    if let Some(problem) = problem {
        return Err(Refusal::InvalidSpec(format!(
            "sink `{}`: document.{problem}",
            sink.name
        )));
    }
    let name = sink.state.as_ref().map_or(&sink.name, |state| &state.table);
    let primary_key = PrimaryKey {
        partition_key: vec![to.id.clone()],
        ..PrimaryKey::default()
    };
    let rows = plan.rows_elsewhere(name, &primary_key)?;
    Ok((rows, Destination::Document(to.clone())))
}

fn check(to: &DocumentSink, plan: &SinkPlan) -> Option<String> {
    if plan.has_having() {
        return Some("collection: documents are never deleted, which HAVING asks for: take it out, and let readers choose".into());
    }
    let Some(column) = plan.column(&to.id) else {
        let known = plan.columns.iter().map(|column| column.name.as_str());
        let hint = similar(&to.id, known)
            .map_or_else(String::new, |name| format!("; did you mean `{name}`?"));
        return Some(format!(
            "id: no column `{}` in the result of the SQL{hint}",
            to.id
        ));
    };
    let unfit = matches!(
        column.data_type,
        DataType::List(_) | DataType::Float32 | DataType::Float64
    );
    unfit.then(|| {
        format!(
            "id: column `{}` is a list or a number with a fraction, which identifies nothing: choose another column",
            to.id
        )
    })
}

/// Two sinks would each take the other's documents for newer than their own.
fn shared(pipeline: &DataPipeline, sink: &Sink, to: &DocumentSink) -> Option<String> {
    let same = |other: &&DocumentSink| {
        other.connection_secret == to.connection_secret
            && other.database == to.database
            && other.collection == to.collection
    };
    let mut before = pipeline.spec.sinks.iter();
    let before = before
        .by_ref()
        .take_while(|other| other.name != sink.name)
        .find(|other| other.document.as_ref().filter(same).is_some())?;
    Some(format!(
        "collection: sink `{}` writes into {}.{} too: give each a collection of its own, or let one SQL give all the columns",
        before.name, to.database, to.collection
    ))
}
