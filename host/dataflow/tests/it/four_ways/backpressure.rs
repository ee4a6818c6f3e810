//! Checkpoints while no sink takes anything: everything stands still, and each kind of edge is full.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

use tidemill_checkpoint::manifest::Manifest;
use tidemill_checkpoint::protocol::Settings;
use tidemill_core::plan::Exchange;
use tidemill_dataflow::{CheckpointFigures, Stepped, Stepper};

use super::plan::*;
use super::ways::{Death, Description, Fate, Output, Run, assert_same, on_failure};
use super::world::Poll;
use super::{all, builtin, in_order, rows};

const ALIGNED_TIMEOUT_MS: u64 = 50;
const TIMEOUT_MS: u64 = 400;

/// A checkpoint is begun once everything stands still.
fn settings(aligned_timeout_ms: Option<u64>) -> Settings {
    Settings {
        interval_ms: Some(1_000),
        timeout_ms: TIMEOUT_MS,
        tolerable_failures: u32::MAX,
        aligned_timeout_ms,
        ..Settings::default()
    }
}

/// Rows of a split.
const ROWS: u64 = 10_000;

/// More than fits into the queues and inboxes of a job whose sinks take nothing: a row alone keeps some 200 bytes.
fn long(seed: u64) -> Vec<Poll> {
    rows(seed, 0, ROWS as i64).into_iter().map(|row| Poll::Rows(vec![row])).collect()
}

/// Forward edges in a slot and between slots, rebalance, hash to one and two inputs, broadcast; a union, event time
/// assigned in between, operators one after the other. With windows: what fires has more to say than there is room for.
fn description(windows: bool) -> Description {
    let mut plan = Plan::default();
    let (a, b) = (plan.source("a", in_order()), plan.source("b", in_order()));
    let untimed = plan.source("c", None);
    let union = plan.union(&[a, b]);
    let shuffled = plan.transform("shuffle", union, Exchange::Rebalance);
    let told = plan.transform("told", shuffled, Exchange::Broadcast);
    plan.parallelism(told.0, 2);
    let process = plan.process("buckets", shuffled);
    let next = plan.process("next", (process, 1));
    let pairs = plan.interval_join(a, b, -3, 0);
    plan.sink("timers", (process, 0));
    plan.sink("rows", (next, 1));
    plan.sink("told", told);
    plan.sink("pairs", pairs);
    let assigned = plan.assign(untimed, Exchange::Rebalance, event_time(1_000_000, None));
    let of_assigned = plan.process("of assigned", assigned);
    plan.sink("of assigned", (of_assigned, 1));
    if windows {
        let window = plan.window("window", shuffled, sliding(20, 10), 0, builtin());
        plan.sink("results", (window, 0));
        plan.sink("late", (window, 1));
    }
    let long = |seeds: &[u64]| seeds.iter().map(|seed| (0, long(*seed))).collect();
    let sources = vec![("a", long(&[41, 42])), ("b", long(&[43])), ("c", long(&[44, 45, 46]))];
    Description { graph: plan.graph(), sources, compared: all, at_least: 0 }
}

/// Steps until nothing moves at the time that it is, and says when something may.
fn stand_still(stepper: &mut Stepper) -> Option<i64> {
    match stepper.step_some(usize::MAX).unwrap() {
        Stepped::Idle(at) => at.map(|at| at.0),
        Stepped::More => unreachable!(),
    }
}

/// Until the clock says so.
fn go_on(run: &Run<'_>, stepper: &mut Stepper, until_ms: i64) {
    while let Some(at) = stand_still(stepper) {
        let clock = &run.world.clock.0;
        if at > until_ms {
            return clock.store(until_ms, Ordering::SeqCst);
        }
        clock.fetch_max(at, Ordering::SeqCst);
    }
}

/// Rows that tasks of a kind had taken and given, by operator.
fn rows_of(stepper: &Stepper) -> BTreeMap<String, (u64, u64)> {
    let mut rows = BTreeMap::new();
    for task in stepper.tasks() {
        let entry: &mut (u64, u64) = rows.entry(task.uid.clone()).or_default();
        entry.0 += task.metrics.records_in.get();
        entry.1 += task.metrics.records_out.get();
    }
    rows
}

fn figures(stepper: &Stepper) -> CheckpointFigures {
    stepper.checkpoints().unwrap().clone()
}

/// A run whose sinks take nothing, and which stands still before its first checkpoint.
fn stuck<'a>(description: &'a Description, seed: u64, parallelism: u32, aligned: Option<u64>) -> (Run<'a>, Stepper) {
    let mut run = Run { calm: true, unaligned: true, settings: Some(settings(aligned)), ..Run::new(description, seed) };
    run.world.full.store(true, Ordering::SeqCst);
    let mut stepper = run.begin(parallelism).unwrap().unwrap();
    go_on(&run, &mut stepper, 900);
    let rows = rows_of(&stepper);
    let waits = |uid: &str, splits: u64| rows[uid].1 < splits * ROWS;
    assert!(waits("a", 2) && waits("b", 1) && waits("c", 3), "{rows:?}");
    assert!(rows.iter().all(|(uid, rows)| !uid.starts_with("to ") || rows.0 == 0), "{rows:?}");
    (run, stepper)
}

