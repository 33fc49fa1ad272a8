//! Times by cron in a time zone. Pure: the clock is the caller's; the time zones are in the binary.

use chrono::{DateTime, Utc};
use chrono_tz::Tz;
use croner::{
    Cron,
    parser::{CronParser, Seconds, Year},
};
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use millstream_api::{DataPipeline, schedule::Schedule};

use crate::Refusal;

/// The times of a schedule.
#[derive(Clone, Debug, PartialEq)]
pub struct Calendar {
    cron: Cron,
    zone: Tz,
}

impl Calendar {
    /// Reads a schedule; what can't be read, or never comes, is refused.
    pub fn new(schedule: &Schedule) -> Result<Self, Refusal> {
        let refuse = |field: &str, problem: String| {
            Err(Refusal::InvalidSpec(format!("schedule.{field}: {problem}")))
        };
        // A run is named after its minute.
        let parser = CronParser::builder()
            .seconds(Seconds::Disallowed)
            .year(Year::Disallowed)
            .build();
        let cron = match parser.parse(&schedule.cron) {
            Ok(cron) => cron,
            Err(error) => {
                let problem = format!(
                    "`{}` isn't a time: {error}; give minute, hour, day of the month, month and day of the week, such as `*/10 * * * *`",
                    schedule.cron
                );
                return refuse("cron", problem);
            }
        };
        let Ok(zone) = schedule.time_zone.parse::<Tz>() else {
            let problem = format!(
                "there is no time zone `{}`: give a name of the IANA database, such as `UTC` or `Europe/Paris`",
                schedule.time_zone
            );
            return refuse("timeZone", problem);
        };
        let calendar = Calendar { cron, zone };
        if calendar.next(Timestamp::UNIX_EPOCH).is_none() {
            let problem = format!("`{}` never comes: there is no such day", schedule.cron);
            return refuse("cron", problem);
        }
        Ok(calendar)
    }

    /// The first time after `now`.
    pub fn next(&self, now: Timestamp) -> Option<Timestamp> {
        let found = self.cron.find_next_occurrence(&self.local(now)?, false);
        found.ok().and_then(|found| instant(&found))
    }

    /// The last time up to `now`, itself included.
    pub fn latest(&self, now: Timestamp) -> Option<Timestamp> {
        let found = self.cron.find_previous_occurrence(&self.local(now)?, true);
        found.ok().and_then(|found| instant(&found))
    }

    fn local(&self, time: Timestamp) -> Option<DateTime<Tz>> {
        let time = DateTime::<Utc>::from_timestamp(time.as_second(), 0)?;
        Some(time.with_timezone(&self.zone))
    }
}

fn instant(time: &DateTime<Tz>) -> Option<Timestamp> {
    Timestamp::from_second(time.timestamp()).ok()
}

/// Checks a pipeline's schedule, where it has one.
pub(crate) fn accept_schedule(pipeline: &DataPipeline) -> Result<Option<Calendar>, Refusal> {
    let Some(schedule) = &pipeline.spec.schedule else {
        return Ok(None);
    };
    let problem = match (pipeline.spec.source.ends(), schedule.run_for) {
        (false, None) => {
            "the source has no end, and so a run wouldn't have one either: say for how long a run reads it, such as `1m`, or take out what makes it go on (`poll`)"
        }
        (true, Some(_)) => {
            "the source has an end, and a run reads up to it: take runFor out; it is for sources that have none"
        }
        _ => return Calendar::new(schedule).map(Some),
    };
    Err(Refusal::InvalidSpec(format!("schedule.runFor: {problem}")))
}

