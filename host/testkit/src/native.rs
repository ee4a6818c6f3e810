//! The code of a job, linked into this process, as the engine runs user code.
//!
//! The counterpart of `tidemill-wasm`. What a call costs here beside the user's code is what the contract costs: text is
//! laid out with offsets, and what is emitted is copied once. Panics are caught and are what traps are in the sandbox.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use arrow::array::ArrayRef;
use arrow::buffer::ScalarBuffer;
use arrow::datatypes::Field as ArrowField;
use tidemill::Flow;
use tidemill::abi::{
    self, BatchView, ColumnView, Failure, HostCalls, KeySetView, NodeRuntime, OwnedColumn, TimersView,
};
use tidemill::flow::build;
use tidemill_core::Batch;
use tidemill_core::error::{Error, ErrorKind, Result};
use tidemill_core::ids::{Port, SubtaskId};
use tidemill_core::metrics::TaskMetrics;
use tidemill_core::types::{arrow_field, arrow_type};
use tidemill_core::user::{
    CallClock, CollectionChange, CollectionUpdate, DueTimers, Effects, Emission, EmittedRows, KeySet, ReadCollections,
    StateUpdate, TimeDomain, TimerUpdate, UserCode, UserCodeFactory, UserFailure,
};
use tidemill_plan::{AggregateFunction, Node, NodeKind, Origin, Plan, State, StateKind};

use crate::lift;
use crate::lower::Lowered;

type Job = Arc<dyn Fn(&mut Flow) + Send + Sync>;

/// The code of a job, linked into this process.
#[derive(Clone)]
pub struct NativeCode {
    job: Job,
    parameters: Vec<(String, String)>,
}

impl NativeCode {
    /// Of a job's function.
    pub fn new(job: impl Fn(&mut Flow) + Send + Sync + 'static) -> Self {
        Self { job: Arc::new(job), parameters: Vec::new() }
    }

    /// With a parameter of the job.
    pub fn parameter(mut self, name: &str, value: &str) -> Self {
        self.parameters.push((name.to_owned(), value.to_owned()));
        self
    }

    /// The job's plan, with this name.
    ///
    /// # Errors
    /// What is wrong with the job.
    pub fn plan(&self, name: &str) -> Result<Plan> {
        Ok(self.build(name)?.plan)
    }

    fn build(&self, name: &str) -> Result<tidemill::flow::Built> {
        build(name, |flow| (self.job)(flow), &self.parameters).map_err(|e| Error::invalid(format!("job '{name}': {e}")))
    }

    fn runtime(&self, subtask: &SubtaskId) -> Result<Box<dyn NodeRuntime>> {
        let built = self.build(&subtask.job)?;
        let runtime = built.runtimes.into_iter().nth(subtask.node.index()).flatten();
        runtime.ok_or_else(|| Error::new(ErrorKind::UserCode, "it has no code of the user's").at(subtask, "open"))
    }
}

impl UserCodeFactory for NativeCode {
    fn open(&self, subtask: &SubtaskId, node: &Node, metrics: &Arc<TaskMetrics>) -> Result<Box<dyn UserCode>> {
        let new = |o: &&tidemill_plan::OutputField| o.origin == Origin::New;
        let fields = |o: &tidemill_plan::Output| o.fields.iter().filter(new).map(|f| arrow_field(&f.field)).collect();
        let mut shapes = Shapes { ports: node.outputs.iter().map(fields).collect(), ..Shapes::default() };
        let of =
            |data_type: &tidemill_plan::DataType, nullable| ArrowField::new("value", arrow_type(data_type), nullable);
        match &node.kind {
            NodeKind::Process { states, .. } => {
                let key = |s: &State| match &s.kind {
                    StateKind::Map { key } | StateKind::Broadcast { key } => Some(of(key, false)),
                    _ => None,
                };
                shapes.states = states.iter().map(|s| (of(&s.data_type, true), key(s))).collect();
            }
            NodeKind::Window { aggregates, .. } => {
                let user = |f: &AggregateFunction| match f {
                    AggregateFunction::User { accumulator, output } => Some((of(accumulator, false), of(output, true))),
                    _ => None,
                };
                shapes.aggregators = aggregates.iter().map(|a| user(&a.function)).collect();
            }
            _ => {}
        }
        Ok(Box::new(NativeInstance {
            code: self.clone(),
            runtime: Some(self.runtime(subtask)?),
            subtask: subtask.clone(),
            shapes,
            metrics: Arc::clone(metrics),
        }))
    }
}

