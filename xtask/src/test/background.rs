//! What the later steps need, fetched and built beside the earlier ones, which leave a core idle now
//! and then.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result};

use crate::cache;
use crate::process;
use crate::progress::Progress;

/// `cargo xtask fetch`, as long as nothing else wants the processor.
pub struct Fetching {
    process: Child,
    log: PathBuf,
}

impl Fetching {
    /// # Errors
    /// When it can't be started.
    pub fn start(xtask: &Path) -> Result<Self> {
        let log = cache::root()?.join("fetch.log");
        let output = process::append(&log)?;
        let process = Command::new("nice")
            .args(["-n", "19"])
            .arg(xtask)
            .arg("fetch")
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()
            .context("starting `cargo xtask fetch`")?;
        Ok(Self { process, log })
    }

    /// Waits for its end. That it failed is said, and no more: who needs what it didn't fetch tries
    /// again, and fails then.
    ///
    /// # Errors
    /// When the system doesn't tell of its end.
    pub fn wait(mut self, progress: &Progress) -> Result<()> {
        if self.process.try_wait()?.is_none() {
            let step = progress.step("fetching the servers (begun with the first step)");
            self.process.wait()?;
            step.done("done");
        }
        if !self.process.wait()?.success() {
            let said = process::quoted(&self.log, 0);
            progress.say(format!("the servers aren't fetched yet; {said}"));
        }
        Ok(())
    }
}
