//! The operator lists of a process function without a key: each subtask has one of its own, and when the job goes on at
//! another parallelism they are redistributed as the plan says.
//!
//! Each is kept as a table whose keys are the places of the items and whose namespace is the subtask, in memory whatever the
//! backend of keyed state is: so an append is written to a checkpoint as what it is, and a list comes back in its order.
//! Invariant: `next` is behind the places of all items.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arrow::array::{ArrayRef, AsArray, Int64Array, new_empty_array};
use arrow::compute::{sort_to_indices, take};
use arrow::datatypes::{DataType as ArrowType, Int64Type};
use tidemill_core::ids::SubtaskId;
use tidemill_core::keys::KeyCodec;
use tidemill_core::plan::{Redistribution, State, StateKind};
use tidemill_core::snapshot::{KeyGroupRange, RestoredState, SnapshotKind, StateSpec, UnkeyedSnapshot};
use tidemill_core::state::{KeyedState, Namespace, Slot, StateBackend, TableId, ValueSpec};
use tidemill_core::types::arrow_type;
use tidemill_core::user::{CollectionChange, CollectionUpdate};
use tidemill_core::{Error, Result};
use tidemill_state::MemoryBackend;

use super::super::{DECLARE_AGAIN, RestoredList, RestoredPiece};
use super::states::value_bytes;
use super::unkeyed::{repeated, whole};

/// What the operator lists of a subtask may take together: they are in memory, and a call may read them whole.
const MAX_LIST_BYTES: usize = 64 << 20;
/// What an item takes beside its value: its place, and where that is found.
const PLACE_BYTES: usize = 24;
/// Items that are read at once.
const ITEMS_AT_ONCE: usize = 4_096;

/// The operator lists of one subtask.
#[derive(Clone)]
pub(super) struct ListStates {
    /// By their index among the states of the node.
    kept: Arc<BTreeMap<usize, Kept>>,
}

struct Kept {
    name: String,
    list: Mutex<List>,
}

