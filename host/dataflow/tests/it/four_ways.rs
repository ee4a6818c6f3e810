//! Every stateful operator, run four ways from one description: plain; with checkpoints; killed and restored; killed and
//! restored at another parallelism. The last two also with checkpoints that turn unaligned. What is visible at the end
//! must be equal.
//!
//! To test another operator, add a test with its description. The output that is compared must not depend on the order
//! in which rows of different splits come, which no way of running a job promises; where it does (how far the watermark
//! is when a row comes late), either the source has one split and one subtask, or `compared` makes of it what is always
//! the same.
//!
//! `TIDEMILL_FOUR_WAYS_SEEDS` says how many seeds are tried, `TIDEMILL_FOUR_WAYS_SEED` which one alone.

mod backpressure;
mod code;
mod going_on;
mod plan;
mod ways;
mod world;

use tidemill_core::plan::{AggregateFunction, DataType, EventTime, Exchange, Windows};

use self::code::{KNOWN_KEYS, REFUSED, TRAPS};
use self::plan::*;
use self::ways::{Description, Dice, Output, check};
use self::world::{Poll, Row, Splits};

/// How far out of order rows of a split are.
const DISORDER_MS: i64 = 60;

/// `count` rows from `start` on, 10 ms apart and out of order; a few keys have most of them.
fn rows(seed: u64, start: i64, count: i64) -> Vec<Row> {
    let mut dice = Dice(seed << 32);
    let mut row = |at: i64| {
        let keys = 1 + dice.below(24);
        let key = dice.below(keys) as i64;
        let t = start + at * 10 + dice.below(DISORDER_MS as u64 / 2) as i64;
        // No value is poisonous.
        (key, Some(t), 20 + dice.below(100) as i64)
    };
    (0..count).map(&mut row).collect()
}

/// In polls of a few rows.
fn polls(rows: &[Row]) -> Vec<Poll> {
    rows.chunks(7).map(|chunk| Poll::Rows(chunk.to_vec())).collect()
}

/// Some splits, of unequal length, and one more that is found while the job runs and goes on where the longest ends.
fn splits(seed: u64) -> Splits {
    let mut splits: Splits = [160, 90, 130, 12, 0, 150]
        .into_iter()
        .enumerate()
        .map(|(split, count)| (0, polls(&rows(seed + split as u64, 0, count))))
        .collect();
    // In the middle of one, nothing comes for a while.
    splits[2].1.insert(5, Poll::Until(150));
    // The longest is not over before the last one is found. Else all would be idle in between, and what comes first after
    // that need not wait for what comes on other ways: rows may be late then.
    splits[0].1.insert(20, Poll::Pause(300));
    splits.push((2, polls(&rows(seed + 99, 1_700, 60))));
    splits
}

fn one_split(rows: &[Row]) -> Splits {
    vec![(0, polls(rows))]
}

fn all(output: Output) -> Output {
    output
}

/// By everything but the last column: the sum of that.
fn sums(output: Output) -> Output {
    let mut sums = Output::new();
    for (row, times) in output {
        let (row, last) = row.rsplit_once('|').unwrap();
        *sums.entry(row.to_owned()).or_default() += times * last.parse::<i64>().unwrap();
    }
    sums
}

/// By everything but the last column: the largest of that. What windows with lateness say last.
fn largest(output: Output) -> Output {
    let mut largest = Output::new();
    for row in output.into_keys() {
        let (row, last) = row.rsplit_once('|').unwrap();
        let entry = largest.entry(row.to_owned()).or_insert(0);
        *entry = last.parse::<i64>().unwrap().max(*entry);
    }
    largest
}

/// By key: rows that are counted in windows, and late rows.
fn rows_of_keys(output: Output) -> Output {
    let mut counts = Output::new();
    for (row, times) in output {
        let columns: Vec<_> = row.split('|').collect();
        let rows = if columns[0] == "late" { 1 } else { columns[4].parse::<i64>().unwrap() };
        *counts.entry(columns[1].to_owned()).or_default() += rows * times;
    }
    counts
}

fn in_order() -> EventTime {
    event_time(DISORDER_MS as u64, None)
}

