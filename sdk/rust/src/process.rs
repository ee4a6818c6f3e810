//! Process functions: code with state and timers by key. ([`crate::unkeyed`]: those without a key.)
//!
//! The host sends the state of a batch's keys with the batch. It is decoded once into an array by key number; rows read
//! and write there, and what changed goes back at the end of the call, once per key.

use std::rc::Rc;
use std::time::Duration;

use tidemill_plan::{Input, NodeKind, Origin, Output, OutputField, Redistribution, State, StateKind, TtlUpdate};

use crate::abi::{
    BatchView, CallClock, ColumnView, Failure, HostCalls, KeySetView, NodeRuntime, RowError, TimeDomain, TimersView,
    number_at, timestamp_at,
};
use crate::broadcast::BroadcastState;
use crate::cells::{Cells, Handle};
use crate::collections::{ListCell, ListState, MapCell, MapState};
use crate::flow::{Graph, Label};
use crate::keyed::{Key, KeyView, KeyedStream};
use crate::row::{EmitRow, IntoRow, Row};
use crate::stage::{Columns, Reads, Rows};
use crate::stream::{Stream, find_columns};
use crate::time::Timestamp;
use crate::unkeyed::{OperatorListState, UnkeyedContext};
use crate::value::{Cursor, Owned, Value, Writer, flat_width};

/// Code with state and timers by key.
///
/// Between two calls only the declared states survive: an instance can be dropped and made anew at any time. So keep
/// what belongs to a key in a [`ValueState`], [`ListState`] or [`MapState`], and in fields only what `new` computes from
/// constants.
///
/// ```
/// use tidemill::prelude::*;
///
/// #[derive(Row)]
/// struct Bid { auction: i64 }
///
/// #[derive(Row)]
/// struct Running { auction: i64, bids: i64 }
///
/// struct Counter { bids: ValueState<i64> }
///
/// impl KeyedProcess for Counter {
///     type Key = i64;
///     type In = Bid;
///     type Out = Running;
///
///     fn process(&mut self, bid: Bid, ctx: &mut Context<'_, Running>) -> Result<(), RowError> {
///         let bids = self.bids.get(ctx).unwrap_or(0) + 1;
///         self.bids.set(ctx, bids);
///         ctx.emit(Running { auction: bid.auction, bids });
///         Ok(())
///     }
/// }
///
/// fn job(flow: &mut Flow) {
///     flow.source::<Bid>("bids")
///         .key_by(|b| b.auction)
///         .process(|s| Counter { bids: s.value("bids") })
///         .sink("counts");
/// }
/// # let _ = job;
/// ```
pub trait KeyedProcess: Send + 'static {
    /// The key: the type of the column in `key_by`, or the tuple of types.
    type Key: Key;
    /// The rows that come in. A row with text is written as `Bid<'static>` here, and as `Bid<'_>` in `process`.
    type In: EmitRow;
    /// The rows that go out.
    type Out: EmitRow;

    /// Whether `process` asks for [`Context::timestamp`]. If it doesn't, 8 bytes per row need not cross.
    const TIMESTAMPS: bool = true;

    /// Whether `prefetch` is called.
    const PREFETCH: bool = false;

    /// Called with each row of a batch before the first is processed: names entries of maps that `process` will ask for, so
    /// that they are read at once ([`MapState::prefetch`]).
    fn prefetch(&self, row: <Self::In as Row>::View<'_>, rows: &mut Prefetch<'_>) {
        let _ = (row, rows);
    }

    /// Takes a row. An error sets the row aside with its reason and undoes what it did.
    fn process(&mut self, row: <Self::In as Row>::View<'_>, ctx: &mut Context<'_, Self::Out>) -> Result<(), RowError>;

    /// A timer is due. `timestamp` is the time it was set to.
    fn on_timer(
        &mut self,
        key: KeyView<'_, Self::Key>,
        timestamp: Timestamp,
        ctx: &mut Context<'_, Self::Out>,
    ) -> Result<(), RowError> {
        let _ = (key, timestamp, ctx);
        Ok(())
    }
}

