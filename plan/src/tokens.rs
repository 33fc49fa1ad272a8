//! What is refused before SQL is parsed, because the parser, or what comes after it, would take
//! too much stack or time for it: depth, and the places where the parser tries many readings.

use datafusion::sql::sqlparser::{
    keywords::Keyword,
    tokenizer::{Token, TokenWithSpan},
};

use crate::{
    error::QueryProblem,
    query::{Placed, place},
};

/// Operators, keywords and parentheses within one another: what follows recurses over them, here
/// and for every batch, on stacks of 2 MiB, of which so many take less than 1.
pub(crate) const MAX_DEPTH: usize = 250;

/// Lookups that a query may join.
const MAX_JOINS: usize = 8;

/// What a token does to the depth of the expression that the parser will build.
enum Step {
    Opens,
    Closes,
    /// The next link of a chain such as `a OR b OR c`, each of which is a level.
    Links,
    EndsChain,
    Stays,
}

fn step(token: &Token) -> Step {
    match token {
        Token::LParen | Token::LBracket | Token::LBrace => Step::Opens,
        Token::RParen | Token::RBracket | Token::RBrace => Step::Closes,
        Token::Comma | Token::SemiColon => Step::EndsChain,
        Token::Word(word) => match word.keyword {
            Keyword::SELECT | Keyword::FROM | Keyword::WHERE => Step::EndsChain,
            Keyword::WHEN | Keyword::THEN | Keyword::ELSE => Step::EndsChain,
            Keyword::NoKeyword => Step::Stays,
            _ => Step::Links,
        },
        Token::Whitespace(_) | Token::Number(..) | Token::SingleQuotedString(_) => Step::Stays,
        Token::Period | Token::EOF => Step::Stays,
        // Whatever else there is may be an operator.
        _ => Step::Links,
    }
}

pub(crate) fn check_tokens(tokens: &[TokenWithSpan]) -> Placed<()> {
    // Links of the chain at each level of parentheses, and their sum.
    let mut links = vec![0usize];
    let mut depth = 0;
    let mut first = true;
    let mut in_from = false;
    let mut joins = 0;
    let mut before = None;
    for TokenWithSpan { token, span } in tokens {
        let refuse = |problem| Err((place(*span), problem));
        let is_top = links.len() == 1;
        match keyword(token) {
            Some(Keyword::WITH) if first => return refuse(QueryProblem::Unsupported("WITH")),
            Some(Keyword::SELECT) if !is_top => {
                return refuse(QueryProblem::Unsupported("a subquery"));
            }
            Some(Keyword::SELECT) => {}
            _ if first && is_code(token) => return refuse(QueryProblem::NotOneSelect),
            Some(Keyword::FROM) if before == Some(Keyword::DISTINCT) => {}
            Some(Keyword::FROM) if is_top => in_from = true,
            Some(Keyword::JOIN) if is_top => {
                joins += 1;
                if joins > MAX_JOINS {
                    return refuse(QueryProblem::TooManyJoins(MAX_JOINS));
                }
                in_from = true;
            }
            Some(Keyword::ON | Keyword::USING) if is_top => in_from = false,
            Some(Keyword::WHERE | Keyword::GROUP | Keyword::HAVING) if is_top => in_from = false,
            _ if in_from && *token == Token::LParen => {
                return refuse(QueryProblem::Unsupported(
                    "a query or a function after FROM",
                ));
            }
            _ => {}
        }
        first &= !is_code(token);
        if is_code(token) {
            before = keyword(token);
        }

        if let Some(here) = links.last_mut() {
            match step(token) {
                Step::EndsChain => depth -= std::mem::take(here),
                Step::Opens | Step::Links => {
                    *here += 1;
                    depth += 1;
                }
                Step::Closes | Step::Stays => {}
            }
        }
        match step(token) {
            Step::Opens => links.push(0),
            Step::Closes if !is_top => depth -= links.pop().unwrap_or(0),
            _ => {}
        }
        if depth > MAX_DEPTH {
            return refuse(QueryProblem::TooDeep(MAX_DEPTH));
        }
    }
    if first {
        return Err((None, QueryProblem::NotOneSelect));
    }
    Ok(())
}

/// Whether SQL of any form takes too much stack.
pub(crate) fn is_too_deep(tokens: &[Token]) -> bool {
    let mut links = vec![0usize];
    let mut depth = 0usize;
    for token in tokens {
        match (step(token), links.last_mut()) {
            (Step::EndsChain, Some(here)) => depth -= std::mem::take(here),
            (Step::Opens | Step::Links, Some(here)) => {
                *here += 1;
                depth += 1;
            }
            _ => {}
        }
        match step(token) {
            Step::Opens => links.push(0),
            Step::Closes if links.len() > 1 => depth -= links.pop().unwrap_or(0),
            _ => {}
        }
        if depth > MAX_DEPTH {
            return true;
        }
    }
    false
}

fn is_code(token: &Token) -> bool {
    !matches!(token, Token::Whitespace(_) | Token::EOF)
}

/// The keyword that a token is. A word in quotes is none.
fn keyword(token: &Token) -> Option<Keyword> {
    match token {
        Token::Word(word) if word.keyword != Keyword::NoKeyword => Some(word.keyword),
        _ => None,
    }
}
