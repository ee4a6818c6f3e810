//! The windowed aggregates: `q5` (sliding), `q7` (tumbling) and `session`.
//!
//! Event time never goes back, so one window is open at a time (five panes in `q5`), and it fires when the first event
//! past its end comes. The invariant: windows are aligned to 1970, and what a fired window leaves behind in the tables
//! is empty, without a pass over keys that it never saw.

#![allow(
    clippy::indexing_slicing,
    reason = "tables have one entry per key, and a drawn key is less than the number of keys; panes are numbered modulo \
              their number"
)]

use super::generate::{Clock, KeyDraw, mix, price};
use crate::query::{Answer, Parameters};

const WINDOW_MS: u64 = 10_000;
const SLIDE_MS: u64 = 2_000;
const PANES: usize = (WINDOW_MS / SLIDE_MS) as usize;
const GAP_MS: u64 = 10_000;

/// Keys drawn before they are looked up, where the table is larger than the caches: the processor then has many more
/// lookups under way than with the arithmetic of the draw in between.
const KEYS_AHEAD: usize = 256;

/// The distinct keys of a window, in order of appearance.
struct Touched {
    keys: Vec<u32>,
    len: usize,
}

impl Touched {
    fn new(keys: u64) -> Self {
        // One entry more than keys, because `push` writes before it knows whether the key is new.
        Self { keys: vec![0; keys as usize + 1], len: 0 }
    }

    /// Adds `key` if it is new, without a branch: new or known is close to random.
    #[inline(always)]
    fn push(&mut self, key: u32, is_new: bool) {
        self.keys[self.len] = key;
        self.len += usize::from(is_new);
    }

    fn keys(&self) -> &[u32] {
        &self.keys[..self.len]
    }
}

/// The end of the window of `size_ms` in which `now_ms` lies.
#[inline]
fn window_end(now_ms: u64, size_ms: u64) -> u64 {
    now_ms - now_ms % size_ms + size_ms
}

/// The largest price of each bidder in tumbling windows of 10 s; sum of them.
#[must_use]
pub fn q7(parameters: &Parameters) -> Answer {
    let bidders = KeyDraw::new(parameters.bidders());
    // Zero is no bid, as prices begin at one; 32 bits hold every price and keep the table in the second-level cache.
    let mut largest = vec![0_u32; parameters.bidders() as usize];
    let mut touched = Touched::new(parameters.bidders());
    let mut answer = Answer::default();
    let mut fire = |largest: &mut [u32], touched: &mut Touched| {
        for key in touched.keys() {
            answer.add(u64::from(std::mem::take(&mut largest[*key as usize])));
        }
        touched.len = 0;
    };
    let mut clock = Clock::starting_at(0, parameters.rate());
    let mut end_ms = 0;
    for event in 0..parameters.records() {
        let now_ms = clock.tick();
        if now_ms >= end_ms {
            fire(&mut largest, &mut touched);
            end_ms = window_end(now_ms, WINDOW_MS);
        }
        let h = mix(event);
        let bidder = bidders.draw(mix(h));
        let entry = &mut largest[bidder as usize];
        touched.push(bidder, *entry == 0);
        *entry = (*entry).max(price(h));
    }
    fire(&mut largest, &mut touched);
    answer
}

/// The number of bids in each session of each bidder, gap 10 s, touching sessions merged; sum of the squares.
///
/// A session is emitted when its bidder comes back after the gap, or at the end of the input. A streaming engine would
/// emit it as soon as time has passed it; the records are the same.
#[must_use]
pub fn session(parameters: &Parameters) -> Answer {
    #[derive(Clone, Copy, Default)]
    struct Open {
        last_ms: u64,
        bids: u64,
    }
    let bidders = KeyDraw::new(parameters.bidders());
    let mut open = vec![Open::default(); parameters.bidders() as usize];
    let mut clock = Clock::starting_at(0, parameters.rate());
    let mut answer = Answer::default();
    let mut keys = [0_u32; KEYS_AHEAD];
    let mut first = 0;
    while first < parameters.records() {
        let len = (parameters.records() - first).min(KEYS_AHEAD as u64) as usize;
        let keys = &mut keys[..len];
        for (event, key) in (first..).zip(keys.iter_mut()) {
            *key = bidders.draw(mix(mix(event)));
        }
        for key in keys.iter() {
            let now_ms = clock.tick();
            let entry = &mut open[*key as usize];
            // No branches, as returning within the gap or after it can't be predicted. The time of a bidder never seen is
            // 0, so that its session of no bids is over: it adds nothing.
            let over = now_ms - entry.last_ms > GAP_MS;
            let finished = if over { entry.bids } else { 0 };
            answer.records += u64::from(finished != 0);
            answer.checksum = answer.checksum.wrapping_add(finished.wrapping_mul(finished));
            *entry = Open { last_ms: now_ms, bids: entry.bids - finished + 1 };
        }
        first += len as u64;
    }
    for entry in open.iter().filter(|entry| entry.bids != 0) {
        answer.add(entry.bids.wrapping_mul(entry.bids));
    }
    answer
}

