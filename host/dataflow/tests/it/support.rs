//! A job of memory: sources of given batches, sinks that collect, user code from closures, a clock held in the hand.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use arrow::array::{ArrayRef, AsArray, Int64Array, TimestampMillisecondArray};
use arrow::datatypes::{Int64Type, TimestampMillisecondType};
use tidemill_core::connector::*;
use tidemill_core::graph::JobGraph;
use tidemill_core::ids::{Epoch, SubtaskId};
use tidemill_core::keys::hash_fixed;
use tidemill_core::metrics::TaskMetrics;
use tidemill_core::plan::*;
use tidemill_core::snapshot::StateSpec;
use tidemill_core::state::{KeyedState, StateBackend};
use tidemill_core::time::{Clock, Timestamp};
use tidemill_core::user::*;
use tidemill_core::{Batch, Error, Result};
use tidemill_dataflow::{JobSettings, JobSpec, Stepper};

pub type Row = (i64, i64);

#[derive(Default)]
pub struct ManualClock(pub AtomicI64);

impl Clock for ManualClock {
    fn now(&self) -> Timestamp {
        Timestamp(self.0.load(Ordering::SeqCst))
    }
}

/// Columns `k` (i64) and `t` (timestamp), or as many of them as are asked for.
pub fn batch(rows: &[Row], columns: usize) -> Batch {
    let k: ArrayRef = Arc::new(Int64Array::from(rows.iter().map(|r| r.0).collect::<Vec<_>>()));
    let t: ArrayRef = Arc::new(TimestampMillisecondArray::from(rows.iter().map(|r| r.1).collect::<Vec<_>>()));
    Batch::new(rows.len(), [k, t].into_iter().take(columns).collect(), None).unwrap()
}

pub fn rows(batch: &Batch) -> Vec<Row> {
    let k = batch.column(0).unwrap().as_primitive::<Int64Type>().values().to_vec();
    let t = match batch.columns().get(1) {
        Some(column) => column.as_primitive::<TimestampMillisecondType>().values().to_vec(),
        None => vec![0; k.len()],
    };
    k.into_iter().zip(t).collect()
}

/// What happens to a split: its polls, in order.
#[derive(Clone)]
pub enum Poll {
    Rows(Vec<Row>),
    /// Nothing until the clock reaches it.
    Until(i64),
    Panic,
}

/// Splits, and when each is discovered.
#[derive(Default)]
pub struct MemorySource {
    pub splits: Mutex<Vec<(i64, Vec<Poll>)>>,
    pub ends: bool,
    pub polls: Arc<AtomicU64>,
    pub completed: Arc<AtomicU64>,
}

impl MemorySource {
    pub fn of(splits: Vec<Vec<Poll>>) -> Arc<Self> {
        Arc::new(Self {
            splits: Mutex::new(splits.into_iter().map(|s| (0, s)).collect()),
            ends: true,
            ..Self::default()
        })
    }

    /// One split per list, in batches of `size`.
    pub fn rows(splits: Vec<Vec<Row>>, size: usize) -> Arc<Self> {
        Self::of(splits.iter().map(|s| s.chunks(size).map(|c| Poll::Rows(c.to_vec())).collect()).collect())
    }
}

pub struct Shared(pub Arc<MemorySource>);

impl Source for Shared {
    fn boundedness(&self) -> Boundedness {
        if self.0.ends { Boundedness::Bounded } else { Boundedness::Unbounded }
    }

    fn enumerator(&self, _parallelism: u32) -> Result<Box<dyn SplitEnumerator>> {
        Ok(Box::new(MemoryEnumerator { source: self.0.clone(), given: 0 }))
    }

    fn reader(&self, context: SourceContext) -> Result<Box<dyn SourceReader>> {
        Ok(Box::new(MemoryReader { source: self.0.clone(), context, queue: VecDeque::new(), more: true }))
    }
}

struct MemoryEnumerator {
    source: Arc<MemorySource>,
    given: usize,
}

impl SplitEnumerator for MemoryEnumerator {
    fn discover(&mut self) -> Result<Discovery> {
        let all = self.source.splits.lock().unwrap();
        // The first number of a split is the discovery (0, 1, ...) which finds it.
        let round = self.given as i64;
        self.given += 1;
        let id = |i: usize| SplitId(format!("s{i}"));
        let found = all.iter().enumerate().filter(|(_, s)| s.0 == round);
        let splits = found.map(|(i, _)| Split { id: id(i), description: (i as u64).to_le_bytes().to_vec() }).collect();
        let later = all.iter().any(|s| s.0 > round);
        Ok(Discovery { splits, again_after_ms: (later || !self.source.ends).then_some(100) })
    }

