//! Joins with lookups: a record meets the one row of the lookup that has its key, or none.

use std::sync::Arc;

use datafusion::{
    arrow::{
        array::{Array, ArrayRef, RecordBatch, RecordBatchOptions},
        compute::{filter, filter_record_batch, is_not_null, take},
        datatypes::{DataType, Schema, SchemaRef},
    },
    common::DataFusionError,
    physical_expr::PhysicalExpr,
    sql::sqlparser::ast::{Expr, Spanned},
};

use crate::{
    engine::{self, in_words},
    error::{Position, QueryProblem, similar},
    execute::evaluate,
    input::{Inputs, Origin, nested},
    lookup::{Lookup, LookupKey, LookupTable},
    query::{ParsedJoin, Placed, TABLE, folded, place},
    resolve::{Joined, Resolver},
    schema::SchemaType,
    table::sql_name,
};

/// A join whose names are looked up.
pub(crate) struct JoinExpr {
    pub(crate) at: Option<Position>,
    lookup: String,
    left: bool,
    pairs: Vec<Pair>,
    /// What the lookup's sides read.
    key: Vec<Origin>,
}

/// Two expressions that must be equal.
struct Pair {
    at: Option<Position>,
    /// Of the records, and of the lookups before.
    probe: Expr,
    /// Of the lookup.
    key: Expr,
    /// That as it was written.
    text: String,
}

/// A join, planned.
#[derive(Clone, Debug)]
pub(crate) struct Join {
    pub(crate) lookup: String,
    left: bool,
    probes: Vec<Arc<dyn PhysicalExpr>>,
    pub(crate) key: Arc<LookupKey>,
    /// What is taken of the lookup's row.
    pub(crate) columns: Vec<Vec<String>>,
}

/// Looks up the names in the joins of a query, and makes their columns known to what follows.
pub(crate) fn resolve<'a>(
    resolver: &mut Resolver<'a>,
    lookups: &'a [Lookup],
    joins: Vec<ParsedJoin>,
) -> Placed<Vec<JoinExpr>> {
    let joins = joins.into_iter();
    joins
        .map(|join| resolve_join(resolver, lookups, join))
        .collect()
}

fn resolve_join<'a>(
    resolver: &mut Resolver<'a>,
    lookups: &'a [Lookup],
    parsed: ParsedJoin,
) -> Placed<JoinExpr> {
    let at = parsed.at;
    let Some(lookup) = lookups.iter().find(|known| known.name == parsed.lookup) else {
        let known = lookups.iter().map(|lookup| lookup.name.as_str());
        let problem = match parsed.lookup.as_str() {
            TABLE => QueryProblem::SelfJoin,
            name => QueryProblem::UnknownLookup {
                name: name.to_owned(),
                similar: similar(name, known),
            },
        };
        return Err((at, problem));
    };
    let qualifier = folded(&parsed.qualifier);
    check_qualifier(resolver, &qualifier).map_err(|problem| (at, problem))?;
    let index = resolver.joined.len();
    resolver.joined.push(Joined {
        qualifier: qualifier.clone(),
        lookup,
    });
    let is_own = |origin: &Origin| matches!(origin, Origin::Joined { join, .. } if *join == index);
    let mut key = Vec::new();
    let mut pairs = Vec::with_capacity(parsed.on.len());
    for (left, right) in parsed.on {
        let at = place(left.span());
        let texts = (left.to_string(), right.to_string());
        let (left, of_left) = side(resolver, left)?;
        let (right, of_right) = side(resolver, right)?;
        let is_key = |read: &[Origin]| !read.is_empty() && read.iter().all(is_own);
        let is_probe = |read: &[Origin]| !read.iter().any(is_own);
        let (probe, of_probe, own, of_key, text) = if is_key(&of_right) && is_probe(&of_left) {
            (left, of_left, right, of_right, texts.1)
        } else if is_key(&of_left) && is_probe(&of_right) {
            (right, of_right, left, of_left, texts.0)
        } else {
            return Err((at, QueryProblem::JoinSides(qualifier)));
        };
        for origin in of_probe {
            resolver.read(origin);
        }
        for origin in of_key {
            if !key.contains(&origin) {
                key.push(origin);
            }
        }
        pairs.push(Pair {
            at,
            probe,
            key: own,
            text,
        });
    }
    Ok(JoinExpr {
        at,
        lookup: lookup.name.clone(),
        left: parsed.left,
        pairs,
        key,
    })
}

