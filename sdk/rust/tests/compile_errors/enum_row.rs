use tidemill::prelude::*;

#[derive(Row)]
enum Event {
    Bid { auction: i64 },
}

fn main() {}
