//! The contracts of the Tidemill host: what the parts say to each other, and nothing of what they do.
//!
//! Every other crate of the host depends on this one and, where it can, on no other.
//! In reading order:

pub mod batch;
pub mod connector;
pub mod error;
pub mod failpoint;
pub mod graph;
pub mod ids;
pub mod keys;
pub mod log;
pub mod memory;
pub mod metrics;
pub mod nonce;
pub mod operator;
pub mod process;
pub mod scratch;
pub mod snapshot;
pub mod state;
pub mod time;
pub mod types;
pub mod user;

pub use batch::Batch;
pub use error::{Error, ErrorKind, Result};
pub use tidemill_plan as plan;
