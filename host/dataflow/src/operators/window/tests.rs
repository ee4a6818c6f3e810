//! The operators against a slow model that keeps every row and works record by record.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use arrow::array::{Array, AsArray, Float64Array, Int64Array, StringViewArray, TimestampMillisecondArray};
use arrow::compute::cast;
use arrow::datatypes::{DataType as ArrowType, Float64Type, Int64Type};
use tidemill_core::graph::JobGraph;
use tidemill_core::ids::{InputIndex, MaxParallelism, NodeId, SubtaskId, SubtaskIndex};
use tidemill_core::keys::hash_fixed;
use tidemill_core::memory::{JobMemory, ProcessMemory};
use tidemill_core::operator::{DeadLetter, Progress};
use tidemill_core::plan::*;
use tidemill_core::time::{Clock, Timestamp, Watermark};
use tidemill_core::user::{CallClock, DueTimers, Effects, KeySet, UserCode, UserFailure};
use tidemill_state::MemoryBackend;

use super::*;
use crate::operators::Begin;

const LATENESS: i64 = 15;

/// Column indices of the input.
const K: u32 = 0;
const V: u32 = 1;
const F: u32 = 2;

fn field(name: &str, data_type: DataType, nullable: bool) -> Field {
    Field::new(name, data_type, nullable)
}

fn all_aggregates() -> Vec<AggregateFunction> {
    use AggregateFunction::*;
    vec![Count, Sum(V), Min(V), Max(V), Avg(V), Sum(F), Min(F), Max(F), Avg(F)]
}

fn user_aggregate() -> AggregateFunction {
    AggregateFunction::User { accumulator: DataType::Int64, output: DataType::Int64 }
}

pub(super) struct Setup {
    pub(super) windows: Windows,
    pub(super) lateness_ms: i64,
    pub(super) late_port: bool,
    pub(super) keyed: bool,
    pub(super) aggregates: Vec<AggregateFunction>,
    pub(super) batch_rows: usize,
    /// The key in the input is text.
    pub(super) text_keys: bool,
    pub(super) memory: Arc<JobMemory>,
}

impl Setup {
    pub(super) fn new(windows: Windows) -> Self {
        let aggregates = all_aggregates();
        Self {
            windows,
            lateness_ms: 0,
            late_port: true,
            keyed: true,
            aggregates,
            batch_rows: 3,
            text_keys: false,
            memory: JobMemory::unlimited(),
        }
    }

    fn graph(&self) -> JobGraph {
        let input = [
            field("k", if self.text_keys { DataType::Utf8 } else { DataType::Int64 }, false),
            field("v", DataType::Int64, true),
            field("f", DataType::Float64, true),
            field("t", DataType::Timestamp, false),
        ];
        let new = |f: &Field| OutputField { field: f.clone(), origin: Origin::New };
        let source = Node {
            uid: "in".into(),
            name: "in".into(),
            parallelism: None,
            inputs: vec![],
            outputs: vec![tidemill_core::plan::Output { name: "out".into(), fields: input.iter().map(new).collect() }],
            kind: NodeKind::Source {
                binding: "in".into(),
                event_time: Some(EventTime { column: 3, out_of_orderness_ms: 0, idle_after_ms: None }),
            },
        };
        let mut fields = vec![
            OutputField { field: field("start", DataType::Timestamp, false), origin: Origin::WindowStart },
            OutputField { field: field("end", DataType::Timestamp, false), origin: Origin::WindowEnd },
        ];
        if self.keyed {
            fields.push(OutputField { field: input[0].clone(), origin: Origin::Input { input: 0, column: 0 } });
        }
        let source_fields = &source.outputs[0].fields;
        for (i, function) in self.aggregates.iter().enumerate() {
            let (data_type, nullable) = tidemill_core::graph::aggregate_type(function, source_fields).unwrap();
            let origin = Origin::Aggregate(i as u32);
            fields.push(OutputField { field: field(&format!("a{i}"), data_type, nullable), origin });
        }
        let mut outputs = vec![tidemill_core::plan::Output { name: "out".into(), fields }];
        if self.late_port {
            let late = input
                .iter()
                .enumerate()
                .map(|(i, f)| OutputField { field: f.clone(), origin: Origin::Input { input: 0, column: i as u32 } });
            outputs.push(tidemill_core::plan::Output { name: "late".into(), fields: late.collect() });
        }
        let named = |(i, function): (usize, &AggregateFunction)| Aggregate {
            name: format!("a{i}"),
            function: function.clone(),
        };
        let window = Node {
            uid: "w".into(),
            name: "w".into(),
            parallelism: None,
            inputs: vec![Input {
                node: 0,
                port: 0,
                exchange: Exchange::Hash(if self.keyed { vec![K] } else { vec![] }),
                reads: vec![V],
            }],
            outputs,
            kind: NodeKind::Window {
                windows: self.windows,
                allowed_lateness_ms: self.lateness_ms as u64,
                late_port: self.late_port.then_some(1),
                aggregates: self.aggregates.iter().enumerate().map(named).collect(),
            },
        };
        let nodes = vec![source, window];
        JobGraph::from_plan(Plan { version: PLAN_VERSION, name: "test".into(), nodes }).unwrap()
    }

