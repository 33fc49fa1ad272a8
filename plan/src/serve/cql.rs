//! As much of CQL as tells one harmless `SELECT` from everything else. What it means, and whether
//! the rest of it is right, Cassandra says when the worker prepares it.

use millstream_api::{cql::CqlType, keyspace::TableSpec};

use crate::error::similar;

/// One `SELECT`.
#[derive(Clone, Debug)]
pub(crate) struct Select {
    pub keyspace: Option<String>,
    pub table: String,
    pub markers: Vec<Marker>,
    items: Vec<Vec<Token>>,
    /// Without a `;` at the end.
    text: String,
    /// Where the table's name begins.
    table_at: usize,
}

/// A named bind marker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Marker {
    pub name: String,
    compared: Compared,
}

/// What a marker is compared with, where that is plain to see.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Compared {
    Column(String),
    Limit,
    Unknown,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Token {
    /// In lower case, as CQL takes it.
    Word(String),
    Quoted(String),
    Marker(String),
    /// A string or a number.
    Constant,
    Symbol(char),
}

impl Token {
    fn is(&self, word: &str) -> bool {
        matches!(self, Token::Word(text) if text == word)
    }

    fn name(&self) -> Option<&str> {
        match self {
            Token::Word(name) | Token::Quoted(name) => Some(name),
            _ => None,
        }
    }
}

const AFTER_TABLE: [&str; 6] = ["where", "group", "order", "per", "limit", "allow"];

impl Select {
    /// Reads a statement; refuses what isn't one SELECT on one table.
    pub fn parse(text: &str) -> Result<Self, String> {
        let tokens = tokens(text)?;
        let (tokens, end) = match tokens.split_last() {
            Some(((at, Token::Symbol(';')), before)) => (before, *at),
            _ => (&tokens[..], text.len()),
        };
        if tokens.iter().any(|(_, token)| *token == Token::Symbol(';')) {
            return Err("it is more than one statement; write one SELECT".into());
        }
        let mut rest = tokens.iter();
        if !rest.next().is_some_and(|(_, token)| token.is("select")) {
            return Err("only SELECT can be served".into());
        }
        let mut items = vec![Vec::new()];
        let mut depth = 0i32;
        loop {
            let (_, token) = rest.next().ok_or("it lacks FROM and a table")?;
            match token {
                Token::Symbol('(') => depth += 1,
                Token::Symbol(')') => depth -= 1,
                Token::Word(word) if word == "from" && depth == 0 => break,
                Token::Word(word) if word == "json" && items == [[]] => {
                    return Err("leave JSON out: rows become JSON by themselves".into());
                }
                Token::Word(word) if word == "distinct" && items == [[]] => continue,
                Token::Symbol(',') if depth == 0 => {
                    items.push(Vec::new());
                    continue;
                }
                _ => {}
            }
            if let Some(item) = items.last_mut() {
                item.push(token.clone());
            }
        }
        let mut rest = rest.peekable();
        let (table_at, first) = rest.next().ok_or("it lacks a table after FROM")?;
        let first = first.name().ok_or("after FROM comes the name of a table")?;
        let (keyspace, table) = match rest.next_if(|(_, token)| *token == Token::Symbol('.')) {
            None => (None, first),
            Some(_) => {
                let table = rest.next().and_then(|(_, token)| token.name());
                (
                    Some(first.to_owned()),
                    table.ok_or("after the keyspace's `.` comes a table")?,
                )
            }
        };
        let after = rest.peek().map(|(_, token)| token);
        if after.is_some_and(|token| !AFTER_TABLE.iter().any(|word| token.is(word))) {
            return Err(format!(
                "what follows the table `{table}` isn't CQL; a SELECT reads one table"
            ));
        }
        Ok(Select {
            keyspace,
            table: table.to_owned(),
            markers: markers(tokens),
            items,
            text: text[..end].trim_end().to_owned(),
            table_at: *table_at,
        })
    }

    /// The statement with the keyspace in it.
    pub fn statement(&self, keyspace: &str) -> String {
        if self.keyspace.is_some() {
            return self.text.clone();
        }
        let (before, after) = self.text.split_at(self.table_at);
        format!("{before}\"{keyspace}\".{after}")
    }

    /// The result's columns, as far as that is plain to see: `None` where one isn't.
    pub fn columns(&self, table: &TableSpec) -> Result<Option<Vec<(String, CqlType)>>, String> {
        let mut columns = Some(Vec::new());
        let mut add = |column: Option<(String, CqlType)>| match (column, &mut columns) {
            (Some(column), Some(known)) => known.push(column),
            _ => columns = None,
        };
        for item in &self.items {
            let (expression, alias) = match item.as_slice() {
                [expression @ .., as_, alias] if as_.is("as") && !expression.is_empty() => {
                    (expression, alias.name())
                }
                whole => (whole, None),
            };
            match expression {
                [Token::Symbol('*')] => {
                    for column in &table.columns {
                        add(Some((column.name.clone(), column.cql_type.clone())));
                    }
                }
                [column] if column.name().is_some() => {
                    let name = column.name().unwrap_or_default();
                    let cql_type = column_type(table, name)?;
                    add(Some((alias.unwrap_or(name).to_owned(), cql_type)));
                }
                [count, Token::Symbol('('), .., Token::Symbol(')')] if count.is("count") => {
                    add(Some((alias.unwrap_or("count").to_owned(), CqlType::BigInt)));
                }
                [function, Token::Symbol('('), column, Token::Symbol(')')]
                    if function.is("min") || function.is("max") =>
                {
                    let of = column.name().and_then(|name| column_type(table, name).ok());
                    add(alias.map(str::to_owned).zip(of));
                }
                _ => add(None),
            }
        }
        Ok(columns)
    }
}

