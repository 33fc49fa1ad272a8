//! Class-data archives: the classes a server loads, ready to be mapped instead of parsed,
//! which halves the CPU time of a start.
//!
//! An archive is dumped by a server that is started once, in a network namespace where
//! nobody reaches it, and stopped when it serves. It is kept under the hash of the jars, the
//! Java version and the server's options.

use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::{Place, Service, java};
use crate::cache;
use crate::process;
use crate::progress::Progress;

/// Long: it may run beside a compiler, as the last one that gets a processor.
const TIMEOUT: Duration = Duration::from_secs(900);
const ARCHIVE: &str = "classes.jsa";

/// The Java options that use the service's archive.
pub(super) fn options(service: Service, progress: &Progress) -> Result<Vec<String>> {
    let version = &java::find()?.version;
    // The command line names the jars by their hash.
    let nowhere = Place::new(Path::new("/data"), Path::new("/config"), Vec::new());
    let command = service.command(&nowhere, progress)?.command.join("\n");
    let name = service.name();
    let key = format!("{name}-{}", cache::key(&[version, &command]));
    let entry = cache::entry("classes", &key, |folder| {
        let step = progress.step(format!("preparing fast starts of {name}"));
        dump(service, folder, progress)?;
        step.done("done");
        Ok(())
    })?;
    Ok(vec![format!(
        "-XX:SharedArchiveFile={}",
        entry.join(ARCHIVE).display()
    )])
}

fn dump(service: Service, folder: &Path, progress: &Progress) -> Result<()> {
    let (data, config) = (folder.join("data"), folder.join("config"));
    let archive = folder.join(ARCHIVE);
    let options = vec![format!("-XX:ArchiveClassesAtExit={}", archive.display())];
    let place = Place::new(&data, &config, options);
    let launch = service.launch(&place, progress)?;
    let log = folder.join("log");
    let output = process::append(&log)?;
    // It dies with this process, and its network has no way out.
    let mut server = Command::new("setpriv")
        .args(["--pdeathsig", "KILL", "unshare", "--net", "sh", "-c"])
        .args([r#"ip link set lo up && exec "$@""#, "sh"])
        .args(&launch.command)
        .current_dir(&data)
        .stdin(Stdio::null())
        .stdout(output.try_clone()?)
        .stderr(output)
        .spawn()?;
    let waited = process::wait_until("the server listens", TIMEOUT, || {
        if server.try_wait()?.is_some() {
            bail!("it ended");
        }
        Ok(listens(server.id(), service.port()).then_some(()))
    });
    let ended = waited.and_then(|()| {
        process::run(Command::new("kill").arg(server.id().to_string()))?;
        process::wait_until("the server ends", TIMEOUT, || Ok(server.try_wait()?))
    });
    if ended.is_err() {
        let _ = server.kill();
        server.wait()?;
    }
    ended.with_context(|| process::quoted(&log, 0))?;
    if !archive.exists() {
        bail!("no archive was dumped; {}", process::quoted(&log, 0));
    }
    for folder in [data, config] {
        fs::remove_dir_all(folder)?;
    }
    Ok(())
}

/// Whether somebody listens at a port in the network namespace of a process.
fn listens(pid: u32, port: u16) -> bool {
    ["tcp", "tcp6"].iter().any(|table| {
        let table = fs::read_to_string(format!("/proc/{pid}/net/{table}")).unwrap_or_default();
        table
            .lines()
            .skip(1)
            .any(|line| listening_port(line) == Some(port))
    })
}

/// Reads a line of the kernel's table of sockets: `sl local_address rem_address st …`, in
/// hexadecimal, 0A for a socket that listens.
fn listening_port(line: &str) -> Option<u16> {
    let mut fields = line.split_whitespace();
    let (_, port) = fields.nth(1)?.rsplit_once(':')?;
    let listens = fields.nth(1)? == "0A";
    listens
        .then(|| u16::from_str_radix(port, 16).ok())
        .flatten()
}

impl<'a> Place<'a> {
    fn new(data: &'a Path, config: &'a Path, java_options: Vec<String>) -> Self {
        Self {
            address: IpAddr::V4(Ipv4Addr::LOCALHOST),
            data,
            config,
            java_options,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listening_socket_is_seen_and_others_are_not() {
        let line = "  0: 0100007F:2382 00000000:0000 0A 00000000:00000000 00:00000000 00000000";
        assert_eq!(listening_port(line), Some(9090));
        assert_eq!(listening_port(&line.replace(" 0A ", " 01 ")), None);

        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        assert!(listens(std::process::id(), port));
        drop(listener);
        assert!(!listens(std::process::id(), port));
    }
}
