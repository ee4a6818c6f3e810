//! Event time, and how far out of order it may come.

use std::fmt;
use std::ops::{Add, Sub};
use std::time::Duration;

use tidemill_plan::EventTime;

/// A point in time, in milliseconds since 1970-01-01 UTC.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(i64);

impl Timestamp {
    /// Before every other.
    pub const MIN: Self = Self(i64::MIN);
    /// After every other.
    pub const MAX: Self = Self(i64::MAX);

    /// From milliseconds since 1970-01-01 UTC.
    pub const fn from_millis(millis: i64) -> Self {
        Self(millis)
    }

    /// From seconds since 1970-01-01 UTC; at the end of the range where it would not fit.
    pub const fn from_secs(secs: i64) -> Self {
        Self(secs.saturating_mul(1_000))
    }

    /// Milliseconds since 1970-01-01 UTC.
    pub const fn millis(self) -> i64 {
        self.0
    }

    /// Milliseconds from `earlier` to this; negative if it is the later one.
    pub const fn millis_since(self, earlier: Self) -> i64 {
        self.0.saturating_sub(earlier.0)
    }
}

impl Add<Duration> for Timestamp {
    type Output = Self;

    /// Stops at [`Timestamp::MAX`].
    fn add(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(millis_i64(duration)))
    }
}

impl Sub<Duration> for Timestamp {
    type Output = Self;

    /// Stops at [`Timestamp::MIN`].
    fn sub(self, duration: Duration) -> Self {
        Self(self.0.saturating_sub(millis_i64(duration)))
    }
}

impl fmt::Display for Timestamp {
    /// As `2013-01-31 23:59:59.123` in UTC.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (days, millis) = (self.0.div_euclid(86_400_000), self.0.rem_euclid(86_400_000));
        let (year, month, day) = civil(days);
        let (secs, millis) = (millis / 1_000, millis % 1_000);
        let (hours, minutes, secs) = (secs / 3_600, secs / 60 % 60, secs % 60);
        write!(f, "{year:04}-{month:02}-{day:02} {hours:02}:{minutes:02}:{secs:02}.{millis:03}")
    }
}

/// Days since 1970-01-01, as a calendar date column.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Date(i32);

impl Date {
    /// From days since 1970-01-01.
    pub const fn from_days(days: i32) -> Self {
        Self(days)
    }

    /// Days since 1970-01-01.
    pub const fn days(self) -> i32 {
        self.0
    }
}

impl fmt::Display for Date {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (year, month, day) = civil(i64::from(self.0));
        write!(f, "{year:04}-{month:02}-{day:02}")
    }
}

/// So many milliseconds.
pub const fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// So many seconds.
pub const fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

/// So many minutes.
pub const fn mins(mins: u64) -> Duration {
    Duration::from_secs(mins.saturating_mul(60))
}

/// So many hours.
pub const fn hours(hours: u64) -> Duration {
    Duration::from_secs(hours.saturating_mul(3_600))
}

/// So many days of 24 hours.
pub const fn days(days: u64) -> Duration {
    Duration::from_secs(days.saturating_mul(86_400))
}

/// Watermarks for rows that come out of order, by at most so much. A row that is later than this is late.
#[derive(Clone, Copy, Debug)]
pub struct BoundedOutOfOrderness {
    bound: Duration,
    idle_after: Option<Duration>,
}

impl BoundedOutOfOrderness {
    /// By at most `bound`.
    pub const fn of(bound: Duration) -> Self {
        Self { bound, idle_after: None }
    }

    /// By at most so many milliseconds.
    pub const fn millis(bound: u64) -> Self {
        Self::of(millis(bound))
    }

    /// By at most so many seconds.
    pub const fn secs(bound: u64) -> Self {
        Self::of(secs(bound))
    }

    /// By at most so many minutes.
    pub const fn mins(bound: u64) -> Self {
        Self::of(mins(bound))
    }

    /// By at most so many hours.
    pub const fn hours(bound: u64) -> Self {
        Self::of(hours(bound))
    }

    /// By at most so many days.
    pub const fn days(bound: u64) -> Self {
        Self::of(days(bound))
    }

    /// Rows come in order of time, in each split.
    pub const fn monotonous() -> Self {
        Self::of(Duration::ZERO)
    }

    /// A split without rows for this long no longer holds the watermark back.
    pub const fn idle_after(mut self, idle_after: Duration) -> Self {
        self.idle_after = Some(idle_after);
        self
    }

    pub(crate) fn event_time(self, column: u32) -> EventTime {
        EventTime {
            column,
            out_of_orderness_ms: millis_u64(self.bound),
            idle_after_ms: self.idle_after.map(millis_u64),
        }
    }
}

/// Whole milliseconds, at most the largest number.
pub(crate) fn millis_u64(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Whole milliseconds, at most the largest number.
pub(crate) fn millis_i64(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

/// Year, month and day of days since 1970-01-01, in the Gregorian calendar (Howard Hinnant's `civil_from_days`).
fn civil(days: i64) -> (i64, i64, i64) {
    let z = days + 719_468;
    let era = z.div_euclid(146_097);
    let doe = z.rem_euclid(146_097);
    let yoe = (doe - doe / 1_460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let month = if mp < 10 { mp + 3 } else { mp - 9 };
    (yoe + era * 400 + i64::from(month <= 2), month, doy - (153 * mp + 2) / 5 + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timestamps_print_as_calendar_times() {
        let shown = |ms| Timestamp::from_millis(ms).to_string();
        assert_eq!(shown(0), "1970-01-01 00:00:00.000");
        assert_eq!(shown(-1), "1969-12-31 23:59:59.999");
        assert_eq!(shown(1_700_000_000_123), "2023-11-14 22:13:20.123");
        assert_eq!(Date::from_days(19_782).to_string(), "2024-02-29");
    }

    #[test]
    fn arithmetic_stops_at_the_ends() {
        assert_eq!(Timestamp::MAX + secs(1), Timestamp::MAX);
        assert_eq!(Timestamp::MIN - Duration::MAX, Timestamp::MIN);
    }
}
