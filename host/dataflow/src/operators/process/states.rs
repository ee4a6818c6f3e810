//! The states of a process function in its table: values that travel with a call, those of them that expire, and lists
//! and maps that do not travel.
//!
//! A value that expires has a second column, the time of its last access. It is over when that and its time-to-live have
//! passed by the clock of the call; then it is removed before the call, and nobody sees it any more.
//!
//! Invariant: the state is locked for single operations only, never across a call of user code, which may read it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arrow::array::{Array, ArrayRef, AsArray, ListArray, TimestampMillisecondArray, new_null_array};
use arrow::buffer::OffsetBuffer;
use arrow::datatypes::{DataType as ArrowType, Field, TimeUnit, TimestampMillisecondType};
use tidemill_core::plan::{State, StateKind, TtlUpdate};
use tidemill_core::state::{KeyedState, LastAccess, Namespace, Slot, TableId, ValueSpec};
use tidemill_core::types::{last_access_name, state_type};
use tidemill_core::user::{CollectionChange, CollectionUpdate, ReadCollections, StateUpdate};
use tidemill_core::{Error, Result};

/// What a list or map of one key may take. A batch that changes it copies it once, and it is read as a whole: where more
/// is needed, the key should be finer.
const MAX_COLLECTION_BYTES: usize = 16 << 20;

/// So many entries are looked at after a batch, and twice as many as it had keys, for values that are over: so cleaning up
/// comes round faster than entries are added, and costs little where there are few keys.
const LOOKS: usize = 64;

const GLOBAL: Namespace = Namespace::GLOBAL;

/// The states of one node.
pub(super) struct States {
    shared: Shared,
    pub(super) table: TableId,
    kept: Arc<[Kept]>,
}

/// One state. Its column has its index.
struct Kept {
    name: String,
    kind: StateKind,
    data_type: ArrowType,
    expires: Option<Expires>,
}

/// That its values expire.
struct Expires {
    /// The column of their last accesses.
    times: usize,
    last_access: LastAccess,
    on_read: bool,
}

/// The state of the operator, which a call reads while the operator waits for it.
#[derive(Clone)]
pub(super) struct Shared(Arc<Mutex<Box<dyn KeyedState>>>);

