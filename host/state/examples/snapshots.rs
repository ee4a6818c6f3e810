//! Measures state in memory: resolving with changes tracked, freezing, writing, restoring.
//!
//! `cargo run --release -p tidemill-state --example snapshots -- [ENTRIES] [ROUNDS]`; files are kept in memory.

#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "a measurement may panic, and needs a clock")]

use std::hint::black_box;
use std::sync::Arc;
use std::time::Instant;

use arrow::array::{ArrayRef, Int64Array};
use arrow::datatypes::DataType;
use tidemill_core::ids::MaxParallelism;
use tidemill_core::keys::{KeyCodec, Keys};
use tidemill_core::snapshot::{KeyGroupRange, RestoredState, SnapshotKind, StateHandle, StateSpec};
use tidemill_core::state::{KeyedState, Namespace, StateBackend, TableId, ValueColumn, ValueSpec};
use tidemill_state::MemoryBackend;
use tidemill_state::testing::MemoryFiles;

const BATCH: usize = 4096;
const NS: Namespace = Namespace::GLOBAL;

fn main() {
    let mut arguments = std::env::args().skip(1);
    let entries = arguments.next().map_or(5_000_000, |n| n.parse().unwrap());
    let rounds = arguments.next().map_or(2_000, |n| n.parse().unwrap());
    for keys in [1_000, 100_000, entries] {
        let (mut state, table) = declared(None);
        fill(&mut *state, table, keys);
        println!("resolve+add, {keys} keys: {:.2} ns/row", count(&mut *state, table, keys, rounds));
        drop(state.snapshot(SnapshotKind::Incremental).unwrap());
        println!("  after a snapshot:      {:.2} ns/row", count(&mut *state, table, keys, rounds));
    }
    snapshots(entries);
}

fn snapshots(entries: u64) {
    let files = Arc::new(MemoryFiles::new());
    let (mut state, table) = declared(None);
    fill(&mut *state, table, entries);
    println!("{entries} entries: {} MB in memory", state.memory_bytes() >> 20);
    let snapshot = timed("first freeze", entries, || state.snapshot(SnapshotKind::Incremental).unwrap());
    let handle = timed("first write", entries, || snapshot.write(&*files).unwrap());
    println!("  {} files, {:.1} bytes per entry", handle.files.len(), size(&handle) as f64 / entries as f64);
    for share in [100, 100, 100, 100, 100, 100, 100, 100, 20, 20, 20] {
        let changed = entries / share;
        let mut done = 0;
        while done < changed {
            let keys = keys_at(&*state, (done..done + BATCH as u64).map(|i| i * share % entries));
            add(&mut *state, table, &keys);
            done += BATCH as u64;
        }
        let snapshot = timed("freeze of changes", done, || state.snapshot(SnapshotKind::Incremental).unwrap());
        let before = size(&handle);
        let after = timed("write of changes", done, || snapshot.write(&*files).unwrap());
        println!("  {:.1} bytes per changed entry", (size(&after) - before) as f64 / done as f64);
    }
    let snapshot = state.snapshot(SnapshotKind::Portable).unwrap();
    let savepoint = timed("savepoint (merge)", entries, || snapshot.write(&*files).unwrap());
    drop(state);
    let restored = |handle: &StateHandle| RestoredState {
        handles: vec![handle.clone()],
        files: files.clone(),
        max_parallelism: MaxParallelism::DEFAULT,
        allow_non_restored: false,
    };
    for handle in [&handle, &savepoint] {
        let (state, table) = timed("restore", entries, || declared(Some(restored(handle))));
        assert_eq!(state.len(table, NS) as u64, entries);
        println!("  {} MB in memory", state.memory_bytes() >> 20);
    }
}

/// Prints the time that passed, and that of the processor (in steps of 10 ms).
fn timed<T>(what: &str, entries: u64, act: impl FnOnce() -> T) -> T {
    let (start, before) = (Instant::now(), processor_ms());
    let answer = act();
    let (took, processor) = (start.elapsed(), processor_ms() - before);
    let each = took.as_nanos() as f64 / entries as f64;
    let ms = took.as_secs_f64() * 1000.0;
    println!("{what}: {ms:.2} ms (processor {processor} ms), {each:.1} ns per entry");
    answer
}

fn processor_ms() -> u64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    stat.split(' ').skip(13).take(2).map(|ticks| ticks.parse::<u64>().unwrap() * 10).sum()
}

fn size(handle: &StateHandle) -> u64 {
    handle.files.iter().map(|file| file.bytes).sum()
}

fn declared(restored: Option<RestoredState>) -> (Box<dyn KeyedState>, TableId) {
    let spec = StateSpec {
        codec: KeyCodec::new(&[DataType::Int64], false).unwrap(),
        operator: "count".into(),
        key_groups: KeyGroupRange::all(MaxParallelism::DEFAULT),
        max_parallelism: MaxParallelism::DEFAULT,
        restored,
    };
    let mut state = MemoryBackend::new().open(spec).unwrap();
    let table = state.table("t", vec![ValueSpec::new("n", DataType::Int64)]).unwrap();
    state.declared().unwrap();
    (state, table)
}

fn keys_at(state: &dyn KeyedState, keys: impl Iterator<Item = u64>) -> Keys {
    let column: ArrayRef = Arc::new(Int64Array::from_iter_values(keys.map(|k| k as i64)));
    state.codec().encode(column.len(), &[column]).unwrap()
}

fn fill(state: &mut dyn KeyedState, table: TableId, entries: u64) {
    let mut from = 0;
    while from < entries {
        let to = (from + BATCH as u64).min(entries);
        let keys = keys_at(state, from..to);
        add(state, table, &keys);
        from = to;
    }
}

fn add(state: &mut dyn KeyedState, table: TableId, keys: &Keys) {
    let mut slots = Vec::new();
    state.resolve(table, NS, keys, &mut slots).unwrap();
    let values = state.values(table, NS).unwrap();
    if let (Some(ValueColumn::Int(column)), Some(present)) = (values.columns.get_mut(0), values.present.get_mut(0)) {
        for &slot in &slots {
            if let (Some(value), Some(there)) = (column.get_mut(slot as usize), present.get_mut(slot as usize)) {
                *value += 1;
                *there = true;
            }
        }
    }
}

/// Nanoseconds per row, the keys drawn at random.
fn count(state: &mut dyn KeyedState, table: TableId, keys: u64, rounds: usize) -> f64 {
    let mut seed = 1u64;
    let mut next = || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed % keys
    };
    let batches: Vec<Keys> =
        (0..64).map(|_| keys_at(state, (0..BATCH).map(|_| next()).collect::<Vec<_>>().into_iter())).collect();
    let start = Instant::now();
    for keys in batches.iter().cycle().take(rounds) {
        add(state, table, black_box(keys));
    }
    start.elapsed().as_nanos() as f64 / (rounds * BATCH) as f64
}
