//! Numbers the distinct keys of a call, in order of first appearance, without a hash table of its own: the state has
//! resolved equal keys to equal slots already.
//!
//! Invariant: a stamp at or above `base` was set by the current call and is `base` plus the key's number.
#![allow(clippy::indexing_slicing, reason = "stamps grow to the largest slot, rows were checked against their batch")]

use tidemill_core::state::Slot;
use tidemill_core::{Error, Result};

use crate::transaction::Rows;

#[derive(Debug, Default)]
pub(super) struct Numbering {
    /// By slot.
    stamps: Vec<u64>,
    base: u64,
    /// Per row of the call: the number of its key.
    pub(super) key_of_row: Vec<u32>,
    /// Per key: its slot.
    pub(super) slots: Vec<Slot>,
    /// Per key: the row of the whole batch where it first appears.
    pub(super) first_rows: Vec<u32>,
}

impl Numbering {
    /// Numbers the keys of `rows`; `slots` has the slot of every row of the whole batch.
    pub(super) fn number(&mut self, rows: &Rows, slots: &[Slot]) -> Result<()> {
        self.begin(slots);
        let outside = || Error::internal("rows outside the keys of their batch");
        match rows {
            Rows::Range { start, len } => {
                let range = slots.get(*start..start + len).ok_or_else(outside)?;
                self.all((*start as u32..).zip(range.iter().copied()));
            }
            Rows::Of(rows) => {
                let rows = rows.values();
                if rows.iter().any(|&row| row as usize >= slots.len()) {
                    return Err(outside());
                }
                self.all(rows.iter().map(|&row| (row, slots[row as usize])));
            }
        }
        Ok(())
    }

    /// How many rows at the beginning have different keys.
    pub(super) fn distinct_prefix(&mut self, slots: &[Slot]) -> usize {
        self.begin(slots);
        self.all((0..).zip(slots.iter().copied()));
        self.key_of_row.iter().zip(0..).take_while(|(number, row)| *number == row).count()
    }

    fn begin(&mut self, slots: &[Slot]) {
        // Above every stamp there is; 0 is the stamp of slots that no call had yet.
        self.base += self.slots.len() as u64 + 1;
        self.key_of_row.clear();
        self.slots.clear();
        self.first_rows.clear();
        let needed = slots.iter().max().map_or(0, |&slot| slot as usize + 1);
        if needed > self.stamps.len() {
            self.stamps.resize(needed.next_power_of_two(), 0);
        }
    }

    fn all(&mut self, rows: impl Iterator<Item = (u32, Slot)>) {
        for (row, slot) in rows {
            let stamp = &mut self.stamps[slot as usize];
            if *stamp < self.base {
                *stamp = self.base + self.slots.len() as u64;
                self.slots.push(slot);
                self.first_rows.push(row);
            }
            self.key_of_row.push((*stamp - self.base) as u32);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_numbered_by_first_appearance_call_by_call() {
        let mut numbering = Numbering::default();
        let slots = [9, 2, 9, 5, 2];
        numbering.number(&Rows::Range { start: 0, len: 5 }, &slots).unwrap();
        assert_eq!(numbering.key_of_row, [0, 1, 0, 2, 1]);
        assert_eq!((numbering.slots.as_slice(), numbering.first_rows.as_slice()), (&[9, 2, 5][..], &[0, 1, 3][..]));
        numbering.number(&Rows::Range { start: 2, len: 3 }, &slots).unwrap();
        assert_eq!((&numbering.key_of_row, &numbering.first_rows), (&vec![0, 1, 2], &vec![2, 3, 4]));
        numbering.number(&Rows::Of(vec![4, 1].into()), &slots).unwrap();
        assert_eq!((&numbering.key_of_row, &numbering.first_rows), (&vec![0, 0], &vec![4]));
        assert!(numbering.number(&Rows::Range { start: 4, len: 2 }, &slots).is_err());
        assert_eq!(numbering.distinct_prefix(&slots), 2);
        assert_eq!(numbering.distinct_prefix(&slots[1..4]), 3);
    }
}
