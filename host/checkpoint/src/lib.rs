//! Checkpoints: what one is, when one is taken, where it is kept, and when it is deleted.
//!
//! Decisions are pure and stand apart from I/O: `protocol`, `restart`, `log` and `garbage` read no clock and no store.
//! In reading order:

pub mod manifest;
pub mod protocol;
pub mod restart;

pub mod checksum;
pub mod log;
pub mod sealed;

mod files;
pub mod garbage;
mod journal;
pub mod local;
pub mod owner;
pub mod savepoint;
pub mod store;

pub use tidemill_blobs as blobs;

pub use local::{Copier, JobCopies, LocalCopies, Reads, restoring};
pub use log::{Origin, Start};
pub use owner::{Claim, Collected, Owner, Restored, SnapshotWriter};
pub use store::{Begun, Checkpoint, Store};