    fn build(&self) -> Box<dyn Operator> {
        self.with(build)
    }

    pub(super) fn sessions(&self) -> sessions::SessionWindows {
        self.with(|build| {
            let (windows, common, aggregates, state) = parts(build)?;
            let Windows::Session { gap_ms } = windows else { panic!("{windows:?}") };
            sessions::SessionWindows::new(common, aggregates, state, gap_ms)
        })
    }

    fn with<T>(&self, make: impl FnOnce(Build<'_>) -> Result<T>) -> T {
        let graph = self.graph();
        let subtask = SubtaskId {
            job: "test".into(),
            node: NodeId(1),
            operator: "w".into(),
            index: SubtaskIndex(0),
            parallelism: 1,
        };
        let context = OperatorContext {
            subtask,
            max_parallelism: MaxParallelism::DEFAULT,
            batch_rows: self.batch_rows,
            clock: Arc::new(Still),
            metrics: Arc::default(),
            memory: self.memory.clone(),
        };
        let (backend, user) = (MemoryBackend::new(), Some(Box::new(SumUser) as Box<dyn UserCode>));
        let begin = Begin::fresh(MaxParallelism::DEFAULT);
        make(Build { graph: &graph, id: NodeId(1), context, backend: &backend, begin, user }).unwrap()
    }
}

struct Still;

impl Clock for Still {
    fn now(&self) -> Timestamp {
        Timestamp(0)
    }
}

/// Sums `v` (nulls as 0); traps at `POISON`, refuses `REFUSED` by name.
struct SumUser;

const POISON: i64 = 666;
const REFUSED: i64 = 777;
/// An accumulator from which on a merge traps.
const POISON_MERGE: i64 = 10_000;

impl UserCode for SumUser {
    fn transform(&mut self, _: CallClock, _: u32, _: &Batch, _: &mut Effects) -> Result<(), UserFailure> {
        unreachable!()
    }

    fn process(&mut self, _: CallClock, _: u32, _: &Batch, _: &KeySet<'_>, _: &mut Effects) -> Result<(), UserFailure> {
        unreachable!()
    }

    fn on_timers(&mut self, _: CallClock, _: &DueTimers<'_>, _: &mut Effects) -> Result<(), UserFailure> {
        unreachable!()
    }

    fn accumulate(
        &mut self,
        _aggregator: u32,
        group_of_row: &[u32],
        batch: &Batch,
        accumulators: &ArrayRef,
    ) -> Result<ArrayRef, UserFailure> {
        let mut sums: Vec<i64> =
            accumulators.as_primitive::<Int64Type>().iter().map(Option::unwrap_or_default).collect();
        let values = batch.columns()[0].as_primitive::<Int64Type>();
        assert_eq!(group_of_row.len(), values.len());
        let mut refused = Vec::new();
        for (i, value) in values.iter().enumerate() {
            match value.unwrap_or(0) {
                POISON => return Err(UserFailure::Trap("poison".into())),
                REFUSED => refused.push((i as u32, "refused".to_owned())),
                v => sums[group_of_row[i] as usize] += v,
            }
        }
        if refused.is_empty() { Ok(Arc::new(Int64Array::from(sums))) } else { Err(UserFailure::Rows(refused)) }
    }

