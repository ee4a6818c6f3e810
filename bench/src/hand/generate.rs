//! Events as the hand loops want them: single fields computed on the fly, and whole batches of columns for `q0`.
//!
//! A query computes only the fields that it reads. Strings are never copied: there are 10,004 channels and as many urls,
//! made once, and `extra` is a slice of one pool, so that a string of a batch is a 16-byte view as in Arrow's
//! `StringView`. The invariant: every view lies within the buffer of its column.

#![allow(
    clippy::indexing_slicing,
    reason = "the innermost loop of the benchmark; all slices of a batch are cut to one length first, and the pool and \
              the dictionary are larger than any index that the masks of the generator let through"
)]

use std::fmt::Write as _;

use crate::query::Parameters;

/// Time of event 0, in milliseconds.
const START_MS: u64 = 1_700_000_000_000;

/// Rows of a full batch; the same as the engine's, so that `q0` meets the same caches.
pub const BATCH_ROWS: usize = 4096;

const BRANDS: [&str; 4] = ["Google", "Facebook", "Baidu", "Apple"];
const NUMBERED_CHANNELS: u64 = 10_000;
const POOL_BYTES: u64 = 65_536;
/// Longest string that an Arrow view holds without a buffer.
const INLINE_BYTES: usize = 12;

/// The hash that everything is drawn from (splitmix64).
#[inline(always)]
pub(super) fn mix(x: u64) -> u64 {
    let z = x.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// The price of the event with hash `h`: 1 to 10,000,000.
#[inline(always)]
pub(super) fn price(h: u64) -> u32 {
    1 + (h as u32) % 10_000_000
}

/// Draws a key: `(hash >> 33) % keys` by two multiplications instead of a division (Lemire, Kaser, Kurz: "Faster
/// remainder by direct computation", 2019; exact for 32-bit operands).
#[derive(Clone, Copy, Debug)]
pub(super) struct KeyDraw {
    reciprocal: u64,
    keys: u32,
}

impl KeyDraw {
    /// A draw from `keys` keys; [`Parameters`] has seen to it that there are 1 to 2^27 of them.
    pub(super) fn new(keys: u64) -> Self {
        // One key wraps to a reciprocal of 0, which draws key 0 as it should.
        Self { reciprocal: (u64::MAX / keys).wrapping_add(1), keys: keys as u32 }
    }

    #[inline(always)]
    pub(super) fn draw(self, hash: u64) -> u32 {
        let fraction = self.reciprocal.wrapping_mul(hash >> 33);
        ((u128::from(fraction) * u128::from(self.keys)) >> 64) as u32
    }
}

/// Event times one after the other, without a division per event.
#[derive(Clone, Copy, Debug)]
pub(super) struct Clock {
    next_ms: u64,
    /// What the division by the rate has left over so far, in 1/rate milliseconds.
    remainder: u64,
    whole_step: u64,
    remainder_step: u64,
    rate: u64,
}

impl Clock {
    /// A clock whose first tick is the time of event `first`.
    pub(super) fn starting_at(first: u64, rate: u64) -> Self {
        Self {
            next_ms: START_MS + first * 1000 / rate,
            remainder: first * 1000 % rate,
            whole_step: 1000 / rate,
            remainder_step: 1000 % rate,
            rate,
        }
    }

    /// The time of the next event.
    #[inline(always)]
    pub(super) fn tick(&mut self) -> u64 {
        let now_ms = self.next_ms;
        let remainder = self.remainder + self.remainder_step;
        let carry = remainder >= self.rate;
        self.remainder = if carry { remainder - self.rate } else { remainder };
        self.next_ms = now_ms + self.whole_step + u64::from(carry);
        now_ms
    }
}

/// A batch of events, one vector per column. The strings are Arrow string views, little endian as a `u128`: length,
/// then either up to 12 bytes, or 4 bytes of prefix, buffer number (always 0) and offset.
#[derive(Clone, Debug, Default)]
pub struct Columns {
    /// Auction.
    pub auction: Vec<i64>,
    /// Bidder.
    pub bidder: Vec<i64>,
    /// Price.
    pub price: Vec<i64>,
    /// Views; every channel is short enough to lie in its view.
    pub channel: Vec<u128>,
    /// Views into [`Generator::url_bytes`].
    pub url: Vec<u128>,
    /// Milliseconds since 1970.
    pub date_time: Vec<i64>,
    /// Views into [`Generator::extra_bytes`].
    pub extra: Vec<u128>,
}

impl Columns {
    /// Rows of this batch.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.auction.len()
    }

    fn resize(&mut self, rows: usize) {
        self.auction.resize(rows, 0);
        self.bidder.resize(rows, 0);
        self.price.resize(rows, 0);
        self.channel.resize(rows, 0);
        self.url.resize(rows, 0);
        self.date_time.resize(rows, 0);
        self.extra.resize(rows, 0);
    }
}

/// Makes batches of whole events.
#[derive(Clone, Debug)]
pub struct Generator {
    auctions: KeyDraw,
    bidders: KeyDraw,
    clock: Clock,
    next: u64,
    end: u64,
    /// Views of channel and url, side by side because they are drawn together: the brands, then the numbered channels.
    dictionary: Vec<[u128; 2]>,
    urls: Vec<u8>,
    pool: Vec<u8>,
}

