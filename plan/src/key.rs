//! The key of the pipeline's topic: rows of one primary key must come from one partition, so that
//! the last write is the last record (write timestamps are offsets, which partitions don't share).
//!
//! That holds if the topic's key follows from the primary key: every field of the topic's key is,
//! as it is, a column of the primary key; or else every expression of the topic's key is one. It holds
//! without any key where the primary key has `_partition` or `_key` in it.

use datafusion::arrow::datatypes::DataType;
use millstream_api::{cql::CqlType, keyspace::TableSpec};

use crate::{
    RecordSchema, SinkPlan, VirtualColumn,
    error::{KeyProblem, PlanError, similar},
    input::dotted,
    schema::SchemaType,
    table::schema_type_name,
};

/// A sink and its table.
type Sink<'a> = (&'a SinkPlan, &'a TableSpec);

/// What makes the topic's key: the fields that were asked for, held against the sinks' primary keys, or
/// else the fields behind the first sink's partition key that the other sinks' primary keys have too.
/// Fields are JSON Pointers. Where there is no such field: SQL expressions that all primary keys have.
/// Empty if no sink needs a key, or if there is but one partition, from which everything comes.
pub fn topic_key(
    asked: &[String],
    partitions: i32,
    sinks: &[Sink<'_>],
) -> Result<Vec<String>, PlanError> {
    let alone = partitions == 1;
    if alone && !asked.is_empty() {
        check(asked, sinks, &[])?;
        return Ok(asked.to_vec());
    }
    match keys(asked, sinks, alone) {
        Err(PlanError::Key(problem)) if alone && problem.is_of_order() => Ok(Vec::new()),
        keys => keys,
    }
}

fn keys(asked: &[String], sinks: &[Sink<'_>], alone: bool) -> Result<Vec<String>, PlanError> {
    let keyed: Vec<Sink<'_>> = sinks
        .iter()
        .filter(|sink| is_keyed(sink))
        .copied()
        .collect();
    if !asked.is_empty() {
        check(asked, sinks, &keyed)?;
        return Ok(asked.to_vec());
    }
    if keyed.is_empty() {
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
    }
    Ok(derive(&keyed, alone)?)
}

/// Rows without a key never replace one another: they may come from any partition.
fn has_key((_, table): &Sink<'_>) -> bool {
    !table.primary_key.partition_key.is_empty()
}

/// Whether only the topic's key brings all records of a row from one partition.
pub(crate) fn is_keyed(sink: &Sink<'_>) -> bool {
    has_key(sink)
        && !has_virtual(sink, VirtualColumn::Partition)
        && !has_virtual(sink, VirtualColumn::Key)
}

fn has_virtual((plan, table): &Sink<'_>, column: VirtualColumn) -> bool {
    let mut columns = table
        .primary_key
        .columns()
        .filter_map(|name| plan.column(name));
    columns.any(|known| known.virtual_column == Some(column))
}

/// The fields that are, as they are, columns of the primary key.
fn fields_of<'a>((plan, table): &Sink<'a>) -> Vec<&'a [String]> {
    let columns = table
        .primary_key
        .columns()
        .filter_map(|name| plan.column(name));
    columns
        .filter_map(|column| column.path.as_deref())
        .collect()
}

/// What a column of the primary key is, as SQL, where equal values are written equally: the bytes of
/// equal primary keys come from equal texts of this.
fn computed((plan, table): &Sink<'_>, name: &str) -> Option<String> {
    use CqlType as Cql;
    let mut columns = table.columns.iter();
    let cql_type = &columns.find(|column| column.name == name)?.cql_type;
    let is_exact = match &plan.column(name)?.data_type {
        // In a `uuid` or an `inet` several texts are one value.
        DataType::Utf8 => matches!(cql_type, Cql::Text | Cql::Ascii),
        DataType::Int8 | DataType::Int16 | DataType::Int32 | DataType::Int64 => true,
        DataType::Boolean | DataType::Date32 | DataType::Timestamp(..) => true,
        _ => false,
    };
    plan.of_record(name).filter(|_| is_exact).map(str::to_owned)
}

/// What the columns of a primary key are, as far as it can be said of them.
fn all<'a>(sink: &Sink<'a>, of: impl Fn(&Sink<'a>, &str) -> Option<String>) -> Vec<String> {
    let columns = sink.1.primary_key.columns();
    columns.filter_map(|name| of(sink, name)).collect()
}

/// What is in all primary keys: of the first sink's partition key, where that has any of it. One
/// partition in Cassandra from one partition in Kafka: its rows can share a batch.
fn common<'a>(keyed: &[Sink<'a>], of: impl Fn(&Sink<'a>, &str) -> Option<String>) -> Vec<String> {
    let Some(first) = keyed.first() else {
        return Vec::new();
    };
    let keys: Vec<_> = keyed.iter().map(|sink| all(sink, &of)).collect();
    let is_common = |text: &String| keys.iter().all(|key| key.contains(text));
    let partition_key = first.1.primary_key.partition_key.iter();
    let best = partition_key.filter_map(|name| of(first, name));
    let best: Vec<_> = best.filter(is_common).collect();
    match best.is_empty() {
        true => all(first, &of).into_iter().filter(is_common).collect(),
        false => best,
    }
}

fn primary_key((_, table): &Sink<'_>) -> String {
    table.primary_key.columns().collect::<Vec<_>>().join(", ")
}

/// The fields that all primary keys have, or else the expressions; these only where there are several
/// partitions, as nothing needs a key otherwise.
fn derive(keyed: &[Sink<'_>], alone: bool) -> Result<Vec<String>, KeyProblem> {
    let field = |(plan, _): &Sink<'_>, name: &str| plan.column(name)?.path.as_deref().map(pointer);
    let fields = common(keyed, field);
    if !fields.is_empty() {
        return Ok(fields);
    }
    let computed = common(keyed, computed);
    if !computed.is_empty() && !alone {
        return Ok(computed);
    }
    let mut columns = keyed.iter();
    let without =
        columns.find(|sink| all(sink, self::computed).is_empty() && fields_of(sink).is_empty());
    Err(match without {
        Some(sink) if sink.0.is_grouped() => KeyProblem::NoFieldInGroup {
            sink: sink.0.name.clone(),
            primary_key: primary_key(sink),
        },
        Some(sink) => KeyProblem::NoField {
            sink: sink.0.name.clone(),
            primary_key: primary_key(sink),
        },
        None => {
            let names = keyed.iter().map(|(plan, _)| format!("`{}`", plan.name));
            KeyProblem::NothingInCommon {
                sinks: names.collect::<Vec<_>>().join(", "),
            }
        }
    })
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
            if !fields_of(sink).contains(&path.as_slice()) {
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
