//! Measures snapshots of state on disk: the pause, what is written, restoring.
//!
//! `cargo run --release -p tidemill-state --features rocksdb --example disk -- [ENTRIES] [MEMORY] [FOLDER]`

#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "a measurement may panic, and needs a clock")]

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use arrow::array::{ArrayRef, Int64Array};
use arrow::datatypes::DataType;
use tidemill_core::Result;
use tidemill_core::ids::MaxParallelism;
use tidemill_core::keys::KeyCodec;
use tidemill_core::snapshot::{
    FileRef, KeyGroupRange, RestoredState, SnapshotFiles, SnapshotKind, StateHandle, StateSpec,
};
use tidemill_core::state::{KeyedState, Namespace, StateBackend, TableId, ValueSpec};
use tidemill_state::{RocksBackend, RocksSettings};

const BATCH: u64 = 4_096;
const NS: Namespace = Namespace::GLOBAL;

/// Files in a folder, without checksums: those are the store's matter.
struct Files {
    folder: PathBuf,
    written: AtomicU64,
}

impl Files {
    fn next(&self, name: &str) -> String {
        format!("{}-{name}", self.written.fetch_add(1, Ordering::Relaxed))
    }
}

impl SnapshotFiles for Files {
    fn write(&self, name: &str, content: Vec<u8>) -> Result<FileRef> {
        let path = self.next(name);
        std::fs::write(self.folder.join(&path), &content).unwrap();
        Ok(FileRef { path, bytes: content.len() as u64, checksum: String::new() })
    }

    fn write_file(&self, name: &str, content: &Path) -> Result<FileRef> {
        let path = self.next(name);
        let bytes = std::fs::copy(content, self.folder.join(&path)).unwrap();
        Ok(FileRef { path, bytes, checksum: String::new() })
    }

    fn read(&self, file: &FileRef) -> Result<Vec<u8>> {
        Ok(std::fs::read(self.folder.join(&file.path)).unwrap())
    }

    fn read_to(&self, file: &FileRef, to: &Path) -> Result<()> {
        std::fs::copy(self.folder.join(&file.path), to).unwrap();
        Ok(())
    }
}

fn main() {
    let mut arguments = std::env::args().skip(1);
    let entries: u64 = arguments.next().map_or(5_000_000, |n| n.parse().unwrap());
    let memory_bytes = arguments.next().map_or(1 << 30, |n| n.parse().unwrap());
    let folder = arguments.next().map_or_else(|| std::env::temp_dir().join("tidemill-disk-example"), PathBuf::from);
    let files = Arc::new(Files { folder: folder.join("files"), written: AtomicU64::new(0) });
    std::fs::create_dir_all(&files.folder).unwrap();
    let backend = RocksBackend::new(RocksSettings::new(memory_bytes, folder.join("state")));
    let (mut state, table) = declared(&backend, None);
    timed("fill", || add(&mut *state, table, 0..entries, 1, entries));
    println!("{entries} entries, {} MB in memory", state.memory_bytes() >> 20);
    let mut before = written(&mut *state, &files, None);
    for share in [1_000, 1_000, 100, 100, 20] {
        println!("one in {share} changed");
        add(&mut *state, table, 0..entries / share, share, entries);
        before = written(&mut *state, &files, Some(&before));
    }
    drop(state);
    let restored = RestoredState {
        handles: vec![before],
        files: files.clone(),
        max_parallelism: MaxParallelism::DEFAULT,
        allow_non_restored: false,
    };
    let (state, table) = timed("restore", || declared(&backend, Some(restored)));
    assert_eq!(state.len(table, NS) as u64, entries);
    drop((state, backend));
    std::fs::remove_dir_all(&folder).unwrap();
}

fn written(state: &mut dyn KeyedState, files: &Files, before: Option<&StateHandle>) -> StateHandle {
    let snapshot = timed("  pause", || state.snapshot(SnapshotKind::Incremental).unwrap());
    let handle = timed("  write", || snapshot.write(files).unwrap());
    let old = |file: &FileRef| before.is_some_and(|before| before.files.contains(file));
    let bytes = |new: bool| handle.files.iter().filter(|f| !new || !old(f)).map(|f| f.bytes).sum::<u64>();
    println!("  {} bytes in {} files, {} of them new", bytes(false), handle.files.len(), bytes(true));
    handle
}

fn timed<T>(what: &str, act: impl FnOnce() -> T) -> T {
    let start = Instant::now();
    let answer = act();
    println!("{what}: {:.2} ms", start.elapsed().as_secs_f64() * 1000.0);
    answer
}

fn declared(backend: &RocksBackend, restored: Option<RestoredState>) -> (Box<dyn KeyedState>, TableId) {
    let spec = StateSpec {
        codec: KeyCodec::new(&[DataType::Int64], false).unwrap(),
        operator: "count".into(),
        key_groups: KeyGroupRange::all(MaxParallelism::DEFAULT),
        max_parallelism: MaxParallelism::DEFAULT,
        restored,
    };
    let mut state = backend.open(spec).unwrap();
    let table = state.table("t", vec![ValueSpec::new("n", DataType::Int64)]).unwrap();
    state.declared().unwrap();
    (state, table)
}

/// Writes every `step`th entry.
fn add(state: &mut dyn KeyedState, table: TableId, range: std::ops::Range<u64>, step: u64, entries: u64) {
    let (mut from, mut slots) = (range.start, Vec::new());
    while from < range.end {
        let to = (from + BATCH).min(range.end);
        let column: ArrayRef = Arc::new(Int64Array::from_iter_values((from..to).map(|i| (i * step % entries) as i64)));
        let keys = state.codec().encode(column.len(), std::slice::from_ref(&column)).unwrap();
        state.resolve(table, NS, &keys, &mut slots).unwrap();
        state.write(table, NS, 0, &slots, &column).unwrap();
        state.commit().unwrap();
        from = to;
    }
}
