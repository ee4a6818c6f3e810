//! The entries of one namespace of a table: an index from key to slot, and columns by slot.
//!
//! Invariants: `index` has one entry per live slot. A slot is live or in `free`, never both. Vacant slots have no
//! values. What is appended (`bulk`) is indexed later. Everything but the values that own bytes clears without looking at
//! the entries.
#![allow(clippy::indexing_slicing, reason = "slots come out of the index of the same space, or were answered by it")]

mod bulk;
mod freeze;

use std::collections::HashSet;

use hashbrown::HashTable;
use tidemill_core::keys::{KeyCodec, KeyData, Keys, hash_fixed, hash_row};
use tidemill_core::state::{NO_SLOT, Slot, ValueColumn, Values};
use tidemill_core::{Error, Result};

use self::freeze::Uncopied;
use super::bits::{Bits, Marks};
use super::frozen::KeyBytes;
use super::table::Expiring;
use crate::column::{self, ColumnCodec};

/// Above this many slots, a space that loses its last entry gives its memory back at once: below, the memory is worth
/// less than what growing again costs a job whose keys come and go with each batch.
const KEPT_SLOTS: usize = 1 << 16;

/// `word` is a fixed key itself, or the hash of an encoded one.
#[derive(Clone, Copy, Debug)]
struct Entry {
    word: u64,
    slot: Slot,
}

/// So many removed keys are remembered, and as many as there are entries; beyond that, a snapshot of all entries costs
/// less than one of the changes, and memory stays bounded if snapshots end.
pub(crate) const KEPT_REMOVALS: usize = 1024;

#[derive(Debug)]
pub(crate) struct Space {
    index: HashTable<Entry>,
    /// From this slot on, what was appended is not in the index yet.
    unindexed: Option<usize>,
    keys: SlotKeys,
    /// Number of slots, vacant ones too.
    slots: usize,
    live: Bits,
    free: Vec<Slot>,
    pub(crate) values: Values,
    /// Bytes that encoded values own.
    owned_bytes: usize,
    /// Entries that were resolved or written since the latest snapshot.
    changed: Marks,
    /// Entries that earlier snapshots have, so that their removal has to be told.
    known: Bits,
    /// The next snapshot has all entries and drops what earlier ones have of the namespace: `changed` and `removed`
    /// mean nothing.
    whole: bool,
    /// Earlier snapshots may have something of the namespace.
    stored: bool,
    /// Stored keys that were removed since the latest snapshot.
    removed: KeyBytes,
    /// What the latest snapshot froze of it and does not have yet.
    uncopied: Option<Box<Uncopied>>,
    /// No bit is set: memory for the next snapshot's.
    no_bits: Bits,
    /// Where the search for values that are over goes on.
    cleaned: usize,
    /// What a disk has beyond what is resident; `None`: there is no disk.
    pub(crate) disk: Option<OnDisk>,
}

/// The entries of a space whose other entries are on disk.
#[derive(Debug, Default)]
pub(crate) struct OnDisk {
    /// So many entries are on disk only. While there is none, a key that is not resident does not exist.
    pub(crate) absent: u64,
    /// The entries that the latest `slots_of` added: to be read from disk, perhaps.
    pub(crate) added: Vec<Slot>,
    /// Encoded keys that were removed while some entries were absent, and that the disk may still have: since the
    /// latest freeze, and before.
    pub(crate) gone: [HashSet<Box<[u8]>>; 2],
    /// What is frozen stays changed: slots that were resolved before may still be written.
    pub(crate) stays_changed: bool,
    /// Where the search for entries to evict goes on.
    hand: usize,
}

/// The keys by slot.
#[derive(Debug)]
enum SlotKeys {
    Fixed(Vec<u64>),
    Rows(RowKeys),
}

/// Encoded keys, back to back.
#[derive(Debug, Default)]
struct RowKeys {
    bytes: Vec<u8>,
    spans: Vec<Span>,
    /// Bytes of removed keys, until the next compaction.
    garbage: usize,
}

#[derive(Clone, Copy, Debug, Default)]
struct Span {
    start: usize,
    len: usize,
}

