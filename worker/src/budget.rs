//! How much memory the parts of a worker may take, by the limit of its container.
//!
//! What is counted are records, states and answers. Each of them is there several times until it is
//! written, in the forms that it has on the way: the factors below are estimates from above.

use std::fs;

use millstream_api::Lookup;

use crate::batch::MAX_BYTES;

const KIB: usize = 1024;
const MIB: usize = 1024 * KIB;

/// Answers of an HTTP source that are held at the same time, where memory doesn't say otherwise.
pub const ANSWERS: usize = 256 * MIB;
/// Bytes of a batch of groups: each group is written once a batch, so larger batches cost less.
pub const GROUPED_BATCH: usize = 8 * MIB;
/// Bytes of records that are committed to a Delta Lake table at once.
pub const DELTA_BATCH: usize = 16 * MIB;
/// What a sink's consumer fetches ahead.
pub const QUEUE: usize = 8 * MIB;
/// The concern under which too small a limit is shown.
pub const MEMORY: &str = "memory";

/// Of the limit, in percent: an allocator keeps some of what is free.
const USABLE: usize = 85;
/// Of a process stage, whatever its sinks do.
const PROCESS: usize = 64 * MIB;
/// Of an ingest stage, whatever its source does.
const INGEST: usize = 48 * MIB;
/// Of a REST service, whatever it is asked.
const SERVE: usize = 64 * MIB;
/// Of each sink, whatever it does: its clients and plans.
const SINK: usize = 2 * MIB;

/// The limit that this container has: a LimitRange or an autoscaler may have set it, of which the
/// configuration doesn't tell. None where there is no limit, or no container.
pub fn limit_of_container() -> Option<u64> {
    // Of cgroup v2, and of v1.
    let files = [
        "/sys/fs/cgroup/memory.max",
        "/sys/fs/cgroup/memory/memory.limit_in_bytes",
    ];
    let texts = files.iter().map(fs::read_to_string);
    texts.flatten().find_map(|text| limit(&text))
}

/// No limit is `max` with cgroup v2, and with v1 more than any machine has.
fn limit(text: &str) -> Option<u64> {
    let bytes = text.trim().parse::<u64>().ok();
    bytes.filter(|bytes| *bytes < 1 << 60)
}

/// What a sink does that takes memory.
#[derive(Clone, Copy, Debug, Default)]
pub struct Kind {
    /// Its query has a GROUP BY.
    pub grouped: bool,
    /// Its rows go into a Delta Lake table.
    pub delta: bool,
}

/// What a sink may hold, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SinkMemory {
    /// Records that were fetched and aren't in a batch.
    pub queue: usize,
    /// Records of a batch.
    pub batch: usize,
    /// States of groups that are at hand.
    pub cache: usize,
    /// States of groups that are being folded or written.
    pub states: usize,
}

impl SinkMemory {
    /// What a sink gets where there is enough.
    pub fn most(kind: Kind) -> Self {
        let (cache, states) = match kind.grouped {
            true => (32 * MIB, 16 * MIB),
            false => (0, 0),
        };
        let batch = match (kind.delta, kind.grouped) {
            (true, _) => DELTA_BATCH,
            (false, true) => GROUPED_BATCH,
            (false, false) => MAX_BYTES,
        };
        SinkMemory {
            queue: QUEUE,
            batch,
            cache,
            states,
        }
    }

    /// With less there is no working.
    fn least(kind: Kind) -> Self {
        let (cache, states) = match kind.grouped {
            true => (MIB, 512 * KIB),
            false => (0, 0),
        };
        SinkMemory {
            queue: 256 * KIB,
            batch: 256 * KIB,
            cache,
            states,
        }
    }

    /// The least, and of what is beyond it as much as `room` is of `all`.
    fn share(kind: Kind, room: usize, all: usize) -> Self {
        let (most, least) = (SinkMemory::most(kind), SinkMemory::least(kind));
        let room = room.min(all);
        let part = |most: usize, least: usize| least + (most - least) * room / all.max(1);
        SinkMemory {
            queue: part(most.queue, least.queue),
            batch: part(most.batch, least.batch),
            cache: part(most.cache, least.cache),
            states: part(most.states, least.states),
        }
    }

