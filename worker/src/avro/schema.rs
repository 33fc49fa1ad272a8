//! Avro schemas of any kind, parsed.

use std::collections::HashMap;

use serde_json::{Map, Value};

/// Schemas nested deeper than this are refused, so that no input can exhaust the stack.
const MAX_DEPTH: usize = 64;

/// A schema, with the definitions that it refers to.
#[derive(Debug)]
pub struct Schema {
    pub root: Node,
    /// Records by their index: they may refer to themselves.
    pub records: Vec<Vec<Field>>,
}

/// A field of a record.
#[derive(Debug)]
pub struct Field {
    pub name: String,
    pub node: Node,
}

/// What a value is.
#[derive(Clone, Debug, PartialEq)]
pub enum Node {
    Null,
    Boolean,
    Int,
    Long,
    Float,
    Double,
    Bytes,
    String,
    Fixed(usize),
    /// Of so many bytes, or with its length before it.
    Decimal {
        size: Option<usize>,
        scale: usize,
    },
    /// Sixteen bytes.
    Uuid,
    /// Days since 1970.
    Date,
    /// Since midnight; so many in a second.
    Time {
        long: bool,
        per_second: i64,
    },
    /// Since 1970; so many in a second.
    Timestamp {
        per_second: i64,
        utc: bool,
    },
    Enum(Vec<String>),
    Array(Box<Node>),
    Map(Box<Node>),
    Union(Vec<Node>),
    /// Index in [`Schema::records`].
    Record(usize),
}

impl Schema {
    /// Parses a schema.
    pub fn parse(json: &Value) -> Result<Schema, String> {
        let mut parser = Parser::default();
        let root = parser.node(json, "", 0)?;
        Ok(Schema {
            root,
            records: parser.records,
        })
    }
}

#[derive(Default)]
struct Parser {
    records: Vec<Vec<Field>>,
    named: HashMap<String, Node>,
}

impl Parser {
    fn node(&mut self, json: &Value, namespace: &str, depth: usize) -> Result<Node, String> {
        if depth > MAX_DEPTH {
            return Err(format!("it is nested deeper than {MAX_DEPTH} levels"));
        }
        match json {
            Value::String(name) => self.by_name(name, namespace),
            Value::Array(branches) => {
                let branches = branches.iter().map(|b| self.node(b, namespace, depth + 1));
                Ok(Node::Union(branches.collect::<Result<_, _>>()?))
            }
            Value::Object(members) => self.object(members, namespace, depth),
            other => Err(format!("{other} isn't a type")),
        }
    }

    fn by_name(&self, name: &str, namespace: &str) -> Result<Node, String> {
        Ok(match name {
            "null" => Node::Null,
            "boolean" => Node::Boolean,
            "int" => Node::Int,
            "long" => Node::Long,
            "float" => Node::Float,
            "double" => Node::Double,
            "bytes" => Node::Bytes,
            "string" => Node::String,
            name => {
                let node = self.named.get(&full_name(name, namespace));
                let node = node.or_else(|| self.named.get(name));
                node.cloned()
                    .ok_or_else(|| format!("the type `{name}` isn't defined"))?
            }
        })
    }

    fn object(
        &mut self,
        members: &Map<String, Value>,
        namespace: &str,
        depth: usize,
    ) -> Result<Node, String> {
        let member = |name: &str| members.get(name).unwrap_or(&Value::Null);
        let logical = member("logicalType").as_str();
        match member("type") {
            Value::String(kind) => match kind.as_str() {
                "record" | "error" => self.record(members, namespace, depth),
                "enum" => {
                    let symbols = member("symbols").as_array().into_iter().flatten();
                    let symbols = symbols.filter_map(Value::as_str).map(str::to_owned);
                    self.define(members, namespace, Node::Enum(symbols.collect()))
                }
                "fixed" => {
                    let size = member("size")
                        .as_u64()
                        .and_then(|size| size.try_into().ok());
                    let size = size.ok_or("a `fixed` has no size")?;
                    let node = match logical {
                        Some("decimal") => decimal(members, Some(size)),
                        Some("uuid") if size == 16 => Node::Uuid,
                        _ => Node::Fixed(size),
                    };
                    self.define(members, namespace, node)
                }
                "array" => {
                    let items = self.node(member("items"), namespace, depth + 1)?;
                    Ok(Node::Array(Box::new(items)))
                }
                "map" => {
                    let values = self.node(member("values"), namespace, depth + 1)?;
                    Ok(Node::Map(Box::new(values)))
                }
                kind => Ok(match logical_node(kind, logical) {
                    Some(node) => node,
                    None if kind == "bytes" && logical == Some("decimal") => decimal(members, None),
                    None => self.by_name(kind, namespace)?,
                }),
            },
            inner => self.node(inner, namespace, depth + 1),
        }
    }

