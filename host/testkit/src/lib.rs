//! Runs jobs of the Rust SDK natively: the same code on the same engine, without the sandbox.
//!
//! [`NativeCode`] is the code of a job linked into the process, behind the contract by which the engine runs user code.
//! It is what tests run, and the twin to which the sandbox is compared in benchmarks.
//!
//! To read the code: [`native`], then `lower` and `lift` (from Arrow to the contract's buffers and back).

mod lift;
mod lower;
pub mod native;

pub mod harness;

pub use harness::Harness;
pub use native::NativeCode;
pub use serde_json::json;
