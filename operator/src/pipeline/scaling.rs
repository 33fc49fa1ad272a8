//! How many process pods there should be. Pure: what is seen and the time come in, a number goes
//! out; what was seen before is the only state, and losing it costs no more than time.
//!
//! Pods are added for lag: it is the proof that there are too few. They are taken away when fewer
//! can keep up with what arrives. What a pod can do is learnt while there is a backlog; a lag that
//! is small at a steady load says nothing about how many pods keep it small, and to go by it would
//! mean to swing for ever.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use millstream_api::{scaling::Scaling, sink::Sink};

use super::offsets::{Offsets, SinkOffsets};

/// Between a step and one that adds pods, while the partitions settle.
const SETTLE_UP: Duration = Duration::from_secs(5);

/// Between a step and one that takes pods away.
const SETTLE_DOWN: Duration = Duration::from_secs(10);

/// Rates over less time than this say nothing.
const SAMPLE: Duration = Duration::from_millis(1500);

/// What was seen before a longer silence isn't gone by.
const SILENCE: Duration = Duration::from_secs(30);

/// The part of what pods can do that is counted on.
const HEADROOM: f64 = 0.8;

/// More than this many times what arrived before is a rise, and not just noise.
const RISE: f64 = 1.05;

/// How often the time before pods are taken away is doubled at most.
const DOUBLINGS: u32 = 4;

/// What was gathered takes so long to be written, and to be seen.
const WRITE: Duration = Duration::from_secs(10);

/// How much weight a new measurement of what a pod can do has.
const WEIGHT: f64 = 0.5;

/// The load at one moment.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Load {
    /// Records in the topic since it was made.
    pub records: i64,
    /// Lag of the sink that lags most, of those that make progress; 1 at least where another lags, so
    /// that a pod is there to try again.
    pub lag: i64,
    /// Sinks with an error that the lag leaves out: more pods wouldn't help them.
    pub left_out: usize,
    /// Whether every sink has an error.
    pub failing: bool,
}

impl Load {
    /// The load as Kafka's offsets tell it, where these sinks have an error.
    pub fn of(offsets: &Offsets, failing: &[&str]) -> Self {
        let of_most = |sinks: &[&SinkOffsets]| sinks.iter().map(|sink| sink.lag).max();
        let sinks = offsets.sinks.iter();
        let (stuck, working): (Vec<_>, Vec<_>) =
            sinks.partition(|sink| failing.contains(&sink.name.as_str()));
        let (stuck_lag, lag) = (of_most(&stuck).unwrap_or(0), of_most(&working));
        Load {
            records: offsets.end(),
            lag: lag.map_or(stuck_lag, |lag| lag.max(stuck_lag.min(1))),
            left_out: if lag.is_some() { stuck.len() } else { 0 },
            failing: lag.is_none() && !stuck.is_empty(),
        }
    }
}

/// The process pods at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pods {
    pub wanted: i32,
    pub there: i32,
    pub ready: i32,
}

impl Pods {
    fn settled(self) -> bool {
        self.there == self.wanted && self.ready == self.wanted
    }
}

/// What a person has asked for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bounds {
    pub min: i32,
    pub max: i32,
    pub target_lag: i64,
    pub up: Duration,
    pub down: Duration,
    /// For how long a sink gathers rows before it writes them: so long they are lag, whatever the pods
    /// do.
    pub gathers: Duration,
}

impl Bounds {
    /// More pods than partitions would be idle.
    pub fn new(scaling: &Scaling, sinks: &[Sink], partitions: i32) -> Self {
        let gathers = sinks.iter().filter_map(|sink| {
            let to = sink.delta.as_ref()?;
            Some(to.commit_interval.into())
        });
        let max = scaling.max_replicas.unwrap_or(partitions).min(partitions);
        Bounds {
            min: scaling.min_replicas.min(max),
            max,
            target_lag: scaling.target_lag.max(1),
            up: scaling.stabilization.up.into(),
            down: scaling.stabilization.down.into(),
            gathers: gathers.max().unwrap_or_default(),
        }
    }
}

