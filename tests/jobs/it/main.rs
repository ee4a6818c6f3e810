//! Whole jobs, run by the engine, natively and in the sandbox: what no crate alone can show.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "the helpers of tests fail as tests do"
)]

mod evil;
mod guests;
mod healthy;
mod poison;
mod support;
mod twins;
