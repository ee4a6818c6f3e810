//! A hash index over rows by key: which rows have this key, in order of arrival.
//!
//! A table of distinct keys, and a chain through the rows of each: so a key with very many rows costs others nothing.
//! Rows are numbered in the order in which they are inserted. It grows, and it is dropped as a whole.
//!
//! Invariant: every chain ascends, starts at its entry's `head` and ends at its `tail`.

#![allow(
    clippy::indexing_slicing,
    reason = "slots hold entries + 1, chains hold rows that were inserted; both only grow"
)]

use arrow_row::Rows;
use tidemill_core::keys::{KeyData, Keys, hash_fixed};
use tidemill_core::{Error, ErrorKind, Result};

/// No row.
pub(super) const NO_ROW: u32 = u32::MAX;

/// Where a probe with some keys stands, so that it can be interrupted at any pair.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cursor {
    /// The probing row.
    pub(super) row: usize,
    /// The indexed row to go on with, [`NO_ROW`]: the first of its key.
    pub(super) chain: u32,
}

impl Default for Cursor {
    fn default() -> Self {
        Self { row: 0, chain: NO_ROW }
    }
}

/// Pairs of a probing and an indexed row.
#[derive(Debug, Default)]
pub(super) struct Pairs {
    /// Rows that probed.
    pub(super) probe: Vec<u32>,
    /// Rows that were found.
    pub(super) found: Vec<u32>,
}

impl Pairs {
    /// How many.
    pub(super) fn len(&self) -> usize {
        self.probe.len()
    }

    /// Forgets them.
    pub(super) fn clear(&mut self) {
        self.probe.clear();
        self.found.clear();
    }
}

/// What a probe may cost before it has to stop.
#[derive(Debug)]
pub(super) struct Bounds {
    /// Pairs to hold at most.
    pub(super) pairs: usize,
    /// Steps (rows that probe or are looked at) that are left.
    pub(super) steps: usize,
}

/// With a table at most half full, at most one of 16 rows passes that should not.
const FILTER_BITS: usize = 8;

#[derive(Clone, Copy, Debug)]
struct Entry {
    /// The key if it is fixed, else its hash.
    key: u64,
    head: u32,
    tail: u32,
}

/// The index.
#[derive(Debug, Default)]
pub(super) struct KeyIndex {
    /// A power of two, at most half full. 0: empty; else the upper half of the key's hash, and below it entry + 1.
    slots: Vec<u64>,
    /// A bit for every hash there is, [`FILTER_BITS`] per slot: a probe that finds nothing, as most do when many buckets
    /// are asked for one row, ends here, without a miss of the cache or a branch that can't be predicted.
    filter: Vec<u64>,
    entries: Vec<Entry>,
    /// Per row, the next one of its key.
    next: Vec<u32>,
    /// Of keys that are not fixed: their bytes, and where those of each entry end.
    bytes: Vec<u8>,
    ends: Vec<usize>,
    encoded: bool,
}

impl KeyIndex {
    /// How many rows it holds.
    pub(super) fn len(&self) -> usize {
        self.next.len()
    }

    /// Bytes that it holds.
    pub(super) fn memory_bytes(&self) -> usize {
        (self.slots.capacity() + self.filter.capacity()) * 8
            + self.entries.capacity() * size_of::<Entry>()
            + self.next.capacity() * 4
            + self.bytes.capacity()
            + self.ends.capacity() * 8
    }

    /// Adds the rows with these keys, from the given one on.
    pub(super) fn insert(&mut self, keys: &Keys, from: usize) -> Result<()> {
        if self.next.len() + keys.len() >= NO_ROW as usize {
            let message = format!("a join has to match more than {} rows of one side at once", self.next.len());
            return Err(Error::new(ErrorKind::Limit, message).mend("Use smaller windows, or more parallelism."));
        }
        self.next.reserve(keys.len().saturating_sub(from));
        match &keys.data {
            KeyData::Fixed(values) => {
                for (&value, &hash) in values.iter().zip(&keys.hashes).skip(from) {
                    self.make_room();
                    match self.find_fixed(value, hash) {
                        Ok(entry) => self.link(entry),
                        Err(slot) => self.add(slot, hash, value),
                    }
                }
            }
            KeyData::Rows(rows) => {
                self.encoded = true;
                for (row, &hash) in keys.hashes.iter().enumerate().skip(from) {
                    self.make_room();
                    let bytes = rows.row(row);
                    match self.find_encoded(bytes.as_ref(), hash) {
                        Ok(entry) => self.link(entry),
                        Err(slot) => {
                            self.bytes.extend_from_slice(bytes.as_ref());
                            self.ends.push(self.bytes.len());
                            self.add(slot, hash, hash);
                        }
                    }
                }
            }
        }
        Ok(())
    }

