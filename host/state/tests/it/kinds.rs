//! Lists, maps and values that expire: random operations on a backend and on a model, over snapshots and restores; and
//! named cases of what changes of a declaration mean.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, Int64Array, StringViewArray, TimestampMillisecondArray, new_null_array};
use arrow::datatypes::{DataType, Int64Type, TimeUnit, TimestampMillisecondType};
use proptest::prelude::*;
use tidemill_core::ids::MaxParallelism;
use tidemill_core::keys::{KeyCodec, Keys};
use tidemill_core::plan::{self, State, StateKind};
use tidemill_core::snapshot::{KeyGroupRange, RestoredState, SnapshotKind, StateHandle, StateSnapshot, StateSpec};
use tidemill_core::state::{KeyedState, LastAccess, NO_SLOT, Namespace, Slot, TableId, ValueSpec};
use tidemill_core::types::state_type;
use tidemill_state::testing::MemoryFiles;
use tidemill_state::{PartKind, StateReader};

use crate::backends::{self, Backend};
use crate::on_each_backend;

const NS: Namespace = Namespace::GLOBAL;
const TTL_MS: i64 = 100;
const KEYS: i64 = 12;

const LIST: usize = 0;
const MAP: usize = 1;
const VALUE: usize = 2;
const TIME: usize = 3;

fn of_kind(kind: StateKind) -> DataType {
    state_type(&State { kind, ..State::value("s", plan::DataType::Int64) })
}

fn expiring(name: &str, ttl_ms: i64, begin_ms: i64) -> [ValueSpec; 2] {
    let time = DataType::Timestamp(TimeUnit::Millisecond, None);
    let last_access = Some(LastAccess { of: name.into(), ttl_ms, begin_ms });
    let times = ValueSpec { last_access, ..ValueSpec::new(format!("{name}.last_access"), time) };
    [ValueSpec::new(name, DataType::Utf8View), times]
}

fn values() -> Vec<ValueSpec> {
    let mut values = vec![
        ValueSpec::new("list", of_kind(StateKind::List)),
        ValueSpec::new("map", of_kind(StateKind::Map { key: plan::DataType::Utf8 })),
    ];
    values.extend(expiring("value", TTL_MS, i64::MAX));
    values
}

#[derive(Clone, Debug)]
enum Op {
    Append(Vec<(i64, i64)>),
    Insert(Vec<(i64, u8, i64)>),
    Remove(Vec<(i64, u8)>),
    Clear {
        column: usize,
        keys: Vec<i64>,
    },
    Write {
        keys: Vec<i64>,
        value: Option<u8>,
    },
    Get(Vec<(i64, u8)>),
    Advance {
        ms: i64,
        looks: usize,
    },
    Reopen {
        kind: SnapshotKind,
    },
    /// Freezes; what comes after it is done while it is being copied, an entry at a time.
    Freeze {
        kind: SnapshotKind,
    },
    /// Goes back to what was frozen last.
    GoBack,
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let key = || 0..KEYS;
    let keys = move || prop::collection::vec(key(), 0..8);
    let kind = || prop_oneof![Just(SnapshotKind::Incremental), Just(SnapshotKind::Portable)];
    let op = prop_oneof![
        4 => prop::collection::vec((key(), any::<i64>()), 0..20).prop_map(Op::Append),
        4 => prop::collection::vec((key(), 0u8..9, any::<i64>()), 0..20).prop_map(Op::Insert),
        2 => prop::collection::vec((key(), 0u8..9), 0..20).prop_map(Op::Remove),
        2 => (LIST..=MAP, keys()).prop_map(|(column, keys)| Op::Clear { column, keys }),
        4 => (keys(), prop::option::weighted(0.8, any::<u8>())).prop_map(|(keys, value)| Op::Write { keys, value }),
        2 => prop::collection::vec((key(), 0u8..9), 0..20).prop_map(Op::Get),
        3 => (0i64..70, 0usize..8).prop_map(|(ms, looks)| Op::Advance { ms, looks }),
        2 => kind().prop_map(|kind| Op::Reopen { kind }),
        2 => kind().prop_map(|kind| Op::Freeze { kind }),
        2 => Just(Op::GoBack),
    ];
    prop::collection::vec(op, 0..50)
}

