//! From frozen state to files.
//!
//! Rows are sorted into *buckets*, ranges of key groups, so that a reader of some groups decodes only those, and a file
//! has some buckets of all parts. What is in memory at once, beside the frozen state, is one file and one bucket.
#![allow(clippy::indexing_slicing, reason = "orders and bounds are made here, from the lengths that they index")]

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, Int64Array, RecordBatch, UInt32Array};
use arrow::datatypes::{Schema, SchemaRef};
use arrow_ipc::CompressionType;
use arrow_ipc::writer::{IpcWriteOptions, StreamWriter};
use tidemill_core::keys::{KeyCodec, Keys};
use tidemill_core::snapshot::KeyGroupRange;
use tidemill_core::{Batch, Result};

use super::{Block, Change, Footer, MAGIC, Part, PartKind, PortableFile, schema};
use crate::column::ColumnCodec;
use crate::framed::{self, Place};
use crate::memory::frozen::{FrozenPart, FrozenState, PartAbout, TableChunk, disagree};

/// Rows of a record batch: enough that its own description is nothing beside it.
const BATCH_ROWS: usize = 1 << 16;

/// How a snapshot is divided.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Layout {
    /// A file is closed when it has so many bytes.
    pub(crate) file_bytes: usize,
    /// Into so many buckets, if there are as many key groups.
    pub(crate) buckets: u16,
    pub(crate) savepoint: bool,
}

/// Encodes frozen state, and hands over each file with what it is about. At least one, even of nothing.
pub(crate) fn write_files(
    frozen: &FrozenState,
    layout: Layout,
    mut done: impl FnMut(Vec<u8>, KeyGroupRange) -> Result<()>,
) -> Result<()> {
    let mut parts = Vec::new();
    let ranges = divided(frozen.about.key_groups, layout.buckets);
    for (about, part) in &frozen.parts {
        parts.push(SortedPart::new(frozen, about, part, &ranges)?);
    }
    let mut file = None;
    for (bucket, range) in ranges.iter().enumerate() {
        let mut open = match file.take() {
            Some(open) => open,
            None => OpenFile::new(frozen, layout.savepoint, *range, &parts)?,
        };
        open.footer.key_groups.last = range.last;
        for (i, part) in parts.iter().enumerate() {
            open.push(i, part, &frozen.about.codec, bucket, *range)?;
        }
        if open.bytes.len() >= layout.file_bytes || bucket + 1 == ranges.len() {
            let (bytes, range) = open.close()?;
            done(bytes, range)?;
        } else {
            file = Some(open);
        }
    }
    Ok(())
}

/// Files of changes as one, to be applied in this order. Copies their blocks as they are. `None` of no file.
pub(crate) fn concatenated(files: &[PortableFile]) -> Result<Option<(Vec<u8>, KeyGroupRange)>> {
    let Some(first) = files.first() else { return Ok(None) };
    let footer = Footer { parts: Vec::new(), ..first.footer.clone() };
    let mut all = OpenFile { bytes: MAGIC.to_vec(), footer };
    for file in files {
        let (range, of) = (&mut all.footer.key_groups, file.footer.key_groups);
        *range = KeyGroupRange { first: range.first.min(of.first), last: range.last.max(of.last) };
        for part in &file.footer.parts {
            let mut blocks = Vec::with_capacity(part.blocks.len());
            for block in &part.blocks {
                blocks.push(Block { place: all.copy(&file.at(block.place)?), ..*block });
            }
            let same = |p: &&mut Part| p.kind == part.kind && p.name == part.name;
            if let Some(before) = all.footer.parts.iter_mut().find(same) {
                before.blocks.append(&mut blocks);
            } else {
                let schema = all.copy(&file.at(part.schema)?);
                all.footer.parts.push(Part { kind: part.kind, name: part.name.clone(), schema, blocks });
            }
        }
    }
    all.seal().map(Some)
}

/// The rows that are put into a part, all or those of some keys.
pub(crate) fn batches(
    frozen: &FrozenState,
    kind: PartKind,
    name: &str,
    keys: Option<&Keys>,
    visit: &mut dyn FnMut(RecordBatch) -> Result<()>,
) -> Result<()> {
    let of_part = |about: &PartAbout| about.kind == kind && about.name == name;
    let Some((about, part)) = frozen.parts.iter().find(|(about, _)| of_part(about)) else { return Ok(()) };
    let sorted = SortedPart::new(frozen, about, part, &[frozen.about.key_groups])?;
    let rows = match keys {
        Some(keys) => part.put.keys.rows_of(keys),
        None => (0..part.put.keys.len() as u32).collect(),
    };
    for rows in rows.chunks(BATCH_ROWS) {
        let arrays = sorted.arrays(&part.put, &sorted.put, &frozen.about.codec, rows)?;
        visit(RecordBatch::try_new(Arc::clone(&sorted.schema), arrays)?)?;
    }
    Ok(())
}