    /// What all of it takes.
    fn cost(&self, kind: Kind) -> usize {
        // One batch is being gathered, and three are on their way: as records, in columns, as cells,
        // and as requests, of which a second attempt may wait behind the first. A commit to a Delta
        // Lake table is one after the other.
        let batches = match kind.delta {
            true => 10,
            false => 18,
        };
        // Kafka's records are compressed when they come. States are taken apart and put together
        // again, and then are on their way as rows are.
        2 * self.queue + batches * self.batch + self.cache + 5 * self.states
    }
}

/// Divides the memory of a process stage among its sinks. Where it is too small, also says so.
pub fn of_sinks(
    limit: Option<u64>,
    kinds: &[Kind],
    lookups: &[Lookup],
) -> (Vec<SinkMemory>, Option<String>) {
    let Some(limit) = limit.map(bytes) else {
        let most = kinds.iter().map(|kind| SinkMemory::most(*kind));
        return (most.collect(), None);
    };
    let cost = |memory: fn(Kind) -> SinkMemory| -> usize {
        kinds.iter().map(|kind| memory(*kind).cost(*kind)).sum()
    };
    let least = cost(SinkMemory::least);
    let needed = PROCESS + kinds.len() * SINK + of_lookups(lookups) + least;
    let room = usable(limit).saturating_sub(needed);
    let beyond = cost(SinkMemory::most) - least;
    let shares = kinds
        .iter()
        .map(|kind| SinkMemory::share(*kind, room, beyond));
    let warning = (usable(limit) < needed).then(|| {
        let count = kinds.len();
        let sinks = if count == 1 { "sink" } else { "sinks" };
        too_small(limit, needed, &format!("{count} {sinks}"))
    });
    (shares.collect(), warning)
}

/// Bytes of answers that an HTTP source may hold at the same time. Where memory is too small, also
/// says so.
pub fn of_answers(limit: Option<u64>) -> (usize, Option<String>) {
    const LEAST: usize = 8 * MIB;
    let Some(limit) = limit.map(bytes) else {
        return (ANSWERS, None);
    };
    // Beside them are the records on their way to Kafka.
    let room = usable(limit).saturating_sub(INGEST) / 3 * 2;
    let needed = INGEST + LEAST / 2 * 3;
    let warning = (room < LEAST).then(|| too_small(limit, needed, "an HTTP source"));
    (room.clamp(LEAST, ANSWERS), warning)
}

/// Bytes that the rows of all requests to a REST service may take, beside what its queries take.
/// Without a limit they are those of a pod of usual size.
pub fn of_rows(limit: Option<u64>, queries: usize) -> usize {
    const USUAL: usize = 512 * MIB;
    const LEAST: usize = 16 * MIB;
    let room = usable(limit.map_or(USUAL, bytes)).saturating_sub(SERVE + queries);
    room.max(LEAST)
}

fn bytes(limit: u64) -> usize {
    usize::try_from(limit).unwrap_or(usize::MAX)
}

fn usable(limit: usize) -> usize {
    limit / 100 * USABLE
}

/// What lookups take, while the largest of them is read again.
fn of_lookups(lookups: &[Lookup]) -> usize {
    let sizes = lookups.iter().filter_map(Lookup::max_bytes).map(bytes);
    sizes.clone().sum::<usize>() + 2 * sizes.max().unwrap_or_default()
}

