//! From an error of the engine to a sentence for the guest's author: what it did, which limit it met and how to raise
//! that, and where in its code.

use std::fmt::Write;

use tidemill_core::Error;
use wasmtime::{Trap, WasmBacktrace};
use wasmtime_wasi::I32Exit;

use crate::lift::Violation;
use crate::state::HostState;

/// Frames beyond these are recursion, or not the author's.
const FRAMES: usize = 16;

/// What happened, with the guest's backtrace.
pub(crate) fn explain(error: &wasmtime::Error, state: &mut HostState) -> String {
    state.collect_output();
    let mut message = cause(error, state);
    if let Some(words) = &state.last_words {
        let _ = write!(message, "; it said: {words}");
    }
    if let Some(backtrace) = error.downcast_ref::<WasmBacktrace>() {
        // Its text rather than its frames, because that has the names demangled.
        for frame in backtrace.to_string().lines().filter_map(readable).take(FRAMES) {
            let _ = write!(message, "\n    at {frame}");
        }
    }
    message
}

/// The process had no more memory, and that ended the instance: who holds it. Not where the guest knew how to do without.
pub(crate) fn refused(error: &wasmtime::Error, state: &mut HostState) -> Option<Error> {
    let refused = state.memory.refused.clone()?;
    let held = state.memory.held;
    let is_its_own = error.downcast_ref::<Violation>().is_some() || error.downcast_ref::<I32Exit>().is_some();
    let is_time = matches!(error.downcast_ref::<Trap>(), Some(Trap::Interrupt | Trap::StackOverflow));
    let about = format!("the component, which has {held} bytes of memory, got no more");
    let is_memory = !is_its_own && !is_time;
    if is_memory {
        state.memory.ends();
    }
    is_memory.then(|| refused.prefixed(&about))
}

/// From `  2:   0x5be0 - job.wasm!evil::process::h3578e80348ff6024` to `evil::process (job.wasm + 0x5be0)`; `None` for
/// what is no frame, or one of the toolchain's glue, which has no name.
fn readable(line: &str) -> Option<String> {
    let (place, name) = line.split_once(" - ")?;
    let (_, address) = place.split_once(": ")?;
    let (module, name) = name.split_once('!')?;
    if name.starts_with("<wasm function") {
        return None;
    }
    let mut shown = String::with_capacity(name.len());
    let mut rest = strip_hash(name);
    // Crate names of newer compilers carry a hash too: `std[a543996e6e7dbf1e]::`.
    while let Some((before, after)) = rest.split_once('[') {
        shown.push_str(before);
        match after.split_once(']').filter(|(inside, _)| is_hash(inside)) {
            Some((_, after)) => rest = after,
            None => {
                shown.push('[');
                rest = after;
            }
        }
    }
    shown.push_str(rest);
    Some(format!("{shown} ({module} + {})", address.trim()))
}

fn strip_hash(name: &str) -> &str {
    name.rsplit_once("::h").filter(|(_, hash)| is_hash(hash)).map_or(name, |(name, _)| name)
}

fn is_hash(text: &str) -> bool {
    text.len() == 16 && text.bytes().all(|b| b.is_ascii_hexdigit())
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
                 limits.call-time",
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
            "the component ran out of memory: it asked for {asked} bytes, and limits.memory is {}; use less, \
             or raise it",
            limits.memory_bytes
        );
    }
    let root = error.root_cause().to_string();
    if root.contains("fuel allocated for hostcalls") {
        return format!(
            "the component broke the contract: it hands more than {} bytes to the host in one call; emit less, use \
             smaller batches, or raise limits.transfer",
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_readable() {
        for (line, expected) in [
            ("    2:   0x5be0 - job.wasm!a::<T>::b::h3578e80348ff6024", Some("a::<T>::b (job.wasm + 0x5be0)")),
            ("    0:   0x1 - job.wasm!std[a543996e6e7dbf1e]::x::<[u8]>", Some("std::x::<[u8]> (job.wasm + 0x1)")),
            ("    0:  0x17c53 - <unknown>!<wasm function 1>", None),
            ("error while executing at wasm backtrace:", None),
        ] {
            assert_eq!(readable(line).as_deref(), expected);
        }
    }
}
