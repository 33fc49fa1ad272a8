//! What a person would write by hand for each job: `e2e/src/bin/ceiling`.

use std::{path::Path, process::Command};

use anyhow::Result;

use super::{Work, built, worker_config};
use crate::{Bench, job::JobName};

pub fn command(bench: &Bench, work: &Work<'_>, folder: &Path) -> Result<Command> {
    let mut command = Command::new(built("ceiling")?);
    match work {
        Work::Table { job, .. } => command.arg(job.name().to_string()),
        Work::Ingest { .. } => command.arg(JobName::Ingest.to_string()),
        Work::Decode { records, .. } => command.arg(JobName::Decode.to_string()).arg(records),
    };
    command
        .arg("--config")
        .arg(worker_config::write(bench, work, folder)?)
        .arg("--credentials-dir")
        .arg(folder);
    Ok(command)
}
