//! How an event is drawn: the hash, the keys, and the texts that all events share.

use std::fmt::Write as _;
use std::sync::OnceLock;

use arrow::array::make_view;
use arrow::buffer::Buffer;

use super::Settings;

/// Time of event 0, in milliseconds since 1970.
pub(super) const START_MS: u64 = 1_700_000_000_000;
pub(super) const POOL_BYTES: u64 = 65_536;
const BRANDS: [&str; 4] = ["Google", "Facebook", "Baidu", "Apple"];
const NUMBERED_CHANNELS: u64 = 10_000;

/// The hash that everything is drawn from (splitmix64).
#[inline(always)]
pub(super) fn mix(x: u64) -> u64 {
    let z = x.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// `(hash >> 33) % keys` by two multiplications instead of a division (Lemire, Kaser, Kurz: "Faster remainder by direct
/// computation", 2019; exact for 32-bit operands, and there are 31 bits here).
#[derive(Clone, Copy, Debug)]
pub(super) struct KeyDraw {
    reciprocal: u64,
    keys: u64,
}

impl KeyDraw {
    fn new(keys: u64) -> Self {
        // One key wraps to a reciprocal of 0, which draws key 0 as it should.
        Self { reciprocal: (u64::MAX / keys.max(1)).wrapping_add(1), keys }
    }

    #[inline(always)]
    pub(super) fn draw(self, hash: u64) -> i64 {
        let fraction = self.reciprocal.wrapping_mul(hash >> 33);
        ((u128::from(fraction) * u128::from(self.keys)) >> 64) as i64
    }
}

/// What is the same for all events of a source.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    pub(super) auctions: KeyDraw,
    pub(super) bidders: KeyDraw,
    pub(super) rate: u64,
}

impl Shape {
    pub(super) fn new(settings: &Settings) -> Self {
        let (auctions, bidders) = (KeyDraw::new(settings.auctions), KeyDraw::new(settings.bidders));
        Self { auctions, bidders, rate: settings.rate }
    }
}

/// The texts that all events of all sources share.
#[derive(Debug)]
pub(super) struct Tables {
    /// Views of the channels: the brands, then the numbered ones. All are short enough to lie in their views.
    pub(super) channels: Vec<u128>,
    /// Views of the urls into `url_bytes`, as `channels`.
    pub(super) urls: Vec<u128>,
    pub(super) url_bytes: Buffer,
    /// Letters from which `extra` is cut.
    pub(super) pool: Buffer,
}

impl Tables {
    /// Made when a text is first asked for: they take a megabyte.
    pub(super) fn shared() -> &'static Self {
        static SHARED: OnceLock<Tables> = OnceLock::new();
        SHARED.get_or_init(Self::new)
    }

    fn new() -> Self {
        let mut bytes = String::new();
        let (mut channels, mut urls) = (Vec::new(), Vec::new());
        let brands = BRANDS.iter().zip(0xC000_0000..).map(|(brand, seed)| ((*brand).to_owned(), seed));
        let numbered = (0..NUMBERED_CHANNELS).map(|c| (format!("channel-{c}"), 0xD000_0000 + c));
        for (channel, seed) in brands.chain(numbered) {
            let (url, offset) = (url(mix(seed)), bytes.len() as u32);
            channels.push(make_view(channel.as_bytes(), 0, 0));
            urls.push(make_view(url.as_bytes(), 0, offset));
            bytes.push_str(&url);
        }
        let pool: Vec<u8> = (0..POOL_BYTES).map(|j| b'a' + (mix(0xE000_0000 + j) % 26) as u8).collect();
        Self { channels, urls, url_bytes: Buffer::from_vec(bytes.into_bytes()), pool: Buffer::from_vec(pool) }
    }
}

/// Which entry of the tables an event has. Chosen by a mask: a coin toss can't be predicted.
#[inline(always)]
pub(super) fn channel_of(g: u64) -> usize {
    let brand = (g >> 1) & 3;
    let numbered = BRANDS.len() as u64 + ((g >> 3) & 0xFFFF) % NUMBERED_CHANNELS;
    let is_numbered = (g & 1).wrapping_neg();
    ((numbered & is_numbered) | (brand & !is_numbered)) as usize
}

/// Event times one after the other, without a division per event.
#[derive(Clone, Copy, Debug)]
pub(super) struct EventClock {
    next_ms: u64,
    /// What the division by the rate has left over so far, in 1/rate milliseconds.
    remainder: u64,
    whole_step: u64,
    remainder_step: u64,
    rate: u64,
}

impl EventClock {
    /// A clock whose first tick is the time of event `first`, and whose ticks are `stride` events apart.
    pub(super) fn new(first: u64, stride: u64, rate: u64) -> Self {
        let (at, step) = (u128::from(first) * 1_000, u128::from(stride) * 1_000);
        let rate_wide = u128::from(rate.max(1));
        Self {
            next_ms: START_MS.wrapping_add((at / rate_wide) as u64),
            remainder: (at % rate_wide) as u64,
            whole_step: (step / rate_wide) as u64,
            remainder_step: (step % rate_wide) as u64,
            rate: rate.max(1),
        }
    }

    #[inline(always)]
    pub(super) fn tick(&mut self) -> i64 {
        let now_ms = self.next_ms;
        let remainder = self.remainder + self.remainder_step;
        let carry = remainder >= self.rate;
        self.remainder = if carry { remainder - self.rate } else { remainder };
        self.next_ms = now_ms.wrapping_add(self.whole_step).wrapping_add(u64::from(carry));
        now_ms as i64
    }
}

/// The url that the 12 low nibbles of `word` spell.
fn url(mut word: u64) -> String {
    let mut url = String::from("https://www.nexmark.com");
    for _ in 0..3 {
        let letters = (0..4).map(|i| char::from(b'a' + ((word >> (4 * i)) & 15) as u8));
        let _ = write!(url, "/{}", letters.collect::<String>());
        word >>= 16;
    }
    url + "/item.htm?query=1"
}
