//! The store of checkpoints against real folders, several owners, lost answers and damage.

mod support;

mod faults;
mod garbage;
mod protocol;
mod restart;
mod store;
