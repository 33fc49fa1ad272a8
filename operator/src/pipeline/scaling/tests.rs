use proptest::prelude::*;

use super::*;
use crate::{context::PipelineMemory, error::Error, pipeline::offsets::SinkOffsets};

fn bounds(min: i32, max: i32) -> Bounds {
    Bounds {
        min,
        max,
        target_lag: 10_000,
        up: Duration::ZERO,
        down: Duration::from_secs(60),
        gathers: Duration::ZERO,
    }
}

fn load(records: i64, lag: i64) -> Option<Load> {
    Some(Load {
        records,
        lag,
        left_out: 0,
        failing: false,
    })
}

fn running(pods: i32) -> Pods {
    Pods {
        wanted: pods,
        there: pods,
        ready: pods,
    }
}

/// A visit: what is seen, if anything is, and the number that is decided.
fn visit(scaler: &mut Scaler, now: Instant, load: Option<Load>, pods: Pods, b: &Bounds) -> i32 {
    match load {
        Some(load) => scaler.decide(now, load, pods, b),
        None => {
            scaler.blind();
            pods.wanted
        }
    }
}

/// Visits every five seconds: what is seen, and the number that is decided.
fn decide_all(loads: &[Option<Load>], pods: Pods, bounds: &Bounds) -> Vec<i32> {
    let (mut scaler, start) = (Scaler::default(), Instant::now());
    let decided = loads.iter().enumerate().map(|(number, load)| {
        let now = start + Duration::from_secs(5) * number as u32;
        visit(&mut scaler, now, *load, pods, bounds)
    });
    decided.collect()
}

#[test]
fn starts_at_once_and_goes_on_in_steps_when_the_pods_are_there() {
    let b = bounds(0, 4);
    let (mut scaler, start) = (Scaler::default(), Instant::now());
    let mut at = |second, pods| {
        let now = start + Duration::from_secs(second);
        visit(&mut scaler, now, load(500_000, 500_000), pods, &b)
    };
    assert_eq!(at(0, running(0)), 1);
    let starting = Pods {
        wanted: 1,
        there: 1,
        ready: 0,
    };
    assert_eq!(at(5, starting), 1);
    assert_eq!(at(15, starting), 1, "the step before isn't done");
    assert_eq!(at(16, running(1)), 2);
    assert_eq!(at(20, running(2)), 2, "it has to settle");
    assert_eq!(at(21, running(2)), 4);
    assert_eq!(at(60, running(4)), 4, "the partitions are the cap");
}

#[test]
fn nothing_to_do_for_the_whole_window_means_none() {
    let idle = vec![load(7, 0); 14];
    let decided = decide_all(&idle, running(1), &bounds(0, 4));
    assert_eq!(decided[..12], [1; 12], "a minute isn't over");
    assert_eq!(decided[12], 0);
    assert_eq!(decide_all(&idle, running(1), &bounds(1, 4))[13], 1);
    // Half as many in one step, and the fewest at the end.
    assert_eq!(decide_all(&idle, running(8), &bounds(0, 8))[12], 4);
    // One record a second is processed before it is seen as lag.
    let trickle: Vec<_> = (0..40).map(|visit| load(5 * visit, 0)).collect();
    assert_eq!(decide_all(&trickle, running(1), &bounds(0, 4)), [1; 40]);
}

#[test]
fn markers_alone_start_nothing() {
    let markers: Vec<_> = (0..10).map(|visit| load(visit, 0)).collect();
    assert_eq!(decide_all(&markers, running(0), &bounds(0, 4)), [0; 10]);
}

#[test]
fn nor_does_a_transaction_that_was_given_up_where_a_pod_is_known() {
    let (b, start) = (bounds(0, 4), Instant::now());
    let mut scaler = Scaler {
        capacity: Some(100.0),
        ..Scaler::default()
    };
    let mut at = |second, load| {
        let now = start + Duration::from_secs(second);
        visit(&mut scaler, now, load, running(0), &b)
    };
    assert_eq!(at(0, load(7, 0)), 0);
    assert_eq!(at(2, load(9_000, 0)), 0);
    assert_eq!(at(4, load(9_001, 1)), 1);
}

#[test]
fn a_loss_of_the_metric_takes_nothing_away_and_the_window_begins_anew() {
    let mut loads = vec![load(7, 0); 11];
    loads.extend([None; 30]);
    loads.extend([load(7, 0); 12]);
    let decided = decide_all(&loads, running(3), &bounds(0, 4));
    assert_eq!(decided, [3; 53]);
}