/// What was seen of a pipeline so far.
#[derive(Debug, Default)]
pub struct Scaler {
    samples: VecDeque<Sample>,
    /// Records that a pod processes in a second.
    capacity: Option<f64>,
    last_step: Option<Step>,
    /// How often the time before pods are taken away was doubled.
    doublings: u32,
}

#[derive(Clone, Copy, Debug)]
struct Step {
    at: Instant,
    up: bool,
}

#[derive(Clone, Copy, Debug)]
struct Sample {
    at: Instant,
    load: Load,
    pods: Pods,
    /// Records that arrived in a second.
    rate: f64,
    /// The pods that it takes to work off the lag.
    more: i32,
    /// The pods that it takes to keep up.
    enough: i32,
}

impl Scaler {
    /// The load isn't known now. What was seen before says nothing about a window with such a part,
    /// so windows begin anew.
    pub fn blind(&mut self) {
        self.samples.clear();
    }

    /// The number of pods that there should be now.
    pub fn decide(&mut self, now: Instant, load: Load, pods: Pods, bounds: &Bounds) -> i32 {
        let current = pods.wanted;
        self.observe(now, load, pods, bounds);
        let next = self.step(now, pods, bounds).clamp(bounds.min, bounds.max);
        if next != current {
            self.stepped(now, next > current, bounds);
        }
        next
    }

    /// Takes note of a step; of one that takes back the last one so, that it isn't tried again soon.
    fn stepped(&mut self, at: Instant, up: bool, bounds: &Bounds) {
        let last = self.last_step.replace(Step { at, up });
        let lasted = bounds.down * (2 << self.doublings);
        match last {
            Some(last) if at.duration_since(last.at) < lasted => {
                if up && !last.up {
                    self.doublings = (self.doublings + 1).min(DOUBLINGS);
                }
            }
            _ => self.doublings = 0,
        }
    }

    fn observe(&mut self, now: Instant, load: Load, pods: Pods, bounds: &Bounds) {
        let mut arrived = 0;
        let mut rate = 0.0;
        if let Some(last) = self.samples.back().copied() {
            let time = now.duration_since(last.at);
            if time < SAMPLE {
                return;
            }
            let other_sinks = load.left_out != last.load.left_out;
            if time > SILENCE || load.records < last.load.records || other_sinks {
                self.samples.clear();
            } else {
                arrived = load.records - last.load.records;
                rate = arrived as f64 / time.as_secs_f64();
                self.learn(now, &last, load, pods, bounds);
            }
        }
        // Where pods run, what has arrived may be processed already; where none do, what isn't lag
        // isn't a record.
        let busy = load.lag > 0 || pods.wanted > 0 && arrived > 0;
        let (lag, target) = (load.lag as f64, bounds.target_lag as f64);
        let lag = lag - self.gathered(rate, bounds);
        let for_lag = count(lag / target).max(i32::from(busy));
        let capacity = self.capacity.filter(|_| busy);
        let keep_up = |part| capacity.map_or(0, |all| count(rate / (all * part)));
        // What arrives in a burst needs no pods where it is stored in time all the same.
        let more = match lag > target {
            true => for_lag.max(keep_up(1.0)),
            false => for_lag,
        };
        self.samples.push_back(Sample {
            at: now,
            load,
            pods,
            rate,
            more,
            enough: keep_up(HEADROOM).max(more),
        });
        // One that is older than the longest window shows that the window is known as a whole.
        let oldest = now.checked_sub(bounds.up.max(bounds.down));
        while self
            .samples
            .get(1)
            .is_some_and(|second| oldest.is_some_and(|oldest| second.at <= oldest))
        {
            self.samples.pop_front();
        }
    }

    /// The lag that is there because a sink gathers rows.
    fn gathered(&self, rate: f64, bounds: &Bounds) -> f64 {
        if bounds.gathers.is_zero() {
            return 0.0;
        }
        let rates = self.samples.iter().map(|sample| sample.rate);
        mean(rates.chain([rate])) * (bounds.gathers + WRITE).as_secs_f64()
    }

