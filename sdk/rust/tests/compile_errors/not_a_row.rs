use tidemill::prelude::*;

#[derive(Row)]
struct Bid {
    price: i64,
}

struct Dear {
    price: i64,
}

fn job(flow: &mut Flow) {
    flow.source::<Bid>("bids").map(|b| Dear { price: b.price }).sink("dear");
}

fn main() {}
