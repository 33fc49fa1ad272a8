//! The state of a group as it is kept, and the states that are at hand.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::{Duration, Instant},
};

use millstream_plan::MAX_STATE_BYTES;

/// The first byte of what is kept. The states are rows of the `arrow-row` crate; should a later
/// one of it make other bytes (a test pins them), this is how old states are told from new ones.
const VERSION: u8 = 1;
const HEADER_BYTES: usize = 1 + 8 + 8 + 4 + 8;

/// The state of a group, and what is in it: the records of one topic partition up to an offset. Cheap
/// to clone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State {
    /// The timestamp base of the topic whose offset it is: offsets of another topic are others.
    pub base: i64,
    /// The topic partition.
    pub partition: i32,
    /// The last record that is in it.
    pub offset: i64,
    /// What the plan's fold makes of them.
    pub bytes: Arc<[u8]>,
}

impl State {
    /// All of it as one value, and so one cell: two cells of one timestamp could mix.
    pub fn encode(&self, fingerprint: u64, bytes: &mut Vec<u8>) {
        bytes.push(VERSION);
        bytes.extend(fingerprint.to_be_bytes());
        bytes.extend(self.base.to_be_bytes());
        bytes.extend(self.partition.to_be_bytes());
        bytes.extend(self.offset.to_be_bytes());
        bytes.extend_from_slice(&self.bytes);
    }

    /// Reads what was kept. The error says why it can't be taken up.
    pub fn decode(bytes: &[u8], fingerprint: u64) -> Result<Self, &'static str> {
        const FOREIGN: &str = "it isn't a state that this worker knows";
        let (version, rest) = bytes.split_first().ok_or(FOREIGN)?;
        if *version != VERSION || bytes.len() < HEADER_BYTES {
            return Err(FOREIGN);
        }
        let (kept, rest) = rest.split_first_chunk().ok_or(FOREIGN)?;
        let (base, rest) = rest.split_first_chunk().ok_or(FOREIGN)?;
        let (partition, rest) = rest.split_first_chunk().ok_or(FOREIGN)?;
        let (offset, rest) = rest.split_first_chunk().ok_or(FOREIGN)?;
        if u64::from_be_bytes(*kept) != fingerprint {
            return Err(
                "it is the state of another query or of another sink: its GROUP BY, aggregates or WHERE differ",
            );
        }
        Ok(State {
            base: i64::from_be_bytes(*base),
            partition: i32::from_be_bytes(*partition),
            offset: i64::from_be_bytes(*offset),
            bytes: rest.into(),
        })
    }
}

/// States that are at hand, the least used of which make room for others: two generations, of
/// which the older goes as a whole.
///
/// A state whose write isn't acknowledged yet never goes: what is read in its place would be older.
pub struct Cache {
    young: HashMap<Box<[u8]>, Cached>,
    old: HashMap<Box<[u8]>, Cached>,
    young_bytes: usize,
    /// With so many bytes the young ones grow old.
    limit: usize,
    budget: usize,
    /// After so long a state isn't there any more.
    ttl: Option<Duration>,
    /// Parts of batches whose states are being written.
    unsettled: BTreeSet<u64>,
    parts: u64,
    seen: Seen,
}

/// What states there were so far.
#[derive(Clone, Copy, Default)]
struct Seen {
    states: usize,
    /// Bytes of the largest, of which less and less is remembered.
    largest: usize,
}

impl Seen {
    fn add(&mut self, bytes: usize) {
        self.states += 1;
        self.largest = bytes.max(self.largest - self.largest / 256);
    }
}

struct Cached {
    /// The assignment under which it was read; under another, somebody else may have gone on.
    epoch: u64,
    /// The part of a batch that changed it last.
    part: u64,
    since: Instant,
    /// None: the group has no state in the table.
    state: Option<State>,
}

/// From fewer states nothing is concluded for the next.
const FEW: usize = 64;
/// A state may have so many bytes though all before had less.
const SMALL: usize = 16 * 1024;
/// Bytes of an entry beside key and state.
const ENTRY_BYTES: usize = 128;

