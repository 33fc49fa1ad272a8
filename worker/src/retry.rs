//! Delays between attempts.

use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};

/// Growing delays with jitter, without an end.
pub struct Delays {
    backoff: ExponentialBackoff,
    longest: Duration,
}

const SHORTEST: Duration = Duration::from_millis(500);

impl Default for Delays {
    /// From half a second to half a minute.
    fn default() -> Self {
        Delays::up_to(Duration::from_secs(30))
    }
}

impl Delays {
    /// From half a second to this.
    pub fn up_to(longest: Duration) -> Self {
        let builder = ExponentialBuilder::default()
            .with_min_delay(SHORTEST)
            .with_max_delay(longest)
            .with_jitter()
            .without_max_times();
        Delays {
            backoff: builder.build(),
            longest,
        }
    }

    /// The next delay.
    pub fn next_delay(&mut self) -> Duration {
        let delay = self.backoff.next().unwrap_or(self.longest);
        delay.min(self.longest)
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
        assert_eq!(delays.next_delay(), Duration::from_secs(30));
    }
}