#[derive(Clone, Debug, Default, PartialEq)]
struct Kept {
    list: Vec<i64>,
    map: BTreeMap<String, i64>,
    /// With the time of its last access.
    value: Option<(String, i64)>,
}

impl Kept {
    fn has_something(&self, now: i64) -> bool {
        !self.list.is_empty() || !self.map.is_empty() || self.value_at(now).is_some()
    }

    fn value_at(&self, now: i64) -> Option<&String> {
        self.value.as_ref().filter(|(_, at)| at + TTL_MS > now).map(|(value, _)| value)
    }
}

/// Keys of a map, some longer than what lies within a view; the order of numbers is not theirs.
fn map_key(n: u8) -> String {
    "x".repeat(usize::from(n) * 7 % 23)
}

fn texts(of: impl Iterator<Item = String>) -> ArrayRef {
    Arc::new(StringViewArray::from_iter_values(of))
}

fn numbers(of: impl Iterator<Item = i64>) -> ArrayRef {
    Arc::new(Int64Array::from_iter_values(of))
}

struct Under<'a> {
    backend: &'a Backend,
    text_keys: bool,
    files: Arc<MemoryFiles>,
    state: Box<dyn KeyedState>,
    table: TableId,
    now: i64,
    frozen: Option<Frozen>,
}

/// What was frozen last, and its snapshot once it is copied.
struct Frozen {
    model: BTreeMap<i64, Kept>,
    snapshot: Option<Box<dyn StateSnapshot>>,
}

impl<'a> Under<'a> {
    fn new(backend: &'a Backend, text_keys: bool) -> Self {
        let files = Arc::new(MemoryFiles::new());
        let (state, table) = Self::open(backend, text_keys, None);
        Self { backend, text_keys, files, state, table, now: 1_000, frozen: None }
    }

    fn open(backend: &Backend, text: bool, restored: Option<RestoredState>) -> (Box<dyn KeyedState>, TableId) {
        let key = if text { DataType::Utf8View } else { DataType::Int64 };
        let spec = StateSpec {
            codec: KeyCodec::new(&[key], false).unwrap(),
            operator: "kinds".into(),
            key_groups: KeyGroupRange::all(MaxParallelism::DEFAULT),
            max_parallelism: MaxParallelism::DEFAULT,
            restored,
        };
        let mut state = backend.backend.open(spec).unwrap();
        let table = state.table("values", values()).unwrap();
        state.declared().unwrap();
        (state, table)
    }

    fn keys(&self, keys: &[i64]) -> Keys {
        let column = if self.text_keys {
            texts(keys.iter().map(|k| format!("key {}", "k".repeat(*k as usize))))
        } else {
            numbers(keys.iter().copied())
        };
        self.state.codec().encode(keys.len(), &[column]).unwrap()
    }

    fn resolve(&mut self, keys: &[i64]) -> Vec<Slot> {
        let (keys, mut slots) = (self.keys(keys), Vec::new());
        self.state.resolve(self.table, NS, &keys, &mut slots).unwrap();
        slots
    }

