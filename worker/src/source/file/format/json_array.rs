//! A JSON array of objects, at the top or behind a pointer, element by element: the array may be
//! larger than the memory.

use std::io::BufRead;

use super::{Input, MAX_KEPT_BYTES, Output, skip_bom};
use crate::source::file::error::ReadError;

pub fn read(
    mut input: Input<'_>,
    pointer: &[String],
    output: &mut Output<'_>,
) -> Result<(), ReadError> {
    skip_bom(&mut input)?;
    let mut json = Json { input, offset: 0 };
    for token in pointer {
        json.descend(token)?;
    }
    match json.next_token()? {
        Some(b'[') => json.elements(output)?,
        Some(b'{') => {
            let element = json.value(Keep::Bytes)?;
            output.checked(|| "the object".into(), &element)?;
        }
        _ => return Err(json.expected("an array of records; set `records` to its JSON Pointer")),
    }
    // Behind a pointer the rest is none of our business.
    match json.next_token()? {
        Some(_) if pointer.is_empty() => Err(json.expected("the end of the file")),
        _ => Ok(()),
    }
}

/// Finds where values begin and end. Whether they are right inside is checked one by one.
struct Json<'a> {
    input: Input<'a>,
    offset: u64,
}

#[derive(Clone, Copy, PartialEq)]
enum Keep {
    Bytes,
    Nothing,
}

impl Json<'_> {
    fn elements(&mut self, output: &mut Output<'_>) -> Result<(), ReadError> {
        self.skip();
        if self.next_token()? == Some(b']') {
            self.skip();
            return Ok(());
        }
        for number in 1_u64.. {
            let element = self.value(Keep::Bytes)?;
            let at = || format!("element {number}");
            if element.len() > MAX_KEPT_BYTES {
                let reason = format!("it has more than {MAX_KEPT_BYTES} bytes");
                if !output.passes(&element)? {
                    output.reject(at(), &element[..MAX_KEPT_BYTES], &reason)?;
                }
            } else {
                output.checked(at, &element)?;
            }
            match self.next_token()? {
                Some(b',') => self.skip(),
                Some(b']') => {
                    self.skip();
                    return Ok(());
                }
                _ => return Err(self.expected("`,` or `]` after an element")),
            }
        }
        Ok(())
    }

    /// Goes to the value of a member of an object.
    fn descend(&mut self, name: &str) -> Result<(), ReadError> {
        let missing = |json: &Self| json.expected(&format!("an object with the member `{name}`"));
        if self.next_token()? != Some(b'{') {
            return Err(missing(self));
        }
        self.skip();
        loop {
            if self.next_token()? != Some(b'"') {
                return Err(missing(self));
            }
            let key = self.value(Keep::Bytes)?;
            if self.next_token()? != Some(b':') {
                return Err(self.expected("`:`"));
            }
            self.skip();
            let key = serde_json::from_slice::<String>(&key);
            if key.is_ok_and(|key| key == name) {
                return Ok(());
            }
            self.value(Keep::Nothing)?;
            if self.next_token()? != Some(b',') {
                return Err(missing(self));
            }
            self.skip();
        }
    }

    /// Reads a value to its end; of a large one the beginning and one byte more than is kept.
    fn value(&mut self, keep: Keep) -> Result<Vec<u8>, ReadError> {
        let mut kept = Vec::new();
        let mut scan = match self.next_token()? {
            Some(b'{' | b'[' | b'"') => Scan::default(),
            Some(b'}' | b']' | b',' | b':') | None => return Err(self.expected("a value")),
            Some(_) => Scan {
                scalar: true,
                ..Scan::default()
            },
        };
        loop {
            let chunk = self.input.fill_buf()?;
            if chunk.is_empty() && scan.scalar {
                return Ok(kept);
            }
            if chunk.is_empty() {
                return Err(ReadError::Unreadable(
                    "it ends in the middle of a record, is it cut off?".into(),
                ));
            }
            let (used, ended) = scan.advance(chunk);
            if keep == Keep::Bytes {
                let room = (MAX_KEPT_BYTES + 1).saturating_sub(kept.len());
                kept.extend_from_slice(&chunk[..used.min(room)]);
            }
            self.input.consume(used);
            self.offset += used as u64;
            if ended {
                return Ok(kept);
            }
        }
    }

    /// The next byte that isn't space; it isn't consumed.
    fn next_token(&mut self) -> Result<Option<u8>, ReadError> {
        loop {
            let chunk = self.input.fill_buf()?;
            let spaces = chunk.iter().take_while(|byte| byte.is_ascii_whitespace());
            let (spaces, length) = (spaces.count(), chunk.len());
            let found = chunk.get(spaces).copied();
            self.input.consume(spaces);
            self.offset += spaces as u64;
            if found.is_some() || length == 0 {
                return Ok(found);
            }
        }
    }

    /// Consumes the byte that was found.
    fn skip(&mut self) {
        self.input.consume(1);
        self.offset += 1;
    }

    fn expected(&self, what: &str) -> ReadError {
        ReadError::Unreadable(format!("at byte {} there isn't {what}", self.offset))
    }
}

/// Where in a value we are.
#[derive(Default)]
struct Scan {
    depth: usize,
    in_string: bool,
    escaped: bool,
    scalar: bool,
}

impl Scan {
    /// Goes on through these bytes: how many belong to the value, and whether it ends there.
    fn advance(&mut self, bytes: &[u8]) -> (usize, bool) {
        for (index, byte) in bytes.iter().enumerate() {
            if self.scalar {
                if matches!(byte, b',' | b']' | b'}' | b':') || byte.is_ascii_whitespace() {
                    return (index, true);
                }
                continue;
            }
            match byte {
                _ if self.escaped => self.escaped = false,
                b'\\' if self.in_string => self.escaped = true,
                b'"' => self.in_string = !self.in_string,
                _ if self.in_string => {}
                b'{' | b'[' => self.depth += 1,
                b'}' | b']' => self.depth = self.depth.saturating_sub(1),
                _ => {}
            }
            if self.depth == 0 && !self.in_string {
                return (index + 1, true);
            }
        }
        (bytes.len(), false)
    }
}
