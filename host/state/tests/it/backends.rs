//! The backends that the same tests run on.

use tidemill_core::state::StateBackend;
use tidemill_state::{MemoryBackend, SnapshotLimits};

/// A backend, and what of the contract it keeps only nearly.
pub struct Backend {
    pub backend: Box<dyn StateBackend>,
    /// Timers of one time fire in the order they were set, and their number is known.
    pub orders_timers: bool,
    pub in_memory: bool,
}

/// Everything is always resident.
pub fn memory() -> Backend {
    // An entry at a time: what is asked between freezing and the last copy meets a snapshot in every state.
    let snapshots = SnapshotLimits { copied_at_once: 1, ..SnapshotLimits::default() };
    let backend = Box::new(MemoryBackend::new().snapshots(snapshots));
    Backend { backend, orders_timers: true, in_memory: true }
}

/// On disk, with room for everything.
#[cfg(feature = "rocksdb")]
pub fn disk() -> Backend {
    Backend { backend: rocks(64 << 20, 1 << 16), orders_timers: true, in_memory: false }
}

/// On disk, with room for nothing: whatever can become absent does so at every commit.
#[cfg(feature = "rocksdb")]
pub fn tiny_disk() -> Backend {
    Backend { backend: rocks(0, 4), orders_timers: false, in_memory: false }
}

/// On disk, with room for some: what was written and what was not, what is absent and what is not, in all combinations.
#[cfg(feature = "rocksdb")]
pub fn small_disk() -> Backend {
    // All but some 6 kB is for buffers and the cache.
    Backend { backend: rocks(80 << 10, 4), orders_timers: false, in_memory: false }
}

/// Where the databases of the tests are.
#[cfg(feature = "rocksdb")]
pub fn folder() -> std::path::PathBuf {
    std::path::PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("state")
}

#[cfg(feature = "rocksdb")]
fn rocks(memory_bytes: usize, resident_timers: usize) -> Box<dyn StateBackend> {
    let path = folder();
    let settings = tidemill_state::RocksSettings { memory_bytes, path, resident_timers, copied_at_once: 1 };
    Box::new(tidemill_state::RocksBackend::new(settings))
}

/// Tests of the form `fn name(backend: Backend)`, on every backend.
#[macro_export]
macro_rules! on_each_backend {
    ($($name:ident),* $(,)?) => { $(
        mod $name {
            #[test]
            fn in_memory() {
                super::$name($crate::backends::memory());
            }

            #[cfg(feature = "rocksdb")]
            #[test]
            fn on_disk() {
                super::$name($crate::backends::disk());
            }

            #[cfg(feature = "rocksdb")]
            #[test]
            fn on_disk_without_memory() {
                super::$name($crate::backends::tiny_disk());
            }
        }
    )* };
}
