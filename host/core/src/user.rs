//! The contract between the engine and the code of users, whichever way that code runs.
//!
//! `tidemill-wasm` implements it for components in the sandbox, `tidemill-testkit` for the same code linked natively.
//! The engine stages what a call returns in [`Effects`] and applies it only when the call succeeded: a call is a
//! transaction.
//!
//! Implementations check what user code hands back (lengths, indices, types) while they build [`Effects`]; the engine
//! relies on it.

use std::fmt;
use std::sync::Arc;

use arrow::array::ArrayRef;
use arrow::buffer::ScalarBuffer;
use tidemill_plan::Node;

use crate::Batch;
use crate::error::{Error, Result};
use crate::ids::{Port, SubtaskId};
use crate::process::Surroundings;
use crate::time::{Timestamp, Watermark};

/// Makes instances of user code for the operators of one job.
pub trait UserCodeFactory: Send + Sync {
    /// An instance for one subtask of `node`, opened. `node` is as pruned: its `reads` index the batches that arrive.
    fn open(
        &self,
        subtask: &SubtaskId,
        node: &Node,
        metrics: &Arc<crate::metrics::TaskMetrics>,
    ) -> Result<Box<dyn UserCode>>;

    /// The same code in these surroundings: there its memory is counted and its messages go. `None`: it makes no use of
    /// them.
    fn within(&self, _: &Surroundings) -> Option<Arc<dyn UserCodeFactory>> {
        None
    }
}

/// The times of a call.
#[derive(Clone, Copy, Debug)]
pub struct CallClock {
    /// The operator's watermark.
    pub watermark: Watermark,
    /// Processing time.
    pub processing_time: Timestamp,
}

/// Event time or processing time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum TimeDomain {
    /// Driven by watermarks.
    Event,
    /// Driven by the clock.
    Processing,
}

/// The distinct keys of a call and their state.
#[derive(Clone)]
pub struct KeySet<'a> {
    /// How many distinct keys.
    pub keys: usize,
    /// Per row (or timer): the number of its key.
    pub key_of_row: &'a [u32],
    /// Per declared state of kind `value`, in order: an array of `keys` values; null = none.
    pub states: &'a [ArrayRef],
    /// Reads lists and maps of the keys, until the call returns. Absent where the node declares none.
    pub collections: Option<Arc<dyn ReadCollections>>,
}

impl fmt::Debug for KeySet<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let KeySet { keys, key_of_row, states, .. } = self;
        let mut shown = f.debug_struct("KeySet");
        shown.field("keys", keys).field("key_of_row", key_of_row).field("states", states).finish_non_exhaustive()
    }
}

/// Lists and maps of a call's keys, as they were before it. `state` is the index among all states of the node, `keys`
/// are key numbers of the call: the caller has checked both, and the types.
pub trait ReadCollections: Send + Sync {
    /// The whole list of each key (`List`), or map (`List` of structs of `key` and `value`); empty where there is none.
    /// `None`: they take more than about `limit` bytes.
    fn read(&self, state: usize, keys: &[u32], limit: usize) -> Result<Option<ArrayRef>>;

    /// The values of entries of maps, one per entry of `keys` and `map_keys`; null where there is none. `None` as for
    /// `read`.
    fn get(&self, state: usize, keys: &[u32], map_keys: &ArrayRef, limit: usize) -> Result<Option<ArrayRef>>;
}

/// Timers that are due.
#[derive(Clone, Debug)]
pub struct DueTimers<'a> {
    /// Which time.
    pub domain: TimeDomain,
    /// Per timer, ascending: its time in milliseconds UTC.
    pub timestamps: &'a ScalarBuffer<i64>,
    /// The key's columns, one value per distinct key.
    pub key_columns: &'a [ArrayRef],
    /// The keys and their state; `key_of_row` is per timer.
    pub keys: KeySet<'a>,
}

/// One subtask's instance of user code.
///
/// Batches hold exactly the columns that the node's input `reads`, in that order, and timestamps if it reads them.
/// After an error the next call must work: the implementation makes a fresh instance if the old one is spoilt.
pub trait UserCode: Send {
    /// `transform` nodes.
    fn transform(
        &mut self,
        clock: CallClock,
        input: u32,
        batch: &Batch,
        effects: &mut Effects,
    ) -> Result<(), UserFailure>;

    /// `process` nodes, rows.
    fn process(
        &mut self,
        clock: CallClock,
        input: u32,
        batch: &Batch,
        keys: &KeySet<'_>,
        effects: &mut Effects,
    ) -> Result<(), UserFailure>;

