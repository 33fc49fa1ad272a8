//! Delays between attempts.

use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};

/// Growing delays with jitter, without an end: from half a second to half a minute.
pub struct Delays(ExponentialBackoff);

const LONGEST: Duration = Duration::from_secs(30);

impl Default for Delays {
    fn default() -> Self {
        let builder = ExponentialBuilder::default()
            .with_min_delay(Duration::from_millis(500))
            .with_max_delay(LONGEST)
            .with_jitter()
            .without_max_times();
        Delays(builder.build())
    }
}

impl Delays {
    /// The next delay.
    pub fn next_delay(&mut self) -> Duration {
        self.0.next().unwrap_or(LONGEST).min(LONGEST)
    }

    /// Waits for the next delay.
    pub async fn wait(&mut self) {
        let delay = self.next_delay();
        tokio::time::sleep(delay).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_grow_and_stay_bounded() {
        let mut delays = Delays::default();
        let first = delays.next_delay();
        assert!((Duration::from_millis(500)..=Duration::from_secs(1)).contains(&first));
        for _ in 0..50 {
            delays.next_delay();
        }
        assert_eq!(delays.next_delay(), LONGEST);
    }
}
