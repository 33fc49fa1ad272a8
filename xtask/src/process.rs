//! Running programs: never without a deadline, and never without saying what went wrong.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::progress::Step;

/// Enough for anything that only asks or changes a setting.
pub const SHORT: Duration = Duration::from_secs(30);
/// How soon the end of a program is noticed.
const CHILD_POLL: Duration = Duration::from_millis(10);
/// How often a condition is asked for: some questions cost a process.
const CONDITION_POLL: Duration = Duration::from_millis(50);

/// Cargo, as from a shell. What `cargo xtask` sets for xtask itself would make it compile ring's C
/// code again, and with it everything that knows of TLS: DataFusion, Kubernetes and the rest.
pub fn cargo() -> Command {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    for (name, _) in std::env::vars_os() {
        let name = name.to_string_lossy();
        if name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_") {
            cargo.env_remove(&*name);
        }
    }
    cargo
}

/// The command as a person would type it.
pub fn shown(command: &Command) -> String {
    let mut words = vec![command.get_program().to_string_lossy().into_owned()];
    words.extend(command.get_args().map(|a| a.to_string_lossy().into_owned()));
    words.join(" ")
}

/// Runs a command to its end and gives its standard output.
///
/// # Errors
/// When it can't start, doesn't end in time (it is killed then), or fails: with what it
/// wrote to standard error.
pub fn output(command: &mut Command, timeout: Duration) -> Result<String> {
    let (mut out, mut err) = (tempfile::tempfile()?, tempfile::tempfile()?);
    let child = command
        .stdin(Stdio::null())
        .stdout(out.try_clone()?)
        .stderr(err.try_clone()?)
        .spawn()
        .with_context(|| format!("starting {}", shown(command)))?;
    let status = wait(child, timeout, || {}).with_context(|| shown(command))?;
    if !status.success() {
        let said = read_back(&mut err)? + &read_back(&mut out)?;
        bail!("{} failed ({status}): {}", shown(command), said.trim());
    }
    read_back(&mut out)
}

/// As [`output`], for commands that are run for what they do.
///
/// # Errors
/// As [`output`].
pub fn run(command: &mut Command) -> Result<()> {
    output(command, SHORT).map(drop)
}

/// Whether the command succeeds.
pub fn succeeds(command: &mut Command, timeout: Duration) -> bool {
    output(command, timeout).is_ok()
}

/// Runs a long command with its output in `log`, showing the last line of it as it grows.
///
/// # Errors
/// As [`output`], with the last lines of the log.
pub fn logged(command: &mut Command, log: &Path, step: &Step, timeout: Duration) -> Result<()> {
    let file = append(log)?;
    let start = file.metadata()?.len();
    let child = command
        .stdin(Stdio::null())
        .stdout(file.try_clone()?)
        .stderr(file)
        .spawn()
        .with_context(|| format!("starting {}", shown(command)))?;
    let status = wait(child, timeout, || step.detail(|| last_line(log, start)))
        .with_context(|| shown(command))?;
    if !status.success() {
        bail!(
            "{} failed ({status})\n{}",
            shown(command),
            quoted(log, start)
        );
    }
    Ok(())
}

fn wait(mut child: Child, timeout: Duration, mut each: impl FnMut()) -> Result<ExitStatus> {
    let deadline = Instant::now() + timeout;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        if Instant::now() > deadline {
            child.kill()?;
            child.wait()?;
            bail!("did not end within {} s and was killed", timeout.as_secs());
        }
        each();
        std::thread::sleep(CHILD_POLL);
    }
}

/// Polls until `ready` gives a value.
///
/// # Errors
/// An error of `ready` at once; after the deadline, that `what` didn't come about.
pub fn wait_until<T>(
    what: &str,
    timeout: Duration,
    mut ready: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let deadline = Instant::now() + timeout;
    loop {
        if let Some(value) = ready()? {
            return Ok(value);
        }
        if Instant::now() > deadline {
            bail!("waited {} s in vain: {what}", timeout.as_secs());
        }
        std::thread::sleep(CONDITION_POLL);
    }
}

/// Opens a log to write at its end, making its folder.
///
/// # Errors
/// Those of the file system.
pub fn append(log: &Path) -> Result<File> {
    if let Some(folder) = log.parent() {
        fs::create_dir_all(folder).with_context(|| format!("creating {}", folder.display()))?;
    }
    let file = OpenOptions::new().create(true).append(true).open(log);
    file.with_context(|| format!("opening {}", log.display()))
}

/// The end of a log from `start` on, for an error message: a few lines, and where the rest is.
pub fn quoted(log: &Path, start: u64) -> String {
    let text = read_from(log, start);
    let lines: Vec<_> = text.lines().collect();
    let last = lines[lines.len().saturating_sub(15)..].join("\n  ");
    format!("the last lines of {}:\n  {last}", log.display())
}

fn last_line(log: &Path, start: u64) -> String {
    let text = read_from(log, start);
    let line = text.lines().rev().find(|line| !line.trim().is_empty());
    line.unwrap_or_default().trim().to_owned()
}

/// At most the last 8 KiB after `start`; nothing if the log can't be read.
fn read_from(log: &Path, start: u64) -> String {
    let read = || -> std::io::Result<Vec<u8>> {
        let mut file = File::open(log)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(start.max(length.saturating_sub(8192))))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    String::from_utf8_lossy(&read().unwrap_or_default()).into_owned()
}

fn read_back(file: &mut File) -> Result<String> {
    let mut bytes = Vec::new();
    file.seek(SeekFrom::Start(0))?;
    file.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_says_what_was_run_and_what_it_said() {
        let error = output(
            Command::new("sh").args(["-c", "echo no >&2; exit 3"]),
            SHORT,
        );
        let text = error.unwrap_err().to_string();
        assert!(text.contains("sh -c") && text.ends_with(": no"), "{text}");
    }

    #[test]
    fn a_command_that_hangs_is_killed() {
        let started = Instant::now();
        let error = output(Command::new("sleep").arg("60"), Duration::from_millis(50));
        assert!(format!("{:#}", error.unwrap_err()).contains("was killed"));
        assert!(started.elapsed() < Duration::from_secs(30));
    }

    #[test]
    fn only_the_lines_of_this_run_are_quoted() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("log");
        fs::write(&log, "old\n").unwrap();
        let progress = crate::progress::Progress::new();
        let step = progress.step("test");
        let mut command = Command::new("sh");
        command.args(["-c", "echo new; exit 1"]);
        let error = logged(&mut command, &log, &step, SHORT)
            .unwrap_err()
            .to_string();
        assert!(error.contains("new") && !error.contains("old"), "{error}");
    }
}
