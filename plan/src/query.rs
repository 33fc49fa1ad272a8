//! A sink's SQL as text: parsed, held to `SELECT ... FROM records [JOIN ...] [WHERE ...] [GROUP BY
//! ... [HAVING ...]]`, taken apart.

use std::iter;

use datafusion::sql::sqlparser::{
    ast::{
        BinaryOperator, Expr, GroupByExpr, Ident, Join, JoinConstraint, JoinOperator, ObjectName,
        Query, Select, SelectItem, SelectItemQualifiedWildcardKind, SetExpr, Spanned, Statement,
        TableFactor, WildcardAdditionalOptions,
    },
    dialect::GenericDialect,
    parser::{Parser, ParserError},
    tokenizer::{Location, Span, Token, TokenWithSpan, Tokenizer},
};

use crate::{
    error::{Position, QueryProblem},
    tokens::{MAX_DEPTH, check_tokens},
};

/// The table that the records are in.
pub(crate) const TABLE: &str = "records";
const DIALECT: GenericDialect = GenericDialect {};
/// As the DataPipeline's own schema has it.
pub(crate) const MAX_BYTES: usize = 65_536;

/// A problem, and where.
pub(crate) type Placed<T> = Result<T, (Option<Position>, QueryProblem)>;

/// What is left of a query that was accepted.
#[derive(Debug)]
pub(crate) struct ParsedQuery {
    /// What columns may be qualified with.
    pub(crate) qualifier: Ident,
    pub(crate) joins: Vec<ParsedJoin>,
    pub(crate) items: Vec<Item>,
    pub(crate) condition: Option<Expr>,
    /// Where there is a GROUP BY.
    pub(crate) group_by: Option<Vec<Expr>>,
    pub(crate) having: Option<Expr>,
}

/// A lookup with which the records are joined.
#[derive(Debug)]
pub(crate) struct ParsedJoin {
    pub(crate) at: Option<Position>,
    /// Name of the lookup.
    pub(crate) lookup: String,
    /// What its columns may be qualified with.
    pub(crate) qualifier: Ident,
    /// Whether a record without a row in the lookup stays.
    pub(crate) left: bool,
    /// What must be equal, side by side.
    pub(crate) on: Vec<(Expr, Expr)>,
}

/// An item of the SELECT list.
#[derive(Debug)]
pub(crate) enum Item {
    Expr {
        expr: Box<Expr>,
        alias: Option<Ident>,
    },
    Wildcard {
        at: Option<Position>,
        /// The table whose columns are meant: the records, then the lookups; all where it isn't said.
        table: Option<usize>,
    },
}

/// Where a piece of SQL begins; nothing where the parser lost it.
pub(crate) fn place(span: Span) -> Option<Position> {
    (span.start != Location::empty()).then(|| span.start.into())
}

/// An identifier as SQL reads it: in lower case unless it is in quotes.
pub(crate) fn folded(ident: &Ident) -> String {
    match ident.quote_style {
        Some(_) => ident.value.clone(),
        None => ident.value.to_lowercase(),
    }
}

pub(crate) fn parse(sql: &str) -> Placed<ParsedQuery> {
    let statements = statements(sql)?;
    let [Statement::Query(query)] = statements.as_slice() else {
        return Err((
            statements
                .get(1)
                .or(statements.first())
                .and_then(|statement| place(statement.span())),
            QueryProblem::NotOneSelect,
        ));
    };
    let (select, group_by) = simple_select(query)?;
    let (qualifier, joins) = from(select)?;
    refuse_what_is_left(query, select)?;
    let joined = joins.iter().map(|join| &join.qualifier);
    let tables: Vec<_> = iter::once(&qualifier).chain(joined).collect();
    let items = select
        .projection
        .iter()
        .map(|item| parse_item(item, &tables));
    Ok(ParsedQuery {
        items: items.collect::<Result<_, _>>()?,
        condition: select.selection.clone(),
        group_by: group_by.map(<[Expr]>::to_vec),
        having: select.having.clone(),
        qualifier,
        joins,
    })
}

