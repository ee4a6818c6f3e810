//! Rows arrive where they should, once, whatever the shape of the job and the order of steps.

use std::collections::HashMap;
use std::sync::atomic::Ordering;

use tidemill_core::plan::Exchange;
use tidemill_dataflow::{Ending, run};

use crate::support::*;

fn numbers(n: i64) -> Vec<Row> {
    (0..n).map(|i| (i, i)).collect()
}

fn split(rows: &[Row], ways: usize) -> Vec<Vec<Row>> {
    (0..ways).map(|w| rows.iter().skip(w).step_by(ways).copied().collect()).collect()
}

fn chain(exchange: Exchange) -> PlanBuilder {
    let mut plan = PlanBuilder::new();
    let source = plan.source("in", event_time(0, None));
    let map = plan.transform("map", source, exchange);
    plan.sink("out", map, Exchange::Forward);
    plan
}

#[test]
fn each_exchange_delivers_every_row_in_every_order_of_steps() {
    let all = numbers(1_000);
    for exchange in [Exchange::Forward, Exchange::Rebalance, Exchange::Hash(vec![0]), Exchange::Hash(vec![])] {
        for parallelism in [1, 2, 3] {
            for seed in 0..5 {
                let source = MemorySource::rows(split(&all, 4), 16);
                let job = job(chain(exchange.clone()), parallelism, vec![("in", source.clone())]);
                job.step_to_end(seed).unwrap();
                assert_eq!(job.out.sorted(), all, "{exchange:?} x{parallelism}");
                assert_eq!(job.out.committed.lock().unwrap().len(), parallelism as usize);
                assert_eq!(source.completed.load(Ordering::SeqCst), u64::from(parallelism));
            }
        }
    }
}

#[test]
fn threads_deliver_what_steps_deliver() {
    let all = numbers(20_000);
    for parallelism in [1, 2, 4] {
        let source = MemorySource::rows(split(&all, 4), 100);
        let job = job(chain(Exchange::Hash(vec![0])), parallelism, vec![("in", source.clone())]);
        let report = run(job.spec.clone()).unwrap().wait().unwrap();
        assert_eq!(report.ending, Ending::Finished);
        assert_eq!(job.out.sorted(), all);
        let read: u64 = report.tasks.iter().filter(|t| t.kind == "source").map(|t| t.metrics.records_out.get()).sum();
        assert_eq!(read, 20_000);
        assert_eq!(source.completed.load(Ordering::SeqCst), u64::from(parallelism));
    }
}

#[test]
fn a_hash_puts_each_key_in_one_place() {
    let all: Vec<Row> = (0..2_000).map(|i| (i % 50, i)).collect();
    let job = job(chain(Exchange::Hash(vec![0])), 3, vec![("in", MemorySource::rows(split(&all, 3), 64))]);
    job.step_to_end(7).unwrap();
    let mut home = HashMap::new();
    for (subtask, rows) in &*job.out.written.lock().unwrap() {
        for (key, _) in rows {
            assert_eq!(home.entry(*key).or_insert(*subtask), subtask, "key {key}");
        }
    }
    assert_eq!(home.len(), 50);
    assert!(job.out.written.lock().unwrap().len() == 3, "50 keys reach all three");
}

#[test]
fn a_broadcast_reaches_everyone() {
    let all = numbers(100);
    let job = job(chain(Exchange::Broadcast), 3, vec![("in", MemorySource::rows(vec![all.clone()], 10))]);
    job.step_to_end(1).unwrap();
    let written = job.out.written.lock().unwrap();
    assert_eq!(written.len(), 3);
    assert!(written.values().all(|rows| *rows == all));
}

#[test]
fn a_forward_between_different_parallelism_loses_nothing() {
    for (before, after) in [(1, 3), (3, 1), (2, 3), (3, 2)] {
        let all = numbers(300);
        let mut plan = chain(Exchange::Forward);
        plan.parallelism(0, before);
        plan.parallelism(1, after);
        let job = job(plan, 2, vec![("in", MemorySource::rows(split(&all, 3), 10))]);
        job.step_to_end(3).unwrap();
        assert_eq!(job.out.sorted(), all, "{before} to {after}");
    }
}

