//! What snapshots of a large state cost: how long the slot stands still, how much is written, how long a restore takes.
//!
//! A table of i64 keys and i64 values is filled; then in each round a share of the keys changes, and the state is frozen,
//! copied in steps, and written to a local folder as checkpoints are. Last, the state is restored from the newest one.
//!
//! The pause of a snapshot is the longest time that the slot does nothing else: freezing, or one of the steps, between which
//! it would go on with its records.

use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use arrow::array::{ArrayRef, Int64Array};
use arrow::datatypes::DataType;
use serde::Serialize;
use tidemill_checkpoint::{Begun, Owner, Start, Store};
use tidemill_core::ids::{Epoch, MaxParallelism};
use tidemill_core::keys::KeyCodec;
use tidemill_core::snapshot::{KeyGroupRange, RestoredState, SnapshotKind, StateHandle, StateSpec};
use tidemill_core::state::{KeyedState, Namespace, StateBackend, TableId, ValueColumn, ValueSpec};

/// Keys of one batch.
const BATCH: u64 = 4_096;
const GLOBAL: Namespace = Namespace::GLOBAL;

/// What was measured.
#[derive(Debug, Serialize)]
pub struct StateFigures {
    /// Of the state.
    pub backend: String,
    /// Keys.
    pub entries: u64,
    /// Bytes that it holds in memory.
    pub memory_bytes: usize,
    /// How much of it changed between two snapshots.
    pub changed: f64,
    /// The pause of the first snapshot, which has everything.
    pub first_pause_ms: f64,
    /// What freezing and all steps of the first took together.
    pub first_copy_ms: f64,
    /// The pause of the others: the median.
    pub pause_p50_ms: f64,
    /// The longest but for one in a hundred.
    pub pause_p99_ms: f64,
    /// The longest.
    pub pause_max_ms: f64,
    /// What freezing and all steps took together: the median.
    pub copy_p50_ms: f64,
    /// What the first snapshot wrote.
    pub full_bytes: u64,
    /// What a later one wrote: the median.
    pub incremental_bytes: u64,
    /// From the newest snapshot until every entry is there.
    pub restore_s: f64,
}

/// Measures a backend with so many entries, of which this share changes in each of `rounds` rounds. Files go to `folder`.
pub fn measure(
    backend: &dyn StateBackend,
    name: &str,
    (entries, changed, rounds): (u64, f64, usize),
    folder: &str,
) -> Result<StateFigures> {
    ensure!(entries > 0 && (0.0..=1.0).contains(&changed), "one entry or more, and a share from 0 to 1");
    let store = Store::open(folder, "bench-state")?;
    let owner = match store.begin(&Start::Anew, 0)? {
        Begun::Run(owner) => *owner,
        Begun::Commit(_) | Begun::Over(_) => bail!("a new job has nothing to commit"),
    };
    let (mut state, table) = open(backend, None)?;
    add(&mut *state, table, (0..entries).map(|key| key as i64))?;
    let memory_bytes = state.memory_bytes();
    let ([first_pause_ms, first_copy_ms], mut handle, full_bytes) = snapshot(&mut *state, &owner, 1, None)?;
    let step = (1.0 / changed.max(1.0 / entries as f64)).round().max(1.0) as u64;
    let (mut pauses, mut copies, mut sizes) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..rounds as u64 {
        add(&mut *state, table, (round % step..entries).step_by(step as usize).map(|key| key as i64))?;
        let ([pause, copy], next, written) = snapshot(&mut *state, &owner, round + 2, Some(&handle))?;
        pauses.push(pause);
        copies.push(copy);
        sizes.push(written);
        handle = next;
    }
    drop(state);
    let restored = RestoredState {
        handles: vec![handle],
        files: owner.files(Epoch(0)),
        max_parallelism: MaxParallelism::DEFAULT,
        allow_non_restored: false,
    };
    let begin = Instant::now();
    let (state, table) = open(backend, Some(restored))?;
    let restore_s = begin.elapsed().as_secs_f64();
    ensure!(state.len(table, GLOBAL) as u64 == entries, "the restored state has other entries");
    pauses.sort_by(f64::total_cmp);
    copies.sort_by(f64::total_cmp);
    sizes.sort_unstable();
    // The nearest rank: of a hundred pauses, the p99 is the longest but one.
    let at = |share: f64| pauses.get(((pauses.len() as f64 * share).ceil() as usize).saturating_sub(1));
    Ok(StateFigures {
        backend: name.to_owned(),
        entries,
        memory_bytes,
        changed: 1.0 / step as f64,
        first_pause_ms,
        first_copy_ms,
        pause_p50_ms: at(0.5).copied().unwrap_or_default(),
        pause_p99_ms: at(0.99).copied().unwrap_or_default(),
        pause_max_ms: pauses.last().copied().unwrap_or_default(),
        copy_p50_ms: copies.get(copies.len() / 2).copied().unwrap_or_default(),
        full_bytes,
        incremental_bytes: sizes.get(sizes.len() / 2).copied().unwrap_or_default(),
        restore_s,
    })
}

