//! The backends behind their contract.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may panic")]
mod backends;
mod contract;
#[cfg(feature = "rocksdb")]
mod disk;
mod kinds;
mod model;
mod restoring;
mod snapshots;
