//! Frozen state: copies of what changed, in columns, as cheap to make as copies can be. Everything else (decoding keys,
//! sorting by key group, encoding) is done from these off the slot.
#![allow(clippy::indexing_slicing, reason = "ends are pushed by this file alone, slots come from the space they index")]

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use arrow::array::ArrayRef;
use tidemill_core::ids::MaxParallelism;
use tidemill_core::keys::{KeyCodec, KeyData, Keys, hash_fixed, hash_row};
use tidemill_core::snapshot::KeyGroupRange;
use tidemill_core::state::{Slot, ValueColumn, ValueSpec, Values};
use tidemill_core::{Batch, Error, Result};

use super::space::Space;
use super::table::{Expiring, expiring};
use crate::column::{self, ColumnCodec};
use crate::format::PartKind;

/// A piece of what is copied for a snapshot ends when it has so many entries, about, or bytes.
const PIECE_ENTRIES: usize = 1 << 14;
const PIECE_BYTES: usize = 1 << 21;

/// Keys, back to back.
#[derive(Debug)]
pub(crate) enum KeyBytes {
    Fixed(Vec<u64>),
    Rows(Bytes),
}

/// Byte strings, back to back.
#[derive(Debug, Default)]
pub(crate) struct Bytes {
    bytes: Vec<u8>,
    ends: Vec<usize>,
}

impl Bytes {
    pub(crate) fn push(&mut self, one: &[u8]) {
        self.bytes.extend_from_slice(one);
        self.ends.push(self.bytes.len());
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &[u8]> {
        let starts = std::iter::once(0).chain(self.ends.iter().copied());
        starts.zip(&self.ends).map(|(start, &end)| &self.bytes[start..end])
    }

    pub(crate) fn get(&self, index: usize) -> &[u8] {
        let start = if index == 0 { 0 } else { self.ends[index - 1] };
        &self.bytes[start..self.ends[index]]
    }

    pub(crate) fn len(&self) -> usize {
        self.ends.len()
    }

    fn retain(&mut self, left: &[bool]) {
        let mut kept = Self::default();
        self.iter().zip(left).filter(|(_, left)| **left).for_each(|(one, _)| kept.push(one));
        *self = kept;
    }

    fn append(&mut self, other: &mut Self) {
        let before = self.bytes.len();
        self.bytes.append(&mut other.bytes);
        self.ends.extend(other.ends.drain(..).map(|end| end + before));
    }

    fn memory_bytes(&self) -> usize {
        self.bytes.capacity() + self.ends.capacity() * 8
    }
}

impl KeyBytes {
    pub(crate) fn new(fixed: bool) -> Self {
        if fixed { Self::Fixed(Vec::new()) } else { Self::Rows(Bytes::default()) }
    }

    pub(crate) fn push_fixed(&mut self, key: u64) {
        if let Self::Fixed(keys) = self {
            keys.push(key);
        }
    }

    pub(crate) fn extend_fixed(&mut self, more: impl Iterator<Item = u64>) {
        if let Self::Fixed(keys) = self {
            keys.extend(more);
        }
    }

    pub(crate) fn push_row(&mut self, key: &[u8]) {
        if let Self::Rows(keys) = self {
            keys.push(key);
        }
    }

    /// One of these keys.
    pub(crate) fn push(&mut self, keys: &Keys, row: usize) {
        match &keys.data {
            KeyData::Fixed(values) => self.push_fixed(values[row]),
            KeyData::Rows(rows) => self.push_row(rows.row(row).as_ref()),
        }
    }

    pub(crate) fn append(&mut self, other: &mut Self) {
        if self.is_empty() {
            return std::mem::swap(self, other);
        }
        match (self, other) {
            (Self::Fixed(keys), Self::Fixed(others)) => keys.append(others),
            (Self::Rows(keys), Self::Rows(others)) => keys.append(others),
            _ => {}
        }
    }

    fn reserve(&mut self, more: usize) {
        match self {
            Self::Fixed(keys) => keys.reserve(more),
            Self::Rows(keys) => keys.ends.reserve(more),
        }
    }