/// Declares the states and side outputs of a process function.
#[derive(Default)]
pub struct States {
    cells: Cells<dyn StateCell>,
    declared: Vec<State>,
    /// Those without a key. They come behind the others in the plan.
    unkeyed_cells: Cells<dyn StateCell>,
    unkeyed: Vec<State>,
    has_lists: bool,
    sides: Cells<dyn SideCell>,
    ports: Vec<Output>,
}

impl States {
    /// A state with one value per key. `name` names it across versions of the job.
    pub fn value<T: Owned>(&mut self, name: &str) -> ValueState<T> {
        self.declared.push(State::value(name, T::data_type()));
        ValueState(self.cells.add(ValueCell::<T>::default(), |cell| cell))
    }

    /// As `value`, for values that are gone some time after they were accessed last, by the clock: nobody sees them then.
    pub fn value_with_ttl<T: Owned>(&mut self, name: &str, ttl: Ttl) -> ValueState<T> {
        self.declared.push(State { ttl: Some(ttl.0), ..State::value(name, T::data_type()) });
        ValueState(self.cells.add(ValueCell::<T>::default(), |cell| cell))
    }

    /// A state with a list per key.
    pub fn list<T: Owned>(&mut self, name: &str) -> ListState<T> {
        let cell = ListCell::<T>::new(self.declared.len() as u32);
        self.declared.push(State { kind: StateKind::List, ..State::value(name, T::data_type()) });
        ListState(self.cells.add(cell, |cell| cell))
    }

    /// A state with a map per key.
    pub fn map<K: Owned + Ord, V: Owned>(&mut self, name: &str) -> MapState<K, V> {
        let cell = MapCell::<K, V>::new(self.declared.len() as u32);
        self.declared
            .push(State { kind: StateKind::Map { key: K::data_type() }, ..State::value(name, V::data_type()) });
        MapState(self.cells.add(cell, |cell| cell))
    }

    /// A map that every subtask has whole, whatever the key; only rows of the broadcast stream change it
    /// ([`crate::broadcast`]).
    pub fn broadcast<K: Owned + Ord, V: Owned>(&mut self, name: &str) -> BroadcastState<K, V> {
        let kind = StateKind::Broadcast { key: K::data_type() };
        self.unkeyed.push(State { kind, ..State::value(name, V::data_type()) });
        BroadcastState(self.unkeyed_cells.add(MapCell::<K, V>::new(0), |cell| cell))
    }

    /// A list that each subtask of a function without a key has for itself. At another parallelism the lists of all subtasks
    /// are one after the other and cut into even parts: each item is in one of them (Flink's `getListState`).
    pub fn operator_list<T: Owned>(&mut self, name: &str) -> OperatorListState<T> {
        self.list_of_subtask(name, Redistribution::Split)
    }

    /// As `operator_list`, but at another parallelism every subtask has the items of all, one list after the other (Flink's
    /// `getUnionListState`). So let an item say what it is, and leave out what is there twice.
    pub fn union_list<T: Owned>(&mut self, name: &str) -> OperatorListState<T> {
        self.list_of_subtask(name, Redistribution::Union)
    }

    fn list_of_subtask<T: Owned>(&mut self, name: &str, redistribution: Redistribution) -> OperatorListState<T> {
        let kind = StateKind::OperatorList { redistribution };
        self.unkeyed.push(State { kind, ..State::value(name, T::data_type()) });
        self.has_lists = true;
        OperatorListState(self.unkeyed_cells.add(ListCell::<T>::new(0), |cell| cell))
    }

    /// A side output: further rows, to be taken off the result with [`Stream::side`] by this name.
    pub fn side<R: EmitRow>(&mut self, name: &str) -> Side<R> {
        let fields = R::fields().into_iter().map(|field| OutputField { field, origin: Origin::New }).collect();
        self.ports.push(Output { name: name.to_owned(), fields });
        Side(self.sides.add(Rows::<R>::default(), |cell| cell))
    }
}