    /// Collects the pairs of rows with equal keys that `accept` takes, from the cursor on; whether all are collected.
    /// The numbers of the probing rows are counted from `base`.
    pub(super) fn probe(
        &self,
        keys: &Keys,
        base: u32,
        cursor: &mut Cursor,
        bounds: &mut Bounds,
        pairs: &mut Pairs,
        accept: impl Fn(u32, u32) -> bool,
    ) -> bool {
        if self.entries.is_empty() {
            return true;
        }
        match &keys.data {
            KeyData::Fixed(values) => {
                let find = |row: usize| self.find_fixed(values[row], keys.hashes[row]).ok();
                self.probe_with(&keys.hashes, base, cursor, bounds, pairs, find, accept)
            }
            KeyData::Rows(rows) => {
                let find = |row: usize| self.find_row(rows, row, keys.hashes[row]);
                self.probe_with(&keys.hashes, base, cursor, bounds, pairs, find, accept)
            }
        }
    }

    #[allow(clippy::too_many_arguments, reason = "the inner loop of `probe`, once per kind of key")]
    #[inline]
    fn probe_with(
        &self,
        hashes: &[u64],
        base: u32,
        cursor: &mut Cursor,
        bounds: &mut Bounds,
        pairs: &mut Pairs,
        find: impl Fn(usize) -> Option<usize>,
        accept: impl Fn(u32, u32) -> bool,
    ) -> bool {
        while cursor.row < hashes.len() {
            if bounds.steps == 0 {
                return false;
            }
            let end = hashes.len().min(cursor.row + bounds.steps.min(64));
            let start = cursor.row;
            let mut hits = self.may_have(&hashes[start..end]);
            while hits != 0 {
                let row = start + hits.trailing_zeros() as usize;
                hits &= hits - 1;
                bounds.steps = bounds.steps.saturating_sub(row + 1 - cursor.row);
                cursor.row = row;
                if let Some(entry) = find(row) {
                    let Entry { head, tail, .. } = self.entries[entry];
                    let mut found = if cursor.chain == NO_ROW { head } else { cursor.chain };
                    let row = row as u32;
                    loop {
                        if pairs.probe.len() >= bounds.pairs || bounds.steps == 0 {
                            cursor.chain = found;
                            return false;
                        }
                        if accept(row, found) {
                            pairs.probe.push(base + row);
                            pairs.found.push(found);
                        }
                        if found == tail {
                            break;
                        }
                        bounds.steps -= 1;
                        found = self.next[found as usize];
                    }
                    cursor.chain = NO_ROW;
                }
                cursor.row += 1;
            }
            bounds.steps = bounds.steps.saturating_sub(end - cursor.row);
            cursor.row = end;
        }
        true
    }

    /// For each of at most 64 hashes a bit: whether there may be an entry. Without a branch.
    #[inline]
    fn may_have(&self, hashes: &[u64]) -> u64 {
        let mask = self.filter.len() - 1;
        hashes.iter().enumerate().fold(0, |hits, (i, hash)| {
            let word = self.filter[(hash >> 6) as usize & mask];
            hits | (((word >> (hash & 63)) & 1) << i)
        })
    }

    fn find_row(&self, rows: &Rows, row: usize, hash: u64) -> Option<usize> {
        self.find_encoded(rows.row(row).as_ref(), hash).ok()
    }

    #[inline]
    fn find_fixed(&self, key: u64, hash: u64) -> Result<usize, usize> {
        self.find(hash, |entry| self.entries[entry].key == key)
    }

    #[inline]
    fn find_encoded(&self, key: &[u8], hash: u64) -> Result<usize, usize> {
        self.find(hash, |entry| self.entries[entry].key == hash && self.key_bytes(entry) == key)
    }

    /// The entry of a key, or the slot for it.
    #[inline]
    fn find(&self, hash: u64, same: impl Fn(usize) -> bool) -> Result<usize, usize> {
        let mask = self.slots.len() - 1;
        let mut at = hash as usize & mask;
        loop {
            let slot = self.slots[at];
            if slot == 0 {
                return Err(at);
            }
            if slot >> 32 == hash >> 32 {
                let entry = (slot as u32 - 1) as usize;
                if same(entry) {
                    return Ok(entry);
                }
            }
            at = (at + 1) & mask;
        }
    }

