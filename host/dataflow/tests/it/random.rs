//! Jobs of random shape, in random orders of steps, with queues of a few bytes and sinks that often have no room.
//!
//! A job is drawn from a number: sources with splits (some found while it runs, some silent for a while), maps that
//! drop, keep or triple rows, side outputs, unions and diamonds, every exchange between every parallelism from 1 to 4.
//! Beside the plan goes what must come out of each sink. Whatever the order of steps: the job comes to its end, each row
//! arrives as often as the shape says, and, where all splits were there from the start, none arrives behind the watermark.
//! (A reader without splits holds no watermark back, so the rows of one that is found later may be late.)
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a failed test is what they mean here"
)]

use std::sync::Arc;
use std::sync::atomic::Ordering;

use tidemill_core::ids::Port;
use tidemill_core::keys::hash_fixed;
use tidemill_core::plan::{Exchange, Input, NodeKind};
use tidemill_core::user::{Emission, EmittedRows, UserCodeFactory};
use tidemill_dataflow::{Stepper, run};

use crate::support::*;

/// No stream grows beyond this, however often rows are tripled and broadcast.
const MAX_ROWS: usize = 3_000;
/// More turns without an end than any of these jobs needs by far: it stands still.
const MAX_TURNS: usize = 20_000;

struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(1);
        (hash_fixed(self.0) % n.max(1) as u64) as usize
    }

    fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }
}

/// A port, what flows from it, and how many subtasks send.
#[derive(Clone)]
struct Stream {
    node: u32,
    port: u32,
    rows: Vec<Row>,
    read: bool,
}

/// A sink, what must come to it, and in how many subtasks.
struct Expected {
    binding: String,
    rows: Vec<Row>,
    subtasks: u32,
}

struct Shape {
    random: Random,
    plan: PlanBuilder,
    streams: Vec<Stream>,
    sources: Vec<(String, Arc<MemorySource>)>,
    expected: Vec<Expected>,
    parallelism: u32,
    /// Splits are all there from the start, and never silent: for threads, whose clock nobody moves.
    still: bool,
    /// Some splits are found later.
    finds: bool,
    next_key: i64,
}

impl Shape {
    fn draw(seed: u64, still: bool) -> Self {
        let mut random = Random(hash_fixed(seed));
        let parallelism = 1 + random.below(4) as u32;
        let (plan, next_key) = (PlanBuilder::new(), 0);
        let (streams, sources, expected) = (Vec::new(), Vec::new(), Vec::new());
        let finds = !still && random.one_in(2);
        let mut shape = Self { random, plan, streams, sources, expected, parallelism, still, finds, next_key };
        (0..1 + shape.random.below(3)).for_each(|_| shape.source());
        for _ in 0..1 + shape.random.below(8) {
            match shape.random.below(5) {
                0 => shape.union(),
                1 => shape.transform("part"),
                2 => shape.transform("triple"),
                3 => shape.transform("third"),
                _ => shape.transform("all"),
            }
        }
        for stream in 0..shape.streams.len() {
            if !shape.streams[stream].read || shape.random.one_in(4) {
                shape.sink(stream);
            }
        }
        shape
    }

    fn parallelism(&mut self, node: u32) -> u32 {
        if self.random.one_in(2) {
            return self.parallelism;
        }
        let parallelism = 1 + self.random.below(4) as u32;
        self.plan.parallelism(node, parallelism);
        parallelism
    }

    fn source(&mut self) {
        let binding = format!("in{}", self.sources.len());
        let node = self.plan.source(&binding, event_time(0, None));
        self.parallelism(node);
        let mut splits = Vec::new();
        let mut rows = Vec::new();
        for _ in 0..self.random.below(6) {
            let round = if self.finds { self.random.below(3) as i64 } else { 0 };
            let polls = self.polls(round * 1_000);
            rows.extend(polls.iter().flat_map(|p| if let Poll::Rows(rows) = p { rows.clone() } else { vec![] }));
            splits.push((round, polls));
        }
        let source = MemorySource::of(vec![]);
        *source.splits.lock().unwrap() = splits;
        self.sources.push((binding, source));
        self.streams.push(Stream { node, port: 0, rows, read: false });
    }

