//! What can be wrong with a pipeline's schema, SQL and keys, in words for the person who wrote it.

use std::fmt;

use datafusion::common::utils::datafusion_strsim::levenshtein;
use thiserror::Error;

use crate::avro::AvroProblem;

/// A place in a text: both numbers start at 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    pub line: u64,
    pub column: u64,
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}, column {}", self.line, self.column)
    }
}

/// Why a pipeline's schema, SQL or keys can't be accepted.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum PlanError {
    /// `spec.schema` is wrong.
    #[error("schema, {at}: {problem}")]
    Schema {
        at: Position,
        problem: SchemaProblem,
    },
    /// A sink's SQL is wrong; `at` is a place in that sink's `sql`.
    #[error("sink `{sink}`{}: {problem}", comma(.at))]
    Query {
        sink: String,
        at: Option<Position>,
        problem: Box<QueryProblem>,
    },
    /// An expectation of a sink is wrong; `at` is a place in its `check`.
    #[error("sink `{sink}`: expectation `{expectation}`{}: {problem}", comma(.at))]
    Expectation {
        sink: String,
        expectation: String,
        at: Option<Position>,
        problem: Box<QueryProblem>,
    },
    /// A sink's result and its table don't go together; `at` is the column in that sink's `sql`.
    #[error("sink `{sink}`{}: {problem}", comma(.at))]
    Table {
        sink: String,
        at: Option<Position>,
        problem: Box<TableProblem>,
    },
    /// No key would keep the rows of one primary key in one partition.
    #[error(transparent)]
    Key(#[from] KeyProblem),
    /// The schema of a lookup is wrong.
    #[error("lookup `{lookup}`: {problem}")]
    Lookup {
        lookup: String,
        problem: Box<PlanError>,
    },
    /// The records can't be Avro.
    #[error("schema: {0}")]
    Avro(#[from] AvroProblem),
    /// The source can't be read.
    #[error("source: {0}")]
    Source(String),
}

fn comma(at: &Option<Position>) -> String {
    at.map(|at| format!(", {at}")).unwrap_or_default()
}

/// What is wrong with a schema.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum SchemaProblem {
    #[error("{0}")]
    Token(String),
    #[error("expected {expected}, found {found}")]
    Unexpected {
        expected: &'static str,
        found: String,
    },
    #[error(
        "`{0}` is not a type here; use one of TEXT, BOOLEAN, TINYINT, SMALLINT, INT, BIGINT, FLOAT, DOUBLE, DECIMAL(p, s), DATE, TIMESTAMP, UUID, STRUCT<...>, ARRAY<...>"
    )]
    UnknownType(String),
    #[error(
        "`{0}` has no place in JSON; declare the column as TEXT, and decode it in the SQL with decode({1}, 'base64')"
    )]
    Bytes(String, String),
    #[error("DECIMAL takes a precision from 1 to 38, and a scale from 0 to the precision")]
    Decimal,
    #[error("`{0}` is there twice; take one out, or give it another name")]
    Duplicate(String),
    #[error("`{0}` is a virtual column, which every record has already; name the column otherwise")]
    Reserved(String),
    #[error("a name can't be empty")]
    EmptyName,
    #[error(
        "after a type comes {expected}, not `{found}`; a column is a name and a type, and may always be null: say WHERE ... IS NOT NULL in the SQL where it matters"
    )]
    Constraint {
        expected: &'static str,
        found: String,
    },
    #[error(
        "types are nested deeper than {0} levels; declare less of the record, or the inner part as TEXT"
    )]
    TooDeep(usize),
    #[error("there are more than {0} fields; declare those that the SQL reads")]
    TooManyFields(usize),
    #[error("the schema has more than {0} bytes; declare the fields that the SQL reads")]
    TooLong(usize),
}

