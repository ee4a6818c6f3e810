//! What processes ask of the system and of the allocator, where that takes unsafe code.

#![allow(unsafe_code, reason = "C interfaces; each call says why it is sound")]

mod allocator;
mod scheduling;

pub use allocator::keep_freed_memory;
pub use scheduling::let_others_compute;
