//! How state lies in the database: keys that keep their order, and the values of an entry.
//!
//! A key is the part (4 bytes, by its name), the namespace or time (8), then of tables and timers the key group (2) and
//! the encoded key, of logs the number of the piece (8). The namespace comes before the key group, so that dropping a
//! window is one range; the ranges of a rescale are found by seeking within each namespace. Numbers are big-endian, so
//! that bytes order as they do.
//!
//! A table's value is a bit per column (whether it is there), then those that are: 8 bytes, or a length (4) and bytes.
#![allow(clippy::indexing_slicing, reason = "rows and slots come from the columns that they index")]

use tidemill_core::keys::{KeyCodec, KeyData, Keys, hash_fixed, hash_row};
use tidemill_core::state::{Slot, ValueColumn, Values};
use tidemill_core::{Error, Result};
use xxhash_rust::xxh3::xxh3_64;

use crate::format::PartKind;
use crate::memory::frozen::FrozenColumn;

/// The part and the namespace or time.
pub(super) const LEAD: usize = 12;

/// With the key group.
pub(super) const HEAD: usize = LEAD + 2;

/// A part of the operator's state in the database: by its name, so that it is the same in every run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct PartId(u32);

impl PartId {
    pub(super) fn new(kind: PartKind, name: &str) -> Self {
        let mut bytes = vec![kind as u8];
        bytes.extend_from_slice(name.as_bytes());
        Self((xxh3_64(&bytes) >> 32) as u32)
    }

    /// Of the part that a key belongs to.
    pub(super) fn of(key: &[u8]) -> Option<Self> {
        key.first_chunk().map(|id| Self(u32::from_be_bytes(*id)))
    }

    /// What all keys of the part and a namespace begin with.
    pub(super) fn lead(self, lead: i64) -> [u8; LEAD] {
        let mut bytes = [0; LEAD];
        bytes[..4].copy_from_slice(&self.0.to_be_bytes());
        bytes[4..].copy_from_slice(&ordered(lead).to_be_bytes());
        bytes
    }

    /// The keys of a namespace are from the first, inclusive, to the second.
    pub(super) fn range(self, lead: i64) -> ([u8; LEAD], Vec<u8>) {
        let to = match lead.checked_add(1) {
            Some(next) => self.lead(next).to_vec(),
            None => self.end(),
        };
        (self.lead(lead), to)
    }

    /// All keys of the part are from the first to the second.
    pub(super) fn all(self) -> ([u8; LEAD], Vec<u8>) {
        (self.lead(i64::MIN), self.end())
    }

    fn end(self) -> Vec<u8> {
        match self.0.checked_add(1) {
            Some(next) => next.to_be_bytes().to_vec(),
            // Beyond the last key there may be.
            None => vec![0xff; LEAD + 1],
        }
    }

    /// The namespace of a key, and what follows it. `None`: it is of another part.
    pub(super) fn split(self, key: &[u8]) -> Option<(i64, &[u8])> {
        let rest = key.strip_prefix(&self.0.to_be_bytes())?;
        let (lead, rest) = rest.split_first_chunk::<8>()?;
        Some(((u64::from_be_bytes(*lead) ^ (1 << 63)) as i64, rest))
    }
}

fn ordered(lead: i64) -> u64 {
    lead as u64 ^ (1 << 63)
}

/// The first bytes of what follows the lead, as a number that orders as they do: all of most keys.
pub(super) fn order_of(rest: &[u8]) -> u128 {
    let mut first = [0; 16];
    let length = rest.len().min(16);
    first[..length].copy_from_slice(&rest[..length]);
    u128::from_be_bytes(first)
}

/// Encodes the values of a row.
pub(super) fn push_value(columns: &[(FrozenColumn, Vec<bool>)], row: usize, to: &mut Vec<u8>) {
    let bits = to.len();
    to.resize(bits + columns.len().div_ceil(8), 0);
    for (i, (column, present)) in columns.iter().enumerate() {
        if !present[row] {
            continue;
        }
        to[bits + i / 8] |= 1 << (i % 8);
        match column {
            FrozenColumn::Plain(ValueColumn::Int(values)) => to.extend_from_slice(&values[row].to_le_bytes()),
            FrozenColumn::Plain(ValueColumn::UInt(values)) => to.extend_from_slice(&values[row].to_le_bytes()),
            FrozenColumn::Plain(ValueColumn::Float(values)) => to.extend_from_slice(&values[row].to_le_bytes()),
            FrozenColumn::Plain(ValueColumn::Encoded(_)) => {}
            FrozenColumn::Encoded(values) => {
                let value = values.get(row);
                to.extend_from_slice(&(value.len() as u32).to_le_bytes());
                to.extend_from_slice(value);
            }
        }
    }
}