/// A range of key groups cut into up to so many ranges of nearly one size.
pub(crate) fn divided(all: KeyGroupRange, pieces: u16) -> Vec<KeyGroupRange> {
    let groups = u32::from(all.last - all.first) + 1;
    let pieces = u32::from(pieces).clamp(1, groups);
    let at = |i: u32| all.first + (groups * i / pieces) as u16;
    (0..pieces).map(|i| KeyGroupRange { first: at(i), last: at(i + 1) - 1 }).collect()
}

/// A part whose rows are ordered by bucket.
struct SortedPart<'a> {
    kind: PartKind,
    name: &'a str,
    schema: SchemaRef,
    columns: Vec<ColumnCodec>,
    part: &'a FrozenPart,
    removed: Order,
    put: Order,
    /// The rows of a log, as one, with a timestamp each.
    rows: Option<(Batch, Int64Array)>,
}

/// Row numbers by bucket.
struct Order {
    rows: Vec<u32>,
    bounds: Vec<usize>,
    leads: Vec<i64>,
}

impl<'a> SortedPart<'a> {
    fn new(
        frozen: &'a FrozenState,
        about: &'a PartAbout,
        part: &'a FrozenPart,
        ranges: &[KeyGroupRange],
    ) -> Result<Self> {
        let (kind, name, values) = (about.kind, &about.name, &about.values);
        let logs = kind == PartKind::Log;
        let columns = if logs { Vec::new() } else { values.iter().map(ColumnCodec::new).collect::<Result<_>>()? };
        Ok(Self {
            kind,
            name,
            schema: schema(kind, &frozen.about.codec, values),
            columns,
            part,
            removed: Order::new(frozen, &part.removed, ranges)?,
            put: Order::new(frozen, &part.put, ranges)?,
            rows: if logs { log_rows(part)? } else { None },
        })
    }

    /// The columns of these rows.
    fn arrays(&self, chunk: &TableChunk, order: &Order, codec: &KeyCodec, rows: &[u32]) -> Result<Vec<ArrayRef>> {
        let leads = rows.iter().map(|&row| order.leads[row as usize]);
        let mut arrays: Vec<ArrayRef> = vec![Arc::new(Int64Array::from_iter_values(leads))];
        arrays.extend(chunk.keys.decode(codec, rows)?);
        for (codec, (column, present)) in self.columns.iter().zip(&chunk.columns) {
            arrays.push(column.read(codec, present, rows)?);
        }
        if let Some((batch, times)) = &self.rows {
            let rows = UInt32Array::from(rows.to_vec());
            arrays.push(arrow::compute::take(times, &rows, None)?);
            for column in batch.take(&rows)?.columns() {
                arrays.push(alone(column));
            }
        }
        Ok(arrays)
    }
}

impl Order {
    /// A counting sort: two passes over the rows, and order within a bucket is kept.
    fn new(frozen: &FrozenState, chunk: &TableChunk, ranges: &[KeyGroupRange]) -> Result<Self> {
        let leads: Vec<i64> = chunk.runs.iter().flat_map(|&(lead, n)| std::iter::repeat_n(lead, n)).collect();
        if leads.len() != chunk.keys.len() {
            return Err(disagree("keys and namespaces"));
        }
        let mut bucket_of = BTreeMap::new();
        for (bucket, range) in ranges.iter().enumerate() {
            bucket_of.extend((range.first..=range.last).map(|group| (group, bucket)));
        }
        let first = frozen.about.key_groups.first;
        let bucket_of: Vec<usize> = bucket_of.into_values().collect();
        let groups = chunk.keys.hashes().into_iter().map(|hash| frozen.about.max_parallelism.key_group(hash).0);
        // A key outside its subtask's groups would be a defect elsewhere; it is kept, in the nearest bucket.
        let buckets: Vec<usize> =
            groups.map(|g| bucket_of[usize::from(g.saturating_sub(first)).min(bucket_of.len() - 1)]).collect();
        let mut bounds = vec![0; ranges.len() + 1];
        buckets.iter().for_each(|&bucket| bounds[bucket + 1] += 1);
        (1..bounds.len()).for_each(|i| bounds[i] += bounds[i - 1]);
        let (mut next, mut rows) = (bounds.clone(), vec![0; buckets.len()]);
        for (row, &bucket) in buckets.iter().enumerate() {
            rows[next[bucket]] = row as u32;
            next[bucket] += 1;
        }
        Ok(Self { rows, bounds, leads })
    }

    fn bucket(&self, bucket: usize) -> &[u32] {
        &self.rows[self.bounds[bucket]..self.bounds[bucket + 1]]
    }
}

