//! The network, mount and pid namespaces that hold everything of the node.
//!
//! Process 1 in them is a small script; ending it ends everything. What runs is read from
//! `/proc`, never from pid files: a file can be stale or missing after a kill, the kernel's
//! own table can't, and a reused pid isn't in the namespace. A process is known by two
//! variables in its environment and by its name (children inherit the variables).

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::layout::Layout;
use crate::process::{self, SHORT};

const RUN: &str = "MILLSTREAM_RUN";
const UNIT: &str = "MILLSTREAM_UNIT";
const INIT: &str = "init";
/// A server that holds data writes it out first.
const STOP_TIMEOUT: Duration = Duration::from_secs(60);

/// One server of the node.
#[derive(Debug, Clone)]
pub(super) struct Unit {
    pub(super) name: &'static str,
    /// What the process is when it serves; it may begin as a shell that prepares.
    pub(super) program: String,
    /// The command line that starts it.
    pub(super) command: Vec<String>,
}

impl Unit {
    pub(super) fn new<const N: usize>(name: &'static str, command: [String; N]) -> Self {
        Self {
            name,
            program: command.first().cloned().unwrap_or_default(),
            command: command.into(),
        }
    }
}

/// A unit that was started; ends when it ends.
pub(super) struct Started {
    child: Child,
    /// The length its log had before.
    pub(super) log_start: u64,
}

impl Started {
    pub(super) fn has_ended(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(Some(_)))
    }
}

/// The live namespaces, by their process 1.
pub(super) struct Namespaces {
    layout: Layout,
    init: u32,
    pid_namespace: std::path::PathBuf,
}

/// Ends every process of the node, and any that is about to make one; the kernel takes
/// mounts and interfaces away with the last.
///
/// Process 1 is gone only when all others of its namespace are.
pub(super) fn end_all(layout: &Layout) -> Result<()> {
    let run = layout.run.display().to_string();
    process::wait_until("every process of the node ends", SHORT, || {
        let ours = |pid: &u32| marks(*pid).is_some_and(|(of, _)| of == run);
        let alive: Vec<_> = pids().into_iter().filter(ours).collect();
        for pid in &alive {
            // It may be gone by now: the next round tells.
            let _ = signal(*pid, "KILL");
        }
        Ok(alive.is_empty().then_some(()))
    })
}

impl Namespaces {
    /// The ones that are there, if any.
    pub(super) fn find(layout: &Layout) -> Option<Self> {
        let run = layout.run.display().to_string();
        let init = pids().into_iter().find(|pid| {
            marks(*pid).is_some_and(|(of, unit)| of == run && unit.name == INIT)
                && is_first_in_namespace(*pid)
        })?;
        let pid_namespace = fs::read_link(format!("/proc/{init}/ns/pid")).ok()?;
        Some(Self {
            layout: layout.clone(),
            init,
            pid_namespace,
        })
    }

    /// Makes new ones with `script` as process 1, and waits until it has set them up.
    pub(super) fn create(layout: &Layout, script: &Path) -> Result<Self> {
        let log = layout.log(INIT);
        let mut unshare = Command::new("setsid");
        unshare
            .args([
                "unshare",
                "--net",
                "--mount",
                "--pid",
                "--fork",
                "--kill-child",
            ])
            .args(["--mount-proc", "--propagation", "private", "--", "bash"])
            .arg(script);
        let mut child = spawn(layout, &mut unshare, INIT, "bash", &log)?;
        process::wait_until("the node's namespaces", SHORT, || {
            if child.has_ended() {
                bail!("the node's namespaces failed; {}", process::quoted(&log, 0));
            }
            let ready = layout.namespaces_ready().exists();
            Ok(ready.then(|| Self::find(layout)).flatten())
        })
    }

    /// Process 1, as this machine counts.
    pub(super) fn init(&self) -> u32 {
        self.init
    }

    /// A command to be completed with a program that runs inside.
    pub(super) fn enter(&self) -> Command {
        let mut command = Command::new("nsenter");
        command
            .args(["--target", &self.init.to_string()])
            .args(["--net", "--mount", "--pid"])
            .arg(format!("--wd={}", self.layout.run.display()))
            .arg("--");
        command
    }

    /// What runs, by the names of the units.
    pub(super) fn running(&self) -> BTreeMap<String, u32> {
        let inside = pids().into_iter().filter(|pid| self.holds(*pid));
        inside
            .filter_map(|pid| {
                let (_, mark) = marks(pid)?;
                let comm = fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
                (comm.trim_end() == mark.program).then_some((mark.name, pid))
            })
            .collect()
    }