/// Parses what stands alone: a condition without a query around it.
pub(crate) fn parse_condition(sql: &str) -> Placed<Expr> {
    let tokens = tokens(sql)?;
    // As if it stood in a query: what is too deep for one is too deep here.
    let select = TokenWithSpan::wrap(Token::make_keyword("SELECT"));
    let in_query: Vec<_> = iter::once(select).chain(tokens.iter().cloned()).collect();
    check_tokens(&in_query)?;
    let mut parser = Parser::new(&DIALECT).with_tokens_with_locations(tokens);
    let parsed = parser.parse_expr().and_then(|expr| {
        parser.expect_token(&Token::EOF)?;
        Ok(expr)
    });
    parsed.map_err(syntax)
}

fn tokens(sql: &str) -> Placed<Vec<TokenWithSpan>> {
    let tokens = Tokenizer::new(&DIALECT, sql).tokenize_with_location();
    tokens.map_err(|error| {
        let at = Some(error.location.into());
        (at, QueryProblem::Syntax(error.message))
    })
}

fn statements(sql: &str) -> Placed<Vec<Statement>> {
    if sql.len() > MAX_BYTES {
        return Err((None, QueryProblem::TooLong(MAX_BYTES)));
    }
    let tokens = tokens(sql)?;
    check_tokens(&tokens)?;
    let mut parser = Parser::new(&DIALECT).with_tokens_with_locations(tokens);
    parser.parse_statements().map_err(syntax)
}

fn syntax(error: ParserError) -> (Option<Position>, QueryProblem) {
    match error {
        ParserError::TokenizerError(message) | ParserError::ParserError(message) => {
            placed_syntax(&message)
        }
        ParserError::RecursionLimitExceeded => (None, QueryProblem::TooDeep(MAX_DEPTH)),
    }
}

/// The parser has the place only within its message.
fn placed_syntax(message: &str) -> (Option<Position>, QueryProblem) {
    let placed = message
        .rsplit_once(" at Line: ")
        .and_then(|(message, place)| {
            let (line, column) = place.split_once(", Column: ")?;
            let at = Position {
                line: line.parse().ok()?,
                column: column.parse().ok()?,
            };
            Some((Some(at), message))
        });
    let (at, message) = placed.unwrap_or((None, message));
    // The parser's spelling: `Expected: an expression, found: EOF`.
    let message = message
        .replacen("Expected: EOF", "expected the end", 1)
        .replacen("Expected: ", "expected ", 1)
        .replacen(", found: EOF", ", found the end", 1)
        .replacen(", found: ", ", found ", 1);
    (at, QueryProblem::Syntax(message))
}

/// The query's SELECT, if that is all there is to it, and what it groups by.
fn simple_select(query: &Query) -> Placed<(&Select, Option<&[Expr]>)> {
    let unsupported = |at: Span, what| Err((place(at), QueryProblem::Unsupported(what)));
    if let Some(with) = &query.with {
        return unsupported(with.span(), "WITH");
    }
    let select = match query.body.as_ref() {
        SetExpr::Select(select) => select,
        SetExpr::SetOperation { right, .. } => {
            return unsupported(right.span(), "UNION, EXCEPT or INTERSECT");
        }
        _ => return Err((place(query.span()), QueryProblem::NotOneSelect)),
    };
    if let Some(order_by) = &query.order_by {
        return unsupported(order_by.span(), "ORDER BY");
    }
    if let Some(limit) = &query.limit_clause {
        return unsupported(limit.span(), "LIMIT or OFFSET");
    }
    if let Some(fetch) = &query.fetch {
        return unsupported(fetch.span(), "FETCH");
    }
    if select.distinct.is_some() {
        let at = place(select.select_token.0.span);
        return Err((at, QueryProblem::Distinct));
    }
    Ok((select, group_keys(&select.group_by)?))
}