    fn polls(&mut self, mut time: i64) -> Vec<Poll> {
        let mut polls = Vec::new();
        for _ in 0..self.random.below(8) {
            if !self.still && self.random.one_in(5) {
                polls.push(Poll::Until(self.random.below(1_000) as i64));
            }
            let rows = (0..1 + self.random.below(30)).map(|_| {
                time += self.random.below(4) as i64;
                self.next_key += 1;
                (self.next_key, time)
            });
            polls.push(Poll::Rows(rows.collect()));
        }
        polls
    }

    fn pick(&mut self) -> usize {
        self.random.below(self.streams.len())
    }

    /// An exchange to `parallelism` subtasks, the input that has it, and the rows that come through it.
    fn connect(&mut self, stream: usize, parallelism: u32, reads: Vec<u32>) -> (Input, Vec<Row>) {
        self.streams[stream].read = true;
        let Stream { node, port, rows, .. } = self.streams[stream].clone();
        let (exchange, copies) = match self.random.below(6) {
            0 if rows.len() * parallelism as usize <= MAX_ROWS => (Exchange::Broadcast, parallelism as usize),
            1 => (Exchange::Rebalance, 1),
            2 => (Exchange::Hash(vec![0]), 1),
            3 => (Exchange::Hash(vec![]), 1),
            _ => (Exchange::Forward, 1),
        };
        (Input { node, port, exchange, reads }, rows.repeat(copies))
    }

    /// Nodes are made before their inputs are drawn, for their parallelism; so the input is put in afterwards.
    fn node(&mut self, name: &str, from: &[usize], reads: &[u32], kind: NodeKind) -> (u32, Vec<Row>, u32) {
        let node = self.plan.node(name, vec![], None, kind);
        let parallelism = self.parallelism(node);
        let mut rows = Vec::new();
        for &stream in from {
            let (input, more) = self.connect(stream, parallelism, reads.to_vec());
            self.plan.input(node, input);
            rows.extend(more);
        }
        (node, rows, parallelism)
    }

    /// What it does stands in its name.
    fn transform(&mut self, what: &str) {
        let from = self.pick();
        let what = if what == "triple" && self.streams[from].rows.len() * 3 > MAX_ROWS { "all" } else { what };
        let name = format!("{what} {}", self.streams.len());
        let (node, rows, _) = self.node(&name, &[from], &[0], NodeKind::Transform { reads_timestamps: true });
        let keep = |keep: &dyn Fn(i64) -> bool| rows.iter().copied().filter(|r| keep(r.0)).collect::<Vec<Row>>();
        let mut port = |port, rows| self.streams.push(Stream { node, port, rows, read: false });
        match what {
            "triple" => port(0, rows.repeat(3)),
            "third" => port(0, keep(&|k| k % 3 == 0)),
            "part" => {
                self.plan.side_output(node, "odd");
                port(0, keep(&|k| k % 2 == 0));
                port(1, keep(&|k| k % 2 != 0));
            }
            _ => port(0, rows),
        }
    }

    fn union(&mut self) {
        let mut from: Vec<usize> = (0..2 + self.random.below(2)).map(|_| self.pick()).collect();
        from.sort_unstable();
        from.dedup();
        while from.iter().map(|&s| self.streams[s].rows.len()).sum::<usize>() > MAX_ROWS {
            from.pop();
        }
        if from.is_empty() {
            return;
        }
        let name = format!("union {}", self.streams.len());
        let (node, rows, _) = self.node(&name, &from, &[], NodeKind::Union);
        self.streams.push(Stream { node, port: 0, rows, read: false });
    }

    fn sink(&mut self, stream: usize) {
        let binding = format!("out{}", self.expected.len());
        let kind = NodeKind::Sink { binding: binding.clone() };
        let (_, mut rows, subtasks) = self.node(&binding, &[stream], &[], kind);
        rows.sort_unstable();
        self.expected.push(Expected { binding, rows, subtasks });
    }

