//! Parameters: text from a URL becomes a value of the declared type, or a reason why not.

use std::fmt::Display;

use chrono::{DateTime, NaiveDate, TimeDelta, Utc};
use millstream_api::{
    cql::CqlType,
    serve::{Parameter, ParameterType},
};
use uuid::Uuid;

const MAX_CHARACTERS: u32 = 1000;

/// A parameter's value.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    Text(String),
    Int(i32),
    Bigint(i64),
    Uuid(Uuid),
    Timestamp(DateTime<Utc>),
    Double(f64),
    Boolean(bool),
}

/// Reads a value as it is in a URL, percent-decoded. The error completes "parameter `name` ...".
pub fn parse(parameter: &Parameter, text: &str, now: DateTime<Utc>) -> Result<Value, String> {
    let shown = || shorten(text);
    let not_a = |what: &str| format!("is `{}`, which is not {what}", shown());
    if !parameter.allowed.is_empty() && !parameter.allowed.iter().any(|allowed| allowed == text) {
        return Err(format!(
            "is `{}`, and may be one of {}",
            shown(),
            parameter.allowed.join(", ")
        ));
    }
    let value = match parameter.parameter_type {
        ParameterType::Text => {
            let longest = parameter.max_length.unwrap_or(MAX_CHARACTERS);
            if text.chars().count() > longest as usize {
                return Err(format!("is longer than {longest} characters"));
            }
            Value::Text(text.into())
        }
        ParameterType::Int => {
            let number: i32 = text.parse().map_err(|_| not_a("an integer of 32 bits"))?;
            within(parameter, f64::from(number), number)?;
            Value::Int(number)
        }
        ParameterType::Bigint => {
            let number: i64 = text.parse().map_err(|_| not_a("an integer of 64 bits"))?;
            within(parameter, number as f64, number)?;
            Value::Bigint(number)
        }
        ParameterType::Double => {
            let number: f64 = text.parse().map_err(|_| not_a("a number"))?;
            if !number.is_finite() {
                return Err(not_a("a finite number"));
            }
            within(parameter, number, number)?;
            Value::Double(number)
        }
        ParameterType::Uuid => Value::Uuid(text.parse().map_err(|_| not_a("a UUID"))?),
        ParameterType::Timestamp => Value::Timestamp(
            parse_time(text).ok_or_else(|| not_a("a time such as 2018-05-06T12:00:00Z"))?,
        ),
        ParameterType::Boolean => match text {
            "true" => Value::Boolean(true),
            "false" => Value::Boolean(false),
            _ => return Err(not_a("true or false")),
        },
    };
    match (&parameter.ago, value) {
        (Some(unit), Value::Int(count)) => {
            let span = TimeDelta::try_seconds(i64::from(count) * unit.seconds());
            let then = span.and_then(|span| now.checked_sub_signed(span));
            then.map(Value::Timestamp)
                .ok_or_else(|| format!("is `{}`, which is too far back", shown()))
        }
        (_, value) => Ok(value),
    }
}

/// A time of RFC 3339, or a date, which means its beginning in UTC.
pub fn parse_time(text: &str) -> Option<DateTime<Utc>> {
    if let Ok(time) = DateTime::parse_from_rfc3339(text) {
        return Some(time.to_utc());
    }
    let date: NaiveDate = text.parse().ok()?;
    Some(date.and_hms_opt(0, 0, 0)?.and_utc())
}

fn within(parameter: &Parameter, number: f64, shown: impl Display) -> Result<(), String> {
    if let Some(minimum) = parameter.minimum.filter(|minimum| number < *minimum) {
        return Err(format!("is {shown}, and may be {minimum} at least"));
    }
    if let Some(maximum) = parameter.maximum.filter(|maximum| number > *maximum) {
        return Err(format!("is {shown}, and may be {maximum} at most"));
    }
    Ok(())
}

fn shorten(text: &str) -> String {
    const LONGEST: usize = 60;
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.into(),
    }
}

/// Whether the parameter itself makes sense.
pub(super) fn check(parameter: &Parameter) -> Result<(), String> {
    use ParameterType::{Bigint, Double, Int, Text};
    let of = parameter.parameter_type;
    let number = matches!(of, Int | Bigint | Double);
    let bounded = parameter.minimum.is_some() || parameter.maximum.is_some();
    for (wrong, says) in [
        (bounded && !number, "minimum and maximum are for numbers"),
        (
            parameter
                .minimum
                .zip(parameter.maximum)
                .is_some_and(|(low, high)| low > high),
            "minimum is above maximum",
        ),
        (
            parameter.max_length.is_some() && of != Text,
            "maxLength is for text",
        ),
        (parameter.ago.is_some() && of != Int, "ago is for int"),
    ] {
        if wrong {
            return Err(says.into());
        }
    }
    let texts = parameter.default.iter().map(|text| ("default", text));
    for (what, text) in texts.chain(parameter.allowed.iter().map(|text| ("enum", text))) {
        parse(parameter, text, DateTime::UNIX_EPOCH).map_err(|error| format!("{what} {error}"))?;
    }
    Ok(())
}

/// Whether a parameter can be bound where CQL takes this type; none is `:now`.
pub fn fits_marker(parameter: Option<&Parameter>, cql_type: &CqlType) -> bool {
    use CqlType as Cql;
    let of = match parameter {
        None => ParameterType::Timestamp,
        Some(parameter) if parameter.ago.is_some() => ParameterType::Timestamp,
        Some(parameter) => parameter.parameter_type,
    };
    match of {
        ParameterType::Text => matches!(cql_type, Cql::Text | Cql::Ascii | Cql::Inet),
        ParameterType::Int | ParameterType::Bigint => matches!(
            cql_type,
            Cql::TinyInt | Cql::SmallInt | Cql::Int | Cql::BigInt | Cql::VarInt
        ),
        ParameterType::Uuid => matches!(cql_type, Cql::Uuid | Cql::TimeUuid),
        ParameterType::Timestamp => matches!(cql_type, Cql::Timestamp | Cql::Date),
        ParameterType::Double => matches!(cql_type, Cql::Double | Cql::Float),
        ParameterType::Boolean => matches!(cql_type, Cql::Boolean),
    }
}