    /// Starts a unit in the background, detached from this terminal.
    pub(super) fn start(&self, unit: &Unit) -> Result<Started> {
        let mut command = Command::new("setsid");
        let enter = self.enter();
        command
            .arg(enter.get_program())
            .args(enter.get_args())
            .args(&unit.command);
        let log = self.layout.log(unit.name);
        spawn(&self.layout, &mut command, unit.name, &unit.program, &log)
    }

    /// Asks a unit to end and waits until it has; nothing to do if it doesn't run.
    pub(super) fn stop(&self, unit: &str) -> Result<()> {
        let Some(pid) = self.running().get(unit).copied() else {
            return Ok(());
        };
        signal(pid, "TERM")?;
        // One that is paused hears it when it goes on.
        signal(pid, "CONT")?;
        process::wait_until(&format!("{unit} ends"), STOP_TIMEOUT, || {
            Ok((self.running().get(unit) != Some(&pid)).then_some(()))
        })
    }

    /// Sends a signal to a unit, such as `STOP`.
    pub(super) fn signal(&self, unit: &str, name: &str) -> Result<()> {
        let pid = self.running().get(unit).copied();
        signal(pid.with_context(|| format!("{unit} doesn't run"))?, name)
    }

    fn holds(&self, pid: u32) -> bool {
        let namespace = fs::read_link(format!("/proc/{pid}/ns/pid"));
        namespace.is_ok_and(|namespace| namespace == self.pid_namespace)
    }
}

fn spawn(
    layout: &Layout,
    command: &mut Command,
    unit: &str,
    program: &str,
    log: &Path,
) -> Result<Started> {
    let output = process::append(log)?;
    let log_start = output.metadata()?.len();
    let child = command
        .env_clear()
        .env(
            "PATH",
            "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        )
        .env("HOME", &layout.run)
        .env("LANG", "C.UTF-8")
        .env(RUN, &layout.run)
        .env(UNIT, format!("{unit}/{}", comm(program)))
        .current_dir(&layout.run)
        .stdin(Stdio::null())
        .stdout(output.try_clone()?)
        .stderr(output)
        .spawn()
        .with_context(|| format!("starting {unit}"))?;
    Ok(Started { child, log_start })
}

struct Mark {
    name: String,
    program: String,
}

/// The run folder and the unit that a process was started for.
fn marks(pid: u32) -> Option<(String, Mark)> {
    let environment = fs::read(format!("/proc/{pid}/environ")).ok()?;
    let variable = |name: &str| {
        let lines = environment.split(|byte| *byte == 0);
        let mut values = lines.filter_map(|line| {
            let line = std::str::from_utf8(line).ok()?;
            line.strip_prefix(name)?.strip_prefix('=')
        });
        values.next()
    };
    let (name, program) = variable(UNIT)?.split_once('/')?;
    let mark = Mark {
        name: name.to_owned(),
        program: program.to_owned(),
    };
    Some((variable(RUN)?.to_owned(), mark))
}

/// What the kernel calls a process that runs `program`.
fn comm(program: &str) -> String {
    let name = program.rsplit('/').next().unwrap_or(program);
    name.chars().take(15).collect()
}

fn pids() -> Vec<u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect()
}

fn is_first_in_namespace(pid: u32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let mut lines = status.lines();
    let pids = lines.find_map(|line| line.strip_prefix("NSpid:"));
    let pids: Vec<_> = pids.unwrap_or_default().split_whitespace().collect();
    pids.len() > 1 && pids.last() == Some(&"1")
}

fn signal(pid: u32, name: &str) -> Result<()> {
    process::run(Command::new("kill").args([&format!("-{name}"), &pid.to_string()]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_cut_as_the_kernel_cuts_them() {
        assert_eq!(comm("/x/kube-controller-manager"), "kube-controller");
        assert_eq!(comm("java"), "java");
    }

    #[test]
    fn a_process_is_found_by_its_marks_and_an_unmarked_one_is_not() {
        let mut child = Command::new("sleep")
            .arg("60")
            .env(RUN, "/a")
            .env(UNIT, "kafka/sleep")
            .spawn()
            .unwrap();
        let found = process::wait_until("marks", SHORT, || Ok(marks(child.id()))).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!((found.0.as_str(), found.1.name.as_str()), ("/a", "kafka"));
        assert!(marks(std::process::id()).is_none());
    }
}