    fn snapshot(&self) -> Result<Vec<u8>> {
        Ok(Vec::new())
    }

    fn restore(&mut self, _snapshot: &[u8]) -> Result<()> {
        Ok(())
    }
}

struct MemoryReader {
    source: Arc<MemorySource>,
    context: SourceContext,
    queue: VecDeque<(SplitId, VecDeque<Poll>)>,
    more: bool,
}

impl SourceReader for MemoryReader {
    fn add_splits(&mut self, splits: Vec<Split>) -> Result<()> {
        for split in splits {
            let index = u64::from_le_bytes(split.description.try_into().unwrap()) as usize;
            let polls = self.source.splits.lock().unwrap()[index].1.clone();
            self.queue.push_back((split.id, polls.into()));
        }
        Ok(())
    }

    fn no_more_splits(&mut self) {
        self.more = false;
    }

    /// Splits in turn.
    fn poll(&mut self) -> Result<ReaderPoll> {
        self.source.polls.fetch_add(1, Ordering::SeqCst);
        let (now, mut until) = (self.context.clock.now().0, None);
        let mut left = self.queue.len();
        while left > 0 {
            left -= 1;
            let (id, mut polls) = self.queue.pop_front().unwrap();
            match polls.pop_front() {
                None => return Ok(ReaderPoll::SplitFinished(id)),
                Some(Poll::Panic) => panic!("reader panics"),
                Some(Poll::Until(at)) if at > now => {
                    until = until.into_iter().chain([Timestamp(at)]).min();
                    polls.push_front(Poll::Until(at));
                    self.queue.push_back((id, polls));
                }
                Some(Poll::Until(_)) => {
                    left += 1;
                    self.queue.push_front((id, polls));
                }
                Some(Poll::Rows(rows)) => {
                    self.queue.push_back((id.clone(), polls));
                    let batch = batch(&rows, self.context.schema.fields().len());
                    let progress = rows.len() as u64;
                    return Ok(ReaderPoll::Batch { split: id, batch, rejected: vec![], progress });
                }
            }
        }
        Ok(if self.queue.is_empty() && !self.more { ReaderPoll::Finished } else { ReaderPoll::Pending(until) })
    }

    fn snapshot(&mut self, _epoch: Epoch) -> Result<Vec<Split>> {
        Ok(Vec::new())
    }

    fn checkpoint_completed(&mut self, _epoch: Epoch) -> Result<()> {
        self.source.completed.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }
}

/// What one sink subtask wrote, and whether it has room.
#[derive(Default)]
pub struct Collected {
    /// Per subtask: its rows in order.
    pub written: Mutex<HashMap<u32, Vec<Row>>>,
    /// Event times, in order of writing.
    pub timestamps: Mutex<Vec<i64>>,
    pub batches: Mutex<Vec<Batch>>,
    pub committed: Mutex<Vec<u32>>,
    pub full: std::sync::atomic::AtomicBool,
    /// Not 0: it has no room two times out of three, as this draws it.
    pub moods: AtomicU64,
}

impl Collected {
    pub fn sorted(&self) -> Vec<Row> {
        let mut all: Vec<Row> = self.written.lock().unwrap().values().flatten().copied().collect();
        all.sort_unstable();
        all
    }
}

pub struct CollectSink(pub Arc<Collected>);

impl Sink for CollectSink {
    fn guarantee(&self) -> Guarantee {
        Guarantee::ExactlyOnce
    }

    fn writer(&self, context: SinkContext) -> Result<Box<dyn SinkWriter>> {
        Ok(Box::new(CollectWriter { to: self.0.clone(), context }))
    }

    fn committer(&self) -> Result<Box<dyn SinkCommitter>> {
        Ok(Box::new(CollectCommitter(self.0.clone())))
    }
}

struct CollectWriter {
    to: Arc<Collected>,
    context: SinkContext,
}

impl SinkWriter for CollectWriter {
    fn ready(&mut self) -> Result<SinkReady> {
        let drawn = self.to.moods.load(Ordering::SeqCst);
        let moody = drawn != 0 && {
            self.to.moods.store(drawn.wrapping_add(1).max(1), Ordering::SeqCst);
            !hash_fixed(drawn).is_multiple_of(3)
        };
        Ok(if moody || self.to.full.load(Ordering::SeqCst) { SinkReady::Full } else { SinkReady::Ready })
    }

