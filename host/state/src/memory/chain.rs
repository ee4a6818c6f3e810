//! The files that snapshots of one state share, and writing the next.
//!
//! A chain is a base and the changes since, in order. Snapshots are frozen on the slot, perhaps before those before
//! them are written. What is frozen is never lost: a snapshot that fails to be written, or is dropped, leaves its changes
//! here, *pending*, and the next one writes them with its own. Only if that goes on for long, the chain is *broken*, and
//! starts again with a copy of everything.
//!
//! Invariant: `files` and then `pending` make up the state as of the snapshot `latest`.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tidemill_core::snapshot::{FileRef, KeyGroupRange, SnapshotFiles, SnapshotKind, StateHandle, StateSnapshot};
use tidemill_core::{Error, Result};

use super::frozen::{About, FrozenState, InPieces};
use super::parts::{Parts, Placed};
use crate::format::{Layout, PortableFile, concatenated, divided, write_files};

/// Changes of so many unwritten snapshots are kept; beyond that they may well be more than all there is.
const MAX_PENDING: usize = 8;

/// Some hundreds of microseconds: an entry is one to three cache misses.
const COPIED_AT_ONCE: usize = 1 << 14;

/// A full file has about so many ranges of key groups.
const BUCKETS: usize = 16;

/// Limits of the files that snapshots are written to.
#[derive(Clone, Copy, Debug)]
pub struct SnapshotLimits {
    /// A file is closed when it has this many bytes. One is in memory while it is written.
    pub file_bytes: usize,
    /// So many entries are copied at a time for a snapshot, between two batches.
    pub copied_at_once: usize,
    /// After so many small files of changes, they are put into one: a restore reads all of them.
    pub changes: usize,
    /// Changes are merged with the base when they have more bytes than it and than this.
    pub min_merge_bytes: u64,
    /// What is merged at once, about: so much of the state is in memory while the base is written anew.
    pub merge_bytes: u64,
}

impl Default for SnapshotLimits {
    fn default() -> Self {
        Self {
            file_bytes: 32 << 20,
            copied_at_once: COPIED_AT_ONCE,
            changes: 16,
            min_merge_bytes: 1 << 20,
            merge_bytes: 32 << 20,
        }
    }
}

#[derive(Debug)]
pub(super) struct Chain {
    limits: SnapshotLimits,
    /// The next snapshot has to have everything: there is none to continue.
    whole: AtomicBool,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    files: Vec<ChainFile>,
    pending: BTreeMap<u64, FrozenState>,
    /// The latest snapshot that was written or is pending.
    latest: u64,
}

/// A file, and what it is about.
#[derive(Clone, Debug)]
pub(super) struct ChainFile {
    pub(super) file: FileRef,
    pub(super) key_groups: KeyGroupRange,
    pub(super) base: bool,
}

/// Frozen state with the chain that it continues.
pub(super) struct MemorySnapshot {
    pub(super) chain: Arc<Chain>,
    pub(super) number: u64,
    pub(super) kind: SnapshotKind,
    pub(super) frozen: Option<InPieces>,
}

impl StateSnapshot for MemorySnapshot {
    fn write(mut self: Box<Self>, files: &dyn SnapshotFiles) -> Result<StateHandle> {
        let Some(frozen) = self.frozen.take() else {
            return Err(Error::internal("a snapshot is written twice"));
        };
        self.chain.write(self.number, self.kind, frozen.join(), files)
    }
}

impl Drop for MemorySnapshot {
    fn drop(&mut self) {
        if let Some(frozen) = self.frozen.take() {
            // What is out of order is found by the next write.
            drop(self.chain.enter(self.number, frozen.join()));
        }
    }
}

impl Chain {
    pub(super) fn new(limits: SnapshotLimits, files: Vec<ChainFile>) -> Self {
        let whole = AtomicBool::new(files.is_empty());
        Self { limits, whole, inner: Mutex::new(Inner { files, ..Inner::default() }) }
    }

    /// Whether the next snapshot has to have everything. Asked on the slot: never waits.
    pub(super) fn take_whole(&self) -> bool {
        self.whole.swap(false, Ordering::AcqRel)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a frozen snapshot into the chain.
    fn enter(&self, number: u64, frozen: FrozenState) -> Result<MutexGuard<'_, Inner>> {
        let mut inner = self.lock();
        if frozen.whole {
            inner.pending.clear();
            inner.files.clear();
            inner.latest = number;
        } else if number != inner.latest + 1 {
            // Also after the chain broke: snapshots that were frozen before that was seen miss what was given up.
            self.give_up(&mut inner);
            return Err(Error::internal(format!(
                "snapshot {number} of the state of operator '{}' continues one that is not there",
                frozen.about.operator
            )));
        }
        inner.latest = number;
        inner.pending.insert(number, frozen);
        if inner.pending.len() > MAX_PENDING {
            let operator = inner.pending.values().next().map(|f| f.about.operator.clone()).unwrap_or_default();
            self.give_up(&mut inner);
            return Err(Error::new(
                tidemill_core::ErrorKind::Retry,
                format!("too many snapshots of the state of operator '{operator}' in a row were not written"),
            ));
        }
        Ok(inner)
    }