impl Space {
    pub(crate) fn new(fixed: bool, columns: &[ColumnCodec]) -> Self {
        Self {
            index: HashTable::new(),
            unindexed: None,
            keys: if fixed { SlotKeys::Fixed(Vec::new()) } else { SlotKeys::Rows(RowKeys::default()) },
            slots: 0,
            live: Bits::default(),
            free: Vec::new(),
            values: Values {
                columns: columns.iter().map(ColumnCodec::new_column).collect(),
                present: vec![Vec::new(); columns.len()],
            },
            owned_bytes: 0,
            changed: Marks::default(),
            known: Bits::default(),
            whole: true,
            stored: false,
            removed: KeyBytes::new(fixed),
            uncopied: None,
            no_bits: Bits::default(),
            cleaned: 0,
            disk: None,
        }
    }

    /// Number of entries, resident or not.
    pub(crate) fn len(&self) -> usize {
        self.index.len() + self.absent() as usize
    }

    /// So many entries are on disk only.
    pub(crate) fn absent(&self) -> u64 {
        self.disk.as_ref().map_or(0, |disk| disk.absent)
    }

    /// Number of resident entries.
    pub(crate) fn resident(&self) -> usize {
        self.index.len()
    }

    /// Number of slots, vacant ones too.
    pub(crate) fn slots(&self) -> usize {
        self.slots
    }

    /// Slots of keys, added where absent. They count as changed.
    pub(crate) fn resolve(&mut self, keys: &Keys, rows: Option<&[u32]>, slots: &mut Vec<Slot>) -> Result<()> {
        self.slots_of(keys, rows, slots)?;
        self.change(slots);
        Ok(())
    }

    /// Slots of keys, added where absent.
    pub(crate) fn slots_of(&mut self, keys: &Keys, rows: Option<&[u32]>, slots: &mut Vec<Slot>) -> Result<()> {
        slots.clear();
        let mut added = self.disk.as_mut().map(|disk| std::mem::take(&mut disk.added));
        added.iter_mut().for_each(Vec::clear);
        // A batch adds at most its own number of slots, so one check before it is enough.
        self.check_room(keys.len())?;
        let slots_before = self.slots;
        match (&mut self.keys, &keys.data) {
            (SlotKeys::Fixed(stored), KeyData::Fixed(values)) => {
                let (index, live, free) = (&mut self.index, &mut self.live, &mut self.free);
                let mut adder = Adder { index, slots: &mut self.slots, live, free, added: added.as_mut() };
                let mut one = |key: u64, hash: u64| match adder.index.find(spread(hash), |e| e.word == key) {
                    Some(entry) => entry.slot,
                    None => adder.add_fixed(stored, key, hash),
                };
                match rows {
                    None => slots.extend(values.iter().zip(&keys.hashes).map(|(&key, &hash)| one(key, hash))),
                    Some(rows) => slots.extend(rows.iter().map(|&r| one(values[r as usize], keys.hashes[r as usize]))),
                }
            }
            (SlotKeys::Rows(stored), KeyData::Rows(encoded)) => {
                let (index, live, free) = (&mut self.index, &mut self.live, &mut self.free);
                let mut adder = Adder { index, slots: &mut self.slots, live, free, added: added.as_mut() };
                let mut one = |row: usize| {
                    let (bytes, hash) = (encoded.row(row), keys.hashes[row]);
                    let same = |e: &Entry| e.word == hash && stored.get(e.slot) == bytes.as_ref();
                    match adder.index.find(spread(hash), same) {
                        Some(entry) => entry.slot,
                        None => adder.add_row(stored, bytes.as_ref(), hash),
                    }
                };
                match rows {
                    None => slots.extend((0..keys.len()).map(one)),
                    Some(rows) => slots.extend(rows.iter().map(|&r| one(r as usize))),
                }
            }
            _ => return Err(other_codec()),
        }
        if self.slots > slots_before {
            self.grow_values();
        }
        if let (Some(disk), Some(added)) = (&mut self.disk, added) {
            disk.added = added;
        }
        Ok(())
    }

    fn check_room(&self, more: usize) -> Result<()> {
        if self.slots + more < NO_SLOT as usize {
            return Ok(());
        }
        Err(Error::new(tidemill_core::ErrorKind::Limit, "a table has four billion entries")
            .mend("Raise the parallelism of the operator."))
    }

