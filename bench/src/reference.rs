//! The reference: the benchmark's definition written down as directly as possible, slow and obviously correct.
//!
//! Events are owned values, each query looks at one record after the other and keeps ordered maps; windows are sets of
//! records and not tricks with panes. The invariant: it takes nothing from the hand twin, not even the hash, and no query
//! relies on the order of the events. For tests; a query over a million events takes seconds.

use std::collections::BTreeMap;

use crate::query::{Answer, Parameters, Query};

/// One event, in the roles of a bid and of an auction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// Its number, from 0; decides whether it is an auction in the mixed stream.
    pub index: u64,
    /// Auction of the bid, or id of the auction.
    pub auction: i64,
    /// Bidder of the bid, or seller of the auction.
    pub bidder: i64,
    /// Price, from 1.
    pub price: i64,
    /// Channel.
    pub channel: String,
    /// Address.
    pub url: String,
    /// Milliseconds since 1970.
    pub date_time: i64,
    /// Filler of 90 to 110 letters.
    pub extra: String,
}

impl Event {
    /// Event `index` of the stream that `parameters` describe.
    #[must_use]
    pub fn new(index: u64, parameters: &Parameters) -> Self {
        let h = mix(index);
        let g = mix(h);
        let (channel, url) = if g & 1 == 0 {
            let c = (g >> 1) & 3;
            let brand = match c {
                0 => "Google",
                1 => "Facebook",
                2 => "Baidu",
                _ => "Apple",
            };
            (brand.to_owned(), url(0xC0000000 + c))
        } else {
            let c = ((g >> 3) & 0xFFFF) % 10000;
            (format!("channel-{c}"), url(0xD0000000 + c))
        };
        let offset = ((g >> 19) & 0x3FFF) * 3;
        let length = 90 + (h & 0xFF) % 21;
        Self {
            index,
            auction: ((h >> 33) % parameters.auctions()) as i64,
            bidder: ((g >> 33) % parameters.bidders()) as i64,
            price: (1 + (h & 0xFFFFFFFF) % 10000000) as i64,
            channel,
            url,
            date_time: (1700000000000 + index.wrapping_mul(1000) / parameters.rate()) as i64,
            extra: (offset..offset + length).map(pool_letter).collect(),
        }
    }

    /// In the mixed stream every 16th event is an auction, every other a bid.
    #[must_use]
    pub fn is_auction(&self) -> bool {
        self.index & 15 == 15
    }

    /// The fields in order, separated by commas.
    #[must_use]
    pub fn csv(&self) -> String {
        let Self { auction, bidder, price, channel, url, date_time, extra, .. } = self;
        format!("{auction},{bidder},{price},{channel},{url},{date_time},{extra}")
    }

