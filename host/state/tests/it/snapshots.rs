//! Random operations, snapshots, failures and restores on the subtasks of an operator, and on a model of `BTreeMap`s.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, Int64Array, StringViewArray};
use arrow::datatypes::{DataType, Int64Type};
use proptest::prelude::*;
use tidemill_core::Batch;
use tidemill_core::ids::{MaxParallelism, SubtaskIndex};
use tidemill_core::keys::{KeyCodec, KeyData, Keys};
use tidemill_core::snapshot::{KeyGroupRange, RestoredState, SnapshotKind, StateHandle, StateSnapshot, StateSpec};
use tidemill_core::state::{KeyedState, LogId, NO_SLOT, Namespace, StateBackend, TableId, ValueSpec};
use tidemill_core::user::TimeDomain;
use tidemill_state::testing::MemoryFiles;
use tidemill_state::{MemoryBackend, SnapshotLimits};

#[derive(Clone, Debug)]
enum Op {
    Write {
        namespace: i64,
        keys: Vec<i64>,
        value: Option<i64>,
    },
    Add {
        namespace: i64,
        keys: Vec<i64>,
    },
    Remove {
        namespace: i64,
        keys: Vec<i64>,
    },
    Drop {
        namespace: i64,
    },
    Append {
        namespace: i64,
        keys: Vec<i64>,
    },
    DropRows {
        namespace: i64,
    },
    SetTimers {
        timers: Vec<(i64, i64)>,
    },
    DeleteTimers {
        timers: Vec<(i64, i64)>,
    },
    /// Freezes and writes; after so many files, writing fails.
    Snapshot {
        kind: SnapshotKind,
        fail_after: Option<u64>,
    },
    /// Freezes and drops.
    Abandon,
    /// Freezes twice before writing either.
    Overlap,
    /// Freezes; what comes after it is done while it is being copied, an entry at a time.
    Freeze {
        kind: SnapshotKind,
    },
    /// Stops after a snapshot and goes on with other subtasks.
    Rescale {
        kind: SnapshotKind,
        parallelism: u32,
        max: u16,
    },
    /// Goes back to the latest snapshot of all subtasks.
    Crash,
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    // More than a word of the marks has slots for.
    let keys = || prop::collection::vec(0i64..160, 0..80);
    let namespace = || 0i64..4;
    let timers = || prop::collection::vec((0i64..20, 0i64..6), 0..40);
    let kind = || prop_oneof![3 => Just(SnapshotKind::Incremental), 1 => Just(SnapshotKind::Portable)];
    let op = prop_oneof![
        4 => (namespace(), keys(), prop::option::weighted(0.8, any::<i64>()))
            .prop_map(|(namespace, keys, value)| Op::Write { namespace, keys, value }),
        1 => (namespace(), keys()).prop_map(|(namespace, keys)| Op::Add { namespace, keys }),
        3 => (namespace(), keys()).prop_map(|(namespace, keys)| Op::Remove { namespace, keys }),
        1 => namespace().prop_map(|namespace| Op::Drop { namespace }),
        2 => (namespace(), keys()).prop_map(|(namespace, keys)| Op::Append { namespace, keys }),
        1 => namespace().prop_map(|namespace| Op::DropRows { namespace }),
        2 => timers().prop_map(|timers| Op::SetTimers { timers }),
        2 => timers().prop_map(|timers| Op::DeleteTimers { timers }),
        5 => (kind(), prop::option::weighted(0.2, 0u64..3))
            .prop_map(|(kind, fail_after)| Op::Snapshot { kind, fail_after }),
        1 => Just(Op::Abandon),
        1 => Just(Op::Overlap),
        4 => kind().prop_map(|kind| Op::Freeze { kind }),
        2 => (kind(), 1u32..4, prop_oneof![3 => Just(128u16), 1 => Just(7u16)])
            .prop_map(|(kind, parallelism, max)| Op::Rescale { kind, parallelism, max }),
        2 => Just(Op::Crash),
    ];
    prop::collection::vec(op, 0..80)
}

