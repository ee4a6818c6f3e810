//! Process functions without a key, and operator lists: what each subtask keeps for itself.
//!
//! An operator list does not belong to a key but to a subtask, as positions or a buffer do. When the job goes on at another
//! parallelism the lists of all subtasks are redistributed: cut into even parts, or all of them to each. As lists by key they
//! do not come with a batch: what the code changes goes to the host at the end of the call, what it reads is asked for.

use tidemill_plan::Input;

use crate::abi::{BatchView, CallClock, Failure, HostCalls, KeySetView, NodeRuntime, RowError, TimersView};
use crate::cells::Handle;
use crate::collections::ListCell;
use crate::process::{Call, Context, Machine, Side, States, add, columns_of};
use crate::row::{EmitRow, IntoRow, Row};
use crate::stage::{Columns, Stage};
use crate::stream::Stream;
use crate::time::Timestamp;
use crate::value::Owned;

/// There is one list, whatever the row.
const ONE: usize = 0;

/// Code without a key: its state are operator lists.
///
/// ```
/// use tidemill::prelude::*;
///
/// #[derive(Row)]
/// struct Reading { value: i64 }
///
/// #[derive(Row)]
/// struct Sum { rows: i64, sum: i64 }
///
/// /// One row for every hundred.
/// struct Hundreds { held: OperatorListState<i64> }
///
/// impl Hundreds {
///     fn emit(&self, ctx: &mut UnkeyedContext<'_, Sum>) {
///         let held = self.held.to_vec(ctx);
///         ctx.emit(Sum { rows: held.len() as i64, sum: held.iter().sum() });
///         self.held.clear(ctx);
///     }
/// }
///
/// impl Process for Hundreds {
///     type In = Reading;
///     type Out = Sum;
///
///     fn process(&mut self, reading: Reading, ctx: &mut UnkeyedContext<'_, Sum>) -> Result<(), RowError> {
///         self.held.push(ctx, reading.value);
///         if self.held.iter(ctx).count() >= 100 {
///             self.emit(ctx);
///         }
///         Ok(())
///     }
///
///     fn on_end(&mut self, ctx: &mut UnkeyedContext<'_, Sum>) -> Result<(), RowError> {
///         self.emit(ctx);
///         Ok(())
///     }
/// }
///
/// fn job(flow: &mut Flow) {
///     flow.source::<Reading>("readings").process(|s| Hundreds { held: s.operator_list("held") }).sink("sums");
/// }
/// # let _ = job;
/// ```
pub trait Process: Send + 'static {
    /// The rows that come in.
    type In: EmitRow;
    /// The rows that go out.
    type Out: EmitRow;

    /// Whether `process` asks for the timestamp of a row. If it doesn't, 8 bytes per row need not cross.
    const TIMESTAMPS: bool = true;

    /// Takes a row. An error sets the row aside with its reason and undoes what it did.
    fn process(
        &mut self,
        row: <Self::In as Row>::View<'_>,
        ctx: &mut UnkeyedContext<'_, Self::Out>,
    ) -> Result<(), RowError>;

    /// The input is at its end, and some operator list of the subtask holds something: the last chance to emit it. What is
    /// emitted has the event time that was reached; without event time, none. The lists are empty afterwards. It is not
    /// called when the job is stopped, nor with empty lists.
    fn on_end(&mut self, ctx: &mut UnkeyedContext<'_, Self::Out>) -> Result<(), RowError> {
        let _ = ctx;
        Ok(())
    }
}

/// What code can do for a row without a key.
pub struct UnkeyedContext<'c, O: EmitRow>(pub(crate) Context<'c, O>);

impl<O: EmitRow> UnkeyedContext<'_, O> {
    /// Emits a row. It has the timestamp of the row of the call.
    #[inline]
    pub fn emit<V: IntoRow<Row = O>>(&mut self, row: V) {
        self.0.emit(row);
    }

    /// Emits a row to a side output.
    #[inline]
    pub fn side<R: EmitRow, V: IntoRow<Row = R>>(&mut self, side: &Side<R>, row: V) {
        self.0.side(side, row);
    }

    /// The event time of the row, if the stream has event time; at the end of the input the one that was reached.
    pub fn timestamp(&self) -> Option<Timestamp> {
        self.0.timestamp()
    }

    /// How far event time has come: nothing earlier is expected any more.
    pub fn watermark(&self) -> Timestamp {
        self.0.watermark()
    }

    /// Processing time. It differs from subtask to subtask: nothing that is kept for all may depend on it.
    pub fn processing_time(&self) -> Timestamp {
        self.0.processing_time()
    }
}

