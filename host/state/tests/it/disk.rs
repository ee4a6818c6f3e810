//! Named cases of state on disk.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, Int64Array};
use arrow::datatypes::{DataType, Int64Type};
use tidemill_core::Result;
use tidemill_core::ids::MaxParallelism;
use tidemill_core::keys::{KeyCodec, Keys};
use tidemill_core::memory::{Owner, ProcessMemory};
use tidemill_core::snapshot::{KeyGroupRange, RestoredState, SnapshotKind, StateHandle, StateSpec};
use tidemill_core::state::{KeyedState, NO_SLOT, Namespace, StateBackend, TableId, ValueColumn, ValueSpec};
use tidemill_state::testing::MemoryFiles;
use tidemill_state::{RocksBackend, RocksSettings};

use crate::backends::{self, Backend};

const NS: Namespace = Namespace::GLOBAL;

struct Opened {
    state: Box<dyn KeyedState>,
    table: TableId,
}

/// The process has less memory than the state was promised: it does with less, and fails nobody.
#[test]
fn what_is_on_disk_gives_memory_back_when_the_process_has_no_more() {
    const LIMIT: u64 = 8 << 20;
    let process = ProcessMemory::new(Some(LIMIT));
    let settings = RocksSettings::new(16 << 20, backends::folder());
    let rocks = RocksBackend::accounted(settings, process.job("counts"));
    let backend = Backend { backend: Box::new(rocks), orders_timers: true, in_memory: false };
    let mut opened = open(&backend, None).unwrap();
    let caches = process.held().of(Owner::State);
    assert!(caches > 1 << 20 && caches < LIMIT / 2, "{caches}");
    for part in 0..200 {
        opened.put(part * 2_000..(part + 1) * 2_000, part);
        assert!(process.held().total() < LIMIT, "{}", process.held().total());
    }
    assert!(process.held().total() > LIMIT / 3, "{}", process.held().total());
    assert_eq!(opened.get(0..3), BTreeMap::from([(0, 0), (1, 0), (2, 0)]), "nothing is lost");
    drop(opened);
    assert_eq!(process.held().of(Owner::State), caches);
    drop(backend);
    assert_eq!(process.held().total(), 0);
    // Where there is nothing left for its caches, it is refused at once.
    let full = ProcessMemory::new(Some(1 << 20));
    let rocks = RocksBackend::accounted(RocksSettings::new(64 << 20, backends::folder()), full.job("counts"));
    let backend = Backend { backend: Box::new(rocks), orders_timers: true, in_memory: false };
    assert!(open(&backend, None).is_err_and(|error| error.message().contains("job 'counts' holds")));
    drop(backend);
    assert_eq!(full.held().total(), 0);
}

fn open(backend: &Backend, restored: Option<(&StateHandle, &Arc<MemoryFiles>)>) -> Result<Opened> {
    let restored = restored.map(|(handle, files)| RestoredState {
        handles: vec![handle.clone()],
        files: files.clone(),
        max_parallelism: MaxParallelism::DEFAULT,
        allow_non_restored: false,
    });
    let mut state = backend.backend.open(StateSpec {
        codec: KeyCodec::new(&[DataType::Int64], false).unwrap(),
        operator: "totals".into(),
        key_groups: KeyGroupRange::all(MaxParallelism::DEFAULT),
        max_parallelism: MaxParallelism::DEFAULT,
        restored,
    })?;
    let table = state.table("t", vec![ValueSpec::new("n", DataType::Int64)])?;
    state.declared()?;
    Ok(Opened { state, table })
}

impl Opened {
    fn encode(&self, keys: impl IntoIterator<Item = i64>) -> Keys {
        let column: ArrayRef = Arc::new(Int64Array::from_iter_values(keys));
        self.state.codec().encode(column.len(), &[column]).unwrap()
    }

    fn put(&mut self, keys: std::ops::Range<i64>, value: i64) {
        let (encoded, mut slots) = (self.encode(keys), Vec::new());
        self.state.resolve(self.table, NS, &encoded, &mut slots).unwrap();
        let values: ArrayRef = Arc::new(Int64Array::from(vec![value; slots.len()]));
        self.state.write(self.table, NS, 0, &slots, &values).unwrap();
        self.state.commit().unwrap();
    }

    fn count(&mut self) -> usize {
        let (mut after, mut count, mut slots) = (None, 0, Vec::new());
        loop {
            self.state.scan(self.table, NS, after, 5_000, &mut slots).unwrap();
            (after, count) = (slots.last().copied(), count + slots.len());
            if after.is_none() {
                return count;
            }
        }
    }

    fn remove(&mut self, keys: std::ops::Range<i64>) {
        let (encoded, mut slots) = (self.encode(keys), Vec::new());
        self.state.find(self.table, NS, &encoded, &mut slots).unwrap();
        self.state.remove(self.table, NS, &slots).unwrap();
        self.state.commit().unwrap();
    }

