//! The one unchecked step of the generator: views become a text column without being looked at again.

#![allow(unsafe_code, reason = "the views are right by construction, and checking them costs more than making them")]

use std::sync::Arc;

use arrow::array::{ArrayRef, StringViewArray};
use arrow::buffer::{Buffer, ScalarBuffer};

/// A text column of views that were made by `draw` and `columns` over these bytes, or that hold their text themselves.
pub(super) fn texts(views: Vec<u128>, bytes: Option<&Buffer>) -> ArrayRef {
    let buffers: Vec<Buffer> = bytes.into_iter().cloned().collect();
    // SAFETY: each view is an entry of the tables that `Tables::new` made with `make_view` over this buffer, or was made
    // by `extra`, whose offset + length is at most 3 * 0x3FFF + 110 < 65,536, the pool's length. All bytes are ASCII.
    Arc::new(unsafe { StringViewArray::new_unchecked(ScalarBuffer::from(views), buffers.into(), None) })
}
