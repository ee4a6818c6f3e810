//! The states of a process function that have no key: broadcast states, and operator lists.
//!
//! They are kept in memory whatever the backend of keyed state is, each under its name, and do not travel with a call
//! (`docs/decisions/0011-operator-state.md`).

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, ListArray};
use arrow::buffer::OffsetBuffer;
use arrow::compute::concat;
use arrow::datatypes::Field;
use tidemill_core::operator::OperatorContext;
use tidemill_core::plan::{State, StateKind};
use tidemill_core::snapshot::{SnapshotKind, StateSpec, UnkeyedSnapshot};
use tidemill_core::user::{CollectionUpdate, ReadCollections};
use tidemill_core::{Error, Result};
use tidemill_state::MemoryBackend;

use super::super::Begin;
use super::broadcast::BroadcastStates;
use super::lists::ListStates;

/// Those of one subtask.
#[derive(Clone)]
pub(super) struct UnkeyedStates {
    broadcast: BroadcastStates,
    pub(super) lists: ListStates,
}

/// Whether a state has a key.
pub(super) fn is_keyed(state: &State) -> bool {
    !matches!(state.kind, StateKind::Broadcast { .. } | StateKind::OperatorList { .. })
}

impl UnkeyedStates {
    /// Declares those of `states` that have no key, with what was restored of them. `spec`: as for keyed state; its keys play
    /// no part.
    pub(super) fn declare(states: &[State], begin: &Begin, of: &OperatorContext, spec: &StateSpec) -> Result<Self> {
        let backend = MemoryBackend::new().accounted(of.memory.clone());
        let broadcast = BroadcastStates::declare(states, &begin.broadcast, spec, &backend)?;
        Ok(Self { broadcast, lists: ListStates::declare(states, &begin.lists, &of.subtask, spec, &backend)? })
    }

    /// Whether a state of the node is one of them.
    pub(super) fn has(&self, state: usize) -> bool {
        self.broadcast.has(state) || self.lists.has(state)
    }

    /// Whether there are none.
    pub(super) fn is_empty(&self) -> bool {
        self.broadcast.is_empty() && self.lists.is_empty()
    }

    /// Why these changes can't be made, if they can't. `broadcast`: the call is about rows of a broadcast input.
    pub(super) fn refused(&self, updates: &[CollectionUpdate], broadcast: bool) -> Result<Option<String>> {
        match self.broadcast.refused(updates, broadcast)? {
            None => self.lists.refused(updates),
            refused => Ok(refused),
        }
    }

    /// Makes a change; what [`UnkeyedStates::refused`] refuses must have been refused.
    pub(super) fn change(&self, update: &CollectionUpdate) -> Result<()> {
        if self.lists.has(update.state) { self.lists.change(update) } else { self.broadcast.change(update) }
    }

    /// Ends a transaction. `broadcast`: it was about rows of a broadcast input.
    pub(super) fn commit(&self, broadcast: bool) -> Result<()> {
        if broadcast {
            self.broadcast.commit()?;
        }
        self.lists.commit()
    }

    /// Freezes them.
    pub(super) fn snapshot(&self, kind: SnapshotKind) -> Result<Vec<UnkeyedSnapshot>> {
        let mut frozen = self.broadcast.snapshot(kind)?;
        frozen.append(&mut self.lists.snapshot(kind)?);
        Ok(frozen)
    }

    /// Entries and items of all of them.
    pub(super) fn entries(&self) -> u64 {
        self.broadcast.entries() + self.lists.entries()
    }

    /// Bytes held in memory.
    pub(super) fn memory_bytes(&self) -> usize {
        self.broadcast.memory_bytes() + self.lists.memory_bytes()
    }
}

/// Reads states during one call: those without a key here, those of the call's keys where they are.
pub(super) struct Reader {
    pub(super) unkeyed: UnkeyedStates,
    pub(super) keyed: Option<Arc<dyn ReadCollections>>,
}

impl Reader {
    fn keyed(&self, state: usize) -> Result<&Arc<dyn ReadCollections>> {
        self.keyed.as_ref().ok_or_else(|| Error::internal(format!("state {state} is no list or map")))
    }
}