/// What is wrong with a sink's SQL.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum QueryProblem {
    #[error("{0}")]
    Syntax(String),
    #[error("the SQL has more than {0} bytes; split it over several sinks")]
    TooLong(usize),
    #[error(
        "the expression is too deep: more than {0} operators, keywords and parentheses in one chain; use IN (...) for a long OR, or split the WHERE over several sinks"
    )]
    TooDeep(usize),
    #[error(
        "a sink takes one query, SELECT ... FROM records [JOIN ...] [WHERE ...] [GROUP BY ... [HAVING ...]], and this is not one"
    )]
    NotOneSelect,
    #[error(
        "{0} is not supported; a sink takes SELECT ... FROM records [JOIN ...] [WHERE ...] [GROUP BY ... [HAVING ...]]"
    )]
    Unsupported(&'static str),
    #[error(
        "{0} is not supported; a row is made of a record and the one row that a lookup has for it: write [INNER] JOIN or LEFT JOIN lookup ON record_column = lookup_column"
    )]
    JoinKind(String),
    #[error(
        "after ON come equalities of the lookup's columns with what comes before it, with AND between them, as in r.country = c.code; put other conditions into WHERE, or into a CASE around what is selected"
    )]
    JoinCondition,
    #[error(
        "one side of = must be of `{0}` alone, and the other of the records or of the lookups before it, as in r.country = {0}.code"
    )]
    JoinSides(String),
    #[error("{left} and {right} can't be compared; CAST one of them to the type of the other")]
    JoinTypes { left: String, right: String },
    #[error(
        "after ON a key takes single values, and this is {0}; compare a field or an element of it"
    )]
    JoinKey(String),
    #[error(
        "the query joins more than {0} lookups; put some into one table, or split the SQL over several sinks"
    )]
    TooManyJoins(usize),
    #[error("no lookup `{name}` in spec.lookups, and nothing else can be joined{}", hint(.similar))]
    UnknownLookup {
        name: String,
        similar: Option<String>,
    },
    #[error(
        "the records can't be joined with themselves: a record is seen once, and those to come aren't known; use GROUP BY, or join a table of spec.lookups"
    )]
    SelfJoin,
    #[error("`{0}` stands for two tables; give one of them another name with AS")]
    DuplicateTable(String),
    #[error(
        "`{0}` is a field of the records that has fields of its own; give the lookup another name with AS"
    )]
    TableIsField(String),
    #[error("no column `{name}` in the lookup `{lookup}`{}", hint(.similar))]
    UnknownLookupColumn {
        lookup: String,
        name: String,
        similar: Option<String>,
    },
    #[error("`{name}` could be any of {candidates}; write the one you mean with its table")]
    AmbiguousTable { name: String, candidates: String },
    #[error(
        "GROUP BY and aggregates can't follow a JOIN: the lookup may have changed when records are counted again after a crash, and the result would be neither the old one nor the new; write the joined rows into a table, or join where the groups are read"
    )]
    GroupedJoin,
    #[error(
        "{0}: a window function needs the records that are still to come; use GROUP BY, with date_bin(...) for windows of time"
    )]
    Window(String),
    #[error(
        "DISTINCT is not needed: rows of one primary key are one row; leave it out, or use GROUP BY"
    )]
    Distinct,
    #[error(
        "AND and OR after IS [NOT] DISTINCT FROM would be read as part of its right side; put it into parentheses, as in (a IS DISTINCT FROM b) AND c"
    )]
    DistinctFrom,
    #[error(
        "SIMILAR TO is not supported; use LIKE, or ~ with a regular expression, as in code ~ '^(DE|FR)$'"
    )]
    SimilarTo,
    #[error("{name}() can't stand {place}")]
    MisplacedAggregate { name: String, place: &'static str },
    #[error("{what}: {why}")]
    NotExact { what: String, why: &'static str },
    #[error(
        "`{0}` is neither in GROUP BY nor within an aggregate; group by it, or say which of its values, as in last_value({0})"
    )]
    NotGrouped(String),
    #[error("GROUP BY {number}: there are {columns} result columns; the first is 1")]
    NoSuchColumn { number: String, columns: usize },
    #[error("GROUP BY has more than {0} keys; Cassandra takes no such primary key")]
    TooManyKeys(usize),
    #[error(
        "a check is for the row of each record, and this SQL makes rows of groups; use WHERE for the records, HAVING for the groups"
    )]
    GroupedCheck,
    #[error("HAVING takes a condition, and this is {0}; compare it, as in count(*) > 10")]
    NotHaving(String),
    #[error(
        "{0}() differs when a record is processed again; use _timestamp, the record's own time, or a field of the record"
    )]
    Volatile(String),
    #[error("no table `{0}`; the records are in the table `records`")]
    UnknownTable(String),
    #[error("no column `{name}` in records{}", hint(.similar))]
    UnknownColumn {
        name: String,
        similar: Option<String>,
    },
    #[error("`{parent}` has no field `{name}`{}", hint(.similar))]
    UnknownField {
        parent: String,
        name: String,
        similar: Option<String>,
    },
    #[error("`{parent}` is {data_type}, which has no field `{name}`{way_out}")]
    NotStruct {
        parent: String,
        data_type: String,
        name: String,
        way_out: &'static str,
    },
    #[error("`{name}` could be any of {candidates}; write the one you mean in double quotes")]
    Ambiguous { name: String, candidates: String },
    #[error("no function `{name}`{}", hint(.similar))]
    UnknownFunction {
        name: String,
        similar: Option<String>,
    },
    #[error("this result column has no name; write `{0} AS name`")]
    NoName(String),
    #[error(
        "`{0}` can't be the name of a column: it takes a letter, then letters, digits and `_`, 128 at most; write `AS` and such a name"
    )]
    BadName(String),
    #[error(
        "`{0}` can't be the name of a column in Cassandra: it takes a lower-case letter, then lower-case letters, digits and `_`, 48 at most; write `AS` and such a name"
    )]
    BadCassandraName(String),
    #[error(
        "`{0}` can't be the name of a group's key: the state of groups is kept in Cassandra, in a table with columns of these names; it takes a lower-case letter, then lower-case letters, digits and `_`, 48 at most; write `AS` and such a name"
    )]
    BadStateName(String),
    #[error("there are two result columns `{0}`; give one another name with AS")]
    DuplicateName(String),
    #[error(
        "the result columns `{0}` and `{1}` differ in upper and lower case alone; give one another name with AS"
    )]
    SameButCase(String, String),
    #[error("the result has more than {0} columns; split it over several sinks")]
    TooManyColumns(usize),
    #[error(
        "CAST AS UUID stands only around a whole result column, as in CAST(id AS UUID) AS id; elsewhere compare it as TEXT"
    )]
    NestedUuid,
    #[error("column `{name}` is {data_type}, which can't be made a UUID; only TEXT can")]
    NotUuid { name: String, data_type: String },
    #[error("column `{name}` is {data_type}, which no CQL type can take; {way_out}")]
    NoCqlType {
        name: String,
        data_type: String,
        way_out: String,
    },
    #[error("WHERE takes a condition, and this is {0}; compare it, as in age >= 18")]
    NotCondition(String),
    #[error("a check takes a condition, such as email IS NOT NULL, and this is {0}")]
    NotCheck(String),
    #[error("no column `{name}` in the result of the sink's SQL, which is what a check sees{}", hint(.similar))]
    UnknownResultColumn {
        name: String,
        similar: Option<String>,
    },
    /// In the engine's words.
    #[error("{0}")]
    Engine(String),
}