    fn merge(&mut self, _aggregator: u32, left: &ArrayRef, right: &ArrayRef) -> Result<ArrayRef, UserFailure> {
        assert!(!left.is_empty() && left.null_count() + right.null_count() == 0, "merge of none");
        let (left, right) = (left.as_primitive::<Int64Type>(), right.as_primitive::<Int64Type>());
        if left.values().iter().chain(right.values()).any(|&sum| sum >= POISON_MERGE) {
            return Err(UserFailure::Trap("poison".into()));
        }
        Ok(Arc::new(left.values().iter().zip(right.values()).map(|(a, b)| a + b).collect::<Int64Array>()))
    }

    fn finish(&mut self, _aggregator: u32, accumulators: &ArrayRef) -> Result<ArrayRef, UserFailure> {
        assert_eq!(accumulators.null_count(), 0, "finish of none");
        let sums = accumulators.as_primitive::<Int64Type>();
        Ok(Arc::new(sums.values().iter().map(|s| s + 1_000).collect::<Int64Array>()))
    }

    fn memory_bytes(&self) -> usize {
        0
    }
}

/// What came out. Claims to be full after each batch, so that every call is cut into pieces.
#[derive(Default)]
pub(super) struct Collected {
    pub(super) results: Vec<Line>,
    pub(super) late: Vec<Line>,
    pub(super) dead: Vec<DeadLetter>,
    pub(super) largest: usize,
    /// By how much the results' timestamps lie before the ends of their windows.
    pub(super) before_end: BTreeSet<i64>,
}

/// A row, all as floats.
pub(super) type Line = Vec<Option<i64>>;

impl super::Output for Collected {
    fn emit(&mut self, port: Port, batch: Batch) -> Result<()> {
        assert!(!batch.is_empty());
        self.largest = self.largest.max(batch.rows());
        let to = if port == Port(0) { &mut self.results } else { &mut self.late };
        let columns: Vec<Float64Array> = batch.columns().iter().map(as_floats).collect();
        for row in 0..batch.rows() {
            let cell = |c: &Float64Array| c.is_valid(row).then(|| (c.value(row) * 1e6).round() as i64);
            to.push(columns.iter().map(cell).collect());
        }
        if port == Port(0) {
            let ends = cast(&batch.columns()[1], &ArrowType::Int64).unwrap();
            let ends = ends.as_primitive::<Int64Type>().values();
            self.before_end.extend(batch.timestamps().unwrap().iter().zip(ends).map(|(t, end)| end - t));
        }
        Ok(())
    }

    fn is_full(&self) -> bool {
        true
    }

