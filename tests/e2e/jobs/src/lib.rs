//! The jobs that the auditor runs and kills: together they have every stateful kind of operator.
//!
//! A record's number is in it: with 1,000 events per second of event time, event i of the bids generator is i
//! milliseconds after its first. Invariant: the *set* of rows that comes out of each sink does not depend on how batches
//! are cut, in which order splits are read, or how often anything is done again; where an operator's answer may depend on
//! that (what is late), each record can be found in exactly one of its outputs.

use tidemill::prelude::*;

/// The time of the generator's event 0.
const START_MS: i64 = 1_700_000_000_000;
/// Events come in order within a split, and watermarks are made per split.
const IN_ORDER: BoundedOutOfOrderness = BoundedOutOfOrderness::secs(0);
/// Processing-time timers fire so long after their record: often enough after the next checkpoint.
const TIMER_DELAY_MS: u64 = 30;

/// A bid.
#[derive(Row)]
pub struct Bid {
    auction: i64,
    bidder: i64,
    price: i64,
    date_time: Timestamp,
}

fn number(date_time: Timestamp) -> i64 {
    date_time.millis() - START_MS
}

/// A bid with its number.
#[derive(Row)]
pub struct Numbered {
    id: i64,
    auction: i64,
    price: i64,
}

/// How often a key came, up to a record.
#[derive(Row)]
pub struct Counted {
    key: i64,
    n: i64,
}

/// The column that is the key.
#[derive(Row)]
pub struct Keyed {
    key: i64,
}

/// Value state: a running count.
pub struct RunningCount {
    count: ValueState<i64>,
}

impl RunningCount {
    fn new(states: &mut States) -> Self {
        Self { count: states.value("count") }
    }

    fn next<O: tidemill::EmitRow>(&self, ctx: &mut Context<'_, O>) -> i64 {
        let n = self.count.get(ctx).unwrap_or(0) + 1;
        self.count.set(ctx, n);
        n
    }
}

impl KeyedProcess for RunningCount {
    type Key = i64;
    type In = Keyed;
    type Out = Counted;

    const TIMESTAMPS: bool = false;

    fn process(&mut self, row: Keyed, ctx: &mut Context<'_, Counted>) -> Result<(), RowError> {
        let n = self.next(ctx);
        ctx.emit(Counted { key: row.key, n });
        Ok(())
    }
}

/// A key in the second in which it came.
#[derive(Row)]
pub struct InSecond {
    id: i64,
    key: i64,
    second: i64,
}

/// What came of a key in a second.
#[derive(Row)]
pub struct Block {
    key: i64,
    second: i64,
    rows: i64,
    ids: i64,
}

/// Event-time timers: the second's rows when it is over. A third row takes the timer back, a fourth sets it again.
pub struct Blocks {
    rows: ValueState<i64>,
    ids: ValueState<i64>,
}

impl KeyedProcess for Blocks {
    type Key = (i64, i64);
    type In = InSecond;
    type Out = Block;

    fn process(&mut self, row: InSecond, ctx: &mut Context<'_, Block>) -> Result<(), RowError> {
        let rows = self.rows.get(ctx).unwrap_or(0) + 1;
        let ids = self.ids.get(ctx).unwrap_or(0) + row.id;
        self.rows.set(ctx, rows);
        self.ids.set(ctx, ids);
        let end = Timestamp::from_millis(START_MS + (row.second + 1) * 1_000);
        if rows == 3 {
            ctx.delete_event_timer(end);
        } else {
            ctx.set_event_timer(end);
        }
        Ok(())
    }

    fn on_timer(
        &mut self,
        (key, second): (i64, i64),
        _timestamp: Timestamp,
        ctx: &mut Context<'_, Block>,
    ) -> Result<(), RowError> {
        let (rows, ids) = (self.rows.get(ctx).unwrap_or(0), self.ids.get(ctx).unwrap_or(0));
        self.rows.clear(ctx);
        self.ids.clear(ctx);
        ctx.emit(Block { key, second, rows, ids });
        Ok(())
    }
}

/// Stateless rows, value state, two keyed operators in a row, event-time timers.
#[cfg_attr(feature = "keyed", tidemill::job)]
pub fn keyed(flow: &mut Flow) {
    let bids = flow.source::<Bid>("bids").watermark(|b| b.date_time, IN_ORDER);
    bids.clone().map(|b| Numbered { id: number(b.date_time), auction: b.auction, price: b.price }).sink("pass");
    let counts = bids.clone().map(|b| Keyed { key: b.auction }).key_by(|k| k.key).process(RunningCount::new);
    counts.clone().sink("counts");
    counts.map(|c| Keyed { key: c.n }).key_by(|k| k.key).process(RunningCount::new).sink("ranks");
    bids.map(|b| InSecond { id: number(b.date_time), key: b.auction, second: number(b.date_time) / 1_000 })
        .key_by(|s| (s.key, s.second))
        .process(|states| Blocks { rows: states.value("rows"), ids: states.value("ids") })
        .sink("blocks");
}

