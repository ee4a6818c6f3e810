//! State on disk, in RocksDB: what does not fit in memory.
//!
//! Resident entries are the same columns as those of state in memory, and everything that an operator does happens
//! there. An entry that is not resident is read when it is resolved, with all others of its batch. When a commit finds
//! more than the limit, what changed is written and entries that were not used lately become absent.
//!
//! Invariants: a namespace whose entries are all resident is never read from disk. What is absent is on disk as it was
//! when it became so. The database is local and is removed at the end; snapshots are what lasts.

mod changes;
mod expiry;
mod inventory;
mod layout;
mod local;
mod pieces;
mod read;
mod restore;
mod snapshot;
mod state;
mod timers;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use rocksdb::{Cache, WriteBufferManager};
use tidemill_core::memory::{JobMemory, Owner};
use tidemill_core::scratch::{Folder, Home};
use tidemill_core::snapshot::StateSpec;
use tidemill_core::state::{KeyedState, StateBackend};
use tidemill_core::{Error, Result};

use self::state::RocksState;
use crate::memory::SnapshotLimits;

/// What state on disk is given.
#[derive(Clone, Debug)]
pub struct RocksSettings {
    /// For resident entries, write buffers, caches and indexes of all operators together.
    pub memory_bytes: usize,
    /// Where the local databases are. It may be lost at any time; a disk that is close and fast is what matters.
    pub path: PathBuf,
    /// So many timers of an operator and domain are kept in memory, about: the next ones.
    pub resident_timers: usize,
    /// So many entries are copied at a time for a snapshot, between two batches.
    pub copied_at_once: usize,
}

impl RocksSettings {
    /// With the usual number of timers in memory: they take some 3 MB, and are read again in pieces of half as many.
    pub fn new(memory_bytes: usize, path: PathBuf) -> Self {
        let SnapshotLimits { copied_at_once, .. } = SnapshotLimits::default();
        Self { memory_bytes, path, resident_timers: 1 << 16, copied_at_once }
    }
}

/// Keeps the state of all operators of a job on disk, and in memory what is used.
#[derive(Clone, Debug)]
pub struct RocksBackend(Arc<Shared>);

/// What all states share.
struct Shared {
    settings: RocksSettings,
    cache: Cache,
    buffers: WriteBufferManager,
    /// Of one write buffer.
    buffer_bytes: usize,
    /// For resident entries of all states, and what the databases hold in memory beside cache and buffers.
    resident_bytes: usize,
    /// What resident entries took at the latest commits.
    used: AtomicUsize,
    states: AtomicUsize,
    account: Arc<JobMemory>,
    /// What of the account are cache and buffers: from when the first state is opened, all that they may be.
    shared_bytes: AtomicU64,
    /// Where the databases are, once there is one. It outlives them all, since they hold this.
    home: Mutex<Option<Home>>,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("settings", &self.settings).finish_non_exhaustive()
    }
}

impl RocksBackend {
    /// Databases are made when states are opened.
    pub fn new(settings: RocksSettings) -> Self {
        Self::accounted(settings, JobMemory::unlimited())
    }

    /// The same, counted in this account.
    pub fn accounted(settings: RocksSettings, account: Arc<JobMemory>) -> Self {
        // Most goes to resident entries: they are used without decoding, and a read that finds its block in the cache
        // still costs a hundred times as much. Large changes do not pass the write buffers.
        let cache = settings.memory_bytes / 8;
        let buffers = (settings.memory_bytes / 16).clamp(64 << 10, 32 << 20);
        Self(Arc::new(Shared {
            cache: Cache::new_lru_cache(cache),
            buffers: WriteBufferManager::new_write_buffer_manager(buffers, false),
            buffer_bytes: (buffers / 2).max(64 << 10),
            resident_bytes: settings.memory_bytes.saturating_sub(cache + buffers),
            settings,
            used: AtomicUsize::new(0),
            states: AtomicUsize::new(0),
            account,
            shared_bytes: AtomicU64::new(0),
            home: Mutex::new(None),
        }))
    }

    /// Bytes that resident entries took at the latest commits.
    pub fn memory_bytes(&self) -> usize {
        self.0.used.load(Ordering::Relaxed)
    }
}

impl Shared {
    /// Counts cache and buffers, once.
    fn count_shared(&self) -> Result<()> {
        let bytes = self.settings.memory_bytes.saturating_sub(self.resident_bytes) as u64;
        match self.shared_bytes.swap(bytes, Ordering::Relaxed) {
            0 => self.account.resize(Owner::State, 0, bytes).inspect_err(|_| self.account.ends()),
            _ => Ok(()),
        }
    }

    /// A new folder for a database.
    fn folder(&self) -> Result<Folder> {
        let mut home = self.home.lock().unwrap_or_else(PoisonError::into_inner);
        let path = &self.settings.path;
        let made = match &*home {
            Some(home) => home.folder(),
            None => Home::claim(path).and_then(|claimed| home.insert(claimed).folder()),
        };
        made.map_err(|e| unusable(path, &e))
    }
}

fn unusable(path: &Path, error: &std::io::Error) -> Error {
    Error::invalid(format!("a folder for keyed state can't be made in '{}': {error}", path.display()))
        .mend("Give [state] a path to a folder in which files may be made.")
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.account.give_back(Owner::State, self.shared_bytes.load(Ordering::Relaxed));
    }
}

impl StateBackend for RocksBackend {
    fn open(&self, spec: StateSpec) -> Result<Box<dyn KeyedState>> {
        self.0.count_shared()?;
        Ok(Box::new(RocksState::open(Arc::clone(&self.0), spec)?))
    }
}
