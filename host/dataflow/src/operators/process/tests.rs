//! The process operator against a model that takes one row and one timer at a time.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicI64, Ordering};

use arrow::array::{Array, AsArray, Int64Array};
use arrow::datatypes::Int64Type;
use tidemill_core::graph::JobGraph;
use tidemill_core::ids::{MaxParallelism, NodeId, Port, SubtaskId, SubtaskIndex};
use tidemill_core::operator::{DeadLetter, OperatorContext};
use tidemill_core::plan;
use tidemill_core::user::{DueTimers, Effects, Emission, EmittedRows, KeySet, StateUpdate, TimerUpdate, UserFailure};
use tidemill_state::MemoryBackend;

use super::*;
use crate::operators::Begin;

mod end;
mod ttl;

const INT: plan::DataType = plan::DataType::Int64;

// ---- The job: rows (key, op, arg); port 0 emits them with n; port 1 emits what timers make: (key, time, n). ----

fn graph(inputs: usize, ttl: Option<plan::Ttl>) -> JobGraph {
    let field = |name: &str, origin| plan::OutputField { field: plan::Field::new(name, INT, false), origin };
    let new = |names: &[&str]| plan::Output {
        name: names.join("-"),
        fields: names.iter().map(|name| field(name, plan::Origin::New)).collect(),
    };
    let node = |uid: &str, inputs, outputs, kind| plan::Node {
        uid: uid.into(),
        name: uid.into(),
        parallelism: None,
        inputs,
        outputs,
        kind,
    };
    let source = |i: usize| {
        let kind = NodeKind::Source { binding: format!("in{i}"), event_time: None };
        node(&format!("source{i}"), vec![], vec![new(&["key", "op", "arg"])], kind)
    };
    let mut nodes: Vec<_> = (0..inputs).map(source).collect();
    let from = |i: usize| plan::Input {
        node: i as u32,
        port: 0,
        exchange: plan::Exchange::Hash(vec![0]),
        reads: vec![0, 1, 2],
    };
    let copied = field("key", plan::Origin::Input { input: 0, column: 0 });
    let mut rows = plan::Output { name: "rows".into(), fields: vec![copied, field("n", plan::Origin::New)] };
    if inputs == 2 {
        rows = new(&["k", "n"]);
    }
    let state = plan::State { ttl, ..plan::State::value("n", INT) };
    let kind = NodeKind::Process { reads_timestamps: false, states: vec![state] };
    nodes.push(node("p", (0..inputs).map(from).collect(), vec![rows, new(&["key", "time", "n"])], kind));
    for port in 0..2 {
        let input = plan::Input { node: inputs as u32, port, exchange: plan::Exchange::Forward, reads: vec![] };
        let kind = NodeKind::Sink { binding: format!("out{port}") };
        nodes.push(node(&format!("sink{port}"), vec![input], vec![], kind));
    }
    JobGraph::from_plan(plan::Plan { version: plan::PLAN_VERSION, name: "test".into(), nodes }).unwrap()
}

#[derive(Default)]
struct HandClock(AtomicI64);

impl Clock for HandClock {
    fn now(&self) -> Timestamp {
        Timestamp(self.0.load(Ordering::Relaxed))
    }
}

#[derive(Default)]
struct Collected {
    /// Per row, in order: (key, n).
    rows: Vec<(i64, i64)>,
    /// Per fired timer, in order: (key, time, n).
    timers: Vec<(i64, i64, i64)>,
    letters: Vec<DeadLetter>,
    /// Whether to be full after each emission.
    narrow: bool,
    full: bool,
}

fn ints(batch: &Batch, column: usize) -> Vec<i64> {
    batch.column(column).unwrap().as_primitive::<Int64Type>().values().to_vec()
}

impl Output for Collected {
    fn emit(&mut self, port: Port, batch: Batch) -> Result<()> {
        self.full = self.narrow;
        if port == Port(0) {
            self.rows.extend(ints(&batch, 0).into_iter().zip(ints(&batch, 1)));
        } else {
            let times = ints(&batch, 1);
            assert_eq!(batch.timestamps().unwrap().to_vec(), times, "a timer's rows have its time");
            self.timers.extend((0..batch.rows()).map(|i| (ints(&batch, 0)[i], times[i], ints(&batch, 2)[i])));
        }
        Ok(())
    }

