//! Which keys have a session to look at, by the end that it had when it was put down.
//!
//! A session is put down once and not again when it grows: when its time comes, whoever looks it up finds that it ends
//! later and puts it down for then. So a session costs about one look per gap, not one per row.
//!
//! Keys are put into *days*, short pieces of time, by appending; a day is sorted when it has come. A list per end was
//! tried and cost five times as much: sessions that grew are put down for ends all over a gap, one or two for each.
//!
//! A cache: it is made anew from the tables. It holds keys, not slots, since slots hold only until the next commit.
#![allow(clippy::indexing_slicing, reason = "a day's order has the numbers of its own entries")]

use std::collections::BTreeMap;

use tidemill_core::keys::{KeyCodec, KeyData, Keys};
use tidemill_core::{Error, Result};

/// A day is at most 128 ms long: while it passes it is sorted again and again, so it must not have too many entries.
const MAX_SHIFT: u32 = 7;
/// And a gap has at least so many days, as two to the power of this.
const DAYS_PER_GAP_SHIFT: u32 = 6;

/// Keys by the end of a session.
#[derive(Debug)]
pub(super) struct Calendar {
    /// A day is two to the power of this long, in milliseconds.
    shift: u32,
    days: BTreeMap<i64, Day>,
    /// That the days hold.
    bytes: usize,
}

#[derive(Debug)]
struct Day {
    ends: Vec<i64>,
    keys: Keys,
    /// Those entries that are sorted by their ends and not taken yet, the first one last.
    order: Vec<(i64, u32)>,
    /// How many entries have been sorted.
    sorted: usize,
}

/// Keys whose time has come.
#[derive(Debug)]
pub(super) struct Due {
    /// Ascending; the end for which each was put down.
    pub(super) ends: Vec<i64>,
    pub(super) keys: Keys,
}

impl Calendar {
    pub(super) fn new(gap_ms: i64) -> Self {
        let shift = gap_ms.max(1).ilog2().saturating_sub(DAYS_PER_GAP_SHIFT).min(MAX_SHIFT);
        Self { shift, days: BTreeMap::new(), bytes: 0 }
    }

    /// Puts down the keys of some rows, each with the end of a session.
    pub(super) fn put(&mut self, codec: &KeyCodec, keys: &Keys, entries: &[(i64, u32)]) -> Result<()> {
        for &(end, row) in entries {
            let day = match self.days.entry(end >> self.shift) {
                std::collections::btree_map::Entry::Occupied(day) => day.into_mut(),
                std::collections::btree_map::Entry::Vacant(place) => place.insert(Day::new(codec)?),
            };
            self.bytes += day.push(end, keys, row as usize)?;
        }
        Ok(())
    }

    /// Takes the next keys whose end is due, up to `limit`, all of one day.
    pub(super) fn take(&mut self, codec: &KeyCodec, upto: i64, limit: usize) -> Result<Option<Due>> {
        loop {
            let Some(mut day) = self.days.first_entry().filter(|day| *day.key() <= upto >> self.shift) else {
                return Ok(None);
            };
            let rows = day.get_mut().take(upto, limit);
            let due = Due {
                ends: rows.iter().map(|&row| day.get().ends[row as usize]).collect(),
                keys: codec.take(&day.get().keys, &rows)?,
            };
            if !day.get().order.is_empty() {
                return Ok((!rows.is_empty()).then_some(due));
            }
            self.bytes -= day.remove().memory_bytes();
            if !rows.is_empty() {
                return Ok(Some(due));
            }
        }
    }

    /// Bytes held.
    pub(super) fn memory_bytes(&self) -> usize {
        // B-trees are about two thirds full.
        self.bytes * 3 / 2 + self.days.len() * size_of::<Day>() * 3 / 2
    }
}

impl Day {
    fn new(codec: &KeyCodec) -> Result<Self> {
        let data = match codec.is_fixed() {
            true => KeyData::Fixed(Vec::new()),
            false => KeyData::Rows(codec.empty_rows(0, 0).ok_or_else(other_codec)?),
        };
        Ok(Self { ends: Vec::new(), keys: Keys { data, hashes: Vec::new() }, order: Vec::new(), sorted: 0 })
    }