/// Refuses a pipeline that waits for itself.
pub(crate) fn accept_after(pipeline: &DataPipeline) -> Result<(), Refusal> {
    let name = pipeline.name_any();
    if pipeline.spec.after.contains(&name) {
        return Err(Refusal::InvalidSpec(format!(
            "after: the pipeline would wait for itself: take `{name}` out"
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schedule(cron: &str, zone: &str) -> Schedule {
        let json = serde_json::json!({"cron": cron, "timeZone": zone});
        serde_json::from_value(json).unwrap()
    }

    fn calendar(cron: &str, zone: &str) -> Calendar {
        Calendar::new(&schedule(cron, zone)).unwrap()
    }

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    /// The times after one, up to another.
    fn between(calendar: &Calendar, from: &str, to: &str) -> Vec<String> {
        let mut now = at(from);
        let mut times = Vec::new();
        while let Some(next) = calendar.next(now).filter(|next| *next <= at(to)) {
            assert_eq!(calendar.latest(next), Some(next), "{next} is one of them");
            times.push(next.to_string());
            now = next;
        }
        times
    }

    #[test]
    fn a_time_of_day_follows_the_clock_on_the_wall() {
        let daily = calendar("0 8 * * *", "Europe/Paris");
        let times = between(&daily, "2026-03-28T00:00:00Z", "2026-03-30T00:00:00Z");
        assert_eq!(times, ["2026-03-28T07:00:00Z", "2026-03-29T06:00:00Z"]);
    }

    #[test]
    fn a_time_that_is_skipped_runs_when_the_clock_has_jumped() {
        // 02:30 isn't there on 29 March: at 02:00 it is 03:00.
        let daily = calendar("30 2 * * *", "Europe/Paris");
        let times = between(&daily, "2026-03-28T12:00:00Z", "2026-03-31T00:00:00Z");
        assert_eq!(times, ["2026-03-29T01:00:00Z", "2026-03-30T00:30:00Z"]);
    }

    #[test]
    fn a_time_that_comes_twice_runs_once() {
        // 02:30 comes twice on 25 October: at 03:00 it is 02:00 again.
        let daily = calendar("30 2 * * *", "Europe/Paris");
        let times = between(&daily, "2026-10-24T12:00:00Z", "2026-10-26T12:00:00Z");
        assert_eq!(times, ["2026-10-25T00:30:00Z", "2026-10-26T01:30:00Z"]);
    }

    #[test]
    fn an_interval_goes_on_through_both_changes() {
        let often = calendar("*/30 * * * *", "America/New_York");
        for (from, to) in [
            ("2026-03-08T06:00:00Z", "2026-03-08T08:00:00Z"),
            ("2026-11-01T04:00:00Z", "2026-11-01T06:00:00Z"),
        ] {
            assert_eq!(between(&often, from, to).len(), 4, "two hours from {from}");
        }
    }

    #[test]
    fn the_latest_time_is_the_last_of_those_before() {
        let calendar = calendar("*/10 * * * *", "UTC");
        for (now, latest) in [
            ("2026-11-21T10:00:00Z", "2026-11-21T10:00:00Z"),
            ("2026-11-21T10:09:59Z", "2026-11-21T10:00:00Z"),
        ] {
            assert_eq!(calendar.latest(at(now)), Some(at(latest)));
        }
    }

    #[test]
    fn what_cannot_be_scheduled_is_refused_with_the_way_out() {
        for (cron, zone, said) in [
            ("* * * *", "UTC", "schedule.cron: `* * * *` isn't a time"),
            ("0 */10 * * * *", "UTC", "such as `*/10 * * * *`"),
            ("61 * * * *", "UTC", "schedule.cron"),
            ("0 0 30 2 *", "UTC", "never comes"),
            (
                "@daily",
                "Mars/Olympus",
                "there is no time zone `Mars/Olympus`",
            ),
        ] {
            let refused = Calendar::new(&schedule(cron, zone)).unwrap_err();
            assert!(refused.to_string().contains(said), "{refused}");
        }
        for cron in ["@hourly", "0 9 * * MON-FRI", "0 0 L * *", "5 4 29 2 *"] {
            Calendar::new(&schedule(cron, "Asia/Kolkata")).unwrap();
        }
    }
}