/// All rows of a log as one batch, and their timestamps, null where a row has none.
fn log_rows(part: &FrozenPart) -> Result<Option<(Batch, Int64Array)>> {
    let mut times = Vec::new();
    let mut batches = Vec::with_capacity(part.rows.len());
    for batch in &part.rows {
        match batch.timestamps() {
            Some(t) => times.extend(t.iter().map(|&t| Some(t))),
            None => times.extend(std::iter::repeat_n(None, batch.rows())),
        }
        batches.push(batch.clone().with_timestamps(None)?);
    }
    Ok(Batch::concat(&batches)?.map(|rows| (rows, Int64Array::from(times))))
}

/// A view array holds the buffers it was cut from, and would be written with them.
pub(crate) fn alone(array: &ArrayRef) -> ArrayRef {
    use arrow::datatypes::DataType;
    match array.data_type() {
        DataType::Utf8View => Arc::new(array.as_string_view().gc()),
        DataType::BinaryView => Arc::new(array.as_binary_view().gc()),
        _ => Arc::clone(array),
    }
}

struct OpenFile {
    bytes: Vec<u8>,
    footer: Footer,
}

impl OpenFile {
    fn new(frozen: &FrozenState, savepoint: bool, range: KeyGroupRange, parts: &[SortedPart<'_>]) -> Result<Self> {
        let mut file = Self {
            bytes: MAGIC.to_vec(),
            footer: Footer {
                operator: frozen.about.operator.clone(),
                max_parallelism: frozen.about.max_parallelism.get(),
                key_groups: range,
                keys: frozen.about.codec.types().len(),
                base: frozen.whole,
                savepoint,
                parts: Vec::new(),
            },
        };
        for part in parts {
            let schema = file.stream(&part.schema, std::iter::empty())?;
            let mut blocks = Vec::new();
            if !part.part.dropped.is_empty() {
                let namespaces: ArrayRef = Arc::new(Int64Array::from(part.part.dropped.clone()));
                let (rows, schema) = (namespaces.len() as u64, Arc::new(part.schema.project(&[0])?));
                let batch = RecordBatch::try_new(Arc::clone(&schema), vec![namespaces])?;
                let place = file.stream(&schema, std::iter::once(Ok(batch)))?;
                blocks.push(Block { change: Change::Dropped, key_groups: range, rows, place });
            }
            let (kind, name) = (part.kind, part.name.to_owned());
            file.footer.parts.push(Part { kind, name, schema, blocks });
        }
        Ok(file)
    }

    /// What a bucket has of a part.
    fn push(
        &mut self,
        index: usize,
        part: &SortedPart<'_>,
        codec: &KeyCodec,
        bucket: usize,
        key_groups: KeyGroupRange,
    ) -> Result<()> {
        let keys: Vec<usize> = (0..1 + codec.types().len()).collect();
        let removed = Arc::new(part.schema.project(&keys)?);
        for (change, chunk, order, schema) in [
            (Change::Removed, &part.part.removed, &part.removed, &removed),
            (Change::Put, &part.part.put, &part.put, &part.schema),
        ] {
            let rows = order.bucket(bucket);
            if rows.is_empty() {
                continue;
            }
            let batches = rows.chunks(BATCH_ROWS).map(|rows| {
                let mut arrays = part.arrays(chunk, order, codec, rows)?;
                arrays.truncate(schema.fields().len());
                Ok(RecordBatch::try_new(Arc::clone(schema), arrays)?)
            });
            let place = self.stream(schema, batches)?;
            if let Some(part) = self.footer.parts.get_mut(index) {
                part.blocks.push(Block { change, key_groups, rows: rows.len() as u64, place });
            }
        }
        Ok(())
    }

    fn copy(&mut self, bytes: &[u8]) -> Place {
        let offset = framed::align(&mut self.bytes);
        self.bytes.extend_from_slice(bytes);
        framed::placed(&self.bytes, offset)
    }

    fn stream(&mut self, schema: &Schema, batches: impl Iterator<Item = Result<RecordBatch>>) -> Result<Place> {
        let offset = framed::align(&mut self.bytes);
        let options = IpcWriteOptions::default().try_with_compression(Some(CompressionType::LZ4_FRAME))?;
        let mut writer = StreamWriter::try_new_with_options(&mut self.bytes, schema, options)?;
        for batch in batches {
            writer.write(&batch?)?;
        }
        writer.finish()?;
        drop(writer);
        Ok(framed::placed(&self.bytes, offset))
    }

    fn close(mut self) -> Result<(Vec<u8>, KeyGroupRange)> {
        // What a file says of a namespace, it says of all its key groups.
        let dropped = self.footer.parts.iter_mut().flat_map(|part| &mut part.blocks);
        for block in dropped.filter(|block| block.change == Change::Dropped) {
            block.key_groups = self.footer.key_groups;
        }
        self.seal()
    }

    fn seal(mut self) -> Result<(Vec<u8>, KeyGroupRange)> {
        framed::seal(&mut self.bytes, MAGIC, &self.footer)?;
        Ok((self.bytes, self.footer.key_groups))
    }
}