impl Shared {
    pub(super) fn lock(&self) -> MutexGuard<'_, Box<dyn KeyedState>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl States {
    /// Declares them. What was stored without the time of its last access counts as accessed at `now`.
    pub(super) fn declare(mut state: Box<dyn KeyedState>, states: &[State], now: i64) -> Result<Self> {
        let mut specs: Vec<ValueSpec> = states.iter().map(|s| ValueSpec::new(&s.name, state_type(s))).collect();
        let mut kept = Vec::with_capacity(states.len());
        for State { name, kind, ttl, .. } in states {
            let expires = ttl.map(|ttl| {
                let ttl_ms = i64::try_from(ttl.duration_ms).unwrap_or(i64::MAX);
                let last_access = LastAccess { of: name.clone(), ttl_ms, begin_ms: now };
                let time = ArrowType::Timestamp(TimeUnit::Millisecond, None);
                let spec = ValueSpec::new(last_access_name(name), time);
                specs.push(ValueSpec { last_access: Some(last_access.clone()), ..spec });
                Expires { times: specs.len() - 1, last_access, on_read: ttl.update == TtlUpdate::OnReadAndWrite }
            });
            let data_type = specs.get(kept.len()).map_or(ArrowType::Null, |spec| spec.data_type.clone());
            kept.push(Kept { name: name.clone(), kind: kind.clone(), data_type, expires });
        }
        let table = state.table("values", specs)?;
        state.declared()?;
        Ok(Self { shared: Shared(Arc::new(Mutex::new(state))), table, kept: kept.into() })
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Box<dyn KeyedState>> {
        self.shared.lock()
    }

    /// The values of these keys, for a call at `now`; those that are over are removed. Whether some were.
    pub(super) fn load(&self, slots: &[Slot], now: i64, values: &mut Vec<ArrayRef>) -> Result<bool> {
        values.clear();
        let mut expired = false;
        for (column, kept) in self.kept.iter().enumerate().filter(|(_, kept)| kept.kind == StateKind::Value) {
            if let Some(expires) = &kept.expires {
                expired |= self.remove_over(column, kept, expires, slots, now)?;
            }
            values.push(self.lock().read(self.table, GLOBAL, column, slots)?);
        }
        Ok(expired)
    }

    fn remove_over(&self, column: usize, kept: &Kept, expires: &Expires, slots: &[Slot], now: i64) -> Result<bool> {
        let mut state = self.lock();
        let times = state.read(self.table, GLOBAL, expires.times, slots)?;
        let times = times.as_primitive_opt::<TimestampMillisecondType>();
        let times = times.ok_or_else(|| Error::internal("last accesses that are no times"))?;
        let is_over = |at: Option<i64>| at.is_some_and(|at| expires.last_access.is_over(at, now));
        let over: Vec<Slot> = slots.iter().zip(times).filter(|(_, at)| is_over(*at)).map(|(&slot, _)| slot).collect();
        if over.is_empty() {
            return Ok(false);
        }
        state.write(self.table, GLOBAL, column, &over, &new_null_array(&kept.data_type, over.len()))?;
        self.set_times(&mut **state, expires, &over, &[], now)?;
        Ok(true)
    }

    /// Sets last accesses to `now`: of all, or of those that are `there`; of the others there is none.
    fn set_times(
        &self,
        state: &mut dyn KeyedState,
        expires: &Expires,
        slots: &[Slot],
        there: &[bool],
        now: i64,
    ) -> Result<()> {
        let time = |i: usize| there.get(i).is_some_and(|there| *there).then_some(now);
        let times: ArrayRef = Arc::new((0..slots.len()).map(time).collect::<TimestampMillisecondArray>());
        state.write(self.table, GLOBAL, expires.times, slots, &times)
    }

    /// The call that was given `values` at `now` succeeded: what counts as read was accessed.
    pub(super) fn were_read(&self, slots: &[Slot], values: &[ArrayRef], now: i64) -> Result<()> {
        let of_values = self.kept.iter().filter(|kept| kept.kind == StateKind::Value);
        for (kept, values) in of_values.zip(values) {
            let Some(expires) = kept.expires.as_ref().filter(|expires| expires.on_read) else { continue };
            let read = slots.iter().enumerate().filter(|(i, _)| values.is_valid(*i));
            let read: Vec<Slot> = read.map(|(_, &slot)| slot).collect();
            if !read.is_empty() {
                self.set_times(&mut **self.lock(), expires, &read, &vec![true; read.len()], now)?;
            }
        }
        Ok(())
    }

    /// Sets values of the keys at these slots.
    pub(super) fn write(&self, update: &StateUpdate, slots: &[Slot], now: i64) -> Result<()> {
        let mut state = self.lock();
        state.write(self.table, GLOBAL, update.state, slots, &update.values)?;
        if let Some(expires) = self.kept.get(update.state).and_then(|kept| kept.expires.as_ref()) {
            let there: Vec<bool> = (0..slots.len()).map(|i| update.values.is_valid(i)).collect();
            self.set_times(&mut **state, expires, slots, &there, now)?;
        }
        Ok(())
    }

    /// Changes lists or maps of the keys at these slots.
    pub(super) fn change(&self, update: &CollectionUpdate, slots: &[Slot]) -> Result<()> {
        let (mut state, table, column) = (self.lock(), self.table, update.state);
        match &update.change {
            CollectionChange::Append(items) => state.append_items(table, GLOBAL, column, slots, items),
            CollectionChange::Insert { map_keys, values } => {
                state.change_entries(table, GLOBAL, column, slots, map_keys, Some(values))
            }
            CollectionChange::Remove(map_keys) => state.change_entries(table, GLOBAL, column, slots, map_keys, None),
            CollectionChange::Clear => {
                let kept = self.kept.get(column).ok_or_else(|| Error::internal(format!("state {column}")))?;
                state.write(table, GLOBAL, column, slots, &new_null_array(&kept.data_type, slots.len()))
            }
        }
    }

    /// Why these changes can't be made, if some list or map would become too large. `slots` are those of the call's keys.
    pub(super) fn too_large(&self, updates: &[CollectionUpdate], slots: &[Slot]) -> Result<Option<String>> {
        // By state and key: bytes that are added, and whether what is there goes.
        let mut added = BTreeMap::<(usize, u32), (usize, bool)>::new();
        // Broadcast states, which are behind, have a limit of their own.
        for CollectionUpdate { state, keys, change } in updates.iter().filter(|u| u.state < self.kept.len()) {
            let bytes = |row: usize| match change {
                CollectionChange::Append(items) => PIECE + value_bytes(items, row),
                CollectionChange::Insert { map_keys, values } => {
                    2 * PIECE + value_bytes(map_keys, row) + value_bytes(values, row)
                }
                CollectionChange::Remove(_) | CollectionChange::Clear => 0,
            };
            for (row, &key) in keys.iter().enumerate() {
                let (all, cleared) = added.entry((*state, key)).or_default();
                match change {
                    CollectionChange::Clear => (*all, *cleared) = (0, true),
                    _ => *all += bytes(row),
                }
            }
        }
        let mut before = Vec::new();
        for ((column, key), (added, cleared)) in added {
            let slot = slots.get(key as usize).copied().ok_or_else(unknown_key)?;
            self.lock().collection_bytes(self.table, GLOBAL, column, &[slot], &mut before)?;
            let there = before.first().copied().filter(|_| !cleared).unwrap_or_default();
            let (all, kept) = (there + added, self.kept.get(column));
            if all > MAX_COLLECTION_BYTES && added > 0 {
                let name = kept.map_or("", |kept| kept.name.as_str());
                return Ok(Some(format!(
                    "state '{name}' of one key would take {all} bytes; {MAX_COLLECTION_BYTES} are possible for a list or \
                     map. Remove what is no longer needed, or make the key finer"
                )));
            }
        }
        Ok(None)
    }

    /// Reads lists and maps of the keys at these slots, for one call. `None`: there are none to read.
    pub(super) fn reader(&self, slots: &[Slot]) -> Option<Arc<dyn ReadCollections>> {
        self.kept.iter().any(|kept| kept.kind != StateKind::Value).then(|| {
            let (shared, kept) = (self.shared.clone(), Arc::clone(&self.kept));
            let reader = Reader { shared, table: self.table, kept, slots: slots.to_vec() };
            Arc::new(reader) as Arc<dyn ReadCollections>
        })
    }

    /// After a transaction of so many keys: removes some of what is over.
    pub(super) fn clean_up(&self, now: i64, keys: usize) -> Result<()> {
        if self.kept.iter().any(|kept| kept.expires.is_some()) {
            self.lock().clean_up(now, LOOKS + 2 * keys)?;
        }
        Ok(())
    }
}

/// What a piece of a list or map takes beside its bytes.
const PIECE: usize = 4;

/// About how many bytes a value takes.
pub(super) fn value_bytes(array: &dyn Array, row: usize) -> usize {
    let view = |views: &[u128]| views.get(row).map_or(0, |&view| view as u32 as usize);
    match array.data_type() {
        ArrowType::Utf8View => 2 + view(array.as_string_view().views()),
        ArrowType::BinaryView => 2 + view(array.as_binary_view().views()),
        ArrowType::Struct(_) => 1 + array.as_struct().columns().iter().map(|c| value_bytes(c, row)).sum::<usize>(),
        ArrowType::List(_) => {
            let lists = array.as_list::<i32>();
            let offset = |at: usize| lists.offsets().get(at).map_or(0, |&offset| offset as usize);
            1 + (offset(row)..offset(row + 1)).map(|item| value_bytes(lists.values(), item)).sum::<usize>()
        }
        _ => 9,
    }
}

/// Reads lists and maps during one call.
struct Reader {
    shared: Shared,
    table: TableId,
    kept: Arc<[Kept]>,
    /// Of the call's keys.
    slots: Vec<Slot>,
}

impl Reader {
    fn slots(&self, keys: &[u32]) -> Result<Vec<Slot>> {
        let slots = keys.iter().map(|&key| self.slots.get(key as usize).copied()).collect::<Option<_>>();
        slots.ok_or_else(unknown_key)
    }
}

impl ReadCollections for Reader {
    fn read(&self, state: usize, keys: &[u32], limit: usize) -> Result<Option<ArrayRef>> {
        let slots = self.slots(keys)?;
        if self.kept.get(state).is_none_or(|kept| kept.kind == StateKind::Value) {
            return Err(Error::internal(format!("state {state} is no list or map")));
        }
        let (mut shared, mut bytes) = (self.shared.lock(), Vec::new());
        shared.collection_bytes(self.table, GLOBAL, state, &slots, &mut bytes)?;
        // A key may be named often.
        if bytes.into_iter().fold(0, usize::saturating_add) > limit {
            return Ok(None);
        }
        as_lists(&shared.read(self.table, GLOBAL, state, &slots)?).map(Some)
    }