#[derive(Clone, Debug, Default, PartialEq)]
struct Model {
    entries: BTreeMap<(i64, i64), Option<i64>>,
    /// By namespace and key, in order of arrival.
    rows: BTreeMap<(i64, i64), Vec<i64>>,
    timers: BTreeSet<(i64, i64)>,
}

struct Subtask {
    state: Box<dyn KeyedState>,
    table: TableId,
    log: LogId,
    range: KeyGroupRange,
}

struct Completed {
    handles: Vec<StateHandle>,
    model: Model,
    max: MaxParallelism,
    parallelism: u32,
}

struct Operator {
    text_keys: bool,
    backend: Box<dyn StateBackend>,
    files: Arc<MemoryFiles>,
    max: MaxParallelism,
    subtasks: Vec<Subtask>,
    model: Model,
    completed: Option<Completed>,
    /// A snapshot that is being copied.
    copying: Option<Copying>,
    rows: i64,
}

struct Copying {
    kind: SnapshotKind,
    /// As it was when it was frozen.
    model: Model,
    /// Of each subtask, once it is copied.
    snapshots: Vec<Option<Box<dyn StateSnapshot>>>,
}

/// Of whichever codec the rows are.
fn decode(codec: &KeyCodec, keys: &Keys) -> Vec<ArrayRef> {
    match &keys.data {
        KeyData::Fixed(values) => codec.decode_fixed(values).unwrap(),
        KeyData::Rows(rows) => {
            let parser = codec.parser().unwrap();
            codec.decode_rows((0..rows.num_rows()).map(|i| parser.parse(rows.row(i).data()))).unwrap()
        }
    }
}

fn values() -> Vec<ValueSpec> {
    let values = [("number", DataType::Int64), ("text", DataType::Utf8View)];
    values.map(|(name, data_type)| ValueSpec::new(name, data_type)).into()
}

impl Operator {
    fn new(text_keys: bool, backend: Box<dyn StateBackend>) -> Self {
        let mut operator = Self {
            text_keys,
            backend,
            files: Arc::new(MemoryFiles::new()),
            max: MaxParallelism::DEFAULT,
            subtasks: Vec::new(),
            model: Model::default(),
            completed: None,
            copying: None,
            rows: 0,
        };
        operator.open(1, None);
        operator
    }

    fn codec(&self) -> KeyCodec {
        let types = if self.text_keys { vec![DataType::Utf8View, DataType::Int64] } else { vec![DataType::Int64] };
        KeyCodec::new(&types, self.text_keys).unwrap()
    }

    fn open(&mut self, parallelism: u32, restored: Option<(Vec<StateHandle>, MaxParallelism)>) {
        self.subtasks = (0..parallelism)
            .map(|index| {
                let range = KeyGroupRange::of(self.max, SubtaskIndex(index), parallelism).unwrap();
                let restored = restored.clone().map(|(handles, max_parallelism)| RestoredState {
                    handles: handles
                        .into_iter()
                        .filter(|handle| max_parallelism != self.max || handle.key_groups.overlaps(range))
                        .collect(),
                    files: self.files.clone(),
                    max_parallelism,
                    allow_non_restored: false,
                });
                let spec = StateSpec {
                    codec: self.codec(),
                    operator: "count".into(),
                    key_groups: range,
                    max_parallelism: self.max,
                    restored,
                };
                let mut state = self.backend.open(spec).unwrap();
                let table = state.table("t", values()).unwrap();
                let log = state.log("l", vec![DataType::Int64, DataType::Utf8View]).unwrap();
                state.declared().unwrap();
                Subtask { state, table, log, range }
            })
            .collect();
    }

    fn encode(&self, keys: &[i64]) -> Keys {
        let numbers: ArrayRef = Arc::new(Int64Array::from(keys.to_vec()));
        let text = || Arc::new(StringViewArray::from_iter_values(keys.iter().map(|k| "k".repeat(*k as usize))));
        let columns: Vec<ArrayRef> = if self.text_keys { vec![text(), numbers] } else { vec![numbers] };
        self.codec().encode(keys.len(), &columns).unwrap()
    }