/// The numbers of a window's bids, added up by code of the user's.
pub struct Numbers;

/// The column that [`Numbers`] reads.
#[derive(Row)]
pub struct At {
    date_time: Timestamp,
}

impl Aggregator for Numbers {
    type In = At;
    type Accumulator = i64;
    type Output = i64;

    fn create(&self) -> i64 {
        0
    }

    fn add(&self, accumulator: &mut i64, row: At) {
        *accumulator += number(row.date_time);
    }

    fn merge(&self, accumulator: &mut i64, other: i64) {
        *accumulator += other;
    }

    fn finish(&self, accumulator: i64) -> i64 {
        accumulator
    }
}

/// A window's rows: how many, and the sum of something.
#[derive(Row)]
pub struct InWindow {
    key: i64,
    start: i64,
    end: i64,
    rows: i64,
    sum: i64,
}

fn in_window(key: i64, start: Timestamp, end: Timestamp, rows: i64, sum: i64) -> InWindow {
    InWindow { key, start: number(start), end: number(end), rows, sum }
}

/// A record at a time that may be long before those of its neighbours.
#[derive(Row)]
pub struct Shifted {
    id: i64,
    at: Timestamp,
}

/// A record that came in time for its window, and how often it is in it.
#[derive(Row)]
pub struct InTime {
    id: i64,
    rows: i64,
}

/// Tumbling, sliding and session windows, with aggregates of the host's and the user's, and what is late.
#[cfg_attr(feature = "windows", tidemill::job)]
pub fn windows(flow: &mut Flow) {
    let bids = flow.source::<Bid>("bids").watermark(|b| b.date_time, IN_ORDER);
    bids.clone()
        .key_by(|b| b.auction)
        .window(Tumbling::secs(1))
        .aggregate(|b| (Count(b), Sum(b.price)))
        .map(|w| in_window(w.key, w.start, w.end, w.value.0, w.value.1))
        .sink("tumbling");
    bids.clone()
        .key_by(|b| b.auction)
        .window(Sliding::of(secs(2), millis(500)))
        .aggregate(|b| (Count(b), Numbers))
        .map(|w| in_window(w.key, w.start, w.end, w.value.0, w.value.1))
        .sink("sliding");
    bids.clone()
        .key_by(|b| b.bidder)
        .window(Session::gap_millis(300))
        .aggregate(|b| (Count(b), Numbers))
        .map(|w| in_window(w.key, w.start, w.end, w.value.0, w.value.1))
        .sink("sessions");
    bids.map(|b| {
        let early = if number(b.date_time) % 7 == 0 { 5_000 } else { 0 };
        Shifted { id: number(b.date_time), at: Timestamp::from_millis(b.date_time.millis() - early) }
    })
    .watermark(|s| s.at, BoundedOutOfOrderness::millis(100))
    .key_by(|s| s.id)
    .window(Tumbling::secs(1))
    .late_to("late")
    .aggregate(Count)
    .map(|w| InTime { id: w.key, rows: w.value })
    .sink("in-time");
}

/// An event of the mixed stream: a bid (kind 0), or an auction (kind 1).
#[derive(Row)]
pub struct Event {
    kind: i8,
    auction: i64,
    date_time: Timestamp,
}

/// The kind alone.
#[derive(Row)]
pub struct Kind {
    kind: i8,
}

/// A bid and the auction that it was joined with.
#[derive(Row)]
pub struct Pair {
    bid: i64,
    auction: i64,
}

fn pair(bid: &Event, auction: &Event) -> Pair {
    Pair { bid: number(bid.date_time), auction: number(auction.date_time) }
}

/// A window join and an interval join.
#[cfg_attr(feature = "joins", tidemill::job)]
pub fn joins(flow: &mut Flow) {
    let events = flow.source::<Event>("bids").watermark(|e| e.date_time, IN_ORDER);
    let bids = events.clone().filter_on::<Kind, _>(|e| e.kind == 0).share();
    let auctions = events.filter_on::<Kind, _>(|e| e.kind == 1).share();
    bids.clone()
        .join(auctions.clone())
        .on(|b| b.auction, |a| a.auction)
        .window(Tumbling::secs(1))
        .map(|b, a| pair(&b, &a))
        .sink("window-join");
    bids.join(auctions)
        .on(|b| b.auction, |a| a.auction)
        .interval(before(secs(1)), secs(0))
        .map(|b, a| pair(&b, &a))
        .sink("interval-join");
}

