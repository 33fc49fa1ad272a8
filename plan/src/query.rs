//! A sink's SQL as text: parsed, held to `SELECT ... FROM records [WHERE ...] [GROUP BY ...
//! [HAVING ...]]`, taken apart.

use std::iter;

use datafusion::sql::sqlparser::{
    ast::{
        Expr, GroupByExpr, Ident, Query, Select, SelectItem, SelectItemQualifiedWildcardKind,
        SetExpr, Spanned, Statement, TableFactor, WildcardAdditionalOptions,
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
const TABLE: &str = "records";
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
    pub(crate) items: Vec<Item>,
    pub(crate) condition: Option<Expr>,
    /// Where there is a GROUP BY.
    pub(crate) group_by: Option<Vec<Expr>>,
    pub(crate) having: Option<Expr>,
}

/// An item of the SELECT list.
#[derive(Debug)]
pub(crate) enum Item {
    Expr {
        expr: Box<Expr>,
        alias: Option<Ident>,
    },
    Wildcard(Option<Position>),
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
    let qualifier = records(select)?;
    refuse_what_is_left(query, select)?;
    let items = select
        .projection
        .iter()
        .map(|item| parse_item(item, &qualifier));
    Ok(ParsedQuery {
        items: items.collect::<Result<_, _>>()?,
        condition: select.selection.clone(),
        group_by: group_by.map(<[Expr]>::to_vec),
        having: select.having.clone(),
        qualifier,
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

/// Holds FROM to the one table there is; returns the name by which columns are qualified.
fn records(select: &Select) -> Placed<Ident> {
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
    if let Some(join) = from.joins.first() {
        return Err((at(join.span()), QueryProblem::Unsupported("JOIN")));
    }
    let TableFactor::Table { name, alias, .. } = &from.relation else {
        let problem = QueryProblem::Unsupported("anything but the table `records` after FROM");
        return Err((at(from.span()), problem));
    };
    let is_records = match name.0.as_slice() {
        [part] => part.as_ident().is_some_and(|ident| folded(ident) == TABLE),
        _ => false,
    };
    if !is_records {
        let problem = QueryProblem::UnknownTable(name.to_string());
        return Err((at(name.span()), problem));
    }
    Ok(alias
        .as_ref()
        .map_or_else(|| Ident::new(TABLE), |alias| alias.name.clone()))
}

/// The parser knows many more clauses. What was accepted, written out again, must be all there is.
fn refuse_what_is_left(query: &Query, select: &Select) -> Placed<()> {
    let items: Vec<String> = select
        .projection
        .iter()
        .map(SelectItem::to_string)
        .collect();
    let mut accepted = format!("SELECT {} FROM {TABLE}", items.join(", "));
    if let Some(TableFactor::Table { name, alias, .. }) =
        select.from.first().map(|from| &from.relation)
    {
        accepted = format!("SELECT {} FROM {name}", items.join(", "));
        if let Some(alias) = alias {
            let alias_as = if alias.explicit { "AS " } else { "" };
            accepted += &format!(" {alias_as}{}", alias.name);
        }
    }
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

fn parse_item(item: &SelectItem, qualifier: &Ident) -> Placed<Item> {
    let plain = |options: &WildcardAdditionalOptions| options.to_string().is_empty();
    match item {
        SelectItem::UnnamedExpr(expr) => Ok(Item::Expr {
            expr: Box::new(expr.clone()),
            alias: None,
        }),
        SelectItem::ExprWithAlias { expr, alias } => Ok(Item::Expr {
            expr: Box::new(expr.clone()),
            alias: Some(alias.clone()),
        }),
        SelectItem::Wildcard(options) if plain(options) => Ok(Item::Wildcard(place(item.span()))),
        SelectItem::QualifiedWildcard(
            SelectItemQualifiedWildcardKind::ObjectName(name),
            options,
        ) if plain(options) && name.to_string().eq_ignore_ascii_case(&qualifier.value) => {
            Ok(Item::Wildcard(place(item.span())))
        }
        other => Err((
            place(other.span()),
            QueryProblem::Unsupported("`*` with anything beside it"),
        )),
    }
}
