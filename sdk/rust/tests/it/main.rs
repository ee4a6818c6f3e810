//! The SDK from outside: rows through buffers, jobs as plans, and the code of nodes against hand-made batches.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests fail by panicking"
)]

mod broadcast;
mod compile_errors;
mod guest;
mod host;
mod plans;
mod rows;
mod runtimes;
mod unkeyed;
