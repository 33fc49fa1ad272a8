//! What failed, said once more at the end: where a run of an hour is read from.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;

/// So many of a failure's last lines are kept: its panic is among them, most of a log isn't.
const LINES: usize = 30;

/// Failures as they are read from the output of `cargo test`, or told.
#[derive(Default)]
pub struct Recap {
    step: Cell<&'static str>,
    failures: RefCell<Vec<Failure>>,
    /// Whether the lines that are read belong to the last failure.
    inside: Cell<bool>,
}

struct Failure {
    name: String,
    lines: VecDeque<String>,
}

impl Recap {
    /// Names the step whose failures follow.
    pub fn step(&self, name: &'static str) {
        self.step.set(name);
        self.inside.set(false);
    }

    /// A failure of the step as a whole, whose lines are known.
    pub fn add<T: AsRef<str>>(&self, lines: impl IntoIterator<Item = T>) {
        self.begin("");
        for line in lines {
            self.keep(line.as_ref());
        }
        self.inside.set(false);
    }

    /// A line of `cargo test`: what a test printed is between `---- NAME stdout ----` and the
    /// next of these or the list of names that closes it.
    pub fn read(&self, line: &str) {
        let name = line
            .strip_prefix("---- ")
            .and_then(|rest| rest.strip_suffix(" stdout ----"));
        match name {
            Some(name) => self.begin(name),
            None if line == "failures:" => self.inside.set(false),
            None if self.inside.get() && !is_of_backtrace(line) => self.keep(line),
            None => {}
        }
    }

    /// Prints them.
    pub fn print(&self) {
        for Failure { name, lines } in self.failures.borrow().iter() {
            println!("\nfailed: {name}");
            for line in lines {
                println!("    {line}");
            }
        }
    }

    fn begin(&self, name: &str) {
        let name = format!("{} {name}", self.step.get()).trim_end().to_string();
        let lines = VecDeque::new();
        self.failures.borrow_mut().push(Failure { name, lines });
        self.inside.set(true);
    }

    fn keep(&self, line: &str) {
        if let Some(Failure { lines, .. }) = self.failures.borrow_mut().last_mut() {
            if lines.len() == LINES {
                lines.pop_front();
            }
            lines.push_back(line.to_string());
        }
    }
}

/// `  12: name` or `      at file:1:2`. What they lead to, the panic says too, in a line.
fn is_of_backtrace(line: &str) -> bool {
    let text = line.trim_start();
    let numbered = || text.split_once(": ")?.0.parse::<u32>().ok();
    line.starts_with("  ") && (text.starts_with("at ") || numbered().is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failed_tests_are_told_again_with_what_they_printed() {
        let recap = Recap::default();
        recap.step("unit");
        let output = "test a ... ok\ntest b ... FAILED\n\nfailures:\n\n---- b stdout ----\n\
            thread 'b' panicked\n   0: b\n      at b.rs:1:2\nleft: 1\n\n---- c stdout ----\nwhy\n\nfailures:\n    b\n    c\n";
        output.lines().for_each(|line| recap.read(line));
        recap.add(["it was killed"]);
        let failures = recap.failures.borrow();
        let told: Vec<_> = failures
            .iter()
            .map(|failure| (failure.name.as_str(), failure.lines[0].as_str()))
            .collect();
        let expected = [
            ("unit b", "thread 'b' panicked"),
            ("unit c", "why"),
            ("unit", "it was killed"),
        ];
        assert_eq!(told, expected);
        assert_eq!(failures[0].lines[1], "left: 1");
        assert!(!failures[1].lines.contains(&"    b".to_string()));
    }

    #[test]
    fn of_long_output_the_end_is_kept() {
        let recap = Recap::default();
        recap.add((0..100).map(|n| n.to_string()));
        let failures = recap.failures.borrow();
        assert_eq!(failures[0].lines.len(), LINES);
        assert_eq!(failures[0].lines[LINES - 1], "99");
    }
}
