//! Jobs as plans: code in, text out. The text is compared with a blessed file; `BLESS=1` writes it.

use std::fmt::Write;
use std::path::Path;

use tidemill::flow::build;
use tidemill::plan::{Exchange, NodeKind, Origin, Plan};
use tidemill::prelude::*;

use crate::host::job;

#[derive(Row)]
struct Bid<'a> {
    auction: i64,
    bidder: i64,
    price: Option<i64>,
    channel: &'a str,
    date_time: Timestamp,
}

#[derive(Row)]
struct Auction {
    id: i64,
    seller: i64,
    date_time: Timestamp,
}

#[derive(Row)]
struct Price {
    price: Option<i64>,
}

#[derive(Row)]
struct Sale<'a> {
    seller: i64,
    channel: &'a str,
}

#[derive(Row)]
struct Hot {
    auction: i64,
    bids: i64,
}

#[derive(Row, Clone)]
struct Range {
    low: i64,
    high: i64,
}

struct Spread;

impl Aggregator for Spread {
    type In = Price;
    type Accumulator = Range;
    type Output = i64;
    fn create(&self) -> Range {
        Range { low: i64::MAX, high: i64::MIN }
    }
    fn add(&self, range: &mut Range, row: Price) {
        range.low = range.low.min(row.price.unwrap_or(i64::MAX));
        range.high = range.high.max(row.price.unwrap_or(i64::MIN));
    }
    fn merge(&self, range: &mut Range, other: Range) {
        range.low = range.low.min(other.low);
        range.high = range.high.max(other.high);
    }
    fn finish(&self, range: Range) -> i64 {
        range.high - range.low
    }
}

struct Watch {
    last: ValueState<Range>,
    alerts: Side<Hot>,
}