/// The types of what a node's code hands over.
#[derive(Default)]
struct Shapes {
    /// Per port, its new columns.
    ports: Vec<Vec<ArrowField>>,
    /// Per state, its value (or item), and of maps its key.
    states: Vec<(ArrowField, Option<ArrowField>)>,
    /// Per aggregate, the accumulator and the result of a user aggregator.
    aggregators: Vec<Option<(ArrowField, ArrowField)>>,
}

struct NativeInstance {
    code: NativeCode,
    /// Absent after a panic: then it is made anew.
    runtime: Option<Box<dyn NodeRuntime>>,
    subtask: SubtaskId,
    shapes: Shapes,
    metrics: Arc<TaskMetrics>,
}

impl NativeInstance {
    fn call(
        &mut self,
        rows: usize,
        collections: Option<Arc<dyn ReadCollections>>,
        effects: &mut Effects,
        run: impl FnOnce(&mut dyn NodeRuntime, &mut dyn HostCalls) -> Result<(), Failure>,
    ) -> Result<(), UserFailure> {
        self.metrics.crossings.add(1);
        let mut runtime = match self.runtime.take() {
            Some(runtime) => runtime,
            None => self.code.runtime(&self.subtask).map_err(|e| UserFailure::Fatal(e.to_string()))?,
        };
        let mut calls = Recorder { effects, shapes: &self.shapes, rows, collections, fault: None };
        let result = catch_unwind(AssertUnwindSafe(|| run(runtime.as_mut(), &mut calls)));
        let fault = calls.fault;
        let result = match result {
            Err(panic) => {
                let panicked = || format!("it panicked: {}", panic_message(panic.as_ref()));
                return Err(UserFailure::Trap(fault.unwrap_or_else(panicked)));
            }
            Ok(result) => result,
        };
        self.runtime = Some(runtime);
        match (result, fault) {
            (Err(Failure::Retry(message)), _) => Err(UserFailure::Retry(message)),
            (Err(Failure::Rows(rows)), _) => Err(UserFailure::Rows(rows)),
            (Err(Failure::Fatal(message)), _) => Err(UserFailure::Fatal(message)),
            (Ok(()), Some(fault)) => Err(UserFailure::Trap(fault)),
            (Ok(()), None) => Ok(()),
        }
    }

    /// A call of an aggregator: its result is one column.
    fn aggregate(
        &mut self,
        aggregator: u32,
        groups: usize,
        finish: bool,
        run: impl FnOnce(&mut dyn NodeRuntime, &mut dyn HostCalls) -> Result<(), Failure>,
    ) -> Result<ArrayRef, UserFailure> {
        let shape = self.shapes.aggregators.get(aggregator as usize).and_then(Option::as_ref);
        let Some((accumulator, output)) = shape else {
            return Err(UserFailure::Fatal(format!("aggregate {aggregator} is none of the user's")));
        };
        let field = if finish { output } else { accumulator }.clone();
        self.shapes.ports = vec![vec![field]];
        let mut effects = Effects::default();
        self.call(groups, None, &mut effects, run)?;
        let column = effects.emissions.pop().and_then(|e| e.columns.into_iter().next());
        match column {
            Some(column) if column.len() == groups => Ok(column),
            _ => Err(UserFailure::Trap(format!("aggregate {aggregator} did not answer {groups} values"))),
        }
    }
}

