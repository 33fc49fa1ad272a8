//! Decoding and SQL alone, for the benchmark: records of a file become rows on standard output, a
//! JSON array each; in the end it tells the time that this took, without reading and printing.

use std::{
    fs::{self, File},
    io::{self, BufRead, BufReader, BufWriter, Write},
    path::PathBuf,
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use datafusion::arrow::{
    array::RecordBatch,
    util::display::{ArrayFormatter, FormatOptions},
};
use millstream_api::worker::WorkerConfig;
use millstream_plan::{RecordSchema, SinkPlan};
use serde_json::{Value, json};

use crate::{
    batch::{Batch, MAX_BYTES},
    config::Mounted,
    transform::Transform,
};

/// Arguments of the command.
#[derive(clap::Args)]
pub struct Measure {
    #[command(flatten)]
    mounted: Mounted,
    /// Records, one a line.
    records: PathBuf,
}

/// Runs the SQL of the first sink, which has no groups, over the records.
pub fn run(measure: &Measure) -> anyhow::Result<ExitCode> {
    let (WorkerConfig::Process(config), _) = measure.mounted.load()? else {
        bail!("the configuration isn't of the process stage");
    };
    let sink = config.sinks.first().context("there is no sink")?;
    let plan = SinkPlan::new(&RecordSchema::parse(&config.schema)?, &sink.name, &sink.sql)?;
    let mut transform = Transform::new(&plan)?;
    let mut records = BufReader::new(File::open(&measure.records)?);
    let mut out = BufWriter::new(io::stdout().lock());
    let mut batch = Batch::default();
    let (mut took, mut cpu) = (Duration::ZERO, Duration::ZERO);
    while fill(&mut batch, &mut records)? {
        let (started, cpu_before) = (Instant::now(), thread_cpu()?);
        let transformed = transform.run(&batch)?;
        took += started.elapsed();
        cpu += thread_cpu()?.saturating_sub(cpu_before);
        ensure!(
            transformed.rejected.is_empty(),
            "{:?}",
            transformed.rejected
        );
        for rows in &transformed.rows {
            print(&rows.columns, &mut out)?;
        }
        out.flush()?;
    }
    let took = json!({"seconds": took.as_secs_f64(), "cpu_seconds": cpu.as_secs_f64()});
    writeln!(out, "{took}")?;
    out.flush()?;
    // Until then, whoever reads this can look at what the process has used.
    io::copy(&mut io::stdin(), &mut io::sink())?;
    Ok(ExitCode::SUCCESS)
}

/// Fills a batch as the process stage does; whether there was a record.
fn fill(batch: &mut Batch, records: &mut impl BufRead) -> anyhow::Result<bool> {
    batch.clear(2 * MAX_BYTES);
    let mut line = Vec::new();
    while !batch.is_full() && records.read_until(b'\n', &mut line)? > 0 {
        let record = line.trim_ascii_end();
        batch.push_record(0, 0, None, None, Some(record));
        line.clear();
    }
    Ok(!batch.is_empty())
}

fn print(rows: &RecordBatch, out: &mut impl Write) -> anyhow::Result<()> {
    let options = FormatOptions::default().with_null("NULL");
    let columns = rows.columns().iter();
    let columns = columns
        .map(|column| ArrayFormatter::try_new(column.as_ref(), &options))
        .collect::<Result<Vec<_>, _>>()?;
    for row in 0..rows.num_rows() {
        let cells = columns.iter();
        let cells: Vec<_> = cells.map(|column| column.value(row).to_string()).collect();
        writeln!(out, "{}", Value::from(cells))?;
    }
    Ok(())
}

/// The time for which this thread has had a core; Linux tells it in nanoseconds.
fn thread_cpu() -> anyhow::Result<Duration> {
    let text = fs::read_to_string("/proc/thread-self/schedstat")?;
    let nanoseconds = text.split(' ').next().context("an empty schedstat")?;
    Ok(Duration::from_nanos(nanoseconds.parse()?))
}
