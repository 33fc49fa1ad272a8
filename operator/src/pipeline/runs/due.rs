//! Whether a run is to begin. Pure: what was decided so far, what is under way and the time come in.

use k8s_openapi::jiff::{SignedDuration, Timestamp};
use millstream_api::schedule::{ConcurrencyPolicy, Schedule};
use millstream_plan::Calendar;

/// For a run to stop: its pod has half of it.
const STOPPING: SignedDuration = SignedDuration::from_secs(60);

/// Where a schedule stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    /// What was due until then has been begun, or passed over.
    pub decided: Timestamp,
    /// A run is asked for.
    pub asked: bool,
    /// A run is under way, or on its way out.
    pub under_way: bool,
    /// Another pipeline must succeed first.
    pub blocked: bool,
    /// No runs begin by cron.
    pub suspended: bool,
}

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Nothing, for now.
    Wait,
    /// Begin the run of this time.
    Begin(Timestamp),
    /// Begin the run that is asked for.
    BeginAsked,
    /// Stop the run that is under way: another one takes its place.
    Stop,
    /// This time is too long ago: pass it over.
    Miss(Timestamp),
}

/// Decides what to do. Of several times that have passed since the last decision the latest counts.
pub fn due(
    schedule: &Schedule,
    calendar: &Calendar,
    standing: &Standing,
    now: Timestamp,
) -> Decision {
    let begin = if standing.asked {
        Decision::BeginAsked
    } else {
        let Some(time) = undecided(calendar, standing.decided, standing.suspended, now) else {
            return Decision::Wait;
        };
        // A run that was stopped for this one has taken its time.
        let stopped = match schedule.concurrency_policy {
            ConcurrencyPolicy::Replace => STOPPING,
            ConcurrencyPolicy::Forbid => SignedDuration::ZERO,
        };
        if schedule
            .starting_deadline
            .is_some_and(|deadline| is_over(time, deadline.into(), now - stopped))
        {
            return Decision::Miss(time);
        }
        if standing.blocked {
            return Decision::Wait;
        }
        Decision::Begin(time)
    };
    match schedule.concurrency_policy {
        _ if !standing.under_way => begin,
        ConcurrencyPolicy::Forbid => Decision::Wait,
        ConcurrencyPolicy::Replace => Decision::Stop,
    }
}

/// The latest time that has come, if it is later than what was decided.
pub fn undecided(
    calendar: &Calendar,
    decided: Timestamp,
    suspended: bool,
    now: Timestamp,
) -> Option<Timestamp> {
    let latest = calendar.latest(now).filter(|_| !suspended);
    latest.filter(|time| *time > decided)
}