    /// Adds an entry; the bytes that it takes.
    fn push(&mut self, end: i64, keys: &Keys, row: usize) -> Result<usize> {
        self.ends.push(end);
        self.keys.hashes.push(*keys.hashes.get(row).ok_or_else(other_codec)?);
        match (&mut self.keys.data, &keys.data) {
            (KeyData::Fixed(to), KeyData::Fixed(from)) => to.push(*from.get(row).ok_or_else(other_codec)?),
            (KeyData::Rows(to), KeyData::Rows(from)) => {
                to.push(from.row(row));
                return Ok(24 + from.row_len(row));
            }
            _ => return Err(other_codec()),
        }
        Ok(24)
    }

    /// The next entries whose end is due.
    fn take(&mut self, upto: i64, limit: usize) -> Vec<u32> {
        if self.sorted < self.ends.len() {
            let new = self.ends.iter().copied().zip(0..).skip(self.sorted);
            self.order.extend(new);
            self.sorted = self.ends.len();
            // A sort that takes what is sorted already as it is.
            self.order.sort_by(|a, b| b.cmp(a));
        }
        let due = self.order.iter().rev().take(limit).take_while(|(end, _)| *end <= upto).count();
        let due = self.order.drain(self.order.len() - due..);
        due.rev().map(|(_, row)| row).collect()
    }

    /// What `push` answered for all entries.
    fn memory_bytes(&self) -> usize {
        let keys = match &self.keys.data {
            KeyData::Fixed(_) => 0,
            KeyData::Rows(rows) => (0..self.ends.len()).map(|row| rows.row_len(row)).sum(),
        };
        self.ends.len() * 24 + keys
    }
}

fn other_codec() -> Error {
    Error::internal("keys of another codec than the calendar's")
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{ArrayRef, Int64Array, StringViewArray, UInt32Array};

    use super::*;

    #[test]
    fn keys_come_by_their_ends_also_those_that_are_put_down_while_a_day_passes() {
        let numbers: ArrayRef = Arc::new(Int64Array::from_iter_values(0..10));
        let texts: ArrayRef = Arc::new(StringViewArray::from_iter_values((0..10).map(|i| format!("key {i}"))));
        for column in [numbers, texts] {
            let codec = KeyCodec::new(&[column.data_type().clone()], false).unwrap();
            let keys = codec.encode(10, std::slice::from_ref(&column)).unwrap();
            let mut calendar = Calendar::new(10_000);
            let ends = |due: Option<Due>| due.map(|due| (due.ends, codec.decode(&due.keys).unwrap().remove(0)));
            let rows = |rows: &[u32]| arrow::compute::take(&column, &UInt32Array::from(rows.to_vec()), None).unwrap();
            calendar.put(&codec, &keys, &[(7, 0), (-5, 1), (90, 2), (5, 3), (1_000, 4)]).unwrap();
            assert_eq!(ends(calendar.take(&codec, -6, 9).unwrap()), None);
            assert_eq!(ends(calendar.take(&codec, 50, 9).unwrap()), Some((vec![-5], rows(&[1]))));
            assert_eq!(ends(calendar.take(&codec, 50, 1).unwrap()), Some((vec![5], rows(&[3]))));
            calendar.put(&codec, &keys, &[(6, 5), (60, 6)]).unwrap();
            assert_eq!(ends(calendar.take(&codec, 50, 9).unwrap()), Some((vec![6, 7], rows(&[5, 0]))));
            assert_eq!(ends(calendar.take(&codec, 59, 9).unwrap()), None);
            assert_eq!(ends(calendar.take(&codec, 90, 9).unwrap()), Some((vec![60, 90], rows(&[6, 2]))));
            assert_eq!(ends(calendar.take(&codec, i64::MAX, 9).unwrap()), Some((vec![1_000], rows(&[4]))));
            assert_eq!((ends(calendar.take(&codec, i64::MAX, 9).unwrap()), calendar.memory_bytes()), (None, 0));
        }
    }
}
