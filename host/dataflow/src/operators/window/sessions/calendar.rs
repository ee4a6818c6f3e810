//! Which keys have a session to look at, by the end that it had when it was put down.
//!
//! A session is put down once and not again when it grows: when its time comes, whoever looks it up finds that it ends
//! later and puts it down for then. So a session costs about one look per gap, not one per row.
//!
//! Keys are put into *days*, short pieces of time, by appending; a day is sorted when it has come. A list per end was
//! tried and cost five times as much: sessions that grew are put down for ends all over a gap, one or two for each.
//!
//! A cache: it is made anew from the tables. It holds keys, not slots, since slots hold only until the next commit.
#![allow(
    clippy::indexing_slicing,
    reason = "a day's order has the numbers of its own entries, and days those of pages"
)]

use std::collections::BTreeMap;

use tidemill_core::keys::{KeyCodec, KeyData, Keys, hash_fixed};
use tidemill_core::{Error, Result};

/// A day is at most 128 ms long: while it passes it is sorted again and again, so it must not have too many entries.
const MAX_SHIFT: u32 = 7;
/// And a gap has at least so many days, as two to the power of this.
const DAYS_PER_GAP_SHIFT: u32 = 6;

/// So many days in a row are found at once: some gaps long.
const RECENT: usize = 512;

/// Keys by the end of a session.
#[derive(Debug)]
pub(super) struct Calendar {
    /// A day is two to the power of this long, in milliseconds.
    shift: u32,
    /// Where each day is among `pages`.
    days: BTreeMap<i64, usize>,
    /// The same of those days that were asked for last, by their lowest bits.
    recent: Vec<(i64, usize)>,
    pages: Vec<Day>,
    /// Pages of no day. They keep their memory: a day needs what the one before it needed.
    free: Vec<usize>,
    /// That the days hold.
    bytes: usize,
}

#[derive(Debug)]
struct Day {
    entries: Entries,
    /// Those entries that are sorted by their ends and not taken yet, the first one last: how far into the day the end
    /// lies, and in the low half the entry's number.
    order: Vec<u64>,
    /// How many entries have been sorted.
    sorted: usize,
}

/// Ends with their keys.
#[derive(Debug)]
enum Entries {
    /// Side by side, since they are put down one here and one there.
    Fixed(Vec<(i64, u64)>),
    Rows {
        ends: Vec<i64>,
        keys: Keys,
    },
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
        let (days, pages, free) = Default::default();
        Self { shift, days, recent: vec![(i64::MAX, 0); RECENT], pages, free, bytes: 0 }
    }

    /// Puts down the keys of some rows, each with the end of a session.
    pub(super) fn put(&mut self, codec: &KeyCodec, keys: &Keys, entries: &[(i64, u32)]) -> Result<()> {
        for &(end, row) in entries {
            let day = end >> self.shift;
            let recent = self.recent[day as usize % RECENT];
            let page = if recent.0 == day { recent.1 } else { self.page(codec, day)? };
            self.bytes += self.pages[page].entries.push(end, keys, row as usize)?;
        }
        Ok(())
    }

    /// Where a day is that was not asked for lately; it is begun if need be.
    #[cold]
    fn page(&mut self, codec: &KeyCodec, day: i64) -> Result<usize> {
        let page = match self.days.get(&day) {
            Some(&page) => page,
            None => {
                let page = match self.free.pop() {
                    Some(page) => page,
                    None => {
                        self.pages.push(Day::new(codec)?);
                        self.pages.len() - 1
                    }
                };
                self.days.insert(day, page);
                page
            }
        };
        self.recent[day as usize % RECENT] = (day, page);
        Ok(page)
    }

    /// Takes the next keys whose end is due, up to `limit`, all of one day.
    pub(super) fn take(&mut self, codec: &KeyCodec, upto: i64, limit: usize) -> Result<Option<Due>> {
        loop {
            let Some((&number, &page)) = self.days.first_key_value().filter(|(day, _)| **day <= upto >> self.shift)
            else {
                return Ok(None);
            };
            let day = &mut self.pages[page];
            let rows = day.take(number << self.shift, upto, limit);
            let due = day.entries.due(codec, &rows)?;
            if !day.order.is_empty() {
                return Ok((!rows.is_empty()).then_some(due));
            }
            self.bytes -= day.entries.bytes();
            self.remove(codec, number, page)?;
            if !rows.is_empty() {
                return Ok(Some(due));
            }
        }
    }

    fn remove(&mut self, codec: &KeyCodec, number: i64, page: usize) -> Result<()> {
        self.days.remove(&number);
        let recent = &mut self.recent[number as usize % RECENT];
        if recent.0 == number {
            *recent = (i64::MAX, 0);
        }
        if self.days.is_empty() {
            self.pages.clear();
            self.free.clear();
        } else {
            self.pages[page].clear(codec)?;
            self.free.push(page);
        }
        Ok(())
    }

    /// Bytes held.
    pub(super) fn memory_bytes(&self) -> usize {
        // Vectors that grew by doubling are about two thirds full; B-trees too.
        self.bytes * 3 / 2 + self.pages.len() * (size_of::<Day>() + 24)
    }
}