    /// For each subtask, which of the keys are its.
    fn divided(&self, keys: &[i64]) -> Vec<Vec<usize>> {
        let hashes = self.encode(keys).hashes;
        let mut divided = vec![Vec::new(); self.subtasks.len()];
        for (i, hash) in hashes.into_iter().enumerate() {
            let group = self.max.key_group(hash);
            let subtask = self.subtasks.iter().position(|s| s.range.contains(group)).unwrap();
            divided[subtask].push(i);
        }
        divided
    }

    fn each(&mut self, keys: &[i64], mut act: impl FnMut(&mut Subtask, Keys, &[usize])) {
        for (index, of) in self.divided(keys).into_iter().enumerate() {
            let mine: Vec<i64> = of.iter().map(|&i| keys[i]).collect();
            let encoded = self.encode(&mine);
            act(&mut self.subtasks[index], encoded, &of);
            self.subtasks[index].state.commit().unwrap();
        }
    }

    /// Each subtask copies an entry, or what there is to write is written.
    fn copy_some(&mut self) {
        let Some(mut copying) = self.copying.take() else { return };
        for (subtask, snapshot) in self.subtasks.iter_mut().zip(&mut copying.snapshots) {
            if snapshot.is_none() {
                *snapshot = subtask.state.copy_frozen().unwrap();
            }
        }
        if copying.snapshots.iter().any(Option::is_none) {
            self.copying = Some(copying);
            return;
        }
        let Copying { kind, model, snapshots } = copying;
        let handles = snapshots.into_iter().flatten().map(|snapshot| snapshot.write(&*self.files)).collect();
        self.written(kind, handles, model);
    }

    fn copy_all(&mut self) {
        while self.copying.is_some() {
            self.copy_some();
        }
    }

