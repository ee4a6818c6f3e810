//! The crate's unsafe code: two steps where a check that was made elsewhere is taken as made.

#![allow(unsafe_code, reason = "each function names the check that makes it sound")]

use arrow::array::{ArrayRef, BinaryViewArray, StringViewArray};
use arrow::buffer::{Buffer, NullBuffer, ScalarBuffer};
use std::sync::Arc;
use wasmtime::Engine;
use wasmtime::component::Component;

/// Takes back a compiled component.
///
/// The caller must have verified that `artifact` is, unchanged, what [`Component::serialize`] gave (`cache.rs` does, by
/// a checksum over a file in a folder that only this user can write). Wasmtime itself refuses artifacts of another
/// version, configuration or CPU.
pub(crate) fn deserialize_component(engine: &Engine, artifact: &[u8]) -> wasmtime::Result<Component> {
    // SAFETY: the bytes are our own serialisation, see above.
    unsafe { Component::deserialize(engine, artifact) }
}

/// A text array of views into one buffer.
///
/// The caller must have verified that the buffer's text is UTF-8, that every view which is not inline lies within it
/// and that every view starts and ends at a character's border (`lift.rs` does).
pub(crate) fn string_views(views: Vec<u128>, data: Buffer, nulls: Option<NullBuffer>) -> ArrayRef {
    // SAFETY: see above; Arrow's own constructor would check each view's text a second time.
    unsafe { Arc::new(StringViewArray::new_unchecked(ScalarBuffer::from(views), [data].into(), nulls)) }
}

/// A bytes array of views into one buffer.
///
/// The caller must have verified that every view which is not inline lies within the buffer (`lift.rs` does).
pub(crate) fn binary_views(views: Vec<u128>, data: Buffer, nulls: Option<NullBuffer>) -> ArrayRef {
    // SAFETY: see above.
    unsafe { Arc::new(BinaryViewArray::new_unchecked(ScalarBuffer::from(views), [data].into(), nulls)) }
}
