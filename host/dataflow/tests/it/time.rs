//! Event time through a whole job: watermarks, idleness, the end.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

use tidemill_core::plan::{Exchange, Input, NodeKind};
use tidemill_core::user::EmittedRows;
use tidemill_dataflow::Stepper;

use crate::support::*;

/// Keys, each with the watermark at which it was seen.
type Seen = Arc<Mutex<Vec<(i64, i64)>>>;

/// Runs a job whose transform notes the watermark with which it is called.
fn watermarks(mut job: Job) -> (Job, Seen) {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let log = seen.clone();
    job.spec.user_code = code(move |_, clock, batch, effects| {
        log.lock().unwrap().extend(keys(batch).iter().map(|k| (*k, clock.watermark.0)));
        effects.emissions.push(forward(EmittedRows::All));
        Ok(())
    });
    (job, seen)
}

fn plan(idle: Option<u64>) -> PlanBuilder {
    let mut plan = PlanBuilder::new();
    let source = plan.source("in", event_time(3, idle));
    let map = plan.transform("map", source, Exchange::Forward);
    plan.sink("out", map, Exchange::Forward);
    plan
}

#[test]
fn the_watermark_follows_the_slowest_split_and_rows_carry_their_time() {
    let splits = vec![
        vec![Poll::Rows(vec![(1, 100)]), Poll::Rows(vec![(3, 300)]), Poll::Rows(vec![(5, 400)])],
        vec![Poll::Rows(vec![(2, 50)]), Poll::Rows(vec![(4, 200)])],
    ];
    let (job, seen) = watermarks(job(plan(None), 1, vec![("in", MemorySource::of(splits))]));
    let stepper = job.step_to_end(0).unwrap();
    let min = i64::MIN;
    let expected = vec![(1, min), (2, min), (3, 50 - 4), (4, 50 - 4), (5, 200 - 4)];
    assert_eq!(*seen.lock().unwrap(), expected);
    assert_eq!(*job.out.timestamps.lock().unwrap(), vec![100, 50, 300, 200, 400]);
    assert_eq!(stepper.tasks()[2].metrics.watermark.load(Ordering::SeqCst), i64::MAX, "the end");
}

#[test]
fn an_idle_split_holds_nothing_back() {
    let splits = vec![
        vec![Poll::Rows(vec![(1, 100)]), Poll::Until(500), Poll::Rows(vec![(2, 200)]), Poll::Rows(vec![(3, 300)])],
        vec![Poll::Until(10_000), Poll::Rows(vec![(4, 10)])],
    ];
    let (job, seen) = watermarks(job(plan(Some(1_000)), 1, vec![("in", MemorySource::of(splits))]));
    let mut stepper = Stepper::new(job.spec.clone(), 0).unwrap();
    stepper.step_until_idle().unwrap();
    job.clock.0.store(500, Ordering::SeqCst);
    stepper.step_until_idle().unwrap();
    let watermark = |stepper: &Stepper| stepper.tasks()[1].metrics.watermark.load(Ordering::SeqCst);
    assert_eq!(watermark(&stepper), i64::MIN, "the silent split may still have old rows");
    job.clock.0.store(1_000, Ordering::SeqCst);
    assert_eq!(stepper.step_until_idle().unwrap().map(|t| t.0), Some(10_000), "when the reader asked to be polled");
    assert_eq!(watermark(&stepper), 300 - 4);
    job.clock.0.store(10_000, Ordering::SeqCst);
    stepper.step_until_idle().unwrap();
    assert!(stepper.finished());
    assert_eq!(seen.lock().unwrap().last(), Some(&(4, 300 - 4)), "a late row does not turn time back");
}

#[test]
fn a_reader_without_splits_holds_nothing_back() {
    let mut source = MemorySource::rows(vec![vec![(1, 100), (2, 200)]], 1);
    Arc::get_mut(&mut source).unwrap().ends = false;
    let mut plan = PlanBuilder::new();
    let from = plan.source("in", event_time(0, None));
    let map = plan.transform("map", from, Exchange::Hash(vec![0]));
    plan.sink("out", map, Exchange::Forward);
    let job = job(plan, 3, vec![("in", source)]);
    for seed in 0..10 {
        let mut stepper = Stepper::new(job.spec.clone(), seed).unwrap();
        stepper.step_until_idle().unwrap();
        let maps = stepper.tasks().iter().filter(|t| t.kind == "transform");
        assert!(maps.map(|t| t.metrics.watermark.load(Ordering::SeqCst)).all(|w| w == 199));
    }
}