    fn get(&self, state: usize, keys: &[u32], map_keys: &ArrayRef, limit: usize) -> Result<Option<ArrayRef>> {
        let slots = self.slots(keys)?;
        self.shared.lock().find_entries(self.table, GLOBAL, state, &slots, map_keys, limit)
    }
}

/// Lists or maps as the contract has them: as lists, none of them absent.
fn as_lists(array: &ArrayRef) -> Result<ArrayRef> {
    let (ends, items): (Vec<i64>, ArrayRef) = match array.data_type() {
        ArrowType::LargeList(_) => {
            let lists = array.as_list::<i64>();
            (lists.offsets().to_vec(), Arc::clone(lists.values()))
        }
        ArrowType::Map(..) => {
            let maps = array.as_map();
            (maps.offsets().iter().map(|&end| end.into()).collect(), Arc::new(maps.entries().clone()))
        }
        other => return Err(Error::internal(format!("lists or maps that are kept as {other}"))),
    };
    let too_many = |_| Error::internal("two billion items of lists or maps are read at once");
    let ends = ends.into_iter().map(i32::try_from).collect::<Result<Vec<_>, _>>().map_err(too_many)?;
    let field = Field::new("item", items.data_type().clone(), matches!(array.data_type(), ArrowType::LargeList(_)));
    Ok(Arc::new(ListArray::try_new(Arc::new(field), OffsetBuffer::new(ends.into()), items, None)?))
}

fn unknown_key() -> Error {
    Error::internal("a list or map of a key that the call does not have")
}

#[cfg(test)]
mod tests {
    use arrow::array::{Int64Array, StringViewArray};
    use arrow::datatypes::Int64Type;
    use tidemill_core::keys::KeyCodec;
    use tidemill_core::plan::DataType;
    use tidemill_core::snapshot::StateSpec;
    use tidemill_core::state::StateBackend;
    use tidemill_state::MemoryBackend;