    fn key_bytes(&self, entry: usize) -> &[u8] {
        let start = if entry == 0 { 0 } else { self.ends[entry - 1] };
        &self.bytes[start..self.ends[entry]]
    }

    /// Appends a row to the chain of an entry.
    #[inline]
    fn link(&mut self, entry: usize) {
        let row = self.next.len() as u32;
        let entry = &mut self.entries[entry];
        self.next[entry.tail as usize] = row;
        entry.tail = row;
        self.next.push(NO_ROW);
    }

    /// A new entry with one row.
    #[inline]
    fn add(&mut self, slot: usize, hash: u64, key: u64) {
        let row = self.next.len() as u32;
        let word = (hash >> 6) as usize & (self.filter.len() - 1);
        self.filter[word] |= 1 << (hash & 63);
        self.entries.push(Entry { key, head: row, tail: row });
        self.next.push(NO_ROW);
        self.slots[slot] = (hash >> 32 << 32) | self.entries.len() as u64;
    }

    /// Keeps the table at most half full.
    #[inline]
    fn make_room(&mut self) {
        if (self.entries.len() + 1) * 2 > self.slots.len() {
            self.grow();
        }
    }

    #[cold]
    fn grow(&mut self) {
        let size = (self.slots.len() * 2).max(64);
        let mut slots = vec![0u64; size];
        let mut filter = vec![0u64; size * FILTER_BITS / 64];
        let (mask, filter_mask) = (size - 1, filter.len() - 1);
        for (i, entry) in self.entries.iter().enumerate() {
            let hash = if self.encoded { entry.key } else { hash_fixed(entry.key) };
            let mut at = hash as usize & mask;
            while slots[at] != 0 {
                at = (at + 1) & mask;
            }
            slots[at] = (hash >> 32 << 32) | (i as u64 + 1);
            filter[(hash >> 6) as usize & filter_mask] |= 1 << (hash & 63);
        }
        (self.slots, self.filter) = (slots, filter);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{ArrayRef, Int64Array, StringViewArray};
    use tidemill_core::keys::KeyCodec;

    use super::*;

    fn keys(values: &[i64], text: bool) -> Keys {
        let column: ArrayRef = if text {
            Arc::new(StringViewArray::from_iter_values(values.iter().map(|v| format!("the key number {v}"))))
        } else {
            Arc::new(Int64Array::from(values.to_vec()))
        };
        KeyCodec::new(&[column.data_type().clone()], false).unwrap().encode(values.len(), &[column]).unwrap()
    }

    #[test]
    fn all_pairs_are_found_in_order_however_often_it_is_interrupted() {
        let indexed: Vec<i64> = (0..3_000).map(|i| i * i % 701).collect();
        let probing: Vec<i64> = (0..500).map(|i| i * 3 % 900).collect();
        for text in [false, true] {
            let mut index = KeyIndex::default();
            index.insert(&keys(&indexed[..1_000], text), 0).unwrap();
            index.insert(&keys(&indexed[900..], text), 100).unwrap();
            assert_eq!(index.len(), 3_000);
            let mut expected = Vec::new();
            for (p, key) in probing.iter().enumerate() {
                let same = indexed.iter().enumerate().filter(|(_, k)| *k == key);
                expected.extend(same.map(|(f, _)| (p as u32 + 7, f as u32)).filter(|(_, f)| f % 5 != 0));
            }
            let probing = keys(&probing, text);
            for (limit, steps) in [(usize::MAX, usize::MAX), (1, usize::MAX), (13, 11), (usize::MAX, 2)] {
                let (mut cursor, mut got) = (Cursor::default(), Vec::new());
                loop {
                    let (mut pairs, mut bounds) = (Pairs::default(), Bounds { pairs: limit, steps });
                    let done = index.probe(&probing, 7, &mut cursor, &mut bounds, &mut pairs, |_, f| f % 5 != 0);
                    assert!(pairs.len() <= limit);
                    got.extend(pairs.probe.iter().copied().zip(pairs.found.iter().copied()));
                    if done {
                        break;
                    }
                }
                assert_eq!(got, expected);
            }
        }
    }

    #[test]
    fn an_empty_index_finds_nothing() {
        let (mut pairs, mut bounds) = (Pairs::default(), Bounds { pairs: 10, steps: 10 });
        let index = KeyIndex::default();
        assert!(index.probe(&keys(&[1, 2], false), 0, &mut Cursor::default(), &mut bounds, &mut pairs, |_, _| true));
        assert_eq!(pairs.len(), 0);
    }
}
