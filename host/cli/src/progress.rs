//! What a running job looks like: a live line on a terminal, else plain or JSON lines.
//!
//! It only looks at counters; where it is wrong nothing else is.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use console::{Term, measure_text_width, style};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use crate::args::Format;
use crate::screen::Screen;
use crate::units;

/// How often plain and JSON lines are written: often enough to see it live, seldom enough for a log.
const LINE_EVERY: Duration = Duration::from_secs(2);
/// Rates are those of the last few seconds, so that they follow a change and do not flicker.
const RATE_OVER: Duration = Duration::from_secs(3);
/// Steps of the bar, which shows parts of a job whose size may not be a count of anything that people know.
const BAR_STEPS: u64 = 1_000;

/// The figures of a job at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Figures {
    /// Records that sources read.
    pub records_in: u64,
    /// Records that sinks took.
    pub records_out: u64,
    /// The smallest watermark of the sinks, in milliseconds UTC; none before the first and after the last.
    pub watermark: Option<i64>,
    pub late: u64,
    pub dead_lettered: u64,
    pub skipped: u64,
    /// Of what is read, where the input ends: how much was read, in units of the sources.
    pub progress: u64,
    /// How much there is.
    pub total: Option<u64>,
    /// Where the job takes any.
    pub checkpoints: Option<Checkpoints>,
}

/// The checkpoints of a job up to one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Checkpoints {
    pub completed: u64,
    pub failed: u64,
    /// Of the last one that was completed.
    pub duration_ms: u64,
    /// All its files together.
    pub bytes: u64,
    /// Of its duration, until its barrier had passed all of the job.
    pub alignment_ms: u64,
    /// Whether it turned unaligned.
    pub unaligned: bool,
    /// Of its bytes, those of rows that its barriers overtook.
    pub in_flight_bytes: u64,
}

impl Figures {
    /// From 0 to 1, where the input ends.
    fn part(&self) -> Option<f64> {
        let total = self.total.filter(|t| *t > 0)?;
        Some((self.progress as f64 / total as f64).clamp(0.0, 1.0))
    }
}

/// Shows figures as they come.
pub struct Display {
    kind: Kind,
    begin: Instant,
    samples: VecDeque<(Instant, Figures)>,
    last_line: Instant,
}

enum Kind {
    Live(ProgressBar),
    Plain,
    Json,
    Quiet,
}

impl Display {
    /// Chooses by format and by what stderr is.
    pub fn new(format: Format, screen: &Screen, now: Instant) -> Self {
        let kind = match format {
            Format::Quiet => Kind::Quiet,
            Format::Json => Kind::Json,
            Format::Auto if console::user_attended_stderr() => {
                Kind::Live(screen.bars().add(ProgressBar::new(BAR_STEPS)))
            }
            Format::Auto | Format::Plain => Kind::Plain,
        };
        Self { kind, begin: now, samples: VecDeque::new(), last_line: now }
    }

    /// Takes the figures of now; to be called about ten times a second.
    pub fn update(&mut self, now: Instant, figures: Figures) {
        self.samples.push_back((now, figures));
        while self.samples.get(1).is_some_and(|(at, _)| now.duration_since(*at) >= RATE_OVER) {
            self.samples.pop_front();
        }
        let rates = self.rates();
        if let Kind::Live(bar) = &self.kind {
            let part = figures.part();
            bar.set_position(part.map_or(0, |p| (p * BAR_STEPS as f64) as u64));
            let width = usize::from(Term::stderr().size().1);
            let (style, room) = style_of(part.is_some(), width);
            bar.set_style(style);
            bar.set_message(live_line(&figures, rates, now.duration_since(self.begin), room));
            bar.tick();
            return;
        }
        if now.duration_since(self.last_line) < LINE_EVERY {
            return;
        }
        self.last_line = now;
        let elapsed = now.duration_since(self.begin);
        match self.kind {
            Kind::Plain => eprintln!("{}", plain_line(&figures, rates, elapsed)),
            Kind::Json => eprintln!("{}", json_line(&figures, rates, elapsed)),
            Kind::Live(_) | Kind::Quiet => {}
        }
    }

