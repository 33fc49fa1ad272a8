//! Columns and functions of an expression, looked up: `login.uuid`, `name['first']` and
//! `location.street.number` become the flat columns of [`Inputs`](crate::input::Inputs).

use std::ops::ControlFlow;

use datafusion::sql::sqlparser::{
    ast::{
        AccessExpr, BinaryOperator, CastKind, DataType, Expr, Function, Ident, ObjectNamePart,
        Query, Spanned, Subscript, Value, VisitMut, VisitorMut,
    },
    tokenizer::Span,
};

use crate::{
    RecordSchema, SchemaField,
    engine::{self, Function as Known},
    error::{QueryProblem, similar},
    input::{Origin, VirtualColumn, dotted},
    lookup::Lookup,
    query::{Placed, folded, place},
    schema::SchemaType,
    table::schema_type_name,
};

/// Looks up names, and collects what the query reads.
pub(crate) struct Resolver<'a> {
    pub(crate) schema: &'a RecordSchema,
    pub(crate) qualifier: Ident,
    /// The lookups that are joined, in their order.
    pub(crate) joined: Vec<Joined<'a>>,
    /// What was read, each once, in the order of the text.
    pub(crate) origins: Vec<Origin>,
    pub(crate) aggregates: Aggregates,
    /// Whether there was one.
    pub(crate) aggregated: bool,
}

/// A lookup of a query.
pub(crate) struct Joined<'a> {
    /// Its name in the query.
    pub(crate) qualifier: String,
    pub(crate) lookup: &'a Lookup,
}

