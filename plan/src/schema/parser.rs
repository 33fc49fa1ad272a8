//! The parser of `spec.schema`: our own, so that every word (`date`, `order`, `location`) can be a
//! field, and every error has its place.

use datafusion::sql::sqlparser::{
    dialect::GenericDialect,
    tokenizer::{Location, Token, Tokenizer, Word},
};

use super::{SchemaField, SchemaType};
use crate::error::{PlanError, Position, SchemaProblem};

/// Types nested deeper than this are refused, so that no input can exhaust the stack.
const MAX_DEPTH: usize = 16;
/// Fields at all levels together.
const MAX_FIELDS: usize = 2_000;

impl SchemaProblem {
    pub(super) fn at(self, at: Position) -> PlanError {
        PlanError::Schema { at, problem: self }
    }
}

impl From<Location> for Position {
    fn from(location: Location) -> Self {
        Position {
            line: location.line,
            column: location.column,
        }
    }
}

pub(super) struct Parser {
    /// What is to be parsed, last token first; never empty, as the end is a token too.
    rest: Vec<(Token, Position)>,
    fields: usize,
}

impl Parser {
    pub(super) fn new(text: &str) -> Result<Self, PlanError> {
        let tokens = Tokenizer::new(&GenericDialect {}, text)
            .tokenize_with_location()
            .map_err(|error| SchemaProblem::Token(error.message).at(error.location.into()))?;
        let mut rest = Vec::with_capacity(tokens.len() + 1);
        let mut end = Position { line: 1, column: 1 };
        for token in tokens {
            let at = token.span.start.into();
            end = token.span.end.into();
            match token.token {
                Token::Whitespace(_) | Token::EOF => {}
                // The end of two types at once.
                Token::ShiftRight => rest.extend([(Token::Gt, at), (Token::Gt, at)]),
                token => rest.push((token, at)),
            }
        }
        rest.push((Token::EOF, end));
        rest.reverse();
        Ok(Parser { rest, fields: 0 })
    }

    fn peek(&self) -> (&Token, Position) {
        let end = (&Token::EOF, Position { line: 1, column: 1 });
        self.rest.last().map_or(end, |(token, at)| (token, *at))
    }

    /// Takes the next token if it is this one.
    fn take(&mut self, token: &Token) -> bool {
        let found = self.peek().0 == token;
        if found && *token != Token::EOF {
            self.rest.pop();
        }
        found
    }

    fn take_word(&mut self) -> Option<Word> {
        let Token::Word(word) = self.peek().0 else {
            return None;
        };
        let word = word.clone();
        self.rest.pop();
        Some(word)
    }

    /// Takes the next word if it is this one, in any case.
    fn take_keyword(&mut self, keyword: &str) -> bool {
        let found =
            matches!(self.peek().0, Token::Word(word) if word.value.eq_ignore_ascii_case(keyword));
        if found {
            self.rest.pop();
        }
        found
    }

    fn expect(&mut self, token: &Token, expected: &'static str) -> Result<(), PlanError> {
        if self.take(token) {
            return Ok(());
        }
        Err(self.unexpected(expected))
    }

    fn unexpected(&self, expected: &'static str) -> PlanError {
        let (token, at) = self.peek();
        let found = match token {
            Token::EOF => "the end".to_owned(),
            token => format!("`{token}`"),
        };
        SchemaProblem::Unexpected { expected, found }.at(at)
    }

    /// `name TYPE, name TYPE, ...` up to and with the end, each with its place.
    pub(super) fn fields(
        &mut self,
        end: &Token,
        depth: usize,
    ) -> Result<Vec<(SchemaField, Position)>, PlanError> {
        let mut fields: Vec<(SchemaField, Position)> = Vec::new();
        loop {
            let at = self.peek().1;
            let field = self.field(depth)?;
            if fields.iter().any(|(other, _)| other.name == field.name) {
                return Err(SchemaProblem::Duplicate(field.name).at(at));
            }
            fields.push((field, at));
            if self.take(end) {
                return Ok(fields);
            }
            let expected = match end {
                Token::EOF => "`,` or the end",
                _ => "`,` or `>`",
            };
            if let (Token::Word(word), at) = self.peek() {
                let found = word.to_string();
                return Err(SchemaProblem::Constraint { expected, found }.at(at));
            }
            self.expect(&Token::Comma, expected)?;
        }
    }