    fn record(
        &mut self,
        members: &Map<String, Value>,
        namespace: &str,
        depth: usize,
    ) -> Result<Node, String> {
        let index = self.records.len();
        self.records.push(Vec::new());
        let node = self.define(members, namespace, Node::Record(index))?;
        let namespace = namespace_of(members, namespace);
        let fields = members.get("fields").and_then(Value::as_array);
        let fields = fields.ok_or("a record has no fields")?;
        let fields = fields.iter().map(|field| {
            let name = field["name"].as_str().ok_or("a field has no name")?;
            Ok(Field {
                name: name.to_owned(),
                node: self.node(&field["type"], &namespace, depth + 1)?,
            })
        });
        self.records[index] = fields.collect::<Result<_, String>>()?;
        Ok(node)
    }

    fn define(
        &mut self,
        members: &Map<String, Value>,
        namespace: &str,
        node: Node,
    ) -> Result<Node, String> {
        let name = members.get("name").and_then(Value::as_str);
        let name = name.ok_or("a named type has no name")?;
        let namespace = namespace_of(members, namespace);
        let full = full_name(name, &namespace);
        self.named.insert(full, node.clone());
        Ok(node)
    }
}

/// The namespace in which a named type, and what is within it, is defined.
fn namespace_of(members: &Map<String, Value>, enclosing: &str) -> String {
    let text = |name: &str| members.get(name).and_then(Value::as_str);
    match text("name").and_then(|name| name.rsplit_once('.')) {
        Some((namespace, _)) => namespace.to_owned(),
        None => text("namespace").unwrap_or(enclosing).to_owned(),
    }
}

fn full_name(name: &str, namespace: &str) -> String {
    match namespace {
        _ if name.contains('.') => name.to_owned(),
        "" => name.to_owned(),
        namespace => format!("{namespace}.{name}"),
    }
}

fn decimal(members: &Map<String, Value>, size: Option<usize>) -> Node {
    let scale = members.get("scale").and_then(Value::as_u64).unwrap_or(0);
    Node::Decimal {
        size,
        scale: usize::try_from(scale).unwrap_or(usize::MAX),
    }
}

/// The logical types that are more than their primitive type; unknown ones are ignored, as Avro
/// wants it.
fn logical_node(kind: &str, logical: Option<&str>) -> Option<Node> {
    const MILLI: i64 = 1_000;
    const MICRO: i64 = 1_000_000;
    const NANO: i64 = 1_000_000_000;
    let timestamp = |per_second, utc| Node::Timestamp { per_second, utc };
    Some(match (kind, logical?) {
        ("int", "date") => Node::Date,
        ("int", "time-millis") => Node::Time {
            long: false,
            per_second: MILLI,
        },
        ("long", "time-micros") => Node::Time {
            long: true,
            per_second: MICRO,
        },
        ("long", "timestamp-millis") => timestamp(MILLI, true),
        ("long", "timestamp-micros") => timestamp(MICRO, true),
        ("long", "timestamp-nanos") => timestamp(NANO, true),
        ("long", "local-timestamp-millis") => timestamp(MILLI, false),
        ("long", "local-timestamp-micros") => timestamp(MICRO, false),
        ("long", "local-timestamp-nanos") => timestamp(NANO, false),
        _ => return None,
    })
}