impl UserCode for NativeInstance {
    fn transform(
        &mut self,
        clock: CallClock,
        input: u32,
        batch: &Batch,
        effects: &mut Effects,
    ) -> Result<(), UserFailure> {
        let columns = lowered(batch.columns())?;
        let views = columns.views();
        let view = batch_view(batch, &views);
        self.call(batch.rows(), None, effects, |node, host| node.transform(call_clock(clock), input, &view, host))
    }

    fn process(
        &mut self,
        clock: CallClock,
        input: u32,
        batch: &Batch,
        keys: &KeySet<'_>,
        effects: &mut Effects,
    ) -> Result<(), UserFailure> {
        let (columns, states) = (lowered(batch.columns())?, lowered(keys.states)?);
        let (views, state_views) = (columns.views(), states.views());
        let collections = keys.collections.clone();
        let (view, keys) = (batch_view(batch, &views), key_set_view(keys, &state_views));
        let clock = call_clock(clock);
        self.call(batch.rows(), collections, effects, |node, host| node.process(clock, input, &view, &keys, host))
    }

    fn on_timers(
        &mut self,
        clock: CallClock,
        timers: &DueTimers<'_>,
        effects: &mut Effects,
    ) -> Result<(), UserFailure> {
        let (columns, states) = (lowered(timers.key_columns)?, lowered(timers.keys.states)?);
        let (key_columns, state_views) = (columns.views(), states.views());
        let view = TimersView {
            domain: match timers.domain {
                TimeDomain::Event => abi::TimeDomain::Event,
                TimeDomain::Processing => abi::TimeDomain::Processing,
            },
            timestamps: timers.timestamps.inner().as_slice(),
            key_columns: &key_columns,
            keys: key_set_view(&timers.keys, &state_views),
        };
        let rows = timers.timestamps.len();
        let collections = timers.keys.collections.clone();
        self.call(rows, collections, effects, |node, host| node.on_timers(call_clock(clock), &view, host))
    }

    fn accumulate(
        &mut self,
        aggregator: u32,
        group_of_row: &[u32],
        batch: &Batch,
        accumulators: &ArrayRef,
    ) -> Result<ArrayRef, UserFailure> {
        let groups = accumulators.len();
        let (columns, before) = (lowered(batch.columns())?, lowered(std::slice::from_ref(accumulators))?);
        let (views, before) = (columns.views(), before.views());
        let view = batch_view(batch, &views);
        let group_of_row = bytes(group_of_row);
        self.aggregate(aggregator, groups, false, |node, host| {
            node.accumulate(aggregator, groups, group_of_row, &view, &before, host)
        })
    }

    fn merge(&mut self, aggregator: u32, left: &ArrayRef, right: &ArrayRef) -> Result<ArrayRef, UserFailure> {
        let groups = left.len();
        let (left, right) = (lowered(std::slice::from_ref(left))?, lowered(std::slice::from_ref(right))?);
        let (left, right) = (left.views(), right.views());
        self.aggregate(aggregator, groups, false, |node, host| node.merge(aggregator, groups, &left, &right, host))
    }

    fn finish(&mut self, aggregator: u32, accumulators: &ArrayRef) -> Result<ArrayRef, UserFailure> {
        let groups = accumulators.len();
        let accumulators = lowered(std::slice::from_ref(accumulators))?;
        let accumulators = accumulators.views();
        self.aggregate(aggregator, groups, true, |node, host| node.finish(aggregator, groups, &accumulators, host))
    }

    fn memory_bytes(&self) -> usize {
        0
    }
}

/// Makes effects of the calls of user code. The first fault is kept; then nothing takes effect.
struct Recorder<'e> {
    effects: &'e mut Effects,
    shapes: &'e Shapes,
    rows: usize,
    collections: Option<Arc<dyn ReadCollections>>,
    fault: Option<String>,
}