impl Kept {
    fn lock(&self) -> MutexGuard<'_, List> {
        self.list.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ListStates {
    /// Declares those of `states` that are operator lists, with what of the restored ones is the subtask's. `spec`: as for
    /// keyed state; its keys play no part.
    pub(super) fn declare(
        states: &[State],
        restored: &[RestoredList],
        subtask: &SubtaskId,
        spec: &StateSpec,
        backend: &MemoryBackend,
    ) -> Result<Self> {
        let is_declared =
            |name: &str| states.iter().any(|s| s.name == name && matches!(s.kind, StateKind::OperatorList { .. }));
        let is_missed = |list: &&RestoredList| list.pieces.iter().any(|piece| !piece.from.allow_non_restored);
        if let Some(gone) = restored.iter().filter(is_missed).find(|list| !is_declared(&list.name)) {
            let message = format!(
                "the operator list '{}' of operator '{}' was kept, and is not declared",
                gone.name, spec.operator
            );
            return Err(Error::invalid(message).mend(DECLARE_AGAIN));
        }
        let mut kept = BTreeMap::new();
        for (index, state) in states.iter().enumerate() {
            let StateKind::OperatorList { redistribution } = state.kind else { continue };
            let maker = Maker { state, item: arrow_type(&state.data_type), subtask, spec, backend };
            let restored = restored.iter().find(|list| list.name == state.name);
            let list = maker.list(redistribution, restored)?;
            kept.insert(index, Kept { name: state.name.clone(), list: Mutex::new(list) });
        }
        let lists = Self { kept: Arc::new(kept) };
        let (bytes, moved) = (lists.memory_bytes(), restored.iter().any(|list| !list.own));
        if moved && bytes > MAX_LIST_BYTES {
            let message = format!(
                "at parallelism {}, a subtask of operator '{}' would have operator lists of {bytes} bytes; {MAX_LIST_BYTES} \
                 are possible",
                subtask.parallelism, spec.operator
            );
            return Err(Error::invalid(message).mend("Go on at the parallelism that it had, or at a higher one."));
        }
        Ok(lists)
    }

    /// Whether a state of the node is one of them.
    pub(super) fn has(&self, state: usize) -> bool {
        self.kept.contains_key(&state)
    }

    /// Whether there are none.
    pub(super) fn is_empty(&self) -> bool {
        self.kept.is_empty()
    }

    /// Whether some list has an item.
    pub(super) fn hold_any(&self) -> bool {
        self.entries() > 0
    }

    /// Why these changes can't be made, if they can't.
    pub(super) fn refused(&self, updates: &[CollectionUpdate]) -> Result<Option<String>> {
        // What each takes afterwards.
        let mut bytes: BTreeMap<usize, usize> =
            self.kept.iter().map(|(index, kept)| (*index, kept.lock().state.memory_bytes())).collect();
        let mut added = 0;
        for update in updates.iter().filter(|update| self.has(update.state)) {
            let name = &self.get(update.state)?.name;
            let bytes = bytes.entry(update.state).or_default();
            match &update.change {
                CollectionChange::Append(items) => {
                    let more = (0..items.len()).map(|row| PLACE_BYTES + value_bytes(items, row)).sum::<usize>();
                    (added, *bytes) = (added + more, *bytes + more);
                }
                CollectionChange::Clear => *bytes = 0,
                CollectionChange::Insert { .. } | CollectionChange::Remove(_) => {
                    return Ok(Some(format!("operator list '{name}' is no map")));
                }
            }
        }
        let all: usize = bytes.values().sum();
        Ok((added > 0 && all > MAX_LIST_BYTES).then(|| {
            format!(
                "the operator lists of a subtask would take {all} bytes; {MAX_LIST_BYTES} are possible. Emit what they hold \
                 and clear them more often, or keep it by key"
            )
        }))
    }

    /// Makes a change; what [`ListStates::refused`] refuses must have been refused.
    pub(super) fn change(&self, update: &CollectionUpdate) -> Result<()> {
        let kept = self.get(update.state)?;
        match &update.change {
            CollectionChange::Append(items) => kept.lock().append(items),
            CollectionChange::Clear => kept.lock().clear(),
            CollectionChange::Insert { .. } | CollectionChange::Remove(_) => {
                Err(Error::internal(format!("operator list '{}' is no map", kept.name)))
            }
        }
    }

    /// All items of one: as many lists as it is named by `keys`. `None`: they take more than about `limit` bytes.
    pub(super) fn read(&self, state: usize, keys: &[u32], limit: usize) -> Result<Option<ArrayRef>> {
        let mut list = self.get(state)?.lock();
        // The same one may be asked for often.
        if list.state.memory_bytes().saturating_mul(keys.len()) > limit {
            return Ok(None);
        }
        repeated(&list.items()?, keys.len(), true).map(Some)
    }

    /// Empties all: the subtask is at the end of its input.
    pub(super) fn clear(&self) -> Result<()> {
        self.kept.values().try_for_each(|kept| kept.lock().clear())
    }

    /// Ends a transaction.
    pub(super) fn commit(&self) -> Result<()> {
        self.kept.values().try_for_each(|kept| kept.lock().state.commit())
    }

    /// Freezes them.
    pub(super) fn snapshot(&self, kind: SnapshotKind) -> Result<Vec<UnkeyedSnapshot>> {
        let snapshot = |kept: &Kept| {
            let mut list = kept.lock();
            let (items, state) = (Some(list.state.entries()), list.state.snapshot(kind)?);
            Ok(UnkeyedSnapshot { name: kept.name.clone(), items, state })
        };
        self.kept.values().map(snapshot).collect()
    }

    /// Items of all of them.
    pub(super) fn entries(&self) -> u64 {
        self.kept.values().map(|kept| kept.lock().state.entries()).sum()
    }

    /// Bytes held in memory.
    pub(super) fn memory_bytes(&self) -> usize {
        self.kept.values().map(|kept| kept.lock().state.memory_bytes()).sum()
    }

    fn get(&self, state: usize) -> Result<&Kept> {
        self.kept.get(&state).ok_or_else(|| Error::internal(format!("state {state} is no operator list")))
    }
}

/// One list.
struct List {
    item: ArrowType,
    namespace: Namespace,
    table: TableId,
    /// The place of the next item.
    next: i64,
    state: Box<dyn KeyedState>,
}

impl List {
    fn append(&mut self, items: &ArrayRef) -> Result<()> {
        let end = self.next.saturating_add(i64::try_from(items.len()).unwrap_or(i64::MAX));
        let places: ArrayRef = Arc::new(Int64Array::from_iter_values(self.next..end));
        let (keys, mut slots) = (self.state.codec().encode(items.len(), &[places])?, Vec::new());
        self.state.resolve(self.table, self.namespace, &keys, &mut slots)?;
        self.state.write(self.table, self.namespace, 0, &slots, items)?;
        self.next = end;
        Ok(())
    }

    fn clear(&mut self) -> Result<()> {
        self.next = 0;
        self.state.drop_namespace(self.table, self.namespace)
    }

    /// All items, in order.
    fn items(&mut self) -> Result<ArrayRef> {
        let (places, mut items) = self.placed(self.namespace)?;
        // They lie as they came, but for what was restored.
        if !places.as_primitive::<Int64Type>().values().is_sorted() {
            items = take(&items, &sort_to_indices(&places, None, None)?, None)?;
        }
        Ok(items)
    }