/// What Kafka tells of sinks that lag so much.
fn offsets(end: i64, lags: &[i64]) -> Offsets {
    let sink = |(number, lag): (usize, &i64)| SinkOffsets {
        name: format!("sink-{number}"),
        lag: *lag,
        ..SinkOffsets::default()
    };
    Offsets {
        ends: vec![end],
        sinks: lags.iter().enumerate().map(sink).collect(),
        ..Offsets::default()
    }
}

#[test]
fn a_look_that_fails_makes_the_window_begin_anew() {
    let (b, start) = (bounds(0, 4), Instant::now());
    let mut memory = PipelineMemory::default();
    let idle = |memory: &mut PipelineMemory, second| {
        memory.looked(&Ok(Some(offsets(7, &[0]))));
        let load = Load::of(&offsets(7, &[0]), &[]);
        let now = start + Duration::from_secs(second);
        memory.scaler.decide(now, load, running(1), &b)
    };
    for second in (0..=45).step_by(5) {
        assert_eq!(idle(&mut memory, second), 1);
    }
    // For less time than what makes the samples too old by itself.
    memory.looked(&Err(Error::Waiting("Kafka is away".into())));
    for second in (60..=115).step_by(5) {
        assert_eq!(idle(&mut memory, second), 1, "{second}");
    }
    assert_eq!(idle(&mut memory, 120), 0);
}

#[test]
fn the_sink_that_lags_most_is_followed() {
    let (b, start) = (bounds(0, 4), Instant::now());
    let mut scaler = Scaler::default();
    let mut at = |second, lags: &[i64], pods| {
        let load = Load::of(&offsets(90_000, lags), &[]);
        let now = start + Duration::from_secs(second);
        scaler.decide(now, load, running(pods), &b)
    };
    assert_eq!(at(0, &[0, 0, 0], 1), 1);
    assert_eq!(
        at(5, &[0, 35_000, 9_000], 1),
        2,
        "not the first, nor the mean"
    );
    assert_eq!(at(10, &[0, 35_000, 9_000], 2), 4);
    assert_eq!(at(60, &[0, 35_000, 0], 4), 4, "two have nothing to do");
}

#[test]
fn what_a_person_bounds_holds_whatever_is_seen() {
    let idle = [load(0, 0)];
    assert_eq!(decide_all(&idle, running(9), &bounds(0, 4)), [4]);
    assert_eq!(decide_all(&idle, running(0), &bounds(2, 4)), [2]);
    let scaling = |min, max| {
        let text = match max {
            Some(max) => format!("{{minReplicas: {min}, maxReplicas: {max}}}"),
            None => format!("{{minReplicas: {min}}}"),
        };
        serde_saphyr::from_str::<Scaling>(&text).unwrap()
    };
    let bounds = |min, max| {
        let bounds = Bounds::new(&scaling(min, max), &[], 4);
        (bounds.min, bounds.max)
    };
    assert_eq!(bounds(0, None), (0, 4));
    assert_eq!(bounds(1, Some(3)), (1, 3));
    assert_eq!(bounds(8, Some(9)), (4, 4));
}

#[test]
fn a_burst_that_is_stored_in_time_needs_no_more_pods() {
    let bursts = (0..720).map(|visit| match visit % 12 {
        0 => load((visit / 12 + 1) * 9_000, 7_400),
        _ => load((visit / 12 + 1) * 9_000, 0),
    });
    let bursts: Vec<_> = bursts.collect();
    assert_eq!(decide_all(&bursts, running(1), &bounds(1, 4)), [1; 720]);
}

#[test]
fn nor_do_rows_that_a_sink_gathers_until_it_commits() {
    let gathering = Bounds {
        gathers: Duration::from_secs(10),
        ..bounds(0, 4)
    };
    let steady = |visit: i64| load(visit * 20_000, (visit % 3) * 20_000);
    let loads: Vec<_> = (0..200).map(steady).collect();
    assert_eq!(decide_all(&loads, running(1), &gathering), [1; 200]);
    let behind = loads.iter().zip(1..).map(|(seen, visit)| {
        let seen = seen.unwrap();
        load(seen.records, seen.lag + visit * 5_000)
    });
    let behind: Vec<_> = behind.collect();
    assert_eq!(decide_all(&behind, running(1), &gathering)[199], 2);
}

