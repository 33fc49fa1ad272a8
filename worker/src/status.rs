//! What the worker says about itself: errors that last, readiness, liveness.

use std::{
    borrow::Cow,
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use millstream_api::worker::{TopicGap, WorkerStatus};

/// A loop that hasn't turned for so long is stuck.
const STUCK: Duration = Duration::from_secs(30);

/// The operator copies errors into the resource's status.
const MAX_CHARS: usize = 1_000;

/// The name of something that can fail and recover, such as `cassandra`.
pub type Concern = Cow<'static, str>;

/// A part, and what can fail in it.
type Key = (String, Concern);

/// The state that `/status`, `/readyz` and `/healthz` show.
#[derive(Default)]
pub struct Status {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    complete: bool,
    errors: BTreeMap<Key, String>,
    warnings: BTreeMap<Key, String>,
    gaps: BTreeMap<Key, TopicGap>,
    /// How many fail and try again.
    failing: BTreeMap<Key, usize>,
    looked: bool,
    ready: BTreeMap<String, bool>,
    turned: BTreeMap<String, Instant>,
}

impl Status {
    /// The part of the status that belongs to `ingest` or to a sink.
    pub fn part(self: &Arc<Self>, name: &str) -> StatusPart {
        self.state().ready.insert(name.to_owned(), false);
        StatusPart {
            status: self.clone(),
            name: name.to_owned(),
        }
    }

    /// What `/status` answers.
    pub fn report(&self) -> WorkerStatus {
        let state = self.state();
        WorkerStatus {
            complete: state.complete,
            errors: by_part(&state.errors),
            warnings: by_part(&state.warnings),
            gap: first_of(&state.gaps),
            looked: state.looked,
        }
    }

    /// The parts that aren't connected yet.
    pub fn unready(&self) -> Vec<String> {
        let state = self.state();
        if state.ready.is_empty() {
            return vec!["the worker".into()];
        }
        let unready = state.ready.iter().filter(|(_, ready)| !**ready);
        unready.map(|(name, _)| name.clone()).collect()
    }

    /// The loops that are stuck.
    pub fn stuck(&self) -> Vec<String> {
        let state = self.state();
        let stuck = state
            .turned
            .iter()
            .filter(|(_, turned)| turned.elapsed() > STUCK);
        stuck.map(|(name, _)| name.clone()).collect()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Every change is one call on a map: a panic elsewhere can't leave it half done.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn by_part(messages: &BTreeMap<Key, String>) -> BTreeMap<String, String> {
    let mut parts = BTreeMap::<String, String>::new();
    for ((part, _), message) in messages {
        parts
            .entry(part.clone())
            .and_modify(|all| *all = format!("{all}; {message}"))
            .or_insert_with(|| message.clone());
    }
    parts
}

/// The first of several gaps, which tells how many there are.
fn first_of(gaps: &BTreeMap<Key, TopicGap>) -> Option<TopicGap> {
    let mut first = gaps.values().next()?.clone();
    if gaps.len() > 1 {
        first.lost = format!("{}, and so in {} more", first.lost, gaps.len() - 1);
    }
    Some(first)
}

/// The part of the status that belongs to `ingest` or to a sink.
#[derive(Clone)]
pub struct StatusPart {
    status: Arc<Status>,
    name: String,
}

impl StatusPart {
    /// Shows an error until [`StatusPart::clear`] is called for the same concern.
    pub fn fail(&self, concern: impl Into<Concern>, message: impl ToString) {
        self.show(concern.into(), message.to_string(), |state| {
            &mut state.errors
        });
    }

    /// Takes note of one that fails and tries again, where others may fail of the same concern beside
    /// it: what they say is shown until the last of them is dropped.
    pub fn failing(&self, concern: impl Into<Concern>) -> Failing {
        let concern = concern.into();
        let key = (self.name.clone(), concern.clone());
        *self.status.state().failing.entry(key).or_default() += 1;
        Failing {
            part: self.clone(),
            concern,
        }
    }

    /// Shows what is not as it should be though the work goes on, until [`StatusPart::clear`] is
    /// called for the same concern. The pipeline stays ready.
    pub fn warn(&self, concern: impl Into<Concern>, message: impl ToString) {
        self.show(concern.into(), message.to_string(), |state| {
            &mut state.warnings
        });
    }

    /// What is not as it should be.
    pub fn warning(&self) -> Option<String> {
        by_part(&self.status.state().warnings).remove(&self.name)
    }

    /// Shows an error by which records are gone, until [`StatusPart::clear`] is called for the same
    /// concern.
    pub fn gap(&self, concern: impl Into<Concern>, message: impl ToString, gap: TopicGap) {
        let concern = concern.into();
        let key = (self.name.clone(), concern.clone());
        self.status.state().gaps.insert(key, gap);
        self.fail(concern, message);
    }

    /// Says that it is known what the source's topic holds.
    pub fn looked(&self) {
        self.status.state().looked = true;
    }

    fn show(
        &self,
        concern: Concern,
        message: String,
        place: impl Fn(&mut State) -> &mut BTreeMap<Key, String>,
    ) {
        let message: String = message.chars().take(MAX_CHARS).collect();
        let key = (self.name.clone(), concern);
        let before = place(&mut self.status.state()).insert(key, message.clone());
        if before.as_ref() != Some(&message) {
            tracing::warn!(part = self.name, "{message}");
        }
    }

    /// The concern is all right again.
    pub fn clear(&self, concern: impl Into<Concern>) {
        self.recovered(self.status.state(), &(self.name.clone(), concern.into()));
    }

    fn recovered(&self, mut state: MutexGuard<'_, State>, key: &Key) {
        let shown = [state.errors.remove(key), state.warnings.remove(key)];
        state.gaps.remove(key);
        drop(state);
        if shown.iter().any(Option::is_some) {
            tracing::info!(part = self.name, "recovered: {}", key.1);
        }
    }

    /// The part is connected to what it needs.
    pub fn ready(&self) {
        self.status.state().ready.insert(self.name.clone(), true);
    }

    /// The part's loop has turned.
    pub fn turned(&self) {
        let mut state = self.status.state();
        match state.turned.get_mut(&self.name) {
            Some(turned) => *turned = Instant::now(),
            None => {
                state.turned.insert(self.name.clone(), Instant::now());
            }
        }
    }

    /// Awaits something, and tells meanwhile that the part's loop isn't stuck.
    pub async fn alive_while<T>(&self, wait: impl Future<Output = T>) -> T {
        tokio::pin!(wait);
        let mut tick = tokio::time::interval(Duration::from_secs(1));
        loop {
            tokio::select! {
                result = &mut wait => return result,
                _ = tick.tick() => self.turned(),
            }
        }
    }

    /// The source has given all its records, and Kafka has them.
    pub fn complete(&self) {
        self.status.state().complete = true;
    }
}

/// One of those that fail of a concern and try again.
pub struct Failing {
    part: StatusPart,
    concern: Concern,
}

impl Failing {
    /// Shows why it fails, in place of what was said of the concern before.
    pub fn say(&self, message: impl ToString) {
        self.part.fail(self.concern.clone(), message);
    }
}

impl Drop for Failing {
    fn drop(&mut self) {
        let key = (self.part.name.clone(), self.concern.clone());
        // Under one lock: what one says who begins to fail meanwhile isn't cleared.
        let mut state = self.part.status.state();
        let left = state.failing.entry(key.clone()).or_default();
        *left = left.saturating_sub(1);
        if *left == 0 {
            self.part.recovered(state, &key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_shown_while_it_lasts() {
        let status = Arc::new(Status::default());
        let users = status.part("users");
        let ingest = status.part("ingest");
        users.fail("cassandra", "no route");
        users.fail("kafka", "no brokers");
        ingest.fail("page 0", "status 500");
        assert_eq!(status.report().errors["users"], "no route; no brokers");
        users.clear("cassandra");
        users.clear("kafka");
        assert_eq!(
            status.report().errors.into_iter().collect::<Vec<_>>(),
            [("ingest".to_owned(), "status 500".to_owned())]
        );
    }

    #[test]
    fn an_error_of_several_is_shown_until_none_of_them_is_left() {
        let status = Arc::new(Status::default());
        let users = status.part("users");
        let [first, second] = [
            users.failing("cassandra"),
            users.clone().failing("cassandra"),
        ];
        let others = [
            users.failing("kafka"),
            status.part("orders").failing("cassandra"),
        ];
        first.say("no route");
        second.say("overloaded");
        drop(others);
        drop(second);
        assert_eq!(status.report().errors["users"], "overloaded");
        first.say("no route");
        drop(first);
        assert_eq!(status.report(), WorkerStatus::default());
        // Counting begins anew.
        let again = users.failing("cassandra");
        again.say("no route");
        drop(again);
        assert_eq!(status.report(), WorkerStatus::default());
    }

    #[test]
    fn a_loop_that_no_longer_turns_is_stuck() {
        let status = Arc::new(Status::default());
        let users = status.part("users");
        users.turned();
        assert!(status.stuck().is_empty());
        let long_ago = Instant::now().checked_sub(STUCK * 2).unwrap();
        status.state().turned.insert("users".into(), long_ago);
        assert_eq!(status.stuck(), ["users"]);
        users.turned();
        assert!(status.stuck().is_empty());
    }

    #[test]
    fn a_warning_is_no_error() {
        let status = Arc::new(Status::default());
        let ingest = status.part("ingest");
        ingest.warn("cache", "Redis is away");
        let report = status.report();
        assert_eq!(report.warnings["ingest"], "Redis is away");
        assert!(report.errors.is_empty());
        ingest.clear("cache");
        assert_eq!(status.report(), WorkerStatus::default());
    }

    #[test]
    fn a_gap_is_an_error_with_a_reason() {
        let status = Arc::new(Status::default());
        let ingest = status.part("ingest");
        let gap = |lost: &str| TopicGap {
            reason: "TopicRecreated".into(),
            lost: lost.into(),
        };
        ingest.gap("partition 0", "DataGap: this", gap("this"));
        ingest.gap("partition 2", "DataGap: that", gap("that"));
        let report = status.report();
        assert_eq!(report.errors["ingest"], "DataGap: this; DataGap: that");
        assert_eq!(report.gap, Some(gap("this, and so in 1 more")));
        ingest.clear("partition 0");
        assert_eq!(status.report().gap, Some(gap("that")));
        ingest.clear("partition 2");
        assert_eq!(status.report(), WorkerStatus::default());
    }

    #[test]
    fn ready_when_every_part_is() {
        let status = Arc::new(Status::default());
        assert_eq!(status.unready(), ["the worker"]);
        let (users, orders) = (status.part("users"), status.part("orders"));
        users.ready();
        assert_eq!(status.unready(), ["orders"]);
        orders.ready();
        assert!(status.unready().is_empty());
    }
}