fn newest(run: &Run<'_>) -> Manifest {
    run.store().checkpoints().unwrap().remove(0).manifest
}

/// To the end, with sinks that take everything.
fn to_the_end(run: &mut Run<'_>, parallelism: u32) -> Output {
    run.world.full.store(false, Ordering::SeqCst);
    let mut stepper = run.begin(parallelism).unwrap().unwrap();
    assert_eq!(run.steps(&mut stepper, u64::MAX), Fate::Ended);
    run.output()
}

#[test]
fn an_aligned_checkpoint_does_not_get_through_and_an_unaligned_one_does() {
    let description = description(true);
    for parallelism in [1, 3] {
        let _failing = on_failure(format!("parallelism {parallelism}"));
        let expected = Run::new(&description, 0).plain(parallelism);
        let (run, mut stepper) = stuck(&description, 1, parallelism, None);
        go_on(&run, &mut stepper, 1_000 + TIMEOUT_MS as i64 + 1);
        let aligned = figures(&stepper);
        assert_eq!((aligned.completed, aligned.failed), (0, 1), "{aligned:?}");

        let (mut run, mut stepper) = stuck(&description, 1, parallelism, Some(ALIGNED_TIMEOUT_MS));
        let before = rows_of(&stepper);
        go_on(&run, &mut stepper, 1_000 + ALIGNED_TIMEOUT_MS as i64 - 1);
        assert_eq!(figures(&stepper).completed, 0, "it is given the time to align");
        go_on(&run, &mut stepper, 1_000 + ALIGNED_TIMEOUT_MS as i64);
        let unaligned = figures(&stepper);
        assert_eq!((unaligned.completed, unaligned.failed, unaligned.unaligned), (1, 0, true), "{unaligned:?}");
        assert_eq!(unaligned.alignment_ms, ALIGNED_TIMEOUT_MS);
        let after = rows_of(&stepper);
        let taken = |rows: &BTreeMap<String, (u64, u64)>| -> Vec<u64> { rows.values().map(|rows| rows.0).collect() };
        assert_eq!(taken(&after), taken(&before), "no row was taken for it");
        assert_eq!(run.output(), Output::new(), "nor is any visible");

        let manifest = newest(&run);
        assert_eq!(unaligned.in_flight_bytes, manifest.in_flight_bytes());
        let of_kind = |uid: &str| manifest.operators.iter().find(|o| o.uid == uid).unwrap();
        let has_rows = |uid: &str| {
            let channels = of_kind(uid).subtasks.iter().filter_map(|s| s.in_flight.as_ref()).flat_map(|f| &f.channels);
            channels.map(|channel| channel.rows).sum::<u64>() > 0
        };
        for uid in ["to rows", "to told", "to pairs", "to results"] {
            assert!(has_rows(uid), "nothing in flight to '{uid}'");
        }
        let any = ["shuffle", "told", "buckets", "next", "join", "window"].map(has_rows);
        assert!(any.iter().filter(|has| **has).count() > 1, "{any:?}");
        drop(stepper);
        assert_same(&to_the_end(&mut run, parallelism), &expected);
    }
}

#[test]
fn who_is_held_up_by_full_receivers_counts_for_how_long() {
    let description = description(true);
    let (run, mut stepper) = stuck(&description, 2, 2, Some(0));
    go_on(&run, &mut stepper, 3_000);
    let held_up = |stepper: &Stepper, uid: &str| -> u64 {
        let tasks = stepper.tasks().iter().filter(|task| task.uid == uid);
        tasks.map(|task| task.metrics.backpressured_ms.get()).max().unwrap_or_default()
    };
    for uid in ["a", "b", "c"] {
        assert!((2_000..=3_000).contains(&held_up(&stepper, uid)), "{uid}: {} ms", held_up(&stepper, uid));
    }
    assert_eq!(held_up(&stepper, "to rows"), 0, "nobody is behind a sink");
    run.world.full.store(false, Ordering::SeqCst);
    go_on(&run, &mut stepper, i64::MAX);
    for task in stepper.tasks() {
        let metrics = &task.metrics;
        assert_eq!(metrics.bytes_in.get() > 0, metrics.records_in.get() > 0, "{}", task.uid);
        assert_eq!(metrics.bytes_out.get() > 0, metrics.records_out.get() > 0, "{}", task.uid);
    }
}

#[test]
fn the_next_one_gets_through_as_well_and_the_job_goes_on_behind_it() {
    let description = description(true);
    let expected = Run::new(&description, 0).plain(2);
    let (run, mut stepper) = stuck(&description, 2, 2, Some(0));
    go_on(&run, &mut stepper, 3_000);
    let figures = figures(&stepper);
    assert_eq!((figures.completed, figures.completed_unaligned, figures.failed), (3, 3, 0), "{figures:?}");
    // Without a restart: what was overtaken is still there, once.
    run.world.full.store(false, Ordering::SeqCst);
    go_on(&run, &mut stepper, i64::MAX);
    assert!(stepper.finished());
    assert_same(&run.output(), &expected);
}