    /// Slots of keys, [`NO_SLOT`] where absent.
    pub(crate) fn find(&self, keys: &Keys, slots: &mut Vec<Slot>) -> Result<()> {
        slots.clear();
        let slot_of = |entry: Option<&Entry>| entry.map_or(NO_SLOT, |e| e.slot);
        match (&self.keys, &keys.data) {
            (SlotKeys::Fixed(_), KeyData::Fixed(values)) => {
                let pairs = values.iter().zip(&keys.hashes);
                slots.extend(pairs.map(|(&key, &hash)| slot_of(self.index.find(spread(hash), |e| e.word == key))));
            }
            (SlotKeys::Rows(stored), KeyData::Rows(encoded)) => {
                slots.extend(encoded.iter().zip(&keys.hashes).map(|(row, &hash)| {
                    let same = |e: &Entry| e.word == hash && stored.get(e.slot) == row.as_ref();
                    slot_of(self.index.find(spread(hash), same))
                }));
            }
            _ => return Err(other_codec()),
        }
        Ok(())
    }

    /// The keys at these slots.
    pub(crate) fn keys(&self, codec: &KeyCodec, slots: &[Slot]) -> Result<Keys> {
        match &self.keys {
            SlotKeys::Fixed(stored) => {
                let values: Vec<u64> = slots.iter().map(|&slot| stored[slot as usize]).collect();
                let hashes = values.iter().map(|&v| hash_fixed(v)).collect();
                Ok(Keys { data: KeyData::Fixed(values), hashes })
            }
            SlotKeys::Rows(stored) => {
                let total = slots.iter().map(|&slot| stored.get(slot).len()).sum();
                let rows = codec.empty_rows(slots.len(), total).zip(codec.parser());
                let (mut rows, parser) = rows.ok_or_else(other_codec)?;
                let mut hashes = Vec::with_capacity(slots.len());
                for &slot in slots {
                    rows.push(parser.parse(stored.get(slot)));
                    hashes.push(hash_row(stored.get(slot)));
                }
                Ok(Keys { data: KeyData::Rows(rows), hashes })
            }
        }
    }

    /// Up to `limit` live slots after `after`.
    pub(crate) fn scan(&self, after: Option<Slot>, limit: usize, slots: &mut Vec<Slot>) {
        slots.clear();
        let from = after.map_or(0, |slot| slot as usize + 1);
        slots.extend(self.live.from(from).take(limit));
    }

    /// Removes those of these entries that have no value.
    pub(crate) fn remove_vacant(&mut self, slots: &[Slot]) {
        let vacant = |present: &[Vec<bool>], slot: Slot| !present.iter().any(|p| p[slot as usize]);
        // Nearly always there is none; that is found out without touching anything but the presence.
        if slots.iter().any(|&slot| vacant(&self.values.present, slot)) {
            for &slot in slots {
                if vacant(&self.values.present, slot) {
                    self.remove_one(slot);
                }
            }
            self.tidy();
        }
    }

    /// Removes entries.
    pub(crate) fn remove(&mut self, slots: &[Slot]) {
        for &slot in slots {
            self.remove_one(slot);
        }
        self.tidy();
    }

    /// Removes values that are over, of up to `looks` slots, and entries of which nothing is left.
    pub(crate) fn clean_up(&mut self, expiring: &[Expiring], now: i64, looks: usize) {
        let slots = self.slots;
        let mut vacant = Vec::new();
        for _ in 0..looks.min(slots) {
            let slot = self.cleaned % slots;
            self.cleaned = slot + 1;
            if self.live.has(slot as Slot) && self.expire(expiring, slot, now) {
                vacant.push(slot as Slot);
            }
        }
        if !vacant.is_empty() {
            self.remove(&vacant);
        }
    }

    /// Removes those values of an entry that are over. Whether it has none left, and had some.
    fn expire(&mut self, expiring: &[Expiring], slot: usize, now: i64) -> bool {
        let mut expired = false;
        for Expiring { value, time, last_access } in expiring {
            let ValueColumn::Int(times) = &self.values.columns[*time] else { continue };
            if !self.values.present[*time][slot] || !last_access.is_over(times[slot], now) {
                continue;
            }
            if !std::mem::replace(&mut expired, true) {
                self.change(&[slot as Slot]);
            }
            for column in [*value, *time] {
                let bytes = column::vacate(&mut self.values.columns[column], slot as Slot);
                self.owned_bytes = self.owned_bytes.saturating_sub(bytes);
                self.values.present[column][slot] = false;
            }
        }
        expired && !self.values.present.iter().any(|present| present[slot])
    }