    fn apply(&mut self, model: &mut BTreeMap<i64, Kept>, op: Op) {
        let table = self.table;
        macro_rules! kept {
            ($key:expr) => {
                model.entry($key).or_default()
            };
        }
        let slots = match op {
            Op::Append(items) => {
                let slots = self.resolve(&items.iter().map(|(key, _)| *key).collect::<Vec<_>>());
                let array = numbers(items.iter().map(|(_, item)| *item));
                self.state.append_items(table, NS, LIST, &slots, &array).unwrap();
                items.into_iter().for_each(|(key, item)| kept!(key).list.push(item));
                slots
            }
            Op::Insert(entries) => {
                let slots = self.resolve(&entries.iter().map(|(key, ..)| *key).collect::<Vec<_>>());
                let map_keys = texts(entries.iter().map(|(_, k, _)| map_key(*k)));
                let array = numbers(entries.iter().map(|(.., v)| *v));
                self.state.change_entries(table, NS, MAP, &slots, &map_keys, Some(&array)).unwrap();
                entries.into_iter().for_each(|(key, k, v)| _ = kept!(key).map.insert(map_key(k), v));
                slots
            }
            Op::Remove(entries) => {
                let slots = self.resolve(&entries.iter().map(|(key, _)| *key).collect::<Vec<_>>());
                let map_keys = texts(entries.iter().map(|(_, k)| map_key(*k)));
                self.state.change_entries(table, NS, MAP, &slots, &map_keys, None).unwrap();
                entries.into_iter().for_each(|(key, k)| _ = kept!(key).map.remove(&map_key(k)));
                slots
            }
            Op::Clear { column, keys } => {
                let keys: Vec<i64> = keys.into_iter().collect::<BTreeSet<_>>().into_iter().collect();
                let slots = self.resolve(&keys);
                let none = new_null_array(&values()[column].data_type, keys.len());
                self.state.write(table, NS, column, &slots, &none).unwrap();
                for key in keys {
                    if column == LIST { kept!(key).list.clear() } else { kept!(key).map.clear() }
                }
                slots
            }
            Op::Write { keys, value } => {
                let keys: Vec<i64> = keys.into_iter().collect::<BTreeSet<_>>().into_iter().collect();
                let slots = self.resolve(&keys);
                let value = value.map(|v| "v".repeat(v.into()));
                let array: ArrayRef = Arc::new(StringViewArray::from(vec![value.clone(); keys.len()]));
                self.state.write(table, NS, VALUE, &slots, &array).unwrap();
                let times = vec![value.as_ref().map(|_| self.now); keys.len()];
                let times: ArrayRef = Arc::new(TimestampMillisecondArray::from(times));
                self.state.write(table, NS, TIME, &slots, &times).unwrap();
                keys.into_iter().for_each(|key| kept!(key).value = value.clone().map(|value| (value, self.now)));
                slots
            }
            Op::Get(entries) => {
                let slots = self.resolve(&entries.iter().map(|(key, _)| *key).collect::<Vec<_>>());
                let map_keys = texts(entries.iter().map(|(_, k)| map_key(*k)));
                let found = self.state.find_entries(table, NS, MAP, &slots, &map_keys, usize::MAX).unwrap().unwrap();
                let expected = entries.iter().map(|(key, k)| kept!(*key).map.get(&map_key(*k)).copied());
                assert_eq!(found.as_ref(), &expected.collect::<Int64Array>());
                slots
            }
            Op::Advance { ms, looks } => {
                self.now += ms;
                self.state.clean_up(self.now, looks).unwrap();
                Vec::new()
            }
            Op::Freeze { kind } => {
                self.state.clean_up(self.now, 0).unwrap();
                self.state.freeze(kind).unwrap();
                self.frozen = Some(Frozen { model: model.clone(), snapshot: None });
                Vec::new()
            }
            Op::GoBack => {
                self.copy_frozen(usize::MAX);
                if let Some(Frozen { model: frozen, snapshot: Some(snapshot) }) = self.frozen.take() {
                    let handle = snapshot.write(&*self.files).unwrap();
                    self.reopen(handle);
                    *model = frozen;
                }
                Vec::new()
            }
            Op::Reopen { kind } => {
                self.frozen = None;
                self.state.clean_up(self.now, 0).unwrap();
                self.state.commit().unwrap();
                let handle = self.state.snapshot(kind).unwrap().write(&*self.files).unwrap();
                self.reopen(handle);
                if kind == SnapshotKind::Portable {
                    self.nothing_is_over();
                }
                Vec::new()
            }
        };
        if !slots.is_empty() {
            self.state.remove_vacant(table, NS, &slots).unwrap();
        }
    }

    fn copy_frozen(&mut self, steps: usize) {
        let Some(Frozen { snapshot, .. }) = &mut self.frozen else { return };
        for _ in 0..steps {
            if snapshot.is_some() {
                return;
            }
            *snapshot = self.state.copy_frozen().unwrap();
        }
    }

    fn reopen(&mut self, handle: StateHandle) {
        let (handles, files) = (vec![handle], self.files.clone());
        let from =
            RestoredState { handles, files, max_parallelism: MaxParallelism::DEFAULT, allow_non_restored: false };
        (self.state, self.table) = Self::open(self.backend, self.text_keys, Some(from));
    }