/// What doesn't go together between a sink's result and its table.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum TableProblem {
    #[error("table {table} has no column `{column}`; add it to the table, or take it out of the SQL{}", hint(.similar))]
    UnknownColumn {
        table: String,
        column: String,
        similar: Option<String>,
    },
    #[error(
        "column `{column}` is {found} in the SQL's result but `{expected}` in table {table}; {way_out}"
    )]
    Type {
        table: String,
        column: String,
        found: String,
        expected: String,
        way_out: String,
    },
    #[error(
        "column `{column}`: {of} may be null, Cassandra's lists hold no null, and a group never loses one; write FILTER (WHERE {of} IS NOT NULL) after array_agg(...)"
    )]
    ListWithNulls { column: String, of: String },
    #[error("table {table} has `{column}` in its primary key, and the SQL's result has no such column; add `... AS {column}` to the SQL{}", hint(.similar))]
    NoKeyColumn {
        table: String,
        column: String,
        similar: Option<String>,
    },
    #[error("primaryKey: the partition key is empty; name a column of the SQL's result")]
    NoPartitionKey,
    #[error("primaryKey: `{0}` is there twice; name it once")]
    DuplicateKeyColumn(String),
    #[error(
        "`{column}` is in the primary key of table {table}, but isn't, as it is, one of the keys in GROUP BY: groups could overwrite each other's rows; group by it, or take it out of the primary key"
    )]
    NotGroupKey { table: String, column: String },
    #[error(
        "the SQL groups by {key}, which isn't in the primary key of table {table}: groups would overwrite each other's rows; add a column that is {key} to the SQL and to the primary key"
    )]
    GroupKeyNotInPrimaryKey { table: String, key: String },
    #[error(
        "table {0}: where the SQL has a GROUP BY the name has 41 characters at most, because its state is kept in a table of that name with `__state` after it; choose a shorter name"
    )]
    NameTooLong(String),
    #[error(
        "primaryKey: `{column}` is {found}, and a key takes single values; choose another column"
    )]
    KeyType { column: String, found: String },
}