/// Whether a run of this time would begin too late.
pub fn is_over(time: Timestamp, deadline: std::time::Duration, now: Timestamp) -> bool {
    SignedDuration::try_from(deadline).is_ok_and(|deadline| now.duration_since(time) > deadline)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn schedule(more: Value) -> Schedule {
        let mut schedule = json!({"cron": "*/10 * * * *"});
        if let Some(more) = more.as_object() {
            schedule.as_object_mut().unwrap().extend(more.clone());
        }
        serde_json::from_value(schedule).unwrap()
    }

    fn at(time: &str) -> Timestamp {
        format!("2026-11-21T{time}Z").parse().unwrap()
    }

    fn standing(decided: &str) -> Standing {
        Standing {
            decided: at(decided),
            asked: false,
            under_way: false,
            blocked: false,
            suspended: false,
        }
    }

    fn decide(more: Value, standing: &Standing, now: &str) -> Decision {
        let schedule = schedule(more);
        let calendar = Calendar::new(&schedule).unwrap();
        due(&schedule, &calendar, standing, at(now))
    }

    #[test]
    fn a_run_begins_at_its_time_and_once() {
        let before = standing("10:00:00");
        for (now, decision) in [
            ("10:09:59", Decision::Wait),
            ("10:10:00", Decision::Begin(at("10:10:00"))),
            ("10:10:04", Decision::Begin(at("10:10:00"))),
        ] {
            assert_eq!(decide(json!({}), &before, now), decision, "{now}");
        }
        let begun = standing("10:10:00");
        assert_eq!(decide(json!({}), &begun, "10:19:59"), Decision::Wait);
    }

    #[test]
    fn of_those_that_were_missed_the_latest_is_made_up_for_within_the_deadline() {
        let away = standing("07:00:00");
        let latest = Decision::Begin(at("10:30:00"));
        assert_eq!(decide(json!({}), &away, "10:33:00"), latest);
        let deadline = |deadline: &str| json!({"startingDeadline": deadline});
        assert_eq!(decide(deadline("3m"), &away, "10:33:00"), latest);
        let missed = Decision::Miss(at("10:30:00"));
        assert_eq!(decide(deadline("179s"), &away, "10:33:00"), missed);
        // Passed over, and not looked at again.
        let passed = standing("10:30:00");
        assert_eq!(
            decide(deadline("179s"), &passed, "10:33:05"),
            Decision::Wait
        );
        let next = Decision::Begin(at("10:40:00"));
        assert_eq!(decide(deadline("179s"), &passed, "10:40:01"), next);
    }

    #[test]
    fn two_runs_never_overlap() {
        for asked in [false, true] {
            for policy in ["Forbid", "Replace"] {
                for second in 0..3600 {
                    let busy = Standing {
                        under_way: true,
                        asked,
                        ..standing("10:00:00")
                    };
                    let now = format!("10:{:02}:{:02}", second / 60, second % 60);
                    let decision = decide(json!({"concurrencyPolicy": policy}), &busy, &now);
                    let begins = matches!(decision, Decision::Begin(_) | Decision::BeginAsked);
                    assert!(!begins, "{policy} {now}: {decision:?}");
                }
            }
        }
    }

    #[test]
    fn what_forbid_held_back_begins_when_it_may() {
        let mut busy = standing("10:00:00");
        busy.under_way = true;
        assert_eq!(decide(json!({}), &busy, "10:12:00"), Decision::Wait);
        busy.under_way = false;
        let late = Decision::Begin(at("10:10:00"));
        assert_eq!(decide(json!({}), &busy, "10:12:00"), late);
        let missed = Decision::Miss(at("10:10:00"));
        let deadline = json!({"startingDeadline": "1m"});
        assert_eq!(decide(deadline, &busy, "10:12:00"), missed);
    }

    #[test]
    fn replace_stops_what_is_under_way_only_when_another_one_is_due() {
        let mut busy = standing("10:00:00");
        busy.under_way = true;
        let replace = || json!({"concurrencyPolicy": "Replace"});
        assert_eq!(decide(replace(), &busy, "10:09:00"), Decision::Wait);
        assert_eq!(decide(replace(), &busy, "10:10:00"), Decision::Stop);
        busy.under_way = false;
        let next = Decision::Begin(at("10:10:00"));
        assert_eq!(decide(replace(), &busy, "10:10:12"), next);
        let soon = json!({"concurrencyPolicy": "Replace", "startingDeadline": "10s"});
        assert_eq!(decide(soon.clone(), &busy, "10:11:10"), next);
        let missed = Decision::Miss(at("10:10:00"));
        assert_eq!(decide(soon, &busy, "10:11:11"), missed);
    }

    #[test]
    fn others_come_first_and_what_is_asked_for_at_once() {
        let mut waits = standing("10:00:00");
        waits.blocked = true;
        assert_eq!(decide(json!({}), &waits, "10:10:00"), Decision::Wait);
        waits.suspended = true;
        waits.asked = true;
        assert_eq!(decide(json!({}), &waits, "10:10:00"), Decision::BeginAsked);
        waits.asked = false;
        waits.blocked = false;
        assert_eq!(decide(json!({}), &waits, "10:10:00"), Decision::Wait);
    }
}
