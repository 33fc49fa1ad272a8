//! What a person sees while they wait: a line a step with the seconds so far; plain lines
//! where nobody watches a terminal.

use std::cell::Cell;
use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

/// How often a long step says where it is when its output goes to a file.
const PLAIN_INTERVAL: Duration = Duration::from_secs(20);
const TERMINAL_INTERVAL: Duration = Duration::from_millis(100);

/// All the steps of one command.
pub struct Progress {
    started: Instant,
    bars: Option<MultiProgress>,
}

impl Progress {
    pub fn new() -> Self {
        let bars = std::io::stderr().is_terminal().then(MultiProgress::new);
        Self {
            started: Instant::now(),
            bars,
        }
    }

    /// A line on its own.
    pub fn say(&self, text: impl AsRef<str>) {
        let line = format!("[{:6.1} s] {}", self.seconds(), text.as_ref());
        match &self.bars {
            Some(bars) => bars.suspend(|| eprintln!("{line}")),
            None => eprintln!("{line}"),
        }
    }

    /// Begins a step that takes a while; several may run at a time.
    pub fn step(&self, name: impl Into<String>) -> Step<'_> {
        let name = name.into();
        let bar = self.bars.as_ref().map(|bars| {
            let bar = bars.add(ProgressBar::new_spinner());
            bar.set_style(style());
            bar.set_prefix(name.clone());
            bar.enable_steady_tick(TERMINAL_INTERVAL);
            bar
        });
        Step {
            progress: self,
            name,
            bar,
            started: Instant::now(),
            said: Cell::new(Instant::now()),
        }
    }

    /// Seconds since the command began.
    pub fn seconds(&self) -> f64 {
        self.started.elapsed().as_secs_f64()
    }
}

fn style() -> ProgressStyle {
    ProgressStyle::with_template("{spinner} {prefix} {elapsed} {wide_msg:.dim}")
        .expect("the template is a constant")
}

/// One step; it vanishes when dropped without [`Step::done`].
pub struct Step<'a> {
    progress: &'a Progress,
    name: String,
    bar: Option<ProgressBar>,
    started: Instant,
    said: Cell<Instant>,
}

impl Step<'_> {
    /// What the step is at; asked only as often as it is shown.
    pub fn detail(&self, text: impl FnOnce() -> String) {
        let interval = match self.bar {
            Some(_) => TERMINAL_INTERVAL,
            None => PLAIN_INTERVAL,
        };
        if self.said.get().elapsed() < interval {
            return;
        }
        self.said.set(Instant::now());
        match &self.bar {
            Some(bar) => bar.set_message(text()),
            None => {
                let (seconds, text) = (self.started.elapsed().as_secs(), text());
                let colon = if text.is_empty() { "" } else { ": " };
                self.progress
                    .say(format!("{}, {seconds} s{colon}{text}", self.name));
            }
        }
    }

    /// Ends the step with a line that stays.
    pub fn done(self, text: impl AsRef<str>) {
        let seconds = self.started.elapsed().as_secs_f64();
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        self.progress
            .say(format!("{} {} ({seconds:.1} s)", self.name, text.as_ref()));
    }
}

impl Drop for Step<'_> {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