impl ReadCollections for Reader {
    fn read(&self, state: usize, keys: &[u32], limit: usize) -> Result<Option<ArrayRef>> {
        let UnkeyedStates { broadcast, lists } = &self.unkeyed;
        if !self.unkeyed.has(state) {
            return self.keyed(state)?.read(state, keys, limit);
        }
        check_keys(keys)?;
        if lists.has(state) { lists.read(state, keys, limit) } else { broadcast.read(state, keys, limit) }
    }

    fn get(&self, state: usize, keys: &[u32], map_keys: &ArrayRef, limit: usize) -> Result<Option<ArrayRef>> {
        if !self.unkeyed.has(state) {
            return self.keyed(state)?.get(state, keys, map_keys, limit);
        }
        check_keys(keys)?;
        self.unkeyed.broadcast.find(state, map_keys, limit)
    }
}

/// A state without a key has one key number, which is 0.
fn check_keys(keys: &[u32]) -> Result<()> {
    match keys.iter().find(|key| **key != 0) {
        Some(key) => Err(Error::internal(format!("key {key} of a state without keys"))),
        None => Ok(()),
    }
}

/// So many lists of these items, one after the other.
pub(super) fn repeated(items: &ArrayRef, times: usize, nullable: bool) -> Result<ArrayRef> {
    let field = Arc::new(Field::new("item", items.data_type().clone(), nullable));
    let lengths = OffsetBuffer::from_lengths((0..times).map(|_| items.len()));
    let items = match times {
        0 => items.slice(0, 0),
        1 => Arc::clone(items),
        _ => concat(&vec![items.as_ref(); times])?,
    };
    Ok(Arc::new(ListArray::try_new(field, lengths, items, None)?))
}

/// Pieces of a column, of which there is one at least, as one.
pub(super) fn whole(pieces: &[ArrayRef]) -> Result<ArrayRef> {
    Ok(concat(&pieces.iter().map(AsRef::as_ref).collect::<Vec<&dyn Array>>())?)
}

#[cfg(test)]
mod tests {
    use arrow::array::Int64Array;
    use tidemill_core::ErrorKind;
    use tidemill_core::ids::{MaxParallelism, NodeId, SubtaskId, SubtaskIndex};
    use tidemill_core::keys::KeyCodec;
    use tidemill_core::memory::{Owner, ProcessMemory};
    use tidemill_core::plan::{DataType, Redistribution};
    use tidemill_core::time::SystemClock;
    use tidemill_core::user::CollectionChange;

    use super::*;

    #[test]
    fn they_are_counted_in_the_account_of_the_job_and_bounded_by_it() {
        let process = ProcessMemory::new(Some(1 << 20));
        let (node, index) = (NodeId(1), SubtaskIndex(0));
        let context = OperatorContext {
            subtask: SubtaskId { job: "a".into(), node, operator: "p".into(), index, parallelism: 1 },
            max_parallelism: MaxParallelism::DEFAULT,
            batch_rows: 10,
            clock: Arc::new(SystemClock),
            metrics: Arc::default(),
            memory: process.job("a"),
        };
        let kinds = [
            StateKind::Broadcast { key: DataType::Int64 },
            StateKind::OperatorList { redistribution: Redistribution::Split },
        ];
        let states = kinds.map(|kind| State { kind, ..State::value("kept", DataType::Int64) });
        let spec = StateSpec::empty(KeyCodec::new(&[arrow::datatypes::DataType::Int64], false).unwrap());
        let begin = Begin::fresh(MaxParallelism::DEFAULT);
        let unkeyed = UnkeyedStates::declare(&states, &begin, &context, &spec).unwrap();
        let numbers = |count| -> ArrayRef { Arc::new(Int64Array::from_iter_values(0..count)) };
        let change = |state, change| {
            unkeyed.change(&CollectionUpdate { state, keys: vec![0].into(), change }).unwrap();
            unkeyed.commit(true)
        };
        let held = || process.held().of(Owner::State);
        let insert = |count| CollectionChange::Insert { map_keys: numbers(count), values: numbers(count) };
        change(0, insert(1_000)).unwrap();
        let broadcast = held();
        assert!((16_000..200_000).contains(&broadcast), "{broadcast}");
        change(1, CollectionChange::Append(numbers(1_000))).unwrap();
        assert!(held() > broadcast + 8_000, "{}", held());
        let refused = change(0, insert(200_000)).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Limit);
        assert!(refused.message().contains("job 'a' holds"), "{refused}");
        drop(unkeyed);
        assert_eq!(held(), 0);
    }
}