#[test]
fn however_short_the_window_what_is_steady_does_not_rise() {
    let short = Bounds {
        down: Duration::from_secs(4),
        ..bounds(0, 4)
    };
    let steady: Vec<_> = (0..40).map(|visit| load(5 * visit, 0)).collect();
    assert!(decide_all(&steady, running(4), &short).contains(&3));
}

#[test]
fn a_sink_that_fails_leaves_the_others_their_pods() {
    let sink = |name: &str, lag| SinkOffsets {
        name: name.into(),
        lag,
        ..SinkOffsets::default()
    };
    let of = |a, b, failing: &[&str]| {
        let offsets = Offsets {
            sinks: vec![sink("a", a), sink("b", b)],
            ..Offsets::default()
        };
        let load = Load::of(&offsets, failing);
        (load.lag, load.left_out, load.failing)
    };
    assert_eq!(of(7, 9_000, &[]), (9_000, 0, false));
    assert_eq!(of(7, 9_000, &["b"]), (7, 1, false));
    assert_eq!(of(0, 9_000, &["b"]), (1, 1, false));
    assert_eq!(of(0, 0, &["b"]), (0, 1, false));
    assert_eq!(of(7, 9_000, &["a", "b"]), (9_000, 0, true));
    // What the sink lags that is counted no longer was not worked off.
    let before = load(0, 90_000);
    let without = Some(Load {
        left_out: 1,
        ..load(0, 0).unwrap()
    });
    let mut scaler = Scaler::default();
    let now = Instant::now();
    for (second, load) in [before, without].into_iter().enumerate() {
        let at = now + Duration::from_secs(2 * second as u64);
        scaler.decide(at, load.unwrap(), running(2), &bounds(0, 4));
    }
    assert_eq!(scaler.capacity, None);
}

#[test]
fn a_sink_that_keeps_pods_unready_does_not_keep_them_few() {
    let pods = |there| Pods {
        wanted: 2,
        there,
        ready: 0,
    };
    let decided = |left_out, there| {
        let load = Load {
            left_out,
            ..load(90_000, 90_000).unwrap()
        };
        decide_all(&[Some(load)], pods(there), &bounds(0, 4))
    };
    assert_eq!(decided(1, 2), [4]);
    assert_eq!(decided(1, 1), [2], "the step before isn't done");
    assert_eq!(decided(0, 2), [2], "they start");
}

#[test]
fn failing_workers_are_not_multiplied() {
    let failing = Some(Load {
        records: 90_000,
        lag: 90_000,
        left_out: 0,
        failing: true,
    });
    assert_eq!(decide_all(&[failing; 5], running(1), &bounds(0, 4)), [1; 5]);
}

#[test]
fn a_need_has_to_last_as_long_as_asked() {
    let patient = Bounds {
        up: Duration::from_secs(20),
        ..bounds(0, 4)
    };
    let mut loads = vec![load(90_000, 90_000); 3];
    loads.push(load(90_000, 0));
    loads.extend([load(180_000, 90_000); 5]);
    let decided = decide_all(&loads, running(1), &patient);
    assert_eq!(decided, [1, 1, 1, 1, 1, 1, 1, 1, 2]);
}

/// Records arrive as a sine wave, pods need time to start, and a change of their number costs
/// processing.
#[derive(Clone, Debug)]
struct World {
    /// Records that a pod can process in a second: the lag that is aimed at takes two at least.
    capacity: f64,
    /// Mean and amplitude of what arrives in a second, in pods that it takes.
    mean: f64,
    amplitude: f64,
    period: f64,
    partitions: i32,
    start_seconds: u64,
    noise: u64,
}

/// What came of it, second by second.
struct Course {
    replicas: Vec<i32>,
    lag: Vec<f64>,
}

/// How often a number of pods turned from rising to falling or back.
fn turns(replicas: &[i32]) -> usize {
    let changes = replicas.windows(2).map(|two| (two[1] - two[0]).signum());
    let changes: Vec<_> = changes.filter(|change| *change != 0).collect();
    changes.windows(2).filter(|two| two[0] != two[1]).count()
}