    /// Takes the live line away.
    pub fn clear(&mut self) {
        if let Kind::Live(bar) = &self.kind {
            bar.finish_and_clear();
        }
    }

    fn rates(&self) -> Rates {
        let (Some((from, first)), Some((to, last))) = (self.samples.front(), self.samples.back()) else {
            return Rates::default();
        };
        let seconds = to.duration_since(*from).as_secs_f64();
        if seconds <= 0.0 {
            return Rates::default();
        }
        let per_second = |first: u64, last: u64| last.saturating_sub(first) as f64 / seconds;
        let progress = per_second(first.progress, last.progress);
        let left = last.total.map(|total| total.saturating_sub(last.progress) as f64);
        let left = left.filter(|_| progress > 0.0).map(|left| left / progress);
        Rates {
            records: per_second(first.records_in, last.records_in),
            left: left.and_then(|s| Duration::try_from_secs_f64(s).ok()),
        }
    }
}

#[derive(Clone, Copy, Default)]
struct Rates {
    records: f64,
    left: Option<Duration>,
}

/// The line's style for a terminal of so many columns, and how many of them are left for the figures. A job that does not
/// end by itself has no bar but a sign of life.
fn style_of(bounded: bool, width: usize) -> (ProgressStyle, usize) {
    let columns = if width < 110 { 10 } else { 28 };
    let (template, used) = match bounded {
        true => (format!("  {{bar:{columns}.cyan/dim}} {{msg}}"), columns + 3),
        false => ("  {spinner:.cyan} {msg}".to_owned(), 4),
    };
    let style = ProgressStyle::with_template(&template).unwrap_or_else(|_| ProgressStyle::default_bar());
    // The last column stays free: a cursor behind it would be on the next line.
    (style.progress_chars("━╸─"), width.saturating_sub(used + 1))
}

/// A part of the live line. Where there is no room for all, those of the highest rank are left out first.
type Part = (u8, String);

fn live_line(figures: &Figures, rates: Rates, elapsed: Duration, width: usize) -> String {
    let mut parts: Vec<Part> = Vec::new();
    if let Some(part) = figures.part() {
        parts.push((0, style(format!("{:>3.0} %", part * 100.0)).bold().to_string()));
    }
    parts.push((0, format!("{}/s", style(units::short(rates.records)).bold())));
    parts.push((3, format!("{} in", units::short(figures.records_in as f64))));
    parts.push((5, format!("{} out", units::short(figures.records_out as f64))));
    if let Some(watermark) = figures.watermark {
        parts.push((7, format!("watermark {}", units::time_utc(watermark - watermark.rem_euclid(1_000)))));
    }
    let warn = |n: u64, what: &str| {
        (n > 0).then(|| (2, style(format!("{} {what}", units::short(n as f64))).yellow().to_string()))
    };
    parts.extend(warn(figures.late, "late"));
    parts.extend(warn(figures.dead_lettered, "dead-lettered"));
    parts.extend(warn(figures.skipped, "skipped"));
    if let Some(checkpoints) = figures.checkpoints {
        if checkpoints.completed > 0 {
            parts.push((4, checkpoint(&checkpoints)));
            parts.push((6, units::bytes(checkpoints.bytes)));
        }
        parts.extend(warn(checkpoints.failed, "checkpoints failed"));
    }
    parts.push(match rates.left {
        Some(left) => (1, format!("{} left", clock(left))),
        None => (1, clock(elapsed)),
    });
    fit(parts, width)
}

/// `checkpoint 12 in 35 ms`.
fn checkpoint(checkpoints: &Checkpoints) -> String {
    let took = units::duration(Duration::from_millis(checkpoints.duration_ms));
    let how = if checkpoints.unaligned { ", unaligned" } else { "" };
    format!("checkpoint {} in {took}{how}", checkpoints.completed)
}

/// The parts side by side, as far as they fit.
fn fit(mut parts: Vec<Part>, width: usize) -> String {
    loop {
        let line = parts.iter().map(|(_, part)| part.as_str()).collect::<Vec<_>>().join("  ");
        let last = parts.iter().enumerate().max_by_key(|(_, (rank, _))| *rank).map(|(at, _)| at);
        match last {
            Some(at) if parts.len() > 1 && measure_text_width(&line) > width => drop(parts.remove(at)),
            _ => return line,
        }
    }
}