fn group_keys(group_by: &GroupByExpr) -> Placed<Option<&[Expr]>> {
    let unsupported = |at: Span, what| Err((place(at), QueryProblem::Unsupported(what)));
    let keys = match group_by {
        GroupByExpr::Expressions(keys, modifiers) if modifiers.is_empty() => keys,
        GroupByExpr::Expressions(keys, _) => {
            let at = Span::union_iter(keys.iter().map(Expr::span));
            return unsupported(at, "GROUP BY with ROLLUP, CUBE or TOTALS");
        }
        GroupByExpr::All(_) => return unsupported(group_by.span(), "GROUP BY ALL"),
    };
    for key in keys {
        if matches!(
            key,
            Expr::GroupingSets(_) | Expr::Cube(_) | Expr::Rollup(_) | Expr::Tuple(_)
        ) {
            return unsupported(key.span(), "GROUPING SETS, CUBE or ROLLUP");
        }
    }
    Ok((!keys.is_empty()).then_some(keys.as_slice()))
}

/// Holds FROM to the records and joins with lookups; returns the name by which the records' columns
/// are qualified.
fn from(select: &Select) -> Placed<(Ident, Vec<ParsedJoin>)> {
    let at = |span: Span| place(span).or_else(|| place(select.select_token.0.span));
    let [from] = select.from.as_slice() else {
        let problem = match select.from.get(1) {
            Some(second) => (
                at(second.span()),
                QueryProblem::Unsupported("a second table"),
            ),
            None => (
                at(Span::empty()),
                QueryProblem::Syntax("FROM is missing; write SELECT ... FROM records".into()),
            ),
        };
        return Err(problem);
    };
    let Some((name, qualifier)) = table(&from.relation) else {
        let problem = QueryProblem::Unsupported("anything but the table `records` after FROM");
        return Err((at(from.span()), problem));
    };
    if single_name(name).as_deref() != Some(TABLE) {
        let problem = QueryProblem::UnknownTable(name.to_string());
        return Err((at(name.span()), problem));
    }
    let joins = from.joins.iter().map(parse_join);
    Ok((qualifier, joins.collect::<Result<_, _>>()?))
}

/// The name of a table, and that by which its columns are qualified; none where there is more to it.
fn table(relation: &TableFactor) -> Option<(&ObjectName, Ident)> {
    let TableFactor::Table { name, alias, .. } = relation else {
        return None;
    };
    let mut plain = name.to_string();
    if let Some(alias) = alias {
        let alias_as = if alias.explicit { "AS " } else { "" };
        plain += &format!(" {alias_as}{}", alias.name);
    }
    (relation.to_string() == plain).then_some(())?;
    let own_name = || name.0.last()?.as_ident().cloned();
    let qualifier = alias.as_ref().map(|alias| alias.name.clone());
    Some((name, qualifier.or_else(own_name)?))
}

/// The name of a table that isn't in a schema or a catalog.
fn single_name(name: &ObjectName) -> Option<String> {
    match name.0.as_slice() {
        [part] => part.as_ident().map(folded),
        _ => None,
    }
}

