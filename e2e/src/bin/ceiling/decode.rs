//! Users of a file become rows on standard output: a JSON array each, and in the end the time that
//! decoding took, without reading and printing.

use std::{
    fs::{self, File},
    io::{self, BufRead, BufReader, BufWriter, Write},
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use serde_json::json;

use crate::projection;

/// Records that are decoded at once, as the worker does.
const BATCH: usize = 2_000;

pub fn run(records: &Path) -> Result<()> {
    let mut records = BufReader::new(File::open(records)?);
    let mut out = BufWriter::new(io::stdout().lock());
    let (mut took, mut cpu) = (Duration::ZERO, Duration::ZERO);
    loop {
        let mut lines = Vec::with_capacity(BATCH);
        for line in (&mut records).split(b'\n').take(BATCH) {
            lines.push(line?);
        }
        if lines.is_empty() {
            break;
        }
        let (started, cpu_before) = (Instant::now(), thread_cpu()?);
        let rows = lines.iter().map(|line| projection::row(line, 0));
        let rows = rows.collect::<Result<Vec<_>>>()?;
        took += started.elapsed();
        cpu += thread_cpu()?.saturating_sub(cpu_before);
        for row in rows {
            writeln!(out, "{}", json!(row.cells()))?;
        }
        out.flush()?;
    }
    let took = json!({"seconds": took.as_secs_f64(), "cpu_seconds": cpu.as_secs_f64()});
    writeln!(out, "{took}")?;
    out.flush()?;
    // Until then, whoever reads this can look at what the process has used.
    io::copy(&mut io::stdin(), &mut io::sink())?;
    Ok(())
}

/// The time for which this thread has had a core; Linux tells it in nanoseconds.
fn thread_cpu() -> Result<Duration> {
    let text = fs::read_to_string("/proc/thread-self/schedstat")?;
    let nanoseconds = text.split(' ').next().context("an empty schedstat")?;
    Ok(Duration::from_nanos(nanoseconds.parse()?))
}