fn plain_line(figures: &Figures, rates: Rates, elapsed: Duration) -> String {
    let part = figures.part().map(|p| format!("  {:.0} %", p * 100.0)).unwrap_or_default();
    let left = rates.left.map(|l| format!("  {} left", units::duration(l))).unwrap_or_default();
    let watermark = figures.watermark.map(|w| format!("  watermark {}", units::time_utc(w))).unwrap_or_default();
    let checkpoints = figures.checkpoints.filter(|c| c.completed > 0);
    let checkpoints =
        checkpoints.map(|c| format!("  {}, {}", checkpoint(&c), units::bytes(c.bytes))).unwrap_or_default();
    format!(
        "{:>8}{part}  {} in ({}/s)  {} out{watermark}  {} late  {} dead-lettered  {} skipped{checkpoints}{left}",
        units::duration(elapsed),
        units::count(figures.records_in),
        units::short(rates.records),
        units::count(figures.records_out),
        units::count(figures.late),
        units::count(figures.dead_lettered),
        units::count(figures.skipped),
    )
}

fn json_line(figures: &Figures, rates: Rates, elapsed: Duration) -> String {
    #[derive(Serialize)]
    struct Line<'a> {
        event: &'static str,
        elapsed_ms: u128,
        records_per_s: u64,
        #[serde(flatten)]
        figures: &'a Figures,
    }
    let line =
        Line { event: "progress", elapsed_ms: elapsed.as_millis(), records_per_s: rates.records as u64, figures };
    serde_json::to_string(&line).unwrap_or_default()
}

/// `0:07`, `1:02:03`.
fn clock(d: Duration) -> String {
    let seconds = d.as_secs_f64().round() as u64;
    let (h, m, s) = (seconds / 3_600, seconds / 60 % 60, seconds % 60);
    if h > 0 { format!("{h}:{m:02}:{s:02}") } else { format!("{m}:{s:02}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_and_time_left_follow_the_samples() {
        let begin = Instant::now();
        let mut display = Display::new(Format::Quiet, &Screen::new(), begin);
        let at = |s: u64, n: u64| {
            (
                begin + Duration::from_secs(s),
                Figures { records_in: n, progress: n * 2, total: Some(2_000), ..Figures::default() },
            )
        };
        for (now, figures) in [at(0, 0), at(1, 100), at(2, 200), at(5, 500)] {
            display.update(now, figures);
        }
        let rates = display.rates();
        assert_eq!(rates.records, 100.0);
        assert_eq!(rates.left, Some(Duration::from_secs(5)));
        let (_, figures) = at(5, 500);
        console::set_colors_enabled(false);
        let live = |figures, width| live_line(&figures, rates, Duration::from_secs(5), width);
        assert_eq!(live(figures, 80), " 50 %  100/s  500 in  0 out  0:05 left");
        let plain = plain_line(&figures, rates, Duration::from_secs(5));
        assert_eq!(plain, "  5.00 s  50 %  500 in (100/s)  0 out  0 late  0 dead-lettered  0 skipped  5.00 s left");
        let checkpoints =
            Some(Checkpoints { completed: 3, failed: 1, duration_ms: 35, bytes: 1_200, ..Checkpoints::default() });
        let figures = Figures { watermark: Some(61_000), late: 7, checkpoints, ..figures };
        let all = " 50 %  100/s  500 in  0 out  watermark 1970-01-01 00:01:01  7 late  checkpoint 3 in 35 ms  1.20 kB  \
                   1 checkpoints failed  0:05 left";
        assert_eq!(live(figures, all.len()), all);
        let without_watermark = all.replace("  watermark 1970-01-01 00:01:01", "");
        assert_eq!(live(figures, all.len() - 1), without_watermark, "what matters least is left out first");
        let narrow = " 50 %  100/s  500 in  7 late  checkpoint 3 in 35 ms  1 checkpoints failed  0:05 left";
        assert_eq!(live(figures, narrow.len()), narrow);
        assert_eq!(live(figures, 5), " 50 %");
    }
}