impl KeyedProcess for Watch {
    type Key = (i64, &'static str);
    type In = Bid<'static>;
    type Out = Sale<'static>;
    fn process(&mut self, bid: Bid<'_>, ctx: &mut Context<'_, Sale<'static>>) -> Result<(), RowError> {
        self.last.set(ctx, Range { low: bid.bidder, high: 0 });
        ctx.side(&self.alerts, Hot { auction: bid.auction, bids: 0 });
        ctx.emit(Sale { seller: bid.bidder, channel: bid.channel });
        Ok(())
    }
}

/// A line per node: what it reads, from whom, and what it gives.
fn text(plan: &Plan) -> String {
    let mut out = String::new();
    for (index, node) in plan.nodes.iter().enumerate() {
        let kind = serde_json::to_string(&node.kind).expect("JSON");
        writeln!(out, "{index} {} '{}' x{:?} {kind}", node.uid, node.name, node.parallelism).expect("text");
        for input in &node.inputs {
            let exchange = match &input.exchange {
                Exchange::Forward => String::new(),
                other => format!(" {other:?}"),
            };
            writeln!(out, "  from {}:{}{exchange} reads {:?}", input.node, input.port, input.reads).expect("text");
        }
        for output in &node.outputs {
            let field = |f: &tidemill::plan::OutputField| {
                let null = if f.field.nullable { "?" } else { "" };
                let origin = match f.origin {
                    Origin::New => "new".to_owned(),
                    Origin::Input { input, column } => format!("{input}.{column}"),
                    other => format!("{other:?}"),
                };
                format!("{}: {}{null} = {origin}", f.field.name, f.field.data_type)
            };
            let fields: Vec<String> = output.fields.iter().map(field).collect();
            writeln!(out, "  {} ({})", output.name, fields.join(", ")).expect("text");
        }
    }
    out
}

#[track_caller]
fn check(name: &str, define: impl FnOnce(&mut Flow)) {
    let text = text(&job(define).plan);
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/plans").join(format!("{name}.txt"));
    if std::env::var_os("BLESS").is_some() {
        std::fs::create_dir_all(path.parent().expect("a folder")).expect("a folder for blessed plans");
        std::fs::write(&path, &text).expect("a blessed plan");
    }
    let blessed = std::fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(text, blessed, "plan '{name}' differs from {}; bless it with BLESS=1 if it should", path.display());
}

#[test]
fn consecutive_functions_are_one_node() {
    check("chain", |flow| {
        flow.source::<Bid>("bids")
            .filter(|b| b.price.is_some())
            .filter(|b| b.auction % 2 == 0)
            .map(|b| Hot { auction: b.auction, bids: 1 })
            .filter(|h| h.auction > 3)
            .uid("the-chain")
            .sink("out");
    });
}

#[test]
fn filters_alone_read_their_columns_and_pass_all_on() {
    check("filters", |flow| {
        flow.source::<Bid>("bids")
            .watermark(|b| b.date_time, BoundedOutOfOrderness::secs(4).idle_after(mins(1)))
            .filter_on::<Price, _>(|p| p.price.is_some_and(|p| p > 100))
            .name("dear")
            .parallelism(3)
            .sink("out")
            .uid("result")
            .parallelism(1);
    });
}

#[test]
fn windows_of_windows() {
    check("windows", |flow| {
        flow.source::<Bid>("bids")
            .watermark(|b| b.date_time, BoundedOutOfOrderness::monotonous())
            .key_by(|b| b.auction)
            .window(Sliding::secs(10, 2))
            .allowed_lateness(secs(5))
            .late_to("late")
            .aggregate(Count)
            .key_by(|w| w.end)
            .window(Tumbling::secs(2).offset(millis(500)))
            .aggregate(|w| Max(w.value))
            .sink("largest");
    });
}

#[test]
fn several_aggregates_and_an_aggregator_of_the_users() {
    check("aggregates", |flow| {
        let windows = flow
            .source::<Bid>("bids")
            .watermark(|b| b.date_time, BoundedOutOfOrderness::millis(10))
            .key_by(|b| (b.bidder, b.channel))
            .window(Session::gap_secs(30))
            .keep_late()
            .aggregate(|b| (Count(b), Avg(b.price), Sum(b.auction), Spread));
        windows.side::<Price>("late").sink("late-prices");
        windows.filter(|w| w.key.1 == "web" && w.value.0 > 1 && w.value.3 > 0).sink("sessions");
    });
}

#[test]
fn a_process_function_with_state_and_side_output() {
    check("process", |flow| {
        let sales = flow
            .source::<Bid>("bids")
            .key_by(|b| (b.auction, b.channel))
            .process(|s| Watch { last: s.value("last"), alerts: s.side("alerts") });
        sales.side::<Hot>("alerts").sink("alerts");
        sales.uid("watch").sink("sales");
    });
}

#[test]
fn joins_give_pairs_to_a_function() {
    check("joins", |flow| {
        let bids = flow.source::<Bid>("bids").watermark(|b| b.date_time, BoundedOutOfOrderness::secs(1));
        let auctions = flow.source::<Auction>("auctions").watermark(|a| a.date_time, BoundedOutOfOrderness::secs(1));
        bids.clone()
            .join(auctions.clone())
            .on(|b| b.auction, |a| a.id)
            .window(Tumbling::secs(10))
            .flat_map(|b, a, out| out.emit(Sale { seller: a.seller, channel: b.channel }))
            .sink("sales");
        bids.join(auctions)
            .on(|b| b.auction, |a| a.id)
            .interval(before(secs(10)), secs(0))
            .map(|b, a| Hot { auction: a.id, bids: b.bidder })
            .sink("pairs");
    });
}

#[test]
fn unions_and_exchanges() {
    check("unions", |flow| {
        let left = flow.source::<Price>("left").filter(|p| p.price.is_some());
        let right = flow.source::<Price>("right");
        let both = left.union(right).rebalance().try_map(|p| match p.price {
            Some(price) => Ok(Hot { auction: price, bids: 1 }),
            None => Err(RowError::new("no price")),
        });
        both.window_all(Tumbling::days(1)).aggregate(Count).broadcast().sink("counts");
    });
}

#[test]
fn mistakes_in_a_job_are_named() {
    #[derive(Row)]
    struct Other {
        nope: i64,
        price: i64,
        channel: i64,
    }
    let error = build(
        "wrong",
        |flow| {
            let bids = flow.source::<Bid>("bids").filter_on::<Other, _>(|o| o.nope > o.price + o.channel);
            bids.share().side::<Price>("late").sink("x");
        },
        &[],
    );
    let error = error.err().expect("it is wrong");
    assert!(error.contains("the stream has no column 'nope'; it has auction, bidder, price, channel, date_time"));
    assert!(error.contains("column 'price' of the stream can be absent: read it as an Option"), "{error}");
    assert!(error.contains("column 'channel' is read as int64, but the stream has it as utf8"), "{error}");
    assert!(error.contains("operator 'filter' has no side output 'late'"), "{error}");
    assert!(build("empty", |_| {}, &[]).err().expect("it is empty").contains("the job has no operators"));
}

#[test]
fn parameters_reach_the_functions_and_wrong_ones_are_named() {
    let define = |flow: &mut Flow| {
        let limit = flow.param_or("limit", 10i64);
        flow.source::<Price>("prices").filter(move |p| p.price.is_some_and(|p| p < limit)).sink("out");
    };
    let parameters = |value: &str| [("limit".to_owned(), value.to_owned())];
    let built = build("test", define, &parameters("3")).expect("a number");
    let mut code = crate::host::code(built, "filter");
    let rows = (1..=5).map(|p| Price { price: Some(p) }).collect();
    assert_eq!(crate::host::transform(code.as_mut(), rows), Ok("forward 0 of [0, 1]: \n".to_owned()));
    let error = build("test", define, &parameters("three")).err().expect("not a number");
    assert_eq!(error, "parameter 'limit' is 'three', which is no i64");
}

#[test]
fn a_plan_survives_json() {
    let plan = job(|flow| {
        flow.source::<Bid>("bids").key_by(|b| b.auction).window(Sliding::secs(10, 2)).aggregate(|_| Spread).sink("s");
    })
    .plan;
    assert!(matches!(plan.nodes[1].kind, NodeKind::Window { .. }));
    let back: Plan = serde_json::from_str(&serde_json::to_string(&plan).expect("JSON")).expect("a plan");
    assert_eq!(back, plan);
}