impl Recorder<'_> {
    fn note<T>(&mut self, result: Result<T, String>) -> Option<T> {
        match result {
            Ok(value) => Some(value),
            Err(fault) => {
                self.fault.get_or_insert(fault);
                None
            }
        }
    }

    fn emission(&mut self, port: u32, count: usize, rows: EmittedRows, columns: &[ColumnView<'_>]) {
        let shapes = self.shapes;
        let fields = shapes.ports.get(port as usize).ok_or_else(|| format!("it has no port {port}"));
        let arrays = fields.and_then(|fields| lift::arrays(fields, count, columns));
        if let Some(columns) = self.note(arrays) {
            self.effects.emissions.push(Emission { port: Port(port), rows, columns });
        }
    }

    /// The field of a state's value (or item), and of a map's key.
    fn state(&self, state: u32) -> Result<&(ArrowField, Option<ArrowField>), String> {
        self.shapes.states.get(state as usize).ok_or_else(|| format!("it has no state {state}"))
    }

    fn map_key(&self, state: u32) -> Result<&ArrowField, String> {
        self.state(state)?.1.as_ref().ok_or_else(|| format!("state {state} is no map"))
    }

    fn change(&mut self, state: u32, keys: &[u32], change: Result<CollectionChange, String>) {
        if let Some(change) = self.note(change) {
            let keys = keys.to_vec().into();
            self.effects.collections.push(CollectionUpdate { state: state as usize, keys, change });
        }
    }

    /// What is read; a column without bytes after a fault, which then counts.
    fn answer(&mut self, read: Result<ArrayRef, String>) -> Vec<OwnedColumn> {
        let lowered = read.and_then(|array| Lowered::of(&[array]));
        let Some(lowered) = self.note(lowered) else { return vec![OwnedColumn::default(); 4] };
        let owned = |c: &ColumnView<'_>| OwnedColumn {
            validity: c.validity.to_vec(),
            offsets: c.offsets.to_vec(),
            values: c.values.to_vec(),
        };
        lowered.views().iter().map(owned).collect()
    }

    fn reader(&self) -> Result<Arc<dyn ReadCollections>, String> {
        self.collections.clone().ok_or_else(|| "there is nothing to read in this call".to_owned())
    }

    fn timers(&mut self, domain: abi::TimeDomain, delete: bool, keys: &[u32], timestamps: &[i64]) {
        let domain = match domain {
            abi::TimeDomain::Event => TimeDomain::Event,
            abi::TimeDomain::Processing => TimeDomain::Processing,
        };
        let (keys, timestamps) = (keys.to_vec().into(), timestamps.to_vec().into());
        self.effects.timers.push(TimerUpdate { domain, delete, keys, timestamps });
    }
}