    fn is_full(&self) -> bool {
        self.full
    }

    fn dead_letter(&mut self, letter: DeadLetter) -> Result<()> {
        self.letters.push(letter);
        Ok(())
    }
}

// ---- The user's code: rows are commands. ----

/// n + 1.
const COUNT: i64 = 0;
/// A timer at arg, in event time.
const SET: i64 = 1;
const DELETE: i64 = 2;
/// No n any more.
const CLEAR: i64 = 3;
const TRAP: i64 = 4;
const REFUSE: i64 = 5;
/// A timer at arg, in processing time.
const SET_PROCESSING: i64 = 6;
const RETRY: i64 = 7;
/// n = arg, which says what the key's timers do.
const STORE: i64 = 8;

/// What timers do, by n: n < 100: n + 1.
const TIMER_TRAPS: i64 = 100;
/// Sets another one 10 later, and n falls to the next lower one until it is this.
const TIMER_CHAINS: i64 = 200;
/// Sets itself again.
const TIMER_LOOPS: i64 = 300;
const TIMER_CLEARS: i64 = 400;
/// Deletes the timer 10 later.
const TIMER_DELETES: i64 = 500;
/// From here on as below 100.
const BEYOND_ORDERS: i64 = 1_000;

struct Commands {
    busy: u32,
    calls: Arc<Mutex<Vec<usize>>>,
}

fn timer(domain: TimeDomain, delete: bool, key: u32, time: i64) -> TimerUpdate {
    TimerUpdate { domain, delete, keys: vec![key].into(), timestamps: vec![time].into() }
}

/// Takes effects in the middle of a call, to be sure that nothing of a failed one is kept.
fn spoil(effects: &mut Effects, keys: &KeySet<'_>) {
    let all: Vec<u32> = (0..keys.keys as u32).collect();
    let values = Arc::new(Int64Array::from(vec![-1; keys.keys]));
    effects.states.push(StateUpdate { state: 0, keys: all.into(), values });
    effects.timers.push(timer(TimeDomain::Event, false, 0, 1));
}

fn states(keys: &KeySet<'_>) -> Vec<Option<i64>> {
    assert_eq!(keys.states.len(), 1);
    assert_eq!(keys.states[0].len(), keys.keys);
    keys.states[0].as_primitive::<Int64Type>().iter().collect()
}

/// Puts those that changed.
fn put(effects: &mut Effects, before: &[Option<i64>], after: &[Option<i64>]) {
    let changed: Vec<u32> = (0..before.len() as u32).filter(|&k| before[k as usize] != after[k as usize]).collect();
    let values: Int64Array = changed.iter().map(|&k| after[k as usize]).collect();
    effects.states.push(StateUpdate { state: 0, keys: changed.into(), values: Arc::new(values) });
}

impl UserCode for Commands {
    fn transform(&mut self, _: CallClock, _: u32, _: &Batch, _: &mut Effects) -> Result<(), UserFailure> {
        Err(UserFailure::Fatal("not a transform".into()))
    }

    fn process(
        &mut self,
        _clock: CallClock,
        input: u32,
        batch: &Batch,
        keys: &KeySet<'_>,
        effects: &mut Effects,
    ) -> Result<(), UserFailure> {
        let (key, op, arg) = (ints(batch, 0), ints(batch, 1), ints(batch, 2));
        self.calls.lock().unwrap().push(batch.rows());
        assert!(batch.timestamps().is_none(), "they are not read");
        let before = states(keys);
        let mut n = before.clone();
        let mut out = Vec::new();
        let mut refused = Vec::new();
        for row in 0..batch.rows() {
            let number = keys.key_of_row[row];
            let state = &mut n[number as usize];
            match op[row] {
                COUNT => *state = Some(state.unwrap_or(0) + 1 + i64::from(input) * 1000),
                SET => effects.timers.push(timer(TimeDomain::Event, false, number, arg[row])),
                DELETE => effects.timers.push(timer(TimeDomain::Event, true, number, arg[row])),
                SET_PROCESSING => effects.timers.push(timer(TimeDomain::Processing, false, number, arg[row])),
                CLEAR => *state = None,
                STORE => *state = Some(arg[row]),
                REFUSE => refused.push((row as u32, format!("refused {}", key[row]))),
                RETRY if self.busy > 0 => {
                    self.busy -= 1;
                    spoil(effects, keys);
                    return Err(UserFailure::Retry("busy".into()));
                }
                RETRY => {}
                _ => {
                    spoil(effects, keys);
                    return Err(UserFailure::Trap("unreachable".into()));
                }
            }
            out.push(state.unwrap_or(0));
        }
        if !refused.is_empty() {
            spoil(effects, keys);
            return Err(UserFailure::Rows(refused));
        }
        put(effects, &before, &n);
        let mut columns: Vec<ArrayRef> = vec![Arc::new(Int64Array::from(out))];
        if input == 1 || self.calls.lock().unwrap().first() == Some(&0) {
            columns.insert(0, Arc::new(Int64Array::from(key)));
        }
        effects.emissions.push(Emission { port: Port(0), rows: EmittedRows::All, columns });
        Ok(())
    }