/// How long the values of a state live, in processing time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ttl(tidemill_plan::Ttl);

impl Ttl {
    /// So long after they were set last.
    pub fn after_write(duration: Duration) -> Self {
        Self(tidemill_plan::Ttl { duration_ms: millis_of(duration), update: TtlUpdate::OnCreateAndWrite })
    }

    /// So long after they were set last, or a row or timer of their key was processed.
    pub fn after_access(duration: Duration) -> Self {
        Self(tidemill_plan::Ttl { duration_ms: millis_of(duration), update: TtlUpdate::OnReadAndWrite })
    }
}

fn millis_of(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// A state with one value per key. Its functions are about the key of the row (or timer) of the call.
pub struct ValueState<T: Owned>(Handle<ValueCell<T>>);

impl<T: Owned> ValueState<T> {
    /// The value, if there is one.
    #[inline]
    pub fn get<O: EmitRow>(&self, ctx: &Context<'_, O>) -> Option<T> {
        self.get_ref(ctx).cloned()
    }

    /// The value in place.
    #[inline]
    pub fn get_ref<'c, O: EmitRow>(&self, ctx: &'c Context<'_, O>) -> Option<&'c T> {
        ctx.states.get(&self.0).and_then(|c| c.values.get(ctx.key)).and_then(Option::as_ref)
    }

    /// Sets the value.
    #[inline]
    pub fn set<O: EmitRow>(&self, ctx: &mut Context<'_, O>, value: T) {
        self.change(ctx, Some(value));
    }

    /// Removes the value, and with it what the host stores for it.
    #[inline]
    pub fn clear<O: EmitRow>(&self, ctx: &mut Context<'_, O>) {
        self.change(ctx, None);
    }

    #[inline]
    fn change<O: EmitRow>(&self, ctx: &mut Context<'_, O>, value: Option<T>) {
        let key = ctx.key;
        if let Some(cell) = ctx.states.get_mut(&self.0) {
            cell.set(key, value);
        }
    }
}

/// A side output.
pub struct Side<R: EmitRow>(Handle<Rows<R>>);

impl<R: EmitRow> Clone for Side<R> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

/// What a process function can do during a call.
pub struct Context<'c, O: EmitRow> {
    out: &'c mut Rows<O>,
    states: &'c mut Cells<dyn StateCell>,
    unkeyed: &'c mut Cells<dyn StateCell>,
    sides: &'c mut Cells<dyn SideCell>,
    timers: &'c mut Timers,
    timestamps: &'c [u8],
    clock: CallClock,
    /// What is read of lists and maps, is read from here.
    host: &'c mut dyn HostCalls,
    row: usize,
    key: usize,
}

/// The rows of a batch before their turn: entries of maps are named that will be read.
pub struct Prefetch<'c> {
    states: &'c mut Cells<dyn StateCell>,
    key: usize,
}

impl Prefetch<'_> {
    pub(crate) fn map<K: Owned + Ord, V: Owned>(
        &mut self,
        handle: &Handle<MapCell<K, V>>,
    ) -> (usize, Option<&mut MapCell<K, V>>) {
        (self.key, self.states.get_mut(handle))
    }
}