    fn apply(&mut self, op: Op) {
        if matches!(op, Op::Snapshot { .. } | Op::Abandon | Op::Overlap | Op::Rescale { .. } | Op::Freeze { .. }) {
            self.copy_all();
        }
        let mut slots = Vec::new();
        match op {
            Op::Write { namespace, keys, value } => {
                let ns = Namespace(namespace);
                let distinct: Vec<i64> = keys.into_iter().collect::<BTreeSet<_>>().into_iter().collect();
                self.each(&distinct, |s, keys, _| {
                    s.state.resolve(s.table, ns, &keys, &mut slots).unwrap();
                    let numbers: ArrayRef = Arc::new(Int64Array::from(vec![value; slots.len()]));
                    let text = value.map(|v| v.to_string());
                    let texts: ArrayRef = Arc::new(StringViewArray::from(vec![text; slots.len()]));
                    s.state.write(s.table, ns, 0, &slots, &numbers).unwrap();
                    s.state.write(s.table, ns, 1, &slots, &texts).unwrap();
                });
                self.model.entries.extend(distinct.into_iter().map(|key| ((namespace, key), value)));
            }
            Op::Add { namespace, keys } => {
                self.each(&keys, |s, keys, _| {
                    s.state.resolve(s.table, Namespace(namespace), &keys, &mut slots).unwrap()
                });
                keys.into_iter().for_each(|key| _ = self.model.entries.entry((namespace, key)).or_default());
            }
            Op::Remove { namespace, keys } => {
                self.each(&keys, |s, keys, _| {
                    s.state.find(s.table, Namespace(namespace), &keys, &mut slots).unwrap();
                    slots.retain(|&slot| slot != NO_SLOT);
                    if !slots.is_empty() {
                        s.state.remove(s.table, Namespace(namespace), &slots).unwrap();
                    }
                });
                keys.into_iter().for_each(|key| _ = self.model.entries.remove(&(namespace, key)));
            }
            Op::Drop { namespace } => {
                for s in &mut self.subtasks {
                    s.state.drop_namespace(s.table, Namespace(namespace)).unwrap();
                }
                self.model.entries.retain(|(n, _), _| *n != namespace);
            }
            Op::Append { namespace, keys } => {
                let first = self.rows;
                self.rows += keys.len() as i64;
                self.each(&keys, |s, keys, of| {
                    let numbers = Int64Array::from_iter_values(of.iter().map(|&i| first + i as i64));
                    let texts = StringViewArray::from_iter_values(
                        of.iter().map(|&i| format!("a text for row number {}", first + i as i64)),
                    );
                    let times = numbers.values().clone();
                    let batch = Batch::new(of.len(), vec![Arc::new(numbers), Arc::new(texts)], Some(times)).unwrap();
                    s.state.append(s.log, Namespace(namespace), batch, keys).unwrap();
                });
                for (row, key) in (first..).zip(keys) {
                    self.model.rows.entry((namespace, key)).or_default().push(row);
                }
            }
            Op::DropRows { namespace } => {
                for s in &mut self.subtasks {
                    s.state.drop_rows(s.log, Namespace(namespace)).unwrap();
                }
                self.model.rows.retain(|(n, _), _| *n != namespace);
            }
            Op::SetTimers { timers } => {
                let (keys, times): (Vec<_>, Vec<_>) = timers.iter().copied().unzip();
                self.each(&keys, |s, keys, rows| {
                    let of: Vec<u32> = (0..rows.len() as u32).collect();
                    let times: Vec<i64> = rows.iter().map(|&i| times[i]).collect();
                    s.state.set_timers(TimeDomain::Event, &keys, &of, &times).unwrap();
                });
                self.model.timers.extend(timers.into_iter().map(|(key, time)| (time, key)));
            }
            Op::DeleteTimers { timers } => {
                let (keys, times): (Vec<_>, Vec<_>) = timers.iter().copied().unzip();
                self.each(&keys, |s, keys, rows| {
                    let of: Vec<u32> = (0..rows.len() as u32).collect();
                    let times: Vec<i64> = rows.iter().map(|&i| times[i]).collect();
                    s.state.delete_timers(TimeDomain::Event, &keys, &of, &times).unwrap();
                });
                timers.into_iter().for_each(|(key, time)| _ = self.model.timers.remove(&(time, key)));
            }
            Op::Snapshot { kind, fail_after } => self.snapshot(kind, fail_after),
            Op::Abandon => {
                for s in &mut self.subtasks {
                    drop(s.state.snapshot(SnapshotKind::Incremental).unwrap());
                }
            }
            Op::Overlap => {
                for s in &mut self.subtasks {
                    let first = s.state.snapshot(SnapshotKind::Incremental).unwrap();
                    let second = s.state.snapshot(SnapshotKind::Incremental).unwrap();
                    let _ = first.write(&*self.files);
                    let _ = second.write(&*self.files);
                }
            }
            Op::Freeze { kind } => {
                self.subtasks.iter_mut().for_each(|s| s.state.freeze(kind).unwrap());
                let snapshots = self.subtasks.iter().map(|_| None).collect();
                self.copying = Some(Copying { kind, model: self.model.clone(), snapshots });
            }
            Op::Rescale { kind, parallelism, max } => {
                self.snapshot(kind, None);
                // A chain that was given up fails once, and is whole after that.
                self.snapshot(kind, None);
                let (handles, before) = self.completed.as_ref().map(|c| (c.handles.clone(), c.max)).unwrap();
                self.max = MaxParallelism::new(max).unwrap();
                self.open(parallelism, Some((handles, before)));
            }
            Op::Crash => {
                let Some(completed) = &self.completed else { return };
                self.copying = None;
                self.model = completed.model.clone();
                self.max = completed.max;
                self.open(completed.parallelism, Some((completed.handles.clone(), completed.max)));
            }
        }
    }

    fn snapshot(&mut self, kind: SnapshotKind, fail_after: Option<u64>) {
        self.files.fail_after(fail_after);
        let frozen: Vec<_> = self.subtasks.iter_mut().map(|s| s.state.snapshot(kind).unwrap()).collect();
        let written: Vec<_> = frozen.into_iter().map(|frozen| frozen.write(&*self.files)).collect();
        self.files.fail_after(None);
        self.written(kind, written.into_iter().collect(), self.model.clone());
    }

    /// `model`: of when it was frozen.
    fn written(&mut self, kind: SnapshotKind, handles: tidemill_core::Result<Vec<StateHandle>>, model: Model) {
        if let Ok(handles) = handles {
            if kind == SnapshotKind::Portable {
                let files: BTreeSet<_> = handles.iter().flat_map(|h| &h.files).map(|f| f.path.clone()).collect();
                let before = self.completed.iter().flat_map(|c| &c.handles).flat_map(|h| &h.files);
                assert!(before.into_iter().all(|f| !files.contains(&f.path)), "a savepoint has files of its own");
            }
            let (max, parallelism) = (self.max, self.subtasks.len() as u32);
            self.completed = Some(Completed { handles, model, max, parallelism });
        }
    }