    /// The job, with a sink of its own for each that is expected.
    fn job(mut self) -> (Job, Vec<(Expected, Arc<Collected>)>) {
        let exchange_bytes = [1, 64, 512, 8_192][self.random.below(4)];
        let moody = self.random.one_in(2) && !self.still;
        let sources = self.sources.iter().map(|(name, source)| (name.as_str(), source.clone())).collect();
        let mut job = job(self.plan, self.parallelism, sources);
        job.spec.settings.exchange_bytes = exchange_bytes;
        job.spec.user_code = user_code(self.finds);
        let mut sinks = Vec::new();
        for (expected, number) in self.expected.into_iter().zip(1..) {
            let collected = Arc::new(Collected::default());
            collected.moods.store(if moody { number << 32 } else { 0 }, Ordering::SeqCst);
            job.spec.sinks.insert(expected.binding.clone(), Arc::new(CollectSink(collected.clone())));
            sinks.push((expected, collected));
        }
        (job, sinks)
    }
}

fn user_code(may_be_late: bool) -> Arc<dyn UserCodeFactory> {
    code(move |name, clock, batch, effects| {
        let times = batch.timestamps().expect("event time goes with the rows");
        let late = !may_be_late && times.iter().any(|t| *t <= clock.watermark.0);
        assert!(!late, "'{name}' has late rows: {times:?} at {clock:?}");
        let rows = |copies: usize, keep: &dyn Fn(i64) -> bool| {
            let kept = keys(batch).into_iter().zip(0_u32..).filter(|(k, _)| keep(*k)).map(|(_, row)| row);
            EmittedRows::Of(kept.collect::<Vec<_>>().repeat(copies).into())
        };
        let mut emit = |port, rows| effects.emissions.push(Emission { port: Port(port), rows, columns: vec![] });
        match name.split(' ').next().unwrap() {
            "triple" => emit(0, rows(3, &|_| true)),
            "third" => emit(0, rows(1, &|k| k % 3 == 0)),
            "part" => {
                emit(0, rows(1, &|k| k % 2 == 0));
                emit(1, rows(1, &|k| k % 2 != 0));
            }
            _ => emit(0, EmittedRows::All),
        }
        Ok(())
    })
}

#[track_caller]
fn check(what: &str, sinks: &[(Expected, Arc<Collected>)]) {
    for (expected, collected) in sinks {
        let binding = &expected.binding;
        assert_eq!(collected.sorted(), expected.rows, "{what}: what came to '{binding}', and what should have");
        let mut committed = collected.committed.lock().unwrap().clone();
        committed.sort_unstable();
        assert_eq!(committed, (0..expected.subtasks).collect::<Vec<_>>(), "{what}: who committed of '{binding}'");
    }
}

#[test]
fn every_shape_comes_to_its_end_in_every_order_of_steps() {
    let mut rows = 0;
    for shape in 0..200 {
        for seed in 0..4 {
            let what = format!("shape {shape}, seed {seed}");
            let (job, sinks) = Shape::draw(shape, false).job();
            let mut stepper = Stepper::new(job.spec.clone(), seed).unwrap();
            for turn in 0.. {
                let until = stepper.step_until_idle().unwrap();
                until.into_iter().for_each(|at| _ = job.clock.0.fetch_max(at.0, Ordering::SeqCst));
                if stepper.finished() {
                    break;
                }
                assert!(turn < MAX_TURNS, "{what} stands still");
            }
            check(&what, &sinks);
            let ends = stepper.tasks().iter().map(|t| t.metrics.watermark.load(Ordering::SeqCst));
            assert!(ends.min() == Some(i64::MAX), "{what}: event time ends everywhere");
            rows += sinks.iter().map(|(e, _)| e.rows.len()).sum::<usize>();
        }
    }
    assert!(rows > 200_000, "the shapes are too small to show anything: {rows} rows");
}

#[test]
fn every_shape_comes_to_its_end_in_threads() {
    for shape in 1_000..1_060 {
        let (job, sinks) = Shape::draw(shape, true).job();
        run(job.spec.clone()).unwrap().wait().unwrap();
        check(&format!("shape {shape}"), &sinks);
    }
}