impl<O: EmitRow> Context<'_, O> {
    /// The same, to be handed on.
    #[inline]
    pub(crate) fn again(&mut self) -> Context<'_, O> {
        Context {
            out: &mut *self.out,
            states: &mut *self.states,
            unkeyed: &mut *self.unkeyed,
            sides: &mut *self.sides,
            timers: &mut *self.timers,
            host: &mut *self.host,
            ..*self
        }
    }

    /// The cell of a broadcast state, and where it is read.
    #[inline]
    pub(crate) fn broadcast<K: Owned + Ord, V: Owned>(
        &mut self,
        handle: &Handle<MapCell<K, V>>,
    ) -> (Option<&mut MapCell<K, V>>, &mut dyn HostCalls) {
        (self.unkeyed.get_mut(handle), &mut *self.host)
    }

    /// The cell of an operator list, and where it is read.
    #[inline]
    pub(crate) fn operator_list<T: Owned>(
        &mut self,
        handle: &Handle<ListCell<T>>,
    ) -> (Option<&mut ListCell<T>>, &mut dyn HostCalls) {
        (self.unkeyed.get_mut(handle), &mut *self.host)
    }

    /// The key's number, the cell of a list, and where it is read.
    #[inline]
    pub(crate) fn list<T: Owned>(
        &mut self,
        handle: &Handle<ListCell<T>>,
    ) -> (usize, Option<&mut ListCell<T>>, &mut dyn HostCalls) {
        (self.key, self.states.get_mut(handle), &mut *self.host)
    }

    /// The key's number, the cell of a map, and where it is read.
    #[inline]
    pub(crate) fn map<K: Owned + Ord, V: Owned>(
        &mut self,
        handle: &Handle<MapCell<K, V>>,
    ) -> (usize, Option<&mut MapCell<K, V>>, &mut dyn HostCalls) {
        (self.key, self.states.get_mut(handle), &mut *self.host)
    }

    /// Emits a row. It has the timestamp of the row (or timer) of the call.
    #[inline]
    pub fn emit<V: IntoRow<Row = O>>(&mut self, row: V) {
        O::write(&mut self.out.writer, &row.into_view());
        self.out.note(self.row as u32);
    }

    /// Emits a row to a side output.
    #[inline]
    pub fn side<R: EmitRow, V: IntoRow<Row = R>>(&mut self, side: &Side<R>, row: V) {
        if let Some(cell) = self.sides.get_mut(&side.0) {
            R::write(&mut cell.writer, &row.into_view());
            cell.note(self.row as u32);
        }
    }

    /// The event time of the row, if the stream has event time; the time of the timer.
    pub fn timestamp(&self) -> Option<Timestamp> {
        timestamp_at(self.timestamps, self.row)
    }

    /// How far event time has come: nothing earlier is expected any more.
    pub fn watermark(&self) -> Timestamp {
        Timestamp::from_millis(self.clock.watermark)
    }

    /// Processing time.
    pub fn processing_time(&self) -> Timestamp {
        Timestamp::from_millis(self.clock.processing_time)
    }

    /// Has `on_timer` called for this key when event time reaches `at`.
    pub fn set_event_timer(&mut self, at: Timestamp) {
        self.timers.push(TimeDomain::Event, self.key, at, false);
    }

    /// Has `on_timer` called for this key when processing time reaches `at`.
    pub fn set_processing_timer(&mut self, at: Timestamp) {
        self.timers.push(TimeDomain::Processing, self.key, at, false);
    }

    /// Takes back an event timer of this key. One that does not exist is no error.
    pub fn delete_event_timer(&mut self, at: Timestamp) {
        self.timers.push(TimeDomain::Event, self.key, at, true);
    }

    /// Takes back a processing timer of this key. One that does not exist is no error.
    pub fn delete_processing_timer(&mut self, at: Timestamp) {
        self.timers.push(TimeDomain::Processing, self.key, at, true);
    }
}

impl<K: Key, R: EmitRow> KeyedStream<K, R> {
    /// Runs a process function. The closure makes it and declares its states:
    /// `.process(|s| Counter { bids: s.value("bids") })`.
    pub fn process<P: KeyedProcess<Key = K, In = R>>(self, make: impl FnOnce(&mut States) -> P) -> Stream<P::Out> {
        self.process_on(make)
    }
}