    /// `process` nodes, timers.
    fn on_timers(&mut self, clock: CallClock, timers: &DueTimers<'_>, effects: &mut Effects)
    -> Result<(), UserFailure>;

    /// User aggregators: adds rows; `accumulators` has a value (null = none yet) per group; answers as many, after it.
    fn accumulate(
        &mut self,
        aggregator: u32,
        group_of_row: &[u32],
        batch: &Batch,
        accumulators: &ArrayRef,
    ) -> Result<ArrayRef, UserFailure>;

    /// User aggregators: merges pairwise.
    fn merge(&mut self, aggregator: u32, left: &ArrayRef, right: &ArrayRef) -> Result<ArrayRef, UserFailure>;

    /// User aggregators: accumulators to results.
    fn finish(&mut self, aggregator: u32, accumulators: &ArrayRef) -> Result<ArrayRef, UserFailure>;

    /// The last call, after the end of the input; not promised, since after a failure there is none. Nothing can be
    /// emitted or stored any more.
    fn close(&mut self) -> Result<()> {
        Ok(())
    }

    /// Bytes of memory that the instance holds.
    fn memory_bytes(&self) -> usize;
}

/// What a call wants to happen. Only shapes that were checked get in here.
#[derive(Debug, Default)]
pub struct Effects {
    /// In the order of emission.
    pub emissions: Vec<Emission>,
    /// In order; a later one for the same key wins.
    pub states: Vec<StateUpdate>,
    /// In order.
    pub collections: Vec<CollectionUpdate>,
    /// In order.
    pub timers: Vec<TimerUpdate>,
}

impl Effects {
    /// Forgets everything, for the next call.
    pub fn clear(&mut self) {
        self.emissions.clear();
        self.states.clear();
        self.collections.clear();
        self.timers.clear();
    }
}

/// Rows for a port.
#[derive(Debug)]
pub struct Emission {
    /// A port of the node.
    pub port: Port,
    /// What the rows derive from.
    pub rows: EmittedRows,
    /// The columns of the port whose origin is `new`, in order, each with one value per emitted row.
    pub columns: Vec<ArrayRef>,
}

/// What emitted rows derive from.
#[derive(Debug)]
pub enum EmittedRows {
    /// Every row (or timer) of the call, in order.
    All,
    /// The rows (or timers) of the call with these indices.
    Of(ScalarBuffer<u32>),
    /// None: so many new rows, with timestamps of their own (or none).
    New {
        /// How many.
        rows: usize,
        /// Milliseconds UTC.
        timestamps: Option<ScalarBuffer<i64>>,
    },
}

/// New values of a state.
#[derive(Debug)]
pub struct StateUpdate {
    /// Index of the state in the node.
    pub state: usize,
    /// Key numbers of the call.
    pub keys: ScalarBuffer<u32>,
    /// One value per key; null removes.
    pub values: ArrayRef,
}

/// Changes of lists or maps.
#[derive(Debug)]
pub struct CollectionUpdate {
    /// Index of the state in the node; its kind is the change's.
    pub state: usize,
    /// Key numbers of the call: one per item or entry.
    pub keys: ScalarBuffer<u32>,
    /// What happens to them.
    pub change: CollectionChange,
}

/// What happens to lists or maps.
#[derive(Debug)]
pub enum CollectionChange {
    /// Items are appended to lists.
    Append(ArrayRef),
    /// Entries are put into maps.
    Insert {
        /// Their keys, none null.
        map_keys: ArrayRef,
        /// And values.
        values: ArrayRef,
    },
    /// Entries with these keys are removed from maps.
    Remove(ArrayRef),
    /// Lists or maps become empty.
    Clear,
}

/// Timers to set or delete.
#[derive(Debug)]
pub struct TimerUpdate {
    /// Which time.
    pub domain: TimeDomain,
    /// Delete instead of set.
    pub delete: bool,
    /// Key numbers of the call.
    pub keys: ScalarBuffer<u32>,
    /// Milliseconds UTC, one per entry of `keys`.
    pub timestamps: ScalarBuffer<i64>,
}

/// Why a call of user code did not succeed. Nothing of it takes effect.
#[derive(Clone, Debug)]
pub enum UserFailure {
    /// Something passing: call again later with the same rows.
    Retry(String),
    /// These rows of the call, for these reasons.
    Rows(Vec<(u32, String)>),
    /// It will never succeed.
    Fatal(String),
    /// The code is not the cause: it could not be run, for this reason.
    Engine(Error),
    /// It trapped, exceeded a limit or broke the contract: the message says which, with the guest's backtrace.
    /// Some row may be the cause: the engine searches for it.
    Trap(String),
}
