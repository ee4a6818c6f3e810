//! What the processes of a cluster say to each other: the stubs of `proto/cluster.proto`, and the ways between its
//! messages and the engine's own types.
//!
//! Neither the coordinator nor a worker knows the other; both know this.
//!
//! Invariant: whatever a message holds, taking it apart ends in a value or in an error that names what is wrong with it.

mod convert;
pub mod frames;
mod packed;
pub mod rows;
pub mod tls;

/// The messages and stubs.
#[allow(missing_docs, reason = "generated; the schema has the words")]
#[allow(clippy::all, reason = "generated")]
#[allow(clippy::allow_attributes_without_reason, reason = "generated")]
pub mod proto {
    tonic::include_proto!("tidemill.cluster");
}

pub use convert::{
    barrier, failure, failure_of, from_worker, news, news_of, slot_event, slot_event_of, subtask_of, to_worker,
};

/// No message between two processes is larger: a batch of rows, the manifest of a checkpoint.
pub const MAX_MESSAGE_BYTES: usize = 256 << 20;

/// The version of everything that processes say to each other: those of another are refused.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
