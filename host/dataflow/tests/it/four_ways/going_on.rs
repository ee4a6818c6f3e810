//! Jobs that end before their input does and go on later: stopped with a checkpoint, from a savepoint, after a death.

use std::sync::atomic::Ordering;
use std::sync::mpsc;

use tidemill_checkpoint::{Origin, Start};
use tidemill_dataflow::{SavepointRequest, Stepped};

use super::plan::*;
use super::ways::{Description, Fate, Output, Run, assert_same, on_failure};
use super::world::Poll;
use super::{all, builtin, in_order, polls, rows, splits};

/// Timers, windows of several panes and a join over the same rows.
fn description() -> Description {
    let mut plan = Plan::default();
    let source = plan.source("in", in_order());
    let process = plan.process("buckets", source);
    let window = plan.window("window", source, sliding(300, 100), 0, builtin());
    let pairs = plan.interval_join(source, (process, 0), -30, 0);
    plan.sink("timers", (process, 0));
    plan.sink("results", (window, 0));
    plan.sink("late", (window, 1));
    plan.sink("pairs", pairs);
    Description { graph: plan.graph(), sources: vec![("in", splits(30))], compared: all, at_least: 0 }
}

#[test]
fn a_job_that_is_stopped_again_and_again_goes_on_each_time() {
    let description = description();
    let expected = Run::new(&description, 0).plain(1);
    for seed in 0..12 {
        let _failing = on_failure(format!("seed {seed}"));
        let mut run = Run { start: Start::GoOn, calm: true, ..Run::new(&description, seed) };
        for parallelism in [2, 1, 3, 3, 4] {
            let Some(mut stepper) = run.begin(parallelism).unwrap() else { break };
            let limit = run.dice.below(400);
            if run.steps(&mut stepper, limit) == Fate::Ended {
                break;
            }
            stepper.stop().unwrap();
            assert_eq!(run.steps(&mut stepper, u64::MAX), Fate::Ended);
        }
        while let Some(mut stepper) = run.begin(2).unwrap() {
            assert_eq!(run.steps(&mut stepper, u64::MAX), Fate::Ended);
        }
        assert_same(&run.output(), &expected);
    }
}

#[test]
fn a_job_goes_on_from_a_savepoint_at_another_parallelism() {
    let description = description();
    let expected = Run::new(&description, 0).plain(1);
    for seed in 0..8 {
        let _failing = on_failure(format!("seed {seed}"));
        let (stops, before, after) = (seed % 2 == 0, 1 + seed as u32 % 3, 1 + (seed as u32 + 1) % 4);
        let folder = format!("tidemill-four-ways-{}-{seed}", std::process::id());
        let location = std::env::temp_dir().join(folder).display().to_string();
        let mut first = Run { calm: true, ..Run::new(&description, seed) };
        let mut stepper = first.begin(before).unwrap().unwrap();
        let limit = first.dice.below(600);
        assert_eq!(first.steps(&mut stepper, limit), Fate::Died, "it goes on");
        let (answer, answered) = mpsc::channel();
        stepper.savepoint(SavepointRequest { location: location.clone(), answer }, stops).unwrap();
        let answer = loop {
            if let Ok(answer) = answered.try_recv() {
                break answer;
            }
            // Step by step: nothing more is committed than what belongs to the savepoint.
            if let Stepped::Idle(Some(at)) = stepper.step_some(1).unwrap() {
                first.world.clock.0.fetch_max(at.0, Ordering::SeqCst);
            }
        };
        assert_eq!(answer.unwrap(), location);
        drop(stepper);
        let start = Start::At(Origin::Savepoint(location.clone()));
        let mut second = Run { calm: true, start, ..Run::new(&description, seed + 100) };
        let mut stepper = second.begin(after).unwrap().unwrap();
        assert_eq!(second.steps(&mut stepper, u64::MAX), Fate::Ended);
        std::fs::remove_dir_all(location).unwrap();
        let mut both: Output = first.output();
        for (row, times) in second.output() {
            *both.entry(row).or_default() += times;
        }
        assert_same(&both, &expected);
    }
}

/// A savepoint that was under way when the job was to be stopped with another one is not that one: what was committed
/// between the two would come again.
#[test]
fn the_savepoint_of_a_stop_is_taken_when_it_stops() {
    let description = description();
    let expected = Run::new(&description, 0).plain(1);
    for seed in 0..4 {
        let _failing = on_failure(format!("seed {seed}"));
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name).display().to_string();
        let mut first = Run { calm: true, ..Run::new(&description, seed) };
        let mut stepper = first.begin(2).unwrap().unwrap();
        let limit = 100 + first.dice.below(300);
        assert_eq!(first.steps(&mut stepper, limit), Fate::Died, "it goes on");
        let (answer, _) = mpsc::channel();
        stepper.savepoint(SavepointRequest { location: at("before"), answer }, false).unwrap();
        // The barriers of the first are under way.
        assert_eq!(first.steps(&mut stepper, 4), Fate::Died, "it goes on");
        let (answer, answered) = mpsc::channel();
        stepper.savepoint(SavepointRequest { location: at("stop"), answer }, true).unwrap();
        assert_eq!(first.steps(&mut stepper, u64::MAX), Fate::Ended);
        assert_eq!(answered.try_recv().unwrap().unwrap(), at("stop"));
        let start = Start::At(Origin::Savepoint(at("stop")));
        let mut second = Run { calm: true, start, ..Run::new(&description, seed + 100) };
        let mut stepper = second.begin(3).unwrap().unwrap();
        assert_eq!(second.steps(&mut stepper, u64::MAX), Fate::Ended);
        let mut both: Output = first.output();
        for (row, times) in second.output() {
            *both.entry(row).or_default() += times;
        }
        assert_same(&both, &expected);
    }
}

/// A split that was ahead when the job died has nothing to say for long. Those after its reader must know nevertheless
/// how far it had come.
#[test]
fn a_silent_split_holds_nothing_back_after_a_restart() {
    let mut plan = Plan::default();
    let source = plan.source("in", in_order());
    let window = plan.window("window", source, tumbling(100), 0, vec![Count]);
    plan.sink("results", (window, 0));
    let slow = rows(31, 0, 100);
    let mut of_slow = polls(&slow[..30]);
    of_slow.push(Poll::Until(1_000));
    of_slow.extend(polls(&slow[30..]));
    of_slow.push(Poll::Until(1_000_000));
    let mut of_ahead = polls(&rows(32, 0, 120));
    of_ahead.push(Poll::Until(1_000_000));
    let sources = vec![("in", vec![(0, of_slow), (0, of_ahead)])];
    let description = Description { graph: plan.graph(), sources, compared: all, at_least: 0 };
    let until = |run: &mut Run<'_>, parallelism, ms| {
        let mut stepper = run.begin(parallelism).unwrap().unwrap();
        while run.world.clock.0.load(Ordering::SeqCst) < ms {
            run.steps(&mut stepper, 20);
        }
    };
    for (before, after) in [(2, 2), (1, 2), (2, 1), (3, 2)] {
        let _failing = on_failure(format!("parallelism {before} and {after}"));
        let mut whole = Run { calm: true, ..Run::new(&description, 7) };
        until(&mut whole, before, 3_000);
        let mut run = Run { calm: true, ..Run::new(&description, 8) };
        until(&mut run, before, 900);
        assert!(!run.output().is_empty() && run.output() != whole.output());
        until(&mut run, after, 3_000);
        assert_same(&run.output(), &whole.output());
    }
}