impl Day {
    fn new(codec: &KeyCodec) -> Result<Self> {
        Ok(Self { entries: Entries::new(codec)?, order: Vec::new(), sorted: 0 })
    }

    fn clear(&mut self, codec: &KeyCodec) -> Result<()> {
        self.sorted = 0;
        match &mut self.entries {
            Entries::Fixed(entries) => entries.clear(),
            rows @ Entries::Rows { .. } => *rows = Entries::new(codec)?,
        }
        Ok(())
    }

    /// The next entries whose end is due, of a day that begins then.
    fn take(&mut self, begin: i64, upto: i64, limit: usize) -> Vec<u32> {
        let len = self.entries.len();
        if self.sorted < len {
            let had = self.order.len();
            let number = |n: usize| ((self.entries.end(n) - begin) as u64) << 32 | n as u64;
            self.order.extend((self.sorted..len).map(number));
            self.sorted = len;
            if had == 0 {
                self.order.sort_unstable_by(|a, b| b.cmp(a));
            } else {
                // A sort that takes what is sorted already as it is.
                self.order.sort_by(|a, b| b.cmp(a));
            }
        }
        let is_due = |order: &u64| (*order >> 32) as i64 + begin <= upto;
        let due = self.order.iter().rev().take(limit).take_while(|order| is_due(order)).count();
        let due = self.order.drain(self.order.len() - due..);
        due.rev().map(|order| order as u32).collect()
    }
}

impl Entries {
    fn new(codec: &KeyCodec) -> Result<Self> {
        if codec.is_fixed() {
            return Ok(Self::Fixed(Vec::new()));
        }
        let data = KeyData::Rows(codec.empty_rows(0, 0).ok_or_else(other_codec)?);
        Ok(Self::Rows { ends: Vec::new(), keys: Keys { data, hashes: Vec::new() } })
    }

    fn len(&self) -> usize {
        match self {
            Self::Fixed(entries) => entries.len(),
            Self::Rows { ends, .. } => ends.len(),
        }
    }

    fn end(&self, entry: usize) -> i64 {
        match self {
            Self::Fixed(entries) => entries[entry].0,
            Self::Rows { ends, .. } => ends[entry],
        }
    }

    /// Adds an entry; the bytes that it takes.
    fn push(&mut self, end: i64, keys: &Keys, row: usize) -> Result<usize> {
        match (self, &keys.data) {
            (Self::Fixed(entries), KeyData::Fixed(from)) => {
                entries.push((end, *from.get(row).ok_or_else(other_codec)?));
                Ok(16)
            }
            (Self::Rows { ends, keys: Keys { data: KeyData::Rows(to), hashes } }, KeyData::Rows(from)) => {
                ends.push(end);
                hashes.push(*keys.hashes.get(row).ok_or_else(other_codec)?);
                to.push(from.row(row));
                Ok(24 + from.row_len(row))
            }
            _ => Err(other_codec()),
        }
    }

    /// These entries.
    fn due(&self, codec: &KeyCodec, entries: &[u32]) -> Result<Due> {
        match self {
            Self::Fixed(all) => {
                let (ends, values): (_, Vec<u64>) = entries.iter().map(|&entry| all[entry as usize]).unzip();
                let hashes = values.iter().map(|&value| hash_fixed(value)).collect();
                Ok(Due { ends, keys: Keys { data: KeyData::Fixed(values), hashes } })
            }
            Self::Rows { ends, keys } => {
                let ends = entries.iter().map(|&entry| ends[entry as usize]).collect();
                Ok(Due { ends, keys: codec.take(keys, entries)? })
            }
        }
    }

    /// What `push` answered for all entries.
    fn bytes(&self) -> usize {
        match self {
            Self::Fixed(entries) => entries.len() * 16,
            Self::Rows { ends, keys: Keys { data: KeyData::Rows(rows), .. } } => {
                ends.len() * 24 + (0..ends.len()).map(|row| rows.row_len(row)).sum::<usize>()
            }
            Self::Rows { .. } => 0,
        }
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