    fn dead_letter(&mut self, letter: DeadLetter) -> Result<()> {
        self.dead.push(letter);
        Ok(())
    }
}

fn as_floats(column: &ArrayRef) -> Float64Array {
    let column = match column.data_type() {
        ArrowType::Timestamp(_, _) => cast(column, &ArrowType::Int64).unwrap(),
        _ => column.clone(),
    };
    cast(&column, &ArrowType::Float64).unwrap().as_primitive::<Float64Type>().clone()
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Row {
    pub(super) k: i64,
    pub(super) v: Option<i64>,
    pub(super) f: Option<f64>,
    pub(super) t: i64,
}

fn batch(rows: &[Row]) -> Batch {
    let times: Vec<i64> = rows.iter().map(|r| r.t).collect();
    let columns: Vec<ArrayRef> = vec![
        Arc::new(rows.iter().map(|r| Some(r.k)).collect::<Int64Array>()),
        Arc::new(rows.iter().map(|r| r.v).collect::<Int64Array>()),
        Arc::new(rows.iter().map(|r| r.f).collect::<Float64Array>()),
        Arc::new(TimestampMillisecondArray::from(times.clone())),
    ];
    Batch::new(rows.len(), columns, Some(times.into())).unwrap()
}

/// Drives to the end of a call.
fn finish(operator: &mut dyn Operator, mut progress: Progress, out: &mut Collected) {
    for _ in 0..1_000_000 {
        if progress == Progress::Done {
            return;
        }
        progress = operator.resume(out).unwrap();
    }
    panic!("it never ends");
}

pub(super) fn process(operator: &mut dyn Operator, rows: &[Row]) -> Collected {
    process_batch(operator, batch(rows))
}

/// With keys that are text: long and short ones, which can be cast back to numbers.
pub(super) fn process_text(operator: &mut dyn Operator, rows: &[Row]) -> Collected {
    let numbers = batch(rows);
    let text = rows.iter().map(|r| format!("{:0>1$}", r.k, 3 + 11 * r.k as usize));
    let mut columns = numbers.columns().to_vec();
    columns[0] = Arc::new(text.map(Some).collect::<StringViewArray>());
    process_batch(operator, Batch::new(rows.len(), columns, numbers.timestamps().cloned()).unwrap())
}

fn process_batch(operator: &mut dyn Operator, batch: Batch) -> Collected {
    let mut out = Collected::default();
    let progress = operator.process(InputIndex(0), batch, &mut out).unwrap();
    finish(operator, progress, &mut out);
    out
}

pub(super) fn advance(operator: &mut dyn Operator, watermark: i64) -> Collected {
    let mut out = Collected::default();
    let progress = operator.on_watermark(Watermark(watermark), &mut out).unwrap();
    finish(operator, progress, &mut out);
    out
}

/// What must come out.
pub(super) struct Model {
    windows: Windows,
    lateness: i64,
    aggregates: Vec<AggregateFunction>,
    keyed: bool,
    watermark: i64,
    /// By end, start and key.
    open: BTreeMap<(i64, i64, i64), Vec<Row>>,
}

impl Model {
    pub(super) fn new(setup: &Setup) -> Self {
        Self {
            windows: setup.windows,
            lateness: setup.lateness_ms,
            aggregates: setup.aggregates.clone(),
            keyed: setup.keyed,
            watermark: i64::MIN,
            open: BTreeMap::new(),
        }
    }

    /// What the watermark reaches when a window with this end fires: a session's last row may come at its very end.
    fn fires_at(&self, end: i64) -> i64 {
        if matches!(self.windows, Windows::Session { .. }) { end } else { end - 1 }
    }

    fn expired(&self, end: i64) -> bool {
        self.fires_at(end) + self.lateness <= self.watermark
    }

    /// Results and late rows.
    pub(super) fn process(&mut self, rows: &[Row]) -> (Vec<Line>, Vec<Line>) {
        let (mut touched, mut late) = (BTreeSet::new(), Vec::new());
        for row in rows {
            let key = if self.keyed { row.k } else { 0 };
            let mut windows = Vec::new();
            match self.windows {
                Windows::Tumbling { size_ms, offset_ms } => windows = spans(row.t, size_ms, size_ms, offset_ms),
                Windows::Sliding { size_ms, slide_ms, offset_ms } => {
                    windows = spans(row.t, size_ms, slide_ms, offset_ms);
                }
                Windows::Session { gap_ms } => {
                    let (mut start, mut end) = (row.t, row.t + gap_ms as i64);
                    let touches: Vec<_> =
                        self.open.keys().filter(|w| w.2 == key && w.1 <= end && w.0 >= start).copied().collect();
                    let mut all = Vec::new();
                    for window in touches {
                        (start, end) = (start.min(window.1), end.max(window.0));
                        all.extend(self.open.remove(&window).unwrap());
                        touched.remove(&window);
                    }
                    if !all.is_empty() {
                        self.open.insert((end, start, key), all);
                    }
                    windows.push((start, end));
                }
            }
            windows.retain(|(_, end)| !self.expired(*end));
            if windows.is_empty() {
                late.push(line([row.t, 0, row.k], row));
            }
            for (start, end) in windows {
                self.open.entry((end, start, key)).or_default().push(*row);
                touched.insert((end, start, key));
            }
        }
        touched.retain(|w| self.fires_at(w.0) <= self.watermark);
        (touched.iter().map(|w| self.result(w)).collect(), late)
    }

    pub(super) fn advance(&mut self, watermark: i64) -> Vec<Line> {
        let times = self.watermark + 1..=watermark;
        let due = self.open.keys().filter(|w| times.contains(&self.fires_at(w.0)));
        let results = due.map(|w| self.result(w)).collect();
        self.watermark = watermark;
        let expired: Vec<_> = self.open.keys().filter(|w| self.expired(w.0)).copied().collect();
        expired.iter().for_each(|w| drop(self.open.remove(w)));
        results
    }

    fn result(&self, window: &(i64, i64, i64)) -> Line {
        let rows = &self.open[window];
        let ints: Vec<f64> = rows.iter().filter_map(|r| r.v).map(|v| v as f64).collect();
        let floats: Vec<f64> = rows.iter().filter_map(|r| r.f).collect();
        let mut line = vec![Some(window.1 as f64), Some(window.0 as f64)];
        if self.keyed {
            line.push(Some(window.2 as f64));
        }
        let of = |c: &u32| if *c == V { &ints } else { &floats };
        for function in &self.aggregates {
            use AggregateFunction::*;
            line.push(match function {
                Count => Some(rows.len() as f64),
                Sum(c) => (!of(c).is_empty()).then(|| of(c).iter().sum()),
                Min(c) => of(c).iter().copied().reduce(f64::min),
                Max(c) => of(c).iter().copied().reduce(f64::max),
                Avg(c) => (!of(c).is_empty()).then(|| of(c).iter().sum::<f64>() / of(c).len() as f64),
                User { .. } => Some(ints.iter().sum::<f64>() + 1_000.0),
            });
        }
        line.into_iter().map(|cell| cell.map(|v| (v * 1e6).round() as i64)).collect()
    }
}

/// The windows of a timestamp, the definition taken literally.
fn spans(t: i64, size: u64, slide: u64, offset: i64) -> Vec<(i64, i64)> {
    let (size, slide) = (size as i64, slide as i64);
    let starts = (t - size + 1..=t).filter(|start| (start - offset).rem_euclid(slide) == 0);
    starts.map(|start| (start, start + size)).collect()
}

/// As the late port has it.
fn line([t, _, k]: [i64; 3], row: &Row) -> Line {
    vec![
        Some(k * 1_000_000),
        row.v.map(|v| v * 1_000_000),
        row.f.map(|f| (f * 1e6).round() as i64),
        Some(t * 1_000_000),
    ]
}

pub(super) fn sorted(mut lines: Vec<Line>) -> Vec<Line> {
    lines.sort();
    lines
}

/// Small random numbers from a seed.
pub(super) struct Dice(pub(super) u64);

impl Dice {
    pub(super) fn roll(&mut self, below: u64) -> i64 {
        self.0 = hash_fixed(self.0);
        ((self.0 >> 20) % below) as i64
    }
}

/// One random run; every call must give exactly what the model gives.
fn check(setup: &Setup, seed: u64) {
    let mut dice = Dice(seed);
    let (mut operator, mut model) = (setup.build(), Model::new(setup));
    let (keys, disorder, step) = (1 + dice.roll(6) as u64, 1 + dice.roll(60) as u64, 1 + dice.roll(4) as u64);
    let (mut now, mut watermark) = (dice.roll(1_000) - 500, i64::MIN);
    for _ in 0..40 {
        let rows: Vec<Row> = (0..1 + dice.roll(12))
            .map(|_| {
                now += dice.roll(step);
                Row {
                    k: dice.roll(keys),
                    v: (dice.roll(4) > 0).then(|| dice.roll(100) - 50),
                    f: (dice.roll(4) > 0).then(|| (dice.roll(100) - 50) as f64 / 2.0),
                    t: now - dice.roll(disorder),
                }
            })
            .collect();
        let (results, late) = model.process(&rows);
        let out = process(operator.as_mut(), &rows);
        assert_eq!(sorted(out.results), sorted(results), "seed {seed}, rows {rows:?} at {watermark}");
        if setup.late_port {
            assert_eq!(out.late, late, "seed {seed}, late rows of {rows:?} at {watermark}");
        }
        assert!(out.dead.is_empty());
        if dice.roll(3) == 0 {
            // Jumps of any length, so that windows without rows and whole sets of windows are passed at once.
            if dice.roll(8) == 0 {
                now += dice.roll(100_000);
            }
            watermark = watermark.max(now - dice.roll(disorder));
            let out = advance(operator.as_mut(), watermark);
            assert!(out.results.windows(2).all(|w| w[0][1] <= w[1][1]), "not in order of the windows' ends");
            assert!(out.largest <= setup.batch_rows);
            let before_end = i64::from(!matches!(setup.windows, Windows::Session { .. }));
            assert!(out.before_end.iter().all(|before| *before == before_end), "{:?}", out.before_end);
            assert_eq!(sorted(out.results), sorted(model.advance(watermark)), "seed {seed}, watermark {watermark}");
        }
    }
    let out = advance(operator.as_mut(), i64::MAX);
    assert_eq!(sorted(out.results), sorted(model.advance(i64::MAX - 1_000)), "seed {seed}, at the end");
}

fn check_all(windows: Windows) {
    for seed in 0..120 {
        let mut setup = Setup::new(windows);
        setup.lateness_ms = if seed % 3 == 0 { 0 } else { LATENESS * (seed as i64 % 5) };
        setup.keyed = seed % 7 != 0;
        setup.late_port = seed % 4 != 0;
        setup.batch_rows = [1, 3, 4_096][seed as usize % 3];
        if seed % 2 == 0 {
            setup.aggregates.push(user_aggregate());
        }
        check(&setup, seed);
    }
}

#[test]
fn tumbling_windows_are_those_of_the_model() {
    check_all(Windows::Tumbling { size_ms: 10, offset_ms: 0 });
    check_all(Windows::Tumbling { size_ms: 7, offset_ms: -3 });
}

#[test]
fn sliding_windows_are_those_of_the_model() {
    check_all(Windows::Sliding { size_ms: 10, slide_ms: 2, offset_ms: 0 });
    check_all(Windows::Sliding { size_ms: 20, slide_ms: 10, offset_ms: 13 });
    check_all(Windows::Sliding { size_ms: 50, slide_ms: 1, offset_ms: 0 });
}

#[test]
fn session_windows_are_those_of_the_model() {
    check_all(Windows::Session { gap_ms: 1 });
    check_all(Windows::Session { gap_ms: 6 });
    check_all(Windows::Session { gap_ms: 30 });
}

/// Wherever batches and watermarks end, a row at the very end of a session is in it: it fires when none can come.
#[test]
fn a_row_at_the_end_of_a_session_belongs_to_it() {
    let mut setup = Setup::new(Windows::Session { gap_ms: 10 });
    setup.aggregates = vec![AggregateFunction::Count];
    let mut operator = setup.build();
    let row = |t| Row { k: 1, v: None, f: None, t };
    let lines = |out: Collected| out.results;
    process(operator.as_mut(), &[row(0)]);
    assert_eq!(lines(advance(operator.as_mut(), 9)), Vec::<Line>::new());
    process(operator.as_mut(), &[row(10)]);
    assert_eq!(lines(advance(operator.as_mut(), 19)), Vec::<Line>::new());
    let out = advance(operator.as_mut(), 20);
    assert_eq!(out.before_end, [0].into(), "a watermark of 19 was handed on: a result at 19 would be late");
    assert_eq!(lines(out), [[0, 20, 1, 2].map(|v| Some(v * 1_000_000)).to_vec()]);
}

/// A poisonous row between two sessions: they must stay two, in the batch that fails and after it.
#[test]
fn a_poisonous_row_does_not_join_sessions() {
    for (value, merges_trap) in [(POISON, false), (REFUSED, false), (1, true)] {
        let mut setup = Setup::new(Windows::Session { gap_ms: 10 });
        setup.lateness_ms = 100;
        setup.aggregates = vec![AggregateFunction::Count, user_aggregate()];
        let mut operator = setup.build();
        let row = |v, t| Row { k: 1, v: Some(v), f: None, t };
        process(operator.as_mut(), &[row(if merges_trap { POISON_MERGE } else { 5 }, 0), row(7, 19)]);
        let out = process(operator.as_mut(), &[row(1, 1), row(value, 10), row(2, 20), Row { k: 2, ..row(3, 50) }]);
        assert_eq!(out.dead.len(), 1, "{:?}", out.dead);
        assert!(out.dead[0].record.contains(&format!("\"v\":{value}")), "{:?}", out.dead[0]);
        let first = if merges_trap { POISON_MERGE + 1 } else { 6 };
        let line = |start: i64, end: i64, k: i64, n: i64, sum: i64| -> Line {
            [start, end, k, n, sum + 1_000].iter().map(|v| Some(v * 1_000_000)).collect()
        };
        let fired = advance(operator.as_mut(), 60).results;
        assert_eq!(fired, [line(0, 11, 1, 2, first), line(19, 30, 1, 2, 9), line(50, 60, 2, 1, 3)]);
    }
}

/// Ten thousand sessions of one key, in no order: the one of a row is found, not searched for.
#[test]
fn very_many_sessions_of_one_key() {
    let mut setup = Setup::new(Windows::Session { gap_ms: 10 });
    setup.aggregates = vec![AggregateFunction::Count];
    setup.batch_rows = 4_096;
    let (mut operator, n) = (setup.build(), 10_000);
    for piece in (0..2 * n).collect::<Vec<i64>>().chunks(2_000) {
        // 7,919 is prime to their number, so each session is met twice, at its start and 5 ms later.
        let row = |i: &i64| Row { k: 1, v: None, f: None, t: i * 7_919 % n * 100 + i / n * 5 };
        process(operator.as_mut(), &piece.iter().map(row).collect::<Vec<_>>());
    }
    let out = advance(operator.as_mut(), i64::MAX);
    let expected = (0..n).map(|i| [i * 100, i * 100 + 15, 1, 2].iter().map(|v| Some(v * 1_000_000)).collect());
    assert_eq!(out.results, expected.collect::<Vec<Line>>());
}

#[test]
fn a_poisonous_row_of_a_user_aggregator_is_set_aside_alone() {
    for windows in [
        Windows::Tumbling { size_ms: 10, offset_ms: 0 },
        Windows::Sliding { size_ms: 10, slide_ms: 5, offset_ms: 0 },
        Windows::Session { gap_ms: 2 },
    ] {
        let mut setup = Setup::new(windows);
        setup.aggregates = vec![AggregateFunction::Count, user_aggregate()];
        let (mut operator, mut model) = (setup.build(), Model::new(&setup));
        let rows: Vec<Row> = (0..100).map(|i| Row { k: i % 7, v: Some(i), f: None, t: i / 3 }).collect();
        let mut poisoned = rows.clone();
        for (row, v) in [(0, POISON), (50, POISON), (51, REFUSED), (99, REFUSED)] {
            poisoned[row].v = Some(v);
        }
        let good: Vec<Row> = poisoned.iter().copied().filter(|r| r.v < Some(POISON)).collect();
        let out = process(operator.as_mut(), &poisoned);
        assert_eq!(out.dead.len(), 4);
        assert!(out.dead[0].record.contains("\"v\":666"), "{:?}", out.dead[0]);
        model.process(&good);
        // A key whose only row is poisonous has no window.
        process(operator.as_mut(), &[Row { k: 1_000, v: Some(POISON), f: None, t: 5 }]);
        assert_eq!(sorted(advance(operator.as_mut(), 1_000).results), sorted(model.advance(1_000)));
    }
}

#[test]
fn absurd_timestamps_are_set_aside_and_stop_nothing() {
    for windows in [
        Windows::Tumbling { size_ms: 10, offset_ms: i64::MIN },
        Windows::Sliding { size_ms: 10, slide_ms: 5, offset_ms: i64::MAX },
        Windows::Session { gap_ms: 10 },
    ] {
        let setup = Setup { lateness_ms: 1_000, ..Setup::new(windows) };
        let mut operator = setup.build();
        let times = [i64::MIN, i64::MIN + 1, 0, TIME_LIMIT_MS, -TIME_LIMIT_MS, TIME_LIMIT_MS + 1, i64::MAX];
        let rows: Vec<Row> = times.iter().map(|&t| Row { k: 1, v: Some(1), f: None, t }).collect();
        let out = process(operator.as_mut(), &rows);
        assert_eq!((out.dead.len(), out.results.len()), (4, 0));
        let fired = advance(operator.as_mut(), i64::MAX).results.len();
        assert!(fired == 3 || fired == 6, "{fired}");
        assert_eq!(process(operator.as_mut(), &rows[2..3]).late.len(), 1, "after the end everything is late");
    }
}

#[test]
fn an_overflowing_sum_fails_with_its_name() {
    let setup = Setup::new(Windows::Tumbling { size_ms: 10, offset_ms: 0 });
    let mut operator = setup.build();
    let row = Row { k: 1, v: Some(i64::MAX), f: None, t: 0 };
    let error = operator.process(InputIndex(0), batch(&[row, row]), &mut Collected::default()).unwrap_err();
    assert!(error.to_string().contains("'a1' overflowed"), "{error}");
}

#[test]
fn rows_without_event_time_are_refused_with_the_mend() {
    let setup = Setup::new(Windows::Tumbling { size_ms: 10, offset_ms: 0 });
    let untimed = batch(&[Row { k: 1, v: None, f: None, t: 0 }]).with_timestamps(None).unwrap();
    let error = setup.build().process(InputIndex(0), untimed, &mut Collected::default()).unwrap_err();
    assert!(error.to_string().contains("operator 'w'") && error.to_string().contains(".watermark("), "{error}");
}

#[test]
fn what_windows_keep_beside_their_state_is_counted_and_bounded() {
    let sliding = Windows::Sliding { size_ms: 40, slide_ms: 10, offset_ms: 0 };
    for windows in [sliding, Windows::Session { gap_ms: 20 }] {
        // The state itself is not counted in it here.
        let memory = ProcessMemory::new(Some(1 << 20));
        let setup = Setup { memory: memory.job("w"), batch_rows: 4_096, ..Setup::new(windows) };
        let mut operator = setup.build();
        let rows = |keys: i64| (0..keys).map(|k| Row { k, v: None, f: None, t: 5 }).collect::<Vec<_>>();
        let held = || memory.held().of(Owner::State);
        process(&mut *operator, &rows(100));
        advance(&mut *operator, 10);
        assert!((1_000..400_000).contains(&held()), "{windows:?}: {}", held());
        // A sliding window's panes are merged when it fires.
        let mut out = Collected::default();
        let rows: Vec<Row> = rows(100_000).into_iter().map(|row| Row { t: 15, ..row }).collect();
        let mut call = operator.process(InputIndex(0), batch(&rows), &mut out);
        if call.is_ok() {
            call = operator.on_watermark(Watermark(20), &mut out);
        }
        while let Ok(Progress::More) = call {
            call = operator.resume(&mut out);
        }
        let refused = call.unwrap_err();
        assert_eq!(refused.kind(), tidemill_core::ErrorKind::Limit);
        assert!(refused.message().contains("job 'w' holds"), "{refused}");
        drop(operator);
        assert_eq!(held(), 0);
    }
}
