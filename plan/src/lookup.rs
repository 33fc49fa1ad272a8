//! Lookups: tables in memory that queries may join.
//!
//! A row of a query is made of a record and one row of the lookup at most, so that a record stays
//! one row: the key that a query joins by must be unique. That is seen when a lookup is loaded.

use std::{
    collections::{BTreeMap, HashMap, hash_map::Entry},
    sync::Arc,
};

use datafusion::{
    arrow::{
        array::{Array, ArrayRef, RecordBatch, UInt32Array},
        datatypes::{Schema, SchemaRef},
        row::{RowConverter, SortField},
        util::display::array_value_to_string,
    },
    common::DataFusionError,
    physical_expr::PhysicalExpr,
};
use thiserror::Error;

use crate::{
    RecordSchema, SinkPlan,
    engine::in_words,
    error::{PlanError, QueryProblem},
    execute::evaluate,
    input::{Origin, nested},
};

/// Values are shown in a message up to so many characters.
const SHOWN_CHARS: usize = 100;
/// What an index takes for a row beside the key, about: hash table, pointer, allocation.
const INDEX_BYTES: usize = 48;

/// What a query has to know of a lookup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lookup {
    /// Name of the table in SQL.
    pub name: String,
    /// Its columns.
    pub schema: RecordSchema,
}

impl Lookup {
    /// A lookup with these columns.
    pub fn new(name: &str, schema: &str) -> Result<Self, PlanError> {
        let schema = RecordSchema::parse(schema).map_err(|problem| PlanError::Lookup {
            lookup: name.to_owned(),
            problem: Box::new(problem),
        })?;
        Ok(Lookup {
            name: name.to_owned(),
            schema,
        })
    }
}

/// Lookups by their names, as they are at the moment.
pub type Lookups = BTreeMap<String, Arc<LookupTable>>;

/// What is read of a lookup, and the keys by which queries find its rows.
#[derive(Clone, Debug)]
pub struct LookupPlan {
    name: String,
    columns: SchemaRef,
    keys: Vec<Arc<LookupKey>>,
}

impl LookupPlan {
    /// What these queries need of a lookup; none where they don't join it.
    pub fn new<'a>(
        lookup: &Lookup,
        queries: impl IntoIterator<Item = &'a SinkPlan>,
    ) -> Option<Self> {
        let queries = queries.into_iter();
        let joins = queries.flat_map(SinkPlan::joins);
        let joins: Vec<_> = joins.filter(|join| join.lookup == lookup.name).collect();
        let mut keys: Vec<Arc<LookupKey>> = Vec::new();
        for join in &joins {
            if !keys.iter().any(|known| known.id == join.key.id) {
                keys.push(Arc::clone(&join.key));
            }
        }
        let of_keys = keys.iter().flat_map(|key| &key.paths);
        let of_joins = joins.iter().flat_map(|join| &join.columns);
        let paths: Vec<&[String]> = of_keys.chain(of_joins).map(Vec::as_slice).collect();
        let columns = Arc::new(Schema::new(lookup.schema.pruned(&paths)));
        (!joins.is_empty()).then(|| LookupPlan {
            name: lookup.name.clone(),
            columns,
            keys,
        })
    }

    /// Name of the lookup.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The columns in use, nested as they are, without what isn't in use.
    pub fn columns(&self) -> &SchemaRef {
        &self.columns
    }

    /// The lookup with these rows, of [`columns`](Self::columns).
    pub fn table(&self, columns: RecordBatch) -> Result<LookupTable, LookupError> {
        let mut bytes = columns.get_array_memory_size();
        let mut indexes = Vec::with_capacity(self.keys.len());
        for key in &self.keys {
            let rows = key.index(&columns)?;
            bytes += rows
                .keys()
                .map(|key| key.len() + INDEX_BYTES)
                .sum::<usize>();
            indexes.push((Arc::clone(key), rows));
        }
        Ok(LookupTable {
            columns,
            indexes,
            bytes,
        })
    }
}

/// Why rows can't be a lookup.
#[derive(Debug, Error)]
pub enum LookupError {
    /// A record would have several rows.
    #[error(
        "`{key}` is {value} in two rows, and a record can be joined with but one; make the key unique, or join by more columns"
    )]
    Duplicate { key: String, value: String },
    /// A key can't be computed.
    #[error("`{key}`: {}", in_words(.source))]
    Key {
        key: String,
        source: DataFusionError,
    },
}

