//! Whole jobs on connectors of memory, stepped in seeded orders and run in threads.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a failed test is what they mean here"
)]

mod cost;
mod failures;
mod four_ways;
mod random;
mod support;
mod time;
mod topologies;