impl Generator {
    /// A generator at event 0.
    #[must_use]
    pub fn new(parameters: &Parameters) -> Self {
        let mut urls = Vec::new();
        let mut dictionary = Vec::new();
        let brands = BRANDS.iter().zip(0xC000_0000..).map(|(brand, seed)| ((*brand).to_owned(), seed));
        let numbered = (0..NUMBERED_CHANNELS).map(|c| (format!("channel-{c}"), 0xD000_0000 + c));
        for (channel, seed) in brands.chain(numbered) {
            let offset = urls.len();
            push_url(&mut urls, mix(seed));
            dictionary.push([view(channel.as_bytes(), 0), view(&urls[offset..], offset as u32)]);
        }
        Self {
            auctions: KeyDraw::new(parameters.auctions()),
            bidders: KeyDraw::new(parameters.bidders()),
            clock: Clock::starting_at(0, parameters.rate()),
            next: 0,
            end: parameters.records(),
            dictionary,
            urls,
            pool: (0..POOL_BYTES).map(|j| b'a' + (mix(0xE000_0000 + j) % 26) as u8).collect(),
        }
    }

    /// The buffer of the url column.
    #[must_use]
    pub fn url_bytes(&self) -> &[u8] {
        &self.urls
    }

    /// The buffer of the extra column.
    #[must_use]
    pub fn extra_bytes(&self) -> &[u8] {
        &self.pool
    }

    /// Overwrites `columns` with the next at most [`BATCH_ROWS`] events; false at the end of the input.
    pub fn next_batch(&mut self, columns: &mut Columns) -> bool {
        let rows = (self.end - self.next).min(BATCH_ROWS as u64) as usize;
        columns.resize(rows);
        // One length for all, so that the compiler drops the bounds checks of the loop.
        let auction = &mut columns.auction[..rows];
        let bidder = &mut columns.bidder[..rows];
        let price_column = &mut columns.price[..rows];
        let channel = &mut columns.channel[..rows];
        let url = &mut columns.url[..rows];
        let date_time = &mut columns.date_time[..rows];
        let extra = &mut columns.extra[..rows];
        let (auctions, bidders, mut clock) = (self.auctions, self.bidders, self.clock);
        for row in 0..rows {
            let h = mix(self.next + row as u64);
            let g = mix(h);
            auction[row] = i64::from(auctions.draw(h));
            bidder[row] = i64::from(bidders.draw(g));
            price_column[row] = i64::from(price(h));
            date_time[row] = clock.tick() as i64;
            [channel[row], url[row]] = self.dictionary[channel_of(g)];
            extra[row] = extra_view(&self.pool, h, g);
        }
        self.clock = clock;
        self.next += rows as u64;
        rows > 0
    }

    /// Row `row` of a batch of this generator as text: fields in order, separated by commas. None past its end.
    #[must_use]
    pub fn csv_row(&self, columns: &Columns, row: usize) -> Option<String> {
        let mut line = String::new();
        write!(
            line,
            "{},{},{},{},{},{},{}",
            columns.auction.get(row)?,
            columns.bidder.get(row)?,
            columns.price.get(row)?,
            string(*columns.channel.get(row)?, &[])?,
            string(*columns.url.get(row)?, &self.urls)?,
            columns.date_time.get(row)?,
            string(*columns.extra.get(row)?, &self.pool)?,
        )
        .ok()?;
        Some(line)
    }
}

/// The string of a view whose bytes, if they are not in the view itself, lie in `buffer`. None if it is no valid view.
pub(super) fn string(view: u128, buffer: &[u8]) -> Option<String> {
    let length = view as u32 as usize;
    let inline = (view >> 32).to_le_bytes();
    let offset = (view >> 96) as usize;
    let bytes = if length <= INLINE_BYTES { inline.get(..length) } else { buffer.get(offset..offset + length) };
    String::from_utf8(bytes?.to_vec()).ok()
}

/// Which entry of the dictionary an event has. Chosen by a mask: a coin toss can't be predicted.
#[inline(always)]
fn channel_of(g: u64) -> usize {
    let brand = (g >> 1) & 3;
    let numbered = BRANDS.len() as u64 + ((g >> 3) & 0xFFFF) % NUMBERED_CHANNELS;
    let is_numbered = (g & 1).wrapping_neg();
    ((numbered & is_numbered) | (brand & !is_numbered)) as usize
}

#[inline(always)]
fn extra_view(pool: &[u8], h: u64, g: u64) -> u128 {
    let offset = ((g >> 19) & 0x3FFF) * 3;
    let length = 90 + (h & 0xFF) % 21;
    let at = offset as usize;
    let prefix = u32::from_le_bytes([pool[at], pool[at + 1], pool[at + 2], pool[at + 3]]);
    u128::from(length | (u64::from(prefix) << 32)) | (u128::from(offset) << 96)
}

/// The view of a string that lies at `offset` of its buffer.
fn view(bytes: &[u8], offset: u32) -> u128 {
    let kept = if bytes.len() <= INLINE_BYTES { bytes } else { &bytes[..4] };
    let mut words = [0_u8; 16];
    words[..4].copy_from_slice(&(bytes.len() as u32).to_le_bytes());
    words[4..4 + kept.len()].copy_from_slice(kept);
    if bytes.len() > INLINE_BYTES {
        words[12..].copy_from_slice(&offset.to_le_bytes());
    }
    u128::from_le_bytes(words)
}

/// Appends the url that the 12 low nibbles of `word` spell.
fn push_url(urls: &mut Vec<u8>, mut word: u64) {
    urls.extend_from_slice(b"https://www.nexmark.com/");
    for part in 0..3 {
        if part > 0 {
            urls.push(b'/');
        }
        for _ in 0..4 {
            urls.push(b'a' + (word & 15) as u8);
            word >>= 4;
        }
    }
    urls.extend_from_slice(b"/item.htm?query=1");
}
