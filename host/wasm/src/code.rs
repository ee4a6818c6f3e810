//! User code in the sandbox, as the engine sees it: one instance per operator subtask, made when it is first called and
//! again after a trap.
//!
//! Invariant: a call that fails leaves no effects, and one that traps leaves no instance.

use std::hash::{Hash, Hasher};
use std::sync::Arc;

use arrow::array::{Array, ArrayRef};
use arrow::datatypes::{Field as ArrowField, ToByteSlice};
use tidemill_core::ids::SubtaskId;
use tidemill_core::metrics::TaskMetrics;
use tidemill_core::process::Surroundings;
use tidemill_core::user::{
    CallClock, DueTimers, Effects, KeySet, ReadCollections, TimeDomain, UserCode, UserCodeFactory, UserFailure,
};
use tidemill_core::{Batch, Error, ErrorKind, Result};
use tidemill_plan::Node;
use wasmtime::Store;
use wasmtime::component::{Instance, TypedFunc};
use xxhash_rust::xxh3::Xxh3;

use crate::component::Component;
use crate::contract::interface_of;
use crate::crossing::{self, Answer, Clock, Column, Failure, Subtask};
use crate::lower::Lowering;
use crate::shape::Shape;
use crate::state::{Call, HostState, Identity};
use crate::trap;

/// Reasons of rows go to the dead-letter output; longer ones are cut.
const REASON_BYTES: usize = 1 << 10;

/// The user code of one job, in the sandbox.
pub struct WasmCode {
    component: Component,
    config: Vec<(String, String)>,
    surroundings: Surroundings,
}

impl WasmCode {
    /// Of a component, which is given `config` (the job's parameters) when its instances are opened.
    pub fn new(component: Component, config: Vec<(String, String)>) -> Self {
        Self { component, config, surroundings: Surroundings::default() }
    }
}

impl UserCodeFactory for WasmCode {
    fn open(&self, subtask: &SubtaskId, node: &Node, metrics: &Arc<TaskMetrics>) -> Result<Box<dyn UserCode>> {
        let Some(interface) = interface_of(node) else {
            return Err(Error::internal(format!("'{}' runs no user code", node.uid)).at(subtask, "open"));
        };
        let mut code = Sandboxed {
            starter: Starter {
                component: self.component.clone(),
                config: self.config.clone(),
                surroundings: self.surroundings.clone(),
                identity: Identity {
                    job: subtask.job.clone(),
                    operator: subtask.operator.clone(),
                    node: subtask.node,
                    index: subtask.index,
                },
                subtask: Subtask {
                    node: subtask.node.0,
                    index: subtask.index.0,
                    parallelism: subtask.parallelism,
                    seed: seed(subtask, node),
                },
                interface,
                shape: Arc::new(Shape::of(node)),
                metrics: Arc::clone(metrics),
            },
            live: None,
            first: Lowering::default(),
            second: Lowering::default(),
            row_bytes: 0,
        };
        // Now rather than at the first call, so that a job which can't be opened does not start.
        code.live = Some(code.starter.start().map_err(|e| e.at(subtask, "open"))?);
        Ok(Box::new(code))
    }

    fn within(&self, surroundings: &Surroundings) -> Option<Arc<dyn UserCodeFactory>> {
        let (component, config) = (self.component.clone(), self.config.clone());
        Some(Arc::new(Self { component, config, surroundings: surroundings.clone() }))
    }
}

/// The same for every attempt of a subtask.
fn seed(subtask: &SubtaskId, node: &Node) -> u64 {
    let mut hasher = Xxh3::new();
    (&subtask.job, &node.uid, subtask.index.0).hash(&mut hasher);
    hasher.finish()
}

/// Makes instances of one subtask.
struct Starter {
    component: Component,
    config: Vec<(String, String)>,
    surroundings: Surroundings,
    identity: Identity,
    subtask: Subtask,
    interface: &'static str,
    shape: Arc<Shape>,
    metrics: Arc<TaskMetrics>,
}

