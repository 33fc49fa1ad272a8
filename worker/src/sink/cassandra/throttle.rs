//! Holds a writer to its limit.

use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::{Semaphore, SemaphorePermit};

use crate::{
    metrics::WriteMetrics,
    sink::cassandra::limit::{Limit, Load, MOST, Outcome},
};

/// The requests of a writer, as many at once as its limit says.
pub struct Throttle {
    slots: Semaphore,
    limited: Mutex<Limited>,
    table: String,
    metrics: WriteMetrics,
}

struct Limited {
    limit: Limit,
    /// Slots that are in use and don't come back: they are more than the limit.
    owed: usize,
}

/// Leave to send a request.
pub struct Slot<'a> {
    throttle: &'a Throttle,
    permit: Option<SemaphorePermit<'a>>,
    round: u64,
}

impl Throttle {
    /// For writes to this table.
    pub fn new(table: &str, metrics: WriteMetrics) -> Self {
        metrics.set(MOST.concurrency, MOST.batch_bytes);
        let limit = Limit::default();
        Throttle {
            slots: Semaphore::new(MOST.concurrency),
            limited: Mutex::new(Limited { limit, owed: 0 }),
            table: table.to_owned(),
            metrics,
        }
    }

    /// Bytes that a batch may have now.
    pub fn batch_bytes(&self) -> usize {
        self.limited().limit.load().batch_bytes
    }

    /// Waits until a request may be sent.
    pub async fn slot(&self) -> Slot<'_> {
        // The semaphore is never closed; without a permit the request would only be less bounded.
        let permit = self.slots.acquire().await.ok();
        Slot {
            throttle: self,
            permit,
            round: self.limited().limit.round(),
        }
    }

    fn limited(&self) -> MutexGuard<'_, Limited> {
        self.limited.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn settle(&self, round: u64, outcome: Outcome) {
        let mut limited = self.limited();
        let before = limited.limit.load();
        limited.limit.settle(round, outcome);
        let now = limited.limit.load();
        if now != before {
            limited.resize(&self.slots, before.concurrency);
            self.tell(now);
        }
    }

    fn tell(&self, load: Load) {
        let Load {
            concurrency,
            batch_bytes,
        } = load;
        self.metrics.set(concurrency, batch_bytes);
        tracing::debug!(
            table = self.table,
            concurrency,
            batch_bytes,
            "limit of writes"
        );
    }
}

impl Limited {
    /// As many slots as the limit says. One that is in use goes when its request is done.
    fn resize(&mut self, slots: &Semaphore, before: usize) {
        let now = self.limit.load().concurrency;
        let fewer = before.saturating_sub(now);
        self.owed += fewer - slots.forget_permits(fewer);
        let more = now.saturating_sub(before);
        let kept = more.min(self.owed);
        self.owed -= kept;
        slots.add_permits(more - kept);
    }
}

impl Slot<'_> {
    /// Takes note of what became of the request.
    pub fn settle(&self, outcome: Outcome) {
        self.throttle.settle(self.round, outcome);
    }
}

impl Drop for Slot<'_> {
    fn drop(&mut self) {
        let mut limited = self.throttle.limited();
        if limited.owed > 0
            && let Some(permit) = self.permit.take()
        {
            limited.owed -= 1;
            permit.forget();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::iter;

    use futures::FutureExt;

    use super::*;
    use crate::metrics::Metrics;

    /// All slots that there are.
    fn slots(throttle: &Throttle) -> Vec<Slot<'_>> {
        iter::from_fn(|| throttle.slot().now_or_never()).collect()
    }

    #[test]
    fn as_many_requests_are_in_flight_as_the_limit_says() {
        let metrics = Metrics::default();
        let writes = metrics.stage("users").writes("rows");
        let throttle = Throttle::new("users", writes);
        let most = slots(&throttle);
        assert_eq!(most.len(), 64);
        // All of them fail, and none is done yet: half of them are too many.
        most.iter()
            .for_each(|slot| slot.settle(Outcome::Overloaded));
        assert!(slots(&throttle).is_empty());
        drop(most);
        assert_eq!(slots(&throttle).len(), 32);
        assert_eq!(throttle.batch_bytes(), 2560);
        let text = metrics.text();
        for line in [
            r#"millstream_worker_write_concurrency{stage="users",kind="rows"} 32"#,
            r#"millstream_worker_write_batch_bytes{stage="users",kind="rows"} 2560"#,
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
        // None is in flight: they go at once.
        throttle.settle(1, Outcome::Overloaded);
        assert_eq!(slots(&throttle).len(), 16);
        for _ in 0..2_000 {
            throttle.settle(2, Outcome::Taken);
        }
        assert_eq!(slots(&throttle).len(), 64);
        assert_eq!(throttle.limited().limit.load(), MOST);
    }

    #[test]
    fn slots_that_were_to_go_are_kept_where_the_limit_rises_again() {
        let throttle = Throttle::new("users", Metrics::default().stage("users").writes("rows"));
        let mut most = slots(&throttle);
        most[0].settle(Outcome::Overloaded);
        // 33 in flight, where 32 may be.
        most.truncate(33);
        assert!(slots(&throttle).is_empty());
        for _ in 0..32 {
            throttle.settle(1, Outcome::Taken);
        }
        assert_eq!(throttle.limited().owed, 0);
        most.truncate(20);
        assert_eq!(slots(&throttle).len(), 13);
        drop(most);
        assert_eq!(slots(&throttle).len(), 33);
    }
}