#[test]
fn a_checkpoint_of_what_was_replayed_and_not_taken_has_it_again() {
    let description = description(true);
    let expected = Run::new(&description, 0).plain(2);
    let (mut run, mut stepper) = stuck(&description, 3, 2, Some(0));
    go_on(&run, &mut stepper, 1_100);
    assert_eq!(figures(&stepper).completed, 1);
    for _ in 0..2 {
        drop(stepper);
        stepper = run.begin(2).unwrap().unwrap();
        go_on(&run, &mut stepper, run.world.clock.0.load(Ordering::SeqCst) + 1_100);
        assert_eq!(figures(&stepper).completed, 1);
    }
    drop(stepper);
    assert_same(&to_the_end(&mut run, 2), &expected);
}

#[test]
fn what_was_in_flight_is_given_to_other_subtasks() {
    let description = description(false);
    let expected = Run::new(&description, 0).plain(1);
    for (before, after) in [(3, 1), (1, 3), (2, 4), (3, 2)] {
        let _failing = on_failure(format!("parallelism {before} and {after}"));
        let (mut run, mut stepper) = stuck(&description, 4, before, Some(0));
        go_on(&run, &mut stepper, 1_100);
        assert_eq!(figures(&stepper).completed, 1);
        drop(stepper);
        assert!(newest(&run).in_flight_bytes() > 0);
        let merges = before > after;
        run.world.full.store(false, Ordering::SeqCst);
        match run.begin(after) {
            Ok(stepper) => drop(stepper),
            // Event time is assigned in between: see the decision record.
            Err(error) if merges => {
                let text = error.to_string();
                assert!(text.contains("'assign'") && text.contains("savepoint"), "{text}");
                assert_same(&to_the_end(&mut run, before), &expected);
                continue;
            }
            Err(error) => panic!("{error}"),
        }
        assert_same(&to_the_end(&mut run, after), &expected);
    }
}

#[test]
fn windows_of_which_some_have_fired_stay_where_they_are() {
    let description = description(true);
    // Which slot runs when is drawn from the seed; in some, one window operator is ahead of another.
    let apart = (5..100).find_map(|seed| {
        let mut run = Run { unaligned: true, calm: true, ..Run::new(&description, seed) };
        assert_eq!(run.process(3, Death::After(3_000)), Fate::Died);
        let newest = run.store().checkpoints().unwrap().into_iter().next()?;
        let window = newest.manifest.operators.into_iter().find(|o| o.uid == "window").unwrap();
        let mut watermarks: Vec<i64> = window.subtasks.iter().map(|subtask| subtask.watermark).collect();
        watermarks.dedup();
        let has_rows = window.subtasks.iter().any(|subtask| subtask.in_flight.is_some());
        (has_rows && watermarks.len() > 1).then_some(run)
    });
    let mut run = apart.expect("a seed with which the window operators are apart");
    let error = run.begin(4).err().expect("refused").to_string();
    assert!(error.contains("'window'") && error.contains("parallelism 4") && error.contains("savepoint"), "{error}");
}

#[test]
fn damage_to_what_was_in_flight_is_found() {
    let description = description(false);
    let (mut run, mut stepper) = stuck(&description, 6, 2, Some(0));
    go_on(&run, &mut stepper, 1_100);
    drop(stepper);
    let manifest = newest(&run);
    let in_flight = manifest.operators.iter().flat_map(|o| &o.subtasks).find_map(|s| s.in_flight.clone()).unwrap();
    let path = in_flight.file.path;
    let mut content = Vec::new();
    let mut whole = tidemill_checkpoint::blobs::Blobs::open(&run.world.store, &path).unwrap().unwrap();
    std::io::Read::read_to_end(&mut whole, &mut content).unwrap();
    let middle = content.len() / 2;
    content[middle] ^= 1;
    run.world.store.damage(&path, Some(content));
    let error = run.begin(2).err().expect("refused").to_string();
    assert!(error.contains(&path) && error.contains("checksum"), "{error}");
}

#[test]
fn a_savepoint_is_aligned_also_where_checkpoints_are_not() {
    let description = description(false);
    let (run, mut stepper) = stuck(&description, 7, 2, Some(0));
    let (answer, answered) = std::sync::mpsc::channel();
    let folder = std::env::temp_dir().join(format!("tidemill-backpressure-{}", std::process::id()));
    let location = folder.display().to_string();
    stepper.savepoint(tidemill_dataflow::SavepointRequest { location, answer }, false).unwrap();
    go_on(&run, &mut stepper, 950);
    assert!(answered.try_recv().is_err() && figures(&stepper).completed == 0, "it waits for the sinks");
    run.world.full.store(false, Ordering::SeqCst);
    let limit = run.world.clock.0.load(Ordering::SeqCst) + 40;
    go_on(&run, &mut stepper, limit);
    let location = answered.try_recv().unwrap().unwrap();
    let savepoint = tidemill_checkpoint::savepoint::read(&location).unwrap();
    std::fs::remove_dir_all(folder).unwrap();
    assert_eq!(savepoint.manifest.in_flight_bytes(), 0);
}
