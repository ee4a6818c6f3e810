//! Broadcast state: a map that every subtask has whole, such as the rules by which the rows of another stream are judged.
//!
//! Rows of the broadcast stream come to every subtask and change the map; rows of the other stream, with a key or without,
//! read it. The code must do the same with the same broadcast row everywhere: so it may not look at anything but the row
//! and the map. The map does not come with a batch: what is read of it is asked for, once per batch where the whole of it
//! is read ([`BroadcastState::for_each`]).

use std::ops::{Deref, DerefMut};

use tidemill_plan::{Exchange, Input};

use crate::abi::{BatchView, CallClock, Failure, HostCalls, KeySetView, NodeRuntime, RowError, TimersView};
use crate::cells::Handle;
use crate::collections::MapCell;
use crate::keyed::{Key, KeyView, KeyedStream};
use crate::process::{Call, Context, Machine, States, add, columns_of};
use crate::row::{EmitRow, Row};
use crate::stage::{Columns, Stage};
use crate::stream::Stream;
use crate::time::Timestamp;
use crate::unkeyed::UnkeyedContext;
use crate::value::Owned;

/// There is one map, whatever the key.
const ONE: usize = 0;

/// Code with state and timers by key, and with rows of a second stream that every subtask gets.
///
/// ```
/// use tidemill::prelude::*;
///
/// #[derive(Row)]
/// struct Reading { sensor: i64, value: i64 }
///
/// #[derive(Row)]
/// struct Limit { sensor: i64, most: i64 }
///
/// #[derive(Row)]
/// struct Alarm { sensor: i64, value: i64, times: i64 }
///
/// struct Alarms { limits: BroadcastState<i64, i64>, times: ValueState<i64> }
///
/// impl KeyedBroadcastProcess for Alarms {
///     type Key = i64;
///     type In = Reading;
///     type Broadcast = Limit;
///     type Out = Alarm;
///
///     fn process(&mut self, reading: Reading, ctx: &mut Context<'_, Alarm>) -> Result<(), RowError> {
///         let most = self.limits.get(ctx, &reading.sensor);
///         if most.is_some_and(|most| reading.value > most) {
///             let times = self.times.get(ctx).unwrap_or(0) + 1;
///             self.times.set(ctx, times);
///             ctx.emit(Alarm { sensor: reading.sensor, value: reading.value, times });
///         }
///         Ok(())
///     }
///
///     fn process_broadcast(&mut self, limit: Limit, ctx: &mut BroadcastContext<'_, Alarm>) -> Result<(), RowError> {
///         self.limits.insert(ctx, limit.sensor, limit.most);
///         Ok(())
///     }
/// }
///
/// fn job(flow: &mut Flow) {
///     let limits = flow.source::<Limit>("limits");
///     flow.source::<Reading>("readings")
///         .key_by(|r| r.sensor)
///         .with_broadcast(limits)
///         .process(|s| Alarms { limits: s.broadcast("limits"), times: s.value("times") })
///         .sink("alarms");
/// }
/// # let _ = job;
/// ```
pub trait KeyedBroadcastProcess: Send + 'static {
    /// The key: the type of the column in `key_by`, or the tuple of types.
    type Key: Key;
    /// The rows that have a key.
    type In: EmitRow;
    /// The rows that every subtask gets.
    type Broadcast: EmitRow;
    /// The rows that go out.
    type Out: EmitRow;

    /// Whether any function asks for the timestamp of a row. If none does, 8 bytes per row need not cross.
    const TIMESTAMPS: bool = true;

    /// Takes a row with a key. An error sets the row aside with its reason and undoes what it did.
    fn process(&mut self, row: <Self::In as Row>::View<'_>, ctx: &mut Context<'_, Self::Out>) -> Result<(), RowError>;

    /// Takes a row of the broadcast stream, in every subtask. What it emits comes once from each.
    fn process_broadcast(
        &mut self,
        row: <Self::Broadcast as Row>::View<'_>,
        ctx: &mut BroadcastContext<'_, Self::Out>,
    ) -> Result<(), RowError>;

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