impl HostCalls for Recorder<'_> {
    fn forward(&mut self, port: u32, rows: Option<&[u32]>, columns: &[ColumnView<'_>]) {
        let (count, rows) = match rows {
            None => (self.rows, EmittedRows::All),
            Some(rows) => (rows.len(), EmittedRows::Of(ScalarBuffer::from(rows.to_vec()))),
        };
        self.emission(port, count, rows, columns);
    }

    fn emit(&mut self, port: u32, rows: u32, timestamps: &[i64], columns: &[ColumnView<'_>]) {
        let rows = rows as usize;
        let timestamps = (!timestamps.is_empty()).then(|| ScalarBuffer::from(timestamps.to_vec()));
        self.emission(port, rows, EmittedRows::New { rows, timestamps }, columns);
    }

    fn put(&mut self, state: u32, keys: &[u32], values: &[ColumnView<'_>]) {
        let shapes = self.shapes;
        let field = shapes.states.get(state as usize).ok_or_else(|| format!("it has no state {state}"));
        let values = field.and_then(|(field, _)| lift::arrays(std::slice::from_ref(field), keys.len(), values));
        if let Some(values) = self.note(values).and_then(|v| v.into_iter().next()) {
            let keys = keys.to_vec().into();
            self.effects.states.push(StateUpdate { state: state as usize, keys, values });
        }
    }

    fn append(&mut self, state: u32, keys: &[u32], items: &[ColumnView<'_>]) {
        let items = self.state(state).and_then(|(field, _)| one(field, keys.len(), items));
        self.change(state, keys, items.map(CollectionChange::Append));
    }

    fn insert(&mut self, state: u32, keys: &[u32], map_keys: &[ColumnView<'_>], values: &[ColumnView<'_>]) {
        let map_keys = self.map_key(state).and_then(|field| one(field, keys.len(), map_keys));
        let values = self.state(state).and_then(|(field, _)| one(field, keys.len(), values));
        let change = map_keys.and_then(|map_keys| Ok(CollectionChange::Insert { map_keys, values: values? }));
        self.change(state, keys, change);
    }

    fn remove(&mut self, state: u32, keys: &[u32], map_keys: &[ColumnView<'_>]) {
        let map_keys = self.map_key(state).and_then(|field| one(field, keys.len(), map_keys));
        self.change(state, keys, map_keys.map(CollectionChange::Remove));
    }

    fn clear(&mut self, state: u32, keys: &[u32]) {
        self.change(state, keys, Ok(CollectionChange::Clear));
    }

    fn read(&mut self, state: u32, keys: &[u32]) -> Vec<OwnedColumn> {
        let read = self.reader().and_then(|reader| read_all(reader.read(state as usize, keys, READ_BYTES)));
        self.answer(read)
    }

    fn get(&mut self, state: u32, keys: &[u32], map_keys: &[ColumnView<'_>]) -> Vec<OwnedColumn> {
        let map_keys = self.map_key(state).and_then(|field| one(field, keys.len(), map_keys));
        let read = map_keys.and_then(|map_keys| {
            self.reader().and_then(|reader| read_all(reader.get(state as usize, keys, &map_keys, READ_BYTES)))
        });
        self.answer(read)
    }

    fn set_timers(&mut self, domain: abi::TimeDomain, keys: &[u32], timestamps: &[i64]) {
        self.timers(domain, false, keys, timestamps);
    }

    fn delete_timers(&mut self, domain: abi::TimeDomain, keys: &[u32], timestamps: &[i64]) {
        self.timers(domain, true, keys, timestamps);
    }
}

/// What is read at once; in the sandbox it is a limit of the call's.
const READ_BYTES: usize = 1 << 30;

fn read_all(read: Result<Option<ArrayRef>>) -> Result<ArrayRef, String> {
    read.map_err(|e| e.to_string())?.ok_or_else(|| format!("it reads more than {READ_BYTES} bytes at once"))
}

/// One column.
fn one(field: &ArrowField, rows: usize, columns: &[ColumnView<'_>]) -> Result<ArrayRef, String> {
    let mut arrays = lift::arrays(std::slice::from_ref(field), rows, columns)?;
    arrays.pop().ok_or_else(|| "it has no column".to_owned())
}

fn lowered(arrays: &[ArrayRef]) -> Result<Lowered, UserFailure> {
    Lowered::of(arrays).map_err(UserFailure::Fatal)
}

fn batch_view<'a>(batch: &'a Batch, columns: &'a [ColumnView<'a>]) -> BatchView<'a> {
    let timestamps = batch.timestamps().map_or(&[][..], |t| t.inner().as_slice());
    BatchView { rows: batch.rows(), timestamps, columns }
}

fn key_set_view<'a>(keys: &KeySet<'a>, states: &'a [ColumnView<'a>]) -> KeySetView<'a> {
    KeySetView { keys: keys.keys, key_of_row: bytes(keys.key_of_row), states }
}

fn bytes(numbers: &[u32]) -> &[u8] {
    arrow::datatypes::ToByteSlice::to_byte_slice(numbers)
}

fn call_clock(clock: CallClock) -> abi::CallClock {
    abi::CallClock { watermark: clock.watermark.0, processing_time: clock.processing_time.0 }
}

fn panic_message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("without a message")
}
