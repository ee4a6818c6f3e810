use tidemill::prelude::*;

#[derive(Row)]
struct Bid {
    #[row(name = "Price")]
    price: i64,
}

#[derive(Row)]
struct Twice {
    price: i64,
    #[row(rename = "price")]
    cost: i64,
}

fn main() {}