/// Where a name is looked up.
enum Table<'s> {
    /// In the records or in any lookup.
    Any(&'s [Segment]),
    Records(&'s [Segment]),
    Joined(usize, &'s [Segment]),
}

/// Whether an aggregate may stand in what is looked up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Aggregates {
    Allowed,
    /// Not here.
    Refused(&'static str),
    /// Not within another.
    Within,
}

/// One name of `location.street.number`.
struct Segment {
    name: String,
    /// Case counts.
    exact: bool,
    span: Span,
}

impl Segment {
    fn of(ident: &Ident) -> Self {
        Segment {
            name: ident.value.clone(),
            exact: ident.quote_style.is_some(),
            span: ident.span,
        }
    }

    fn matches(&self, name: &str) -> bool {
        name == self.name || !self.exact && name.to_lowercase() == self.name.to_lowercase()
    }
}

impl Resolver<'_> {
    /// Replaces every column by its flat one. Returns what the expression is nothing but.
    pub(crate) fn resolve(&mut self, expr: &mut Expr) -> Placed<Option<Origin>> {
        match expr.visit(self) {
            ControlFlow::Break(error) => Err(error),
            ControlFlow::Continue(()) => Ok(self.plain(expr)),
        }
    }

    /// A column of the records as an expression.
    pub(crate) fn read(&mut self, origin: Origin) -> Expr {
        let ident = Ident::with_quote('"', origin.flat_name());
        if !self.origins.contains(&origin) {
            self.origins.push(origin);
        }
        Expr::Identifier(ident)
    }

    /// An expression that is resolved, as SQL over the records, where it reads their fields and
    /// nothing else.
    pub(crate) fn of_record(&self, expr: &Expr) -> Option<String> {
        let mut expr = expr.clone();
        let mut paths = Paths {
            origins: &self.origins,
            found: false,
        };
        let whole = expr.visit(&mut paths).is_continue();
        (whole && paths.found).then(|| expr.to_string())
    }

    /// Takes note of an aggregate; the problem is that it may not stand here. Not inlined, so that
    /// it takes no stack where expressions are within one another.
    #[inline(never)]
    fn enter(&mut self, expr: &Expr) -> Option<QueryProblem> {
        let name = aggregate_name(expr)?;
        let place = match self.aggregates {
            Aggregates::Allowed => {
                self.aggregates = Aggregates::Within;
                self.aggregated = true;
                return None;
            }
            Aggregates::Refused(place) => place,
            Aggregates::Within => "within another aggregate; make each a result column",
        };
        Some(QueryProblem::MisplacedAggregate { name, place })
    }

    #[inline(never)]
    fn leave(&mut self, expr: &Expr) {
        if self.aggregates == Aggregates::Within && aggregate_name(expr).is_some() {
            self.aggregates = Aggregates::Allowed;
        }
    }

    fn plain(&self, expr: &Expr) -> Option<Origin> {
        match expr {
            Expr::Nested(inner) => self.plain(inner),
            Expr::Identifier(ident) => {
                let mut origins = self.origins.iter();
                origins
                    .find(|origin| origin.flat_name() == ident.value)
                    .cloned()
            }
            _ => None,
        }
    }

    /// Splits a column with what is after it into names and the rest, such as `[1]`.
    fn segments(expr: &Expr) -> Option<(Vec<Segment>, Vec<AccessExpr>)> {
        match expr {
            Expr::Identifier(ident) => Some((vec![Segment::of(ident)], Vec::new())),
            Expr::CompoundIdentifier(idents) => {
                Some((idents.iter().map(Segment::of).collect(), Vec::new()))
            }
            Expr::CompoundFieldAccess { root, access_chain } => {
                let (mut segments, mut rest) = Self::segments(root)?;
                for access in access_chain {
                    match segment(access) {
                        Some(segment) if rest.is_empty() => segments.push(segment),
                        // What is behind an array's element is the engine's to find.
                        Some(segment) => rest.push(subscript(segment)),
                        None => rest.push(access.clone()),
                    }
                }
                Some((segments, rest))
            }
            Expr::Nested(inner) => Self::segments(inner),
            _ => None,
        }
    }

    fn column(&mut self, segments: &[Segment], rest: Vec<AccessExpr>) -> Placed<Expr> {
        let origin = match self.table(segments) {
            Table::Any([]) | Table::Records([]) | Table::Joined(_, []) => {
                return Err((None, QueryProblem::Syntax("a name is missing".into())));
            }
            Table::Joined(join, [first, below @ ..]) => self.joined_column(join, first, below)?,
            Table::Records([first, below @ ..]) => match virtual_column(first) {
                Some(column) if below.is_empty() => Origin::Virtual(column),
                _ => self.field(first, below)?,
            },
            Table::Any([first, below @ ..]) => match virtual_column(first) {
                Some(column) if below.is_empty() => Origin::Virtual(column),
                _ => self.anywhere(first, below)?,
            },
        };
        let root = self.read(origin);
        if rest.is_empty() {
            return Ok(root);
        }
        Ok(Expr::CompoundFieldAccess {
            root: Box::new(root),
            access_chain: rest,
        })
    }

    /// The table that is named, without its name, where what comes first is that and not a field.
    fn table<'s>(&self, segments: &'s [Segment]) -> Table<'s> {
        let [table, column, ..] = segments else {
            return Table::Any(segments);
        };
        let mut joined = self.joined.iter();
        if let Some(join) = joined.position(|joined| table.matches(&joined.qualifier)) {
            return Table::Joined(join, &segments[1..]);
        }
        if !table.matches(&folded(&self.qualifier)) {
            return Table::Any(segments);
        }
        let fields = self.schema.fields();
        let is_field = |name: &Segment| fields.iter().any(|field| name.matches(&field.name));
        if virtual_column(column).is_some() || is_field(column) || !is_field(table) {
            return Table::Records(&segments[1..]);
        }
        Table::Any(segments)
    }

    /// A column whose table isn't said: there must be just one.
    fn anywhere(&self, first: &Segment, below: &[Segment]) -> Placed<Origin> {
        let mut there = Vec::new();
        if find(self.schema.fields(), first)?.is_some() {
            there.push((self.qualifier.to_string(), None));
        }
        for (join, joined) in self.joined.iter().enumerate() {
            if find(joined.lookup.schema.fields(), first)?.is_some() {
                there.push((joined.qualifier.clone(), Some(join)));
            }
        }
        match there.as_slice() {
            [] | [(_, None)] => self.field(first, below),
            [(_, Some(join))] => self.joined_column(*join, first, below),
            several => {
                let candidates = several
                    .iter()
                    .map(|(table, _)| format!("{table}.{}", first.name));
                let problem = QueryProblem::AmbiguousTable {
                    name: first.name.clone(),
                    candidates: candidates.collect::<Vec<_>>().join(", "),
                };
                Err((place(first.span), problem))
            }
        }
    }

    /// A column of a lookup.
    fn joined_column(&self, join: usize, first: &Segment, below: &[Segment]) -> Placed<Origin> {
        let Joined { qualifier, lookup } = &self.joined[join];
        let fields = lookup.schema.fields();
        let found = find(fields, first)?.ok_or_else(|| {
            let problem = QueryProblem::UnknownLookupColumn {
                lookup: lookup.name.clone(),
                name: first.name.clone(),
                similar: similar(&first.name, fields.iter().map(|field| field.name.as_str())),
            };
            (place(first.span), problem)
        })?;
        let (path, data_type) = descend(found, below)?;
        Ok(Origin::Joined {
            join,
            qualifier: qualifier.clone(),
            path,
            data_type,
        })
    }

    fn field(&self, first: &Segment, below: &[Segment]) -> Placed<Origin> {
        let found = find(self.schema.fields(), first)?.ok_or_else(|| {
            let fields = self.schema.fields().iter().map(|field| field.name.as_str());
            let known = fields.chain(VirtualColumn::ALL.map(VirtualColumn::name));
            let problem = QueryProblem::UnknownColumn {
                name: first.name.clone(),
                similar: similar(&first.name, known),
            };
            (place(first.span), problem)
        })?;
        let (path, data_type) = descend(found, below)?;
        Ok(Origin::Field { path, data_type })
    }
}