fn too_small(limit: usize, needed: usize, whose: &str) -> String {
    let needed = (needed / USABLE * 100).div_ceil(MIB) + 1;
    format!(
        "the memory limit of {} MiB is small for {whose}: batches and caches are as small as can be, and the pod may be killed all the same; resources.limits.memory should be {needed}Mi at least",
        limit / MIB
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: u64 = 512 * MIB as u64;

    fn kinds() -> [Kind; 4] {
        let kind = |grouped, delta| Kind { grouped, delta };
        [
            kind(false, false),
            kind(true, false),
            kind(false, true),
            kind(true, true),
        ]
    }

    fn lookup(max_size: &str) -> Lookup {
        serde_json::from_value(serde_json::json!({
            "name": "countries", "maxSize": max_size, "schema": "code TEXT",
            "file": {"path": "/countries.csv"},
        }))
        .unwrap()
    }

    #[test]
    fn a_sink_has_all_it_can_use_in_a_pod_of_usual_size() {
        for kind in kinds() {
            let most = (vec![SinkMemory::most(kind)], None);
            assert_eq!(of_sinks(Some(LIMIT), &[kind], &[]), most);
            assert_eq!(of_sinks(None, &[kind], &[]), most);
        }
        assert_eq!(of_answers(Some(LIMIT)), (ANSWERS, None));
        assert_eq!(of_answers(None), (ANSWERS, None));
    }

    #[test]
    fn many_sinks_share_what_there_is() {
        for kind in kinds() {
            let (shares, warning) = of_sinks(Some(LIMIT), &[kind; 32], &[]);
            assert_eq!(warning, None, "{kind:?}");
            let cost: usize = shares.iter().map(|share| share.cost(kind) + SINK).sum();
            assert!(PROCESS + cost <= usable(512 * MIB), "{kind:?}: {cost}");
            assert!(cost > 300 * MIB, "{kind:?}: {cost} wastes memory");
        }
        let mixed: Vec<_> = kinds().into_iter().cycle().take(12).collect();
        let (shares, warning) = of_sinks(Some(LIMIT), &mixed, &[]);
        assert_eq!(warning, None);
        assert!(shares[0].batch < shares[1].batch && shares[0].cache == 0);
    }

    #[test]
    fn a_small_pod_is_told_of() {
        for kind in kinds() {
            let (shares, warning) = of_sinks(Some(64 << 20), &[kind], &[]);
            assert_eq!(shares, [SinkMemory::least(kind)]);
            let warning = warning.unwrap();
            assert!(warning.contains("64 MiB is small for 1 sink:"), "{warning}");
            // What it asks for is enough.
            let (_, after) = warning.split_once("should be ").unwrap();
            let enough: u64 = after.split_once("Mi").unwrap().0.parse().unwrap();
            assert_eq!(of_sinks(Some(enough << 20), &[kind], &[]).1, None);
        }
        let (answers, warning) = of_answers(Some(32 << 20));
        assert_eq!(answers, 8 * MIB);
        assert!(warning.unwrap().contains("for an HTTP source"));
        assert_eq!(of_answers(Some(128 << 20)).1, None);
    }

    #[test]
    fn the_rows_of_a_service_have_what_its_queries_leave() {
        let of = |limit| of_rows(limit, 128 * MIB) / MIB;
        assert_eq!(of(Some(LIMIT)), 243);
        assert_eq!(of(None), 243);
        assert_eq!(of(Some(2 * LIMIT)), 678);
        assert_eq!(of(Some(64 << 20)), 16);
    }

    #[test]
    fn the_limit_of_a_container_may_be_none() {
        assert_eq!(limit("536870912\n"), Some(LIMIT));
        for none in ["max\n", "9223372036854771712\n", ""] {
            assert_eq!(limit(none), None, "{none}");
        }
    }

    #[test]
    fn lookups_come_first() {
        let kind = [Kind::default()];
        let usual = [lookup("64Mi"), lookup("64Mi")];
        let most = [SinkMemory::most(kind[0])];
        assert_eq!(of_sinks(Some(LIMIT), &kind, &usual).0, most);
        let (shares, warning) = of_sinks(Some(LIMIT), &kind, &[lookup("1Gi")]);
        assert_eq!(shares, [SinkMemory::least(kind[0])]);
        assert!(warning.is_some());
    }
}