    fn give_up(&self, inner: &mut Inner) {
        *inner = Inner { latest: u64::MAX - 1, ..Inner::default() };
        self.whole.store(true, Ordering::Release);
    }

    fn write(
        &self,
        number: u64,
        kind: SnapshotKind,
        frozen: FrozenState,
        files: &dyn SnapshotFiles,
    ) -> Result<StateHandle> {
        let about = Arc::clone(&frozen.about);
        let mut inner = self.enter(number, frozen)?;
        let written = match kind {
            SnapshotKind::Incremental => {
                let chain = self.continued(&inner, &about, files)?;
                inner.pending.clear();
                inner.files.clone_from(&chain);
                chain
            }
            // The chain goes on without the savepoint's files, so its changes stay pending.
            SnapshotKind::Portable => self.standalone(&inner, &about, files, true)?,
        };
        let files = written.into_iter().map(|file| file.file).collect();
        Ok(StateHandle { format: StateHandle::PORTABLE.to_owned(), key_groups: about.key_groups, files })
    }

    /// The chain with what is pending.
    fn continued(&self, inner: &Inner, about: &Arc<About>, files: &dyn SnapshotFiles) -> Result<Vec<ChainFile>> {
        let (base, changes): (Vec<_>, Vec<_>) = inner.files.iter().partition(|file| file.base);
        let bytes = |of: &[&ChainFile]| of.iter().map(|file| file.file.bytes).sum::<u64>();
        let outgrown = bytes(&changes) > bytes(&base).max(self.limits.min_merge_bytes);
        if outgrown {
            return self.standalone(inner, about, files, false);
        }
        let mut chain = inner.files.clone();
        self.gather_small(&mut chain, files)?;
        for frozen in inner.pending.values().filter(|frozen| frozen.whole || !frozen.is_empty()) {
            self.write_frozen(frozen, false, files, &mut chain)?;
        }
        Ok(chain)
    }

    /// Many small files of changes at the end become one. Each is copied a few times until it is no longer small; the
    /// base, which may be huge, is not touched because some little thing changes often.
    fn gather_small(&self, chain: &mut Vec<ChainFile>, files: &dyn SnapshotFiles) -> Result<()> {
        let limit = (self.limits.file_bytes / 2) as u64;
        let is_small = |file: &&ChainFile| !file.base && file.file.bytes < limit;
        let small = chain.iter().rev().take_while(is_small).count();
        if small < self.limits.changes {
            return Ok(());
        }
        let mut read = Vec::with_capacity(small);
        for file in chain.split_off(chain.len() - small) {
            read.push(PortableFile::parse(&file.file.path, files.read(&file.file)?)?);
        }
        if let Some((bytes, key_groups)) = concatenated(&read)? {
            let file = files.write("changes", bytes)?;
            chain.push(ChainFile { file, key_groups, base: false });
        }
        Ok(())
    }

    /// Everything, in new files.
    fn standalone(
        &self,
        inner: &Inner,
        about: &Arc<About>,
        files: &dyn SnapshotFiles,
        savepoint: bool,
    ) -> Result<Vec<ChainFile>> {
        let mut written = Vec::new();
        if inner.files.is_empty() && inner.pending.len() == 1 {
            for frozen in inner.pending.values() {
                self.write_frozen(frozen, savepoint, files, &mut written)?;
            }
            return Ok(written);
        }
        let mut changes = Vec::new();
        for frozen in inner.pending.values() {
            write_files(frozen, self.layout(frozen, false), |bytes, _| {
                changes.push(PortableFile::parse("frozen", bytes)?);
                Ok(())
            })?;
        }
        let bytes = inner.files.iter().map(|file| file.file.bytes).sum::<u64>();
        let buckets = (bytes / self.limits.merge_bytes.max(1)).saturating_add(1).min(u64::from(u16::MAX));
        for range in divided(about.key_groups, buckets as u16) {
            let mut parts = Parts::new(Arc::new(about.of(range)?));
            for file in inner.files.iter().filter(|file| file.key_groups.overlaps(range)) {
                let file = PortableFile::parse(&file.file.path, files.read(&file.file)?)?;
                parts.apply(&Placed { file: &file, growth: 1.0, more: false })?;
            }
            for file in &changes {
                parts.apply(&Placed { file, growth: 0.0, more: false })?;
            }
            self.write_frozen(&parts.freeze(), savepoint, files, &mut written)?;
        }
        Ok(written)
    }

    fn write_frozen(
        &self,
        frozen: &FrozenState,
        savepoint: bool,
        files: &dyn SnapshotFiles,
        written: &mut Vec<ChainFile>,
    ) -> Result<()> {
        write_files(frozen, self.layout(frozen, savepoint), |bytes, key_groups| {
            let file = files.write(if frozen.whole { "state" } else { "changes" }, bytes)?;
            written.push(ChainFile { file, key_groups, base: frozen.whole });
            Ok(())
        })
    }

    fn layout(&self, frozen: &FrozenState, savepoint: bool) -> Layout {
        // A reader of half the keys should skip half of a full file; a small one is not worth dividing.
        let buckets = frozen.bytes() * BUCKETS / self.limits.file_bytes.max(1) + 1;
        let buckets = buckets.min(usize::from(u16::MAX)) as u16;
        Layout { file_bytes: self.limits.file_bytes, buckets, savepoint }
    }
}