impl<K: Key, R: Row> KeyedStream<K, R> {
    /// As `process`, for a function that reads other (fewer) columns than the row type has; they are found by name.
    pub fn process_on<P: KeyedProcess<Key = K>>(self, make: impl FnOnce(&mut States) -> P) -> Stream<P::Out> {
        let (columns, reads) = columns_of(&self.stream, "the stream");
        let key_starts = self.key_starts(&self.stream.graph.borrow());
        let inputs = vec![self.input(reads)];
        add(&self.stream, inputs, P::TIMESTAMPS, make, |process, machine| {
            Box::new(ProcessNode::<P> { process, columns, key_starts, machine })
        })
    }

    /// Where the key's columns start among the flattened ones that come with timers.
    pub(crate) fn key_starts(&self, graph: &Graph) -> Vec<u32> {
        let fields = graph.fields(self.stream.node, self.stream.port);
        let width = |column: u32| fields.get(column as usize).map_or(1, |f| flat_width(&f.field.data_type)) as u32;
        let next = |start: &mut u32, &column: &u32| Some(std::mem::replace(start, *start + width(column)));
        self.key.iter().scan(0, next).collect()
    }
}

/// Where the columns that a function reads stand in batches, and which columns of the stream these are. `what`: what a
/// message calls the stream.
pub(crate) fn columns_of<T: EmitRow, R: Row>(stream: &Stream<R>, what: &str) -> (Columns<T>, Vec<u32>) {
    let mut graph = stream.graph.borrow_mut();
    let mut columns = Columns::new(find_columns::<T>(&mut graph, stream.node, stream.port, what));
    let mut reads = Reads::new(graph.fields(stream.node, stream.port));
    columns.bind(&mut reads);
    (columns, reads.into_columns())
}

/// Adds the node of a process function.
pub(crate) fn add<R: Row, P, O: EmitRow>(
    stream: &Stream<R>,
    inputs: Vec<Input>,
    reads_timestamps: bool,
    make: impl FnOnce(&mut States) -> P,
    runtime: impl FnOnce(P, Machine<O>) -> Box<dyn NodeRuntime>,
) -> Stream<O> {
    let mut states = States::default();
    let process = make(&mut states);
    let graph = Rc::clone(&stream.graph);
    let (machine, outputs, states) = Machine::new(states);
    let kind = NodeKind::Process { reads_timestamps, states };
    let runtime = runtime(process, machine);
    let node = graph.borrow_mut().add(Label::default().or("process"), inputs, outputs, kind, Some(runtime));
    Stream::direct(graph, node, 0, (0..O::WIDTH as u32).collect())
}

/// The code of a process node.
struct ProcessNode<P: KeyedProcess> {
    process: P,
    columns: Columns<P::In>,
    key_starts: Vec<u32>,
    machine: Machine<P::Out>,
}

impl<P: KeyedProcess> NodeRuntime for ProcessNode<P> {
    fn process(
        &mut self,
        clock: CallClock,
        _input: u32,
        batch: &BatchView<'_>,
        keys: &KeySetView<'_>,
        host: &mut dyn HostCalls,
    ) -> Result<(), Failure> {
        let Self { process, columns, machine, .. } = self;
        let reader = columns.reader(batch);
        let rows = batch.rows;
        machine.load(keys);
        if P::PREFETCH {
            let key_of_row = keys.key_of_row.as_chunks::<4>().0;
            for row in 0..rows {
                let mut wanted = Prefetch { states: &mut machine.states, key: number_at(key_of_row, row) };
                process.prefetch(P::In::view(&reader, row), &mut wanted);
            }
            machine.states.iter_mut().for_each(|cell| cell.fetch(host));
        }
        let call = Call { clock, rows, timestamps: batch.timestamps, keys, sees_others: true };
        machine.call(call, host, |row, _key, ctx| process.process(P::In::view(&reader, row), ctx))
    }

    fn on_timers(
        &mut self,
        clock: CallClock,
        timers: &TimersView<'_>,
        host: &mut dyn HostCalls,
    ) -> Result<(), Failure> {
        let Self { process, key_starts, machine, .. } = self;
        machine.timers::<P::Key>(clock, timers, key_starts, host, |key, timestamp, ctx| {
            process.on_timer(key, timestamp, ctx)
        })
    }
}