/// Code without a key that knows the rows of a second stream, which every subtask gets; as [`KeyedBroadcastProcess`].
pub trait BroadcastProcess: Send + 'static {
    /// The rows of which each subtask gets some.
    type In: EmitRow;
    /// The rows that every subtask gets.
    type Broadcast: EmitRow;
    /// The rows that go out.
    type Out: EmitRow;

    /// Whether any function asks for the timestamp of a row. If none does, 8 bytes per row need not cross.
    const TIMESTAMPS: bool = true;

    /// Takes a row. An error sets the row aside with its reason.
    fn process(
        &mut self,
        row: <Self::In as Row>::View<'_>,
        ctx: &mut UnkeyedContext<'_, Self::Out>,
    ) -> Result<(), RowError>;

    /// Takes a row of the broadcast stream, in every subtask. What it emits comes once from each.
    fn process_broadcast(
        &mut self,
        row: <Self::Broadcast as Row>::View<'_>,
        ctx: &mut BroadcastContext<'_, Self::Out>,
    ) -> Result<(), RowError>;

    /// As [`crate::unkeyed::Process::on_end`].
    fn on_end(&mut self, ctx: &mut UnkeyedContext<'_, Self::Out>) -> Result<(), RowError> {
        let _ = ctx;
        Ok(())
    }
}

/// What code can do for a row of the broadcast stream: all that can be done without a key, and change broadcast state.
pub struct BroadcastContext<'c, O: EmitRow>(UnkeyedContext<'c, O>);

impl<'c, O: EmitRow> Deref for BroadcastContext<'c, O> {
    type Target = UnkeyedContext<'c, O>;

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl<O: EmitRow> DerefMut for BroadcastContext<'_, O> {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.0
    }
}

/// What broadcast state can be read in: every context.
pub trait ReadsBroadcast {
    #[doc(hidden)]
    type Out: EmitRow;

    #[doc(hidden)]
    fn context(&mut self) -> Context<'_, Self::Out>;
}

impl<O: EmitRow> ReadsBroadcast for Context<'_, O> {
    type Out = O;

    fn context(&mut self) -> Context<'_, O> {
        self.again()
    }
}

impl<O: EmitRow> ReadsBroadcast for UnkeyedContext<'_, O> {
    type Out = O;

    fn context(&mut self) -> Context<'_, O> {
        self.0.again()
    }
}

impl<O: EmitRow> ReadsBroadcast for BroadcastContext<'_, O> {
    type Out = O;

    fn context(&mut self) -> Context<'_, O> {
        self.0.0.again()
    }
}

/// A map that every subtask has whole. Made by [`States::broadcast`].
pub struct BroadcastState<K: Owned + Ord, V: Owned>(pub(crate) Handle<MapCell<K, V>>);

impl<K: Owned + Ord, V: Owned> BroadcastState<K, V> {
    /// The value of an entry, if there is one. Asks the host, once per batch and key.
    pub fn get<C: ReadsBroadcast>(&self, ctx: &mut C, key: &K) -> Option<V> {
        let mut ctx = ctx.context();
        let (cell, host) = ctx.broadcast(&self.0);
        cell.and_then(|cell| cell.get(ONE, key, host)).cloned()
    }

    /// Whether there is an entry. Reads as `get` does.
    pub fn contains<C: ReadsBroadcast>(&self, ctx: &mut C, key: &K) -> bool {
        let mut ctx = ctx.context();
        let (cell, host) = ctx.broadcast(&self.0);
        cell.and_then(|cell| cell.get(ONE, key, host)).is_some()
    }

    /// Calls a function with each entry, by key. Reads the whole map, once per batch.
    pub fn for_each<C: ReadsBroadcast>(&self, ctx: &mut C, mut each: impl FnMut(&K, &V)) {
        let mut ctx = ctx.context();
        let (cell, host) = ctx.broadcast(&self.0);
        cell.into_iter().for_each(|cell| cell.iter(ONE, host).for_each(|(key, value)| each(key, value)));
    }

