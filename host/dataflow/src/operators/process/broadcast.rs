//! The broadcast states of a process function: maps without a key, of which every subtask has the whole.
//!
//! Each is kept as a table whose key is the map's key, in memory whatever the backend of keyed state is
//! (`docs/decisions/0011-operator-state.md`). Invariant: only rows of a broadcast input change it, so that what one subtask
//! has is what every subtask has.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arrow::array::{Array, ArrayRef, StructArray, new_empty_array};
use arrow::datatypes::DataType as ArrowType;
use tidemill_core::plan::{State, StateKind};
use tidemill_core::snapshot::{KeyGroupRange, RestoredState, SnapshotKind, StateSpec, UnkeyedSnapshot};
use tidemill_core::state::{KeyedState, NO_SLOT, Namespace, Slot, StateBackend, TableId, ValueSpec};
use tidemill_core::types::{arrow_type, map_entry};
use tidemill_core::user::{CollectionChange, CollectionUpdate};
use tidemill_core::{Error, Result};
use tidemill_state::MemoryBackend;

use super::super::DECLARE_AGAIN;
use super::states::value_bytes;
use super::unkeyed::{repeated, whole};

/// What the broadcast states of a subtask may take together: each subtask has them whole, in memory and in checkpoints.
const MAX_BROADCAST_BYTES: usize = 64 << 20;
/// Entries that are read at once.
const ENTRIES_AT_ONCE: usize = 4_096;

const GLOBAL: Namespace = Namespace::GLOBAL;

/// The broadcast states of one subtask.
#[derive(Clone)]
pub(super) struct BroadcastStates {
    /// By their index among the states of the node.
    kept: Arc<BTreeMap<usize, Kept>>,
}

struct Kept {
    name: String,
    key: ArrowType,
    value: ArrowType,
    table: TableId,
    state: Mutex<Box<dyn KeyedState>>,
}

impl Kept {
    fn lock(&self) -> MutexGuard<'_, Box<dyn KeyedState>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl BroadcastStates {
    /// Declares those of `states` that are broadcast, with what was restored of them, by name. `spec`: as for keyed state;
    /// its keys play no part.
    pub(super) fn declare(
        states: &[State],
        restored: &[(String, RestoredState)],
        spec: &StateSpec,
        backend: &MemoryBackend,
    ) -> Result<Self> {
        let is_declared =
            |name: &str| states.iter().any(|s| s.name == name && matches!(s.kind, StateKind::Broadcast { .. }));
        let gone = restored.iter().find(|(name, from)| !from.allow_non_restored && !is_declared(name));
        if let Some((name, _)) = gone {
            let message =
                format!("the broadcast state '{name}' of operator '{}' was kept, and is not declared", spec.operator);
            return Err(Error::invalid(message).mend(DECLARE_AGAIN));
        }
        let mut kept = BTreeMap::new();
        for (index, state) in states.iter().enumerate() {
            let StateKind::Broadcast { key } = &state.kind else { continue };
            let (key, value) = (arrow_type(key), arrow_type(&state.data_type));
            let codec = tidemill_core::keys::KeyCodec::new(std::slice::from_ref(&key), false)?;
            let mut keyed = backend.open(StateSpec {
                codec,
                operator: spec.operator.clone(),
                key_groups: KeyGroupRange::all(spec.max_parallelism),
                max_parallelism: spec.max_parallelism,
                restored: restored.iter().find(|(name, _)| *name == state.name).map(|(_, from)| from.clone()),
            })?;
            let table = keyed.table(&state.name, vec![ValueSpec::new("value", value.clone())])?;
            keyed.declared()?;
            kept.insert(index, Kept { name: state.name.clone(), key, value, table, state: Mutex::new(keyed) });
        }
        Ok(Self { kept: Arc::new(kept) })
    }

    /// Whether a state of the node is one of them.
    pub(super) fn has(&self, state: usize) -> bool {
        self.kept.contains_key(&state)
    }

    /// Whether there are none.
    pub(super) fn is_empty(&self) -> bool {
        self.kept.is_empty()
    }