fn virtual_column(name: &Segment) -> Option<VirtualColumn> {
    VirtualColumn::ALL
        .into_iter()
        .find(|column| name.matches(column.name()))
}

/// The path and the type of what is below a column.
fn descend(found: &SchemaField, below: &[Segment]) -> Placed<(Vec<String>, SchemaType)> {
    let mut path = vec![found.name.clone()];
    let mut data_type = &found.data_type;
    for segment in below {
        let SchemaType::Struct(fields) = data_type else {
            return Err((place(segment.span), not_struct(&path, data_type, segment)));
        };
        let found = find(fields, segment)?.ok_or_else(|| {
            let problem = QueryProblem::UnknownField {
                parent: dotted(&path),
                name: segment.name.clone(),
                similar: similar(
                    &segment.name,
                    fields.iter().map(|field| field.name.as_str()),
                ),
            };
            (place(segment.span), problem)
        })?;
        path.push(found.name.clone());
        data_type = &found.data_type;
    }
    Ok((path, data_type.clone()))
}

/// The field as it is written, or else the only one that is the same but for case.
fn find<'f>(fields: &'f [SchemaField], segment: &Segment) -> Placed<Option<&'f SchemaField>> {
    if let Some(field) = fields.iter().find(|field| field.name == segment.name) {
        return Ok(Some(field));
    }
    let matching: Vec<_> = fields
        .iter()
        .filter(|field| segment.matches(&field.name))
        .collect();
    match matching.as_slice() {
        [] => Ok(None),
        [field] => Ok(Some(field)),
        several => {
            let names: Vec<_> = several
                .iter()
                .map(|field| format!("`{}`", field.name))
                .collect();
            let problem = QueryProblem::Ambiguous {
                name: segment.name.clone(),
                candidates: names.join(", "),
            };
            Err((place(segment.span), problem))
        }
    }
}

fn not_struct(path: &[String], data_type: &SchemaType, segment: &Segment) -> QueryProblem {
    QueryProblem::NotStruct {
        parent: dotted(path),
        data_type: schema_type_name(data_type),
        name: segment.name.clone(),
        way_out: match data_type {
            SchemaType::Array(_) => "; take an element first, as in [1]",
            _ => "",
        },
    }
}

/// `.name` or `['name']`.
fn segment(access: &AccessExpr) -> Option<Segment> {
    match access {
        AccessExpr::Dot(Expr::Identifier(ident)) => Some(Segment::of(ident)),
        AccessExpr::Subscript(Subscript::Index {
            index: Expr::Value(value),
        }) => match &value.value {
            Value::SingleQuotedString(name) => Some(Segment {
                name: name.clone(),
                exact: true,
                span: value.span,
            }),
            _ => None,
        },
        _ => None,
    }
}

fn subscript(segment: Segment) -> AccessExpr {
    let name = Value::SingleQuotedString(segment.name);
    AccessExpr::Subscript(Subscript::Index {
        index: Expr::Value(name.into()),
    })
}

/// Whether this is a column that was replaced already, and is visited again: only those have no
/// place.
pub(crate) fn is_replaced(expr: &Expr) -> bool {
    matches!(expr, Expr::Identifier(ident) if ident.span == Span::empty())
}

/// Refuses what the parser knows and no query here may have.
pub(crate) fn check(expr: &mut Expr) -> Result<(), QueryProblem> {
    match expr {
        Expr::Function(function) => check_function(function),
        Expr::SimilarTo { .. } => Err(QueryProblem::SimilarTo),
        _ if is_misread(expr) => Err(QueryProblem::DistinctFrom),
        Expr::Lambda(_) => Err(QueryProblem::Unsupported("a lambda")),
        Expr::Cast {
            data_type: DataType::Uuid,
            ..
        } => Err(QueryProblem::NestedUuid),
        // Microseconds, as everywhere; the engine's nanoseconds end in the year 2262.
        Expr::Cast {
            data_type: DataType::Timestamp(precision @ None, _),
            ..
        } => {
            *precision = Some(6);
            Ok(())
        }
        _ => Ok(()),
    }
}