    /// The slots of all keys that there can be.
    fn all(&mut self) -> Vec<Slot> {
        let (keys, mut slots) = (self.keys(&(0..KEYS).collect::<Vec<_>>()), Vec::new());
        self.state.find(self.table, NS, &keys, &mut slots).unwrap();
        slots
    }

    /// Values with the times of their last accesses.
    fn values(&mut self, slots: &[Slot]) -> Vec<(Option<String>, Option<i64>)> {
        let values = self.state.read(self.table, NS, VALUE, slots).unwrap();
        let times = self.state.read(self.table, NS, TIME, slots).unwrap();
        let values = values.as_string_view().iter().map(|v| v.map(str::to_owned));
        values.zip(times.as_primitive::<TimestampMillisecondType>()).collect()
    }

    fn nothing_is_over(&mut self) {
        let slots = self.all();
        for (value, at) in self.values(&slots) {
            assert!(at.is_none_or(|at| at + TTL_MS > self.now), "{value:?} of {at:?} at {}", self.now);
        }
    }

    fn check(&mut self, model: &BTreeMap<i64, Kept>) {
        let slots = self.all();
        let lists = self.state.read(self.table, NS, LIST, &slots).unwrap();
        let maps = self.state.read(self.table, NS, MAP, &slots).unwrap();
        let values = self.values(&slots);
        let mut bytes = Vec::new();
        self.state.collection_bytes(self.table, NS, LIST, &slots, &mut bytes).unwrap();
        for key in 0..KEYS {
            let (i, expected) = (key as usize, model.get(&key).cloned().unwrap_or_default());
            assert!(slots[i] != NO_SLOT || !expected.has_something(self.now), "key {key} is lost");
            let list = lists.is_valid(i).then(|| lists.as_list::<i64>().value(i));
            assert_eq!(list.map_or(vec![], |l| l.as_primitive::<Int64Type>().values().to_vec()), expected.list);
            assert_eq!(bytes[i] == 0, expected.list.is_empty());
            let map = maps.is_valid(i).then(|| maps.as_map().value(i));
            let map: Vec<(String, i64)> = map.map_or(vec![], |m| {
                let keys = m.column(0).as_string_view().iter().map(|k| k.unwrap().to_owned());
                keys.zip(m.column(1).as_primitive::<Int64Type>().values().iter().copied()).collect()
            });
            assert!(map.is_sorted(), "{map:?}");
            assert_eq!(map, expected.map.clone().into_iter().collect::<Vec<_>>());
            let (value, at) = &values[i];
            assert_eq!(value.is_some(), at.is_some(), "a value and the time of its last access");
            match expected.value_at(self.now) {
                Some(_) => assert_eq!(value.clone().zip(*at), expected.value),
                // It may not be gone yet, but can be told to be over.
                None => assert!(at.is_none_or(|at| at + TTL_MS <= self.now), "{at:?} at {}", self.now),
            }
        }
    }
}

fn agree(backend: &Backend, text_keys: bool, ops: Vec<Op>) {
    let mut under = Under::new(backend, text_keys);
    let mut model = BTreeMap::new();
    for op in ops {
        under.apply(&mut model, op);
        under.state.commit().unwrap();
        under.copy_frozen(1);
        under.check(&model);
        under.state.commit().unwrap();
    }
    if backend.in_memory {
        under.state.clean_up(under.now, usize::MAX).unwrap();
        let left = model.values().filter(|kept| kept.has_something(under.now)).count();
        assert_eq!(under.state.entries(), left as u64);
    }
}

proptest! {
    #[test]
    fn kinds_agree_with_a_model(ops in ops(), text in any::<bool>()) {
        agree(&backends::memory(), text, ops);
    }
}

#[cfg(feature = "rocksdb")]
proptest! {
    // A case makes and removes databases.
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn kinds_on_disk_agree_with_a_model(ops in ops(), text in any::<bool>(), room in 0..3) {
        let backend = [backends::disk, backends::small_disk, backends::tiny_disk][room as usize]();
        agree(&backend, text, ops);
    }
}