    /// Why these changes can't be made, if they can't. `writable`: the call is about rows of a broadcast input.
    pub(super) fn refused(&self, updates: &[CollectionUpdate], writable: bool) -> Result<Option<String>> {
        let mut added = 0;
        for update in updates.iter().filter(|update| self.has(update.state)) {
            let name = &self.get(update.state)?.name;
            if !writable {
                return Ok(Some(format!(
                    "broadcast state '{name}' can be changed for rows of a broadcast input only, so that all subtasks have \
                     the same"
                )));
            }
            match &update.change {
                CollectionChange::Insert { values, .. } if values.null_count() > 0 => {
                    return Ok(Some(format!("broadcast state '{name}' can't keep an absent value; remove the entry")));
                }
                CollectionChange::Insert { map_keys, values } => {
                    let bytes = |row| value_bytes(map_keys, row) + value_bytes(values, row);
                    added += (0..values.len()).map(bytes).sum::<usize>();
                }
                CollectionChange::Append(_) => return Ok(Some(format!("broadcast state '{name}' is no list"))),
                CollectionChange::Remove(_) | CollectionChange::Clear => {}
            }
        }
        let all = added + self.memory_bytes();
        Ok((added > 0 && all > MAX_BROADCAST_BYTES).then(|| {
            format!(
                "the broadcast states of a subtask would take {all} bytes; {MAX_BROADCAST_BYTES} are possible. Remove entries \
                 that are no longer needed, or join with the stream by a key"
            )
        }))
    }

    /// Makes a change; what [`BroadcastStates::refused`] refuses must have been refused.
    pub(super) fn change(&self, update: &CollectionUpdate) -> Result<()> {
        let kept = self.get(update.state)?;
        let (mut state, mut slots) = (kept.lock(), Vec::new());
        match &update.change {
            CollectionChange::Insert { map_keys, values } => {
                let keys = state.codec().encode(map_keys.len(), std::slice::from_ref(map_keys))?;
                state.resolve(kept.table, GLOBAL, &keys, &mut slots)?;
                state.write(kept.table, GLOBAL, 0, &slots, values)
            }
            CollectionChange::Remove(map_keys) => {
                let keys = state.codec().encode(map_keys.len(), std::slice::from_ref(map_keys))?;
                state.find(kept.table, GLOBAL, &keys, &mut slots)?;
                slots.retain(|slot| *slot != NO_SLOT);
                state.remove(kept.table, GLOBAL, &slots)
            }
            CollectionChange::Clear => state.drop_namespace(kept.table, GLOBAL),
            CollectionChange::Append(_) => Err(Error::internal(format!("state '{}' is no list", kept.name))),
        }
    }

    /// Ends a transaction.
    pub(super) fn commit(&self) -> Result<()> {
        self.kept.values().try_for_each(|kept| kept.lock().commit())
    }

    /// Freezes them.
    pub(super) fn snapshot(&self, kind: SnapshotKind) -> Result<Vec<UnkeyedSnapshot>> {
        let snapshot = |kept: &Kept| {
            Ok(UnkeyedSnapshot { name: kept.name.clone(), items: None, state: kept.lock().snapshot(kind)? })
        };
        self.kept.values().map(snapshot).collect()
    }

    /// Entries of all of them.
    pub(super) fn entries(&self) -> u64 {
        self.kept.values().map(|kept| kept.lock().entries()).sum()
    }

    /// Bytes held in memory.
    pub(super) fn memory_bytes(&self) -> usize {
        self.kept.values().map(|kept| kept.lock().memory_bytes()).sum()
    }

    /// All entries of one: lists of its structs of key and value, as many as it is named by `keys`. `None`: they take more
    /// than about `limit` bytes.
    pub(super) fn read(&self, state: usize, keys: &[u32], limit: usize) -> Result<Option<ArrayRef>> {
        let kept = self.get(state)?;
        let held = kept.lock().memory_bytes();
        // The same one may be asked for often.
        if held.saturating_mul(keys.len()) > limit {
            return Ok(None);
        }
        let (map_keys, values) = kept.entries()?;
        let fields = map_entry(kept.key.clone(), kept.value.clone());
        let entries: ArrayRef = Arc::new(StructArray::try_new(fields, vec![map_keys, values], None)?);
        repeated(&entries, keys.len(), false).map(Some)
    }