fn size(key: &[u8], cached: &Cached) -> usize {
    let state = cached.state.as_ref().map_or(0, |state| state.bytes.len());
    ENTRY_BYTES + key.len() + state
}

impl Cache {
    /// A cache of about so many bytes; in the table states expire after `ttl`.
    pub fn new(budget: usize, ttl: Option<Duration>) -> Self {
        Cache {
            young: HashMap::new(),
            old: HashMap::new(),
            young_bytes: 0,
            limit: budget / 2,
            budget,
            ttl,
            unsettled: BTreeSet::new(),
            parts: 0,
            seen: Seen::default(),
        }
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        *self = Cache {
            parts: self.parts,
            seen: self.seen,
            ..Cache::new(self.budget, self.ttl)
        };
    }

    /// The state of a group, if it is at hand; the inner none is a group that has none.
    pub fn get(&mut self, key: &[u8], epoch: u64) -> Option<Option<State>> {
        if let Some((key, cached)) = self.old.remove_entry(key) {
            self.keep(key, cached);
        }
        // Moving it may have made the young ones old.
        let cached = self.young.get(key).or_else(|| self.old.get(key))?;
        let expired = self.ttl.is_some_and(|ttl| cached.since.elapsed() >= ttl)
            && !self.unsettled.contains(&cached.part);
        (cached.epoch == epoch && !expired).then(|| cached.state.clone())
    }

    /// Begins a part of a batch; its states stay until it is settled.
    pub fn begin(&mut self) -> u64 {
        self.parts += 1;
        self.unsettled.insert(self.parts);
        self.parts
    }

    /// Takes note of a state. `part` is the one that changed it; none where it was only read.
    pub fn put(&mut self, key: &[u8], epoch: u64, part: Option<u64>, state: Option<State>) {
        self.old.remove(key);
        let bytes = state.as_ref().map_or(0, |state| state.bytes.len());
        self.seen.add(bytes);
        if part.is_none() && self.ttl.is_some() {
            // Nobody knows here when it was written, and so when it expires.
            return;
        }
        let cached = Cached {
            epoch,
            part: part.unwrap_or(0),
            since: Instant::now(),
            state,
        };
        self.keep(key.into(), cached);
    }

    /// Bytes for which there should be room where a state is read: as many as the largest of the last
    /// ones has, or as any may have while few were seen.
    pub fn likely(&self) -> usize {
        match self.seen.states < FEW {
            true => MAX_STATE_BYTES,
            false => self.seen.largest.max(SMALL),
        }
    }

    /// All writes of a part of a batch are acknowledged.
    pub fn settle(&mut self, part: u64) {
        self.unsettled.remove(&part);
    }

    fn keep(&mut self, key: Box<[u8]>, cached: Cached) {
        self.young_bytes += size(&key, &cached);
        if let Some(before) = self.young.get(&key) {
            self.young_bytes -= size(&key, before);
        }
        self.young.insert(key, cached);
        if self.young_bytes > self.limit {
            self.turn();
        }
    }

    /// The old ones go, the young ones are the old ones now.
    fn turn(&mut self) {
        let young = std::mem::take(&mut self.young);
        self.young_bytes = 0;
        let old = std::mem::replace(&mut self.old, young);
        for (key, cached) in old {
            if self.unsettled.contains(&cached.part) {
                self.young_bytes += size(&key, &cached);
                self.young.insert(key, cached);
            }
        }
        // Where much can't go, turning at every state would cost more than it frees.
        self.limit = (self.budget / 2).max(self.young_bytes + self.budget / 4);
    }