/// A record of a file.
#[derive(Row)]
pub struct Line<'a> {
    id: i64,
    key: i64,
    text: &'a str,
}

/// As [`Line`], on its way.
#[derive(Row)]
pub struct Copied {
    id: i64,
    key: i64,
    text: String,
}

/// The column that is a record's number.
#[derive(Row)]
pub struct Id {
    id: i64,
}

/// Processing-time timers: each record once, a little later.
pub struct Once {
    seen: ValueState<i64>,
}

impl KeyedProcess for Once {
    type Key = i64;
    type In = Id;
    type Out = Id;

    const TIMESTAMPS: bool = false;

    fn process(&mut self, _row: Id, ctx: &mut Context<'_, Id>) -> Result<(), RowError> {
        let seen = self.seen.get(ctx).unwrap_or(0) + 1;
        self.seen.set(ctx, seen);
        let at = ctx.processing_time() + millis(TIMER_DELAY_MS);
        ctx.set_processing_timer(at);
        Ok(())
    }

    fn on_timer(&mut self, id: i64, _timestamp: Timestamp, ctx: &mut Context<'_, Id>) -> Result<(), RowError> {
        for _ in 0..self.seen.get(ctx).unwrap_or(0) {
            ctx.emit(Id { id });
        }
        self.seen.clear(ctx);
        Ok(())
    }
}

/// Two kinds of files that go on being found, dead letters, value state, processing-time timers.
#[cfg_attr(feature = "files", tidemill::job)]
pub fn files(flow: &mut Flow) {
    let (tables, objects) = (flow.source::<Line>("tables"), flow.source::<Line>("objects"));
    let lines = tables.union(objects).try_map(|line| {
        if line.id % 101 == 7 {
            return Err(RowError::new(format!("refused {}.", line.id)));
        }
        Ok(Copied { id: line.id, key: line.key, text: line.text.to_owned() })
    });
    let lines = lines.share();
    lines.clone().sink("pass");
    lines.clone().map(|l| Keyed { key: l.key }).key_by(|k| k.key).process(RunningCount::new).sink("counts");
    lines.map(|l| Id { id: l.id }).key_by(|i| i.id).process(|states| Once { seen: states.value("seen") }).sink("timed");
}

/// What was added up of an auction: what every subtask knows.
pub struct Known {
    auctions: BroadcastState<i64, i64>,
    rows: ValueState<i64>,
}

/// What is known at the end: of a key its rows, and a number that tells of all auctions.
#[derive(Row)]
pub struct AtEnd {
    key: i64,
    rows: i64,
    auctions: i64,
}

/// After every record.
const END: Timestamp = Timestamp::from_millis(START_MS * 2);

fn learn<O: tidemill::EmitRow>(known: &BroadcastState<i64, i64>, auction: &Event, ctx: &mut BroadcastContext<'_, O>) {
    let sum = known.get(ctx, &auction.auction).unwrap_or(0) + number(auction.date_time);
    known.insert(ctx, auction.auction, sum);
}

impl KeyedBroadcastProcess for Known {
    type Key = i64;
    type In = Event;
    type Broadcast = Event;
    type Out = AtEnd;

    fn process(&mut self, _bid: Event, ctx: &mut Context<'_, AtEnd>) -> Result<(), RowError> {
        let rows = self.rows.get(ctx).unwrap_or(0) + 1;
        self.rows.set(ctx, rows);
        ctx.set_event_timer(END);
        Ok(())
    }

    fn process_broadcast(&mut self, auction: Event, ctx: &mut BroadcastContext<'_, AtEnd>) -> Result<(), RowError> {
        learn(&self.auctions, &auction, ctx);
        Ok(())
    }

    fn on_timer(&mut self, key: i64, _timestamp: Timestamp, ctx: &mut Context<'_, AtEnd>) -> Result<(), RowError> {
        let mut auctions = 0;
        self.auctions.for_each(ctx, |auction, sum| auctions += (auction + 1) * sum);
        let rows = self.rows.get(ctx).unwrap_or(0);
        ctx.emit(AtEnd { key, rows, auctions });
        Ok(())
    }
}

/// Without a key: hands bids on, and knows auctions.
pub struct Told {
    auctions: BroadcastState<i64, i64>,
}

impl BroadcastProcess for Told {
    type In = Event;
    type Broadcast = Event;
    type Out = Id;

