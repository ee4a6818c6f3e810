//! The joins of the mixed stream, in which every 16th event is an auction: `q8` (tumbling window) and `q8i` (interval).
//!
//! Both index the auctions by id and let the bids look them up, since there are fifteen bids for an auction. The
//! invariant: bids look up only when every auction that they may meet has been indexed: at the end of the window, or of
//! the millisecond.

#![allow(
    clippy::indexing_slicing,
    reason = "tables have one entry per key, and a drawn key is less than the number of keys; links come from the same \
              loop that filled the nodes, or are masked with the size of the ring"
)]

use super::generate::{Clock, KeyDraw, mix, price};
use crate::query::{Answer, Parameters};

const WINDOW_MS: u64 = 10_000;
const INTERVAL_MS: u64 = 10_000;
/// Events per auction in the mixed stream.
const MIXED: u64 = 16;

/// A bid that waits for its auctions.
#[derive(Clone, Copy)]
struct Bid {
    auction: u32,
    price: u32,
}

/// The user's join function: what a pair adds to the checksum.
#[inline(always)]
fn joined(price: u32, seller: u32) -> u64 {
    u64::from(price) + u64::from(seller)
}

/// The fields of the mixed stream.
struct Mixed {
    auctions: KeyDraw,
    bidders: KeyDraw,
}

impl Mixed {
    fn new(parameters: &Parameters) -> Self {
        Self { auctions: KeyDraw::new(parameters.auctions()), bidders: KeyDraw::new(parameters.bidders()) }
    }

    #[inline(always)]
    fn is_auction(event: u64) -> bool {
        event % MIXED == MIXED - 1
    }

    #[inline(always)]
    fn bid(&self, event: u64) -> Bid {
        let h = mix(event);
        Bid { auction: self.auctions.draw(h), price: price(h) }
    }

    /// Id and seller of an auction.
    #[inline(always)]
    fn auction(&self, event: u64) -> (u32, u32) {
        let h = mix(event);
        (self.auctions.draw(h), self.bidders.draw(mix(h)))
    }
}

/// Bids with the auctions of the same id in the same tumbling window of 10 s; sum of price and seller.
#[must_use]
pub fn q8(parameters: &Parameters) -> Answer {
    let mixed = Mixed::new(parameters);
    let mut window = TumblingJoin::new(parameters.auctions());
    let mut clock = Clock::starting_at(0, parameters.rate());
    let mut end_ms = 0;
    for event in 0..parameters.records() {
        let now_ms = clock.tick();
        if now_ms >= end_ms {
            window.fire();
            end_ms = now_ms - now_ms % WINDOW_MS + WINDOW_MS;
        }
        if Mixed::is_auction(event) {
            let (id, seller) = mixed.auction(event);
            window.add_auction(id, seller);
        } else {
            window.bids.push(mixed.bid(event));
        }
    }
    window.fire();
    window.answer
}

/// An auction in the list of those with the same id.
#[derive(Clone, Copy, Default)]
struct Listed {
    seller: u32,
    /// The one before it, or 0.
    next: u32,
}

/// One window's bids, and its auctions by id.
struct TumblingJoin {
    bids: Vec<Bid>,
    /// The last auction of each id, as an index of `listed`; 0 where there is none.
    last: Vec<u32>,
    /// Entry 0 stands for no auction, so that a bid can look at one without asking whether there is any.
    listed: Vec<Listed>,
    ids: Vec<u32>,
    answer: Answer,
}

impl TumblingJoin {
    fn new(keys: u64) -> Self {
        Self {
            bids: Vec::new(),
            last: vec![0; keys as usize],
            listed: vec![Listed::default()],
            ids: Vec::new(),
            answer: Answer::default(),
        }
    }

    #[inline]
    fn add_auction(&mut self, id: u32, seller: u32) {
        let last = &mut self.last[id as usize];
        let next = std::mem::replace(last, self.listed.len() as u32);
        self.listed.push(Listed { seller, next });
        self.ids.push(id);
    }