#[test]
fn a_diamond_and_a_union_count_each_row_once_per_path() {
    for parallelism in [1, 2] {
        let (a, b) = (numbers(300), (1_000..1_200).map(|i| (i, i)).collect::<Vec<Row>>());
        let mut plan = PlanBuilder::new();
        let left = plan.source("a", event_time(0, None));
        let right = plan.source("b", event_time(0, None));
        let even = plan.transform("even", left, Exchange::Rebalance);
        let odd = plan.transform("odd", left, Exchange::Hash(vec![0]));
        let union = plan.union("all", &[even, odd, right, left]);
        plan.sink("out", union, Exchange::Forward);
        let sources = vec![("a", MemorySource::rows(vec![a.clone()], 7)), ("b", MemorySource::rows(split(&b, 2), 9))];
        let mut job = job(plan, parallelism, sources);
        job.spec.user_code = code(|name, _, batch, effects| {
            let wanted = if name == "even" { 0 } else { 1 };
            let rows = keys(batch).into_iter().enumerate().filter(|(_, k)| k % 2 == wanted).map(|(i, _)| i as u32);
            let rows = tidemill_core::user::EmittedRows::Of(rows.collect::<Vec<_>>().into());
            effects.emissions.push(forward(rows));
            Ok(())
        });
        job.step_to_end(11).unwrap();
        let mut expected = [a.clone(), a, b].concat();
        expected.sort_unstable();
        assert_eq!(job.out.sorted(), expected);
    }
}

#[test]
fn what_is_in_flight_is_bounded_while_the_sink_is_full() {
    let all = numbers(100_000);
    let source = MemorySource::rows(split(&all, 2), 100);
    let job = job(chain(Exchange::Hash(vec![0])), 2, vec![("in", source.clone())]);
    job.out.full.store(true, Ordering::SeqCst);
    let mut stepper = tidemill_dataflow::Stepper::new(job.spec.clone(), 5).unwrap();
    stepper.step_until_idle().unwrap();
    let (polls, read) = (source.polls.load(Ordering::SeqCst), stepper.tasks()[0].metrics.records_out.get());
    assert!(!stepper.finished() && read < 40_000, "{read} rows were read against a full sink");
    stepper.step_until_idle().unwrap();
    assert_eq!(source.polls.load(Ordering::SeqCst), polls, "a blocked job does not spin");
    job.out.full.store(false, Ordering::SeqCst);
    stepper.step_until_idle().unwrap();
    assert!(stepper.finished());
    assert_eq!(job.out.sorted(), all);
}

#[test]
fn equal_seeds_have_equal_histories_and_all_seeds_equal_results() {
    let all = numbers(500);
    let run = |seed| {
        let job = job(chain(Exchange::Hash(vec![0])), 3, vec![("in", MemorySource::rows(split(&all, 3), 10))]);
        let history = job.step_to_end(seed).unwrap().history();
        let batches: Vec<Vec<Row>> = job.out.batches.lock().unwrap().iter().map(rows).collect();
        (history, batches, job.out.sorted())
    };
    let (first, again, other) = (run(1), run(1), run(2));
    assert_eq!(first, again);
    assert_ne!(first.0, other.0, "the order of steps depends on the seed");
    assert_eq!(first.2, other.2);
}

#[test]
fn a_stop_drains_what_was_read_and_commits_it() {
    let mut source = MemorySource::rows(vec![numbers(1_000)], 10);
    std::sync::Arc::get_mut(&mut source).unwrap().ends = false;
    let job = job(chain(Exchange::Hash(vec![0])), 2, vec![("in", source)]);
    let mut stepper = tidemill_dataflow::Stepper::new(job.spec.clone(), 1).unwrap();
    stepper.step_until_idle().unwrap();
    assert!(!stepper.finished(), "it is unbounded");
    stepper.stop().unwrap();
    stepper.step_until_idle().unwrap();
    assert!(stepper.finished() && stepper.report().ending == Ending::Stopped);
    assert_eq!(job.out.sorted(), numbers(1_000));
    assert_eq!(job.out.committed.lock().unwrap().len(), 2);
    let end = stepper.tasks().iter().map(|t| t.metrics.watermark.load(Ordering::SeqCst)).max();
    assert_eq!(end, Some(998), "a stop is not the end of event time");
}

#[test]
fn threads_stop_and_cancel() {
    for cancel in [false, true] {
        let mut source = MemorySource::rows(vec![numbers(100)], 10);
        std::sync::Arc::get_mut(&mut source).unwrap().ends = false;
        let job = job(chain(Exchange::Hash(vec![0])), 2, vec![("in", source)]);
        let handle = run(job.spec.clone()).unwrap();
        if cancel {
            handle.cancel()
        } else {
            handle.stop()
        }
        let report = handle.wait().unwrap();
        assert_eq!(report.ending, if cancel { Ending::Cancelled } else { Ending::Stopped });
        assert_eq!(job.out.committed.lock().unwrap().is_empty(), cancel);
    }
}
