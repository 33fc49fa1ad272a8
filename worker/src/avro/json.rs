//! Avro values to JSON text, by the schema with which they were written.

use base64::{Engine, prelude::BASE64_STANDARD};
use chrono::{DateTime, NaiveDate, SecondsFormat, TimeDelta};

use crate::{
    avro::schema::{Node, Schema},
    time::time_of_day,
};

/// Values nested deeper than this are refused, so that no input can exhaust the stack.
const MAX_DEPTH: usize = 64;
/// A value that becomes longer than this is refused: a few bytes can stand for millions of nulls.
const MAX_BYTES: usize = 16 * 1024 * 1024;

/// A value as JSON; or why the bytes aren't one value of the schema.
pub fn to_json(schema: &Schema, value: &[u8]) -> Result<Vec<u8>, String> {
    let mut writer = Writer {
        schema,
        input: value,
        out: Vec::with_capacity(value.len() * 2),
    };
    writer.write(&schema.root, 0)?;
    match writer.input.len() {
        0 => Ok(writer.out),
        left => Err(format!("{left} bytes follow after its end")),
    }
}

struct Writer<'a> {
    schema: &'a Schema,
    input: &'a [u8],
    out: Vec<u8>,
}

impl<'a> Writer<'a> {
    fn write(&mut self, node: &Node, depth: usize) -> Result<(), String> {
        if depth > MAX_DEPTH {
            return Err(format!("it is nested deeper than {MAX_DEPTH} levels"));
        }
        if self.out.len() > MAX_BYTES {
            return Err(format!("it is longer than {MAX_BYTES} bytes in JSON"));
        }
        match node {
            Node::Null => self.raw("null"),
            Node::Boolean => match self.take(1)?[0] {
                0 => self.raw("false"),
                1 => self.raw("true"),
                other => return Err(format!("{other} isn't a boolean")),
            },
            Node::Int => {
                let number = self.int()?;
                self.raw(&number.to_string());
            }
            Node::Long => {
                let number = self.long()?;
                self.raw(&number.to_string());
            }
            Node::Float => {
                let number = f32::from_le_bytes(self.array()?);
                match number.is_finite() {
                    true => self.json(&number)?,
                    false => self.text(not_finite(number.into()))?,
                }
            }
            Node::Double => {
                let number = f64::from_le_bytes(self.array()?);
                match number.is_finite() {
                    true => self.json(&number)?,
                    false => self.text(not_finite(number))?,
                }
            }
            Node::Bytes => {
                let bytes = self.bytes()?;
                self.text(&BASE64_STANDARD.encode(bytes))?;
            }
            Node::String => {
                let text = self.utf8()?;
                self.text(text)?;
            }
            Node::Fixed(size) => {
                let bytes = self.take(*size)?;
                self.text(&BASE64_STANDARD.encode(bytes))?;
            }
            Node::Uuid => {
                let uuid = uuid::Uuid::from_bytes(self.array()?);
                self.text(&uuid.to_string())?;
            }
            Node::Decimal { size, scale } => {
                let bytes = match size {
                    Some(size) => self.take(*size)?,
                    None => self.bytes()?,
                };
                let text = decimal(bytes, *scale)?;
                self.raw(&text);
            }
            Node::Date => {
                let days = self.int()?;
                let date = NaiveDate::default().checked_add_signed(TimeDelta::days(days.into()));
                let date = date.ok_or_else(|| format!("day {days} is no date"))?;
                self.text(&date.to_string())?;
            }
            Node::Time { long, per_second } => {
                let count = if *long {
                    self.long()?
                } else {
                    self.int()?.into()
                };
                self.text(&time(count, *per_second)?)?;
            }
            Node::Timestamp { per_second, utc } => {
                let time = self.long()?;
                self.text(&timestamp(time, *per_second, *utc)?)?;
            }
            Node::Enum(symbols) => {
                let index = self.int()?;
                let symbol = usize::try_from(index).ok().and_then(|i| symbols.get(i));
                let symbol = symbol.ok_or_else(|| format!("symbol {index} isn't there"))?;
                self.text(symbol)?;
            }
            Node::Union(branches) => {
                let index = self.long()?;
                let branch = usize::try_from(index).ok().and_then(|i| branches.get(i));
                let branch = branch.ok_or_else(|| format!("branch {index} isn't there"))?;
                self.write(branch, depth + 1)?;
            }
            Node::Array(items) => {
                self.blocks(b'[', b']', |writer| writer.write(items, depth + 1))?
            }
            Node::Map(values) => self.blocks(b'{', b'}', |writer| {
                let key = writer.utf8()?;
                writer.text(key)?;
                writer.out.push(b':');
                writer.write(values, depth + 1)
            })?,
            Node::Record(index) => {
                let schema = self.schema;
                for (number, field) in schema.records[*index].iter().enumerate() {
                    self.out.push(if number == 0 { b'{' } else { b',' });
                    self.text(&field.name)?;
                    self.out.push(b':');
                    self.write(&field.node, depth + 1)
                        .map_err(|error| within(&field.name, error))?;
                }
                if schema.records[*index].is_empty() {
                    self.out.push(b'{');
                }
                self.out.push(b'}');
            }
        }
        Ok(())
    }

