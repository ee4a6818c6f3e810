//! Named cases of snapshots and restores: changed declarations, wrong files, reading without a job.

use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, Float32Array, Int32Array, Int64Array, StringArray, StringViewArray, UInt32Array,
};
use arrow::compute::concat_batches;
use arrow::datatypes::{DataType, Float64Type, Int64Type};
use tidemill_core::ids::MaxParallelism;
use tidemill_core::keys::KeyCodec;
use tidemill_core::snapshot::{KeyGroupRange, RestoredState, SnapshotFiles, SnapshotKind, StateHandle, StateSpec};
use tidemill_core::state::{KeyedState, Namespace, StateBackend, TableId, ValueSpec};
use tidemill_core::user::TimeDomain;
use tidemill_core::{Batch, Result};
use tidemill_state::testing::MemoryFiles;
use tidemill_state::{MemoryBackend, PartKind, SnapshotLimits, StateReader};

use crate::backends::{self, Backend};
use crate::on_each_backend;

const NS: Namespace = Namespace::GLOBAL;

fn open(key: DataType, restored: Option<RestoredState>) -> Result<Box<dyn KeyedState>> {
    open_on(&backends::memory(), key, restored)
}

fn open_on(backend: &Backend, key: DataType, restored: Option<RestoredState>) -> Result<Box<dyn KeyedState>> {
    backend.backend.open(StateSpec {
        codec: KeyCodec::new(&[key], false).unwrap(),
        operator: "totals".into(),
        key_groups: KeyGroupRange::all(MaxParallelism::DEFAULT),
        max_parallelism: MaxParallelism::DEFAULT,
        restored,
    })
}

fn from(files: &Arc<MemoryFiles>, handle: &StateHandle, allow_non_restored: bool) -> Option<RestoredState> {
    let (handles, files) = (vec![handle.clone()], files.clone());
    Some(RestoredState { handles, files, max_parallelism: MaxParallelism::DEFAULT, allow_non_restored })
}

fn values(of: &[(&str, DataType)]) -> Vec<ValueSpec> {
    of.iter().map(|(name, t)| ValueSpec::new(*name, t.clone())).collect()
}

/// Keys 1, 2 and 3, with these values.
fn put(state: &mut dyn KeyedState, table: TableId, columns: &[ArrayRef]) -> Vec<u32> {
    let keys = state.codec().encode(3, &[Arc::new(Int64Array::from(vec![1, 2, 3]))]).unwrap();
    let mut slots = Vec::new();
    state.resolve(table, NS, &keys, &mut slots).unwrap();
    for (i, column) in columns.iter().enumerate() {
        state.write(table, NS, i, &slots, column).unwrap();
    }
    slots
}

fn written(files: &MemoryFiles, state: &mut dyn KeyedState) -> StateHandle {
    state.commit().unwrap();
    state.snapshot(SnapshotKind::Incremental).unwrap().write(files).unwrap()
}

/// A snapshot of one table with four values.
fn stored(files: &MemoryFiles) -> StateHandle {
    stored_on(&backends::memory(), files)
}

fn stored_on(backend: &Backend, files: &MemoryFiles) -> StateHandle {
    let mut state = open_on(backend, DataType::Int64, None).unwrap();
    let types = [
        ("small", DataType::Int32),
        ("half", DataType::Float32),
        ("text", DataType::Utf8View),
        ("count", DataType::UInt32),
    ];
    let table = state.table("t", values(&types)).unwrap();
    state.declared().unwrap();
    let columns: [ArrayRef; 4] = [
        Arc::new(Int32Array::from(vec![Some(-1), None, Some(7)])),
        Arc::new(Float32Array::from(vec![Some(0.5), Some(1.5), None])),
        Arc::new(StringViewArray::from(vec![Some("a text of more than twelve bytes"), None, Some("c")])),
        Arc::new(UInt32Array::from(vec![Some(u32::MAX), Some(0), None])),
    ];
    put(&mut *state, table, &columns);
    written(files, &mut *state)
}

on_each_backend!(values_are_added_removed_and_widened, what_does_not_fit_is_refused_with_the_difference);

