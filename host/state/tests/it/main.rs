//! The memory backend behind its contract.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may panic")]
mod contract;
mod model;
mod restoring;
mod snapshots;