    /// The items of an array or a map.
    fn blocks(
        &mut self,
        open: u8,
        close: u8,
        mut item: impl FnMut(&mut Self) -> Result<(), String>,
    ) -> Result<(), String> {
        self.out.push(open);
        let mut first = true;
        loop {
            let mut count = self.long()?;
            if count < 0 {
                // The block's bytes follow, for those who skip it.
                self.long()?;
                count = count.checked_neg().ok_or("a block is too long")?;
            }
            if count == 0 {
                break;
            }
            for _ in 0..count {
                if !std::mem::take(&mut first) {
                    self.out.push(b',');
                }
                item(self)?;
            }
        }
        self.out.push(close);
        Ok(())
    }

    fn raw(&mut self, text: &str) {
        self.out.extend_from_slice(text.as_bytes());
    }

    fn text(&mut self, text: &str) -> Result<(), String> {
        self.json(&text)
    }

    fn json(&mut self, value: &impl serde::Serialize) -> Result<(), String> {
        serde_json::to_writer(&mut self.out, value).map_err(|error| error.to_string())
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8], String> {
        let (taken, rest) = self
            .input
            .split_at_checked(count)
            .ok_or("it ends too early")?;
        self.input = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], String> {
        let (taken, rest) = self
            .input
            .split_first_chunk::<N>()
            .ok_or("it ends too early")?;
        self.input = rest;
        Ok(*taken)
    }

    fn bytes(&mut self) -> Result<&'a [u8], String> {
        let length = self.long()?;
        let length = usize::try_from(length).map_err(|_| format!("{length} isn't a length"))?;
        self.take(length)
    }

    fn utf8(&mut self) -> Result<&'a str, String> {
        let bytes = self.bytes()?;
        std::str::from_utf8(bytes).map_err(|_| "a text isn't UTF-8".to_owned())
    }

    fn int(&mut self) -> Result<i32, String> {
        let number = self.long()?;
        i32::try_from(number).map_err(|_| format!("{number} isn't an int"))
    }

    /// A zigzag number of up to ten bytes.
    fn long(&mut self) -> Result<i64, String> {
        let mut number = 0u64;
        for shift in (0..64).step_by(7) {
            let [byte] = self.array()?;
            let bits = u64::from(byte & 0x7f);
            if shift == 63 && bits > 1 {
                break;
            }
            number |= bits << shift;
            if byte & 0x80 == 0 {
                return Ok((number >> 1) as i64 ^ -((number & 1) as i64));
            }
        }
        Err("a number is too long".to_owned())
    }
}

/// The error with the path to where it is.
fn within(field: &str, error: String) -> String {
    match error.strip_prefix("field `") {
        Some(rest) => format!("field `{field}.{rest}"),
        None => format!("field `{field}`: {error}"),
    }
}

/// JSON has no such numbers; as texts the decoder takes them.
pub fn not_finite(number: f64) -> &'static str {
    match number {
        _ if number.is_nan() => "NaN",
        _ if number > 0.0 => "Infinity",
        _ => "-Infinity",
    }
}

/// The digits of a number in two's complement, largest byte first.
fn decimal(bytes: &[u8], scale: usize) -> Result<String, String> {
    let negative = bytes.first().is_some_and(|first| *first >= 0x80);
    let fill: u8 = if negative { 0xff } else { 0 };
    let extra = bytes.len().saturating_sub(16);
    let (filling, digits) = bytes.split_at(extra);
    let mut wide = [fill; 16];
    wide[16 - digits.len()..].copy_from_slice(digits);
    let number = i128::from_be_bytes(wide);
    let fits = filling.iter().all(|byte| *byte == fill) && (number < 0) == negative;
    if !fits || scale > 38 {
        return Err("a decimal has more than 38 digits".to_owned());
    }
    let digits = number.unsigned_abs().to_string();
    let digits = format!("{digits:0>width$}", width = scale + 1);
    let (whole, fraction) = digits.split_at(digits.len() - scale);
    let sign = if negative { "-" } else { "" };
    Ok(match fraction {
        "" => format!("{sign}{whole}"),
        fraction => format!("{sign}{whole}.{fraction}"),
    })
}

fn time(count: i64, per_second: i64) -> Result<String, String> {
    let nanos = count.checked_mul(1_000_000_000 / per_second);
    let time = nanos.and_then(time_of_day);
    let time = time.ok_or_else(|| format!("{count} is no time of a day"))?;
    Ok(time.to_string())
}

fn timestamp(time: i64, per_second: i64, utc: bool) -> Result<String, String> {
    let nanos = time.rem_euclid(per_second) * (1_000_000_000 / per_second);
    let nanos = u32::try_from(nanos).unwrap_or(0);
    let timestamp = DateTime::from_timestamp(time.div_euclid(per_second), nanos);
    let timestamp = timestamp.ok_or_else(|| format!("{time} is no timestamp"))?;
    let mut text = timestamp.to_rfc3339_opts(SecondsFormat::AutoSi, true);
    if !utc {
        text.pop();
    }
    Ok(text)
}
