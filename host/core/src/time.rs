//! Event time, processing time, and the watermark that can only rise.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

/// Milliseconds since 1970-01-01 UTC, in event or processing time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(pub i64);

impl Timestamp {
    /// Before every time.
    pub const MIN: Self = Self(i64::MIN);
    /// After every time.
    pub const MAX: Self = Self(i64::MAX);
}

/// A promise: no row with a timestamp at or below this one follows (or if one does, it is late).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Watermark(pub i64);

impl Watermark {
    /// Nothing is promised yet.
    pub const MIN: Self = Self(i64::MIN);
    /// The end of the input: everything fires.
    pub const MAX: Self = Self(i64::MAX);
}

impl fmt::Display for Watermark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::MIN => f.write_str("none"),
            Self::MAX => f.write_str("end"),
            Self(ms) => write!(f, "{ms}"),
        }
    }
}

/// A watermark that never falls: the only way to hold one.
#[derive(Clone, Copy, Debug)]
pub struct RisingWatermark(Watermark);

impl Default for RisingWatermark {
    fn default() -> Self {
        Self(Watermark::MIN)
    }
}

impl From<Watermark> for RisingWatermark {
    fn from(watermark: Watermark) -> Self {
        Self(watermark)
    }
}

impl RisingWatermark {
    /// Where it stands.
    pub fn get(&self) -> Watermark {
        self.0
    }

    /// Takes a candidate; the new watermark if it rose.
    pub fn raise(&mut self, candidate: Watermark) -> Option<Watermark> {
        (candidate > self.0).then(|| {
            self.0 = candidate;
            candidate
        })
    }
}

/// The minimum over several inputs (or splits), without those that are idle. It never falls either: an input that
/// wakes up behind the others is late, it does not turn time back. When all are idle it is the largest of theirs: nobody
/// is left to wait for.
#[derive(Clone, Debug)]
pub struct WatermarkMerge {
    inputs: Vec<(RisingWatermark, bool)>,
    merged: RisingWatermark,
}

impl WatermarkMerge {
    /// For so many inputs, all active.
    pub fn new(inputs: usize) -> Self {
        Self { inputs: vec![(RisingWatermark::default(), false); inputs], merged: RisingWatermark::default() }
    }

    /// As `new`, but what they have together stands at a watermark already.
    pub fn from(inputs: usize, watermark: Watermark) -> Self {
        let mut merge = Self::new(inputs);
        merge.merged.raise(watermark);
        merge
    }

    /// One more input, active; its index.
    pub fn add_input(&mut self) -> usize {
        self.inputs.push((RisingWatermark::default(), false));
        self.inputs.len() - 1
    }

    /// The minimum as it stands.
    pub fn get(&self) -> Watermark {
        self.merged.get()
    }

    /// An input's watermark.
    pub fn of(&self, input: usize) -> Watermark {
        self.inputs.get(input).map_or(Watermark::MIN, |(own, _)| own.get())
    }

    /// Whether every input is idle (and there is at least one).
    pub fn all_idle(&self) -> bool {
        !self.inputs.is_empty() && self.inputs.iter().all(|(_, idle)| *idle)
    }

    /// An input's watermark rose (which makes it active); the minimum, if it rose.
    pub fn raise(&mut self, input: usize, watermark: Watermark) -> Option<Watermark> {
        let (own, idle) = self.inputs.get_mut(input)?;
        *idle = false;
        own.raise(watermark);
        self.merge()
    }

    /// An input became idle or active; the minimum, if it rose.
    pub fn set_idle(&mut self, input: usize, idle: bool) -> Option<Watermark> {
        self.inputs.get_mut(input)?.1 = idle;
        self.merge()
    }

    fn merge(&mut self) -> Option<Watermark> {
        let active = self.inputs.iter().filter(|(_, idle)| !idle).map(|(own, _)| own.get()).min();
        let merged = active.or_else(|| self.inputs.iter().map(|(own, _)| own.get()).max())?;
        self.merged.raise(merged)
    }
}

/// Where processing time comes from. Injected everywhere, so that tests and simulations hold it in their hands.
pub trait Clock: Send + Sync {
    /// The time now.
    fn now(&self) -> Timestamp;
}

/// The machine's clock.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Timestamp(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
    }
}

/// Time for deadlines, made of a clock that may be set: it never goes back. Where that clock was set back by an hour, what
/// was due in a second is due in a second, and not in an hour.
pub struct SteadyClock {
    clock: Arc<dyn Clock>,
    /// What it shows at least.
    least_ms: AtomicI64,
    /// What it shows more than the clock below.
    ahead_ms: AtomicI64,
}

impl SteadyClock {
    /// Made of this one.
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        Self { clock, least_ms: AtomicI64::new(i64::MIN), ahead_ms: AtomicI64::new(0) }
    }

    /// What the clock below shows at a time of this one.
    pub fn below(&self, time: Timestamp) -> Timestamp {
        Timestamp(time.0.saturating_sub(self.ahead_ms.load(Ordering::Relaxed)))
    }
}

impl Clock for SteadyClock {
    fn now(&self) -> Timestamp {
        let below = self.clock.now().0;
        let shown = below.saturating_add(self.ahead_ms.load(Ordering::Relaxed));
        let least = self.least_ms.fetch_max(shown, Ordering::Relaxed);
        if shown < least {
            self.ahead_ms.store(least.saturating_sub(below), Ordering::Relaxed);
        }
        Timestamp(shown.max(least))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_steady_clock_goes_on_where_the_clock_below_was_set_back() {
        struct Set(Arc<AtomicI64>);
        impl Clock for Set {
            fn now(&self) -> Timestamp {
                Timestamp(self.0.load(Ordering::Relaxed))
            }
        }
        let shown = Arc::new(AtomicI64::new(1_000));
        let clock = SteadyClock::new(Arc::new(Set(shown.clone())));
        let mut at = |ms| {
            shown.store(ms, Ordering::Relaxed);
            clock.now().0
        };
        assert_eq!([1_000, 1_500, 200, 300, 100, 900].map(&mut at), [1_000, 1_500, 1_500, 1_600, 1_600, 2_400]);
        assert_eq!(clock.below(Timestamp(2_500)), Timestamp(1_000), "100 ms from now, where it is 900");
    }

    #[test]
    fn the_minimum_ignores_idle_inputs_and_never_falls() {
        let mut merge = WatermarkMerge::new(2);
        assert_eq!(merge.raise(0, Watermark(10)), None);
        assert_eq!(merge.raise(1, Watermark(5)), Some(Watermark(5)));
        assert_eq!(merge.set_idle(1, true), Some(Watermark(10)));
        assert_eq!(merge.raise(1, Watermark(7)), None, "back from idle, but behind");
        assert_eq!(merge.get(), Watermark(10));
        assert_eq!(merge.raise(0, Watermark(20)), None, "held back by the second input");
        assert_eq!(merge.raise(1, Watermark(15)), Some(Watermark(15)));
        assert_eq!(merge.set_idle(0, true), None, "what is left holds back as before");
        assert_eq!(merge.set_idle(1, true), Some(Watermark(20)), "nobody is left to wait for");
    }
}