    /// The values of some entries of one; null where there is none. `None`: they take more than `limit` bytes.
    pub(super) fn find(&self, state: usize, map_keys: &ArrayRef, limit: usize) -> Result<Option<ArrayRef>> {
        let kept = self.get(state)?;
        let (mut held, mut slots) = (kept.lock(), Vec::new());
        let encoded = held.codec().encode(map_keys.len(), std::slice::from_ref(map_keys))?;
        held.find(kept.table, GLOBAL, &encoded, &mut slots)?;
        let found = held.read(kept.table, GLOBAL, 0, &slots)?;
        let bytes: usize = (0..found.len()).map(|row| value_bytes(&found, row)).sum();
        Ok((bytes <= limit).then_some(found))
    }

    fn get(&self, state: usize) -> Result<&Kept> {
        self.kept.get(&state).ok_or_else(|| Error::internal(format!("state {state} is no broadcast state")))
    }
}

impl Kept {
    /// All entries: their keys and values.
    fn entries(&self) -> Result<(ArrayRef, ArrayRef)> {
        let mut state = self.lock();
        let (mut keys, mut values) = (vec![new_empty_array(&self.key)], vec![new_empty_array(&self.value)]);
        let (mut after, mut slots) = (None::<Slot>, Vec::new());
        loop {
            state.scan(self.table, GLOBAL, after, ENTRIES_AT_ONCE, &mut slots)?;
            after = slots.last().copied();
            if after.is_none() {
                break;
            }
            keys.extend(state.key_columns(self.table, GLOBAL, &slots)?.into_iter().take(1));
            values.push(state.read(self.table, GLOBAL, 0, &slots)?);
        }
        Ok((whole(&keys)?, whole(&values)?))
    }
}

#[cfg(test)]
mod tests {
    use arrow::array::{AsArray, Int64Array, StringViewArray};
    use arrow::datatypes::Int64Type;
    use tidemill_core::ids::MaxParallelism;
    use tidemill_core::keys::KeyCodec;
    use tidemill_core::plan::DataType;
    use tidemill_core::snapshot::StateHandle;
    use tidemill_state::testing::MemoryFiles;

    use super::*;

    const RULES: usize = 1;

    fn declared(value: DataType) -> Vec<State> {
        let kind = StateKind::Broadcast { key: DataType::Int64 };
        vec![State::value("kept", DataType::Int64), State { kind, ..State::value("rules", value) }]
    }

    fn open(states: &[State], restored: &[(String, RestoredState)], groups: u16) -> Result<BroadcastStates> {
        let codec = KeyCodec::new(&[ArrowType::Int64], false).unwrap();
        let spec =
            StateSpec { operator: "judge".into(), max_parallelism: groups_of(groups), ..StateSpec::empty(codec) };
        BroadcastStates::declare(states, restored, &spec, &MemoryBackend::new())
    }

    fn groups_of(groups: u16) -> MaxParallelism {
        MaxParallelism::new(groups).unwrap()
    }

    fn numbers(numbers: &[i64]) -> ArrayRef {
        Arc::new(Int64Array::from(numbers.to_vec()))
    }

    fn update(change: CollectionChange, rows: usize) -> CollectionUpdate {
        CollectionUpdate { state: RULES, keys: vec![0; rows].into(), change }
    }

    fn insert(map_keys: &[i64], values: ArrayRef) -> CollectionUpdate {
        let rows = map_keys.len();
        update(CollectionChange::Insert { map_keys: numbers(map_keys), values }, rows)
    }

    /// Everything, in order of the keys.
    fn all(states: &BroadcastStates) -> Vec<(i64, i64)> {
        let lists = states.read(RULES, &[0], usize::MAX).unwrap().unwrap();
        let entries = lists.as_list::<i32>().value(0);
        let column = |at| entries.as_struct().column(at).as_primitive::<Int64Type>().values().to_vec();
        let mut all: Vec<_> = column(0).into_iter().zip(column(1)).collect();
        all.sort_unstable();
        all
    }

