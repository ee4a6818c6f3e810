//! Rows and timers that user code can't process, among others that it can: over random inputs, batch sizes, numbers of
//! slots and orders of steps, exactly the poisonous ones are in the dead letters, each with its reason, and all others
//! take effect exactly once. Besides, calls ask at random to be repeated, or fail once although nothing is wrong with
//! their rows, after they have already said what they want to have done.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use arrow::array::{ArrayRef, Int64Array, RecordBatch, TimestampMillisecondArray};
use tidemill::prelude::*;
use tidemill_core::Batch;
use tidemill_core::ids::SubtaskId;
use tidemill_core::metrics::TaskMetrics;
use tidemill_core::plan::Node;
use tidemill_core::user::{CallClock, DueTimers, Effects, KeySet, UserCode, UserCodeFactory, UserFailure};
use tidemill_testkit::NativeCode;

use crate::support::*;

const SEEDS: u64 = 120;

/// What is wrong with a row.
const TRAPS: i64 = 1;
const REFUSED: i64 = 2;

/// How long after a row its timer is.
const LATER_MS: i64 = 50;

#[derive(Row)]
struct Order {
    id: i64,
    key: i64,
    poison: i64,
    at: Timestamp,
}

const IN_ORDER: BoundedOutOfOrderness = BoundedOutOfOrderness::secs(0);

/// Fails as the row says.
fn taste(id: i64, poison: i64) -> Result<(), RowError> {
    match poison {
        // A panic that nobody prints: there are thousands.
        TRAPS => std::panic::resume_unwind(Box::new(format!("row {id} is poisonous"))),
        REFUSED => Err(RowError::new(format!("row {id} is refused"))),
        _ => Ok(()),
    }
}

// ---- A map. ----

#[derive(Row)]
struct Doubled {
    id: i64,
    twice: i64,
}

fn map(flow: &mut Flow) {
    flow.source::<Order>("in")
        .try_map(|o| taste(o.id, o.poison).map(|()| Doubled { id: o.id, twice: o.id * 2 }))
        .name("operator")
        .sink("out");
}

// ---- A process function: counts rows per key, and per key the timers that fired. ----

#[derive(Row)]
struct Seen {
    key: i64,
    timer: bool,
    /// The row's id, or the timer's time.
    what: i64,
    n: i64,
}

struct Counts {
    rows: ValueState<i64>,
    timers: ValueState<i64>,
}

/// What is wrong with a timer.
fn timer_poison(time: i64) -> i64 {
    match time {
        t if t % 11 == 0 => TRAPS,
        t if t % 13 == 0 => REFUSED,
        _ => 0,
    }
}

impl KeyedProcess for Counts {
    type Key = i64;
    type In = Order;
    type Out = Seen;

    fn process(&mut self, row: Order, ctx: &mut Context<'_, Seen>) -> Result<(), RowError> {
        // Everything is done before it fails: nothing of it may remain.
        let n = self.rows.get(ctx).unwrap_or(0) + 1;
        self.rows.set(ctx, n);
        ctx.set_event_timer(row.at + millis(LATER_MS as u64));
        ctx.emit(Seen { key: row.key, timer: false, what: row.id, n });
        taste(row.id, row.poison)
    }

    fn on_timer(&mut self, key: i64, time: Timestamp, ctx: &mut Context<'_, Seen>) -> Result<(), RowError> {
        let n = self.timers.get(ctx).unwrap_or(0) + 1;
        self.timers.set(ctx, n);
        ctx.emit(Seen { key, timer: true, what: time.millis(), n });
        taste(time.millis(), timer_poison(time.millis()))
    }
}

fn keyed(flow: &mut Flow) {
    flow.source::<Order>("in")
        .watermark(|o| o.at, IN_ORDER)
        .key_by(|o| o.key)
        .process(|states| Counts { rows: states.value("rows"), timers: states.value("timers") })
        .name("operator")
        .sink("out");
}

// ---- A window with a user's aggregator. ----

#[derive(Row)]
struct Summand {
    id: i64,
    poison: i64,
}

struct SumOfIds;

impl Aggregator for SumOfIds {
    type In = Summand;
    type Accumulator = i64;
    type Output = i64;

    fn create(&self) -> i64 {
        0
    }

    fn add(&self, accumulator: &mut i64, row: Summand) {
        *accumulator += row.id;
        // It has no way to refuse a row.
        _ = taste(row.id, row.poison.min(TRAPS));
    }

    fn merge(&self, accumulator: &mut i64, other: i64) {
        *accumulator += other;
    }

    fn finish(&self, accumulator: i64) -> i64 {
        accumulator
    }
}

const SIZE_MS: i64 = 200;
const SLIDE_MS: i64 = 100;