fn values_are_added_removed_and_widened(backend: Backend) {
    let files = Arc::new(MemoryFiles::new());
    let handle = stored_on(&backend, &files);
    let mut state = open_on(&backend, DataType::Int64, from(&files, &handle, false)).unwrap();
    let declared = [
        ("new", DataType::Utf8View),
        ("count", DataType::Int64),
        ("half", DataType::Float64),
        ("small", DataType::Int64),
    ];
    let table = state.table("t", values(&declared)).unwrap();
    state.declared().unwrap();
    let slots = put(&mut *state, table, &[]);
    assert_eq!(state.read(table, NS, 0, &slots).unwrap().null_count(), 3);
    let count = state.read(table, NS, 1, &slots).unwrap();
    assert_eq!(count.as_ref(), &Int64Array::from(vec![Some(i64::from(u32::MAX)), Some(0), None]));
    let half = state.read(table, NS, 2, &slots).unwrap();
    assert_eq!(half.as_primitive::<Float64Type>().values()[..2], [0.5, 1.5]);
    let small = state.read(table, NS, 3, &slots).unwrap();
    assert_eq!(small.as_ref(), &Int64Array::from(vec![Some(-1), None, Some(7)]));
    let next = written(&files, &mut *state);
    if backend.in_memory {
        assert!(next.files.iter().all(|f| !handle.files.contains(f)), "files of other values are not continued");
    }
    assert_eq!(state.entries(), 3);
}

fn refusal(restored: Result<()>) -> String {
    restored.unwrap_err().to_string()
}

fn what_does_not_fit_is_refused_with_the_difference(backend: Backend) {
    let files = Arc::new(MemoryFiles::new());
    let handle = stored_on(&backend, &files);
    let mut state = open_on(&backend, DataType::Int64, from(&files, &handle, false)).unwrap();
    let narrowed = state.table("t", values(&[("half", DataType::Int64)])).map(drop);
    let message = refusal(narrowed);
    assert!(message.contains("value 'half' of state 't' of operator 'totals' is Float32"), "{message}");
    assert!(message.contains("Int64 now"), "{message}");

    let message = refusal(open_on(&backend, DataType::Utf8View, from(&files, &handle, false)).map(drop));
    assert!(message.contains("key of operator 'totals' is (Utf8View) now"), "{message}");
    assert!(message.contains("(Int64)"), "{message}");

    let mut state = open_on(&backend, DataType::Int64, from(&files, &handle, false)).unwrap();
    state.table("other", values(&[])).unwrap();
    let message = refusal(state.declared());
    assert!(message.contains("table 't'") && message.contains("--allow-non-restored"), "{message}");

    let mut state = open_on(&backend, DataType::Int64, from(&files, &handle, true)).unwrap();
    state.table("other", values(&[])).unwrap();
    state.declared().unwrap();
    assert_eq!(state.entries(), 0);
    let next = written(&files, &mut *state);
    let mut state = open_on(&backend, DataType::Int64, from(&files, &next, false)).unwrap();
    state.table("other", values(&[])).unwrap();
    state.declared().unwrap();
}

#[test]
fn wrong_files_end_in_errors_that_name_them() {
    let files = Arc::new(MemoryFiles::new());
    let handle = stored(&files);
    let content = files.read(&handle.files[0]).unwrap();
    let path = handle.files[0].path.clone();
    let read = |content: Vec<u8>| {
        // As if it had been written so: the checksum is right.
        let mut handle = handle.clone();
        handle.files[0] = MemoryFiles::reference(&path, &content);
        files.damage(&path, |file| *file = content);
        let mut state = open(DataType::Int64, from(&files, &handle, true))?;
        state.declared()
    };
    read(content.clone()).unwrap();
    let mut refused = 0;
    for length in 0..content.len() {
        let message = refusal(read(content[..length].to_vec()));
        assert!(message.contains(&path), "{message}");
    }
    for at in 0..content.len() {
        let mut flipped = content.clone();
        flipped[at] ^= 0x41;
        if let Err(error) = read(flipped) {
            assert!(error.message().contains(&path) || error.message().contains("totals"), "{error}");
            refused += 1;
        }
    }
    assert!(refused > content.len() / 4, "{refused} of {} flipped bytes refused", content.len());
    files.damage(&path, |file| file[100] ^= 1);
    assert!(refusal(open(DataType::Int64, from(&files, &handle, true)).map(drop)).contains(&path));
}

