//! The contract of keyed state: batch-wise, in resident columns.
//!
//! State is kept in *tables*: an entry per (namespace, key), with one or more typed value columns. Every operation takes
//! the keys of a whole batch. `resolve` makes their entries resident and answers a [`Slot`] for each, a dense handle
//! into the table's columns; reading, writing and aggregating then is indexing into columns, whatever the backend. A
//! backend differs in how entries become resident (always, in memory; by one batched read, on disk) and in what happens
//! at [`KeyedState::commit`].
//!
//! Slots hold until the next `commit` (of the memory backend: until the entry is removed), except that the slots which
//! the latest `scan` answered hold until the scan after it. A backend that evicts does it in `commit`.
//!
//! What counts as changed, for snapshots and for what a backend writes back, is whatever was resolved since the commit
//! before, or given to `write`. Slots that `find` and `scan` answered may be read through `values`, but not written there.

use std::sync::Arc;

use arrow::array::ArrayRef;
use arrow::datatypes::DataType;

use crate::Batch;
use crate::error::Result;
use crate::keys::{KeyCodec, Keys};
use crate::snapshot::{SnapshotKind, StateSnapshot, StateSpec};
use crate::user::TimeDomain;

/// A dense handle to an entry of a table in one namespace.
pub type Slot = u32;

/// No entry.
pub const NO_SLOT: Slot = u32::MAX;

/// Which part of a table: a window or pane (its end in milliseconds), or 0 for state that is not windowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Namespace(pub i64);

impl Namespace {
    /// For state that is not windowed.
    pub const GLOBAL: Self = Self(0);
}

/// A declared table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TableId(pub usize);

/// A declared row log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LogId(pub usize);

/// A value column of a table.
#[derive(Clone, Debug)]
pub struct ValueSpec {
    /// Names it in snapshots.
    pub name: String,
    /// Its type.
    pub data_type: DataType,
    /// Whether it has the times of last accesses of another column (UTC milliseconds), whose values are over by them.
    pub last_access: Option<LastAccess>,
}

impl ValueSpec {
    /// A column of values that live until they are removed.
    pub fn new(name: impl Into<String>, data_type: DataType) -> Self {
        Self { name: name.into(), data_type, last_access: None }
    }
}

/// How long values live after their last access.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LastAccess {
    /// The column that has the values.
    pub of: String,
    /// How long, in milliseconds, above 0.
    pub ttl_ms: i64,
    /// What counts as the last access of values that were kept without one: when the state began to expire, UTC
    /// milliseconds.
    pub begin_ms: i64,
}

impl LastAccess {
    /// Whether a value that was accessed at `at` last is over at `now`.
    pub fn is_over(&self, at: i64, now: i64) -> bool {
        at.checked_add(self.ttl_ms).is_some_and(|end| end <= now)
    }
}

/// The resident values of one column, indexed by slot.
#[derive(Debug)]
pub enum ValueColumn {
    /// Signed integers and times of up to 64 bits, sign-extended. Vacant entries hold 0.
    Int(Vec<i64>),
    /// Unsigned integers of up to 64 bits; booleans as 0 and 1.
    UInt(Vec<u64>),
    /// Floats.
    Float(Vec<f64>),
    /// Every other type: encoded values of `arrow-row`, empty = none. Written by [`KeyedState::write`] only.
    Encoded(Vec<Box<[u8]>>),
}

/// A table's values: one column per [`ValueSpec`] and the presence of each value.
#[derive(Debug)]
pub struct Values {
    /// In the order of the declaration.
    pub columns: Vec<ValueColumn>,
    /// Per column, per slot: whether there is a value.
    pub present: Vec<Vec<bool>>,
}

/// The state of one operator subtask. One thread uses it.
pub trait KeyedState: Send {
    /// The codec of the operator's key.
    fn codec(&self) -> &KeyCodec;

    /// Declares a table, when the operator is made. Names are unique in the operator.
    fn table(&mut self, name: &str, values: Vec<ValueSpec>) -> Result<TableId>;

    /// Everything is declared. What was restored and not declared is refused, or dropped if that was allowed.
    fn declared(&mut self) -> Result<()>;