type Timestamps<'a> = &'a [u8];
type Columns<'a> = &'a [Column<'a>];
type Transform<'a> = TypedFunc<(Clock, u32, crossing::Batch<'a>), Answer>;
type Process<'a> = TypedFunc<(Clock, u32, crossing::Batch<'a>, crossing::KeySet<'a>), Answer>;
type OnTimers<'a> = TypedFunc<(Clock, crossing::TimeDomain, Timestamps<'a>, Columns<'a>, crossing::KeySet<'a>), Answer>;
type Accumulate<'a> = TypedFunc<(u32, u32, &'a [u8], crossing::Batch<'a>, Columns<'a>), Answer>;
type Merge<'a> = TypedFunc<(u32, u32, Columns<'a>, Columns<'a>), Answer>;
type Finish<'a> = TypedFunc<(u32, u32, Columns<'a>), Answer>;

/// The functions of the node's interface, looked up once.
enum Functions {
    Transform(Transform<'static>),
    Keyed(Process<'static>, OnTimers<'static>),
    Aggregate(Accumulate<'static>, Merge<'static>, Finish<'static>),
}

struct Live {
    store: Store<HostState>,
    functions: Functions,
    close: TypedFunc<(), Answer>,
}

impl Starter {
    /// A fresh instance, opened.
    fn start(&self) -> Result<Live> {
        let (component, seed) = (&self.component, self.subtask.seed);
        let failed = |error: wasmtime::Error, state: &mut HostState| match trap::refused(&error, state) {
            Some(refused) => refused,
            None => Error::new(ErrorKind::UserCode, trap::explain(&error, state))
                .mend("Correct the code that runs when the operator is opened."),
        };
        let shape = Arc::clone(&self.shape);
        let mut store =
            component.store(self.identity.clone(), shape, Arc::clone(&self.metrics), seed, &self.surroundings);
        let instance = component.instantiate(&mut store).map_err(|e| failed(e, store.data_mut()))?;
        let functions = self.functions(&mut store, &instance)?;
        let open =
            component.function::<(Subtask, &[(String, String)]), Answer>(&mut store, &instance, "lifecycle", "open")?;
        let close = component.function::<(), Answer>(&mut store, &instance, "lifecycle", "close")?;
        self.metrics.crossings.add(1);
        let answer = open.call(&mut store, (self.subtask, &self.config)).map_err(|e| failed(e, store.data_mut()))?;
        store.data_mut().end();
        without_rows("open", answer)?;
        Ok(Live { store, functions, close })
    }

    fn functions(&self, store: &mut Store<HostState>, instance: &Instance) -> Result<Functions> {
        let component = &self.component;
        Ok(match self.interface {
            "transform" => Functions::Transform(component.function(store, instance, "transform", "process")?),
            "keyed" => Functions::Keyed(
                component.function(store, instance, "keyed", "process")?,
                component.function(store, instance, "keyed", "on-timers")?,
            ),
            _ => Functions::Aggregate(
                component.function(store, instance, "aggregate", "accumulate")?,
                component.function(store, instance, "aggregate", "merge")?,
                component.function(store, instance, "aggregate", "finish")?,
            ),
        })
    }
}

/// The answer of a call that has no rows.
fn without_rows(call: &str, answer: Answer) -> Result<()> {
    match answer {
        (Ok(()),) => Ok(()),
        (Err(Failure::Retry(reason)),) => Err(Error::new(ErrorKind::Retry, reason)),
        (Err(Failure::Fatal(reason)),) => Err(Error::new(ErrorKind::UserCode, reason)),
        (Err(Failure::Rows(_)),) => Err(Error::new(
            ErrorKind::UserCode,
            format!("the component broke the contract: {call} fails for single rows, but it has none"),
        )),
    }
}

/// User code of one subtask.
struct Sandboxed {
    starter: Starter,
    /// `None` after a trap, until the next call.
    live: Option<Live>,
    /// What a call is given first (batch, key columns, left) and second (states, accumulators, right).
    first: Lowering,
    second: Lowering,
    /// Bytes of the numbers beside the columns: timestamps, keys or groups of rows.
    row_bytes: u64,
}

impl Sandboxed {
    /// One call: begins, runs, takes the effects, and throws the instance away if it trapped.
    fn run(
        &mut self,
        call: Call,
        rows: usize,
        collections: Option<Arc<dyn ReadCollections>>,
        effects: &mut Effects,
        enter: impl FnOnce(&mut Store<HostState>, &Functions, Columns<'_>, Columns<'_>) -> wasmtime::Result<Answer>,
    ) -> Result<(), UserFailure> {
        let live = match &mut self.live {
            Some(live) => live,
            none => none.insert(self.starter.start().map_err(restart_failure)?),
        };
        let metrics = &self.starter.metrics;
        metrics.crossings.add(1);
        let (first, second) = (self.first.columns(), self.second.columns());
        metrics.bytes_copied.add(bytes_of(&first) + bytes_of(&second) + self.row_bytes);
        live.store.data_mut().begin(call, std::mem::take(effects));
        live.store.data_mut().collections = collections;
        self.starter.component.rewind(&mut live.store);
        let answer = enter(&mut live.store, &live.functions, &first, &second);
        *effects = live.store.data_mut().end();
        let failure = match answer {
            Ok((Ok(()),)) => return Ok(()),
            Ok((Err(failure),)) => checked_failure(failure, rows),
            // No row is the cause, so none is searched for.
            Err(error) => match trap::refused(&error, live.store.data_mut()) {
                Some(refused) => {
                    self.live = None;
                    Ok(UserFailure::Engine(refused))
                }
                None => Err(trap::explain(&error, live.store.data_mut())),
            },
        };
        effects.clear();
        Err(failure.unwrap_or_else(|message| {
            self.live = None;
            UserFailure::Trap(message)
        }))
    }

    /// `numbers` are the keys or groups of its rows, if they have some.
    fn lower_batch(&mut self, batch: &Batch, numbers: &[u32]) -> Result<(), UserFailure> {
        self.row_bytes = (size_of_val(numbers) + batch.timestamps().map_or(0, |t| t.len() * 8)) as u64;
        lower(&mut self.first, batch.columns())
    }

    /// The one column that a call of `aggregate` answers with.
    fn aggregate(
        &mut self,
        aggregator: u32,
        groups: usize,
        finish: bool,
        enter: impl FnOnce(&mut Store<HostState>, &Functions, Columns<'_>, Columns<'_>) -> wasmtime::Result<Answer>,
    ) -> Result<ArrayRef, UserFailure> {
        let result = self.result(aggregator, finish)?;
        let mut effects = Effects::default();
        self.run(Call::Aggregate { groups, result }, groups, None, &mut effects, enter)?;
        let column = effects.emissions.pop().and_then(|mut e| e.columns.pop());
        column.ok_or_else(|| {
            UserFailure::Trap("the component broke the contract: a call of aggregate returned without emitting".into())
        })
    }

    fn result(&self, aggregator: u32, finish: bool) -> Result<ArrowField, UserFailure> {
        let shape = self.starter.shape.aggregators.get(aggregator as usize).and_then(Option::as_ref);
        let shape = shape.ok_or_else(|| UserFailure::Fatal(format!("aggregate {aggregator} is not the user's")))?;
        Ok(if finish { shape.result.clone() } else { shape.accumulator.clone() })
    }
}

impl UserCode for Sandboxed {
    fn transform(
        &mut self,
        clock: CallClock,
        input: u32,
        batch: &Batch,
        effects: &mut Effects,
    ) -> Result<(), UserFailure> {
        self.lower_batch(batch, &[])?;
        self.second.clear();
        let rows = batch.rows();
        self.run(Call::Transform { rows }, rows, None, effects, |store, functions, columns, _| {
            let Functions::Transform(function) = functions else { return wrong_interface("transform") };
            let function: Transform<'_> = *function;
            function.call(store, (clock_of(clock), input, batch_of(batch, columns)?))
        })
    }

    fn process(
        &mut self,
        clock: CallClock,
        input: u32,
        batch: &Batch,
        keys: &KeySet<'_>,
        effects: &mut Effects,
    ) -> Result<(), UserFailure> {
        self.lower_batch(batch, keys.key_of_row)?;
        lower(&mut self.second, keys.states)?;
        let call = Call::Process { rows: batch.rows(), keys: keys.keys };
        self.run(call, batch.rows(), keys.collections.clone(), effects, |store, functions, columns, states| {
            let Functions::Keyed(function, _) = functions else { return wrong_interface("keyed") };
            let function: Process<'_> = *function;
            function.call(store, (clock_of(clock), input, batch_of(batch, columns)?, keys_of(keys, states)?))
        })
    }

    fn on_timers(
        &mut self,
        clock: CallClock,
        timers: &DueTimers<'_>,
        effects: &mut Effects,
    ) -> Result<(), UserFailure> {
        self.row_bytes = (timers.timestamps.len() * 8 + size_of_val(timers.keys.key_of_row)) as u64;
        lower(&mut self.first, timers.key_columns)?;
        lower(&mut self.second, timers.keys.states)?;
        let only = if let [time] = timers.timestamps[..] { Some(time) } else { None };
        let rows = timers.timestamps.len();
        let domain = match timers.domain {
            TimeDomain::Event => crossing::TimeDomain::EventTime,
            TimeDomain::Processing => crossing::TimeDomain::ProcessingTime,
        };
        let call = Call::Timers { rows, keys: timers.keys.keys, only };
        self.run(call, rows, timers.keys.collections.clone(), effects, |store, functions, key_columns, states| {
            let Functions::Keyed(_, function) = functions else { return wrong_interface("keyed") };
            let function: OnTimers<'_> = *function;
            let times = timers.timestamps.to_byte_slice();
            function.call(store, (clock_of(clock), domain, times, key_columns, keys_of(&timers.keys, states)?))
        })
    }

    fn accumulate(
        &mut self,
        aggregator: u32,
        group_of_row: &[u32],
        batch: &Batch,
        accumulators: &ArrayRef,
    ) -> Result<ArrayRef, UserFailure> {
        self.lower_batch(batch, group_of_row)?;
        lower(&mut self.second, std::slice::from_ref(accumulators))?;
        let groups = accumulators.len();
        self.aggregate(aggregator, groups, false, |store, functions, columns, accumulators| {
            let Functions::Aggregate(function, _, _) = functions else { return wrong_interface("aggregate") };
            let function: Accumulate<'_> = *function;
            let of_row = group_of_row.to_byte_slice();
            function.call(store, (aggregator, number(groups)?, of_row, batch_of(batch, columns)?, accumulators))
        })
    }

    fn merge(&mut self, aggregator: u32, left: &ArrayRef, right: &ArrayRef) -> Result<ArrayRef, UserFailure> {
        self.row_bytes = 0;
        lower(&mut self.first, std::slice::from_ref(left))?;
        lower(&mut self.second, std::slice::from_ref(right))?;
        let groups = left.len();
        self.aggregate(aggregator, groups, false, |store, functions, left, right| {
            let Functions::Aggregate(_, function, _) = functions else { return wrong_interface("aggregate") };
            let function: Merge<'_> = *function;
            function.call(store, (aggregator, number(groups)?, left, right))
        })
    }

    fn finish(&mut self, aggregator: u32, accumulators: &ArrayRef) -> Result<ArrayRef, UserFailure> {
        self.row_bytes = 0;
        lower(&mut self.first, std::slice::from_ref(accumulators))?;
        self.second.clear();
        let groups = accumulators.len();
        self.aggregate(aggregator, groups, true, |store, functions, accumulators, _| {
            let Functions::Aggregate(_, _, function) = functions else { return wrong_interface("aggregate") };
            let function: Finish<'_> = *function;
            function.call(store, (aggregator, number(groups)?, accumulators))
        })
    }

    /// An instance that was lost in a trap and not needed again is not made for this.
    fn close(&mut self) -> Result<()> {
        let Some(Live { mut store, close, .. }) = self.live.take() else { return Ok(()) };
        self.starter.metrics.crossings.add(1);
        store.data_mut().begin(Call::Quiet, Effects::default());
        self.starter.component.rewind(&mut store);
        let answer = close.call(&mut store, ());
        store.data_mut().end();
        let failed = |error: Error| error.mend("Correct the code that runs when the operator is closed.");
        match answer {
            Ok(answer) => without_rows("close", answer).map_err(failed),
            Err(error) => Err(match trap::refused(&error, store.data_mut()) {
                Some(refused) => refused,
                None => failed(Error::new(ErrorKind::UserCode, trap::explain(&error, store.data_mut()))),
            }),
        }
    }

    fn memory_bytes(&self) -> usize {
        self.live.as_ref().map_or(0, |live| live.store.data().memory.held)
    }
}

fn lower(lowering: &mut Lowering, arrays: &[ArrayRef]) -> Result<(), UserFailure> {
    lowering.clear();
    arrays.iter().try_for_each(|array| lowering.add(array)).map_err(UserFailure::Fatal)
}

fn clock_of(clock: CallClock) -> Clock {
    Clock { watermark: clock.watermark.0, processing_time: clock.processing_time.0 }
}

fn batch_of<'a>(batch: &'a Batch, columns: &'a [Column<'a>]) -> wasmtime::Result<crossing::Batch<'a>> {
    let timestamps = batch.timestamps().map_or(&[][..], |t| t.to_byte_slice());
    Ok(crossing::Batch { rows: number(batch.rows())?, timestamps, columns })
}