    /// Joins the window and empties it.
    fn fire(&mut self) {
        let mut answer = self.answer;
        for bid in &self.bids {
            let mut index = self.last[bid.auction as usize];
            // The first auction without a branch, because whether there is one is close to a coin toss; further ones are
            // rare enough to be predicted.
            let first = self.listed[index as usize];
            answer.records += u64::from(index != 0);
            let value = if index != 0 { joined(bid.price, first.seller) } else { 0 };
            answer.checksum = answer.checksum.wrapping_add(value);
            index = first.next;
            while index != 0 {
                let auction = self.listed[index as usize];
                answer.add(joined(bid.price, auction.seller));
                index = auction.next;
            }
        }
        self.answer = answer;
        self.bids.clear();
        self.listed.truncate(1);
        for id in self.ids.drain(..) {
            self.last[id as usize] = 0;
        }
    }
}

/// Bids with the auctions of the same id that began at most 10 s before; sum of price and seller.
#[must_use]
pub fn q8i(parameters: &Parameters) -> Answer {
    let mixed = Mixed::new(parameters);
    let mut interval = IntervalJoin::new(parameters);
    let mut clock = Clock::starting_at(0, parameters.rate());
    let mut millisecond = 0;
    for event in 0..parameters.records() {
        let now_ms = clock.tick();
        if now_ms != millisecond {
            interval.join_bids(millisecond);
            millisecond = now_ms;
        }
        if Mixed::is_auction(event) {
            let (id, seller) = mixed.auction(event);
            interval.add_auction(id, seller, now_ms);
        } else {
            interval.bids.push(mixed.bid(event));
        }
    }
    interval.join_bids(millisecond);
    interval.answer
}

/// An auction in the ring of those that a bid may still meet.
#[derive(Clone, Copy, Default)]
struct Begun {
    at_ms: u64,
    seller: u32,
    /// Number of the one before it with the same id. It may have left the ring.
    previous: u32,
}

/// The auctions of the last 10 s by id, and the bids of the current millisecond.
///
/// Auctions are numbered from 1 as they come. Those that bids may still meet are the numbers from `oldest` to `next`, so
/// that one leaves by `oldest` passing it, and nothing is ever removed from a list: a list ends at the first number below
/// `oldest`.
struct IntervalJoin {
    bids: Vec<Bid>,
    /// Number of the last auction of each id; 0 where there was none.
    last: Vec<u32>,
    /// By the low bits of the number.
    ring: Vec<Begun>,
    oldest: u32,
    next: u32,
    answer: Answer,
}

impl IntervalJoin {
    fn new(parameters: &Parameters) -> Self {
        // The interval and its last millisecond, both rounded up, and one event before `join_bids` lets the old ones go.
        let within_interval = (INTERVAL_MS + 2) * parameters.rate() / 1000 + 2;
        let live = within_interval.min(parameters.records()) / MIXED + 2;
        Self {
            bids: Vec::new(),
            last: vec![0; parameters.auctions() as usize],
            ring: vec![Begun::default(); live.next_power_of_two() as usize],
            oldest: 1,
            next: 1,
            answer: Answer::default(),
        }
    }

    #[inline(always)]
    fn at(&self, number: u32) -> Begun {
        self.ring[number as usize & (self.ring.len() - 1)]
    }

    #[inline]
    fn add_auction(&mut self, id: u32, seller: u32, at_ms: u64) {
        let previous = std::mem::replace(&mut self.last[id as usize], self.next);
        let slot = self.next as usize & (self.ring.len() - 1);
        self.ring[slot] = Begun { at_ms, seller, previous };
        self.next += 1;
    }

    /// Joins the bids of the millisecond `now_ms`, in which no further auction comes.
    fn join_bids(&mut self, now_ms: u64) {
        while self.oldest < self.next && self.at(self.oldest).at_ms + INTERVAL_MS < now_ms {
            self.oldest += 1;
        }
        let mut answer = self.answer;
        for bid in &self.bids {
            let mut number = self.last[bid.auction as usize];
            // The first auction without a branch, as in the window join.
            let first = self.at(number);
            let meets = number >= self.oldest;
            answer.records += u64::from(meets);
            let value = if meets { joined(bid.price, first.seller) } else { 0 };
            answer.checksum = answer.checksum.wrapping_add(value);
            number = if meets { first.previous } else { 0 };
            while number >= self.oldest {
                let auction = self.at(number);
                answer.add(joined(bid.price, auction.seller));
                number = auction.previous;
            }
        }
        self.answer = answer;
        self.bids.clear();
    }
}