    /// Makes the entries of these keys resident, adding absent ones without values; a slot per key. Equal keys have
    /// equal slots.
    fn resolve(&mut self, table: TableId, namespace: Namespace, keys: &Keys, slots: &mut Vec<Slot>) -> Result<()>;

    /// As `resolve`, for some rows: a slot for each of `rows`, which index `keys`.
    fn resolve_rows(
        &mut self,
        table: TableId,
        namespace: Namespace,
        keys: &Keys,
        rows: &[u32],
        slots: &mut Vec<Slot>,
    ) -> Result<()>;

    /// As `resolve`, but absent ones are not added: they answer [`NO_SLOT`].
    fn find(&mut self, table: TableId, namespace: Namespace, keys: &Keys, slots: &mut Vec<Slot>) -> Result<()>;

    /// The resident values of a namespace, for reading in place, and for writing at slots that were resolved since the
    /// latest commit. Every column and presence is at least as long as the largest slot requires; their lengths must not be changed.
    fn values(&mut self, table: TableId, namespace: Namespace) -> Result<&mut Values>;

    /// The values at these slots as an array (null where there is none, and at [`NO_SLOT`]).
    fn read(&mut self, table: TableId, namespace: Namespace, value: usize, slots: &[Slot]) -> Result<ArrayRef>;

    /// Sets the values at these slots (null: removes the value).
    fn write(
        &mut self,
        table: TableId,
        namespace: Namespace,
        value: usize,
        slots: &[Slot],
        values: &ArrayRef,
    ) -> Result<()>;

    /// Appends to lists: item `i` to the one at `slots[i]`. Items of one slot stay in order.
    fn append_items(
        &mut self,
        table: TableId,
        namespace: Namespace,
        value: usize,
        slots: &[Slot],
        items: &ArrayRef,
    ) -> Result<()>;

    /// Changes entries of maps: of the one at `slots[i]` the entry `map_keys[i]` becomes `values[i]`, or is removed if
    /// there are no `values`. Of the same entry the later wins.
    fn change_entries(
        &mut self,
        table: TableId,
        namespace: Namespace,
        value: usize,
        slots: &[Slot],
        map_keys: &ArrayRef,
        values: Option<&ArrayRef>,
    ) -> Result<()>;

    /// The values of entries of maps: of `map_keys[i]` in the one at `slots[i]`; null where there is none. `None`: they
    /// take more than `limit` bytes.
    fn find_entries(
        &mut self,
        table: TableId,
        namespace: Namespace,
        value: usize,
        slots: &[Slot],
        map_keys: &ArrayRef,
        limit: usize,
    ) -> Result<Option<ArrayRef>>;

    /// About how many bytes the lists or maps at these slots take, each.
    fn collection_bytes(
        &mut self,
        table: TableId,
        namespace: Namespace,
        value: usize,
        slots: &[Slot],
        bytes: &mut Vec<usize>,
    ) -> Result<()>;

    /// It is `now` (milliseconds UTC): looks at up to `looks` resident entries, going on where the call before ended, and
    /// removes values that are over, and entries of which nothing is left. The entries of the transaction in hand must
    /// have been written. What is written whole from now on (savepoints, first snapshots) does not have what is over.
    fn clean_up(&mut self, now: i64, looks: usize) -> Result<()>;

    /// Up to `limit` slots of a namespace: a scan in pieces, which makes them resident. `after` is the last slot of the
    /// piece before, `None` at the start. No slot at the end. Between pieces, entries may be removed, not added.
    fn scan(
        &mut self,
        table: TableId,
        namespace: Namespace,
        after: Option<Slot>,
        limit: usize,
        slots: &mut Vec<Slot>,
    ) -> Result<()>;

    /// The keys at these slots, encoded.
    fn keys(&mut self, table: TableId, namespace: Namespace, slots: &[Slot]) -> Result<Keys>;

    /// The keys at these slots, as columns.
    fn key_columns(&mut self, table: TableId, namespace: Namespace, slots: &[Slot]) -> Result<Vec<ArrayRef>>;

    /// Removes those of these entries that have no value in any column: keys that were resolved, but about which
    /// nothing is to be remembered. A slot may appear twice.
    fn remove_vacant(&mut self, table: TableId, namespace: Namespace, slots: &[Slot]) -> Result<()>;

