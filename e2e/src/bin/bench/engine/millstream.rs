//! The worker, as it is in the image.

use std::{path::Path, process::Command};

use anyhow::Result;
use millstream_e2e::free_port;

use super::{Work, built, worker_config};
use crate::Bench;

pub fn command(bench: &Bench, work: &Work<'_>, folder: &Path) -> Result<Command> {
    let mut command = Command::new(built("millstream-worker")?);
    match work {
        Work::Decode { records, .. } => command.arg("decode").arg(records),
        _ => command.args(["run", "--http-port", &free_port().to_string()]),
    };
    command
        .arg("--config")
        .arg(worker_config::write(bench, work, folder)?)
        .arg("--credentials-dir")
        .arg(folder);
    Ok(command)
}