    use super::*;

    const LIST: usize = 0;
    const MAP: usize = 1;

    /// A list of texts and a map of numbers to texts, and the slots of two keys.
    fn states() -> (States, Vec<Slot>) {
        let codec = KeyCodec::new(&[ArrowType::Int64], false).unwrap();
        let state = MemoryBackend::new().open(StateSpec::empty(codec)).unwrap();
        let of = |name: &str, kind| State { kind, ..State::value(name, DataType::Utf8) };
        let declared = [of("names", StateKind::List), of("by id", StateKind::Map { key: DataType::Int64 })];
        let states = States::declare(state, &declared, 0).unwrap();
        let mut state = states.lock();
        let keys = state.codec().encode(2, &[Arc::new(Int64Array::from(vec![1, 2]))]).unwrap();
        let mut slots = Vec::new();
        state.resolve(states.table, GLOBAL, &keys, &mut slots).unwrap();
        drop(state);
        (states, slots)
    }

    fn text(bytes: usize) -> ArrayRef {
        Arc::new(StringViewArray::from(vec!["x".repeat(bytes)]))
    }

    fn update(state: usize, key: u32, change: CollectionChange) -> CollectionUpdate {
        CollectionUpdate { state, keys: vec![key].into(), change }
    }

    #[test]
    fn what_becomes_too_large_is_told_before_it_is() {
        let (states, slots) = states();
        let append = |key, bytes| update(LIST, key, CollectionChange::Append(text(bytes)));
        let insert = |key, bytes| {
            let map_keys = Arc::new(Int64Array::from(vec![7]));
            update(MAP, key, CollectionChange::Insert { map_keys, values: text(bytes) })
        };
        let too_large = |updates: &[CollectionUpdate]| states.too_large(updates, &slots).unwrap();
        const MB: usize = 1 << 20;
        assert_eq!(too_large(&[append(0, 9 * MB), append(1, 9 * MB), insert(0, 9 * MB)]), None);
        let message = too_large(&[append(0, 9 * MB), append(1, MB), append(0, 9 * MB)]).unwrap();
        assert!(message.contains("state 'names' of one key would take") && message.contains("16777216"), "{message}");
        let message = too_large(&[insert(1, 17 * MB)]).unwrap();
        assert!(message.contains("state 'by id'"), "{message}");
        assert_eq!(too_large(&[append(0, 17 * MB), update(LIST, 0, CollectionChange::Clear)]), None);

        states.change(&append(0, 9 * MB), &slots[..1]).unwrap();
        assert!(too_large(&[append(0, 9 * MB)]).is_some(), "with what is there");
        assert_eq!(too_large(&[append(1, 9 * MB)]), None, "another key");
        assert_eq!(too_large(&[update(LIST, 0, CollectionChange::Clear), append(0, 9 * MB)]), None);
    }