    /// Removes entries. Their slots may be given to others. A slot may appear twice.
    fn remove(&mut self, table: TableId, namespace: Namespace, slots: &[Slot]) -> Result<()>;

    /// Removes a namespace with all entries.
    fn drop_namespace(&mut self, table: TableId, namespace: Namespace) -> Result<()>;

    /// The namespaces that have entries, ascending.
    fn namespaces(&self, table: TableId) -> Vec<Namespace>;

    /// Number of entries in a namespace; on disk at most so many where values expire, since nobody is told of those that
    /// a compaction leaves out.
    fn len(&self, table: TableId, namespace: Namespace) -> usize;

    /// Declares a row log: rows kept whole, by namespace, in order of arrival (joins).
    fn log(&mut self, name: &str, columns: Vec<DataType>) -> Result<LogId>;

    /// Appends rows (with timestamps) and their keys. Text is compacted, so that a log does not hold foreign buffers.
    fn append(&mut self, log: LogId, namespace: Namespace, rows: Batch, keys: Keys) -> Result<()>;

    /// The rows of a namespace with their keys, in pieces.
    fn rows(&mut self, log: LogId, namespace: Namespace) -> Result<&[(Batch, Arc<Keys>)]>;

    /// Removes a namespace of a log.
    fn drop_rows(&mut self, log: LogId, namespace: Namespace) -> Result<()>;

    /// The namespaces that have rows, ascending.
    fn log_namespaces(&self, log: LogId) -> Vec<Namespace>;

    /// Sets timers: for each entry, `keys[of[i]]` at `timestamps[i]`. One per key, domain and time.
    fn set_timers(&mut self, domain: TimeDomain, keys: &Keys, of: &[u32], timestamps: &[i64]) -> Result<()>;

    /// Deletes timers, if they are there.
    fn delete_timers(&mut self, domain: TimeDomain, keys: &Keys, of: &[u32], timestamps: &[i64]) -> Result<()>;

    /// Up to `limit` timers due at `up_to` or before, by time, then in the order they were set (those of before a restore
    /// in any order); they stay until they are deleted.
    fn due_timers(&mut self, domain: TimeDomain, up_to: i64, limit: usize) -> Result<(Keys, Vec<i64>)>;

    /// The earliest timer.
    fn next_timer(&self, domain: TimeDomain) -> Option<i64>;

    /// Ends a transaction: what was written is now the state. Disk backends write one batch here.
    fn commit(&mut self) -> Result<()>;

    /// Freezes everything as it is after the latest `commit`: tables, logs and timers. This is all that others wait for;
    /// the snapshot is there when `copy_frozen` has answered it. Does not wait for the snapshot before to be written. One
    /// that is still being copied is given up.
    fn freeze(&mut self, kind: SnapshotKind) -> Result<()>;

    /// Copies a bounded part of what was frozen last. Between two calls, everything but `freeze` may be called, and
    /// changes nothing of what is copied. `Some`: the snapshot, once all is copied.
    fn copy_frozen(&mut self) -> Result<Option<Box<dyn StateSnapshot>>>;

    /// Freezes and copies at once.
    fn snapshot(&mut self, kind: SnapshotKind) -> Result<Box<dyn StateSnapshot>> {
        self.freeze(kind)?;
        loop {
            if let Some(snapshot) = self.copy_frozen()? {
                return Ok(snapshot);
            }
        }
    }

    /// Entries, rows and timers held.
    fn entries(&self) -> u64;

    /// Bytes held in memory. Cheap enough to be called after each batch.
    fn memory_bytes(&self) -> usize;
}

/// Makes the state of operator subtasks.
pub trait StateBackend: Send + Sync {
    /// For an operator subtask. What is restored is there once it is declared: entries of a table after
    /// [`KeyedState::table`], rows of a log after [`KeyedState::log`], timers at once. A table whose values were
    /// declared otherwise is adapted (a value column that was added is null, one that was removed is dropped, a number
    /// that was widened is converted) or refused with the difference.
    fn open(&self, spec: StateSpec) -> Result<Box<dyn KeyedState>>;
}
