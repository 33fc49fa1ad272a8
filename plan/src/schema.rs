//! The shape of a record: `spec.schema` parsed.
//!
//! Field names are JSON's: their case counts, written in quotes or not. The parser is our own, so
//! that every word (`date`, `order`, `location`) can be a field, and every error has its place.

use std::sync::Arc;

use datafusion::{
    arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit},
    sql::sqlparser::{
        dialect::GenericDialect,
        tokenizer::{Location, Token, Tokenizer, Word},
    },
};
use millstream_api::cql::CqlType;

use crate::{
    error::{PlanError, Position, SchemaProblem},
    input::{ROW_COLUMN, VirtualColumn},
};

/// Types nested deeper than this are refused, so that no input can exhaust the stack.
const MAX_DEPTH: usize = 16;
/// Fields at all levels together.
const MAX_FIELDS: usize = 2_000;
/// As the DataPipeline's own schema has it.
const MAX_BYTES: usize = 65_536;

/// The shape of a record. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordSchema {
    fields: Arc<[SchemaField]>,
}

/// A field of a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SchemaField {
    /// Name in JSON.
    pub name: String,
    /// Type of the value. It may always be null.
    pub data_type: SchemaType,
}

/// The type of a field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SchemaType {
    Boolean,
    TinyInt,
    SmallInt,
    Int,
    BigInt,
    Float,
    Double,
    Decimal {
        precision: u8,
        scale: i8,
    },
    /// `TEXT`, `STRING`, `VARCHAR(n)` and `CHAR(n)`; the length is not enforced.
    Text,
    /// Text in Arrow, `uuid` in Cassandra.
    Uuid,
    Date,
    /// Microseconds, UTC.
    Timestamp,
    Struct(Vec<SchemaField>),
    Array(Box<SchemaType>),
}

/// The type of a timestamp in Arrow: microseconds, UTC.
pub fn timestamp() -> DataType {
    DataType::Timestamp(TimeUnit::Microsecond, Some("+00:00".into()))
}

impl RecordSchema {
    /// Parses SQL column definitions, such as `id UUID, name STRUCT<first TEXT, last TEXT>`.
    pub fn parse(text: &str) -> Result<Self, PlanError> {
        let start = Position { line: 1, column: 1 };
        if text.len() > MAX_BYTES {
            return Err(SchemaProblem::TooLong(MAX_BYTES).at(start));
        }
        let mut parser = Parser::new(text)?;
        let fields = parser.fields(&Token::EOF, 0)?;
        for (field, at) in &fields {
            let is_virtual = VirtualColumn::ALL
                .map(VirtualColumn::name)
                .contains(&field.name.as_str());
            if is_virtual || field.name == ROW_COLUMN {
                return Err(SchemaProblem::Reserved(field.name.clone()).at(*at));
            }
        }
        Ok(RecordSchema {
            fields: fields.into_iter().map(|(field, _)| field).collect(),
        })
    }

    /// The columns, in the order of the text.
    pub fn fields(&self) -> &[SchemaField] {
        &self.fields
    }

    /// The record's columns in Arrow, without virtual columns.
    pub fn arrow(&self) -> SchemaRef {
        let fields: Vec<Field> = self.fields.iter().map(SchemaField::arrow).collect();
        Arc::new(Schema::new(fields))
    }

    /// The columns that are needed to read these paths, without what else is in their structs.
    pub(crate) fn pruned(&self, paths: &[&[String]]) -> Vec<Field> {
        prune(&self.fields, paths)
    }
}

fn prune(fields: &[SchemaField], paths: &[&[String]]) -> Vec<Field> {
    let pruned = fields.iter().filter_map(|field| {
        let below: Vec<&[String]> = paths
            .iter()
            .filter_map(|path| path.split_first())
            .filter_map(|(first, rest)| (*first == field.name).then_some(rest))
            .collect();
        match &field.data_type {
            _ if below.is_empty() => None,
            SchemaType::Struct(children) if below.iter().all(|path| !path.is_empty()) => {
                let children = DataType::Struct(prune(children, &below).into());
                Some(Field::new(&field.name, children, true))
            }
            _ => Some(field.arrow()),
        }
    });
    pruned.collect()
}

impl SchemaField {
    fn arrow(&self) -> Field {
        Field::new(&self.name, self.data_type.arrow(), true)
    }
}

impl SchemaType {
    /// The type in Arrow.
    pub fn arrow(&self) -> DataType {
        match self {
            SchemaType::Boolean => DataType::Boolean,
            SchemaType::TinyInt => DataType::Int8,
            SchemaType::SmallInt => DataType::Int16,
            SchemaType::Int => DataType::Int32,
            SchemaType::BigInt => DataType::Int64,
            SchemaType::Float => DataType::Float32,
            SchemaType::Double => DataType::Float64,
            SchemaType::Decimal { precision, scale } => DataType::Decimal128(*precision, *scale),
            SchemaType::Text | SchemaType::Uuid => DataType::Utf8,
            SchemaType::Date => DataType::Date32,
            SchemaType::Timestamp => timestamp(),
            SchemaType::Struct(fields) => {
                DataType::Struct(fields.iter().map(SchemaField::arrow).collect())
            }
            SchemaType::Array(element) => {
                DataType::List(Arc::new(Field::new_list_field(element.arrow(), true)))
            }
        }
    }

    /// The CQL type where it isn't just what follows from the type in Arrow.
    pub(crate) fn own_cql_type(&self) -> Option<CqlType> {
        match self {
            SchemaType::Uuid => Some(CqlType::Uuid),
            SchemaType::Array(element) => element.own_cql_type().map(Box::new).map(CqlType::List),
            _ => None,
        }
    }
}

impl SchemaProblem {
    fn at(self, at: Position) -> PlanError {
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

struct Parser {
    /// What is to be parsed, last token first; never empty, as the end is a token too.
    rest: Vec<(Token, Position)>,
    fields: usize,
}

impl Parser {
    fn new(text: &str) -> Result<Self, PlanError> {
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
    fn fields(
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