    /// The values of these keys, as far as they are there.
    fn get(&mut self, keys: std::ops::Range<i64>) -> BTreeMap<i64, i64> {
        let (encoded, mut slots) = (self.encode(keys.clone()), Vec::new());
        self.state.find(self.table, NS, &encoded, &mut slots).unwrap();
        let values = self.state.read(self.table, NS, 0, &slots).unwrap();
        let values = values.as_primitive::<Int64Type>();
        let there = keys.zip(&slots).enumerate().filter(|(_, (_, slot))| **slot != NO_SLOT);
        let found = there.map(|(i, (key, _))| (key, values.value(i))).collect();
        self.state.commit().unwrap();
        found
    }

    fn snapshot(&mut self, kind: SnapshotKind, files: &MemoryFiles) -> StateHandle {
        self.state.snapshot(kind).unwrap().write(files).unwrap()
    }
}

#[test]
fn many_changes_at_once_are_what_few_are() {
    let files = Arc::new(MemoryFiles::new());
    let mut state = open(&backends::tiny_disk(), None).unwrap();
    state.put(0..10_000, 1);
    state.put(5_000..15_000, 2);
    state.remove(4_000..9_000);
    state.put(4_500..4_600, 3);
    let expected: BTreeMap<i64, i64> = (0..4_000)
        .map(|k| (k, 1))
        .chain((4_500..4_600).map(|k| (k, 3)))
        .chain((9_000..15_000).map(|k| (k, 2)))
        .collect();
    assert_eq!(state.get(0..20_000), expected);
    assert_eq!(state.state.len(state.table, NS), expected.len());
    for kind in [SnapshotKind::Incremental, SnapshotKind::Portable] {
        let handle = state.snapshot(kind, &files);
        let mut restored = open(&backends::disk(), Some((&handle, &files))).unwrap();
        assert_eq!(restored.get(0..20_000), expected);
        assert_eq!(restored.state.entries(), expected.len() as u64);
    }
}

#[test]
fn savepoints_go_from_backend_to_backend_and_checkpoints_do_not() {
    let files = Arc::new(MemoryFiles::new());
    let mut state = open(&backends::disk(), None).unwrap();
    state.put(0..5_000, 7);
    let expected = state.get(0..5_000);
    let savepoint = state.snapshot(SnapshotKind::Portable, &files);
    let mut in_memory = open(&backends::memory(), Some((&savepoint, &files))).unwrap();
    assert_eq!(in_memory.get(0..5_000), expected);
    let checkpoint = in_memory.snapshot(SnapshotKind::Incremental, &files);
    let mut back = open(&backends::disk(), Some((&checkpoint, &files))).unwrap();
    assert_eq!(back.get(0..5_000), expected);

    let checkpoint = back.snapshot(SnapshotKind::Incremental, &files);
    let refused = open(&backends::memory(), Some((&checkpoint, &files))).map(drop).unwrap_err().to_string();
    assert!(refused.contains("'rocksdb-1'") && refused.contains("savepoint"), "{refused}");
}

#[test]
fn what_did_not_change_is_not_written_again() {
    let files = Arc::new(MemoryFiles::new());
    let mut state = open(&backends::disk(), None).unwrap();
    state.put(0..50_000, 7);
    let all = state.snapshot(SnapshotKind::Incremental, &files);
    let bytes = |handle: &StateHandle, before: &StateHandle| -> u64 {
        handle.files.iter().filter(|file| !before.files.contains(file)).map(|file| file.bytes).sum()
    };
    let whole: u64 = all.files.iter().map(|file| file.bytes).sum();
    state.put(100..200, 8);
    let next = state.snapshot(SnapshotKind::Incremental, &files);
    assert!(bytes(&next, &all) < whole / 10, "{} of {whole} bytes again", bytes(&next, &all));

    // Also after a restart, and when the snapshot before was given up.
    let mut restored = open(&backends::disk(), Some((&next, &files))).unwrap();
    assert_eq!(restored.get(0..50_000), state.get(0..50_000));
    drop(restored.state.snapshot(SnapshotKind::Incremental).unwrap());
    restored.put(300..400, 9);
    let again = restored.snapshot(SnapshotKind::Incremental, &files);
    assert!(bytes(&again, &next) < whole / 10, "{} of {whole} bytes again", bytes(&again, &next));
}

#[test]
fn what_was_resolved_before_a_scan_may_be_written_after_it() {
    let mut state = open(&backends::tiny_disk(), None).unwrap();
    state.put(0..10, 1);
    let (keys, mut slots, mut scanned) = (state.encode([3]), Vec::new(), Vec::new());
    state.state.resolve(state.table, NS, &keys, &mut slots).unwrap();
    state.state.scan(state.table, NS, None, 100, &mut scanned).unwrap();
    assert_eq!(scanned.len(), 10);
    match &mut state.state.values(state.table, NS).unwrap().columns[0] {
        ValueColumn::Int(values) => values[slots[0] as usize] = 33,
        other => panic!("{other:?}"),
    }
    // The slots of a scan hold until the one after it.
    state.state.scan(state.table, Namespace(5), None, 100, &mut scanned).unwrap();
    state.state.commit().unwrap();
    state.put(20..21, 0);
    assert_eq!(state.get(3..4), BTreeMap::from([(3, 33)]));
}