fn keys_of<'a>(keys: &KeySet<'a>, states: &'a [Column<'a>]) -> wasmtime::Result<crossing::KeySet<'a>> {
    Ok(crossing::KeySet { keys: number(keys.keys)?, key_of_row: keys.key_of_row.to_byte_slice(), states })
}

fn number(rows: usize) -> wasmtime::Result<u32> {
    u32::try_from(rows).map_err(|_| wasmtime::Error::msg(format!("a call of {rows} rows: 4,294,967,295 can cross")))
}

fn bytes_of(columns: &[Column<'_>]) -> u64 {
    columns.iter().map(|c| (c.validity.len() + c.offsets.len() + c.values.len()) as u64).sum()
}

fn wrong_interface<T>(called: &str) -> wasmtime::Result<T> {
    Err(wasmtime::Error::msg(format!("the engine called {called} of a node of another kind")))
}

/// A guest's failure, if the rows that it names are rows of the call.
fn checked_failure(failure: Failure, rows: usize) -> Result<UserFailure, String> {
    let failed = match failure {
        Failure::Retry(reason) => return Ok(UserFailure::Retry(reason)),
        Failure::Fatal(reason) => return Ok(UserFailure::Fatal(reason)),
        Failure::Rows(failed) => failed,
    };
    if failed.is_empty() {
        return Err("the component broke the contract: it fails for single rows, but names none".into());
    }
    let mut checked = Vec::with_capacity(failed.len());
    for mut one in failed {
        if one.row as usize >= rows {
            return Err(format!(
                "the component broke the contract: it fails for row {} of a call with {rows} rows",
                one.row
            ));
        }
        one.reason.truncate(one.reason.floor_char_boundary(REASON_BYTES));
        checked.push((one.row, one.reason));
    }
    Ok(UserFailure::Rows(checked))
}

/// Why there is no fresh instance after a trap.
fn restart_failure(error: Error) -> UserFailure {
    match error.kind() {
        ErrorKind::Retry => UserFailure::Retry(error.message().to_owned()),
        ErrorKind::Limit | ErrorKind::Full => UserFailure::Engine(error),
        _ => UserFailure::Fatal(format!("after a trap it can't be opened again: {}", error.message())),
    }
}
