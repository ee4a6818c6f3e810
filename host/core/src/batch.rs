//! A batch of rows: columns and, beside them, event timestamps.
//!
//! Invariant: all columns and the timestamps have the same length. The schema is not in the batch; both ends of an edge
//! agreed on it when the job was opened (the fields of the output port, after pruning).

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, TimestampMillisecondArray, UInt32Array};
use arrow::buffer::ScalarBuffer;
use arrow::compute;
use arrow::datatypes::TimestampMillisecondType;

use crate::error::{Error, Result};

/// Rows in columns. Cloning copies pointers only.
#[derive(Clone, Debug)]
pub struct Batch {
    rows: usize,
    columns: Arc<[ArrayRef]>,
    timestamps: Option<ScalarBuffer<i64>>,
}

impl Batch {
    /// From columns of one length and, where the stream has event time, a timestamp per row (milliseconds UTC).
    pub fn new(rows: usize, columns: Vec<ArrayRef>, timestamps: Option<ScalarBuffer<i64>>) -> Result<Self> {
        if let Some((i, column)) = columns.iter().enumerate().find(|(_, c)| c.len() != rows) {
            return Err(Error::internal(format!("column {i} has {} values in a batch of {rows} rows", column.len())));
        }
        if let Some(t) = timestamps.as_ref().filter(|t| t.len() != rows) {
            return Err(Error::internal(format!("{} timestamps in a batch of {rows} rows", t.len())));
        }
        Ok(Self { rows, columns: columns.into(), timestamps })
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Whether it has no row.
    pub fn is_empty(&self) -> bool {
        self.rows == 0
    }

    /// All columns.
    pub fn columns(&self) -> &[ArrayRef] {
        &self.columns
    }

    /// One column.
    pub fn column(&self, index: usize) -> Result<&ArrayRef> {
        self.columns
            .get(index)
            .ok_or_else(|| Error::internal(format!("column {index} of a batch of {} columns", self.columns.len())))
    }

    /// Event time of each row in milliseconds UTC, if the stream has event time.
    pub fn timestamps(&self) -> Option<&ScalarBuffer<i64>> {
        self.timestamps.as_ref()
    }

    /// The same rows with other timestamps.
    pub fn with_timestamps(self, timestamps: Option<ScalarBuffer<i64>>) -> Result<Self> {
        let columns = self.columns.to_vec();
        Self::new(self.rows, columns, timestamps)
    }

    /// The rows `offset .. offset + rows`, which must lie within the batch. Copies nothing.
    pub fn slice(&self, offset: usize, rows: usize) -> Self {
        Self {
            rows,
            columns: self.columns.iter().map(|c| c.slice(offset, rows)).collect(),
            timestamps: self.timestamps.as_ref().map(|t| t.slice(offset, rows)),
        }
    }

    /// Some columns, in the given order.
    pub fn project(&self, columns: &[usize]) -> Result<Self> {
        let columns = columns.iter().map(|&i| self.column(i).cloned()).collect::<Result<Vec<_>>>()?;
        Ok(Self { rows: self.rows, columns: columns.into(), timestamps: self.timestamps.clone() })
    }

    /// The rows with these indices, in this order.
    pub fn take(&self, rows: &UInt32Array) -> Result<Self> {
        let timestamps = self.timestamps.as_ref().map(|t| take_timestamps(t, rows.values())).transpose()?;
        let take = |column: &ArrayRef| match &timestamps {
            Some(taken) if self.is_event_time(column) => {
                let array = TimestampMillisecondArray::new(taken.clone(), None);
                Ok(Arc::new(array.with_data_type(column.data_type().clone())) as ArrayRef)
            }
            _ => compute::take(column, rows, None),
        };
        let columns = self.columns.iter().map(take).collect::<Result<Vec<_>, _>>()?;
        Ok(Self { rows: rows.len(), columns: columns.into(), timestamps })
    }

    /// Whether the timestamps are this column's own values, as they are behind a source: then they need not be copied
    /// twice.
    fn is_event_time(&self, column: &ArrayRef) -> bool {
        let values = column.as_primitive_opt::<TimestampMillisecondType>().filter(|c| c.null_count() == 0);
        let values = values.map(|c| c.values());
        values.zip(self.timestamps.as_ref()).is_some_and(|(values, t)| std::ptr::eq(&values[..], &t[..]))
    }

    /// One batch of the rows of all, in order. They must have the same column types; `None` if there are none.
    pub fn concat(batches: &[Batch]) -> Result<Option<Self>> {
        let Some(first) = batches.first() else { return Ok(None) };
        if batches.len() == 1 {
            return Ok(Some(first.clone()));
        }
        let mut columns = Vec::with_capacity(first.columns.len());
        for i in 0..first.columns.len() {
            let parts = batches.iter().map(|b| b.column(i).map(|c| c.as_ref())).collect::<Result<Vec<&dyn Array>>>()?;
            columns.push(compute::concat(&parts)?);
        }
        let timestamps = first.timestamps.is_some().then(|| {
            let parts = batches.iter().filter_map(|b| b.timestamps.as_ref());
            ScalarBuffer::from(parts.flat_map(|t| t.iter().copied()).collect::<Vec<i64>>())
        });
        Self::new(batches.iter().map(Batch::rows).sum(), columns, timestamps).map(Some)
    }

    /// Bytes that the batch keeps alive, for accounting. Buffers that several batches share count in each.
    pub fn bytes(&self) -> usize {
        let columns: usize = self.columns.iter().map(|c| c.get_buffer_memory_size()).sum();
        columns + self.timestamps.as_ref().map_or(0, |t| t.len() * 8)
    }
}

/// The timestamps of the rows with these indices.
#[allow(clippy::indexing_slicing, reason = "checked for all rows at once, so that the loop has no way out")]
pub fn take_timestamps(timestamps: &ScalarBuffer<i64>, rows: &[u32]) -> Result<ScalarBuffer<i64>> {
    let largest = rows.iter().copied().fold(0, u32::max) as usize;
    if !rows.is_empty() && largest >= timestamps.len() {
        return Err(Error::internal("a row index outside its batch"));
    }
    Ok(rows.iter().map(|&row| timestamps[row as usize]).collect())
}
