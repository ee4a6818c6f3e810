//! Timestamps and dates as text (ISO 8601, UTC), without allocation: they stand in every record.

/// Milliseconds of a day.
const DAY_MS: i64 = 86_400_000;
/// Dates are understood from year 0 to 9999, as ISO 8601 writes them without agreement of both ends.
const MAX_YEAR: i64 = 9_999;

/// Milliseconds since 1970 of `2013-01-01T10:00:00.123Z`: `T` or a space between, seconds and fraction may be absent,
/// the zone is `Z`, `+02:00`, `+0200`, `+02` or absent (UTC). A date alone is its midnight. `None` if it is none of it.
pub fn parse_timestamp(text: &[u8]) -> Option<i64> {
    let (date, rest) = text.split_at_checked(10)?;
    let day = parse_date(date)?;
    let Some((b'T' | b't' | b' ', rest)) = rest.split_first() else {
        return rest.is_empty().then_some(i64::from(day) * DAY_MS);
    };
    let (clock, rest) = rest.split_at_checked(5)?;
    let [h1, h0, b':', m1, m0] = *clock else { return None };
    let (hour, minute) = (two(h1, h0)?, two(m1, m0)?);
    let (second, milli, zone) = seconds(rest)?;
    if hour > 23 || minute > 59 || second > 59 {
        return None;
    }
    let of_day = ((hour * 60 + minute) * 60 + second) * 1_000 + milli;
    Some(i64::from(day) * DAY_MS + of_day - zone_minutes(zone)? * 60_000)
}

/// Days since 1970 of `2013-01-31`.
pub fn parse_date(text: &[u8]) -> Option<i32> {
    let [y3, y2, y1, y0, b'-', m1, m0, b'-', d1, d0] = *text else { return None };
    let (year, month, day) = (two(y3, y2)? * 100 + two(y1, y0)?, two(m1, m0)?, two(d1, d0)?);
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let last = match month {
        4 | 6 | 9 | 11 => 30,
        2 => 28 + i64::from(leap),
        1..=12 => 31,
        _ => return None,
    };
    ((1..=last).contains(&day)).then(|| days_from_civil(year, month, day))
}

/// Appends `2013-01-01T10:00:00.123Z`; outside the years 0 to 9999 the bare milliseconds, so that nothing is lost.
pub fn format_timestamp(ms: i64, out: &mut Vec<u8>) -> bool {
    let (day, of_day) = (ms.div_euclid(DAY_MS), ms.rem_euclid(DAY_MS));
    let Some(date) = date_text(day) else { return false };
    let (h, m, s) = (of_day / 3_600_000, of_day / 60_000 % 60, of_day / 1_000 % 60);
    let [h1, h0] = digits(h);
    let [m1, m0] = digits(m);
    let [s1, s0] = digits(s);
    let [f1, f0] = digits(of_day % 1_000 % 100);
    let f2 = b'0' + (of_day % 1_000 / 100) as u8;
    out.extend_from_slice(&date);
    out.extend_from_slice(&[b'T', h1, h0, b':', m1, m0, b':', s1, s0, b'.', f2, f1, f0, b'Z']);
    true
}

/// Appends `2013-01-31`; false, and nothing, outside the years 0 to 9999.
pub fn format_date(day: i32, out: &mut Vec<u8>) -> bool {
    date_text(i64::from(day)).map(|date| out.extend_from_slice(&date)).is_some()
}

fn seconds(text: &[u8]) -> Option<(i64, i64, &[u8])> {
    let [b':', s1, s0, rest @ ..] = text else { return Some((0, 0, text)) };
    let second = two(*s1, *s0)?;
    let [b'.' | b',', fraction @ ..] = rest else { return Some((second, 0, rest)) };
    let length = fraction.iter().take_while(|b| b.is_ascii_digit()).count();
    if length == 0 {
        return None;
    }
    let (fraction, zone) = fraction.split_at(length);
    // What is finer than a millisecond is cut off, as everywhere in the engine.
    let milli = (0..3).fold(0, |ms, i| ms * 10 + fraction.get(i).map_or(0, |b| i64::from(b - b'0')));
    Some((second, milli, zone))
}