/// Decodes the values of an entry into a vacant slot. Answers how many bytes of their own they have.
pub(super) fn read_value(value: &[u8], values: &mut Values, slot: Slot) -> Result<usize> {
    let slot = slot as usize;
    let bits = values.columns.len().div_ceil(8);
    let (bits, mut rest) = value.split_at_checked(bits).ok_or_else(damaged)?;
    let mut owned = 0;
    for (i, (column, present)) in values.columns.iter_mut().zip(&mut values.present).enumerate() {
        if bits[i / 8] & (1 << (i % 8)) == 0 {
            continue;
        }
        present[slot] = true;
        if let ValueColumn::Encoded(to) = column {
            let (length, after) = rest.split_first_chunk::<4>().ok_or_else(damaged)?;
            let (bytes, after) = after.split_at_checked(u32::from_le_bytes(*length) as usize).ok_or_else(damaged)?;
            to[slot] = bytes.into();
            (owned, rest) = (owned + bytes.len(), after);
            continue;
        }
        let (word, after) = rest.split_first_chunk::<8>().ok_or_else(damaged)?;
        rest = after;
        match column {
            ValueColumn::Int(to) => to[slot] = i64::from_le_bytes(*word),
            ValueColumn::UInt(to) => to[slot] = u64::from_le_bytes(*word),
            ValueColumn::Float(to) => to[slot] = f64::from_le_bytes(*word),
            ValueColumn::Encoded(_) => {}
        }
    }
    if rest.is_empty() { Ok(owned) } else { Err(damaged()) }
}

/// Calls with each value of an entry that is there: its column, and its bytes. `encoded` says of each column whether it
/// has bytes of its own.
pub(super) fn each_value(value: &[u8], encoded: &[bool], mut act: impl FnMut(usize, &[u8])) -> Result<()> {
    let (bits, mut rest) = value.split_at_checked(encoded.len().div_ceil(8)).ok_or_else(damaged)?;
    for (i, &encoded) in encoded.iter().enumerate() {
        if bits[i / 8] & (1 << (i % 8)) == 0 {
            continue;
        }
        let mut length = 8;
        if encoded {
            let (word, after) = rest.split_first_chunk::<4>().ok_or_else(damaged)?;
            (length, rest) = (u32::from_le_bytes(*word) as usize, after);
        }
        let (bytes, after) = rest.split_at_checked(length).ok_or_else(damaged)?;
        act(i, bytes);
        rest = after;
    }
    if rest.is_empty() { Ok(()) } else { Err(damaged()) }
}

/// Keys from how they are on disk.
pub(super) fn keys_of<'a>(codec: &KeyCodec, stored: impl Iterator<Item = &'a [u8]> + Clone) -> Result<Keys> {
    if codec.is_fixed() {
        let values = stored.map(|key| key.try_into().map(u64::from_be_bytes).map_err(|_| damaged()));
        let values: Vec<u64> = values.collect::<Result<_>>()?;
        let hashes = values.iter().map(|&value| hash_fixed(value)).collect();
        return Ok(Keys { data: KeyData::Fixed(values), hashes });
    }
    let bytes = stored.clone().map(<[u8]>::len).sum();
    let rows = codec.empty_rows(stored.clone().count(), bytes).zip(codec.parser());
    let (mut rows, parser) = rows.ok_or_else(damaged)?;
    let mut hashes = Vec::new();
    for key in stored {
        rows.push(parser.parse(key));
        hashes.push(hash_row(key));
    }
    Ok(Keys { data: KeyData::Rows(rows), hashes })
}

/// The bytes of a key as they are on disk.
pub(super) fn push_key(keys: &Keys, row: usize, to: &mut Vec<u8>) {
    match &keys.data {
        KeyData::Fixed(values) => to.extend_from_slice(&values[row].to_be_bytes()),
        KeyData::Rows(rows) => to.extend_from_slice(rows.row(row).as_ref()),
    }
}

pub(super) fn damaged() -> Error {
    Error::internal("the local database of keyed state has an entry that can't be read")
}