fn column_type(table: &TableSpec, name: &str) -> Result<CqlType, String> {
    let found = table.columns.iter().find(|column| column.name == name);
    found.map(|column| column.cql_type.clone()).ok_or_else(|| {
        let hint = similar(
            name,
            table.columns.iter().map(|column| column.name.as_str()),
        );
        let hint = hint
            .map(|name| format!("; did you mean `{name}`?"))
            .unwrap_or_default();
        format!("table {} has no column `{name}`{hint}", table.name)
    })
}

impl Marker {
    /// The type that Cassandra takes here, as far as it is plain to see.
    pub fn cql_type(&self, table: Option<&TableSpec>) -> Result<Option<CqlType>, String> {
        match (&self.compared, table) {
            (Compared::Limit, _) => Ok(Some(CqlType::Int)),
            (Compared::Column(name), Some(table)) => column_type(table, name).map(Some),
            _ => Ok(None),
        }
    }
}

/// The markers, and what they are compared with.
fn markers(tokens: &[(usize, Token)]) -> Vec<Marker> {
    let is_comparison = |token: &Token| matches!(token, Token::Symbol('=' | '<' | '>'));
    let mut markers = Vec::new();
    for (index, (_, token)) in tokens.iter().enumerate() {
        let Token::Marker(name) = token else { continue };
        let mut before = tokens[..index]
            .iter()
            .rev()
            .map(|(_, token)| token)
            .peekable();
        let mut operators = 0;
        while before.next_if(|token| is_comparison(token)).is_some() {
            operators += 1;
        }
        // What comes after the marker may be part of the term, as in `:now - 2d`.
        let ends = match tokens.get(index + 1) {
            None => true,
            Some((_, next)) => next.is("and") || AFTER_TABLE.iter().any(|word| next.is(word)),
        };
        let left = before.next();
        let start = before.next();
        let compared = match left {
            Some(limit) if operators == 0 && limit.is("limit") => Compared::Limit,
            Some(column) if operators > 0 && ends && starts_condition(start) => {
                let name = column.name().map(str::to_owned);
                name.map_or(Compared::Unknown, Compared::Column)
            }
            _ => Compared::Unknown,
        };
        markers.push(Marker {
            name: name.clone(),
            compared,
        });
    }
    markers
}

fn starts_condition(token: Option<&Token>) -> bool {
    token.is_some_and(|token| token.is("where") || token.is("and"))
}

/// The tokens, each with its place.
fn tokens(text: &str) -> Result<Vec<(usize, Token)>, String> {
    let mut tokens = Vec::new();
    let mut at = 0;
    while let Some(first) = text[at..].chars().next() {
        let rest = &text[at..];
        let (token, length) = match first {
            _ if first.is_whitespace() => (None, first.len_utf8()),
            '-' if rest.starts_with("--") => (None, line(rest)),
            '/' if rest.starts_with("//") => (None, line(rest)),
            '/' if rest.starts_with("/*") => {
                let end = rest.find("*/").ok_or("a comment isn't closed with `*/`")?;
                (None, end + 2)
            }
            '$' if rest.starts_with("$$") => {
                let end = rest[2..]
                    .find("$$")
                    .ok_or("a string isn't closed with `$$`")?;
                (Some(Token::Constant), end + 4)
            }
            '\'' => (Some(Token::Constant), quoted(rest, '\'')?.1),
            '"' => {
                let (name, length) = quoted(rest, '"')?;
                (Some(Token::Quoted(name)), length)
            }
            ':' if rest[1..].starts_with(|c: char| c.is_ascii_alphabetic()) => {
                let length = word(&rest[1..]);
                let name = rest[1..=length].to_ascii_lowercase();
                (Some(Token::Marker(name)), length + 1)
            }
            '?' => return Err("`?` has no name; write `:name` for a parameter".into()),
            _ if first.is_ascii_alphabetic() => {
                let length = word(rest);
                (
                    Some(Token::Word(rest[..length].to_ascii_lowercase())),
                    length,
                )
            }
            _ if first.is_ascii_digit() => (Some(Token::Constant), word(rest)),
            _ => (Some(Token::Symbol(first)), first.len_utf8()),
        };
        tokens.extend(token.map(|token| (at, token)));
        at += length;
    }
    Ok(tokens)
}

/// Length of a comment to the end of its line.
fn line(text: &str) -> usize {
    text.find(['\n', '\r']).unwrap_or(text.len())
}

/// Length of a word or a number.
fn word(text: &str) -> usize {
    text.find(|c: char| !c.is_ascii_alphanumeric() && c != '_')
        .unwrap_or(text.len())
}

/// What stands in quotes, and its length with them; a doubled quote stands for itself.
fn quoted(text: &str, quote: char) -> Result<(String, usize), String> {
    let mut content = String::new();
    let mut characters = text.char_indices().skip(1).peekable();
    while let Some((at, character)) = characters.next() {
        if character != quote {
            content.push(character);
        } else if characters.next_if(|(_, next)| *next == quote).is_some() {
            content.push(quote);
        } else {
            return Ok((content, at + 1));
        }
    }
    Err(format!("a {quote} isn't closed"))
}
