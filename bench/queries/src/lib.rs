//! The queries of the benchmark, as a user of the SDK writes them.
//!
//! The native twin links these functions; the sandbox twin runs each as a component of its own, chosen by the feature of
//! its name. Both run in the same engine, so that their ratio is the price of the sandbox.

use tidemill::prelude::*;

/// Every column of a bid.
#[derive(Row)]
pub struct Bid<'a> {
    auction: i64,
    bidder: i64,
    price: i64,
    channel: &'a str,
    url: &'a str,
    date_time: Timestamp,
    extra: &'a str,
}

/// Source to sink, unchanged.
#[cfg_attr(feature = "q0", tidemill::job)]
pub fn q0(flow: &mut Flow) {
    flow.source::<Bid>("bids").sink("out");
}

/// A price.
#[derive(Row)]
pub struct Price {
    price: i64,
}

/// A price in another currency.
#[derive(Row)]
pub struct Euro {
    euro: f64,
}

/// A user's map.
#[cfg_attr(feature = "q1", tidemill::job)]
pub fn q1(flow: &mut Flow) {
    flow.source::<Price>("bids").map(|b| Euro { euro: b.price as f64 * 0.908 }).sink("out");
}

/// An auction.
#[derive(Row)]
pub struct Auction {
    auction: i64,
}

/// A user's filter.
#[cfg_attr(feature = "q2", tidemill::job)]
pub fn q2(flow: &mut Flow) {
    flow.source::<Auction>("bids").filter(|b| b.auction % 123 == 0).sink("out");
}

/// A key and how often it came.
#[derive(Row)]
pub struct Counted {
    auction: i64,
    n: i64,
}

/// The running count per auction.
pub struct RunningCount {
    count: ValueState<i64>,
}

impl RunningCount {
    fn new(states: &mut States) -> Self {
        Self { count: states.value("count") }
    }
}

impl KeyedProcess for RunningCount {
    type Key = i64;
    type In = Auction;
    type Out = Counted;

    const TIMESTAMPS: bool = false;

    fn process(&mut self, row: Auction, ctx: &mut Context<'_, Counted>) -> Result<(), RowError> {
        let n = self.count.get(ctx).unwrap_or(0) + 1;
        self.count.set(ctx, n);
        ctx.emit(Counted { auction: row.auction, n });
        Ok(())
    }
}

/// A keyed process function with one value of state.
#[cfg_attr(feature = "wc", tidemill::job)]
pub fn wc(flow: &mut Flow) {
    flow.source::<Auction>("bids").key_by(|b| b.auction).process(RunningCount::new).sink("out");
}

/// As wc, with a thousandth of its rows: few enough to be printed.
#[cfg_attr(feature = "sample", tidemill::job)]
pub fn sample(flow: &mut Flow) {
    flow.source::<Auction>("bids")
        .key_by(|b| b.auction)
        .process(RunningCount::new)
        .filter(|c| c.auction % 1_000 == 0)
        .sink("out");
}

/// An auction's bid at a time.
#[derive(Row)]
pub struct TimedBid {
    auction: i64,
    date_time: Timestamp,
}

const MONOTONOUS: BoundedOutOfOrderness = BoundedOutOfOrderness::secs(0);

/// Bids per auction in sliding windows, then the largest count per window.
#[cfg_attr(feature = "q5", tidemill::job)]
pub fn q5(flow: &mut Flow) {
    flow.source::<TimedBid>("bids")
        .watermark(|b| b.date_time, MONOTONOUS)
        .key_by(|b| b.auction)
        .window(Sliding::secs(10, 2))
        .aggregate(Count)
        .key_by(|w| w.end)
        .window(Tumbling::secs(2))
        .aggregate(|w| Max(w.value))
        .sink("out");
}

/// A count as a user writes it.
pub struct UserCount;

impl Aggregator for UserCount {
    type In = Auction;
    type Accumulator = i64;
    type Output = i64;

    fn create(&self) -> i64 {
        0
    }