fn simulate(world: &World, seconds: u64, bounds: &Bounds) -> Course {
    let (mut scaler, start) = (Scaler::default(), Instant::now());
    let (mut end, mut committed) = (0.0, 0.0);
    let (mut wanted, mut ready, mut changed) = (0, 0, 0);
    let mut random = world.noise;
    let mut course = Course {
        replicas: Vec::new(),
        lag: Vec::new(),
    };
    for second in 0..seconds {
        random = random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        let noise = 0.9 + (random >> 40) as f64 / f64::from(1 << 24) * 0.2;
        let wave = (second as f64 * std::f64::consts::TAU / world.period).sin();
        end += (world.mean + world.amplitude * wave) * world.capacity * noise;
        if wanted < ready || second >= changed + world.start_seconds {
            ready = wanted;
        }
        let slowed = if second < changed + 3 { 0.5 } else { 1.0 };
        let can = f64::from(ready.min(world.partitions)) * world.capacity * slowed;
        // The last quarter of a second is always on its way.
        let arrived = end - 0.25 * world.mean * world.capacity;
        committed = f64::min(committed + can, arrived).max(committed);
        let visits = if wanted == 0 { 2 } else { 5 };
        if second % visits == 0 {
            let pods = Pods {
                wanted,
                there: wanted,
                ready,
            };
            let seen = load(end as i64, (end - committed) as i64);
            let now = start + Duration::from_secs(second);
            let next = visit(&mut scaler, now, seen, pods, bounds);
            assert!((bounds.min..=bounds.max).contains(&next), "{next}");
            if next != wanted {
                (wanted, changed) = (next, second);
            }
        }
        course.replicas.push(wanted);
        course.lag.push(end - committed);
    }
    course
}

fn worlds() -> impl Strategy<Value = World> {
    (
        200.0..5_000.0,
        0.2..3.0,
        0.0..1.0,
        60.0..1200.0,
        4..=12,
        2..12u64,
        any::<u64>(),
    )
        .prop_map(
            |(capacity, mean, part, period, partitions, start_seconds, noise)| World {
                capacity,
                mean,
                amplitude: mean * part,
                period,
                partitions,
                start_seconds,
                noise,
            },
        )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Up with the wave and down with it, at most; and the first time down may be to find out what
    /// a pod can do.
    #[test]
    fn a_wave_is_followed_and_never_more(world in worlds()) {
        let seconds = 1800;
        let course = simulate(&world, seconds, &bounds(0, world.partitions));
        let waves = seconds as f64 / world.period;
        let allowed = 2.0 * waves.ceil() + 4.0;
        let turns = turns(&course.replicas);
        prop_assert!(turns as f64 <= allowed, "{turns} turns in {waves:.1} waves");
    }

    /// Once it is found out how many pods a steady load takes, it stays with them.
    #[test]
    fn a_steady_load_comes_to_rest(world in worlds()) {
        let steady = World { amplitude: 0.0, ..world };
        let course = simulate(&steady, 3600, &bounds(0, steady.partitions));
        // At the very edge of what so many can do, it may show late that one more is needed.
        prop_assert!(turns(&course.replicas) <= 7 && turns(&course.replicas[1800..]) <= 2);
        let (pods, lag) = (course.replicas[3599], course.lag[3599]);
        let allowed = 10_000.0 * f64::from(pods) + 5.0 * steady.mean * steady.capacity;
        prop_assert!(lag <= allowed, "{lag} records of lag with {pods} pods");
        prop_assert!(f64::from(pods) <= (steady.mean / HEADROOM).ceil() + 1.0, "{pods} pods");
    }

    /// Whatever is seen and lost, a step is within the bounds, and pods are taken away only after a
    /// window that was seen as a whole.
    #[test]
    fn blind_it_never_scales_down(
        seen in prop::collection::vec((prop::option::of((0..1_000_000i64, 0..500_000i64)), 1..40u64), 1..60),
        pods in 0..8i32,
    ) {
        let (mut scaler, mut now, mut wanted) = (Scaler::default(), Instant::now(), pods);
        let (mut sighted, bounds) = (None, bounds(0, 8));
        for (seen, seconds) in seen {
            now += Duration::from_secs(seconds);
            let load = seen.and_then(|(records, lag)| load(records, lag));
            sighted = load.map(|_| sighted.unwrap_or(now));
            let next = visit(&mut scaler, now, load, running(wanted), &bounds);
            prop_assert!((0..=8).contains(&next));
            prop_assert!(next <= (wanted * 2).max(1) && next >= wanted / 2);
            if next < wanted {
                let seen = sighted.map(|since| now.duration_since(since));
                prop_assert!(seen >= Some(bounds.down), "{seen:?}");
            }
            wanted = next;
        }
    }
}