    /// Removes all entries, keeps the memory, and is a new space.
    pub(crate) fn reset(&mut self) {
        self.clear();
        self.stored = false;
        self.disk = None;
    }

    fn clear(&mut self) {
        self.index.clear();
        self.unindexed = None;
        self.slots = 0;
        self.live.clear();
        self.changed.clear();
        self.known.clear();
        self.whole = true;
        self.removed.clear();
        self.free.clear();
        self.values.columns.iter_mut().for_each(column::clear);
        self.values.present.iter_mut().for_each(Vec::clear);
        self.owned_bytes = 0;
        match &mut self.keys {
            SlotKeys::Fixed(stored) => stored.clear(),
            SlotKeys::Rows(stored) => {
                stored.bytes.clear();
                stored.spans.clear();
                stored.garbage = 0;
            }
        }
    }

    /// The values at these slots are about to change.
    pub(crate) fn change(&mut self, slots: &[Slot]) {
        self.copy_first(slots);
        if !self.whole {
            self.changed.set(slots, self.index.len());
        }
    }

    /// Whether earlier snapshots may have something of it.
    pub(crate) fn is_stored(&self) -> bool {
        self.stored
    }

    /// The next snapshot is the first.
    pub(crate) fn forget_snapshots(&mut self) {
        (self.whole, self.stored) = (true, false);
        self.removed.clear();
    }

    /// Snapshots have everything as it is.
    pub(crate) fn settle(&mut self) {
        (self.whole, self.stored) = (false, true);
        self.removed.clear();
        self.know_all();
    }

    fn know_all(&mut self) {
        self.changed.clear();
        self.changed.grow(self.slots);
        self.known.copy_from(&self.live);
    }

    /// Makes room for more entries.
    pub(crate) fn reserve(&mut self, entries: usize) {
        let fixed = matches!(self.keys, SlotKeys::Fixed(_));
        self.index.reserve(entries, |e| spread(if fixed { hash_fixed(e.word) } else { e.word }));
        self.values.columns.iter_mut().for_each(|c| column::reserve(c, entries));
        self.values.present.iter_mut().for_each(|p| p.reserve(entries));
        match &mut self.keys {
            SlotKeys::Fixed(stored) => stored.reserve(entries),
            SlotKeys::Rows(stored) => stored.spans.reserve(entries),
        }
    }

    /// Encoded values grew by so much.
    pub(crate) fn grew(&mut self, bytes: isize) {
        self.owned_bytes = self.owned_bytes.saturating_add_signed(bytes);
    }

    /// Bytes held. Looks at no entry.
    pub(crate) fn memory_bytes(&self) -> usize {
        let keys = match &self.keys {
            SlotKeys::Fixed(stored) => stored.capacity() * 8,
            SlotKeys::Rows(stored) => stored.bytes.capacity() + stored.spans.capacity() * size_of::<Span>(),
        };
        let columns: usize = self.values.columns.iter().map(column::bytes).sum();
        let present: usize = self.values.present.iter().map(Vec::capacity).sum();
        let free = self.free.capacity() * size_of::<Slot>();
        self.index.allocation_size()
            + keys
            + columns
            + present
            + self.live.memory_bytes()
            + free
            + self.owned_bytes
            + self.changed.memory_bytes()
            + self.known.memory_bytes()
            + self.no_bits.memory_bytes()
            + self.uncopied.as_ref().map_or(0, |uncopied| uncopied.bits_bytes())
            + self.removed.memory_bytes()
            + self.disk.as_ref().map_or(0, OnDisk::memory_bytes)
    }

    /// Bytes of the resident entries: what evicting all of them would make free for others.
    pub(crate) fn entry_bytes(&self) -> usize {
        let key = match &self.keys {
            SlotKeys::Fixed(_) => 8,
            SlotKeys::Rows(stored) => size_of::<Span>() + stored.bytes.len() / self.resident().max(1),
        };
        let value = |column: &ValueColumn| match column {
            ValueColumn::Encoded(_) => size_of::<Box<[u8]>>() + 1,
            _ => 9,
        };
        // An index is nine sixteenths full on average; the bits of a slot take less than a byte.
        let entry = 1 + size_of::<Entry>() * 16 / 9 + key + self.values.columns.iter().map(value).sum::<usize>();
        let gone = self.removed.memory_bytes() + self.disk.as_ref().map_or(0, OnDisk::memory_bytes);
        self.resident() * entry + self.owned_bytes + gone
    }