    /// Bytes that are held, about.
    pub fn bytes(&self) -> usize {
        let old = self.old.iter().map(|(key, cached)| size(key, cached));
        self.young_bytes + old.sum::<usize>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(offset: i64) -> State {
        State {
            base: 7,
            partition: 3,
            offset,
            bytes: vec![1; 72].into(),
        }
    }

    #[test]
    fn states_are_read_as_they_were_written() {
        let mut bytes = Vec::new();
        state(42).encode(5, &mut bytes);
        assert_eq!(State::decode(&bytes, 5), Ok(state(42)));
        let other = State::decode(&bytes, 6).unwrap_err();
        assert!(other.contains("another query"), "{other}");
        for end in 0..HEADER_BYTES {
            assert!(State::decode(&bytes[..end], 5).is_err());
        }
        bytes[0] = 9;
        assert!(State::decode(&bytes, 5).is_err());
    }

    fn key(number: u32) -> [u8; 4] {
        number.to_be_bytes()
    }

    #[test]
    fn a_state_larger_than_a_generation_is_at_hand_until_it_is_written() {
        let mut cache = Cache::new(1 << 20, None);
        let part = cache.begin();
        let large = State {
            bytes: vec![0; 600_000].into(),
            ..state(1)
        };
        cache.put(&key(0), 1, Some(part), Some(large.clone()));
        for _ in 0..3 {
            assert_eq!(cache.get(&key(0), 1), Some(Some(large.clone())));
        }
    }

    #[test]
    fn the_least_used_make_room() {
        let mut cache = Cache::new(100 * (ENTRY_BYTES + 4 + 72), None);
        for number in 0..1_000 {
            cache.put(&key(number), 1, None, Some(state(number.into())));
            assert!(cache.get(&key(0), 1).is_some(), "{number}");
            assert!(cache.bytes() <= 101 * (ENTRY_BYTES + 4 + 72));
        }
        assert_eq!(cache.get(&key(999), 1), Some(Some(state(999))));
        assert_eq!(cache.get(&key(500), 1), None);
    }

    #[test]
    fn what_is_being_written_stays() {
        let mut cache = Cache::new(10 * (ENTRY_BYTES + 4 + 72), None);
        let batch = cache.begin();
        cache.put(&key(0), 1, Some(batch), Some(state(0)));
        for number in 1..1_000 {
            cache.put(&key(number), 1, None, None);
        }
        assert_eq!(cache.get(&key(0), 1), Some(Some(state(0))));
        cache.settle(batch);
        for number in 1..1_000 {
            cache.put(&key(number), 1, None, None);
        }
        assert_eq!(cache.get(&key(0), 1), None);
    }

    #[test]
    fn what_was_seen_tells_what_comes() {
        let mut cache = Cache::new(1 << 20, None);
        let large = State {
            bytes: vec![0; 50_000].into(),
            ..state(1)
        };
        for number in 0..64 {
            assert_eq!(cache.likely(), MAX_STATE_BYTES);
            cache.put(&key(number), 1, None, None);
        }
        assert_eq!(cache.likely(), SMALL);
        cache.put(&key(1), 1, None, Some(large));
        cache.clear();
        assert_eq!(cache.likely(), 50_000);
        for number in 0..1_000 {
            cache.put(&key(number), 1, None, Some(state(1)));
        }
        assert_eq!(cache.likely(), SMALL);
    }

    #[test]
    fn another_assignment_reads_again() {
        let mut cache = Cache::new(1 << 20, None);
        cache.put(&key(1), 1, None, Some(state(1)));
        assert_eq!(cache.get(&key(1), 2), None);
        cache.put(&key(1), 2, None, None);
        assert_eq!(cache.get(&key(1), 2), Some(None));
        cache.clear();
        assert_eq!(cache.get(&key(1), 2), None);
    }

    #[test]
    fn of_a_state_that_was_read_nobody_knows_when_it_expires() {
        let mut cache = Cache::new(1 << 20, Some(Duration::from_secs(3600)));
        cache.put(&key(1), 1, None, Some(state(1)));
        assert_eq!(cache.get(&key(1), 1), None);
        let part = cache.begin();
        cache.put(&key(1), 1, Some(part), Some(state(2)));
        assert_eq!(cache.get(&key(1), 1), Some(Some(state(2))));
    }
}
