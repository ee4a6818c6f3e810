//! All chance of a simulation comes from here, so from its seed.

/// A generator of random numbers (splitmix64: any seed is good).
#[derive(Clone, Debug)]
pub struct Dice(u64);

impl Dice {
    /// From a seed.
    pub fn new(seed: u64) -> Self {
        // Seeds that are neighbours have nothing in common.
        let mut dice = Self(seed ^ 0x7469_6465_6d69_6c6c);
        Self(dice.draw())
    }

    /// 64 bits.
    pub fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    /// A number from `low` to below `high`; `low`, if that is nothing.
    pub fn between(&mut self, low: i64, high: i64) -> i64 {
        let span = high.saturating_sub(low).max(1).unsigned_abs();
        low.saturating_add(i64::try_from(self.draw() % span).unwrap_or(0))
    }

    /// Whether something happens that happens so often of a thousand times.
    pub fn permille(&mut self, chance: u64) -> bool {
        self.draw() % 1_000 < chance
    }

    /// One of these.
    pub fn pick<'a, T>(&mut self, of: &'a [T]) -> Option<&'a T> {
        let at = self.draw() % (of.len().max(1) as u64);
        of.get(usize::try_from(at).unwrap_or(0))
    }
}