    fn field(&mut self, depth: usize) -> Result<SchemaField, PlanError> {
        let at = self.peek().1;
        let Some(Word { value: name, .. }) = self.take_word() else {
            return Err(
                self.unexpected("the name of a column (in double quotes if it isn't a word)")
            );
        };
        if name.is_empty() {
            return Err(SchemaProblem::EmptyName.at(at));
        }
        self.fields += 1;
        if self.fields > MAX_FIELDS {
            return Err(SchemaProblem::TooManyFields(MAX_FIELDS).at(at));
        }
        // Spark writes `name: TYPE` within a STRUCT.
        self.take(&Token::Colon);
        let data_type = self.data_type(&name, depth)?;
        Ok(SchemaField { name, data_type })
    }

    fn data_type(&mut self, column: &str, depth: usize) -> Result<SchemaType, PlanError> {
        let at = self.peek().1;
        let Some(word) = self.take_word() else {
            return Err(self.unexpected("a type"));
        };
        if depth > MAX_DEPTH {
            return Err(SchemaProblem::TooDeep(MAX_DEPTH).at(at));
        }
        let name = word.value.to_ascii_uppercase();
        Ok(match name.as_str() {
            "BOOLEAN" | "BOOL" => SchemaType::Boolean,
            "TINYINT" => SchemaType::TinyInt,
            "SMALLINT" => SchemaType::SmallInt,
            "INT" | "INTEGER" => SchemaType::Int,
            "BIGINT" | "LONG" => SchemaType::BigInt,
            "FLOAT" | "REAL" => SchemaType::Float,
            "DOUBLE" => {
                self.take_keyword("PRECISION");
                SchemaType::Double
            }
            "DECIMAL" | "NUMERIC" => self.decimal(at)?,
            "TEXT" | "STRING" => SchemaType::Text,
            "VARCHAR" | "CHAR" => {
                self.arguments()?;
                SchemaType::Text
            }
            "UUID" => SchemaType::Uuid,
            "DATE" => SchemaType::Date,
            "TIMESTAMP" | "TIMESTAMP_LTZ" | "TIMESTAMPTZ" => {
                self.arguments()?;
                self.time_zone()?;
                SchemaType::Timestamp
            }
            "STRUCT" | "ROW" => {
                self.expect(&Token::Lt, "`<`")?;
                let fields = self.fields(&Token::Gt, depth + 1)?;
                SchemaType::Struct(fields.into_iter().map(|(field, _)| field).collect())
            }
            "ARRAY" => {
                self.expect(&Token::Lt, "`<`")?;
                let element = self.data_type(column, depth + 1)?;
                self.expect(&Token::Gt, "`>`")?;
                SchemaType::Array(Box::new(element))
            }
            "BYTES" | "BINARY" | "VARBINARY" | "BLOB" => {
                return Err(SchemaProblem::Bytes(name, column.to_owned()).at(at));
            }
            _ => return Err(SchemaProblem::UnknownType(word.to_string()).at(at)),
        })
    }

    /// `(10)`, `(10, 2)` or nothing.
    fn arguments(&mut self) -> Result<Vec<u64>, PlanError> {
        let mut arguments = Vec::new();
        if !self.take(&Token::LParen) {
            return Ok(arguments);
        }
        loop {
            let Token::Number(digits, _) = self.peek().0 else {
                return Err(self.unexpected("a number"));
            };
            let Ok(number) = digits.parse() else {
                return Err(self.unexpected("a whole number"));
            };
            arguments.push(number);
            self.rest.pop();
            if self.take(&Token::RParen) {
                return Ok(arguments);
            }
            self.expect(&Token::Comma, "`,` or `)`")?;
        }
    }

    /// Without arguments DECIMAL(10, 0), as Flink and Spark have it.
    fn decimal(&mut self, at: Position) -> Result<SchemaType, PlanError> {
        let (precision, scale) = match *self.arguments()? {
            [] => (10, 0),
            [precision] => (precision, 0),
            [precision, scale] => (precision, scale),
            _ => return Err(SchemaProblem::Decimal.at(at)),
        };
        match (u8::try_from(precision), i8::try_from(scale)) {
            (Ok(precision @ 1..=38), Ok(scale)) if scale <= precision as i8 => {
                Ok(SchemaType::Decimal { precision, scale })
            }
            _ => Err(SchemaProblem::Decimal.at(at)),
        }
    }

    /// `WITH TIME ZONE`, `WITHOUT TIME ZONE` or nothing: a timestamp is a point in time either way.
    fn time_zone(&mut self) -> Result<(), PlanError> {
        if !self.take_keyword("WITH") && !self.take_keyword("WITHOUT") {
            return Ok(());
        }
        self.take_keyword("LOCAL");
        if self.take_keyword("TIME") && self.take_keyword("ZONE") {
            return Ok(());
        }
        Err(self.unexpected("TIME ZONE"))
    }
}