    fn on_timers(
        &mut self,
        clock: CallClock,
        timers: &DueTimers<'_>,
        effects: &mut Effects,
    ) -> Result<(), UserFailure> {
        let key = timers.key_columns[0].as_primitive::<Int64Type>().values().to_vec();
        assert_eq!(key.len(), timers.keys.keys);
        let before = states(&timers.keys);
        let mut n = before.clone();
        let (mut keys, mut out) = (Vec::new(), Vec::new());
        for (i, &time) in timers.timestamps.iter().enumerate() {
            let number = timers.keys.key_of_row[i];
            assert!(timers.domain == TimeDomain::Processing || time <= clock.watermark.0);
            let state = &mut n[number as usize];
            match state.unwrap_or(0) {
                TIMER_TRAPS => {
                    spoil(effects, &timers.keys);
                    return Err(UserFailure::Trap("unreachable".into()));
                }
                TIMER_LOOPS => effects.timers.push(timer(timers.domain, false, number, time)),
                TIMER_CLEARS => *state = None,
                TIMER_DELETES => effects.timers.push(timer(timers.domain, true, number, time + 10)),
                chain if chain > TIMER_CHAINS && chain < TIMER_LOOPS => {
                    effects.timers.push(timer(timers.domain, false, number, time + 10));
                    *state = Some(chain - 1);
                }
                other => *state = Some(other + 1),
            }
            keys.push(key[number as usize]);
            out.push(state.unwrap_or(0));
        }
        put(effects, &before, &n);
        let columns: Vec<ArrayRef> = vec![
            Arc::new(Int64Array::from(keys)),
            Arc::new(Int64Array::new(timers.timestamps.clone(), None)),
            Arc::new(Int64Array::from(out)),
        ];
        // One timer's new rows have its time without saying so.
        let rows = match timers.timestamps.len() {
            1 => EmittedRows::New { rows: 1, timestamps: None },
            _ => EmittedRows::All,
        };
        effects.emissions.push(Emission { port: Port(1), rows, columns });
        Ok(())
    }

    fn accumulate(&mut self, _: u32, _: &[u32], _: &Batch, a: &ArrayRef) -> Result<ArrayRef, UserFailure> {
        Ok(a.clone())
    }

    fn merge(&mut self, _: u32, left: &ArrayRef, _: &ArrayRef) -> Result<ArrayRef, UserFailure> {
        Ok(left.clone())
    }

    fn finish(&mut self, _: u32, a: &ArrayRef) -> Result<ArrayRef, UserFailure> {
        Ok(a.clone())
    }

    fn memory_bytes(&self) -> usize {
        0
    }
}

// ---- The operator under test. ----

struct Bench {
    operator: Box<dyn Operator>,
    out: Collected,
    clock: Arc<HandClock>,
    metrics: Arc<TaskMetrics>,
    calls: Arc<Mutex<Vec<usize>>>,
}

impl Bench {
    fn new(inputs: usize, batch_rows: usize) -> Self {
        Self::of(inputs, batch_rows, None)
    }

