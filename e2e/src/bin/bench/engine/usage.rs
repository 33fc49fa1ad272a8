//! What a process and all those that it has started have used, as Linux tells it.

use std::{collections::BTreeMap, fs};

use anyhow::{Context, Result};

/// Linux counts a process's time in hundredths of a second wherever it shows it.
const TICKS_PER_SECOND: f64 = 100.0;

/// What was used since the start.
pub struct Usage {
    pub cpu_seconds: f64,
    /// The sum of the processes' own peaks: what they had together was not more.
    pub peak_rss_mb: f64,
}

struct Process {
    parent: u32,
    /// Its own, and that of its children that have ended.
    ticks: u64,
}

/// Of the tree of processes with this root.
pub fn of_tree(root: u32) -> Result<Usage> {
    let processes = processes()?;
    let mut tree = vec![root];
    let mut place = 0;
    while let Some(parent) = tree.get(place).copied() {
        let children = processes.iter().filter(|(_, of)| of.parent == parent);
        tree.extend(children.map(|(id, _)| id));
        place += 1;
    }
    let of_root = processes.get(&root);
    of_root.with_context(|| format!("there is no process {root}"))?;
    let known = tree.iter().filter_map(|id| processes.get(id));
    let ticks: u64 = known.map(|process| process.ticks).sum();
    let peak: u64 = tree.iter().filter_map(|id| peak_kib(*id)).sum();
    Ok(Usage {
        cpu_seconds: ticks as f64 / TICKS_PER_SECOND,
        peak_rss_mb: peak as f64 * 1024.0 / 1e6,
    })
}

fn processes() -> Result<BTreeMap<u32, Process>> {
    let mut processes = BTreeMap::new();
    for entry in fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let Some(id) = name.to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        // It may have ended meanwhile.
        let stat = fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
        processes.extend(parse(&stat).map(|process| (id, process)));
    }
    Ok(processes)
}

/// Of a line of `/proc/PID/stat`; the name in it may hold anything, parentheses too.
fn parse(stat: &str) -> Option<Process> {
    let (_, fields) = stat.rsplit_once(')')?;
    let fields: Vec<_> = fields.split_whitespace().collect();
    let times = fields.get(11..15)?.iter();
    Some(Process {
        parent: fields[1].parse().ok()?,
        ticks: times.filter_map(|ticks| ticks.parse::<u64>().ok()).sum(),
    })
}

fn peak_kib(id: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{id}/status")).ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn a_line_is_read_whatever_the_name() {
        let process =
            parse("7 (a) b (c) S 3 7 7 0 -1 4194560 9 8 0 0 100 20 3 4 20 0 1 0").unwrap();
        assert_eq!((process.parent, process.ticks), (3, 127));
        assert!(parse("").is_none());
    }

    #[test]
    fn children_count() {
        let mut shell = Command::new("sh")
            .args(["-c", "exec 3<&0; cat <&3 & echo; wait"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        // Once it has said a word, its child is there.
        let mut word = [0];
        std::io::Read::read_exact(shell.stdout.as_mut().unwrap(), &mut word).unwrap();
        let alone = peak_kib(shell.id()).unwrap() as f64 * 1024.0 / 1e6;
        let usage = of_tree(shell.id()).unwrap();
        assert!(usage.peak_rss_mb > alone, "{} {alone}", usage.peak_rss_mb);
        drop(shell.stdin.take());
        shell.wait().unwrap();
    }
}
