//! How much a writer sends at once: halved when Cassandra has too much to do, raised step by step
//! while it takes everything.

/// What is sent at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Load {
    /// Requests in flight.
    pub concurrency: usize,
    /// Bytes of a batch.
    pub batch_bytes: usize,
}

/// Where a writer begins: of bytes as many as Cassandra takes without a warning.
pub const MOST: Load = Load {
    concurrency: 64,
    batch_bytes: 5 * 1024,
};
/// A cluster that takes less than this is as good as away: the writes are repeated.
const LEAST: Load = Load {
    concurrency: 4,
    batch_bytes: 512,
};
/// From the least to the most in about 2,000 requests.
const STEP: Load = Load {
    concurrency: 1,
    batch_bytes: 128,
};

/// What became of a request.
#[derive(Clone, Copy, Debug)]
pub enum Outcome {
    /// Acknowledged.
    Taken,
    /// Cassandra had more to do than it could.
    Overloaded,
    /// A batch of so many bytes is too large.
    TooLarge(usize),
}

/// The limit of a writer.
#[derive(Debug)]
pub struct Limit {
    load: Load,
    round: u64,
    /// Requests of the round that were acknowledged since the last step.
    taken: usize,
}

impl Default for Limit {
    fn default() -> Self {
        Limit {
            load: MOST,
            round: 0,
            taken: 0,
        }
    }
}

impl Limit {
    pub fn load(&self) -> Load {
        self.load
    }

    /// Begins when the load is halved. What becomes of requests that were sent before says nothing
    /// of the new one: many of them fail together.
    pub fn round(&self) -> u64 {
        self.round
    }

    /// Takes note of what became of a request that was sent in this round.
    pub fn settle(&mut self, round: u64, outcome: Outcome) {
        let Load {
            concurrency,
            batch_bytes,
        } = self.load;
        match outcome {
            // Also of former rounds: it follows from the batch alone, and one that was cut before
            // changes nothing more.
            Outcome::TooLarge(bytes) => self.lower(Load {
                concurrency,
                batch_bytes: batch_bytes.min(bytes / 2),
            }),
            _ if round != self.round => {}
            Outcome::Overloaded => {
                self.round += 1;
                self.lower(Load {
                    concurrency: concurrency / 2,
                    batch_bytes: batch_bytes / 2,
                });
            }
            Outcome::Taken => self.taken(),
        }
    }

    fn lower(&mut self, load: Load) {
        self.taken = 0;
        self.load = Load {
            concurrency: load.concurrency.max(LEAST.concurrency),
            batch_bytes: load.batch_bytes.max(LEAST.batch_bytes),
        };
    }

    /// A step up each time that as many requests were acknowledged as may be in flight.
    fn taken(&mut self) {
        self.taken += 1;
        if self.taken < self.load.concurrency {
            return;
        }
        self.taken = 0;
        self.load = Load {
            concurrency: MOST
                .concurrency
                .min(self.load.concurrency + STEP.concurrency),
            batch_bytes: MOST
                .batch_bytes
                .min(self.load.batch_bytes + STEP.batch_bytes),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::{
        Outcome::{Overloaded, Taken, TooLarge},
        *,
    };

    /// Requests that are sent together, and what becomes of them.
    fn settle(limit: &mut Limit, requests: usize, outcome: Outcome) -> (usize, usize) {
        let round = limit.round();
        for _ in 0..requests {
            limit.settle(round, outcome);
        }
        (limit.load.concurrency, limit.load.batch_bytes)
    }

    #[test]
    fn a_healthy_cluster_gets_the_most() {
        let mut limit = Limit::default();
        assert_eq!(settle(&mut limit, 10_000, Taken), (64, 5120));
    }

    #[test]
    fn requests_that_fail_together_halve_it_once_and_never_below_the_least() {
        let mut limit = Limit::default();
        let loads = [64, 32, 16, 8, 4, 4].map(|sent| settle(&mut limit, sent, Overloaded));
        let least = (4, 512);
        let halved = [(32, 2560), (16, 1280), (8, 640), least, least, least];
        assert_eq!(loads, halved);
    }

    #[test]
    fn it_rises_step_by_step_to_the_most() {
        let mut limit = Limit::default();
        settle(&mut limit, 1, Overloaded);
        assert_eq!(settle(&mut limit, 31, Taken), (32, 2560));
        assert_eq!(settle(&mut limit, 1, Taken), (33, 2688));
        assert_eq!(settle(&mut limit, 33, Taken), (34, 2816));
        assert_eq!(settle(&mut limit, 2_000, Taken), (64, 5120));
        (0..4).for_each(|_| assert!(settle(&mut limit, 1, Overloaded).0 < 64));
        assert_eq!(settle(&mut limit, 2_009, Taken).0, 63);
        assert_eq!(settle(&mut limit, 1, Taken), (64, 5120));
    }

    #[test]
    fn requests_from_before_it_was_halved_change_nothing() {
        let mut limit = Limit::default();
        let before = limit.round();
        settle(&mut limit, 1, Overloaded);
        (0..1_000).for_each(|_| limit.settle(before, Taken));
        (0..1_000).for_each(|_| limit.settle(before, Overloaded));
        assert_eq!(settle(&mut limit, 31, Taken), (32, 2560));
    }

    #[test]
    fn a_failure_ends_the_count_to_the_next_step() {
        let mut limit = Limit::default();
        settle(&mut limit, 1, Overloaded);
        settle(&mut limit, 31, Taken);
        assert_eq!(settle(&mut limit, 1, Overloaded), (16, 1280));
        assert_eq!(settle(&mut limit, 15, Taken), (16, 1280));
        assert_eq!(settle(&mut limit, 1, Taken), (17, 1408));
    }

    #[test]
    fn batches_that_are_too_large_make_smaller_ones_of_as_many_requests() {
        let mut limit = Limit::default();
        assert_eq!(settle(&mut limit, 64, TooLarge(5_000)), (64, 2500));
        assert_eq!(settle(&mut limit, 1, TooLarge(4_900)), (64, 2450));
        assert_eq!(settle(&mut limit, 1, TooLarge(5_100)), (64, 2450));
        assert_eq!(settle(&mut limit, 64, Taken), (64, 2578));
        assert_eq!(settle(&mut limit, 1, TooLarge(700)), (64, 512));
    }
}