/// A state of one table with a text by key: keys 0, 1 and 2, accessed at 0, 50 and never as far as one knows.
fn three(backend: &Backend, values: Vec<ValueSpec>) -> (Box<dyn KeyedState>, Arc<MemoryFiles>, StateHandle) {
    let files = Arc::new(MemoryFiles::new());
    let (mut state, table) = open_texts(backend, values.clone(), None);
    let slots = slots(&mut *state, table);
    state.write(table, NS, 0, &slots, &texts(["a", "b", "c"].map(str::to_owned).into_iter())).unwrap();
    if values.len() > 1 {
        let times: ArrayRef = Arc::new(TimestampMillisecondArray::from(vec![Some(0), Some(50), None]));
        state.write(table, NS, 1, &slots, &times).unwrap();
    }
    state.commit().unwrap();
    let handle = state.snapshot(SnapshotKind::Incremental).unwrap().write(&*files).unwrap();
    (state, files, handle)
}

fn open_texts(
    backend: &Backend,
    values: Vec<ValueSpec>,
    restored: Option<(&Arc<MemoryFiles>, &StateHandle)>,
) -> (Box<dyn KeyedState>, TableId) {
    let mut spec = StateSpec::empty(KeyCodec::new(&[DataType::Int64], false).unwrap());
    spec.restored = restored.map(|(files, handle)| RestoredState {
        handles: vec![handle.clone()],
        files: files.clone(),
        max_parallelism: spec.max_parallelism,
        allow_non_restored: false,
    });
    let mut state = backend.backend.open(spec).unwrap();
    let table = state.table("values", values).unwrap();
    state.declared().unwrap();
    (state, table)
}

fn slots(state: &mut dyn KeyedState, table: TableId) -> Vec<Slot> {
    let keys = state.codec().encode(3, &[numbers(0..3)]).unwrap();
    let mut slots = Vec::new();
    state.resolve(table, NS, &keys, &mut slots).unwrap();
    slots
}

fn times(state: &mut dyn KeyedState, table: TableId) -> Vec<Option<i64>> {
    let slots = slots(state, table);
    state.read(table, NS, 1, &slots).unwrap().as_primitive::<TimestampMillisecondType>().iter().collect()
}

on_each_backend!(
    a_ttl_that_is_added_begins_at_the_restore,
    a_ttl_that_is_removed_lets_values_live,
    a_ttl_that_changes_counts_from_the_same_access,
    a_value_is_no_list,
);

fn a_ttl_that_is_added_begins_at_the_restore(backend: Backend) {
    let (_, files, handle) = three(&backend, vec![ValueSpec::new("s", DataType::Utf8View)]);
    let (mut state, table) = open_texts(&backend, expiring("s", 10, 700).into(), Some((&files, &handle)));
    assert_eq!(times(&mut *state, table), [Some(700); 3]);
}

fn a_ttl_that_is_removed_lets_values_live(backend: Backend) {
    let (_, files, handle) = three(&backend, expiring("s", 10, 0).into());
    let declared = vec![ValueSpec::new("s", DataType::Utf8View)];
    let (mut state, table) = open_texts(&backend, declared, Some((&files, &handle)));
    state.clean_up(i64::MAX, usize::MAX).unwrap();
    let slots = slots(&mut *state, table);
    assert_eq!(state.read(table, NS, 0, &slots).unwrap().null_count(), 0);
}

fn a_ttl_that_changes_counts_from_the_same_access(backend: Backend) {
    let (_, files, handle) = three(&backend, expiring("s", 10, 0).into());
    let (mut state, table) = open_texts(&backend, expiring("s", 1_000, 0).into(), Some((&files, &handle)));
    assert_eq!(times(&mut *state, table), [Some(0), Some(50), None]);
    // By the first time-to-live the first two were over; the files of before must not say so any more.
    state.clean_up(1_020, usize::MAX).unwrap();
    state.commit().unwrap();
    for kind in [SnapshotKind::Incremental, SnapshotKind::Portable] {
        let handle = state.snapshot(kind).unwrap().write(&*files).unwrap();
        let (mut again, table) = open_texts(&backend, expiring("s", 1_000, 0).into(), Some((&files, &handle)));
        assert_eq!(times(&mut *again, table), [None, Some(50), None], "{kind:?}");
    }
}