#[test]
fn a_process_function_with_event_time_timers() {
    let mut plan = Plan::default();
    let source = plan.source("in", in_order());
    let process = plan.process("buckets", source);
    plan.sink("timers", (process, 0));
    plan.sink("rows", (process, 1));
    check(
        "process",
        &Description { graph: plan.graph(), sources: vec![("in", splits(1))], compared: all, at_least: 1000 },
    );
}

#[test]
fn a_process_function_with_processing_time_timers() {
    let mut plan = Plan::default();
    let source = plan.source("in", in_order());
    let process = plan.process("settle", source);
    plan.sink("settled", (process, 0));
    // Long enough for everything to settle.
    let mut splits = splits(2);
    splits[0].1.push(Poll::Pause(20_000));
    check("settle", &Description { graph: plan.graph(), sources: vec![("in", splits)], compared: sums, at_least: 20 });
}

#[test]
fn a_process_function_with_a_list_a_map_and_a_value_that_expires() {
    let mut plan = Plan::default();
    let source = plan.source("in", in_order());
    let process = plan.collecting("collect", source);
    plan.sink("sums", (process, 0));
    plan.sink("rows", (process, 1));
    let mut splits = splits(24);
    for (at, (_, polls)) in splits.iter_mut().enumerate() {
        // Some are poisonous: what was appended for them is not there.
        if let Some(Poll::Rows(rows)) = polls.get_mut(at) {
            rows[0].2 = if at % 2 == 0 { TRAPS } else { REFUSED };
        }
    }
    check("collect", &Description { graph: plan.graph(), sources: vec![("in", splits)], compared: all, at_least: 900 });
}

/// What one subtask knows at the end is what all rows of the broadcast stream said, whatever was killed and rescaled.
#[test]
fn broadcast_state_beside_keyed_state() {
    let mut plan = Plan::default();
    let source = plan.source("in", in_order());
    let rules = plan.source("rules", in_order());
    let process = plan.judging("judge", source, rules);
    plan.sink("timers", (process, 0));
    plan.sink("rows", (process, 1));
    let sources = vec![("in", splits(25)), ("rules", splits(26))];
    check("broadcast", &Description { graph: plan.graph(), sources, compared: all, at_least: 550 });
}

#[test]
fn broadcast_state_without_a_key() {
    let mut plan = Plan::default();
    let source = plan.source("in", in_order());
    let rules = plan.source("rules", in_order());
    let judged = plan.judging_unkeyed("judge without a key", source, rules);
    // Behind it, so that what it hands on is seen to be in order of event time.
    let window = plan.window("window", judged, tumbling(100), 0, builtin());
    plan.sink("results", (window, 0));
    plan.sink("late", (window, 1));
    let sources = vec![("in", splits(27)), ("rules", splits(28))];
    check("broadcast, no key", &Description { graph: plan.graph(), sources, compared: all, at_least: 250 });
}

/// Once each, however many subtasks know it: of the rows that lists have which were united.
fn known_once(output: Output) -> Output {
    let is_known = |row: &str| row.split('|').nth(1).is_some_and(|k| k.parse::<i64>().is_ok_and(|k| k >= KNOWN_KEYS));
    output.into_iter().map(|(row, times)| if is_known(&row) { (row, 1) } else { (row, times) }).collect()
}

/// Each row comes out of a list that is split once, whatever was killed and rescaled; one that is united forgets none.
#[test]
fn operator_lists() {
    let mut plan = Plan::default();
    let source = plan.source("in", in_order());
    let buffered = plan.buffering("buffer", source);
    plan.sink("rows", buffered);
    let mut splits = splits(30);
    for (at, (_, polls)) in splits.iter_mut().enumerate() {
        // Some are poisonous: they are not in the lists.
        if let Some(Poll::Rows(rows)) = polls.get_mut(at) {
            rows[0].2 = if at % 2 == 0 { TRAPS } else { REFUSED };
        }
    }
    let sources = vec![("in", splits)];
    check("operator lists", &Description { graph: plan.graph(), sources, compared: known_once, at_least: 1000 });
}

