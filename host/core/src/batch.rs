//! A batch of rows: columns and, beside them, event timestamps.
//!
//! Invariant: all columns and the timestamps have the same length. The schema is not in the batch; both ends of an edge
//! agreed on it when the job was opened (the fields of the output port, after pruning).

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, UInt32Array};
use arrow::buffer::ScalarBuffer;
use arrow::compute;

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
        let columns = self.columns.iter().map(|c| compute::take(c, rows, None)).collect::<Result<Vec<_>, _>>()?;
        let timestamps = self.timestamps.as_ref().map(|t| take_timestamps(t, rows.values())).transpose()?;
        Ok(Self { rows: rows.len(), columns: columns.into(), timestamps })
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
pub fn take_timestamps(timestamps: &ScalarBuffer<i64>, rows: &[u32]) -> Result<ScalarBuffer<i64>> {
    let mut taken = Vec::with_capacity(rows.len());
    for &row in rows {
        let time = timestamps.get(row as usize);
        taken.push(*time.ok_or_else(|| Error::internal("a row index outside its batch"))?);
    }
    Ok(taken.into())
}