    /// Learns what a pod can do: as much as the same pods have just done, at least; and no more,
    /// where there was a backlog all the time, or the lag has become too large. In the latter case
    /// they may have been busy with their partitions rather than with records.
    fn learn(&mut self, now: Instant, last: &Sample, load: Load, pods: Pods, bounds: &Bounds) {
        let arrived = load.records - last.load.records;
        let processed = arrived - (load.lag - last.load.lag);
        let too_much = load.lag > bounds.target_lag * i64::from(pods.wanted);
        let backlog = last.load.lag > processed;
        let done = match backlog {
            false if too_much => processed.max(arrived / 2),
            _ => processed,
        };
        // Pods that are taken away are gone at once; those that are added take their time.
        let step = self.last_step;
        let fewer = step.is_some_and(|step| !step.up && step.at == last.at);
        let the_same = pods.settled() && (last.pods == pods || fewer);
        if done <= 0 || pods.ready == 0 || !the_same {
            return;
        }
        let time = now.duration_since(last.at).as_secs_f64();
        let measured = done as f64 / time / f64::from(pods.ready);
        self.capacity = match self.capacity {
            None => (backlog || too_much).then_some(measured),
            Some(known) if backlog || too_much => Some(known + WEIGHT * (measured - known)),
            Some(known) => Some(known.max(measured)),
        };
    }

    /// The next step towards what is needed.
    fn step(&self, now: Instant, pods: Pods, bounds: &Bounds) -> i32 {
        let current = pods.wanted;
        let Some(latest) = self.samples.back() else {
            return current;
        };
        if current == 0 {
            return latest.more.min(1);
        }
        let waited = |time| {
            let last = self.last_step;
            last.is_none_or(|last| now.duration_since(last.at) >= time)
        };
        let more = self.during(now, bounds.up).map(|s| s.more).min();
        let more = more.unwrap_or(0).min(bounds.max);
        if more > current && self.knows(now, bounds.up) {
            // One that can't be opened keeps pods unready, whatever they do for the other sinks.
            let settled = pods.settled() || latest.load.left_out > 0 && pods.there == current;
            let can = waited(SETTLE_UP) && settled && !latest.load.failing;
            return if can { more.min(current * 2) } else { current };
        }
        let enough = self.during(now, bounds.down).map(|s| s.enough).max();
        let enough = enough.unwrap_or(current);
        if enough >= current || !self.knows(now, bounds.down) || self.is_rising(now, bounds) {
            return current;
        }
        // Where it isn't known what a pod can do, one less is tried, and watched.
        let careful = enough > 0 && self.capacity.is_none();
        let wait = match self.doublings {
            0 if !careful => SETTLE_DOWN,
            doublings => SETTLE_DOWN.max(bounds.down * (1 << doublings)),
        };
        match waited(wait) {
            false => current,
            true if careful => current - 1,
            true => enough.max(current / 2),
        }
    }

    /// Whether more arrives in the second half of the window than in the first.
    fn is_rising(&self, now: Instant, bounds: &Bounds) -> bool {
        let half = bounds.down / 2;
        let (first, second): (Vec<_>, Vec<_>) = self
            .during(now, bounds.down)
            .partition(|sample| now.duration_since(sample.at) > half);
        let rate = |half: Vec<&Sample>| mean(half.iter().map(|sample| sample.rate));
        !first.is_empty() && rate(second) > rate(first) * RISE
    }

    /// Whether it is known what was in the last so many seconds.
    fn knows(&self, now: Instant, window: Duration) -> bool {
        let first = self.samples.front();
        first.is_some_and(|first| now.duration_since(first.at) >= window)
    }

    /// The samples of the last so many seconds; the latest at least.
    fn during(&self, now: Instant, window: Duration) -> impl Iterator<Item = &Sample> {
        let latest = self.samples.back().map(|latest| latest.at);
        self.samples.iter().filter(move |sample| {
            now.duration_since(sample.at) <= window || Some(sample.at) == latest
        })
    }
}

/// Zero where there are none.
fn mean(rates: impl Iterator<Item = f64>) -> f64 {
    let (sum, count) = rates.fold((0.0, 0_u32), |(sum, count), rate| (sum + rate, count + 1));
    sum / f64::from(count.max(1))
}

/// A number of pods, rounded up.
fn count(pods: f64) -> i32 {
    pods.ceil().clamp(0.0, 10_000.0) as i32
}

#[cfg(test)]
mod tests;