/// The key by which a query finds the rows of a lookup.
#[derive(Debug)]
pub(crate) struct LookupKey {
    /// As a person wrote it.
    text: String,
    /// Equal for keys that are the same.
    id: String,
    /// The columns that it reads.
    paths: Vec<Vec<String>>,
    /// The same as the engine sees them.
    flat: SchemaRef,
    exprs: Vec<Arc<dyn PhysicalExpr>>,
    bytes: RowConverter,
}

impl LookupKey {
    pub(crate) fn new(
        text: String,
        origins: &[Origin],
        flat: SchemaRef,
        exprs: Vec<Arc<dyn PhysicalExpr>>,
    ) -> Result<Self, QueryProblem> {
        let engine = |error: DataFusionError| QueryProblem::Engine(in_words(&error));
        let types = exprs.iter().map(|expr| expr.data_type(&flat));
        let types = types.collect::<Result<Vec<_>, _>>().map_err(engine)?;
        let paths = origins.iter().filter_map(|origin| match origin {
            Origin::Joined { path, .. } => Some(path.clone()),
            _ => None,
        });
        let fields = types.iter().cloned().map(SortField::new).collect();
        Ok(LookupKey {
            id: format!("{text} {types:?}"),
            bytes: RowConverter::new(fields).map_err(|error| engine(error.into()))?,
            paths: paths.collect(),
            text,
            flat,
            exprs,
        })
    }

    /// The row of each key. A key with a null in it is equal to none.
    fn index(&self, columns: &RecordBatch) -> Result<Index, LookupError> {
        let values = self.values(columns).map_err(|source| LookupError::Key {
            key: self.text.clone(),
            source,
        })?;
        let keys = self.bytes.convert_columns(&values);
        let keys = keys.map_err(|error| LookupError::Key {
            key: self.text.clone(),
            source: error.into(),
        })?;
        let mut index = HashMap::with_capacity(keys.num_rows());
        for (row, key) in (0u32..).zip(&keys) {
            if has_null(&values, row as usize) {
                continue;
            }
            let key: Box<[u8]> = key.as_ref().into();
            match index.entry(key) {
                Entry::Vacant(free) => free.insert(row),
                Entry::Occupied(_) => {
                    let row = row as usize;
                    let shown = values.iter().map(|column| {
                        let shown = array_value_to_string(column, row).unwrap_or_default();
                        format!("`{}`", shown.chars().take(SHOWN_CHARS).collect::<String>())
                    });
                    return Err(LookupError::Duplicate {
                        key: self.text.clone(),
                        value: shown.collect::<Vec<_>>().join(", "),
                    });
                }
            };
        }
        Ok(index)
    }

    fn values(&self, columns: &RecordBatch) -> Result<Vec<ArrayRef>, DataFusionError> {
        let flat = self.paths.iter().map(|path| nested(columns, path));
        let flat = flat.collect::<Result<Vec<_>, _>>()?;
        let flat = RecordBatch::try_new(Arc::clone(&self.flat), flat)?;
        let values = self.exprs.iter();
        values.map(|expr| evaluate(expr.as_ref(), &flat)).collect()
    }
}

fn has_null(values: &[ArrayRef], row: usize) -> bool {
    values.iter().any(|column| column.is_null(row))
}

/// Numbers of the rows by the bytes of their keys.
type Index = HashMap<Box<[u8]>, u32>;

/// A lookup in memory.
#[derive(Debug)]
pub struct LookupTable {
    columns: RecordBatch,
    indexes: Vec<(Arc<LookupKey>, Index)>,
    bytes: usize,
}

impl LookupTable {
    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.columns.num_rows()
    }

    /// Memory that it takes, about.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    pub(crate) fn columns(&self) -> &RecordBatch {
        &self.columns
    }

    /// The rows with these keys; null where there is none.
    pub(crate) fn find(
        &self,
        key: &LookupKey,
        values: &[ArrayRef],
    ) -> Result<UInt32Array, DataFusionError> {
        let mut indexes = self.indexes.iter();
        let Some((_, index)) = indexes.find(|(known, _)| known.id == key.id) else {
            let problem = format!("the lookup has no index of {}", key.text);
            return Err(DataFusionError::Internal(problem));
        };
        let rows = key.bytes.convert_columns(values)?;
        let rows = rows.iter().enumerate();
        let found = rows.map(|(record, row)| {
            let row = index.get(row.as_ref()).copied();
            row.filter(|_| !has_null(values, record))
        });
        Ok(found.collect())
    }
}
