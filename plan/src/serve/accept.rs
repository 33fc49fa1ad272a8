//! Whether a pipeline's REST service makes sense, against the tables that are known.

use millstream_api::{
    DataPipeline, Keyspace,
    keyspace::TableSpec,
    worker::{CassandraTable, Destination, SinkConfig},
};

use super::{LakeTable, Readable, ServeError, plan_service};

/// Checks `spec.serve` where there is one.
pub(crate) fn accept_service(
    pipeline: &DataPipeline,
    keyspaces: &[Keyspace],
    sinks: &[SinkConfig],
    lake: &[LakeTable],
) -> Result<(), ServeError> {
    let Some(serve) = &pipeline.spec.serve else {
        return Ok(());
    };
    let readable = Readable {
        keyspaces: &readable_keyspaces(sinks),
        tables: &tables(keyspaces, sinks),
        lake,
    };
    plan_service(serve, &readable).map(drop)
}

/// The tables of the sinks and of the Keyspaces, by keyspace.
fn tables(keyspaces: &[Keyspace], sinks: &[SinkConfig]) -> Vec<(String, TableSpec)> {
    let own = of_rows(sinks).map(|table| (table.keyspace.clone(), table.table.clone()));
    let mut tables: Vec<_> = own.collect();
    for keyspace in keyspaces {
        let name = keyspace.keyspace_name();
        for table in &keyspace.spec.tables {
            let mut known = tables.iter_mut();
            let same =
                |(of, known): &&mut (String, TableSpec)| *of == name && known.name == table.name;
            match known.find(same) {
                // Several write into one table: it has the columns of all.
                Some((_, known)) => {
                    let is_new = |name: &str| !known.columns.iter().any(|known| known.name == name);
                    let new = table.columns.iter().filter(|column| is_new(&column.name));
                    let new: Vec<_> = new.cloned().collect();
                    known.columns.extend(new);
                }
                None => tables.push((name.clone(), table.clone())),
            }
        }
    }
    tables
}

/// The keyspaces of the sinks: no others can be read.
pub fn readable_keyspaces(sinks: &[SinkConfig]) -> Vec<String> {
    let mut names: Vec<_> = of_rows(sinks).map(|table| table.keyspace.clone()).collect();
    names.sort();
    names.dedup();
    names
}

/// The tables in Cassandra that have rows.
fn of_rows(sinks: &[SinkConfig]) -> impl Iterator<Item = &CassandraTable> {
    sinks.iter().filter_map(|sink| match &sink.destination {
        Destination::Cassandra(table) => Some(table),
        Destination::Delta(_) | Destination::Document(_) => None,
    })
}