#[test]
fn only_what_changed_is_written_and_small_changes_leave_the_base_alone() {
    let limits = SnapshotLimits { changes: 4, ..SnapshotLimits::default() };
    let files = Arc::new(MemoryFiles::new());
    let mut state = MemoryBackend::new()
        .snapshots(limits)
        .open(StateSpec::empty(KeyCodec::new(&[DataType::Int64], false).unwrap()));
    let state = state.as_deref_mut().unwrap();
    let table = state.table("t", values(&[("n", DataType::Int64)])).unwrap();
    state.declared().unwrap();
    let mut slots = Vec::new();
    let mut write = |state: &mut dyn KeyedState, of: std::ops::Range<i64>| {
        let column: ArrayRef =
            Arc::new(Int64Array::from_iter_values(of.map(|i| i.wrapping_mul(0x1E37_79B9_7F4A_7C15))));
        let keys = state.codec().encode(column.len(), std::slice::from_ref(&column)).unwrap();
        state.resolve(table, NS, &keys, &mut slots).unwrap();
        state.write(table, NS, 0, &slots, &column).unwrap();
    };
    write(state, 0..100_000);
    let base = written(&files, state).files;
    for round in 0..30 {
        write(state, round..round + 10);
        let handle = written(&files, state);
        assert_eq!(handle.files[..base.len()], base);
        assert!(handle.files.len() <= base.len() + 5, "{} files", handle.files.len());
        assert!(handle.files[base.len()..].iter().map(|f| f.bytes).sum::<u64>() < 100_000);
        let same = written(&files, state);
        assert!(same.files.len() <= handle.files.len(), "nothing changed, nothing is written");
    }
}

/// So large that more than one thread copies what changed.
#[test]
fn a_large_table_is_restored_as_it_was() {
    const ENTRIES: i64 = 150_000;
    type Keys = fn(&mut dyn Iterator<Item = i64>) -> ArrayRef;
    let numbers: Keys = |of| Arc::new(Int64Array::from_iter_values(of));
    let words: Keys = |of| Arc::new(StringArray::from_iter_values(of.map(|key| format!("key {key}"))));
    for (key, column) in [(DataType::Int64, numbers), (DataType::Utf8, words)] {
        let files = Arc::new(MemoryFiles::new());
        let shape = || values(&[("n", DataType::Int64), ("text", DataType::Utf8)]);
        let mut state = open(key.clone(), None).unwrap();
        let table = state.table("t", shape()).unwrap();
        state.declared().unwrap();
        let mut slots = Vec::new();
        let mut write = |state: &mut dyn KeyedState, of: Vec<i64>, plus: i64| {
            let keys = state.codec().encode(of.len(), &[column(&mut of.iter().copied())]).unwrap();
            state.resolve(table, NS, &keys, &mut slots).unwrap();
            let numbers: ArrayRef = Arc::new(Int64Array::from_iter_values(of.iter().map(|key| key + plus)));
            let texts = of.iter().map(|key| (key % 3 > 0).then(|| format!("{}", key + plus)));
            state.write(table, NS, 0, &slots, &numbers).unwrap();
            state.write(table, NS, 1, &slots, &(Arc::new(StringArray::from_iter(texts)) as ArrayRef)).unwrap();
        };
        write(&mut *state, (0..ENTRIES).collect(), 0);
        written(&files, &mut *state);
        write(&mut *state, (0..ENTRIES).step_by(7).collect(), 1_000_000);
        let gone: Vec<i64> = (0..ENTRIES).step_by(10).collect();
        let keys = state.codec().encode(gone.len(), &[column(&mut gone.iter().copied())]).unwrap();
        let mut removed = Vec::new();
        state.find(table, NS, &keys, &mut removed).unwrap();
        state.remove(table, NS, &removed).unwrap();
        let handle = written(&files, &mut *state);

        let mut restored = open(key, from(&files, &handle, false)).unwrap();
        let table = restored.table("t", shape()).unwrap();
        restored.declared().unwrap();
        assert_eq!(restored.len(table, NS) as i64, ENTRIES - ENTRIES / 10);
        let kept: Vec<i64> = (0..ENTRIES).filter(|key| key % 10 > 0).collect();
        let keys = restored.codec().encode(kept.len(), &[column(&mut kept.iter().copied())]).unwrap();
        let mut found = Vec::new();
        restored.find(table, NS, &keys, &mut found).unwrap();
        let numbers = restored.read(table, NS, 0, &found).unwrap();
        let texts = restored.read(table, NS, 1, &found).unwrap();
        let (numbers, texts) = (numbers.as_primitive::<Int64Type>(), texts.as_string::<i32>());
        for (row, key) in kept.into_iter().enumerate() {
            let value = if key % 7 == 0 { key + 1_000_000 } else { key };
            assert_eq!(numbers.value(row), value);
            assert_eq!(
                texts.is_valid(row).then(|| texts.value(row).to_owned()),
                (key % 3 > 0).then(|| value.to_string())
            );
        }
    }
}