    fn write(&mut self, batch: &Batch) -> Result<()> {
        assert_eq!(batch.columns().len(), self.context.schema.fields().len());
        self.to.batches.lock().unwrap().push(batch.clone());
        if let Some(column) = batch.columns().first()
            && column.as_primitive_opt::<Int64Type>().is_some()
        {
            self.to.written.lock().unwrap().entry(self.context.subtask.index.0).or_default().extend(rows(batch));
        }
        self.to.timestamps.lock().unwrap().extend(batch.timestamps().into_iter().flat_map(|t| t.to_vec()));
        Ok(())
    }

    fn prepare(&mut self, _epoch: Epoch) -> Result<Vec<Committable>> {
        Ok(vec![Committable(self.context.subtask.index.0.to_le_bytes().to_vec())])
    }
}

struct CollectCommitter(Arc<Collected>);

impl SinkCommitter for CollectCommitter {
    fn commit(&mut self, committables: &[Committable]) -> Result<()> {
        let indices = committables.iter().map(|c| u32::from_le_bytes(c.0.clone().try_into().unwrap()));
        self.0.committed.lock().unwrap().extend(indices);
        Ok(())
    }
}

type TransformFn = dyn Fn(&str, CallClock, &Batch, &mut Effects) -> Result<(), UserFailure> + Send + Sync;

/// All transforms of a job as one closure, which is told the node's name.
pub struct Code(pub Arc<TransformFn>);

impl UserCodeFactory for Code {
    fn open(&self, _subtask: &SubtaskId, node: &Node, _metrics: &Arc<TaskMetrics>) -> Result<Box<dyn UserCode>> {
        Ok(Box::new(Instance { code: self.0.clone(), name: node.name.clone() }))
    }
}

struct Instance {
    code: Arc<TransformFn>,
    name: String,
}

impl UserCode for Instance {
    fn transform(&mut self, clock: CallClock, _: u32, batch: &Batch, effects: &mut Effects) -> Result<(), UserFailure> {
        (self.code)(&self.name, clock, batch, effects)
    }

    fn process(&mut self, _: CallClock, _: u32, _: &Batch, _: &KeySet<'_>, _: &mut Effects) -> Result<(), UserFailure> {
        Err(UserFailure::Fatal("not here".into()))
    }

    fn on_timers(&mut self, _: CallClock, _: &DueTimers<'_>, _: &mut Effects) -> Result<(), UserFailure> {
        Err(UserFailure::Fatal("not here".into()))
    }

    fn accumulate(&mut self, _: u32, _: &[u32], _: &Batch, _: &ArrayRef) -> Result<ArrayRef, UserFailure> {
        Err(UserFailure::Fatal("not here".into()))
    }

    fn merge(&mut self, _: u32, _: &ArrayRef, _: &ArrayRef) -> Result<ArrayRef, UserFailure> {
        Err(UserFailure::Fatal("not here".into()))
    }

    fn finish(&mut self, _: u32, _: &ArrayRef) -> Result<ArrayRef, UserFailure> {
        Err(UserFailure::Fatal("not here".into()))
    }

    fn memory_bytes(&self) -> usize {
        0
    }
}

struct NoState;

impl StateBackend for NoState {
    fn open(&self, _spec: StateSpec) -> Result<Box<dyn KeyedState>> {
        Err(Error::internal("these jobs keep no state"))
    }
}

/// Builds plans of nodes with the columns `k` and `t`.
pub struct PlanBuilder(Vec<Node>);

impl PlanBuilder {
    pub fn new() -> Self {
        Self(Vec::new())
    }

    fn fields(origin: impl Fn(u32) -> Origin) -> Vec<OutputField> {
        let k = OutputField { field: Field::new("k", DataType::Int64, false), origin: origin(0) };
        let t = OutputField { field: Field::new("t", DataType::Timestamp, false), origin: origin(1) };
        vec![k, t]
    }

    pub fn node(&mut self, name: &str, inputs: Vec<Input>, origin: Option<Origin>, kind: NodeKind) -> u32 {
        let sink = matches!(kind, NodeKind::Sink { .. });
        let fields = Self::fields(|column| origin.unwrap_or(Origin::Input { input: 0, column }));
        let outputs = if sink { vec![] } else { vec![Output { name: "main".into(), fields }] };
        self.0.push(Node { uid: name.into(), name: name.into(), parallelism: None, inputs, outputs, kind });
        self.0.len() as u32 - 1
    }

