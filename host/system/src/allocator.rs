//! The allocator of every process that depends on this crate, and how long it keeps freed memory before the system has it
//! back. Why, and what it costs: `docs/decisions/0015-freed-memory.md`.

use std::ffi::c_long;

use libmimalloc_sys::{mi_option_get, mi_option_set, mi_option_t};
use mimalloc::MiMalloc;

/// Batches of many small buffers are allocated and freed on different threads, which is what it is good at.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

/// Milliseconds from when memory is freed until the system has it back. The C header has it, the crate does not.
const PURGE_DELAY: mi_option_t = 15;

/// What it is if neither `MIMALLOC_PURGE_DELAY` nor a program sets it.
const DEFAULT_MS: c_long = 1_000;

/// Longer than most windows: what one of them frees, the next one takes without the system's help.
const KEPT_MS: c_long = 10_000;

/// Keeps freed memory for ten seconds instead of one, unless the environment says `MIMALLOC_PURGE_DELAY`. To be called once,
/// when a process begins.
pub fn keep_freed_memory() {
    // SAFETY: any number may be asked for, and one that has the value of a default is an option that can be set. That also
    // keeps what the environment says, and hands off an option that has another number in a version to come.
    unsafe {
        if mi_option_get(PURGE_DELAY) == DEFAULT_MS {
            mi_option_set(PURGE_DELAY, KEPT_MS);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_option_is_the_one_that_is_meant() {
        // SAFETY: it only reads.
        let now = || unsafe { mi_option_get(PURGE_DELAY) };
        // Its default is no other option's.
        assert_eq!(now(), DEFAULT_MS);
        keep_freed_memory();
        assert_eq!(now(), KEPT_MS);
    }
}