    #[test]
    fn entries_are_put_replaced_removed_and_found() {
        let states = open(&declared(DataType::Int64), &[], 128).unwrap();
        assert!(!states.has(0) && states.has(RULES));
        states.change(&insert(&[1, 2, 1], numbers(&[10, 20, 11]))).unwrap();
        states.commit().unwrap();
        assert_eq!(all(&states), [(1, 11), (2, 20)]);
        states.change(&update(CollectionChange::Remove(numbers(&[2, 7])), 2)).unwrap();
        states.commit().unwrap();
        let found = states.find(RULES, &numbers(&[1, 2]), usize::MAX).unwrap().unwrap();
        assert_eq!(found.as_primitive::<Int64Type>().iter().collect::<Vec<_>>(), [Some(11), None]);
        assert!(states.read(0, &[0], usize::MAX).is_err(), "a keyed state");
        assert!(states.read(RULES, &[0], 0).unwrap().is_none(), "more than may be read");
        // What is cleared and put in one transaction is there.
        states.change(&update(CollectionChange::Clear, 1)).unwrap();
        states.change(&insert(&[5], numbers(&[50]))).unwrap();
        states.commit().unwrap();
        assert_eq!(all(&states), [(5, 50)]);
        // More than are read at once.
        let many: Vec<i64> = (0..10_000).collect();
        states.change(&insert(&many, numbers(&many))).unwrap();
        states.commit().unwrap();
        assert_eq!(all(&states), many.iter().map(|n| (*n, *n)).collect::<Vec<_>>());
    }

    #[test]
    fn what_would_make_subtasks_differ_or_grow_without_end_is_refused() {
        let states = open(&declared(DataType::Utf8), &[], 128).unwrap();
        let text = |bytes: usize| -> ArrayRef { Arc::new(StringViewArray::from(vec!["x".repeat(bytes)])) };
        let refused = |update: &CollectionUpdate, writable| {
            states.refused(std::slice::from_ref(update), writable).unwrap().unwrap_or_default()
        };
        let small = insert(&[1], text(10));
        assert_eq!(refused(&small, true), "");
        assert!(refused(&small, false).contains("rows of a broadcast input only"));
        assert!(refused(&update(CollectionChange::Clear, 1), false).contains("'rules'"));
        let absent: ArrayRef = Arc::new(StringViewArray::from(vec![None::<&str>]));
        assert!(refused(&insert(&[1], absent), true).contains("absent"));
        assert!(refused(&insert(&[1], text(MAX_BROADCAST_BYTES)), true).contains("67108864 are possible"));
        // Those of keys are no business of this.
        let keyed = CollectionUpdate { state: 0, keys: vec![3].into(), change: CollectionChange::Clear };
        assert_eq!(refused(&keyed, false), "");
    }

    #[test]
    fn what_was_frozen_comes_back_whole_with_other_key_groups_and_a_wider_type() {
        let states = open(&declared(DataType::Int32), &[], 128).unwrap();
        let narrow: ArrayRef = Arc::new((0..500).collect::<arrow::array::Int32Array>());
        states.change(&insert(&(0..500).collect::<Vec<_>>(), narrow)).unwrap();
        states.commit().unwrap();
        let files = Arc::new(MemoryFiles::new());
        let frozen = states.snapshot(SnapshotKind::Portable).unwrap();
        let handles: Vec<_> = frozen.into_iter().map(|f| (f.name, f.state.write(&*files).unwrap())).collect();
        let restored = |allow_non_restored| -> Vec<(String, RestoredState)> {
            let from = |handle: &StateHandle| RestoredState {
                handles: vec![handle.clone()],
                files: files.clone(),
                max_parallelism: groups_of(128),
                allow_non_restored,
            };
            handles.iter().map(|(name, handle)| (name.clone(), from(handle))).collect()
        };
        let again = open(&declared(DataType::Int64), &restored(false), 4).unwrap();
        assert_eq!(all(&again), (0..500).map(|n| (n, n)).collect::<Vec<_>>());
        let none = [State::value("kept", DataType::Int64)];
        let error = open(&none, &restored(false), 128).err().unwrap().to_string();
        assert!(error.contains("'rules'") && error.contains("--allow-non-restored"), "{error}");
        assert!(open(&none, &restored(true), 128).unwrap().is_empty());
    }
}