    fn dump(&mut self) -> Model {
        let mut found = Model::default();
        let key_of = |columns: &[ArrayRef]| columns.last().unwrap().as_primitive::<Int64Type>().values().to_vec();
        for s in &mut self.subtasks {
            for ns in s.state.namespaces(s.table) {
                let mut slots = Vec::new();
                s.state.scan(s.table, ns, None, usize::MAX, &mut slots).unwrap();
                assert_eq!(slots.len(), s.state.len(s.table, ns));
                let keys = key_of(&s.state.key_columns(s.table, ns, &slots).unwrap());
                let numbers = s.state.read(s.table, ns, 0, &slots).unwrap();
                let texts = s.state.read(s.table, ns, 1, &slots).unwrap();
                for (i, key) in keys.into_iter().enumerate() {
                    let number = numbers.is_valid(i).then(|| numbers.as_primitive::<Int64Type>().value(i));
                    let text = texts.is_valid(i).then(|| texts.as_string_view().value(i).to_owned());
                    assert_eq!(text, number.map(|v| v.to_string()));
                    assert!(found.entries.insert((ns.0, key), number).is_none(), "key {key} is there twice");
                }
            }
            for ns in s.state.log_namespaces(s.log) {
                let codec = KeyCodec::new(s.state.codec().types(), !s.state.codec().is_fixed()).unwrap();
                for (batch, keys) in s.state.rows(s.log, ns).unwrap() {
                    let keys = key_of(&decode(&codec, keys));
                    let rows = batch.column(0).unwrap().as_primitive::<Int64Type>().values();
                    assert_eq!(batch.timestamps().unwrap(), rows);
                    for (i, key) in keys.into_iter().enumerate() {
                        let text = batch.column(1).unwrap().as_string_view().value(i);
                        assert_eq!(text, format!("a text for row number {}", rows[i]));
                        found.rows.entry((ns.0, key)).or_default().push(rows[i]);
                    }
                }
            }
            let (keys, times) = s.state.due_timers(TimeDomain::Event, i64::MAX, usize::MAX).unwrap();
            let keys = key_of(&s.state.codec().decode(&keys).unwrap());
            found.timers.extend(times.into_iter().zip(keys));
        }
        found
    }
}

fn agree(text_keys: bool, backend: Box<dyn StateBackend>, ops: Vec<Op>) {
    let mut operator = Operator::new(text_keys, backend);
    for op in ops {
        operator.apply(op);
        operator.copy_some();
        let found = operator.dump();
        assert_eq!(found, operator.model);
        // What was looked at may become absent again.
        operator.subtasks.iter_mut().for_each(|s| s.state.commit().unwrap());
    }
}

fn memory() -> Box<dyn StateBackend> {
    let limits = SnapshotLimits {
        file_bytes: 20_000,
        changes: 3,
        copied_at_once: 1,
        min_merge_bytes: 10_000,
        merge_bytes: 30_000,
    };
    Box::new(MemoryBackend::new().snapshots(limits))
}

proptest! {
    #[test]
    fn restored_fixed_keys_agree_with_a_model(ops in ops()) {
        agree(false, memory(), ops);
    }

    #[test]
    fn restored_row_keys_agree_with_a_model(ops in ops()) {
        agree(true, memory(), ops);
    }
}

#[cfg(feature = "rocksdb")]
proptest! {
    // A case makes and removes a few databases.
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn state_restored_on_disk_agrees_with_a_model(ops in ops(), text in any::<bool>()) {
        agree(text, crate::backends::disk().backend, ops);
    }

    #[test]
    fn absent_state_restored_agrees_with_a_model(ops in ops(), text in any::<bool>(), some in any::<bool>()) {
        let backend = if some { crate::backends::small_disk() } else { crate::backends::tiny_disk() };
        agree(text, backend.backend, ops);
    }
}