    fn of(inputs: usize, batch_rows: usize, ttl: Option<plan::Ttl>) -> Self {
        let graph = graph(inputs, ttl);
        let (clock, metrics) = (Arc::new(HandClock::default()), Arc::new(TaskMetrics::default()));
        let id = NodeId(inputs as u32);
        let subtask =
            SubtaskId { job: "test".into(), node: id, operator: "p".into(), index: SubtaskIndex(0), parallelism: 1 };
        // With two inputs all columns are new; the code is told by a first call of 0 rows.
        let calls = Arc::new(Mutex::new(if inputs == 2 { vec![0] } else { vec![] }));
        let operator = super::build(Build {
            graph: &graph,
            id,
            context: OperatorContext {
                subtask,
                max_parallelism: MaxParallelism::DEFAULT,
                batch_rows,
                clock: clock.clone(),
                metrics: metrics.clone(),
                memory: tidemill_core::memory::JobMemory::unlimited(),
            },
            begin: Begin::fresh(MaxParallelism::DEFAULT),
            backend: &MemoryBackend::new(),
            user: Some(Box::new(Commands { busy: 3, calls: calls.clone() })),
        })
        .unwrap();
        Self { operator, out: Collected::default(), clock, metrics, calls }
    }

    fn try_finish(&mut self, mut progress: Result<Progress>) -> Result<()> {
        while progress? == Progress::More {
            if let Some(at) = self.operator.next_timer() {
                self.clock.0.fetch_max(at.0, Ordering::Relaxed);
            }
            self.out.full = false;
            progress = self.operator.resume(&mut self.out);
        }
        Ok(())
    }

    fn try_rows(&mut self, input: u32, rows: &[(i64, i64, i64)]) -> Result<()> {
        let column = |f: fn(&(i64, i64, i64)) -> i64| Arc::new(Int64Array::from_iter_values(rows.iter().map(f))) as _;
        let columns: Vec<ArrayRef> = vec![column(|r| r.0), column(|r| r.1), column(|r| r.2)];
        let times = vec![5; rows.len()].into();
        let batch = Batch::new(rows.len(), columns, Some(times)).unwrap();
        let progress = self.operator.process(InputIndex(input), batch, &mut self.out);
        self.try_finish(progress)
    }

    fn rows(&mut self, rows: &[(i64, i64, i64)]) {
        self.try_rows(0, rows).unwrap();
    }

    fn watermark(&mut self, watermark: i64) {
        let progress = self.operator.on_watermark(Watermark(watermark), &mut self.out);
        self.try_finish(progress).unwrap();
    }

    fn processing_time(&mut self, now: i64) {
        self.clock.0.store(now, Ordering::Relaxed);
        while self.operator.next_timer().is_some_and(|at| at.0 <= now) {
            let progress = self.operator.on_processing_time(Timestamp(now), &mut self.out);
            self.try_finish(progress).unwrap();
        }
    }

    fn entries(&self) -> u64 {
        self.metrics.state_entries.get()
    }
}

// ---- Cases. ----

#[test]
fn counts_by_key_in_order() {
    let mut bench = Bench::new(1, 4096);
    bench.rows(&[(7, COUNT, 0), (8, COUNT, 0), (7, COUNT, 0)]);
    bench.rows(&[(8, COUNT, 0), (9, COUNT, 0), (8, COUNT, 0)]);
    assert_eq!(bench.out.rows, [(7, 1), (8, 1), (7, 2), (8, 2), (9, 1), (8, 3)]);
    assert_eq!(bench.entries(), 3);
}

#[test]
fn timers_fire_by_time_then_in_the_order_they_were_set_and_once() {
    let mut bench = Bench::new(1, 4096);
    bench.rows(&[(1, SET, 30), (2, SET, 10), (3, SET, 20), (1, SET, 10), (2, SET, 10), (4, SET, 10)]);
    bench.rows(&[(3, DELETE, 20), (5, SET, 20), (6, SET, 20), (3, SET, 20), (9, DELETE, 99)]);
    assert!(bench.out.timers.is_empty());
    bench.watermark(9);
    assert!(bench.out.timers.is_empty());
    bench.watermark(20);
    let fired: Vec<_> = bench.out.timers.iter().map(|t| (t.1, t.0)).collect();
    assert_eq!(fired, [(10, 2), (10, 1), (10, 4), (20, 5), (20, 6), (20, 3)]);
    bench.watermark(i64::MAX);
    assert_eq!(bench.out.timers[6..], [(1, 30, 2)]);
}

#[test]
fn a_timer_in_the_past_fires_after_the_batch_that_sets_it() {
    let mut bench = Bench::new(1, 4096);
    bench.watermark(100);
    bench.rows(&[(1, SET, 50), (1, COUNT, 0)]);
    assert_eq!(bench.out.timers, [(1, 50, 2)]);
}