    pub fn input(&mut self, node: u32, input: Input) {
        self.0[node as usize].inputs.push(input);
    }

    pub fn parallelism(&mut self, node: u32, parallelism: u32) {
        self.0[node as usize].parallelism = Some(parallelism);
    }

    pub fn source(&mut self, binding: &str, event_time: Option<EventTime>) -> u32 {
        self.node(binding, vec![], Some(Origin::New), NodeKind::Source { binding: binding.into(), event_time })
    }

    /// Another port, with the columns of the first.
    pub fn side_output(&mut self, node: u32, name: &str) {
        let outputs = &mut self.0[node as usize].outputs;
        let side = Output { name: name.into(), fields: outputs[0].fields.clone() };
        outputs.push(side);
    }

    pub fn transform(&mut self, name: &str, from: u32, exchange: Exchange) -> u32 {
        let input = Input { node: from, port: 0, exchange, reads: vec![0] };
        self.node(name, vec![input], None, NodeKind::Transform { reads_timestamps: true })
    }

    pub fn union(&mut self, name: &str, from: &[u32]) -> u32 {
        let input = |&node: &u32| Input { node, port: 0, exchange: Exchange::Forward, reads: vec![] };
        self.node(name, from.iter().map(input).collect(), None, NodeKind::Union)
    }

    pub fn sink(&mut self, binding: &str, from: u32, exchange: Exchange) -> u32 {
        let input = Input { node: from, port: 0, exchange, reads: vec![] };
        let name = format!("to {binding} {}", self.0.len());
        self.node(&name, vec![input], None, NodeKind::Sink { binding: binding.into() })
    }

    pub fn graph(self) -> JobGraph {
        JobGraph::from_plan(Plan { version: PLAN_VERSION, name: "job".into(), nodes: self.0 }).unwrap()
    }
}

pub fn event_time(out_of_orderness_ms: u64, idle_after_ms: Option<u64>) -> Option<EventTime> {
    Some(EventTime { column: 1, out_of_orderness_ms, idle_after_ms })
}

pub struct Job {
    pub spec: JobSpec,
    pub out: Arc<Collected>,
    pub letters: Arc<Collected>,
    pub clock: Arc<ManualClock>,
}

/// Everything is handed on by transforms, unless `code` is replaced.
pub fn job(plan: PlanBuilder, parallelism: u32, sources: Vec<(&str, Arc<MemorySource>)>) -> Job {
    let (out, letters, clock) = (Arc::<Collected>::default(), Arc::default(), Arc::<ManualClock>::default());
    let sources = sources.into_iter().map(|(n, s)| (n.to_owned(), Arc::new(Shared(s)) as Arc<dyn Source>)).collect();
    let sink: Arc<dyn Sink> = Arc::new(CollectSink(out.clone()));
    let spec = JobSpec {
        name: "job".into(),
        graph: plan.graph(),
        sources,
        sinks: [("out".to_owned(), sink)].into(),
        dead_letters: None,
        user_code: code(|_, _, _, effects| {
            effects.emissions.push(forward(EmittedRows::All));
            Ok(())
        }),
        state: Arc::new(NoState),
        memory: tidemill_core::memory::JobMemory::unlimited(),
        clock: clock.clone(),
        settings: JobSettings { parallelism, exchange_bytes: 4 << 10, ..JobSettings::default() },
    };
    Job { spec, out, letters, clock }
}

impl Job {
    pub fn with_letters(mut self) -> Self {
        self.spec.dead_letters = Some(Arc::new(CollectSink(self.letters.clone())));
        self
    }

    pub fn step_to_end(&self, seed: u64) -> Result<Stepper> {
        let mut stepper = Stepper::new(self.spec.clone(), seed)?;
        while let Some(at) = stepper.step_until_idle()? {
            self.clock.0.fetch_max(at.0, Ordering::SeqCst);
        }
        assert!(stepper.finished(), "it stands still");
        Ok(stepper)
    }
}

pub fn code(
    code: impl Fn(&str, CallClock, &Batch, &mut Effects) -> Result<(), UserFailure> + Send + Sync + 'static,
) -> Arc<dyn UserCodeFactory> {
    Arc::new(Code(Arc::new(code)))
}

pub fn forward(rows: EmittedRows) -> Emission {
    Emission { port: tidemill_core::ids::Port(0), rows, columns: vec![] }
}

pub fn keys(batch: &Batch) -> Vec<i64> {
    batch.column(0).unwrap().as_primitive::<Int64Type>().values().to_vec()
}
