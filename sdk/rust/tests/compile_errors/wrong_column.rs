use tidemill::prelude::*;

#[derive(Row)]
struct Bid<'a> {
    price: i64,
    channel: &'a str,
}

fn no_time(flow: &mut Flow) {
    flow.source::<Bid>("bids").watermark(|b| b.price, BoundedOutOfOrderness::secs(4)).sink("out");
}

fn computed_key(flow: &mut Flow) {
    flow.source::<Bid>("bids").key_by(|b| b.price % 10).window(Tumbling::secs(1)).aggregate(Count).sink("out");
}

fn mean_of_text(flow: &mut Flow) {
    flow.source::<Bid>("bids").window_all(Tumbling::secs(1)).aggregate(|b| Avg(b.channel)).sink("out");
}

fn unknown(flow: &mut Flow) {
    flow.source::<Bid>("bids").window_all(Tumbling::secs(1)).aggregate(|b| Max(b.prize)).sink("out");
}

fn main() {}