fn parse_join(join: &Join) -> Placed<ParsedJoin> {
    let at = place(join.relation.span());
    let refuse = |what: &str| {
        let what = what.to_owned();
        Err((at, QueryProblem::JoinKind(what)))
    };
    let (left, constraint) = match &join.join_operator {
        _ if join.global => return refuse("GLOBAL JOIN"),
        JoinOperator::Join(constraint) | JoinOperator::Inner(constraint) => (false, constraint),
        JoinOperator::Left(constraint) | JoinOperator::LeftOuter(constraint) => (true, constraint),
        JoinOperator::Right(_) | JoinOperator::RightOuter(_) => return refuse("RIGHT JOIN"),
        JoinOperator::FullOuter(_) => return refuse("FULL JOIN"),
        JoinOperator::CrossJoin(_) => return refuse("CROSS JOIN"),
        _ => return refuse("this kind of JOIN"),
    };
    let on = match constraint {
        JoinConstraint::On(on) => on,
        JoinConstraint::Using(_) => return refuse("USING"),
        JoinConstraint::Natural => return refuse("NATURAL JOIN"),
        JoinConstraint::None => return refuse("a JOIN without ON"),
    };
    let Some((name, qualifier)) = table(&join.relation) else {
        return refuse("a JOIN with anything but a lookup");
    };
    let Some(lookup) = single_name(name) else {
        return refuse("a JOIN with a table in a schema");
    };
    let mut equalities = Vec::new();
    take_equalities(on, &mut equalities)?;
    Ok(ParsedJoin {
        at,
        lookup,
        qualifier,
        left,
        on: equalities,
    })
}

/// Takes `a = b AND c = d` apart.
fn take_equalities(on: &Expr, equalities: &mut Vec<(Expr, Expr)>) -> Placed<()> {
    match on {
        Expr::Nested(inner) => take_equalities(inner, equalities),
        Expr::BinaryOp {
            left,
            op: BinaryOperator::And,
            right,
        } => {
            take_equalities(left, equalities)?;
            take_equalities(right, equalities)
        }
        Expr::BinaryOp {
            left,
            op: BinaryOperator::Eq,
            right,
        } => {
            equalities.push((Expr::clone(left), Expr::clone(right)));
            Ok(())
        }
        other => Err((place(other.span()), QueryProblem::JoinCondition)),
    }
}

/// The parser knows many more clauses. What was accepted, written out again, must be all there is.
fn refuse_what_is_left(query: &Query, select: &Select) -> Placed<()> {
    let items: Vec<String> = select
        .projection
        .iter()
        .map(SelectItem::to_string)
        .collect();
    // Its tables were looked at one by one.
    let from: Vec<String> = select.from.iter().map(ToString::to_string).collect();
    let mut accepted = format!("SELECT {} FROM {}", items.join(", "), from.join(", "));
    if let Some(condition) = &select.selection {
        accepted += &format!(" WHERE {condition}");
    }
    if let GroupByExpr::Expressions(keys, _) = &select.group_by
        && !keys.is_empty()
    {
        accepted += &format!(" {}", select.group_by);
    }
    if let Some(having) = &select.having {
        accepted += &format!(" HAVING {having}");
    }
    if query.to_string() == accepted {
        return Ok(());
    }
    let problem = QueryProblem::Unsupported("one of the clauses");
    Err((place(query.span()), problem))
}

fn parse_item(item: &SelectItem, tables: &[&Ident]) -> Placed<Item> {
    let plain = |options: &WildcardAdditionalOptions| options.to_string().is_empty();
    let named = |name: &ObjectName| {
        let name = name.to_string();
        let mut tables = tables.iter();
        tables.position(|table| name.eq_ignore_ascii_case(&table.value))
    };
    match item {
        SelectItem::UnnamedExpr(expr) => Ok(Item::Expr {
            expr: Box::new(expr.clone()),
            alias: None,
        }),
        SelectItem::ExprWithAlias { expr, alias } => Ok(Item::Expr {
            expr: Box::new(expr.clone()),
            alias: Some(alias.clone()),
        }),
        SelectItem::Wildcard(options) if plain(options) => Ok(Item::Wildcard {
            at: place(item.span()),
            table: None,
        }),
        SelectItem::QualifiedWildcard(
            SelectItemQualifiedWildcardKind::ObjectName(name),
            options,
        ) if plain(options) && named(name).is_some() => Ok(Item::Wildcard {
            at: place(item.span()),
            table: named(name),
        }),
        other => Err((
            place(other.span()),
            QueryProblem::Unsupported("`*` with anything beside it"),
        )),
    }
}
