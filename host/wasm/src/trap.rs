//! From an error of the engine to a sentence for the guest's author: what it did, which limit it met and how to raise
//! that, and where in its code.

use std::fmt::Write;

use wasmtime::{Trap, WasmBacktrace};
use wasmtime_wasi::I32Exit;

use crate::lift::Violation;
use crate::state::HostState;

/// Frames beyond these are recursion, or not the author's.
const FRAMES: usize = 16;

/// What happened, with the guest's backtrace.
pub(crate) fn explain(error: &wasmtime::Error, state: &HostState) -> String {
    let mut message = cause(error, state);
    if let Some(words) = &state.last_words {
        let _ = write!(message, "; it said: {words}");
    }
    if let Some(backtrace) = error.downcast_ref::<WasmBacktrace>() {
        let text = backtrace.to_string();
        for line in text.lines().filter(|l| !l.trim().is_empty()).skip(1).take(FRAMES) {
            let _ = write!(message, "\n    {}", line.trim());
        }
    }
    message
}

fn cause(error: &wasmtime::Error, state: &HostState) -> String {
    let limits = &state.limits;
    if let Some(Violation(what)) = error.downcast_ref::<Violation>() {
        return format!("the component broke the contract: {what}");
    }
    if let Some(I32Exit(code)) = error.downcast_ref::<I32Exit>() {
        return format!("the component called exit({code}); return an error instead");
    }
    match error.downcast_ref::<Trap>() {
        Some(Trap::Interrupt) => {
            return format!(
                "the component took longer than {} ms in one call; make it faster, use smaller batches, or raise \
                 limits.call_ms",
                limits.call_ms
            );
        }
        Some(Trap::StackOverflow) => {
            return format!(
                "the component recursed until its stack of {} bytes was full; recurse less, or raise \
                 limits.stack_bytes",
                limits.stack_bytes
            );
        }
        _ => {}
    }
    if let Some(asked) = state.memory.denied {
        return format!(
            "the component ran out of memory: it asked for {asked} bytes, and limits.memory_bytes is {}; use less, \
             or raise it",
            limits.memory_bytes
        );
    }
    let root = error.root_cause().to_string();
    if root.contains("fuel allocated for hostcalls") {
        return format!(
            "the component broke the contract: it hands more than {} bytes to the host in one call; emit less, use \
             smaller batches, or raise limits.transfer_bytes",
            limits.transfer_bytes
        );
    }
    match error.downcast_ref::<Trap>() {
        Some(trap) => {
            let text = trap.to_string();
            format!("the component trapped: {}", text.strip_prefix("wasm trap: ").unwrap_or(&text))
        }
        None => format!("the component failed: {root}"),
    }
}
