//! A row log: rows kept whole, by namespace, in order of arrival.
//!
//! Invariant: `bytes` is what the logged rows keep alive; text and bytes are in buffers of their own, so that a row of
//! a log does not hold the batch that it came in.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray};
use arrow::datatypes::DataType;
use tidemill_core::keys::{KeyCodec, KeyData, Keys};
use tidemill_core::state::Namespace;
use tidemill_core::{Batch, Error, Result};

use super::frozen::FrozenPart;

#[derive(Debug)]
pub(crate) struct Log {
    name: String,
    columns: Vec<DataType>,
    spaces: BTreeMap<Namespace, Rows>,
    bytes: usize,
    rows: u64,
    /// Namespaces that earlier snapshots have and that were dropped since the latest.
    dropped: BTreeSet<Namespace>,
}

#[derive(Debug, Default)]
struct Rows {
    pieces: Vec<(Batch, Arc<Keys>)>,
    /// So many pieces are in earlier snapshots.
    frozen: usize,
    bytes: usize,
    rows: u64,
    /// So many pieces before the others are on disk only.
    absent: u64,
}

impl Log {
    pub(crate) fn new(name: &str, columns: Vec<DataType>) -> Self {
        Self { name: name.to_owned(), columns, spaces: BTreeMap::new(), bytes: 0, rows: 0, dropped: BTreeSet::new() }
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn columns(&self) -> &[DataType] {
        &self.columns
    }

    /// The next snapshot is the first.
    pub(crate) fn forget_snapshots(&mut self) {
        self.dropped.clear();
        self.spaces.values_mut().for_each(|space| space.frozen = 0);
    }

    /// Snapshots have everything as it is.
    pub(crate) fn settle(&mut self) {
        self.dropped.clear();
        self.spaces.values_mut().for_each(|space| space.frozen = space.pieces.len());
    }

    /// What changed since the latest snapshot. Rows and keys are shared with it, since they never change.
    pub(crate) fn freeze(&mut self, fixed: bool) -> FrozenPart {
        let mut part = FrozenPart::new(fixed);
        part.dropped = std::mem::take(&mut self.dropped).into_iter().map(|namespace| namespace.0).collect();
        for (namespace, space) in &mut self.spaces {
            let first = space.absent + space.frozen as u64;
            for (sequence, (rows, keys)) in (first..).zip(space.pieces.iter().skip(space.frozen)) {
                part.sequences.push(sequence);
                part.put.runs.push((namespace.0, keys.len()));
                part.row_keys.push(Arc::clone(keys));
                part.rows.push(rows.clone());
            }
            space.frozen = space.pieces.len();
        }
        part
    }

    pub(crate) fn append(&mut self, namespace: Namespace, rows: Batch, keys: Keys) -> Result<()> {
        let types = rows.columns().iter().map(|c| c.data_type());
        if rows.rows() != keys.len() || !types.eq(self.columns.iter()) {
            return Err(Error::internal(format!("rows of another shape than that of the log '{}'", self.name)));
        }
        if rows.is_empty() {
            return Ok(());
        }
        let columns = rows.columns().iter().map(compacted).collect();
        let rows = Batch::new(rows.rows(), columns, rows.timestamps().cloned())?;
        let bytes = piece_bytes(&rows, &keys);
        let space = self.spaces.entry(namespace).or_default();
        space.bytes += bytes;
        space.rows += rows.rows() as u64;
        self.bytes += bytes;
        self.rows += rows.rows() as u64;
        space.pieces.push((rows, Arc::new(keys)));
        Ok(())
    }

    pub(crate) fn rows(&self, namespace: Namespace) -> &[(Batch, Arc<Keys>)] {
        self.spaces.get(&namespace).map_or(&[], |space| space.pieces.as_slice())
    }

    pub(crate) fn drop_rows(&mut self, namespace: Namespace) {
        if let Some(space) = self.spaces.remove(&namespace) {
            self.bytes -= space.bytes;
            self.rows -= space.rows;
            if space.frozen > 0 || space.absent > 0 {
                self.dropped.insert(namespace);
            }
        }
    }

    /// Removes rows whose key's hash is one of some.
    pub(crate) fn drop_some_rows(
        &mut self,
        namespace: Namespace,
        codec: &KeyCodec,
        gone: impl Fn(u64) -> bool,
    ) -> Result<()> {
        let Some(space) = self.spaces.remove(&namespace) else { return Ok(()) };
        self.bytes -= space.bytes;
        self.rows -= space.rows;
        for (batch, keys) in space.pieces {
            let kept = (0u32..).zip(&keys.hashes).filter(|(_, hash)| !gone(**hash)).map(|(row, _)| row);
            let kept: Vec<u32> = kept.collect();
            let keys = codec.take(&keys, &kept)?;
            self.append(namespace, batch.take(&kept.into())?, keys)?;
        }
        Ok(())
    }

    /// How many pieces of a namespace are on disk only.
    pub(crate) fn absent(&self, namespace: Namespace) -> u64 {
        self.spaces.get(&namespace).map_or(0, |space| space.absent)
    }

    /// Rows of a namespace that are on disk only.
    pub(crate) fn set_absent(&mut self, namespace: Namespace, pieces: u64, rows: u64) {
        let space = self.spaces.entry(namespace).or_default();
        space.absent += pieces;
        space.rows += rows;
        self.rows += rows;
    }

    /// Makes pieces absent until so many bytes are held at most, of the last namespaces first. The disk must have what
    /// was frozen.
    pub(crate) fn evict(&mut self, bytes: usize) {
        for space in self.spaces.values_mut().rev() {
            if self.bytes <= bytes {
                break;
            }
            let evicted: usize = space.pieces.drain(..space.frozen).map(|(rows, keys)| piece_bytes(&rows, &keys)).sum();
            space.absent += std::mem::take(&mut space.frozen) as u64;
            space.bytes -= evicted;
            self.bytes -= evicted;
        }
    }

    /// The absent pieces of a namespace, in order.
    pub(crate) fn loaded(&mut self, namespace: Namespace, pieces: Vec<(Batch, Keys)>) {
        let space = self.spaces.entry(namespace).or_default();
        let bytes: usize = pieces.iter().map(|(rows, keys)| piece_bytes(rows, keys)).sum();
        space.absent = 0;
        space.frozen += pieces.len();
        space.bytes += bytes;
        self.bytes += bytes;
        space.pieces.splice(..0, pieces.into_iter().map(|(rows, keys)| (rows, Arc::new(keys))));
    }

    /// Per namespace: pieces and rows, absent ones too.
    pub(crate) fn counts(&self) -> impl Iterator<Item = (Namespace, u64, u64)> {
        self.spaces.iter().map(|(&namespace, space)| (namespace, space.absent + space.pieces.len() as u64, space.rows))
    }

    pub(crate) fn namespaces(&self) -> Vec<Namespace> {
        self.spaces.keys().copied().collect()
    }

    pub(crate) fn len(&self) -> u64 {
        self.rows
    }

    pub(crate) fn memory_bytes(&self) -> usize {
        self.bytes
    }
}

fn piece_bytes(rows: &Batch, keys: &Keys) -> usize {
    rows.bytes() + key_bytes(keys)
}

fn key_bytes(keys: &Keys) -> usize {
    let data = match &keys.data {
        KeyData::Fixed(values) => values.capacity() * 8,
        KeyData::Rows(rows) => rows.size(),
    };
    data + keys.hashes.capacity() * 8
}

/// The same values in no more memory than they need, where that is much less than what they hold.
fn compacted(array: &ArrayRef) -> ArrayRef {
    match array.data_type() {
        DataType::Utf8View => Arc::new(array.as_string_view().gc()),
        DataType::BinaryView => Arc::new(array.as_binary_view().gc()),
        _ if array.get_buffer_memory_size() > 2 * array.get_slice_memory_size_or_all() => copied(array),
        _ => Arc::clone(array),
    }
}

/// By way of indices, the one kernel that copies every type.
fn copied(array: &ArrayRef) -> ArrayRef {
    let all = arrow::array::UInt32Array::from_iter_values(0..array.len() as u32);
    arrow::compute::take(array, &all, None).unwrap_or_else(|_| Arc::clone(array))
}

trait SliceSize {
    fn get_slice_memory_size_or_all(&self) -> usize;
}

impl SliceSize for ArrayRef {
    fn get_slice_memory_size_or_all(&self) -> usize {
        let data = self.to_data();
        data.get_slice_memory_size().unwrap_or_else(|_| self.get_buffer_memory_size())
    }
}
