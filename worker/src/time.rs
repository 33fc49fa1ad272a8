//! Times of a day.

use chrono::{NaiveTime, TimeDelta};

/// The time so many nanoseconds after midnight; none where it isn't one of that day.
pub fn time_of_day(nanos: i64) -> Option<NaiveTime> {
    let after = TimeDelta::nanoseconds(nanos);
    let (time, other_days) = NaiveTime::MIN.overflowing_add_signed(after);
    (other_days == 0).then_some(time)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_day_has_24_hours() {
        const DAY: i64 = 86_400_000_000_000;
        let text = |nanos| time_of_day(nanos).map(|time| time.to_string());
        assert_eq!(text(0).as_deref(), Some("00:00:00"));
        assert_eq!(text(3_600_250_000_000).as_deref(), Some("01:00:00.250"));
        assert_eq!(text(DAY - 1).as_deref(), Some("23:59:59.999999999"));
        for no_time in [DAY, -1, -DAY, i64::MIN, i64::MAX] {
            assert_eq!(text(no_time), None);
        }
    }
}
