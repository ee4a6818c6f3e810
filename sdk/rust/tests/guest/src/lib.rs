//! A small job of every kind of operator, to see that the SDK builds for the sandbox and how large it gets.

use tidemill::prelude::*;

#[derive(Row)]
struct Bid<'a> {
    auction: i64,
    price: Option<i64>,
    channel: &'a str,
    date_time: Timestamp,
}

#[derive(Row)]
struct Auction<'a> {
    auction: i64,
    channel: &'a str,
}

#[derive(Row)]
struct Hot {
    auction: i64,
    bids: i64,
    window_end: Timestamp,
}

#[derive(Row)]
struct Running {
    auction: i64,
    bids: i64,
}

struct Counter {
    bids: ValueState<i64>,
}

impl KeyedProcess for Counter {
    type Key = i64;
    type In = Bid<'static>;
    type Out = Running;
    const TIMESTAMPS: bool = false;

    fn process(&mut self, bid: Bid<'_>, ctx: &mut Context<'_, Running>) -> Result<(), RowError> {
        let bids = self.bids.get(ctx).unwrap_or(0) + 1;
        self.bids.set(ctx, bids);
        ctx.emit(Running { auction: bid.auction, bids });
        Ok(())
    }
}

/// The job.
#[tidemill::job]
pub fn every_kind(flow: &mut Flow) {
    let bids = flow
        .source::<Bid>("bids")
        .watermark(|b| b.date_time, BoundedOutOfOrderness::secs(4))
        .filter(|b| b.price.is_some_and(|p| p > 100))
        .share();
    bids.clone()
        .key_by(|b| b.auction)
        .window(Sliding::secs(10, 2))
        .aggregate(Count)
        .map(|w| Hot { auction: w.key, bids: w.value, window_end: w.end })
        .sink("hot");
    bids.clone().key_by(|b| b.auction).process(|s| Counter { bids: s.value("bids") }).sink("counts");
    bids.flat_map(|b, out| out.emit(Auction { auction: b.auction, channel: b.channel })).sink("channels");
}
