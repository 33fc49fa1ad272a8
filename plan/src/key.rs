//! The key of the pipeline's topic: rows of one primary key must come from one partition, so that
//! the last write is the last record (write timestamps are offsets, which partitions don't share).
//!
//! That holds if the topic's key follows from the primary key: every field of the topic's key is,
//! as it is, a column of the primary key. It holds without any key where the primary key has
//! `_partition` or `_key` in it.

use millstream_api::keyspace::TableSpec;

use crate::{
    RecordSchema, SinkPlan, VirtualColumn,
    error::{KeyProblem, PlanError, similar},
    input::dotted,
    schema::SchemaType,
    table::schema_type_name,
};

/// A sink and its table.
type Sink<'a> = (&'a SinkPlan, &'a TableSpec);

/// JSON Pointers to the fields that make the topic's key: those that were asked for, held against
/// the sinks' primary keys, or else the fields behind the first sink's partition key that the other
/// sinks' primary keys have too. Empty if no sink needs a key, or if there is but one partition,
/// from which everything comes.
pub fn key_pointers(
    asked: &[String],
    partitions: i32,
    sinks: &[Sink<'_>],
) -> Result<Vec<String>, PlanError> {
    let alone = partitions == 1;
    if alone && !asked.is_empty() {
        check(asked, sinks, &[])?;
        return Ok(asked.to_vec());
    }
    match keys(asked, sinks) {
        Err(PlanError::Key(problem)) if alone && problem.is_of_order() => Ok(Vec::new()),
        keys => keys,
    }
}

fn keys(asked: &[String], sinks: &[Sink<'_>]) -> Result<Vec<String>, PlanError> {
    let keyed: Vec<Sink<'_>> = sinks
        .iter()
        .filter(|sink| has_key(sink))
        .filter(|sink| !has_virtual(sink, VirtualColumn::Partition))
        .filter(|sink| !has_virtual(sink, VirtualColumn::Key))
        .copied()
        .collect();
    if !asked.is_empty() {
        check(asked, sinks, &keyed)?;
        return Ok(asked.to_vec());
    }
    let Some(first) = keyed.first() else {
        let without = sinks
            .iter()
            .filter(|sink| has_key(sink))
            .find(|sink| !has_virtual(sink, VirtualColumn::Partition));
        return match without {
            Some((plan, _)) => Err(KeyProblem::NoKey {
                sink: plan.name.clone(),
            }
            .into()),
            None => Ok(Vec::new()),
        };
    };
    let paths = derive(first, &keyed)?;
    Ok(paths.iter().map(|path| pointer(path)).collect())
}

/// Rows without a key never replace one another: they may come from any partition.
fn has_key((_, table): &Sink<'_>) -> bool {
    !table.primary_key.partition_key.is_empty()
}

fn has_virtual((plan, table): &Sink<'_>, column: VirtualColumn) -> bool {
    let mut columns = table
        .primary_key
        .columns()
        .filter_map(|name| plan.column(name));
    columns.any(|known| known.virtual_column == Some(column))
}

/// The fields that are, as they are, columns of the primary key.
fn fields<'a>((plan, table): &Sink<'a>) -> Vec<&'a [String]> {
    let columns = table
        .primary_key
        .columns()
        .filter_map(|name| plan.column(name));
    columns
        .filter_map(|column| column.path.as_deref())
        .collect()
}

fn primary_key((_, table): &Sink<'_>) -> String {
    table.primary_key.columns().collect::<Vec<_>>().join(", ")
}

fn derive<'a>(first: &Sink<'a>, keyed: &[Sink<'a>]) -> Result<Vec<&'a [String]>, KeyProblem> {
    let all: Vec<Vec<&[String]>> = keyed.iter().map(fields).collect();
    for (sink, fields) in keyed.iter().zip(&all) {
        if fields.is_empty() {
            return Err(match sink.0.is_grouped() {
                true => KeyProblem::NoFieldInGroup {
                    sink: sink.0.name.clone(),
                    primary_key: primary_key(sink),
                },
                false => KeyProblem::NoField {
                    sink: sink.0.name.clone(),
                    primary_key: primary_key(sink),
                },
            });
        }
    }
    let mut common = fields(first);
    common.retain(|path| all.iter().all(|fields| fields.contains(path)));
    if common.is_empty() {
        let names: Vec<_> = keyed
            .iter()
            .map(|(plan, _)| format!("`{}`", plan.name))
            .collect();
        return Err(KeyProblem::NothingInCommon {
            sinks: names.join(", "),
        });
    }
    // One partition in Cassandra from one partition in Kafka: its rows can share a batch.
    let partition_key = first.1.primary_key.partition_key.iter();
    let mut best: Vec<&[String]> = partition_key
        .filter_map(|name| first.0.column(name)?.path.as_deref())
        .collect();
    best.retain(|path| common.contains(path));
    Ok(if best.is_empty() { common } else { best })
}

fn check(asked: &[String], sinks: &[Sink<'_>], keyed: &[Sink<'_>]) -> Result<(), KeyProblem> {
    for (index, pointer) in asked.iter().enumerate() {
        let path = parse_pointer(pointer)?;
        if asked[..index].contains(pointer) {
            return Err(KeyProblem::Duplicate(pointer.clone()));
        }
        if let Some((plan, _)) = sinks.first() {
            check_field(&plan.schema, pointer, &path)?;
        }
        for sink in keyed {
            if !fields(sink).contains(&path.as_slice()) {
                return Err(KeyProblem::NotInPrimaryKey {
                    sink: sink.0.name.clone(),
                    pointer: pointer.clone(),
                    primary_key: primary_key(sink),
                });
            }
        }
    }
    Ok(())
}

fn check_field(
    schema: &RecordSchema,
    pointer_text: &str,
    path: &[String],
) -> Result<(), KeyProblem> {
    let mut fields = schema.fields();
    let mut data_type = None;
    for (depth, name) in path.iter().enumerate() {
        let Some(field) = fields.iter().find(|field| field.name == *name) else {
            let similar = similar(name, fields.iter().map(|field| field.name.as_str()));
            return Err(KeyProblem::UnknownField {
                pointer: pointer_text.to_owned(),
                similar: similar.map(|name| {
                    let mut meant = path[..depth].to_vec();
                    meant.push(name);
                    pointer(&meant)
                }),
            });
        };
        data_type = Some(&field.data_type);
        fields = match &field.data_type {
            SchemaType::Struct(fields) => fields,
            _ => &[],
        };
    }
    match data_type {
        Some(SchemaType::Struct(_) | SchemaType::Array(_)) | None => Err(KeyProblem::NotAValue {
            pointer: pointer_text.to_owned(),
            data_type: data_type.map_or_else(|| dotted(path), schema_type_name),
        }),
        Some(_) => Ok(()),
    }
}

/// RFC 6901.
fn pointer(path: &[String]) -> String {
    let tokens = path
        .iter()
        .map(|name| name.replace('~', "~0").replace('/', "~1"));
    tokens.map(|token| format!("/{token}")).collect()
}

fn parse_pointer(text: &str) -> Result<Vec<String>, KeyProblem> {
    let tokens = text
        .strip_prefix('/')
        .ok_or_else(|| KeyProblem::NotAPointer(text.to_owned()))?;
    let names = tokens
        .split('/')
        .map(|token| token.replace("~1", "/").replace("~0", "~"));
    Ok(names.collect())
}