fn window(seed: u64, name: &str, windows: Windows, functions: Vec<AggregateFunction>) {
    let mut plan = Plan::default();
    let source = plan.source("in", in_order());
    let window = plan.window("window", source, windows, 0, functions);
    plan.sink("results", (window, 0));
    plan.sink("late", (window, 1));
    check(
        name,
        &Description { graph: plan.graph(), sources: vec![("in", splits(seed))], compared: all, at_least: 250 },
    );
}

fn builtin() -> Vec<AggregateFunction> {
    vec![Count, Sum(2), Min(2), Max(2), Avg(2)]
}

fn user() -> AggregateFunction {
    User { accumulator: DataType::Int64, output: DataType::Int64 }
}

#[test]
fn tumbling_windows() {
    window(3, "tumbling", tumbling(100), builtin());
}

#[test]
fn tumbling_windows_with_a_user_aggregate() {
    window(4, "tumbling, user", tumbling(100), vec![user(), Count]);
}

#[test]
fn sliding_windows() {
    window(5, "sliding", sliding(300, 50), builtin());
}

#[test]
fn sliding_windows_with_a_user_aggregate() {
    window(6, "sliding, user", sliding(200, 50), vec![Count, user()]);
}

/// One split, so that it is always the same which rows are late and which windows fire again.
fn late(seed: u64, name: &str, windows: Windows) {
    let mut plan = Plan::default();
    let source = plan.source("in", event_time(5, None));
    plan.parallelism(source.0, 1);
    let window = plan.window("window", source, windows, 120, vec![Count, Sum(2), user()]);
    plan.sink("results", (window, 0));
    plan.sink("late", (window, 1));
    let mut rows = rows(seed, 0, 500);
    for (at, row) in rows.iter_mut().enumerate() {
        row.1 = row.1.map(|t| t - [0, 0, 90, 0, 250, 0, 0, 40, 0, 0, 400][at % 11]);
    }
    check(
        name,
        &Description { graph: plan.graph(), sources: vec![("in", one_split(&rows))], compared: all, at_least: 400 },
    );
}

#[test]
fn tumbling_windows_fire_again_for_late_rows() {
    late(7, "tumbling, late", tumbling(100));
}

#[test]
fn sliding_windows_fire_again_for_late_rows() {
    late(8, "sliding, late", sliding(300, 100));
}

#[test]
fn windows_with_lateness_over_several_splits_say_the_right_thing_last() {
    let mut plan = Plan::default();
    let source = plan.source("in", event_time(0, None));
    let window = plan.window("window", source, sliding(200, 100), 1_000_000, vec![Count]);
    plan.sink("results", (window, 0));
    plan.sink("late", (window, 1));
    check(
        "lateness",
        &Description { graph: plan.graph(), sources: vec![("in", splits(9))], compared: largest, at_least: 350 },
    );
}

#[test]
fn a_window_join() {
    for (name, windows) in [("tumbling join", tumbling(100)), ("sliding join", sliding(150, 50))] {
        let mut plan = Plan::default();
        let left = plan.source("left", in_order());
        let right = plan.source("right", in_order());
        let pairs = plan.window_join(left, right, windows);
        plan.sink("pairs", pairs);
        let right = vec![(0, polls(&rows(11, 30, 90))), (0, polls(&rows(12, 930, 60)))];
        let sources = vec![("left", splits(10)), ("right", right)];
        check(name, &Description { graph: plan.graph(), sources, compared: all, at_least: 400 });
    }
}

#[test]
fn an_interval_join() {
    let mut plan = Plan::default();
    let left = plan.source("left", in_order());
    let right = plan.source("right", in_order());
    let pairs = plan.interval_join(left, right, -70, 30);
    plan.sink("pairs", pairs);
    let right = vec![(0, polls(&rows(14, 30, 90))), (0, polls(&rows(15, 0, 100)))];
    let sources = vec![("left", splits(13)), ("right", right)];
    check("interval join", &Description { graph: plan.graph(), sources, compared: all, at_least: 700 });
}

