//! The one unchecked step of decoding: views become a text column without being looked at again.

#![allow(
    unsafe_code,
    reason = "every text was checked once as part of its chunk; checking each view again costs as much as finding it"
)]

use std::sync::Arc;

use arrow::array::{ArrayRef, StringViewArray};
use arrow::buffer::{Buffer, NullBuffer, ScalarBuffer};

/// A text column of views over these buffers.
///
/// The caller (`columns`) makes each view with `make_view` of a slice of one of the buffers, at that slice's offset; the
/// slice is UTF-8, since its chunk or line was validated and it is cut at ASCII bytes, or since it was made as a `str`.
pub(super) fn text_array(views: Vec<u128>, buffers: Vec<Buffer>, nulls: Option<NullBuffer>) -> ArrayRef {
    // SAFETY: see the caller's obligation above; `columns` is the only caller and the module is private to `format`.
    Arc::new(unsafe { StringViewArray::new_unchecked(ScalarBuffer::from(views), buffers.into(), nulls) })
}