#[test]
fn splits_that_are_found_later_are_read_too() {
    let source = MemorySource::rows(vec![vec![(1, 1)], vec![(2, 2)], vec![(3, 3)]], 1);
    source.splits.lock().unwrap()[1].0 = 1;
    source.splits.lock().unwrap()[2].0 = 2;
    let job = job(plan(None), 2, vec![("in", source)]);
    job.step_to_end(1).unwrap();
    assert_eq!(job.out.sorted(), vec![(1, 1), (2, 2), (3, 3)]);
    assert_eq!(job.clock.0.load(Ordering::SeqCst), 200, "two more discoveries, by the clock");
}

#[test]
fn event_time_can_be_assigned_in_the_middle() {
    let mut plan = PlanBuilder::new();
    let source = plan.source("in", None);
    let before = plan.transform("before", source, Exchange::Forward);
    let input = Input { node: before, port: 0, exchange: Exchange::Rebalance, reads: vec![] };
    let assign = plan.node("assign", vec![input], None, NodeKind::AssignEventTime(event_time(3, Some(1_000)).unwrap()));
    let map = plan.transform("after", assign, Exchange::Forward);
    plan.sink("out", map, Exchange::Forward);
    let splits =
        vec![vec![Poll::Rows(vec![(1, 100)]), Poll::Rows(vec![(2, 90), (3, 200)]), Poll::Rows(vec![(4, 150)])]];
    let mut job = job(plan, 1, vec![("in", MemorySource::of(splits))]);
    let seen = Arc::new(Mutex::new(Vec::new()));
    let log = seen.clone();
    job.spec.user_code = code(move |name, clock, batch, effects| {
        assert_eq!(batch.timestamps().is_some(), name == "after");
        log.lock().unwrap().push((name.to_owned(), clock.watermark.0));
        effects.emissions.push(forward(EmittedRows::All));
        Ok(())
    });
    job.step_to_end(0).unwrap();
    let after: Vec<i64> = seen.lock().unwrap().iter().filter(|(n, _)| n == "after").map(|(_, w)| *w).collect();
    assert_eq!(after, vec![i64::MIN, 96, 196]);
    assert_eq!(*job.out.timestamps.lock().unwrap(), vec![100, 90, 200, 150]);
}

/// One source has a row per millisecond, the other one per hundred: in turn, the second would be read to its end first.
#[test]
fn what_is_behind_in_event_time_is_read_first() {
    let dense = MemorySource::rows(vec![(0..5_000).map(|i| (0, i)).collect()], 1);
    let sparse = MemorySource::rows(vec![(0..50).map(|i| (1, i * 100)).collect()], 1);
    let mut plan = PlanBuilder::new();
    let from = [plan.source("dense", event_time(0, None)), plan.source("sparse", event_time(0, None))];
    let both = plan.union("both", &from);
    plan.sink("out", both, Exchange::Forward);
    let job = job(plan, 1, vec![("dense", dense), ("sparse", sparse)]);
    job.step_to_end(0).unwrap();
    let written = job.out.written.lock().unwrap();
    let (mut came, mut rows) = ([0, 0], 0);
    for &(source, time) in written.values().flatten() {
        came[source as usize] = time;
        rows += 1;
        assert!(came[1] - came[0] <= 300 && came[0] - came[1] <= 300, "{came:?}");
    }
    assert_eq!(rows, 5_050);
}

/// Event time stands still, since a split is quiet, while another always has rows: that must not hold up who is ahead.
#[test]
fn who_is_ahead_is_read_too() {
    let stuck =
        MemorySource::of(vec![vec![Poll::Rows(vec![(0, 1)]); 10_000], vec![Poll::Rows(vec![(0, 1)]), Poll::Until(9)]]);
    let ahead = MemorySource::rows(vec![(0..10).map(|i| (1, 1_000 + i)).collect()], 1);
    let mut plan = PlanBuilder::new();
    let from = [plan.source("stuck", event_time(0, None)), plan.source("ahead", event_time(0, None))];
    let both = plan.union("both", &from);
    plan.sink("out", both, Exchange::Forward);
    let job = job(plan, 1, vec![("stuck", stuck), ("ahead", ahead)]);
    job.step_to_end(0).unwrap();
    let written = job.out.written.lock().unwrap();
    let sources: Vec<i64> = written.values().flatten().map(|row| row.0).collect();
    let last = sources.iter().rposition(|source| *source == 1).unwrap();
    assert!(last < 8_000, "{last}");
}