/// Two streams without event time become one, which gets it then.
fn united(seed: u64, name: &str, disorder_ms: u64, compared: fn(Output) -> Output) {
    let mut plan = Plan::default();
    let sources = [plan.source("a", None), plan.source("b", None)];
    let union = plan.union(&sources);
    let assigned = plan.assign(union, Exchange::Rebalance, event_time(disorder_ms, None));
    let window = plan.window("window", assigned, sliding(100, 50), 0, vec![Count]);
    let window_of_late = plan.window("window of late", assigned, tumbling(100), 0, vec![Count]);
    plan.sink("late", (window_of_late, 1));
    plan.sink("results", (window_of_late, 0));
    if disorder_ms > 1_000 {
        plan.sink("sliding", (window, 0));
    }
    let sources = vec![("a", splits(seed)), ("b", splits(seed + 50))];
    check(name, &Description { graph: plan.graph(), sources, compared, at_least: 20 });
}

#[test]
fn event_time_assigned_to_a_union() {
    united(16, "union", 1_000_000, all);
    united(17, "union with late rows", 100, rows_of_keys);
}

#[test]
fn poisonous_rows_are_set_aside_once() {
    let mut plan = Plan::default();
    let source = plan.source("in", in_order());
    let parsed = plan.transform("parse", source, Exchange::Rebalance);
    let process = plan.process("buckets", parsed);
    plan.sink("timers", (process, 0));
    // Past the transform, so that other operators meet poison too.
    let also = plan.process("also", source);
    let window = plan.window("window", source, tumbling(100), 0, vec![user(), Count]);
    plan.sink("also", (also, 0));
    plan.sink("results", (window, 0));
    let mut splits = splits(18);
    for (split, (_, polls)) in splits.iter_mut().enumerate() {
        for (at, poll) in polls.iter_mut().enumerate() {
            let Poll::Rows(rows) = poll else { continue };
            let last = rows.len() - 1;
            match (at + split) % 5 {
                1 => rows[last].2 = TRAPS,
                2 => rows[0].2 = REFUSED,
                3 => rows[last / 2].1 = None,
                _ => {}
            }
        }
        polls.insert(polls.len() / 2, Poll::Rejected(split as i64));
    }
    check("poison", &Description { graph: plan.graph(), sources: vec![("in", splits)], compared: all, at_least: 1300 });
}

#[test]
fn keyed_operators_one_after_the_other() {
    let mut plan = Plan::default();
    let source = plan.source("in", in_order());
    let first = plan.process("buckets", source);
    let second = plan.process("more buckets", (first, 0));
    let window = plan.window("window", (second, 0), sliding(400, 200), 0, builtin());
    plan.sink("results", (window, 0));
    plan.sink("late", (window, 1));
    plan.sink("rows", (second, 1));
    check(
        "chain",
        &Description { graph: plan.graph(), sources: vec![("in", splits(19))], compared: all, at_least: 700 },
    );
}

/// Two branches; one source ends long before the other, and so do the operators after it.
#[test]
fn sources_that_end_long_before_others() {
    let mut plan = Plan::default();
    let short = plan.source("short", in_order());
    let long = plan.source("long", in_order());
    let ended = plan.process("buckets", short);
    let going_on = plan.window("window", long, tumbling(100), 0, builtin());
    let pairs = plan.interval_join(short, long, -50, 50);
    plan.sink("timers", (ended, 0));
    plan.sink("results", (going_on, 0));
    plan.sink("pairs", pairs);
    let mut short = vec![(0, polls(&rows(20, 0, 40))), (0, polls(&rows(21, 0, 20)))];
    short[0].1.push(Poll::Rejected(1));
    if let Poll::Rows(rows) = &mut short[0].1[4] {
        rows[0].2 = TRAPS;
    }
    let sources = vec![("short", short), ("long", splits(22))];
    check("ended", &Description { graph: plan.graph(), sources, compared: all, at_least: 500 });
}

/// A split that has nothing to say for long, and then ends.
#[test]
fn idle_splits() {
    let mut plan = Plan::default();
    let source = plan.source("in", event_time(DISORDER_MS as u64, Some(30)));
    let window = plan.window("window", source, tumbling(100), 0, builtin());
    plan.sink("results", (window, 0));
    let rows = rows(23, 0, 400);
    let sources = vec![("in", vec![(0, polls(&rows)), (0, vec![Poll::Until(700)]), (1, vec![Poll::Until(300)])])];
    check("idle", &Description { graph: plan.graph(), sources, compared: all, at_least: 250 });
}