/// Minutes east of UTC.
fn zone_minutes(zone: &[u8]) -> Option<i64> {
    let (sign, hour, minute) = match *zone {
        [] | [b'Z' | b'z'] => return Some(0),
        [sign, h1, h0] => (sign, two(h1, h0)?, 0),
        [sign, h1, h0, b':', m1, m0] | [sign, h1, h0, m1, m0] => (sign, two(h1, h0)?, two(m1, m0)?),
        _ => return None,
    };
    let minutes = (hour <= 23 && minute <= 59).then_some(hour * 60 + minute)?;
    match sign {
        b'+' => Some(minutes),
        b'-' => Some(-minutes),
        _ => None,
    }
}

fn two(tens: u8, ones: u8) -> Option<i64> {
    (tens.is_ascii_digit() && ones.is_ascii_digit()).then(|| i64::from(tens - b'0') * 10 + i64::from(ones - b'0'))
}

fn digits(n: i64) -> [u8; 2] {
    [b'0' + (n / 10 % 10) as u8, b'0' + (n % 10) as u8]
}

fn date_text(day: i64) -> Option<[u8; 10]> {
    let (year, month, day) = civil_from_days(day)?;
    let [y3, y2] = digits(year / 100);
    let [y1, y0] = digits(year);
    let [m1, m0] = digits(month);
    let [d1, d0] = digits(day);
    Some([y3, y2, y1, y0, b'-', m1, m0, b'-', d1, d0])
}

/// Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms", `days_from_civil`, for years from 0.
fn days_from_civil(year: i64, month: i64, day: i64) -> i32 {
    let y = if month <= 2 { year - 1 } else { year };
    let era = y.div_euclid(400);
    let year_of_era = y.rem_euclid(400);
    let month_from_march = (month + 9) % 12;
    let day_of_year = (153 * month_from_march + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    (era * 146_097 + day_of_era - 719_468) as i32
}

/// The inverse, from the same source (`civil_from_days`); `None` outside the years 0 to 9999.
fn civil_from_days(days: i64) -> Option<(i64, i64, i64)> {
    let z = days.checked_add(719_468)?;
    let (era, day_of_era) = (z.div_euclid(146_097), z.rem_euclid(146_097));
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    (0..=MAX_YEAR).contains(&year).then_some((year, month, day))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_iso_8601_writes_is_read() {
        let ms = 1_357_034_400_123;
        for text in [
            "2013-01-01T10:00:00.123Z",
            "2013-01-01 10:00:00.123",
            "2013-01-01T12:00:00.123456789+02:00",
            "2013-01-01T05:30:00.123-0430",
            "2013-01-01T12:00:00,123+02",
        ] {
            assert_eq!(parse_timestamp(text.as_bytes()), Some(ms), "{text}");
        }
        assert_eq!(parse_timestamp(b"2013-01-01T10:00Z"), Some(1_357_034_400_000));
        assert_eq!(parse_timestamp(b"1970-01-02"), Some(DAY_MS));
        assert_eq!(parse_timestamp(b"1969-12-31T23:59:59.999Z"), Some(-1));
        assert_eq!(parse_date(b"2000-02-29"), Some(11_016));
    }

    #[test]
    fn what_is_no_time_is_refused() {
        for text in [
            "",
            "2013",
            "2013-01-01T",
            "2013-01-01T10",
            "2013-13-01",
            "2013-02-29",
            "2013-04-31",
            "2013-01-01T24:00:00Z",
            "2013-01-01T10:60",
            "2013-01-01T10:00:00.Z",
            "2013-01-01T10:00:00X",
            "2013-01-01T10:00:00+2",
            "2013-01-0\u{e9}",
            "2013-01-01Z",
            "-013-01-01",
            "2013-01-01T10:00:00.123ZZ",
        ] {
            assert_eq!(parse_timestamp(text.as_bytes()), None, "{text}");
        }
    }

    #[test]
    fn text_and_back_is_the_same_through_the_centuries() {
        let mut text = Vec::new();
        for day in (-719_528..2_932_897).step_by(97) {
            let ms = day * DAY_MS + 12_345_678;
            text.clear();
            assert!(format_timestamp(ms, &mut text));
            assert_eq!(parse_timestamp(&text), Some(ms), "{}", String::from_utf8_lossy(&text));
        }
        text.clear();
        assert!(!format_timestamp(i64::MAX, &mut text) && !format_timestamp(i64::MIN, &mut text) && text.is_empty());
    }
}