/// Refuses a name that could stand for something else.
fn check_qualifier(resolver: &Resolver<'_>, name: &str) -> Result<(), QueryProblem> {
    let joined = resolver
        .joined
        .iter()
        .map(|joined| joined.qualifier.clone());
    let mut tables = joined.chain([folded(&resolver.qualifier)]);
    if tables.any(|table| table.to_lowercase() == name.to_lowercase()) {
        return Err(QueryProblem::DuplicateTable(name.to_owned()));
    }
    let mut fields = resolver.schema.fields().iter();
    let with_fields = fields.any(|field| {
        field.name.to_lowercase() == name.to_lowercase()
            && matches!(field.data_type, SchemaType::Struct(_))
    });
    match with_fields {
        true => Err(QueryProblem::TableIsField(name.to_owned())),
        false => Ok(()),
    }
}

/// Looks up the names on one side of an equality; with them what it reads.
fn side(resolver: &mut Resolver<'_>, mut expr: Expr) -> Placed<(Expr, Vec<Origin>)> {
    let before = std::mem::take(&mut resolver.origins);
    let resolved = resolver.resolve(&mut expr);
    let read = std::mem::replace(&mut resolver.origins, before);
    resolved?;
    Ok((expr, read))
}

impl JoinExpr {
    /// Plans the join, which comes after so many others.
    pub(crate) fn plan(self, index: usize, inputs: &Inputs) -> Placed<Join> {
        let before = inputs.flat_after(index);
        let own: SchemaRef = Arc::new(Schema::new(
            self.key.iter().map(Origin::flat).collect::<Vec<_>>(),
        ));
        let mut probes = Vec::with_capacity(self.pairs.len());
        let mut keys = Vec::with_capacity(self.pairs.len());
        let mut texts = Vec::with_capacity(self.pairs.len());
        for pair in self.pairs {
            let planned = plan_pair(pair.probe, before, pair.key, &own);
            let [probe, key] = planned.map_err(|problem| (pair.at, problem))?;
            probes.push(probe);
            keys.push(key);
            texts.push(pair.text);
        }
        let key = LookupKey::new(texts.join(", "), &self.key, own, keys);
        Ok(Join {
            left: self.left,
            probes,
            key: Arc::new(key.map_err(|problem| (self.at, problem))?),
            columns: inputs.joined(index),
            lookup: self.lookup,
        })
    }
}

/// Plans both sides of an equality as values of one type.
fn plan_pair(
    probe: Expr,
    before: &SchemaRef,
    key: Expr,
    own: &SchemaRef,
) -> Result<[Arc<dyn PhysicalExpr>; 2], QueryProblem> {
    let probe = engine::plan(probe, before).map_err(QueryProblem::Engine)?;
    let key = engine::plan(key, own).map_err(QueryProblem::Engine)?;
    let engine = |error: DataFusionError| QueryProblem::Engine(in_words(&error));
    let left = probe.data_type(before).map_err(engine)?;
    let right = key.data_type(own).map_err(engine)?;
    let single = |data_type: &DataType| match data_type.is_nested() {
        true => Err(QueryProblem::JoinKey(sql_name(data_type))),
        false => Ok(()),
    };
    single(&left)?;
    single(&right)?;
    let compared = engine::compared_as(&left, &right).ok_or_else(|| QueryProblem::JoinTypes {
        left: sql_name(&left),
        right: sql_name(&right),
    })?;
    let cast = |expr, found, columns| match found == compared {
        true => Ok(expr),
        false => engine::as_type(expr, columns, compared.clone()).map_err(QueryProblem::Engine),
    };
    Ok([cast(probe, left, before)?, cast(key, right, own)?])
}

impl Join {
    /// Adds the lookup's columns to a batch. `rows` are the indexes of the records behind its rows;
    /// an inner join leaves out those without a row in the lookup.
    pub(crate) fn add(
        &self,
        batch: RecordBatch,
        rows: ArrayRef,
        lookup: &LookupTable,
        columns: &SchemaRef,
    ) -> Result<(RecordBatch, ArrayRef), DataFusionError> {
        let probes = self.probes.iter();
        let probes = probes.map(|probe| evaluate(probe.as_ref(), &batch));
        let found = lookup.find(&self.key, &probes.collect::<Result<Vec<_>, _>>()?)?;
        let mut found: ArrayRef = Arc::new(found);
        let (mut batch, mut rows) = (batch, rows);
        if !self.left && found.null_count() > 0 {
            let there = is_not_null(&found)?;
            batch = filter_record_batch(&batch, &there)?;
            rows = filter(&rows, &there)?;
            found = filter(&found, &there)?;
        }
        let mut all = batch.columns().to_vec();
        for path in &self.columns {
            all.push(take(&nested(lookup.columns(), path)?, &found, None)?);
        }
        let count = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
        let batch = RecordBatch::try_new_with_options(Arc::clone(columns), all, &count)?;
        Ok((batch, rows))
    }
}