fn open(backend: &dyn StateBackend, restored: Option<RestoredState>) -> Result<(Box<dyn KeyedState>, TableId)> {
    let mut state = backend.open(StateSpec {
        codec: KeyCodec::new(&[DataType::Int64], false)?,
        operator: "bench".to_owned(),
        key_groups: KeyGroupRange::all(MaxParallelism::DEFAULT),
        max_parallelism: MaxParallelism::DEFAULT,
        restored,
    })?;
    let table = state.table("count", vec![ValueSpec::new("n", DataType::Int64)])?;
    state.declared()?;
    Ok((state, table))
}

/// Adds to the values of these keys, a batch at a time. Values differ, so that they don't compress to nothing.
fn add(state: &mut dyn KeyedState, table: TableId, keys: impl Iterator<Item = i64>) -> Result<()> {
    let mut keys = keys.peekable();
    let mut slots = Vec::new();
    while keys.peek().is_some() {
        let batch: Vec<i64> = keys.by_ref().take(BATCH as usize).collect();
        let column: ArrayRef = Arc::new(Int64Array::from(batch.clone()));
        let encoded = state.codec().encode(batch.len(), &[column])?;
        state.resolve(table, GLOBAL, &encoded, &mut slots)?;
        let values = state.values(table, GLOBAL)?;
        let (Some(ValueColumn::Int(column)), Some(present)) = (values.columns.first_mut(), values.present.first_mut())
        else {
            bail!("the table has another shape than declared");
        };
        for (&slot, &key) in slots.iter().zip(&batch) {
            *column.get_mut(slot as usize).context("a slot")? +=
                key.wrapping_mul(0x9E37_79B9_7F4A_7C15_u64 as i64) >> 20;
            *present.get_mut(slot as usize).context("a slot")? = true;
        }
        state.commit()?;
    }
    Ok(())
}

/// The pause and all copying in milliseconds, what is to be restored from, and the bytes that were written.
fn snapshot(
    state: &mut dyn KeyedState,
    owner: &Owner,
    epoch: u64,
    before: Option<&StateHandle>,
) -> Result<([f64; 2], StateHandle, u64)> {
    let begin = Instant::now();
    state.freeze(SnapshotKind::Incremental)?;
    let mut so_far = begin.elapsed();
    let mut pause = so_far;
    let frozen = loop {
        let frozen = state.copy_frozen()?;
        let step = begin.elapsed() - so_far;
        (pause, so_far) = (pause.max(step), so_far + step);
        if let Some(frozen) = frozen {
            break frozen;
        }
    };
    let milliseconds = [pause, so_far].map(|time| time.as_secs_f64() * 1_000.0);
    let handle = frozen.write(&*owner.files(Epoch(epoch)))?;
    let known = |path: &str| before.is_some_and(|before| before.files.iter().any(|file| file.path == path));
    let written = handle.files.iter().filter(|file| !known(&file.path)).map(|file| file.bytes).sum();
    Ok((milliseconds, handle, written))
}
