//! From pairs of row numbers to a batch of the output.
//!
//! Text that is copied is a view into the buffers of the rows it came from. A batch of the output may be kept for long
//! (in a queue, in the state of another operator), so it must not keep much more text alive than its own: columns whose
//! buffers are mostly foreign are compacted here.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, GenericByteViewArray, UInt32Array};
use arrow::buffer::ScalarBuffer;
use arrow::compute;
use arrow::datatypes::{ByteViewType, DataType};
use tidemill_core::{Batch, Error, Result};

use super::{Layout, Side, Sides};

/// Foreign text is tolerated up to this, and up to as much as there is own text.
const FOREIGN_BYTES: usize = 64 << 10;

impl Layout {
    /// A batch of the output, from the kept columns of both sides, row by row.
    pub(super) fn output(&self, sides: &Sides<Vec<ArrayRef>>, times: ScalarBuffer<i64>) -> Result<Batch> {
        let column = |&(side, place): &(Side, usize)| {
            let column = sides.of(side).get(place).cloned();
            column.ok_or_else(|| Error::internal(format!("kept column {place} of a join")))
        };
        let columns = self.output.iter().map(column).collect::<Result<Vec<_>>>()?;
        Batch::new(times.len(), columns, Some(times))
    }
}

/// The columns of these rows of a batch.
pub(super) fn take_columns(batch: &Batch, rows: &UInt32Array) -> Result<Vec<ArrayRef>> {
    batch.columns().iter().map(|column| Ok(compact(compute::take(column, rows, None)?))).collect()
}

/// The columns of rows of several batches: each is (batch, row of it).
pub(super) fn interleave_columns(batches: &[Batch], rows: &[(usize, usize)]) -> Result<Vec<ArrayRef>> {
    let Some(first) = batches.first() else { return Ok(Vec::new()) };
    let column = |index: usize| {
        let parts = batches.iter().map(|b| b.column(index).map(|c| c.as_ref())).collect::<Result<Vec<&dyn Array>>>()?;
        Ok(compact(compute::interleave(&parts, rows)?))
    };
    (0..first.columns().len()).map(column).collect()
}

fn compact(column: ArrayRef) -> ArrayRef {
    match column.data_type() {
        DataType::Utf8View => compact_views(column.as_string_view()).unwrap_or(column),
        DataType::BinaryView => compact_views(column.as_binary_view()).unwrap_or(column),
        _ => column,
    }
}

fn compact_views<T: ByteViewType + ?Sized>(column: &GenericByteViewArray<T>) -> Option<ArrayRef> {
    let held: usize = column.data_buffers().iter().map(|b| b.len()).sum();
    let foreign = held > FOREIGN_BYTES && held / 2 > column.total_buffer_bytes_used();
    foreign.then(|| Arc::new(column.gc()) as ArrayRef)
}