    pub(crate) fn len(&self) -> usize {
        match self {
            Self::Fixed(keys) => keys.len(),
            Self::Rows(keys) => keys.len(),
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(crate) fn clear(&mut self) {
        let fixed = matches!(self, Self::Fixed(_));
        *self = Self::new(fixed);
    }

    /// The key columns of some of them.
    pub(crate) fn decode(&self, codec: &KeyCodec, rows: &[u32]) -> Result<Vec<ArrayRef>> {
        match self {
            Self::Fixed(keys) => codec.decode_fixed(&rows.iter().map(|&row| keys[row as usize]).collect::<Vec<_>>()),
            Self::Rows(keys) => {
                let parser = codec.parser().ok_or_else(|| disagree("keys and their codec"))?;
                codec.decode_rows(rows.iter().map(|&row| parser.parse(keys.get(row as usize))))
            }
        }
    }

    /// Which of them are among others.
    pub(crate) fn rows_of(&self, others: &Keys) -> Vec<u32> {
        let all = 0..self.len() as u32;
        match (self, &others.data) {
            (Self::Fixed(keys), KeyData::Fixed(wanted)) => {
                let wanted: BTreeSet<u64> = wanted.iter().copied().collect();
                all.filter(|&row| wanted.contains(&keys[row as usize])).collect()
            }
            (Self::Rows(keys), KeyData::Rows(wanted)) => {
                let wanted: BTreeSet<&[u8]> = wanted.iter().map(|row| row.data()).collect();
                all.filter(|&row| wanted.contains(keys.get(row as usize))).collect()
            }
            _ => Vec::new(),
        }
    }

    pub(crate) fn hashes(&self) -> Vec<u64> {
        match self {
            Self::Fixed(keys) => keys.iter().map(|&key| hash_fixed(key)).collect(),
            Self::Rows(keys) => keys.iter().map(hash_row).collect(),
        }
    }

    pub(crate) fn memory_bytes(&self) -> usize {
        match self {
            Self::Fixed(keys) => keys.capacity() * 8,
            Self::Rows(keys) => keys.memory_bytes(),
        }
    }
}

/// Values of one column, in the order of their keys.
#[derive(Debug)]
pub(crate) enum FrozenColumn {
    Plain(ValueColumn),
    Encoded(Bytes),
}

/// Keys, each in a namespace or at a time, with their values.
#[derive(Debug)]
pub(crate) struct TableChunk {
    /// Namespaces (of timers: times) and how many of the keys are in each.
    pub(crate) runs: Vec<(i64, usize)>,
    pub(crate) keys: KeyBytes,
    pub(crate) columns: Vec<(FrozenColumn, Vec<bool>)>,
}

impl TableChunk {
    pub(crate) fn new(fixed: bool) -> Self {
        Self { runs: Vec::new(), keys: KeyBytes::new(fixed), columns: Vec::new() }
    }

    /// All of these in one; `None`: there is none.
    fn joined(pieces: Vec<Self>) -> Option<Self> {
        let entries = pieces.iter().map(|piece| piece.keys.len()).sum();
        let mut pieces = pieces.into_iter();
        let mut all = pieces.next()?;
        all.keys.reserve(entries);
        all.columns.iter_mut().for_each(|(column, present)| {
            present.reserve(entries);
            column.reserve(entries);
        });
        pieces.for_each(|mut piece| all.append(&mut piece));
        Some(all)
    }

    /// The last of these, or a new one if that is full: one that grew with the state would be moved as a whole, over and
    /// over.
    pub(crate) fn open(pieces: &mut Vec<Self>, fixed: bool) -> Option<&mut Self> {
        let is_full = |piece: &Self| piece.keys.len() >= PIECE_ENTRIES || piece.bytes() >= PIECE_BYTES;
        if pieces.last().is_none_or(is_full) {
            pieces.push(Self::new(fixed));
        }
        pieces.last_mut()
    }

    /// Keeps those of its entries that are `left`.
    fn retain(&mut self, left: &[bool]) {
        let mut of_run = left;
        self.runs.retain_mut(|(_, entries)| {
            let (these, others) = of_run.split_at(*entries);
            (*entries, of_run) = (these.iter().filter(|left| **left).count(), others);
            *entries > 0
        });
        match &mut self.keys {
            KeyBytes::Fixed(keys) => retain(keys, left),
            KeyBytes::Rows(keys) => keys.retain(left),
        }
        for (column, there) in &mut self.columns {
            retain(there, left);
            match column {
                FrozenColumn::Plain(ValueColumn::Int(values)) => retain(values, left),
                FrozenColumn::Plain(ValueColumn::UInt(values)) => retain(values, left),
                FrozenColumn::Plain(ValueColumn::Float(values)) => retain(values, left),
                FrozenColumn::Plain(ValueColumn::Encoded(values)) => retain(values, left),
                FrozenColumn::Encoded(values) => values.retain(left),
            }
        }
    }

    fn append(&mut self, other: &mut Self) {
        self.runs.append(&mut other.runs);
        self.keys.append(&mut other.keys);
        for ((to, there), (from, present)) in self.columns.iter_mut().zip(&mut other.columns) {
            there.append(present);
            to.append(from);
        }
    }

    fn bytes(&self) -> usize {
        let columns = self.columns.iter().map(|(column, present)| match column {
            FrozenColumn::Plain(_) => present.len() * 9,
            FrozenColumn::Encoded(bytes) => bytes.memory_bytes() + present.len(),
        });
        self.keys.memory_bytes() + self.keys.len() * 8 + columns.sum::<usize>()
    }
}

fn retain<T>(values: &mut Vec<T>, left: &[bool]) {
    let mut left = left.iter();
    values.retain(|_| left.next().copied().unwrap_or(true));
}

/// Copies the values at these slots.
pub(crate) fn push_values(to: &mut Vec<(FrozenColumn, Vec<bool>)>, values: &Values, slots: &[Slot]) {
    if to.is_empty() {
        to.extend(values.columns.iter().map(|like| (FrozenColumn::like(like), Vec::new())));
    }
    let resident = values.columns.iter().zip(&values.present);
    for ((to, there), (from, present)) in to.iter_mut().zip(resident) {
        there.extend(slots.iter().map(|&slot| present[slot as usize]));
        match (to, from) {
            (FrozenColumn::Encoded(to), ValueColumn::Encoded(from)) => {
                slots.iter().for_each(|&slot| to.push(&from[slot as usize]));
            }
            (FrozenColumn::Plain(to), from) => column::copy(from, slots, to),
            (FrozenColumn::Encoded(_), _) => {}
        }
    }
}

impl FrozenColumn {
    /// The values of some rows, null where there is none.
    pub(crate) fn read(&self, codec: &ColumnCodec, present: &[bool], rows: &[u32]) -> Result<ArrayRef> {
        match self {
            Self::Plain(column) => codec.read(column, present, rows),
            Self::Encoded(bytes) => {
                codec.decode_all(rows.iter().map(|&row| present[row as usize].then(|| bytes.get(row as usize))))
            }
        }
    }

    fn append(&mut self, other: &mut Self) {
        match (self, other) {
            (Self::Plain(to), Self::Plain(from)) => column::append(from, to),
            (Self::Encoded(to), Self::Encoded(from)) => to.append(from),
            _ => {}
        }
    }

    fn reserve(&mut self, more: usize) {
        match self {
            Self::Plain(column) => column::reserve(column, more),
            Self::Encoded(bytes) => bytes.ends.reserve(more),
        }
    }

    fn like(column: &ValueColumn) -> Self {
        match column {
            ValueColumn::Int(_) => Self::Plain(ValueColumn::Int(Vec::new())),
            ValueColumn::UInt(_) => Self::Plain(ValueColumn::UInt(Vec::new())),
            ValueColumn::Float(_) => Self::Plain(ValueColumn::Float(Vec::new())),
            ValueColumn::Encoded(_) => Self::Encoded(Bytes::default()),
        }
    }
}

/// The changes of one table, log or time domain, in the order in which they are applied.
#[derive(Debug)]
pub(crate) struct FrozenPart {
    /// Namespaces of which nothing of before is left.
    pub(crate) dropped: Vec<i64>,
    pub(crate) removed: TableChunk,
    pub(crate) put: TableChunk,
    /// Of a log: rows, with the keys and namespaces of `put` in this order.
    pub(crate) rows: Vec<Batch>,
    /// Of a log that is in pieces: the keys, which belong into `put`.
    pub(crate) row_keys: Vec<Arc<Keys>>,
    /// Of a log: how many pieces of the same namespace came before each of `rows`.
    pub(crate) sequences: Vec<u64>,
}

impl FrozenPart {
    pub(crate) fn new(fixed: bool) -> Self {
        let (removed, put) = (TableChunk::new(fixed), TableChunk::new(fixed));
        let (dropped, rows, row_keys, sequences) = Default::default();
        Self { dropped, removed, put, rows, row_keys, sequences }
    }
}

impl FrozenPart {
    /// Takes values away that are over, and entries of which nothing is left.
    fn expire(&mut self, about: &PartAbout, now: i64) {
        let columns = &mut self.put.columns;
        let mut left = vec![true; self.put.keys.len()];
        for Expiring { value, time, last_access } in expiring(&about.name, &about.values).unwrap_or_default() {
            let over: Vec<usize> = match columns.get(time) {
                Some((FrozenColumn::Plain(ValueColumn::Int(times)), there)) => {
                    let is_over = |row: &usize| there[*row] && last_access.is_over(times[*row], now);
                    (0..times.len()).filter(is_over).collect()
                }
                _ => continue,
            };
            for row in over {
                for at in [value, time] {
                    columns[at].1[row] = false;
                }
                left[row] = columns.iter().any(|(_, there)| there[row]);
            }
        }
        if left.contains(&false) {
            self.put.retain(&left);
        }
    }
}

/// Whose state it is.
#[derive(Debug)]
pub(crate) struct About {
    pub(crate) operator: String,
    pub(crate) codec: KeyCodec,
    pub(crate) key_groups: KeyGroupRange,
    pub(crate) max_parallelism: MaxParallelism,
    /// What time it was when somebody said so last, in milliseconds UTC: values that are over then need not be written.
    pub(crate) now: Arc<AtomicI64>,
}

/// Before anybody said what time it is, nothing is over.
pub(crate) fn no_time() -> Arc<AtomicI64> {
    Arc::new(AtomicI64::new(i64::MIN))
}

impl About {
    /// Fewer of its keys.
    pub(crate) fn of(&self, key_groups: KeyGroupRange) -> Result<Self> {
        let codec = KeyCodec::new(self.codec.types(), !self.codec.is_fixed())?;
        let (operator, now) = (self.operator.clone(), Arc::clone(&self.now));
        Ok(Self { operator, codec, key_groups, max_parallelism: self.max_parallelism, now })
    }
}

/// What a part is.
#[derive(Clone, Debug)]
pub(crate) struct PartAbout {
    pub(crate) kind: PartKind,
    pub(crate) name: String,
    pub(crate) values: Vec<ValueSpec>,
}

/// A snapshot's changes, or all that there is.
#[derive(Debug)]
pub(crate) struct FrozenState {
    pub(crate) about: Arc<About>,
    /// It needs no earlier snapshot.
    pub(crate) whole: bool,
    pub(crate) parts: Vec<(PartAbout, FrozenPart)>,
}

/// The same, as a slot leaves it: what was put is still in pieces. To put it together takes time that the slot need not spend.
#[derive(Debug)]
pub(crate) struct InPieces {
    /// Tables come first, timers last.
    pub(crate) state: FrozenState,
    pub(crate) copies: Copies,
}

/// What was copied for a snapshot.
#[derive(Debug, Default)]
pub(crate) struct Copies {
    pub(crate) tables: Vec<TableCopies>,
    /// Of event time and of processing time.
    pub(crate) timers: [Vec<TableChunk>; 2],
}

/// What of a table was copied.
#[derive(Debug, Default)]
pub(crate) struct TableCopies {
    pub(crate) pieces: Vec<TableChunk>,
    /// Namespaces that were dropped since, with what was not copied.
    pub(crate) dropped: Vec<Space>,
}

impl InPieces {
    /// Puts it together. What is written whole does not have what is over.
    pub(crate) fn join(mut self) -> FrozenState {
        let Copies { tables, timers } = self.copies;
        for ((_, part), TableCopies { mut pieces, dropped }) in self.state.parts.iter_mut().zip(tables) {
            dropped.into_iter().for_each(|mut space| pieces.append(&mut space.copy_all()));
            TableChunk::joined(pieces).into_iter().for_each(|put| part.put = put);
        }
        for ((_, part), pieces) in self.state.parts.iter_mut().rev().zip(timers.into_iter().rev()) {
            TableChunk::joined(pieces).into_iter().for_each(|put| part.put = put);
        }
        for (_, part) in &mut self.state.parts {
            for keys in std::mem::take(&mut part.row_keys) {
                (0..keys.len()).for_each(|row| part.put.keys.push(&keys, row));
            }
        }
        if self.state.whole {
            let now = self.state.about.now.load(Ordering::Relaxed);
            self.state.parts.iter_mut().for_each(|(about, part)| part.expire(about, now));
        }
        self.state
    }
}

impl FrozenState {
    /// Whether nothing changed.
    pub(crate) fn is_empty(&self) -> bool {
        let empty = |p: &FrozenPart| p.dropped.is_empty() && p.removed.keys.is_empty() && p.put.keys.is_empty();
        self.parts.iter().all(|(_, part)| empty(part))
    }

    /// About so many bytes.
    pub(crate) fn bytes(&self) -> usize {
        self.parts.iter().map(|(_, part)| part.put.bytes() + part.removed.bytes()).sum::<usize>()
            + self.parts.iter().flat_map(|(_, part)| &part.rows).map(Batch::bytes).sum::<usize>()
    }
}

pub(crate) fn disagree(what: &str) -> Error {
    Error::internal(format!("frozen state in which the {what} disagree"))
}

/// Somebody waits for a snapshot that was not begun.
pub(crate) fn not_frozen() -> Error {
    Error::internal("nothing is frozen that could be copied")
}