fn a_value_is_no_list(backend: Backend) {
    let list = |data_type| vec![ValueSpec::new("s", data_type)];
    let item = arrow::datatypes::Field::new("item", DataType::Int64, true);
    let (_, files, handle) = three(&backend, list(DataType::Utf8View));
    let mut spec = StateSpec::empty(KeyCodec::new(&[DataType::Int64], false).unwrap());
    let (handles, max_parallelism) = (vec![handle], spec.max_parallelism);
    spec.restored = Some(RestoredState { handles, files, max_parallelism, allow_non_restored: false });
    let mut state = backend.backend.open(spec).unwrap();
    let error = state.table("values", list(DataType::LargeList(Arc::new(item)))).unwrap_err().to_string();
    assert!(error.contains("'s'") && error.contains("LargeList"), "{error}");
}

/// What is over is neither in a savepoint nor in the first checkpoint of a chain, and a reader without the job sees the time
/// of what is left.
#[test]
fn what_is_over_is_not_written_whole_and_what_is_left_has_its_time() {
    let backend = backends::memory();
    let (mut state, files, _) = three(&backend, expiring("s", 100, 0).into());
    state.clean_up(120, 0).unwrap();
    let savepoint = state.snapshot(SnapshotKind::Portable).unwrap().write(&*files).unwrap();
    // Of a state that is restored from a savepoint, the first checkpoint has everything again.
    let (mut state, _) = open_texts(&backend, expiring("s", 100, 0).into(), Some((&files, &savepoint)));
    state.clean_up(151, 0).unwrap();
    let first = state.snapshot(SnapshotKind::Incremental).unwrap().write(&*files).unwrap();
    for (handle, left) in [(savepoint, vec![(1, Some(50)), (2, None)]), (first, vec![(2, None)])] {
        let reader = StateReader::open(&[handle], files.clone()).unwrap();
        let part = reader.parts().find(|part| part.kind == PartKind::Table).unwrap();
        let names: Vec<&str> = part.schema.fields().iter().map(|f| f.name().as_str()).collect();
        assert_eq!(names, ["namespace", "key0", "s", "s.last_access"]);
        assert_eq!(part.schema.field(3).metadata()["tidemill.ttl_ms"], "100");
        let mut rows = Vec::new();
        let mut visit = |batch: arrow::array::RecordBatch| {
            let keys = batch.column(1).as_primitive::<Int64Type>().values().to_vec();
            rows.extend(keys.into_iter().zip(batch.column(3).as_primitive::<TimestampMillisecondType>().iter()));
            Ok(())
        };
        reader.rows(PartKind::Table, "values", None, &mut visit).unwrap();
        rows.sort_unstable();
        assert_eq!(rows, left);
    }
}

/// Cleaning up comes round: a few entries at a time, whatever is written meanwhile.
#[test]
fn cleaning_up_comes_round_and_gives_the_memory_back() {
    let backend = backends::memory();
    let (mut state, table) = open_texts(&backend, expiring("s", 10, 0).into(), None);
    let mut bytes = Vec::new();
    for round in 0..200 {
        let now = round * 5;
        let keys = state.codec().encode(100, &[numbers(round * 100..round * 100 + 100)]).unwrap();
        let mut slots = Vec::new();
        state.resolve(table, NS, &keys, &mut slots).unwrap();
        state.write(table, NS, 0, &slots, &texts((0..100).map(|_| "a text of some length".into()))).unwrap();
        let times: ArrayRef = Arc::new(TimestampMillisecondArray::from(vec![now; 100]));
        state.write(table, NS, 1, &slots, &times).unwrap();
        state.clean_up(now, 264).unwrap();
        state.commit().unwrap();
        assert!(state.entries() <= 600, "round {round}: {} entries", state.entries());
        bytes.push(state.memory_bytes());
    }
    assert!(bytes[199] <= 2 * bytes[20], "{} and {} bytes", bytes[20], bytes[199]);
    state.clean_up(i64::MAX, usize::MAX).unwrap();
    assert_eq!(state.entries(), 0);
}
