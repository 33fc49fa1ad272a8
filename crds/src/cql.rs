//! CQL types, parsed once at the edge and compared by meaning (`varchar` is `text`), and names.

use std::{borrow::Cow, fmt, str::FromStr};

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A CQL type that a column can have.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum CqlType {
    Ascii,
    BigInt,
    Blob,
    Boolean,
    Date,
    Decimal,
    Double,
    Duration,
    Float,
    Inet,
    Int,
    SmallInt,
    Text,
    Time,
    Timestamp,
    TimeUuid,
    TinyInt,
    Uuid,
    VarInt,
    List(Box<CqlType>),
    Set(Box<CqlType>),
    Map(Box<CqlType>, Box<CqlType>),
    Frozen(Box<CqlType>),
    Tuple(Vec<CqlType>),
}

/// Why a text isn't a CQL type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InvalidCqlType(String);

impl fmt::Display for InvalidCqlType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl std::error::Error for InvalidCqlType {}

const SIMPLE: [(&str, CqlType); 20] = [
    ("ascii", CqlType::Ascii),
    ("bigint", CqlType::BigInt),
    ("blob", CqlType::Blob),
    ("boolean", CqlType::Boolean),
    ("date", CqlType::Date),
    ("decimal", CqlType::Decimal),
    ("double", CqlType::Double),
    ("duration", CqlType::Duration),
    ("float", CqlType::Float),
    ("inet", CqlType::Inet),
    ("int", CqlType::Int),
    ("smallint", CqlType::SmallInt),
    ("text", CqlType::Text),
    ("varchar", CqlType::Text),
    ("time", CqlType::Time),
    ("timestamp", CqlType::Timestamp),
    ("timeuuid", CqlType::TimeUuid),
    ("tinyint", CqlType::TinyInt),
    ("uuid", CqlType::Uuid),
    ("varint", CqlType::VarInt),
];

/// Types nested deeper than this are refused, so that no input can exhaust the stack.
const MAX_DEPTH: usize = 16;

impl FromStr for CqlType {
    type Err = InvalidCqlType;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        parse(text, 0)
    }
}

fn parse(text: &str, depth: usize) -> Result<CqlType, InvalidCqlType> {
    let text = text.trim();
    if depth > MAX_DEPTH {
        return Err(InvalidCqlType(format!(
            "a CQL type may be nested {MAX_DEPTH} levels deep at most"
        )));
    }
    let Some((name, rest)) = text.split_once('<') else {
        let lower = text.to_ascii_lowercase();
        let found = SIMPLE.iter().find(|(name, _)| *name == lower);
        return found.map(|(_, cql_type)| cql_type.clone()).ok_or_else(|| {
            let names: Vec<_> = SIMPLE.iter().map(|(name, _)| *name).collect();
            let names = names.join(", ");
            InvalidCqlType(format!(
                "`{text}` is not a CQL type; use one of {names}, or list<>, set<>, map<>, tuple<> or frozen<> of them"
            ))
        });
    };
    let inner = rest
        .strip_suffix('>')
        .ok_or_else(|| InvalidCqlType(format!("`{text}` lacks its closing `>`")))?;
    let arguments = split_arguments(inner)
        .into_iter()
        .map(|argument| parse(argument, depth + 1))
        .collect::<Result<Vec<_>, _>>()?;
    let name = name.trim().to_ascii_lowercase();
    let count = arguments.len();
    let mut arguments = arguments.into_iter().map(Box::new);
    let parsed = match (name.as_str(), count) {
        ("list", 1) => arguments.next().map(CqlType::List),
        ("set", 1) => arguments.next().map(CqlType::Set),
        ("frozen", 1) => arguments.next().map(CqlType::Frozen),
        ("map", 2) => arguments
            .next()
            .zip(arguments.next())
            .map(|(key, value)| CqlType::Map(key, value)),
        ("tuple", 1..) => Some(CqlType::Tuple(
            arguments.map(|argument| *argument).collect(),
        )),
        _ => None,
    };
    parsed.ok_or_else(|| {
        InvalidCqlType(format!(
            "`{text}`: there is no type `{name}<>` with {count} arguments; there are list<T>, set<T>, map<K, V>, tuple<T, ...> and frozen<T>"
        ))
    })
}

/// Splits at the commas that aren't within `<>`.
fn split_arguments(text: &str) -> Vec<&str> {
    let mut depth = 0usize;
    let mut start = 0;
    let mut arguments = Vec::new();
    for (position, character) in text.char_indices() {
        match character {
            '<' => depth += 1,
            '>' => depth = depth.saturating_sub(1),
            ',' if depth == 0 => {
                arguments.push(&text[start..position]);
                start = position + 1;
            }
            _ => {}
        }
    }
    arguments.push(&text[start..]);
    arguments
}

impl fmt::Display for CqlType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CqlType::List(inner) => write!(f, "list<{inner}>"),
            CqlType::Set(inner) => write!(f, "set<{inner}>"),
            CqlType::Frozen(inner) => write!(f, "frozen<{inner}>"),
            CqlType::Map(key, value) => write!(f, "map<{key}, {value}>"),
            CqlType::Tuple(members) => {
                let members: Vec<_> = members.iter().map(CqlType::to_string).collect();
                write!(f, "tuple<{}>", members.join(", "))
            }
            simple => {
                let found = SIMPLE.iter().find(|(_, cql_type)| cql_type == simple);
                f.write_str(found.map_or("", |(name, _)| name))
            }
        }
    }
}

impl Serialize for CqlType {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for CqlType {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

impl JsonSchema for CqlType {
    fn schema_name() -> Cow<'static, str> {
        "CqlType".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "type": "string",
            "minLength": 1,
            "maxLength": 200,
            "pattern": "^(?i:frozen|list|set|map|tuple|ascii|bigint|blob|boolean|date|decimal|double|duration|float|inet|int|smallint|text|varchar|time|timestamp|timeuuid|tinyint|uuid|varint)(\\s*<.*>)?$",
        })
    }
}

/// The name of a keyspace, table or column in quotes: so it can be any, and keeps its
/// upper case.
pub fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quote_in_a_name_is_doubled() {
        assert_eq!(quoted("Users"), r#""Users""#);
        assert_eq!(quoted(r#"a"b"#), r#""a""b""#);
    }

    #[test]
    fn parses_and_prints_every_form() {
        for (text, printed) in [
            ("TEXT", "text"),
            ("varchar", "text"),
            ("list< int >", "list<int>"),
            (
                "map<text,frozen<list<uuid>>>",
                "map<text, frozen<list<uuid>>>",
            ),
            (
                "tuple<int, map<text, text>, blob>",
                "tuple<int, map<text, text>, blob>",
            ),
        ] {
            assert_eq!(
                text.parse::<CqlType>().unwrap().to_string(),
                printed,
                "{text}"
            );
        }
    }

    #[test]
    fn says_what_is_wrong() {
        let deep = format!("{}int{}", "list<".repeat(1000), ">".repeat(1000));
        for (text, says) in [
            ("string", "is not a CQL type"),
            ("list<int", "closing"),
            ("map<int>", "1 arguments"),
            ("counter", "is not a CQL type"),
            ("list<>", "is not a CQL type"),
            (deep.as_str(), "levels deep"),
        ] {
            let error = text.parse::<CqlType>().unwrap_err().to_string();
            assert!(error.contains(says), "{text}: {error}");
        }
    }
}
