//! Numbers as people read them.

use std::time::Duration;

/// `1,234,567`.
pub fn count(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// Three significant digits: `12.3 M`, `456`.
pub fn short(n: f64) -> String {
    let (value, unit) = match n {
        n if n >= 1e9 => (n / 1e9, " G"),
        n if n >= 1e6 => (n / 1e6, " M"),
        n if n >= 1e4 => (n / 1e3, " k"),
        n => return format!("{n:.0}"),
    };
    format!("{value:.digits$}{unit}", digits = digits(value))
}

/// `41.2 kB`.
pub fn bytes(n: u64) -> String {
    let value = n as f64;
    let (value, unit) = match value {
        v if v >= 1e9 => (v / 1e9, "GB"),
        v if v >= 1e6 => (v / 1e6, "MB"),
        v if v >= 1e3 => (v / 1e3, "kB"),
        _ => return format!("{n} B"),
    };
    format!("{value:.digits$} {unit}", digits = digits(value))
}

/// `1.24 s`, `35 ms`, `2 h 05 min`.
pub fn duration(d: Duration) -> String {
    let seconds = d.as_secs();
    match d {
        _ if seconds >= 3_600 => format!("{} h {:02} min", seconds / 3_600, seconds % 3_600 / 60),
        _ if seconds >= 60 => format!("{} min {:02} s", seconds / 60, seconds % 60),
        _ if seconds >= 10 => format!("{:.1} s", d.as_secs_f64()),
        _ if seconds >= 1 => format!("{:.2} s", d.as_secs_f64()),
        _ if d.as_millis() >= 10 => format!("{} ms", d.as_millis()),
        _ => format!("{:.1} ms", d.as_secs_f64() * 1e3),
    }
}

/// A length of event time in whole units: `10 s`, `1 h 30 min`, `250 ms`.
pub fn span_ms(ms: u64) -> String {
    const UNITS: [(u64, &str); 5] = [(86_400_000, "d"), (3_600_000, "h"), (60_000, "min"), (1_000, "s"), (1, "ms")];
    if ms == 0 {
        return "0 s".to_owned();
    }
    let mut rest = ms;
    let mut parts = Vec::new();
    for (size, unit) in UNITS {
        if rest >= size {
            parts.push(format!("{} {unit}", rest / size));
            rest %= size;
        }
    }
    parts.join(" ")
}

/// Milliseconds UTC as `2013-06-23 04:00:00`, with milliseconds where there are some.
pub fn time_utc(ms: i64) -> String {
    let (days, of_day) = (ms.div_euclid(86_400_000), ms.rem_euclid(86_400_000));
    let (year, month, day) = civil(days);
    let (h, m, s, milli) = (of_day / 3_600_000, of_day / 60_000 % 60, of_day / 1_000 % 60, of_day % 1_000);
    let fraction = if milli == 0 { String::new() } else { format!(".{milli:03}") };
    format!("{year:04}-{month:02}-{day:02} {h:02}:{m:02}:{s:02}{fraction}")
}

/// Days since 1970-01-01 to a date of the proleptic Gregorian calendar (Howard Hinnant, "chrono-compatible low-level
/// date algorithms", `civil_from_days`).
fn civil(days: i64) -> (i64, i64, i64) {
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    (year_of_era + era * 400 + i64::from(month <= 2), month, day)
}

fn digits(value: f64) -> usize {
    match value {
        v if v >= 100.0 => 0,
        v if v >= 10.0 => 1,
        _ => 2,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_well() {
        assert_eq!(count(0), "0");
        assert_eq!(count(1_234_567), "1,234,567");
        assert_eq!(short(9_999.0), "9999");
        assert_eq!(short(12_345_678.0), "12.3 M");
        assert_eq!(bytes(41_234), "41.2 kB");
        assert_eq!(bytes(999), "999 B");
        assert_eq!(duration(Duration::from_millis(1_240)), "1.24 s");
        assert_eq!(duration(Duration::from_secs(7_500)), "2 h 05 min");
        assert_eq!(span_ms(5_400_000), "1 h 30 min");
        assert_eq!(time_utc(1_371_960_000_000), "2013-06-23 04:00:00");
        assert_eq!(time_utc(-1), "1969-12-31 23:59:59.999");
        assert_eq!(time_utc(951_782_400_000), "2000-02-29 00:00:00");
    }
}