    #[test]
    fn reading_is_bounded_however_often_a_key_is_named() {
        let (states, slots) = states();
        states.change(&update(LIST, 1, CollectionChange::Append(text(1_000))), &slots[1..]).unwrap();
        let map_keys: ArrayRef = Arc::new(Int64Array::from(vec![5]));
        let insert = CollectionChange::Insert { map_keys: Arc::clone(&map_keys), values: text(1_000) };
        states.change(&update(MAP, 1, insert), &slots[1..]).unwrap();
        let reader = states.reader(&slots).unwrap();
        let read = reader.read(LIST, &[0, 1, 0], 3_000).unwrap().unwrap();
        let lengths: Vec<usize> = (0..3).map(|i| read.as_list::<i32>().value(i).len()).collect();
        assert_eq!(lengths, [0, 1, 0]);
        assert!(reader.read(LIST, &[1; 100], 3_000).unwrap().is_none());
        let map = reader.read(MAP, &[1], usize::MAX).unwrap().unwrap();
        let entries = map.as_list::<i32>().value(0);
        assert_eq!(entries.as_struct().column(0).as_primitive::<Int64Type>().values(), &[5]);
        assert!(reader.get(MAP, &[1], &map_keys, 500).unwrap().is_none());
        let found = reader.get(MAP, &[1], &map_keys, usize::MAX).unwrap().unwrap();
        assert_eq!(found.as_string_view().value(0).len(), 1_000);
        assert_eq!(reader.get(MAP, &[0], &map_keys, usize::MAX).unwrap().unwrap().null_count(), 1);
        assert!(reader.read(LIST, &[2], 3_000).is_err(), "a key that the call does not have");
    }
}