/// What a node of a process function has beside its code: states, outputs, timers.
pub(crate) struct Machine<O: EmitRow> {
    states: Cells<dyn StateCell>,
    unkeyed: Cells<dyn StateCell>,
    /// Number of the first state without a key.
    first_unkeyed: u32,
    has_lists: bool,
    sides: Cells<dyn SideCell>,
    /// Empty between calls, as are the timers.
    out: Rows<O>,
    timers: Timers,
}

/// A call, without its rows.
pub(crate) struct Call<'a> {
    pub(crate) clock: CallClock,
    pub(crate) rows: usize,
    pub(crate) timestamps: &'a [u8],
    pub(crate) keys: &'a KeySetView<'a>,
    /// Whether a row sees what those of its key before it did (without keys: all before it).
    pub(crate) sees_others: bool,
}

impl<O: EmitRow> Machine<O> {
    /// With the outputs and states of its node.
    pub(crate) fn new(states: States) -> (Self, Vec<Output>, Vec<State>) {
        let fields = O::fields().into_iter().map(|field| OutputField { field, origin: Origin::New }).collect();
        let States { cells, mut declared, mut unkeyed_cells, mut unkeyed, has_lists, sides, mut ports } = states;
        let mut outputs = vec![Output { name: "main".to_owned(), fields }];
        outputs.append(&mut ports);
        let first_unkeyed = declared.len() as u32;
        (first_unkeyed..).zip(unkeyed_cells.iter_mut()).for_each(|(state, cell)| cell.number(state));
        declared.append(&mut unkeyed);
        let (out, timers) = (Rows::default(), Timers::default());
        let unkeyed = unkeyed_cells;
        (Self { states: cells, unkeyed, first_unkeyed, has_lists, sides, out, timers }, outputs, declared)
    }

    /// Whether there are operator lists, in which every row of a call sees what those before it did.
    pub(crate) fn has_lists(&self) -> bool {
        self.has_lists
    }

    /// Takes the states of a call's keys.
    pub(crate) fn load(&mut self, keys: &KeySetView<'_>) {
        let mut cursor = Cursor::all(keys.states);
        self.states.iter_mut().for_each(|cell| cell.load(&mut cursor, keys.keys));
        self.unkeyed.iter_mut().for_each(|cell| cell.load(&mut cursor, 1));
    }

    /// Runs for each timer.
    pub(crate) fn timers<K: Key>(
        &mut self,
        clock: CallClock,
        timers: &TimersView<'_>,
        key_starts: &[u32],
        host: &mut dyn HostCalls,
        mut each: impl FnMut(KeyView<'_, K>, Timestamp, &mut Context<'_, O>) -> Result<(), RowError>,
    ) -> Result<(), Failure> {
        let mut cursor = Cursor::new(timers.key_columns, key_starts);
        let key_reader = K::Row::reader(&mut cursor, timers.keys.keys);
        let rows = timers.timestamps.len() / 8;
        self.load(&timers.keys);
        let call = Call { clock, rows, timestamps: timers.timestamps, keys: &timers.keys, sees_others: true };
        self.call(call, host, |row, key, ctx| {
            let timestamp = timestamp_at(timers.timestamps, row).unwrap_or_default();
            each(K::Row::view(&key_reader, key), timestamp, ctx)
        })
    }