#[test]
fn processing_time_timers_follow_the_clock() {
    let mut bench = Bench::new(1, 4096);
    bench.rows(&[(1, SET_PROCESSING, 30), (2, SET_PROCESSING, 10), (1, SET, 5)]);
    assert_eq!(bench.operator.next_timer(), Some(Timestamp(10)));
    bench.processing_time(9);
    assert!(bench.out.timers.is_empty());
    bench.processing_time(10);
    assert_eq!(bench.out.timers, [(2, 10, 1)]);
    bench.watermark(i64::MAX);
    assert_eq!(bench.out.timers[1..], [(1, 5, 1)], "event time does not fire them");
    bench.processing_time(31);
    assert_eq!(bench.out.timers[2..], [(1, 30, 2)]);
    assert_eq!(bench.operator.next_timer(), None);
}

#[test]
fn a_key_with_several_due_timers_sees_what_each_changed() {
    let mut bench = Bench::new(1, 4096);
    bench.rows(&[(1, SET, 10), (1, SET, 20), (2, SET, 15), (1, SET, 30)]);
    bench.watermark(100);
    assert_eq!(bench.out.timers, [(1, 10, 1), (2, 15, 1), (1, 20, 2), (1, 30, 3)]);
    bench.rows(&[(3, STORE, TIMER_DELETES), (3, SET, 110), (3, SET, 120), (3, SET, 130)]);
    bench.watermark(200);
    assert_eq!(bench.out.timers[4..], [(3, 110, 500), (3, 130, 500)]);
}

/// The stand-in code takes some numbers as orders (100: trap), so a count of timers has to begin beyond them.
#[test]
fn very_many_timers_of_one_key_fire_once_and_in_order() {
    let timers = 20_000;
    let mut bench = Bench::new(1, 4096);
    bench.rows(&[(1, STORE, BEYOND_ORDERS)]);
    for first in (0..timers).step_by(4_000) {
        // Set in an order of their own: 7,919 is prime to their number.
        bench.rows(&(first..first + 4_000).map(|i| (1, SET, i * 7_919 % timers)).collect::<Vec<_>>());
    }
    assert_eq!(bench.entries(), 1 + timers as u64);
    bench.watermark(timers);
    assert_eq!(bench.out.timers, (0..timers).map(|t| (1, t, BEYOND_ORDERS + t + 1)).collect::<Vec<_>>());
    assert!(bench.out.letters.is_empty(), "{:?}", bench.out.letters.first());
    assert_eq!(bench.entries(), 1);
}

#[test]
fn timers_that_timers_set_fire_in_the_same_watermark() {
    let mut bench = Bench::new(1, 4096);
    bench.rows(&[(1, STORE, TIMER_CHAINS + 3), (1, SET, 10), (1, SET, 25)]);
    bench.watermark(35);
    let times: Vec<_> = bench.out.timers.iter().map(|t| t.1).collect();
    assert_eq!(times, [10, 20, 25, 30, 35], "three chained ones among the two");
}

#[test]
fn an_endless_chain_of_timers_is_an_error_and_no_step_is_endless() {
    let mut bench = Bench::new(1, 4096);
    bench.rows(&[(1, STORE, TIMER_LOOPS), (1, SET, 10)]);
    let progress = bench.operator.on_watermark(Watermark(10), &mut bench.out).unwrap();
    assert_eq!(progress, Progress::More);
    assert_eq!(bench.out.timers.len(), CALLS_PER_STEP);
    let error = bench.try_finish(Ok(progress)).unwrap_err();
    assert!(error.message().contains("due again"), "{error}");

    let mut bench = Bench::new(1, 4096);
    bench.rows(&[(1, STORE, TIMER_LOOPS), (1, SET_PROCESSING, 10)]);
    bench.clock.0.store(10, Ordering::Relaxed);
    let progress = bench.operator.on_processing_time(Timestamp(10), &mut bench.out).unwrap();
    assert_eq!(progress, Progress::Done, "rows have their turn");
    assert_eq!(bench.operator.next_timer(), Some(Timestamp(10)));
}