    /// The key at a slot as it is on disk: of fixed keys in the order of their bits.
    pub(crate) fn disk_key(&self, slot: Slot, to: &mut Vec<u8>) {
        match &self.keys {
            SlotKeys::Fixed(stored) => to.extend_from_slice(&stored[slot as usize].to_be_bytes()),
            SlotKeys::Rows(stored) => to.extend_from_slice(stored.get(slot)),
        }
    }

    /// The hash of the key at a slot.
    pub(crate) fn key_hash(&self, slot: Slot) -> u64 {
        match &self.keys {
            SlotKeys::Fixed(stored) => hash_fixed(stored[slot as usize]),
            SlotKeys::Rows(stored) => hash_row(stored.get(slot)),
        }
    }

    /// An added entry was read from disk: a snapshot has it.
    pub(crate) fn loaded(&mut self, slot: Slot, owned_bytes: usize) {
        self.known.grow(self.slots);
        self.known.set(slot);
        self.owned_bytes += owned_bytes;
        if let Some(disk) = &mut self.disk {
            disk.absent = disk.absent.saturating_sub(1);
        }
    }

    /// Makes up to `want` entries absent, of those that the disk has as they are, and not these (ascending). The disk
    /// must have what was frozen.
    pub(crate) fn evict(&mut self, want: usize, pinned: &[Slot]) -> usize {
        let slots = self.slots;
        if self.whole || self.disk.is_none() || slots == 0 {
            return 0;
        }
        let (mut at, mut evicted) = (self.disk.as_ref().map_or(0, |disk| disk.hand) % slots, 0);
        for _ in 0..slots {
            if evicted == want {
                break;
            }
            let slot = at as Slot;
            at = (at + 1) % slots;
            let clean = self.live.has(slot) && self.known.has(slot) && !self.changed.has(slot);
            if clean && pinned.binary_search(&slot).is_err() {
                self.known.take(slot);
                self.forget_one(slot, false);
                evicted += 1;
            }
        }
        if let Some(disk) = &mut self.disk {
            disk.absent += evicted as u64;
            disk.hand = at;
        }
        if let SlotKeys::Rows(stored) = &mut self.keys {
            stored.compact();
        }
        evicted
    }

    fn grow_values(&mut self) {
        let slots = self.slots;
        self.changed.grow(slots);
        // A snapshot would otherwise have to make room for them, of which much is slow.
        self.known.grow(slots);
        self.no_bits.grow(slots);
        self.values.columns.iter_mut().for_each(|c| column::grow(c, slots));
        self.values.present.iter_mut().for_each(|p| p.resize(slots, false));
    }

    fn remove_one(&mut self, slot: Slot) {
        if !self.live.has(slot) {
            return;
        }
        self.changed.unset(slot);
        let tell = self.known.take(slot) && !self.whole;
        if tell && self.absent() > 0 {
            self.remember_gone(slot);
        }
        self.forget_one(slot, tell);
    }

    /// A key that the disk may have, and that is there no more.
    fn remember_gone(&mut self, slot: Slot) {
        let mut key = Vec::new();
        self.disk_key(slot, &mut key);
        if let Some(disk) = &mut self.disk {
            disk.gone[0].insert(key.into());
        }
    }

    /// Makes a live slot vacant.
    fn forget_one(&mut self, slot: Slot, tell: bool) {
        self.copy_first(&[slot]);
        self.live.take(slot);
        let word_hash = match &mut self.keys {
            SlotKeys::Fixed(stored) => {
                let key = stored[slot as usize];
                if tell {
                    self.removed.push_fixed(key);
                }
                hash_fixed(key)
            }
            SlotKeys::Rows(stored) => {
                let hash = hash_row(stored.get(slot));
                if tell {
                    self.removed.push_row(stored.get(slot));
                }
                stored.garbage += std::mem::take(&mut stored.spans[slot as usize]).len;
                hash
            }
        };
        if let Ok(entry) = self.index.find_entry(spread(word_hash), |e| e.slot == slot) {
            entry.remove();
        }
        for column in &mut self.values.columns {
            self.owned_bytes = self.owned_bytes.saturating_sub(column::vacate(column, slot));
        }
        self.values.present.iter_mut().for_each(|p| p[slot as usize] = false);
        self.free.push(slot);
    }

