//! Whether a sink into a Delta Lake table makes sense.

use std::sync::Arc;

use datafusion::arrow::datatypes::{DataType, Field, Schema, TimeUnit};
use millstream_api::{
    cql::CqlType,
    keyspace::{PrimaryKey, TableSpec},
    sink::{
        DeltaSink, Sink,
        delta::{DELTA_PATH, DeltaMode, DeltaVolume},
    },
    source::file::S3Folder,
    worker::{DeltaTable, Destination, SinkConfig},
};

use crate::{Refusal, SinkPlan, error::similar, serve::LakeTable};

/// The columns and the key of a sink's rows, and where they go.
pub(super) fn accept_delta(
    sink: &Sink,
    to: &DeltaSink,
    plan: &SinkPlan,
) -> Result<(TableSpec, Destination), Refusal> {
    check(to, plan).map_err(|problem| {
        Refusal::InvalidSpec(format!("sink `{}`: delta.{problem}", sink.name))
    })?;
    let name = sink.state.as_ref().map_or(&sink.name, |state| &state.table);
    let rows = match to.mode {
        // Rows without a key may come from anywhere.
        DeltaMode::Append => TableSpec {
            name: name.clone(),
            columns: Vec::new(),
            primary_key: PrimaryKey::default(),
            options: None,
        },
        DeltaMode::Merge => {
            let primary_key = PrimaryKey {
                partition_key: to.merge_keys.clone(),
                ..PrimaryKey::default()
            };
            let mut rows = plan.rows_elsewhere(name, &primary_key)?;
            for column in &mut rows.columns {
                column.cql_type = as_finely(&column.cql_type);
            }
            rows
        }
    };
    let path = to
        .volume
        .as_ref()
        .map(|volume| format!("{DELTA_PATH}/{}/{}", sink.name, volume.path));
    let sink = to.clone();
    Ok((rows, Destination::Delta(DeltaTable { path, sink })))
}

/// The type that tells the keys of groups apart in Cassandra as the table does, to the microsecond, and a UUID
/// by its text.
fn as_finely(cql_type: &CqlType) -> CqlType {
    match cql_type {
        CqlType::Timestamp => CqlType::BigInt,
        CqlType::Uuid => CqlType::Text,
        other => other.clone(),
    }
}

/// The table of a sink as the REST service reads it.
pub(super) fn lake_table(plan: &SinkPlan) -> LakeTable {
    let columns = plan.columns.iter();
    let columns =
        columns.map(|column| Field::new(&column.name, delta_type(&column.data_type), true));
    LakeTable {
        name: plan.name.clone(),
        columns: Some(Arc::new(Schema::new(columns.collect::<Vec<_>>()))),
    }
}

/// The type in a Delta Lake table for a type of a result.
pub fn delta_type(data_type: &DataType) -> DataType {
    match data_type {
        DataType::Timestamp(..) => DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())),
        DataType::List(element) => DataType::new_list(delta_type(element.data_type()), true),
        other => other.clone(),
    }
}

/// Refuses that two sinks merge into one table: each would take the other's rows for its own, and the
/// older one would be left out.
pub(super) fn check_alone<'a>(
    sink: &SinkConfig,
    before: impl Iterator<Item = &'a SinkConfig>,
) -> Result<(), Refusal> {
    for other in before {
        if merged(sink).is_some() && merged(sink) == merged(other) {
            return Err(Refusal::InvalidSpec(format!(
                "sink `{}`: delta: sink `{}` merges into this table too: give each a table of its own, or make one sink of them",
                sink.name, other.name
            )));
        }
    }
    Ok(())
}

/// Where a sink's table is, if rows replace others in it.
fn merged(sink: &SinkConfig) -> Option<(Option<&DeltaVolume>, Option<&S3Folder>)> {
    match &sink.destination {
        Destination::Delta(table) if table.sink.mode == DeltaMode::Merge => {
            Some((table.sink.volume.as_ref(), table.sink.s3.as_ref()))
        }
        _ => None,
    }
}

fn check(to: &DeltaSink, plan: &SinkPlan) -> Result<(), String> {
    if to.volume.is_some() == to.s3.is_some() {
        return Err("volume: exactly one of volume and s3 must be set".into());
    }
    if (to.mode == DeltaMode::Merge) == to.merge_keys.is_empty() {
        return Err("mergeKeys goes with mode merge".into());
    }
    if plan.is_grouped() && to.mode == DeltaMode::Append {
        return Err("mode: the SQL has a GROUP BY, whose rows are kept up to date: set mode: merge, and the groups' keys as mergeKeys".into());
    }
    if plan.has_having() {
        return Err("mode: rows are never deleted from the table, which HAVING asks for: take it out, and let readers choose".into());
    }
    if std::time::Duration::from(to.commit_interval).is_zero() {
        return Err("commitInterval: must be longer than 0s".into());
    }
    for (field, columns) in [
        ("mergeKeys", &to.merge_keys),
        ("partitionBy", &to.partition_by),
    ] {
        for column in columns {
            check_column(field, column, plan)?;
        }
    }
    if !to.partition_by.is_empty() && plan.columns.len() <= to.partition_by.len() {
        return Err("partitionBy: leave a column that isn't in it".into());
    }
    let time = |data_type: &DataType| matches!(data_type, DataType::Time64(_));
    let without = plan.columns.iter().find(|column| match &column.data_type {
        DataType::List(element) => time(element.data_type()),
        data_type => time(data_type),
    });
    match without {
        Some(column) => Err(format!(
            "mode: column `{0}` is a TIME, a type that Delta Lake doesn't have: write CAST(... AS TEXT) AS {0}",
            column.name
        )),
        None => Ok(()),
    }
}

fn check_column(field: &str, name: &str, plan: &SinkPlan) -> Result<(), String> {
    let Some(column) = plan.column(name) else {
        let known = plan.columns.iter().map(|column| column.name.as_str());
        let hint = similar(name, known)
            .map_or_else(String::new, |name| format!("; did you mean `{name}`?"));
        return Err(format!(
            "{field}: no column `{name}` in the result of the SQL{hint}"
        ));
    };
    match &column.data_type {
        data_type if field == "mergeKeys" && has_rounded_statistics(data_type) => Err(format!(
            "{field}: column `{name}` is a DECIMAL of more than 15 digits, which the statistics of a Delta Lake table round: write CAST(... AS TEXT) AS {name}"
        )),
        DataType::List(_) | DataType::Float32 | DataType::Float64 | DataType::Binary => {
            Err(format!(
                "{field}: column `{name}` has a type that can't be looked up by its value: choose another column"
            ))
        }
        _ => Ok(()),
    }
}

/// Whether the least and the greatest value of a file, by which files are passed over, aren't exact:
/// delta-rs keeps those of decimals as DOUBLE, and as BIGINT where there are no decimal places.
pub fn has_rounded_statistics(data_type: &DataType) -> bool {
    match data_type {
        DataType::Decimal128(precision, 0) => *precision > 18,
        DataType::Decimal128(precision, _) => *precision > 15,
        _ => false,
    }
}
