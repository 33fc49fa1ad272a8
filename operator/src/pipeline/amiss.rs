//! What is amiss, and told only where it lasts: neither a start, nor a retry, nor a node that goes
//! away makes the status change to and fro.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

/// Longer than a pod takes to start, than a Job waits before its first retries (10, 20 and 40 s), and
/// than the pods of a node that is gone count as ready (50 s).
const PATIENCE: Duration = Duration::from_secs(60);

/// What is amiss, by the words that tell of it, and since when.
#[derive(Debug, Default)]
pub struct Amiss(BTreeMap<String, Instant>);

impl Amiss {
    /// Takes note of what is amiss now; what has been all the time for long, or was told of before
    /// the operator was started.
    pub fn lasting(&mut self, now: Instant, found: Vec<String>, told: &str) -> Option<String> {
        let before = std::mem::take(&mut self.0);
        let since = found.into_iter().map(|what| {
            let since = before.get(&what).copied().unwrap_or(now);
            (what, since)
        });
        self.0 = since.collect();
        let mut all = self.0.iter();
        let lasting = all.find(|(what, since)| {
            now.duration_since(**since) >= PATIENCE || told.contains(what.as_str())
        });
        lasting.map(|(what, _)| what.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_amiss_is_told_when_it_lasts() {
        let start = Instant::now();
        let mut amiss = Amiss::default();
        let mut at = |seconds, found: &[&str], told| {
            let found = found.iter().map(ToString::to_string).collect();
            amiss.lasting(start + Duration::from_secs(seconds), found, told)
        };
        let told = Some("a".to_string());
        assert_eq!(at(0, &["b", "a"], ""), None);
        assert_eq!(at(59, &["a"], ""), None);
        assert_eq!(at(60, &["a", "b"], ""), told, "b has passed meanwhile");
        assert_eq!(at(65, &[], "a"), None);
        assert_eq!(at(70, &["a"], ""), None, "it begins anew");
        // As where the operator was started anew, and knows nothing.
        assert_eq!(at(75, &["b", "a"], "the status says a"), told);
    }
}