    /// Runs at the end of the input, which is a timer without a key.
    pub(crate) fn end(
        &mut self,
        clock: CallClock,
        timers: &TimersView<'_>,
        host: &mut dyn HostCalls,
        mut end: impl FnMut(&mut UnkeyedContext<'_, O>) -> Result<(), RowError>,
    ) -> Result<(), Failure> {
        let rows = timers.timestamps.len() / 8;
        self.load(&timers.keys);
        // In a stream without event time it says the end of all times.
        let has_time = timestamp_at(timers.timestamps, 0).is_some_and(|time| time.millis() < i64::MAX);
        let timestamps = if has_time { timers.timestamps } else { &[] };
        let call = Call { clock, rows, timestamps, keys: &timers.keys, sees_others: true };
        self.call(call, host, |_row, _key, ctx| end(&mut UnkeyedContext(ctx.again())))
    }

    /// Runs for each row. The states are loaded.
    #[inline(always)]
    pub(crate) fn call(
        &mut self,
        call: Call<'_>,
        host: &mut dyn HostCalls,
        mut each: impl FnMut(usize, usize, &mut Context<'_, O>) -> Result<(), RowError>,
    ) -> Result<(), Failure> {
        let Call { clock, rows, timestamps, keys, sees_others } = call;
        self.sides.iter_mut().for_each(|cell| cell.clear());
        self.out.clear();
        self.out.writer.reserve(rows);
        self.timers.clear();
        let mut failures = Failures { sees_others, ..Failures::default() };
        let mut ctx = Context {
            out: &mut self.out,
            states: &mut self.states,
            unkeyed: &mut self.unkeyed,
            sides: &mut self.sides,
            timers: &mut self.timers,
            timestamps,
            clock,
            host: &mut *host,
            row: 0,
            key: 0,
        };
        let key_of_row = keys.key_of_row.as_chunks::<4>().0;
        for row in 0..rows {
            let key = number_at(key_of_row, row);
            ctx.row = row;
            ctx.key = key;
            if failures.concern(key) {
                continue;
            }
            if let Err(error) = each(row, key, &mut ctx) {
                failures.add(row, key, &error);
            }
        }
        failures.into_result()?;
        flush_rows(&self.out, 0, rows, host);
        for (port, cell) in self.sides.iter_mut().enumerate() {
            cell.flush(port as u32 + 1, rows, host);
        }
        for (state, cell) in self.states.iter_mut().enumerate() {
            cell.flush(state as u32, host);
        }
        for (state, cell) in (self.first_unkeyed..).zip(self.unkeyed.iter_mut()) {
            cell.flush(state, host);
        }
        self.timers.flush(host);
        Ok(())
    }
}

/// The rows of a call that failed. Nothing of the call takes effect then; the host calls again without them. Rows
/// of a key after one that failed are not tried: they would see what that one left half done.
#[derive(Default)]
struct Failures {
    rows: Vec<(u32, String)>,
    keys: Vec<usize>,
    /// Whether other rows of the key see what it did.
    sees_others: bool,
}

impl Failures {
    #[inline(always)]
    fn concern(&self, key: usize) -> bool {
        !self.keys.is_empty() && self.keys.contains(&key)
    }

    #[cold]
    fn add(&mut self, row: usize, key: usize, error: &RowError) {
        self.rows.push((row as u32, error.reason().to_owned()));
        if self.sees_others {
            self.keys.push(key);
        }
    }

    fn into_result(self) -> Result<(), Failure> {
        if self.rows.is_empty() { Ok(()) } else { Err(Failure::Rows(self.rows)) }
    }
}

/// Emits what was collected. Where each row of the call gave one row, the host need not pick any.
fn flush_rows<R: EmitRow>(out: &Rows<R>, port: u32, rows: usize, host: &mut dyn HostCalls) {
    if out.is_empty() {
        return;
    }
    let mut columns = Vec::new();
    out.writer.columns(&mut columns);
    host.forward(port, out.origins(rows).as_deref(), &columns);
}

/// A side output, whatever its rows.
trait SideCell: Send {
    fn clear(&mut self);
    fn flush(&mut self, port: u32, rows: usize, host: &mut dyn HostCalls);
}

impl<R: EmitRow> SideCell for Rows<R> {
    fn clear(&mut self) {
        Rows::clear(self);
    }

    fn flush(&mut self, port: u32, rows: usize, host: &mut dyn HostCalls) {
        flush_rows(self, port, rows, host);
    }
}

/// A state, whatever its kind and type.
pub(crate) trait StateCell: Send {
    /// Which state of the node it is, where that is known late.
    fn number(&mut self, _state: u32) {}
    /// Begins a call with so many keys. A cell of values takes those of the keys off the front.
    fn load(&mut self, columns: &mut Cursor<'_, '_>, keys: usize);
    /// Reads what was named before the first row has its turn.
    fn fetch(&mut self, _host: &mut dyn HostCalls) {}
    /// Gives those that changed to the host.
    fn flush(&mut self, state: u32, host: &mut dyn HostCalls);
}

/// The values of one state, by key number.
struct ValueCell<T: Owned> {
    values: Vec<Option<T>>,
    changed: Vec<bool>,
    /// Numbers of the changed keys, in the order of their first change.
    keys: Vec<u32>,
    writer: <Option<T> as Value>::Writer,
}

impl<T: Owned> Default for ValueCell<T> {
    fn default() -> Self {
        Self { values: Vec::new(), changed: Vec::new(), keys: Vec::new(), writer: Default::default() }
    }
}

impl<T: Owned> ValueCell<T> {
    #[inline]
    fn set(&mut self, key: usize, value: Option<T>) {
        let (Some(slot), Some(changed)) = (self.values.get_mut(key), self.changed.get_mut(key)) else { return };
        *slot = value;
        if !*changed {
            *changed = true;
            self.keys.push(key as u32);
        }
    }
}

impl<T: Owned> StateCell for ValueCell<T> {
    fn load(&mut self, columns: &mut Cursor<'_, '_>, keys: usize) {
        let reader = <Option<T>>::reader(columns, keys);
        self.values.clear();
        self.values.extend((0..keys).map(|key| <Option<T>>::get(&reader, key)));
        self.changed.clear();
        self.changed.resize(keys, false);
        self.keys.clear();
    }

    fn flush(&mut self, state: u32, host: &mut dyn HostCalls) {
        if self.keys.is_empty() {
            return;
        }
        self.writer.clear();
        self.writer.reserve(self.keys.len());
        for &key in &self.keys {
            if let Some(value) = self.values.get(key as usize) {
                <Option<T>>::push(&mut self.writer, value);
            }
        }
        let mut columns: Vec<ColumnView<'_>> = Vec::new();
        self.writer.columns(&mut columns);
        host.put(state, &self.keys, &columns);
    }
}

/// The timers that a call sets and deletes.
#[derive(Default)]
struct Timers {
    changes: Vec<TimerChange>,
    deletes: bool,
}

#[derive(Clone, Copy)]
struct TimerChange {
    domain: TimeDomain,
    key: u32,
    at: i64,
    delete: bool,
}

impl Timers {
    fn clear(&mut self) {
        self.changes.clear();
        self.deletes = false;
    }

    fn push(&mut self, domain: TimeDomain, key: usize, at: Timestamp, delete: bool) {
        self.deletes |= delete;
        self.changes.push(TimerChange { domain, key: key as u32, at: at.millis(), delete });
    }

    /// At most four calls, however sets and deletes alternate: of the same timer the last change wins.
    fn flush(&mut self, host: &mut dyn HostCalls) {
        if self.changes.is_empty() {
            return;
        }
        if self.deletes {
            self.keep_last();
        }
        for domain in [TimeDomain::Event, TimeDomain::Processing] {
            for delete in [true, false] {
                let of = self.changes.iter().filter(|c| c.domain == domain && c.delete == delete);
                let (keys, times): (Vec<u32>, Vec<i64>) = of.map(|c| (c.key, c.at)).unzip();
                match (keys.is_empty(), delete) {
                    (true, _) => {}
                    (false, true) => host.delete_timers(domain, &keys, &times),
                    (false, false) => host.set_timers(domain, &keys, &times),
                }
            }
        }
    }

    fn keep_last(&mut self) {
        let mut seen = std::collections::BTreeSet::new();
        self.changes.reverse();
        self.changes.retain(|c| seen.insert((c.domain, c.key, c.at)));
        self.changes.reverse();
    }
}