    /// All entries, by key, each a copy. Reads as `for_each` does.
    pub fn to_vec<C: ReadsBroadcast>(&self, ctx: &mut C) -> Vec<(K, V)> {
        let mut all = Vec::new();
        self.for_each(ctx, |key, value| all.push((key.clone(), value.clone())));
        all
    }

    /// Sets the value of an entry. Reads nothing.
    pub fn insert<O: EmitRow>(&self, ctx: &mut BroadcastContext<'_, O>, key: K, value: V) {
        let mut ctx = ctx.context();
        if let (Some(cell), _) = ctx.broadcast(&self.0) {
            cell.insert(ONE, key, value);
        }
    }

    /// Removes an entry, if there is one. Reads nothing.
    pub fn remove<O: EmitRow>(&self, ctx: &mut BroadcastContext<'_, O>, key: &K) {
        let mut ctx = ctx.context();
        if let (Some(cell), _) = ctx.broadcast(&self.0) {
            cell.remove(ONE, key);
        }
    }

    /// Removes all entries. Reads nothing.
    pub fn clear<O: EmitRow>(&self, ctx: &mut BroadcastContext<'_, O>) {
        let mut ctx = ctx.context();
        if let (Some(cell), _) = ctx.broadcast(&self.0) {
            cell.clear(ONE);
        }
    }
}

/// A stream divided by key, and one that every subtask gets.
#[must_use = "it does nothing by itself: go on with `.process(...)`"]
pub struct KeyedWithBroadcast<K: Key, R: Row, B: Row> {
    keyed: KeyedStream<K, R>,
    broadcast: Stream<B>,
}

/// A stream, and one that every subtask gets.
#[must_use = "it does nothing by itself: go on with `.process(...)`"]
pub struct WithBroadcast<R: Row, B: Row> {
    stream: Stream<R>,
    broadcast: Stream<B>,
}

impl<K: Key, R: Row> KeyedStream<K, R> {
    /// With another stream of which every subtask gets every row.
    pub fn with_broadcast<B: Row, S: Stage<Out = B>>(self, broadcast: Stream<B, S>) -> KeyedWithBroadcast<K, R, B> {
        KeyedWithBroadcast { keyed: self, broadcast: broadcast.share() }
    }
}

impl<R: Row, S: Stage<Out = R>> Stream<R, S> {
    /// With another stream of which every subtask gets every row.
    pub fn with_broadcast<B: Row, S2: Stage<Out = B>>(self, broadcast: Stream<B, S2>) -> WithBroadcast<R, B> {
        WithBroadcast { stream: self.share(), broadcast: broadcast.share() }
    }
}

impl<K: Key, R: EmitRow, B: EmitRow> KeyedWithBroadcast<K, R, B> {
    /// Runs a process function. The closure makes it and declares its states.
    pub fn process<P>(self, make: impl FnOnce(&mut States) -> P) -> Stream<P::Out>
    where
        P: KeyedBroadcastProcess<Key = K, In = R, Broadcast = B>,
    {
        let Self { keyed, broadcast } = self;
        let (columns, broadcast_columns, reads) = bound::<R, B>(&keyed.stream, &broadcast);
        let key_starts = keyed.key_starts(&keyed.stream.graph.borrow());
        let inputs = vec![keyed.input(reads.0), broadcast_input(&broadcast, reads.1)];
        add(&keyed.stream, inputs, P::TIMESTAMPS, make, |process, machine| {
            Box::new(KeyedNode::<P> { process, columns, broadcast_columns, key_starts, machine })
        })
    }
}

impl<R: EmitRow, B: EmitRow> WithBroadcast<R, B> {
    /// Runs a process function. The closure makes it and declares its states, of which there can be broadcast ones and
    /// operator lists only.
    pub fn process<P>(self, make: impl FnOnce(&mut States) -> P) -> Stream<P::Out>
    where
        P: BroadcastProcess<In = R, Broadcast = B>,
    {
        let Self { stream, broadcast } = self;
        let (columns, broadcast_columns, reads) = bound::<R, B>(&stream, &broadcast);
        let inputs = vec![Input { reads: reads.0, ..stream.input() }, broadcast_input(&broadcast, reads.1)];
        add(&stream, inputs, P::TIMESTAMPS, make, |process, machine| {
            Box::new(UnkeyedNode::<P> { process, columns, broadcast_columns, machine })
        })
    }
}

