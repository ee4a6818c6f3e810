//! Freezing the entries of a space, as copy on write.
//!
//! A snapshot marks what it needs, which is a look at a bit per slot, and the slot goes on. The marked entries are copied
//! in steps afterwards, and each before it changes: so a snapshot of much stands nobody still, and has what was there when
//! it was taken.
#![allow(
    clippy::indexing_slicing,
    reason = "slots of marks are live when they are set, and copied before they become vacant"
)]

use tidemill_core::state::{Slot, ValueColumn, Values};

use super::{SlotKeys, Space};
use crate::memory::bits::Bits;
use crate::memory::frozen::{TableChunk, push_values};

/// To copy so many bytes beside the columns takes about as long as an entry.
const ENTRY_BYTES: usize = 64;

/// What of a space belongs to a snapshot.
#[derive(Debug)]
pub(super) struct Uncopied {
    namespace: i64,
    /// The slots that are not copied yet: none below `from`.
    left: Bits,
    from: usize,
    pieces: Vec<TableChunk>,
}

impl Uncopied {
    pub(super) fn bits_bytes(&self) -> usize {
        self.left.memory_bytes()
    }
}

impl Space {
    /// Begins a snapshot of what changed since the latest; removed keys go to `removed`. The entries are copied by
    /// `copy_some` and `copy_first`; they stay changed if the disk says so. Answers whether earlier
    /// snapshots' entries of the namespace are all replaced.
    pub(crate) fn freeze(&mut self, namespace: i64, removed: &mut TableChunk) -> bool {
        let replaces = self.whole && self.stored;
        if let Some(disk) = &mut self.disk {
            let [fresh, frozen] = &mut disk.gone;
            frozen.extend(fresh.drain());
        }
        let marked = if self.whole { None } else { self.changed.take(&mut self.no_bits) };
        let left = match marked {
            Some(marked) => {
                self.known.add(&marked);
                marked
            }
            None => {
                let mut live = std::mem::take(&mut self.no_bits);
                live.copy_from(&self.live);
                self.know_all();
                live
            }
        };
        if !self.removed.is_empty() {
            removed.runs.push((namespace, self.removed.len()));
            removed.keys.append(&mut self.removed);
        }
        (self.whole, self.stored) = (false, true);
        if self.disk.as_ref().is_some_and(|disk| disk.stays_changed) {
            left.from(0).for_each(|slot| self.changed.set(&[slot], self.index.len()));
        }
        if left.from(0).next().is_some() {
            self.uncopied = Some(Box::new(Uncopied { namespace, left, from: 0, pieces: Vec::new() }));
        } else {
            self.no_bits = left;
        }
        replaces
    }

    /// Whether a snapshot waits for copies.
    pub(crate) fn is_frozen(&self) -> bool {
        self.uncopied.is_some()
    }

    /// Copies about so many `entries` that a snapshot waits for, and takes them off. Answers all copies once they are
    /// complete.
    pub(crate) fn copy_some(&mut self, entries: &mut usize) -> Option<Vec<TableChunk>> {
        let uncopied = self.uncopied.as_mut()?;
        let mut slots = Vec::new();
        for slot in uncopied.left.from(uncopied.from) {
            if *entries == 0 {
                break;
            }
            *entries = entries.saturating_sub(1 + owned_bytes(&self.values, slot) / ENTRY_BYTES);
            slots.push(slot);
        }
        slots.iter().for_each(|&slot| _ = uncopied.left.take(slot));
        if let Some(&last) = slots.last() {
            uncopied.from = last as usize + 1;
            copy(uncopied, &self.keys, &self.values, &slots);
        }
        if *entries == 0 {
            return None;
        }
        let Uncopied { left, pieces, .. } = *self.uncopied.take()?;
        self.no_bits = left;
        Some(pieces)
    }

    /// Copies everything that a snapshot waits for.
    pub(crate) fn copy_all(&mut self) -> Vec<TableChunk> {
        while self.is_frozen() {
            if let Some(copies) = self.copy_some(&mut usize::MAX.clone()) {
                return copies;
            }
        }
        Vec::new()
    }

    /// Copies those of these entries that a snapshot waits for, before they change.
    pub(super) fn copy_first(&mut self, slots: &[Slot]) {
        let Some(uncopied) = &mut self.uncopied else { return };
        let slots: Vec<Slot> = slots.iter().copied().filter(|&slot| uncopied.left.take(slot)).collect();
        if !slots.is_empty() {
            copy(uncopied, &self.keys, &self.values, &slots);
        }
    }
}

/// Bytes beside the columns.
fn owned_bytes(values: &Values, slot: Slot) -> usize {
    let owned = |column: &ValueColumn| match column {
        ValueColumn::Encoded(values) => values[slot as usize].len(),
        _ => 0,
    };
    values.columns.iter().map(owned).sum()
}

fn copy(uncopied: &mut Uncopied, keys: &SlotKeys, values: &Values, slots: &[Slot]) {
    let Some(piece) = TableChunk::open(&mut uncopied.pieces, matches!(keys, SlotKeys::Fixed(_))) else { return };
    // All are of one namespace.
    match piece.runs.last_mut() {
        Some((_, entries)) => *entries += slots.len(),
        None => piece.runs.push((uncopied.namespace, slots.len())),
    }
    match keys {
        SlotKeys::Fixed(stored) => piece.keys.extend_fixed(slots.iter().map(|&slot| stored[slot as usize])),
        SlotKeys::Rows(stored) => slots.iter().for_each(|&slot| piece.keys.push_row(stored.get(slot))),
    }
    push_values(&mut piece.columns, values, slots);
}