fn window(flow: &mut Flow) {
    flow.source::<Order>("in")
        .watermark(|o| o.at, IN_ORDER)
        .key_by(|o| o.key)
        .window(Sliding::of(millis(SIZE_MS as u64), millis(SLIDE_MS as u64)))
        .aggregate(|_| SumOfIds)
        .name("operator")
        .sink("out");
}

// ---- Calls that fail although nothing is wrong with their rows. ----

struct Flaky<F> {
    inner: F,
    seed: u64,
}

impl<F: UserCodeFactory> UserCodeFactory for Flaky<F> {
    fn open(
        &self,
        subtask: &SubtaskId,
        node: &Node,
        metrics: &Arc<TaskMetrics>,
    ) -> tidemill_core::Result<Box<dyn UserCode>> {
        let random = Random::new(self.seed + u64::from(subtask.index.0));
        Ok(Box::new(FlakyInstance { inner: self.inner.open(subtask, node, metrics)?, random, in_a_row: 0 }))
    }
}

struct FlakyInstance {
    inner: Box<dyn UserCode>,
    random: Random,
    in_a_row: u32,
}

impl FlakyInstance {
    /// Lets the call happen, with its effects, and maybe says that it failed. One row alone is not blamed for what
    /// it has not done.
    fn call<T>(
        &mut self,
        rows: usize,
        call: impl FnOnce(&mut dyn UserCode) -> Result<T, UserFailure>,
    ) -> Result<T, UserFailure> {
        let result = call(self.inner.as_mut());
        self.in_a_row += 1;
        if result.is_ok() && self.in_a_row < 4 {
            match self.random.below(6) {
                0 => return Err(UserFailure::Retry("busy".into())),
                1 if rows > 1 => return Err(UserFailure::Trap("it happens".into())),
                _ => {}
            }
        }
        self.in_a_row = 0;
        result
    }
}

impl UserCode for FlakyInstance {
    fn transform(&mut self, clock: CallClock, input: u32, batch: &Batch, out: &mut Effects) -> Result<(), UserFailure> {
        self.call(batch.rows(), |code| code.transform(clock, input, batch, out))
    }

    fn process(
        &mut self,
        clock: CallClock,
        input: u32,
        batch: &Batch,
        keys: &KeySet<'_>,
        out: &mut Effects,
    ) -> Result<(), UserFailure> {
        self.call(batch.rows(), |code| code.process(clock, input, batch, keys, out))
    }

    fn on_timers(&mut self, clock: CallClock, timers: &DueTimers<'_>, out: &mut Effects) -> Result<(), UserFailure> {
        self.call(timers.timestamps.len(), |code| code.on_timers(clock, timers, out))
    }

    fn accumulate(
        &mut self,
        aggregator: u32,
        group_of_row: &[u32],
        batch: &Batch,
        accumulators: &ArrayRef,
    ) -> Result<ArrayRef, UserFailure> {
        self.call(batch.rows(), |code| code.accumulate(aggregator, group_of_row, batch, accumulators))
    }

    fn merge(&mut self, aggregator: u32, left: &ArrayRef, right: &ArrayRef) -> Result<ArrayRef, UserFailure> {
        self.inner.merge(aggregator, left, right)
    }

    fn finish(&mut self, aggregator: u32, accumulators: &ArrayRef) -> Result<ArrayRef, UserFailure> {
        self.inner.finish(aggregator, accumulators)
    }

    fn memory_bytes(&self) -> usize {
        self.inner.memory_bytes()
    }
}

// ---- Inputs, and what must come of them. ----

/// Rows in order of time, few keys, none to most of them poisonous.
fn orders(random: &Random) -> Vec<Order> {
    let (keys, rarity, mut at) = (1 + random.below(9), 1 + random.below(40), random.below(1_000) as i64);
    let rows = 0..random.below(400) as i64;
    rows.map(|id| {
        at += random.below(8) as i64;
        let poison = if random.one_in(rarity) { 1 + random.below(2) as i64 } else { 0 };
        Order { id, key: random.below(keys) as i64, poison, at: Timestamp::from_millis(at) }
    })
    .collect()
}

/// Cut into batches of random sizes.
fn batches(orders: &[Order], random: &Random) -> Given {
    let largest = 1 + random.below(120);
    let mut left = orders;
    let mut batches = Vec::new();
    while !left.is_empty() {
        let (now, later) = left.split_at((1 + random.below(largest) as usize).min(left.len()));
        let ints = |of: fn(&Order) -> i64| Arc::new(Int64Array::from_iter_values(now.iter().map(of))) as ArrayRef;
        let at = TimestampMillisecondArray::from_iter_values(now.iter().map(|o| o.at.millis()));
        let columns: [(&str, ArrayRef); 4] =
            [("id", ints(|o| o.id)), ("key", ints(|o| o.key)), ("poison", ints(|o| o.poison)), ("at", Arc::new(at))];
        batches.push(RecordBatch::try_from_iter(columns).unwrap());
        left = later;
    }
    Given(batches)
}