    fn add(&self, accumulator: &mut i64, _row: Auction) {
        *accumulator += 1;
    }

    fn merge(&self, accumulator: &mut i64, other: i64) {
        *accumulator += other;
    }

    fn finish(&self, accumulator: i64) -> i64 {
        accumulator
    }
}

/// As q5, with the user's count.
#[cfg_attr(feature = "q5u", tidemill::job)]
pub fn q5u(flow: &mut Flow) {
    flow.source::<TimedBid>("bids")
        .watermark(|b| b.date_time, MONOTONOUS)
        .key_by(|b| b.auction)
        .window(Sliding::secs(10, 2))
        .aggregate(|_| UserCount)
        .key_by(|w| w.end)
        .window(Tumbling::secs(2))
        .aggregate(|w| Max(w.value))
        .sink("out");
}

/// A bidder's price at a time.
#[derive(Row)]
pub struct BidderPrice {
    bidder: i64,
    price: i64,
    date_time: Timestamp,
}

/// The largest price per bidder in tumbling windows.
#[cfg_attr(feature = "q7", tidemill::job)]
pub fn q7(flow: &mut Flow) {
    flow.source::<BidderPrice>("bids")
        .watermark(|b| b.date_time, MONOTONOUS)
        .key_by(|b| b.bidder)
        .window(Tumbling::secs(10))
        .aggregate(|b| Max(b.price))
        .sink("out");
}

/// A bidder at a time.
#[derive(Row)]
pub struct TimedBidder {
    bidder: i64,
    date_time: Timestamp,
}

/// Bids per session of a bidder.
#[cfg_attr(feature = "session", tidemill::job)]
pub fn session(flow: &mut Flow) {
    flow.source::<TimedBidder>("bids")
        .watermark(|b| b.date_time, MONOTONOUS)
        .key_by(|b| b.bidder)
        .window(Session::gap_secs(10))
        .aggregate(Count)
        .sink("out");
}

/// An event of the mixed stream: a bid (kind 0), or an auction (kind 1) with its seller.
#[derive(Row)]
pub struct Event {
    kind: i8,
    auction: i64,
    bidder: i64,
    price: i64,
    date_time: Timestamp,
}

/// The kind alone.
#[derive(Row)]
pub struct Kind {
    kind: i8,
}

/// A bid's price and the seller of its auction.
#[derive(Row)]
pub struct Sale {
    price: i64,
    seller: i64,
}

fn bids_and_auctions(flow: &mut Flow) -> (Stream<Event>, Stream<Event>) {
    let events = flow.source::<Event>("bids").watermark(|e| e.date_time, MONOTONOUS);
    let bids = events.clone().filter_on::<Kind, _>(|e| e.kind == 0).share();
    let auctions = events.filter_on::<Kind, _>(|e| e.kind == 1).share();
    (bids, auctions)
}

/// Bids joined with auctions in tumbling windows, by a user's function.
#[cfg_attr(feature = "q8", tidemill::job)]
pub fn q8(flow: &mut Flow) {
    let (bids, auctions) = bids_and_auctions(flow);
    bids.join(auctions)
        .on(|b| b.auction, |a| a.auction)
        .window(Tumbling::secs(10))
        .map(|b, a| Sale { price: b.price, seller: a.bidder })
        .sink("out");
}

/// Bids joined with auctions of the ten seconds before.
#[cfg_attr(feature = "q8i", tidemill::job)]
pub fn q8i(flow: &mut Flow) {
    let (bids, auctions) = bids_and_auctions(flow);
    bids.join(auctions)
        .on(|b| b.auction, |a| a.auction)
        .interval(before(secs(10)), secs(0))
        .map(|b, a| Sale { price: b.price, seller: a.bidder })
        .sink("out");
}

/// A user's filter between files of JSON lines.
#[cfg_attr(feature = "json", tidemill::job)]
pub fn json(flow: &mut Flow) {
    flow.source::<Bid>("bids").filter_on::<Price, _>(|b| b.price < 5_000_000).sink("out");
}