/// The largest number of bids for one auction in each sliding window, 10 s every 2 s; sum over the windows.
#[must_use]
pub fn q5(parameters: &Parameters) -> Answer {
    let auctions = KeyDraw::new(parameters.auctions());
    let mut panes = Panes::new(parameters.auctions());
    let mut clock = Clock::starting_at(0, parameters.rate());
    let mut pane_end_ms = 0;
    for event in 0..parameters.records() {
        let now_ms = clock.tick();
        if now_ms >= pane_end_ms {
            // At most a second lies between two events, so that no pane is ever skipped.
            panes.close_pane();
            pane_end_ms = window_end(now_ms, SLIDE_MS);
        }
        panes.count(auctions.draw(mix(event)));
    }
    for _ in 0..PANES {
        panes.close_pane();
    }
    panes.answer
}

/// Counts per key in the panes of a sliding window, and their sum over the window.
///
/// An event is counted in the current pane alone. When the pane closes it is added to the window's counts, and the oldest
/// is taken off: in one vectorised pass over all keys where most of them occur, key by key where few do.
struct Panes {
    /// A ring; the keys of a pane are those whose count in it is not zero.
    counts: [Vec<u32>; PANES],
    touched: [Touched; PANES],
    current: usize,
    /// Sum of the closed panes.
    window: Vec<u32>,
    answer: Answer,
}

impl Panes {
    fn new(keys: u64) -> Self {
        Self {
            counts: std::array::from_fn(|_| vec![0; keys as usize]),
            touched: std::array::from_fn(|_| Touched::new(keys)),
            current: 0,
            window: vec![0; keys as usize],
            answer: Answer::default(),
        }
    }

    #[inline(always)]
    fn count(&mut self, key: u32) {
        let count = &mut self.counts[self.current][key as usize];
        self.touched[self.current].push(key, *count == 0);
        *count += 1;
    }

    /// Fires the window that ends with the current pane, if there is any record in it, and makes the oldest pane the
    /// current one, empty.
    fn close_pane(&mut self) {
        let touched: usize = self.touched.iter().map(|touched| touched.len).sum();
        let largest = if touched >= self.window.len() / 4 { self.slide_all_keys() } else { self.slide_touched_keys() };
        if largest > 0 {
            self.answer.add(u64::from(largest));
        }
        self.current = self.oldest();
        self.touched[self.current].len = 0;
    }

    fn oldest(&self) -> usize {
        (self.current + 1) % PANES
    }

    /// Adds the current pane to the window and empties the oldest one out of it; the largest count in between.
    fn slide_all_keys(&mut self) -> u32 {
        let oldest_pane = self.oldest();
        let mut oldest = std::mem::take(&mut self.counts[oldest_pane]);
        let mut largest = 0;
        for ((window, current), oldest) in self.window.iter_mut().zip(&self.counts[self.current]).zip(&mut oldest) {
            let count = *window + *current;
            largest = largest.max(count);
            *window = count - std::mem::take(oldest);
        }
        self.counts[oldest_pane] = oldest;
        largest
    }

    /// The same as [`Self::slide_all_keys`], by the keys that occur.
    fn slide_touched_keys(&mut self) -> u32 {
        for key in self.touched[self.current].keys() {
            self.window[*key as usize] += self.counts[self.current][*key as usize];
        }
        let keys = self.touched.iter().flat_map(Touched::keys);
        let largest = keys.map(|key| self.window[*key as usize]).max().unwrap_or(0);
        let oldest = self.oldest();
        for key in self.touched[oldest].keys() {
            self.window[*key as usize] -= std::mem::take(&mut self.counts[oldest][*key as usize]);
        }
        largest
    }
}
