use tidemill::prelude::*;

#[derive(Row)]
struct Bid {
    auction: i64,
}

struct Counter {
    label: ValueState<&'static str>,
}

impl KeyedProcess for Counter {
    type Key = u64;
    type In = Bid;
    type Out = Bid;

    fn process(&mut self, bid: Bid, ctx: &mut Context<'_, Bid>) -> Result<(), RowError> {
        ctx.emit(bid);
        Ok(())
    }
}

fn job(flow: &mut Flow) {
    flow.source::<Bid>("bids").key_by(|b| b.auction).process(|s| Counter { label: s.value("label") }).sink("out");
}

fn main() {}