    /// After removals: gives memory back where it is worth it.
    fn tidy(&mut self) {
        // With a disk, neither is right: what is resident is not all that there is.
        if self.disk.is_some() {
            if let SlotKeys::Rows(stored) = &mut self.keys {
                stored.compact();
            }
            return;
        }
        if self.removed.len() > self.index.len() + KEPT_REMOVALS {
            self.whole = true;
            self.removed.clear();
        }
        if self.index.is_empty() {
            let large = self.slots > KEPT_SLOTS;
            self.clear();
            if large {
                self.give_back();
            }
        } else if let SlotKeys::Rows(stored) = &mut self.keys {
            stored.compact();
        }
    }

    fn give_back(&mut self) {
        self.index = HashTable::new();
        self.live = Bits::default();
        self.free = Vec::new();
        self.values.present.iter_mut().for_each(Vec::shrink_to_fit);
        for column in &mut self.values.columns {
            column::shrink(column);
        }
        match &mut self.keys {
            SlotKeys::Fixed(stored) => *stored = Vec::new(),
            SlotKeys::Rows(stored) => *stored = RowKeys::default(),
        }
    }
}

impl OnDisk {
    /// All entries are on disk only.
    pub(crate) fn all(entries: u64) -> Self {
        Self { absent: entries, ..Self::default() }
    }

    fn memory_bytes(&self) -> usize {
        // A boxed slice and the allocation that it points to.
        self.gone.iter().map(|keys| keys.len() * 64).sum()
    }
}

/// The parts of a space that adding an entry touches.
struct Adder<'a> {
    index: &'a mut HashTable<Entry>,
    slots: &'a mut usize,
    live: &'a mut Bits,
    free: &'a mut Vec<Slot>,
    /// Told of the added ones.
    added: Option<&'a mut Vec<Slot>>,
}

impl Adder<'_> {
    fn add_fixed(&mut self, stored: &mut Vec<u64>, key: u64, hash: u64) -> Slot {
        let slot = self.slot();
        if slot as usize == stored.len() {
            stored.push(key);
        } else {
            stored[slot as usize] = key;
        }
        self.index.insert_unique(spread(hash), Entry { word: key, slot }, |e| spread(hash_fixed(e.word)));
        slot
    }

    fn add_row(&mut self, stored: &mut RowKeys, key: &[u8], hash: u64) -> Slot {
        let slot = self.slot();
        stored.set(slot, key);
        self.index.insert_unique(spread(hash), Entry { word: hash, slot }, |e| spread(e.word));
        slot
    }

    fn slot(&mut self) -> Slot {
        let slot = self.free.pop().unwrap_or_else(|| {
            *self.slots += 1;
            self.live.grow(*self.slots);
            (*self.slots - 1) as Slot
        });
        self.live.set(slot);
        if let Some(added) = &mut self.added {
            added.push(slot);
        }
        slot
    }
}

impl RowKeys {
    fn get(&self, slot: Slot) -> &[u8] {
        let span = self.spans[slot as usize];
        &self.bytes[span.start..span.start + span.len]
    }

    fn set(&mut self, slot: Slot, key: &[u8]) {
        let span = Span { start: self.bytes.len(), len: key.len() };
        self.bytes.extend_from_slice(key);
        if slot as usize == self.spans.len() {
            self.spans.push(span);
        } else {
            self.spans[slot as usize] = span;
        }
    }

    /// Once most bytes belong to no key any more, copies the others together.
    fn compact(&mut self) {
        if self.garbage <= self.bytes.len() / 2 {
            return;
        }
        let mut bytes = Vec::with_capacity(self.bytes.len() - self.garbage);
        for span in &mut self.spans {
            let start = bytes.len();
            bytes.extend_from_slice(&self.bytes[span.start..span.start + span.len]);
            span.start = start;
        }
        self.bytes = bytes;
        self.garbage = 0;
    }
}

/// Key groups are ranges of the hash's upper bits, so these hardly differ within a subtask; the hash table tells entries
/// apart by the uppermost ones. Turned by half, it gets others.
fn spread(hash: u64) -> u64 {
    hash.rotate_left(32)
}

fn other_codec() -> Error {
    Error::internal("keys of another codec than the state's")
}