    /// The places and items of a namespace.
    fn placed(&mut self, namespace: Namespace) -> Result<(ArrayRef, ArrayRef)> {
        let (mut places, mut items) = (vec![new_empty_array(&ArrowType::Int64)], vec![new_empty_array(&self.item)]);
        let (mut after, mut slots) = (None::<Slot>, Vec::new());
        loop {
            self.state.scan(self.table, namespace, after, ITEMS_AT_ONCE, &mut slots)?;
            after = slots.last().copied();
            if after.is_none() {
                break;
            }
            places.extend(self.state.key_columns(self.table, namespace, &slots)?.into_iter().take(1));
            items.push(self.state.read(self.table, namespace, 0, &slots)?);
        }
        Ok((whole(&places)?, whole(&items)?))
    }
}

/// Makes the list of a state.
struct Maker<'a> {
    state: &'a State,
    item: ArrowType,
    subtask: &'a SubtaskId,
    spec: &'a StateSpec,
    backend: &'a MemoryBackend,
}

impl Maker<'_> {
    /// The subtask's list, of what was restored.
    fn list(&self, redistribution: Redistribution, restored: Option<&RestoredList>) -> Result<List> {
        let own = i64::from(self.subtask.index.0);
        match restored {
            None => self.open(own, None),
            Some(RestoredList { own: true, pieces, .. }) => match pieces.first() {
                None => self.open(own, None),
                Some(piece) => self.open(own, Some(piece)),
            },
            Some(RestoredList { pieces, .. }) => {
                let lengths: Vec<u64> = pieces.iter().map(|piece| piece.items).collect();
                let (index, parallelism) = (self.subtask.index.0, self.subtask.parallelism);
                let mut list = self.open(own, None)?;
                for (at, range) in parts(redistribution, &lengths, index, parallelism) {
                    let Some(piece) = pieces.get(at) else { continue };
                    list.append(&self.part(piece, range)?)?;
                }
                list.state.commit()?;
                Ok(list)
            }
        }
    }

    /// Some items of what another subtask had.
    fn part(&self, piece: &RestoredPiece, range: Range<u64>) -> Result<ArrayRef> {
        let mut list = self.open(0, Some(piece))?;
        // Whose it was.
        if let Some(namespace) = list.state.namespaces(list.table).first() {
            list.namespace = *namespace;
        }
        let at = |place: u64| usize::try_from(place).map_err(|_| Error::internal("a list of too many items"));
        Ok(list.items()?.slice(at(range.start)?, at(range.end - range.start)?))
    }

    /// A list with all items of a piece; without one, an empty list.
    fn open(&self, namespace: i64, piece: Option<&RestoredPiece>) -> Result<List> {
        let mut state = self.backend.open(StateSpec {
            codec: KeyCodec::new(&[ArrowType::Int64], false)?,
            operator: self.spec.operator.clone(),
            key_groups: KeyGroupRange::all(self.spec.max_parallelism),
            max_parallelism: self.spec.max_parallelism,
            restored: piece.map(|piece| RestoredState::clone(&piece.from)),
        })?;
        let table = state.table(&self.state.name, vec![ValueSpec::new("value", self.item.clone())])?;
        state.declared()?;
        let mut list = List { item: self.item.clone(), namespace: Namespace(namespace), table, next: 0, state };
        let Some(piece) = piece else { return Ok(list) };
        if list.state.entries() != piece.items {
            let message = format!(
                "the operator list '{}' of operator '{}' has {} items, and the checkpoint names {}",
                self.state.name,
                self.spec.operator,
                list.state.entries(),
                piece.items
            );
            return Err(Error::invalid(message).mend("Go on from another checkpoint or a savepoint."));
        }
        let (places, _) = list.placed(list.namespace)?;
        let last = places.as_primitive::<Int64Type>().values().iter().max();
        list.next = last.map_or(0, |last| last.saturating_add(1));
        Ok(list)
    }
}

/// What of lists of these lengths a subtask gets at another parallelism: which list, and which of its items, in order.
fn parts(redistribution: Redistribution, lengths: &[u64], subtask: u32, parallelism: u32) -> Vec<(usize, Range<u64>)> {
    let all: u64 = lengths.iter().sum();
    let bound = |part: u32| (u128::from(all) * u128::from(part) / u128::from(parallelism.max(1))) as u64;
    let (start, end) = match redistribution {
        Redistribution::Split => (bound(subtask), bound(subtask + 1)),
        Redistribution::Union => (0, all),
    };
    let mut parts = Vec::new();
    let mut before = 0;
    for (at, length) in lengths.iter().enumerate() {
        // Of the items of this list, counted through all.
        let (first, last) = (start.max(before), end.min(before + length));
        if first < last {
            parts.push((at, first - before..last - before));
        }
        before += length;
    }
    parts
}

#[cfg(test)]
mod tests;