#[test]
fn a_snapshot_is_read_without_its_job() {
    let files = Arc::new(MemoryFiles::new());
    let mut state = open(DataType::Int64, None).unwrap();
    let table = state.table("t", values(&[("n", DataType::Int64)])).unwrap();
    let log = state.log("l", vec![DataType::Int64]).unwrap();
    state.declared().unwrap();
    let column: ArrayRef = Arc::new(Int64Array::from(vec![10, 20, 30]));
    let slots = put(&mut *state, table, std::slice::from_ref(&column));
    written(&files, &mut *state);
    state.remove(table, NS, &slots[..1]).unwrap();
    state.write(table, NS, 0, &slots[1..2], &(Arc::new(Int64Array::from(vec![21])) as ArrayRef)).unwrap();
    let keys = state.codec().encode(3, std::slice::from_ref(&column)).unwrap();
    state.append(log, NS, Batch::new(3, vec![column.clone()], None).unwrap(), keys).unwrap();
    let keys = state.codec().encode(3, &[column]).unwrap();
    state.set_timers(TimeDomain::Processing, &keys, &[0, 2], &[5, 6]).unwrap();
    let handle = written(&files, &mut *state);

    let reader = StateReader::open(&[handle], files).unwrap();
    assert_eq!(reader.operator(), "totals");
    let parts: Vec<_> = reader.parts().map(|part| (part.kind, part.name.as_str())).collect();
    let timers = [(PartKind::EventTimers, ""), (PartKind::ProcessingTimers, "")];
    assert_eq!(parts, [(PartKind::Table, "t"), (PartKind::Log, "l"), timers[0], timers[1]]);
    let rows = |kind, name, keys: Option<&[ArrayRef]>| {
        let mut batches = Vec::new();
        let mut visit = |batch| {
            batches.push(batch);
            Ok(())
        };
        reader.rows(kind, name, keys, &mut visit).unwrap();
        let schema = reader.parts().find(|p| p.kind == kind && p.name == name).unwrap().schema.clone();
        let all = concat_batches(&schema, &batches).unwrap();
        let column = |i| all.column(i).as_primitive::<Int64Type>().clone();
        let mut rows: Vec<_> = (0..all.num_rows())
            .map(|row| (0..all.num_columns()).map(|i| column(i).is_valid(row).then(|| column(i).value(row))).collect())
            .collect();
        rows.sort();
        rows as Vec<Vec<Option<i64>>>
    };
    let two: ArrayRef = Arc::new(Int64Array::from(vec![2, 9]));
    assert_eq!(rows(PartKind::Table, "t", None), [[Some(0), Some(2), Some(21)], [Some(0), Some(3), Some(30)]]);
    assert_eq!(rows(PartKind::Table, "t", Some(&[two])), [[Some(0), Some(2), Some(21)]]);
    let logged = [10, 20, 30].map(|i| [Some(0), Some(i), None, Some(i)]);
    assert_eq!(rows(PartKind::Log, "l", None), logged);
    assert_eq!(rows(PartKind::ProcessingTimers, "", None), [[Some(5), Some(10)], [Some(6), Some(30)]]);
    assert!(reader.rows(PartKind::Log, "t", None, &mut |_| Ok(())).is_err());
}

#[test]
fn an_abandoned_snapshot_costs_nothing_and_outgrown_changes_are_merged() {
    let limits = SnapshotLimits { min_merge_bytes: 0, ..SnapshotLimits::default() };
    let files = Arc::new(MemoryFiles::new());
    let spec = StateSpec::empty(KeyCodec::new(&[DataType::Int64], false).unwrap());
    let mut state = MemoryBackend::new().snapshots(limits).open(spec).unwrap();
    let table = state.table("t", values(&[("n", DataType::Int64)])).unwrap();
    state.declared().unwrap();
    let values: ArrayRef = Arc::new(Int64Array::from(vec![4, 5, 6]));
    put(&mut *state, table, std::slice::from_ref(&values));
    let base = written(&files, &mut *state).files;
    put(&mut *state, table, &[]);
    drop(state.snapshot(SnapshotKind::Incremental).unwrap());
    let next = written(&files, &mut *state).files;
    assert_eq!((next.len(), &next[..1]), (2, &base[..]), "the base and what the abandoned one had");
    let rounds = (0..10).map(|_| {
        put(&mut *state, table, std::slice::from_ref(&values));
        written(&files, &mut *state).files
    });
    let chains: Vec<_> = rounds.collect();
    assert!(chains.iter().all(|files| files.len() <= 4), "{chains:?}");
    assert_ne!(chains[9][0], base[0], "changes as large as the base become a new one");
}