/// A list that the subtask has for itself. Made by [`States::operator_list`] or [`States::union_list`].
pub struct OperatorListState<T: Owned>(pub(crate) Handle<ListCell<T>>);

impl<T: Owned> OperatorListState<T> {
    /// Appends an item. Reads nothing.
    #[inline]
    pub fn push<O: EmitRow>(&self, ctx: &mut UnkeyedContext<'_, O>, item: T) {
        if let (Some(cell), _) = ctx.0.operator_list(&self.0) {
            cell.push(ONE, item);
        }
    }

    /// Appends items. Reads nothing.
    pub fn extend<O: EmitRow>(&self, ctx: &mut UnkeyedContext<'_, O>, items: impl IntoIterator<Item = T>) {
        items.into_iter().for_each(|item| self.push(ctx, item));
    }

    /// The items, in order. Asks the host, once per batch.
    pub fn iter<'c, O: EmitRow>(
        &self,
        ctx: &'c mut UnkeyedContext<'_, O>,
    ) -> impl Iterator<Item = &'c T> + use<'c, T, O> {
        let (cell, host) = ctx.0.operator_list(&self.0);
        cell.into_iter().flat_map(move |cell| cell.iter(ONE, &mut *host))
    }

    /// Calls a function with each item, in order. Reads as `iter` does.
    pub fn for_each<O: EmitRow>(&self, ctx: &mut UnkeyedContext<'_, O>, each: impl FnMut(&T)) {
        self.iter(ctx).for_each(each);
    }

    /// The items, in order, each a copy. Reads as `iter` does.
    pub fn to_vec<O: EmitRow>(&self, ctx: &mut UnkeyedContext<'_, O>) -> Vec<T> {
        self.iter(ctx).cloned().collect()
    }

    /// Replaces the list. Reads nothing.
    pub fn set<O: EmitRow>(&self, ctx: &mut UnkeyedContext<'_, O>, items: impl IntoIterator<Item = T>) {
        self.clear(ctx);
        self.extend(ctx, items);
    }

    /// Removes all items. Reads nothing.
    pub fn clear<O: EmitRow>(&self, ctx: &mut UnkeyedContext<'_, O>) {
        if let (Some(cell), _) = ctx.0.operator_list(&self.0) {
            cell.clear(ONE);
        }
    }
}

impl<R: EmitRow, S: Stage<Out = R>> Stream<R, S> {
    /// Runs a process function without a key. The closure makes it and declares its states, of which there can be operator
    /// lists only: `.process(|s| Hundreds { held: s.operator_list("held") })`.
    pub fn process<P: Process<In = R>>(self, make: impl FnOnce(&mut States) -> P) -> Stream<P::Out> {
        self.process_on(make)
    }
}

impl<R: Row, S: Stage<Out = R>> Stream<R, S> {
    /// As `process`, for a function that reads other (fewer) columns than the row type has; they are found by name.
    pub fn process_on<P: Process>(self, make: impl FnOnce(&mut States) -> P) -> Stream<P::Out> {
        let stream = self.share();
        let (columns, reads) = columns_of(&stream, "the stream");
        let inputs = vec![Input { reads, ..stream.input() }];
        add(&stream, inputs, P::TIMESTAMPS, make, |process, machine| {
            Box::new(ProcessNode::<P> { process, columns, machine })
        })
    }
}

/// The code of a process node without a key.
struct ProcessNode<P: Process> {
    process: P,
    columns: Columns<P::In>,
    machine: Machine<P::Out>,
}

impl<P: Process> NodeRuntime for ProcessNode<P> {
    fn process(
        &mut self,
        clock: CallClock,
        _input: u32,
        batch: &BatchView<'_>,
        keys: &KeySetView<'_>,
        host: &mut dyn HostCalls,
    ) -> Result<(), Failure> {
        let Self { process, columns, machine } = self;
        let reader = columns.reader(batch);
        machine.load(keys);
        let sees_others = machine.has_lists();
        let call = Call { clock, rows: batch.rows, timestamps: batch.timestamps, keys, sees_others };
        machine.call(call, host, |row, _key, ctx| {
            process.process(P::In::view(&reader, row), &mut UnkeyedContext(ctx.again()))
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