/// Why rows of one primary key could come from several partitions of the topic.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum KeyProblem {
    #[error("topic.key: `{0}` is not a JSON Pointer; it begins with `/`, as in /login/uuid")]
    NotAPointer(String),
    #[error("topic.key: `{0}` is there twice; name it once")]
    Duplicate(String),
    #[error("topic.key: `{pointer}` is no field of the schema{}", hint(.similar))]
    UnknownField {
        pointer: String,
        similar: Option<String>,
    },
    #[error(
        "topic.key: `{pointer}` is {data_type}, and a key takes single values; name one of its fields, or another field"
    )]
    NotAValue { pointer: String, data_type: String },
    #[error(
        "sink `{sink}`: `{pointer}` is in topic.key but no column of the primary key ({primary_key}) is that field as it is, so that rows of one primary key could come from several partitions, out of order; take it out of topic.key, or put the field into the primary key"
    )]
    NotInPrimaryKey {
        sink: String,
        pointer: String,
        primary_key: String,
    },
    #[error(
        "sink `{sink}`: no column of the primary key ({primary_key}) is a field of the record as it is, or computed of fields as TEXT, an integer, BOOLEAN, DATE or TIMESTAMP into a column of such a type, so that no key of the topic keeps rows of one primary key in order; put such a column, or _partition and _offset, into the primary key"
    )]
    NoField { sink: String, primary_key: String },
    #[error(
        "sink `{sink}`: no key of the groups ({primary_key}) is a field of the record as it is, or computed of fields as TEXT, an integer, BOOLEAN, DATE or TIMESTAMP into a column of such a type, so that no key of the topic brings the records of one group together; group by such a value as well, or set topic.partitions: 1"
    )]
    NoFieldInGroup { sink: String, primary_key: String },
    #[error(
        "sinks {sinks}: their primary keys have no field of the record in common, and nothing that is computed of it, so that no key of the topic keeps the rows of all of them in order; put a common field into the primary keys, or move sinks into a pipeline of their own, whose source is this one's topic (source.topic.name)"
    )]
    NothingInCommon { sinks: String },
    #[error(
        "sink `{sink}`: `_key` is in the primary key, and the records have no key; set topic.key"
    )]
    NoKey { sink: String },
}

impl KeyProblem {
    /// Whether it is about what comes from which partition, and so none where there is but one.
    pub(crate) fn is_of_order(&self) -> bool {
        matches!(
            self,
            KeyProblem::NotInPrimaryKey { .. }
                | KeyProblem::NoField { .. }
                | KeyProblem::NoFieldInGroup { .. }
                | KeyProblem::NothingInCommon { .. }
        )
    }
}

fn hint(similar: &Option<String>) -> String {
    similar
        .as_ref()
        .map(|name| format!("; did you mean `{name}`?"))
        .unwrap_or_default()
}

/// The candidate that a person may have meant: the same but for case, or with a typing mistake.
pub(crate) fn similar<'a>(
    name: &str,
    candidates: impl IntoIterator<Item = &'a str>,
) -> Option<String> {
    let name = name.to_lowercase();
    let allowed = (name.chars().count() / 3).clamp(1, 3);
    candidates
        .into_iter()
        .map(|candidate| (levenshtein(&name, &candidate.to_lowercase()), candidate))
        .filter(|(distance, _)| *distance <= allowed)
        .min()
        .map(|(_, candidate)| candidate.to_owned())
}