#[test]
fn a_removed_key_is_gone_before_the_disk_knows() {
    let mut state = open(&backends::tiny_disk(), None).unwrap();
    state.put(0..10, 1);
    let (keys, mut slots) = (state.encode([3]), Vec::new());
    for resolves in [false, true] {
        state.state.find(state.table, NS, &keys, &mut slots).unwrap();
        state.state.remove(state.table, NS, &slots).unwrap();
        if resolves {
            state.state.resolve(state.table, NS, &keys, &mut slots).unwrap();
            assert_eq!(state.state.read(state.table, NS, 0, &slots).unwrap().null_count(), 1);
            state.state.remove_vacant(state.table, NS, &slots).unwrap();
        }
        state.state.find(state.table, NS, &keys, &mut slots).unwrap();
        assert_eq!(slots, [NO_SLOT]);
        assert_eq!(state.state.len(state.table, NS), 9);
        state.put(3..4, 2);
        assert_eq!(state.get(0..10).len(), 10);
    }
}

#[test]
fn a_snapshot_is_of_its_moment_however_late_it_is_written() {
    let files = Arc::new(MemoryFiles::new());
    let mut state = open(&backends::tiny_disk(), None).unwrap();
    state.put(0..3_000, 1);
    let first = state.state.snapshot(SnapshotKind::Incremental).unwrap();
    // These commits write to the database what comes after the snapshot.
    state.put(0..10, 2);
    state.remove(10..20);
    let second = state.state.snapshot(SnapshotKind::Portable).unwrap();
    state.put(0..3_000, 3);
    let handles = [first.write(&*files).unwrap(), second.write(&*files).unwrap()];
    let [mut first, mut second] = handles.map(|handle| open(&backends::disk(), Some((&handle, &files))).unwrap());
    assert_eq!(first.get(0..3_000), (0..3_000).map(|key| (key, 1)).collect());
    let expected = (0..10).map(|key| (key, 2)).chain((20..3_000).map(|key| (key, 1))).collect();
    assert_eq!(second.get(0..3_000), expected);
}

#[test]
fn what_a_killed_process_left_behind_is_removed() {
    let path = backends::folder().join("left");
    std::fs::create_dir_all(path.join("0/0/db")).unwrap();
    std::fs::write(path.join("0.lock"), "").unwrap();
    let settings = RocksSettings::new(1 << 20, path.clone());
    let backend = |settings: &RocksSettings| Backend {
        backend: Box::new(RocksBackend::new(settings.clone())) as Box<dyn StateBackend>,
        orders_timers: true,
        in_memory: false,
    };
    std::fs::write(path.join("0/0/db/junk"), "").unwrap();
    let first = backend(&settings);
    let one = open(&first, None).unwrap();
    assert!(path.join("0/0/db").exists() && !path.join("0/0/db/junk").exists());
    let second = backend(&settings);
    let other = open(&second, None).unwrap();
    assert!(path.join("1/0/db").exists(), "the first is in use");
    drop((one, other, first, second));
    assert!(!path.join("0").exists() && !path.join("1").exists());
}

/// What is frozen and not copied is in memory only, while memory is short: it is read, scanned, removed and evicted.
#[test]
fn what_is_frozen_and_not_copied_is_lost_to_nobody() {
    const BATCH: i64 = 1_000;
    let files = Arc::new(MemoryFiles::new());
    let settings = RocksSettings { copied_at_once: 1, ..RocksSettings::new(1 << 20, backends::folder()) };
    let backend = Box::new(RocksBackend::new(settings));
    let backend = Backend { backend, orders_timers: true, in_memory: false };
    let mut state = open(&backend, None).unwrap();
    let (mut model, mut saved, mut frozen) = (BTreeMap::new(), Vec::new(), None);
    for part in 0..60 {
        let keys = part * BATCH..(part + 1) * BATCH;
        state.put(keys.clone(), part);
        model.extend(keys.map(|key| (key, part)));
        if part % 4 == 2 {
            // Of which some are on disk only.
            let gone = part * BATCH / 2..part * BATCH / 2 + 50;
            state.remove(gone.clone());
            model.retain(|key, _| !gone.contains(key));
        }
        if part % 5 == 2 && frozen.is_none() {
            state.state.freeze(SnapshotKind::Incremental).unwrap();
            frozen = Some(model.clone());
            state.state.commit().unwrap();
        }
        if part % 9 == 8 {
            assert_eq!(state.count(), model.len(), "after part {part}");
        }
        if part % 3 == 0 {
            assert_eq!(state.get(0..(part + 1) * BATCH), model, "after part {part}");
        }
        if let Some(model) = frozen.take() {
            match state.state.copy_frozen().unwrap() {
                Some(snapshot) => saved.push((snapshot.write(&*files).unwrap(), model)),
                None => frozen = Some(model),
            }
        }
    }
    assert!(saved.len() > 3, "{} snapshots", saved.len());
    for (handle, model) in &saved {
        let mut restored = open(&backends::disk(), Some((handle, &files))).unwrap();
        assert_eq!(&restored.get(0..60 * BATCH), model);
    }
}
