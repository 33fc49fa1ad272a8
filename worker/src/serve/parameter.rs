//! The parameters of a request: from its URL to values, from values to CQL.

use std::borrow::Cow;

use chrono::{DateTime, Utc};
use millstream_api::serve::Endpoint;
use millstream_plan::serve::{NOW, Path, RESERVED_PARAMETERS, Value, parse};
use percent_encoding::percent_decode_str;
use scylla::{
    cluster::metadata::{ColumnType, NativeType},
    value::{CqlDate, CqlTimestamp, CqlValue, CqlVarint},
};

use super::problem::Problem;
use crate::sink::cassandra::varint;

/// What was asked for.
#[derive(Debug, Default)]
pub struct Asked {
    /// The values of the declared parameters, and the present.
    pub values: Vec<(String, Value)>,
    /// The declared parameters as they were given, which tells one query from another: the present
    /// moves on from page to page.
    pub given: Vec<(String, String)>,
    pub format: Option<String>,
    pub limit: Option<String>,
    pub page: Option<String>,
}

impl Asked {
    /// Reads path and query; each parameter must be as declared, and no other may be there.
    pub fn read(
        endpoint: &Endpoint,
        path: &Path,
        url_path: &str,
        query: &str,
        now: DateTime<Utc>,
    ) -> Result<Self, Problem> {
        let mut given: Vec<(&str, Cow<str>)> = Vec::new();
        for (name, encoded) in path.matches(url_path).unwrap_or_default() {
            let decoded = percent_decode_str(encoded).decode_utf8();
            given.push((
                name,
                decoded.map_err(|_| Problem::parameter(name, "isn't UTF-8"))?,
            ));
        }
        let of_path = given.len();
        let mut asked = Asked::default();
        for (name, text) in url::form_urlencoded::parse(query.as_bytes()) {
            let slot = match name.as_ref() {
                "format" => &mut asked.format,
                "limit" => &mut asked.limit,
                "page" => &mut asked.page,
                name => {
                    let mut declared = endpoint.parameters.iter().map(|one| one.name.as_str());
                    let in_path = given[..of_path].iter().any(|(of_path, _)| *of_path == name);
                    let known = declared.find(|declared| *declared == name && !in_path);
                    let known = known.ok_or_else(|| unknown(endpoint, path, name))?;
                    if given.iter().any(|(given, _)| *given == name) {
                        return Err(Problem::parameter(name, "is given twice"));
                    }
                    given.push((known, text));
                    continue;
                }
            };
            if slot.replace(text.into_owned()).is_some() {
                return Err(Problem::parameter(&name, "is given twice"));
            }
        }
        for parameter in &endpoint.parameters {
            let name = parameter.name.as_str();
            let text = given.iter().find(|(given, _)| *given == name);
            let text = text
                .map(|(_, text)| text.as_ref())
                .or(parameter.default.as_deref());
            let text = text.ok_or_else(|| Problem::parameter(name, "is missing"))?;
            let value =
                parse(parameter, text, now).map_err(|says| Problem::parameter(name, &says))?;
            asked.values.push((name.into(), value));
            asked.given.push((name.into(), text.into()));
        }
        asked.values.push((NOW.into(), Value::Timestamp(now)));
        Ok(asked)
    }
}

fn unknown(endpoint: &Endpoint, path: &Path, name: &str) -> Problem {
    let in_path: Vec<_> = path.parameters().collect();
    let own = endpoint
        .parameters
        .iter()
        .map(|parameter| parameter.name.as_str());
    let own = own.filter(|own| !in_path.contains(own));
    let known: Vec<_> = own.chain(RESERVED_PARAMETERS).collect();
    let shown: String = name.chars().take(60).collect();
    Problem::parameter(
        &shown,
        &format!("isn't known; there are {}", known.join(", ")),
    )
}

/// A value as Cassandra takes it. The error completes "parameter `name` ...".
pub fn to_cql(value: &Value, column_type: &ColumnType) -> Result<CqlValue, String> {
    use NativeType::*;
    let ColumnType::Native(native) = column_type else {
        return Err("has no type that the query could compare".into());
    };
    let beyond = || "is beyond the range of the column".to_owned();
    Ok(match (value, native) {
        (Value::Text(text), Text) => CqlValue::Text(text.clone()),
        (Value::Text(text), Ascii) if text.is_ascii() => CqlValue::Ascii(text.clone()),
        (Value::Text(_), Ascii) => return Err("isn't ASCII".into()),
        (Value::Text(text), Inet) => {
            CqlValue::Inet(text.parse().map_err(|_| "isn't an IP address")?)
        }
        (Value::Int(_) | Value::Bigint(_), _) => {
            let number = match value {
                Value::Int(number) => i64::from(*number),
                Value::Bigint(number) => *number,
                _ => 0,
            };
            match native {
                TinyInt => CqlValue::TinyInt(number.try_into().map_err(|_| beyond())?),
                SmallInt => CqlValue::SmallInt(number.try_into().map_err(|_| beyond())?),
                Int => CqlValue::Int(number.try_into().map_err(|_| beyond())?),
                BigInt => CqlValue::BigInt(number),
                Varint => {
                    // As the sink writes it: as a key, another number of bytes is another value.
                    let mut bytes = Vec::new();
                    varint(number.into(), &mut bytes);
                    CqlValue::Varint(CqlVarint::from_signed_bytes_be(bytes))
                }
                _ => return Err(misplaced(native)),
            }
        }
        (Value::Uuid(uuid), Uuid) => CqlValue::Uuid(*uuid),
        (Value::Uuid(uuid), Timeuuid) if uuid.get_version_num() == 1 => {
            CqlValue::Timeuuid((*uuid).into())
        }
        (Value::Uuid(_), Timeuuid) => return Err("isn't a UUID of version 1".into()),
        (Value::Timestamp(time), Timestamp) => {
            CqlValue::Timestamp(CqlTimestamp(time.timestamp_millis()))
        }
        (Value::Timestamp(time), Date) => CqlValue::Date(CqlDate::from(time.date_naive())),
        (Value::Double(number), Double) => CqlValue::Double(*number),
        (Value::Double(number), Float) => CqlValue::Float(*number as f32),
        (Value::Boolean(truth), Boolean) => CqlValue::Boolean(*truth),
        _ => return Err(misplaced(native)),
    })
}

fn misplaced(native: &NativeType) -> String {
    format!("can't be compared with `{native:?}`")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_varint_is_as_the_sink_writes_it() {
        let varint = ColumnType::Native(NativeType::Varint);
        for (number, expected) in [(5, vec![5]), (128, vec![0, 128]), (-1, vec![255])] {
            let value = to_cql(&Value::Bigint(number), &varint).unwrap();
            let CqlValue::Varint(value) = value else {
                panic!("{value:?}");
            };
            assert_eq!(value.as_signed_bytes_be_slice(), expected, "{number}");
        }
    }
}
