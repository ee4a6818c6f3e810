//! The store of checkpoints against real folders, several owners, lost answers and damage; the protocol against
//! everything that can happen to it.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test may panic")]

mod support;

mod faults;
mod garbage;
mod local;
mod protocol;
mod restart;
mod store;