    /// The fields in order as a JSON object.
    #[must_use]
    pub fn json(&self) -> String {
        let Self { auction, bidder, price, channel, url, date_time, extra, .. } = self;
        [
            format!(r#"{{"auction":{auction}"#),
            format!(r#""bidder":{bidder}"#),
            format!(r#""price":{price}"#),
            format!(r#""channel":"{channel}""#),
            format!(r#""url":"{url}""#),
            format!(r#""date_time":{date_time}"#),
            format!(r#""extra":"{extra}"}}"#),
        ]
        .join(",")
    }
}

/// All events of `parameters`, about 350 bytes each.
#[must_use]
pub fn events(parameters: &Parameters) -> Vec<Event> {
    (0..parameters.records()).map(|index| Event::new(index, parameters)).collect()
}

/// Runs `query` over `events`.
#[must_use]
pub fn run(query: Query, events: &[Event]) -> Answer {
    match query {
        Query::Q0 => q0(events),
        Query::Q1 => q1(events),
        Query::Q2 => q2(events),
        Query::Wc => wc(events),
        Query::Q5 | Query::Q5u => q5(events),
        Query::Q7 => q7(events),
        Query::Session => session(events),
        Query::Q8 => q8(events),
        Query::Q8i => q8i(events),
    }
}

/// Every event, unchanged; sum of the prices.
#[must_use]
pub fn q0(events: &[Event]) -> Answer {
    let output: Vec<Event> = events.to_vec();
    answer(output.iter().map(|event| event.price))
}

/// Price times 0.908; sum of the floors.
#[must_use]
pub fn q1(events: &[Event]) -> Answer {
    answer(events.iter().map(|event| (event.price as f64 * 0.908).floor() as i64))
}

/// The events whose auction is a multiple of 123; sum of the auctions.
#[must_use]
pub fn q2(events: &[Event]) -> Answer {
    answer(events.iter().filter(|event| event.auction % 123 == 0).map(|event| event.auction))
}

/// How often the auction of each event has been seen so far; sum of these numbers.
#[must_use]
pub fn wc(events: &[Event]) -> Answer {
    let mut counts: BTreeMap<i64, i64> = BTreeMap::new();
    answer(events.iter().map(|event| {
        let count = counts.entry(event.auction).or_default();
        *count += 1;
        *count
    }))
}

/// The largest number of bids for one auction in each sliding window, 10 s every 2 s; sum over the windows.
#[must_use]
pub fn q5(events: &[Event]) -> Answer {
    let mut counts: BTreeMap<(i64, i64), i64> = BTreeMap::new();
    for event in events {
        let last_start = event.date_time - event.date_time.rem_euclid(2_000);
        for start in [last_start, last_start - 2_000, last_start - 4_000, last_start - 6_000, last_start - 8_000] {
            *counts.entry((start + 10_000, event.auction)).or_default() += 1;
        }
    }
    let mut largest: BTreeMap<i64, i64> = BTreeMap::new();
    for ((end, _auction), count) in counts {
        let entry = largest.entry(end).or_default();
        *entry = count.max(*entry);
    }
    answer(largest.into_values())
}

/// The largest price of each bidder in tumbling windows of 10 s; sum of them.
#[must_use]
pub fn q7(events: &[Event]) -> Answer {
    let mut largest: BTreeMap<(i64, i64), i64> = BTreeMap::new();
    for event in events {
        let entry = largest.entry((tumbling_start(event), event.bidder)).or_insert(event.price);
        *entry = event.price.max(*entry);
    }
    answer(largest.into_values())
}

/// The number of bids in each session of each bidder, gap 10 s, touching sessions merged; sum of the squares.
///
/// As Flink defines it: each event is a session of its own from its time to 10 s later, and sessions of one bidder that
/// overlap or touch become one.
#[must_use]
pub fn session(events: &[Event]) -> Answer {
    struct Session {
        start: i64,
        end: i64,
        bids: i64,
    }
    let mut sessions: BTreeMap<i64, Vec<Session>> = BTreeMap::new();
    for event in events {
        let mut merged = Session { start: event.date_time, end: event.date_time + 10_000, bids: 1 };
        let of_bidder = sessions.entry(event.bidder).or_default();
        let (touching, apart): (Vec<_>, Vec<_>) = std::mem::take(of_bidder)
            .into_iter()
            .partition(|session| session.start <= merged.end && merged.start <= session.end);
        for session in touching {
            merged.start = merged.start.min(session.start);
            merged.end = merged.end.max(session.end);
            merged.bids += session.bids;
        }
        *of_bidder = apart;
        of_bidder.push(merged);
    }
    answer(sessions.into_values().flatten().map(|session| session.bids.wrapping_mul(session.bids)))
}

/// Bids with the auctions of the same id in the same tumbling window of 10 s; sum of price and seller.
#[must_use]
pub fn q8(events: &[Event]) -> Answer {
    let mut auctions: BTreeMap<(i64, i64), Vec<&Event>> = BTreeMap::new();
    for auction in events.iter().filter(|event| event.is_auction()) {
        auctions.entry((tumbling_start(auction), auction.auction)).or_default().push(auction);
    }
    answer(events.iter().filter(|event| !event.is_auction()).flat_map(|bid| {
        let matches = auctions.get(&(tumbling_start(bid), bid.auction)).map(Vec::as_slice).unwrap_or_default();
        matches.iter().map(|auction| bid.price.wrapping_add(auction.bidder))
    }))
}

/// Bids with the auctions of the same id whose time is at most 10 s before and not after; sum of price and seller.
#[must_use]
pub fn q8i(events: &[Event]) -> Answer {
    let mut auctions: BTreeMap<i64, Vec<&Event>> = BTreeMap::new();
    for auction in events.iter().filter(|event| event.is_auction()) {
        auctions.entry(auction.auction).or_default().push(auction);
    }
    answer(events.iter().filter(|event| !event.is_auction()).flat_map(|bid| {
        let same_id = auctions.get(&bid.auction).map(Vec::as_slice).unwrap_or_default();
        let within = same_id
            .iter()
            .filter(|auction| bid.date_time - 10_000 <= auction.date_time && auction.date_time <= bid.date_time);
        within.map(|auction| bid.price.wrapping_add(auction.bidder))
    }))
}

/// The events with a price below 5,000,000 as lines of JSON; sum of their prices.
#[must_use]
pub fn json(events: &[Event]) -> (Answer, Vec<String>) {
    let kept: Vec<&Event> = events.iter().filter(|event| event.price < 5_000_000).collect();
    (answer(kept.iter().map(|event| event.price)), kept.iter().map(|event| event.json()).collect())
}

/// Counts and sums the values that the output records contribute.
fn answer(values: impl Iterator<Item = i64>) -> Answer {
    let mut records = 0;
    let mut checksum = 0_u64;
    for value in values {
        records += 1;
        checksum = checksum.wrapping_add(value as u64);
    }
    Answer { records, checksum }
}

/// The start of the event's window of 10 s.
fn tumbling_start(event: &Event) -> i64 {
    event.date_time - event.date_time.rem_euclid(10_000)
}

fn mix(x: u64) -> u64 {
    let mut z = x.wrapping_add(0x9E3779B97F4A7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58476D1CE4E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D049BB133111EB);
    z ^ (z >> 31)
}

/// Letter `j` of the pool of filler.
fn pool_letter(j: u64) -> char {
    (b'a' + (mix(0xE0000000 + j) % 26) as u8) as char
}

/// The address that the hash of `seed` spells.
fn url(seed: u64) -> String {
    let mut w = mix(seed);
    let mut four_letters = || {
        (0..4)
            .map(|_| {
                let letter = (b'a' + (w & 15) as u8) as char;
                w >>= 4;
                letter
            })
            .collect::<String>()
    };
    let (first, second, third) = (four_letters(), four_letters(), four_letters());
    format!("https://www.nexmark.com/{first}/{second}/{third}/item.htm?query=1")
}
