//! One JSON object a line. Empty lines are nothing.

use std::io::{BufRead, Read};

use super::{Input, MAX_KEPT_BYTES, Output, skip_bom};
use crate::source::file::error::ReadError;

pub fn read(mut input: Input<'_>, output: &mut Output<'_>) -> Result<(), ReadError> {
    skip_bom(&mut input)?;
    let mut line = Vec::new();
    for number in 1_u64.. {
        line.clear();
        let limit = MAX_KEPT_BYTES as u64;
        if input.by_ref().take(limit).read_until(b'\n', &mut line)? == 0 {
            break;
        }
        let at = || format!("line {number}");
        if line.len() == MAX_KEPT_BYTES && !line.ends_with(b"\n") {
            let rest = input.skip_until(b'\n')?;
            let reason = format!("it has {} bytes", line.len() + rest);
            if !output.passes(&line)? {
                output.reject(at(), &line, &reason)?;
            }
        } else if !line.trim_ascii().is_empty() {
            output.checked(at, line.trim_ascii_end())?;
        }
    }
    Ok(())
}