#[test]
fn a_poisonous_timer_is_set_aside_and_the_others_fire_once() {
    let mut bench = Bench::new(1, 4096);
    let mut rows: Vec<_> = (0..50).map(|key| (key, SET, 10 + key % 2)).collect();
    rows.extend([(13, STORE, TIMER_TRAPS), (14, STORE, TIMER_TRAPS)]);
    bench.rows(&rows);
    bench.watermark(20);
    let mut expected: Vec<_> = (0..50).filter(|k| ![13, 14].contains(k)).map(|k| (k, 10 + k % 2, 1)).collect();
    expected.sort_by_key(|t| t.1);
    assert_eq!(bench.out.timers, expected);
    assert_eq!(bench.out.letters.len(), 2);
    let letter = &bench.out.letters[0];
    assert_eq!((letter.record.as_str(), letter.timestamp), (r#"{"key":14}"#, Some(Timestamp(10))));
    assert!(letter.reason.contains("timer") && letter.reason.contains("unreachable"), "{}", letter.reason);
    bench.watermark(i64::MAX);
    assert_eq!(bench.out.letters.len(), 2, "it is gone");
}

#[test]
fn nothing_of_a_failed_call_takes_effect() {
    let mut bench = Bench::new(1, 4096);
    let mut rows: Vec<_> = (0..1000).map(|i| (i % 10, COUNT, 0)).collect();
    rows[300] = (77, TRAP, 0);
    rows[301] = (78, REFUSE, 0);
    rows[999] = (77, TRAP, 0);
    bench.rows(&rows);
    let mut n = [0; 10];
    let expected: Vec<_> = (0..1000)
        .filter(|i| ![300, 301, 999].contains(i))
        .map(|i| {
            n[i % 10] += 1;
            ((i % 10) as i64, n[i % 10])
        })
        .collect();
    assert_eq!(bench.out.rows, expected);
    assert_eq!(bench.out.letters.len(), 3);
    assert_eq!(bench.entries(), 10, "no entry of keys that were only set aside");
    bench.watermark(i64::MAX);
    assert!(bench.out.timers.is_empty());
}

#[test]
fn a_retry_waits_and_then_takes_effect_once() {
    let mut bench = Bench::new(1, 4096);
    bench.rows(&[(1, COUNT, 0), (1, RETRY, 0)]);
    assert_eq!(bench.out.rows, [(1, 1), (1, 1)]);
    assert_eq!(bench.calls.lock().unwrap().len(), 4, "busy three times");
    assert!(bench.clock.now() > Timestamp(0));
}

#[test]
fn two_inputs_share_the_state() {
    let mut bench = Bench::new(2, 4096);
    bench.try_rows(0, &[(1, COUNT, 0), (2, COUNT, 0)]).unwrap();
    bench.try_rows(1, &[(2, COUNT, 0), (1, SET, 7)]).unwrap();
    bench.try_rows(0, &[(2, COUNT, 0)]).unwrap();
    assert_eq!(bench.out.rows, [(1, 1), (2, 1), (2, 1002), (1, 1), (2, 1003)]);
    bench.watermark(7);
    assert_eq!(bench.out.timers, [(1, 7, 2)]);
}

#[test]
fn keys_whose_state_was_cleared_leave_nothing() {
    let mut bench = Bench::new(1, 4096);
    let mut bytes = Vec::new();
    for round in 0..200 {
        let keys = round * 500..(round + 1) * 500;
        // Some never have a state, some are cleared by a row, some by their timer.
        let rows: Vec<_> = keys
            .flat_map(|key| match key % 3 {
                0 => [(key, SET, key), (key, DELETE, key)],
                1 => [(key, COUNT, 0), (key, CLEAR, 0)],
                _ => [(key, STORE, TIMER_CLEARS), (key, SET, round)],
            })
            .collect();
        bench.rows(&rows);
        bench.watermark(round);
        assert_eq!(bench.entries(), 0, "round {round}");
        bytes.push(bench.metrics.state_bytes.get());
    }
    // A leak would be one of 100,000 keys; what grows a little are capacities.
    assert!(bytes[199] <= 2 * bytes[10], "{} and {} bytes", bytes[10], bytes[199]);
    assert!(!bench.out.timers.is_empty());
}

#[test]
fn full_output_ends_a_step() {
    let mut bench = Bench::new(1, 10);
    bench.out.narrow = true;
    bench.rows(&(0..100).map(|key| (key, SET, key / 50)).collect::<Vec<_>>());
    assert_eq!(bench.operator.on_watermark(Watermark(5), &mut bench.out).unwrap(), Progress::More);
    assert_eq!(bench.out.timers.len(), 10, "a batch of timers, then it waits");
    bench.try_finish(Ok(Progress::More)).unwrap();
    assert_eq!(bench.out.timers.len(), 100);
}

// ---- Random commands against a model. ----

#[derive(Default)]
struct Model {
    n: BTreeMap<i64, i64>,
    timers: BTreeMap<(i64, u64), i64>,
    sequence: u64,
    watermark: i64,
    rows: Vec<(i64, i64)>,
    fired: Vec<(i64, i64, i64)>,
    aside: usize,
}

impl Model {
    fn set(&mut self, key: i64, time: i64) {
        if !self.timers.iter().any(|((t, _), k)| (*t, *k) == (time, key)) {
            self.sequence += 1;
            self.timers.insert((time, self.sequence), key);
        }
    }

    fn row(&mut self, (key, op, arg): (i64, i64, i64)) {
        match op {
            COUNT => *self.n.entry(key).or_default() += 1,
            SET => self.set(key, arg),
            DELETE => self.timers.retain(|(t, _), k| (*t, *k) != (arg, key)),
            CLEAR => {
                self.n.remove(&key);
            }
            STORE => {
                self.n.insert(key, arg);
            }
            _ => {
                self.aside += 1;
                return;
            }
        }
        self.rows.push((key, self.n.get(&key).copied().unwrap_or(0)));
    }

    fn fire(&mut self) {
        while let Some((&(time, sequence), &key)) = self.timers.first_key_value() {
            if time > self.watermark {
                break;
            }
            self.timers.remove(&(time, sequence));
            let n = self.n.get(&key).copied().unwrap_or(0);
            match n {
                TIMER_TRAPS => {
                    self.aside += 1;
                    continue;
                }
                TIMER_CLEARS => {
                    self.n.remove(&key);
                }
                TIMER_DELETES => self.timers.retain(|(t, _), k| (*t, *k) != (time + 10, key)),
                chain if chain > TIMER_CHAINS && chain < TIMER_LOOPS => {
                    self.set(key, time + 10);
                    self.n.insert(key, chain - 1);
                }
                other => {
                    self.n.insert(key, other + 1);
                }
            }
            self.fired.push((key, time, self.n.get(&key).copied().unwrap_or(0)));
        }
    }
}

#[test]
fn random_commands_agree_with_a_model() {
    for seed in 0..60u64 {
        let mut random = seed;
        let mut next = |below: u64| {
            random = random.wrapping_add(0x9E37_79B9_7F4A_7C15);
            tidemill_core::keys::hash_fixed(random) % below
        };
        let mut bench = Bench::new(1, 1 + next(40) as usize);
        bench.out.narrow = seed % 2 == 0;
        let mut model = Model { watermark: i64::MIN, ..Model::default() };
        for _ in 0..30 {
            let rows: Vec<_> = (0..next(60))
                .map(|_| {
                    let (key, time) = (next(12) as i64, next(80) as i64);
                    let behaviour = [TIMER_TRAPS, TIMER_CHAINS + 3, TIMER_CLEARS, TIMER_DELETES, 1][next(5) as usize];
                    match next(40) {
                        0..12 => (key, COUNT, 0),
                        12..22 => (key, SET, time),
                        22..26 => (key, DELETE, time),
                        26..30 => (key, CLEAR, 0),
                        30..38 => (key, STORE, behaviour),
                        38 => (key, TRAP, 0),
                        _ => (key, REFUSE, 0),
                    }
                })
                .collect();
            bench.rows(&rows);
            rows.into_iter().for_each(|row| model.row(row));
            model.fire();
            if next(2) == 0 {
                model.watermark = model.watermark.max(0) + next(15) as i64;
                bench.watermark(model.watermark);
                model.fire();
            }
        }
        assert_eq!(bench.out.rows, model.rows, "seed {seed}");
        // Across keys, a timer that a timer sets may come after later ones of the same call.
        let by_key = |mut timers: Vec<(i64, i64, i64)>| {
            timers.sort_by_key(|t| t.0);
            timers
        };
        assert_eq!(by_key(bench.out.timers), by_key(model.fired), "seed {seed}");
        assert_eq!(bench.out.letters.len(), model.aside, "seed {seed}");
        assert_eq!(bench.metrics.state_entries.get(), (model.n.len() + model.timers.len()) as u64, "seed {seed}");
    }
}