    fn process(&mut self, bid: Event, ctx: &mut UnkeyedContext<'_, Id>) -> Result<(), RowError> {
        // When which auction is known depends on which stream is read first.
        if self.auctions.get(ctx, &bid.auction).is_some_and(|sum| sum < 0) {
            return Err(RowError::new("a sum of numbers of records below 0"));
        }
        ctx.emit(Id { id: number(bid.date_time) });
        Ok(())
    }

    fn process_broadcast(&mut self, auction: Event, ctx: &mut BroadcastContext<'_, Id>) -> Result<(), RowError> {
        learn(&self.auctions, &auction, ctx);
        Ok(())
    }
}

/// State that all keys share, beside keyed state with timers and without a key.
#[cfg_attr(feature = "broadcast", tidemill::job)]
pub fn broadcast(flow: &mut Flow) {
    let events = flow.source::<Event>("bids").watermark(|e| e.date_time, IN_ORDER);
    let bids = events.clone().filter_on::<Kind, _>(|e| e.kind == 0).share();
    let auctions = events.filter_on::<Kind, _>(|e| e.kind == 1).share();
    bids.clone()
        .with_broadcast(auctions.clone())
        .process(|states| Told { auctions: states.broadcast("auctions") })
        .sink("told");
    bids.key_by(|b| b.auction)
        .with_broadcast(auctions)
        .process(|states| Known { auctions: states.broadcast("auctions"), rows: states.value("rows") })
        .sink("known");
}

/// Without a key: holds numbers of bids back until there are some, or the input ends.
pub struct Holding {
    held: OperatorListState<i64>,
}

/// So many are held.
const HELD: usize = 50;

impl Holding {
    fn release(&self, ctx: &mut UnkeyedContext<'_, Id>) {
        let held = self.held.to_vec(ctx);
        held.into_iter().for_each(|id| ctx.emit(Id { id }));
        self.held.clear(ctx);
    }
}

impl Process for Holding {
    type In = Bid;
    type Out = Id;

    const TIMESTAMPS: bool = false;

    fn process(&mut self, bid: Bid, ctx: &mut UnkeyedContext<'_, Id>) -> Result<(), RowError> {
        self.held.push(ctx, number(bid.date_time));
        if self.held.iter(ctx).count() >= HELD {
            self.release(ctx);
        }
        Ok(())
    }

    fn on_end(&mut self, ctx: &mut UnkeyedContext<'_, Id>) -> Result<(), RowError> {
        self.release(ctx);
        Ok(())
    }
}

/// Without a key: knows numbers of bids to the end; at another parallelism every subtask knows all.
pub struct Knowing {
    known: OperatorListState<i64>,
}

impl Process for Knowing {
    type In = Bid;
    type Out = Id;

    const TIMESTAMPS: bool = false;

    fn process(&mut self, bid: Bid, ctx: &mut UnkeyedContext<'_, Id>) -> Result<(), RowError> {
        let id = number(bid.date_time);
        if id % EVERY != 0 {
            return Ok(());
        }
        // What was united may be there twice.
        let mut known = self.known.to_vec(ctx);
        known.push(id);
        known.sort_unstable();
        known.dedup();
        self.known.set(ctx, known);
        Ok(())
    }

    fn on_end(&mut self, ctx: &mut UnkeyedContext<'_, Id>) -> Result<(), RowError> {
        let known = self.known.to_vec(ctx);
        known.into_iter().for_each(|id| ctx.emit(Id { id }));
        Ok(())
    }
}

/// So many bids to one that is known.
const EVERY: i64 = 16;

/// Each number once, however many subtasks know it.
pub struct First {
    seen: ValueState<i64>,
}

impl KeyedProcess for First {
    type Key = i64;
    type In = Id;
    type Out = Id;

    const TIMESTAMPS: bool = false;

    fn process(&mut self, row: Id, ctx: &mut Context<'_, Id>) -> Result<(), RowError> {
        if self.seen.get(ctx).is_none() {
            self.seen.set(ctx, 1);
            ctx.emit(row);
        }
        Ok(())
    }
}

/// Operator lists, split and united at another parallelism, and the end of the input.
#[cfg_attr(feature = "lists", tidemill::job)]
pub fn lists(flow: &mut Flow) {
    let bids = flow.source::<Bid>("bids").watermark(|b| b.date_time, IN_ORDER);
    bids.clone().process(|states| Holding { held: states.operator_list("held") }).uid("hold").sink("held");
    bids.process(|states| Knowing { known: states.union_list("known") })
        .uid("know")
        .key_by(|i| i.id)
        .process(|states| First { seen: states.value("seen") })
        .sink("known");
}
