//! Backends of keyed state: where the entries, row logs and timers of keyed operators live.
//!
//! The contract is `tidemill_core::state`; why it has this shape stands in `docs/decisions/0003-keyed-state.md`,
//! what snapshots look like in `docs/state-format.md`.
//! In reading order:

mod collection;
mod column;
mod format;
mod framed;
mod helpers;
mod in_flight;
#[cfg_attr(
    not(feature = "rocksdb"),
    allow(dead_code, reason = "state on disk keeps what is resident in the same shapes")
)]
mod memory;
mod reader;
#[cfg(feature = "rocksdb")]
mod rocks;
pub mod testing;

pub use format::PartKind;
pub use in_flight::{InFlight, decode_in_flight, encode_in_flight};
pub use memory::{MemoryBackend, SnapshotLimits};
pub use reader::{PartInfo, StateReader};
#[cfg(feature = "rocksdb")]
pub use rocks::{RocksBackend, RocksSettings};