/// Whether an AND or OR that comes after `a IS DISTINCT FROM b` was read as part of its right side.
pub(crate) fn is_misread(expr: &Expr) -> bool {
    use BinaryOperator::{And, Or, Xor};
    match expr {
        Expr::IsDistinctFrom(_, right) | Expr::IsNotDistinctFrom(_, right) => matches!(
            **right,
            Expr::BinaryOp {
                op: And | Or | Xor,
                ..
            }
        ),
        _ => false,
    }
}

/// The name of an aggregate, where the expression is one.
pub(crate) fn aggregate_name(expr: &Expr) -> Option<String> {
    let Expr::Function(function) = expr else {
        return None;
    };
    let name = function.name.to_string().to_lowercase();
    matches!(engine::function(&name), Known::Aggregate).then_some(name)
}

fn check_function(function: &mut Function) -> Result<(), QueryProblem> {
    // One name has one spelling, as expressions are compared.
    for part in &mut function.name.0 {
        if let ObjectNamePart::Identifier(ident) = part {
            ident.value.make_ascii_lowercase();
        }
    }
    let name = function.name.to_string().to_lowercase();
    if function.over.is_some() {
        return Err(QueryProblem::Window(format!("{name}() OVER")));
    }
    match engine::function(&name) {
        // Where an aggregate may stand, the resolver knows.
        Known::Immutable | Known::Aggregate => Ok(()),
        Known::Volatile => Err(QueryProblem::Volatile(name)),
        Known::Window => Err(QueryProblem::Window(format!("{name}()"))),
        Known::Unknown { .. } if name == "unnest" => Err(QueryProblem::Unsupported(
            "unnest(), which makes several rows of a record,",
        )),
        Known::Unknown { similar } => Err(QueryProblem::UnknownFunction { name, similar }),
    }
}

impl VisitorMut for Resolver<'_> {
    type Break = (Option<crate::Position>, QueryProblem);

    fn pre_visit_query(&mut self, query: &mut Query) -> ControlFlow<Self::Break> {
        ControlFlow::Break((place(query.span()), QueryProblem::Unsupported("a subquery")))
    }

    fn pre_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<Self::Break> {
        let at = place(expr.span());
        if is_replaced(expr) {
            return ControlFlow::Continue(());
        }
        let problem = check(expr).err();
        if let Some(problem) = problem.or_else(|| self.enter(expr)) {
            return ControlFlow::Break((at, problem));
        }
        let Some((segments, rest)) = Self::segments(expr) else {
            return ControlFlow::Continue(());
        };
        match self.column(&segments, rest) {
            Ok(column) => {
                *expr = column;
                ControlFlow::Continue(())
            }
            Err((place, problem)) => ControlFlow::Break((place.or(at), problem)),
        }
    }

    fn post_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<Self::Break> {
        self.leave(expr);
        ControlFlow::Continue(())
    }
}

/// Writes flat columns as the paths that they are; breaks at what isn't of the record alone.
struct Paths<'a> {
    origins: &'a [Origin],
    /// Whether there was a column.
    found: bool,
}

impl VisitorMut for Paths<'_> {
    type Break = ();

    fn pre_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<()> {
        if aggregate_name(expr).is_some() {
            return ControlFlow::Break(());
        }
        let Expr::Identifier(ident) = expr else {
            return ControlFlow::Continue(());
        };
        let mut origins = self.origins.iter();
        match origins.find(|origin| origin.flat_name() == ident.value) {
            Some(Origin::Field { path, .. }) => {
                let names = path.iter().map(|name| Ident::with_quote('"', name));
                *expr = Expr::CompoundIdentifier(names.collect());
                self.found = true;
                ControlFlow::Continue(())
            }
            _ => ControlFlow::Break(()),
        }
    }
}

/// `CAST(x AS UUID)` or `x::UUID`: the `x`. The check is the sink's, which parses the text.
pub(crate) fn cast_as_uuid(expr: &Expr) -> Option<&Expr> {
    match expr {
        Expr::Cast {
            kind: CastKind::Cast | CastKind::DoubleColon,
            expr,
            data_type: DataType::Uuid,
            ..
        } => Some(expr),
        Expr::Nested(inner) => cast_as_uuid(inner),
        _ => None,
    }
}
