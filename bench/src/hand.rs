//! The hand twin: each query of the bids benchmark as the plain single-threaded loop that a good engineer writes when
//! nothing but this query is wanted. No engine, no SQL, no batches where none are needed.
//!
//! It is the bar of the benchmark, so it may know what is fixed (keys are dense, event time never goes back, the input
//! ends) and uses it: tables instead of hash maps, no timers, no serialisation. The invariant: every output record is
//! made by itself and added to the checksum; no sum is taken by algebra over records that were never formed. Only `q0`
//! and `json` store their output, because storing it is what they ask for.

mod generate;
mod joins;
mod json;
mod stateless;
mod windows;

pub use generate::{BATCH_ROWS, Columns, Generator};
pub use joins::{q8, q8i};
pub use json::{json, json_files, write_json, write_json_file};
pub use stateless::{q0, q1, q2, wc};
pub use windows::{q5, q7, session};

use crate::query::{Answer, Parameters, Query};

/// Runs `query` over the events of `parameters`.
#[must_use]
pub fn run(query: Query, parameters: &Parameters) -> Answer {
    match query {
        Query::Q0 => q0(parameters),
        Query::Q1 => q1(parameters),
        Query::Q2 => q2(parameters),
        Query::Wc => wc(parameters),
        Query::Q5 | Query::Q5u => q5(parameters),
        Query::Q7 => q7(parameters),
        Query::Session => session(parameters),
        Query::Q8 => q8(parameters),
        Query::Q8i => q8i(parameters),
    }
}