/// What came out, and the dead letters: reason, the number in the record, event time.
type Outcome = (Vec<Vec<i64>>, Vec<(String, i64, Option<i64>)>);

fn run(code: fn(&mut Flow), orders: &[Order], random: &Random, field: &str) -> Outcome {
    let native = NativeCode::new(code);
    let plan = native.plan("poison").unwrap();
    let flaky = Flaky { inner: native, seed: random.below(u64::MAX) };
    let mut job = job("poison", plan, Arc::new(flaky), Arc::new(batches(orders, random)));
    job.spec.settings.parallelism = 1 + random.below(3) as u32;
    job.step_to_end(random.below(u64::MAX)).unwrap();
    let letter = |letter: Letter| {
        assert_eq!(letter.operator, "operator");
        let record: serde_json::Value = serde_json::from_str(&letter.record).unwrap();
        let field = if letter.reason.contains("timer: ") { "key" } else { field };
        (letter.reason, record[field].as_i64().unwrap(), letter.event_time)
    };
    let mut letters: Vec<_> = job.letters().into_iter().map(letter).collect();
    letters.sort();
    (job.sorted(), letters)
}

/// The reason that a dead letter must have, if any.
fn reason(id: i64, poison: i64) -> Option<String> {
    match poison {
        TRAPS => Some(format!("it panicked: row {id} is poisonous")),
        REFUSED => Some(format!("row {id} is refused")),
        _ => None,
    }
}

fn check(code: fn(&mut Flow), expected: impl Fn(&[Order]) -> Outcome) {
    let (mut rows, mut letters) = (0, 0);
    for seed in 0..SEEDS {
        let random = Random::new(seed);
        let orders = orders(&random);
        let (mut out, mut aside) = expected(&orders);
        out.sort_unstable();
        aside.sort();
        let found = run(code, &orders, &random, "id");
        assert_eq!(found.1, aside, "seed {seed}: the dead letters, and what they should be");
        assert_eq!(found.0, out, "seed {seed}: what came out, and what should have");
        rows += out.len();
        letters += aside.len();
    }
    assert!(rows > 1_000 && letters > 1_000, "{rows} rows and {letters} dead letters show little");
}

#[test]
fn a_map_sets_exactly_the_poisonous_rows_aside() {
    check(map, |orders| {
        let good = orders.iter().filter(|o| o.poison == 0).map(|o| vec![o.id, o.id * 2]).collect();
        let bad = orders.iter().filter_map(|o| Some((reason(o.id, o.poison)?, o.id, None))).collect();
        (good, bad)
    });
}

#[test]
fn a_process_function_sets_exactly_the_poisonous_rows_and_timers_aside() {
    check(keyed, |orders| {
        let (mut out, mut aside) = (Vec::new(), Vec::new());
        let mut counts: BTreeMap<i64, i64> = BTreeMap::new();
        let mut timers: BTreeMap<i64, BTreeSet<i64>> = BTreeMap::new();
        for o in orders {
            if let Some(reason) = reason(o.id, o.poison) {
                aside.push((reason, o.id, Some(o.at.millis())));
                continue;
            }
            let n = counts.entry(o.key).or_default();
            *n += 1;
            out.push(vec![o.key, 0, o.id, *n]);
            timers.entry(o.key).or_default().insert(o.at.millis() + LATER_MS);
        }
        for (key, times) in timers {
            let mut n = 0;
            for time in times {
                match reason(time, timer_poison(time)) {
                    Some(reason) => aside.push((format!("an event-time timer: {reason}"), key, Some(time))),
                    None => {
                        n += 1;
                        out.push(vec![key, 1, time, n]);
                    }
                }
            }
        }
        (out, aside)
    });
}

#[test]
fn a_window_sets_exactly_the_poisonous_rows_aside() {
    check(window, |orders| {
        let mut sums: BTreeMap<(i64, i64), i64> = BTreeMap::new();
        let mut aside = Vec::new();
        for o in orders {
            let at = o.at.millis();
            if o.poison != 0 {
                aside.push((format!("it panicked: row {} is poisonous", o.id), o.id, Some(at)));
                continue;
            }
            let last = at - at.rem_euclid(SLIDE_MS);
            for start in [last - SLIDE_MS, last] {
                *sums.entry((o.key, start)).or_default() += o.id;
            }
        }
        (sums.into_iter().map(|((key, start), sum)| vec![key, sum, start, start + SIZE_MS]).collect(), aside)
    });
}