/// Where the columns of both kinds of rows stand in batches, and which columns of the inputs these are.
type Bound<R, B> = (Columns<R>, Columns<B>, (Vec<u32>, Vec<u32>));

fn bound<R: EmitRow, B: EmitRow>(stream: &Stream<R>, broadcast: &Stream<B>) -> Bound<R, B> {
    let (columns, reads) = columns_of(stream, "the stream");
    let (broadcast_columns, broadcast_reads) = columns_of(broadcast, "the broadcast stream");
    (columns, broadcast_columns, (reads, broadcast_reads))
}

fn broadcast_input<B: Row>(broadcast: &Stream<B>, reads: Vec<u32>) -> Input {
    Input { exchange: Exchange::Broadcast, reads, ..broadcast.input() }
}

/// Rows with a key come by the first input, broadcast ones by the second.
struct KeyedNode<P: KeyedBroadcastProcess> {
    process: P,
    columns: Columns<P::In>,
    broadcast_columns: Columns<P::Broadcast>,
    key_starts: Vec<u32>,
    machine: Machine<P::Out>,
}

impl<P: KeyedBroadcastProcess> NodeRuntime for KeyedNode<P> {
    fn process(
        &mut self,
        clock: CallClock,
        input: u32,
        batch: &BatchView<'_>,
        keys: &KeySetView<'_>,
        host: &mut dyn HostCalls,
    ) -> Result<(), Failure> {
        let Self { process, columns, broadcast_columns, machine, .. } = self;
        machine.load(keys);
        let call = Call { clock, rows: batch.rows, timestamps: batch.timestamps, keys, sees_others: true };
        if input == 0 {
            let reader = columns.reader(batch);
            return machine.call(call, host, |row, _key, ctx| process.process(P::In::view(&reader, row), ctx));
        }
        let reader = broadcast_columns.reader(batch);
        machine.call(call, host, |row, _key, ctx| {
            let mut ctx = BroadcastContext(UnkeyedContext(ctx.again()));
            process.process_broadcast(P::Broadcast::view(&reader, row), &mut ctx)
        })
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

/// The same without a key.
struct UnkeyedNode<P: BroadcastProcess> {
    process: P,
    columns: Columns<P::In>,
    broadcast_columns: Columns<P::Broadcast>,
    machine: Machine<P::Out>,
}

impl<P: BroadcastProcess> NodeRuntime for UnkeyedNode<P> {
    fn process(
        &mut self,
        clock: CallClock,
        input: u32,
        batch: &BatchView<'_>,
        keys: &KeySetView<'_>,
        host: &mut dyn HostCalls,
    ) -> Result<(), Failure> {
        let Self { process, columns, broadcast_columns, machine } = self;
        machine.load(keys);
        let sees_others = input != 0 || machine.has_lists();
        let call = Call { clock, rows: batch.rows, timestamps: batch.timestamps, keys, sees_others };
        if input == 0 {
            let reader = columns.reader(batch);
            return machine.call(call, host, |row, _key, ctx| {
                process.process(P::In::view(&reader, row), &mut UnkeyedContext(ctx.again()))
            });
        }
        let reader = broadcast_columns.reader(batch);
        machine.call(call, host, |row, _key, ctx| {
            let mut ctx = BroadcastContext(UnkeyedContext(ctx.again()));
            process.process_broadcast(P::Broadcast::view(&reader, row), &mut ctx)
        })
    }

    fn on_timers(
        &mut self,
        clock: CallClock,
        timers: &TimersView<'_>,
        host: &mut dyn HostCalls,
    ) -> Result<(), Failure> {
        let Self { process, machine, .. } = self;
        machine.end(clock, timers, host, |ctx| process.on_end(ctx))
    }
}
